"""Runs when a webhook arrives: the webhook starts the run, BankConnect's own records decide whether its gate passes.

Needs Airflow 3.2 and the setting `[bankconnect] webhook_token`. Unpause this DAG, and only then run
`bankconnect_register_webhook` without a `webhook_url`. The customer may have a link or not. Three statements of one
customer start up to three runs. Of the runs that see the same statements with a time, one does the work. Of statements
that only the progress has, which has no times, each run does the work.

The partition key of a run names its customer: the list of runs has a filter and a column for it.

A run by hand names the customer: `--conf '{"link_id": "loan-4711"}'` or `'{"entity_id": "..."}'`, or the partition key
`link:loan-4711`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG, PartitionedAssetTimetable, task

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.receiver.address import webhook_asset
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectStatementSensor

CONN_ID = "bankconnect_default"

with DAG(
    dag_id="bankconnect_on_webhook",
    description="Work on a customer's statements as soon as BankConnect has processed them.",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(assets=webhook_asset(CONN_ID)),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    # A waiting run is an active run, though it holds no worker: leave room for the next customer.
    max_active_runs=1000,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2)},
    tags=["bankconnect"],
):
    # Without link_id and entity_id it waits for the customer of the webhook event that started the run.
    wait_for_statement = BankConnectStatementSensor(
        task_id="wait_for_statement",
        bankconnect_conn_id=CONN_ID,
        on_failed="skip",
        poke_interval=600,
        timeout=timedelta(hours=24),
        deferrable=True,
    )

    @task.short_circuit
    def is_mine(rows: list[dict[str, Any]], triggering_asset_events: Any = None) -> bool:  # noqa: ANN401 - Airflow's
        """Return whether the newest statement started this run. Each completed statement starts one run only."""
        events = [event for of_asset in triggering_asset_events.values() for event in of_asset]
        # A run by hand has no events, and neither has one whose events were purged.
        started_by = {event.extra["statement_id"] for event in events if "statement_id" in event.extra}
        # Work only in the run of the newest statement. Rows without a time have no order, so each of them works.
        newest = [row for row in rows if row["date_time"] is None] + rows[:1]
        return not started_by or any(row["statement_id"] in started_by for row in newest)

    @task
    def count_transactions(rows: list[dict[str, Any]]) -> dict[str, int]:
        """Replace this with your own work. It must be idempotent, because a task may run again."""
        with BankConnectHook(CONN_ID) as hook:
            answer = hook.get_transactions(rows[0]["entity_id"])
        return {"statements": len(rows), "transactions": len(answer["transactions"])}

    is_mine(wait_for_statement.output) >> count_transactions(wait_for_statement.output)
