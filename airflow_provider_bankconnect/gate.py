"""The verdict: what is expected + what BankConnect's records say + the time -> pending, passed or failed.

Pure functions on values. No order of rows and no repetition of a row changes a verdict.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.expectation import Expectation, OnFailed, Row, State, Verdict, progress_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Expectation", "OnFailed", "Row", "State", "Verdict", "judge_customer", "judge_history", "judge_progress"]

# At the same second, completed counts before failed, and failed before anything else.
_RANK: Final = {"completed": 2, "failed": 1}
MAX_CLOCK_SKEW: Final = timedelta(minutes=5)


def judge_history(expectation: Expectation, rows: Iterable[WebhookPayload], now: datetime) -> Verdict:
    """Judge a link's payload history at the time ``now``.

    :raises BankConnectTimezoneError: a considered row is more than five minutes in the future.
    """
    return _judge_history(_History(expectation, rows), now)


class _History:
    """The rows of a payload history, and of those that are considered the newest of each statement."""

    def __init__(self, expectation: Expectation, rows: Iterable[WebhookPayload]) -> None:
        self.expectation = expectation
        self.rows = list(rows)
        self.seen = {row for row in self.rows if why_not_considered(expectation, row) is None}
        self.current = list(newest_of_each_statement(self.seen))
        self.replaced = newest_without_entity(expectation, self.rows)


def _judge_history(history: _History, now: datetime) -> Verdict:
    expectation, seen, current = history.expectation, history.seen, history.current
    _refuse_future(seen, now)
    by_entity: dict[str, list[WebhookPayload]] = defaultdict(list)
    for row in current:
        by_entity[row.entity_id].append(row)

    results = (_completed_if_passed(expectation, entity, history.replaced) for entity in by_entity.values())
    if passed := list(filter(None, results)):
        result = max((_newest_first(done) for done in passed), key=lambda done: _newness(done[0]))
        return Verdict("passed", _as_rows(result), f"{_count(len(result))} completed")

    attempts = [row for row in seen if not row.statement_id]
    shown = _newest_first([*current, *attempts])
    if not shown:
        return Verdict("pending", (), "no row that counts")
    in_progress = sum(not _is(row, "completed", "failed") for row in current)
    if not in_progress and _is(shown[0], "failed"):
        return _failed_or_soon(expectation, shown, seen, now)
    # There is a statement: failed attempts alone were handled above.
    most = max(sum(_is(row, "completed") and row.entity_id != "" for row in entity) for entity in by_entity.values())
    return Verdict("pending", _as_rows(shown), _so_far(expectation, most, in_progress))


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
    done = {row.statement_id for row in rows} - in_progress - {""}
    if in_progress or len(done) < expectation.needed:
        return Verdict("pending", tuple(rows), _so_far(expectation, len(done), len(in_progress), "done"))
    failed = [row for row in rows if row.progress == "failed"]
    if failed:
        counts = [len({row.statement_id for row in some}) for some in (failed, rows)]
        return Verdict("failed", tuple(rows), f"{counts[0]} of {_count(counts[1])} failed; {_reasons(failed)}")
    return Verdict("passed", tuple(rows), f"{_count(len(done))} completed")


def judge_customer(
    expectation: Expectation,
    rows: Iterable[WebhookPayload],
    items: Mapping[str, Iterable[StatementProgress]],
    now: datetime,
) -> Verdict:
    """Judge a customer by both records at the time ``now``.

    The history decides wherever it has a row of a statement. A statement that only the progress knows counts too,
    unless ``since`` is given and ``statement_id`` does not name it: progress has no times. Nothing passes while either
    record says that a statement is in progress.

    :param rows: the payload history of the link; empty for an entity without a link.
    :param items: the progress of ``transactions`` of each entity.
    :raises BankConnectTimezoneError: a considered row is more than five minutes in the future.
    """
    considered = _History(expectation, rows)
    history = _judge_history(considered, now)
    customer = _Customer(considered, items)
    shown = (*history.rows, *customer.going, *customer.undated)
    if missing := customer.missing(now):
        because = f"{_count(len(missing))} that a webhook announced in neither record yet"
        return Verdict("pending", shown, because)
    if passed := customer.passed():
        return Verdict("passed", passed, f"{_count(len(passed))} completed")
    in_progress = any(row.progress not in _RANK for row in shown)
    # A failure counts only later, because customers try again.
    is_recent = history.state == "pending" and bool(history.rows) and history.rows[0].progress == "failed"
    failed = [row for row in customer.undated if row.progress == "failed"]
    if not in_progress and not is_recent and history.state != "passed":
        if any(customer.done(row.entity_id) >= expectation.needed for row in failed):
            return Verdict("failed", shown, f"{_count(len(failed))} failed; {_reasons(failed)}")
        # A completed statement without a time may be newer than the failure.
        if history.state == "failed" and len(failed) == len(customer.undated):
            return Verdict("failed", shown, history.because)
    return Verdict("pending", shown, customer.so_far(history))


def why_not_considered(expectation: Expectation, row: WebhookPayload) -> str | None:
    """Return why a row is not considered; None if it is."""
    if row.link_id != expectation.link_id:
        return f"of another link, {row.link_id!r}"
    if expectation.entity_id is not None and row.entity_id != expectation.entity_id:
        return f"of another entity, {row.entity_id!r}" if row.entity_id else "BankConnect names no entity"
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


class _Customer:
    """The statements of a customer in both records.

    ``going`` has those in progress by the progress, ``undated`` those over that only the progress knows, and
    ``left_out`` is how many of the latter do not count because of ``since``.
    """

    def __init__(self, history: _History, items: Mapping[str, Iterable[StatementProgress]]) -> None:
        self.expectation = expectation = history.expectation
        self.dated, self.replaced = history.current, history.replaced
        self.going: list[Row] = []
        self.undated: list[Row] = []
        self.left_out = 0
        known = {(row.entity_id, row.statement_id) for row in history.rows if row.link_id == expectation.link_id}
        self.ids = {statement_id for _, statement_id in known}
        for entity_id, its in sorted(items.items()):
            if expectation.entity_id in {None, entity_id}:
                for row in _one_for_each_statement(entity_id, its):
                    self._add(row, is_known=(entity_id, row.statement_id) in known)

    def missing(self, now: datetime) -> set[str]:
        """Return the announced statements that neither record has, until the announcement ends."""
        until = self.expectation.announced_until
        return set() if until is None or now >= until else {*self.expectation.announced} - self.ids

    def _add(self, row: Row, *, is_known: bool) -> None:
        self.ids.add(row.statement_id)
        named = self.expectation.statement_id
        if named is not None and row.statement_id not in named:
            return
        if row.progress not in _RANK:
            self.going.append(row)
        elif not is_known and self.expectation.since is not None and named is None:
            self.left_out += 1
        elif not is_known:
            self.undated.append(row)

    def done(self, entity_id: str, *states: str) -> int:
        """Return how many statements of an entity are over, or in one of these states."""
        states = states or tuple(_RANK)
        dated = sum(row.entity_id == entity_id and _is(row, *states) for row in self.dated)
        undated = [row for row in self.undated if row.statement_id and row.progress in states]
        return dated + sum(row.entity_id == entity_id for row in undated)

    def passed(self) -> tuple[Row, ...]:
        """Return the completed rows of the entity that passes; of several, the one with the newest row."""
        results: list[tuple[tuple[object, ...], tuple[Row, ...]]] = []
        for entity_id in self._entities():
            dated = [row for row in self.dated if row.entity_id == entity_id]
            is_over = all(_is_over(row, self.replaced) for row in dated)
            if self.done(entity_id, "completed") < self.expectation.needed or not is_over:
                continue
            if any(row.entity_id == entity_id for row in (*self.going, *self._taken_back())):
                continue
            completed = _newest_first(row for row in dated if _is(row, "completed"))
            more = [row for row in self.undated if row.entity_id == entity_id and row.progress == "completed"]
            rank = (1, *_newness(completed[0])) if completed else (0, entity_id)
            results.append((rank, (*_as_rows(completed), *more)))
        return max(results, default=((), ()))[1]

    def _taken_back(self) -> list[Row]:
        """Return the undated statements that a row of the history, which names no entity, takes back."""
        said = {statement_id: progress_of(row) for statement_id, row in self.replaced.items()}
        return [row for row in self.undated if _takes_back(said.get(row.statement_id, "completed"), row.progress)]

    def _entities(self) -> set[str]:
        return ({row.entity_id for row in self.dated} | {row.entity_id for row in (*self.undated, *self.going)}) - {""}

    def so_far(self, history: Verdict) -> str:
        """Return in words what is there while the verdict is pending."""
        left_out = f"; {_count(self.left_out)} only in the progress, which has no times" if self.left_out else ""
        if not self.going and not self.undated:
            return (history.because if history.rows else "no statement that counts") + left_out
        in_progress = {(row.entity_id, row.statement_id) for row in self.going}
        in_progress |= {(row.entity_id, row.statement_id) for row in self.dated if not _is(row, *_RANK)}
        most = max(self.done(entity_id, "completed") for entity_id in self._entities())
        return _so_far(self.expectation, most, len(in_progress)) + left_out


def _one_for_each_statement(entity_id: str, items: Iterable[StatementProgress]) -> list[Row]:
    """Return a row for each statement of a progress: of several, the one that is least far."""
    rows: dict[str, Row] = {}
    for row in sorted({Row.of_item(item, entity_id) for item in items}, key=least_far):
        rows.setdefault(row.statement_id, row)
    return list(rows.values())


def least_far(row: Row) -> tuple[str, int, str, str]:
    """Return a sort key for the rows of a progress: of several of one statement, the one that is least far is first."""
    return (row.statement_id, _RANK.get(row.progress, 0), row.progress, row.reason)


def newest_without_entity(expectation: Expectation, rows: Iterable[WebhookPayload]) -> dict[str, WebhookPayload]:
    """Return the newest row that names a statement but no entity, by statement: the statement may not be over."""
    nameless = (row for row in rows if row.link_id == expectation.link_id and not row.entity_id)
    return {row.statement_id: row for row in newest_of_each_statement(nameless)}


def _is_over(row: WebhookPayload, replaced: Mapping[str, WebhookPayload]) -> bool:
    newer = replaced.get(row.statement_id)
    if newer is not None and _newness(newer) > _newness(row) and _takes_back(progress_of(newer), progress_of(row)):
        return False
    return _is(row, "completed", "failed")


def _takes_back(said: str, progress: str) -> bool:
    """Return whether what a newer row without an entity says of a statement forbids to count it as it is."""
    return said not in _RANK or (said == "failed" and progress == "completed")


def _completed_if_passed(
    expectation: Expectation, entity: list[WebhookPayload], replaced: Mapping[str, WebhookPayload]
) -> list[WebhookPayload]:
    completed = [row for row in entity if _is(row, "completed") and row.entity_id]
    is_enough = len(completed) >= expectation.needed and all(_is_over(row, replaced) for row in entity)
    return completed if is_enough else []


def _failed_or_soon(
    expectation: Expectation, shown: list[WebhookPayload], seen: Iterable[WebhookPayload], now: datetime
) -> Verdict:
    """Return the verdict of a history whose newest row is a failure."""
    reasons = _reasons(row for row in seen if _is(row, "failed"))
    grace = expectation.failure_grace
    if now - shown[0].date_time >= grace:
        return Verdict("failed", _as_rows(shown), f"the newest row is a failure; {reasons}")
    soon = f"the newest row is a failure, which counts when it is {grace} old; {reasons}"
    return Verdict("pending", _as_rows(shown), soon)


def _reasons(failed: Iterable[Row | WebhookPayload]) -> str:
    return f"reasons: {', '.join(sorted({repr(row.reason) for row in failed}))}"


def _so_far(expectation: Expectation, done: int, in_progress: int, word: str = "completed") -> str:
    text = f"{done} of {_count(expectation.needed)} {word}"
    if in_progress:
        return f"{text}, {in_progress} in progress"
    # Nothing else keeps enough completed statements from passing.
    is_taken_back = word == "completed" and done >= expectation.needed
    return f"{text}, but a newer row that names no entity says otherwise" if is_taken_back else text


def _refuse_future(rows: Iterable[WebhookPayload], now: datetime) -> None:
    ahead = max((row.date_time - now for row in rows), default=timedelta(0))
    if ahead > MAX_CLOCK_SKEW:
        raise BankConnectTimezoneError(
            f"A payload is {timedelta(minutes=round(ahead.total_seconds() / 60))} in the future: the connection's "
            "timezone is not the zone of the vendor's date_time (or this machine's clock is wrong)"
        )


def _is(row: WebhookPayload, *states: str) -> bool:
    return progress_of(row) in states


def _newness(row: WebhookPayload) -> tuple[datetime, int, str, str, str, str]:
    """Return a sort key: by time, and for equal times independent of the order of arrival."""
    progress = progress_of(row)
    return (row.date_time, _RANK.get(progress, 0), row.entity_id, row.statement_id, progress, row.reason)


def _newest_first(rows: Iterable[WebhookPayload]) -> list[WebhookPayload]:
    return sorted(rows, key=_newness, reverse=True)


def _as_rows(payloads: Iterable[WebhookPayload]) -> tuple[Row, ...]:
    return tuple(dict.fromkeys(Row.of_payload(payload) for payload in payloads))


def _count(statements: int) -> str:
    return f"{statements} statement{'' if statements == 1 else 's'}"
