"""An invalid argument is an import error of the DAG that names the argument."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.system

DAG = """
from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_bankconnect.operators.bankconnect import BankConnectUpdateWebhookOperator
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor

with DAG(dag_id={name!r}, schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
    {task}
"""
PAYLOADS = 'BankConnectWebhookPayloadSensor(task_id="wait", link_id="{{{{ params.link_id }}}}", {})'
PROGRESS = 'BankConnectProgressSensor(task_id="wait", entity_id="{{{{ params.entity_id }}}}", {})'
ENDPOINT = 'BankConnectUpdateWebhookOperator(task_id="register", {})'
# The task, and words in the error.
MISTAKES = {
    "on_failed": (PAYLOADS.format('on_failed="explode"'), ["on_failed", "'explode'", "fail", "skip", "wait", "pass"]),
    "expected_statements": (PAYLOADS.format("expected_statements=0"), ["expected_statements", "0"]),
    "since": (PAYLOADS.format('since="last tuesday"'), ["since", "'last tuesday'", "ISO 8601"]),
    "blank_link": ('BankConnectWebhookPayloadSensor(task_id="wait", link_id=" ")', ["link_id", "blank"]),
    "analysis": (PROGRESS.format('analysis="horoscope"'), ["analysis", "'horoscope'", "transactions", "identity"]),
    "plain_http": (ENDPOINT.format('webhook_url="http://example.com/hook"'), ["webhook_url", "https://"]),
    "private_host": (ENDPOINT.format('webhook_url="https://10.0.0.7/hook"'), ["webhook_url", "allow_private_host"]),
    "webhook_mode": (
        ENDPOINT.format('webhook_url="https://example.com/hook", webhook_mode=7'),
        ["webhook_mode", "NET_BANKING", "NET_BANKING_AND_MANUAL", "7"],
    ),
}
GOOD = {
    "good_wait": PAYLOADS.format('on_failed="pass", expected_statements=3, since="2026-11-23T10:00:00Z"'),
    "good_templates": PAYLOADS.format('on_failed="{{ params.x }}", expected_statements="{{ params.n }}"'),
    "good_endpoint": ENDPOINT.format('webhook_url="https://example.com/hook", webhook_mode=1'),
}


@pytest.fixture(scope="module")
def greeting(new_home):
    """What Airflow's DagBag reports about the folder."""
    home = new_home()
    for name, task in ({name: task for name, (task, _) in MISTAKES.items()} | GOOD).items():
        home.add(name, DAG.format(name=name, task=task))
    with home.driver() as driver:
        return {**driver.greeting, "folder": home.dags}


@pytest.mark.parametrize("name", MISTAKES)
def test_invalid_argument_is_an_import_error_that_names_the_argument_and_the_allowed_values(greeting, name):
    said = greeting["import_errors"][str(greeting["folder"] / f"{name}.py")]
    last = said.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    for word in MISTAKES[name][1]:
        assert word in last


def test_valid_and_templated_arguments_are_accepted(greeting):
    assert greeting["dag_ids"] == sorted(GOOD)
