"""What ``make prove`` and the tests do with a seed: prove its schedule, make a failing one small, find out a mutant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from met import met
from named_mutants import planted
from schedules import draw, smaller
from simulation import play
from theorem import BrokenError, check, check_alike, promised

if TYPE_CHECKING:
    from collections import Counter

    from schedules import Schedule

KILLED_WITHIN = 500


def prove(schedule: Schedule) -> Counter[str]:
    """Play a schedule in both modes, and check the theorem; gives what its waits have met.

    :raises BrokenError: it does not hold.
    """
    deferred, poke = play(schedule), play(schedule, "poke")
    check(deferred)
    check(poke)
    found = met(deferred) + met(poke)
    found["schedules"] += 1
    found["waits, alone and in a triggerer"] += len(deferred.waits) + 1
    found["verdicts, each compared with the second reading"] += sum(
        len(told.looks) for trace in (deferred, poke) for told in trace.waits
    )
    found["waits whose end the bound promised, before the deadline"] += sum(
        bool(promised(trace, told)) for trace in (deferred, poke) for told in trace.waits
    )
    found["waits whose outcome the records alone decide: the same in both modes"] += check_alike(deferred, poke)
    return found


def smallest(schedule: Schedule) -> tuple[Schedule, str]:
    """Leave out of a schedule that breaks the theorem what is not needed for it; ``""`` where it breaks nothing."""
    said = ""
    candidates = iter((schedule,))
    while (candidate := next(candidates, None)) is not None:
        try:
            prove(candidate)
        except BrokenError as error:
            schedule, said, candidates = candidate, str(error), smaller(candidate)
    return schedule, said


def kill(name: str) -> tuple[str, int, str]:
    """Find how many schedules it takes to notice a mutant, and by what; none is 0."""
    with planted(name):
        for seed in range(KILLED_WITHIN):
            try:
                check(play(draw(seed)))
            except BrokenError as error:
                return name, seed + 1, str(error)
    return name, 0, ""
