"""What tasks report to Airflow's hook lineage, and what its OpenLineage provider makes of it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.lineage import hook as compat
from airflow.providers.common.compat.sdk import Asset

from airflow_provider_bankconnect.lineage import entity_uri, output_uri
from airflow_provider_bankconnect.operators.bankconnect import BankConnectReportToStorageOperator
from airflow_provider_bankconnect.sandbox import Statement
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectStatementSensor


class Collector:
    """Takes what Airflow's collector takes."""

    def __init__(self):
        self.inputs, self.outputs = [], []

    def add_input_asset(self, context, uri):
        assert context is not None
        self.inputs.append(uri)

    def add_output_asset(self, context, uri):
        assert context is not None
        self.outputs.append(uri)


@pytest.fixture
def collector(monkeypatch):
    found = Collector()
    monkeypatch.setattr(compat, "get_hook_lineage_collector", lambda: found)
    return found


@pytest.fixture
def statement(box, connection):  # noqa: ARG001 - it sets the environment
    box.play(Statement(entity_id="e1", statement_id="s1", mode="pdf", after=-5))


@pytest.mark.usefixtures("statement")
def test_the_operator_reports_the_customer_and_the_files(collector, tmp_path):
    declared = Asset("file:///declared")
    task = BankConnectReportToStorageOperator(
        task_id="keep", entity_id="e1", path=f"file://{tmp_path}", what="pdf", outlets=[declared]
    )
    context = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="keep", map_index=-1)}
    (row,) = task.execute(context)
    assert collector.inputs == ["bankconnect://entity/bankconnect_default/e1"]
    assert collector.outputs == [row["path"], declared.uri]


@pytest.mark.usefixtures("statement")
@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_gate_reports_the_customer_that_passed(collector, is_deferred):
    sensor = BankConnectStatementSensor(task_id="wait", entity_id="e1", deferrable=False)
    if is_deferred:
        row = {"statement_id": "s1", "entity_id": "e1", "link_id": None, "progress": "completed", "date_time": None}
        sensor.execute_complete({}, {"status": "passed", "rows": [row], "because": "it is completed"})
    else:
        sensor.execute({})
    assert (collector.inputs, collector.outputs) == (["bankconnect://entity/bankconnect_default/e1"], [])


@pytest.mark.usefixtures("statement")
def test_a_collector_that_fails_does_not_fail_the_task(monkeypatch):
    monkeypatch.delattr(compat, "get_hook_lineage_collector")
    assert BankConnectStatementSensor(task_id="wait", entity_id="e1", deferrable=False).execute({})


@pytest.mark.parametrize(
    ("uri", "namespace", "name"),
    [
        (entity_uri("bankconnect_default", "e1"), "bankconnect://bankconnect_default", "entity/e1"),
        (entity_uri("of lender", "a/b ?#%41 ä"), "bankconnect://of lender", "entity/a/b ?#%41 ä"),
        ("bankconnect://webhook/bankconnect_default", "bankconnect://bankconnect_default", "webhook"),
        (output_uri("s3://aws_default@bucket/reports/a#b.xlsx"), "s3://bucket", "reports/a%23b.xlsx"),
        (output_uri("file:///srv/a b.xlsx"), "file", "/srv/a b.xlsx"),
    ],
)
def test_openlineage_makes_datasets_of_the_assets(uri, namespace, name):
    utils = pytest.importorskip("airflow.providers.openlineage.utils.utils")
    dataset = utils.translate_airflow_asset(Asset(uri), None)
    assert (dataset.namespace, dataset.name) == (namespace, name)


def test_nothing_of_openlineage_is_imported_by_the_package():
    modules = ("operators.bankconnect", "sensors.bankconnect", "lineage")
    code = f"import sys, {', '.join(f'airflow_provider_bankconnect.{name}' for name in modules)}\n"
    code += "print([name for name in sys.modules if name.startswith('openlineage')])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
