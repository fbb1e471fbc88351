"""Fetches webhooks from a relay, for an Airflow that the internet cannot reach.

For a relay with `BANKCONNECT_RELAY_TO=operator`, which calls nobody. Keep its address in the Airflow variable
`bankconnect_relay_url`, then unpause this DAG. A run starts each minute and waits for webhooks until shortly before the
next one, so a webhook is recorded within a second or two. Needs Airflow 3.2 and the setting `[bankconnect]
webhook_token`, the same as the relay's.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_bankconnect.operators.bankconnect import BankConnectRelayOperator

with DAG(
    dag_id="bankconnect_relay",
    description="Fetch BankConnect's webhooks from a relay, and record them.",
    doc_md=__doc__,
    schedule=timedelta(minutes=1),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # Without a relay, each run fails.
    is_paused_upon_creation=True,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=20)},
    tags=["bankconnect"],
):
    BankConnectRelayOperator(
        task_id="fetch",
        relay_url="{{ var.value.bankconnect_relay_url }}",
        # A worker slot is occupied for so long. With 0, a run ends when the queue is empty.
        duration=timedelta(seconds=50),
        execution_timeout=timedelta(minutes=10),
    )
