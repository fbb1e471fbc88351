"""Both hooks turn every bad answer into the right error, in time, with little memory, and leave nothing open."""

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
    BAD_ROWS,
    CASES,
    EMPTY,
    GZIPPED,
    LIMIT,
    LONG_LINE,
    LUMPS,
    MANY_LISTS,
    OK,
    PLANTED,
    always,
    any_answer,
    history,
    not_reading,
    whole,
)

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import BankConnectConnectionError, BankConnectError
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger

HERE = Path(__file__).parent
both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Point the default connection to a server."""

    def connect_to(server, **extra):
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", server.connection(tmp_path, **extra))

    return connect_to


@pytest.fixture
def _small_limit(monkeypatch):
    monkeypatch.setattr(api, "MAX_ANSWER_BYTES", LIMIT)


def ask(kind, *calls):
    """Make these calls with one hook, one after another, without retries; return their results and errors."""

    async def asynchronously():
        results = []
        async with BankConnectAsyncHook() as hook:
            for method, *arguments in calls:
                try:
                    results.append(await getattr(hook, method)(*arguments))
                except BankConnectError as error:
                    results.append(error)
        return results

    if kind == "async":
        return asyncio.run(asynchronously())
    results = []
    with BankConnectHook(max_retries=0) as hook:
        for method, *arguments in calls:
            try:
                results.append(getattr(hook, method)(*arguments))
            except BankConnectError as error:
                results.append(error)
    return results


HISTORY = ("get_webhook_payloads", "L")


def check_error_has_no_secrets(error):
    shown = f"{error} {error!r} {vars(error)} {error.__cause__}"
    assert error.__suppress_context__ or error.__context__ is None
    assert len(shown) < 2000
    for secret in (API_KEY, SERVER_HASH, PLANTED.decode()):
        assert secret not in shown


def check_nothing_is_left_open(server, caplog):
    assert server.has_no_connections()
    assert not server.timed_out
    # Open resources warn when they are collected, and asyncio logs unawaited tasks and uncaught errors.
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


@both
@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_answer_becomes_its_error_and_leaves_nothing_open(case, kind, connect, caplog):
    with Hostile(case.behave, tls=case.tls) as server:
        connect(server, timeout=case.timeout)
        (error,) = ask(kind, HISTORY)
        check_nothing_is_left_open(server, caplog)
    assert type(error) is case.error
    assert case.says in str(error)
    check_error_has_no_secrets(error)
    # aiohttp itself repeats a GET once when a connection breaks: a kept one may have been closed while idle.
    assert len(server.requests) <= (2 if kind == "async" and case.error is BankConnectConnectionError else 1)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """The cases that do not end by the timeout, which send little, and what became of each, by the kind of hook."""
    cases = [case for case in CASES if case.timeout > 1]
    with ExitStack() as stack:
        # One after another, by both kinds: that may take longer than one test.
        stack.enter_context(pytest.MonkeyPatch.context()).setattr("hostile.PATIENCE", 600.0)
        servers = [Hostile(always(whole(EMPTY))), *(Hostile(case.behave, tls=case.tls) for case in cases)]
        connections = [
            stack.enter_context(server).connection(tmp_path_factory.mktemp("authority"), timeout=timeout)
            for server, timeout in zip(servers, [30, *(case.timeout for case in cases)], strict=True)
        ]
        done = subprocess.run(
            [sys.executable, HERE / "memory_of_calls.py"],
            input=json.dumps({"kinds": ["sync", "async"], "limit": LIMIT, "connections": connections}),
            capture_output=True,
            text=True,
            check=True,
        )
        assert not any(server.timed_out for server in servers)
    sync, asynchronous = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]
    return cases, {"sync": sync, "async": asynchronous}


@both
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux has it")
def test_no_bad_answer_takes_much_memory(kind, calls):
    cases, by_kind = calls
    warm_up, *others = by_kind[kind]
    assert warm_up["result"] == "0 rows"
    for case, call in zip(cases, others, strict=True):
        assert call["result"].startswith(case.error.__name__), case
        # The limit, twice for a moment, and buffers; a whole large body would be 32 MiB.
        assert call["grew"] < 20, case


@both
def test_answer_of_ten_megabytes_is_read_whole(kind, connect, caplog):
    rows = [{"amount": number, "note": "₹" * 30, "balance": 12.5} for number in range(70_000)]
    done = [{"statement_id": "s1", "status": "completed"}]
    body = json.dumps({"entity_id": "e1", "progress": done, "transactions": rows}).encode()
    assert len(body) > 10_000_000
    with Hostile(always(whole(body))) as server:
        connect(server)
        (answer,) = ask(kind, ("get_transactions", "e1"))
        check_nothing_is_left_open(server, caplog)
    assert answer == json.loads(body)


@both
def test_requests_ask_for_uncompressed_answers(kind, connect):
    with Hostile(always(whole(EMPTY))) as server:
        connect(server)
        assert ask(kind, HISTORY) == [[]]
    assert b"\r\naccept-encoding: identity\r\n" in server.requests[0].lower()


@pytest.mark.parametrize("why", ["time", "cancelled"])
async def test_aborted_request_closes_its_connection_though_the_server_does_not_read(why, connect):
    with Hostile(not_reading(OK + b"Content-Length: 15\r\n\r\n")) as server:
        connect(server, timeout=1 if why == "time" else 50)
        async with BankConnectAsyncHook() as hook:
            asked = asyncio.create_task(hook.get_webhook_payloads("L"))
            if why == "cancelled":
                await asyncio.to_thread(server.asked.wait)
                asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            # The hook stays open, as that of many waits does.
            assert await asyncio.to_thread(server.has_no_connections)


@both
def test_redirects_are_not_followed_and_the_keys_go_nowhere_else(kind, connect):
    with Hostile(always(whole(EMPTY))) as elsewhere:

        def redirect(peer):
            number = 0
            while peer.read_request():
                number += 1
                where = server.url if number % 2 else elsewhere.url
                peer.send(whole(b"", b"HTTP/1.1 302 Found\r\nLocation: %s/%d\r\n" % (where.encode(), number)))

        with Hostile(redirect) as server:
            connect(server)
            errors = ask(kind, *[HISTORY] * 100)
        assert all("a redirect, which is never followed" in str(error) for error in errors)
        paths = [request.split()[1] for request in server.requests]
        assert paths == [b"/bank-connect/v1/entity/webhook_payloads/?link_id=L"] * 100
        assert elsewhere.connections == 0


@both
def test_cookies_are_not_kept(kind, connect):
    def behave(peer):
        while peer.read_request():
            peer.send(whole(EMPTY, OK + b"Set-Cookie: a=%b; Max-Age=99999\r\n" % PLANTED * 50))

    with Hostile(behave) as server:
        connect(server)
        assert ask(kind, *[HISTORY] * 3) == [[]] * 3
    assert not any(b"cookie" in request.lower() for request in server.requests)


@both
def test_any_bytes_become_rows_or_an_error_of_ours(kind, connect, caplog):
    """`FUZZ_EXAMPLES=5000` tries this many."""
    seeds = range(int(os.environ.get("FUZZ_EXAMPLES", "60")))
    answer = b""

    def behave(peer):
        peer.read_request()
        peer.send(answer)

    with Hostile(behave) as server:
        connect(server, timeout=20)
        for seed in seeds:
            answer = any_answer(seed)
            (result,) = ask(kind, HISTORY)
            if isinstance(result, BankConnectError):
                check_error_has_no_secrets(result)
            else:
                assert result == [], seed
        check_nothing_is_left_open(server, caplog)


# A wait


def trigger(link_id, *, lasts):
    return BankConnectWebhookPayloadTrigger(
        link_id=link_id, wait={"deadline": datetime.now(UTC) + timedelta(seconds=lasts), "poke_interval": 0.1}
    )


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def then_close(*parts):
    def behave(peer):
        for part in parts:
            peer.send(part)
        raise OSError

    return behave


def just(answer):
    return lambda peer: peer.send(answer)


@pytest.mark.usefixtures("fast", "_small_limit")
@pytest.mark.parametrize(
    "bad",
    [
        then_close(OK + b"\r\n", LUMPS),
        then_close(OK + b"X: " + LONG_LINE),
        just(whole(GZIPPED, OK + b"Content-Encoding: gzip\r\n")),
        just(whole(MANY_LISTS)),
        just(whole(BAD_ROWS)),
    ],
    ids=["large-body", "long-header-line", "gzip", "many-lists", "many-bad-rows"],
)
async def test_wait_continues_after_bad_answers_and_delays_no_other(bad, connect, caplog, capsys):
    links = ["bad", *(f"good-{number}" for number in range(10))]
    pokes = dict.fromkeys(links, 0)

    def behave(peer):
        while request := peer.read_request():
            link = request.split()[1].rpartition(b"=")[2].decode()
            pokes[link] += 1
            if pokes[link] > 3:
                peer.send(whole(history("s1", link)))
            elif link == "bad":
                bad(peer)
            else:
                peer.send(whole(EMPTY))

    with Hostile(behave) as server:
        connect(server)
        longest, waits = 0.0, [asyncio.create_task(fire(trigger(link, lasts=50))) for link in links]
        while not all(wait.done() for wait in waits):
            # CPU time of this thread between two turns: wall time would include other processes.
            before = time.thread_time()
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - before)
        assert await asyncio.to_thread(server.has_no_connections)
    for link, wait in zip(links, waits, strict=True):
        event = await wait
        assert (event["status"], [row["link_id"] for row in event["rows"]]) == ("passed", [link])
    assert pokes["bad"] == 4
    # Airflow 3 logs to stdout.
    logged = capsys.readouterr().out + caplog.text
    assert logged.count("The wait continues after an error") == 1
    assert not any(secret in logged for secret in (API_KEY, SERVER_HASH, PLANTED.decode()))
    # It may include a garbage collection of the whole test run.
    assert longest < 1
