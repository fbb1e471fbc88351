"""The sandbox's clocks: the real one, and one that a test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]


def real_clock() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class SimulatedClock:
    """A clock that a test moves: ``Sandbox(clock=SimulatedClock())``, ``box.clock.advance(3600)``.

    :param start: an aware datetime to start at; None for now.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = (start or real_clock()).astimezone(UTC)
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> datetime:
        """Return the simulated time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the time forward; what falls due in between happens now, in order."""
        if seconds < 0:
            raise ValueError(f"seconds must not be negative: {seconds}")
        self._now += timedelta(seconds=seconds)
        for listener in self._listeners:
            listener()

    def on_advance(self, listener: Callable[[], None]) -> None:
        """Call a function after each move."""
        self._listeners.append(listener)
