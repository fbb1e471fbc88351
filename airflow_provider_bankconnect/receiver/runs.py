"""What becomes of webhook events in Airflow's tables: the DAGs that they schedule, their pending runs and their runs.

Airflow keeps a row of ``asset_partition_dag_run`` for each pending run, and fills in the run when the scheduler has
created it. ``partitioned_asset_key_log`` tells which events a pending run has.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from airflow.models.asset import (
    AssetEvent,
    AssetModel,
    AssetPartitionDagRun,
    DagScheduleAssetReference,
    PartitionedAssetKeyLog,
    association_table,
)
from airflow.models.dag import DagModel
from airflow.models.serialized_dag import SerializedDagModel
from airflow.providers.common.compat.sdk import Stats
from airflow.utils.session import create_session
from sqlalchemy import and_, case, exists, func, or_, select
from sqlalchemy.exc import IntegrityError

from airflow_provider_bankconnect.metrics import tag_value
from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

_log = logging.getLogger(__name__)
# Airflow keeps a DAG whose file was removed for ever, and an event for each of them would be too many.
_STALE_FOR: Final = timedelta(days=7)
# Runs are usually created within seconds.
LATE: Final = timedelta(minutes=5)
_REPORTED_FOR: Final = timedelta(days=1)


def find_asset(session: Session, conn_id: str) -> AssetModel | None:
    """Return the asset of a connection. It has existed since the first DAG with it was parsed, and Airflow keeps it."""
    query = select(AssetModel).where(AssetModel.uri == address.asset_uri(conn_id))
    # Several names may have one URI, and only one of them is active.
    return session.scalar(query.order_by(AssetModel.active.has().desc(), AssetModel.id).limit(1))


def restore_schedules(session: Session, asset: AssetModel) -> list[DagScheduleAssetReference]:
    """Schedule DAGs by the asset again that Airflow has forgotten because it cannot parse them now.

    Airflow removes the references of a DAG whose file is broken or missing. With them, a webhook event gets a pending
    run, from which the scheduler creates a run when it knows the DAG again.

    :returns: the references, to be deleted before the transaction ends.
    """
    stale = select(DagModel.dag_id, DagModel.asset_expression, DagModel.has_import_errors).where(
        DagModel.is_stale.is_(True),
        DagModel.is_paused.is_(False),
        DagModel.timetable_partitioned.is_(True),
        DagModel.last_parsed_time > datetime.now(UTC) - _STALE_FOR,
        exists().where(SerializedDagModel.dag_id == DagModel.dag_id),
    )
    uri = json.dumps(asset.uri)
    found = [
        (dag_id, is_broken) for dag_id, expression, is_broken in session.execute(stale) if uri in json.dumps(expression)
    ]
    if not found:
        return []
    scheduled = set(
        session.scalars(select(DagScheduleAssetReference.dag_id).where(DagScheduleAssetReference.asset_id == asset.id))
    )
    references = [
        DagScheduleAssetReference(asset_id=asset.id, dag_id=dag_id)
        for dag_id, is_broken in found
        # A DAG that was renamed is missing, too: its new name is scheduled.
        if dag_id not in scheduled and (is_broken or not scheduled)
    ]
    if references:
        try:
            with session.begin_nested():
                session.add_all(references)
        except IntegrityError:
            # Airflow has parsed the DAG at this moment.
            return []
    return references


def lost(session: Session, asset: AssetModel, event_ids: Collection[int]) -> set[int]:
    """Return the events that have no run and wait for none. Without a DAG that would get one now, none is lost.

    Airflow creates no run for events that arrive while a DAG is paused, and drops the pending runs of a DAG when its
    partitioned schedule is edited.
    """
    query = select(DagModel.dag_id, DagModel.is_paused, DagModel.timetable_partitioned)
    references = DagScheduleAssetReference.dag_id == DagModel.dag_id
    scheduled = session.execute(
        query.join(DagScheduleAssetReference, references).where(DagScheduleAssetReference.asset_id == asset.id)
    ).all()
    if not any(dag.timetable_partitioned and not dag.is_paused for dag in scheduled):
        return set()
    with_run = select(association_table.c.event_id).where(association_table.c.event_id.in_(event_ids))
    left = set(event_ids) - set(session.scalars(with_run))
    if left:
        pending_run = PartitionedAssetKeyLog.asset_partition_dag_run_id == AssetPartitionDagRun.id
        known = (
            select(PartitionedAssetKeyLog.asset_event_id)
            .outerjoin(AssetPartitionDagRun, pending_run)
            .where(
                PartitionedAssetKeyLog.asset_event_id.in_(left),
                or_(
                    # The run was deleted since.
                    AssetPartitionDagRun.id.is_(None),
                    AssetPartitionDagRun.created_dag_run_id.is_not(None),
                    AssetPartitionDagRun.target_dag_id.in_([dag.dag_id for dag in scheduled]),
                ),
            )
        )
        left -= set(session.scalars(known))
    return left


def purged(session: Session, asset_id: int, keys: Collection[str]) -> dict[str, datetime]:
    """Return when the newest purged event of each customer was recorded, by partition key.

    ``airflow db clean`` deletes old events, and keeps what says that they had a pending run.
    """
    query = select(PartitionedAssetKeyLog.source_partition_key, func.max(PartitionedAssetKeyLog.created_at)).where(
        PartitionedAssetKeyLog.asset_id == asset_id,
        PartitionedAssetKeyLog.source_partition_key.in_(keys),
        ~exists().where(AssetEvent.id == PartitionedAssetKeyLog.asset_event_id),
    )
    return {row[0]: row[1] for row in session.execute(query.group_by(PartitionedAssetKeyLog.source_partition_key))}


def customers_without_run(session: Session, asset_ids: Collection[int]) -> dict[int, int]:
    """Return how many customers of each asset have an event of the last day, older than 5 minutes, and no run since."""
    now = datetime.now(UTC)
    # A subquery for each event follows the index; databases make of a join a scan of all events that ever had a run.
    run = select(func.min(association_table.c.dag_run_id)).where(association_table.c.event_id == AssetEvent.id)
    customer = (AssetEvent.asset_id, AssetEvent.partition_key)
    recent = (
        select(*customer, AssetEvent.id, AssetEvent.timestamp, run.correlate(AssetEvent).scalar_subquery().label("run"))
        .where(AssetEvent.asset_id.in_(asset_ids), AssetEvent.timestamp > now - _REPORTED_FOR)
        .subquery()
    )
    is_late = and_(recent.c.run.is_(None), recent.c.timestamp < now - LATE)
    late = func.max(case((is_late, recent.c.id), else_=0))
    # The run of a later event reads the same records of BankConnect.
    with_run = func.max(case((recent.c.run.is_not(None), recent.c.id), else_=0))
    left = select(recent.c.asset_id).group_by(recent.c.asset_id, recent.c.partition_key).having(late > with_run)
    return Counter(session.scalars(left))


def report_without_run(reported: dict[str, int]) -> bool:
    """Report for each connection how many customers have an event without a run. Raises nothing.

    :param reported: the counts that the log has told, by connection; kept up to date.
    :returns: whether there is or may be such a customer.
    """
    try:
        with create_session(scoped=False) as session:
            assets = _webhook_assets(session)
            counts = customers_without_run(session, assets.keys()) if assets else {}
    except Exception:  # noqa: BLE001 - it runs beside the queue, and nobody waits for it
        _log.exception("Could not count the webhook events without a run")
        return True
    for asset_id, conn_id in assets.items():
        count = counts.get(asset_id, 0)
        Stats.gauge("bankconnect.webhooks_without_run", count, tags={"conn_id": tag_value(conn_id)})
        if count != reported.get(conn_id, 0):
            if count:
                causes = "a DAG is paused, cannot be parsed or was edited, or Airflow's scheduler is late"
                text = "%d customers of %r have webhooks older than 5 minutes and no run: %s"
                _log.warning(text, count, conn_id, causes)
            else:
                _log.info("No customer of %r has a webhook of the last day without a run any more", conn_id)
        reported[conn_id] = count
    return any(counts.values())


def _webhook_assets(session: Session) -> dict[int, str]:
    """Return the connection of each webhook asset, as :func:`find_asset` finds them."""
    query = select(AssetModel.id, AssetModel.uri).where(AssetModel.uri.startswith(address.ASSET_PREFIX))
    first: dict[str, int] = {}
    for number, uri in session.execute(query.order_by(AssetModel.active.has().desc(), AssetModel.id)):
        first.setdefault(uri, number)
    return {number: address.conn_id_of(uri) for uri, number in first.items()}


def warn_without_run(conn_id: str, asset: AssetModel) -> None:
    """Log why events that are recorded now start no run, if there is a cause."""
    dags = [reference.dag for reference in asset.scheduled_dags]
    if not dags:
        advice = "when a DAG is, BankConnectCatchUpOperator starts their runs"
        _log.error("No DAG is scheduled by the webhook asset of %r now. Its events are recorded; %s", conn_id, advice)
    if stale := [dag.dag_id for dag in dags if dag.is_stale]:
        advice = "their runs start when Airflow has parsed it again"
        _log.error(
            "Webhook events of %r are recorded for %s, whose file is broken or missing; %s",
            conn_id,
            ", ".join(sorted(stale)),
            advice,
        )
    paused = [dag.dag_id for dag in dags if dag.is_paused]
    if paused and len(paused) == len(dags):
        advice = "unpause one, then run BankConnectCatchUpOperator"
        _log.warning("Webhook events of %r start no run, paused are: %s; %s", conn_id, ", ".join(paused), advice)
