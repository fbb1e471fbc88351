"""Runs DAGs one after another in one process: each line on stdin is an order, each line on stdout an answer.

``airflow dags test`` needs ten seconds to start; a second ``dag.test()`` in the same process needs a third of a second.
Airflow's own output goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

CONNECTION = "AIRFLOW_CONN_BANKCONNECT_DEFAULT"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415 - its output must go to stderr

    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    print(json.dumps({"dag_ids": sorted(bag.dags), "import_errors": bag.import_errors}), file=answers)
    for line in sys.stdin:
        print(json.dumps(run(bag, json.loads(line))), file=answers)


def run(bag: Any, order: dict[str, Any]) -> dict[str, Any]:
    reset_masker(masked=order["masked"])
    os.environ[CONNECTION] = order["connection"]
    started = time.monotonic()
    dag_run = bag.dags[order["dag_id"]].test(run_conf=order["conf"])
    return {
        "run_id": dag_run.run_id,
        "state": dag_run.state,
        "tasks": {ti.task_id: ti.state for ti in dag_run.get_task_instances()},
        "seconds": time.monotonic() - started,
    }


def reset_masker(*, masked: bool) -> None:
    """Make Airflow's masker forget all secrets, as in a new process; without ``masked``, it accepts no new ones."""
    for module in ("airflow._shared.secrets_masker", "airflow.sdk._shared.secrets_masker"):
        masker = import_module(module)._secrets_masker()
        masker.reset_masker()
        masker.__dict__.pop("add_mask", None)
        if not masked:
            masker.add_mask = lambda *_, **__: None


if __name__ == "__main__":
    main()
