"""A deferred wait: one connection, an event loop that is never blocked, an absolute deadline, no poke too many."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
from waits import build, run, until

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect import wait as rules
from airflow_provider_bankconnect.gate import Expectation, judge_history
from airflow_provider_bankconnect.hooks import bankconnect as hooks
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)
from airflow_provider_bankconnect.wait import WaitArguments

pytestmark = pytest.mark.usefixtures("connection")
LINK = "loan-4711"


def trigger(*, lasts=600.0, kind=BankConnectWebhookPayloadTrigger, **arguments):
    gate = {"entity_id": "e1"} if kind is BankConnectProgressTrigger else {"link_id": LINK}
    pace = {"deadline": datetime.now(UTC) + timedelta(seconds=lasts), "poke_interval": 1}
    pace |= {name: arguments.pop(name) for name in WaitArguments.__annotations__ if name in arguments}
    return kind(**(gate | arguments), wait=pace)


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def pokes(box):
    return [request.at for request in box.calls("webhook_payloads")]


def complete(box):
    box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")


def gaps(times):
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.usefixtures("fast")
async def test_a_wait_makes_all_its_polls_on_one_connection(box):
    wait = asyncio.create_task(fire(trigger(poke_interval=0.05)))
    await until(lambda: len(pokes(box)) > 5)
    complete(box)
    assert (await wait)["status"] == "passed"
    assert box.connections == 1


@pytest.mark.usefixtures("fast")
async def test_a_hundred_waits_share_few_connections_and_leave_none_behind(box):
    waits = [trigger(lasts=1.5, poke_interval=0.3, link_id=f"link-{number}") for number in range(100)]
    events = await asyncio.gather(*map(fire, waits))
    assert {event["status"] for event in events} == {"timeout"}
    assert {request.query["link_id"] for request in box.requests} == {f"link-{number}" for number in range(100)}
    # The last pokes use new ones.
    assert box.connections <= 2 * 16
    assert not pollers._pollers.get(asyncio.get_running_loop())
    await until(lambda: box.open_connections == 0)


@pytest.mark.usefixtures("fast")
async def test_waits_for_the_same_link_share_their_calls(box):
    box.fault(Fault(kind="delay", seconds=0.3))
    deadline = datetime.now(UTC) + timedelta(seconds=6)
    await asyncio.gather(*(fire(trigger(deadline=deadline, poke_interval=10)) for _ in range(200)))
    # One at the start, one at the deadline.
    assert len(pokes(box)) == 2


@pytest.mark.usefixtures("fast")
async def test_cancelling_a_wait_does_not_cancel_a_shared_poll_and_the_last_one_closes_the_poller(box):
    box.fault(Fault(kind="delay", seconds=0.5, times=1))
    complete(box)
    cancelled, other = (asyncio.create_task(fire(trigger())) for _ in range(2))
    await until(lambda: pokes(box))
    cancelled.cancel()
    assert (await other)["status"] == "passed"
    assert len(pokes(box)) == 1
    last = asyncio.create_task(fire(trigger(link_id="another-link")))
    await until(lambda: len(pokes(box)) == 2)
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    assert not pollers._pollers.get(asyncio.get_running_loop())


async def test_neither_a_large_nor_a_slow_answer_blocks_the_event_loop(box):
    rows = [
        {
            "statement_id": f"s{number}",
            "entity_id": "e1",
            "link_id": LINK,
            "progress": "completed" if number else "processing",
            "reason": "",
            "date_time": "2026-11-23 10:00:00",
        }
        for number in range(10_000)
    ]
    body = json.dumps({"payloads": rows})
    before = time.thread_time()
    call = api.get_webhook_payloads(LINK, UTC)
    next(call)
    judge_history(Expectation(link_id=LINK), api.advance(call, api.Answer(200, body.encode())).value, datetime.now(UTC))
    whole = time.thread_time() - before
    box.fault(Fault(kind="garbage", body=body, content_type="application/json"))
    box.fault(Fault(kind="delay", seconds=0.2))
    watched = trigger()
    longest, task = 0.0, asyncio.create_task(fire(watched))
    # The collector would run in this thread too, over all objects of the tests.
    gc.disable()
    # Until two pokes are judged.
    while watched.wait.pokes < 3 and not task.done():
        # CPU time of this thread: wall time would include other processes.
        before = time.thread_time()
        await asyncio.sleep(0.005)
        longest = max(longest, time.thread_time() - before)
    gc.enable()
    assert watched.wait.seen.startswith("9999 of 1 statement completed, 1 in progress")
    task.cancel()
    await asyncio.wait([task])
    # Reading and judging each take nearly half of it: in the event loop, either would be longer than this.
    assert longest < whole / 2


def test_the_deadline_is_kept_when_the_trigger_is_rebuilt(box):
    wait = trigger(lasts=1.2, poke_interval=600)
    path, arguments = wait.serialize()
    assert path.rpartition(".")[2] == "BankConnectWebhookPayloadTrigger"
    time.sleep(0.1)
    rebuilt = BankConnectWebhookPayloadTrigger(**json.loads(json.dumps(arguments)))
    assert rebuilt.wait.deadline == wait.wait.deadline
    event = asyncio.run(fire(rebuilt))
    assert event["status"] == "timeout"
    assert datetime.now(UTC) - wait.wait.deadline < timedelta(seconds=300)
    assert pokes(box)


@pytest.mark.parametrize("kind", [BankConnectWebhookPayloadTrigger, BankConnectProgressTrigger])
def test_a_trigger_is_the_same_after_serialize_and_back(kind):
    wait = trigger(kind=kind, statement_id=["s1", "s2"], expected_statements=2, on_failed="wait", max_wait=90.0)
    path, arguments = wait.serialize()
    assert kind(**arguments).serialize() == (path, arguments)
    json.dumps(arguments)


async def test_there_is_a_last_poke_at_the_deadline(box):
    wait = trigger(lasts=4, poke_interval=600)
    task = asyncio.create_task(fire(wait))
    await until(lambda: wait.wait.seen.startswith("no row"))
    complete(box)
    event = await task
    assert event["status"] == "passed"
    assert len(pokes(box)) == 2


async def test_the_last_poke_is_left_out_if_retry_after_ends_later(box):
    box.fault(Fault(kind="status", status=429, retry_after=60))
    event = await fire(trigger(lasts=2.5))
    assert event["status"] == "timeout"
    assert "HTTP 429" in event["because"]
    assert len(pokes(box)) == 1


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_wait_never_pokes_before_retry_after(box, mode):
    box.fault(Fault(kind="status", status=503, retry_after=3, times=1))
    box.play(Statement(link_id=LINK, after=0))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=120, poke_interval=1))
    assert outcome.state == "success"
    first, second = pokes(box)
    assert second - first >= 3


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferred"])
def test_a_wait_never_pokes_more_than_once_a_second(box, mode):
    box.fault(Fault(kind="garbage"))
    run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2.5, poke_interval=0.01))
    assert len(pokes(box)) >= 2
    assert min(gaps(pokes(box))) >= 0.95


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_retry_after_beyond_the_deadline_ends_the_wait_at_the_deadline(box, mode):
    box.fault(Fault(kind="status", status=429, retry_after=600))
    began = time.monotonic()
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2, poke_interval=1))
    assert outcome.state == "failed"
    assert "HTTP 429" in outcome.message
    assert 1.5 < time.monotonic() - began < 1800
    assert len(pokes(box)) == 1


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_retry_after_of_more_than_ten_minutes_does_not_leave_out_the_last_poke(box, mode):
    box.fault(Fault(kind="status", status=404, times=1))
    box.fault(Fault(kind="status", status=429, retry_after=601, times=1))
    box.play(Statement(link_id=LINK, after=-60))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=3, poke_interval=1))
    assert outcome.state == "success"
    assert [request.status for request in box.requests] == [404, 429, 200]


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_retry_after_beyond_the_deadline_leaves_out_the_test_call_too(box, mode):
    box.fault(Fault(kind="status", status=404, times=1))
    box.fault(Fault(kind="status", status=429, retry_after=600))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2.5, poke_interval=1))
    assert outcome.state == "failed"
    assert [request.status for request in box.requests] == [404, 429]


def test_a_wait_that_passes_at_the_first_poke_does_not_defer(box):
    box.play(Statement(link_id=LINK, after=-60))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, "deferred", link_id=LINK, timeout=20))
    assert outcome.state == "success"
    assert outcome.triggers == []
    assert len(pokes(box)) == 1


@pytest.mark.usefixtures("fast")
def test_exponential_backoff_doubles_the_interval_up_to_max_wait(box):
    def complete_after_the_eighth_poke():
        while len(pokes(box)) < 8:
            time.sleep(0.005)
        complete(box)

    threading.Thread(target=complete_after_the_eighth_poke, daemon=True).start()
    outcome = run(
        partial(
            build, BankConnectWebhookPayloadSensor, "deferred", link_id=LINK, timeout=600, poke_interval=0.05,
            exponential_backoff=True, max_wait=0.6,
        )
    )  # fmt: skip
    assert outcome.state == "success"
    between = gaps(pokes(box))
    assert all(gap >= min(0.05 * 2**number, 0.6) - 0.01 for number, gap in enumerate(between))
    # Without max_wait each of these would be at least 1.6 seconds; a slow machine adds to some of them, not to all.
    assert min(between[5:]) < 1.6


@pytest.mark.usefixtures("fast")
async def test_a_wait_continues_with_a_rotated_key(box, monkeypatch):
    old = json.dumps(box.connection | {"extra": box.connection["extra"] | {"api_key": "yesterdays-key"}})
    box.fault(Fault(kind="delay", seconds=1, times=1))
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", old)
    wait = asyncio.create_task(fire(trigger(poke_interval=0.1)))
    await until(lambda: pokes(box))
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    complete(box)
    event = await wait
    assert event["status"] == "passed"
    assert [request.status for request in box.calls("webhook_payloads")] == [401, 200]


@pytest.fixture(params=["missing", "invalid", "backend"])
def unreadable(request, box, monkeypatch):
    """Return a function that makes the connection unreadable."""

    async def fail(_conn_id):
        raise OSError("the vault is sealed")

    def make():
        if request.param == "missing":
            monkeypatch.delenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT")
        elif request.param == "invalid":
            monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | {"host": "http://x"}))
        else:
            monkeypatch.setattr(hooks, "get_async_connection", fail)

    return make


@pytest.mark.usefixtures("fast")
async def test_a_refusal_counts_though_the_connection_cannot_be_read_anew(box, unreadable, log):
    box.fault(Fault(kind="delay", seconds=0.5, times=1))
    box.fault(Fault(kind="firewall", times=2))
    box.fault(Fault(kind="status", status=401, times=1))
    wait = asyncio.create_task(fire(trigger(poke_interval=0.1)))
    await until(lambda: pokes(box))
    unreadable()
    event = await wait
    assert (event["status"], event["error"]) == ("error", "BankConnectAuthError")
    assert [request.status for request in box.calls("webhook_payloads")] == [403, 403, 401]
    assert log().count("connection 'bankconnect_default' could not be read anew: ") == 1


@pytest.mark.usefixtures("fast")
async def test_a_failure_to_read_the_connection_ends_no_wait_though_another_can_read_it_by_then(box, monkeypatch, log):
    complete(box)
    box.payload(link_id="other", statement_id="s2", progress="completed", reason="")
    usual = hooks.get_async_connection
    failures = [OSError("the vault is sealed")]

    async def read(conn_id):
        if failures:
            raise failures.pop()
        return await usual(conn_id)

    monkeypatch.setattr(hooks, "get_async_connection", read)
    events = await asyncio.gather(*(fire(trigger(link_id=link, poke_interval=0.1)) for link in (LINK, "other")))
    assert [event["status"] for event in events] == ["passed", "passed"]
    assert "could not read connection 'bankconnect_default': OSError: the vault is sealed" in log()


@pytest.mark.usefixtures("fast")
async def test_a_connection_that_the_triggerer_may_not_read_is_named_as_the_cause(box, monkeypatch):
    async def deny(_conn_id):
        # Airflow's AirflowSecretsBackendAccessDenied is one.
        raise PermissionError("Access denied for connection 'bankconnect_default'")

    monkeypatch.setattr(rules, "REPEAT_PATIENCE", timedelta(seconds=0.3))
    monkeypatch.setattr(hooks, "get_async_connection", deny)
    event = await fire(trigger(lasts=5, poke_interval=0.1))
    assert (event["status"], event.get("error")) == ("error", "BankConnectSettingsError")
    assert "the triggerer cannot use connection 'bankconnect_default': Access denied" in event["because"]
    assert event["because"].endswith("the secrets backend may also be down")
    assert box.requests == []


@pytest.mark.usefixtures("fast")
async def test_a_wrong_key_ends_the_wait_after_one_request(box, monkeypatch):
    wrong = json.dumps(box.connection | {"password": "wrong-server-hash"})
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", wrong)
    event = await fire(trigger())
    assert (event["status"], event["error"]) == ("error", "BankConnectAuthError")
    assert len(box.requests) == 1


@pytest.mark.usefixtures("fast")
async def test_a_wait_continues_until_the_connection_can_be_read(box, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT")
    monkeypatch.setattr(BankConnectHook, "get_connection", lambda *_: None)
    wait = trigger(poke_interval=0.1)
    task = asyncio.create_task(fire(wait))
    # The second poke begins after the first one has failed.
    await until(lambda: wait.wait.pokes == 2)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    complete(box)
    assert (await task)["status"] == "passed"


@pytest.mark.usefixtures("fast")
async def test_a_retry_after_of_one_wait_holds_back_all_waits_of_the_connection(box):
    box.fault(Fault(kind="status", status=429, retry_after=2, times=1))
    first = trigger(lasts=3.5, poke_interval=0.1, link_id="first")
    waits = [asyncio.create_task(fire(first))]
    await until(lambda: first.wait._errors)
    waits += [asyncio.create_task(fire(trigger(lasts=3.2, poke_interval=0.1, link_id=f"m{n}"))) for n in range(20)]
    await asyncio.gather(*waits)
    assert len(pokes(box)) > 20
    assert min(pokes(box)[1:]) - pokes(box)[0] >= 2


@pytest.mark.usefixtures("fast")
async def test_a_bad_answer_to_one_wait_does_not_affect_another(box):
    box.fault(Fault(kind="garbage", times=1))
    box.play(Statement(link_id="good", after=0))
    bad = asyncio.create_task(fire(trigger(lasts=0.5, link_id="bad", poke_interval=10)))
    await until(lambda: pokes(box))
    assert (await fire(trigger(link_id="good")))["status"] == "passed"
    assert (await bad)["status"] == "timeout"
