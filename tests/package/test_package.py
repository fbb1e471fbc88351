"""The package as Airflow and pip use it."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from inspect import signature
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger
from airflow.utils.file import list_py_file_paths

import airflow_provider_bankconnect
from airflow_provider_bankconnect.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parents[2]


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_provider_info_matches_the_schema_of_the_installed_airflow():
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_finds_the_provider_by_its_entry_point():
    (found,) = (
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.value.startswith("airflow_provider_bankconnect")
    )
    assert found.load()()["package-name"] == "airflow-provider-bankconnect"


def test_version_is_the_same_in_package_metadata_and_provider_info():
    assert version("airflow-provider-bankconnect") == airflow_provider_bankconnect.__version__
    assert get_provider_info()["versions"] == [airflow_provider_bankconnect.__version__]


@pytest.mark.parametrize(("kind", "base"), [("hooks", BaseHook), ("operators", BaseOperator)])
def test_modules_of_the_provider_info_exist(kind, base):
    (entry,) = get_provider_info()[kind]
    (name,) = entry["python-modules"]
    module = importlib.import_module(name)
    assert any(isinstance(item, type) and issubclass(item, base) for item in vars(module).values())


def test_sensors_and_triggers_are_in_their_documented_modules():
    from airflow_provider_bankconnect.sensors import bankconnect as sensors  # noqa: PLC0415
    from airflow_provider_bankconnect.triggers import bankconnect as triggers  # noqa: PLC0415

    for name in ("BankConnectWebhookPayloadSensor", "BankConnectProgressSensor", "BankConnectStatementSensor"):
        assert issubclass(getattr(sensors, name), BaseSensorOperator)
    for name in ("BankConnectWebhookPayloadTrigger", "BankConnectProgressTrigger", "BankConnectStatementTrigger"):
        assert issubclass(getattr(triggers, name), BaseTrigger)


def test_provider_info_can_be_read_while_airflow_configures_itself():
    """From 3.2 on Airflow does so; importing Airflow there would crash `airflow version`."""
    read = "from airflow_provider_bankconnect.get_provider_info import get_provider_info; get_provider_info()"
    assert not {"airflow", "requests", "aiohttp", "pydantic"} & modules_after(read)


def test_api_gate_and_wait_import_neither_airflow_nor_an_http_client():
    modules = (f"airflow_provider_bankconnect.{name}" for name in ("api", "gate", "records", "wait"))
    loaded = modules_after(f"import {', '.join(modules)}")
    assert not {"airflow", "requests", "aiohttp", "httpx", "urllib3"} & loaded


def test_sensors_do_not_load_the_sandbox():
    code = (
        "import sys, airflow_provider_bankconnect.sensors.bankconnect;"
        "print([name for name in sys.modules if name.endswith('bankconnect.sandbox') or name == 'trustme'])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_sandbox_imports_nothing_of_the_package():
    """With shared code, both could share a misunderstanding."""
    for path in (ROOT / "airflow_provider_bankconnect" / "sandbox").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                ours = name.startswith("airflow_provider_bankconnect.sandbox")
                assert ours or not name.startswith("airflow"), f"{path.name}: {name}"


def test_airflow_does_not_load_the_example_dags_of_the_package(tmp_path):
    """From 3.3 on it would, with ``load_examples``: beside the copies in a folder of DAGs, which have the same ids."""
    package = Path(airflow_provider_bankconnect.__file__).parent
    # The folder is as the wheel has it.
    shutil.copytree(ROOT / "dags", tmp_path, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    # Airflow 2 adds its own examples here.
    more = {"include_examples": False} if "include_examples" in signature(list_py_file_paths).parameters else {}
    assert list_py_file_paths(tmp_path, **more)
    shutil.copy(package / "example_dags" / ".airflowignore", tmp_path)
    assert list_py_file_paths(tmp_path, **more) == []


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
