"""The rules of a wait: when to poke next, when to give up, and what to log.

Pure: no I/O, no clock, no Airflow. A driver (a sensor on a worker, a trigger in an event loop) executes the action that
:meth:`Wait.next` returns, reports what it learned, and asks for the next action, until that is an :class:`End`.

- **A poke** happens every ``poke_interval`` seconds, and never less than one second after the answer to the last one.
- **A 429 or another error** does not end a wait. The next poke comes after the longest of ``poke_interval``, the
  ``Retry-After`` that BankConnect sent (an hour at most), and a random back-off of up to 1, 2, 4 ... 60 seconds. Only
  wrong keys, a wrong ``timezone``, a link with too many entities and, at the first poke, a certificate that does not
  verify or a host that does not resolve are final. Two other errors are final when they come again after five minutes
  without an answer: a 403 that is not of BankConnect's form, and a connection that the triggerer cannot read.
- **A webhook event** brings the next poke forward: to now, but never within a second of the last answer or within a
  ``Retry-After``. While the verdict is pending, three more pokes follow soon. After an error they follow the back-off
  instead of ``poke_interval``. An event decides nothing.
- **At the deadline** the wait pokes one last time; if that does not end it, it times out. If BankConnect asked for a
  pause of at most ten minutes that is not over, the last poke is skipped. A longer pause does not skip it.
- **A 404** means "nothing there yet". After five minutes of 404, and at the deadline, a test call finds out whether the
  path in the connection's host is wrong.
- **A new connection** is opened for a poke after three errors in a row, after five minutes of 404, and for the last
  poke: the kept one may lead to a server that is no longer BankConnect's.
- **Small answers**: a gate on ``transactions`` reads ``identity`` while that says "not yet". The last poke, and all
  pokes after an answer that cannot be trusted, read ``transactions`` instead.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.arguments import parse_moment
from airflow_provider_bankconnect.expectation import check_on_failed
from airflow_provider_bankconnect.gate import OnFailed, Row, Verdict
from airflow_provider_bankconnect.pause import LONGEST_LAST_PAUSE, NO_PAUSE, STREAK, Pause
from airflow_provider_bankconnect.words import clock, in_short, not_yet

if TYPE_CHECKING:
    from typing import Required

    from airflow_provider_bankconnect.records import Gate

# Seconds between an answer and the next poke, at least.
MIN_INTERVAL: Final = 1.0
# The last poke may take this many seconds; Airflow's own deferral timeout is two minutes after the deadline.
LAST_POKE_SECONDS: Final = 60.0
# After a restart of the triggerer the overdue pokes of all waits are spread over this many seconds.
SPREAD_SECONDS: Final = 60.0
# An event wakes no wait in its first seconds in the triggerer: a task that returns before the scheduler has seen it
# defer fails with "state mismatch" (seen on Airflow 3.2.2).
SETTLING_SECONDS: Final = 5.0
# An event may arrive before BankConnect's own record shows the statement: poke again these seconds after each answer.
ECHO_SECONDS: Final = (2.0, 5.0, 20.0)
# 404 for this long is taken for "nothing there yet"; then the test call is made.
NOT_FOUND_PATIENCE: Final = timedelta(minutes=5)
# An error that may be final is final if it comes again after this time.
REPEAT_PATIENCE: Final = timedelta(minutes=5)
WRONG_PATH: Final = "even the test call gets HTTP 404: check the path in the connection's host"
_LONGEST_INTERVAL: Final = 1e9
_FINAL_IF_REPEATED: Final = (api.BankConnectForbiddenError, api.BankConnectSettingsError)


@dataclass(frozen=True)
class Poke:
    """Poke at ``at``. Cancel the poke at ``until`` if the driver can, and ask for the next action."""

    at: datetime
    until: datetime
    is_last: bool = False


@dataclass(frozen=True)
class TestCall:
    """Make the test call now, as a :class:`Poke`, and report its outcome with :meth:`Wait.tested`."""

    until: datetime
    is_last: bool = False
    __test__ = False  # for pytest, which takes the name for a test's


@dataclass(frozen=True)
class End:
    """The wait is over: ``status`` and ``because`` say how and why, ``error`` is the final error of ``"error"``."""

    status: Literal["passed", "failed", "timeout", "error"]
    because: str
    rows: tuple[Row, ...] = ()
    error: Exception | None = None


Action: TypeAlias = Poke | TestCall | End
# A line for the task's log: its level, and its text.
Line: TypeAlias = tuple[Literal["info", "warning"], str]


class WaitArguments(TypedDict, total=False):
    """A wait as an argument of a trigger. Times are aware, or ISO 8601 text."""

    deadline: Required[datetime | str]  # when the wait ends; absolute: a restarted triggerer keeps it
    poke_interval: float  # seconds between two pokes; never under one
    exponential_backoff: bool  # double the time between two pokes each time
    max_wait: float | None  # maximum seconds between two pokes
    on_failed: OnFailed  # with "wait" a failed verdict does not end the wait
    silent_fail: bool  # continue after errors that are final otherwise
    started: datetime | str  # when the wait began, on the worker
    next_poke: datetime | str  # when to poke next; now if left out
    paused: float  # seconds of the last pause that BankConnect asked for
    paused_until: datetime | str  # when that pause is over
    pokes: int  # how often the worker has poked
    seen: str  # the result of that, in words without customer data
    in_full: bool  # whether the small answers are not used any more
    logged: int | None  # 16-bit checksum of the last "Not yet" line, so that it is not logged again


class Wait:
    """One wait: its pace, and how far it has come.

    Every ``now`` is an aware time that never goes back; every ``dice`` is a random number from [0, 1).

    :param gate: what is waited for.
    :param now: the present time.
    :param arguments: the pace, and the state of a wait that continues.
    :param is_new: whether the next poke is the first of the whole wait.
    :param forgets: whether each poke is a process of its own, which does not know of a pause before it.
    """

    # Thousands of them are open at once, and each would have a dict of its own.
    __slots__ = (  # noqa: SIM905 - as a list it is twice as long
        "gate deadline poke_interval exponential_backoff max_wait on_failed silent_fail started pokes seen _is_new "
        "_forgets _is_in_full _next_poke _pause _shared_pause _short_pause _rested _settled _paced _is_early _echoes "
        "_errors _last_error _not_found_since _doubtful_since _is_tested _is_path_wrong _is_in_flight "
        "_is_last_poke_made _is_small _end _verdict _logged _lines"
    ).split()

    def __init__(
        self, gate: Gate, now: datetime, arguments: WaitArguments, *, is_new: bool = True, forgets: bool = False
    ) -> None:
        self.gate = gate
        self.deadline = parse_moment(arguments["deadline"])
        self.poke_interval = arguments.get("poke_interval", 60.0)
        self.exponential_backoff = arguments.get("exponential_backoff", False)
        self.max_wait = arguments.get("max_wait")
        self.on_failed = check_on_failed(arguments.get("on_failed", "fail"))
        self.silent_fail = arguments.get("silent_fail", False)
        self.started = parse_moment(arguments.get("started") or now)
        self.pokes = arguments.get("pokes", 0)
        self.seen = arguments.get("seen", "no answer yet")
        self._is_new, self._forgets, self._is_in_full = is_new, forgets, arguments.get("in_full", False)
        self._next_poke = parse_moment(arguments.get("next_poke") or now)
        self._pause = Pause(arguments.get("paused", 0.0), parse_moment(arguments.get("paused_until") or NO_PAUSE.until))
        self._shared_pause = self._short_pause = NO_PAUSE
        self._rested, self._settled = NO_PAUSE.until, now
        # Pokes that an event made earlier do not count for exponential_backoff: events must not lengthen its pauses.
        self._paced = self.pokes
        self._is_early, self._echoes = False, 0
        self._errors, self._last_error = 0, ""
        self._not_found_since: datetime | None = None
        self._doubtful_since: datetime | None = None
        self._is_tested = self._is_path_wrong = False
        self._is_in_flight = self._is_last_poke_made = self._is_small = False
        self._end: End | None = None
        # The hash of the last verdict: its rows may be thousands, and the waits too.
        self._verdict: int | None = None
        self._logged = arguments.get("logged")
        self._lines: list[Line] = []

    def arguments(self) -> dict[str, Any]:
        """Return the wait as an argument of a trigger: plain values without customer data."""
        return {
            "deadline": self.deadline.isoformat(),
            "poke_interval": self.poke_interval,
            "exponential_backoff": self.exponential_backoff,
            "max_wait": self.max_wait,
            "on_failed": self.on_failed,
            "silent_fail": self.silent_fail,
            "started": self.started.isoformat(),
            "next_poke": self._next_poke.isoformat(),
            "paused": self._pause.seconds,
            "paused_until": self._pause.until.isoformat(),
            "pokes": self.pokes,
            # Not the words of the verdict: Airflow keeps this in its database, and they may be customer data.
            "seen": self._last_error or (self.seen if self._verdict is None else "pending at the first poke"),
            "in_full": self._is_in_full,
            "logged": self._logged,
        }

    @property
    def question(self) -> Gate:
        """What the next poke asks for: the gate, in full if its small answers are not to be used."""
        return self.gate.in_full() if self._is_in_full or self._is_last_poke_made else self.gate

    def needs_new_connection(self, now: datetime) -> bool:
        """Return whether the next request must not use a connection that is kept open."""
        is_lasting = self._not_found_since is not None and now - self._not_found_since >= NOT_FOUND_PATIENCE
        return self._errors >= STREAK or is_lasting or now >= self.deadline

    def resume(self, now: datetime, dice: float) -> None:
        """Continue a deferred wait in a triggerer: spread a poke that is long overdue, and settle before events."""
        if (now - self._next_poke).total_seconds() > MIN_INTERVAL:
            self._next_poke = now + timedelta(seconds=dice * min(self.poke_interval, SPREAD_SECONDS))
        if self.pokes:
            self._settled = now + timedelta(seconds=SETTLING_SECONDS)

    def reschedule(self, now: datetime) -> None:
        """Continue a rescheduled wait in a new process: estimate from the time that passed how often it has poked."""
        passed = max((now - self.started).total_seconds(), 0.0)
        self._paced = int(math.log2(passed / max(self.poke_interval, 0.001) + 1))

    def next(self, now: datetime) -> Action:
        """Return the next action. A :class:`Poke` in the future means: wait until then, or until an event."""
        self._is_in_flight = False
        if self._end is not None:
            return self._end
        if self._wants_test(now):
            is_last = now >= self.deadline
            return TestCall(now + timedelta(seconds=LAST_POKE_SECONDS) if is_last else self.deadline, is_last=is_last)
        if now < self.deadline:
            # No poke in the last second before the deadline: the last one could not follow in time.
            if self._next_poke <= self.deadline - timedelta(seconds=MIN_INTERVAL):
                return Poke(self._next_poke, self.deadline)
            return self._last_poke()
        if not self._is_last_poke_made and not self._is_last_poke_paused(now):
            return self._last_poke()
        because = f"{WRONG_PATH}; {self.seen}" if self._is_path_wrong else self.seen
        if self._errors:
            plural = "s" if self._errors > 1 else ""
            because = f"{because}; then {self._errors} error{plural} in a row, the last: {self._last_error}"
        if (pause := self._longest_pause()).until > now:
            because = f"{self._held(pause, now)}. Before that: {because}"
        self._end = End("timeout", because)
        return self._end

    def begin(self, now: datetime) -> None:
        """Take note that a poke begins."""
        self.pokes += 1
        self._paced += not self._is_early
        self._is_in_flight = True
        self._is_last_poke_made = now >= self.deadline
        question = self.question
        self._is_small = question.in_full() is not question

    def answered(self, rows: Any, now: datetime, dice: float) -> None:  # noqa: ANN401 - each gate has its own
        """Judge an answer to a poke, or an answer that another wait got, and take note of the verdict.

        :raises BankConnectTimezoneError: a row is in the future.
        """
        verdict = self.gate.judge(rows, now)
        self.judged(verdict, now, dice)
        distrust = getattr(rows, "distrust", "")
        if distrust and not self._is_in_full and self._end is None:
            self._is_in_full = True
            self._log("info", f"Each further check reads transactions/ instead of the smaller identity/: {distrust}")

    def judged(self, verdict: Verdict, now: datetime, dice: float) -> None:
        """Take note of a verdict."""
        self._not_found_since, self._is_tested, self._is_path_wrong = None, False, False
        self._doubtful_since = None
        self._see(verdict, now, dice)

    def failed(self, error: Exception, now: datetime, dice: float) -> None:
        """Take note of a poke without a verdict, and of why."""
        if isinstance(error, api.BankConnectNotFoundError):
            self._not_found_since, self._doubtful_since = self._not_found_since or now, None
            self._see(Verdict("pending", (), str(error)), now, dice)
            return
        if self._is_final(error, now) and not self.silent_fail:
            self._end = End("error", str(error), error=error)
            return
        if isinstance(error, _FINAL_IF_REPEATED):
            self._doubtful_since = self._doubtful_since or now
        self._errors += 1
        self._last_error = f"{type(error).__name__}: {error}"
        asked = (error.retry_after or 0.0) if isinstance(error, api.BankConnectTransientError) else 0.0
        if asked:
            self._pause = Pause(asked, now + timedelta(seconds=asked))
        self._schedule(now, dice, backoff=api.backoff(self._errors, jitter=dice))
        if self._errors == 1 or asked > api.MAX_BACKOFF:
            self._log("warning", f"The wait continues after an error: {self._last_error}; {self._next_check(now)}")

    def notified(self, now: datetime) -> None:
        """Take note of a webhook event for the customer: poke as soon as the pause and the pace allow."""
        self._echoes = len(ECHO_SECONDS)
        soon = max(self._rested, self._pause.until, self._settled, now)
        if soon < self._next_poke:
            self._next_poke, self._is_early = soon, True

    def paused(self, pause: Pause, now: datetime) -> None:
        """Take note of a pause that BankConnect asked of any wait of the connection: it holds for all."""
        is_new = (pause.until - self._shared_pause.until).total_seconds() > MIN_INTERVAL
        self._shared_pause = max(self._shared_pause, pause, key=_end_of)
        if pause.seconds <= LONGEST_LAST_PAUSE:
            self._short_pause = max(self._short_pause, pause, key=_end_of)
        if is_new and pause.seconds > api.MAX_BACKOFF:
            self._log("warning", self._held(pause, now))

    def tested(self, error: api.BankConnectError | None) -> None:
        """Take note of the outcome of the test call."""
        self._is_tested = True
        if isinstance(error, api.BankConnectNotFoundError):
            self._is_path_wrong = True
            self._log("warning", f"BankConnect answers 404; {WRONG_PATH}")
        elif error is not None:
            self._log("info", f"The test call found out nothing: {error}")

    def take_lines(self) -> list[Line]:
        """Return the lines to log since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def _see(self, verdict: Verdict, now: datetime, dice: float) -> None:
        if self._errors:
            self._log("info", f"BankConnect answers again, after {self._errors} errors in a row")
        self._errors, self._last_error = 0, ""
        if verdict.ends_wait(self.on_failed):
            self._end = End("passed" if verdict.state == "passed" else "failed", verdict.because, verdict.rows)
            return
        self._schedule(now, dice)
        if hash(verdict) == self._verdict:
            return
        self._verdict = hash(verdict)
        self.seen = in_short(self.gate, verdict)
        text = not_yet(self.gate, verdict, self.on_failed, now)
        checksum = zlib.crc32(text.encode()) & 0xFFFF
        if checksum != self._logged:
            self._log("info", f"Not yet: {text}; {self._next_check(now)}")
        self._logged = checksum

    def _schedule(self, now: datetime, dice: float, *, backoff: float | None = None) -> None:
        """Set the time of the next poke. A poke that ends after the deadline was the last one, if it was in full."""
        is_late = self._is_in_flight and now >= self.deadline and not self._is_small
        self._is_last_poke_made = self._is_last_poke_made or is_late
        self._rested = now + timedelta(seconds=MIN_INTERVAL)
        self._is_early = False
        interval = self._interval(dice)
        if self._echoes:
            echo = ECHO_SECONDS[-self._echoes]
            self._is_early = echo < interval
            interval = min(interval, max(echo, MIN_INTERVAL))
            # An error tells nothing about the statement: its poke is made again.
            self._echoes -= backoff is None
        soonest = max(self._rested, self._pause.until)
        self._next_poke = max(soonest, now + timedelta(seconds=max(backoff or 0.0, interval)))

    def _interval(self, dice: float) -> float:
        """Return the seconds between two pokes; with ``exponential_backoff`` doubled each time, with jitter."""
        interval = self.poke_interval
        if self.exponential_backoff:
            interval = max(interval * 2.0 ** (min(max(self._paced, 1), 30) - 1), MIN_INTERVAL) * (1 + dice)
        if self.max_wait is not None:
            interval = min(interval, self.max_wait)
        return min(max(interval, MIN_INTERVAL), _LONGEST_INTERVAL)

    def _last_poke(self) -> Poke:
        at = max(self.deadline, self._rested)
        return Poke(at, at + timedelta(seconds=LAST_POKE_SECONDS), is_last=True)

    def _longest_pause(self) -> Pause:
        return max(self._pause, self._shared_pause, key=_end_of)

    def _held(self, pause: Pause, now: datetime) -> str:
        who = "all waits of the connection are" if self._shared_pause.until > now else "this wait is"
        asked = f"BankConnect asked for a pause of {pause.seconds:.0f} s (Retry-After)"
        return f"{asked}: {who} held until {clock(pause.until, now)}"

    def _is_last_poke_paused(self, now: datetime) -> bool:
        return any(
            pause.seconds <= LONGEST_LAST_PAUSE and now < pause.until for pause in (self._pause, self._short_pause)
        )

    def _wants_test(self, now: datetime) -> bool:
        if self._not_found_since is None or self._is_tested:
            return False
        if now >= self.deadline:
            return self._is_last_poke_made and now >= max(self._pause.until, self._shared_pause.until)
        return now - self._not_found_since >= NOT_FOUND_PATIENCE

    def _is_final(self, error: Exception, now: datetime) -> bool:
        """Return whether retrying cannot help."""
        if isinstance(error, _FINAL_IF_REPEATED) and self._doubtful_since is not None:
            return now - self._doubtful_since >= REPEAT_PATIENCE
        is_first = self._is_new and self.pokes <= 1
        always = api.BankConnectAuthError | api.BankConnectTimezoneError | api.BankConnectLimitError
        at_first = api.BankConnectCertificateError | api.BankConnectHostError
        return isinstance(error, always) or (is_first and isinstance(error, at_first))

    def _next_check(self, now: datetime) -> str:
        is_due = self._next_poke <= self.deadline - timedelta(seconds=MIN_INTERVAL)
        is_left_out = self._is_last_poke_paused(self.deadline) and not self._forgets
        if not is_due and (self._is_last_poke_made or is_left_out):
            return "no further check before the timeout"
        return f"next check {clock(min(self._next_poke, self.deadline), now)}"

    def _log(self, level: Literal["info", "warning"], text: str) -> None:
        self._lines.append((level, text))


def _end_of(pause: Pause) -> datetime:
    return pause.until
