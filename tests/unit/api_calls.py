"""BankConnect's calls driven by answers, for the tests of what is read and what is refused."""

from __future__ import annotations

import json
from datetime import UTC

import pytest

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import Answer, BankConnectError, Request, Result

ROW = {
    "statement_id": "s1",
    "entity_id": "e1",
    "link_id": "L",
    "progress": "completed",
    "reason": "",
    "date_time": "2020-03-06 12:46:33",
}
DONE = {"statement_id": "s1", "status": "completed", "source": "online", "message": None}


def page(*ids, link="L", more=False):
    return {
        "count": 99,
        "next": "https://elsewhere.example/steal" if more else None,
        "previous": None,
        "results": [{"entity_id": name, "link_id": link, "meta_data": {}} for name in ids],
    }


def without(name, given=ROW):
    return {key: value for key, value in given.items() if key != name}


def answer(body, status=200):
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


def answer_with(call, *bodies):
    """Drive a call; return its requests and its result."""
    sent = []
    step = api.advance(call)
    for body in bodies:
        assert isinstance(step, Request)
        sent.append(step)
        step = api.advance(call, answer(body))
    assert isinstance(step, Result), f"another request: {step}"
    return sent, step.value


def first_request(call):
    step = api.advance(call)
    assert isinstance(step, Request)
    return step


def refusal(call, *bodies):
    """Drive a call to the error of its last answer."""
    with pytest.raises(BankConnectError) as caught:
        answer_with(call, *bodies)
    return caught.value


def payloads_of(*rows, zone=UTC):
    return answer_with(api.get_webhook_payloads("L", zone), {"payloads": rows})[1]
