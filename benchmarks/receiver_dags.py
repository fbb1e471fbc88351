"""The DAGs of the webhook receiver's benchmark. Airflow reads a copy, beside the shipped `bankconnect_on_webhook`."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

START = pendulum.datetime(2026, 1, 1, tz="UTC")

with DAG(dag_id="bench_wait", schedule=None, start_date=START, max_active_runs=100):
    BankConnectWebhookPayloadSensor(
        task_id="wait",
        bankconnect_conn_id="bench_waits",
        link_id="{{ dag_run.conf['link_id'] }}",
        poke_interval=600,
        timeout=timedelta(hours=6),
        deferrable=True,
        # Airflow keeps only the events of assets that a DAG names. This one starts no DAG.
        inlets=[webhook_asset("bench_waits")],
    )

# Runs without work: the benchmark counts the runs of each customer.
for name, schedule in (
    ("bench_receiver", PartitionedAssetTimetable(assets=webhook_asset("bench_burst"))),
    ("bench_receiver_two", PartitionedAssetTimetable(assets=webhook_asset("bench_burst_two"))),
    ("bench_keyed", PartitionedAssetTimetable(assets=Asset("bench://own/keyed"))),
    ("bench_plain", [Asset("bench://own/plain")]),
):
    with DAG(dag_id=name, schedule=schedule, start_date=START, max_active_runs=2_000):
        EmptyOperator(task_id="nothing")
