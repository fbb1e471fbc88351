"""Records missed webhooks, for instance after an outage, a wrong `webhook_mode` or a deployment.

Keep the links that you expect in the Airflow variable `bankconnect_expected_links`, as a JSON list (`airflow variables
set bankconnect_expected_links '["loan-4711"]'`), or take them from where you keep your open applications: `link_ids`
may also be an iterator, or a file with one link a line, such as `link_ids="s3://aws_default@bucket/links.txt"`. Other
links cannot be found. Needs Airflow 3.2.

It also starts the runs of statements whose webhook was recorded while `bankconnect_on_webhook` was paused, or whose
pending run Airflow dropped because the schedule was edited. If another DAG on the same asset has run for them, run this
by hand with `again` switched on.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, Param

from airflow_provider_bankconnect.operators.bankconnect import BankConnectCatchUpOperator

with DAG(
    dag_id="bankconnect_catch_up",
    description="Record completed statements that have started no run.",
    doc_md=__doc__,
    schedule=timedelta(minutes=10),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={"again": Param(default=False, type="boolean", description="Record even what has a run already.")},
    render_template_as_native_obj=True,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
    tags=["bankconnect"],
):
    BankConnectCatchUpOperator(
        task_id="catch_up",
        link_ids="{{ var.json.get('bankconnect_expected_links', []) }}",
        since="{{ (dag_run.run_after - macros.timedelta(days=7)).isoformat() }}",
        again="{{ params.again }}",
    )
