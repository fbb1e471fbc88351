"""What a deferred wait promises: one connection, a free loop, an absolute deadline, and no look too many."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
from waits import build, run

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)

pytestmark = pytest.mark.usefixtures("connection")
LINK = "loan-4711"


def trigger(*, lasts=5.0, kind=BankConnectWebhookPayloadTrigger, **arguments):
    gate = {"entity_id": "e1"} if kind is BankConnectProgressTrigger else {"link_id": LINK}
    pace = {"deadline": datetime.now(UTC) + timedelta(seconds=lasts), "poke_interval": 1}
    return kind(**(gate | pace | arguments))


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def looks(box):
    return [request.at for request in box.calls("webhook_payloads")]


def gaps(times):
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.usefixtures("fast")
async def test_all_polls_of_a_wait_come_on_one_connection(box):
    event = await fire(trigger(lasts=0.8, poke_interval=0.05))
    assert event["status"] == "timeout"
    assert len(looks(box)) > 5
    assert box.connections == 1


@pytest.mark.usefixtures("fast")
async def test_a_hundred_waits_share_few_connections_and_leave_none_behind(box):
    waits = [trigger(lasts=1.5, poke_interval=0.3, link_id=f"link-{number}") for number in range(100)]
    events = await asyncio.gather(*map(fire, waits))
    assert {event["status"] for event in events} == {"timeout"}
    assert {request.query["link_id"] for request in box.requests} == {f"link-{number}" for number in range(100)}
    assert box.connections <= 16
    assert not pollers._pollers.get(asyncio.get_running_loop())
    await asyncio.sleep(0.1)
    assert box.open_connections == 0


@pytest.mark.usefixtures("fast")
async def test_waits_for_the_same_link_cost_the_calls_of_one(box):
    box.fault(Fault(kind="delay", seconds=0.3))
    deadline = datetime.now(UTC) + timedelta(seconds=4)
    await asyncio.gather(*(fire(trigger(deadline=deadline, poke_interval=10)) for _ in range(200)))
    # One look at the start, one at the deadline.
    assert len(looks(box)) == 2


@pytest.mark.usefixtures("fast")
async def test_a_cancelled_wait_leaves_the_shared_poll_to_the_others_and_nothing_behind(box):
    box.fault(Fault(kind="delay", seconds=0.3, times=1))
    box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")
    killed, alive = (asyncio.create_task(fire(trigger())) for _ in range(2))
    await asyncio.sleep(0.15)
    killed.cancel()
    assert (await alive)["status"] == "passed"
    assert len(looks(box)) == 1
    lonely = asyncio.create_task(fire(trigger(link_id="nobody")))
    await asyncio.sleep(0.1)
    lonely.cancel()
    await asyncio.gather(lonely, return_exceptions=True)
    assert not pollers._pollers.get(asyncio.get_running_loop())


async def test_the_loop_is_never_blocked_by_a_large_answer_nor_by_a_slow_one(box):
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
    box.fault(Fault(kind="garbage", body=json.dumps({"payloads": rows}), content_type="application/json"))
    box.fault(Fault(kind="delay", seconds=0.2))
    longest, wait = 0.0, asyncio.create_task(fire(trigger(lasts=3)))
    while not wait.done():
        # What this thread works between two of its turns: the time of day would tell of other processes too.
        before = time.thread_time()
        await asyncio.sleep(0.005)
        longest = max(longest, time.thread_time() - before)
    event = await wait
    assert event["because"].startswith("9999 of 1 statement completed, 1 still going")
    assert event["looks"] >= 2
    # Reading and judging take more than that: done on the loop they would show here whole.
    assert longest < 0.05


def test_the_deadline_is_kept_when_the_trigger_is_rebuilt(box):
    wait = trigger(lasts=1.2, poke_interval=10)
    path, arguments = wait.serialize()
    assert path.rpartition(".")[2] == "BankConnectWebhookPayloadTrigger"
    time.sleep(0.8)
    began = time.monotonic()
    event = asyncio.run(fire(BankConnectWebhookPayloadTrigger(**json.loads(json.dumps(arguments)))))
    assert event["status"] == "timeout"
    assert time.monotonic() - began < 1
    assert looks(box)


@pytest.mark.parametrize("kind", [BankConnectWebhookPayloadTrigger, BankConnectProgressTrigger])
def test_a_trigger_is_the_same_after_serialize_and_back(kind):
    wait = trigger(kind=kind, statement_id=["s1", "s2"], expected_statements=2, on_failed="wait", max_wait=90.0)
    path, arguments = wait.serialize()
    assert kind(**arguments).serialize() == (path, arguments)
    json.dumps(arguments)


async def test_there_is_a_last_look_at_the_deadline(box):
    wait = asyncio.create_task(fire(trigger(lasts=2.0, poke_interval=600)))
    await asyncio.sleep(1)
    box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")
    event = await wait
    assert event["status"] == "passed"
    assert len(looks(box)) == 2


async def test_the_last_look_is_left_out_where_the_vendor_has_asked_to_wait_beyond_it(box):
    box.fault(Fault(kind="status", status=429, retry_after=60))
    event = await fire(trigger(lasts=2.5))
    assert event["status"] == "timeout"
    assert "HTTP 429" in event["because"]
    assert len(looks(box)) == 1


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_wait_never_looks_sooner_than_the_vendor_asked(box, mode):
    box.fault(Fault(kind="status", status=503, retry_after=3, times=1))
    box.play(Statement(link_id=LINK, after=0))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=20, poke_interval=1))
    assert outcome.state == "success"
    first, second = looks(box)
    assert second - first >= 3


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferred"])
def test_a_wait_never_looks_more_than_once_a_second_whatever_it_is_told(box, mode):
    box.fault(Fault(kind="garbage"))
    run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2.5, poke_interval=0))
    assert len(looks(box)) >= 2
    assert min(gaps(looks(box))) >= 0.95


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_retry_after_beyond_the_deadline_ends_the_wait_at_the_deadline(box, mode):
    box.fault(Fault(kind="status", status=429, retry_after=3600))
    began = time.monotonic()
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2, poke_interval=1))
    assert outcome.state == "failed"
    assert "HTTP 429" in outcome.message
    assert 1.5 < time.monotonic() - began < 4
    assert len(looks(box)) == 1


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_a_retry_after_beyond_the_deadline_leaves_out_the_test_call_too(box, mode):
    box.fault(Fault(kind="status", status=404, times=1))
    box.fault(Fault(kind="status", status=429, retry_after=3600))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, timeout=2.5, poke_interval=1))
    assert outcome.state == "failed"
    assert [request.status for request in box.requests] == [404, 429]


def test_what_is_already_there_never_defers(box):
    box.play(Statement(link_id=LINK, after=-60))
    outcome = run(partial(build, BankConnectWebhookPayloadSensor, "deferred", link_id=LINK, timeout=20))
    assert outcome.state == "success"
    assert outcome.triggers == []
    assert len(looks(box)) == 1


@pytest.mark.usefixtures("fast")
def test_exponential_backoff_spreads_the_looks_and_max_wait_bounds_it(box):
    run(
        partial(
            build, BankConnectWebhookPayloadSensor, "deferred", link_id=LINK, timeout=2.2, poke_interval=0.05,
            exponential_backoff=True, max_wait=0.6,
        )
    )  # fmt: skip
    between = gaps(looks(box))
    assert between[1] < between[2] < between[3]
    assert max(between) < 1


@pytest.mark.usefixtures("fast")
async def test_a_rotated_key_is_noticed_and_the_wait_goes_on(box, monkeypatch):
    old = json.dumps(box.connection | {"extra": box.connection["extra"] | {"api_key": "yesterdays-key"}})
    box.fault(Fault(kind="delay", seconds=0.2, times=1))
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", old)
    wait = asyncio.create_task(fire(trigger(lasts=3, poke_interval=0.1)))
    await asyncio.sleep(0.1)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")
    event = await wait
    assert event["status"] == "passed"
    assert [request.status for request in box.calls("webhook_payloads")] == [401, 200]


@pytest.mark.usefixtures("fast")
async def test_a_key_that_stays_wrong_ends_the_wait_after_one_request(box, monkeypatch):
    wrong = json.dumps(box.connection | {"password": "wrong-server-hash"})
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", wrong)
    event = await fire(trigger())
    assert (event["status"], event["error"]) == ("error", "BankConnectAuthError")
    assert len(box.requests) == 1


@pytest.mark.usefixtures("fast")
async def test_a_connection_that_cannot_be_read_for_a_while_is_outlived(box, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT")
    monkeypatch.setattr(BankConnectHook, "get_connection", lambda *_: None)
    wait = asyncio.create_task(fire(trigger(lasts=6, poke_interval=0.1)))
    await asyncio.sleep(0.3)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")
    assert (await wait)["status"] == "passed"


@pytest.mark.usefixtures("fast")
async def test_many_failures_together_hold_all_waits_back_not_only_those_that_failed(box):
    box.fault(Fault(kind="status", status=429, retry_after=2, times=1))
    began = time.monotonic()
    waits = [asyncio.create_task(fire(trigger(lasts=3.5, poke_interval=0.1, link_id=f"l{n}"))) for n in range(1)]
    await asyncio.sleep(0.3)
    waits += [asyncio.create_task(fire(trigger(lasts=3.2, poke_interval=0.1, link_id=f"m{n}"))) for n in range(20)]
    await asyncio.gather(*waits)
    assert min(looks(box)[1:]) - looks(box)[0] >= 2
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("fast")
async def test_one_waits_bad_answer_never_disturbs_another(box):
    box.fault(Fault(kind="garbage", times=1))
    box.play(Statement(link_id="good", after=0))
    bad = asyncio.create_task(fire(trigger(lasts=0.5, link_id="bad", poke_interval=10)))
    await asyncio.sleep(0.15)
    assert (await fire(trigger(link_id="good")))["status"] == "passed"
    assert (await bad)["status"] == "timeout"
