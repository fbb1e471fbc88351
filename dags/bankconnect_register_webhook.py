"""Registers the endpoint of BankConnect's webhooks. Trigger it by hand, once per environment and after each change.

BankConnect keeps one URL for each account: a staging Airflow with production's keys diverts production's webhooks.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.operators.bankconnect import BankConnectUpdateWebhookOperator

with DAG(
    dag_id="bankconnect_register_webhook",
    description="Register the endpoint that BankConnect sends its webhooks to",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    # A worker may be killed, and a connection may time out. Registering again changes nothing.
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    params={
        "webhook_url": Param(
            default=None,
            type=["null", "string"],
            format="uri",
            description="An https:// endpoint that answers with 200; empty: the webhook receiver of this Airflow",
        ),
        "allow_private_host": Param(default=False, type="boolean", description="For the sandbox on this machine"),
    },
    # Renders an empty URL as None, and not as the text "None".
    render_template_as_native_obj=True,
    tags=["bankconnect"],
):
    BankConnectUpdateWebhookOperator(
        task_id="register",
        webhook_url="{{ params.webhook_url }}",
        # With BankConnect's default, net banking only, uploaded PDF statements would send no webhook.
        webhook_mode=WebhookMode.NET_BANKING_AND_MANUAL,
        allow_private_host="{{ params.allow_private_host }}",
    )
