"""A real Airflow of one's own: SQLite, no server, its DAGs copied from ``dags/`` with what a test cannot wait for."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
REGISTER = "bankconnect_register_webhook"
WAIT = "bankconnect_wait_for_statement"
CONNECTION = "AIRFLOW_CONN_BANKCONNECT_DEFAULT"
FERNET_KEY = "c3lzdGVtLXRlc3RzLXN5c3RlbS10ZXN0cy1zeXN0ZW0="
QUICK = {"poke_interval=30": "poke_interval=1"}
IN_POKE_MODE = {"deferrable=True": "deferrable=False"}
# A whole `airflow dags test` on two busy cores.
LONGEST = 150.0


@dataclass(frozen=True)
class Run:
    """What became of a run."""

    dag_id: str
    run_id: str
    state: str
    tasks: dict[str, str | None]
    seconds: float


class Job:
    """A process whose output goes to a file."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], Any], *, seconds: float = LONGEST) -> None:
        """Wait until something has happened; the process ought to live until then."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended before it came to that:\n{self.output[-4000:]}"
            assert time.monotonic() < deadline, f"did not come to that in time:\n{self.output[-4000:]}"
            time.sleep(0.02)

    def finish(self) -> int:
        return self.process.wait(LONGEST)


class Driver(Job):
    """``driver.py``, running DAGs of one home in one process."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        super().__init__(process, output)
        self.greeting = self._answer()
        self._asked: str = ""

    def start(self, dag_id: str, connection: dict[str, Any], conf: dict[str, Any], *, masked: bool = True) -> None:
        """Begin a run; what is to happen meanwhile can happen until :meth:`result`."""
        self._asked = dag_id
        order = {"dag_id": dag_id, "connection": json.dumps(connection), "conf": conf, "masked": masked}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def result(self) -> Run:
        return Run(self._asked, **self._answer())

    def run(self, dag_id: str, connection: dict[str, Any], conf: dict[str, Any], *, masked: bool = True) -> Run:
        self.start(dag_id, connection, conf, masked=masked)
        return self.result()

    def _answer(self) -> dict[str, Any]:
        # Reading a pipe knows no timeout.
        hurry = threading.Timer(LONGEST, self.process.kill)
        hurry.start()
        try:
            line = self.process.stdout.readline()
        finally:
            hurry.cancel()
        assert line, f"the driver ended:\n{self.output[-4000:]}"
        return json.loads(line)


class Home:
    """An Airflow home in ``folder``, its DAGs beside it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.path = folder / "home"
        self.dags = folder / "dags"
        self.database = self.path / "airflow.db"
        self.dags.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
        self.environment = inherited | {
            "AIRFLOW_HOME": str(self.path),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": FERNET_KEY,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}",
            "AIRFLOW__API_AUTH__JWT_SECRET": "system-tests-" * 5,
            "PYTHONUNBUFFERED": "1",
            # A coloured word is cut in two by its escape codes: nothing is to hide there from a search.
            "NO_COLOR": "1",
            **settings,
        }

    def add(self, name: str, text: str) -> None:
        """Put a DAG file into the folder."""
        (self.dags / f"{name}.py").write_text(text, encoding="utf-8")

    def add_example(self, name: str, changes: dict[str, str] | None = None, *, dag_id: str | None = None) -> str:
        """Copy one of the example DAGs, and change what a test cannot wait for: each has to be there exactly once."""
        text = (ROOT / "dags" / f"{name}.py").read_text(encoding="utf-8")
        renamed = {f'dag_id="{name}"': f'dag_id="{dag_id}"'} if dag_id else {}
        for old, new in {**(changes or {}), **renamed}.items():
            assert text.count(old) == 1, f"{name}.py has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        self.add(dag_id or name, text)
        return dag_id or name

    @contextmanager
    def job(self, *arguments: str, connection: dict[str, Any] | None = None) -> Iterator[Job]:
        """Run an ``airflow`` command."""
        more = {} if connection is None else {CONNECTION: json.dumps(connection)}
        output = self._new_output()
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=self.environment | more,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
            )
        with process:
            try:
                yield Job(process, output)
            finally:
                process.kill()

    @contextmanager
    def driver(self) -> Iterator[Driver]:
        """Run DAGs in one process: those that are in the folder by now."""
        output = self._new_output()
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("driver.py"))],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        with process:
            try:
                yield Driver(process, output)
            finally:
                process.kill()

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as database:
            return database.execute(sql, parameters).fetchall()

    def state_of(self, dag_id: str) -> str:
        [(state,)] = self.query("select state from dag_run where dag_id = ?", dag_id)
        return state

    def xcoms(self, dag_id: str, run_id: str | None = None) -> dict[tuple[str, str], Any]:
        """All that the tasks of a run have pushed: (task, key) -> value."""
        rows = self.query(
            "select task_id, key, value from xcom where dag_id = ? and run_id = coalesce(?, run_id)", dag_id, run_id
        )
        return {(task, key): json.loads(value) if isinstance(value, str) else value for task, key, value in rows}

    def _new_output(self) -> Path:
        return self.folder / f"output-{len(list(self.folder.glob('output-*')))}.log"
