"""Values of metric tags."""

from __future__ import annotations

import re
from typing import Final

_REPLACED: Final = re.compile(r"[^A-Za-z0-9_.-]")
# With StatsD's tags in InfluxDB's style, Airflow drops a metric whose name and tags have more than 250 characters.
_LONGEST: Final = 128


def tag_value(value: str) -> str:
    """Return a tag's value in characters that every metrics backend of Airflow accepts.

    With StatsD's tags in InfluxDB's style, Airflow drops a metric if a tag has any other character.

    :returns: ``value`` with ``_`` for each character but ASCII letters, digits and ``_ . -``, and cut after 128
        characters.
    """
    return _REPLACED.sub("_", value)[:_LONGEST] or "_"
