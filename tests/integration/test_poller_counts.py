"""Counts of what `make bench` measures on a larger scale: connections, polls, shared calls and pauses."""

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
from waits import until

from airflow_provider_bankconnect.api import BankConnectConnectionError, BankConnectError, BankConnectRateLimitError
from airflow_provider_bankconnect.gate import Expectation
from airflow_provider_bankconnect.records import HistoryGate, ProgressGate
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)
from airflow_provider_bankconnect.triggers.poller import shared_poller

CONNECTION = "bankconnect_default"


@pytest.fixture
def connect(box, monkeypatch):
    """Set the default connection to the sandbox, with these extras."""

    def set_connection(**extra):
        connection = box.connection
        connection["extra"] |= extra
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))

    set_connection()
    return set_connection


def trigger(link_id, *, lasts, **arguments):
    pace = {"deadline": datetime.now(UTC) + timedelta(seconds=lasts), "poke_interval": 1}
    return BankConnectWebhookPayloadTrigger(link_id=link_id, wait=pace | arguments)


def gate(number):
    return HistoryGate(Expectation.parse(link_id=f"link-{number}"))


class Watched:
    """A gate that records when its call is sent."""

    def __init__(self, number, sent):
        self._gate, self._sent = gate(number), sent
        self.poll_key = self._gate.poll_key

    def ask(self, timezone):
        self._sent.append(time.monotonic())
        return self._gate.ask(timezone)


async def fire(wait, *, after=0.0):
    await asyncio.sleep(after)
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


def polls(box, link_id=None):
    return [call.at for call in box.calls("webhook_payloads") if link_id in {None, call.query["link_id"]}]


def at_once(times, lasting):
    """Return the largest number of these times within an interval of this length."""
    return max(number - bisect_left(times, at - lasting) + 1 for number, at in enumerate(times))


async def nothing_is_left(box):
    assert not pollers._pollers.get(asyncio.get_running_loop())
    await until(lambda: box.open_connections == 0)


async def longest_delay():
    """Return, when cancelled, the longest time by which this event loop was late."""
    longest = 0.0
    try:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before - 0.01)
    except asyncio.CancelledError:
        return longest


@pytest.mark.usefixtures("fast")
async def test_five_hundred_waits_use_at_most_max_concurrency_connections(box, connect):
    connect(max_concurrency=5)
    waits = [asyncio.create_task(fire(trigger(f"link-{number}", lasts=600))) for number in range(500)]
    await until(lambda: box.counts["webhook_payloads"] >= 1500)
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    for number in range(500):
        times = polls(box, f"link-{number}")
        assert 2 <= len(times) <= 5
        assert all(later - earlier > 0.9 for earlier, later in pairwise(times))
    assert box.connections <= 5
    await nothing_is_left(box)


@pytest.mark.usefixtures("fast")
async def test_last_pokes_together_open_new_connections_once(box, connect):
    connect(max_concurrency=3)
    deadline = datetime.now(UTC) + timedelta(seconds=4)
    waits = [trigger(f"link-{number}", lasts=0, deadline=deadline, poke_interval=600) for number in range(20)]
    await asyncio.gather(*map(fire, waits))
    # A poke that ends after the deadline is the last one, too.
    assert len(polls(box)) > 30
    assert 3 < box.connections <= 6


@pytest.mark.usefixtures("fast", "connect")
async def test_waits_for_the_same_link_make_the_calls_of_one_whenever_each_began(box):
    dice = random.Random(1)
    waits = [trigger("loan", lasts=600) for _ in range(300)]
    tasks = [asyncio.create_task(fire(wait, after=dice.random())) for wait in waits]
    await until(lambda: all(wait.wait.seen.startswith("no row") for wait in waits))
    first = polls(box)
    await until(lambda: len(polls(box)) >= len(first) + 3)
    box.payload(link_id="loan")
    events = await asyncio.gather(*tasks)
    assert {event["status"] for event in events} == {"passed"}
    # Each wait begins with a poke, whose answer is shared for 0.02 seconds.
    assert len(first) <= (first[-1] - first[0]) / 0.02 + 2
    # Then all poke together, once a second.
    together = polls(box)[len(first) - 1 :]
    assert all(later - earlier > 0.9 for earlier, later in pairwise(together))
    # The polls of other waits do not count as pokes of a wait.
    assert sum(event["pokes"] for event in events) < 300 * (len(together) + 2 + first[-1] - first[0])


@pytest.mark.usefixtures("fast", "connect")
async def test_an_answer_to_one_wait_reaches_all_waits_with_the_same_poll(box):
    slow = asyncio.create_task(fire(trigger("loan", lasts=600, poke_interval=600)))
    other = asyncio.create_task(fire(trigger("other", lasts=600, poke_interval=600)))
    await until(lambda: len(polls(box)) == 2)
    (poller,) = pollers._pollers[asyncio.get_running_loop()].values()
    await until(lambda: len(poller._listeners) == 2)
    box.payload(link_id="loan")
    box.payload(link_id="other")
    quick = await fire(trigger("loan", lasts=600, poke_interval=0.1))
    event = await asyncio.wait_for(slow, 120)
    assert (quick["status"], event["status"]) == ("passed", "passed")
    assert event["rows"] == quick["rows"]
    assert event["pokes"] == 1
    assert len(polls(box)) == 3
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])
    await nothing_is_left(box)


@pytest.mark.usefixtures("fast", "connect")
async def test_a_404_is_shared_as_an_answer_and_an_error_is_not(box):
    async with shared_poller(CONNECTION) as poller:
        for status, is_shared in ((404, True), (503, False), (400, False)):
            box.fault(Fault(kind="status", status=status, times=1))
            listener = asyncio.create_task(poller.next_answer(gate(status), 120 if is_shared else 1))
            await until(lambda: poller._listeners)
            with pytest.raises(BankConnectError):
                await poller.ask(gate(status))
            assert (await listener is not None) == is_shared
        assert not poller._listeners


@pytest.mark.usefixtures("connect")
async def test_a_retry_after_holds_all_polls_back_and_spreads_their_return(box):
    sent = []
    async with shared_poller(CONNECTION) as poller:
        box.fault(Fault(kind="status", status=429, retry_after=1, times=1))
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        delay = asyncio.create_task(longest_delay())
        assert poller.is_held
        await asyncio.gather(*(poller.ask(Watched(number, sent)) for number in range(60)))
        delay.cancel()
    assert len(sent) == 60
    assert min(polls(box)[1:]) - polls(box)[0] >= 1
    assert max(sent) - min(sent) > 1
    # 30 return in a second; those that are due while the loop is late return together.
    assert at_once(sent, 0.1) < 20 + 60 * await delay


@pytest.mark.usefixtures("connect")
async def test_a_streak_of_errors_pauses_the_connection_and_one_answer_ends_the_streak(box, monkeypatch):
    monkeypatch.setattr(pollers, "random", SimpleNamespace(random=lambda: 0.8))
    async with shared_poller(CONNECTION) as poller:
        box.fault(Fault(kind="status", status=503, times=3))
        for number in range(3):
            assert not poller.is_held
            with pytest.raises(BankConnectError):
                await poller.ask(gate(number))
        assert poller.is_held
        await asyncio.gather(*(poller.ask(gate(number)) for number in range(10, 30)))
        # 0.8 of a second of pause, and 0.8 of the two seconds over which they return.
        assert min(polls(box)[3:]) - polls(box)[2] > 0.8 + 1.6 - 0.1
        box.fault(Fault(kind="status", status=503, times=2))
        for number in range(40, 42):
            with pytest.raises(BankConnectError):
                await poller.ask(gate(number))
        assert not poller.is_held


async def test_of_polls_without_an_answer_max_concurrency_are_in_flight_each_until_its_own_timeout(box, connect):
    connect(max_concurrency=4, timeout=2)
    box.fault(Fault(kind="delay", seconds=600))
    sent, ended = [], []

    async def ask(poller, number):
        with pytest.raises(BankConnectConnectionError, match="no answer in time"):
            await poller.ask(Watched(number, sent))
        ended.append(time.monotonic())

    async with shared_poller(CONNECTION) as poller:
        started = time.monotonic()
        asking = [asyncio.create_task(ask(poller, number)) for number in range(12)]
        await until(lambda: ended)
        # The others wait for the first four.
        assert len(sent) <= 8
        await asyncio.gather(*asking)
        assert poller._slots._value == 4
    assert len(sent) == 12
    assert at_once(sent, 1.9) == 4
    assert 1.9 < min(ended) - started < 300
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_cancelled_waits_leave_no_poll_and_no_connection(box):
    box.fault(Fault(kind="delay", seconds=0.3))
    waits = [asyncio.create_task(fire(trigger(f"link-{number % 50}", lasts=60))) for number in range(100)]
    await until(lambda: pollers._pollers.get(asyncio.get_running_loop()))
    (poller,) = pollers._pollers[asyncio.get_running_loop()].values()
    # Some polls are in flight, some are queued, and some waits sleep until their next poke.
    await until(lambda: poller._listeners and any(not poll.done() for poll in poller._polls.values()))
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert poller.waits == 0
    assert not poller._listeners
    assert all(poll.done() for poll in poller._polls.values())
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_a_poll_that_an_event_made_old_ends_with_the_waits(box):
    """A poll that is held back would open the session again after it was closed."""
    box.fault(Fault(kind="status", status=429, retry_after=60, times=1))
    before = asyncio.all_tasks()
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        wait = asyncio.create_task(fire(trigger("loan", lasts=60)))
        await until(lambda: ("webhook_payloads", "loan") in poller._polls)
        poller.notify(["link:loan"])
        wait.cancel()
        await asyncio.wait([wait])
    assert asyncio.all_tasks() == before
    await nothing_is_left(box)


@pytest.mark.usefixtures("connect")
async def test_a_poll_that_was_held_back_is_not_sent_after_its_waits_have_ended(box, monkeypatch):
    monkeypatch.setattr(pollers, "random", SimpleNamespace(random=lambda: 0.0))
    box.fault(Fault(kind="status", status=429, retry_after=3, times=1))
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        cancelled, other = (asyncio.create_task(poller.ask(gate(number))) for number in ("cancelled", "other"))
        await until(lambda: {gate("cancelled").poll_key, gate("other").poll_key} <= poller._polls.keys())
        cancelled.cancel()
        await other
        # Both were held until the same moment: after one more poll each has had its turn.
        await poller.ask(gate("later"))
        assert polls(box, "link-cancelled") == []
        assert await poller.ask(gate("cancelled")) == []


@pytest.mark.usefixtures("connect")
async def test_of_two_polls_in_flight_together_the_longer_retry_after_holds(box):
    box.fault(Fault(kind="delay", call="transactions", seconds=0.3))
    box.fault(Fault(kind="status", call="transactions", status=429, retry_after=60))
    box.fault(Fault(kind="status", call="webhook_payloads", status=429, retry_after=2))
    async with shared_poller(CONNECTION) as poller:
        both = (gate("first"), ProgressGate(Expectation.parse(entity_id="e1")).in_full())
        await asyncio.gather(*map(poller.ask, both), return_exceptions=True)
        assert [call.call for call in box.requests] in (
            ["webhook_payloads", "transactions"],
            ["transactions", "webhook_payloads"],
        )
        assert poller._pause.resume_at - asyncio.get_running_loop().time() > 30


@pytest.mark.usefixtures("connect")
async def test_a_poke_of_several_requests_starts_again_after_a_pause_that_began_in_its_middle(box):
    box.play(Statement(link_id="loan", entity_id="customer-1", statement_id="october"))
    box.fault(Fault(kind="delay", call="identity", seconds=0.5, times=1))
    box.fault(Fault(kind="status", call="webhook_payloads", status=429, retry_after=2, times=1))
    async with shared_poller(CONNECTION) as poller:
        customer = asyncio.create_task(poller.ask(ProgressGate(Expectation.parse(entity_id="customer-1"))))
        await until(lambda: box.calls("identity"))
        with pytest.raises(BankConnectRateLimitError):
            await poller.ask(gate("other"))
        paused_until = poller._pause.resume_at
        assert [item.status for item in (await customer).items["customer-1"]] == ["completed"]
        assert asyncio.get_running_loop().time() >= paused_until
    assert [call.call for call in box.requests] == ["identity", "webhook_payloads", "identity", "transactions"]


@pytest.mark.parametrize("held", ["in the queue", "between two requests"])
async def test_a_wait_whose_poke_a_pause_holds_back_logs_until_when(box, connect, log, held):
    if held == "in the queue":
        connect(max_concurrency=1)
        held_wait = trigger("held", lasts=60)
    else:
        box.play(Statement(link_id="held", entity_id="customer-1", statement_id="october"))
        box.fault(Fault(kind="delay", call="identity", seconds=1, times=1))
        pace = {"deadline": datetime.now(UTC) + timedelta(seconds=60)}
        held_wait = BankConnectProgressTrigger(entity_id="customer-1", wait=pace)
    box.fault(Fault(kind="delay", call="webhook_payloads", seconds=0.5, times=1))
    box.fault(Fault(kind="status", call="webhook_payloads", status=429, retry_after=3600, times=1))
    said = ""

    def is_logged_by_both():
        nonlocal said
        said += log()
        return said.count("all waits of the connection are held until ") == 2

    first = asyncio.create_task(fire(trigger("first", lasts=60)))
    if held == "in the queue":
        await until(lambda: polls(box))
    second = asyncio.create_task(fire(held_wait))
    async with asyncio.timeout(20):
        await until(is_logged_by_both)
    assert not first.done()
    assert not second.done()
    assert [call.call for call in box.requests] in (
        ["webhook_payloads"],
        ["webhook_payloads", "identity"],
        ["identity", "webhook_payloads"],
    )
    for wait in (first, second):
        wait.cancel()
    await asyncio.wait([first, second])


@pytest.mark.usefixtures("fast", "connect")
async def test_an_answer_to_another_wait_does_not_shorten_the_pause_of_this_one():
    later = datetime.now(UTC) + timedelta(minutes=1)
    patient = trigger("loan", lasts=4, poke_interval=0.3, paused=60.0, paused_until=later, next_poke=later, pokes=1)
    waits = [asyncio.create_task(fire(wait)) for wait in (patient, trigger("loan", lasts=2, poke_interval=0.2))]
    event, other = await asyncio.gather(*waits)
    assert other["pokes"] > 1
    assert (event["status"], event["pokes"]) == ("timeout", 1)
    assert "no row that counts" in event["because"]


@pytest.mark.usefixtures("fast", "connect")
async def test_events_do_not_lengthen_the_intervals_of_exponential_backoff(box, monkeypatch):
    """Otherwise many webhooks, real or forged, could delay a gate until its deadline."""
    monkeypatch.setattr("airflow_provider_bankconnect.wait.ECHO_SECONDS", ())
    wait = asyncio.create_task(fire(trigger("loan", lasts=600, poke_interval=0.05, exponential_backoff=True)))
    await until(lambda: len(polls(box)) == 2)
    (poller,) = pollers._pollers[asyncio.get_running_loop()].values()
    for number in range(10):
        poller.notify(["link:loan"])
        await until(lambda number=number: len(polls(box)) > 2 + number)
    box.payload(link_id="loan")
    # After 12 pokes that count, the interval would be at least 102 seconds.
    event = await asyncio.wait_for(wait, 100)
    assert event["status"] == "passed"


@pytest.mark.usefixtures("connect")
async def test_an_event_sends_no_second_poll_beside_one_that_is_held_back(box):
    box.fault(Fault(kind="status", status=429, retry_after=2, times=1))
    async with shared_poller(CONNECTION) as poller, poller.waiting(gate("woken")):
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
        held = asyncio.create_task(poller.ask(gate("woken")))
        await until(lambda: gate("woken").poll_key in poller._polls)
        poller.notify(["link:link-woken"])
        await asyncio.gather(held, poller.ask(gate("woken")))
        assert len(polls(box, "link-woken")) == 1


@pytest.mark.usefixtures("connect")
async def test_a_retry_after_also_holds_for_later_waits(box):
    box.fault(Fault(kind="status", status=429, retry_after=60, times=1))
    async with shared_poller(CONNECTION) as poller:
        with pytest.raises(BankConnectError):
            await poller.ask(gate("first"))
    event = await fire(trigger("second", lasts=2))
    assert event["status"] == "timeout"
    assert polls(box, "second") == []
