"""Inserts the rows of deferred tasks into Airflow's database, and reads their state.

A scheduler and ten thousand worker starts would cost more than everything that is measured.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.http.triggers.http import HttpSensorTrigger
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunType
from bench_triggers import Bare, Nothing, Watch
from history_wait import history_wait
from sqlalchemy import delete, func, insert, select, text
from talk import serve

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.gate import Expectation
from airflow_provider_bankconnect.records import HistoryGate

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

DAG: Final = "benchmark"


def prepare() -> None:
    """Insert the DAG and the run of the tasks."""
    now = datetime.now(UTC)
    with create_session() as session:
        session.add(DagBundleModel(name=DAG))
        session.flush()
        session.add(
            DagModel(
                dag_id=DAG,
                bundle_name=DAG,
                max_active_tasks=16,
                max_active_runs=16,
                max_consecutive_failed_dag_runs=0,
                has_task_concurrency_limits=False,
                is_stale=False,
            )
        )
        session.flush()
        session.add(DagVersion(dag_id=DAG, version_number=1, bundle_name=DAG))
        session.execute(
            insert(DagRun).values(
                dag_id=DAG,
                run_id=DAG,
                run_type=DagRunType.MANUAL,
                _state=DagRunState.RUNNING,
                logical_date=now,
                run_after=now,
                start_date=now,
            )
        )


def trigger(kind: str, number: int, interval: float) -> BaseTrigger:
    """Return the trigger of a wait, as its sensor makes it."""
    name = f"bench-{number}"
    if kind == "nothing":
        return Nothing(number=number)
    if kind == "bare":
        return Bare(link_id=name, poke_interval=interval)
    if kind == "http":
        return HttpSensorTrigger(endpoint=f"entity/{name}/", http_conn_id="http_vendor", poke_interval=interval)
    return history_wait(
        {"same": "bench-same", "history": "bench-history"}.get(kind, name),
        interval,
        expected_statements=1_000_000 if kind == "history" else 1,
    )


def put(kind: str, waits: int, interval: float, watch: str) -> None:
    """Replace all deferred tasks by so many new ones."""
    clear()
    now = datetime.now(UTC)
    made: list[tuple[str, BaseTrigger]] = [("watch", Watch(path=watch))]
    made += [("wait", trigger(kind, number, interval)) for number in range(waits)]
    with create_session() as session:
        version = session.scalar(select(DagVersion.id))
        values: list[dict[str, Any]] = []
        for _, one in made:
            classpath, arguments = one.serialize()
            encrypted = Trigger.encrypt_kwargs(arguments)
            values.append({"classpath": classpath, "encrypted_kwargs": encrypted, "created_date": now})
        ids = list(session.scalars(insert(Trigger).returning(Trigger.id, sort_by_parameter_order=True), values))
        session.execute(
            insert(TaskInstance),
            [
                {
                    "dag_id": DAG,
                    "run_id": DAG,
                    "task_id": task_id,
                    "map_index": number - 1,
                    "state": TaskInstanceState.DEFERRED,
                    "try_number": 1,
                    "pool": "default_pool",
                    "queue": "default",
                    "priority_weight": 1,
                    "operator": "Benchmark",
                    "start_date": now,
                    "trigger_id": trigger_id,
                    "next_method": "execute_complete",
                    "next_kwargs": {},
                    "dag_version_id": version,
                    "executor_config": {},
                }
                for number, ((task_id, _), trigger_id) in enumerate(zip(made, ids, strict=True))
            ],
        )
    # As on a database in use: without statistics Postgres plans the triggerer's queries badly.
    with create_session() as session:
        session.execute(text("ANALYZE"))


def clear() -> None:
    """Delete all waits; a running triggerer cancels them."""
    with create_session() as session:
        session.execute(delete(TaskInstance))
        session.execute(delete(Trigger))


def taken() -> int:
    """Return how many waits a triggerer has assigned to itself."""
    with create_session() as session:
        return session.scalar(select(func.count(Trigger.id)).where(Trigger.triggerer_id.is_not(None))) or 0


def ended() -> dict[str, float]:
    """Return the waits that have ended, and when Airflow had recorded it."""
    with create_session() as session:
        found = session.execute(
            select(TaskInstance.map_index, TaskInstance.scheduled_dttm).where(
                TaskInstance.task_id == "wait", TaskInstance.state == TaskInstanceState.SCHEDULED
            )
        )
        return {f"bench-{number}": moment.timestamp() for number, moment in found}


def judge(rows: int) -> float:
    """Read and judge an answer of so many rows; return the seconds, the median of five."""
    stamp = "2026-01-01 00:00:00"
    row = '{"statement_id":"s%d","entity_id":"e%d","link_id":"l","progress":"processing","reason":"","date_time":"%s"}'
    body = '{"payloads":[' + ",".join(row % (number, number % 50, stamp) for number in range(rows)) + "]}"
    gate = HistoryGate(Expectation.parse(link_id="l"))
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        call = gate.ask(UTC)
        api.advance(call)
        result = api.advance(call, api.Answer(200, body.encode()))
        gate.judge(result.value, datetime.now(UTC))
        taken.append(time.perf_counter() - started)
    return sorted(taken)[2]


if __name__ == "__main__":
    serve(prepare=prepare, put=put, clear=clear, taken=taken, ended=ended, judge=judge)
