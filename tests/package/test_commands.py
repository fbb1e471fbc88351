"""`python -m airflow_provider_bankconnect` and its small commands; tests/integration/test_explain.py has `explain`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import airflow
import pytest

from airflow_provider_bankconnect import copies
from airflow_provider_bankconnect.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = {path.name for path in (ROOT / "dags").glob("*.py")}
TAG = f"py{sys.version_info[0]}{sys.version_info[1]}"


def commands_of(said):
    return re.findall(r"^  ([a-z]+)  ", said, flags=re.MULTILINE)


def test_without_arguments_it_says_which_commands_there_are_and_loads_nothing_slow():
    code = "import sys; sys.argv[1:] = []; from airflow_provider_bankconnect.__main__ import main; code = main();"
    code += "print(sorted({'airflow', 'pydantic', 'requests', 'argparse'} & sys.modules.keys()), code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert commands_of(done.stdout) == ["explain", "relay", "sandbox", "examples", "constraints"]
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_what_it_says_without_arguments(word, capsys):
    assert (main([]), capsys.readouterr().out) == (main([word]), capsys.readouterr().out)


def test_each_command_has_a_help(capsys):
    main([])
    for command in commands_of(capsys.readouterr().out):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert re.match(rf"usage: python -m airflow_provider_bankconnect[. ]{command} ", capsys.readouterr().out)


def test_an_unknown_word_is_answered_with_the_known_ones(capsys):
    assert main(["explian"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("'explian' is no command")
    assert said.err.endswith("explain, relay, sandbox, examples, constraints\n")


def test_examples_are_listed_with_what_they_do(capsys):
    assert main(["examples"]) == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == NAMES
    assert all(len(line.split()) > 5 for line in lines)
    assert Path(re.search(r" in (.+):$", first)[1]).is_dir()


@pytest.mark.parametrize("name", ["bankconnect_reports", "bankconnect_reports.py"])
def test_the_path_of_an_example_is_all_that_is_printed(name, capsys):
    assert main(["examples", name]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(line).read_bytes() == (ROOT / "dags" / "bankconnect_reports.py").read_bytes()


def test_constraints_are_those_of_the_installed_airflow_or_of_the_named_one(capsys):
    for named in ([], ["3.2.2"]):
        assert main(["constraints", *named]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        version = named[0] if named else airflow.__version__
        assert Path(line).read_bytes() == (ROOT / "constraints" / f"constraints-{version}-{TAG}.txt").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "known"),
    [(["examples", "reports"], "there are bankconnect_catch_up, "), (["constraints", "1.10.0"], ", 3.3.2")],
    ids=["examples", "constraints"],
)
def test_what_there_is_not_is_answered_with_what_there_is(arguments, known, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert known in capsys.readouterr().err


def test_an_installed_wheel_has_its_own_files(tmp_path, monkeypatch, capsys):
    package = tmp_path / "airflow_provider_bankconnect"
    (package / "example_dags").mkdir(parents=True)
    (package / "example_dags" / "mine.py").write_text('"""Does it."""\n', encoding="utf-8")
    monkeypatch.setattr(copies, "_PACKAGE", package)
    assert main(["examples"]) == 0
    assert capsys.readouterr().out.endswith("example_dags:\n\n  mine.py  Does it.\n")
