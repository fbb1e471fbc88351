"""`make bench`: what our waits and others cost in a real triggerer, in one run and one table.

It runs a triggerer on Postgres and the sandbox over TLS in a process of its own, and inserts trigger rows into the
database. All files are in `.cache/bench`, and nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import machine
from machine import HERE, HOME, LOG, PYTHON, BenchError
from talk import Helper

if TYPE_CHECKING:
    from collections.abc import Iterator

WATCH: Final = HOME / "watch.jsonl"
STARTED: Final = time.monotonic()
LIMIT: Final = 16
LARGE_LIMIT: Final = 64
VENDOR_SECONDS: Final = 0.25
HISTORY_ROWS: Final = 10_000


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    waits: int = 1_000
    interval: float = 5.0
    window: float = 60.0
    records: int = 100
    many: int = 10_000
    many_interval: float = 60.0
    many_window: float = 65.0
    settle: float = 5.0


QUICK: Final = Size(
    waits=200, interval=2.0, window=6.0, records=10, many=400, many_interval=5.0, many_window=11.0, settle=2.0
)
CASES: Final = "idle,floor,bare,ours,http,same,many_idle,many,many_rare,history"
# For airflow_local_settings.py, which the triggerer's processes load.
RARE_COLLECTIONS: Final = "import gc\n\ngc.set_threshold(700, 10, 10_000)\n"
QUICK_CASES: Final = "idle,floor,ours,http,same"


def connection(vendor: dict[str, Any], limit: int) -> str:
    """Return the connection to a sandbox, as JSON for Airflow's environment."""
    ours = {name: vendor[name] for name in ("conn_type", "host", "password")}
    return json.dumps(ours | {"extra": vendor["extra"] | {"max_concurrency": limit}})


def http_connection(vendor: dict[str, Any]) -> str:
    """Return the connection of the http provider to a sandbox."""
    keys = {"x-api-key": vendor["extra"]["api_key"], "server-hash": vendor["password"]}
    return json.dumps({"conn_type": "http", "host": vendor["host"], "extra": keys})


@dataclass
class Reading:
    """The results of one case."""

    name: str
    waits: int
    seconds: float = 0.0
    cpu: float = 0.0
    polls: int = 0
    connections: int = 0
    memory: int = 0
    late: float = 0.0
    late_without: float = 0.0
    collecting: float = 0.0
    late_start: float = 0.0
    delays: list[float] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> float:
        """The average number of cores in use."""
        return self.cpu / self.seconds if self.seconds else 0.0

    def per_poll(self, idle: Reading | None) -> float:
        """Return the CPU seconds for 1,000 polls, net of ``idle``."""
        net = self.cpu - (idle.cores * self.seconds if idle else 0.0)
        return 1000 * net / self.polls if self.polls else 0.0

    @property
    def raw(self) -> str:
        """All figures, in a line."""
        gaps = ", ".join(f"{name} {value:.1f}" for name, value in self.gaps.items())
        return (
            f"{self.name}: {self.seconds:.1f} s, {self.cpu:.2f} CPU s, {self.cores:.3f} cores, {self.polls} polls, "
            f"{self.connections} connections, "
            f"{self.memory / 2**20:.1f} MiB, block {1000 * self.late:.1f} ms (without Python's collector "
            f"{1000 * self.late_without:.1f} ms, its longest {1000 * self.collecting:.1f} ms), at the start "
            f"{1000 * self.late_start:.0f} ms, {len(self.delays)} delays{f', gaps: {gaps}' if gaps else ''}"
        )

    def per_wait(self, idle: Reading) -> float:
        """Return the KiB of a wait above ``idle``."""
        return (self.memory - idle.memory) / 1024 / self.waits


class Bench:
    """The database, the sandbox, and one triggerer at a time."""

    def __init__(self, size: Size, env: dict[str, str], vendor: Helper) -> None:
        self.size = size
        self.env = env
        self.vendor = vendor
        self.rows: Helper | None = None

    def connect(self, *, limit: int, remember: bool = False) -> None:
        """Start a new sandbox, and set both kinds of connection to it."""
        vendor = self.vendor.ask("start", remember=remember)
        self.env |= {
            "AIRFLOW_CONN_BANKCONNECT_DEFAULT": connection(vendor, limit),
            "AIRFLOW_CONN_HTTP_VENDOR": http_connection(vendor),
            # Connections of the http provider have no CA bundle.
            "SSL_CERT_FILE": vendor["ca_file"],
            "BENCH_VENDOR": json.dumps(vendor | {"limit": limit}),
        }

    @contextlib.contextmanager
    def triggerer(self) -> Iterator[int]:
        """Run a triggerer; yield its process id."""
        command = [str(PYTHON), "-m", "airflow", "triggerer", "--skip-serve-logs"]
        with machine.process(command, self.env, end=signal.SIGKILL) as pid:
            machine.wait_until("the triggerer", 60, lambda: len(machine.family(pid)) > 1)
            yield pid

    @contextlib.contextmanager
    def local_settings(self, text: str) -> Iterator[None]:
        """Let Airflow's processes run this text when they start."""
        file = Path(self.env["AIRFLOW_HOME"]) / "config" / "airflow_local_settings.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        yield
        file.unlink()

    def measure(self, name: str, kind: str, waits: int, interval: float, window: float, *, records: int = 0) -> Reading:
        """Run so many waits of a kind in a new triggerer, and return what they cost."""
        reading = Reading(name, waits)
        WATCH.write_text("", encoding="utf-8")
        self.rows.ask("put", kind=kind, waits=waits, interval=interval, watch=str(WATCH))
        say(f"{name}: {waits:,} waits, starting")
        with self.triggerer() as pid:
            machine.wait_until("all waits", 600, lambda: self.rows.ask("taken") == waits + 1)
            first = waits if kind in {"ours", "bare", "http"} else 1
            # Only then does the sandbox keep the log of requests.
            is_large = kind == "ours" and waits == self.size.many
            machine.wait_until(
                "all first polls",
                600,
                lambda: (
                    (watched() or [{"idle": 0}])[-1]["idle"] >= waits
                    if kind == "nothing"
                    else self.vendor.ask("counts")["asked" if is_large else "polls"] >= first
                ),
            )
            # Airflow blocks the loop while it loads ten thousand: the overdue polls are made first.
            time.sleep(max(self.size.settle, interval) if is_large else self.size.settle)
            pids = machine.family(pid)
            began, since, cpu = time.monotonic(), self.vendor.ask("counts"), machine.cpu(pids)
            pause(f"{name}: measuring", window)
            until, cpu_until = self.vendor.ask("counts"), machine.cpu(pids)
            ended = time.monotonic()
            reading.seconds, reading.cpu = ended - began, cpu_until - cpu
            reading.polls = until["polls"] - since["polls"]
            reading.connections = int(until["connections"])
            # The last process of the family runs the triggers.
            reading.memory = machine.memory(pids[-1])
            self._read_watch(reading, began, ended)
            if is_large:
                reading.gaps = self.vendor.ask("gaps", since=began)
            if records:
                reading.delays = self._delays(records, interval, name)
        say(reading.raw)
        return reading

    def floor(self) -> Reading:
        """Run the bare loop in a process without a triggerer."""
        size = self.size
        reading = Reading("bare loop, own process", size.waits)
        say(f"{reading.name}: {size.waits:,} waits, starting")
        log = HOME / "floor.jsonl"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [str(PYTHON), str(HERE / "floor.py"), str(size.waits), str(size.interval)],
                env=self.env,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            machine.wait_until("all first polls", 60, lambda: self.vendor.ask("counts")["polls"] >= size.waits)
            time.sleep(size.interval)
            began, since, cpu = time.monotonic(), self.vendor.ask("counts"), machine.cpu([process.pid])
            pause(f"{reading.name}: measuring", size.window)
            until = self.vendor.ask("counts")
            reading.cpu = machine.cpu([process.pid]) - cpu
            reading.seconds = time.monotonic() - began
            reading.polls = until["polls"] - since["polls"]
            reading.connections = int(until["connections"])
            played = self._play(size.records, size.interval, reading.name)
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            reading.delays = [ended - played[name] for name, ended in lines if name in played]
        finally:
            process.kill()
            process.wait()
        say(reading.raw)
        return reading

    def _delays(self, records: int, interval: float, name: str) -> list[float]:
        played = self._play(records, interval, name)
        ended = self.rows.ask("ended")
        return [ended[name] - at for name, at in played.items() if name in ended]

    def _play(self, records: int, interval: float, name: str) -> dict[str, float]:
        say(f"{name}: adding {records} records, one after the other")
        played = {}
        for number in random.Random(0).sample(range(self.size.waits), records):
            played[f"bench-{number}"] = self.vendor.ask("play", name=f"bench-{number}")
            time.sleep(random.random() * 2 * interval / records)
        time.sleep(interval + 4)
        return played

    @staticmethod
    def _read_watch(reading: Reading, began: float, ended: float) -> None:
        lines = watched()
        inside = [line for line in lines if began < line["at"] < ended]
        if inside:
            reading.late = max(line["late"] for line in inside)
            reading.late_without = max(line["without"] for line in inside)
            reading.collecting = max(line["gc"] for line in inside)
        reading.late_start = max((line["late"] for line in lines if line["at"] <= began), default=0.0)


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="small numbers: shows that it works, the figures mean little"
    )
    parser.add_argument("--only", default="", help=f"only these cases, of {CASES}")
    options = parser.parse_args()
    only = options.only or (QUICK_CASES if options.quick else CASES)
    size = QUICK if options.quick else Size()
    return machine.report(lambda: measure_all(size, set(only.split(","))), "table.md")


def measure_all(size: Size, only: set[str]) -> str:
    """Run those cases, one after the other."""
    limit = machine.open_files()
    say("setting up: a virtual environment with the other providers, once")
    machine.install()
    home = HOME / "airflow"
    shutil.rmtree(home, ignore_errors=True)
    (home / "dags").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        say("setting up: Postgres, Airflow's tables, the sandbox")
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": stack.enter_context(machine.postgres()),
            "AIRFLOW__TRIGGERER__CAPACITY": str(size.many + 1_000),
            "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": "500",
            "PYTHONPATH": str(HERE),
            "PYTHONUNBUFFERED": "1",
        }
        machine.run([str(PYTHON), "-m", "airflow", "db", "migrate"], env)
        vendor = stack.enter_context(Helper([str(PYTHON), str(HERE / "vendor.py")], env=env, log=LOG))
        bench = Bench(size, env, vendor)
        bench.connect(limit=LIMIT)
        bench.rows = stack.enter_context(Helper([str(PYTHON), str(HERE / "rows.py")], env=env, log=LOG))
        bench.rows.ask("prepare")
        readings: dict[str, Reading] = {}
        judged = 0.0
        try:
            judged = run_cases(bench, only, readings)
        except BenchError as error:
            # The figures so far are printed nevertheless.
            print(f"\n{error}", file=sys.stderr)
        stack.callback(shutil.rmtree, home, ignore_errors=True)
    return write_table(size, readings, judged, limit)


def run_cases(bench: Bench, only: set[str], readings: dict[str, Reading]) -> float:
    """Fill in the readings by their short names; return the seconds of judging a long history."""
    size = bench.size
    usual = (size.waits, size.interval, size.window)
    if "idle" in only:
        readings["idle"] = bench.measure("do-nothing waits", "nothing", *usual)
    if "floor" in only:
        bench.connect(limit=LIMIT)
        readings["floor"] = bench.floor()
    for kind, name in (("bare", "bare loop in the triggerer"), ("ours", "ours"), ("http", "deferrable HttpSensor")):
        if kind in only:
            bench.connect(limit=LIMIT)
            readings[kind] = bench.measure(name, kind, *usual, records=size.records)
    if "same" in only:
        bench.connect(limit=LIMIT)
        readings["same"] = bench.measure(
            "ours, all for one link", "same", size.waits, size.interval, max(4 * size.interval, size.window / 2)
        )
    if "many_idle" in only:
        readings["many_idle"] = bench.measure("do-nothing waits", "nothing", size.many, 5.0, size.window / 3)
    if "many" in only:
        readings["many"] = run_many(bench, "ours", "")
    if "many_rare" in only:
        readings["many_rare"] = run_many(bench, "ours, full collections made rare", RARE_COLLECTIONS)
    judged = 0.0
    if "history" in only:
        bench.connect(limit=LIMIT)
        bench.vendor.ask("history", link="bench-history", rows=HISTORY_ROWS)
        readings["history"] = bench.measure("ours, a long history", "history", 1, 1.0, 15.0)
        judged = bench.rows.ask("judge", rows=HISTORY_ROWS)
    return judged


def run_many(bench: Bench, name: str, local_settings: str) -> Reading:
    """Run the largest number of waits, against a slow sandbox."""
    size = bench.size
    bench.connect(limit=LARGE_LIMIT, remember=True)
    bench.vendor.ask("delay", seconds=VENDOR_SECONDS)
    with bench.local_settings(local_settings):
        return bench.measure(name, "ours", size.many, size.many_interval, size.many_window)


def write_table(size: Size, readings: dict[str, Reading], judged: float, limit: int) -> str:
    """Return both tables: the figures, and the goals."""
    idle, many_idle = readings.get("idle"), readings.get("many_idle")
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine.describe()}, everything on the one machine; "
        f"Airflow 3.3.2, Postgres, open-file limit {limit:,}, `[triggerer] capacity` {size.many + 1_000:,}."
    )
    head = (
        "| waits | CPU s for 1,000 polls | connections | KiB a wait | longest block; without Python's collector | "
        "delay: median, longest |"
    )
    lines = [measured, "", head, "|---|---|---|---|---|---|"]
    for name, reading in readings.items():
        own = name == "floor"
        base = many_idle if name in {"many", "many_rare"} else idle
        polls = f"{reading.per_poll(None if own else base):.2f}" if reading.polls and (own or base) else "—"
        memory = (
            f"{reading.per_wait(base):.1f}" if base and name in {"bare", "ours", "http", "many", "many_rare"} else "—"
        )
        block = f"{ms(reading.late)}; {ms(reading.late_without)}" if reading.late else "—"
        delay = f"{statistics.median(reading.delays):.1f} s, {max(reading.delays):.1f} s" if reading.delays else "—"
        label = f"{reading.name} ({reading.waits:,})"
        connections = f"{reading.connections:,}" if reading.polls else "—"
        lines.append(f"| {label} | {polls} | {connections} | {memory} | {block} | {delay} |")
    lines += ["", "| what | goal | measured |", "|---|---|---|"]
    lines += [f"| {what} | {goal} | {found} |" for what, goal, found in goals(size, readings, judged)]
    return "\n".join([*lines, "", "```", *(reading.raw for reading in readings.values()), "```"])


def goals(size: Size, readings: dict[str, Reading], judged: float) -> Iterator[tuple[str, str, str]]:
    """Yield each goal, and what was measured."""

    def verdict(met: bool, found: str) -> str:  # noqa: FBT001 - read as a sentence
        return found if met else f"{found}: **not met**"

    idle, ours = readings.get("idle"), readings.get("ours")
    if idle and ours:
        cost = ours.per_poll(idle)
        for name, where in (("floor", "in its own process"), ("bare", "in the triggerer")):
            if name in readings:
                ratio = cost / readings[name].per_poll(idle if name == "bare" else None)
                yield (
                    f"CPU per poll, against the bare loop {where}",
                    "at most 1.5 times",
                    verdict(ratio <= 1.5, f"{ratio:.2f} times"),
                )
        if "http" in readings:
            ratio = readings["http"].per_poll(idle) / cost
            yield (
                "CPU per poll, against the deferrable `HttpSensor`",
                "at least 6 times less",
                verdict(ratio >= 6, f"{ratio:.1f} times less"),
            )
        what = f"connections for {ours.waits:,} waits, a poll every {size.interval:g} s for {ours.seconds:.0f} s"
        yield what, f"at most {LIMIT}", verdict(ours.connections <= LIMIT, str(ours.connections))
    if (many := readings.get("many")) and (many_idle := readings.get("many_idle")):
        what = (
            f"{many.waits:,} waits, a poll every {size.many_interval:g} s, answers after 250 ms, {LARGE_LIMIT} at once"
        )
        longest = many.gaps["longest"]
        served = many.gaps["asked"] >= many.waits and longest <= size.many_interval + 5
        yield (
            f"{what}: all served",
            f"within {size.many_interval + 5:g} s",
            verdict(
                served,
                f"{int(many.gaps['asked']):,} of them, within {longest:.1f} s "
                f"({many.gaps['longest ever']:.1f} s with Airflow's loading of them)",
            ),
        )
        yield (
            "— the triggerer's CPU, Airflow's own part included",
            "under half a core",
            verdict(many.cores < 0.5, f"{many.cores:.2f} (Airflow's own: {many_idle.cores:.2f})"),
        )
        kib = many.per_wait(many_idle)
        yield "— memory above a do-nothing wait", "under 20 KiB a wait", verdict(kib < 20, f"{kib:.1f} KiB")
        rare = f"; full collections made rare: {ms(readings['many_rare'].late)}" if "many_rare" in readings else ""
        yield (
            "— longest block of the loop",
            "under 50 ms",
            verdict(
                many.late < 0.05,
                f"{ms(many.late)}, of which Python's garbage collector {ms(many.collecting)}; "
                f"without it {ms(many.late_without)}{rare}",
            ),
        )
    if same := readings.get("same"):
        one = same.seconds / size.interval
        yield (
            f"calls for {same.waits:,} waits for the same link in {same.seconds:.0f} s",
            f"{one:.0f}, those of one",
            (verdict(same.polls <= one + 1, str(same.polls))),
        )
    if history := readings.get("history"):
        yield (
            f"a history of {HISTORY_ROWS:,} rows in one answer",
            "judged in under 1 s",
            verdict(judged < 1, f"{judged:.2f} s"),
        )
        yield (
            "— longest block of the loop meanwhile",
            "under 50 ms",
            verdict(history.late < 0.05, f"{ms(history.late)}; without the collector {ms(history.late_without)}"),
        )


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{1000 * seconds:.0f} ms"


def watched() -> list[dict[str, float]]:
    """Return the lines that the watch in the triggerer has written."""
    return [json.loads(line) for line in WATCH.read_text(encoding="utf-8").splitlines()]


def pause(what: str, seconds: float) -> None:
    """Sleep, and print the time left every 20 seconds."""
    until = time.monotonic() + seconds
    say(f"{what}, for {seconds:.0f} s")
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 20.0))
        if left > 21:
            say(f"{what}, {left - 20:.0f} s to go")


def say(what: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
