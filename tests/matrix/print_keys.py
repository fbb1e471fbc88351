"""A DAG that prints and logs both keys. Airflow's masker must mask them in a real worker."""

from __future__ import annotations

import logging
import sys

import pendulum
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook

with DAG(dag_id="print_keys", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False):

    @task
    def print_keys() -> None:
        """Print and log both keys."""
        with BankConnectHook() as hook:
            settings = hook.settings
        for name, key in (("api_key", settings.api_key), ("server_hash", settings.server_hash)):
            print(f"printed {name}: {key}.")
            logging.getLogger("careless").warning("logged %s: %s.", name, key)
        sys.stdout.flush()

    print_keys()
