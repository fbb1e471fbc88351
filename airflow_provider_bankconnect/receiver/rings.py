"""Rings in Airflow's database: written as asset events in groups, looked up, and told to those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import tenacity
from airflow.assets.manager import asset_manager
from airflow.models.asset import AssetEvent, AssetModel, AssetPartitionDagRun
from airflow.utils.session import create_session
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import with_loader_criteria

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import ORMExecuteState, Session

_log = logging.getLogger(__name__)
# So many wait for the database at most: more would wait longer than anybody listens for the answer.
_MOST_WAITING: Final = 1000
# So many are written at once: each costs some milliseconds, and those that come meanwhile wait for the whole group.
_GROUP: Final = 20
_MOST_TOLD: Final = 5000
# Who asks for news is held on so long, in case some come.
_HOLD_SECONDS: Final = 1.0
# Who asks for the first time is told of what has just been.
_RECENT: Final = timedelta(minutes=2)
_CALLBACKS: Final = "callback_sink" in inspect.signature(asset_manager.register_asset_change).parameters


def _clean(value: str) -> str:
    if "\0" in value:
        raise ValueError("must have no NUL")
    return value


def _blank_for_none(value: object) -> object:
    return "" if value is None else value


def _none_for_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


# The vendor's are UUIDs, and links of up to 500 characters.
Id: TypeAlias = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_clean)]


class Ring(BaseModel):
    """What BankConnect sends: five fields, and nothing else is kept. Source: "Receiving payload".

    ``statement_id`` is ``""`` for an attempt that failed before any upload, ``link_id`` None for an upload without one.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)

    entity_id: Annotated[Id, StringConstraints(pattern=r"\S")]
    statement_id: Annotated[Id, BeforeValidator(_blank_for_none)]
    link_id: Annotated[Id | None, BeforeValidator(_none_for_blank)]
    progress: Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_clean)]
    reason: Annotated[str, BeforeValidator(_blank_for_none), AfterValidator(_clean)] = ""

    @property
    def key(self) -> str:
        """The partition: whose ring it is."""
        return address.partition_key(self.link_id, self.entity_id)

    @property
    def completion(self) -> Completion | None:
        """The completed statement that it is about, if it is about one: such a ring counts once."""
        if self.progress.lower() == "completed" and self.statement_id.strip():
            return (self.link_id, self.entity_id, self.statement_id)
        return None

    def __str__(self) -> str:
        return f"{self.key!r}: statement {self.statement_id!r} of entity {self.entity_id!r} {self.progress!r}"


Completion: TypeAlias = tuple[str | None, str, str]


class Outcome(Enum):
    """What became of a ring."""

    RUNG = "rung"
    REPEATED = "repeated"
    NOBODY = "nobody"
    FAILED = "failed"


@dataclass
class _Waiting:
    conn_id: str
    ring: Ring
    again: bool
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Writer:
    """Takes rings as they come, writes those that have come together in one transaction, and answers after it.

    One for each process: many short transactions at once exhaust the pool of a Postgres, and stop the scheduler of a
    SQLite.
    """

    def __init__(self) -> None:
        self._queue: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._rung = asyncio.Event()
        self._rung_at: datetime | None = None

    def is_full(self, more: int = 1) -> bool:
        """Say whether there is no room for so many more."""
        return len(self._queue) + more > _MOST_WAITING

    async def write(self, conn_id: str, rings: Sequence[Ring], *, again: bool = False) -> list[Outcome]:
        """Write rings; returns when each is in the database, or will not be.

        :param again: ring even for a completion that has been rung for.
        """
        waiting = [_Waiting(conn_id, ring, again) for ring in rings]
        self._queue.extend(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())
        return await asyncio.gather(*(one.outcome for one in waiting))

    async def hold(self, after: datetime) -> None:
        """Wait a moment for a ring, unless one was written after that moment. What others write is not heard here."""
        if self._rung_at is None or self._rung_at < after:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rung.wait(), _HOLD_SECONDS)

    async def _work(self) -> None:
        while self._queue:
            conn_id = self._queue[0].conn_id
            group: list[_Waiting] = []
            while self._queue and len(group) < _GROUP and self._queue[0].conn_id == conn_id:
                group.append(self._queue.popleft())
            try:
                outcomes = await asyncio.to_thread(write_group, conn_id, [(one.ring, one.again) for one in group])
            except Exception:  # noqa: BLE001 - whatever it was, those who asked are told
                _log.exception("The database took none of %d rings of %r", len(group), conn_id)
                outcomes = [Outcome.FAILED] * len(group)
            if Outcome.RUNG in outcomes:
                self._rung_at = datetime.now(UTC)
                self._rung.set()
                self._rung = asyncio.Event()
            for one, outcome in zip(group, outcomes, strict=True):
                # Who asked may have gone; the ring is kept all the same.
                if not one.outcome.done():
                    one.outcome.set_result(outcome)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(OperationalError),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def write_group(conn_id: str, rings: Sequence[tuple[Ring, bool]]) -> list[Outcome]:
    """Write rings of one connection in one transaction, each in a savepoint of its own.

    :param rings: each with whether it is to ring again.
    :raises sqlalchemy.exc.DBAPIError: the database takes nothing now.
    """
    outcomes: list[Outcome] = []
    afterwards: list[Callable[[], None]] = []
    more: dict[str, Any] = {"callback_sink": afterwards} if _CALLBACKS else {}
    with create_session(scoped=False) as session:
        asset = _find_asset(session, conn_id)
        if asset is None:
            return [Outcome.NOBODY] * len(rings)
        _lock(session, asset.id)
        _hold_runs_to_come(session, {ring.key for ring, _ in rings})
        known = completions(session, asset.id, (ring for ring, again in rings if not again))
        for ring, again in rings:
            if ring.completion in known and not again:
                outcomes.append(Outcome.REPEATED)
                continue
            try:
                with session.begin_nested():
                    made = asset_manager.register_asset_change(
                        asset=asset, extra=ring.model_dump(), partition_key=ring.key, session=session, **more
                    )
            except OperationalError:
                # Locked, or gone: that is all rings' trouble.
                raise
            except Exception:  # noqa: BLE001 - one bad ring, or a listener of somebody else's: the others go on
                _log.exception("A ring of %r could not be made an event", conn_id)
                made = None
            outcomes.append(Outcome.FAILED if made is None else Outcome.RUNG)
            if made is not None and ring.completion:
                known.add(ring.completion)
        paused = [reference.dag_id for reference in asset.scheduled_dags if reference.dag.is_paused]
        if Outcome.RUNG in outcomes and paused and len(paused) == len(asset.scheduled_dags):
            _log.warning(
                "Rings of %r are kept, but start no run: paused are %s. Ring again later with "
                "BankConnectCatchUpOperator(again=True)",
                conn_id,
                ", ".join(paused),
            )
    for call in afterwards:
        call()
    return outcomes


def missing(conn_id: str, rings: Sequence[Ring]) -> list[Ring]:
    """Give those completions of which no event is known."""
    with create_session(scoped=False) as session:
        asset = _find_asset(session, conn_id)
        known = completions(session, asset.id, rings) if asset else set()
    return [ring for ring in rings if ring.completion and ring.completion not in known]


def completions(session: Session, asset_id: int, rings: Iterable[Ring]) -> set[Completion]:
    """Give the completed statements, of the customers of these rings, of which there is an event."""
    keys = {ring.key for ring in rings if ring.completion}
    if not keys:
        return set()
    query = select(AssetEvent.extra).where(AssetEvent.asset_id == asset_id, AssetEvent.partition_key.in_(keys))
    events = map(_read_back, session.scalars(query))
    return {event.completion for event in events if event and event.completion}


def recent(since: datetime | None) -> tuple[datetime, list[tuple[int, str, Ring]]]:
    """Give the rings of all connections from a moment on, as ``(id, conn_id, ring)``; and where to go on from.

    The newest come first; of too many the oldest are left out, and their waits look when it is their time.
    """
    now = datetime.now(UTC)
    query = (
        select(AssetEvent.id, AssetEvent.extra, AssetModel.uri)
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .where(AssetModel.uri.startswith(address.ASSET_PREFIX), AssetEvent.timestamp >= (since or now - _RECENT))
        .order_by(AssetEvent.timestamp.desc(), AssetEvent.id.desc())
        .limit(_MOST_TOLD)
    )
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    told = [(row.id, address.conn_id_of(row.uri), _read_back(row.extra)) for row in rows]
    return now, [(number, conn_id, ring) for number, conn_id, ring in told if ring]


def is_known_connection(conn_id: str) -> bool:
    """Say whether Airflow has a connection of that name, where the API server can see it."""
    from airflow.models.connection import Connection  # noqa: PLC0415 - it is asked for once in a blue moon

    try:
        Connection.get_connection_from_secrets(conn_id)
    except Exception:  # noqa: BLE001 - a secrets backend may raise anything, and the answer is the same
        return False
    return True


def _find_asset(session: Session, conn_id: str) -> AssetModel | None:
    query = select(AssetModel).where(AssetModel.uri == address.asset_uri(conn_id), AssetModel.active.has())
    found: AssetModel | None = session.scalar(query.limit(1))
    return found


def _lock(session: Session, asset_id: int) -> None:
    """Be the only one, of all processes, that writes rings of this asset until the transaction ends.

    The row and the strength of the lock are those that Airflow takes next, so that no two lock in another order.
    """
    if session.get_bind().dialect.name == "sqlite":
        # It knows no lock but that of a writer.
        session.execute(update(AssetModel).where(AssetModel.id == asset_id).values(id=AssetModel.id))
    else:
        session.execute(select(AssetModel.id).where(AssetModel.id == asset_id).with_for_update(key_share=True))


def _hold_runs_to_come(session: Session, keys: set[str]) -> None:
    """Keep the scheduler from making these customers' runs meanwhile, and wait for those that it is making.

    Airflow would add a ring to a run that the scheduler has just put together, and no run would have the ring.
    """
    pending = select(AssetPartitionDagRun.id).where(
        AssetPartitionDagRun.partition_key.in_(keys), AssetPartitionDagRun.created_dag_run_id.is_(None)
    )
    # Without effect on SQLite, whose one writer we are.
    held = session.scalars(pending.order_by(AssetPartitionDagRun.id).with_for_update()).all()
    # Airflow looks for each ring's run to come, in a table that has no index for it and keeps what ever was: half of
    # all that a ring costs, where there have been 100,000. It is to look among these only, and what is newer.
    latest = session.scalar(select(func.max(AssetPartitionDagRun.id))) or 0
    narrowed = with_loader_criteria(AssetPartitionDagRun, AssetPartitionDagRun.id >= min(held, default=latest + 1))

    @event.listens_for(session, "do_orm_execute")
    def narrow(state: ORMExecuteState) -> None:
        if state.is_select:
            state.statement = state.statement.options(narrowed)


def _read_back(extra: object) -> Ring | None:
    """Give the ring that an event is, and None for one that somebody emitted by hand."""
    try:
        return Ring.model_validate(extra)
    except ValidationError:
        return None
