"""The command line ``python -m airflow_provider_bankconnect.sandbox``, used by a person and by a script."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
import requests

from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sandbox.__main__ import main
from airflow_provider_bankconnect.sandbox.models import FaultKind
from airflow_provider_bankconnect.sandbox.play import PlayError, read_fault, read_file, read_statement

COMMAND = [sys.executable, "-m", "airflow_provider_bankconnect.sandbox"]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120)


@contextmanager
def running(tmp_path, *arguments):
    """Start the sandbox, wait until it is ready, and give its process, its connection and its output so far."""
    ready = tmp_path / "connection.json"
    output = tmp_path / "output"
    with output.open("w") as file:
        # Under nohup it would inherit that SIGHUP is ignored.
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--connection-file", ready, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - it calls nothing else
        )
        try:
            until = time.monotonic() + 120
            while not ready.exists():
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield process, json.loads(ready.read_text()), output
        finally:
            # Not killed, so that it removes its temporary directory.
            process.terminate()
            process.wait(60)


def get(connection, path):
    with requests.Session() as session:
        session.trust_env = False
        return session.get(
            f"{connection['host']}/{path}",
            headers={"x-api-key": connection["extra"]["api_key"], "server-hash": connection["password"]},
            verify=connection["extra"]["verify"],
            timeout=60,
        )


def test_help_shows_examples_and_every_field():
    answer = run("--help")
    assert answer.returncode == 0
    for part in ("examples", "--statement link=", "[[fault]]", "/sandbox/faults", "adds the entity to the link"):
        assert part in answer.stdout
    for name in (*Fault.model_fields, *Statement.model_fields, *get_args(FaultKind), "--silent-address"):
        assert re.search(rf"^  {name} ", answer.stdout, re.MULTILINE), name


def test_it_prints_a_working_connection_and_logs_events(tmp_path):
    arguments = ("--statement", "link=loan-1,after=0.2,transactions=4", "--fault", "kind=status,call=entities")
    with running(tmp_path, *arguments) as (process, connection, output):
        (line,) = re.findall(r"export AIRFLOW_CONN_BANKCONNECT_DEFAULT=.*", output.read_text())
        assert json.loads(shlex.split(line)[1].partition("=")[2]) == connection
        assert (tmp_path / "connection.json").stat().st_mode & 0o777 == 0o600
        until = time.monotonic() + 60
        while not get(connection, "entity/webhook_payloads/?link_id=loan-1").json()["payloads"]:
            assert time.monotonic() < until
        assert get(connection, "entity/").status_code == 503
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        text = output.read_text()
    assert "link loan-1: a statement (online) completed" in text
    assert re.search(
        r"^\d\d:\d\d:\d\d\.\d{3} link 'loan-1': statement '.*' completed; no webhook: no endp", text, re.MULTILINE
    )
    assert "GET entities answered 503 (faults: status)" in text
    assert text.endswith("stopped\n")
    assert text.count(connection["password"]) == text.count(connection["extra"]["api_key"]) == 1
    assert not (tmp_path / "connection.json").exists()
    assert not Path(connection["extra"]["verify"]).exists()


def test_it_plays_an_old_account_without_predictors_and_a_login_without_an_entity(tmp_path):
    arguments = (
        *("--statement", "link=l,entity=,statement=,progress=failed"),
        *("--statement", "link=l,entity=e,after=0.1"),
        *("--transaction-status", "absent"),
        *("--not-enabled", "predictors", "--not-enabled", "score"),
    )
    with running(tmp_path, *arguments) as (_, connection, output):
        until = time.monotonic() + 60
        while len(rows := get(connection, "entity/webhook_payloads/?link_id=l").json()["payloads"]) < 2:
            assert time.monotonic() < until
        assert {row["entity_id"] for row in rows} == {"", "e"}
        assert "transaction_status" not in get(connection, "entity/e/identity/").text
        assert [get(connection, f"entity/e/{name}/").status_code for name in ("predictors", "score")] == [403, 403]
        assert "link l: a login failed" in output.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_and_only_the_ca_file_is_kept(tmp_path, monkeypatch, number):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running(tmp_path, "--ca-file", tmp_path / "ca.pem") as (process, connection, output):
        assert connection["extra"]["verify"] == str(tmp_path / "ca.pem")
        assert get(connection, "entity/").json()["count"] == 1
        assert list(tmp_path.glob("bankconnect-sandbox-*"))
        process.send_signal(number)
        assert process.wait(60) == 0
        assert "demo-loan-4711" in output.read_text()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ca.pem", "output"]


def test_a_port_in_use_is_reported_in_one_line(box):
    answer = run("--port", str(box.port))
    assert (answer.returncode, answer.stdout) == (1, "")
    message = f"sandbox: port {box.port} on localhost is in use: choose another with --port, or --port 0\n"
    assert answer.stderr == message


def test_an_unwritable_file_is_reported_in_one_line():
    answer = run("--port", "0", "--ca-file", "/nowhere/ca.pem")
    assert answer.returncode == 1
    assert answer.stderr == "sandbox: cannot write /nowhere/ca.pem: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--statement", "link=a,after=soon"], "--statement: after: 'soon'"),
        (["--fault", "kind=explode"], "'status', 'delay'"),
        (["--port", "99999"], "--port"),
        (["--timezone", "Nowhere/Land"], "Asia/Kolkata"),
        (["--api-key", "a b"], "api_key"),
        (["--not-enabled", "balances"], "not_enabled: 'balances' is unknown; allowed: update_webhook"),
        (["--silent-address", "10.0.0.1"], "silent_address: '10.0.0.1' is no loopback address"),
        (["--fault", "kind=interim,interim_status=99"], "interim_status: '99': should be greater than or equal to 100"),
        (["--fault", "kind=status,size=5"], "--fault: size (5) is for long_header, not for status"),
        (["--transaction-status", "late"], "--transaction-status"),
        (["--statement", "entity=,after=1"], "blank entity_id"),
        (["--statement", "link=a,account=-1"], "account: '-1': should be greater than or equal to 0"),
        (["--statement", "link=a,file_bytes=0"], "file_bytes: '0': should be greater than or equal to 1"),
        (["--statement", "file_bytes=536870913"], "file_bytes: '536870913': should be less than or equal to 536870912"),
        (["--statement", "link=a,statement=,progress=failed,account=1"], "a failed login has none"),
        (["--bogus"], "--bogus"),
        (["--play", "/nowhere.toml"], "/nowhere.toml: No such file"),
    ],
)
def test_a_wrong_option_is_reported_in_one_line_with_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output, error = capsys.readouterr()
    assert (ended.value.code, output, error.count("\n")) == (2, "", 1)
    assert message in error


def test_it_continues_when_its_output_pipe_is_closed(tmp_path):
    ready = tmp_path / "connection.json"
    reading, writing = os.pipe()
    with subprocess.Popen([*COMMAND, "--port", "0", "--connection-file", ready], stdout=writing) as process:
        os.close(writing)
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.02)
            os.close(reading)
            connection = json.loads(ready.read_text())
            assert [get(connection, "entity/").status_code for _ in range(2)] == [200, 200]
        finally:
            process.terminate()


def test_statements_and_faults_are_read_from_toml(tmp_path):
    file = tmp_path / "day.toml"
    file.write_text(
        """
        [[statement]]
        link = "loan-1"
        after = 10
        later = { identity = 30 }

        [[fault]]
        kind = "status"
        retry_after = 5
        """
    )
    (statement,), (fault,) = read_file(file)
    assert (statement.link_id, statement.after, statement.later) == ("loan-1", 10, {"identity": 30})
    assert (fault.kind, fault.status, fault.retry_after) == ("status", 503, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[statement]]\nlink="a"\n[[statement]]\nprogress="done"',
            r"\[\[statement\]\] 2: progress: 'done': .*'completed'",
        ),
        ('[[fault]]\nkind="status"\nstatus=9', r"\[\[fault\]\] 1: status: 9: .*200"),
        ('[[fault]]\nknd="status"', r"knd: no such field \(did you mean kind\?\); allowed: kind, call"),
        ("[[fault]]\ntimes=1", r"\[\[fault\]\] 1: kind: is required"),
        ("[[statements]]", r"unknown table 'statements'; allowed: \[\[statement\]\]"),
        ("[fault]", r"\[\[fault\]\], with two brackets"),
        ("x y", r"not TOML: .*line 1"),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_its_place(tmp_path, text, message):
    file = tmp_path / "day.toml"
    file.write_text(text)
    with pytest.raises(PlayError, match=rf"day\.toml: .*{message}"):
        read_file(file)


def test_statements_and_faults_are_read_from_option_text():
    statement = read_statement(
        "link=a,entity=e,statement=,progress=failed,reason=wrong = password,later=identity:3+salary:4"
    )
    assert (statement.entity_id, statement.statement_id, statement.reason) == ("e", "", "wrong = password")
    assert statement.later == {"identity": 3, "salary": 4}
    statement = read_statement("link=a,account=2,file_bytes=1048576")
    assert (statement.account, statement.file_bytes) == (2, 1_048_576)
    fault = read_fault("kind=status,call=transactions,status=429,retry_after=30,times=3,probability=0.5")
    assert (fault.status, fault.retry_after, fault.times, fault.probability) == (429, 30, 3, 0.5)


def test_option_text_may_blank_the_entity_of_a_failed_login():
    statement = read_statement("link=a,entity=,statement=,progress=failed")
    assert (statement.entity_id, statement.statement_id) == ("", "")


@pytest.mark.parametrize("text", ["link", "link=a,after", ""])
def test_option_text_without_name_and_value_is_refused(text):
    with pytest.raises(PlayError, match="name=value"):
        read_statement(text)
