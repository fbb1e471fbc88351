"""Chooses the faults of each request and webhook: by call, time, count and seeded probability."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .models import ENDINGS, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .clock import Clock


@dataclass
class _Active:
    fault: Fault
    since: datetime
    random: random.Random
    used: int = 0


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
            self._active.append(_Active(fault, self._clock(), random.Random(f"{self._seed}/fault/{self._count}")))
            self._count += 1

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._active.clear()

    def now(self) -> list[Fault]:
        """List the faults that are not used up."""
        with self._lock:
            return [one.fault for one in self._active if not _used_up(one)]

    def for_request(self, call: str) -> list[Fault]:
        """Choose the faults of one answer: any number of changes, and at most one that replaces it, the oldest."""
        if not self._active:
            return []
        return self._choose(
            [one for one in self._active if not one.fault.is_for_webhooks and one.fault.call in {"*", call}]
        )

    def for_webhook(self, *, forged: bool) -> list[Fault]:
        """Choose the faults of one webhook; a forged one is sent only if a ``forge`` is among them."""
        if not self._active:
            return []
        return self._choose(
            [one for one in self._active if one.fault.is_for_webhooks and (one.fault.kind == "forge") == forged]
        )

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
        seconds = (self._clock() - one.since).total_seconds()
        return one.fault.after <= seconds and (one.fault.until is None or seconds < one.fault.until)


def _used_up(one: _Active) -> bool:
    return one.fault.times is not None and one.used >= one.fault.times
