"""Webhook events as the page shows them: the newest, with the runs that they started, and how many there were."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from airflow.models.asset import AssetEvent, AssetModel, DagScheduleAssetReference, association_table
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from sqlalchemy import Text, and_, cast, func, or_, select, union_all

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement

    from airflow_provider_bankconnect.receiver.event import WebhookEvent

HOURS: Final = 24
# To find the last webhook of each wait, this many events of a connection are read. Their keys have no index.
NEWEST: Final = 5000

# The time and the number of the last event of a page; the next page begins after it.
Position: TypeAlias = tuple[datetime, int]


@dataclass(frozen=True)
class WebhookAsset:
    """The asset of a connection, whose events are the webhooks."""

    id: int
    conn_id: str


@dataclass(frozen=True)
class Run:
    """A run that a webhook started."""

    dag_id: str
    run_id: str
    state: str


@dataclass(frozen=True)
class Webhook:
    """A recorded webhook. ``event`` is None for an asset event that somebody else created."""

    number: int
    time: datetime
    conn_id: str
    event: WebhookEvent | None
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class ScheduledDag:
    """A DAG that the webhooks of a connection schedule."""

    dag_id: str
    is_paused: bool
    is_stale: bool
    is_partitioned: bool


@dataclass(frozen=True)
class Traffic:
    """How many webhooks of a connection were recorded: in each of the last 24 hours, the oldest first."""

    last: datetime | None = None
    hours: tuple[int, ...] = (0,) * HOURS


def webhook_assets(session: Session) -> list[WebhookAsset]:
    """Return the asset of each connection, sorted by connection."""
    query = select(AssetModel.id, AssetModel.uri).where(AssetModel.uri.startswith(address.ASSET_PREFIX))
    found: dict[str, WebhookAsset] = {}
    # The same one as the webhook receiver takes if several have one URI.
    for number, uri in session.execute(query.order_by(AssetModel.active.has().desc(), AssetModel.id)):
        found.setdefault(uri, WebhookAsset(number, address.conn_id_of(uri)))
    return sorted(found.values(), key=lambda one: one.conn_id)


def newest_webhooks(
    session: Session,
    assets: Sequence[WebhookAsset],
    size: int,
    *,
    search: str = "",
    before: Position | None = None,
) -> tuple[list[Webhook], bool]:
    """Return webhooks, the newest first, and whether there are more.

    :param search: a part of the id of a link, an entity or a statement.
    :param before: the position of the last one that was shown.
    """
    # Only Airflow 3.2 and later have what this module reads.
    from airflow_provider_bankconnect.receiver.event import read_back  # noqa: PLC0415

    if not assets:
        return [], False
    conditions: list[ColumnElement[bool]] = []
    if before is not None:
        time, number = before
        same = and_(AssetEvent.timestamp == time, AssetEvent.id < number)
        conditions += [AssetEvent.timestamp <= time, or_(AssetEvent.timestamp < time, same)]
    if search:
        # As it stands in the JSON, where most databases keep other scripts than ASCII escaped.
        escaped, extra = json.dumps(search)[1:-1], cast(AssetEvent.extra, Text)
        is_found = (
            AssetEvent.partition_key.contains(search, autoescape=True),
            extra.contains(escaped, autoescape=True),
        )
        conditions.append(or_(*is_found))
    columns = (AssetEvent.id, AssetEvent.timestamp, AssetEvent.asset_id, AssetEvent.extra)
    # One query for each asset, so that each follows the index and ends early.
    parts = [
        select(*columns)
        .where(AssetEvent.asset_id == asset.id, *conditions)
        .order_by(AssetEvent.timestamp.desc(), AssetEvent.id.desc())
        .limit(size + 1)
        .subquery()
        for asset in assets
    ]
    together = union_all(*(select(part) for part in parts)).subquery()
    query = select(together).order_by(together.c.timestamp.desc(), together.c.id.desc()).limit(size + 1)
    rows = session.execute(query).all()
    runs = _runs_of(session, [row.id for row in rows[:size]])
    conn_ids = {asset.id: asset.conn_id for asset in assets}
    return [
        Webhook(row.id, row.timestamp, conn_ids[row.asset_id], read_back(row.extra), tuple(runs.get(row.id, ())))
        for row in rows[:size]
    ], len(rows) > size


def _runs_of(session: Session, event_ids: Sequence[int]) -> dict[int, list[Run]]:
    runs: dict[int, list[Run]] = {}
    if event_ids:
        query = (
            select(association_table.c.event_id, DagRun.dag_id, DagRun.run_id, DagRun.state)
            .join(DagRun, DagRun.id == association_table.c.dag_run_id)
            .where(association_table.c.event_id.in_(event_ids))
            .order_by(DagRun.id)
        )
        for event_id, dag_id, run_id, state in session.execute(query):
            runs.setdefault(event_id, []).append(Run(dag_id, run_id, str(state)))
    return runs


def traffic(session: Session, asset_ids: Collection[int], now: datetime) -> dict[int, Traffic]:
    """Return how many webhooks each asset has had in the last 24 hours, and when the last one was."""
    mine = AssetEvent.asset_id == AssetModel.id
    bounds = [now - timedelta(hours=ago) for ago in range(HOURS, -1, -1)]
    # A count for each hour instead of a function of the time: all databases have it, and each follows the index.
    counts = [
        select(func.count())
        .select_from(AssetEvent)
        .where(mine, AssetEvent.timestamp >= first, AssetEvent.timestamp < after)
        .correlate(AssetModel)
        .scalar_subquery()
        for first, after in zip(bounds, [*bounds[1:-1], now + timedelta(minutes=1)], strict=False)
    ]
    last = select(func.max(AssetEvent.timestamp)).where(mine).correlate(AssetModel).scalar_subquery()
    query = select(AssetModel.id, last, *counts).where(AssetModel.id.in_(asset_ids))
    return {row[0]: Traffic(row[1], tuple(row[2:])) for row in session.execute(query)}


def scheduled_dags(session: Session, asset_ids: Collection[int]) -> dict[int, list[ScheduledDag]]:
    """Return the DAGs that each asset schedules."""
    flags = (DagModel.is_paused, DagModel.is_stale, DagModel.timetable_partitioned)
    query = (
        select(DagScheduleAssetReference.asset_id, DagModel.dag_id, *flags)
        .join(DagModel, DagModel.dag_id == DagScheduleAssetReference.dag_id)
        .where(DagScheduleAssetReference.asset_id.in_(asset_ids))
        .order_by(DagModel.dag_id)
    )
    found: dict[int, list[ScheduledDag]] = {}
    for asset_id, dag_id, *of_dag in session.execute(query):
        found.setdefault(asset_id, []).append(ScheduledDag(dag_id, *map(bool, of_dag)))
    return found


def last_webhooks(
    session: Session, wanted: Mapping[int, Iterable[tuple[str, datetime]]]
) -> dict[tuple[int, str], datetime]:
    """Return when the last webhook of each customer arrived, among the newest of the asset.

    :param wanted: for each asset, the partition keys, and since when.
    """
    parts = []
    for asset_id, customers in wanted.items():
        keys = dict(customers)
        recent = (
            select(AssetEvent.asset_id, AssetEvent.partition_key, AssetEvent.timestamp)
            .where(AssetEvent.asset_id == asset_id, AssetEvent.timestamp >= min(keys.values()))
            .order_by(AssetEvent.timestamp.desc())
            .limit(NEWEST)
            .subquery()
        )
        parts.append(select(recent).where(recent.c.partition_key.in_(keys)))
    if not parts:
        return {}
    together = union_all(*parts).subquery()
    columns: Any = (together.c.asset_id, together.c.partition_key, func.max(together.c.timestamp))
    query = select(*columns).group_by(together.c.asset_id, together.c.partition_key)
    return {(row[0], row[1]): row[2] for row in session.execute(query)}
