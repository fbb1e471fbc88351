"""What Airflow and pip see of the package."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger

import airflow_provider_bankconnect
from airflow_provider_bankconnect.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parents[2]


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_provider_info_fits_the_schema_of_the_installed_airflow():
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_finds_the_provider_by_its_entry_point():
    (found,) = (
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.value.startswith("airflow_provider_bankconnect")
    )
    assert found.load()()["package-name"] == "airflow-provider-bankconnect"


def test_the_version_stands_in_one_place():
    assert version("airflow-provider-bankconnect") == airflow_provider_bankconnect.__version__
    assert get_provider_info()["versions"] == [airflow_provider_bankconnect.__version__]


@pytest.mark.parametrize(("kind", "base"), [("hooks", BaseHook), ("operators", BaseOperator)])
def test_every_module_that_the_provider_info_names_is_there(kind, base):
    (entry,) = get_provider_info()[kind]
    (name,) = entry["python-modules"]
    module = importlib.import_module(name)
    assert any(isinstance(item, type) and issubclass(item, base) for item in vars(module).values())


def test_sensors_and_triggers_stand_where_the_contract_says():
    from airflow_provider_bankconnect.sensors import bankconnect as sensors  # noqa: PLC0415
    from airflow_provider_bankconnect.triggers import bankconnect as triggers  # noqa: PLC0415

    for name in ("BankConnectWebhookPayloadSensor", "BankConnectProgressSensor"):
        assert issubclass(getattr(sensors, name), BaseSensorOperator)
    for name in ("BankConnectWebhookPayloadTrigger", "BankConnectProgressTrigger"):
        assert issubclass(getattr(triggers, name), BaseTrigger)


def test_provider_info_can_be_read_while_airflow_configures_itself():
    """On 3.2 and later it is: an import of Airflow there makes `airflow version` itself crash."""
    read = "from airflow_provider_bankconnect.get_provider_info import get_provider_info; get_provider_info()"
    assert not {"airflow", "requests", "aiohttp", "pydantic"} & modules_after(read)


def test_the_protocol_and_the_verdict_know_neither_airflow_nor_an_http_client():
    loaded = modules_after("import airflow_provider_bankconnect.api, airflow_provider_bankconnect.gate")
    assert not {"airflow", "requests", "aiohttp", "httpx", "urllib3"} & loaded


def test_the_sensors_load_nothing_of_the_sandbox():
    code = (
        "import sys, airflow_provider_bankconnect.sensors.bankconnect;"
        "print([name for name in sys.modules if name.endswith('bankconnect.sandbox') or name == 'trustme'])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_sandbox_imports_nothing_of_the_package():
    """Sharing code, it would share its misreadings."""
    for path in (ROOT / "airflow_provider_bankconnect" / "sandbox").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                ours = name.startswith("airflow_provider_bankconnect.sandbox")
                assert ours or not name.startswith("airflow"), f"{path.name}: {name}"


def test_airflow_version_works_beside_the_provider(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "version"],
        capture_output=True,
        text=True,
        check=False,
        env={"AIRFLOW_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == airflow.__version__
