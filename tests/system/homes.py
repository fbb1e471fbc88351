"""Airflow homes for tests: SQLite, no server, and the DAGs of ``dags/`` with shorter intervals."""

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

import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
REGISTER = "bankconnect_register_webhook"
WAIT = "bankconnect_wait_for_statement"
REPORTS = "bankconnect_reports"
CONNECTION = "AIRFLOW_CONN_BANKCONNECT_DEFAULT"
FERNET_KEY = "c3lzdGVtLXRlc3RzLXN5c3RlbS10ZXN0cy1zeXN0ZW0="
NO_RETRIES = {'"retries": 2': '"retries": 0'}
QUICK = {"poke_interval=30": "poke_interval=1", **NO_RETRIES}
IN_POKE_MODE = {"deferrable=True": "deferrable=False"}
# Limit in seconds for anything that a test waits for, on a busy machine.
LONGEST = 600.0


@dataclass(frozen=True)
class Run:
    """The result of a DAG run."""

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
        """Wait until a condition holds. The process must run until then."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"the process ended too early:\n{self.output[-4000:]}"
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain:\n{self.output[-4000:]}"
            time.sleep(0.02)

    def finish(self) -> int:
        return self.process.wait(LONGEST)


class Driver(Job):
    """``driver.py``, running DAGs of one home in one process."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        super().__init__(process, output)
        self.greeting = self._answer()
        self._dag_id = ""

    def start(self, dag_id: str, connection: dict[str, Any], conf: dict[str, Any], *, masked: bool = True) -> None:
        """Start a run and return at once; :meth:`result` waits for its end."""
        self._dag_id = dag_id
        order = {"dag_id": dag_id, "connection": json.dumps(connection), "conf": conf, "masked": masked}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def result(self) -> Run:
        return Run(self._dag_id, **self._answer())

    def run(self, dag_id: str, connection: dict[str, Any], conf: dict[str, Any], *, masked: bool = True) -> Run:
        self.start(dag_id, connection, conf, masked=masked)
        return self.result()

    def _answer(self) -> dict[str, Any]:
        # readline() has no timeout.
        limit = threading.Timer(LONGEST, self.process.kill)
        limit.start()
        try:
            line = self.process.stdout.readline()
        finally:
            limit.cancel()
        assert line, f"the driver ended:\n{self.output[-4000:]}"
        return json.loads(line)


class Home:
    """An Airflow home in ``folder``, with the DAGs beside it."""

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
            # Escape codes within a word would hide it from a search.
            "NO_COLOR": "1",
            **settings,
        }

    def add(self, name: str, text: str) -> None:
        """Write a DAG file."""
        (self.dags / f"{name}.py").write_text(text, encoding="utf-8")

    def add_example(self, name: str, changes: dict[str, str] | None = None, *, dag_id: str | None = None) -> str:
        """Copy an example DAG with changes. Each text to replace must occur exactly once."""
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
        with self._process(["-m", "airflow", *arguments], more, stdin=subprocess.DEVNULL) as started:
            yield Job(*started)

    @contextmanager
    def driver(self) -> Iterator[Driver]:
        """Run the DAGs that are in the folder now, in one process."""
        pipe = subprocess.PIPE
        with self._process([str(Path(__file__).with_name("driver.py"))], {}, stdin=pipe, stdout=pipe) as started:
            yield Driver(*started)

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as database:
            return database.execute(sql, parameters).fetchall()

    def state_of(self, dag_id: str) -> str:
        [(state,)] = self.query("select state from dag_run where dag_id = ?", dag_id)
        return state

    def xcoms(self, dag_id: str, run_id: str | None = None) -> dict[tuple[str, str], Any]:
        """Return all XComs of a run, by task and key."""
        rows = self.query(
            "select task_id, key, value from xcom where dag_id = ? and run_id = coalesce(?, run_id)", dag_id, run_id
        )
        return {(task, key): json.loads(value) if isinstance(value, str) else value for task, key, value in rows}

    @contextmanager
    def _process(self, arguments: list[str], settings: dict[str, str], **pipes: int) -> Iterator[tuple[Any, Path]]:
        output = self.folder / f"output-{len(list(self.folder.glob('output-*')))}.log"
        with output.open("w", encoding="utf-8") as file:
            process = processes.start(
                [sys.executable, *arguments],
                env=self.environment | settings,
                cwd=self.folder,
                stderr=file,
                text=True,
                **{"stdout": file, **pipes},
            )
        with process:
            try:
                yield process, output
            finally:
                processes.kill(process)
