"""The rules of the gate as tables of cases, used by the tests of the pure functions and of all modes.

Times are whole seconds before a ``now`` that the user of a table chooses: the vendor's times are whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from airflow_provider_bankconnect.api import StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import Expectation

LINK: Final = "link-1"
ENTITY: Final = "entity-1"
MINUTE: Final = 60
HOUR: Final = 3600


@dataclass(frozen=True)
class CaseRow:
    """One row of a history, ``ago`` whole seconds before now."""

    statement_id: str
    progress: str
    ago: int
    entity_id: str
    link_id: str | None
    reason: str


def row(
    statement_id: str,
    progress: str,
    *,
    ago: int = MINUTE,
    entity: str = ENTITY,
    link: str | None = LINK,
    reason: str = "",
) -> CaseRow:
    """Make a row, by default of the link and entity of the cases."""
    return CaseRow(statement_id, progress, ago, entity, link, reason)


def attempt(*, ago: int = MINUTE, entity: str = ENTITY, reason: str = "wrong password") -> CaseRow:
    """Make the row of a login that failed before any upload: it has no statement."""
    return row("", "failed", ago=ago, entity=entity, reason=reason)


@dataclass(frozen=True)
class Case:
    """One case of the gate on a history.

    :param name: what the case shows.
    :param rows: the history, in any order.
    :param state: the state of the verdict, or ``timezone`` for a BankConnectTimezoneError.
    :param expect: arguments of an Expectation; ``since_ago`` is in seconds before now.
    :param result: the ``statement_id`` of the verdict's rows, in order; None if the case is not about them.
    :param tight: whether the case holds only within the second of ``now``.
    """

    name: str
    rows: tuple[CaseRow, ...]
    state: str
    expect: dict[str, Any] = field(default_factory=dict)
    result: tuple[str, ...] | None = None
    tight: bool = False


def expect_arguments(case: Case | ProgressCase, now: datetime) -> dict[str, Any]:
    """Return the arguments of the case's Expectation, without ``link_id``."""
    arguments = dict(case.expect)
    if "since_ago" in arguments:
        arguments["since"] = now - timedelta(seconds=arguments.pop("since_ago"))
    return arguments


def expectation(case: Case, now: datetime) -> Expectation:
    """Return the case's Expectation."""
    return Expectation(link_id=LINK, **expect_arguments(case, now))


def payloads(case: Case, now: datetime) -> list[WebhookPayload]:
    """Return the case's history as models."""
    return [
        WebhookPayload(
            statement_id=row.statement_id,
            entity_id=row.entity_id,
            link_id=row.link_id,
            progress=row.progress,
            reason=row.reason,
            date_time=now - timedelta(seconds=row.ago),
        )
        for row in case.rows
    ]


def payload_dicts(case: Case, now: datetime) -> list[dict[str, str | None]]:
    """Return the case's history in the vendor's JSON form; ``now`` should be a whole second."""
    return [
        {
            "statement_id": row.statement_id,
            "entity_id": row.entity_id,
            "link_id": row.link_id,
            "progress": row.progress,
            "reason": row.reason,
            "date_time": (now - timedelta(seconds=row.ago)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        }
        for row in case.rows
    ]


CASES: Final = (
    # Rule 1: which rows are considered.
    Case("an empty history is pending", (), "pending", result=()),
    Case("one completed statement passes", (row("s1", "completed"),), "passed", result=("s1",)),
    Case("a row of another link is not considered", (row("s1", "completed", link="link-2"),), "pending", result=()),
    Case(
        "a link that differs only in letter case is another link",
        (row("s1", "completed", link=LINK.upper()),),
        "pending",
        result=(),
    ),
    Case("a row without a link is not considered", (row("s1", "completed", link=None),), "pending", result=()),
    Case(
        "a row of another entity is not considered if entity_id is given",
        (row("s1", "completed", entity="entity-2"),),
        "pending",
        expect={"entity_id": ENTITY},
        result=(),
    ),
    Case(
        "the entity of entity_id passes while another one is in progress",
        (row("s1", "completed"), row("s2", "processing", entity="entity-2")),
        "passed",
        expect={"entity_id": ENTITY},
        result=("s1",),
    ),
    Case(
        "another entity's failure is not considered if entity_id is given",
        (row("s1", "failed", ago=HOUR, entity="entity-2"),),
        "pending",
        expect={"entity_id": ENTITY},
        result=(),
    ),
    Case(
        "another statement is not considered if statement_id is given",
        (row("s2", "completed"),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
    Case(
        "the statement of statement_id passes while another one is in progress",
        (row("s1", "completed"), row("s2", "processing")),
        "passed",
        expect={"statement_id": ("s1",)},
        result=("s1",),
    ),
    Case(
        "another statement's failure is not considered if statement_id is given",
        (row("s2", "failed", ago=HOUR),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
    Case(
        "a row at since counts",
        (row("s1", "completed", ago=60),),
        "passed",
        expect={"since_ago": 60},
        result=("s1",),
    ),
    Case(
        "a row a second before since does not count",
        (row("s1", "completed", ago=61),),
        "pending",
        expect={"since_ago": 60},
        result=(),
    ),
    Case(
        "the whole second of since counts, whatever its microseconds",
        (row("s1", "completed", ago=60),),
        "passed",
        expect={"since_ago": 59.000001},
        result=("s1",),
    ),
    Case(
        "the second before that of since does not count, whatever its microseconds",
        (row("s1", "completed", ago=61),),
        "pending",
        expect={"since_ago": 59.000001},
        result=(),
    ),
    Case(
        "last month's row does not pass this month's gate",
        (row("s1", "completed", ago=30 * 24 * HOUR), row("s2", "processing")),
        "pending",
        expect={"since_ago": HOUR},
        result=("s2",),
    ),
    Case(
        "a failure before since does not count",
        (row("s1", "failed", ago=2 * HOUR),),
        "pending",
        expect={"since_ago": HOUR},
        result=(),
    ),
    # Rule 2: a statement's state is its newest row.
    Case(
        "a failed statement that was processed again is completed",
        (row("s1", "failed", ago=2 * HOUR, reason="bad PDF"), row("s1", "completed", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "a completed statement that failed later is failed",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "failed", ago=HOUR)),
        "failed",
        result=("s1",),
    ),
    Case(
        "a failed statement that is processed again is in progress",
        (row("s1", "failed", ago=2 * HOUR), row("s1", "processing", ago=HOUR)),
        "pending",
        result=("s1",),
    ),
    Case(
        "a completed statement that is processed again is in progress",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "processing", ago=HOUR)),
        "pending",
        result=("s1",),
    ),
    Case(
        "at the same second completed comes before failed",
        (row("s1", "failed", ago=HOUR), row("s1", "completed", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "at the same second completed comes before anything else",
        (row("s1", "processing", ago=HOUR), row("s1", "completed", ago=HOUR), row("s1", "zzz", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "at the same second failed comes before anything else",
        (row("s1", "processing", ago=HOUR), row("s1", "failed", ago=HOUR), row("s1", "zzz", ago=HOUR)),
        "failed",
        result=("s1",),
    ),
    Case(
        "a second later, anything else comes before completed",
        (row("s1", "processing", ago=HOUR - 1), row("s1", "completed", ago=HOUR)),
        "pending",
        result=("s1",),
    ),
    Case(
        "at the same second, one statement's completion is newer than another's failure",
        (row("s1", "failed", ago=HOUR), row("s2", "completed", ago=HOUR)),
        "pending",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    Case("COMPLETED is completed", (row("s1", "COMPLETED"),), "passed", result=("s1",)),
    Case("Failed is failed", (row("s1", "Failed", ago=HOUR),), "failed", result=("s1",)),
    Case("an unknown progress is in progress", (row("s1", "teleported", ago=HOUR),), "pending", result=("s1",)),
    Case("a blank progress is in progress", (row("s1", "", ago=HOUR),), "pending", result=("s1",)),
    Case("'completed ' with a blank is in progress", (row("s1", "completed ", ago=HOUR),), "pending", result=("s1",)),
    # Rule 3: a row with a blank statement_id is a failed attempt.
    Case(
        "a failed login is superseded by a later success",
        (attempt(ago=2 * HOUR), row("s1", "completed", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "a success is not taken back by a later failed login",
        (row("s1", "completed", ago=2 * HOUR), attempt(ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case("an old failed login fails the gate", (attempt(ago=HOUR),), "failed", result=("",)),
    Case(
        "a row without a statement never counts as one, whatever it says",
        (row("", "completed"),),
        "pending",
        result=("",),
    ),
    Case(
        "a row without a statement is a failed attempt, whatever it says",
        (row("", "completed", ago=HOUR),),
        "failed",
        result=("",),
    ),
    Case(
        "a row without a statement is never in progress",
        (row("", "processing", ago=2 * HOUR), row("s1", "failed", ago=HOUR)),
        "failed",
        result=("s1", ""),
    ),
    Case(
        "a row without a statement does not count beside a completed one",
        (row("s1", "completed"), row("", "completed")),
        "pending",
        expect={"expected_statements": 2},
    ),
    Case(
        "a failed login is not considered if statement_id is given",
        (attempt(ago=HOUR),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
    Case(
        "identical failed logins count as one",
        (attempt(ago=HOUR), attempt(ago=HOUR)),
        "failed",
        result=("",),
    ),
    Case(
        "two failed logins are two rows of the verdict, newest first",
        (attempt(ago=2 * HOUR, reason="first"), attempt(ago=HOUR, reason="second")),
        "failed",
        result=("", ""),
    ),
    # Rule 4: counted per entity.
    Case(
        "statements of two entities are never added up",
        (row("s1", "completed"), row("s2", "completed", entity="entity-2")),
        "pending",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    Case(
        "the same statement_id under two entities is two statements",
        (row("s1", "completed"), row("s1", "failed", ago=1, entity="entity-2")),
        "passed",
        result=("s1",),
    ),
    Case(
        "a list of statements of two entities never passes",
        (row("s1", "completed"), row("s2", "completed", entity="entity-2")),
        "pending",
        expect={"statement_id": ("s1", "s2")},
    ),
    # Rule 5: passed.
    Case(
        "one of two expected statements is not enough",
        (row("s1", "completed"),),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    Case(
        "a statement that completed twice counts once",
        (row("s1", "completed", ago=2 * MINUTE), row("s1", "completed", ago=MINUTE)),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    Case(
        "two of two expected statements pass, newest first",
        (row("s1", "completed", ago=90), row("s2", "completed", ago=30)),
        "passed",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    Case(
        "more statements than expected pass, and all are in the result",
        (row("s1", "completed", ago=90), row("s2", "completed", ago=30), row("s3", "completed", ago=60)),
        "passed",
        expect={"expected_statements": 2},
        result=("s2", "s3", "s1"),
    ),
    Case(
        "all of a list pass",
        (row("s1", "completed", ago=30), row("s2", "completed", ago=90)),
        "passed",
        expect={"statement_id": ("s1", "s2")},
        result=("s1", "s2"),
    ),
    Case(
        "a part of a list does not pass",
        (row("s1", "completed"), row("s3", "completed")),
        "pending",
        expect={"statement_id": ("s1", "s2")},
        result=("s1",),
    ),
    Case(
        "a list with an id twice waits for that id once",
        (row("s1", "completed"),),
        "passed",
        expect={"statement_id": ("s1", "s1")},
        result=("s1",),
    ),
    Case(
        "all of a list is expected, whatever expected_statements is",
        (row("s1", "completed"),),
        "pending",
        expect={"statement_id": ("s1", "s2"), "expected_statements": 1},
    ),
    Case(
        "a failed statement beside enough completed ones does not fail the gate",
        (row("s1", "completed", ago=2 * HOUR), row("s2", "failed", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "a failed statement of a list fails the gate",
        (row("s1", "completed", ago=2 * HOUR), row("s2", "failed", ago=HOUR)),
        "failed",
        expect={"statement_id": ("s1", "s2")},
        result=("s2", "s1"),
    ),
    Case(
        "a statement in progress blocks the pass of its entity",
        (row("s1", "completed", ago=HOUR), row("s2", "processing", ago=2 * HOUR)),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "a statement in progress does not block the pass of another entity",
        (row("s1", "completed"), row("s2", "processing", entity="entity-2")),
        "passed",
        result=("s1",),
    ),
    Case(
        "of several passing entities the one with the newest row is the result",
        (
            row("s1", "completed", ago=50, entity="entity-1"),
            row("s2", "completed", ago=40, entity="entity-2"),
            row("s3", "completed", ago=45, entity="entity-3"),
        ),
        "passed",
        result=("s2",),
    ),
    Case(
        "the entity with the newest row is the result, not that with the most rows",
        (
            row("s1", "completed", ago=50),
            row("s2", "completed", ago=45),
            row("s3", "completed", ago=40, entity="entity-2"),
        ),
        "passed",
        result=("s3",),
    ),
    Case(
        "a pass wins over another entity's later failure",
        (row("s1", "completed", ago=2 * HOUR), row("s2", "failed", ago=HOUR, entity="entity-2")),
        "passed",
        result=("s1",),
    ),
    Case("a pass needs no age", (row("s1", "completed", ago=0),), "passed", result=("s1",)),
    # Rule 6: failed.
    Case(
        "a failure exactly as old as failure_grace counts",
        (row("s1", "failed", ago=30 * MINUTE),),
        "failed",
        result=("s1",),
    ),
    Case(
        "a failure a second younger than failure_grace does not count",
        (row("s1", "failed", ago=30 * MINUTE - 1),),
        "pending",
        result=("s1",),
        tight=True,
    ),
    Case("a new failed login does not count yet", (attempt(),), "pending", result=("",)),
    Case(
        "with a failure_grace of zero a failure counts at once",
        (row("s1", "failed", ago=0),),
        "failed",
        expect={"failure_grace": timedelta(0)},
        result=("s1",),
    ),
    Case(
        "the age of the newest failure counts, not that of an older one",
        (attempt(ago=2 * HOUR), attempt(ago=MINUTE)),
        "pending",
        result=("", ""),
    ),
    Case(
        "a failure does not count while another statement is in progress",
        (row("s1", "failed", ago=HOUR), row("s2", "processing", ago=2 * HOUR)),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "a failure does not count while a statement of another entity is in progress",
        (row("s1", "failed", ago=HOUR), row("s2", "processing", ago=2 * HOUR, entity="entity-2")),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "a failure before a completion that is not enough does not count",
        (row("s1", "failed", ago=2 * HOUR), row("s2", "completed", ago=HOUR)),
        "pending",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    Case(
        "a failure after a completion that is not enough counts",
        (row("s1", "failed", ago=HOUR), row("s2", "completed", ago=2 * HOUR)),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    Case(
        "a failed verdict has every statement's state and every attempt, newest first",
        (
            attempt(ago=4 * HOUR),
            row("s1", "failed", ago=3 * HOUR),
            row("s1", "failed", ago=2 * HOUR),
            row("s2", "failed", ago=HOUR),
        ),
        "failed",
        result=("s2", "s1", ""),
    ),
    Case(
        "a superseded row does not delay a failure",
        (row("s1", "processing", ago=2 * HOUR), row("s1", "failed", ago=HOUR)),
        "failed",
        result=("s1",),
    ),
    # Rule 7: the future.
    Case(
        "five minutes in the future are accepted as clock skew",
        (row("s1", "completed", ago=-5 * MINUTE),),
        "passed",
        result=("s1",),
    ),
    Case(
        "a second more than five minutes in the future is a wrong zone",
        (row("s1", "completed", ago=-5 * MINUTE - 1),),
        "timezone",
        tight=True,
    ),
    Case(
        "hours in the future are a wrong zone, whatever else there is",
        (row("s1", "completed"), row("s2", "failed", ago=-6 * HOUR)),
        "timezone",
    ),
    Case("a failed login in the future is a wrong zone", (attempt(ago=-6 * HOUR),), "timezone"),
    Case(
        "a superseded row in the future is a wrong zone",
        (row("s1", "completed", ago=-5 * HOUR), row("s1", "completed", ago=-6 * HOUR)),
        "timezone",
    ),
    Case(
        "another link's row in the future is not considered",
        (row("s1", "completed"), row("s2", "completed", ago=-6 * HOUR, link="link-2")),
        "passed",
        result=("s1",),
    ),
    Case(
        "a failure a second in the future is younger than a failure_grace of zero",
        (row("s1", "failed", ago=-1),),
        "pending",
        expect={"failure_grace": timedelta(0)},
        result=("s1",),
        tight=True,
    ),
)


@dataclass(frozen=True)
class CaseItem:
    """One item of a ``progress`` array."""

    statement_id: str
    status: str | None
    message: str | None


def item(statement_id: str, status: str | None, message: str | None = None) -> CaseItem:
    """Make an item of a ``progress`` array."""
    return CaseItem(statement_id, status, message)


@dataclass(frozen=True)
class ProgressCase:
    """One case of the gate on progress; as :class:`Case`."""

    name: str
    items: tuple[CaseItem, ...]
    state: str
    expect: dict[str, Any] = field(default_factory=dict)
    result: tuple[str, ...] | None = None


def progress_items(case: ProgressCase) -> list[StatementProgress]:
    """Return the case's progress as models."""
    return [StatementProgress(statement_id=i.statement_id, status=i.status, message=i.message) for i in case.items]


def progress_dicts(case: ProgressCase) -> list[dict[str, str | None]]:
    """Return the case's progress in the vendor's JSON form."""
    return [
        {"statement_id": i.statement_id, "status": i.status, "source": "online", "message": i.message}
        for i in case.items
    ]


PROGRESS_CASES: Final = (
    ProgressCase("an empty progress is pending", (), "pending", result=()),
    ProgressCase("one completed item passes", (item("s1", "completed"),), "passed", result=("s1",)),
    ProgressCase("Completed is completed", (item("s1", "Completed"),), "passed", result=("s1",)),
    ProgressCase("a processing item is in progress", (item("s1", "processing"),), "pending", result=("s1",)),
    ProgressCase("a null status is in progress", (item("s1", None),), "pending", result=("s1",)),
    ProgressCase("a blank status is in progress", (item("s1", ""),), "pending", result=("s1",)),
    ProgressCase("an unknown status is in progress", (item("s1", "teleported"),), "pending", result=("s1",)),
    ProgressCase("one failed item fails", (item("s1", "failed", "bad PDF"),), "failed", result=("s1",)),
    ProgressCase("FAILED is failed", (item("s1", "FAILED"),), "failed", result=("s1",)),
    ProgressCase(
        "every item must be completed",
        (item("s1", "completed"), item("s2", "processing")),
        "pending",
        result=("s1", "s2"),
    ),
    ProgressCase(
        "a failed item does not fail the gate while another is in progress",
        (item("s1", "failed"), item("s2", None)),
        "pending",
        result=("s1", "s2"),
    ),
    ProgressCase(
        "one failed item among completed ones fails",
        (item("s1", "completed"), item("s2", "failed"), item("s3", "completed")),
        "failed",
        result=("s1", "s2", "s3"),
    ),
    ProgressCase(
        "fewer completed items than expected are pending",
        (item("s1", "completed"),),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    ProgressCase(
        "fewer failed items than expected are pending",
        (item("s1", "failed"),),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    ProgressCase(
        "a failed item counts as done",
        (item("s1", "completed"), item("s2", "failed")),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    ProgressCase(
        "as many as expected pass",
        (item("s2", "completed"), item("s1", "completed")),
        "passed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    ProgressCase(
        "a repeated item is one statement",
        (item("s1", "completed"), item("s1", "completed")),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    ProgressCase(
        "a statement that is both completed and failed fails",
        (item("s1", "completed"), item("s1", "failed")),
        "failed",
        result=("s1", "s1"),
    ),
    ProgressCase(
        "a statement that is both completed and in progress is pending",
        (item("s1", "completed"), item("s1", "processing")),
        "pending",
        result=("s1", "s1"),
    ),
    ProgressCase(
        "another statement is not considered if statement_id is given",
        (item("s1", "completed"), item("s2", "processing"), item("s3", "failed")),
        "passed",
        expect={"statement_id": ("s1",)},
        result=("s1",),
    ),
    ProgressCase(
        "a part of a list does not pass",
        (item("s1", "completed"), item("s3", "completed")),
        "pending",
        expect={"statement_id": ("s1", "s2")},
        result=("s1",),
    ),
    ProgressCase(
        "all of a list pass",
        (item("s1", "completed"), item("s2", "completed"), item("s3", None)),
        "passed",
        expect={"statement_id": ("s2", "s1")},
        result=("s1", "s2"),
    ),
    ProgressCase(
        "a progress without any statement of the list is pending",
        (item("s3", "completed"),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
)
