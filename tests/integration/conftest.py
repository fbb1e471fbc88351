from __future__ import annotations

import logging

import pytest

from airflow_provider_bankconnect.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _logged_once(monkeypatch):
    """Remove Airflow 2's handlers that also write log lines to stdout, where they would be read twice."""
    for logger in (logging.getLogger(), *map(logging.getLogger, ("airflow.task", "airflow.processor"))):
        others = [handler for handler in logger.handlers if type(handler).__name__ != "RedirectStdHandler"]
        monkeypatch.setattr(logger, "handlers", others)


@pytest.fixture
def box():
    """A sandbox for each test."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def connection(box, monkeypatch):
    """Set Airflow's default connection to the sandbox."""
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    return box.connection


@pytest.fixture
def fast(monkeypatch):
    """Let pokes follow each other every 0.05 seconds."""
    monkeypatch.setattr("airflow_provider_bankconnect.wait.MIN_INTERVAL", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.poller.SHARED_SECONDS", 0.02)
