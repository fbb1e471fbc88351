"""The pauses between pokes that BankConnect asks for, and those that errors in a row cause. Pure, as :mod:`.wait`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

from airflow_provider_bankconnect import api

# This many errors in a row, of any waits, hold back all waits of a connection; of one wait, they have it use a new
# network connection.
STREAK: Final = 3


class Pause(NamedTuple):
    """A pause that BankConnect asked for: how many ``seconds``, and ``until`` when."""

    seconds: float
    until: datetime


# Only a pause of at most this many seconds keeps the last poke of a wait from being made.
LONGEST_LAST_PAUSE: Final = 600.0
NO_PAUSE: Final = Pause(0.0, datetime(1970, 1, 1, tzinfo=UTC))


class SharedPause:
    """The pause of all waits of one connection in a process, on a clock of seconds.

    BankConnect's ``Retry-After`` to one wait holds for all. Without one, errors in a row hold all back: an error of one
    answer is one wait's, three in a row of any waits are everybody's.
    """

    def __init__(self) -> None:
        self.resume_at = 0.0
        # The seconds and the end of pauses that BankConnect asked for: of the one that ends last, and of the one that
        # ends last of those that keep last pokes from being made. Our own back-off is none.
        self.asked: list[tuple[float, float]] = []
        self._errors = 0

    def succeeded(self) -> None:
        """Take note of an answer."""
        self._errors = 0

    def failed(self, retry_after: float | None, *, sent: float, now: float, dice: float) -> None:
        """Take note of a transient error of a poke that was sent at ``sent``."""
        # Pokes that were in flight together fail together: that is one failure.
        is_new = sent >= self.resume_at
        self._errors += is_new
        failures = self._errors - STREAK + 1
        if retry_after is None and (failures < 1 or not is_new):
            return
        if retry_after is not None:
            pauses = [*self.asked, (retry_after, now + retry_after)]
            short = [one for one in pauses if one[0] <= LONGEST_LAST_PAUSE]
            self.asked = [max(some, key=lambda one: one[1]) for some in (pauses, short) if some]
        pause = api.backoff(max(failures, 1), jitter=dice, retry_after=retry_after)
        self.resume_at = max(self.resume_at, now + pause)
