"""What ``make prove`` and the tests do with a seed: prove its schedule, shrink a failing one, kill a mutant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from happened import happened
from named_mutants import planted
from schedules import draw, smaller
from simulation import play
from theorem import BrokenError, check, check_alike

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from schedules import Schedule

KILLED_WITHIN = 500


def prove(schedule: Schedule) -> Counter[str]:
    """Play a schedule in both modes, and check the theorem. Return the counts of what happened.

    :raises BrokenError: the theorem does not hold.
    """
    deferred, poke = play(schedule), play(schedule, "poke")
    bounded = check(deferred) + check(poke)
    found = happened(deferred) + happened(poke)
    found["schedules"] += 1
    found["waits, alone and in a triggerer"] += len(deferred.waits) + 1
    found["verdicts, each compared with the second implementation"] += sum(
        len(observed.pokes) for trace in (deferred, poke) for observed in trace.waits
    )
    found["waits that the bound said would end before the deadline"] += bounded
    found["waits whose outcome the records alone decide, the same in both modes"] += check_alike(deferred, poke)
    return found


def smallest(schedule: Schedule) -> tuple[Schedule, str]:
    """Return the smallest schedule that still breaks the theorem, and how; ``""`` where it breaks nothing."""
    broken = ""
    candidates = iter((schedule,))
    while (candidate := next(candidates, None)) is not None:
        try:
            prove(candidate)
        except BrokenError as error:
            schedule, broken, candidates = candidate, str(error), smaller(candidate)
    return schedule, broken


def kill(name: str, count: Callable[[], None] = lambda: None) -> tuple[str, int, str]:
    """Return how many schedules it takes to notice a mutant, and what is broken; 0 for none. ``count`` each of them."""
    with planted(name):
        for seed in range(KILLED_WITHIN):
            count()
            try:
                check(play(draw(seed)))
            except BrokenError as error:
                return name, seed + 1, str(error)
    return name, 0, ""
