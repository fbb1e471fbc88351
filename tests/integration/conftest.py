from __future__ import annotations

import logging

import pytest

from airflow_provider_bankconnect.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _logged_once(monkeypatch):
    """Airflow 2 hands what is logged to ``logging``, and writes it to stdout besides: it would be read twice."""
    for logger in (logging.getLogger(), *map(logging.getLogger, ("airflow.task", "airflow.processor"))):
        others = [handler for handler in logger.handlers if type(handler).__name__ != "RedirectStdHandler"]
        monkeypatch.setattr(logger, "handlers", others)


@pytest.fixture
def box():
    """A BankConnect of its own for each test."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def connection(box, monkeypatch):
    """Airflow's default connection leads to the sandbox."""
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    return box.connection


@pytest.fixture
def fast(monkeypatch):
    """Looks may follow each other more closely than real ones may: a test waits for hours in a second."""
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.bankconnect.MIN_INTERVAL", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.sensors.bankconnect.MIN_INTERVAL", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.poller.SHARED_SECONDS", 0.02)
