"""`make standalone`: a whole Airflow with the webhook receiver, and simulated customers, until Ctrl-C.

It needs no credentials, listens on loopback only and leaves nothing running. Logs are in `.standalone/`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import processes
import requests
import tenacity
from live import PATIENCE, USER, Live, LiveError, free_port, temporary_folder

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement
from airflow_provider_bankconnect.sandbox.wire import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".standalone"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTED = time.monotonic()
REGISTER, ON_WEBHOOK, CATCH_UP = "bankconnect_register_webhook", "bankconnect_on_webhook", "bankconnect_catch_up"
REPORTS = "bankconnect_reports"
EXPECTED = "bankconnect_expected_links"
# Printed when a task has reached a state. XCom values of the task are filled in.
MESSAGES = {
    ("wait_for_statement", "deferred"): "the gate for {who} waits: BankConnect has no completed statement yet",
    ("wait_for_statement", "success"): "the gate for {who} passed: BankConnect has a completed statement",
    ("wait_for_statement", "skipped"): "the gate for {who} failed: its statement failed, so the run is skipped",
    ("count_transactions", "success"): "worked on {transactions} transactions for {who}",
    ("count_transactions", "skipped"): "this run for {who} leaves the work to another run",
    ("keep_reports", "success"): "kept the Excel report and the transactions for {who}: {files}",
    ("catch_up", "success"): "{who}: {links} links, {completed} completed, {recorded} missed webhooks recorded",
}


class Stopped(BaseException):
    """A signal has ended the program."""


def main() -> int:
    """Run until a signal arrives and return 0; after an error return 1."""
    parser = argparse.ArgumentParser(
        prog="standalone", description="A whole Airflow with BankConnect's webhook receiver."
    )
    parser.add_argument("--port", type=int, help="port of Airflow's UI (default: 8080, or any free one)")
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS", help="time between two customers (20)")
    parser.add_argument("--relay", action="store_true", help="webhooks go to a relay, which hands them on to Airflow")
    parser.add_argument("--home", type=Path, default=HOME, help="a new or empty folder (default: .standalone, emptied)")
    options = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        port, home = choose_port(options.port), make_home(options.home.absolute())
        with temporary_folder() as folder, Sandbox(on_event=report_bankconnect) as box:
            (home / "ca.pem").write_text(box.ca_pem, encoding="ascii")
            settings = {
                "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
                "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": secrets.token_urlsafe(32),
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
                # Files that have changed are read within 30 seconds anyway.
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            }
            how: dict[str, Any] = {"certificate": box.issue_certificate(folder), "trust": box.ca_file, "port": port}
            relay = Relay(home, how["certificate"]) if options.relay else None
            if relay:
                # The address that the DAG registers.
                settings["AIRFLOW__BANKCONNECT__PUBLIC_URL"] = relay.url
            with Live(home, ROOT / "dags", settings=settings, **how) as live:
                try:
                    Standalone(box, live, options.every, relay).run()
                finally:
                    if relay:
                        relay.stop()
                    ignore_signals()
                    say("", "Ending ...")
    except Stopped:
        say("", "Ended. Nothing is left running.")
        return 0
    except (LiveError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


class Relay:
    """The relay in a process of its own, with its queue in ``home``."""

    def __init__(self, home: Path, certificate: tuple[Path, Path]) -> None:
        self.home, self.certificate, self.port = home, certificate, free_port()
        self.url = f"https://localhost:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.read = 0

    def start(self, live: Live) -> None:
        certificate, key = map(str, self.certificate)
        command = [live.python, "-m", "airflow_provider_bankconnect", "relay", "--port", str(self.port)]
        # It needs the token, the API server's address and its certificate, as Airflow has them.
        environment = live.environment | {
            "AIRFLOW__BANKCONNECT__API_SERVER_URL": live.url,
            "BANKCONNECT_RELAY_DATABASE": f"sqlite:///{self.home / 'relay.db'}",
        }
        with (self.home / "relay.log").open("ab") as log:
            self.process = processes.start(
                [*command, "--host", "localhost", "--certificate", certificate, "--key", key],
                env=environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self.process:
            processes.stop(self.process)

    def report(self) -> None:
        """Report what the relay has done."""
        if self.process and self.process.poll() is not None:
            raise LiveError(f"The relay has ended; see {self.home / 'relay.log'}")
        lines = (self.home / "relay.log").read_text(encoding="utf-8").splitlines()
        for line in lines[self.read :]:
            words = line.split(maxsplit=3)[3:]
            if words and words[0].startswith(("Queued", "Handed on", "Webhooks")):
                say("Relay", words[0])
        self.read = len(lines)


class Standalone:
    """The sandbox in this process, Airflow and the relay in others, and the messages about all."""

    def __init__(self, box: Sandbox, live: Live, every: float, relay: Relay | None) -> None:
        self.box = box
        self.relay = relay
        self.live = live
        self.every = every
        self.customers = 0
        self.reported: set[tuple[str, ...]] = set()
        # On SQLite, Airflow answers 500 while the database is locked.
        self.ask = tenacity.Retrying(
            before=lambda _: live.check(),
            retry=tenacity.retry_if_exception_type(requests.RequestException),
            stop=tenacity.stop_after_delay(PATIENCE),
            wait=tenacity.wait_fixed(1),
            reraise=True,
        ).wraps(live.api)

    def run(self) -> NoReturn:
        say("BankConnect", "is a sandbox on this machine, over HTTPS, with keys made for this run")
        say("Airflow", "creates its database")
        self.live.airflow("db", "migrate")
        say("Airflow", "starts: API server, scheduler, DAG processor, triggerer. This takes about a minute")
        self.live.start()
        self.live.wait_until_up()
        self.ask("POST", "variables", json={"key": EXPECTED, "value": '["loan-001"]'})
        self.live.wait_until_known(REGISTER, ON_WEBHOOK, CATCH_UP, REPORTS)
        if self.relay:
            say("Relay", f"starts at {self.relay.url}, and hands on to {self.live.url}")
            self.relay.start(self.live)
            self.live.wait_until("the relay is up", self.relay_is_up)
        self.start_run(REGISTER, {"allow_private_host": True})
        registered = f"{REGISTER} has registered the webhook receiver"
        self.live.wait_until(registered, lambda: self.box.webhook_url)
        where = self.relay.url if self.relay else self.live.url
        say("BankConnect", f"sends webhooks to {where}/bankconnect/webhook/bankconnect_default/***")
        asset = self.ask("GET", "assets")["assets"][0]["id"]
        print(
            f"\n  Page      {self.live.url}/bankconnect-ui/ (in Airflow: Browse -> BankConnect)"
            f"\n  Runs      {self.live.url}/dags/{ON_WEBHOOK}/runs"
            f"\n  Events    {self.live.url}/assets/{asset}"
            f"\n  Log in    {USER}, password {self.live.password}"
            f"\n  Warning   Your browser warns about the certificate, because this program has just made it for this"
            f"\n            machine. Choose 'Advanced' and continue. For curl: --cacert {self.live.home}/ca.pem"
            f"\n  Logs      {self.live.home}"
            f"\n  End       Ctrl-C\n",
            flush=True,
        )
        story, next_at = self.story(), time.monotonic()
        while True:
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + self.every * next(story)
            self.watch()
            time.sleep(1)

    def story(self) -> Iterator[float]:
        """Simulate customers without end; yield the time until the next one, as a multiple of ``every``."""
        pace = 1.0
        while True:
            self.customer("logs in to the bank", {"after": 0.2})
            yield pace
            login = {"after": 0.2, "statement_id": "", "progress": "failed"}
            self.customer("mistypes the password and tries again", login, {"after": 0.7})
            yield pace
            self.customer("uploads a PDF", {"after": 0.2, "mode": "pdf"})
            yield pace
            self.customer("logs in to the bank, and its reports are kept as files", {"after": 0.2})
            self.start_run(REPORTS, {"link_id": f"loan-{self.customers:03}", "since": "2026-01-01T00:00:00Z"})
            yield pace
            self.customer("uploads a PDF without a link", {"after": 0.2, "mode": "pdf", "link_id": None})
            yield pace
            nobody = {"after": 0.2, "statement_id": "", "entity_id": "", "progress": "failed"}
            self.customer("fails to log in, and BankConnect names no entity; then it works", nobody, {"after": 0.7})
            yield pace
            self.customer("adds three accounts, one after another", {"after": 0.2}, {"after": 3.2}, {"after": 6.2})
            yield pace
            self.customer(
                "uploads a PDF that BankConnect cannot read", {"after": 0.2, "mode": "pdf", "progress": "failed"}
            )
            yield pace
            self.box.fault(Fault(kind="drop", times=1))
            self.customer("is completed, but the webhook is lost", {"after": 0.0})
            yield pace
            say("Airflow", f"runs {CATCH_UP}, as it does every ten minutes")
            self.start_run(CATCH_UP, {})
            yield pace
            say("An attacker", "sends a forged webhook for loan-of-a-thief. BankConnect has no such statement")
            ids = {"link_id": "loan-of-a-thief", "entity_id": "thief", "statement_id": f"forged-{self.customers}"}
            self.box.webhook({**ids, "progress": "completed", "reason": ""})
            yield pace
            if pace == 1.0:
                pace = 3.0
                say("", f"The story starts again, with a customer every {pace * self.every:g} s")

    def customer(self, does: str, *statements: dict[str, Any]) -> None:
        """Simulate one customer; times are multiples of ``every``."""
        self.customers += 1
        name = f"{self.customers:03}"
        has_link = all(given.get("link_id", "") is not None for given in statements)
        say("Customer", f"{name} {does}: {'loan' if has_link else 'customer'}-{name}")
        # Catch-up asks for these links. A real DAG knows which links it has sent to customers.
        links = [f"loan-{number:03}" for number in range(1, self.customers + 1)][-100:]
        self.ask("PATCH", f"variables/{EXPECTED}", json={"key": EXPECTED, "value": json.dumps(links)})
        ids = {"link_id": f"loan-{name}", "entity_id": f"customer-{name}"}
        for number, given in enumerate(statements, start=1):
            after = given["after"] * self.every
            times = {"after": after, "begins": max(0.0, after - 0.2 * self.every)}
            self.box.play(Statement(**{**ids, "statement_id": f"statement-{name}-{number}", **given, **times}))

    def relay_is_up(self) -> bool:
        with suppress(requests.RequestException):
            return bool(self.relay and requests.get(f"{self.relay.url}/health", verify=self.box.ca_file, timeout=5).ok)
        return False

    def start_run(self, dag_id: str, conf: dict[str, Any]) -> None:
        self.ask("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})

    def watch(self) -> None:
        """Report new runs and the states of their tasks."""
        if self.relay:
            self.relay.report()
        runs = self.ask("GET", "dags/~/dagRuns?order_by=-id&limit=50")["dag_runs"]
        names = {run["dag_run_id"]: run["partition_key"] or run["dag_id"] for run in runs}
        for run in reversed(runs):
            if run["dag_id"] == ON_WEBHOOK and self.is_new(run["dag_run_id"]):
                say("Airflow", f"starts a run for {run['partition_key']}")
        tasks = self.ask("GET", "dags/~/dagRuns/~/taskInstances?order_by=-start_date&limit=100")["task_instances"]
        for task in reversed(tasks):
            run_id, task_id, state = task["dag_run_id"], task["task_id"], task["state"]
            words = MESSAGES.get((task_id, state))
            if words and run_id in names and self.is_new(run_id, task_id, state):
                pushed = self.pushed(task) if state == "success" else {}
                say("Airflow", words.format(who=names[run_id], **pushed))

    def pushed(self, task: dict[str, Any]) -> dict[str, Any]:
        of_task = f"dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        entry = f"xcomEntries/return_value?map_index={task['map_index']}"
        value = self.ask("GET", f"{of_task}/{entry}")["value"]
        if isinstance(value, list):
            # The rows of gates have no path.
            return {"files": ", ".join(row["path"] for row in value if "path" in row)}
        return value if isinstance(value, dict) else {}

    def is_new(self, *what: str) -> bool:
        new = what not in self.reported
        self.reported.add(what)
        return new


def make_home(home: Path) -> Path:
    """Return an empty folder, and lock it until this process ends."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        fcntl.flock(os.open(home, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LiveError(
            f"Another instance uses {home}. End that one first, or choose another folder with --home"
        ) from None
    for old in home.iterdir():
        if home != HOME:
            raise LiveError(f"{home} is not empty. --home needs a new or empty folder")
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    return home


def choose_port(asked: int | None) -> int:
    """Return the port that was asked for; without one, 8080 or any free one."""
    for port in (asked,) if asked else (8080, free_port()):
        with suppress(OSError):
            for one in listen("localhost", port):
                one.close()
            return port
    raise LiveError(f"Port {asked} is in use. Choose another one, or leave --port out for any free one")


def report_bankconnect(event: str) -> None:
    """Report what BankConnect does, without the many requests that read from it."""
    if not event.startswith("GET "):
        say("BankConnect", event)


def stop(*_: object) -> NoReturn:
    """Raise :exc:`Stopped` once; later signals must not interrupt the clean-up."""
    ignore_signals()
    raise Stopped


def ignore_signals() -> None:
    """Ignore all further signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def say(who: str, what: str) -> None:
    """Print a line, even where nobody reads it any more."""
    with suppress(OSError):
        print(f"{time.monotonic() - STARTED:6.1f} s  {who:<12} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
