"""An event loop with a time of its own: it jumps to the next thing that is to happen, and the wall clock with it."""

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
    """Sleeps through to the next timer at once: nothing comes from outside."""

    def __init__(self, move: Callable[[float], None]) -> None:
        super().__init__()
        self._move = move

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("somebody waits, and nothing is left that may happen")
        if timeout > 0:
            self._move(timeout)
        return []


class _Future(asyncio.Future[Any]):
    """Sets of futures have the order in which they were made: a seed is to play the same each time."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = number

    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.SelectorEventLoop):
    """An event loop in simulated time, in whole microseconds, which the wall clock follows."""

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
        """At once: threads have a time of their own."""
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


@contextmanager
def simulated_time(start: datetime, seed: int, selector: type[NextThing] = NextThing) -> Iterator[Loop]:
    """Begin at ``start``, with dice of its own."""
    random.seed(seed)
    with time_machine.travel(start, tick=False) as traveller:
        loop = Loop(traveller, selector)
        asyncio.set_event_loop(loop)
        try:
            yield loop
        finally:
            asyncio.set_event_loop(None)
            loop.close()
