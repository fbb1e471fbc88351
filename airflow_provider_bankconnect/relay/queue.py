"""The relay's queue: webhooks in a database, from the answer 200 until Airflow has recorded them.

SQLite, or PostgreSQL for several relays. What is committed survives the end of the process and of the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import event as sql_event
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from airflow_provider_bankconnect.receiver.event import WebhookEvent

_METADATA: Final = sa.MetaData()
_WEBHOOKS: Final = sa.Table(
    "bankconnect_relay_webhook",
    _METADATA,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("relay_id", sa.String(32), nullable=False),
    sa.Column("conn_id", sa.Text, nullable=False),
    # A hash of the connection and the partition key.
    sa.Column("customer", sa.String(64), nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
    sa.Column("kept_at", sa.Float(53), nullable=False),
    # Claimed, or tried and failed: not to be taken before this time.
    sa.Column("not_before", sa.Float(53), nullable=False),
    sa.Column("claim", sa.String(32)),
    sa.Column("tries", sa.Integer, nullable=False),
    # When it was first sent without an answer that says what became of it.
    sa.Column("sent_at", sa.Float(53)),
    # Why it was set aside.
    sa.Column("refused", sa.Text),
    sa.Index("bankconnect_relay_customer", "customer", "number"),
    # A number is never used again.
    sqlite_autoincrement=True,
)
_DONE: Final = sa.Table(
    "bankconnect_relay_done",
    _METADATA,
    sa.Column("mark", sa.String(64), primary_key=True),
    sa.Column("done_at", sa.Float(53), nullable=False),
)
# For so long a completed statement is known, where Airflow itself does not know it.
_DONE_SECONDS: Final = 90 * 24 * 3600.0
_BUSY_SECONDS: Final = 30


@dataclass(frozen=True)
class Webhook:
    """A webhook in the queue."""

    number: int
    relay_id: str
    conn_id: str
    fields: dict[str, Any]
    tries: int = 0
    kept_at: float = 0.0
    sent_at: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """What the webhook receiver gets."""
        return self.fields | {"relay_id": self.relay_id}


@dataclass(frozen=True)
class Settled:
    """What became of a taken webhook.

    :param how: ``done``; ``again`` after so many ``seconds``, counted as a try; ``refused`` for good and set aside; or
        ``free``, because nobody has looked at it.
    :param mark: keep that this completed statement is recorded.
    """

    number: int
    how: Literal["done", "again", "refused", "free"]
    seconds: float = 0.0
    why: str = ""
    mark: str | None = None


@dataclass(frozen=True)
class Status:
    """What is in the queue, without customers."""

    waiting: int
    oldest_seconds: float
    refused: int
    limit: int
    connections: dict[str, int]
    reasons: dict[str, int]


class Queue:
    """A queue in a database. Its methods block; call them in one thread.

    :param url: SQLAlchemy URL.
    :param limit: how many webhooks it keeps at most, those that were set aside included.
    """

    def __init__(self, url: str, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self._limit, self._clock = limit, clock
        parsed = make_url(url)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        more: dict[str, Any] = {"pool_pre_ping": True}
        if self._is_sqlite:
            _make_private(parsed.database)
            more = {"connect_args": {"timeout": _BUSY_SECONDS, "check_same_thread": False}}
        self._engine = sa.create_engine(parsed, future=True, hide_parameters=True, **more)
        if self._is_sqlite:
            sql_event.listen(self._engine, "connect", _set_up_sqlite)
            # Else a transaction that reads first could not write after another process has written.
            sql_event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        self._room, self._counted_at = 0, float("-inf")

    def create(self) -> None:
        """Create the tables if there are none."""
        with self._engine.begin() as connection:
            if not self._is_sqlite:
                # Two relays that start at once would both create them.
                connection.execute(sa.text("select pg_advisory_xact_lock(7423866190021)"))
            _METADATA.create_all(connection)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def keep(self, webhooks: Sequence[tuple[str, WebhookEvent]]) -> int:
        """Keep webhooks in one transaction, as far as there is room, and return how many of the first ones are kept.

        :raises sqlalchemy.exc.SQLAlchemyError: none is kept.
        """
        now = self._clock()
        with self._engine.begin() as connection:
            # Counting 100,000 rows takes some milliseconds.
            if self._room < max(1, len(webhooks)) or not 0 <= now - self._counted_at < 1.0:
                count = connection.execute(sa.select(sa.func.count()).select_from(_WEBHOOKS)).scalar_one()
                self._room, self._counted_at = self._limit - count, now
            kept = webhooks[: max(0, self._room)]
            rows = [
                {
                    "relay_id": uuid.uuid4().hex,
                    "conn_id": conn_id,
                    "customer": _digest(conn_id, event.key),
                    "fields": json.dumps(event.model_dump()),
                    "kept_at": now,
                    "not_before": 0.0,
                    "tries": 0,
                }
                for conn_id, event in kept
            ]
            if rows:
                connection.execute(sa.insert(_WEBHOOKS), rows)
        self._room -= len(kept)
        return len(kept)

    def take(self, most: int, seconds: float, without: Collection[str] = ()) -> tuple[str, list[Webhook]]:
        """Claim webhooks, the oldest first and one for each customer, and return the claim and them.

        Nobody else gets them, or a later one of these customers, until they are settled or the seconds are over.

        :param without: connections to leave out.
        """
        now, claim, column = self._clock(), uuid.uuid4().hex, _WEBHOOKS.c
        earlier = _WEBHOOKS.alias()
        is_first = ~(
            sa.exists()
            .where(earlier.c.customer == column.customer, earlier.c.number < column.number, earlier.c.refused.is_(None))
            .correlate(_WEBHOOKS)
        )
        query = sa.select(_WEBHOOKS).where(column.refused.is_(None), column.not_before <= now, is_first)
        if without:
            query = query.where(column.conn_id.not_in(without))
        # Two relays on one PostgreSQL take different ones. SQLite has one writer at a time.
        query = query.order_by(column.number).limit(most).with_for_update(skip_locked=True)
        with self._engine.begin() as connection:
            found = connection.execute(query).all()
            if found:
                taken = column.number.in_([row.number for row in found])
                connection.execute(sa.update(_WEBHOOKS).where(taken).values(claim=claim, not_before=now + seconds))
        return claim, [_webhook(row) for row in found]

    def has_room(self) -> bool:
        """Return whether there is room for a webhook."""
        return self._room > 0

    def tries(self, claim: str) -> dict[int, int]:
        """Return how often each webhook of a claim was tried."""
        with self._engine.begin() as connection:
            query = sa.select(_WEBHOOKS.c.number, _WEBHOOKS.c.tries).where(_WEBHOOKS.c.claim == claim)
            return {row.number: row.tries for row in connection.execute(query)}

    def settle(self, claim: str, settled: Iterable[Settled]) -> int:
        """Settle webhooks of a claim, in one transaction, and return how many of them are still this claim's."""
        now, column = self._clock(), _WEBHOOKS.c
        settled = list(settled)
        done = [one for one in settled if one.how == "done"]
        marks = sorted({one.mark for one in done if one.mark})
        with self._engine.begin() as connection:
            which = sa.and_(column.number.in_([one.number for one in done]), column.claim == claim)
            changed = int(connection.execute(sa.delete(_WEBHOOKS).where(which)).rowcount)
            for one in settled:
                if one.how == "done":
                    continue
                values: dict[str, Any] = {"claim": None, "not_before": now + one.seconds}
                if one.how == "again":
                    values["tries"] = column.tries + 1
                if one.how == "refused":
                    values["refused"] = one.why
                which = sa.and_(column.number == one.number, column.claim == claim)
                changed += int(connection.execute(sa.update(_WEBHOOKS).where(which).values(**values)).rowcount)
            if marks:
                connection.execute(sa.delete(_DONE).where(_DONE.c.mark.in_(marks)))
                connection.execute(sa.insert(_DONE), [{"mark": mark, "done_at": now} for mark in marks])
        return changed

    def mark_sent(self, claim: str, numbers: Collection[int]) -> None:
        """Keep that these are sent now: if no answer comes, they may be recorded or not."""
        column = _WEBHOOKS.c
        which = sa.and_(column.number.in_(numbers), column.claim == claim, column.sent_at.is_(None))
        with self._engine.begin() as connection:
            connection.execute(sa.update(_WEBHOOKS).where(which).values(sent_at=self._clock()))

    def done(self, marks: Collection[str]) -> set[str]:
        """Return which of these completed statements are recorded."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_DONE).where(_DONE.c.done_at < self._clock() - _DONE_SECONDS))
            return set(connection.execute(sa.select(_DONE.c.mark).where(_DONE.c.mark.in_(marks))).scalars())

    def requeue(self) -> int:
        """Put back what was set aside, and return how many."""
        which = _WEBHOOKS.c.refused.is_not(None)
        with self._engine.begin() as connection:
            values = {"refused": None, "not_before": 0.0, "tries": 0, "claim": None}
            return int(connection.execute(sa.update(_WEBHOOKS).where(which).values(**values)).rowcount)

    def status(self) -> Status:
        """Return what is in the queue."""
        count, column = sa.func.count(), _WEBHOOKS.c
        waiting = sa.select(column.conn_id, count, sa.func.min(column.kept_at)).where(column.refused.is_(None))
        refused = sa.select(column.refused, count).where(column.refused.is_not(None)).group_by(column.refused)
        with self._engine.begin() as connection:
            rows = connection.execute(waiting.group_by(column.conn_id)).all()
            reasons = {row[0]: row[1] for row in connection.execute(refused)}
        oldest = min((row[2] for row in rows), default=self._clock())
        return Status(
            waiting=sum(row[1] for row in rows),
            oldest_seconds=max(0.0, self._clock() - oldest),
            refused=sum(reasons.values()),
            limit=self._limit,
            connections={row[0]: row[1] for row in rows},
            reasons=reasons,
        )


def mark_of(conn_id: str, fields: dict[str, Any]) -> str | None:
    """Return what stands for a completed statement; None for any other webhook."""
    if fields["progress"].lower() == "completed" and fields["statement_id"].strip():
        return _digest(conn_id, json.dumps([fields["link_id"], fields["entity_id"], fields["statement_id"]]))
    return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _webhook(row: Any) -> Webhook:  # noqa: ANN401 - a row of SQLAlchemy
    fields = json.loads(row.fields)
    return Webhook(row.number, row.relay_id, row.conn_id, fields, row.tries, row.kept_at, row.sent_at)


def _make_private(database: str | None) -> None:
    """Create the file so that only its owner can read it, because it has customers' ids."""
    # SQLite gives its other files the mode of this one.
    if database and database != ":memory:" and not Path(database).exists():
        os.close(os.open(database, os.O_CREAT | os.O_WRONLY, 0o600))


def _set_up_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401 - of the driver
    # Transactions begin where SQLAlchemy begins them, see above.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
