"""Waits until BankConnect has processed a customer's statement, then works on the transactions. One run per customer.

Trigger it when you send the customer to BankConnect, with the link and that moment:

    airflow dags trigger bankconnect_wait_for_statement --run-id loan-4711_2026-11-23 \
        --conf '{"link_id": "loan-4711", "since": "2026-11-23T10:00:00Z"}'

The run id names the customer wherever Airflow shows the run, and Airflow refuses a second run with the same one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

with DAG(
    dag_id="bankconnect_wait_for_statement",
    description="Wait for a customer's bank statement, then check and summarise the transactions",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    # A waiting run is an active run: with Airflow's default of 16, the 17th customer would wait for the first.
    max_active_runs=1000,
    # A worker may be killed, too. After a failed statement or a timeout, the wait is not tried again.
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    params={
        "link_id": Param(type="string", minLength=1, maxLength=500, description="The link that the SDK got"),
        "since": Param(type="string", format="date-time", description="When the customer was sent to BankConnect"),
    },
    tags=["bankconnect"],
):
    wait = BankConnectWebhookPayloadSensor(
        task_id="wait_for_statement",
        link_id="{{ params.link_id }}",
        # If the link is used again next month, last month's statement must not pass the gate.
        since="{{ params.since }}",
        # Customers may take hours to find their password. After the timeout, the task fails.
        timeout=timedelta(hours=24).total_seconds(),
        poke_interval=30,
        deferrable=True,
    )

    # A new statement may arrive after the gate has passed: then the hook raises BankConnectNotReadyError, and the
    # task is retried.
    @task(retries=5, retry_delay=timedelta(minutes=2))
    def summarise_transactions(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Read the transactions, and return counts only: a customer's data must not get into XCom."""
        with BankConnectHook() as hook:
            answer = hook.get_transactions(rows[0]["entity_id"])
        done = {item["statement_id"] for item in answer["progress"] if item["status"] == "completed"}
        missing = {row["statement_id"] for row in rows} - done
        if missing:
            raise ValueError(f"The transactions do not cover these statements: {sorted(missing)}")
        if not answer["transactions"]:
            raise ValueError("The statement has no transactions: nothing to underwrite")
        return {"statements": len(done), "transactions": len(answer["transactions"])}

    summarise_transactions(wait.output)
