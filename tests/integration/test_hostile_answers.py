"""Whatever a server does to them, both hooks say so in time, with little memory, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hostile import API_KEY, SERVER_HASH, Hostile
from hostile_cases import (
    BOMB,
    CASES,
    CHUNK,
    CHUNKED,
    EMPTY,
    OK,
    PLANTED,
    always,
    any_answer,
    deaf,
    history,
    whole,
)

from airflow_provider_bankconnect.api import BankConnectConnectionError, BankConnectError
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger

HERE = Path(__file__).parent
both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(autouse=True, scope="module")
def _collected_quickly():
    """Each test here collects its garbage, and not that of all of Airflow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Have the default connection lead to a server."""

    def connect_to(server, **extra):
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", server.connection(tmp_path, **extra))

    return connect_to


def ask(kind, *calls, pause=0.0):
    """Make these calls with one hook, one after another, without retries, and give what came of each."""

    async def asynchronously():
        async with BankConnectAsyncHook() as hook:
            for method, *arguments in calls:
                yield await came_of(getattr(hook, method)(*arguments))
                await asyncio.sleep(pause)

    async def came_of(asked):
        try:
            return await asked
        except BankConnectError as error:
            return error

    async def collected():
        return [came async for came in asynchronously()]

    if kind == "async":
        return asyncio.run(collected())
    came = []
    with BankConnectHook(max_retries=0) as hook:
        for method, *arguments in calls:
            try:
                came.append(getattr(hook, method)(*arguments))
            except BankConnectError as error:
                came.append(error)
            time.sleep(pause)
    return came


LOOK = ("get_webhook_payloads", "L")


def nothing_is_told_in(error):
    told = f"{error} {error!r} {vars(error)} {error.__cause__}"
    assert error.__suppress_context__ or error.__context__ is None
    assert len(told) < 2000
    for secret in (API_KEY, SERVER_HASH, PLANTED.decode()):
        assert secret not in told


def nothing_is_left(server, caplog):
    assert server.is_left_alone()
    assert not server.lost_patience
    # What is left open complains when it is collected, and asyncio of what nobody awaited or caught.
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_answer_is_the_error_that_it_is_and_nothing_is_left_open(case, kind, connect, caplog):
    with Hostile(case.behave, tls=case.tls) as server:
        connect(server, timeout=case.timeout)
        (error,) = ask(kind, LOOK)
        nothing_is_left(server, caplog)
    assert case.error in (type(error), BankConnectError)
    assert case.says in str(error)
    nothing_is_told_in(error)
    # aiohttp itself sends a GET once more where a connection broke: it may have been one that was kept.
    assert len(server.requests) <= (2 if kind == "async" and case.error is BankConnectConnectionError else 1)


@both
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux has it")
def test_no_hostile_answer_takes_much_memory(kind, tmp_path):
    # What has to be waited for is not much.
    cases = [case for case in CASES if case.timeout > 1 or case.name == "endless-tiny-chunks"]
    with ExitStack() as stack:
        servers = [Hostile(always(whole(EMPTY))), *(Hostile(case.behave, tls=case.tls) for case in cases)]
        connections = [
            stack.enter_context(server).connection(tmp_path, timeout=timeout)
            for server, timeout in zip(servers, [30, *(case.timeout for case in cases)], strict=True)
        ]
        done = subprocess.run(
            [sys.executable, HERE / "memory_of_calls.py"],
            input=json.dumps({"kind": kind, "connections": connections}),
            capture_output=True,
            text=True,
            check=True,
        )
        assert not any(server.lost_patience for server in servers)
    warm_up, *told = json.loads(done.stdout.splitlines()[-1])
    assert warm_up["came"] == "0 rows"
    for case, call in zip(cases, told, strict=True):
        assert call["came"].startswith(("BankConnect", case.error.__name__)[case.error is not BankConnectError]), case
        # 64 MiB of body, twice for a moment.
        assert call["grew"] < 200, case


@both
def test_an_answer_of_ten_megabytes_is_read_whole(kind, connect, caplog):
    rows = [{"amount": number, "note": "₹" * 30, "balance": 12.5} for number in range(70_000)]
    done = [{"statement_id": "s1", "status": "completed"}]
    body = json.dumps({"entity_id": "e1", "progress": done, "transactions": rows}).encode()
    assert len(body) > 10_000_000
    with Hostile(always(whole(body))) as server:
        connect(server)
        (answer,) = ask(kind, ("get_transactions", "e1"))
        nothing_is_left(server, caplog)
    assert answer == json.loads(body)


@both
def test_no_compressed_answer_is_asked_for(kind, connect):
    with Hostile(always(whole(EMPTY))) as server:
        connect(server)
        assert ask(kind, LOOK) == [[]]
    assert b"\r\naccept-encoding: identity\r\n" in server.requests[0].lower()


@pytest.mark.parametrize("why", ["time", "cancelled"])
async def test_what_breaks_off_is_cut_off_though_the_server_does_not_listen(why, connect):
    with Hostile(deaf(OK + b"Content-Length: 15\r\n\r\n")) as server:
        connect(server, timeout=1 if why == "time" else 50)
        async with BankConnectAsyncHook() as hook:
            asked = asyncio.create_task(hook.get_webhook_payloads("L"))
            if why == "cancelled":
                await asyncio.to_thread(server.asked.wait)
                asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            # The hook goes on, as that of many waits would.
            assert await asyncio.to_thread(server.is_left_alone)


@both
def test_a_thousand_redirects_are_not_followed_and_the_keys_go_nowhere_else(kind, connect):
    with Hostile(always(whole(EMPTY))) as elsewhere:

        def redirect(peer):
            number = 0
            while peer.read_request():
                number += 1
                where = server.url if number % 2 else elsewhere.url
                peer.send(whole(b"", b"HTTP/1.1 302 Found\r\nLocation: %s/%d\r\n" % (where.encode(), number)))

        with Hostile(redirect) as server:
            connect(server)
            errors = ask(kind, *[LOOK] * 1000)
        assert all("a redirect, which is never followed" in str(error) for error in errors)
        paths = [request.split()[1] for request in server.requests]
        assert paths == [b"/bank-connect/v1/entity/webhook_payloads/?link_id=L"] * 1000
        assert elsewhere.connections == 0


@both
def test_what_a_server_wants_to_be_remembered_is_forgotten(kind, connect):
    def behave(peer):
        while peer.read_request():
            peer.send(whole(EMPTY, OK + b"Set-Cookie: a=%b; Max-Age=99999\r\n" % PLANTED * 50))

    with Hostile(behave) as server:
        connect(server)
        assert ask(kind, *[LOOK] * 3) == [[]] * 3
    assert not any(b"cookie" in request.lower() for request in server.requests)


@both
def test_no_bytes_whatever_make_more_than_rows_or_an_error_of_ours(kind, connect, caplog):
    """`FUZZ_EXAMPLES=5000` tries so many of them."""
    seeds = range(int(os.environ.get("FUZZ_EXAMPLES", "60")))
    answer = b""

    def behave(peer):
        peer.read_request()
        peer.send(answer)

    with Hostile(behave) as server:
        connect(server, timeout=20)
        for seed in seeds:
            answer = any_answer(seed)
            (came,) = ask(kind, LOOK)
            if isinstance(came, BankConnectError):
                nothing_is_told_in(came)
            else:
                assert came == [], seed
        nothing_is_left(server, caplog)


# A wait


def trigger(link_id, *, lasts):
    return BankConnectWebhookPayloadTrigger(
        link_id=link_id, deadline=datetime.now(UTC) + timedelta(seconds=lasts), poke_interval=0.1
    )


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def for_ever(data, again):
    def behave(peer):
        peer.send(data)
        peer.send_for_ever(again)

    return behave


def just(answer):
    return lambda peer: peer.send(answer)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "hostile",
    [
        for_ever(CHUNKED, CHUNK),
        for_ever(OK, b"a: b\r\n" * 10_000),
        just(whole(BOMB, OK + b"Content-Encoding: gzip\r\n")),
        just(whole(b"[" * 30_000_000)),
        just(whole(b'{"payloads":[' + b"{}," * 240_000 + b"{}]}")),
    ],
    ids=["endless-chunks", "endless-headers", "bomb", "nested-lists", "many-bad-rows"],
)
async def test_a_wait_outlives_hostile_answers_and_holds_up_no_other(hostile, connect, caplog, capsys):
    links = ["bad", *(f"good-{number}" for number in range(10))]
    looks = dict.fromkeys(links, 0)

    def behave(peer):
        while request := peer.read_request():
            link = request.split()[1].rpartition(b"=")[2].decode()
            looks[link] += 1
            if looks[link] > 3:
                peer.send(whole(history("s1", link)))
            elif link == "bad":
                hostile(peer)
            else:
                peer.send(whole(EMPTY))

    with Hostile(behave) as server:
        connect(server)
        longest, waits = 0.0, [asyncio.create_task(fire(trigger(link, lasts=50))) for link in links]
        while not all(wait.done() for wait in waits):
            # What this thread works between two of its turns: the time of day would tell of other processes too.
            before = time.thread_time()
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - before)
        assert await asyncio.to_thread(server.is_left_alone)
    for link, wait in zip(links, waits, strict=True):
        event = await wait
        assert (event["status"], [row["link_id"] for row in event["rows"]]) == ("passed", [link])
    assert looks["bad"] == 4
    # Airflow 3 writes its log there.
    told = capsys.readouterr().out + caplog.text
    assert told.count("The wait goes on after an error") == 1
    assert not any(secret in told for secret in (API_KEY, SERVER_HASH, PLANTED.decode()))
    # A garbage collection of the whole test run may be among it; 64 MiB in one go, or a bomb, would be more.
    assert longest < 1
