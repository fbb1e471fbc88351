"""The machine: a virtual environment, a Postgres, processes, and what they cost."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# Scripts import each other by name, and those are in the folder beside this one.
sys.path.insert(0, str(ROOT / "scripts"))

import processes  # noqa: E402
import requests  # noqa: E402
from live import LiveError, Postgres, family  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE: Final = ROOT / "benchmarks"
HOME: Final = ROOT / ".cache" / "bench"
LOG: Final = HOME / "bench.log"
VENV: Final = HOME / "venv"
PYTHON: Final = VENV / "bin" / "python"
_PEERS: Final = ("apache-airflow-providers-http", "psycopg2-binary", "asyncpg", "apache-airflow==3.3.2")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The benchmark cannot be run here, or was interrupted; the message says why."""


def install() -> None:
    """Create the virtual environment, once: this project's own and the other providers."""
    tag = f"py{sys.version_info.major}{sys.version_info.minor}"
    constraints = ROOT / "constraints" / f"constraints-3.3.2-{tag}.txt"
    if not constraints.exists():
        raise BenchError(f"No constraints/{constraints.name}: the benchmark runs on Airflow 3.3.2 and a Python it has")
    done = VENV / ".ready"
    if done.exists() and done.stat().st_mtime > max(constraints.stat().st_mtime, HERE.stat().st_mtime):
        return
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    what = ["-c", str(constraints), *_PEERS, "-e", f"{ROOT}[relay,sandbox]"]
    if uv:
        run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(VENV)])
        run([uv, "pip", "install", "--quiet", "--python", str(PYTHON), *what])
    else:
        run([sys.executable, "-m", "venv", str(VENV)])
        run([str(PYTHON), "-m", "pip", "install", "--quiet", *what])
    done.touch()


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a command to its end; its output goes to the log."""
    with LOG.open("a", encoding="utf-8") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, check=False, start_new_session=True)
    if done.returncode:
        raise BenchError(f"{Path(command[0]).name} {' '.join(command[1:4])} ended with {done.returncode}; see {LOG}")


@contextlib.contextmanager
def process(command: Sequence[str], env: Mapping[str, str], *, end: signal.Signals) -> Iterator[int]:
    """Run a process for the ``with`` block, and end it with all its children."""
    with LOG.open("a", encoding="utf-8") as log:
        running = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield running.pid
    finally:
        tree = family(running.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(30)
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a Postgres of our own; yield the URL of its database."""
    try:
        with Postgres() as running:
            yield running.url
    except LiveError as error:
        raise BenchError(str(error)) from None


def cpu(pids: Sequence[int]) -> float:
    """Return the CPU seconds that processes have used so far."""
    used = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
    return used / _TICKS


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """Raise the limit of open files to the hard limit, and return it: a triggerer has a log file open for each wait."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def report(measure: Callable[[], str], file: str = "") -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures.

    :param file: also write the table to this file in `.cache/bench`.
    """

    @processes.command(BenchError, LiveError, RuntimeError, requests.RequestException)
    def run() -> int:
        HOME.mkdir(parents=True, exist_ok=True)
        LOG.write_text("", encoding="utf-8")
        table = measure()
        print(f"\n{table}")
        if file:
            (HOME / file).write_text(table + "\n", encoding="utf-8")
        return 0

    return run()


def describe() -> str:
    """Return the size of this machine, in words."""
    memory_size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory_size:.0f} GiB, Python {platform.python_version()}"


def wait_until(what: str, seconds: float, ready: Callable[[], bool]) -> None:
    """Wait until a condition is true.

    :raises BenchError: it is not true in time.
    """
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise BenchError(f"{what}: not ready after {seconds:g} s; see {LOG}")
        time.sleep(0.2)
