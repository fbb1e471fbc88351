"""The rules of the gate as tables of cases, for every way into the gate: pure, poke mode and deferred.

Times are whole seconds before a ``now`` that the reader of the table chooses: the vendor's own are no finer.
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
    """Give a row of the link and entity that the cases are about."""
    return CaseRow(statement_id, progress, ago, entity, link, reason)


def attempt(*, ago: int = MINUTE, entity: str = ENTITY, reason: str = "wrong password") -> CaseRow:
    """Give a net banking attempt that failed before any upload: no statement."""
    return row("", "failed", ago=ago, entity=entity, reason=reason)


@dataclass(frozen=True)
class Case:
    """One thing the gate promises.

    :param name: the promise, in words.
    :param rows: the history, in any order.
    :param state: of the verdict, or ``timezone`` for a BankConnectTimezoneError.
    :param expect: arguments of an Expectation; ``since_ago`` are seconds before now.
    :param result: the ``statement_id`` of the verdict's rows, in order; None where it is not of interest.
    :param tight: true only at the very second of now: the clock has to stand still.
    """

    name: str
    rows: tuple[CaseRow, ...]
    state: str
    expect: dict[str, Any] = field(default_factory=dict)
    result: tuple[str, ...] | None = None
    tight: bool = False


def expect_arguments(case: Case | ProgressCase, now: datetime) -> dict[str, Any]:
    """Give the arguments of the case's Expectation, without ``link_id``."""
    arguments = dict(case.expect)
    if "since_ago" in arguments:
        arguments["since"] = now - timedelta(seconds=arguments.pop("since_ago"))
    return arguments


def expectation(case: Case, now: datetime) -> Expectation:
    """Give what the case waits for."""
    return Expectation(link_id=LINK, **expect_arguments(case, now))


def payloads(case: Case, now: datetime) -> list[WebhookPayload]:
    """Give the case's history as models."""
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
    """Give the case's history in the vendor's JSON form; ``now`` should be a whole second."""
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
    # Rule 1: what is in sight.
    Case("an empty history is pending", (), "pending", result=()),
    Case("one completed statement passes", (row("s1", "completed"),), "passed", result=("s1",)),
    Case("a row of another link is not in sight", (row("s1", "completed", link="link-2"),), "pending", result=()),
    Case(
        "a link differs by its case alone: still another link",
        (row("s1", "completed", link=LINK.upper()),),
        "pending",
        result=(),
    ),
    Case("a row without a link is not in sight", (row("s1", "completed", link=None),), "pending", result=()),
    Case(
        "a row of another entity is not in sight where entity_id is given",
        (row("s1", "completed", entity="entity-2"),),
        "pending",
        expect={"entity_id": ENTITY},
        result=(),
    ),
    Case(
        "the entity that was asked for passes beside another",
        (row("s1", "completed"), row("s2", "processing", entity="entity-2")),
        "passed",
        expect={"entity_id": ENTITY},
        result=("s1",),
    ),
    Case(
        "another entity's failure is no failure of the one asked for",
        (row("s1", "failed", ago=HOUR, entity="entity-2"),),
        "pending",
        expect={"entity_id": ENTITY},
        result=(),
    ),
    Case(
        "another statement is not in sight where statement_id is given",
        (row("s2", "completed"),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
    Case(
        "the statement that was asked for passes while another is still going",
        (row("s1", "completed"), row("s2", "processing")),
        "passed",
        expect={"statement_id": ("s1",)},
        result=("s1",),
    ),
    Case(
        "another statement's failure is no failure of the one asked for",
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
        "the boundary second counts whole, whatever microseconds since has",
        (row("s1", "completed", ago=60),),
        "passed",
        expect={"since_ago": 59.000001},
        result=("s1",),
    ),
    Case(
        "the second before the boundary second does not count, whatever microseconds since has",
        (row("s1", "completed", ago=61),),
        "pending",
        expect={"since_ago": 59.000001},
        result=(),
    ),
    Case(
        "last month's row does not open this month's gate",
        (row("s1", "completed", ago=30 * 24 * HOUR), row("s2", "processing")),
        "pending",
        expect={"since_ago": HOUR},
        result=("s2",),
    ),
    Case(
        "a failure before since is none",
        (row("s1", "failed", ago=2 * HOUR),),
        "pending",
        expect={"since_ago": HOUR},
        result=(),
    ),
    # Rule 2: a statement's state is its newest row.
    Case(
        "a failed statement that the vendor ran again is completed",
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
        "a statement that is run again is still going",
        (row("s1", "failed", ago=2 * HOUR), row("s1", "processing", ago=HOUR)),
        "pending",
        result=("s1",),
    ),
    Case(
        "a statement that goes again after its completion is still going",
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
    Case("an unknown progress is still going", (row("s1", "teleported", ago=HOUR),), "pending", result=("s1",)),
    Case("a blank progress is still going", (row("s1", "", ago=HOUR),), "pending", result=("s1",)),
    Case("nearly completed is still going", (row("s1", "completed ", ago=HOUR),), "pending", result=("s1",)),
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
    Case("a failed login closes the gate in the end", (attempt(ago=HOUR),), "failed", result=("",)),
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
        "a row without a statement is never still going",
        (row("", "processing", ago=2 * HOUR), row("s1", "failed", ago=HOUR)),
        "failed",
        result=("s1", ""),
    ),
    Case(
        "two rows without a statement are no two statements",
        (row("s1", "completed"), row("", "completed")),
        "pending",
        expect={"expected_statements": 2},
    ),
    Case(
        "a failed login is not in sight where statement_id is given",
        (attempt(ago=HOUR),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
    Case(
        "byte-identical failed logins are as good as one",
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
        "a list whose statements lie with two entities never passes",
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
        "one statement that completed twice is one",
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
        "more than were expected pass, and are all of the result",
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
        "where a list is given all of it is waited for, whatever expected_statements says",
        (row("s1", "completed"),),
        "pending",
        expect={"statement_id": ("s1", "s2"), "expected_statements": 1},
    ),
    Case(
        "a failed statement beside enough completed ones does not close the gate",
        (row("s1", "completed", ago=2 * HOUR), row("s2", "failed", ago=HOUR)),
        "passed",
        result=("s1",),
    ),
    Case(
        "a failed statement of a list is missed",
        (row("s1", "completed", ago=2 * HOUR), row("s2", "failed", ago=HOUR)),
        "failed",
        expect={"statement_id": ("s1", "s2")},
        result=("s2", "s1"),
    ),
    Case(
        "what is still going blocks the pass of its entity",
        (row("s1", "completed", ago=HOUR), row("s2", "processing", ago=2 * HOUR)),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "what is still going does not block the pass of another entity",
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
        "the newest row counts, not the number of them",
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
        "a failure exactly as old as the grace is one",
        (row("s1", "failed", ago=30 * MINUTE),),
        "failed",
        result=("s1",),
    ),
    Case(
        "a failure a second younger than the grace is none yet",
        (row("s1", "failed", ago=30 * MINUTE - 1),),
        "pending",
        result=("s1",),
        tight=True,
    ),
    Case("a fresh failed login is none yet: customers try again", (attempt(),), "pending", result=("",)),
    Case(
        "without a grace a failure counts at once",
        (row("s1", "failed", ago=0),),
        "failed",
        expect={"failure_grace": timedelta(0)},
        result=("s1",),
    ),
    Case(
        "the newest failure's age counts: an old one and a fresh one are pending",
        (attempt(ago=2 * HOUR), attempt(ago=MINUTE)),
        "pending",
        result=("", ""),
    ),
    Case(
        "no verdict while something else is still going",
        (row("s1", "failed", ago=HOUR), row("s2", "processing", ago=2 * HOUR)),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "no verdict while something of another entity is still going",
        (row("s1", "failed", ago=HOUR), row("s2", "processing", ago=2 * HOUR, entity="entity-2")),
        "pending",
        result=("s1", "s2"),
    ),
    Case(
        "a failure older than a completion that is not enough is none",
        (row("s1", "failed", ago=2 * HOUR), row("s2", "completed", ago=HOUR)),
        "pending",
        expect={"expected_statements": 2},
        result=("s2", "s1"),
    ),
    Case(
        "a failure newer than a completion that is not enough is one",
        (row("s1", "failed", ago=HOUR), row("s2", "completed", ago=2 * HOUR)),
        "failed",
        expect={"expected_statements": 2},
        result=("s1", "s2"),
    ),
    Case(
        "a failed verdict tells every statement's state and every attempt, newest first",
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
        "a row that was superseded does not hold a failure up",
        (row("s1", "processing", ago=2 * HOUR), row("s1", "failed", ago=HOUR)),
        "failed",
        result=("s1",),
    ),
    # Rule 7: the future.
    Case("five minutes in the future is a clock", (row("s1", "completed", ago=-5 * MINUTE),), "passed", result=("s1",)),
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
        "a superseded row in the future cannot be",
        (row("s1", "completed", ago=-5 * HOUR), row("s1", "completed", ago=-6 * HOUR)),
        "timezone",
    ),
    Case(
        "another link's row in the future is nobody's business",
        (row("s1", "completed"), row("s2", "completed", ago=-6 * HOUR, link="link-2")),
        "passed",
        result=("s1",),
    ),
    Case(
        "a failure a little in the future is fresh",
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
    """Give an item of a snapshot."""
    return CaseItem(statement_id, status, message)


@dataclass(frozen=True)
class ProgressCase:
    """One thing the gate on a snapshot promises; as :class:`Case`."""

    name: str
    items: tuple[CaseItem, ...]
    state: str
    expect: dict[str, Any] = field(default_factory=dict)
    result: tuple[str, ...] | None = None


def progress_items(case: ProgressCase) -> list[StatementProgress]:
    """Give the case's snapshot as models."""
    return [StatementProgress(statement_id=i.statement_id, status=i.status, message=i.message) for i in case.items]


def progress_dicts(case: ProgressCase) -> list[dict[str, str | None]]:
    """Give the case's snapshot in the vendor's JSON form."""
    return [
        {"statement_id": i.statement_id, "status": i.status, "source": "online", "message": i.message}
        for i in case.items
    ]


PROGRESS_CASES: Final = (
    ProgressCase("an empty progress is not done", (), "pending", result=()),
    ProgressCase("one completed item passes", (item("s1", "completed"),), "passed", result=("s1",)),
    ProgressCase("Completed is completed", (item("s1", "Completed"),), "passed", result=("s1",)),
    ProgressCase("a processing item is still going", (item("s1", "processing"),), "pending", result=("s1",)),
    ProgressCase("a null status is still going", (item("s1", None),), "pending", result=("s1",)),
    ProgressCase("a blank status is still going", (item("s1", ""),), "pending", result=("s1",)),
    ProgressCase("an unknown status is still going", (item("s1", "teleported"),), "pending", result=("s1",)),
    ProgressCase("one failed item fails", (item("s1", "failed", "bad PDF"),), "failed", result=("s1",)),
    ProgressCase("FAILED is failed", (item("s1", "FAILED"),), "failed", result=("s1",)),
    ProgressCase(
        "every item has to be completed",
        (item("s1", "completed"), item("s2", "processing")),
        "pending",
        result=("s1", "s2"),
    ),
    ProgressCase(
        "nothing has failed while an item is still going",
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
        "fewer than expected are not done",
        (item("s1", "completed"),),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    ProgressCase(
        "fewer than expected are not failed either",
        (item("s1", "failed"),),
        "pending",
        expect={"expected_statements": 2},
        result=("s1",),
    ),
    ProgressCase(
        "a failed item is done, too",
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
        "a statement that is said to be both completed and failed is no pass",
        (item("s1", "completed"), item("s1", "failed")),
        "failed",
        result=("s1", "s1"),
    ),
    ProgressCase(
        "a statement that is said to be both completed and going is no pass",
        (item("s1", "completed"), item("s1", "processing")),
        "pending",
        result=("s1", "s1"),
    ),
    ProgressCase(
        "another statement is not in sight where statement_id is given",
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
        "nothing of a list is pending",
        (item("s3", "completed"),),
        "pending",
        expect={"statement_id": ("s1",)},
        result=(),
    ),
)
