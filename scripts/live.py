"""A whole Airflow on this machine, for those that need a real one: each part a process of its own, on loopback.

`make standalone`, the system tests and the benchmarks use it. Nothing is left running when its ``with`` ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil
import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

PARTS: Final = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
USER: Final = "admin"
_STOPPING_SECONDS: Final = 20.0


class LiveError(Exception):
    """Airflow, or its database, is not as it should be; says what, and where to look."""


class Live:
    """An Airflow in ``home``, with its DAGs from ``dags``.

    :param database: what SQLAlchemy calls it; None for a SQLite in ``home``.
    :param certificate: two PEM files, the certificate and its key: the API server then speaks HTTPS.
    :param trust: PEM file that Airflow's own parts trust when they call it.
    :param settings: more of the environment, stronger than what is set here.
    :param port: where the API server listens; None for any that is free.
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
            # Who has logged in stays so for a month.
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
            # Airflow's own client has a setting for it from 3.3 on; before, it trusts the certificate itself.
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
        """Where a part's output goes."""
        return self.home / f"{part}.log"

    def airflow(self, *arguments: str) -> str:
        """Run a command to its end.

        :raises LiveError: it failed.
        """
        done = subprocess.run(
            [self.python, "-m", "airflow", *arguments],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LiveError(f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done.stdout

    def start(self, *parts: str) -> None:
        """Start parts, all of them where none is named; ``triggerer#2`` is a second triggerer."""
        for part in parts or PARTS:
            with self.log(part).open("ab") as log:
                self.parts[part] = subprocess.Popen(
                    [self.python, "-m", "airflow", *PARTS[part.partition("#")[0]]],
                    env=self.environment,
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill(self, part: str) -> None:
        """End a part and all its children as a crash does."""
        process = self.parts.pop(part)
        end(tree(process.pid))
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def stop(self, *parts: str) -> None:
        """End parts, all of them where none is named; those that take too long, as a crash does."""
        ending = [self.parts.pop(part) for part in parts or list(self.parts) if part in self.parts]
        for process in ending:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + _STOPPING_SECONDS
        relatives: set[psutil.Process] = set()
        while time.monotonic() < deadline and any(process.poll() is None for process in ending):
            # Some of Airflow's parts give their children sessions of their own, and these may outlive them.
            relatives.update(relative for process in ending for relative in tree(process.pid))
            time.sleep(0.1)
        end(relatives)
        for process in ending:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def wait_until_up(self, seconds: float = 120.0) -> None:
        """Wait until the API server answers.

        :raises LiveError: it does not.
        """
        self.wait_until("the API server answers", self._answers, seconds)

    def wait_until_known(self, *dag_ids: str, seconds: float = 120.0) -> None:
        """Wait until DAGs are there, and can be run.

        :raises LiveError: they are not.
        """
        self.wait_until(f"DAGs {', '.join(dag_ids)} are there", lambda: set(dag_ids) <= set(self.dag_ids()), seconds)

    def wait_until(self, what: str, happened: Callable[[], Any], seconds: float = 120.0) -> None:
        """Wait until something is so, while all parts live.

        :raises LiveError: a part ended, or it is not so in time.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            self.check()
            if time.monotonic() > deadline:
                raise LiveError(f"Not so after {seconds:.0f} s: {what}. Logs: {self.home}")
            time.sleep(0.2)

    def check(self) -> None:
        """See that all parts live.

        :raises LiveError: one has ended; gives its last words.
        """
        for part, process in self.parts.items():
            if process.poll() is not None:
                raise LiveError(f"Airflow's {part} ended with {process.returncode}:\n{self.tail(part)}")

    def tail(self, part: str) -> str:
        """Give the last lines of a part's output."""
        return self.log(part).read_text(encoding="utf-8", errors="replace")[-3000:]

    def api(self, method: str, path: str, **more: Any) -> Any:  # noqa: ANN401 - JSON, and what requests takes
        """Call Airflow's REST API, as its one user.

        :raises requests.HTTPError: it refuses.
        """
        if not self._token:
            who = {"username": USER, "password": self.password}
            answer = requests.post(f"{self.url}/auth/token", json=who, verify=self.trust, timeout=30)
            answer.raise_for_status()
            self._token = answer.json()["access_token"]
        answer = requests.request(
            method,
            f"{self.url}/api/v2/{path}",
            headers={"Authorization": f"Bearer {self._token}"},
            verify=self.trust,
            timeout=30,
            **more,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def dag_ids(self) -> list[str]:
        """Give the DAGs that Airflow has parsed."""
        return [dag["dag_id"] for dag in self.api("GET", "dags?limit=100")["dags"]]

    def unpause(self, dag_id: str, *, paused: bool = False) -> None:
        """Let a DAG run, or not."""
        self.api("PATCH", f"dags/{dag_id}", json={"is_paused": paused})

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Give all runs of a DAG."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", f"dags/{dag_id}/dagRuns?limit=100&offset={len(found)}&order_by=id")
            found += page["dag_runs"]
            if len(found) >= page["total_entries"] or not page["dag_runs"]:
                return found

    def _answers(self) -> bool:
        try:
            answer = requests.get(f"{self.url}/api/v2/version", verify=self.trust, timeout=5)
        except requests.RequestException:
            return False
        return answer.ok and answer.headers.get("content-type", "").startswith("application/json")


class Postgres:
    """A PostgreSQL of one's own, gone when its ``with`` ends. It refuses root, so root lends it another user.

    :raises LiveError: its server programs are not to be found.
    """

    def __init__(self) -> None:
        named = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
        programs = next((Path(program).resolve().parent for program in named if program), None)
        if programs is None or not (programs / "postgres").exists():
            raise LiveError(
                "This needs PostgreSQL's server programs (initdb, postgres), and found none: install Debian's "
                "postgresql, or run scripts/install-system-packages.sh"
            )
        self._programs = programs
        known = {user.pw_name for user in pwd.getpwall()}
        names = [name for name in ("postgres", "nobody") if name in known] if os.geteuid() == 0 else []
        self._as: dict[str, Any] = {"user": names[0], "group": pwd.getpwnam(names[0]).pw_gid} if names else {}
        self.port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"
        self._folder = Path(tempfile.mkdtemp(prefix="bankconnect-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._as:
            shutil.chown(self._folder, self._as["user"], self._as["group"])
        self._run("initdb", "-D", str(self._data), "-U", "airflow", "-A", "trust", "-E", "UTF8", "--no-sync").wait(120)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Serve.

        :raises LiveError: it does not.
        """
        socket_options = ("-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=200")
        self._process = self._run("postgres", "-D", str(self._data), "-F", *socket_options)
        deadline = time.monotonic() + 60
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise LiveError(f"PostgreSQL does not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End, without waiting for anybody who is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        more = {**self._as, "extra_groups": []} if self._as else {}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._programs / program), *arguments],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **more,
            )

    def _is_ready(self) -> bool:
        asked = subprocess.run(
            [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return asked.returncode == 0


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that goes away."""
    folder = Path(tempfile.mkdtemp(prefix="bankconnect-live-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def family(pid: int) -> list[int]:
    """Give a process and all its descendants."""
    return [process.pid for process in tree(pid)]


def tree(pid: int) -> list[psutil.Process]:
    """Give them as what they are: a number may soon be somebody else's."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(processes: Iterable[psutil.Process]) -> None:
    """End processes as a crash does."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
