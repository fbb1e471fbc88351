"""What a gate expects, the rows that people get, and the verdict: values, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from airflow_provider_bankconnect.api import StatementProgress, WebhookPayload, check_id
from airflow_provider_bankconnect.arguments import parse_count, parse_grace, parse_ids, parse_since

if TYPE_CHECKING:
    from collections.abc import Iterable

State: TypeAlias = Literal["pending", "passed", "failed"]
# What a failed verdict means: the task fails · is skipped · the wait continues · the gate passes with the failed rows.
OnFailed: TypeAlias = Literal["fail", "skip", "wait", "pass"]


@dataclass(frozen=True)
class Expectation:
    """What a wait is for.

    :param link_id: rows of another link do not count.
    :param entity_id: rows of another entity do not count; in progress: the entity.
    :param statement_id: only these statements count, and all of them are expected.
    :param since: older rows do not count; rows of the same second do. Aware.
    :param expected_statements: how many statements of one entity are expected.
    :param failure_grace: how old the newest failure must be before the verdict of a history is failed.
    :param announced: statements of webhook events: for both records, pending until one of the records has them.
    :param announced_until: when that ends. Aware.
    :raises ValueError: an argument is invalid; the message names it.
    """

    link_id: str | None = None
    entity_id: str | None = None
    statement_id: tuple[str, ...] | None = None
    since: datetime | None = None
    expected_statements: int = 1
    failure_grace: timedelta = timedelta(minutes=30)
    announced: tuple[str, ...] = ()
    announced_until: datetime | None = None

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
        since: date | str | None = None,
        expected_statements: int | str = 1,
        failure_grace: timedelta | float = timedelta(minutes=30),
        announced: Iterable[str] | None = None,
        announced_until: datetime | str | None = None,
    ) -> Expectation:
        """Make an expectation of what people write, templates render, and triggers serialize.

        Naive times are UTC, and a date is its first moment in UTC.

        :raises ValueError: an argument is invalid; the message names it.
        """
        return cls(
            link_id=None if link_id is None else check_id("link_id", link_id),
            entity_id=None if entity_id is None else check_id("entity_id", entity_id),
            statement_id=parse_ids(statement_id),
            since=parse_since(since),
            expected_statements=parse_count(expected_statements),
            failure_grace=parse_grace(failure_grace),
            announced=tuple(announced or ()),
            announced_until=parse_since(announced_until),
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
        return cls(row.statement_id, row.entity_id, row.link_id, progress_of(row), row.reason, when)

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


def check_on_failed(on_failed: object) -> OnFailed:
    """Return a valid ``on_failed``.

    :raises ValueError: it is invalid; the message names ``on_failed`` and the allowed values.
    """
    for meaning in get_args(OnFailed):
        if on_failed == meaning:
            return cast("OnFailed", meaning)
    raise ValueError(f"on_failed must be one of {', '.join(map(repr, get_args(OnFailed)))}, not {on_failed!r}")


def progress_of(row: WebhookPayload) -> str:
    """Return the progress of a row; without a statement it is a failed attempt."""
    return row.progress.lower() if row.statement_id else "failed"
