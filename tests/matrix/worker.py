"""Runs one task as a worker of Airflow 3 does: under a supervisor, in a separate process, with its log in a file.

``airflow dags test`` runs tasks in its own process, where Airflow's masker does less. The supervisor's API runs in this
process. The task must have a run.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
from airflow.executors.workloads import BundleInfo, TaskInstance
from airflow.sdk.execution_time import supervisor


def main(dag_id: str, task_id: str, log: str) -> int:
    with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"], "airflow.db"))) as database:
        database.row_factory = sqlite3.Row
        query = "select * from task_instance where dag_id = ? and task_id = ?"
        row: Any = database.execute(query, (dag_id, task_id)).fetchone()
        database.execute("update task_instance set state = 'queued' where id = ?", (row["id"],))
        database.execute("update dag_run set state = 'running' where run_id = ?", (row["run_id"],))
        database.commit()
    plain = ("dag_id", "task_id", "run_id", "try_number", "map_index", "pool_slots", "queue", "priority_weight")
    known = {name: row[name] for name in plain} | {"id": uuid.UUID(row["id"]), "dag_version_id": row["dag_version_id"]}
    ti = TaskInstance(
        **{name: value for name, value in known.items() if name in TaskInstance.model_fields and value is not None}
    )
    dag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]).dags[dag_id]
    # Its name in 3.3, and before.
    run = getattr(supervisor, "supervise_task", None) or supervisor.supervise
    return run(
        ti=ti,
        bundle_info=BundleInfo(name="dags-folder", version=None),
        dag_rel_path=f"{dag_id}.py",
        token="",
        client=supervisor.InProcessTestSupervisor._api_client(dag),
        log_path=log,
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
