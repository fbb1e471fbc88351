"""No server is left running when the program that started it ends, in whatever way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from homes import LONGEST
from live import LiveError, Postgres

# Starts a server, reports it, and ends without any clean-up at the first line on stdin.
PROGRAM = """
import json, os, sys
sys.path.insert(0, {scripts!r})
import processes
{code}
print(json.dumps({{"pid": pid, "folder": str(folder)}}), flush=True)
sys.stdin.readline()
os._exit(0)
"""
# A server with a child that has a session of its own and ignores SIGTERM, as some parts of Airflow have.
SERVER = """
import signal, subprocess, sys, time
if sys.argv[1:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
else:
    child = subprocess.Popen([sys.executable, __file__, "child"], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    open("ready", "w").close()
time.sleep(3600)
"""
WITH_CHILD = """
import time
folder = {folder!r}
processes.remove_at_the_end(folder)
pid = processes.start([sys.executable, "server.py"], cwd=folder).pid
while not os.path.exists(folder + "/ready"):
    time.sleep(0.05)
"""
POSTGRES = """
from live import Postgres
server = Postgres().__enter__()
pid, folder = server._process.pid, server.folder
"""


def until(condition):
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end_program(code, ending):
    """Run a program that starts a server, end it, and wait until the server is gone."""
    pipe, scripts = subprocess.PIPE, str(Path(processes.__file__).parent)
    command = [sys.executable, "-c", PROGRAM.format(scripts=scripts, code=code)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        try:
            server = json.loads(program.stdout.readline())
            family, folder = processes.tree(server["pid"]), Path(server["folder"])
            assert len(family) > 1
            assert processes.is_alive(family[0])
            assert folder.exists()
            program.send_signal(ending) if ending else program.stdin.write("end\n")
        except BaseException:
            program.kill()
            raise
    until(lambda: not any(map(processes.is_alive, family)))
    until(lambda: not folder.exists())


# None: the program ends itself, without any clean-up.
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, None])
def test_server_its_children_and_its_folder_are_gone_after_the_end_of_the_program(tmp_path, ending):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "server.py").write_text(SERVER, encoding="utf-8")
    end_program(WITH_CHILD.format(folder=str(folder)), ending)


@pytest.mark.parametrize("ending", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_postgresql_is_gone_after_the_end_of_the_program(ending):
    try:
        Postgres()
    except LiveError as error:
        pytest.skip(str(error))
    end_program(POSTGRES, ending)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_start_of_a_server_arrives_after_the_start(number, monkeypatch):
    """An exception in between would leave a server that nobody knows."""
    popen, started = subprocess.Popen, []

    def interrupted(command, **more):
        if command == ["sleep", "3600"]:
            signal.raise_signal(number)
        started.append(popen(command, **more))
        return started[-1]

    processes._guard()
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.start(["sleep", "3600"])
    finally:
        signal.signal(number, before)
    (server,) = started
    assert server.poll() is None
    processes.kill(server)


def test_the_guard_ends_with_the_program():
    code = "import processes; processes.run(['true']); print(processes._guard().pid)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(processes.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert processes.tree(int(done.stdout)) == []
    assert done.stderr == ""
