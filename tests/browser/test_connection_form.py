"""The connection form in Chromium, with a real API server, and a run that uses the saved connection."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from connections_page import CHROMIUM, DRIVER, ConnectionsPage, open_browser
from cryptography.fernet import Fernet
from homes import FERNET_KEY, QUICK, ROOT, WAIT
from servers import api_server

from airflow_provider_bankconnect.api import ConnectionSettings
from airflow_provider_bankconnect.sandbox import Sandbox, Statement

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium and chromedriver are missing: scripts/install-system-packages.sh"
    ),
    pytest.mark.skipif(
        tuple(map(int, version("apache-airflow-core").split(".")[:2])) < (3, 3), reason="the form of Airflow 3.3"
    ),
]

CONN_ID = "bankconnect_default"
OPTIONS = "API Key and options"
STANDARD = "Standard Fields"
PICTURES = ROOT / ".cache" / "browser"


@pytest.fixture(scope="module")
def box():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """An Airflow home with a database and an API server at ``origin``."""
    changes = QUICK | {"timedelta(hours=24)": "timedelta(minutes=10)"}
    with api_server(
        tmp_path_factory,
        prepare=lambda home: home.add_example(WAIT, changes),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__CORE__TEST_CONNECTION="Enabled",
    ) as home:
        yield home


@pytest.fixture(scope="module")
def page(airflow, tmp_path_factory):
    browser = open_browser(tmp_path_factory.mktemp("profile"))
    yield ConnectionsPage(browser, airflow.origin, PICTURES)
    browser.quit()


def add(page, box, conn_id, **other):
    """Fill in the form and save it."""
    page.add(conn_id)
    host = {"Host": "localhost", "Server_Hash": box.server_hash, "Port": str(box.port)}
    page.fill(STANDARD, **host | {name: value for name, value in other.items() if name in host})
    page.fill(OPTIONS, API_Key=box.api_key, CA_bundle=box.ca_file)
    page.save()


@pytest.fixture(scope="module")
def saved(page, box):
    """A connection that was saved with the form."""
    add(page, box, CONN_ID)
    return CONN_ID


def read_back(airflow, conn_id):
    """Return a connection as a task reads it, decrypted from Airflow's database."""
    [(host, port, *secret)] = airflow.query(
        "select host, port, password, extra from connection where conn_id = ? and conn_type = 'bankconnect'", conn_id
    )
    password, extra = (Fernet(FERNET_KEY).decrypt(value).decode() for value in secret)
    return ConnectionSettings.parse(conn_id, host=host, port=port, password=password, extra=json.loads(extra))


def test_form_labels_both_keys_and_hides_unused_fields(page):
    page.add(CONN_ID)
    assert page.labels == [
        *("Connection ID", "Connection Type"),
        *("Description", "Host", "Server Hash", "Port"),
        *("API Key", "Time zone", "CA bundle", "Timeout (seconds)", "Polls at once"),
    ]
    assert page.field("Server Hash").get_attribute("type") == "password"
    assert page.field("API Key").get_attribute("type") == "password"
    assert "443" in page.field("Port").get_attribute("placeholder")
    page.take_picture("1-empty")

    page.fill(STANDARD, Server_Hash="a-made-up-server-hash", Port="443")
    page.take_picture("2-key-is-missing")
    page.fill(OPTIONS, API_Key="a-made-up-api-key")
    assert page.help_of("API Key") == "The x-api-key that FinBox gave you with the Server Hash."
    assert "Blank: UTC" in page.help_of("Time zone")
    page.take_picture("connection-form-options", of="[role=dialog]")
    page.unfold(STANDARD)
    page.take_picture("connection-form", of="[role=dialog]")


def test_form_without_the_api_key_cannot_be_saved_and_marks_the_section(page):
    page.add("without_a_key")
    page.fill(STANDARD, Server_Hash="a-made-up-server-hash")

    assert page.sections == {STANDARD: False, OPTIONS: True, "Extra Fields JSON": False}
    assert not page.save_button.is_enabled()

    page.fill(OPTIONS, API_Key="a-made-up-api-key")
    page.until(lambda: page.sections[OPTIONS] is False)
    assert page.save_button.is_enabled()


def test_task_reads_what_the_form_has_saved(page, box, saved, airflow):
    page.open()
    page.take_picture("3-list")

    settings = read_back(airflow, saved)

    assert settings.base_url == box.url
    assert (settings.server_hash, settings.api_key) == (box.server_hash, box.api_key)
    assert (settings.verify, settings.timeout, settings.max_concurrency) == (box.ca_file, 30, 16)


def test_secrets_are_masked_in_the_form_and_kept_when_another_field_changes(page, box, saved, airflow):
    page.edit(saved)
    assert page.values(STANDARD, "Host", "Server Hash") == {"Host": "localhost", "Server Hash": "***"}
    assert page.values(OPTIONS, "API Key", "CA bundle") == {"API Key": "***", "CA bundle": box.ca_file}
    page.fill(OPTIONS, **{"Timeout_(seconds)": "20", "Time_zone": "Etc/UTC"})
    page.take_picture("4-edit")
    page.save()

    settings = read_back(airflow, saved)

    assert (settings.server_hash, settings.api_key) == (box.server_hash, box.api_key)
    assert (settings.verify, settings.timeout, str(settings.timezone)) == (box.ca_file, 20, "Etc/UTC")


def test_button_reports_that_bankconnect_accepts_both_keys(page, box, saved):
    asked = len(box.calls("webhook_payloads"))

    title, words = page.test(saved)
    page.take_picture("5-tested")

    assert (title, words) == ("Test Connection Successful", "BankConnect answers, and takes both keys")
    assert len(box.calls("webhook_payloads")) == asked + 1


def test_button_names_the_fields_to_check_when_bankconnect_refuses_the_keys(page, box):
    add(page, box, "with_a_wrong_hash", Server_Hash="an-old-server-hash")

    title, words = page.test("with_a_wrong_hash")
    page.take_picture("6-refused")

    assert title == "Test Connection Failed"
    assert "BankConnect refuses these keys. Check API Key and Server Hash of the connection" in words


def test_airflow_refuses_the_button_without_a_port_as_the_form_warns(page, box):
    """When this fails, Airflow has fixed it: remove the port's placeholder and the paragraph in the docs."""
    add(page, box, "without_a_port", Host=f"localhost:{box.port}", Port="")
    asked = len(box.requests)

    title, words = page.test("without_a_port")

    assert (title, words) == ("Test Connection Failed", "Bad Request")
    assert len(box.requests) == asked


@pytest.mark.usefixtures("saved")
def test_run_waits_and_works_with_the_connection_of_the_form(airflow, box):
    link = "loan-by-the-form"
    conf = json.dumps({"link_id": link, "since": (datetime.now(UTC) - timedelta(seconds=5)).isoformat()})

    with airflow.job("dags", "test", WAIT, "--conf", conf) as job:
        job.until(lambda: [record for record in box.calls("webhook_payloads") if record.query["link_id"] == link])
        box.play(Statement(link_id=link, entity_id="customer", after=1.5, transactions=3))
        assert job.finish() == 0, job.output[-4000:]

    assert airflow.state_of(WAIT) == "success"
    assert {record.query["link_id"] for record in box.calls("webhook_payloads")} >= {link}
    assert box.calls("transactions")
    assert box.server_hash not in job.output
    assert box.api_key not in job.output
