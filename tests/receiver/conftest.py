from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
import templates
from live import LiveError, Postgres
from receivers import CONN_ID, NO_DAG, TOKEN, Caller, Database, Served, airflow_uses, api_server

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.sandbox import Sandbox


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    """A SQLite database that Airflow could run on, created once for all tests."""
    return templates.sqlite(tmp_path_factory) / f"{templates.WITH_DAGS}.db"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A PostgreSQL server, if its programs are installed. Airflow could run on its databases."""
    for driver in ("psycopg2", "asyncpg"):
        pytest.importorskip(driver)
    try:
        server = Postgres(copy_of=templates.postgres(tmp_path_factory))
    except LiveError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def sqlite(migrated_sqlite, tmp_path):
    """A SQLite database for each test, which Airflow uses in this process."""
    shutil.copy(migrated_sqlite, tmp_path / "airflow.db")
    database = Database(f"sqlite:///{tmp_path / 'airflow.db'}")
    # SQLite gives up on a lock after 5 seconds; on a busy machine, a test may hold it for longer.
    with airflow_uses(f"{database.url}?timeout=300"):
        yield database


@pytest.fixture
def postgres(postgres_server, tmp_path):
    """A PostgreSQL database for each test, which Airflow uses in this process."""
    server = postgres_server.url.rpartition("/")[0]
    name = "".join(letter for letter in tmp_path.name.lower() if letter.isalnum())
    with administer(server) as run:
        # Copying the files takes half the time of the default since PostgreSQL 15, which writes all to its log.
        quick = "strategy file_copy" if int(run("show server_version_num").scalar_one()) >= 150_000 else ""
        run(f"create database {name} template {templates.WITH_DAGS} {quick}")
    database = Database(f"{server}/{name}")
    with airflow_uses(database.url):
        yield database
    with administer(server) as run:
        run(f"drop database {name} with (force)")


@contextmanager
def administer(server):
    """Run statements that PostgreSQL refuses in a transaction."""
    with Database(f"{server}/template1")._engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    """Run the test with each database."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def configure(monkeypatch):
    """Set options of ``[bankconnect]``; None removes one."""

    def set_settings(**settings):
        for name, value in settings.items():
            variable = f"AIRFLOW__BANKCONNECT__{name.upper()}"
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        address.tokens.cache_clear()

    set_settings(webhook_token=None, webhook_token_previous=None, public_url=None, api_server_url=None)
    yield set_settings
    monkeypatch.undo()
    address.tokens.cache_clear()


@pytest.fixture
def receiver(configure, monkeypatch):
    """A client of a webhook receiver that is switched on, and has a database if the test asks for one."""
    configure(webhook_token=TOKEN)
    monkeypatch.setenv(f"AIRFLOW_CONN_{NO_DAG.upper()}", "bankconnect://")
    return Caller(api_server())


@pytest.fixture
def api_server_at(monkeypatch):
    """Set where tasks and triggerers find the API server, and which certificates they trust."""

    def set_settings(url, ca_file=None, own_file=None):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"{url}/execution/")
        monkeypatch.setenv("AIRFLOW__API__SSL_CA_FILE", ca_file or "")
        monkeypatch.setenv("AIRFLOW__API__SSL_CERT", own_file or "")

    return set_settings


@pytest.fixture
def box(monkeypatch):
    """A sandbox for each test, and two connections to it."""
    with Sandbox(webhook_retries=0) as sandbox:
        for conn_id in (CONN_ID, NO_DAG):
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", sandbox.connection_json)
        yield sandbox


@pytest.fixture
def certificate(box, tmp_path):
    """A server certificate of the sandbox's authority, and its key."""
    certificate, key = box.issue_certificate(tmp_path)
    # With the authority's certificate in it, clients can trust this file alone.
    certificate.write_text(certificate.read_text() + box.ca_pem)
    return certificate, key


@pytest.fixture
def served(certificate, box, sqlite, configure, api_server_at):  # noqa: ARG001 - the receiver uses it
    """A webhook receiver that tasks and triggerers reach over HTTPS, beside the sandbox."""
    configure(webhook_token=TOKEN)
    with Served(*certificate) as server:
        api_server_at(server.url, box.ca_file)
        yield server
