"""Airflow's database: inserts old rows, and reads events, runs and waits."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy
from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel, AssetPartitionDagRun, association_table
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import func, select, text
from talk import serve

# As Airflow has them when there was one webhook and one run for each customer. The events are those of the asset that
# is measured: the receiver reads no others.
_OLD: Final = """
    WITH numbers AS (SELECT generate_series(1, :rows) AS n),
    runs AS (
        INSERT INTO dag_run (dag_id, run_id, run_type, state, run_after, queued_at, start_date, end_date, created_at,
                             clear_number, span_status, partition_key)
        SELECT :dag_id, 'old-' || n, 'asset_triggered', 'success', moment, moment, moment, moment, moment,
               0, 'ended', 'link:old-' || n
        FROM (SELECT n, now() - interval '90 days' + n * interval '1 minute' AS moment FROM numbers) AS timed
        RETURNING id, partition_key, run_after
    ),
    partitions AS (
        INSERT INTO asset_partition_dag_run (target_dag_id, created_dag_run_id, partition_key, rollup_fingerprint,
                                             created_at, updated_at)
        SELECT :dag_id, id, partition_key, '{}', run_after, run_after FROM runs
        RETURNING id, created_dag_run_id, partition_key, created_at
    ),
    events AS (
        INSERT INTO asset_event (asset_id, extra, timestamp, partition_key)
        SELECT :asset_id,
               json_build_object('entity_id', partition_key, 'statement_id', 's-' || id, 'link_id',
                                 substr(partition_key, 6), 'progress', 'completed', 'reason', ''),
               created_at, partition_key
        FROM partitions
        RETURNING id, partition_key, timestamp
    ),
    consumed AS (
        INSERT INTO dagrun_asset_event (dag_run_id, event_id)
        SELECT runs.id, events.id FROM runs JOIN events USING (partition_key)
    )
    INSERT INTO partitioned_asset_key_log (asset_id, asset_event_id, asset_partition_dag_run_id, source_partition_key,
                                           target_dag_id, target_partition_key, created_at)
    SELECT :asset_id, events.id, partitions.id, partition_key, :dag_id, partition_key, timestamp
    FROM partitions JOIN events USING (partition_key)
"""


def fill(dag_id: str, uri: str, rows: int) -> None:
    """Insert the rows of so many old customers."""
    with create_session() as session:
        session.execute(text(_OLD), {"dag_id": dag_id, "asset_id": asset_id(uri), "rows": rows})
    with settings.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # As on a database in use.
        connection.execute(text("VACUUM ANALYZE"))


def asset_id(uri: str) -> int:
    """Return the id of an asset."""
    with create_session() as session:
        return session.scalar(select(AssetModel.id).where(AssetModel.uri == uri))


def latest(dag_id: str, uri: str) -> dict[str, Any]:
    """Return the newest ids before a burst."""
    with create_session() as session:
        last = {
            name: session.scalar(select(func.max(model.id))) or 0
            for name, model in (("event", AssetEvent), ("partition", AssetPartitionDagRun), ("run", DagRun))
        }
    return last | {"dag_id": dag_id, "asset_id": asset_id(uri)}


def served(since: dict[str, Any]) -> dict[str, int]:
    """Count the results of a burst: events and their customers, partition rows, runs, and the customers with a run."""
    with create_session() as session:
        events = {
            number: extra["link_id"]
            for number, extra in session.execute(
                select(AssetEvent.id, AssetEvent.extra).where(
                    AssetEvent.id > since["event"], AssetEvent.asset_id == since["asset_id"]
                )
            )
        }
        consumed = set(
            session.scalars(
                select(association_table.c.event_id)
                .join(DagRun, DagRun.id == association_table.c.dag_run_id)
                .where(DagRun.id > since["run"], DagRun.dag_id == since["dag_id"])
            )
        )
        keys = session.scalar(
            select(func.count(AssetPartitionDagRun.partition_key.distinct())).where(
                AssetPartitionDagRun.id > since["partition"], AssetPartitionDagRun.target_dag_id == since["dag_id"]
            )
        )
        runs = dict(
            session.execute(
                select(DagRun._state, func.count())  # noqa: SLF001 - what is public cannot be grouped by
                .where(DagRun.id > since["run"], DagRun.dag_id == since["dag_id"])
                .group_by(DagRun._state)  # noqa: SLF001
            ).all()
        )
    return {
        "events": len(events),
        "customers": len(set(events.values())),
        "partitions": keys,
        "runs": sum(runs.values()),
        "going": sum(runs.get(state, 0) for state in (DagRunState.QUEUED, DagRunState.RUNNING)),
        "served": len({events[number] for number in consumed & set(events)}),
        "stranded": len(set(events) - consumed),
    }


def waits(dag_id: str) -> dict[str, int]:
    """Count the tasks of a DAG by their state."""
    with create_session() as session:
        query = select(TaskInstance.state, func.count()).where(TaskInstance.dag_id == dag_id)
        return {str(state): count for state, count in session.execute(query.group_by(TaskInstance.state))}


def wait_of(dag_id: str, run_id: str) -> dict[str, float] | None:
    """Return when a wait's event was recorded, and when its task ended; None before that."""
    with create_session() as session:
        task = session.execute(
            select(TaskInstance.state, TaskInstance.scheduled_dttm, TaskInstance.end_date).where(
                TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id
            )
        ).one()
    if task.state != TaskInstanceState.SUCCESS:
        return None
    return {"event": task.scheduled_dttm.timestamp(), "end": task.end_date.timestamp()}


def quiet() -> None:
    """Switch off Postgres' own background work."""
    with settings.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER SYSTEM SET autovacuum = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    settings.engine.dispose()


def transactions() -> int:
    """Count the transactions of Airflow's database so far, with a query to another database."""
    elsewhere = sqlalchemy.create_engine(settings.engine.url.set(database="template1"))
    with elsewhere.connect() as connection:
        counted = connection.scalar(
            text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name"),
            {"name": settings.engine.url.database},
        )
    elsewhere.dispose()
    return int(counted or 0)


if __name__ == "__main__":
    serve(
        fill=fill,
        asset_id=asset_id,
        latest=latest,
        served=served,
        waits=waits,
        wait_of=wait_of,
        quiet=quiet,
        transactions=transactions,
    )
