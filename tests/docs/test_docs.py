"""The documentation builds without a warning, and whatever it shows can be run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from importlib.metadata import metadata
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG
from homes import Home

from airflow_provider_bankconnect.api import ConnectionSettings
from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sandbox.play import read_file

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
BLOCKS = [
    (f"{page.relative_to(DOCS).with_suffix('')}-{number}", language, textwrap.dedent(text).strip())
    for page in sorted(DOCS.rglob("*.rst"))
    for number, (language, text) in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), start=1)
]
BASH = [block for _, language, block in BLOCKS if language == "bash"]


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


def test_the_documentation_builds_strictly_and_every_page_can_be_reached(tmp_path):
    done = run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", str(DOCS), str(tmp_path)])
    assert done.returncode == 0, done.stderr

    assert {page.stem for page in tmp_path.glob("*.html")} >= {"index", "changelog", "security"}
    changelog = (tmp_path / "changelog.html").read_text(encoding="utf-8")
    assert "BankConnectWebhookPayloadSensor" in changelog
    rules = (tmp_path / "sensors" / "bankconnect.html").read_text(encoding="utf-8")
    assert "It opens" in rules
    assert "waits on, times out" in rules


def test_what_is_taken_from_the_readme_is_told_when_it_is_not_there_any_more(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("conf.py", "changelog.rst"):
        (tmp_path / "docs" / name).write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("README.md", "CHANGELOG.md", "airflow_provider_bankconnect"):
        (tmp_path / name).symlink_to(ROOT / name)
    index = "Title\n=====\n\n.. readme:: table 1 of A heading that nobody wrote\n\n.. toctree::\n\n   changelog\n"
    (tmp_path / "docs" / "index.rst").write_text(index, encoding="utf-8")

    done = run([sys.executable, "-m", "sphinx", "-W", "-q", str(tmp_path / "docs"), str(tmp_path / "html")])

    assert done.returncode != 0
    assert "README.md has no heading 'A heading that nobody wrote'" in done.stderr


def only(chosen):
    return pytest.mark.parametrize(
        "block", [pytest.param(block, id=name) for name, language, block in BLOCKS if chosen(language, block)]
    )


def test_every_block_is_of_a_kind_that_a_test_below_runs():
    texts = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.rst"))
    assert texts.count("code-block::") == len(BLOCKS)
    assert not re.search(r"^(?!\.\. ).*::$", texts, flags=re.MULTILINE)
    commands = {block.split(maxsplit=3)[2] if block.startswith("python") else block.split()[0] for block in BASH}
    assert {language for _, language, _ in BLOCKS} == {"python", "bash", "toml"}
    assert commands == {"pip", "airflow", "airflow_provider_bankconnect", "airflow_provider_bankconnect.sandbox"}


@only(lambda language, block: language == "python" and "with DAG(" in block)
def test_a_dag_can_be_pasted(block):
    world = {"__name__": "pasted"}
    exec(compile(block, "docs", "exec"), world)  # noqa: S102 - that it runs is the point
    (dag,) = {
        id(value.dag): value.dag for value in world.values() if isinstance(getattr(value, "dag", None), DAG)
    }.values()
    assert dag.task_ids


@pytest.fixture
def world(tmp_path):
    """Where a page's reader is: Airflow knows a BankConnect, which knows the customer of the examples."""
    with Sandbox(statements=[Statement(link_id="loan-4711", entity_id="customer-1", transactions=12)]) as box:
        yield os.environ | {
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }


@only(lambda language, block: language == "python" and "with DAG(" not in block)
def test_a_script_does_what_it_shows(block, world):
    done = run([sys.executable, "-c", block], env=world)
    assert done.returncode == 0, done.stderr
    if "print(" in block:
        assert re.search("12 transactions|completed|https://localhost", done.stdout)


@only(lambda language, block: language == "bash" and "bankconnect explain" in block)
def test_explain_takes_the_arguments_that_the_pages_give_it(block, world):
    done = run(["bash", "-euo", "pipefail", "-c", block], env=world)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^(?:OPEN|STILL WAITING): ", done.stdout, flags=re.MULTILINE)) == len(block.splitlines())


@only(lambda language, block: language == "bash" and "bankconnect.sandbox" in block)
def test_the_sandbox_starts_as_it_is_shown(block, world):
    with subprocess.Popen(["bash", "-c", f"exec {block}"], env=world, stdout=subprocess.PIPE, text=True) as process:
        told = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        process.send_signal(signal.SIGINT)
    assert "link loan-1: a statement" in told
    assert "fault: kind status" in told


@only(lambda language, _: language == "toml")
def test_a_bad_day_in_a_file_can_be_played(block, tmp_path):
    (tmp_path / "day.toml").write_text(block, encoding="utf-8")
    statements, faults = read_file(tmp_path / "day.toml")
    assert len(statements) == block.count("[[statement]]")
    assert len(faults) == block.count("[[fault]]")


@only(lambda language, block: language == "bash" and "pip install" in block)
def test_what_pip_is_told_to_install_is_this_package_and_its_extras(block):
    ours = metadata("airflow-provider-bankconnect")
    for line in block.splitlines():
        name, extra = re.fullmatch(r"pip install '?([a-z-]+)(?:\[(\w+)\])?'?", line).groups()
        assert name == ours["Name"]
        assert extra is None or extra in ours.get_all("Provides-Extra")


@pytest.mark.system
@only(lambda language, block: language == "bash" and block.startswith("airflow "))
def test_an_airflow_command_makes_the_connection_that_the_page_describes(block, tmp_path):
    home = Home(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in ("airflow db migrate", block, "airflow connections get bankconnect_default --output json"):
        done = run(["bash", "-euo", "pipefail", "-c", command], env=home.environment | {"PATH": path})
        assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout[done.stdout.index("[{") :])
    settings = ConnectionSettings.parse(
        "it", host=found["host"], port=found["port"], password=found["password"], extra=found["extra_dejson"]
    )
    assert found["conn_type"] == "bankconnect"
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.server_hash, settings.api_key) == ("YOUR-SERVER-HASH", "YOUR-API-KEY")
