"""The README says nothing that does not hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
BASH = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


def test_every_block_says_what_language_it_is_in():
    assert README.count("```") == 2 * len(BLOCKS)
    assert len(PYTHON) >= 4


@pytest.mark.parametrize("block", [block for block in PYTHON if "with DAG(" in block], ids=["ten_lines", "review"])
def test_a_dag_of_the_readme_can_be_pasted(block):
    world = {"__name__": "pasted"}
    exec(compile(block, "README.md", "exec"), world)  # noqa: S102 - that it runs is the point
    (dag,) = {id(value): value for value in gc_dags(world)}.values()
    assert "statement" in dag.task_ids or "gate" in dag.task_ids
    assert len(dag.task_ids) >= 2


def gc_dags(world):
    return [value.dag for value in world.values() if isinstance(getattr(value, "dag", None), DAG)]


def test_the_first_dag_has_ten_lines():
    body = PYTHON[0].partition("with DAG(")[2]
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) <= 10
    assert body


def test_the_pytest_fixtures_work_as_the_readme_shows(tmp_path):
    conftest, test = PYTHON[-2:]
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_pasted.py").write_text(test, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path), "-p", "no:cacheprovider", "--rootdir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow")},
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_make_targets_of_the_readme_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in BASH if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_module_that_the_readme_runs_has_a_help():
    modules = {line.split()[2] for line in BASH if line.startswith("python -m ")}
    assert modules
    for module in modules:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "usage:" in done.stdout


def test_the_connection_of_the_readme_is_read_as_it_says(monkeypatch):
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    (text,) = re.findall(r"export AIRFLOW_CONN_BANKCONNECT_DEFAULT='(.*?)'", README, flags=re.DOTALL)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", text)
    settings = BankConnectHook().settings
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.api_key, settings.server_hash) == ("YOUR-API-KEY", "YOUR-SERVER-HASH")


def test_every_error_that_the_readme_names_is_there():
    from airflow_provider_bankconnect import api  # noqa: PLC0415

    for name in re.findall(r"`(BankConnect\w+Error)`", README):
        assert issubclass(getattr(api, name), api.BankConnectError)
    told = set(re.findall(r"`(BankConnect\w+Error)`", README))
    public = {name for name in dir(api) if re.fullmatch(r"BankConnect\w+Error", name)}
    assert public - told <= {"BankConnectTransientError"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "integration" / "explain").glob("*.txt")), ids=lambda p: p.stem
)
def test_what_explain_says_in_the_readme_is_what_a_test_had_it_say(path):
    assert f"```console\n{path.read_text(encoding='utf-8').rstrip()}\n```" in README
