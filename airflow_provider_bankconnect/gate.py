"""The verdict: what is expected + what BankConnect's records say + the time -> pending, passed or failed.

Pure functions on values. No order of rows and no repetition of a row changes a verdict.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, cast, get_args

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload, check_id
from airflow_provider_bankconnect.arguments import parse_count, parse_grace, parse_ids, parse_since, plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo
    from typing import Self

    from airflow_provider_bankconnect.api import Analysis

State: TypeAlias = Literal["pending", "passed", "failed"]
# What a failed verdict means: the task fails · is skipped · the wait continues · the gate passes with the failed rows.
OnFailed: TypeAlias = Literal["fail", "skip", "wait", "pass"]
# At the same second, completed counts before failed, and failed before anything else.
_RANK: Final = {"completed": 2, "failed": 1}
MAX_CLOCK_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class Expectation:
    """What a wait is for.

    :param link_id: rows of another link do not count.
    :param entity_id: rows of another entity do not count; in progress: the entity.
    :param statement_id: only these statements count, and all of them are expected.
    :param since: older rows do not count; rows of the same second do. Aware.
    :param expected_statements: how many statements of one entity are expected.
    :param failure_grace: how old the newest failure must be before the verdict of a history is failed.
    :raises ValueError: an argument is invalid; the message names it.
    """

    link_id: str | None = None
    entity_id: str | None = None
    statement_id: tuple[str, ...] | None = None
    since: datetime | None = None
    expected_statements: int = 1
    failure_grace: timedelta = timedelta(minutes=30)

    def __post_init__(self) -> None:
        if self.link_id is not None:
            check_id("link_id", self.link_id)
        if self.entity_id is not None:
            check_id("entity_id", self.entity_id)
        if self.statement_id is not None:
            if not self.statement_id:
                raise ValueError("statement_id must not be an empty list: leave it out to wait for any statement")
            for statement_id in self.statement_id:
                check_id("statement_id", statement_id)
        if self.since is not None and self.since.tzinfo is None:
            raise ValueError("since must be aware: give it a time zone")
        if isinstance(self.expected_statements, bool) or self.expected_statements < 1:
            raise ValueError(f"expected_statements must be a whole number from 1, not {self.expected_statements!r}")
        if self.statement_id is not None and self.expected_statements > len(set(self.statement_id)):
            raise ValueError(
                f"expected_statements is {self.expected_statements}, but statement_id names only "
                f"{len(set(self.statement_id))}: the gate could never pass"
            )
        if self.failure_grace < timedelta(0):
            raise ValueError(f"failure_grace must not be negative, and is {self.failure_grace}")

    @classmethod
    def parse(
        cls,
        *,
        link_id: str | int | None = None,
        entity_id: str | int | None = None,
        statement_id: str | int | Iterable[str | int] | None = None,
        since: datetime | str | None = None,
        expected_statements: int | str = 1,
        failure_grace: timedelta | float = timedelta(minutes=30),
    ) -> Expectation:
        """Make an expectation of what people write, templates render, and triggers serialize; naive times are UTC.

        :raises ValueError: an argument is invalid; the message names it.
        """
        return cls(
            link_id=None if link_id is None else check_id("link_id", link_id),
            entity_id=None if entity_id is None else check_id("entity_id", entity_id),
            statement_id=parse_ids(statement_id),
            since=parse_since(since),
            expected_statements=parse_count(expected_statements),
            failure_grace=parse_grace(failure_grace),
        )

    @property
    def needed(self) -> int:
        """How many completed statements of one entity pass the gate."""
        return len(set(self.statement_id)) if self.statement_id is not None else self.expected_statements


@dataclass(frozen=True)
class Row:
    """One row of a verdict, as people get it.

    :param progress: in lower case.
    :param reason: the vendor's words; ``""`` if there are none.
    :param date_time: ISO 8601 in UTC; None from progress, which has no times.
    """

    statement_id: str
    entity_id: str
    link_id: str | None
    progress: str
    reason: str
    date_time: str | None

    @classmethod
    def of_payload(cls, row: WebhookPayload) -> Row:
        """Make a row of the history."""
        when = row.date_time.isoformat()
        return cls(row.statement_id, row.entity_id, row.link_id, _progress(row), row.reason, when)

    @classmethod
    def of_item(cls, item: StatementProgress, entity_id: str | None) -> Row:
        """Make a row of the progress of ``entity_id``."""
        return cls(item.statement_id, entity_id or "", None, (item.status or "").lower(), item.message or "", None)

    def as_dict(self) -> dict[str, str | None]:
        """Return a plain dict, ready for XCom."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """``state``; ``rows``, newest first: those that decided, or that are considered; and ``because``, in words."""

    state: State
    rows: tuple[Row, ...]
    because: str

    def ends_wait(self, on_failed: OnFailed) -> bool:
        """Return whether the wait is over."""
        return self.state == "passed" or (self.state == "failed" and on_failed != "wait")


@dataclass(frozen=True)
class _Gate:
    """What a sensor waits for. ``names`` are those of its arguments."""

    expectation: Expectation
    names: ClassVar[tuple[str, ...]]
    # Those that are fields of the gate, not of its expectation.
    own_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, **arguments: Any) -> Self:  # noqa: ANN401 - checked below
        """Make a gate of the arguments of its sensor or trigger.

        :raises ValueError: an argument is invalid; the message names it.
        """
        own = {name: arguments.pop(name) for name in cls.own_names if name in arguments}
        return cls(Expectation.parse(**arguments), **own)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments, in types that every Airflow serializes."""
        return {name: plain(getattr(self.expectation, name, getattr(self, name, None))) for name in self.names}


@dataclass(frozen=True)
class HistoryGate(_Gate):
    """A gate on the payload history of ``expectation.link_id``."""

    names = ("link_id", "entity_id", "statement_id", "since", "expected_statements", "failure_grace")

    def __post_init__(self) -> None:
        check_id("link_id", self.expectation.link_id)

    def __str__(self) -> str:
        return f"payload history of link {self.expectation.link_id!r}"

    @property
    def poll_key(self) -> tuple[str, ...]:
        """What is asked for: equal for gates that one answer serves."""
        return ("webhook_payloads", self.expectation.link_id or "")

    def ask(self, timezone: tzinfo) -> api.Call[list[WebhookPayload]]:
        """Ask for the payload history; ``timezone`` is that of the vendor's ``date_time``."""
        return api.get_webhook_payloads(self.expectation.link_id or "", timezone)

    def judge(self, rows: Iterable[WebhookPayload], now: datetime) -> Verdict:
        """Judge the rows of the answer."""
        return judge_history(self.expectation, rows, now)


@dataclass(frozen=True)
class ProgressGate(_Gate):
    """A gate on the ``progress`` of one analysis of ``expectation.entity_id``."""

    names = ("entity_id", "analysis", "statement_id", "expected_statements")
    own_names = ("analysis",)
    analysis: Analysis = "transactions"

    def __post_init__(self) -> None:
        check_id("entity_id", self.expectation.entity_id)
        api.check_analysis(self.analysis)

    def __str__(self) -> str:
        return f"progress of {self.analysis} of entity {self.expectation.entity_id!r}"

    @property
    def poll_key(self) -> tuple[str, ...]:
        """What is asked for: equal for gates that one answer serves."""
        return (self.analysis, self.expectation.entity_id or "")

    def ask(self, timezone: tzinfo) -> api.Call[list[StatementProgress]]:  # noqa: ARG002 - progress has no times
        """Ask for the progress."""
        return api.get_progress(self.expectation.entity_id or "", self.analysis)

    def judge(self, rows: Iterable[StatementProgress], now: datetime) -> Verdict:  # noqa: ARG002 - likewise
        """Judge the rows of the answer."""
        return judge_progress(self.expectation, rows)


Gate: TypeAlias = HistoryGate | ProgressGate


def check_on_failed(on_failed: object) -> OnFailed:
    """Return a valid ``on_failed``.

    :raises ValueError: it is invalid; the message names ``on_failed`` and the allowed values.
    """
    for meaning in get_args(OnFailed):
        if on_failed == meaning:
            return cast("OnFailed", meaning)
    raise ValueError(f"on_failed must be one of {', '.join(map(repr, get_args(OnFailed)))}, not {on_failed!r}")


def judge_history(expectation: Expectation, rows: Iterable[WebhookPayload], now: datetime) -> Verdict:
    """Judge a link's payload history at the time ``now``.

    :raises BankConnectTimezoneError: a considered row is more than five minutes in the future.
    """
    seen = {row for row in rows if why_not_considered(expectation, row) is None}
    _refuse_future(seen, now)
    current = list(newest_of_each_statement(seen))
    by_entity: dict[str, list[WebhookPayload]] = defaultdict(list)
    for row in current:
        by_entity[row.entity_id].append(row)

    passed = [done for entity in by_entity.values() if (done := _completed_if_passed(expectation, entity))]
    if passed:
        result = max((_newest_first(done) for done in passed), key=lambda done: _newness(done[0]))
        return Verdict("passed", _as_rows(result), f"{_count(len(result))} completed")

    attempts = [row for row in seen if not row.statement_id]
    shown = _newest_first([*current, *attempts])
    if not shown:
        return Verdict("pending", (), "no row that counts")
    in_progress = sum(not _is(row, "completed", "failed") for row in current)
    newest = shown[0]
    if not in_progress and _is(newest, "failed"):
        age = now - newest.date_time
        reasons = ", ".join(sorted({repr(row.reason) for row in seen if _is(row, "failed")}))
        if age >= expectation.failure_grace:
            return Verdict("failed", _as_rows(shown), f"the newest row is a failure; reasons: {reasons}")
        return Verdict(
            "pending",
            _as_rows(shown),
            f"the newest row is a failure, which counts when it is {expectation.failure_grace} old; reasons: {reasons}",
        )
    # There is a statement: failed attempts alone were handled above.
    most = max(sum(_is(row, "completed") for row in entity) for entity in by_entity.values())
    because = f"{most} of {_count(expectation.needed)} completed"
    return Verdict("pending", _as_rows(shown), because + (f", {in_progress} in progress" if in_progress else ""))


def judge_progress(expectation: Expectation, items: Iterable[StatementProgress]) -> Verdict:
    """Judge the ``progress`` of one analysis of ``expectation.entity_id``, which has no times."""
    wanted = expectation.statement_id
    rows = sorted(
        {Row.of_item(item, expectation.entity_id) for item in items if wanted is None or item.statement_id in wanted},
        key=lambda row: (row.statement_id, row.progress, row.reason),
    )
    if not rows:
        return Verdict("pending", (), "no statement that counts")
    in_progress = {row.statement_id for row in rows if row.progress not in _RANK}
    done = {row.statement_id for row in rows} - in_progress
    if in_progress or len(done) < expectation.needed:
        because = f"{len(done)} of {_count(expectation.needed)} done"
        return Verdict("pending", tuple(rows), because + (f", {len(in_progress)} in progress" if in_progress else ""))
    failed = [row for row in rows if row.progress == "failed"]
    if failed:
        reasons = ", ".join(sorted({repr(row.reason) for row in failed}))
        return Verdict("failed", tuple(rows), f"{len(failed)} of {_count(len(done))} failed; reasons: {reasons}")
    return Verdict("passed", tuple(rows), f"{_count(len(done))} completed")


def why_not_considered(expectation: Expectation, row: WebhookPayload) -> str | None:
    """Return why a row is not considered; None if it is."""
    if row.link_id != expectation.link_id:
        return f"of another link, {row.link_id!r}"
    if expectation.entity_id is not None and row.entity_id != expectation.entity_id:
        return f"of another entity, {row.entity_id!r}"
    if expectation.statement_id is not None and row.statement_id not in expectation.statement_id:
        return "of another statement" if row.statement_id else "an attempt, and statement_id is given"
    # The vendor's times are whole seconds: the boundary second counts whole.
    if expectation.since is not None and row.date_time < expectation.since.replace(microsecond=0):
        return f"older than since, {expectation.since.isoformat()}"
    return None


def newest_of_each_statement(rows: Iterable[WebhookPayload]) -> Iterable[WebhookPayload]:
    """Return the newest row of each statement, which is its state. Failed attempts are no statements."""
    newest: dict[tuple[str, str], WebhookPayload] = {}
    for row in rows:
        key = (row.entity_id, row.statement_id)
        if row.statement_id and (key not in newest or _newness(row) > _newness(newest[key])):
            newest[key] = row
    return newest.values()


def _completed_if_passed(expectation: Expectation, entity: list[WebhookPayload]) -> list[WebhookPayload]:
    completed = [row for row in entity if _is(row, "completed")]
    in_progress = any(not _is(row, "completed", "failed") for row in entity)
    return completed if len(completed) >= expectation.needed and not in_progress else []


def _refuse_future(rows: Iterable[WebhookPayload], now: datetime) -> None:
    ahead = max((row.date_time - now for row in rows), default=timedelta(0))
    if ahead > MAX_CLOCK_SKEW:
        raise BankConnectTimezoneError(
            f"A payload is {timedelta(minutes=round(ahead.total_seconds() / 60))} in the future: the connection's "
            "timezone is not the zone of the vendor's date_time (or this machine's clock is wrong)"
        )


def _progress(row: WebhookPayload) -> str:
    """Return the progress of a row; without a statement it is a failed attempt."""
    return row.progress.lower() if row.statement_id else "failed"


def _is(row: WebhookPayload, *states: str) -> bool:
    return _progress(row) in states


def _newness(row: WebhookPayload) -> tuple[datetime, int, str, str, str, str]:
    """Return a sort key: by time, and for equal times independent of the order of arrival."""
    progress = _progress(row)
    return (row.date_time, _RANK.get(progress, 0), row.entity_id, row.statement_id, progress, row.reason)


def _newest_first(rows: Iterable[WebhookPayload]) -> list[WebhookPayload]:
    return sorted(rows, key=_newness, reverse=True)


def _as_rows(payloads: Iterable[WebhookPayload]) -> tuple[Row, ...]:
    return tuple(dict.fromkeys(Row.of_payload(payload) for payload in payloads))


def _count(statements: int) -> str:
    return f"{statements} statement{'' if statements == 1 else 's'}"
