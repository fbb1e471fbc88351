"""A verdict in words, for a person: which rows, which rule, what to do. Pure; :mod:`.__main__` is the command."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import HistoryGate, Row, Verdict, newest_of_each_statement, why_not_considered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_provider_bankconnect.gate import Gate, OnFailed, ProgressGate

    # The progress of each entity of a link.
    EntityProgress: TypeAlias = Mapping[str, Sequence[StatementProgress]]

_OVER: Final = {"completed", "failed"}
_OLD: Final = timedelta(days=1)
# Failures whose time and reason a line of the log has.
_MOST_SHOWN: Final = 3
# What to check: questions, without the question mark.
_BEGUN: Final = "is the link spelt as the SDK was given it, and has the customer begun"
_REGISTERED: Final = (
    "is the webhook endpoint registered, with webhook_mode 1 for PDFs (an update that leaves it out resets it to 0)"
)
_UNLINKED: Final = (
    "was a PDF uploaded without the link (then no payload history has it, only the progress of its entity)"
)
_SINCE: Final = "is since right, and is the connection's timezone that of BankConnect's times"
_UPLOADED: Final = (
    "is entity_id right, and has the customer uploaded anything "
    "(a failed login never shows here, only in the link's payload history)"
)
_SPREAD: Final = "statements of several entities are never added up"
_HEADINGS: Final = {"passed": "PASSED", "pending": "STILL WAITING", "failed": "FAILED"}
_ON_FAILED: Final = (
    '  "fail"  the task fails, and is not retried (the default)',
    '  "skip"  the task is skipped',
    '  "wait"  the sensor continues to wait',
    '  "pass"  the sensor passes, and returns the failed rows with the others',
)


def in_short(gate: Gate, verdict: Verdict) -> str:
    """Return in one line what is there and, if nothing is, what to check."""
    if verdict.state == "pending" and not verdict.rows:
        return f"{verdict.because} (to check: {'; '.join(_checks(gate))})"
    if _is_spread(gate, verdict):
        return f"{verdict.because} ({_SPREAD})"
    return verdict.because


def not_yet(gate: Gate, verdict: Verdict, on_failed: OnFailed, now: datetime) -> str:
    """Return in one line, for the log of a waiting task, what is there and when a failure ends the wait."""
    if not verdict.rows:
        return f"{gate}: {in_short(gate, verdict)}"
    groups: dict[str, list[str]] = {}
    for row in verdict.rows:
        kind = f"{row.progress} statement" if row.progress in _OVER else "statement in progress"
        when = f" {clock(datetime.fromisoformat(row.date_time), now)}" if row.date_time else ""
        reason = f' ("{_plain(row.reason)}")' if row.reason else ""
        groups.setdefault(kind if row.statement_id else "failed login", []).append(f"{when}{reason}")
    shown = (
        _count_of(len(rows), kind) + (",".join(rows[:_MOST_SHOWN]) if "failed" in kind else "")
        for kind, rows in groups.items()
    )
    needed = f" ({gate.expectation.needed} needed)" if gate.expectation.needed > 1 else ""
    text = f"{gate}: {'; '.join(shown)}{needed}"
    until = _counts_from(gate, verdict)
    if until is None or on_failed == "wait":
        return text
    verb = {"fail": "fails", "skip": "is skipped", "pass": "passes"}[on_failed]
    return f"{text}; {verb} at {clock(until, now)} unless a new statement arrives"


def clock(moment: datetime, now: datetime) -> str:
    """Return the time of day in UTC, with the date if that is not today."""
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%M} UTC" if moment.date() == now.astimezone(UTC).date() else f"{moment:%Y-%m-%d %H:%M} UTC"


def explain(
    gate: Gate,
    rows: Sequence[WebhookPayload | StatementProgress],
    now: datetime,
    progress: EntityProgress | None = None,
) -> str:
    """Return which rule counted or dropped each row of the answer, and what the sensor does.

    :param now: aware; the time of the verdict.
    :param progress: the progress of each entity of the link, for a history that does not pass its gate.
    """
    if isinstance(gate, HistoryGate):
        return _explain_history(gate, [row for row in rows if isinstance(row, WebhookPayload)], now, progress)
    return _explain_progress(gate, [item for item in rows if isinstance(item, StatementProgress)], now)


def _explain_history(
    gate: HistoryGate, rows: Sequence[WebhookPayload], now: datetime, progress: EntityProgress | None
) -> str:
    try:
        verdict = gate.judge(rows, now)
    except BankConnectTimezoneError as error:
        zone = rows[0].date_time.tzinfo
        return _page(
            f"ERROR: {gate}: {error}.",
            _history_table(gate, rows, None),
            ["The sensor ends with this error, whatever on_failed and soft_fail say."],
            [f"Set the connection's timezone to that of BankConnect's times: they were read as {zone}."],
        )
    because = verdict.because if verdict.rows else "no row that counts" if rows else "no row at all"
    absent = _absent(gate, rows, progress or {}) if verdict.state != "passed" else {}
    return _page(
        f"{_HEADINGS[verdict.state]}: {gate}: {because}.",
        [*_history_table(gate, rows, verdict), *_absent_table(absent)],
        [*_missing(gate, verdict), *_outcome(gate, verdict)],
        [*_history_hints(gate, rows, verdict, now), *_absent_hints(rows, absent, progress)],
    )


def _history_hints(gate: HistoryGate, rows: Sequence[WebhookPayload], verdict: Verdict, now: datetime) -> list[str]:
    wanted = gate.expectation
    hints = []
    if verdict.state == "passed" and wanted.since is None and wanted.statement_id is None:
        oldest = datetime.fromisoformat(verdict.rows[-1].date_time or "")
        if now - oldest > _OLD:
            risk = "Without since, rows of any age count, and a link that is used again passes at once."
            hints.append(f"Is the row of {_time(oldest)} one that you wait for? {risk}")
    dropped = [row for row in rows if why_not_considered(wanted, row) is not None]
    if verdict.state == "pending" and dropped:
        if wanted.since is not None and any(row.date_time < wanted.since for row in dropped):
            hints.append(_question(_SINCE))
        given = {"entity_id": wanted.entity_id, "statement_id": wanted.statement_id}
        if names := " and ".join(name for name, value in given.items() if value is not None):
            hints.append(_question(f"is {names} right"))
    if _is_spread(gate, verdict):
        hints.append(f"{_SPREAD[0].upper()}{_SPREAD[1:]}: name the right one with entity_id.")
    return hints


def _explain_progress(gate: ProgressGate, items: Sequence[StatementProgress], now: datetime) -> str:
    verdict = gate.judge(items, now)
    wanted = gate.expectation.statement_id
    lines = ["Statements:"] if items else []
    for item in sorted(items, key=lambda item: (item.statement_id, item.status or "", item.message or "")):
        status = (item.status or "").lower()
        remark = "counts" if status == "completed" else "it failed" if status == "failed" else "in progress"
        if wanted is not None and item.statement_id not in wanted:
            remark = "does not count: of another statement"
        lines.append(_line(status, item.statement_id, item.message or item.source or "", remark))
    because = verdict.because if verdict.rows else "no statement that counts" if items else "no statement at all"
    check = "is statement_id right" if items else _UPLOADED
    return _page(
        f"{_HEADINGS[verdict.state]}: {gate}: {because}.",
        lines,
        [*_missing(gate, verdict), *_outcome(gate, verdict)],
        [] if verdict.rows else [_question(check)],
    )


def _history_table(gate: HistoryGate, rows: Sequence[WebhookPayload], verdict: Verdict | None) -> list[str]:
    """Return the rows of each entity: statements are counted per entity."""
    seen = {row for row in rows if why_not_considered(gate.expectation, row) is None}
    current = set(newest_of_each_statement(seen))

    def rank(row: WebhookPayload) -> tuple[datetime, bool, str, str, str]:
        return (row.date_time, row in current, row.statement_id, row.progress, row.reason)

    entities: dict[str, list[WebhookPayload]] = {}
    # Sorted twice, for ties: by name, then newest first.
    for row in sorted(sorted(rows, key=lambda row: row.entity_id), key=lambda row: row.date_time, reverse=True):
        entities.setdefault(row.entity_id, []).append(row)
    lines = []
    for entity_id, its in entities.items():
        lines.append(f"Entity {_plain(entity_id)}, newest first, times in UTC:")
        shown: set[WebhookPayload] = set()
        for row in sorted(its, key=rank, reverse=True):
            remark = _history_remark(gate, row, verdict, is_current=row in current)
            if row in shown and row.statement_id:
                remark = "the same row again"
            shown.add(row)
            progress = Row.of_payload(row).progress
            lines.append(_line(progress, row.statement_id, row.reason, remark, f"{_time(row.date_time)}  "))
    return lines


def _history_remark(gate: HistoryGate, row: WebhookPayload, verdict: Verdict | None, *, is_current: bool) -> str:
    progress = row.progress.lower()
    remark = "counts"
    if (dropped := why_not_considered(gate.expectation, row)) is not None:
        remark = f"does not count: {dropped}"
    elif not row.statement_id:
        remark = "does not count: a failed login is no statement"
    elif not is_current:
        remark = "does not count: the same statement has a newer row"
    elif verdict is None:
        remark = "not judged"
    elif progress not in _OVER:
        remark = "in progress"
    elif progress == "failed":
        remark = "it failed, but enough others are completed" if verdict.state == "passed" else "it failed"
    elif verdict.state == "passed" and row.entity_id != verdict.rows[0].entity_id:
        remark = f"not in the result: entity {_plain(verdict.rows[0].entity_id)} passes the gate"
    return remark


def _absent(
    gate: HistoryGate, rows: Sequence[WebhookPayload], progress: EntityProgress
) -> dict[str, list[StatementProgress]]:
    """Return the statements of the link's entities that the history has no row of, or that are processed again."""
    known = {row.statement_id for row in rows}
    going = {row.statement_id for row in newest_of_each_statement(rows) if row.progress.lower() not in _OVER}
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
        lines.append(f"Entity {_plain(entity_id)}, known to BankConnect but not in this history:")
        for item in items:
            remark = "over, but without a row" if _is_over(item) else "in progress: its row comes when it is over"
            lines.append(_line((item.status or "").lower(), item.statement_id, item.source or "", remark))
    return lines


def _absent_hints(rows: Sequence[WebhookPayload], absent: EntityProgress, progress: EntityProgress | None) -> list[str]:
    """Return why a history may lack rows, as far as the progress of the link's entities shows it."""
    if any(_is_over(item) for items in absent.values() for item in items):
        other = "BankConnectProgressSensor counts the statements without a row: it needs no webhook."
        return [_question(_REGISTERED), other]
    if rows or absent:
        return []
    if progress is None:
        return [_question(_BEGUN), _question(_UNLINKED), _question(_REGISTERED)]
    if not progress:
        return [f"BankConnect knows no entity of this link: {_BEGUN}?", _question(_UNLINKED)]
    return ["BankConnect knows the link, but nothing was uploaded yet: has the customer finished?"]


def _is_over(item: StatementProgress) -> bool:
    return (item.status or "").lower() in _OVER


def _missing(gate: Gate, verdict: Verdict) -> list[str]:
    """Return what the gate still needs to pass."""
    if verdict.state == "passed" or (verdict.state == "failed" and not isinstance(gate, HistoryGate)):
        return []
    lines = []
    # In progress a failed statement is done; in a history the customer may upload another one.
    done = {"completed"} if isinstance(gate, HistoryGate) else _OVER
    going = sorted({row.statement_id for row in verdict.rows if row.statement_id and row.progress not in _OVER})
    if going:
        lines.append(f"Missing: the end of {', '.join(map(_plain, going))}.")
    if gate.expectation.statement_id is not None:
        finished = {row.statement_id for row in verdict.rows if row.progress in done}
        if absent := sorted({*gate.expectation.statement_id} - finished - {*going}):
            lines.append(f"Missing: statement {', '.join(map(_plain, absent))}.")
        return lines
    left = gate.expectation.needed - max(_done_by_entity(verdict.rows, done).values(), default=0) - len(going)
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
    if (until := _counts_from(gate, verdict)) is None:
        return ["The sensor continues to wait, whatever on_failed is."]
    condition = f"If no new statement arrives until {_time(until)} UTC, on_failed decides:"
    return [f"The sensor continues to wait. {condition}", *_ON_FAILED]


def _counts_from(gate: Gate, verdict: Verdict) -> datetime | None:
    """Return when the newest row, a failure, is old enough to count; None if that is not what a pending gate has."""
    if not verdict.rows or verdict.rows[0].progress != "failed" or any(r.progress not in _OVER for r in verdict.rows):
        return None
    newest = verdict.rows[0].date_time
    return datetime.fromisoformat(newest) + gate.expectation.failure_grace if newest else None


def _checks(gate: Gate) -> list[str]:
    if not isinstance(gate, HistoryGate):
        return [_UPLOADED]
    return [*([_SINCE] if gate.expectation.since else []), _BEGUN, _UNLINKED, _REGISTERED]


def _is_spread(gate: Gate, verdict: Verdict) -> bool:
    """Return whether only all entities together have as many statements as one of them needs."""
    counts = _done_by_entity(verdict.rows, {"completed"}).values()
    together = sum(counts) >= gate.expectation.needed > max(counts, default=0)
    return isinstance(gate, HistoryGate) and verdict.state == "pending" and together


def _done_by_entity(rows: Iterable[Row], done: set[str]) -> Counter[str]:
    return Counter(row.entity_id for row in rows if row.progress in done and row.statement_id)


def _count_of(number: int, kind: str) -> str:
    plural = kind.replace("statement", "statements").replace("login", "logins")
    return f"{number} {kind if number == 1 else plural}"


def _line(progress: str, statement_id: str, said: str, remark: str, when: str = "") -> str:
    what = f"statement {_plain(statement_id)}" if statement_id else "login"
    words = f" ({_plain(said)})" if said else ""
    return f"  {when}{_plain(progress or 'no status'):<10}  {what}{words}: {remark}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _question(check: str) -> str:
    return f"{check[0].upper()}{check[1:]}?"


def _plain(text: str) -> str:
    """Return foreign text without characters that a terminal or a log must not get."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _page(verdict: str, table: list[str], outcome: list[str], hints: list[str]) -> str:
    parts = [[verdict], table, outcome, ["To check:", *(f"- {hint}" for hint in hints)] if hints else []]
    return "\n\n".join("\n".join(part) for part in parts if part)
