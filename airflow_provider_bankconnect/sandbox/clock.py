"""The sandbox's time: the real one, or one that a test moves by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]


def real_clock() -> datetime:
    """Give the time of day."""
    return datetime.now(UTC)


class SimulatedClock:
    """A clock that stands still until it is moved: ``Sandbox(clock=SimulatedClock())``, ``box.clock.advance(3600)``.

    :param start: an aware datetime to begin with; None for now.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = (start or real_clock()).astimezone(UTC)
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> datetime:
        """Give its time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on; what falls due on the way happens now, in its order."""
        if seconds < 0:
            raise ValueError(f"seconds must not be negative: {seconds}")
        self._now += timedelta(seconds=seconds)
        for listener in self._listeners:
            listener()

    def on_advance(self, listener: Callable[[], None]) -> None:
        """Have a function called after each move."""
        self._listeners.append(listener)
