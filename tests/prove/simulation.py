"""Plays a schedule: the real sensors, triggers, poller, hooks and readers, in simulated time.

What is replaced lies beneath our code: the clock, TLS and sockets, and Airflow's scheduler. What there was to see is
kept in a ``Trace``; judging it is for ``theorem``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
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
from schedules import REQUEST_TIMEOUT, Bell, Schedule, Wait
from simulated_time import Loop, simulated_time
from wire import Ledger, Reply, Wire, replaced

from airflow_provider_bankconnect.gate import HistoryGate, ProgressGate
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook
from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.sandbox import Statement
from airflow_provider_bankconnect.sandbox.world import World
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.poller import Poller

try:
    import structlog
except ImportError:  # Airflow 2.11 does without
    structlog = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTION = "bankconnect_default"


@dataclass
class Ask:
    """One look of a wait at its ledger: when it began, and which of the triggerer's lives it was in."""

    at: float
    life: int


@dataclass
class Look:
    """One judgement: what was answered, when it was judged, and what was said of it."""

    at: float
    now: datetime
    reply: Reply
    state: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Told:
    """What is known of one wait when all is over. ``ended`` is when its verdict was there."""

    wait: Wait
    began: float = float("inf")
    ended: float = float("inf")
    asks: list[Ask] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    state: str = "running"
    rows: Any = None

    def is_open(self, at: float) -> bool:
        """Say whether the wait was on."""
        return self.began <= at < self.ended


@dataclass
class Trace:
    """One schedule, played; ``world`` still knows what was true when: its clock stands still since."""

    schedule: Schedule
    mode: str
    world: World
    waits: list[Told]
    replies: list[Reply] = field(default_factory=list)
    rung: list[tuple[float, Bell]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    over: float = 0.0

    def known(self, ledger: Ledger, at: float) -> list[dict[str, Any]]:
        """Give the rows that the ledger had at that time."""
        call, name = ledger
        ago = self.over - at
        if call == "webhook_payloads":
            return self.world.history(name, ago)
        answer = self.world.analysis(name, call, None, ago)
        return [] if answer is None else list(answer["progress"])


# The simulation that is on: for mutants that want to know what has rung.
current: Simulation | None = None


def play(schedule: Schedule, mode: str = "deferred") -> Trace:
    """Play a schedule: its waits together in a triggerer (``deferred``), or its first alone on a worker (``poke``)."""
    with ExitStack() as stack:
        loop = stack.enter_context(simulated_time(schedule.start, schedule.seed))
        clock = schedule_clock(schedule, loop)
        world = World(
            clock=clock, seed=schedule.seed, timezone=schedule.vendor_zone, omits_unsent=False, tell=lambda _: None
        )
        connection = {"conn_type": "bankconnect", "host": "https://vendor.invalid", "password": "made-up-hash"}
        stack.enter_context(connected(schedule, connection | {"extra": {"api_key": "made-up-key"}}))
        wire = Wire(schedule, world, loop, clock)
        simulation = Simulation(schedule, mode, loop, world, wire)
        stack.enter_context(replaced(wire, lambda: f"triggerer {simulation.life}"))
        stack.enter_context(simulation.listening())
        return simulation.run()


def schedule_clock(schedule: Schedule, loop: Loop) -> Callable[[], datetime]:
    """Give the vendor's clock, which still tells the last moment when all is over."""
    return lambda: schedule.moment(loop.time())


@contextmanager
def connected(schedule: Schedule, connection: dict[str, Any]) -> Iterator[None]:
    """Have Airflow know the connection, and nothing else of this machine: least of all a proxy. Nothing is logged."""
    connection["extra"] |= {"timezone": schedule.our_zone, "timeout": REQUEST_TIMEOUT}
    environment = {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": json.dumps(connection)}
    with patch.dict(os.environ, environment, clear=True), _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: it would take half of the time."""
    disabled, told = logging.root.manager.disable, structlog and structlog.get_config()
    logging.disable()
    if structlog:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        logging.disable(disabled)
        if structlog:
            structlog.configure(**told)


class Simulation:
    """One schedule on its way."""

    def __init__(self, schedule: Schedule, mode: str, loop: Loop, world: World, wire: Wire | None = None) -> None:
        self.loop = loop
        self.life = 0
        self.trace = Trace(schedule, mode, world, [Told(wait) for wait in schedule.waits])
        self._schedule = schedule
        self._wire = wire
        self._triggers: list[_Trigger] = []
        self._is_up = True
        # Who looks, by the gate that looks; on a worker, where there is one wait at a time, by that.
        self._of_gate: dict[int, tuple[object, Told]] = {}
        self._on_duty: Told | None = None
        self._read: list[tuple[object, Reply]] = []

    def run(self) -> Trace:
        """Play it to its end."""
        global current  # noqa: PLW0603
        current = self
        self._tell_the_vendor()
        if self.trace.mode == "poke":
            self._poke()
        else:
            self.loop.run_until_complete(self._deferred())
        self.trace.over = self.loop.time()
        if self._wire is not None:
            self.trace.replies = self._wire.replies
        return self.trace

    def _tell_the_vendor(self) -> None:
        world, call_at = self.trace.world, self.loop.call_at
        for one in self._schedule.plays:
            told = {name: one.body[name] for name in ("link_id", "entity_id", "statement_id", "progress", "reason")}
            told |= {"mode": one.mode, "later": {"salary": one.later, "identity": one.later / 2}, "transactions": 0}
            if one.ends < 0:
                world.play(Statement(**told, after=one.ends))
            else:
                call_at(one.begins, world.play, Statement(**told, after=one.ends - one.begins))
        for odd in self._schedule.odds:
            call_at(odd.at, functools.partial(world.payload, odd.row, filed_under=odd.filed_under, date_time=None))

    # On a worker

    def sensor(self, wait: Wait) -> Any:
        """Make the sensor."""
        gate = dict(wait.gate)
        if "since" in gate:
            gate["since"] = self._schedule.moment(gate["since"])
        if "failure_grace" in gate:
            gate["failure_grace"] = timedelta(seconds=gate["failure_grace"])
        kind = BankConnectWebhookPayloadSensor if "link_id" in gate else BankConnectProgressSensor
        return kind(
            task_id=wait.name,
            deferrable=self.trace.mode != "poke",
            on_failed=wait.on_failed,
            poke_interval=wait.poke_interval,
            timeout=wait.timeout,
            exponential_backoff=wait.exponential_backoff,
            max_wait=wait.max_wait,
            **gate,
        )

    def _poke(self) -> None:
        """Have the first wait alone, with a worker's thread to itself."""
        del self.trace.waits[1:]
        (told,) = self.trace.waits

        def sleep(seconds: float) -> None:
            self.loop.run_until_complete(asyncio.sleep(seconds))

        if self._wire is not None:
            self._wire.nap = sleep
        sleep(told.wait.begins)
        with patch("time.sleep", sleep), patch("time.monotonic", self.loop.time):
            self._on_worker(told, lambda: self.sensor(told.wait).execute({"ti": None}))

    def _on_worker(self, told: Told, act: Callable[[], Any]) -> TaskDeferred | None:
        """Have a worker do something for a wait, and note what becomes of the task."""
        self._on_duty = told
        if self._wire is not None:
            self._wire.by = f"worker {told.wait.name}"
        told.began = min(told.began, self.loop.time())
        try:
            told.rows, told.state = act(), "success"
        except TaskDeferred as deferred:
            return deferred
        except AirflowSkipException:
            told.state = "skipped"
        except AirflowSensorTimeout:
            told.state = "timeout"
        except AirflowFailException:
            told.state = "failed"
        except Exception as error:  # noqa: BLE001 - whatever else it is, Airflow retries the task
            told.state = type(error).__name__
        finally:
            self._on_duty = None
        told.ended = min(told.ended, self.loop.time())
        return None

    # In a triggerer

    async def _deferred(self) -> None:
        for kill in self._schedule.kills:
            self.loop.call_at(kill.at, self._kill)
            self.loop.call_at(kill.back, self._come_back)
        for bell in self._schedule.bells:
            self.loop.call_at(bell.at, self._ring, bell)
        await asyncio.gather(*(self._live(told) for told in self.trace.waits))
        # Who polls on now, polls on after its end.
        await asyncio.sleep(2 * max(wait.poke_interval for wait in self._schedule.waits) + 2)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        self.trace.left = [*map(repr, others), *map(repr, pollers._pollers.get(self.loop, {}).values())]
        for task in others:
            task.cancel()
        await asyncio.sleep(1)

    async def _live(self, told: Told) -> None:
        await asyncio.sleep(told.wait.begins)
        deferred = self._on_worker(told, lambda: self.sensor(told.wait).execute({"ti": None}))
        if deferred is None:
            return
        trigger = _Trigger(told, type(deferred.trigger), json.dumps(deferred.trigger.serialize()[1]))
        self._triggers.append(trigger)
        if self._is_up:
            self._start(trigger)
        event = await trigger.event
        told.ended = self.loop.time()
        resumed = {**(deferred.kwargs or {}), "event": event}
        self._on_worker(
            told, lambda: self.sensor(told.wait).resume_execution(deferred.method_name, resumed, {"ti": None})
        )

    def _start(self, trigger: _Trigger) -> None:
        trigger.task = self.loop.create_task(self._run(trigger))

    async def _run(self, row: _Trigger) -> None:
        trigger = row.kind(**json.loads(row.arguments))
        self._of_gate[id(trigger.gate)] = (trigger.gate, row.told)
        async for event in trigger.run():
            payload = json.loads(json.dumps(event.payload))
            row.told.events.append((self.loop.time(), payload))
            if not row.event.done():
                row.event.set_result(payload)

    def _kill(self) -> None:
        self._is_up = False
        for trigger in self._triggers:
            if trigger.task is not None:
                trigger.task.cancel()

    def _come_back(self) -> None:
        self._is_up = True
        self.life += 1
        for trigger in self._triggers:
            if not trigger.event.done():
                self._start(trigger)

    def _ring(self, bell: Bell) -> None:
        self.trace.rung.append((self.loop.time(), bell))
        poller = pollers._pollers.get(self.loop, {}).get(CONNECTION)
        if bell.how != "dropped" and poller is not None and self._is_up:
            link_id, entity_id = bell.body["link_id"], bell.body["entity_id"]
            poller.ring(dict.fromkeys((partition_key(link_id, entity_id), partition_key(None, entity_id))))

    # Listening in

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note each look, what was read of which answer, and each verdict; and change nothing."""

        def noting_read(run: Any) -> Any:
            def noting(hook: object, call: Any) -> Any:
                rows = run(hook, call)
                self._read.append((rows, self._wire.last[None]))
                return rows

            return noting

        def noting_async_read(run: Any) -> Any:
            async def noting(hook: object, call: Any) -> Any:
                rows = await run(hook, call)
                self._read.append((rows, self._wire.last[asyncio.current_task()]))
                return rows

            return noting

        def noting_look(judge: Any) -> Any:
            def noting(gate: object, rows: Any, now: datetime) -> Any:
                told = self._on_duty or self._of_gate[id(gate)][1]
                reply = next(reply for read, reply in reversed(self._read) if read is rows)
                look = Look(self.loop.time(), now, reply)
                told.looks.append(look)
                try:
                    verdict = judge(gate, rows, now)
                except Exception as error:
                    look.state = type(error).__name__
                    raise
                look.state, look.rows = verdict.state, [row.as_dict() for row in verdict.rows]
                return verdict

            return noting

        with ExitStack() as stack:
            stack.enter_context(self.noting_asks())
            for owner, name, noting in (
                (BankConnectHook, "run", noting_read),
                (BankConnectAsyncHook, "run", noting_async_read),
                (HistoryGate, "judge", noting_look),
                (ProgressGate, "judge", noting_look),
            ):
                stack.enter_context(patch.object(owner, name, noting(getattr(owner, name))))
            yield

    @contextmanager
    def noting_asks(self) -> Iterator[None]:
        """Note when which wait looks."""
        ask = Poller.ask

        async def noting(poller: Poller, gate: Any, **more: Any) -> Any:
            if id(gate) in self._of_gate:
                self._of_gate[id(gate)][1].asks.append(Ask(self.loop.time(), self.life))
            return await ask(poller, gate, **more)

        with patch.object(Poller, "ask", noting):
            yield


class _Trigger:
    """A trigger's row in Airflow's database: its arguments as text, whoever runs it."""

    def __init__(self, told: Told, kind: type, arguments: str) -> None:
        self.told = told
        self.kind = kind
        self.arguments = arguments
        self.event: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
