"""Compares two builds of this package: CPU of a poll, and memory of an open wait. It prints ratios, not goals.

    python benchmarks/compare.py --base DIR [--new DIR] [--quick]

DIR is another checkout, such as a `git worktree`. Both builds run in the environment of this Python, in turns, against
the same sandbox. Each measurement is a new process that runs many deferred history waits, which share one poller.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import machine
from machine import HERE, HOME, LOG, ROOT, BenchError
from talk import Helper
from waits import LIMIT, connection, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Rows in the history of each link: each poll has something to read.
ROWS: Final = 3


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    waits: int = 2_000
    interval: float = 10.0
    windows: int = 3
    # A whole interval: the waits poll in a burst, and a shorter window may have no poll in it.
    seconds: float = 10.0
    rounds: int = 6


QUICK: Final = Size(waits=200, interval=2.0, windows=3, seconds=2.0, rounds=2)


@dataclass(frozen=True)
class Reading:
    """One measurement: microseconds of CPU per poll, the median of its windows, and KiB per wait."""

    cpu: float
    memory: float


class Comparison:
    """The sandbox, and one measured process at a time."""

    def __init__(self, size: Size, vendor: Helper, env: dict[str, str]) -> None:
        self.size = size
        self.vendor = vendor
        self.env = env

    def measure(self, checkout: Path, kind: str = "ours") -> Reading:
        """Run the waits of a checkout in a new process; ``nothing`` runs waits that do nothing, without polls."""
        size = self.size
        with waits_of(checkout, sys.executable, self._start_vendor()) as waits:
            # The first wait loads what all share.
            waits.ask("open", kind=kind, first=0, waits=1, interval=size.interval)
            self._wait_for_polls(kind, 1)
            before = self._memory(waits)
            waits.ask("open", kind=kind, first=1, waits=size.waits - 1, interval=size.interval)
            self._wait_for_polls(kind, size.waits)
            time.sleep(size.interval if kind == "ours" else 1.0)
            costs = [self._cost_of_a_poll(waits) for _ in range(size.windows if kind == "ours" else 0)]
            memory = self._memory(waits) - before
            if ended := waits.ask("ended"):
                raise BenchError(f"{ended} waits have ended; see {LOG}")
        return Reading(statistics.median(costs or [0.0]), memory / 1024 / (size.waits - 1))

    def _cost_of_a_poll(self, waits: Helper) -> float:
        cpu, polls = waits.ask("cpu"), self._polls()
        time.sleep(self.size.seconds)
        return float(1e6 * (waits.ask("cpu") - cpu) / (self._polls() - polls))

    def _start_vendor(self) -> dict[str, str]:
        vendor = self.vendor.ask("start")
        for number in range(self.size.waits):
            self.vendor.ask("history", link=f"bench-{number}", rows=ROWS)
        return self.env | {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": connection(vendor, LIMIT)}

    def _polls(self) -> int:
        return int(self.vendor.ask("counts")["polls"])

    def _wait_for_polls(self, kind: str, polls: int) -> None:
        if kind == "ours":
            machine.wait_until("all first polls", 300, lambda: self._polls() >= polls)

    @staticmethod
    def _memory(waits: Helper) -> int:
        waits.ask("collect")
        return machine.memory(waits.process.pid)


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    options = parse_options(__doc__)
    size = QUICK if options.quick else Size()
    return machine.report(lambda: compare(size, options.base.resolve(), options.new.resolve()))


def parse_options(description: str | None) -> argparse.Namespace:
    """Read the command line of a comparison of two builds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--new", type=Path, default=ROOT, metavar="DIR", help="the checkout to compare; this one")
    parser.add_argument(
        "--quick", action="store_true", help="small numbers: shows that it works, the figures mean little"
    )
    return parser.parse_args()


@contextlib.contextmanager
def waits_of(
    checkout: Path, python: Path | str, env: Mapping[str, str], script: str = "isolated_waits.py"
) -> Iterator[Helper]:
    """Run a process for waits of a checkout."""
    paths = {"PYTHONPATH": os.pathsep.join((str(checkout), str(HERE)))}
    command = [str(python), "-W", "ignore", str(HERE / script)]
    with Helper(command, env={**env, **paths}, log=LOG) as waits:
        if not Path(waits.ask("package")).is_relative_to(checkout):
            raise BenchError(f"{python} does not import the package from {checkout}")
        yield waits


def environment() -> dict[str, str]:
    """Return the environment of this process without settings of Airflow."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}


def compare(size: Size, base: Path, new: Path) -> str:
    """Measure both checkouts in turns, and return the table."""
    home = HOME / "compare"
    shutil.rmtree(home, ignore_errors=True)
    env = environment()
    readings: dict[str, list[Reading]] = {"base": [], "new": []}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        vendor_env = env | {"PYTHONPATH": str(ROOT)}
        vendor = stack.enter_context(Helper([sys.executable, str(HERE / "vendor.py")], env=vendor_env, log=LOG))
        comparison = Comparison(size, vendor, env | {"AIRFLOW_HOME": str(home)})
        least = comparison.measure(new, "nothing").memory
        # Not counted: the first measurement costs more than the next ones.
        comparison.measure(base)
        for number in range(size.rounds):
            # Each side is first in every other round.
            for name, checkout in (("base", base), ("new", new))[:: 1 if number % 2 else -1]:
                reading = comparison.measure(checkout)
                readings[name].append(reading)
                what = f"{reading.cpu:.0f} us of CPU per poll, {reading.memory:.1f} KiB per wait"
                say(f"round {number + 1} of {size.rounds}, {name}: {what}")
    what = f"{size.waits:,} waits, a poll every {size.interval:g} s"
    lines = [
        f"{what}, {size.rounds} rounds of {size.windows} times {size.seconds:g} s; {machine.describe()}",
        "",
        "| median of the rounds | base | new | new / base | of the lowest values | ratios of the rounds |",
        "|---|---|---|---|---|---|",
        row("CPU of a poll, us", readings, lambda reading: reading.cpu),
        row("memory of a wait, KiB", readings, lambda reading: reading.memory),
        row("— above a wait that does nothing, KiB", readings, lambda reading: reading.memory - least),
    ]
    return "\n".join(lines)


def row(name: str, readings: dict[str, list[Reading]], value: Callable[[Reading], float]) -> str:
    """Return a line of the table. Load on the machine only adds to a value: the lowest ones vary least."""
    base, new = ([value(reading) for reading in readings[side]] for side in ("base", "new"))
    ratios = [two / one for one, two in zip(base, new, strict=True)]
    middle = [statistics.median(values) for values in (base, new)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    ratio, lowest = middle[1] / middle[0], min(new) / min(base)
    return f"| {name} | {middle[0]:,.1f} | {middle[1]:,.1f} | {ratio:.3f} | {lowest:.3f} | {spread} |"


if __name__ == "__main__":
    sys.exit(main())
