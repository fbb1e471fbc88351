"""A ring makes an open wait look at once, and does nothing else to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.triggers import bankconnect as triggers
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)

pytestmark = pytest.mark.usefixtures("connection", "fast")
LINK, ENTITY = "loan-1", "customer-1"


def trigger(kind=BankConnectWebhookPayloadTrigger, **arguments):
    what = {"link_id": LINK} if kind is BankConnectWebhookPayloadTrigger else {"entity_id": ENTITY}
    return kind(**what | {"deadline": datetime.now(UTC) + timedelta(minutes=10), "poke_interval": 600} | arguments)


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


async def until(happened):
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - what happens is not ours to signal
            await asyncio.sleep(0.005)


async def end(wait):
    wait.cancel()
    await asyncio.wait([wait])


def looks(box, call="webhook_payloads"):
    return [look for look in box.calls(call) if look.status is not None]


def poller():
    (found,) = pollers._pollers[asyncio.get_running_loop()].values()
    return found


def ring(link_id=LINK, entity_id=None):
    poller().ring([partition_key(link_id, entity_id)])


async def resting(box, number, call="webhook_payloads"):
    """It has looked so often, and waits for the next time."""
    await until(lambda: len(looks(box, call)) >= number and poller()._listeners)


async def test_a_ring_ends_a_wait_whose_next_poll_is_minutes_away(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    ring()
    event = await wait
    assert (event["status"], event["rows"][0]["statement_id"]) == ("passed", "s1")
    assert event["looks"] == 2


async def test_a_forged_ring_opens_nothing_and_costs_four_looks(box, monkeypatch):
    monkeypatch.setattr(triggers, "_ECHO_SECONDS", (0.05, 0.05, 0.05))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    ring()
    await resting(box, 5)
    await asyncio.sleep(0.5)
    assert len(looks(box)) == 5
    assert not wait.done()
    await end(wait)


async def test_a_ring_that_is_faster_than_the_ledger_is_looked_for_again(box, monkeypatch):
    monkeypatch.setattr(triggers, "_ECHO_SECONDS", (0.3, 0.3, 0.3))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    ring()
    await resting(box, 2)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    assert (await wait)["status"] == "passed"


async def test_a_ring_for_somebody_else_wakes_nobody(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    ring("loan-2")
    ring(None, ENTITY)
    await asyncio.sleep(0.5)
    assert len(looks(box)) == 1
    await end(wait)


async def test_a_wait_for_progress_hears_the_rings_of_its_entity(box):
    wait = asyncio.create_task(fire(trigger(BankConnectProgressTrigger, analysis="accounts")))
    await resting(box, 1, "accounts")
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    ring(None, ENTITY)
    assert (await wait)["status"] == "passed"


async def test_a_ring_does_not_outvote_what_the_vendor_asked_for(box):
    box.fault(Fault(kind="status", status=429, retry_after=2, times=1))
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    ring()
    assert (await wait)["status"] == "passed"
    first, second = [look.at for look in looks(box)]
    assert second - first >= 2


async def test_an_answer_from_before_the_ring_is_not_taken_for_one_after_it(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    box.fault(Fault(kind="delay", seconds=1, times=1))
    ring()
    # It is asked, and the answer is on the way when the statement comes and rings.
    await until(lambda: len(box.calls("webhook_payloads")) == 2)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    ring()
    assert (await wait)["status"] == "passed"


async def test_rings_wake_a_wait_no_more_than_its_pace_allows(box, monkeypatch):
    monkeypatch.setattr(triggers, "MIN_INTERVAL", 0.5)
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    for _ in range(40):
        ring()
        await asyncio.sleep(0.05)
    times = [look.at for look in looks(box)]
    assert all(later - earlier > 0.45 for earlier, later in pairwise(times))
    assert len(times) >= 3
    await end(wait)


async def test_a_wait_that_has_just_left_its_worker_is_not_woken_at_once(box, monkeypatch):
    """Airflow's scheduler may not have seen yet that the task had left."""
    monkeypatch.setattr(triggers, "_SETTLING_SECONDS", 1.5)
    later = datetime.now(UTC) + timedelta(minutes=5)
    box.play(Statement(link_id=LINK, entity_id=ENTITY, statement_id="s1"))
    started = asyncio.get_running_loop().time()
    wait = asyncio.create_task(fire(trigger(looks=1, next_look=later)))
    await until(lambda: pollers._pollers.get(asyncio.get_running_loop()) and poller()._listeners)
    ring()
    assert (await wait)["status"] == "passed"
    assert asyncio.get_running_loop().time() - started >= 1.5


async def test_nothing_is_remembered_of_rings_when_the_waits_have_ended(box):
    wait = asyncio.create_task(fire(trigger()))
    await resting(box, 1)
    ring()
    kept = poller()
    await end(wait)
    assert not kept._rings
    assert not kept._customers
    assert not kept._polls
