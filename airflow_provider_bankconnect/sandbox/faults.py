"""Which fault meets which request or webhook: by call, time, count and a seeded roll of the dice."""

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
class _Set:
    fault: Fault
    since: datetime
    dice: random.Random
    used: int = 0


class Faults:
    """The faults that are set, in the order in which they were. Safe to use from any thread.

    Each has dice of its own, seeded, so that another fault beside it does not change its day.
    """

    def __init__(self, clock: Clock, seed: int, faults: Iterable[Fault] = ()) -> None:
        self._clock = clock
        self._seed = seed
        self._lock = threading.Lock()
        self._set: list[_Set] = []
        self._ever = 0
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Set a fault; its seconds count from now."""
        with self._lock:
            self._set.append(_Set(fault, self._clock(), random.Random(f"{self._seed}/fault/{self._ever}")))
            self._ever += 1

    def clear(self) -> None:
        """Behave again."""
        with self._lock:
            self._set.clear()

    def now(self) -> list[Fault]:
        """List what is set and not used up."""
        with self._lock:
            return [one.fault for one in self._set if not _used_up(one)]

    def for_request(self, call: str) -> list[Fault]:
        """Choose what befalls one answer: any number of changes, and at most one ending: the first."""
        if not self._set:
            return []
        return self._choose(
            [one for one in self._set if not one.fault.is_for_webhooks and one.fault.call in {"*", call}]
        )

    def for_webhook(self, *, forged: bool) -> list[Fault]:
        """Choose what befalls one webhook; a forged one is sent only where a ``forge`` says so."""
        if not self._set:
            return []
        return self._choose(
            [one for one in self._set if one.fault.is_for_webhooks and (one.fault.kind == "forge") == forged]
        )

    def _choose(self, candidates: list[_Set]) -> list[Fault]:
        chosen: list[Fault] = []
        ended = False
        with self._lock:
            for one in candidates:
                ending = one.fault.kind in ENDINGS
                if _used_up(one) or not self._in_its_time(one) or (ending and ended):
                    continue
                if one.fault.probability < 1 and one.dice.random() >= one.fault.probability:
                    continue
                one.used += 1
                chosen.append(one.fault)
                ended = ended or ending
        return chosen

    def _in_its_time(self, one: _Set) -> bool:
        seconds = (self._clock() - one.since).total_seconds()
        return one.fault.after <= seconds and (one.fault.until is None or seconds < one.fault.until)


def _used_up(one: _Set) -> bool:
    return one.fault.times is not None and one.used >= one.fault.times
