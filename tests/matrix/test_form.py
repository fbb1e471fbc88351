"""The connection form is the same in every Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import airflow
import pytest

from airflow_provider_bankconnect.get_provider_info import get_provider_info
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook

VERSION = tuple(map(int, airflow.__version__.split(".")[:2]))
(FORM,) = get_provider_info()["connection-types"]
FIELDS = FORM["conn-fields"]

in_airflow_2 = pytest.mark.skipif(VERSION >= (3, 0), reason="only for Airflow 2")
in_airflow_3 = pytest.mark.skipif(VERSION < (3, 0), reason="only for Airflow 3")
with_wtforms = pytest.mark.skipif(not find_spec("wtforms"), reason="needs wtforms")


def test_hook_and_provider_info_describe_the_same_field_behaviour():
    described = FORM["ui-field-behaviour"]
    behaviour = BankConnectHook.get_ui_field_behaviour()
    assert behaviour.keys() == {"hidden_fields", "relabeling", "placeholders"}
    assert behaviour["hidden_fields"] == described["hidden-fields"]
    assert behaviour["relabeling"] == described["relabeling"]
    assert behaviour["placeholders"] == described["placeholders"]


@with_wtforms
def test_every_field_of_the_provider_info_is_a_widget_that_airflow_accepts():
    widgets = BankConnectHook.get_connection_form_widgets()
    assert list(widgets) == list(FIELDS)
    kinds = {name: widget.field_class.__name__ for name, widget in widgets.items()}
    assert kinds == {
        "api_key": "PasswordField",
        "timezone": "StringField",
        "verify": "StringField",
        "timeout": "StringField",
        "max_concurrency": "IntegerField",
    }
    for name, widget in widgets.items():
        assert widget.args == (FIELDS[name]["label"],)
        assert widget.kwargs["description"] == FIELDS[name]["description"]


def test_importing_the_hook_loads_no_form_library():
    code = (
        "import sys; from airflow.providers.common.compat.sdk import BaseHook; before = set(sys.modules);"
        "import airflow_provider_bankconnect.hooks.bankconnect;"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}"
        " & {'wtforms', 'flask_appbuilder', 'flask_babel'}))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@in_airflow_3
@pytest.mark.skipif(VERSION == (3, 0) and not find_spec("wtforms"), reason="3.0 shows raw fields without wtforms")
def test_form_of_airflow_3_has_exactly_the_labelled_fields():
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (ours,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "bankconnect"]
    assert [str(warning.message) for warning in warned if "BankConnect" in str(warning.message)] == []
    assert ours.hook_name == "FinBox BankConnect"
    assert list(ours.extra_fields) == list(FIELDS)
    for name, field in ours.extra_fields.items():
        schema = field["schema"]
        assert schema.get("title", FIELDS[name]["label"]) == FIELDS[name]["label"]
        assert schema.get("format") == FIELDS[name]["schema"].get("format")
    assert ours.standard_fields.password.title == "Server Hash"
    assert ours.standard_fields.login.hidden
    assert ours.standard_fields.url_schema.hidden
    assert ours.standard_fields.port is None or not ours.standard_fields.port.hidden


@in_airflow_2
def test_airflow_2_has_the_fields_and_treats_only_the_key_as_secret():
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415

    manager = ProvidersManager()
    widgets = {name: widget for name, widget in manager.connection_form_widgets.items() if "bankconnect" in name}
    assert list(widgets) == [f"extra__bankconnect__{name}" for name in FIELDS]
    assert [widget.is_sensitive for widget in widgets.values()] == [name == "api_key" for name in FIELDS]
    assert manager.field_behaviours["bankconnect"]["relabeling"] == {"password": "Server Hash"}
    assert manager.hooks["bankconnect"].connection_testable


@in_airflow_2
def test_form_of_airflow_2_adds_and_edits_a_connection_without_showing_its_keys(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    (tmp_path / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\nWTF_CSRF_ENABLED = False\n")
    for command in (["-m", "airflow", "db", "migrate"], [str(Path(__file__).with_name("form_of_airflow_2.py"))]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    extra = {"api_key": "KEY-OF-THE-FORM", "timezone": "", "verify": "", "timeout": "10", "max_concurrency": None}
    assert {name: value for name, value in result["added"]["extra"].items() if value} == {
        name: value for name, value in extra.items() if value
    }
    assert result["added"]["password"] == "HASH-OF-THE-FORM"
    assert "API Key" in result["page"]
    assert "KEY-OF-THE-FORM" not in result["page"]
    assert "HASH-OF-THE-FORM" not in result["page"]
    assert result["edited"]["password"] == "HASH-OF-THE-FORM"
    assert result["edited"]["extra"]["api_key"] == "KEY-OF-THE-FORM"
    assert result["edited"]["extra"]["timezone"] == "Asia/Kolkata"
