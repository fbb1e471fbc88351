"""A webhook event makes an open wait poke at once, and has no other effect on it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from waits import until

from airflow_provider_bankconnect import wait as rules
from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)

pytestmark = pytest.mark.usefixtures("connection", "fast")
LINK, ENTITY = "loan-1", "customer-1"


def trigger(kind=BankConnectWebhookPayloadTrigger, **arguments):
    progress = {"entity_id": ENTITY, "analysis": "accounts"}
    what = progress if kind is BankConnectProgressTrigger else {"link_id": LINK}
    pace = {"deadline": datetime.now(UTC) + timedelta(minutes=10), "poke_interval": 600}
    return kind(**what, wait=pace | arguments)


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


async def end(wait):
    wait.cancel()
    await asyncio.wait([wait])


def pokes(box, call="webhook_payloads"):
    return [poke for poke in box.calls(call) if poke.status is not None]


def poller():
    (found,) = pollers._pollers[asyncio.get_running_loop()].values()
    return found


def notify(link_id=LINK, entity_id=None):
    poller().notify([partition_key(link_id, entity_id)])


async def resting(box, number, call="webhook_payloads"):
    """Wait until the wait has poked this often and sleeps until its next poke."""
    await until(lambda: len(pokes(box, call)) >= number and poller()._listeners)


async def test_an_event_ends_a_wait_whose_next_poke_is_minutes_away(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    notify()
    event = await wait
    assert (event["status"], event["rows"][0]["statement_id"]) == ("passed", "s1")
    assert event["pokes"] == 2


async def test_an_event_of_a_forged_webhook_passes_no_gate_and_costs_four_pokes(box, monkeypatch):
    monkeypatch.setattr(rules, "ECHO_SECONDS", (0.05, 0.05, 0.05))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    notify()
    await resting(box, 5)
    await asyncio.sleep(0.5)
    assert len(pokes(box)) == 5
    assert not wait.done()
    await end(wait)


async def test_an_event_before_the_record_of_its_statement_is_followed_by_further_pokes(box, monkeypatch):
    monkeypatch.setattr(rules, "ECHO_SECONDS", (0.3, 0.3, 0.3))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    notify()
    await resting(box, 2)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    assert (await wait)["status"] == "passed"


async def test_an_event_of_another_customer_wakes_no_wait(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    notify("loan-2")
    notify(None, ENTITY)
    await asyncio.sleep(0.5)
    assert len(pokes(box)) == 1
    await end(wait)


async def test_an_event_of_its_entity_wakes_a_wait_for_progress(box):
    wait = asyncio.create_task(fire(trigger(BankConnectProgressTrigger)))
    await resting(box, 1, "accounts")
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    notify(None, ENTITY)
    assert (await wait)["status"] == "passed"


async def test_an_event_causes_no_poke_before_retry_after(box):
    box.fault(Fault(kind="status", status=429, retry_after=2, times=1))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    notify()
    assert (await wait)["status"] == "passed"
    first, second = [poke.at for poke in pokes(box)]
    assert second - first >= 2


async def test_an_answer_from_before_an_event_is_followed_by_another_poke(box, monkeypatch):
    monkeypatch.setattr(rules, "ECHO_SECONDS", ())
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.fault(Fault(kind="delay", seconds=1, times=1))
    box.fault(Fault(kind="stale", seconds=3600, times=1))
    notify()
    # The answer without the statement is in flight when the event of the statement comes.
    await until(lambda: len(box.calls("webhook_payloads")) == 2)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    notify()
    assert (await wait)["status"] == "passed"


async def test_events_wake_a_wait_no_more_often_than_the_minimum_interval(box, monkeypatch):
    monkeypatch.setattr(rules, "MIN_INTERVAL", 0.5)
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    await until(lambda: notify() or len(pokes(box)) >= 4)
    times = [poke.at for poke in pokes(box)]
    assert all(later - earlier > 0.45 for earlier, later in pairwise(times))
    await end(wait)


async def test_an_event_does_not_wake_a_wait_that_has_just_been_deferred(box, monkeypatch):
    """The scheduler may not have seen yet that the task is deferred."""
    monkeypatch.setattr(rules, "SETTLING_SECONDS", 1.5)
    later = datetime.now(UTC) + timedelta(minutes=5)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    started = asyncio.get_running_loop().time()
    wait = asyncio.create_task(fire(trigger(pokes=1, next_poke=later)))
    await until(lambda: pollers._pollers.get(asyncio.get_running_loop()) and poller()._listeners)
    notify()
    assert (await wait)["status"] == "passed"
    assert asyncio.get_running_loop().time() - started >= 1.5


async def test_the_poller_keeps_no_events_after_the_waits_have_ended(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    notify()
    kept = poller()
    await end(wait)
    assert not kept._events
    assert not kept._customers
    assert not kept._polls
