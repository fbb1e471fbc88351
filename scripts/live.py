"""Runs a whole Airflow, or a PostgreSQL, on this machine. Every part is a process of its own and listens on loopback.

`make standalone`, the system tests and the benchmarks use it. When the ``with`` ends, nothing is left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import processes
import requests
from services import PATIENCE, LiveError, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PARTS: Final = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
USER: Final = "admin"


class Live:
    """An Airflow in ``home`` that reads its DAGs from ``dags``.

    :param database: SQLAlchemy URL; None for a SQLite file in ``home``.
    :param certificate: PEM files with the certificate and its key; the API server then uses HTTPS.
    :param trust: PEM file with the certificates that Airflow's own parts trust when they call the API server.
    :param settings: environment variables; they override those that are set here.
    :param port: port of the API server; None for any free one.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        database: str | None = None,
        certificate: tuple[Path, Path] | None = None,
        trust: str | None = None,
        settings: Mapping[str, str] | None = None,
        python: str = sys.executable,
        port: int | None = None,
    ) -> None:
        self.home = home
        self.port = port or free_port()
        self.python = python
        self.password = secrets.token_urlsafe(12)
        self.trust: str | bool = trust or True
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://localhost:{self.port}"
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""
        home.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
        self.environment = inherited | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "localhost",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            # A login is valid for a month.
            "AIRFLOW__API_AUTH__JWT_EXPIRATION_TIME": str(30 * 24 * 3600),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database or f"sqlite:///{home / 'airflow.db'}",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if certificate:
            self.environment["AIRFLOW__API__SSL_CERT"] = str(certificate[0])
            self.environment["AIRFLOW__API__SSL_KEY"] = str(certificate[1])
        if trust:
            # Before 3.3 Airflow's own client has no such setting and trusts SSL_CERT instead.
            self.environment["AIRFLOW__API__SSL_CA_FILE"] = trust
        self.environment |= settings or {}
        passwords = home / "simple_auth_manager_passwords.json.generated"
        passwords.write_text(json.dumps({USER: self.password}), encoding="utf-8")
        passwords.chmod(0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, part: str) -> Path:
        """Return the file with the output of a part."""
        return self.home / f"{part}.log"

    def airflow(self, *arguments: str) -> str:
        """Run an ``airflow`` command and return its output.

        :raises LiveError: it failed.
        """
        command = [self.python, "-m", "airflow", *arguments]
        done = processes.run(command, env=self.environment, cwd=self.home)
        if done.returncode:
            raise LiveError(f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done.stdout

    def start(self, *parts: str) -> None:
        """Start these parts, or all; ``triggerer#2`` is a second triggerer."""
        for part in parts or PARTS:
            command = [self.python, "-m", "airflow", *self.command(part)]
            environment = self.environment_of(part)
            with self.log(part).open("ab") as log:
                self.parts[part] = processes.start(
                    command, env=environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def command(self, part: str) -> Sequence[str]:
        """Return the arguments of ``airflow`` for a part."""
        return PARTS[part.partition("#")[0]]

    def environment_of(self, part: str) -> Mapping[str, str]:  # noqa: ARG002 - the same for all
        """Return the environment of a part."""
        return self.environment

    def kill(self, part: str) -> None:
        """End a part and all its children as a crash does."""
        processes.kill(self.parts.pop(part))

    def stop(self, *parts: str) -> None:
        """Stop these parts, or all; kill those that take too long."""
        processes.stop(*(self.parts.pop(part) for part in parts or list(self.parts) if part in self.parts))

    def wait_until_up(self, seconds: float = PATIENCE) -> None:
        """Wait until the API server answers.

        :raises LiveError: it does not in time.
        """
        self.wait_until("the API server answers", self._answers, seconds)

    def wait_until_known(self, *dag_ids: str, seconds: float = PATIENCE) -> None:
        """Wait until Airflow has parsed these DAGs.

        :raises LiveError: it has not in time.
        """
        self.wait_until(f"DAGs {', '.join(dag_ids)} are parsed", lambda: set(dag_ids) <= set(self.dag_ids()), seconds)

    def wait_until(self, what: str, happened: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Wait until a condition holds.

        :param what: the condition in words, for the message.
        :raises LiveError: a part has ended, or the condition does not hold in time.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            self.check()
            if time.monotonic() > deadline:
                raise LiveError(f"Waited {seconds:.0f} s in vain until {what}. Logs: {self.home}")
            time.sleep(0.2)

    def check(self) -> None:
        """Check that all parts run.

        :raises LiveError: one has ended; the message has the end of its output.
        """
        for part, process in self.parts.items():
            if process.poll() is not None:
                raise LiveError(f"Airflow's {part} ended with {process.returncode}:\n{self.tail(part)}")

    def tail(self, part: str) -> str:
        """Return the last lines of a part's output."""
        return self.log(part).read_text(encoding="utf-8", errors="replace")[-3000:]

    def api(self, method: str, path: str, **more: Any) -> Any:  # noqa: ANN401 - JSON, and what requests takes
        """Call Airflow's REST API as the only user.

        :raises requests.HTTPError: the status is an error.
        """
        answer = requests.request(
            method,
            f"{self.url}/api/v2/{path}",
            headers={"Authorization": f"Bearer {self.token()}"},
            verify=self.trust,
            timeout=PATIENCE,
            **more,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def token(self) -> str:
        """Return a token of the only user, with which the REST API and the page can be called.

        :raises requests.HTTPError: the login fails.
        """
        if not self._token:
            who = {"username": USER, "password": self.password}
            answer = requests.post(f"{self.url}/auth/token", json=who, verify=self.trust, timeout=PATIENCE)
            answer.raise_for_status()
            self._token = answer.json()["access_token"]
        return self._token

    def dag_ids(self) -> list[str]:
        """Return the DAGs that Airflow has parsed."""
        return [dag["dag_id"] for dag in self.api("GET", "dags?limit=100")["dags"]]

    def unpause(self, dag_id: str, *, paused: bool = False) -> None:
        """Unpause a DAG, or pause it."""
        self.api("PATCH", f"dags/{dag_id}", json={"is_paused": paused})

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return all runs of a DAG."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", f"dags/{dag_id}/dagRuns?limit=100&offset={len(found)}&order_by=id")
            found += page["dag_runs"]
            if len(found) >= page["total_entries"] or not page["dag_runs"]:
                return found

    def _answers(self) -> bool:
        try:
            answer = requests.get(f"{self.url}/api/v2/version", verify=self.trust, timeout=30)
        except requests.RequestException:
            return False
        return answer.ok and answer.headers.get("content-type", "").startswith("application/json")


class Postgres(Server):
    """A PostgreSQL with a new database, removed when the ``with`` ends.

    :param copy_of: data directory of a stopped server, to begin with a copy of its databases.
    :raises LiveError: its server programs are not found.
    """

    name = "postgres"
    package = "postgresql"
    # PostgreSQL's fast shutdown.
    ending = signal.SIGINT

    def __init__(self, *, copy_of: Path | None = None) -> None:
        named = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
        programs = next((Path(program).resolve().parent for program in named if program), None)
        if programs is None or not (programs / "postgres").exists():
            raise LiveError(
                "PostgreSQL's server programs (initdb, postgres) are not found. Install Debian's package postgresql, "
                "or run scripts/install-system-packages.sh"
            )
        super().__init__("postgres")
        self._programs = programs
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"
        self._copy_of = copy_of

    def prepare(self) -> None:
        """Copy the databases, if there are any to begin with."""
        if self._copy_of:
            shutil.copytree(self._copy_of, self.data)

    def start(self) -> None:
        """Start the server, at first with a new database.

        :raises LiveError: it does not accept connections in time.
        """
        if not self.data.exists():
            how = ("-U", "airflow", "-A", "trust", "-E", "UTF8", "--no-sync")
            self._run(str(self._programs / "initdb"), "-D", str(self.data), *how).wait(PATIENCE)
        super().start()

    def command(self) -> Sequence[str]:
        """Return the command that runs the server."""
        how = ("-F", "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=200")
        return [str(self._programs / "postgres"), "-D", str(self.data), *how]

    def is_ready(self) -> bool:
        """Return whether the server accepts connections."""
        asked = subprocess.run(
            [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return asked.returncode == 0

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bankconnect-live-"))
    processes.remove_at_the_end(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def family(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    return [process.pid for process in processes.tree(pid)]
