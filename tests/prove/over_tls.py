"""Plays a schedule over real sockets and TLS, from the sandbox as it is shipped; only time is simulated.

Each poke has to get the same result: that shows that ``wire``, which the other schedules use, is faithful.
"""

from __future__ import annotations

import selectors
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from simulated_time import NextThing, simulated_time
from simulation import Observed, Simulation, Trace, connected, play, schedule_clock
from theorem import BrokenError

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook
from airflow_provider_bankconnect.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schedules import Schedule
    from simulated_time import Loop

_PATIENCE = 60.0


class _Traffic(NextThing):
    """Stops simulated time while a request is in flight."""

    requests = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        in_flight = _Traffic.requests and timeout != 0
        events = selectors.SelectSelector.select(self, _PATIENCE if in_flight else 0)
        if in_flight and not events:
            raise RuntimeError(f"a request has had no answer for {_PATIENCE} s")
        return events or super().select(timeout)


def play_over_tls(schedule: Schedule) -> tuple[Trace, int]:
    """Play a schedule. Return its trace, and the number of requests that the sandbox received."""
    with ExitStack() as stack:
        loop = stack.enter_context(simulated_time(schedule.start, schedule.seed, _Traffic))
        box = stack.enter_context(_sandbox(schedule, loop))
        stack.enter_context(connected(schedule, box.connection))
        stack.enter_context(patch.object(BankConnectAsyncHook, "_send", _counted(BankConnectAsyncHook._send)))
        simulation = Simulation(schedule, "deferred", loop, box._world)
        stack.enter_context(simulation.noting_asks())
        return simulation.run(), len(box.requests)


def check_over_tls(drawn: Schedule) -> None:
    """Check that the first wait of a schedule has the same results over TLS, without the faults that only ``wire`` has.

    Only the first: over TLS it is chance which of several waits asks first in the same instant.

    :raises BrokenError: with the difference.
    """
    # Over TLS the entities of a link come in another order.
    only_wire = {"delay", "shuffle"} if drawn.waits[0].is_of_customer else {"delay"}
    faults = tuple(fault for fault in drawn.faults if fault.kind not in only_wire)
    network = {"switches": (), "forgets_after": None}
    schedule = replace(drawn, faults=faults, repeats=0.0, waits=drawn.waits[:1], **network)
    simulated, (real, requests) = play(schedule), play_over_tls(schedule)
    if len(simulated.replies) != requests:
        raise BrokenError(f"seed {drawn.seed}: {requests} requests over TLS, and {len(simulated.replies)} without")
    for one, other in zip(simulated.waits, real.waits, strict=True):
        without, over = (
            (observed.state, observed.rows, observed.asks, list(_in_figures(observed))) for observed in (one, other)
        )
        if without != over:
            raise BrokenError(f"seed {drawn.seed}, {one.wait.name}: over TLS {over}, without {without}")


def _in_figures(observed: Observed) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the events without their ``because``: a broken connection has several messages."""
    for at, event in observed.events:
        yield at, {name: value for name, value in event.items() if name != "because"}


def _sandbox(schedule: Schedule, loop: Loop) -> Sandbox:
    return Sandbox(
        clock=schedule_clock(schedule, loop),
        seed=schedule.seed,
        timezone=schedule.vendor_zone,
        unknown_link="404" if schedule.unknown_is_404 else "empty",
        history_omits_unsent=schedule.webhook_mode is not None,
        transaction_status=schedule.transaction_status,
        faults=schedule.faults,
    )


def _counted(send: Any) -> Any:
    async def counted(hook: object, request: object) -> Any:
        _Traffic.requests += 1
        try:
            return await send(hook, request)
        finally:
            _Traffic.requests -= 1

    return counted
