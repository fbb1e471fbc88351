"""Refused requests, missed webhooks and registered addresses, as rows of Airflow's audit log (its table ``log``).

The page in Airflow's UI shows them later. No row contains a token, a URL or a customer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, TypeAlias, TypeVar

from airflow.models.asset import AssetModel
from airflow.models.log import Log
from airflow.utils.session import create_session
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import func, select

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

_log = logging.getLogger(__name__)
REFUSED: Final = "bankconnect_webhooks_refused"
MISSED: Final = "bankconnect_webhooks_missed"
REGISTERED: Final = "bankconnect_webhook_registered"
_OWNER: Final = "bankconnect"
# At most one row for each connection and reason in this time.
_INTERVAL_SECONDS: Final = 60.0
_ROUND_SECONDS: Final = 1.0
_MOST_KEYS: Final = 100
# Airflow's limit for a connection id.
_MAX_CONN_ID_LENGTH: Final = 250
# The receiver gives these reasons only after it has found the connection, which has no asset.
_OF_KNOWN_CONNECTIONS: Final = {"no_dag"}


# The event and the extra of a row.
_Row: TypeAlias = tuple[str, dict[str, str | int]]


class _Key(NamedTuple):
    """What is counted together. The reason is blank for missed webhooks."""

    event: str
    conn_id: str
    reason: str = ""

    @property
    def may_be_made_up(self) -> bool:
        """Whether anybody could have sent this connection id."""
        return bool(self.event == REFUSED and self.conn_id and self.reason not in _OF_KNOWN_CONNECTIONS)

    @property
    def without_connection(self) -> _Key:
        return self._replace(conn_id="")

    def row(self, count: int) -> _Row:
        reason = {"reason": self.reason} if self.event == REFUSED else {}
        return self.event, {"conn_id": self.conn_id, **reason, "count": count}


class Journal:
    """Counts refused requests and missed webhooks, and writes them to the audit log. One for each process.

    Anybody can cause refusals, so the rows are throttled: for each connection and reason, the first is written within a
    second, and the later ones of a minute are one row when the minute is over. No request waits for it. When the
    process ends, counts that are not written yet are lost: those of a minute at most, unless the database failed.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[_Key] = Counter()
        # When the next row may be written: of each key that had one in the last minute, and after a failure of any.
        self._next_row: dict[_Key, float] = {}
        self._next_try = clock()
        # The webhook assets, at most a minute old: requests with made-up connections must not cause a query each.
        self._uris: frozenset[str] = frozenset()
        self._next_query = clock()
        self._task: asyncio.Task[None] | None = None

    def refused(self, conn_id: str, reason: str) -> None:
        """Count a refused request. Its connection is kept only if it turns out to have a webhook asset."""
        self._count(_Key(REFUSED, _valid(conn_id), reason), 1)

    def missed(self, conn_id: str, count: int) -> None:
        """Count missed webhooks."""
        self._count(_Key(MISSED, _valid(conn_id)), count)

    async def registered(self, conn_id: str, *, here: bool) -> None:
        """Write at once that a webhook endpoint was registered with BankConnect.

        :param here: whether it is the address of this Airflow's webhook receiver.
        :raises sqlalchemy.exc.SQLAlchemyError: the row was not written.
        """
        await asyncio.to_thread(_write_rows, [(REGISTERED, {"conn_id": _valid(conn_id), "here": here})])

    def _count(self, key: _Key, count: int) -> None:
        self._add(key, count)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_all())

    def _add(self, key: _Key, count: int) -> None:
        if key not in self._counts and len(self._counts) >= _MOST_KEYS:
            key = key.without_connection
        self._counts[key] += count

    async def _write_all(self) -> None:
        """Write what is counted, each count when its minute is over; ends when nothing is left."""
        while self._counts:
            now = self._clock()
            self._next_row = {key: moment for key, moment in self._next_row.items() if moment > now}
            due = [key for key in self._counts if key not in self._next_row]
            if due and now >= self._next_try:
                await self._write({key: self._counts.pop(key) for key in due})
            if self._counts:
                await asyncio.sleep(_ROUND_SECONDS)

    async def _write(self, counts: dict[_Key, int]) -> None:
        left: Mapping[_Key, int] = counts
        try:
            found = await self._without_made_up(counts)
            rows = {key: count for key, count in found.items() if key not in self._next_row}
            if rows:
                await asyncio.to_thread(_write_rows, [key.row(count) for key, count in rows.items()])
            left = {key: count for key, count in found.items() if key not in rows}
            self._next_row.update(dict.fromkeys(rows, self._clock() + _INTERVAL_SECONDS))
        except Exception as error:  # noqa: BLE001 - the database may raise anything
            self._next_try = self._clock() + _INTERVAL_SECONDS
            # The error's text would contain the values of the rows.
            problem = f"Could not write refused and missed webhooks to the audit log ({type(error).__name__})"
            _log.warning("%s. The counts are kept; next try in %.0f s", problem, _INTERVAL_SECONDS)
        for key, count in left.items():
            self._add(key, count)

    async def _without_made_up(self, counts: Mapping[_Key, int]) -> Mapping[_Key, int]:
        """Count those of connections without a webhook asset together."""
        if not any(key.may_be_made_up for key in counts):
            return counts
        if self._clock() >= self._next_query:
            self._uris = await asyncio.to_thread(_asset_uris)
            self._next_query = self._clock() + _INTERVAL_SECONDS
        found: Counter[_Key] = Counter()
        for key, count in counts.items():
            is_unknown = key.may_be_made_up and address.asset_uri(key.conn_id) not in self._uris
            found[key.without_connection if is_unknown else key] += count
        return found


def _valid(conn_id: str) -> str:
    if len(conn_id) > _MAX_CONN_ID_LENGTH:
        return ""
    try:
        address.asset_uri(conn_id)
    except ValueError:
        return ""
    return conn_id


def _write_rows(rows: list[_Row]) -> None:
    with create_session(scoped=False) as session:
        session.add_all([Log(event=event, owner=_OWNER, extra=json.dumps(extra)) for event, extra in rows])


def _asset_uris() -> frozenset[str]:
    """Return the URIs of all webhook assets."""
    # Made-up names are not sent to the database: in a wrong path, one may contain the token.
    query = select(AssetModel.uri).where(AssetModel.uri.startswith(address.ASSET_PREFIX))
    with create_session(scoped=False) as session:
        return frozenset(session.scalars(query))


@dataclass(frozen=True)
class Journaled:
    """What the audit log has, by connection; the connection is blank for requests that named no known one.

    :param refused: how many requests were refused, by reason.
    :param missed: how many webhooks were missed.
    :param registered: when a webhook endpoint was registered last, and whether it was this Airflow's webhook receiver.
    :param is_cut: whether there are more refused and missed ones than were read; the newest were read.
    """

    refused: dict[str, Counter[str]]
    missed: Counter[str]
    registered: dict[str, tuple[datetime, bool]]
    is_cut: bool


class _Extra(BaseModel):
    model_config = ConfigDict(strict=True)

    conn_id: str


class _Missed(_Extra):
    count: Annotated[int, Field(gt=0)]


class _Refused(_Missed):
    reason: str


class _Registered(_Extra):
    here: bool


def read_journal(session: Session, since: datetime, limit: int = 2000) -> Journaled:
    """Return what was refused and missed since a time, and the newest registration of each connection, however old.

    A row whose extra cannot be read is skipped.

    :param limit: how many rows of refused and missed ones to read, newest first.
    """
    refused: dict[str, Counter[str]] = {}
    missed: Counter[str] = Counter()
    counted = select(Log.event, Log.extra).where(Log.event.in_([REFUSED, MISSED]), Log.dttm >= since)
    rows = session.execute(counted.order_by(Log.dttm.desc()).limit(limit + 1)).all()
    for event, extra in rows[:limit]:
        row = _read(_Missed if event == MISSED else _Refused, extra)
        if isinstance(row, _Refused):
            refused.setdefault(row.conn_id, Counter())[row.reason] += row.count
        elif row:
            missed[row.conn_id] += row.count
    registered: dict[str, tuple[datetime, bool]] = {}
    # Equal rows are one group, so there are two for each connection however often a DAG registers it.
    newest = func.max(Log.dttm)
    registrations = select(Log.extra, newest).where(Log.event == REGISTERED).group_by(Log.extra).order_by(newest)
    for extra, moment in session.execute(registrations):
        if moment and (of := _read(_Registered, extra)):
            registered[of.conn_id] = (moment, of.here)
    return Journaled(refused, missed, registered, is_cut=len(rows) > limit)


_AnyExtra = TypeVar("_AnyExtra", bound=_Extra)


def _read(model: type[_AnyExtra], extra: str | None) -> _AnyExtra | None:
    try:
        return model.model_validate_json(extra or "")
    except ValidationError:
        return None
