"""Waits for a customer's statements, then keeps the Excel reports and the transactions as files. One run per customer.

Trigger it when you send the customer to BankConnect, with the link and that moment:

    airflow dags trigger bankconnect_reports --run-id loan-4711_2026-11-23 \
        --conf '{"link_id": "loan-4711", "since": "2026-11-23T10:00:00Z"}'

The files are in `bankconnect_reports/<entity_id>/` below Airflow's home. With several workers, set `STORAGE` to a
storage that all of them reach, such as `s3://aws_default@my-bucket/bankconnect`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.configuration import AIRFLOW_HOME
from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_bankconnect.operators.bankconnect import BankConnectReportToStorageOperator
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectStatementSensor

STORAGE = f"file://{AIRFLOW_HOME}/bankconnect_reports"

with DAG(
    dag_id="bankconnect_reports",
    description="Wait for a customer's bank statements, then keep the Excel reports and the transactions",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    # A waiting run is an active run, though it holds no worker: leave room for the next customer.
    max_active_runs=1000,
    # A worker may be killed, too. After a failed statement or a timeout, the wait is not tried again.
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    params={
        "link_id": Param(type="string", minLength=1, maxLength=500, description="The link that the SDK got"),
        "since": Param(type="string", format="date-time", description="When the customer was sent to BankConnect"),
    },
    tags=["bankconnect"],
):
    wait = BankConnectStatementSensor(
        task_id="wait_for_statement",
        link_id="{{ params.link_id }}",
        # If the link is used again next month, last month's statement must not pass the gate.
        since="{{ params.since }}",
        timeout=timedelta(hours=24).total_seconds(),
        poke_interval=60,
        deferrable=True,
    )

    @task
    def entities_of(rows: list[dict[str, Any]]) -> list[str]:
        """Return each entity once: the gate has a row for each statement."""
        return sorted({row["entity_id"] for row in rows})

    # Excel reports are ready a little later than the transactions: until then the task is tried again.
    BankConnectReportToStorageOperator.partial(
        task_id="keep_reports",
        path=STORAGE,
        what=["xlsx"],
        analyses=["transactions"],
        retries=10,
        retry_delay=timedelta(minutes=1),
    ).expand(entity_id=entities_of(wait.output))
