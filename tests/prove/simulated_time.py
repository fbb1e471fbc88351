"""An event loop in simulated time: it jumps to the next timer, and the wall clock follows."""

from __future__ import annotations

import asyncio
import random
import selectors
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import time_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime


class NextThing(selectors.SelectSelector):
    """Jumps to the next timer: there is no other source of events."""

    def __init__(self, move: Callable[[float], None]) -> None:
        super().__init__()
        self._move = move

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("a task waits, and no timer is left")
        if timeout > 0:
            self._move(timeout)
        return []


class _Future(asyncio.Future[Any]):
    """Hashes to its number, so that sets of futures have the same order each time that a seed is played."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = number

    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time, in whole microseconds, also moves the wall clock."""

    def __init__(self, traveller: time_machine.Traveller, selector: type[NextThing]) -> None:
        self._traveller = traveller
        self._elapsed = self._futures = 0
        super().__init__(selector(self._move))

    def time(self) -> float:
        return self._elapsed / 1e6

    def _move(self, seconds: float) -> None:
        step = max(1, round(seconds * 1e6))
        self._elapsed += step
        self._traveller.shift(timedelta(microseconds=step))

    def create_future(self) -> asyncio.Future[Any]:
        self._futures += 1
        return _Future(self._futures, self)

    def run_in_executor(self, _executor: object, function: Any, *arguments: Any) -> asyncio.Future[Any]:
        """Call the function at once: a thread would run in real time."""
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future


@contextmanager
def simulated_time(start: datetime, seed: int, selector: type[NextThing] = NextThing) -> Iterator[Loop]:
    """Run an event loop whose time begins at ``start``, with seeded random numbers."""
    random.seed(seed)
    with time_machine.travel(start, tick=False) as traveller:
        loop = Loop(traveller, selector)
        asyncio.set_event_loop(loop)
        try:
            yield loop
        finally:
            asyncio.set_event_loop(None)
            loop.close()
