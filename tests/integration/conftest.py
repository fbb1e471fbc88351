from __future__ import annotations

import logging
import socket

import pytest
from stores import attach_memory, s3_server
from stories import Script, Story
from waits import MODES

from airflow_provider_bankconnect.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _logged_once(monkeypatch):
    """Remove Airflow 2's handlers that also write log lines to stdout, where they would be read twice."""
    for logger in (logging.getLogger(), *map(logging.getLogger, ("airflow.task", "airflow.processor"))):
        others = [handler for handler in logger.handlers if type(handler).__name__ != "RedirectStdHandler"]
        monkeypatch.setattr(logger, "handlers", others)


@pytest.fixture
def script():
    """Steps that are run after the pokes of a test."""
    return Script()


@pytest.fixture
def box(script, request):
    """A sandbox for each test; a parameter has its options."""
    with Sandbox(on_event=script.on_event, **getattr(request, "param", {})) as sandbox:
        yield sandbox


@pytest.fixture(params=MODES)
def story(request, box, script, connection, fast):  # noqa: ARG001 - they set up its environment
    """One waiting task, in each of the modes."""
    return Story(box, request.param, script)


@pytest.fixture
def connection(box, monkeypatch):
    """Set Airflow's default connection to the sandbox."""
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
    return box.connection


@pytest.fixture
def names(monkeypatch):
    """A name server: maps a port to the addresses of ``localhost`` there."""
    found, usual = {}, socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **more):
        if port not in found or host != "localhost":
            return usual(host, port, *arguments, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found[port]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


@pytest.fixture
def fast(monkeypatch):
    """Let pokes follow each other every 0.05 seconds."""
    monkeypatch.setattr("airflow_provider_bankconnect.wait.MIN_INTERVAL", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.poller.SHARED_SECONDS", 0.02)


@pytest.fixture(scope="session")
def _s3_server():
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server, monkeypatch):
    """Make an empty bucket on a real S3 server, whose URL Airflow can open. The server starts with the first one."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{_s3_server.conn_id.upper()}", _s3_server.connection_json)
    return _s3_server.new_bucket()


@pytest.fixture
def memory(monkeypatch):
    """An empty ``memory://``."""
    return attach_memory(monkeypatch)
