"""Measures what waits for `transactions` cost where an entity has many: bytes, CPU, and the time of the end.

    python benchmarks/small_answers.py --base DIR [--new DIR] [--quick]

DIR is another checkout, such as a `git worktree` of the build before the small answers. Each build runs the deferred
waits of BankConnectProgressSensor in a process of its own, one after the other, against sandboxes of this checkout.
Each wait is for an entity of its own, so that no two waits share a poke. An entity has an old statement with many
transactions, and a second statement that completes at the end of the run; a wait ends when both are complete.

The peer is the http provider. Its `HttpSensor` does not defer where a `response_check` is given: it pokes on the
worker, and without one its trigger fires at the first answer that is no 404. Who wants the check in the triggerer
writes an operator that defers the provider's `HttpEventTrigger` with the path of an asynchronous check. That trigger
is measured. Its event holds the whole answer, and the rows are left to the operator.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import machine
from compare import environment, parse_options, waits_of
from machine import HERE, HOME, LOG, PYTHON, ROOT, BenchError
from talk import Helper
from waits import LIMIT, connection, http_connection, pause, say

if TYPE_CHECKING:
    from collections.abc import Iterator

# The sandbox keeps encoded answers of 64 MB in all, and an answer here has about 8 MB.
PER_SANDBOX: Final = 5
FEWER_BYTES: Final = 20
LESS_CPU: Final = 10
_MB: Final = 1e6


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    waits: int = 20
    interval: float = 2.0
    seconds: float = 120.0
    transactions: int = 20_000


QUICK: Final = Size(waits=4, seconds=20.0)


@dataclass(frozen=True)
class Reading:
    """The results of one build. ``ends`` are events by wait, ``delays`` the seconds from the completion to each."""

    name: str
    traffic: dict[str, int]
    cpu: float
    sandbox_cpu: float
    ends: list[dict[str, Any]]
    delays: list[float]

    @property
    def line(self) -> str:
        """A line of the table."""
        requests = ", ".join(f"{count:,} {call}" for call, count in self.traffic.items() if call != "bytes")
        states = ", ".join(sorted({str(end["status"]) for end in self.ends}))
        delay = f"{statistics.median(self.delays):.1f} s, {max(self.delays):.1f} s"
        return (
            f"| {self.name} | {requests} | {self.traffic['bytes'] / _MB:,.1f} | {self.cpu:.2f} | {states} | {delay} "
            f"| {self.sandbox_cpu:.1f} |"
        )


class Run:
    """The sandboxes, and one measured process at a time."""

    def __init__(self, size: Size, sandboxes: list[Helper], env: dict[str, str], home: Path) -> None:
        self.size = size
        self.sandboxes = sandboxes
        self.env = env
        self.home = home

    def measure(self, name: str, kind: str, checkout: Path) -> Reading:
        """Run the waits of a kind in a new process, from the first poke to the last event."""
        size = self.size
        env = self._start_sandboxes()
        with waits_of(checkout, PYTHON, env) as waits:
            self._load(waits, kind)
            before, cpu, sandbox_cpu = self._traffic(), waits.ask("cpu"), self._sandbox_cpu()
            say(f"{name}: {size.waits} waits, starting")
            until = time.monotonic() + size.seconds
            for number in range(size.waits):
                waits.ask("open", kind=kind, first=number, waits=1, interval=size.interval, **self._conn(kind, number))
                # Spread, as tasks of different runs are.
                time.sleep(size.interval / size.waits)
            pause(f"{name}: waiting", until - time.monotonic())
            completed = [sandbox.ask("complete") for sandbox in self.sandboxes]
            machine.wait_until("all ends", 120, lambda: waits.ask("ended") == size.waits + 1)
            cpu, sandbox_cpu = waits.ask("cpu") - cpu, self._sandbox_cpu() - sandbox_cpu
            results = waits.ask("results")
        if len(results) != size.waits + 1:
            raise BenchError(f"{name}: a wait has ended without an event; see {LOG}")
        ends = [results[str(number)] for number in range(size.waits)]
        delays = [end["at"] - completed[number // PER_SANDBOX] for number, end in enumerate(ends)]
        if min(delays) < 0:
            raise BenchError(f"{name}: a wait has ended before its statement was complete: {min(delays):.1f} s")
        traffic = {call: count - before.get(call, 0) for call, count in self._traffic().items()}
        traffic = {call: count for call, count in traffic.items() if count}
        reading = Reading(name, traffic, cpu, sandbox_cpu, ends, delays)
        say(f"{name}: {traffic['bytes'] / _MB:,.1f} MB, {cpu:.2f} CPU s")
        return reading

    def _start_sandboxes(self) -> dict[str, str]:
        env = dict(self.env)
        authorities = []
        for index, sandbox in enumerate(self.sandboxes):
            vendor = sandbox.ask("start")
            authorities.append(Path(vendor["ca_file"]).read_text(encoding="ascii"))
            env[f"AIRFLOW_CONN_BANKCONNECT_{index}"] = connection(vendor, LIMIT)
            env[f"AIRFLOW_CONN_HTTP_{index}"] = http_connection(vendor)
        # Connections of the http provider have no CA bundle.
        bundle = self.home / "authorities.pem"
        bundle.write_text("".join(authorities), encoding="ascii")
        return env | {"SSL_CERT_FILE": str(bundle)}

    def _load(self, waits: Helper, kind: str) -> None:
        """Add the entities, after one more wait that is over at once: it loads what all waits share."""
        size = self.size
        first = self.sandboxes[0]
        first.ask("entity", name=f"bench-{size.waits}", transactions=1)
        first.ask("complete")
        waits.ask("open", kind=kind, first=size.waits, waits=1, interval=size.interval, **self._conn(kind, 0))
        machine.wait_until("the first wait", 60, lambda: waits.ask("ended") == 1)
        for number in range(size.waits):
            sandbox = self.sandboxes[number // PER_SANDBOX]
            sandbox.ask("entity", name=f"bench-{number}", transactions=size.transactions)

    @staticmethod
    def _conn(kind: str, number: int) -> dict[str, str]:
        prefix = "http" if kind == "http" else "bankconnect"
        return {"conn_id": f"{prefix}_{number // PER_SANDBOX}"}

    def _traffic(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for sandbox in self.sandboxes:
            for what, count in sandbox.ask("traffic").items():
                total[what] = total.get(what, 0) + count
        return total

    def _sandbox_cpu(self) -> float:
        return machine.cpu([sandbox.process.pid for sandbox in self.sandboxes])


def main() -> int:
    """Measure, and print both tables; return 0 when it could be measured, whatever the figures."""
    options = parse_options(__doc__)
    size = QUICK if options.quick else Size()
    return machine.report(lambda: measure_all(size, options.base.resolve(), options.new.resolve()))


def measure_all(size: Size, base: Path, new: Path) -> str:
    """Measure both builds and the peer, and return the tables."""
    say("setting up: a virtual environment with the http provider, once")
    machine.install()
    home = HOME / "small_answers"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    env = environment() | {"AIRFLOW_HOME": str(home)}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        command = [str(PYTHON), str(HERE / "vendor.py")]
        sandbox_env = env | {"PYTHONPATH": str(ROOT)}
        sandboxes = [
            stack.enter_context(Helper(command, env=sandbox_env, log=LOG)) for _ in range(0, size.waits, PER_SANDBOX)
        ]
        for sandbox in sandboxes:
            sandbox.ask("count_bytes")
        run = Run(size, sandboxes, env, home)
        before = run.measure("the build before", "transactions", base)
        now = run.measure("this build", "transactions", new)
        peer = run.measure("`HttpEventTrigger` with a response check", "http", new)
    what = (
        f"{size.waits} deferred waits for {size.waits} entities with {size.transactions:,} transactions each, a poke "
        f"every {size.interval:g} s, {size.seconds:g} s; {len(sandboxes)} sandboxes; {machine.describe()}"
    )
    lines = [
        what if size != QUICK else f"{what}. The goals are those of the full run",
        "",
        "| waits | requests | MB received | CPU s | verdict | end: median, latest | CPU s of the sandboxes |",
        "|---|---|---|---|---|---|---|",
        *(reading.line for reading in (before, now, peer)),
        "",
        "| what | goal | measured |",
        "|---|---|---|",
        *goals(size, before, now),
        *ratios(now, peer),
    ]
    return "\n".join(lines)


def goals(size: Size, before: Reading, now: Reading) -> Iterator[str]:
    """Yield a line for each goal."""

    def line(what: str, goal: str, found: str, *, met: bool) -> str:
        return f"| {what} | {goal} | {found}{'' if met else ': **not met**'} |"

    fewer, less = _ratios(now, before)
    what = "bytes received, whole wait, against the build before"
    yield line(what, f"at least {FEWER_BYTES} times fewer", f"{fewer:.1f} times fewer", met=fewer >= FEWER_BYTES)
    what = "CPU seconds of the process with the waits, likewise"
    yield line(what, f"at least {LESS_CPU} times fewer", f"{less:.1f} times fewer", met=less >= LESS_CPU)
    same = sum(
        (one["status"], one["rows"]) == (two["status"], two["rows"])
        for one, two in zip(before.ends, now.ends, strict=True)
    )
    yield line("verdict and rows of each wait", "the same", f"{same} of {size.waits} the same", met=same == size.waits)
    # The phase of each wait's pokes is random: a single wait of one build can end an interval apart in two runs.
    middle, latest = (abs(of(before.delays) - of(now.delays)) for of in (statistics.median, max))
    goal = f"within one poke interval, {size.interval:g} s"
    found = f"medians {middle:.1f} s apart, the latest {latest:.1f} s"
    yield line("time of the end of the waits", goal, found, met=max(middle, latest) <= size.interval)


def ratios(now: Reading, peer: Reading) -> Iterator[str]:
    """Yield the lines about the peer, which have no goal."""
    fewer, less = _ratios(now, peer)
    yield f"| bytes received, against {peer.name} | — | {fewer:.1f} times fewer |"
    yield f"| CPU seconds, against {peer.name} | — | {less:.1f} times fewer |"


def _ratios(now: Reading, other: Reading) -> tuple[float, float]:
    return other.traffic["bytes"] / now.traffic["bytes"], other.cpu / now.cpu


if __name__ == "__main__":
    sys.exit(main())
