"""A verdict in words, for a person: which rows, which rule, what to do. Pure; :mod:`.ask` asks BankConnect for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import newest_of_each_statement, why_not_considered
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate, Records
from airflow_provider_bankconnect.tables import entity_title, item_line, records_table, remark, time_of
from airflow_provider_bankconnect.words import (
    BEGUN,
    ENTITY,
    ONE_CUSTOMER,
    OVER,
    REGISTERED,
    REJECTED,
    SINCE,
    SPREAD,
    UNLINKED,
    UNLINKED_CUSTOMER,
    UPLOADED,
    counts_from,
    is_spread,
    newest_failure,
    plain,
    statements_by_entity,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import tzinfo

    from airflow_provider_bankconnect.expectation import Verdict
    from airflow_provider_bankconnect.records import Gate

    # The progress of each entity of a link.
    EntityProgress: TypeAlias = Mapping[str, Sequence[StatementProgress]]

_ONE: Final = "The sensor needs only one of them."
_OLD: Final = timedelta(days=1)
_HEADINGS: Final = {"passed": "PASSED", "pending": "STILL WAITING", "failed": "FAILED"}
_ON_FAILED: Final = (
    '  "fail"  the task fails, and is not retried (the default)',
    '  "skip"  the task is skipped',
    '  "wait"  the sensor continues to wait',
    '  "pass"  the sensor passes, and returns the failed rows with the others',
)


@dataclass(frozen=True)
class Explanation:
    """A verdict in words. As text, it is what the command prints.

    :param state: that of the verdict; ``"error"`` if the answer could not be judged.
    :param verdict: the heading: the state, the gate, and why.
    :param table: each row of the answer with its meaning, under the title of its entity; a row begins with two spaces.
    :param outcome: what is missing, and what the sensor does.
    :param hints: what a person can check or do, without marks of a list.
    :param remarks: what else is to be known of the answer.
    """

    state: Literal["passed", "pending", "failed", "error"]
    verdict: str
    table: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        hints = ("To check:", *(f"- {hint}" for hint in self.hints)) if self.hints else ()
        parts = ((self.verdict,), self.table, self.outcome, hints, *((remark,) for remark in self.remarks))
        return "\n\n".join("\n".join(part) for part in parts if part)


def explain(
    gate: Gate,
    rows: Records | Sequence[WebhookPayload | StatementProgress],
    now: datetime,
    progress: EntityProgress | None = None,
    *,
    timezone: tzinfo = UTC,
) -> Explanation:
    """Return which rule counted or dropped each row of the answer, and what the sensor does.

    :param now: aware; the time of the verdict.
    :param progress: the progress of each entity of the link, for a history that does not pass its gate.
    :param timezone: that of the connection.
    """
    entity_id = gate.expectation.entity_id or ""
    if isinstance(rows, Records):
        records = rows
    else:
        items = [item for item in rows if isinstance(item, StatementProgress)]
        records = Records([row for row in rows if isinstance(row, WebhookPayload)], {entity_id: items})
    try:
        if isinstance(gate, HistoryGate):
            explanation = _explain_history(gate, records.rows, now, progress)
        elif isinstance(gate, CustomerGate):
            explanation = _explain_customer(gate, records, now)
        else:
            explanation = _explain_progress(gate, records.items.get(entity_id, ()), now)
    except BankConnectTimezoneError as error:
        explanation = Explanation(
            "error",
            f"ERROR: {gate}: {error}.",
            tuple(records_table(gate, records, None)),
            ("The sensor ends with this error, whatever on_failed and soft_fail say.",),
            (f"Set the connection's timezone to that of BankConnect's times: they were read as {timezone}.",),
        )
    if not records.distrust:
        return explanation
    why = f"Read from transactions/, not from the smaller identity/: {plain(records.distrust)}."
    return replace(explanation, remarks=(why,))


def _explain_history(
    gate: HistoryGate, rows: Sequence[WebhookPayload], now: datetime, progress: EntityProgress | None
) -> Explanation:
    verdict = gate.judge(rows, now)
    because = verdict.because if verdict.rows else "no row that counts" if rows else "no row at all"
    absent = _absent(gate, rows, progress or {}) if verdict.state != "passed" else {}
    return _explanation(
        gate,
        verdict,
        because,
        [*records_table(gate, Records(rows), verdict), *_absent_table(absent)],
        [*_history_hints(gate, rows, verdict, now), *_absent_hints(rows, absent, progress)],
    )


def _history_hints(
    gate: HistoryGate | CustomerGate, rows: Sequence[WebhookPayload], verdict: Verdict, now: datetime
) -> list[str]:
    wanted = gate.expectation
    hints = []
    times = [datetime.fromisoformat(row.date_time) for row in verdict.rows if row.date_time]
    if verdict.state == "passed" and wanted.since is None and wanted.statement_id is None:
        oldest = min(times, default=now)
        if now - oldest > _OLD:
            risk = "Without since, rows of any age count, and a link that is used again passes at once."
            hints.append(f"Is the row of {time_of(oldest)} one that you wait for? {risk}")
    dropped = [
        row
        for row in rows
        if why_not_considered(wanted, row) is not None and (row.entity_id or wanted.entity_id is None)
    ]
    if verdict.state == "pending" and dropped:
        if wanted.since is not None and any(row.date_time < wanted.since for row in dropped):
            hints.append(_question(SINCE))
        given = {"entity_id": wanted.entity_id, "statement_id": wanted.statement_id}
        if names := " and ".join(name for name, value in given.items() if value is not None):
            hints.append(_question(f"is {names} right"))
    if is_spread(gate, verdict):
        hints.append(f"{_capital(SPREAD)}: name the right one with entity_id.")
    return hints


def _explain_customer(gate: CustomerGate, records: Records, now: datetime) -> Explanation:
    verdict = gate.judge(records, now)
    is_judged = not records.stranger
    because = verdict.because if records.stranger or len(records) else "no statement at all"
    return _explanation(
        gate,
        verdict,
        plain(because),
        records_table(gate, records, verdict if is_judged else None),
        _customer_hints(gate, records, verdict, now) if is_judged else [f"{_question(ONE_CUSTOMER)} {_ONE}"],
    )


def _customer_hints(gate: CustomerGate, records: Records, verdict: Verdict, now: datetime) -> list[str]:
    wanted = gate.expectation
    hints = _history_hints(gate, records.rows, verdict, now)
    if verdict.state != "pending" or verdict.rows:
        return hints
    if len(records):
        if wanted.statement_id is not None and not records.rows:
            hints.append(_question("is statement_id right"))
        return hints if any(records.items.values()) else [*hints, _question(REJECTED)]
    if wanted.link_id is None:
        return [_question(UPLOADED), _question(REJECTED)]
    if wanted.entity_id is not None:
        return [_question(ENTITY), _question(REJECTED)]
    if not records.items:
        return [f"BankConnect knows no entity of this link: {BEGUN}?", _question(UNLINKED_CUSTOMER)]
    return ["BankConnect knows the link, but has no statement: has the customer finished?", _question(REJECTED)]


def _explain_progress(gate: ProgressGate, items: Sequence[StatementProgress], now: datetime) -> Explanation:
    verdict = gate.judge(items, now)
    wanted = gate.expectation.statement_id
    lines = ["Statements:"] if items else []
    for item in sorted(items, key=lambda item: (item.statement_id, item.status or "", item.message or "")):
        is_other = wanted is not None and item.statement_id not in wanted
        meaning = "does not count: of another statement" if is_other else remark(item.status or "", "", None)
        lines.append(item_line(item, meaning))
    because = verdict.because if verdict.rows else "no statement that counts" if items else "no statement at all"
    checks = [] if verdict.rows else ["is statement_id right"] if items else [UPLOADED, REJECTED]
    return _explanation(gate, verdict, because, lines, [_question(check) for check in checks])


def _explanation(gate: Gate, verdict: Verdict, because: str, table: list[str], hints: list[str]) -> Explanation:
    heading = f"{_HEADINGS[verdict.state]}: {gate}: {because}."
    outcome = (*_missing(gate, verdict), *_outcome(gate, verdict))
    return Explanation(verdict.state, heading, tuple(table), outcome, tuple(hints))


def _absent(
    gate: HistoryGate, rows: Sequence[WebhookPayload], progress: EntityProgress
) -> dict[str, list[StatementProgress]]:
    """Return the statements of the link's entities that the history has no row of, or that are processed again."""
    known = {row.statement_id for row in rows}
    going = {row.statement_id for row in newest_of_each_statement(rows) if row.progress.lower() not in OVER}
    absent = {
        entity_id: [
            item
            for item in sorted(items, key=lambda item: item.statement_id)
            if item.statement_id not in known or (not _is_over(item) and item.statement_id not in going)
        ]
        for entity_id, items in sorted(progress.items())
        if gate.expectation.entity_id in {None, entity_id}
    }
    return {entity_id: items for entity_id, items in absent.items() if items}


def _absent_table(absent: EntityProgress) -> list[str]:
    lines = []
    for entity_id, items in absent.items():
        lines.append(f"{entity_title(entity_id)}, known to BankConnect but not in this history:")
        for item in items:
            meaning = "over, but without a row" if _is_over(item) else "in progress: its row comes when it is over"
            lines.append(item_line(item, meaning))
    return lines


def _absent_hints(rows: Sequence[WebhookPayload], absent: EntityProgress, progress: EntityProgress | None) -> list[str]:
    """Return why a history may lack rows, as far as the progress of the link's entities shows it."""
    if any(_is_over(item) for items in absent.values() for item in items):
        other = "BankConnectStatementSensor (here: --customer) also counts the statements without a row."
        return [_question(REGISTERED), other]
    if rows or absent:
        return []
    if progress is None:
        return [_question(BEGUN), _question(UNLINKED), _question(REGISTERED)]
    if not progress:
        return [f"BankConnect knows no entity of this link: {BEGUN}?", _question(UNLINKED)]
    return ["BankConnect knows the link, but has no statement: has the customer finished?", _question(REJECTED)]


def _is_over(item: StatementProgress) -> bool:
    return (item.status or "").lower() in OVER


def _missing(gate: Gate, verdict: Verdict) -> list[str]:
    """Return what the gate still needs to pass."""
    if verdict.state == "passed" or (verdict.state == "failed" and isinstance(gate, ProgressGate)):
        return []
    lines = []
    # In progress a failed statement is done; otherwise the customer may upload another one.
    done = OVER if isinstance(gate, ProgressGate) else {"completed"}
    going = sorted({row.statement_id for row in verdict.rows if row.progress not in OVER})
    if going:
        lines.append(f"Missing: the end of {', '.join(plain(name) or 'a statement without an id' for name in going)}.")
    if gate.expectation.statement_id is not None:
        finished = {row.statement_id for row in verdict.rows if row.progress in done}
        if absent := sorted({*gate.expectation.statement_id} - finished - {*going}):
            lines.append(f"Missing: statement {', '.join(map(plain, absent))}.")
        return lines
    there = statements_by_entity(row for row in verdict.rows if row.progress in done or row.progress not in OVER)
    left = gate.expectation.needed - max(there.values(), default=0)
    if left > 0:
        word = "more " if verdict.rows and left < gate.expectation.needed else ""
        lines.append(f"Missing: {left} {word}completed statement{'' if left == 1 else 's'}.")
    return lines


def _outcome(gate: Gate, verdict: Verdict) -> list[str]:
    """Return what the sensor does now, for each ``on_failed`` if that matters."""
    if verdict.state == "passed":
        return ["The sensor passes, whatever on_failed is."]
    if verdict.state == "failed":
        return ["What happens now depends on on_failed:", *_ON_FAILED]
    if (until := counts_from(gate, verdict)) is not None:
        condition = f"If no new statement arrives until {time_of(until)} UTC, on_failed decides:"
        return [f"The sensor continues to wait. {condition}", *_ON_FAILED]
    lines = ["The sensor continues to wait, whatever on_failed is."]
    if (failure := newest_failure(verdict)) is not None:
        why = "a completed statement that only the progress has may be newer"
        lines.append(f"The failure of {time_of(failure)} does not end the wait: {why}.")
    return lines


def _question(check: str) -> str:
    return f"{_capital(check)}?"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
