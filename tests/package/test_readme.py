"""What the README and the quick start show and name is right."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `make readme` reads and runs the same blocks, with a new Airflow.
readme = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "readme.py")))
BLOCKS = readme.read_blocks(README)
PYTHON = [block.text for block in BLOCKS if block.language == "python"]
COMMANDS = readme.read_commands(README)
QUICK_START = (ROOT / "docs" / "quick-start.rst").read_text(encoding="utf-8")
FIRST_COMMANDS = readme.read_commands(QUICK_START)


def test_readme_has_two_screens():
    assert len(README.splitlines()) < 200


def test_every_block_is_run_by_something():
    """`make readme` runs Bash, the tests below run Python and compare the transcripts."""
    assert README.count("```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "bash", "console"}
    assert {command.kind for command in COMMANDS + FIRST_COMMANDS} == readme.KINDS.keys()
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


@pytest.mark.parametrize(
    ("page", "commands", "kind"), [(QUICK_START, FIRST_COMMANDS, "dag"), (README, COMMANDS, "trigger")]
)
def test_a_page_says_where_to_save_the_first_dag_and_runs_it_with_its_conf(page, commands, kind):
    text, place = readme.read_first_dag(README, page)
    (command,) = [command.text for command in commands if command.kind == kind]
    *_, dag_id, option, conf = shlex.split(command)

    assert place.startswith("airflow/dags/")
    assert f'DAG("{dag_id}"' in text
    assert option == "--conf"
    assert set(re.findall(r"dag_run\.conf\['(\w+)'\]", text)) == json.loads(conf).keys()
    for played in (command.text for command in commands if command.kind == "sandbox"):
        assert f"link={json.loads(conf)['link_id']}," in played


def test_a_page_without_the_path_of_the_first_dag_is_an_error():
    with pytest.raises(readme.ReadmeError, match="where to save the first DAG"):
        readme.read_first_dag(README, README.replace("the DAG at the top", "it"))


def test_the_first_dag_works_when_pasted():
    (block,) = PYTHON
    world = {"__name__": "pasted"}
    exec(compile(block, "README.md", "exec"), world)  # noqa: S102 - it must run
    (dag,) = {id(value): value for value in gc_dags(world)}.values()
    assert len(dag.task_ids) >= 2


def gc_dags(world):
    return [value.dag for value in world.values() if isinstance(getattr(value, "dag", None), DAG)]


def test_the_first_dag_has_ten_lines():
    body = PYTHON[0].partition("with DAG(")[2]
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) <= 10
    assert body


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command.text.split()[1] for command in COMMANDS if command.text.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_connection_of_the_readme_is_read_as_it_says(monkeypatch):
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    (text,) = re.findall(r"export AIRFLOW_CONN_BANKCONNECT_DEFAULT='(.*?)'", README, flags=re.DOTALL)
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", text)
    settings = BankConnectHook().settings
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.api_key, settings.server_hash) == ("YOUR-API-KEY", "YOUR-SERVER-HASH")


def test_output_of_explain_in_the_readme_is_that_of_a_test():
    (shown,) = [block.text for block in BLOCKS if block.language == "console"]
    made = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "integration" / "explain").glob("*.txt")]
    assert shown.rstrip() in {text.rstrip() for text in made}
