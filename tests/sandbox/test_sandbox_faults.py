"""What each fault does, when it is applied, and that a seed repeats it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
import requests
from mypy import api as mypy
from pydantic import ValidationError

from airflow_provider_bankconnect.sandbox import Fault, Statement

HISTORY = "entity/webhook_payloads/?link_id=l"


@pytest.mark.parametrize("status", [204, 304, 400, 402, 403, 408, 418, 425, 429, 500, 503, 599])
def test_any_status_can_be_answered(client, status):
    client.box.fault(Fault(kind="status", status=status, times=1))
    assert client.get(HISTORY).status_code == status
    assert client.get(HISTORY).status_code == 200


@pytest.mark.parametrize(
    ("asked", "header"),
    [
        (30, "30"),
        (0.5, "0.5"),
        (8.5, "8.5"),
        (1_000_000, "1000000"),
        (1e-7, "0.0000001"),
        (1e12, "1000000000000"),
        (-5, "-5"),
        *((text, text) for text in ("7", "8.5", "8.50", "1000000", "1e6", "-5", "inf", "nan", "soon", "")),
        (None, None),
    ],
)
def test_retry_after_is_sent_in_seconds_or_as_any_text(client, asked, header):
    client.box.fault(Fault(kind="status", status=429, retry_after=asked))
    assert client.get(HISTORY).headers.get("retry-after") == header


def test_retry_after_is_sent_as_a_date(client):
    client.box.fault(Fault(kind="status", retry_after=90, retry_after_form="date"))
    answer = client.get(HISTORY)
    wait = parsedate_to_datetime(answer.headers["retry-after"]) - parsedate_to_datetime(answer.headers["date"])
    # The two times are taken one after the other, and written in whole seconds.
    assert 89 <= wait.total_seconds() < 150


@pytest.mark.parametrize(
    ("body", "content_type", "sent_type"),
    [
        ("<h1>Oh</h1>", None, "text/html; charset=utf-8"),
        ('{"a": 1}', None, "application/json"),
        ("[]", "text/plain", "text/plain"),
    ],
)
def test_a_body_can_be_given(client, body, content_type, sent_type):
    for kind, status in (("status", 500), ("garbage", 200)):
        client.box.fault(Fault(kind=kind, status=500, body=body, content_type=content_type, times=1))
        answer = client.get(HISTORY)
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (status, body, sent_type)


def test_garbage_is_an_html_page(client):
    client.box.fault(Fault(kind="garbage"))
    answer = client.get(HISTORY)
    assert answer.status_code == 200
    assert answer.text.startswith("<html>")


def test_a_delay_only_delays_the_answer(client):
    client.box.fault(Fault(kind="delay", seconds=0.3))
    before = time.monotonic()
    assert client.get(HISTORY).status_code == 200
    assert time.monotonic() - before >= 0.3


def test_a_delay_does_not_delay_other_clients(client, new_client, eventually):
    client.box.fault(Fault(kind="delay", call="entities", seconds=600))
    with pytest.raises(requests.Timeout):
        client.session.get(f"{client.box.url}/entity/", timeout=(60, 0.2))
    eventually(lambda: client.box.calls("entities"))
    assert new_client(client.box, accept="*/*").get(HISTORY).status_code == 401
    assert client.box.calls("entities")[0].status is None


def test_a_reset_is_a_tcp_reset(box):
    box.fault(Fault(kind="reset"))
    context = ssl.create_default_context(cafile=box.ca_file)
    with (
        socket.create_connection(("127.0.0.1", box.port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /bank-connect/v1/entity/ HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            _read_to_the_end(secured)


def _read_to_the_end(secured):
    # Below TLS, because OpenSSL reports a reset as an end of file.
    while socket.socket.recv(secured, 4096):
        pass


def test_the_next_connection_works_after_a_reset(client):
    client.box.fault(Fault(kind="reset", times=1))
    with pytest.raises(requests.ConnectionError):
        client.get(HISTORY)
    assert client.get(HISTORY).status_code == 200
    assert [record.status for record in client.box.requests] == [None, 200]


async def test_half_an_answer_is_an_error_in_requests_and_aiohttp(client):
    client.box.play(Statement(entity_id="e", transactions=5000))
    client.box.fault(Fault(kind="half", times=2))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        await asyncio.to_thread(client.get, "entity/e/transactions/")
    context = ssl.create_default_context(cafile=client.box.ca_file)
    keys = {"x-api-key": client.box.api_key, "server-hash": client.box.server_hash}
    async with aiohttp.ClientSession(headers=keys) as session:
        answer = await session.get(f"{client.box.url}/entity/e/transactions/", ssl=context)
        assert int(answer.headers["content-length"]) > 1000
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


def test_a_redirect_names_the_given_url(client):
    client.box.fault(Fault(kind="redirect", url="https://thief.example/"))
    answer = client.get(HISTORY)
    assert (answer.status_code, answer.headers["location"]) == (302, "https://thief.example/")


def test_a_stale_answer_is_that_of_an_earlier_time(client, clock):
    client.box.play(Statement(link_id="l", entity_id="e", after=10))
    client.box.fault(Fault(kind="stale", seconds=30))
    clock.advance(20)
    assert (client.history("l"), client.statuses("e")) == ([], [])
    clock.advance(20)
    assert (len(client.history("l")), client.statuses("e")) == (1, ["completed"])


def test_shuffle_keeps_the_rows_and_changes_their_order(client):
    for number in range(20):
        client.box.play(Statement(link_id="l", entity_id="e", statement_id=str(number)))
    straight, progress = client.history("l"), client.analysis("e")["progress"]
    client.box.fault(Fault(kind="shuffle"))
    shuffled = client.history("l")
    assert shuffled != straight
    assert sorted(map(str, shuffled)) == sorted(map(str, straight))
    assert client.analysis("e")["progress"] != progress


def test_extra_adds_unknown_fields_at_every_level(client):
    client.box.play(Statement(link_id="l"))
    client.box.fault(Fault(kind="extra"))
    answer = client.get(HISTORY).json()
    assert "sandbox_extra" in answer
    assert "sandbox_extra" in answer["payloads"][0]


def test_one_answer_may_have_several_changes_and_one_ending(client):
    for fault in (Fault(kind="status", status=500), Fault(kind="garbage"), Fault(kind="delay", seconds=0.2)):
        client.box.fault(fault)
    before = time.monotonic()
    assert client.get(HISTORY).status_code == 500
    assert time.monotonic() - before >= 0.2
    assert client.box.requests[0].faults == ("status", "delay")


def test_a_fault_applies_only_to_its_call(client):
    client.box.play(Statement(entity_id="e"))
    client.box.fault(Fault(kind="status", call="transactions"))
    assert client.get(HISTORY).status_code == 200
    assert client.get("entity/e/accounts/").status_code == 200
    assert client.get("entity/e/transactions/").status_code == 503


def test_the_times_of_a_fault_count_from_its_addition(client, clock):
    clock.advance(1000)
    client.box.fault(Fault(kind="status", after=10, until=20))
    seen = []
    for _ in range(4):
        seen.append(client.get(HISTORY).status_code)
        clock.advance(7)
    assert seen == [200, 200, 503, 200]


def test_faults_can_be_cleared(client):
    client.box.fault(Fault(kind="status"))
    assert client.get(HISTORY).status_code == 503
    client.box.clear_faults()
    assert client.get(HISTORY).status_code == 200


def test_the_same_seed_gives_the_same_faults(serve):
    def statuses(seed, *more):
        with serve(seed=seed, faults=[Fault(kind="status", probability=0.3), *more]) as client:
            return [client.get(HISTORY).status_code for _ in range(60)]

    first = statuses(7)
    assert 8 <= first.count(503) <= 30
    assert statuses(7) == first
    assert statuses(8) != first
    assert statuses(7, Fault(kind="extra", probability=0.5)) == first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "explode"}, "'status', 'delay'"),
        ({"kind": "status", "status": 99}, "greater than or equal to 200"),
        ({"kind": "drop", "call": "transactions"}, "is for webhooks"),
        ({"kind": "status", "call": "webhook"}, "drop, duplicate"),
        ({"kind": "status", "until": 1, "after": 2}, "until"),
        ({"kind": "status", "probability": 0}, "greater than 0"),
        ({"kind": "status", "times": 0}, "greater than or equal to 1"),
        ({"kind": "status", "oops": 0}, "oops"),
    ],
)
def test_an_invalid_fault_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Fault(**fields)


def test_a_type_checker_accepts_a_fault_with_its_kind_alone(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "from airflow_provider_bankconnect.sandbox import Fault\n\nFault(kind='drop')\n", encoding="utf-8"
    )
    output, _, code = mypy.run(["--strict", str(module)])
    assert code == 0, output
