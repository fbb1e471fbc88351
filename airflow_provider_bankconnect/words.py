"""A verdict in one line, for the log of a waiting task and the message of a timeout. Pure."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from airflow_provider_bankconnect.records import HistoryGate, ProgressGate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_bankconnect.expectation import OnFailed, Row, Verdict
    from airflow_provider_bankconnect.records import Gate

OVER: Final = {"completed", "failed"}
# Failures whose time and reason a line of the log has.
_MOST_SHOWN: Final = 3
# What to check: questions, without the question mark.
BEGUN: Final = "is the link spelt as the SDK was given it, and has the customer begun"
REGISTERED: Final = (
    "is the webhook endpoint registered, with webhook_mode 1 for PDFs (an update that leaves it out resets it to 0)"
)
UNLINKED: Final = (
    "was a PDF uploaded without the link (then no payload history has it, only the progress of its entity)"
)
UNLINKED_CUSTOMER: Final = "was a PDF uploaded without the link (then give its entity_id)"
SINCE: Final = "is since right, and is the connection's timezone that of BankConnect's times"
# Since is given, and statement_id is not.
NAMED: Final = "is since right (with it, a statement that only the progress has counts only if statement_id names it)"
ENTITY: Final = "is entity_id right, and has the customer uploaded anything"
UPLOADED: Final = f"{ENTITY} (a failed login never shows here, only in the link's payload history)"
REJECTED: Final = (
    "was the upload rejected (wrong or missing PDF password, unknown bank, unreadable: then no statement ever appears)"
)
ONE_CUSTOMER: Final = "are link_id and entity_id of the same customer"
SPREAD: Final = "statements of several entities are never added up"


def in_short(gate: Gate, verdict: Verdict) -> str:
    """Return in one line what is there and, if nothing is, what to check."""
    if verdict.state == "pending" and not verdict.rows:
        return f"{verdict.because} (to check: {'; '.join(_checks(gate))})"
    if is_spread(gate, verdict):
        return f"{verdict.because} ({SPREAD})"
    return verdict.because


def not_yet(gate: Gate, verdict: Verdict, on_failed: OnFailed, now: datetime) -> str:
    """Return in one line, for the log of a waiting task, what is there and when a failure ends the wait."""
    if not verdict.rows:
        return f"{gate}: {in_short(gate, verdict)}"
    groups: dict[str, list[str]] = {}
    for row in verdict.rows:
        kind = f"{row.progress} statement" if row.progress in OVER else "statement in progress"
        when = f" {clock(datetime.fromisoformat(row.date_time), now)}" if row.date_time else ""
        reason = f' ("{plain(row.reason)}")' if row.reason else ""
        groups.setdefault(kind if is_statement(row) else "failed login", []).append(f"{when}{reason}")
    shown = (
        _count_of(len(rows), kind) + (",".join(rows[:_MOST_SHOWN]) if "failed" in kind else "")
        for kind, rows in groups.items()
    )
    needed = f" ({gate.expectation.needed} needed)" if gate.expectation.needed > 1 else ""
    text = f"{gate}: {'; '.join(shown)}{needed}"
    until = counts_from(gate, verdict)
    if until is None or on_failed == "wait":
        return text
    verb = {"fail": "fails", "skip": "is skipped", "pass": "passes"}[on_failed]
    return f"{text}; {verb} at {clock(until, now)} unless a new statement arrives"


def clock(moment: datetime, now: datetime) -> str:
    """Return the time of day in UTC, with the date if that is not today."""
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%M} UTC" if moment.date() == now.astimezone(UTC).date() else f"{moment:%Y-%m-%d %H:%M} UTC"


def counts_from(gate: Gate, verdict: Verdict) -> datetime | None:
    """Return when a pending verdict becomes failed if no record changes; None if it does not."""
    if (newest := newest_failure(verdict)) is None:
        return None
    undated = [row for row in verdict.rows if row.date_time is None]
    failed = [row for row in undated if row.progress == "failed"]
    # As judge_customer: a completed statement without a time may be newer than the failure.
    if len(failed) < len(undated):
        done = statements_by_entity(row for row in verdict.rows if row.progress in OVER)
        if all(done[row.entity_id] < gate.expectation.needed for row in failed):
            return None
    return newest + gate.expectation.failure_grace


def newest_failure(verdict: Verdict) -> datetime | None:
    """Return the time of the newest row of the history, if that is a failure and nothing is in progress."""
    if (
        not verdict.rows
        or verdict.rows[0].progress != "failed"
        or any(row.progress not in OVER for row in verdict.rows)
    ):
        return None
    newest = verdict.rows[0].date_time
    return datetime.fromisoformat(newest) if newest else None


def is_spread(gate: Gate, verdict: Verdict) -> bool:
    """Return whether only all entities together have as many statements as one of them needs."""
    counts = statements_by_entity(row for row in verdict.rows if row.progress == "completed").values()
    together = sum(counts) >= gate.expectation.needed > max(counts, default=0)
    return not isinstance(gate, ProgressGate) and verdict.state == "pending" and together


def statements_by_entity(rows: Iterable[Row]) -> Counter[str]:
    """Return how many statements of each entity there are. A row without an entity counts for none."""
    statements = {(row.entity_id, row.statement_id) for row in rows if row.entity_id and is_statement(row)}
    return Counter(entity_id for entity_id, _ in statements)


def is_statement(row: Row) -> bool:
    """Return whether a row is about a statement; only a row of the history may be about a failed login instead."""
    return bool(row.statement_id) or row.date_time is None


def plain(text: str) -> str:
    """Return foreign text without characters that a terminal or a log must not get."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _checks(gate: Gate) -> list[str]:
    if isinstance(gate, ProgressGate):
        return [UPLOADED, REJECTED]
    since = [SINCE] if gate.expectation.since else []
    if isinstance(gate, HistoryGate):
        return [*since, BEGUN, UNLINKED, REGISTERED]
    if gate.expectation.statement_id is None:
        since = [NAMED] if gate.expectation.since else []
    if gate.expectation.link_id is None:
        return [*since, UPLOADED, REJECTED]
    if gate.expectation.entity_id is None:
        return [*since, BEGUN, UNLINKED_CUSTOMER, REJECTED]
    return [*since, f"{ONE_CUSTOMER}, and has the customer uploaded anything", REJECTED]


def _count_of(number: int, kind: str) -> str:
    plural = kind.replace("statement", "statements").replace("login", "logins")
    return f"{number} {kind if number == 1 else plural}"
