"""Databases that Airflow could run on, created once for all processes of a test run. Tests copy them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from homes import Home
from live import Postgres
from receivers import DAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

WITH_DAGS = "with_dags"
# One process for all commands, since Airflow takes seconds to import.
PREPARE = """
import os
from airflow import settings
from airflow.cli.cli_parser import get_parser

def run(*command):
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)

run("db", "migrate")
settings.dispose_orm()
{copy}
os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = {url!r}
settings.configure_vars()
settings.configure_orm()
run("dags", "reserialize")
"""
COPY_SQLITE = """
import shutil
shutil.copy({database!r}, {copy!r})
"""
COPY_POSTGRES = """
import psycopg2
connection = psycopg2.connect(host="127.0.0.1", port={port}, user="airflow", dbname="template1")
connection.autocommit = True
connection.cursor().execute("create database with_dags template postgres")
connection.close()
"""


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder once for all processes of pytest-xdist, and return it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        # Another process may be making it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = base / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def sqlite(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an Airflow home, with a second database beside it that has the DAGs of ``receivers.py``."""

    def make(folder: Path) -> None:
        home, copy = Home(folder), folder / f"{WITH_DAGS}.db"
        prepare(home, COPY_SQLITE.format(database=str(home.database), copy=str(copy)), f"sqlite:///{copy}")

    return once(factory, "airflow-on-sqlite", make)


def postgres(factory: pytest.TempPathFactory) -> Path:
    """Return a data directory of PostgreSQL: ``postgres`` has no DAGs, ``with_dags`` has those of ``receivers.py``.

    :raises LiveError: PostgreSQL's server programs are not found.
    """

    def make(folder: Path) -> None:
        with Postgres() as server:
            home = Home(folder, AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=server.url)
            prepare(home, COPY_POSTGRES.format(port=server.port), server.url.replace("/postgres", f"/{WITH_DAGS}"))
            server.stop()
            shutil.copytree(server.data, folder / "data")

    return once(factory, "airflow-on-postgres", make) / "data"


def new_home(factory: pytest.TempPathFactory, **settings: str) -> Home:
    """Return a new Airflow home with a database, and with these settings."""
    home = Home(factory.mktemp("airflow"), **settings)
    shutil.copytree(Home(sqlite(factory)).path, home.path)
    return home


def prepare(home: Home, copy: str, url: str) -> None:
    """Create the tables, copy the database, and parse the DAGs into the copy."""
    home.add("webhook receivers", DAGS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREPARE.format(copy=copy, url=url)],
        env=home.environment | {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False"},
        cwd=home.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
