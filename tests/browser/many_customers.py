"""Fills the database of an Airflow home with webhook events, runs and open waits, as if there were many customers.

Run it in the environment of a home whose example DAGs are parsed: ``python many_customers.py '{"events": 3000}'``. The
benchmark of the page uses it too.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from airflow.jobs.job import Job
from airflow.models.asset import AssetEvent, AssetModel, association_table
from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.types import DagRunType
from sqlalchemy import insert, select

from airflow_provider_bankconnect.receiver.address import partition_key

ON_WEBHOOK, WAIT, GATE = "bankconnect_on_webhook", "bankconnect_wait_for_statement", "wait_for_statement"
TRIGGER = "airflow_provider_bankconnect.triggers.bankconnect.BankConnectWebhookPayloadTrigger"
SENSOR = "BankConnectWebhookPayloadSensor"
PROGRESS = ("completed", "completed", "completed", "processing", "failed")
CHUNK = 5000


def fill(
    *,
    events: int = 0,
    waits: int = 0,
    audit: int = 0,
    span_hours: float = 24.0,
    links: list[str] | None = None,
    conn_id: str = "bankconnect_default",
    unreadable: bool = False,
    on_webhook: str = ON_WEBHOOK,
    wait_dag: str = WAIT,
) -> None:
    """Add webhook events with a run each, evenly over the last hours, and open waits, the oldest of them a day old.

    :param audit: how many rows of other actions the audit log has, over the same hours.
    :param links: the links of the first customers; the others get made-up ones.
    :param unreadable: make the arguments of the oldest trigger unreadable, as another Fernet key does.
    :param on_webhook: the DAG of the runs that the events started.
    :param wait_dag: the DAG of the waits.
    """
    names = [*(links or []), *(f"loan-{number}" for number in range(len(links or []), max(events, waits)))]
    now = datetime.now(UTC)
    with create_session(scoped=False) as session:
        for first in range(0, events, CHUNK):
            numbers = range(first, min(first + CHUNK, events))
            times = [now - timedelta(hours=span_hours * number / events) for number in numbers]
            add_events(session, [names[number] for number in numbers], times, numbers.start, on_webhook)
        for first in range(0, waits, CHUNK):
            numbers = range(first, min(first + CHUNK, waits))
            begun = [now - timedelta(hours=24 * (waits - number) / waits) for number in numbers]
            add_waits(session, [names[number] for number in numbers], begun, conn_id, wait_dag)
        for first in range(0, audit, CHUNK):
            times = [now - timedelta(hours=span_hours * number / audit) for number in range(first, first + CHUNK)]
            session.execute(insert(Log), [{"event": "trigger", "owner": "airflow", "dttm": when} for when in times])
        if unreadable:
            session.execute(
                Trigger.__table__.update()
                .where(Trigger.id == session.scalar(select(Trigger.id).order_by(Trigger.id)))
                .values(kwargs="Z0FBQUFB")
            )


def add_events(session: Any, links: list[str], times: list[datetime], start: int, dag_id: str) -> None:
    asset_id = session.scalar(select(AssetModel.id).where(AssetModel.uri.startswith("bankconnect://webhook/")))
    events = []
    for number, (link, when) in enumerate(zip(links, times, strict=True), start=start):
        progress = PROGRESS[number % len(PROGRESS)]
        extra = {"entity_id": f"customer-{number}", "statement_id": f"statement-{number}", "link_id": link}
        extra |= {"progress": progress, "reason": "Wrong <password> & more" if progress == "failed" else ""}
        key = partition_key(link, None)
        events.append({"asset_id": asset_id, "extra": extra, "partition_key": key, "timestamp": when})
    # Inserted the oldest first, as they arrive.
    session.execute(insert(AssetEvent), events[::-1])
    prefix = f"webhook-{uuid4().hex[:8]}-"
    runs = [run(dag_id, f"{prefix}{number}", when, "success") for number, when in enumerate(times, start)]
    session.execute(insert(DagRun), runs)
    ids = select(AssetEvent.id).where(AssetEvent.asset_id == asset_id).order_by(AssetEvent.id.desc()).limit(len(times))
    names = select(DagRun.run_id, DagRun.id).where(DagRun.run_id.startswith(prefix))
    run_ids = dict(session.execute(names).all())
    pairs = [
        {"event_id": event_id, "dag_run_id": run_ids[f"{prefix}{number}"]}
        for number, event_id in enumerate(session.scalars(ids), start)
    ]
    session.execute(insert(association_table), pairs)


def add_waits(session: Any, links: list[str], started: list[datetime], conn_id: str, dag_id: str) -> None:
    now = datetime.now(UTC)
    runs = [run(dag_id, f"manual-{begun:%j-%H%M%S%f}", now, "running") for begun in started]
    session.execute(insert(DagRun), runs)
    # A triggerer that runs, as far as its heartbeat says.
    alive = {"job_type": "TriggererJob", "state": "running", "latest_heartbeat": now + timedelta(days=1)}
    triggerer_id = session.scalar(insert(Job).values(alive).returning(Job.id))
    version = session.scalar(select(DagVersion.id).where(DagVersion.dag_id == dag_id).order_by(DagVersion.id.desc()))
    triggers = [
        {
            "classpath": TRIGGER,
            "encrypted_kwargs": Trigger.encrypt_kwargs(
                {
                    "link_id": link,
                    "bankconnect_conn_id": conn_id,
                    "wait": {
                        "deadline": (now + timedelta(hours=2)).isoformat(),
                        "started": begun.isoformat(),
                        "next_poke": now.isoformat(),
                        "poke_interval": 60.0,
                        "pokes": 1,
                    },
                }
            ),
            "created_date": begun,
            "triggerer_id": triggerer_id,
        }
        for link, begun in zip(links, started, strict=True)
    ]
    session.execute(insert(Trigger), triggers)
    ids = session.scalars(select(Trigger.id).order_by(Trigger.id.desc()).limit(len(triggers))).all()[::-1]
    common = {
        "dag_id": dag_id,
        "task_id": GATE,
        "map_index": -1,
        "state": "deferred",
        "pool": "default_pool",
        "try_number": 1,
    }
    common |= {"operator": SENSOR, "dag_version_id": version, "pool_slots": 1, "max_tries": 0, "executor_config": {}}
    # Text before Airflow 3.2.
    kind = TaskInstance.id.type.python_type
    tasks = [
        {**common, "id": kind(str(uuid4())), "run_id": one["run_id"], "start_date": begun, "trigger_id": trigger_id}
        for one, begun, trigger_id in zip(runs, started, ids, strict=True)
    ]
    session.execute(insert(TaskInstance), tasks)
    keys = ("dag_id", "task_id", "run_id", "map_index")
    rendered = [
        {"rendered_fields": {"link_id": link}, **{key: task[key] for key in keys}}
        for task, link in zip(tasks, links, strict=True)
    ]
    session.execute(insert(RenderedTaskInstanceFields), rendered)


def run(dag_id: str, run_id: str, now: datetime, state: str) -> dict[str, Any]:
    """Return the columns of a run that every Airflow requires."""
    kind = DagRunType.MANUAL
    return {
        "dag_id": dag_id,
        "run_id": run_id,
        "run_type": kind,
        "run_after": now,
        "start_date": now,
        "_state": state,
        "conf": {},
    }


if __name__ == "__main__":
    fill(**json.loads(sys.argv[1]))
