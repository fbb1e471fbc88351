"""The records row by row, for :mod:`.explain`: what each row means for the verdict. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_bankconnect.gate import (
    Row,
    least_far,
    newest_of_each_statement,
    newest_without_entity,
    why_not_considered,
)
from airflow_provider_bankconnect.records import CustomerGate
from airflow_provider_bankconnect.words import OVER, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_bankconnect.api import StatementProgress, WebhookPayload
    from airflow_provider_bankconnect.expectation import Verdict
    from airflow_provider_bankconnect.records import Gate, Records


def records_table(gate: Gate, records: Records, verdict: Verdict | None) -> list[str]:
    """Return the rows and the items of each entity: statements are counted per entity.

    :param verdict: None if the records were not judged.
    """
    tables = _history_tables(gate, records.rows, verdict)
    if isinstance(gate, CustomerGate):
        for entity_id in sorted(records.items):
            tables.setdefault(entity_id, []).extend(_items_table(gate, records, entity_id, verdict))
    return [line for lines in tables.values() for line in lines]


def _history_tables(gate: Gate, rows: Sequence[WebhookPayload], verdict: Verdict | None) -> dict[str, list[str]]:
    seen = {row for row in rows if why_not_considered(gate.expectation, row) is None}
    current = set(newest_of_each_statement(seen))
    # A row that says completed takes nothing back.
    unnamed = {
        statement_id: row.date_time
        for statement_id, row in newest_without_entity(gate.expectation, rows).items()
        if row.progress.lower() != "completed"
    }

    def rank(row: WebhookPayload) -> tuple[datetime, bool, str, str, str]:
        return (row.date_time, row in current, row.statement_id, row.progress, row.reason)

    entities: dict[str, list[WebhookPayload]] = {}
    # Sorted twice, for ties: by name, then newest first.
    for row in sorted(sorted(rows, key=lambda row: row.entity_id), key=lambda row: row.date_time, reverse=True):
        entities.setdefault(row.entity_id, []).append(row)
    record = "payload history, " if isinstance(gate, CustomerGate) else ""
    tables = {}
    for entity_id, its in entities.items():
        lines = [f"{entity_title(entity_id)}, {record}newest first, times in UTC:"]
        shown: set[WebhookPayload] = set()
        for row in sorted(its, key=rank, reverse=True):
            said = _history_remark(gate, row, verdict, unnamed, is_current=row in current)
            if row in shown and row.statement_id:
                said = "the same row again"
            shown.add(row)
            progress = Row.of_payload(row).progress
            lines.append(_line(progress, row.statement_id, row.reason, said, f"{time_of(row.date_time)}  "))
        tables[entity_id] = lines
    return tables


def _history_remark(
    gate: Gate,
    row: WebhookPayload,
    verdict: Verdict | None,
    unnamed: Mapping[str, datetime],
    *,
    is_current: bool,
) -> str:
    progress = row.progress.lower()
    dropped = why_not_considered(gate.expectation, row)
    if dropped is None and row.statement_id and not is_current:
        dropped = "the same statement has a newer row"
    if dropped is None and not row.entity_id and (progress == "completed" or not row.statement_id):
        dropped = "BankConnect names no entity"
    if dropped is None and not row.statement_id:
        dropped = "a failed login is no statement"
    if dropped is not None:
        return f"does not count: {dropped}"
    if verdict is None:
        return "not judged"
    if not row.entity_id:
        return f"{remark(progress, '', verdict)}; BankConnect names no entity"
    if verdict.state != "passed" and progress in OVER and unnamed.get(row.statement_id, row.date_time) > row.date_time:
        return "over, but a newer row of this statement names no entity"
    return remark(progress, row.entity_id, verdict)


def _items_table(gate: CustomerGate, records: Records, entity_id: str, verdict: Verdict | None) -> list[str]:
    """Return the statements of an entity's progress: what each adds to the history."""
    wanted = gate.expectation
    rows = {row for row in records.rows if row.link_id == wanted.link_id and row.entity_id == entity_id}
    seen = newest_of_each_statement(row for row in rows if why_not_considered(wanted, row) is None)
    history = dict.fromkeys((row.statement_id for row in rows), "its rows do not count")
    history |= {row.statement_id: _state(row.progress) for row in seen}
    items = sorted(records.items[entity_id], key=lambda item: least_far(Row.of_item(item, entity_id)))
    title = f"{entity_title(entity_id)}, progress of its transactions:"
    lines = [title if items else f"{title} no statement"]
    shown: set[str] = set()
    for item in items:
        status = (item.status or "").lower()
        if wanted.statement_id is not None and item.statement_id not in wanted.statement_id:
            said = "does not count: of another statement"
        elif item.statement_id in shown:
            said = "the same statement again"
        elif verdict is None:
            said = "not judged"
        elif status not in OVER:
            said = "in progress" if verdict.state == "passed" else "in progress: the gate waits for its end"
        elif item.statement_id in history:
            said = f"the history decides: {history[item.statement_id]}"
        elif wanted.since is not None and wanted.statement_id is None:
            said = "does not count: since is given, and progress has no times; name it in statement_id"
        else:
            said = remark(status, entity_id, verdict)
        shown.add(item.statement_id)
        lines.append(item_line(item, said))
    return lines


def remark(progress: str, entity_id: str, verdict: Verdict | None) -> str:
    """Return what a statement that is considered means for the verdict."""
    has_passed = verdict is not None and verdict.state == "passed"
    if progress.lower() not in OVER:
        return "in progress"
    if progress.lower() == "failed":
        return "it failed, but enough others are completed" if has_passed else "it failed"
    if verdict is not None and has_passed and entity_id != verdict.rows[0].entity_id:
        return f"not in the result: entity {plain(verdict.rows[0].entity_id)} passes the gate"
    return "counts"


def _state(progress: str) -> str:
    return progress.lower() if progress.lower() in OVER else "in progress"


def entity_title(entity_id: str) -> str:
    """Return the start of the title of a table."""
    return f"Entity {plain(entity_id)}" if entity_id else "Without an entity"


def item_line(item: StatementProgress, meaning: str) -> str:
    """Return a line about an item of a progress."""
    return _line((item.status or "").lower(), item.statement_id, item.message or item.source or "", meaning)


def _line(progress: str, statement_id: str, said: str, meaning: str, when: str = "") -> str:
    what = f"statement {plain(statement_id)}" if statement_id else "login" if when else "statement without an id"
    words = f" ({plain(said)})" if said else ""
    return f"  {when}{plain(progress or 'no status'):<10}  {what}{words}: {meaning}"


def time_of(moment: datetime) -> str:
    """Return a time in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
