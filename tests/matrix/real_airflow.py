"""Runs the example DAGs and a DAG of edge cases in the installed Airflow, with ``airflow dags test``.

``scripts/matrix.py`` runs this with the Python of each pair. ``AIRFLOW_HOME`` is a folder with a migrated database and
nothing else. The exit code is 0 when all checks pass; stdout has the results.
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
PRINTS_KEYS = "print_keys"
# Airflow 3.0's `dags test` logs the messages that give secrets to the masker.
DEBUG_OF_3_0 = re.compile(r"^.*\[debug +\] Sending request +msg=MaskSecret\(.*$", flags=re.MULTILINE)
# Limit in seconds for each command, on a busy machine.
LONGEST = 1800.0
ROW = ["statement_id", "entity_id", "link_id", "progress", "reason", "date_time"]
WRONG = {"api_key": "wrong-api-key-4b0c", "server_hash": "wrong-server-hash-77e1"}
# The states of the tasks of edge_cases.py.
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
    "passes_now": "success",
    "passes_later": "success",
    "name_types": "success",
}


class CheckError(Exception):
    """A check has failed."""


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise CheckError(f"{what}: {found!r}, not {wanted!r}")


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
            # Escape codes within a word would hide it from a search.
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def test(self, dag_id: str, conf: dict[str, Any], meanwhile: Callable[[], object] = lambda: None) -> str:
        """Run a DAG in one process and return its output."""
        said = self.run(dag_id, ["-m", "airflow", "dags", "test", dag_id, "--conf", json.dumps(conf)], meanwhile)
        self.expect_no_key(dag_id, DEBUG_OF_3_0.sub("", said))
        return said

    def work(self, dag_id: str, task_id: str) -> str:
        """Run one task of a run as a worker does, and return its log."""
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
                        raise CheckError(f"{name} did not end in {LONGEST:.0f} s; see {output}")
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
                    raise CheckError(f"{name}: a key is in Airflow's output: {line.replace(key, '<the key>')[:200]}")

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(sql, parameters).fetchall()

    def state(self, dag_id: str) -> str:
        rows = self.query("select state from dag_run where dag_id = ?", dag_id)
        return rows[0][0] if rows else "no run"

    def tasks(self, dag_id: str) -> dict[str, str]:
        return dict(self.query("select task_id, state from task_instance where dag_id = ? and map_index < 0", dag_id))

    def xcom(self, dag_id: str, task_id: str) -> Any:
        """Return the return value of a task, or None."""
        found = self.query(
            "select value from xcom where dag_id = ? and task_id = ? and key = 'return_value'", dag_id, task_id
        )
        value = found[0][0] if found else None
        # Airflow 2.11 stores JSON in a blob. From 3.0 on the column is JSON, and 3.0 stores JSON text in it.
        while isinstance(value, str | bytes):
            value = json.loads(value)
        return value


def register(airflow: Airflow) -> None:
    """Check that the endpoint is registered, in the mode that sends webhooks for PDFs too."""
    airflow.test(REGISTER, {"webhook_url": airflow.box.inbox_url, "allow_private_host": True})
    expect("register", airflow.state(REGISTER), "success")
    expect("endpoint", (airflow.box.webhook_url, airflow.box.webhook_mode), (airflow.box.inbox_url, 1))


def wait_for_statement(airflow: Airflow) -> None:
    """Check that a deferred gate passes after a failed login, and that the next task runs."""
    box, link = airflow.box, "loan 4711/März & co?"
    has_started = False

    def customer() -> None:
        nonlocal has_started
        # The second poke is the first of the deferred wait.
        if not has_started and len(box.calls("webhook_payloads")) >= 2:
            has_started = True
            box.play(Statement(link_id=link, entity_id="customer", statement_id="", progress="failed", after=1))
            box.play(Statement(link_id=link, entity_id="customer", statement_id="october", after=2.5, transactions=17))

    since = datetime.now(UTC).isoformat(timespec="seconds")
    airflow.test(WAIT, {"link_id": link, "since": since}, customer)
    expect("main DAG", airflow.state(WAIT), "success")
    rows = airflow.xcom(WAIT, "wait_for_statement")
    expect("rows", [list(row) for row in rows], [ROW])
    expect("statement", (rows[0]["statement_id"], rows[0]["link_id"]), ("october", link))
    expect("summary", airflow.xcom(WAIT, "summarise_transactions"), {"statements": 1, "transactions": 17})
    pokes = box.calls("webhook_payloads")
    # The first poke, on the worker, has one connection; all pokes of the deferred wait share another one.
    expect("deferred pokes", (len(pokes) >= 3, len({poke.connection for poke in pokes[1:]})), (True, 1))


def edge_cases(airflow: Airflow) -> None:
    """Check the states of tasks with timeouts, wrong keys and failed verdicts."""
    box = airflow.box
    for link in ("failed-now", "failed-now-softly"):
        box.payload(link_id=link, entity_id=link, statement_id=link, progress="failed", reason="Password protected")
    now = dict.fromkeys(("link_id", "entity_id", "statement_id"), "passes-now")
    box.payload(**now, progress="completed", reason="")
    coming = dict.fromkeys(("failed-later", "failed-later-softly", "failed-later-is-passed-on"), "failed")
    coming["passes-later"] = "completed"

    def customers() -> None:
        poked = {poke.query.get("link_id") for poke in box.calls("webhook_payloads")}
        for link in poked & coming.keys():
            progress = coming.pop(link)
            more = {"reason": "Password protected"} if progress == "failed" else {}
            box.play(Statement(link_id=link, entity_id=link, statement_id=link, progress=progress, after=0.5, **more))

    said = airflow.test(EDGES, {}, customers)
    found = airflow.tasks(EDGES)
    expect("tasks", {task: found.get(task) for task in STATES if found.get(task) != STATES[task]}, {})
    for task in ("passes_now", "passes_later", "failed_later_is_passed_on"):
        rows = airflow.xcom(EDGES, task)
        expect(f"rows of {task}", [list(row) for row in rows], [ROW])
    expect("types", airflow.xcom(EDGES, "name_types"), ["list", "dict", "str", "str"])
    [(mapped,)] = airflow.query("select count(*) from task_instance where task_id = 'one_row' and state = 'success'")
    expect("mapped tasks", mapped, 1)
    names = "select rendered_map_index from task_instance where task_id = 'wait_for_each' order by map_index"
    expect("mapped waits", airflow.query(names), [("link passes-now",), ("link passes-later",)])
    for words in ("BankConnectAuthError: webhook_payloads: HTTP 401", "timed out after 0:00:02. Seen last: "):
        expect(f"{words!r} is logged", words in said, wanted=True)


def masking(airflow: Airflow) -> None:
    """Check that a worker's log masks keys that a task prints and logs."""
    # This creates the run for the worker. `dags test` itself masks nothing, in no Airflow.
    airflow.run(PRINTS_KEYS, ["-m", "airflow", "dags", "test", PRINTS_KEYS])
    said = airflow.work(PRINTS_KEYS, "print_keys")
    for words in ("printed api_key", "printed server_hash", "logged api_key", "logged server_hash"):
        expect(f"{words}: ***. is logged", f"{words}: ***." in said, wanted=True)


CHECKS = (register, wait_for_statement, edge_cases, masking)


def main() -> int:
    with Sandbox() as box:
        airflow = Airflow(box)
        for name in (REGISTER, WAIT):
            text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
            (airflow.folder / f"{name}.py").write_text(
                text.replace("poke_interval=30", "poke_interval=1"), encoding="utf-8"
            )
        for dag_id in (EDGES, PRINTS_KEYS):
            shutil.copy(HERE / f"{dag_id}.py", airflow.folder)
        failed = 0
        for check in CHECKS:
            started = time.monotonic()
            try:
                check(airflow)
            except CheckError as error:
                failed += 1
                print(f"{check.__name__}: WRONG: {error}", flush=True)
            else:
                print(f"{check.__name__}: ok, {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
