"""`make demo`: a real Airflow registers a webhook, waits for a statement and works on it, against a local sandbox.

It needs no credentials, sends nothing off the machine and leaves nothing running. Its files are in `.demo/`.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import processes

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
LOG = HOME / "airflow.log"
LINK = "demo-loan-4711"
ENTITY = "demo-entity"
# Seconds after the gate's first poke: the login fails, then the statement is completed.
FAILS_AFTER, COMPLETES_AFTER = 4.0, 14.0
PRINT_AT_LEAST_EVERY = 6.0
WAIT_DAG = "bankconnect_wait_for_statement"
NEXT = f"""\
What next
  Read the DAG that ran:   dags/{WAIT_DAG}.py
  Copy it for your work:   replace its task summarise_transactions
  See it with webhooks:    make standalone, a whole Airflow with its UI, until Ctrl-C
  Use your own account:    give Airflow a connection with your keys, docs/connections/bankconnect.rst
  See what else there is:  .venv/bin/python -m airflow_provider_bankconnect"""
STARTED = time.monotonic()


class DemoError(Exception):
    """The demo failed; the message says why."""


@processes.command()
def main() -> int:
    """Run the demo: return 0 when the gate has passed and the task after it has worked."""
    HOME.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    try:
        with Sandbox() as box:
            Demo(box).play()
    except DemoError as error:
        print(f"\n{error}\nThe last lines of {LOG.relative_to(ROOT)}:\n", file=sys.stderr)
        print("\n".join(LOG.read_text(encoding="utf-8").splitlines()[-40:]), file=sys.stderr)
        return 1
    return 0


class Demo:
    """The sandbox in this process, Airflow in others, and the messages about both."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": str(HOME),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME / 'airflow.db'}",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
            "PYTHONUNBUFFERED": "1",
        }
        self.last_line_at = STARTED
        self.pokes = 0
        self.deliveries = 0
        self.customer_is_due = False

    def play(self) -> None:
        self.say("BankConnect", "is a sandbox on this machine, over HTTPS, with keys made for this run")
        if not (HOME / "migrated").exists():
            self.say("Airflow", "creates its database in .demo/, once")
            self.airflow("db", "migrate")
            (HOME / "migrated").touch()

        self.say("Airflow", "runs bankconnect_register_webhook")
        self.run_dag("bankconnect_register_webhook", {"webhook_url": self.box.inbox_url, "allow_private_host": True})
        if self.box.webhook_url is None:
            raise DemoError("BankConnect has no webhook endpoint: the registration did not reach it")
        registered = self.seconds()
        self.say("BankConnect", f"sends its webhooks to {self.box.webhook_url}, in mode {self.box.webhook_mode}")

        self.say("Airflow", f"runs {WAIT_DAG}, for link {LINK}: deferred, with a poke every 30 s")
        self.customer_is_due = True
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.run_dag(WAIT_DAG, {"link_id": LINK, "since": since})
        summary = self.summary()

        pokes = [request.at for request in self.box.calls("webhook_payloads")]
        first, last = pokes[0] - STARTED, pokes[-1] - STARTED
        print(
            f"\nIn short\n"
            f"  {registered:6.1f} s  registered   {self.box.webhook_url}\n"
            f"  {first:6.1f} s  waited       for {last - first:.0f} s, {len(pokes)} pokes, despite a failed login\n"
            f"  {last:6.1f} s  passed       because BankConnect's records have a completed statement of {ENTITY}\n"
            f"  {self.seconds():6.1f} s  worked       on {summary['transactions']} transactions of "
            f"{summary['statements']} statement\n\n"
            f"Airflow's log: {LOG.relative_to(ROOT)}\n\n{NEXT}"
        )

    def run_dag(self, dag_id: str, conf: dict[str, Any]) -> None:
        self.airflow("dags", "test", dag_id, "--conf", json.dumps(conf))
        if self.query("select state from dag_run where dag_id = ? order by id desc", dag_id) != "success":
            raise DemoError(f"{dag_id} did not succeed")

    def summary(self) -> dict[str, int]:
        value: Any = self.query(
            "select value from xcom where task_id = ? order by timestamp desc", "summarise_transactions"
        )
        while isinstance(value, str):
            value = json.loads(value)
        return value

    def airflow(self, *arguments: str) -> None:
        with LOG.open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "airflow", *arguments]
            process = processes.start(
                command, env=self.environment, cwd=HOME, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    self.watch()
            finally:
                processes.kill(process)
        if process.returncode != 0:
            raise DemoError(f"airflow {' '.join(arguments[:3])} ended with exit code {process.returncode}")

    def watch(self) -> None:
        pokes = len(self.box.calls("webhook_payloads"))
        for number in range(self.pokes + 1, pokes + 1):
            self.say("The gate", f"asks BankConnect: poke {number}")
        if pokes and self.customer_is_due:
            self.customer_is_due = False
            self.box.play(
                Statement(
                    link_id=LINK,
                    entity_id=ENTITY,
                    statement_id="",
                    after=FAILS_AFTER,
                    progress="failed",
                    reason="Incorrect user ID or password",
                ),
            )
            self.box.play(
                Statement(link_id=LINK, entity_id=ENTITY, statement_id="demo-statement", after=COMPLETES_AFTER)
            )
        deliveries = [delivery.body for delivery in list(self.box.deliveries)]
        for body in deliveries[self.deliveries :]:
            failed = f"a login failed ({body['reason']})"
            what = "the statement is completed" if body["progress"] == "completed" else failed
            self.say("BankConnect", f"{what}; it sends a webhook, on which the gate does not depend")
        self.pokes, self.deliveries = pokes, len(deliveries)
        if time.monotonic() - self.last_line_at > PRINT_AT_LEAST_EVERY:
            self.say("", "...")

    def query(self, sql: str, *parameters: str) -> str | None:
        connection = sqlite3.connect(HOME / "airflow.db")
        try:
            row = connection.execute(sql, parameters).fetchone()
        finally:
            connection.close()
        return row[0] if row else None

    def say(self, who: str, what: str) -> None:
        self.last_line_at = time.monotonic()
        print(f"{self.seconds():6.1f} s  {who:<12} {what}", flush=True)

    @staticmethod
    def seconds() -> float:
        return time.monotonic() - STARTED


if __name__ == "__main__":
    sys.exit(main())
