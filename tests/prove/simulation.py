"""Plays a schedule: the real sensors, triggers, poller and hooks, in simulated time.

Only what lies beneath our code is replaced: the clock, TLS and sockets, and Airflow's scheduler. A ``Trace`` keeps what
was observed; ``theorem`` judges it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from schedules import REQUEST_TIMEOUT, Delivery, Schedule, Wait
from simulated_time import Loop, simulated_time
from wire import RecordKey, Reply, Wire, replaced

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook
from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate
from airflow_provider_bankconnect.sandbox import Statement
from airflow_provider_bankconnect.sandbox.world import World
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import _BankConnectTrigger

try:
    import structlog
except ImportError:  # Airflow 2.11 does without
    structlog = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTION = "bankconnect_default"


@dataclass
class Ask:
    """One poke of a wait in a triggerer: when it began, and how often the triggerer had been restarted by then."""

    at: float
    restarts: int


@dataclass
class Poke:
    """One judgement: the answers that were judged, when, and the verdict."""

    at: float
    now: datetime
    replies: list[Reply]
    state: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Observed:
    """What was observed of one wait. ``ended`` is the time of its verdict."""

    wait: Wait
    began: float = float("inf")
    ended: float = float("inf")
    asks: list[Ask] = field(default_factory=list)
    pokes: list[Poke] = field(default_factory=list)
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    state: str = "running"
    rows: Any = None

    def is_open(self, at: float) -> bool:
        """Return whether the wait was open at that time."""
        return self.began <= at < self.ended


@dataclass
class Trace:
    """What was observed of one schedule. ``world`` can still be asked what was true at any time before ``over``."""

    schedule: Schedule
    mode: str
    world: World
    waits: list[Observed]
    replies: list[Reply] = field(default_factory=list)
    recorded: list[tuple[float, Delivery]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    over: float = 0.0

    def known(self, record: RecordKey, at: float) -> list[dict[str, Any]]:
        """Return the rows that the record had at that time."""
        call, name = record
        ago = self.over - at
        if call == "webhook_payloads":
            return self.world.history(name, ago)
        state = self.world.state(name, call, None, ago)
        return [] if state is None else json.loads(state.progress)


# The running simulation: some mutants read its webhooks.
current: Simulation | None = None


def play(schedule: Schedule, mode: str = "deferred") -> Trace:
    """Play a schedule: all waits together in a triggerer (``deferred``), or the first alone on a worker (``poke``)."""
    with ExitStack() as stack:
        loop = stack.enter_context(simulated_time(schedule.start, schedule.seed))
        clock = schedule_clock(schedule, loop)
        world = World(
            clock=clock,
            seed=schedule.seed,
            timezone=schedule.vendor_zone,
            omits_unsent=schedule.webhook_mode is not None,
            status=schedule.transaction_status,
            log=lambda _: None,
        )
        connection = {"conn_type": "bankconnect", "host": "https://vendor.invalid", "password": "made-up-hash"}
        stack.enter_context(connected(schedule, connection | {"extra": {"api_key": "made-up-key"}}))
        wire = Wire(schedule, world, loop, clock)
        simulation = Simulation(schedule, mode, loop, world, wire)
        stack.enter_context(replaced(wire, lambda: f"triggerer {simulation.restarts}"))
        stack.enter_context(simulation.observing())
        return simulation.run()


def schedule_clock(schedule: Schedule, loop: Loop) -> Callable[[], datetime]:
    """Return the vendor's clock. When the loop has ended, it stands still at the last moment."""
    return lambda: schedule.moment(loop.time())


@contextmanager
def connected(schedule: Schedule, connection: dict[str, Any]) -> Iterator[None]:
    """Set the connection and empty the environment, which may name a proxy. Nothing is logged."""
    connection["extra"] |= {"timezone": schedule.our_zone, "timeout": REQUEST_TIMEOUT}
    environment = {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": json.dumps(connection)}
    with patch.dict(os.environ, environment, clear=True), _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch logging off: it would take half of the time."""
    disabled, configured = logging.root.manager.disable, structlog and structlog.get_config()
    logging.disable()
    if structlog:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        logging.disable(disabled)
        if structlog:
            structlog.configure(**configured)


class Simulation:
    """Plays one schedule."""

    def __init__(self, schedule: Schedule, mode: str, loop: Loop, world: World, wire: Wire | None = None) -> None:
        self.loop = loop
        self.restarts = 0
        self.trace = Trace(schedule, mode, world, [Observed(wait) for wait in schedule.waits])
        self._schedule = schedule
        self._wire = wire
        self._triggers: list[_Trigger] = []
        self._is_up = True
        # In a triggerer a wait is found by its gate; a worker runs one wait at a time.
        self._by_gate: dict[int, tuple[object, Observed]] = {}
        self._on_a_worker: Observed | None = None
        self._read: list[tuple[object, list[Reply]]] = []

    def run(self) -> Trace:
        """Play the schedule to its end."""
        global current  # noqa: PLW0603
        current = self
        self._fill_the_records()
        if self.trace.mode == "poke":
            self._poke()
        else:
            self.loop.run_until_complete(self._deferred())
        self.trace.over = self.loop.time()
        if self._wire is not None:
            self.trace.replies = self._wire.replies
        return self.trace

    def _fill_the_records(self) -> None:
        world, call_at = self.trace.world, self.loop.call_at
        # The simulation delivers the webhooks itself.
        world.hooks_due = deque(maxlen=0)
        if self._schedule.webhook_mode is not None:
            world.register("https://receiver.invalid/", self._schedule.webhook_mode)
        for one in self._schedule.plays:
            values = {name: one.body[name] for name in ("link_id", "entity_id", "statement_id", "progress", "reason")}
            later = {"salary": one.later, "identity": one.later / 2, "transactions": one.transactions_later}
            values |= {"mode": one.mode, "later": later, "transactions": 0}
            if one.ends < 0:
                world.play(Statement(**values, after=one.ends))
            else:
                call_at(one.begins, world.play, Statement(**values, after=one.ends - one.begins))
        for extra_row in self._schedule.extra_rows:
            call_at(
                extra_row.at,
                functools.partial(world.payload, extra_row.row, filed_under=extra_row.filed_under, date_time=None),
            )

        for frozen in self._schedule.frozen:
            call_at(frozen.at, self._freeze, frozen.entity_id)

    def _freeze(self, entity_id: str) -> None:
        state = self.trace.world.state(entity_id, "identity")
        if state is not None:
            self.trace.world.progress(entity_id, json.loads(state.progress), "identity")

    # On a worker

    def sensor(self, wait: Wait) -> Any:
        """Return the sensor of a wait."""
        gate = dict(wait.gate)
        if "since" in gate:
            gate["since"] = self._schedule.moment(gate["since"])
        if "failure_grace" in gate:
            gate["failure_grace"] = timedelta(seconds=gate["failure_grace"])
        announced = {name: gate.pop(name) for name in ("announced", "announced_until") if name in gate}
        if announced:
            announced["announced_until"] = self._schedule.moment(announced["announced_until"])
        kind: Any = BankConnectWebhookPayloadSensor if "link_id" in gate else BankConnectProgressSensor
        kind = BankConnectStatementSensor if wait.is_of_customer else kind
        sensor = kind(
            task_id=wait.name,
            deferrable=self.trace.mode != "poke",
            on_failed=wait.on_failed,
            poke_interval=wait.poke_interval,
            timeout=wait.timeout,
            exponential_backoff=wait.exponential_backoff,
            max_wait=wait.max_wait,
            **gate,
        )
        if announced:
            # As in a run that webhooks started.
            sensor._find_customer = lambda _: vars(sensor).update(announced)
        return sensor

    def _poke(self) -> None:
        """Run the first wait alone, in a worker's thread."""
        del self.trace.waits[1:]
        (observed,) = self.trace.waits

        def sleep(seconds: float) -> None:
            self.loop.run_until_complete(asyncio.sleep(seconds))

        if self._wire is not None:
            self._wire.sleep = sleep
        sleep(observed.wait.begins)
        with patch("time.sleep", sleep), patch("time.monotonic", self.loop.time):
            self._on_worker(observed, lambda: self.sensor(observed.wait).execute({"ti": None}))

    def _on_worker(self, observed: Observed, act: Callable[[], Any]) -> TaskDeferred | None:
        """Run a step of a task on a worker, and record how the task ends."""
        self._on_a_worker = observed
        if self._wire is not None:
            self._wire.by = f"worker {observed.wait.name}"
        observed.began = min(observed.began, self.loop.time())
        try:
            observed.rows, observed.state = act(), "success"
        except TaskDeferred as deferred:
            return deferred
        except AirflowSkipException:
            observed.state = "skipped"
        except AirflowSensorTimeout:
            observed.state = "timeout"
        except AirflowFailException:
            observed.state = "failed"
        except Exception as error:  # noqa: BLE001 - Airflow retries the task after any other error
            observed.state = type(error).__name__
        finally:
            self._on_a_worker = None
        observed.ended = min(observed.ended, self.loop.time())
        return None

    # In a triggerer

    async def _deferred(self) -> None:
        for kill in self._schedule.kills:
            self.loop.call_at(kill.at, self._kill)
            self.loop.call_at(kill.back, self._restart)
        for delivery in self._schedule.deliveries:
            self.loop.call_at(delivery.at, self._event, delivery)
        await asyncio.gather(*(self._run_task(observed) for observed in self.trace.waits))
        # A wait that polls now, polls after its end.
        await asyncio.sleep(2 * max(wait.poke_interval for wait in self._schedule.waits) + 2)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        self.trace.leftovers = [*map(repr, others), *map(repr, pollers._pollers.get(self.loop, {}).values())]
        for task in others:
            task.cancel()
        await asyncio.sleep(1)

    async def _run_task(self, observed: Observed) -> None:
        await asyncio.sleep(observed.wait.begins)
        deferred = self._on_worker(observed, lambda: self.sensor(observed.wait).execute({"ti": None}))
        if deferred is None:
            return
        trigger = _Trigger(observed, type(deferred.trigger), json.dumps(deferred.trigger.serialize()[1]))
        self._triggers.append(trigger)
        if self._is_up:
            self._start(trigger)
        event = await trigger.event
        observed.ended = self.loop.time()
        resumed = {**(deferred.kwargs or {}), "event": event}
        self._on_worker(
            observed, lambda: self.sensor(observed.wait).resume_execution(deferred.method_name, resumed, {"ti": None})
        )

    def _start(self, trigger: _Trigger) -> None:
        trigger.task = self.loop.create_task(self._run(trigger))

    async def _run(self, row: _Trigger) -> None:
        trigger = row.kind(**json.loads(row.arguments))
        self._by_gate[id(trigger.gate)] = (trigger.gate, row.observed)
        async for event in trigger.run():
            payload = json.loads(json.dumps(event.payload))
            row.observed.events.append((self.loop.time(), payload))
            if not row.event.done():
                row.event.set_result(payload)

    def _kill(self) -> None:
        self._is_up = False
        for trigger in self._triggers:
            if trigger.task is not None:
                trigger.task.cancel()

    def _restart(self) -> None:
        self._is_up = True
        self.restarts += 1
        for trigger in self._triggers:
            if not trigger.event.done():
                self._start(trigger)

    def _event(self, delivery: Delivery) -> None:
        self.trace.recorded.append((self.loop.time(), delivery))
        poller = pollers._pollers.get(self.loop, {}).get(CONNECTION)
        if delivery.how not in {"dropped", "suppressed"} and poller is not None and self._is_up:
            link_id, entity_id = delivery.body["link_id"], delivery.body["entity_id"]
            poller.notify(dict.fromkeys((partition_key(link_id, entity_id), partition_key(None, entity_id))))

    # Observing

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Record each poke, the answer that each verdict is based on, and each verdict."""

        def noting_read(run: Any) -> Any:
            def noting(hook: object, call: Any) -> Any:
                replies = self._wire.of_poke[None] = []
                rows = run(hook, call)
                self._read.append((rows, replies))
                return rows

            return noting

        def noting_async_read(run: Any) -> Any:
            async def noting(hook: object, call: Any, **more: Any) -> Any:
                replies = self._wire.of_poke[asyncio.current_task()] = []
                rows = await run(hook, call, **more)
                self._read.append((rows, replies))
                return rows

            return noting

        def noting_poke(judge: Any) -> Any:
            def noting(gate: object, rows: Any, now: datetime) -> Any:
                observed = self._on_a_worker or self._by_gate[id(gate)][1]
                replies = next(replies for read, replies in reversed(self._read) if read is rows)
                poke = Poke(self.loop.time(), now, replies)
                observed.pokes.append(poke)
                try:
                    verdict = judge(gate, rows, now)
                except Exception as error:
                    poke.state = type(error).__name__
                    raise
                poke.state, poke.rows = verdict.state, [row.as_dict() for row in verdict.rows]
                return verdict

            return noting

        with ExitStack() as stack:
            stack.enter_context(self.noting_asks())
            for owner, name, noting in (
                (BankConnectHook, "run", noting_read),
                (BankConnectAsyncHook, "run", noting_async_read),
                (HistoryGate, "judge", noting_poke),
                (ProgressGate, "judge", noting_poke),
                (CustomerGate, "judge", noting_poke),
            ):
                stack.enter_context(patch.object(owner, name, noting(getattr(owner, name))))
            yield

    @contextmanager
    def noting_asks(self) -> Iterator[None]:
        """Record when each wait pokes."""
        poke = _BankConnectTrigger._poke

        async def noting(trigger: Any, *arguments: Any) -> None:
            self._by_gate[id(trigger.gate)][1].asks.append(Ask(self.loop.time(), self.restarts))
            await poke(trigger, *arguments)

        with patch.object(_BankConnectTrigger, "_poke", noting):
            yield


class _Trigger:
    """A trigger's row in Airflow's database, with its arguments as text."""

    def __init__(self, observed: Observed, kind: type, arguments: str) -> None:
        self.observed = observed
        self.kind = kind
        self.arguments = arguments
        self.event: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
