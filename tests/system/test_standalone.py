"""`make standalone`, as a person uses it: it comes up, shows what it is there to show, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import psutil
import pytest
from homes import CONNECTION, ROOT, Job
from leaks import find_leaks

from airflow_provider_bankconnect.receiver import address

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.skipif(not address.is_supported(), reason="the doorbell needs Airflow 3.2"),
]

# Two busy cores, and four processes that import Airflow.
PATIENCE = 600.0
QUICK = "1.5"
TOKEN = "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN"


class Watched(Job):
    """The command, and every process that it has been seen to have."""

    def __init__(self, process, output, folder):
        super().__init__(process, output)
        self.home, self.temporary = folder / "home", folder / "temporary"
        self.family: set[psutil.Process] = set()

    def look(self):
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self.process.pid)
            self.family |= {this, *this.children(recursive=True)}
        return self.family

    def until_said(self, words):
        self.until(lambda: self.look() and words in self.output, seconds=PATIENCE)

    def part(self, name):
        """The process of a part of Airflow: a child of the command."""
        (found,) = [
            one
            for one in psutil.Process(self.process.pid).children()
            if name in (word.replace("_", "-") for word in " ".join(one.cmdline()).split())
        ]
        return found

    def ends(self):
        """Give the exit code, once it has ended and none of its processes is left."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, self.output[-4000:]
            time.sleep(0.02)
        assert [one for one in self.family if is_alive(one)] == []
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode


def is_alive(one):
    # What has ended may wait for the machine's first process to take notice of it.
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listened_on(one):
    with suppress(psutil.NoSuchProcess):
        found = one.net_connections("tcp")
        return [connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN]
    return []


@contextmanager
def standalone(folder, *arguments):
    for name in ("temporary", "home"):
        (folder / name).mkdir(exist_ok=True)
    output = folder / "output"
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "standalone.py"), "--home", str(folder / "home"), *arguments],
            env=os.environ | {"TMPDIR": str(folder / "temporary")},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            text=True,
        )
    job = Watched(process, output, folder)
    try:
        yield job
    finally:
        # Killed at once, it might have begun another part a moment before.
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for one in job.look():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What is left of one that a person has looked at, and then ended."""
    folder = tmp_path_factory.mktemp("standalone")
    with standalone(folder, "--every", QUICK) as job:
        job.until_said("worked on")
        listening = {place for one in job.look() for place in listened_on(one)}
        environment = job.part("scheduler").environ()
        # An impatient person.
        job.process.send_signal(signal.SIGINT)
        job.until(lambda: job.look() and "Ending" in job.output)
        job.process.send_signal(signal.SIGINT)
        yield SimpleNamespace(
            code=job.ends(),
            said=job.output,
            folder=folder,
            database=job.home / "airflow.db",
            listening=listening,
            environment=environment,
        )


def test_it_shows_a_customer_whose_bell_is_rung_and_whose_work_is_done_and_ends_when_asked(shown):
    """That no process and no temporary file of it is left has been looked at by then."""
    assert shown.code == 0, shown.said
    story = [
        "Airflow      starts:",
        "rings at https://localhost:",
        "/dags/bankconnect_on_webhook/runs",
        "Log in    admin, password ",
        f"--cacert {shown.folder}/home/ca.pem",
        "Customer     001 signs in to the bank: loan-001",
        "webhook to localhost:",
        "Airflow      starts a run for link:loan-001",
        "Airflow      the gate for link:loan-001 is open",
        "transactions for link:loan-001",
        "Ended: nothing is left running.",
    ]
    places = [shown.said.find(words) for words in story]
    assert -1 not in places, shown.said
    assert places == sorted(places)
    assert "Traceback" not in shown.said


def test_all_of_it_listened_on_loopback_and_no_longer_does(shown):
    assert len(shown.listening) >= 2
    assert {host for host, _ in shown.listening} <= {"127.0.0.1", "::1"}
    for host, port in shown.listening:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=10)


def test_no_key_and_no_token_is_in_what_it_said_or_left(shown):
    connection = json.loads(shown.environment[CONNECTION])
    secrets = {
        "server hash": connection["password"],
        "api key": connection["extra"]["api_key"],
        "token": shown.environment[TOKEN],
        "TLS": "PRIVATE KEY",
    }
    assert shown.database.exists()
    assert (shown.folder / "home" / "api-server.log").stat().st_size > 0

    assert find_leaks(shown, secrets) == set()


def test_it_can_be_ended_while_it_sets_up(tmp_path):
    with standalone(tmp_path) as job:
        job.until_said("makes its database")
        job.process.terminate()
        assert job.ends() == 0
    assert "Ended: nothing is left running." in job.output
    assert "Traceback" not in job.output


def test_a_part_that_dies_ends_it_and_has_the_last_word(tmp_path):
    with standalone(tmp_path) as job:
        job.until_said("starts: API server")
        log = tmp_path / "home" / "triggerer.log"
        job.until(lambda: log.exists() and "Starting the triggerer" in log.read_text(), seconds=PATIENCE)
        job.part("triggerer").kill()
        assert job.ends() == 1
    assert "Airflow's triggerer ended with -9:\n" in job.output
    said, _, last_words = job.output.partition("Airflow's triggerer ended")
    assert "Starting the triggerer" in last_words
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_told_with_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with standalone(tmp_path, "--port", str(port)) as job:
            assert job.ends() == 1
    assert job.output == f"\nPort {port} is taken: give another one, or none, and any that is free will do\n"


def test_it_empties_no_folder_of_somebody_elses(tmp_path):
    mine = tmp_path / "home" / "mine"
    mine.parent.mkdir()
    mine.touch()
    with standalone(tmp_path) as job:
        assert job.ends() == 1
    assert mine.exists()
    assert job.output == f"\nThere is something in {mine.parent}: --home wants a new or an empty folder\n"


def test_two_do_not_share_a_folder(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    held = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with standalone(tmp_path) as job:
            assert job.ends() == 1
    finally:
        os.close(held)
    assert job.output == f"\nAnother one runs in {home}: end that one first, or give --home\n"
