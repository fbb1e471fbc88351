"""`make standalone`: it starts, shows a customer from webhook to work, and leaves nothing running."""

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

import processes
import psutil
import pytest
from homes import CONNECTION, ROOT, Job
from leaks import find_leaks

from airflow_provider_bankconnect.receiver import address

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.skipif(not address.is_supported(), reason="the webhook receiver needs Airflow 3.2"),
]

# Limit in seconds for a busy machine: four processes import Airflow.
PATIENCE = 900.0
QUICK = "1.5"
TOKEN = "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN"


class Watched(Job):
    """The command and all its descendants, as far as :meth:`update` has seen them."""

    def __init__(self, process, output, folder):
        super().__init__(process, output)
        self.home, self.temporary = folder / "home", folder / "temporary"
        self.family: set[psutil.Process] = set()

    def update(self):
        self.family |= set(processes.tree(self.process.pid))
        return self.family

    def until_printed(self, words):
        self.until(lambda: self.update() and words in self.output, seconds=PATIENCE)

    def part(self, name):
        """Return the process of a part of Airflow, a child of the command."""
        (found,) = [
            one
            for one in psutil.Process(self.process.pid).children()
            if name in (word.replace("_", "-") for word in " ".join(one.cmdline()).split())
        ]
        return found

    def ends(self):
        """Wait for the end, check that nothing is left, and return the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            self.update()
            assert time.monotonic() < deadline, self.output[-4000:]
            time.sleep(0.02)
        assert self.left() == []
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode

    def left(self):
        return [one for one in self.family if processes.is_alive(one)]


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
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Run it until a customer is served, end it with Ctrl-C, and keep what it printed and wrote."""
    folder = tmp_path_factory.mktemp("standalone")
    with standalone(folder, "--every", QUICK) as job:
        job.until_printed("transactions for link:loan-001")
        listening = {place for one in job.update() for place in listened_on(one)}
        environment = job.part("scheduler").environ()
        job.process.send_signal(signal.SIGINT)
        job.until(lambda: job.update() and "Ending" in job.output, seconds=PATIENCE)
        # A second Ctrl-C must not interrupt the clean-up.
        job.process.send_signal(signal.SIGINT)
        yield SimpleNamespace(
            code=job.ends(),
            output=job.output,
            folder=folder,
            database=job.home / "airflow.db",
            listening=listening,
            environment=environment,
        )


def test_with_a_relay_it_shows_that_webhooks_come_through_it(tmp_path):
    with standalone(tmp_path, "--every", QUICK, "--relay") as job:
        job.until_printed("Airflow      starts a run for link:loan-001")
        job.process.send_signal(signal.SIGINT)
        assert job.ends() == 0, job.output
    story = [
        "Relay        starts at https://localhost:",
        "BankConnect  sends webhooks to",
        "Relay        Handed on 1 webhooks",
    ]
    places = [job.output.index(words) for words in story]
    assert places == sorted(places)


def test_it_shows_a_customer_from_webhook_to_work_and_ends_on_ctrl_c(shown):
    """The fixture has checked that no process and no temporary file is left."""
    assert shown.code == 0, shown.output
    story = [
        "Airflow      starts:",
        "sends webhooks to https://localhost:",
        "/bankconnect-ui/",
        "/dags/bankconnect_on_webhook/runs",
        "Log in    admin, password ",
        f"--cacert {shown.folder}/home/ca.pem",
        "Customer     001 logs in to the bank: loan-001",
        "webhook to localhost:",
        "Airflow      starts a run for link:loan-001",
        "Airflow      the gate for link:loan-001 passed",
        "transactions for link:loan-001",
        "Ended. Nothing is left running.",
    ]
    places = [shown.output.find(words) for words in story]
    assert -1 not in places, shown.output
    assert places == sorted(places)
    assert "Traceback" not in shown.output


def test_it_listens_on_loopback_only_and_not_after_its_end(shown):
    assert len(shown.listening) >= 2
    assert {host for host, _ in shown.listening} <= {"127.0.0.1", "::1"}
    for host, port in shown.listening:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=60)


def test_no_key_and_no_token_is_in_its_output_and_files(shown):
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


def test_it_ends_on_sigterm_during_the_set_up(tmp_path):
    with standalone(tmp_path) as job:
        job.until_printed("creates its database")
        job.process.terminate()
        assert job.ends() == 0
    assert "Ended. Nothing is left running." in job.output
    assert "Traceback" not in job.output


def test_nothing_is_left_running_when_it_is_killed(tmp_path):
    with standalone(tmp_path) as job:
        job.until_printed("starts: API server")
        log = tmp_path / "home" / "triggerer.log"
        job.until(
            lambda: job.update() and log.exists() and "Starting the triggerer" in log.read_text(), seconds=PATIENCE
        )
        job.process.kill()
        job.process.wait()
        deadline = time.monotonic() + PATIENCE
        while job.left():
            assert time.monotonic() < deadline, job.left()
            time.sleep(0.1)


def test_it_ends_with_the_last_output_of_a_part_that_has_died(tmp_path):
    with standalone(tmp_path) as job:
        job.until_printed("starts: API server")
        log = tmp_path / "home" / "triggerer.log"
        job.until(lambda: log.exists() and "Starting the triggerer" in log.read_text(), seconds=PATIENCE)
        job.part("triggerer").kill()
        assert job.ends() == 1
    assert "Airflow's triggerer ended with -9:\n" in job.output
    before, _, after = job.output.partition("Airflow's triggerer ended")
    assert "Starting the triggerer" in after
    assert "Traceback" not in before


def test_a_port_in_use_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with standalone(tmp_path, "--port", str(port)) as job:
            assert job.ends() == 1
    assert job.output == f"\nPort {port} is in use. Choose another one, or leave --port out for any free one\n"


def test_a_home_that_is_not_empty_is_an_error_and_stays_as_it_is(tmp_path):
    file = tmp_path / "home" / "file"
    file.parent.mkdir()
    file.touch()
    with standalone(tmp_path) as job:
        assert job.ends() == 1
    assert file.exists()
    assert job.output == f"\n{file.parent} is not empty. --home needs a new or empty folder\n"


def test_a_home_that_another_instance_uses_is_an_error(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    held = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with standalone(tmp_path) as job:
            assert job.ends() == 1
    finally:
        os.close(held)
    message = f"Another instance uses {home}. End that one first, or choose another folder with --home"
    assert job.output == f"\n{message}\n"
