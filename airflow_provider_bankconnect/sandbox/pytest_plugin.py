"""Pytest fixtures for tests of your own DAGs: each test gets its own mock BankConnect server.

In a ``conftest.py``::

    pytest_plugins = ["airflow_provider_bankconnect.sandbox.pytest_plugin"]

In a test module; ``bankconnect_connection`` sets Airflow's connection ``bankconnect_default``::

    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
    from airflow_provider_bankconnect.sandbox import Fault, Statement

    def test_my_task_continues_after_a_server_error(bankconnect_connection):
        bankconnect_connection.play(Statement(link_id="loan-4711", statement_id="s-1"))
        bankconnect_connection.fault(Fault(kind="status", status=503, times=1))

        rows = BankConnectHook().get_webhook_payloads("loan-4711")

        assert [row.statement_id for row in rows] == ["s-1"]
        assert len(bankconnect_connection.calls("webhook_payloads")) == 2

Parametrize ``bankconnect_sandbox`` indirectly with a dict to pass arguments to :class:`Sandbox`, such as
``@pytest.mark.parametrize("bankconnect_sandbox", [{"timezone": "Asia/Kolkata"}], indirect=True)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .box import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bankconnect_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return a new sandbox, which runs for one test."""
    with Sandbox(**getattr(request, "param", {})) as box:
        yield box


@pytest.fixture
def bankconnect_connection(bankconnect_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Return the sandbox after setting Airflow's connection ``bankconnect_default`` to it."""
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", bankconnect_sandbox.connection_json)
    return bankconnect_sandbox
