"""`make standalone`: a whole Airflow with BankConnect's doorbell, and customers who ring it, until Ctrl-C.

No credentials are needed, everything listens on loopback only, and nothing is left running. Logs lie in `.standalone/`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import requests
import tenacity
from live import USER, Live, LiveError, end, free_port, temporary_folder, tree

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement
from airflow_provider_bankconnect.sandbox.wire import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".standalone"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTED = time.monotonic()
# Seconds for a step of the setting up, on a machine that is busy with other things.
PATIENCE = 600.0
REGISTER, ON_WEBHOOK, CATCH_UP = "bankconnect_register_webhook", "bankconnect_on_webhook", "bankconnect_catch_up"
EXPECTED = "bankconnect_expected_links"
# What a person is told when a task has come to a state; what the task has pushed is filled in.
TOLD = {
    ("wait_for_statement", "deferred"): "the gate for {who} is shut: BankConnect's records do not say that it is done",
    ("wait_for_statement", "success"): "the gate for {who} is open: BankConnect's records say that it is done",
    ("wait_for_statement", "skipped"): "the gate for {who} stays shut: its statement failed, and no other came",
    ("count_transactions", "success"): "worked on {transactions} transactions for {who}",
    ("count_transactions", "skipped"): "this run for {who} leaves the work to another",
    ("ring_for_the_lost", "success"): "{who} asked for links: {links}, completed: {completed}, rang for: {rung}",
}


class Stopped(BaseException):
    """Somebody wants it to end."""


def main() -> int:
    """Run until somebody ends it, which is as it should be: 0. After an error 1."""
    parser = argparse.ArgumentParser(prog="standalone", description="A whole Airflow with BankConnect's doorbell.")
    parser.add_argument("--port", type=int, help="of Airflow's page; left out: 8080, or any that is free")
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS", help="between two customers (20)")
    parser.add_argument("--home", type=Path, default=HOME, help="a new or empty folder; left out: .standalone, emptied")
    options = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        port, home = choose_port(options.port), make_home(options.home.absolute())
        with temporary_folder() as folder, Sandbox(on_event=tell_of_bankconnect) as box:
            (home / "ca.pem").write_text(box.ca_pem, encoding="ascii")
            settings = {
                "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
                "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": secrets.token_urlsafe(32),
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
                # A file that is changed is read soon all the same.
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            }
            how: dict[str, Any] = {"certificate": box.issue_certificate(folder), "trust": box.ca_file, "port": port}
            with Live(home, ROOT / "dags", settings=settings, **how) as live:
                try:
                    Standalone(box, live, options.every).run()
                finally:
                    ignore_signals()
                    say("", "Ending ...")
    except Stopped:
        say("", "Ended: nothing is left running.")
        return 0
    except (LiveError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        # What was just being started when the signal came is known to nobody else.
        end(tree(os.getpid())[1:])


class Standalone:
    """The vendor in this process, Airflow in others, and what a person is told of them."""

    def __init__(self, box: Sandbox, live: Live, every: float) -> None:
        self.box = box
        self.live = live
        self.every = every
        self.customers = 0
        self.told: set[tuple[str, ...]] = set()
        # An Airflow on SQLite answers 500 when it is too busy to write.
        self.ask = tenacity.Retrying(
            before=lambda _: live.check(),
            retry=tenacity.retry_if_exception_type(requests.RequestException),
            stop=tenacity.stop_after_delay(120),
            wait=tenacity.wait_fixed(1),
            reraise=True,
        ).wraps(live.api)

    def run(self) -> NoReturn:
        say("BankConnect", "is played on this machine, over HTTPS, with keys made up for today")
        say("Airflow", "makes its database")
        self.live.airflow("db", "migrate")
        say("Airflow", "starts: API server, scheduler, DAG processor, triggerer. This takes a while")
        self.live.start()
        self.live.wait_until_up(PATIENCE)
        self.ask("POST", "variables", json={"key": EXPECTED, "value": '["loan-001"]'})
        self.live.wait_until_known(REGISTER, ON_WEBHOOK, CATCH_UP, seconds=PATIENCE)
        self.start_run(REGISTER, {"allow_private_host": True})
        told = f"{REGISTER} has told BankConnect of the doorbell"
        self.live.wait_until(told, lambda: self.box.webhook_url, PATIENCE)
        say("BankConnect", f"rings at {self.live.url}/bankconnect/webhook/bankconnect_default/***")
        asset = self.ask("GET", "assets")["assets"][0]["id"]
        print(
            f"\n  Runs      {self.live.url}/dags/{ON_WEBHOOK}/runs"
            f"\n  Rings     {self.live.url}/assets/{asset}"
            f"\n  Log in    {USER}, password {self.live.password}"
            f"\n  Warning   Your browser does not know who made the certificate: this program did, just now, for this"
            f"\n            machine alone. Choose 'Advanced' and go on. For curl: --cacert {self.live.home}/ca.pem"
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
        """Play customers, over and over; gives how many times ``every`` it is until the next one."""
        pace = 1.0
        while True:
            self.customer("signs in to the bank", {"after": 0.2})
            yield pace
            login = {"after": 0.2, "statement_id": "", "progress": "failed"}
            self.customer("mistypes the password, and tries again", login, {"after": 0.7})
            yield pace
            self.customer("brings a PDF", {"after": 0.2, "mode": "pdf"})
            yield pace
            self.customer("has three accounts, one after the other", {"after": 0.2}, {"after": 3.2}, {"after": 6.2})
            yield pace
            self.customer("brings a PDF that cannot be read", {"after": 0.2, "mode": "pdf", "progress": "failed"})
            yield pace
            self.box.fault(Fault(kind="drop", times=1))
            self.customer("is done, and the webhook of it is lost", {"after": 0.0})
            yield pace
            say("Airflow", f"runs {CATCH_UP}, as it does every ten minutes")
            self.start_run(CATCH_UP, {})
            yield pace
            say("Somebody", "who knows the address says that loan-of-a-thief is done. BankConnect says no such thing")
            ids = {"link_id": "loan-of-a-thief", "entity_id": "thief", "statement_id": f"forged-{self.customers}"}
            self.box.ring({**ids, "progress": "completed", "reason": ""})
            yield pace
            if pace == 1.0:
                pace = 3.0
                say("", f"It begins again, and goes on so, with a customer every {pace * self.every:g} s")

    def customer(self, does: str, *statements: dict[str, Any]) -> None:
        """Play one; times are in parts of ``every``."""
        self.customers += 1
        name = f"{self.customers:03}"
        say("Customer", f"{name} {does}: loan-{name}")
        # Who sends customers to BankConnect knows their links: catch-up asks for the last of them.
        links = [f"loan-{number:03}" for number in range(1, self.customers + 1)][-100:]
        self.ask("PATCH", f"variables/{EXPECTED}", json={"key": EXPECTED, "value": json.dumps(links)})
        ids = {"link_id": f"loan-{name}", "entity_id": f"customer-{name}"}
        for number, told in enumerate(statements, start=1):
            after = told["after"] * self.every
            times = {"after": after, "begins": max(0.0, after - 0.2 * self.every)}
            self.box.play(Statement(**{**ids, "statement_id": f"statement-{name}-{number}", **told, **times}))

    def start_run(self, dag_id: str, conf: dict[str, Any]) -> None:
        self.ask("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})

    def watch(self) -> None:
        """Tell of the runs that have begun, and of what has become of their tasks."""
        runs = self.ask("GET", "dags/~/dagRuns?order_by=-id&limit=50")["dag_runs"]
        names = {run["dag_run_id"]: run["partition_key"] or run["dag_id"] for run in runs}
        for run in reversed(runs):
            if run["dag_id"] == ON_WEBHOOK and self.is_news(run["dag_run_id"]):
                say("Airflow", f"starts a run for {run['partition_key']}")
        tasks = self.ask("GET", "dags/~/dagRuns/~/taskInstances?order_by=-start_date&limit=100")["task_instances"]
        for task in reversed(tasks):
            run_id, task_id, state = task["dag_run_id"], task["task_id"], task["state"]
            words = TOLD.get((task_id, state))
            if words and run_id in names and self.is_news(run_id, task_id, state):
                pushed = self.pushed(task) if state == "success" else {}
                say("Airflow", words.format(who=names[run_id], **pushed))

    def pushed(self, task: dict[str, Any]) -> dict[str, Any]:
        of_task = f"dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        value = self.ask("GET", f"{of_task}/xcomEntries/return_value")["value"]
        return value if isinstance(value, dict) else {}

    def is_news(self, *what: str) -> bool:
        if what in self.told:
            return False
        self.told.add(what)
        return True


def make_home(home: Path) -> Path:
    """Give an empty folder that nobody else uses while this process lives."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        fcntl.flock(os.open(home, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LiveError(f"Another one runs in {home}: end that one first, or give --home") from None
    for old in home.iterdir():
        if home != HOME:
            raise LiveError(f"There is something in {home}: --home wants a new or an empty folder")
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    return home


def choose_port(asked: int | None) -> int:
    """Give the port that was asked for, or the usual one, or where that is taken any other."""
    for port in (asked,) if asked else (8080, free_port()):
        with suppress(OSError):
            for one in listen("localhost", port):
                one.close()
            return port
    raise LiveError(f"Port {asked} is taken: give another one, or none, and any that is free will do")


def tell_of_bankconnect(event: str) -> None:
    """Say what BankConnect does; what it is asked is too much to read."""
    if not event.startswith("GET "):
        say("BankConnect", event)


def stop(*_: object) -> NoReturn:
    """Break off what is being done, once: what follows has to come to its end."""
    ignore_signals()
    raise Stopped


def ignore_signals() -> None:
    """Let nobody break off the end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def say(who: str, what: str) -> None:
    """Tell a person, who may have left."""
    with suppress(OSError):
        print(f"{time.monotonic() - STARTED:6.1f} s  {who:<12} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
