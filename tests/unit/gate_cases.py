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


def expect_arguments(case: Case | ProgressCase | CustomerCase, now: datetime) -> dict[str, Any]:
    """Return the arguments of the case's Expectation, without ``link_id``."""
    arguments = dict(case.expect)
    if "since_ago" in arguments:
        arguments["since"] = now - timedelta(seconds=arguments.pop("since_ago"))
    if "announced_for" in arguments:
        arguments["announced_until"] = now + timedelta(seconds=arguments.pop("announced_for"))
    return arguments


def expectation(case: Case, now: datetime) -> Expectation:
    """Return the case's Expectation."""
    return Expectation(link_id=LINK, **expect_arguments(case, now))


def payloads(case: Case | CustomerCase, now: datetime) -> list[WebhookPayload]:
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


def payload_dicts(case: Case | CustomerCase, now: datetime) -> list[dict[str, str | None]]:
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
    # Rows that name no entity.
    Case(
        "an old failed login of an unknown entity fails the gate",
        (attempt(ago=HOUR, entity=""),),
        "failed",
        result=("",),
    ),
    Case("a new failed login of an unknown entity does not count yet", (attempt(entity=""),), "pending", result=("",)),
    Case(
        "a failed login of an unknown entity is not considered if entity_id is given",
        (attempt(ago=HOUR, entity=""),),
        "pending",
        expect={"entity_id": ENTITY},
        result=(),
    ),
    Case(
        "a failed login of an unknown entity takes back no success",
        (row("s1", "completed", ago=2 * HOUR), attempt(ago=HOUR, entity="")),
        "passed",
        result=("s1",),
    ),
    Case("a statement of no entity never passes", (row("s1", "completed", entity=""),), "pending", result=("s1",)),
    Case(
        "a statement of no entity does not count beside that of an entity",
        (row("s1", "completed"), row("s2", "completed", entity="")),
        "pending",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    Case(
        "an old failed statement of no entity fails the gate",
        (row("s1", "failed", ago=HOUR, entity=""),),
        "failed",
        result=("s1",),
    ),
    Case(
        "another statement in progress of no entity does not block a pass",
        (row("s1", "completed"), row("s2", "processing", entity="")),
        "passed",
        result=("s1",),
    ),
    Case(
        "a statement in progress of no entity keeps a failure from counting",
        (attempt(ago=HOUR), row("s1", "processing", ago=2 * HOUR, entity="")),
        "pending",
        result=("", "s1"),
    ),
    Case(
        "a newer row in progress without an entity takes back a completion",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "processing", ago=HOUR, entity="")),
        "pending",
        result=("s1", "s1"),
    ),
    Case(
        "an older row in progress without an entity takes back nothing",
        (row("s1", "completed", ago=HOUR), row("s1", "processing", ago=2 * HOUR, entity="")),
        "passed",
        result=("s1",),
    ),
    Case(
        "a newer failure without an entity takes back a completion",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "failed", ago=HOUR, entity="")),
        "failed",
        result=("s1", "s1"),
    ),
    Case(
        "a failure of the same second without an entity takes back nothing",
        (row("s1", "completed", ago=HOUR), row("s1", "failed", ago=HOUR, entity="")),
        "passed",
        result=("s1",),
    ),
    Case(
        "the newest row without an entity counts",
        (
            row("s1", "completed", ago=3 * HOUR),
            row("s1", "processing", ago=2 * HOUR, entity=""),
            row("s1", "completed", ago=HOUR, entity=""),
        ),
        "passed",
        result=("s1",),
    ),
    Case(
        "a newer completion without an entity completes no failed statement of an entity",
        (row("s1", "failed", ago=2 * HOUR), row("s1", "completed", ago=HOUR, entity="")),
        "pending",
        result=("s1", "s1"),
    ),
    Case(
        "a newer failure without an entity takes back no enough of other statements, but blocks their pass",
        (row("s1", "completed", ago=3 * HOUR), row("s2", "completed", ago=2 * HOUR), row("s2", "failed", entity="")),
        "pending",
        result=("s2", "s2", "s1"),
    ),
    Case(
        "a newer failure without an entity does not take back a failure",
        (
            row("s1", "completed", ago=3 * HOUR),
            row("s2", "failed", ago=2 * HOUR),
            row("s2", "failed", ago=HOUR, entity=""),
        ),
        "passed",
        result=("s1",),
    ),
    Case(
        "a newer row in progress without an entity takes back a failure of an entity",
        (
            row("s1", "completed", ago=3 * HOUR),
            row("s2", "failed", ago=2 * HOUR),
            row("s2", "processing", ago=HOUR, entity=""),
        ),
        "pending",
        result=("s2", "s2", "s1"),
    ),
    Case(
        "a newer row in progress without an entity takes back a completion even if entity_id is given",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "processing", ago=HOUR, entity="")),
        "pending",
        expect={"entity_id": ENTITY},
        result=("s1",),
    ),
    Case(
        "a newer row in progress without an entity of another link takes back nothing",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "processing", ago=HOUR, entity="", link="link-2")),
        "passed",
        result=("s1",),
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
    ProgressCase("a failed item without a statement is not done", (item("", "failed"),), "pending", result=("",)),
    ProgressCase("an item without a statement may be in progress", (item("", None),), "pending", result=("",)),
    ProgressCase(
        "a failed item without a statement does not count as one of those expected",
        (item("", "failed"), item("s1", "completed")),
        "pending",
        expect={"expected_statements": 2},
        result=("", "s1"),
    ),
    ProgressCase(
        "a failed item without a statement fails the gate once enough are done",
        (item("", "failed"), item("s1", "completed")),
        "failed",
        result=("", "s1"),
    ),
    ProgressCase(
        "an item in progress without a statement blocks the pass",
        (item("", "processing"), item("s1", "completed")),
        "pending",
        result=("", "s1"),
    ),
    ProgressCase(
        "an item without a statement is not considered if statement_id is given",
        (item("", "failed"), item("s1", "completed")),
        "passed",
        expect={"statement_id": ("s1",)},
        result=("s1",),
    ),
)


@dataclass(frozen=True)
class CustomerCase:
    """One case of the gate on both records; as :class:`Case`.

    :param items: the progress of each entity.
    :param link: the link that the gate is given; None for a gate on an entity alone.
    """

    name: str
    rows: tuple[CaseRow, ...]
    items: dict[str, tuple[CaseItem, ...]]
    state: str
    expect: dict[str, Any] = field(default_factory=dict)
    result: tuple[str, ...] = ()
    link: str | None = LINK
    tight: bool = False


def customer_expectation(case: CustomerCase, now: datetime) -> Expectation:
    """Return the case's Expectation."""
    return Expectation(link_id=case.link, **expect_arguments(case, now))


def customer_items(case: CustomerCase) -> dict[str, list[StatementProgress]]:
    """Return the case's progress as models."""
    return {entity_id: progress_items(ProgressCase("", its, "")) for entity_id, its in case.items.items()}


def one(*items: CaseItem) -> dict[str, tuple[CaseItem, ...]]:
    """Make the progress of the entity of the cases."""
    return {ENTITY: items}


def two(first: tuple[CaseItem, ...], second: tuple[CaseItem, ...]) -> dict[str, tuple[CaseItem, ...]]:
    """Make the progress of two entities."""
    return {ENTITY: first, "entity-2": second}


CUSTOMER_CASES: Final = (
    # The history alone.
    CustomerCase("two empty records are pending", (), {}, "pending"),
    CustomerCase("an entity without statements is pending", (), one(), "pending"),
    CustomerCase("a completed row passes", (row("s1", "completed"),), {}, "passed", result=("s1",)),
    CustomerCase(
        "a completed row passes while the progress is empty", (row("s1", "completed"),), one(), "passed", result=("s1",)
    ),
    CustomerCase("a row in progress is pending", (row("s1", "processing"),), one(), "pending", result=("s1",)),
    CustomerCase("an old failed login fails", (attempt(ago=HOUR),), one(), "failed", result=("",)),
    CustomerCase("a new failed login is pending", (attempt(),), one(), "pending", result=("",)),
    CustomerCase("an old failed row fails", (row("s1", "failed", ago=HOUR),), {}, "failed", result=("s1",)),
    CustomerCase(
        "with a failure_grace of zero a failed login counts at once",
        (attempt(ago=0),),
        one(),
        "failed",
        expect={"failure_grace": timedelta(0)},
        result=("",),
    ),
    CustomerCase(
        "a row in the future is a wrong zone, whatever the progress says",
        (row("s1", "completed", ago=-6 * HOUR),),
        one(item("s2", "completed")),
        "timezone",
    ),
    # Statements that webhooks announced.
    CustomerCase(
        "a completed row is pending while an announced statement is in neither record",
        (row("s1", "completed"),),
        one(item("s2", "completed")),
        "pending",
        expect={"announced": ("s9",), "announced_for": HOUR},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "an old failed login is pending while an announced statement is in neither record",
        (attempt(ago=HOUR),),
        one(),
        "pending",
        expect={"announced": ("s9",), "announced_for": HOUR},
        result=("",),
    ),
    CustomerCase(
        "a completed row passes when each announced statement is in one of the records",
        (row("s1", "completed"),),
        one(item("s2", "completed")),
        "passed",
        expect={"announced": ("s1", "s2"), "announced_for": HOUR},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "an announced statement that is in progress keeps the customer pending",
        (row("s1", "completed"),),
        one(item("s2", "processing")),
        "pending",
        expect={"announced": ("s2",), "announced_for": HOUR},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a completed row passes when the time of an announced statement is over",
        (row("s1", "completed"),),
        one(),
        "passed",
        expect={"announced": ("s9",), "announced_for": -1},
        result=("s1",),
    ),
    # The progress alone.
    CustomerCase(
        "a completed item of a link's entity passes", (), one(item("s1", "completed")), "passed", result=("s1",)
    ),
    CustomerCase(
        "a completed item passes without a link",
        (),
        one(item("s1", "Completed")),
        "passed",
        expect={"entity_id": ENTITY},
        result=("s1",),
        link=None,
    ),
    CustomerCase("an item in progress is pending", (), one(item("s1", "processing")), "pending", result=("s1",)),
    CustomerCase("an item with a null status is pending", (), one(item("s1", None)), "pending", result=("s1",)),
    CustomerCase("a failed item fails at once", (), one(item("s1", "FAILED")), "failed", result=("s1",)),
    CustomerCase(
        "a failed item fails at once without a link",
        (),
        one(item("s1", "failed", "bad PDF")),
        "failed",
        expect={"entity_id": ENTITY},
        result=("s1",),
        link=None,
    ),
    CustomerCase(
        "fewer failed items than expected are pending",
        (),
        one(item("s1", "failed")),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    CustomerCase(
        "as many items as expected are over, and one failed",
        (),
        one(item("s1", "completed"), item("s2", "failed")),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a failed item beside enough completed ones does not fail the gate",
        (),
        one(item("s1", "completed"), item("s2", "failed")),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "an item in progress blocks the pass of its entity",
        (),
        one(item("s1", "completed"), item("s2", "teleported")),
        "pending",
        result=("s2", "s1"),
    ),
    CustomerCase(
        "an item in progress keeps a failed one from counting",
        (),
        one(item("s1", "failed"), item("s2", "")),
        "pending",
        result=("s2", "s1"),
    ),
    CustomerCase(
        "a repeated item is one statement",
        (),
        one(item("s1", "completed"), item("s1", "completed")),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    CustomerCase(
        "an item that is both completed and failed is failed",
        (),
        one(item("s1", "completed"), item("s1", "failed")),
        "failed",
        result=("s1",),
    ),
    CustomerCase(
        "an item that is both completed and in progress is in progress",
        (),
        one(item("s1", "completed"), item("s1", "processing")),
        "pending",
        result=("s1",),
    ),
    CustomerCase("a failed item without a statement is pending", (), one(item("", "failed")), "pending", result=("",)),
    CustomerCase(
        "a failed item without a statement does not count as one of those expected",
        (),
        one(item("", "failed"), item("s1", "failed")),
        "pending",
        expect={"expected_statements": 2},
        result=("", "s1"),
    ),
    CustomerCase(
        "a failed item without a statement fails the gate once enough are over",
        (row("s1", "failed", ago=HOUR),),
        one(item("", "failed", "bad PDF")),
        "failed",
        result=("s1", ""),
    ),
    CustomerCase(
        "an item in progress without a statement blocks the pass",
        (row("s1", "completed"),),
        one(item("", None)),
        "pending",
        result=("s1", ""),
    ),
    # Both records: the history decides for a statement that it knows.
    CustomerCase(
        "a statement is completed if its row is, whatever its item says",
        (row("s1", "completed"),),
        one(item("s1", "failed")),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a statement is failed if its row is, whatever its item says",
        (row("s1", "failed", ago=HOUR),),
        one(item("s1", "completed")),
        "failed",
        result=("s1",),
    ),
    CustomerCase(
        "a statement that failed recently is pending, whatever its item says",
        (row("s1", "failed"),),
        one(item("s1", "failed")),
        "pending",
        result=("s1",),
    ),
    CustomerCase(
        "a statement in progress by its row is pending, whatever its item says",
        (row("s1", "processing"),),
        one(item("s1", "completed")),
        "pending",
        result=("s1",),
    ),
    CustomerCase(
        "a statement in progress by its item is pending, whatever its row says",
        (row("s1", "completed"),),
        one(item("s1", "processing")),
        "pending",
        result=("s1", "s1"),
    ),
    CustomerCase(
        "a failed row does not count while its item is in progress",
        (row("s1", "failed", ago=HOUR),),
        one(item("s1", None)),
        "pending",
        result=("s1", "s1"),
    ),
    CustomerCase(
        "a row of another link says nothing of an item",
        (row("s1", "failed", ago=HOUR, link="link-2"),),
        one(item("s1", "completed")),
        "passed",
        result=("s1",),
    ),
    # Both records: statements of both count together.
    CustomerCase(
        "a row and an item count together, the row first",
        (row("s2", "completed"),),
        one(item("s1", "completed")),
        "passed",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    CustomerCase(
        "rows are newest first, and items follow by their ids",
        (row("s1", "completed", ago=90), row("s4", "completed", ago=30)),
        one(item("s3", "completed"), item("s2", "completed"), item("s1", "completed")),
        "passed",
        expect={"expected_statements": 4},
        result=("s4", "s1", "s2", "s3"),
    ),
    CustomerCase(
        "a row and an item of one statement count once",
        (row("s1", "completed"),),
        one(item("s1", "completed")),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    CustomerCase(
        "an item in progress blocks the pass of a row",
        (row("s1", "completed"),),
        one(item("s2", "processing")),
        "pending",
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a row in progress blocks the pass of an item",
        (row("s1", "processing"),),
        one(item("s2", "completed")),
        "pending",
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a failed item beside enough completed rows does not fail the gate",
        (row("s1", "completed"),),
        one(item("s2", "failed")),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a failed row beside enough completed items does not fail the gate",
        (row("s1", "failed", ago=HOUR),),
        one(item("s2", "completed")),
        "passed",
        result=("s2",),
    ),
    CustomerCase(
        "a completed row and a failed item are as many as expected",
        (row("s1", "completed"),),
        one(item("s2", "failed")),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a failed login is superseded by a completed item",
        (attempt(ago=HOUR),),
        one(item("s1", "completed")),
        "passed",
        result=("s1",),
    ),
    # Both records: failures with and without a time.
    CustomerCase(
        "an old failed row and a failed item fail",
        (row("s1", "failed", ago=HOUR, reason="first"),),
        one(item("s2", "failed", "second")),
        "failed",
        result=("s1", "s2"),
    ),
    CustomerCase(
        "a failed item does not count while a failed row is younger than failure_grace",
        (row("s1", "failed", ago=30 * MINUTE - 1),),
        one(item("s2", "failed")),
        "pending",
        result=("s1", "s2"),
        tight=True,
    ),
    CustomerCase(
        "a failed item does not count while a failed login is new",
        (attempt(),),
        one(item("s1", "failed")),
        "pending",
        result=("", "s1"),
    ),
    CustomerCase(
        "an old failed login and a failed item fail",
        (attempt(ago=HOUR),),
        one(item("s1", "failed")),
        "failed",
        result=("", "s1"),
    ),
    CustomerCase(
        "an old failed login and fewer failed items than expected fail",
        (attempt(ago=HOUR),),
        one(item("s1", "failed")),
        "failed",
        expect={"expected_statements": 2},
        result=("", "s1"),
    ),
    CustomerCase(
        "a completed item that is not enough may be newer than an old failed login",
        (attempt(ago=HOUR),),
        one(item("s1", "completed")),
        "pending",
        expect={"expected_statements": 2},
        result=("", "s1"),
    ),
    CustomerCase(
        "a completed item that is not enough may be newer than a failure of both records",
        (attempt(ago=HOUR),),
        one(item("s1", "completed"), item("s2", "failed")),
        "pending",
        expect={"expected_statements": 3},
        result=("", "s1", "s2"),
    ),
    CustomerCase(
        "a failed item does not count while a row is in progress",
        (row("s1", "processing", ago=HOUR),),
        one(item("s2", "failed")),
        "pending",
        result=("s1", "s2"),
    ),
    CustomerCase(
        "an old failed login does not count while an item is in progress",
        (attempt(ago=HOUR),),
        one(item("s1", "processing")),
        "pending",
        result=("", "s1"),
    ),
    # since: progress has no times.
    CustomerCase(
        "a completed item does not count with since", (), one(item("s1", "completed")), "pending", {"since_ago": HOUR}
    ),
    CustomerCase(
        "a failed item does not count with since", (), one(item("s1", "failed")), "pending", {"since_ago": HOUR}
    ),
    CustomerCase(
        "a completed item counts with since if statement_id names it",
        (),
        one(item("s1", "completed")),
        "passed",
        expect={"since_ago": HOUR, "statement_id": ("s1",)},
        result=("s1",),
    ),
    CustomerCase(
        "an item does not count with since and without a link",
        (),
        one(item("s1", "completed")),
        "pending",
        expect={"since_ago": HOUR, "entity_id": ENTITY},
        link=None,
    ),
    CustomerCase(
        "an item in progress blocks with since, too",
        (row("s1", "completed"),),
        one(item("s2", "processing")),
        "pending",
        expect={"since_ago": HOUR},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "an item that does not count because of since does not block a row",
        (row("s1", "completed"),),
        one(item("s2", "failed"), item("s3", "completed")),
        "passed",
        expect={"since_ago": HOUR},
        result=("s1",),
    ),
    CustomerCase(
        "a statement with a row before since does not count, even if statement_id names it",
        (row("s1", "completed", ago=2 * HOUR),),
        one(item("s1", "completed")),
        "pending",
        expect={"since_ago": HOUR, "statement_id": ("s1",)},
    ),
    # Several entities.
    CustomerCase(
        "a row and an item of two entities are never added up",
        (row("s1", "completed"),),
        two((), (item("s2", "completed"),)),
        "pending",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "items of two entities are never added up",
        (),
        two((item("s1", "completed"),), (item("s2", "completed"),)),
        "pending",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "failed items of two entities are never added up",
        (),
        two((item("s1", "failed"),), (item("s2", "failed"),)),
        "pending",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    CustomerCase(
        "an item in progress does not block the pass of another entity",
        (),
        two((item("s1", "completed"),), (item("s2", "processing"),)),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "an item of the same id in progress does not block the row of another entity",
        (row("s1", "completed"),),
        two((), (item("s1", "processing"),)),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a row of the same id under another entity says nothing of an item",
        (row("s1", "failed", ago=HOUR, entity="entity-2"),),
        two((item("s1", "completed"),), (item("s1", "failed"),)),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a failed item does not count while an item of another entity is in progress",
        (),
        two((item("s1", "failed"),), (item("s2", "processing"),)),
        "pending",
        result=("s2", "s1"),
    ),
    CustomerCase(
        "of several passing entities one with a row is the result",
        (row("s1", "completed"),),
        two((), (item("s2", "completed"),)),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "of several passing entities the one with the newest row is the result",
        (row("s1", "completed", ago=50), row("s2", "completed", ago=40, entity="entity-2")),
        two((item("s3", "completed"),), ()),
        "passed",
        result=("s2",),
    ),
    CustomerCase(
        "of several entities that pass by items alone the last by id is the result",
        (),
        two((item("s1", "completed"), item("s3", "completed")), (item("s2", "completed"),)),
        "passed",
        result=("s2",),
    ),
    CustomerCase(
        "one entity with enough that are over fails the gate, whatever another one has",
        (),
        two((item("s1", "failed"), item("s2", "failed")), (item("s3", "completed"),)),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2", "s3"),
    ),
    # entity_id and statement_id.
    CustomerCase(
        "another entity's item is not considered if entity_id is given",
        (),
        two((item("s1", "completed"),), (item("s2", "processing"), item("s3", "failed"))),
        "passed",
        expect={"entity_id": ENTITY},
        result=("s1",),
    ),
    CustomerCase(
        "another entity's row is not considered if entity_id is given",
        (row("s2", "completed", entity="entity-2"), attempt(ago=HOUR, entity="entity-2")),
        one(),
        "pending",
        expect={"entity_id": ENTITY},
    ),
    CustomerCase(
        "another statement is not considered if statement_id is given",
        (row("s2", "processing"), attempt(ago=HOUR)),
        one(item("s1", "completed"), item("s3", "processing"), item("", None)),
        "passed",
        expect={"statement_id": ("s1",)},
        result=("s1",),
    ),
    CustomerCase(
        "a row and an item are all of a list",
        (row("s2", "completed"),),
        one(item("s1", "completed"), item("s3", "failed")),
        "passed",
        expect={"statement_id": ("s1", "s2")},
        result=("s2", "s1"),
    ),
    CustomerCase(
        "a part of a list does not pass",
        (row("s1", "completed"),),
        one(item("s3", "completed")),
        "pending",
        expect={"statement_id": ("s1", "s2")},
        result=("s1",),
    ),
    CustomerCase(
        "a failed item of a list fails the gate",
        (row("s1", "completed"),),
        one(item("s2", "failed")),
        "failed",
        expect={"statement_id": ("s1", "s2")},
        result=("s1", "s2"),
    ),
    # Rows that name no entity.
    CustomerCase(
        "an old failed login of an unknown entity fails", (attempt(ago=HOUR, entity=""),), one(), "failed", result=("",)
    ),
    CustomerCase(
        "a failed login of an unknown entity does not block an item",
        (attempt(entity=""),),
        one(item("s1", "completed")),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a failed item does not count while a failed login of an unknown entity is new",
        (attempt(entity=""),),
        one(item("s1", "failed")),
        "pending",
        result=("", "s1"),
    ),
    CustomerCase(
        "a row in progress without an entity takes back an item",
        (row("s1", "processing", ago=HOUR, entity=""),),
        one(item("s1", "completed")),
        "pending",
        result=("s1", "s1"),
    ),
    CustomerCase(
        "a failed row without an entity takes back a completed item",
        (row("s1", "failed", ago=HOUR, entity=""),),
        one(item("s1", "completed")),
        "pending",
        result=("s1", "s1"),
    ),
    CustomerCase(
        "a completed row without an entity takes back nothing, and counts for nothing",
        (row("s1", "completed", entity=""), row("s2", "completed", entity="")),
        one(item("s1", "completed")),
        "passed",
        result=("s1",),
    ),
    CustomerCase(
        "a newer failed row without an entity takes back a completed row",
        (row("s1", "completed", ago=2 * HOUR), row("s1", "failed", ago=HOUR, entity="")),
        one(item("s2", "completed")),
        "pending",
        result=("s1", "s1", "s2"),
    ),
    CustomerCase(
        "an older failed row without an entity takes back nothing",
        (row("s1", "completed", ago=HOUR), row("s1", "failed", ago=2 * HOUR, entity="")),
        one(item("s2", "completed")),
        "passed",
        result=("s1", "s2"),
    ),
)
