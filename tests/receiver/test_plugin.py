"""The plugin, its settings and its metadata, as Airflow sees them; on every supported Airflow."""

from __future__ import annotations

import json
import os

import pytest
from forks import Forks
from receivers import NEEDS_3_2, PREVIOUS, TOKEN

from airflow_provider_bankconnect.get_provider_info import get_provider_info
from airflow_provider_bankconnect.receiver import address

WITHOUT_SECRETS = ("--show-values", "--hide-sensitive")
OWN = "airflow_provider_bankconnect.receiver"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python in a separate Airflow home, with the webhook receiver's settings. Airflow's own API is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    environment |= {
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("home")),
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN_PREVIOUS": PREVIOUS,
        "AIRFLOW__BANKCONNECT__PUBLIC_URL": "https://hooks.example.com",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }

    with Forks(environment) as forks:
        yield lambda *arguments: forks.run(*arguments).stdout


def loaded_by(run, imports):
    """Return the modules that an import loads in addition to Airflow's own."""
    code = (
        f"import json, sys; before = set(sys.modules);{imports}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    return json.loads(run("-c", code).splitlines()[-1])


def test_plugin_loads_no_web_framework_and_no_database(run):
    loaded = loaded_by(run, f"import {OWN}.plugin")
    assert f"{OWN}.plugin" in loaded
    assert f"{OWN}.app" not in loaded
    assert f"{OWN}.events" not in loaded
    heavy = {"starlette", "fastapi", "sqlalchemy", "requests", "aiohttp", "pydantic", "tenacity", "uvicorn"}
    assert not heavy & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("module", ["triggers.bankconnect", "sensors.bankconnect", "operators.bankconnect"])
def test_waits_and_operators_do_not_load_the_app(run, module):
    loaded = loaded_by(run, f"import airflow_provider_bankconnect.{module}")
    assert f"{OWN}.address" in loaded
    assert not {f"{OWN}.app", f"{OWN}.events", f"{OWN}.journal", f"{OWN}.plugin"} & set(loaded)
    assert not {"starlette", "fastapi"} & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("version", ["2.11.2", "3.1.8", "3.2.0"])
def test_below_airflow_3_2_nothing_is_mounted(run, version):
    code = (
        f"import airflow; airflow.__version__ = {version!r};"
        f"from {OWN}.plugin import BankConnectPlugin as plugin; print(len(plugin.fastapi_apps))"
    )
    assert run("-c", code).splitlines()[-1] == str(int(version == "3.2.0"))


@NEEDS_3_2
def test_api_server_mounts_the_receiver_at_its_prefix(run):
    code = (
        "from airflow import plugins_manager as manager; found = manager.get_fastapi_plugins()[0];"
        "print([(app['url_prefix'], app['name']) for app in found if app['name'] == 'BankConnect webhook receiver'])"
    )
    assert run("-c", code).splitlines()[-1] == "[('/bankconnect', 'BankConnect webhook receiver')]"


def test_airflow_lists_the_plugin(run):
    listed = run("-m", "airflow", "plugins", "--output", "json")
    # Airflow's log lines come first, and have brackets too.
    found = json.loads(listed[listed.index("[\n") if "[\n" in listed else listed.index("[{") :])
    (ours,) = [plugin for plugin in found if plugin["name"] == "bankconnect"]
    assert "airflow-provider-bankconnect" in str(ours["source"])


def test_airflow_shows_the_settings(run):
    shown = run("-m", "airflow", "config", "list", "--section", "bankconnect", "--include-descriptions")
    for name in ("webhook_token", "webhook_token_previous", "public_url"):
        assert f"{name} = " in shown
    assert "The secret last part of the address" in shown


@NEEDS_3_2
def test_airflow_hides_the_tokens(run):
    shown = run("-m", "airflow", "config", "list", "--section", "bankconnect", *WITHOUT_SECRETS)
    assert "public_url = https://hooks.example.com" in shown
    assert "webhook_token = " in shown
    assert TOKEN not in shown
    assert PREVIOUS not in shown


def test_every_setting_is_declared_and_has_a_fallback(configure):
    section = get_provider_info()["config"][address.SECTION]
    assert set(section["options"]) == {"webhook_token", "webhook_token_previous", "public_url", "api_server_url"}
    for name, option in section["options"].items():
        assert option["version_added"] == get_provider_info()["versions"][0]
        assert option["description"]
        assert option["default"] is None
        assert option.get("sensitive", False) == ("token" in name)
    # No setting is set here.
    configure()
    assert address.tokens() == ()


def test_scheme_of_the_asset_is_registered(run):
    (schemes,) = [entry["schemes"] for entry in get_provider_info()["asset-uris"]]
    assert [f"{scheme}://webhook/" for scheme in schemes] == [address.ASSET_PREFIX]
    code = (
        "from airflow.providers_manager import ProvidersManager as manager;"
        "print('bankconnect' in manager().asset_uri_handlers)"
        if address.airflow_version.startswith("3")
        else "print(True)"
    )
    assert run("-c", code).splitlines()[-1] == "True"
