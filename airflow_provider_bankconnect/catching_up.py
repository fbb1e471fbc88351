"""One run of catch-up: histories are read, and the completed statements told to the webhook receiver in batches."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import tenacity

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.gate import Expectation, Row, newest_of_each_statement, why_not_considered
from airflow_provider_bankconnect.link_ids import BadId, LinkIds
from airflow_provider_bankconnect.receiver.client import EventsRefusedError, WebhookReceiverError, send_to_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from airflow_provider_bankconnect.hooks.histories import Histories, History

_log = logging.getLogger(__name__)

How: TypeAlias = Literal["record", "again"]

# BankConnect's own webhooks wait behind the events of one request, some milliseconds for each.
_MOST_EVENTS: Final = 100
# A quarter of what the webhook receiver takes.
_MOST_BYTES: Final = 2**20
# Seconds after which events are sent, however few they are.
_SEND_AFTER: Final = 5.0
# Seconds between two lines of the log about the progress.
_LOG_EVERY: Final = 30.0
# Seconds between two looks at the clock while no answer comes.
_PATIENCE: Final = 1.0
# The other links are not asked for before the first answer, or this many seconds.
_FIRST_SECONDS: Final = 5.0
# So many links in a row without an answer mean that BankConnect is down.
_MOST_UNANSWERED: Final = 50
# Errors that hold for all links if they come before any answer.
_OF_ALL: Final = (api.BankConnectCertificateError, api.BankConnectHostError)
# Seconds before a request is sent again that met a busy or restarting API server.
_PAUSES: Final = (1.0, 3.0, 9.0)
# Failed links that the log and the error name.
_MOST_NAMED: Final = 5


class CatchingUp:
    """Reads the ids of links, asks for their histories, and has their completed statements recorded.

    :param ids: of the links.
    :param histories: reads them.
    :param recorder: tells the webhook receiver.
    :param since: ignore older statements.
    """

    def __init__(self, ids: LinkIds, histories: Histories, recorder: Recorder, since: datetime | None) -> None:
        self._ids = ids
        self._histories = histories
        self._recorder = recorder
        self._since = since
        self._failed = recorder.failed
        self._unreadable: Exception | None = None
        # Links whose answer was taken, or whose id is invalid; of these, those that BankConnect does not know.
        self._done = self._unknown = self._answered = 0
        self._unanswered = 0
        self._is_stopping = False
        self._began = self._logged = time.monotonic()

    def run(self) -> dict[str, int]:
        """Catch up on all links, and return the numbers.

        :raises CancelledError: :meth:`stop` was called.
        :raises Exception: as :class:`~airflow_provider_bankconnect.operators.catch_up.BankConnectCatchUpOperator`; or
            the error of the iterator of ids.
        """
        try:
            for one in self._readable_ids():
                if isinstance(one, BadId):
                    self._done += 1
                    self._failed.add(one.where, ValueError(one.problem), "use the id")
                    self._take(0)
                    continue
                self._histories.ask(one)
                while self._histories.is_full or self._is_first():
                    self._take(_PATIENCE)
                while self._take(0):
                    pass
            while self._histories.open:
                self._take(_PATIENCE)
            self._recorder.send()
            self._check_readable()
        except BaseException as error:
            self._end_early(error)
            raise
        return self._numbers()

    def stop(self) -> None:
        """End early. A signal handler may call it."""
        self._is_stopping = self._recorder.is_stopping = True
        self._histories.wake()

    def _is_first(self) -> bool:
        """Return whether to wait for the first answer, so that wrong keys are sent once, and not many times at once."""
        return self._histories.open == 1 and not self._answered and time.monotonic() - self._began < _FIRST_SECONDS

    def _readable_ids(self) -> Iterator[str | BadId]:
        """Return the ids up to one that cannot be read: what was asked for by then is handled first."""
        ids = iter(self._ids)
        while True:
            try:
                one = next(ids)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - an iterator may raise anything
                self._unreadable = error
                return
            self._check_going_on()
            yield one

    def _check_readable(self) -> None:
        if self._unreadable is not None:
            raise self._unreadable

    def _check_going_on(self) -> None:
        if self._is_stopping:
            raise CancelledError("the task was told to end, so the rest of the links was not asked for")

    def _take(self, seconds: float) -> bool:
        """Handle an answer, if one comes within so many seconds, and what is due."""
        self._check_going_on()
        history = self._histories.take(seconds)
        if history is not None:
            self._handle(history)
        now = time.monotonic()
        if now >= self._recorder.send_at:
            self._recorder.send()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            _log.info("%s%s", self._so_far(), self._time_left(now))
        return history is not None

    def _handle(self, history: History) -> None:
        link_id, error = history.link_id, history.error
        is_of_all = isinstance(error, api.BankConnectAuthError) or (isinstance(error, _OF_ALL) and not self._answered)
        self._done += 1
        self._answered += 1
        self._unanswered = self._unanswered + 1 if isinstance(error, api.BankConnectTransientError) else 0
        if error is None:
            for row in completed(link_id, history.payloads, self._since):
                self._recorder.add(link_id, row)
        elif isinstance(error, api.BankConnectNotFoundError):
            self._unknown += 1
        elif isinstance(error, api.BankConnectError) and not is_of_all:
            self._failed.add(repr(link_id), error, "read the history")
        else:
            raise error
        if self._unanswered >= _MOST_UNANSWERED:
            problem = f"BankConnect has answered none of the last {_MOST_UNANSWERED} links"
            raise api.BankConnectError(f"{problem}, so the rest was not asked for: {error}") from error

    def _end_early(self, error: BaseException) -> None:
        """Record what BankConnect has answered, and log how far the task came."""
        self._histories.cancel()
        if not isinstance(error, WebhookReceiverError):
            try:
                while (history := self._histories.take_answered()) is not None:
                    if history.error is None:
                        self._handle(history)
                self._recorder.send()
            except WebhookReceiverError as lost:
                _log.warning("Could not record the last completed statements: %s", lost)
        _log.warning("Ended early: %s. The next run asks for all links again", self._so_far())

    def _so_far(self) -> str:
        of = ""
        if self._ids.expected is not None and self._ids.expected >= self._done:
            of = f" of {'' if self._ids.is_counted else 'about '}{self._ids.expected:,}"
        failed = f", {self._failed.count:,} failed" if self._failed.count else ""
        return f"{self._done:,}{of} links, {self._recorder.counts['recorded']:,} recorded{failed}"

    def _time_left(self, now: float) -> str:
        left = (self._ids.expected or 0) - self._done
        return f", {in_minutes(left * (now - self._began) / self._done)} left" if self._done and left > 0 else ""

    def _numbers(self) -> dict[str, int]:
        counts, failed = self._recorder.counts, self._failed
        numbers = {
            "links": self._done,
            "completed": counts["completed"],
            "recorded": counts["recorded"],
            "duplicates": counts["duplicate"],
        }
        unknown = f"; BankConnect does not know {self._unknown:,} of the links" if self._unknown else ""
        summary = "{links:,} links, {completed:,} completed: {recorded:,} recorded, {duplicates:,} duplicates"
        # Of all links, as when the ids are not those of this account.
        level = logging.WARNING if self._done and self._unknown == self._done else logging.INFO
        _log.log(level, "%s%s", summary.format(**numbers), unknown)
        lost = f"could not record {counts['failed']:,} events: see the API server's log" if counts["failed"] else ""
        if failed.count:
            problem = failed.problem(self._done) + (f"; and the webhook receiver {lost}" if lost else "")
            raise api.BankConnectError(problem) from failed.first[0][1]
        if lost:
            raise WebhookReceiverError(f"The webhook receiver {lost}")
        return numbers


class Recorder:
    """Has the webhook receiver record completed statements, many in one request.

    :param bankconnect_conn_id: the connection whose webhooks they are.
    :param how: ``record`` what started no run, or all ``again``.
    :param failed: the links whose events the webhook receiver refuses are added to it.
    """

    def __init__(self, bankconnect_conn_id: str, how: How, failed: Failed) -> None:
        self.failed = failed
        self.counts: Counter[str] = Counter()
        self.is_stopping = False
        self._conn_id = bankconnect_conn_id
        self._how = how
        self._events: list[tuple[str, dict[str, str | None]]] = []
        self._bytes = 0
        # When the events have to be sent, on the monotonic clock.
        self.send_at = math.inf

    def add(self, link_id: str, row: dict[str, str | None]) -> None:
        """Add a completed statement of a link.

        :raises WebhookReceiverError: as :meth:`send`.
        """
        self.counts["completed"] += 1
        self.send_at = min(self.send_at, time.monotonic() + _SEND_AFTER)
        self._events.append((link_id, row))
        self._bytes += len(json.dumps(row))
        if len(self._events) >= _MOST_EVENTS or self._bytes >= _MOST_BYTES:
            self.send()

    def send(self) -> None:
        """Send what was added.

        :raises WebhookReceiverError: the webhook receiver failed.
        """
        groups = [self._events] if self._events else []
        self._events, self._bytes, self.send_at = [], 0, math.inf
        while groups:
            events = groups.pop()
            try:
                self.counts.update(self._send(events))
            except EventsRefusedError as error:
                # One of them is invalid, and the others are not.
                if len(events) > 1:
                    middle = len(events) // 2
                    groups += [events[:middle], events[middle:]]
                else:
                    self.failed.add(repr(events[0][0]), error, "record all statements")
            except WebhookReceiverError:
                raise
            except BaseException:
                # They may have arrived: sent once more, they are duplicates, but not with again.
                self._events = [event for group in groups for event in group]
                self._events += events if self._how == "record" else []
                raise

    def _send(self, events: list[tuple[str, dict[str, str | None]]]) -> dict[str, int]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_try_again),
            stop=tenacity.stop_after_attempt(1 + len(_PAUSES)),
            wait=lambda state: (*_PAUSES, 0.0)[state.attempt_number - 1],
            sleep=self._sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        return retrying(send_to_receiver, self._conn_id, [row for _, row in events], self._how)

    def _may_try_again(self, error: BaseException) -> bool:
        # With again, a request that arrived though nobody answered must not be sent twice.
        is_passing = isinstance(error, WebhookReceiverError) and error.is_passing
        return is_passing and self._how != "again" and not self.is_stopping

    def _sleep(self, seconds: float) -> None:
        # In short steps: no signal ends a sleep.
        over = time.monotonic() + seconds
        while time.monotonic() < over and not self.is_stopping:
            time.sleep(_PATIENCE / 4)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0
    _log.warning("%s; trying again in %.0f s", error, pause)


class Failed:
    """The links that failed: how many, and the errors of the first ones."""

    def __init__(self) -> None:
        self.first: list[tuple[str, Exception]] = []
        self._where: set[str] = set()

    @property
    def count(self) -> int:
        """How many links have failed."""
        return len(self._where)

    def add(self, where: str, error: Exception, what: str) -> None:
        """Add a link, and log the first ones.

        :param what: what could not be done for it.
        """
        if where in self._where:
            return
        self._where.add(where)
        if len(self.first) < _MOST_NAMED:
            self.first.append((where, error))
            _log.warning("Could not %s of %s, continuing: %s", what, where, error)
        elif self.count == _MOST_NAMED + 1:
            _log.warning("More links fail. They are counted, and not named")

    def problem(self, links: int) -> str:
        """Return what the task fails with."""
        named = "; ".join(f"{where}: {error}" for where, error in self.first)
        more = f"; and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"Could not catch up on {self.count:,} of {links:,} links, first {named}{more}"


def completed(link_id: str, payloads: list[api.WebhookPayload], since: datetime | None) -> list[dict[str, str | None]]:
    """Return the statements of a link that are completed now, oldest first."""
    expectation = Expectation(link_id=link_id, since=since)
    considered = [row for row in payloads if why_not_considered(expectation, row) is None]
    current = newest_of_each_statement(considered)
    done = [row for row in current if row.progress.lower() == "completed" and row.entity_id]
    return [Row.of_payload(row).as_dict() for row in sorted(done, key=lambda row: row.date_time)]


def in_minutes(seconds: float) -> str:
    """Return a time in words, such as ``2 min``."""
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
