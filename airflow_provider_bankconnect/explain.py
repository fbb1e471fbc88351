"""A verdict in words, for a person: which rows, which rule, what to do. Pure; :mod:`.__main__` is its command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import (
    HistoryGate,
    Row,
    newest_of_each_statement,
    why_out_of_sight,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_provider_bankconnect.gate import Gate, ProgressGate, Verdict

_NO_ROW: Final = (
    "is the webhook endpoint registered, with a webhook_mode that covers manual (PDF) uploads if there are any "
    "(every update that leaves it out resets it); is the link spelt as the SDK spelt it; has the customer begun"
)
_NO_STATEMENT: Final = (
    "has the customer uploaded anything: a failed login never shows here, only in the link's payload history"
)
_MEANINGS: Final = {
    "pending": "goes on waiting, whatever on_failed says",
    "passed": "opens, whatever on_failed says",
    "failed": (
        'fails its task, without retries (on_failed="fail"), is skipped ("skip"), goes on waiting ("wait"), '
        'or opens with the failed rows among the result ("pass")'
    ),
}


def in_short(gate: Gate, verdict: Verdict) -> str:
    """Say in one line what is there and, where nothing is, what to check."""
    if verdict.rows or verdict.state != "pending":
        return verdict.because
    check = _NO_ROW if isinstance(gate, HistoryGate) else _NO_STATEMENT
    return f"{verdict.because} (to check: {check})"


def explain(gate: Gate, rows: Sequence[WebhookPayload | StatementProgress], now: datetime) -> str:
    """Say which rule counted or dropped each row that a ledger gave, and what comes of it.

    :param now: aware; the time of the verdict.
    """
    if isinstance(gate, HistoryGate):
        return _explain_history(gate, [row for row in rows if isinstance(row, WebhookPayload)], now)
    return _explain_progress(gate, [item for item in rows if isinstance(item, StatementProgress)], now)


def _explain_history(gate: HistoryGate, rows: Sequence[WebhookPayload], now: datetime) -> str:
    seen = [row for row in rows if why_out_of_sight(gate.expectation, row) is None]
    current = set(newest_of_each_statement(set(seen)))
    lines = [
        _line(Row.of_payload(row), _history_remark(gate, row, is_current=row in current))
        for row in sorted(rows, key=lambda row: row.date_time, reverse=True)
    ]
    try:
        verdict = gate.judge(rows, now)
    except BankConnectTimezoneError as error:
        return _page(str(gate), "error", str(error), lines, ["is the connection's timezone that of the vendor"])
    dropped = len(rows) - len(seen)
    hints = []
    if not verdict.rows:
        hints = (
            [_NO_ROW]
            if not rows
            else [f"all {len(rows)} rows are out of sight: are link_id, entity_id and since right"]
        )
    elif verdict.state == "pending" and dropped:
        hints = [f"{dropped} of {len(rows)} rows are out of sight: are entity_id, statement_id and since right"]
    return _page(str(gate), verdict.state, verdict.because, lines, hints)


def _explain_progress(gate: ProgressGate, items: Sequence[StatementProgress], now: datetime) -> str:
    verdict = gate.judge(items, now)
    wanted = gate.expectation.statement_id
    lines = []
    for item in items:
        status = (item.status or "").lower()
        remark = f"counts as {status}" if status in {"completed", "failed"} else "still going"
        if wanted is not None and item.statement_id not in wanted:
            remark = "not in sight: of another statement"
        lines.append(_line(Row.of_item(item, gate.expectation.entity_id), remark))
    return _page(str(gate), verdict.state, verdict.because, lines, [] if verdict.rows else [_NO_STATEMENT])


def _history_remark(gate: HistoryGate, row: WebhookPayload, *, is_current: bool) -> str:
    dropped = why_out_of_sight(gate.expectation, row)
    if dropped is not None:
        return f"not in sight: {dropped}"
    if not row.statement_id:
        return "a failed attempt, no statement: never counted"
    if not is_current:
        return "superseded by a newer row of the same statement"
    progress = row.progress.lower()
    return f"counts as {progress}" if progress in {"completed", "failed"} else "still going"


def _line(row: Row, remark: str) -> str:
    when = f"{row.date_time}  " if row.date_time else ""
    what = f"statement {row.statement_id}" if row.statement_id else "attempt"
    said = f" ({row.reason})" if row.reason else ""
    return f"  {when}{row.progress or 'null':<10}  {what} of entity {row.entity_id}{said}: {remark}"


def _page(what: str, state: str, because: str, lines: list[str], hints: list[str]) -> str:
    page = [f"{state.upper()}: {what}: {because}", f"The gate {_MEANINGS.get(state, 'ends with an error')}."]
    page += ["Rows, newest first:", *lines] if lines else ["There is no row at all."]
    page += [f"To check: {hint}?" for hint in hints]
    return "\n".join(page)
