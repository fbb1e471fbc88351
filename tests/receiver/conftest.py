from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from doorbells import CONN_ID, DAGS, LONELY, TOKEN, Caller, Database, Served, airflow_uses, api_server
from homes import Home

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.sandbox import Sandbox

# Airflow's own commands, in one process: it takes seconds to get going.
PREPARE = """
from airflow.cli.cli_parser import get_parser

for command in (["db", "migrate"], ["dags", "reserialize"]):
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)
"""


def migrate(folder, **settings):
    """Make Airflow's database, and have the DAGs parsed into it."""
    home = Home(folder, AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False", **settings)
    home.add("doorbells", DAGS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREPARE],
        env=home.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return home


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    """A SQLite that Airflow could run on, once for all tests."""
    return migrate(tmp_path_factory.mktemp("doorbell")).database


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL of our own, where its programs are."""
    live = pytest.importorskip("live", reason="the scripts are not here")
    for driver in ("psycopg2", "asyncpg"):
        pytest.importorskip(driver)
    try:
        server = live.Postgres()
    except live.LiveError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server, tmp_path_factory):
    """A database in it that Airflow could run on, once for all tests."""
    migrate(tmp_path_factory.mktemp("doorbell"), AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgres_server.url)
    return postgres_server.url


@pytest.fixture
def sqlite(migrated_sqlite, tmp_path):
    """A SQLite of its own for each test, which this process's Airflow uses."""
    shutil.copy(migrated_sqlite, tmp_path / "airflow.db")
    database = Database(f"sqlite:///{tmp_path / 'airflow.db'}")
    with airflow_uses(database.url):
        yield database


@pytest.fixture
def postgres(migrated_postgres, tmp_path):
    """A PostgreSQL database of its own for each test, likewise."""
    server, _, template = migrated_postgres.rpartition("/")
    name = "".join(letter for letter in tmp_path.name.lower() if letter.isalnum())
    with administer(server) as run:
        run(f"create database {name} template {template}")
    database = Database(f"{server}/{name}")
    with airflow_uses(database.url):
        yield database
    with administer(server) as run:
        run(f"drop database {name} with (force)")


@contextmanager
def administer(server):
    """Run what PostgreSQL wants to have no transaction around."""
    with Database(f"{server}/template1")._engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    """Each of both."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def configure(monkeypatch):
    """Set settings of ``[bankconnect]``; None takes one away."""

    def set_settings(**settings):
        for name, value in settings.items():
            variable = f"AIRFLOW__BANKCONNECT__{name.upper()}"
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        address.tokens.cache_clear()

    set_settings(webhook_token=None, webhook_token_previous=None, public_url=None)
    yield set_settings
    monkeypatch.undo()
    address.tokens.cache_clear()


@pytest.fixture
def doorbell(configure, monkeypatch):
    """A doorbell that is on; without a database it can still refuse."""
    configure(webhook_token=TOKEN)
    monkeypatch.setenv(f"AIRFLOW_CONN_{LONELY.upper()}", "bankconnect://")
    return Caller(api_server())


@pytest.fixture
def api_server_at(monkeypatch):
    """Say where Airflow's own parts find the API server, and what they trust."""

    def set_settings(url, ca_file=None, own_file=None):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"{url}/execution/")
        monkeypatch.setenv("AIRFLOW__API__SSL_CA_FILE", ca_file or "")
        monkeypatch.setenv("AIRFLOW__API__SSL_CERT", own_file or "")

    return set_settings


@pytest.fixture
def box(monkeypatch):
    """A BankConnect of its own for each test, to which two connections lead."""
    with Sandbox(webhook_retries=0) as sandbox:
        for conn_id in (CONN_ID, LONELY):
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", sandbox.connection_json)
        yield sandbox


@pytest.fixture
def certificate(box, tmp_path):
    """A server's certificate, and its key, from the sandbox's authority."""
    certificate, key = box.issue_certificate(tmp_path)
    # As people do whose certificate comes from their own authority: so it can be trusted by itself.
    certificate.write_text(certificate.read_text() + box.ca_pem)
    return certificate, key


@pytest.fixture
def served(certificate, box, sqlite, configure, api_server_at):  # noqa: ARG001 - the database is below it
    """A doorbell that Airflow's own parts reach over HTTPS, and the sandbox."""
    configure(webhook_token=TOKEN)
    with Served(*certificate) as server:
        api_server_at(server.url, box.ca_file)
        yield server
