"""Numbers, times and customers in words, for the page. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

# From how many seconds on a unit is used, its seconds, and its name.
_UNITS: Final = ((2 * 86_400, 86_400, "d"), (2 * 3600, 3600, "h"), (60, 60, "min"))


def count_of(number: int, name: str) -> str:
    """Return a number with its noun: ``1 run``, ``2,000 runs``."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago something was, or in how long it is: ``5 min ago``, ``in 3 h``."""
    seconds = (now - moment).total_seconds()
    text = span(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def span(seconds: float) -> str:
    """Return a length of time in its largest fitting unit: ``45 s``, ``90 min``, ``26 h``, ``3 d``."""
    for least, size, unit in _UNITS:
        if seconds >= least:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
