"""Runs the example DAGs and a DAG of edge cases in the Airflow that is installed here, by ``airflow dags test``.

``scripts/matrix.py`` runs this with the Python of each pair; ``AIRFLOW_HOME`` is a folder with a migrated database and
nothing else. It ends with 0 when all held, and says on stdout what did not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_bankconnect.sandbox import Sandbox, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

AIRFLOW_2 = version("apache-airflow").startswith("2.")
HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "dags"
REGISTER = "bankconnect_register_webhook"
WAIT = "bankconnect_wait_for_statement"
EDGES = "edge_cases"
CARELESS = "tell_keys"
# Airflow 3.0's `dags test` writes out, for debugging, the very messages that tell its masker what to mask.
DEBUG_OF_3_0 = re.compile(r"^.*\[debug +\] Sending request +msg=MaskSecret\(.*$", flags=re.MULTILINE)
LONGEST = 240.0
ROW = ["statement_id", "entity_id", "link_id", "progress", "reason", "date_time"]
WRONG = {"api_key": "wrong-api-key-4b0c", "server_hash": "wrong-server-hash-77e1"}
# What becomes of each task of edge_cases.py: the same in every Airflow.
STATES = {
    "times_out": "failed",
    "times_out_softly": "skipped",
    "times_out_and_never_fails": "skipped",
    "wrong_key_softly": "failed",
    "wrong_key_and_never_fails": "skipped",
    "failed_now": "failed",
    "failed_now_softly": "skipped",
    "failed_later": "failed",
    "failed_later_softly": "skipped",
    "failed_later_is_passed_on": "success",
    "opens_now": "success",
    "opens_later": "success",
    "tell_types": "success",
}


class Wrong(Exception):  # noqa: N818 - what a person reads
    """Something does not hold here."""


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {found!r}, not {wanted!r}")


class Airflow:
    """The Airflow of ``AIRFLOW_HOME``."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.home = Path(os.environ["AIRFLOW_HOME"])
        self.folder = self.home / "dags"
        self.folder.mkdir(exist_ok=True)
        wrong = box.connection
        wrong["password"], wrong["extra"]["api_key"] = WRONG["server_hash"], WRONG["api_key"]
        self.environment = os.environ | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.folder),
            "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
            "AIRFLOW_CONN_BANKCONNECT_WRONG": json.dumps(wrong),
            # What is coloured is cut in two by escape codes: nothing is to hide there from a search.
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def test(self, dag_id: str, conf: dict[str, Any], meanwhile: Callable[[], object] = lambda: None) -> str:
        """Run a DAG in one process; give its output."""
        said = self.run(dag_id, ["-m", "airflow", "dags", "test", dag_id, "--conf", json.dumps(conf)], meanwhile)
        self.expect_no_key(dag_id, DEBUG_OF_3_0.sub("", said))
        return said

    def work(self, dag_id: str, task_id: str) -> str:
        """Run one task of a run as a worker does; give its log."""
        if AIRFLOW_2:
            [(run_id,)] = self.query("select run_id from dag_run where dag_id = ?", dag_id)
            how = ["-m", "airflow", "tasks", "run", dag_id, task_id, run_id, "--local", "--force", "-A"]
        else:
            how = [str(HERE / "worker.py"), dag_id, task_id, "work.log"]
        said = self.run("work", how)
        logs = [path.read_text(encoding="utf-8") for path in (self.home / "logs").rglob("*.log")]
        self.expect_no_key(dag_id, said + "".join(logs))
        return "".join(logs)

    def run(self, name: str, arguments: list[str], meanwhile: Callable[[], object] = lambda: None) -> str:
        output = self.home / f"{name}.log"
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
            deadline = time.monotonic() + LONGEST
            try:
                while process.poll() is None:
                    if time.monotonic() > deadline:
                        raise Wrong(f"{name} did not end in {LONGEST:.0f} s; see {output}")
                    meanwhile()
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
        return re.sub(r"\x1b\[[0-9;]*m", "", output.read_text(encoding="utf-8", errors="replace"))

    def expect_no_key(self, name: str, said: str) -> None:
        for key in (self.box.api_key, self.box.server_hash, *WRONG.values()):
            for line in said.splitlines():
                if key in line:
                    raise Wrong(f"{name}: a key stands in what Airflow says: {line.replace(key, '<the key>')[:200]}")

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(sql, parameters).fetchall()

    def state(self, dag_id: str) -> str:
        rows = self.query("select state from dag_run where dag_id = ?", dag_id)
        return rows[0][0] if rows else "no run"

    def tasks(self, dag_id: str) -> dict[str, str]:
        return dict(self.query("select task_id, state from task_instance where dag_id = ? and map_index < 0", dag_id))

    def xcom(self, dag_id: str, task_id: str) -> Any:
        """Give what a task returned; None where it returned nothing."""
        found = self.query(
            "select value from xcom where dag_id = ? and task_id = ? and key = 'return_value'", dag_id, task_id
        )
        value = found[0][0] if found else None
        # Airflow 2.11 keeps JSON in a blob; from 3.0 on the column is JSON itself, and 3.0 has JSON in that.
        while isinstance(value, str | bytes):
            value = json.loads(value)
        return value


def register(airflow: Airflow) -> None:
    """The endpoint is registered, in the mode that hears of PDFs too."""
    airflow.test(REGISTER, {"webhook_url": airflow.box.inbox_url, "allow_private_host": True})
    expect("register", airflow.state(REGISTER), "success")
    expect("endpoint", (airflow.box.webhook_url, airflow.box.webhook_mode), (airflow.box.inbox_url, 1))


def wait_for_statement(airflow: Airflow) -> None:
    """The gate opens after a deferral, over a failed login, and the work behind it is done."""
    box, link = airflow.box, "loan 4711/März & co?"
    begun = False

    def customer() -> None:
        nonlocal begun
        if not begun and box.calls("webhook_payloads"):
            begun = True
            box.play(Statement(link_id=link, entity_id="customer", statement_id="", progress="failed", after=1))
            box.play(Statement(link_id=link, entity_id="customer", statement_id="october", after=2.5, transactions=17))

    since = datetime.now(UTC).isoformat(timespec="seconds")
    airflow.test(WAIT, {"link_id": link, "since": since}, customer)
    expect("main DAG", airflow.state(WAIT), "success")
    rows = airflow.xcom(WAIT, "wait_for_statement")
    expect("rows", [list(row) for row in rows], [ROW])
    expect("statement", (rows[0]["statement_id"], rows[0]["link_id"]), ("october", link))
    expect("summary", airflow.xcom(WAIT, "summarise_transactions"), {"statements": 1, "transactions": 17})
    looks = box.calls("webhook_payloads")
    # One connection for the first look, on the worker; one for all the looks of the deferred wait.
    expect("deferred looks", (len(looks) >= 3, len({look.connection for look in looks[1:]})), (True, 1))


def edge_cases(airflow: Airflow) -> None:
    """Time-outs, wrong keys and failed verdicts end a task here as in every other Airflow."""
    box = airflow.box
    for link in ("failed-now", "failed-now-softly"):
        box.payload(link_id=link, entity_id=link, statement_id=link, progress="failed", reason="Password protected")
    box.payload(link_id="opens-now", entity_id="opens-now", statement_id="opens-now", progress="completed", reason="")
    coming = dict.fromkeys(("failed-later", "failed-later-softly", "failed-later-is-passed-on"), "failed")
    coming["opens-later"] = "completed"

    def customers() -> None:
        looked = {look.query.get("link_id") for look in box.calls("webhook_payloads")}
        for link in looked & coming.keys():
            progress = coming.pop(link)
            more = {"reason": "Password protected"} if progress == "failed" else {}
            box.play(Statement(link_id=link, entity_id=link, statement_id=link, progress=progress, after=0.5, **more))

    said = airflow.test(EDGES, {}, customers)
    found = airflow.tasks(EDGES)
    expect("tasks", {task: found.get(task) for task in STATES if found.get(task) != STATES[task]}, {})
    for task in ("opens_now", "opens_later", "failed_later_is_passed_on"):
        rows = airflow.xcom(EDGES, task)
        expect(f"rows of {task}", [list(row) for row in rows], [ROW])
    expect("types", airflow.xcom(EDGES, "tell_types"), ["list", "dict", "str", "str"])
    [(mapped,)] = airflow.query("select count(*) from task_instance where task_id = 'one_row' and state = 'success'")
    expect("mapped tasks", mapped, 1)
    for words in ("BankConnectAuthError: webhook_payloads: HTTP 401", "timed out after 0:00:02. Seen last: "):
        expect(f"{words!r} is said", words in said, wanted=True)


def masking(airflow: Airflow) -> None:
    """Careless code tells both keys; in a worker's log stand asterisks."""
    # It makes the run that a worker can take up. It masks nothing itself, in no Airflow.
    airflow.run(CARELESS, ["-m", "airflow", "dags", "test", CARELESS])
    said = airflow.work(CARELESS, "tell")
    for words in ("printed api_key", "printed server_hash", "logged api_key", "logged server_hash"):
        expect(f"{words}: ***. is said", f"{words}: ***." in said, wanted=True)


CHECKS = (register, wait_for_statement, edge_cases, masking)


def main() -> int:
    with Sandbox() as box:
        airflow = Airflow(box)
        for name in (REGISTER, WAIT):
            text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
            (airflow.folder / f"{name}.py").write_text(
                text.replace("poke_interval=30", "poke_interval=1"), encoding="utf-8"
            )
        for dag_id in (EDGES, CARELESS):
            shutil.copy(HERE / f"{dag_id}.py", airflow.folder)
        wrong = 0
        for check in CHECKS:
            started = time.monotonic()
            try:
                check(airflow)
            except Wrong as error:
                wrong += 1
                print(f"{check.__name__}: WRONG: {error}", flush=True)
            else:
                print(f"{check.__name__}: ok, {time.monotonic() - started:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
