"""What an IDE and a type checker make of a user's DAG: right uses pass, typos are reported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DAG = """
from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)


def linked(rows: list[str]) -> str:
    return rows[0]


with DAG("underwriting", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):

    @task
    def find_link() -> str:
        return "loan-4711"

    statement = BankConnectWebhookPayloadSensor(
        task_id="statement",
        link_id="{{ dag_run.conf['link_id'] }}",
        since=pendulum.datetime(2026, 11, 1, tz="UTC"),
        expected_statements="{{ dag_run.conf['statements'] }}",
        statement_id=["s1", 2],
        failure_grace=timedelta(minutes=5),
        on_failed="pass",
        deferrable=True,
        poke_interval=30,
        timeout=timedelta(hours=24),
        retries=2,
    )
    BankConnectWebhookPayloadSensor(task_id="number", link_id=4711, entity_id="e1", since="2026-11-01")
    BankConnectWebhookPayloadSensor(task_id="upstream", link_id=statement.output)
    BankConnectWebhookPayloadSensor(task_id="taskflow", link_id=find_link())
    BankConnectProgressSensor(task_id="progress", entity_id=statement.output, analysis="identity")
    BankConnectProgressSensor(task_id="report", entity_id="e1", analysis="xlsx_report")
    BankConnectStatementSensor(task_id="of_the_run", deferrable=True)
    BankConnectStatementSensor(task_id="both", link_id=4711, entity_id=statement.output, since="2026-11-01")
    BankConnectUpdateWebhookOperator(
        task_id="register", webhook_url=None, webhook_mode=WebhookMode.NET_BANKING_AND_MANUAL
    )
    BankConnectCatchUpOperator(task_id="catch_up", link_ids=["loan-1", 2])
    BankConnectCatchUpOperator(task_id="iterator", link_ids=(number for number in range(9)))
    BankConnectCatchUpOperator(task_id="file", link_ids=ObjectStoragePath("s3://aws_default@bucket/links.txt"))
    BankConnectCatchUpOperator(task_id="of_a_task", link_ids=statement.output)
"""
TYPOS = {
    "on_failed": 'BankConnectWebhookPayloadSensor(task_id="t", link_id="x", on_failed="fails")',
    "analysis": 'BankConnectProgressSensor(task_id="t", entity_id="x", analysis="transaction")',
    "deferrable": 'BankConnectProgressSensor(task_id="t", entity_id="x", deferrable="yes")',
    "no link": 'BankConnectWebhookPayloadSensor(task_id="t", link="x")',
    "entities": 'BankConnectStatementSensor(task_id="t", entity_id=["x", "y"])',
    "a list": 'BankConnectWebhookPayloadSensor(task_id="t", link_id=["x", "y"])',
    "half a statement": 'BankConnectProgressSensor(task_id="t", entity_id="x", expected_statements=1.5)',
    "minutes": 'BankConnectWebhookPayloadSensor(task_id="t", link_id="x", failure_grace=30)',
    "one link": 'BankConnectCatchUpOperator(task_id="t", link_ids=4711)',
    "mode": 'BankConnectUpdateWebhookOperator(task_id="t", webhook_url=None, webhook_mode=2)',
}
ROOT = Path(__file__).resolve().parents[2]
# The cache of `make types` is used: without it, mypy reads all of Airflow, for a minute.
MYPY = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", "{folder}/dag.py"]
PYRIGHT = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--project", "{folder}"]


def lines_with_errors(checker: list[str], folder: Path) -> dict[int, str]:
    """Return the line numbers that the checker reports, each with its message."""
    command = [word.replace("{folder}", str(folder)) for word in checker]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode in {0, 1}, said.stdout + said.stderr
    return {int(line): text for line, text in re.findall(r"dag\.py:(\d+)(?::\d+)?(?: -)?:? error: (.*)", said.stdout)}


@pytest.fixture(scope="module", params=[MYPY, PYRIGHT], ids=["mypy", "pyright"])
def reported(request, tmp_path_factory):
    """Return the number of the first typo's line, and the errors."""
    folder = tmp_path_factory.mktemp("dags")
    source = DAG + "".join(f"    {line}\n" for line in TYPOS.values())
    (folder / "dag.py").write_text(source, encoding="utf-8")
    config = {"typeCheckingMode": "standard", "include": ["dag.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    return DAG.count("\n") + 1, lines_with_errors(request.param, folder)


def test_right_uses_pass(reported):
    first, errors = reported
    assert {line: text for line, text in errors.items() if line < first} == {}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_reported(reported, typo):
    first, errors = reported
    assert first + list(TYPOS).index(typo) in errors
