"""Which open connections are used again: one set of rules for both hooks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# After a change in DNS the requests reach the new server at the latest this much later.
GREATEST_AGE: Final = 30 * 60.0
# No NAT and no load balancer forgets a connection that was idle for so short a time.
SURELY_KNOWN: Final = 5.0
# How long a connection that was idle for longer may be silent, as a part of the timeout, and in seconds.
_PATIENCE: Final = 0.25
_MOST_PATIENCE: Final = 10.0
_CAREFUL_SECONDS: Final = 3600.0


@dataclass(slots=True)
class Life:
    """When a connection was opened, and when it was used last, in seconds of a monotonic clock."""

    opened: float
    used: float


class KeptConnections:
    """The rules of one session. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._forgotten_at = -math.inf
        self._careful_until = -math.inf

    def forget(self, now: float) -> None:
        """Use no connection again that is open now."""
        self._forgotten_at = now

    def note_silence(self, now: float) -> None:
        """Note that an idle connection was silent: for an hour only those are used again that were hardly idle."""
        self._careful_until = now + _CAREFUL_SECONDS

    def may_reuse(self, life: Life, now: float) -> bool:
        """Return whether a connection may carry one more request."""
        is_old = life.opened <= self._forgotten_at or now - life.opened >= GREATEST_AGE
        return not is_old and (now >= self._careful_until or now - life.used <= SURELY_KNOWN)

    @staticmethod
    def patience(life: Life, now: float, timeout: float) -> float | None:
        """Return how many seconds a kept connection may be silent before the request is sent again on a new one.

        Something on the way may have forgotten a connection that was idle. None: it was hardly idle.
        """
        return None if now - life.used <= SURELY_KNOWN else min(timeout * _PATIENCE, _MOST_PATIENCE)
