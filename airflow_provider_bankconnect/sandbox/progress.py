"""An entity's statements on the timeline, and the ``progress`` array of each analysis at a moment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .data import AccountShape, StatementShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .models import Statement, TransactionStatus

Row = dict[str, Any]


@dataclass(frozen=True)
class Play:
    """A statement on the timeline, with its ids and its times."""

    statement: Statement
    entity_id: str
    statement_id: str
    begins: datetime
    ends: datetime

    def ends_for(self, analysis: str) -> datetime:
        """Return when the analysis of the statement ends."""
        later = sum(seconds for name, seconds in self.statement.later.items() if name == analysis)
        return self.ends + timedelta(seconds=later)


@dataclass
class Entity:
    """A customer. Fixed progress replaces that of the timeline from a moment on."""

    entity_id: str
    link_id: str | None
    plays: list[Play] = field(default_factory=list)
    fixed_progress: dict[str, list[tuple[datetime, list[Row]]]] = field(default_factory=dict)
    _first: dict[str, Statement] = field(default_factory=dict)
    _of_account: dict[int, list[Play]] = field(default_factory=dict)

    def add(self, play: Play) -> None:
        """Add a statement, or one that is processed a second time: that keeps what the first one says."""
        self.plays.append(play)
        self._first.setdefault(play.statement_id, play.statement)
        self._of_account.setdefault(self.account_of(play.statement_id), []).append(play)

    def account_of(self, statement_id: str) -> int:
        """Return the number of the account that a statement is of; 0 for one that is not on the timeline."""
        first = self._first.get(statement_id)
        return first.account if first else 0

    def shape_of(self, statement_id: str) -> StatementShape:
        """Return what the transactions and the file of a statement are made from."""
        first = self._first.get(statement_id)
        if first is None:
            return StatementShape(statement_id)
        return StatementShape(statement_id, first.transactions, first.file_bytes)

    def plays_of(self, account: int) -> list[Play]:
        """Return the statements of one account."""
        return self._of_account.get(account, [])

    def only(self, account: int) -> Entity:
        """Return the entity with the statements of one account."""
        fixed = {
            name: [
                (since, [item for item in items if self.account_of(statement_of(item)) == account])
                for since, items in versions
            ]
            for name, versions in self.fixed_progress.items()
        }
        return replace(self, plays=self.plays_of(account), fixed_progress=fixed)


def progress_of(entity: Entity, analysis: str, now: datetime, status: TransactionStatus) -> list[Row]:
    """Return the progress of an analysis; ``status`` says what the items of identity tell about the transactions."""
    fixed = _fixed_items(entity, analysis, now)
    if fixed is not None:
        return fixed
    items = _items(entity, now, lambda play: play.ends_for(analysis))
    return _with_transaction_status(entity, items, now, status) if analysis == "identity" else items


def statement_of(item: Row) -> str:
    """Return the id of the statement of an item of progress."""
    return str(item.get("statement_id"))


def accounts_of(
    entity: Entity, analysis: str, items: Iterable[Row], now: datetime, never: datetime
) -> tuple[AccountShape, ...]:
    """Return the accounts of the statements in the progress, by number; ``never`` stands for no end so far."""
    shapes: dict[int, list[StatementShape]] = {}
    for item in items:
        statement_id = statement_of(item)
        shapes.setdefault(entity.account_of(statement_id), []).append(entity.shape_of(statement_id))
    updated: dict[int, datetime] = {}
    for play in entity.plays:
        number, end = entity.account_of(play.statement_id), play.ends_for(analysis)
        if end <= now and (number not in updated or updated[number] < end):
            updated[number] = end
    return tuple(
        AccountShape(number, tuple(shapes[number]), updated.get(number, never).astimezone(UTC))
        for number in sorted(shapes)
    )


def _with_transaction_status(entity: Entity, items: list[Row], now: datetime, status: TransactionStatus) -> list[Row]:
    fixed = _fixed_items(entity, "transactions", now)
    # A statement that only the fixed progress of the transactions has is in the answer of both analyses.
    known = {_id(item) for item in items}
    shown = items + [dict(item) for item in fixed or [] if _id(item) not in known]
    if status == "absent":
        return shown
    if status == "ahead":
        source = _items(entity, now, lambda play: play.ends) + (fixed or [])
    elif fixed is None:
        source = _items(entity, now, lambda play: play.ends_for("transactions"))
    else:
        source = fixed
    states: dict[str, object] = {}
    for item in source:
        states.setdefault(_id(item), item.get("status") or "processing")
    return [item | {"transaction_status": states.get(_id(item), "processing")} for item in shown]


def _fixed_items(entity: Entity, analysis: str, now: datetime) -> list[Row] | None:
    versions = entity.fixed_progress.get(analysis, [])
    return next((items for since, items in reversed(versions) if since <= now), None)


def _items(entity: Entity, now: datetime, ends_of: Callable[[Play], datetime]) -> list[Row]:
    newest: dict[str, tuple[datetime, Play, bool]] = {}
    for play in entity.plays:
        for moment, ended in ((play.begins, False), (ends_of(play), True)):
            known = newest.get(play.statement_id)
            if moment <= now and (known is None or known[0] <= moment):
                newest[play.statement_id] = (moment, play, ended)
    return [_item(play, ended=ended) for _, play, ended in newest.values()]


def _item(play: Play, *, ended: bool) -> Row:
    statement = play.statement
    processing = None if statement.processing_as == "null" else "processing"
    return {
        "status": statement.progress if ended else processing,
        "statement_id": play.statement_id,
        "source": statement.mode,
        "message": (statement.reason or None) if ended else None,
    }


def _id(item: Row) -> str:
    # Fixed items may hold anything, also what cannot be hashed.
    return repr(item.get("statement_id"))
