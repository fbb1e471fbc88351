"""Each way to misbehave, how it is chosen, and that a bad day can be had again."""

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


@pytest.mark.parametrize("status", [204, 304, 400, 402, 403, 418, 429, 500, 503, 599])
def test_any_status_can_be_had(client, status):
    client.box.fault(Fault(kind="status", status=status, times=1))
    assert client.get(HISTORY).status_code == status
    assert client.get(HISTORY).status_code == 200


@pytest.mark.parametrize(("asked", "header"), [(30, "30"), (0.5, "0.5"), ("7", "7"), ("soon", "soon"), (None, None)])
def test_retry_after_in_seconds_or_any_words(client, asked, header):
    client.box.fault(Fault(kind="status", status=429, retry_after=asked))
    assert client.get(HISTORY).headers.get("retry-after") == header


def test_retry_after_as_a_date(client):
    client.box.fault(Fault(kind="status", retry_after=90, retry_after_form="date"))
    answer = client.get(HISTORY)
    wait = parsedate_to_datetime(answer.headers["retry-after"]) - parsedate_to_datetime(answer.headers["date"])
    assert 88 <= wait.total_seconds() <= 91


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        ("<h1>Oh</h1>", None, "text/html; charset=utf-8"),
        ('{"a": 1}', None, "application/json"),
        ("[]", "text/plain", "text/plain"),
    ],
)
def test_a_body_can_be_given(client, body, content_type, told):
    for kind, status in (("status", 500), ("garbage", 200)):
        client.box.fault(Fault(kind=kind, status=500, body=body, content_type=content_type, times=1))
        answer = client.get(HISTORY)
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (status, body, told)


def test_garbage_is_a_page_in_html(client):
    client.box.fault(Fault(kind="garbage"))
    answer = client.get(HISTORY)
    assert answer.status_code == 200
    assert answer.text.startswith("<html>")


def test_a_delay_delays_and_nothing_else(client):
    client.box.fault(Fault(kind="delay", seconds=0.3))
    before = time.monotonic()
    assert client.get(HISTORY).status_code == 200
    assert time.monotonic() - before >= 0.3


def test_a_delay_holds_nobody_else_up(client, new_client):
    client.box.fault(Fault(kind="delay", call="entities", seconds=5))
    before = time.monotonic()
    with pytest.raises(requests.Timeout):
        client.session.get(f"{client.box.url}/entity/", timeout=0.2)
    assert new_client(client.box, accept="*/*").get(HISTORY).status_code == 401
    assert time.monotonic() - before < 2


def test_a_reset_is_a_tcp_reset(box):
    box.fault(Fault(kind="reset"))
    context = ssl.create_default_context(cafile=box.ca_file)
    with (
        socket.create_connection(("127.0.0.1", box.port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /bank-connect/v1/entity/ HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            _read_to_the_end(secured)


def _read_to_the_end(secured):
    # Past TLS, for OpenSSL tells a reset as an end.
    while socket.socket.recv(secured, 4096):
        pass


def test_after_a_reset_the_next_connection_works(client):
    client.box.fault(Fault(kind="reset", times=1))
    with pytest.raises(requests.ConnectionError):
        client.get(HISTORY)
    assert client.get(HISTORY).status_code == 200
    assert [record.status for record in client.box.requests] == [None, 200]


async def test_half_an_answer_breaks_off_for_each_client(client):
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


def test_a_redirect_leads_elsewhere(client):
    client.box.fault(Fault(kind="redirect", url="https://thief.example/"))
    answer = client.get(HISTORY)
    assert (answer.status_code, answer.headers["location"]) == (302, "https://thief.example/")


def test_a_stale_answer_is_as_it_was(client, clock):
    client.box.play(Statement(link_id="l", entity_id="e", after=10))
    client.box.fault(Fault(kind="stale", seconds=30))
    clock.advance(20)
    assert (client.history("l"), client.statuses("e")) == ([], [])
    clock.advance(20)
    assert (len(client.history("l")), client.statuses("e")) == (1, ["completed"])


def test_shuffled_rows_are_the_same_rows(client):
    for number in range(20):
        client.box.play(Statement(link_id="l", entity_id="e", statement_id=str(number)))
    straight, progress = client.history("l"), client.analysis("e")["progress"]
    client.box.fault(Fault(kind="shuffle"))
    shuffled = client.history("l")
    assert shuffled != straight
    assert sorted(map(str, shuffled)) == sorted(map(str, straight))
    assert client.analysis("e")["progress"] != progress


def test_unknown_fields_come_at_every_level(client):
    client.box.play(Statement(link_id="l"))
    client.box.fault(Fault(kind="extra"))
    answer = client.get(HISTORY).json()
    assert "sandbox_extra" in answer
    assert "sandbox_extra" in answer["payloads"][0]


def test_changes_and_one_ending_meet_in_one_answer(client):
    for fault in (Fault(kind="status", status=500), Fault(kind="garbage"), Fault(kind="delay", seconds=0.2)):
        client.box.fault(fault)
    before = time.monotonic()
    assert client.get(HISTORY).status_code == 500
    assert time.monotonic() - before >= 0.2
    assert client.box.requests[0].faults == ("status", "delay")


def test_a_fault_meets_its_call_only(client):
    client.box.play(Statement(entity_id="e"))
    client.box.fault(Fault(kind="status", call="transactions"))
    assert client.get(HISTORY).status_code == 200
    assert client.get("entity/e/accounts/").status_code == 200
    assert client.get("entity/e/transactions/").status_code == 503


def test_a_fault_has_its_time_which_counts_from_when_it_is_set(client, clock):
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


def test_the_same_seed_gives_the_same_bad_day(serve):
    def day(seed, *more):
        with serve(seed=seed, faults=[Fault(kind="status", probability=0.3), *more]) as client:
            return [client.get(HISTORY).status_code for _ in range(60)]

    first = day(7)
    assert 8 <= first.count(503) <= 30
    assert day(7) == first
    assert day(8) != first
    assert day(7, Fault(kind="extra", probability=0.5)) == first


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "explode"}, "'status', 'delay'"),
        ({"kind": "status", "status": 99}, "greater than or equal to 200"),
        ({"kind": "drop", "call": "transactions"}, "about webhooks"),
        ({"kind": "status", "call": "webhook"}, "drop, duplicate"),
        ({"kind": "status", "until": 1, "after": 2}, "until"),
        ({"kind": "status", "probability": 0}, "greater than 0"),
        ({"kind": "status", "times": 0}, "greater than or equal to 1"),
        ({"kind": "status", "oops": 0}, "oops"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        Fault(**fields)


def test_a_type_checker_wants_no_more_of_a_fault_than_its_kind(tmp_path):
    theirs = tmp_path / "theirs.py"
    theirs.write_text(
        "from airflow_provider_bankconnect.sandbox import Fault\n\nFault(kind='drop')\n", encoding="utf-8"
    )
    said, _, code = mypy.run(["--strict", str(theirs)])
    assert code == 0, said
