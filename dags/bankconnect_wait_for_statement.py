"""One run for each customer: wait until BankConnect has processed the statement, then work on the transactions.

Trigger it when you send the customer to BankConnect, with the link and that moment:

    airflow dags trigger bankconnect_wait_for_statement \
        --conf '{"link_id": "loan-4711", "since": "2026-11-23T10:00:00Z"}'
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
    # A run that waits is an active run: Airflow's default of 16 would make the 17th customer wait for the first.
    max_active_runs=1000,
    params={
        "link_id": Param(type="string", minLength=1, maxLength=500, description="As the SDK was given it"),
        "since": Param(type="string", format="date-time", description="When this customer's journey began"),
    },
    tags=["bankconnect"],
):
    wait = BankConnectWebhookPayloadSensor(
        task_id="wait_for_statement",
        link_id="{{ params.link_id }}",
        # A link that is used again next month must not open on last month's row: only what came since counts.
        since="{{ params.since }}",
        # People take hours to find their password. After this the task fails, and tells what it saw last.
        timeout=timedelta(hours=24).total_seconds(),
        poke_interval=30,
        deferrable=True,
    )

    # New statements may come in between the gate and this call: then it is refused (BankConnectNotReadyError),
    # and tried again.
    @task(retries=5, retry_delay=timedelta(minutes=2))
    def summarise_transactions(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Read the transactions and keep what is safe to keep: XCom is no place for a customer's data."""
        with BankConnectHook() as hook:
            answer = hook.get_transactions(rows[0]["entity_id"])
        done = {item["statement_id"] for item in answer["progress"] if item["status"] == "completed"}
        missing = {row["statement_id"] for row in rows} - done
        if missing:
            raise ValueError(f"The gate opened on statements that the transactions do not cover: {sorted(missing)}")
        if not answer["transactions"]:
            raise ValueError("The statement has no transactions: nothing to underwrite")
        return {"statements": len(done), "transactions": len(answer["transactions"])}

    summarise_transactions(wait.output)
