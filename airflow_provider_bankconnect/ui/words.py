"""Numbers, times and customers in words, for the page. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))
_FROM: Final = 2


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
    for size, unit in _UNITS:
        if seconds >= _FROM * size or (unit == "min" and seconds >= size):
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
