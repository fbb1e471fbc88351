"""Webhook events in Airflow's database: recorded as asset events in groups, and read back for the event feed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

import tenacity
from airflow.assets.manager import asset_manager
from airflow.models.asset import AssetEvent, AssetModel, AssetPartitionDagRun
from airflow.utils.session import create_session
from sqlalchemy import event as sql_event
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import with_loader_criteria

from airflow_provider_bankconnect.receiver import address, runs
from airflow_provider_bankconnect.receiver.event import read_back
from airflow_provider_bankconnect.receiver.measure import Measuring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import ORMExecuteState, Session

    from airflow_provider_bankconnect.receiver.event import Completion, WebhookEvent

_log = logging.getLogger(__name__)
# With more events in the queue, BankConnect would give up before the last one is recorded.
_MAX_QUEUED: Final = 1000
# An event takes some milliseconds, and later ones wait for the whole group.
_GROUP_SIZE: Final = 20
_MAX_FEED: Final = 5000
# A request for new events is held open for up to this many seconds until an event arrives (long polling).
_LONG_POLL_SECONDS: Final = 1.0
# A triggerer's first request gets the events of this period.
_RECENT: Final = timedelta(minutes=2)
# Airflow may refuse to create a run for an event at all, for instance because of a partition mapper.
_MOST_TIMES: Final = 5
_HAS_CALLBACK_SINK: Final = "callback_sink" in inspect.signature(asset_manager.register_asset_change).parameters


class Outcome(Enum):
    """What the receiver did with an event."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    NO_LISTENER = "no_listener"
    FAILED = "failed"


@dataclass(frozen=True)
class Sent:
    """An event to record, and what to do if it is a completed statement that is recorded already.

    :param how: nothing, for a ``webhook``; ``record`` it anew if it has no run and waits for none; or record it
        ``again`` in any case.
    :param completed_at: the time that BankConnect's payload history has for it.
    :param relay_id: the number of a webhook that a relay has taken. It is recorded once, whatever it is.
    """

    event: WebhookEvent
    how: Literal["webhook", "record", "again"] = "webhook"
    completed_at: datetime | None = None
    relay_id: str | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """The extra of the asset event."""
        return self.event.model_dump() | ({"relay_id": self.relay_id} if self.relay_id else {})

    @property
    def marks(self) -> set[Completion | str]:
        """What a later event must not have in common with this one, or it is a duplicate."""
        return {mark for mark in (self.event.completion, self.relay_id) if mark}


@dataclass
class _Queued:
    conn_id: str
    sent: Sent
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Writer:
    """Queues events and records them in groups, one transaction for each group. One writer for each process.

    Many short transactions at once exhaust the connection pool of a PostgreSQL, and block the scheduler on SQLite.
    """

    def __init__(self) -> None:
        self._queue: deque[_Queued] = deque()
        self._task: asyncio.Task[None] | None = None
        self._recorded = asyncio.Event()
        self._recorded_at: datetime | None = None
        self.measuring = Measuring()

    def is_full(self, more: int = 1) -> bool:
        """Return whether the queue has no room for that many more."""
        return len(self._queue) + more > _MAX_QUEUED

    async def write(self, conn_id: str, sent: Sequence[Sent]) -> list[Outcome]:
        """Record events; returns when each is committed or has failed."""
        queued = [_Queued(conn_id, one) for one in sent]
        self._queue.extend(queued)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_queue())
        return await asyncio.gather(*(one.outcome for one in queued))

    async def wait_for_event(self, after: datetime) -> None:
        """Wait for this process to record an event, for a limited time; return at once if it did so after ``after``."""
        if self._recorded_at is None or self._recorded_at < after:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._recorded.wait(), _LONG_POLL_SECONDS)

    def _next_group(self) -> tuple[str, list[_Queued]]:
        """Return the oldest event, and with it others of its connection: those of several may come by turns."""
        conn_id = self._queue[0].conn_id
        group: list[_Queued] = []
        others: list[_Queued] = []
        while self._queue and len(group) < _GROUP_SIZE:
            one = self._queue.popleft()
            (group if one.conn_id == conn_id else others).append(one)
        self._queue.extendleft(reversed(others))
        return conn_id, group

    async def _write_queue(self) -> None:
        while self._queue:
            conn_id, group = self._next_group()
            try:
                outcomes = await asyncio.to_thread(write_group, conn_id, [one.sent for one in group])
            except Exception:  # noqa: BLE001 - each request of the group must be answered
                _log.exception("The database recorded none of %d webhook events of %r", len(group), conn_id)
                outcomes = [Outcome.FAILED] * len(group)
            if Outcome.RECORDED in outcomes:
                self._recorded_at = datetime.now(UTC)
                self._recorded.set()
                self._recorded = asyncio.Event()
            for one, outcome in zip(group, outcomes, strict=True):
                # It is done already if the client has disconnected.
                if not one.outcome.done():
                    one.outcome.set_result(outcome)
            self.measuring.go_on()


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(OperationalError),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def write_group(conn_id: str, sent: Sequence[Sent]) -> list[Outcome]:
    """Record events of one connection in one transaction, with a savepoint for each.

    :raises sqlalchemy.exc.DBAPIError: the transaction failed, so nothing is recorded.
    """
    outcomes: list[Outcome] = []
    callbacks: list[Callable[[], None]] = []
    more: dict[str, Any] = {"callback_sink": callbacks} if _HAS_CALLBACK_SINK else {}
    with create_session(scoped=False) as session:
        if (asset := runs.find_asset(session, conn_id)) is None:
            return [Outcome.NO_LISTENER] * len(sent)
        _lock_asset(session, asset.id)
        restored = runs.restore_schedules(session, asset)
        known: set[Completion | str] = {*_known(session, asset, sent), *_relayed(session, asset.id, sent)}
        _lock_pending_runs(session, {one.event.key for one in sent})
        for one in sent:
            if one.how != "again" and not known.isdisjoint(one.marks):
                outcomes.append(Outcome.DUPLICATE)
                continue
            try:
                with session.begin_nested():
                    made = asset_manager.register_asset_change(
                        asset=asset, extra=one.extra, partition_key=one.event.key, session=session, **more
                    )
            except OperationalError:
                # A lock or a lost connection, which concerns the whole group.
                raise
            except Exception:  # noqa: BLE001 - a bad event, or an Airflow listener that raises: record the others
                _log.exception("Could not record one webhook event of %r", conn_id)
                made = None
            outcomes.append(Outcome.FAILED if made is None else Outcome.RECORDED)
            known |= one.marks if made is not None else set()
        if Outcome.RECORDED in outcomes:
            runs.warn_without_run(conn_id, asset)
        for reference in restored:
            session.delete(reference)
    for callback in callbacks:
        callback()
    return outcomes


def missing(conn_id: str, sent: Sequence[Sent]) -> list[WebhookEvent]:
    """Return the events of completed statements that were never recorded."""
    with create_session(scoped=False) as session:
        if asset := runs.find_asset(session, conn_id):
            known = _completions(session, asset.id, sent).keys() | _purged(session, asset.id, sent)
        else:
            known = set()
    return [one.event for one in sent if one.event.completion and one.event.completion not in known]


def _known(session: Session, asset: AssetModel, sent: Sequence[Sent]) -> set[Completion]:
    """Return the completed statements among these that need not be recorded."""
    recorded = _completions(session, asset.id, [one for one in sent if one.how != "again"])
    caught_up = [one for one in sent if one.how == "record"]
    unknown = [one for one in caught_up if one.event.completion not in recorded]
    known = recorded.keys() | _purged(session, asset.id, unknown)
    again = {one.event.completion for one in caught_up}
    may_be_lost = {done: ids for done, ids in recorded.items() if done in again and len(ids) < _MOST_TIMES}
    if not may_be_lost:
        return known
    lost = runs.lost(session, asset, set().union(*may_be_lost.values()))
    return known - {done for done, ids in may_be_lost.items() if ids <= lost}


def _completions(session: Session, asset_id: int, sent: Iterable[Sent]) -> dict[Completion, set[int]]:
    """Return the recorded completed statements of the customers of these events, and the events of each."""
    found: dict[Completion, set[int]] = {}
    if keys := {one.event.key for one in sent if one.event.completion}:
        query = select(AssetEvent.id, AssetEvent.extra)
        query = query.where(AssetEvent.asset_id == asset_id, AssetEvent.partition_key.in_(keys))
        for number, extra in session.execute(query):
            if (event := read_back(extra)) and event.completion:
                found.setdefault(event.completion, set()).add(number)
    return found


def _relayed(session: Session, asset_id: int, sent: Iterable[Sent]) -> set[str]:
    """Return the relay's numbers that are recorded, of the events that are no completed statements."""
    keys = {one.event.key for one in sent if one.relay_id and not one.event.completion}
    if not keys:
        return set()
    query = select(AssetEvent.extra).where(AssetEvent.asset_id == asset_id, AssetEvent.partition_key.in_(keys))
    return {extra["relay_id"] for extra in session.scalars(query) if "relay_id" in (extra or {})}


def _purged(session: Session, asset_id: int, sent: Iterable[Sent]) -> set[Completion]:
    """Return the completed statements whose event was recorded and has been purged.

    The fields of a purged event are gone. But an event of the customer that was recorded after the statement was
    completed started a run that read this statement, too. The run of an earlier one may have ended before. So there is
    no allowance for clocks that differ: a second run is safer than none.
    """
    dated = [
        (one.event.completion, one.event.key, one.completed_at)
        for one in sent
        if one.completed_at and one.event.completion
    ]
    purged = runs.purged(session, asset_id, {key for _, key, _ in dated}) if dated else {}
    return {completion for completion, key, completed_at in dated if key in purged and purged[key] >= completed_at}


def recent(since: datetime | None) -> tuple[datetime, list[tuple[int, str, WebhookEvent]]]:
    """Return the time now, and the events of all connections since then, as ``(number, conn_id, event)``.

    Newest first. If there are too many, the oldest are left out, and their waits poke at the usual time.
    """
    now = datetime.now(UTC)
    query = (
        select(AssetEvent.id, AssetEvent.extra, AssetModel.uri)
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .where(AssetModel.uri.startswith(address.ASSET_PREFIX), AssetEvent.timestamp >= (since or now - _RECENT))
        .order_by(AssetEvent.timestamp.desc(), AssetEvent.id.desc())
        .limit(_MAX_FEED)
    )
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    found = [(row.id, address.conn_id_of(row.uri), read_back(row.extra)) for row in rows]
    return now, [(number, conn_id, event) for number, conn_id, event in found if event]


def ping() -> None:
    """Send the database a query.

    :raises sqlalchemy.exc.SQLAlchemyError: it does not answer.
    """
    with create_session(scoped=False) as session:
        session.execute(select(1))


def is_known_connection(conn_id: str) -> bool:
    """Return whether the API server finds a connection of that name."""
    from airflow.models.connection import Connection  # noqa: PLC0415 - rarely needed

    try:
        Connection.get_connection_from_secrets(conn_id)
    except Exception:  # noqa: BLE001 - a secrets backend may raise anything
        return False
    return True


def _lock_asset(session: Session, asset_id: int) -> None:
    """Keep all other processes from recording events of this asset until the transaction ends."""
    # Airflow takes the same lock on the same row next, so the order of locks is always the same.
    if session.get_bind().dialect.name == "sqlite":
        # SQLite has no row locks: any write locks the database.
        session.execute(update(AssetModel).where(AssetModel.id == asset_id).values(id=AssetModel.id))
    else:
        session.execute(select(AssetModel.id).where(AssetModel.id == asset_id).with_for_update(key_share=True))


def _lock_pending_runs(session: Session, keys: set[str]) -> None:
    """Keep the scheduler from creating these customers' runs, after waiting for those that it is creating."""
    # Else Airflow could add an event to a run that the scheduler has just created, and no run would get the event.
    pending = select(AssetPartitionDagRun.id).where(
        AssetPartitionDagRun.partition_key.in_(keys), AssetPartitionDagRun.created_dag_run_id.is_(None)
    )
    # Without effect on SQLite, which has one writer at a time.
    locked = session.scalars(pending.order_by(AssetPartitionDagRun.id).with_for_update()).all()
    # For each event, Airflow searches the pending run in a table that has no index for this and is never cleaned up.
    # With 100,000 rows that is half of the time of an event, so the search is limited to these rows and newer ones.
    latest = session.scalar(select(func.max(AssetPartitionDagRun.id))) or 0
    narrowed = with_loader_criteria(AssetPartitionDagRun, AssetPartitionDagRun.id >= min(locked, default=latest + 1))

    @sql_event.listens_for(session, "do_orm_execute")
    def narrow(state: ORMExecuteState) -> None:
        if state.is_select:
            state.statement = state.statement.options(narrowed)
