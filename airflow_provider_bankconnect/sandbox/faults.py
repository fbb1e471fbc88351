"""Chooses the faults of each request and webhook: by call, time, count and seeded probability."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from .models import ENDINGS, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .clock import Clock

# The sandbox's time, then the monotonic one: a simulated clock may show the same time for several moments.
Moment: TypeAlias = tuple[datetime, float]


def moment(clock: Clock) -> Moment:
    """Return the present moment; a later one is greater."""
    return clock(), time.monotonic()


@dataclass
class Connection:
    """When a connection was made, and the time of its last answer."""

    made: Moment
    answered: datetime | None = None


@dataclass
class _Active:
    fault: Fault
    added: Moment
    random: random.Random
    used: int = 0

    @property
    def begins(self) -> Moment:
        when, order = self.added
        return when + timedelta(seconds=self.fault.after), order


class Faults:
    """The faults that are set, oldest first. Safe to use from any thread.

    Each fault has its own seeded random generator, so that other faults do not change its choices.
    """

    def __init__(self, clock: Clock, seed: int, faults: Iterable[Fault] = ()) -> None:
        self._clock = clock
        self._seed = seed
        self._lock = threading.Lock()
        self._active: list[_Active] = []
        self._count = 0
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Add a fault; its seconds count from now."""
        with self._lock:
            self._active.append(_Active(fault, moment(self._clock), random.Random(f"{self._seed}/fault/{self._count}")))
            self._count += 1

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._active.clear()

    def now(self) -> list[Fault]:
        """List the faults that are not used up."""
        with self._lock:
            return [one.fault for one in self._active if not _used_up(one)]

    def for_request(self, call: str, connection: Connection | None = None) -> list[Fault]:
        """Choose the faults of one answer: any number of changes, and at most one that replaces it, the oldest.

        Without a connection, none of the faults that depend on its age or idle time is chosen.
        """
        if not self._active:
            return []
        return self._choose(
            [
                one
                for one in self._active
                if not one.fault.is_for_webhooks and one.fault.call in {"*", call} and self._concerns(one, connection)
            ]
        )

    def frozen_at(self, faults: Iterable[Fault]) -> datetime | None:
        """Return when the oldest ``switch`` among these faults began, or None."""
        chosen = {id(fault) for fault in faults if fault.kind == "switch"}
        if not chosen:
            return None
        with self._lock:
            return min((one.begins[0] for one in self._active if id(one.fault) in chosen), default=None)

    def for_webhook(self, *, forged: bool) -> list[Fault]:
        """Choose the faults of one webhook; a forged one is sent only if a ``forge`` is among them."""
        if not self._active:
            return []
        return self._choose(
            [one for one in self._active if one.fault.is_for_webhooks and (one.fault.kind == "forge") == forged]
        )

    def _concerns(self, one: _Active, connection: Connection | None) -> bool:
        fault = one.fault
        if fault.is_for_old_connections and (connection is None or connection.made > one.begins):
            return False
        if fault.kind != "forget":
            return True
        # A connection without an answer is new.
        if connection is None or connection.answered is None:
            return False
        return (self._clock() - connection.answered).total_seconds() >= fault.seconds

    def _choose(self, candidates: list[_Active]) -> list[Fault]:
        chosen: list[Fault] = []
        has_ending = False
        with self._lock:
            for one in candidates:
                ending = one.fault.kind in ENDINGS
                if _used_up(one) or not self._is_due(one) or (ending and has_ending):
                    continue
                if one.fault.probability < 1 and one.random.random() >= one.fault.probability:
                    continue
                one.used += 1
                chosen.append(one.fault)
                has_ending = has_ending or ending
        return chosen

    def _is_due(self, one: _Active) -> bool:
        seconds = (self._clock() - one.added[0]).total_seconds()
        return one.fault.after <= seconds and (one.fault.until is None or seconds < one.fault.until)


def _used_up(one: _Active) -> bool:
    return one.fault.times is not None and one.used >= one.fault.times
