"""Measures what a new connection costs from time to time: CPU of a poke of one wait alone, 60 s apart, in two builds.

    python benchmarks/keep_alive.py --base DIR [--new DIR] [--quick]

DIR is another checkout, such as a `git worktree`. Both builds run in the environment of this Python, in turns, against
the same sandbox over TLS. The wait is that of a deferred sensor, and its time is simulated. One wait is the worst case:
many waits share their connections, and a new one then serves hundreds of pokes. A third row shows pokes that all use a
new connection, as an idle limit below the poke interval would have it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import machine
from compare import environment, parse_options
from machine import HERE, HOME, LOG, ROOT, BenchError
from talk import Helper
from waits import LIMIT, connection, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GOAL: Final = 1.3
INTERVAL: Final = 60.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 40


QUICK: Final = Size(rounds=2)


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    options = parse_options(__doc__)
    size = QUICK if options.quick else Size()
    return machine.report(lambda: compare(size, options.base.resolve(), options.new.resolve()))


@contextmanager
def pokes_of(checkout: Path, env: Mapping[str, str]) -> Iterator[Helper]:
    """Run a process for the pokes of a checkout."""
    paths = {"PYTHONPATH": os.pathsep.join((str(checkout), str(HERE)))}
    with Helper([sys.executable, "-W", "ignore", str(HERE / "lonely_pokes.py")], env={**env, **paths}, log=LOG) as made:
        if not Path(made.ask("package")).is_relative_to(checkout):
            raise BenchError(f"{sys.executable} does not import the package from {checkout}")
        yield made


def compare(size: Size, base: Path, new: Path) -> str:
    """Measure both checkouts in turns, and return the table."""
    home = HOME / "keep_alive"
    shutil.rmtree(home, ignore_errors=True)
    env = environment() | {"AIRFLOW_HOME": str(home)}
    found: dict[str, list[float]] = {"the build before": [], "this build": [], "each poke on a new connection": []}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        vendor_env = env | {"PYTHONPATH": str(ROOT)}
        vendor = stack.enter_context(Helper([sys.executable, str(HERE / "vendor.py")], env=vendor_env, log=LOG))
        env["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = connection(vendor.ask("start", remember=True), LIMIT)
        vendor.ask("history", link="bench-0", rows=3)
        builds = [stack.enter_context(pokes_of(checkout, env)) for checkout in (base, new)]
        for number in range(size.rounds):
            for name, build, anew in zip(found, (*builds, builds[1]), (False, False, True), strict=True):
                # It is no goal, and takes long.
                if anew and number % 5:
                    continue
                before = vendor.ask("counts")["connections"]
                pokes, cpu = build.ask("wait", interval=INTERVAL, anew=anew)
                made = vendor.ask("counts")["connections"] - before
                found[name].append(1e6 * cpu / pokes)
                what = f"{found[name][-1]:.0f} us for each of {pokes} pokes, {made} connections"
                say(f"round {number + 1} of {size.rounds}, {name}: {what}")
    middle = {name: statistics.median(values) for name, values in found.items()}
    # Load on the machine only adds to a value: the lowest ones vary least.
    lowest = {name: min(values) for name, values in found.items()}
    base_middle, base_lowest = middle["the build before"], lowest["the build before"]
    what = f"One wait of six hours in simulated time, a poke every {INTERVAL:g} s, {size.rounds} rounds"
    lines = [
        f"{what}; {machine.describe()}",
        "",
        "| pokes of | us of CPU per poke: median | lowest | against the build before: median | lowest | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name, cpu in lowest.items():
        goal, ratio = "—", cpu / base_lowest
        if name == "this build":
            goal = f"at most {GOAL} times" + ("" if ratio <= GOAL else ": **not met**")
        median = middle[name]
        lines.append(f"| {name} | {median:,.0f} | {cpu:,.0f} | {median / base_middle:.2f} | {ratio:.2f} | {goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
