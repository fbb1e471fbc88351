"""The pytest fixtures for users, and the example in their documentation."""

from __future__ import annotations

import os
import re
import textwrap

from airflow_provider_bankconnect.sandbox import pytest_plugin

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["airflow_provider_bankconnect.sandbox.pytest_plugin"]'


def test_the_example_of_the_documentation_passes(pytester):
    assert CONFTEST in pytest_plugin.__doc__
    example = re.search(r"\n    from airflow_provider.*?(?=\nParam)", pytest_plugin.__doc__, re.DOTALL)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(textwrap.dedent(example[0]))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_each_test_has_its_own_sandbox_with_its_own_arguments(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import json, os, pytest
        from airflow_provider_bankconnect.sandbox import Statement

        @pytest.mark.parametrize("number", [1, 2])
        def test_fresh(bankconnect_sandbox, number):
            assert bankconnect_sandbox.requests == []
            assert "AIRFLOW_CONN_BANKCONNECT_DEFAULT" not in os.environ
            assert bankconnect_sandbox.play(Statement(link_id="l", transactions=3)).link_id == "l"

        @pytest.mark.parametrize("bankconnect_sandbox", [{"api_key": "mine"}], indirect=True)
        def test_asked(bankconnect_connection):
            connection = json.loads(os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"])
            assert connection["extra"]["api_key"] == "mine" == bankconnect_connection.api_key
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:asyncio").assert_outcomes(passed=3)
    assert "AIRFLOW_CONN_BANKCONNECT_DEFAULT" not in os.environ
