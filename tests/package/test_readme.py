"""What the README shows and names is right."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG
from packaging.requirements import Requirement

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `make readme` reads and runs the same blocks, with a new Airflow.
readme = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "readme.py")))
BLOCKS = readme.read_blocks(README)
PYTHON = [block.text for block in BLOCKS if block.language == "python"]
COMMANDS = readme.read_commands(README)
DAGS = [block for block in PYTHON if "with DAG(" in block]
FIXTURES = [block for block in PYTHON if "pytest_plugins" in block or "def test_" in block]
SCRIPTS = [block for block in PYTHON if block not in DAGS + FIXTURES]


def test_every_block_is_run_by_something():
    """`make readme` runs Bash, the tests below run Python and compare the transcripts."""
    assert README.count("```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "bash", "console"}
    assert {command.kind for command in COMMANDS} == readme.KINDS.keys()
    assert all(callable(getattr(readme.Newcomer, kind)) for kind in readme.KINDS)


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("make demo\ncurl https://example.com\n", "line 5: nothing runs 'curl https://example.com'"),
        ("pip install another-package\n", "line 4: nothing runs 'pip install another-package'"),
        ("airflow db migrate && rm -r data\n", "line 4: nothing runs 'airflow db migrate && rm -r data'"),
        ("export AIRFLOW_CONN_A='{\n", "line 4: the block ends within"),
    ],
)
def test_unknown_command_is_an_error_with_its_line(block, wrong):
    with pytest.raises(readme.ReadmeError, match=re.escape(wrong)):
        readme.read_commands(f"# Title\n\n```bash\n{block}```\n")


def test_command_may_have_several_lines_and_a_comment():
    block = 'make demo   # a minute\n\nexport AIRFLOW_CONN_A=\'{\n  "extra": "#1"\n}\'\n# nothing\nairflow db migrate\n'
    found = readme.read_commands(f"```bash\n{block}```\n")
    assert [(command.line, command.text) for command in found] == [
        (2, "make demo"),
        (4, 'export AIRFLOW_CONN_A=\'{\n  "extra": "#1"\n}\''),
        (8, "airflow db migrate"),
    ]


def test_readme_says_where_to_save_the_first_dag_and_runs_it_with_its_conf():
    text, place = readme.read_first_dag(README)
    (command,) = [command.text for command in COMMANDS if command.kind == "dag"]
    *_, dag_id, option, conf = shlex.split(command)
    played = [command.text for command in COMMANDS if command.kind == "sandbox"]

    assert place.startswith("airflow/dags/")
    assert f'DAG("{dag_id}"' in text
    assert option == "--conf"
    assert set(re.findall(r"dag_run\.conf\['(\w+)'\]", text)) == json.loads(conf).keys()
    assert f"link={json.loads(conf)['link_id']}," in played[0]


def test_readme_without_the_path_of_the_first_dag_is_an_error():
    with pytest.raises(readme.ReadmeError, match="where to save the ten lines"):
        readme.read_first_dag(README.replace("ten lines at the top", "lines"))


@pytest.mark.parametrize("block", DAGS, ids=lambda block: re.search(r'with DAG\("(\w+)"', block)[1])
def test_dags_of_the_readme_work_when_pasted(block):
    world = {"__name__": "pasted"}
    exec(compile(block, "README.md", "exec"), world)  # noqa: S102 - it must run
    (dag,) = {id(value): value for value in gc_dags(world)}.values()
    assert len(dag.task_ids) >= 2


def gc_dags(world):
    return [value.dag for value in world.values() if isinstance(getattr(value, "dag", None), DAG)]


def test_calls_of_the_readme_do_what_they_show(monkeypatch, capsys):
    (block,) = SCRIPTS
    world = {"__name__": "pasted"}
    with Sandbox(statements=[Statement(link_id="loan-1", entity_id="customer-1", transactions=7)]) as box:
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
        exec(compile(block, "README.md", "exec"), world)  # noqa: S102 - it must run
        world["report"]("loan-1")
    assert capsys.readouterr().out.splitlines()[-1] == "customer-1 7"


def test_the_first_dag_has_ten_lines():
    body = PYTHON[0].partition("with DAG(")[2]
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) <= 10
    assert body


def test_pytest_fixtures_work_as_the_readme_shows(tmp_path):
    conftest, test = FIXTURES
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


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command.text.split()[1] for command in COMMANDS if command.text.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_modules_that_the_readme_runs_have_a_help():
    modules = {command.text.split()[2] for command in COMMANDS if command.text.startswith("python -m ")}
    assert modules
    for module in modules:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "usage:" in done.stdout


def test_connection_of_the_readme_is_read_as_it_says(monkeypatch):
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    (text,) = re.findall(r"export AIRFLOW_CONN_BANKCONNECT_DEFAULT='(.*?)'", README, flags=re.DOTALL)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", text)
    settings = BankConnectHook().settings
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.api_key, settings.server_hash) == ("YOUR-API-KEY", "YOUR-SERVER-HASH")


def test_errors_that_the_readme_names_exist_and_are_complete():
    from airflow_provider_bankconnect import api  # noqa: PLC0415

    for name in re.findall(r"`(BankConnect\w+Error)`", README):
        assert issubclass(getattr(api, name), api.BankConnectError)
    named = set(re.findall(r"`(BankConnect\w+Error)`", README))
    public = {name for name in dir(api) if re.fullmatch(r"BankConnect\w+Error", name)}
    assert public - named <= {"BankConnectTransientError"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "integration" / "explain").glob("*.txt")), ids=lambda p: p.stem
)
def test_output_of_explain_in_the_readme_is_that_of_the_tests(path):
    assert f"```console\n{path.read_text(encoding='utf-8').rstrip()}\n```" in README


def test_table_of_airflows_matches_the_constraints_and_their_pins():
    tested = {}
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        airflow, minor = re.fullmatch(r"constraints-([\d.]+)-py3(\d+)", path.stem).groups()
        tested.setdefault(airflow, {})[f"3.{minor}"] = path.read_text(encoding="utf-8")
    compatibility = README.partition("\n## Compatibility\n")[2]
    rows = re.findall(r"^\| (\d[\d.]+) \| ([\d., ]+) \| (.+) \|$", compatibility, flags=re.MULTILINE)
    assert {airflow: pythons.split(", ") for airflow, pythons, _ in rows} == {
        airflow: list(files) for airflow, files in tested.items()
    }

    page = (ROOT / "docs" / "compatibility.rst").read_text(encoding="utf-8")
    pins = [(airflow, pin) for airflow, _, there in rows for pin in re.findall(r"`([a-z]+<[\d.]+)`", there)]
    assert pins == re.findall(r"\* - ([\d.]+)\n +- ``([a-z]+<[\d.]+)``", page)
    for airflow, pin in pins:
        requirement = Requirement(pin)
        for python, text in tested[airflow].items():
            (kept,) = re.findall(rf"^{requirement.name}==(.+)$", text, flags=re.MULTILINE)
            assert kept in requirement.specifier, f"Airflow {airflow}, Python {python}: {requirement.name} {kept}"
