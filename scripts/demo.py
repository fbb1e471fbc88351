"""`make demo`: BankConnect played on this machine, and a real Airflow that registers, waits and works.

No credentials are needed, nothing leaves the machine, and nothing is left running. What it keeps lies in `.demo/`.
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

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
LOG = HOME / "airflow.log"
LINK = "demo-loan-4711"
ENTITY = "demo-entity"
# So long after the gate's first look: the customer mistypes, then the statement is there.
FAILS_AFTER, COMPLETES_AFTER = 4.0, 14.0
SAY_AT_LEAST_EVERY = 6.0
STARTED = time.monotonic()


class DemoError(Exception):
    """The demo did not come to its end; says why."""


def main() -> int:
    """Play the demo: 0 when the gate opened and the work behind it was done."""
    HOME.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    try:
        with Sandbox() as box:
            Demo(box).play()
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.")
        return 130
    except DemoError as error:
        print(f"\n{error}\nThe last lines of {LOG.relative_to(ROOT)}:\n", file=sys.stderr)
        print("\n".join(LOG.read_text(encoding="utf-8").splitlines()[-40:]), file=sys.stderr)
        return 1
    return 0


class Demo:
    """The vendor in this process, Airflow in others, and what a person is told of it."""

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
        self.told = STARTED
        self.looks = 0
        self.deliveries = 0
        self.customer_is_on_the_way = False

    def play(self) -> None:
        self.say("BankConnect", "is played on this machine, over HTTPS, with keys made up for today")
        if not (HOME / "migrated").exists():
            self.say("Airflow", "makes its database in .demo/, once")
            self.airflow("db", "migrate")
            (HOME / "migrated").touch()

        self.say("Airflow", "runs bankconnect_register_webhook")
        self.run_dag("bankconnect_register_webhook", {"webhook_url": self.box.inbox_url, "allow_private_host": True})
        if self.box.webhook_url is None:
            raise DemoError("BankConnect has no webhook endpoint: the registration did not arrive")
        registered = self.seconds()
        self.say("BankConnect", f"sends its webhooks to {self.box.webhook_url}, in mode {self.box.webhook_mode}")

        self.say("Airflow", f"runs bankconnect_wait_for_statement, for link {LINK}: deferred, a look every 30 s")
        self.customer_is_on_the_way = True
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.run_dag("bankconnect_wait_for_statement", {"link_id": LINK, "since": since})
        summary = self.summary()

        looks = [request.at for request in self.box.calls("webhook_payloads")]
        asked, opened = looks[0] - STARTED, looks[-1] - STARTED
        print(
            f"\nIn short\n"
            f"  {registered:6.1f} s  registered   {self.box.webhook_url}\n"
            f"  {asked:6.1f} s  waited       for {opened - asked:.0f} s and {len(looks)} looks, over a failed login\n"
            f"  {opened:6.1f} s  opened       on BankConnect's own record, for the statement of {ENTITY}\n"
            f"  {self.seconds():6.1f} s  worked       on {summary['transactions']} transactions of "
            f"{summary['statements']} statement\n\n"
            f"All that Airflow said: {LOG.relative_to(ROOT)}"
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
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments], env=self.environment, cwd=HOME, stdout=log, stderr=log
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    self.watch()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait(10)
        if process.returncode != 0:
            raise DemoError(f"airflow {' '.join(arguments[:3])} ended with exit code {process.returncode}")

    def watch(self) -> None:
        looks = len(self.box.calls("webhook_payloads"))
        for number in range(self.looks + 1, looks + 1):
            self.say("The gate", f"asks BankConnect: look {number}")
        if looks and self.customer_is_on_the_way:
            self.customer_is_on_the_way = False
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
            what = (
                "the statement is completed"
                if body["progress"] == "completed"
                else f"a login failed ({body['reason']})"
            )
            self.say("BankConnect", f"{what}; its webhook goes out, and the gate does not depend on it")
        self.looks, self.deliveries = looks, len(deliveries)
        if time.monotonic() - self.told > SAY_AT_LEAST_EVERY:
            self.say("", "...")

    def query(self, sql: str, *parameters: str) -> str | None:
        connection = sqlite3.connect(HOME / "airflow.db")
        try:
            row = connection.execute(sql, parameters).fetchone()
        finally:
            connection.close()
        return row[0] if row else None

    def say(self, who: str, what: str) -> None:
        self.told = time.monotonic()
        print(f"{self.seconds():6.1f} s  {who:<12} {what}", flush=True)

    @staticmethod
    def seconds() -> float:
        return time.monotonic() - STARTED


if __name__ == "__main__":
    sys.exit(main())
