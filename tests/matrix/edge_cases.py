"""A DAG of edge cases. ``real_airflow.py`` has the expected state of each task, the same for every Airflow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

with DAG(dag_id="edge_cases", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False):

    def wait(task_id: str, link_id: str = "nobody", **arguments: Any) -> BankConnectWebhookPayloadSensor:
        how = {"deferrable": True, "poke_interval": 1, "timeout": 600, "failure_grace": timedelta(0), **arguments}
        return BankConnectWebhookPayloadSensor(task_id=task_id, link_id=link_id, **how)

    wait("times_out", timeout=2)
    wait("times_out_softly", timeout=2, soft_fail=True)
    wait("times_out_and_never_fails", timeout=2, never_fail=True)

    wait("wrong_key_softly", bankconnect_conn_id="bankconnect_wrong", soft_fail=True)
    wait("wrong_key_and_never_fails", bankconnect_conn_id="bankconnect_wrong", never_fail=True)

    wait("failed_now", "failed-now")
    wait("failed_now_softly", "failed-now-softly", soft_fail=True)
    wait("failed_later", "failed-later")
    wait("failed_later_softly", "failed-later-softly", soft_fail=True)
    wait("failed_later_is_passed_on", "failed-later-is-passed-on", on_failed="pass")

    now = wait("passes_now", "passes-now")
    later = wait("passes_later", "passes-later")

    BankConnectWebhookPayloadSensor.partial(
        task_id="wait_for_each", deferrable=True, poke_interval=1, timeout=600
    ).expand(link_id=["passes-now", "passes-later"])

    @task
    def name_types(now: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[str]:
        """Return the types of the XCom: it must not have become the text of a list."""
        if [list(row) for row in now] != [list(row) for row in later]:
            raise ValueError("The rows of the first poke and of a later one have different fields")
        return [type(item).__name__ for item in (later, later[0], later[0]["date_time"], now[0]["date_time"])]

    @task
    def one_row(row: dict[str, Any]) -> str:
        """Return the statement of one row."""
        return row["statement_id"]

    name_types(now.output, later.output)
    one_row.expand(row=later.output)
