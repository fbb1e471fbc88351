from __future__ import annotations

from functools import partial

import pytest
import templates
from homes import IN_POKE_MODE, QUICK, REGISTER, WAIT, Home

from airflow_provider_bankconnect.sandbox import Sandbox

# Waits for statements of two links, then for an analysis of the second link's customer.
TWO_WAITS = """
from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor

with DAG(dag_id="two_waits", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
    how = {"poke_interval": 1, "timeout": 600, "deferrable": True}
    first = BankConnectWebhookPayloadSensor(task_id="first", link_id="{{ dag_run.conf['links'][0] }}", **how)
    second = BankConnectWebhookPayloadSensor(task_id="second", link_id="{{ dag_run.conf['links'][1] }}", **how)
    third = BankConnectProgressSensor(
        task_id="third", entity_id="{{ ti.xcom_pull('second')[0]['entity_id'] }}", analysis="identity", **how
    )
    first >> second >> third
"""
AT_ONCE = {"retry_delay=timedelta(minutes=2)": "retry_delay=timedelta(0)"}
TWO_TRIES = {"poke_interval=30": "poke_interval=1, retries=1, retry_delay=timedelta(0)"}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An Airflow home with a database. Tests copy it and do not run it."""
    return Home(templates.sqlite(tmp_path_factory))


@pytest.fixture(scope="session")
def new_home(tmp_path_factory):
    """Make a new Airflow home, with its own settings."""
    return partial(templates.new_home, tmp_path_factory)


@pytest.fixture(scope="session")
def home(new_home):
    """The Airflow home of most tests: both example DAGs, and variants of the main one."""
    home = new_home()
    home.add_example(REGISTER)
    home.add_example(WAIT, QUICK | AT_ONCE)
    home.add_example(WAIT, QUICK | IN_POKE_MODE, dag_id="in_poke_mode")
    home.add_example(WAIT, TWO_TRIES, dag_id="with_two_tries")
    home.add("two_waits", TWO_WAITS)
    return home


@pytest.fixture(scope="session")
def shared(home):
    """Run the DAGs of this home in one process."""
    with home.driver() as driver:
        assert driver.greeting["import_errors"] == {}
        yield driver


@pytest.fixture
def box():
    """A sandbox for one test."""
    with Sandbox() as sandbox:
        yield sandbox
