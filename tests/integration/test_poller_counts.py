"""What `make bench` measures, in small and counted: connections, polls, shared calls, pauses; not its times."""

from __future__ import annotations

import asyncio
import json
import random
import time
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest

from airflow_provider_bankconnect.api import BankConnectConnectionError, BankConnectError
from airflow_provider_bankconnect.gate import Expectation, HistoryGate, ProgressGate
from airflow_provider_bankconnect.sandbox import Fault
from airflow_provider_bankconnect.triggers import bankconnect as triggers
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger
from airflow_provider_bankconnect.triggers.poller import shared_poller

CONNECTION = "bankconnect_default"


@pytest.fixture
def connect(box, monkeypatch):
    """Have the default connection lead to the sandbox, with such extras."""

    def set_connection(**extra):
        connection = box.connection
        connection["extra"] |= extra
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))

    set_connection()
    return set_connection


def trigger(link_id, *, lasts, **arguments):
    pace = {"deadline": datetime.now(UTC) + timedelta(seconds=lasts), "poke_interval": 1}
    return BankConnectWebhookPayloadTrigger(**({"link_id": link_id} | pace | arguments))


def gate(number):
    return HistoryGate(Expectation.parse(link_id=f"link-{number}"))


async def fire(wait, *, after=0.0):
    await asyncio.sleep(after)
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def polls(box, link_id=None):
    return [call.at for call in box.calls("webhook_payloads") if link_id in {None, call.query["link_id"]}]


def at_once(times, lasting):
    """How many there were at the same time, at most, where each takes so long."""
    return max(number - bisect_left(times, at - lasting) + 1 for number, at in enumerate(times))


async def until(happened):
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - what happens is not ours to signal
            await asyncio.sleep(0.005)


async def nothing_is_left(box):
    assert not pollers._pollers.get(asyncio.get_running_loop())
    await asyncio.sleep(0.1)
    assert box.open_connections == 0


@pytest.mark.usefixtures("fast")
async def test_five_hundred_waits_poll_on_as_many_connections_as_may_be_used_at_once(box, connect):
    connect(max_concurrency=5)
    await asyncio.gather(*(fire(trigger(f"link-{number}", lasts=2.5, poke_interval=1)) for number in range(500)))
    for number in range(500):
        times = polls(box, f"link-{number}")
        # One at the start, each second as far as the machine keeps up, and at the deadline.
        assert 2 <= len(times) <= 5
        assert all(later - earlier > 0.9 for earlier, later in pairwise(times[:-1]))
    assert box.connections <= 5
    await nothing_is_left(box)


@pytest.mark.usefixtures("fast", "connect")
async def test_waits_for_the_same_link_make_the_calls_of_one_whenever_each_has_begun(box):
    dice = random.Random(1)
    waits = [fire(trigger("loan", lasts=4, poke_interval=1), after=dice.random()) for _ in range(300)]
    events = await asyncio.gather(*waits)
    assert {event["status"] for event in events} == {"timeout"}
    times = polls(box)
    # In the first second each begins with a look of its own; the next answer makes it one look a second, for all.
    settled = [at for at in times if at - times[0] > 1.2]
    assert 2 <= len(settled) <= 5
    assert len(times) < 40
    # What another wait has asked is no look of one's own.
    assert sum(event["looks"] for event in events) < 300 * 6


@pytest.mark.usefixtures("fast", "connect")
async def test_what_one_wait_is_told_all_that_ask_the_same_know(box):
    slow = asyncio.create_task(fire(trigger("loan", lasts=60, poke_interval=60)))
    other = asyncio.create_task(fire(trigger("other", lasts=60, poke_interval=60)))
    await until(lambda: len(polls(box)) == 2)
    # Both have been asked; their answers are on the way, or there.
    await asyncio.sleep(0.3)
    box.payload(link_id="loan")
    box.payload(link_id="other")
    asked = len(polls(box))
    quick = await fire(trigger("loan", lasts=60, poke_interval=0.1))
    event = await asyncio.wait_for(slow, 30)
    assert (quick["status"], event["status"]) == ("passed", "passed")
    assert event["rows"] == quick["rows"]
    assert event["looks"] == 1
    assert len(polls(box)) - asked == 1
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])
    await nothing_is_left(box)


@pytest.mark.usefixtures("fast", "connect")
async def test_a_404_is_an_answer_too_and_an_error_is_not(box):
    async with shared_poller(CONNECTION) as poller:
        for status, heard in ((404, True), (503, False), (400, False)):
            box.fault(Fault(kind="status", status=status, times=1))
            listener = asyncio.create_task(poller.hear(gate(status), 30 if heard else 1))
            await until(lambda: poller._listeners)
            with pytest.raises(BankConnectError):
                await poller.ask(gate(status))
            assert (await listener is not None) == heard
        assert not poller._listeners


@pytest.mark.usefixtures("connect")
async def test_a_retry_after_holds_all_waits_back_and_they_return_one_by_one(box):
    async with shared_poller(CONNECTION) as poller:
        box.fault(Fault(kind="status", status=429, retry_after=1, times=1))
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        told = time.monotonic()
        assert poller.held
        await asyncio.gather(*(poller.ask(gate(number)) for number in range(60)))
        times = [at - told for at in polls(box)[1:]]
    assert len(times) == 60
    assert min(times) > 0.95
    # Nobody's first thought is that all return in the same instant.
    assert max(times) - min(times) > 1
    assert at_once(sorted(times), 0.1) < 20


@pytest.mark.usefixtures("connect")
async def test_a_streak_of_errors_pauses_the_whole_connection_and_one_good_answer_ends_it(box, monkeypatch):
    monkeypatch.setattr(pollers, "random", SimpleNamespace(random=lambda: 0.8))
    async with shared_poller(CONNECTION) as poller:
        box.fault(Fault(kind="status", status=503, times=3))
        for number in range(3):
            assert not poller.held
            with pytest.raises(BankConnectError):
                await poller.ask(gate(number))
        told = time.monotonic()
        assert poller.held
        await asyncio.gather(*(poller.ask(gate(number)) for number in range(10, 30)))
        # 0.8 of a second of pause, and 0.8 of the two seconds over which they return.
        assert min(polls(box)[3:]) - told > 0.8 + 1.6 - 0.1
        box.fault(Fault(kind="status", status=503, times=2))
        for number in range(40, 42):
            with pytest.raises(BankConnectError):
                await poller.ask(gate(number))
        assert not poller.held


async def test_a_vendor_that_hangs_holds_no_more_polls_than_may_be_in_flight_each_until_its_own_timeout(box, connect):
    connect(max_concurrency=4, timeout=0.5)
    box.fault(Fault(kind="delay", seconds=30))
    took = []

    async def ask(poller, number):
        with pytest.raises(BankConnectConnectionError, match="no answer in time"):
            await poller.ask(gate(number))
        took.append(time.monotonic())

    async with shared_poller(CONNECTION) as poller:
        started = time.monotonic()
        asking = [asyncio.create_task(ask(poller, number)) for number in range(12)]
        await asyncio.sleep(1)
        # The first four are over, and have made the others pause.
        assert len(polls(box)) <= 8
        await asyncio.gather(*asking)
        assert poller._slots._value == 4
    times = polls(box)
    assert len(times) == 12
    assert at_once(times, 0.45) <= 4
    assert 0.45 < min(took) - started < 1
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_killed_waits_leave_nothing_behind_wherever_they_were(box):
    box.fault(Fault(kind="delay", seconds=0.3))
    waits = [asyncio.create_task(fire(trigger(f"link-{number % 50}", lasts=60))) for number in range(100)]
    await until(lambda: pollers._pollers.get(asyncio.get_running_loop()))
    (poller,) = pollers._pollers[asyncio.get_running_loop()].values()
    # Some are asking, some rest, some queue.
    await until(lambda: poller._listeners and any(not poll.done() for poll in poller._polls.values()))
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert poller.waits == 0
    assert not poller._listeners
    assert all(poll.done() for poll in poller._polls.values())
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_a_poll_that_a_ring_made_old_does_not_outlive_the_waits(box):
    """Held back, it would open the session again when nobody is there to close it."""
    box.fault(Fault(kind="status", status=429, retry_after=1, times=1))
    before = asyncio.all_tasks()
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        wait = asyncio.create_task(fire(trigger("loan", lasts=60)))
        await until(lambda: ("webhook_payloads", "loan") in poller._polls)
        poller.ring(["link:loan"])
        wait.cancel()
        await asyncio.wait([wait])
    assert asyncio.all_tasks() == before
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_what_was_held_back_until_nobody_waits_for_it_is_not_asked(box, monkeypatch):
    monkeypatch.setattr(pollers, "random", SimpleNamespace(random=lambda: 0.0))
    box.fault(Fault(kind="status", status=429, retry_after=1, times=1))
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        gone, there = (asyncio.create_task(poller.ask(gate(number))) for number in ("gone", "there"))
        await until(lambda: len(poller._polls) == 3)
        gone.cancel()
        await there
        # Both came back in the same moment: now each has had its turn.
        await poller.ask(gate("later"))
        assert polls(box, "link-gone") == []
        assert await poller.ask(gate("gone")) == []


@pytest.mark.usefixtures("connect")
async def test_of_two_that_were_in_flight_together_the_longer_retry_after_holds(box):
    box.fault(Fault(kind="delay", call="transactions", seconds=0.3))
    box.fault(Fault(kind="status", call="transactions", status=429, retry_after=60))
    box.fault(Fault(kind="status", call="webhook_payloads", status=429, retry_after=2))
    async with shared_poller(CONNECTION) as poller:
        both = (gate("first"), ProgressGate(Expectation.parse(entity_id="e1")))
        await asyncio.gather(*map(poller.ask, both), return_exceptions=True)
        assert [call.call for call in box.requests] in (
            ["webhook_payloads", "transactions"],
            ["transactions", "webhook_payloads"],
        )
        assert poller._resume_at - asyncio.get_running_loop().time() > 30


@pytest.mark.usefixtures("fast", "connect")
async def test_another_waits_answer_takes_nothing_back_of_what_the_vendor_asked_this_one_for():
    patient = trigger("loan", lasts=4, poke_interval=0.3, not_before=datetime.now(UTC) + timedelta(minutes=1), looks=1)
    patient.next_look = patient.not_before
    waits = [asyncio.create_task(fire(wait)) for wait in (patient, trigger("loan", lasts=1, poke_interval=0.2))]
    event, other = await asyncio.gather(*waits)
    assert other["looks"] > 1
    assert (event["status"], event["looks"]) == ("timeout", 1)
    assert "no row in sight" in event["because"]


@pytest.mark.usefixtures("fast", "connect")
async def test_no_ring_lengthens_the_pauses_of_a_wait_that_backs_off(box, monkeypatch):
    """Else whoever knows the address, or a vendor that rings often, could keep a gate shut until its deadline."""
    monkeypatch.setattr(triggers, "_ECHO_SECONDS", ())
    wait = asyncio.create_task(fire(trigger("loan", lasts=120, poke_interval=0.05, exponential_backoff=True)))
    await until(lambda: len(polls(box)) == 2)
    (poller,) = pollers._pollers[asyncio.get_running_loop()].values()
    for number in range(10):
        poller.ring(["link:loan"])
        await until(lambda number=number: len(polls(box)) > 2 + number)
    box.payload(link_id="loan")
    event = await asyncio.wait_for(wait, 20)
    assert event["status"] == "passed"


@pytest.mark.usefixtures("connect")
async def test_a_ring_sends_no_second_poll_beside_one_that_is_held_back(box):
    box.fault(Fault(kind="status", status=429, retry_after=1, times=1))
    async with shared_poller(CONNECTION) as poller, poller.waiting(gate("rung")):
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        held = asyncio.create_task(poller.ask(gate("rung")))
        await until(lambda: gate("rung").ledger in poller._polls)
        poller.ring(["link:link-rung"])
        await asyncio.gather(held, poller.ask(gate("rung")))
        assert len(polls(box, "link-rung")) == 1


@pytest.mark.usefixtures("connect")
async def test_a_retry_after_outlives_the_waits_that_it_was_given_to(box):
    box.fault(Fault(kind="status", status=429, retry_after=60, times=1))
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
    event = await fire(trigger("second", lasts=2))
    assert event["status"] == "timeout"
    assert polls(box, "second") == []
