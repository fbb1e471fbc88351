"""What `make chaos` and `make fleet` have in common: kill parts of an Airflow on PostgreSQL, and restart them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg2
from live import family

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from live import Live, Postgres
    from services import Server

STARTED: Final = time.monotonic()


@dataclass
class Strikes:
    """An Airflow and its database, what was done to them, and what was found wrong."""

    live: Live
    postgres: Postgres
    table: list[tuple[str, ...]] = field(default_factory=list, kw_only=True)
    wrong: list[str] = field(default_factory=list, kw_only=True)

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with (
            contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self.postgres.port, user="airflow", dbname="postgres")
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    def open_waits(self) -> int:
        """Return the number of deferred tasks."""
        return int(self.query("select count(*) from task_instance where state = 'deferred'")[0][0])

    def strike(self, what: str, act: Callable[[], str]) -> None:
        """Do one thing, and note how many waits were open."""
        try:
            open_waits = str(self.open_waits())
        except psycopg2.Error:
            open_waits = "?"
        at = f"{time.monotonic() - STARTED:.0f} s"
        result = act()
        say(f"{what}: {open_waits} waits open; {result}")
        self.table.append((at, what, open_waits, result))

    def crash(self, part: str, seconds: float = 3) -> str:
        """Kill a part, and restart it as a service manager does."""
        self.live.kill(part)
        time.sleep(seconds)
        self.live.start(part)
        return f"restarted after {seconds:g} s"

    def kill_a_process(self, part: str, has: bytes, result: str, seconds: float = 60) -> str:
        """Kill a process below a part whose command line has these bytes, and its children."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for pid in family(self.live.parts[part].pid)[1:]:
                with contextlib.suppress(OSError):
                    if has in Path(f"/proc/{pid}/cmdline").read_bytes():
                        for member in family(pid):
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(member, signal.SIGKILL)
                        return result
            time.sleep(0.05)
        self.wrong.append(f"{part} had no process that was looked for")
        return "none was found"

    def restart(self, server: Server, seconds: float = 5) -> str:
        """Stop a server and start it again."""
        server.stop()
        time.sleep(seconds)
        server.start()
        return f"back after {seconds:g} s"

    def keep_alive(self, stop: threading.Event) -> None:
        """Restart parts that have ended by themselves, as a service manager does."""
        while not stop.wait(1):
            for part, process in list(self.live.parts.items()):
                if process.poll() is not None and part in self.live.parts:
                    say(f"{part} ended by itself ({process.returncode}) and is restarted")
                    at = f"{time.monotonic() - STARTED:.0f} s"
                    self.table.append((at, f"{part} ended by itself", "", "restarted"))
                    self.live.kill(part)
                    self.live.start(part)


def in_turn(strikes: Iterable[tuple[float, Callable[[], None]]]) -> None:
    """Do each thing at its time, in seconds from now."""
    started = time.monotonic()
    for at, act in strikes:
        time.sleep(max(0.0, started + at - time.monotonic()))
        act()


def count(states: Iterable[object]) -> str:
    """Return how many there are of each state, in words."""
    return ", ".join(f"{number} {state}" for state, number in sorted(Counter(states).items(), key=str))


def print_table(*lines: Sequence[str]) -> None:
    """Print a table; the first line has the names of its columns."""
    head, *body = lines
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)))


def say(what: str) -> None:
    """Print a line with the time."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)
