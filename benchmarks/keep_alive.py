"""Measures what a new connection costs from time to time: CPU of a poke of one wait alone, 60 s apart, in two builds.

    python benchmarks/keep_alive.py --base DIR [--new DIR] [--quick]

DIR is another checkout, such as a `git worktree`. Both builds run in the environment of this Python, in turns, against
the same sandbox over TLS. The waits are those of deferred sensors, and their time is simulated. Many waits share their
connections, so that a new one serves many pokes; one wait alone is the worst case, and has rows of its own. The last
row shows pokes that all use a new connection, as an idle limit below the poke interval would have it.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import machine
from compare import environment, parse_options, waits_of
from machine import HERE, HOME, LOG, ROOT
from talk import Helper
from waits import LIMIT, connection, say

if TYPE_CHECKING:
    from pathlib import Path

GOAL: Final = 1.3
INTERVAL: Final = 60.0
MANY: Final = 10
BUILDS: Final = ("the build before", "this build")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 20


QUICK: Final = Size(rounds=2)


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    options = parse_options(__doc__)
    size = QUICK if options.quick else Size()
    return machine.report(lambda: compare(size, options.base.resolve(), options.new.resolve()))


def _row(kind: str, before: list[float], now: list[float]) -> str:
    # Load on the machine only adds to a value: the lowest ones vary least.
    middle = statistics.median(now) / statistics.median(before)
    figures = f"{statistics.median(before):,.0f} | {statistics.median(now):,.0f}"
    return f"| {kind} | {figures} | {middle:.2f} | {min(now) / min(before):.2f} |"


def compare(size: Size, base: Path, new: Path) -> str:
    """Measure both checkouts in turns, and return the table."""
    home = HOME / "keep_alive"
    shutil.rmtree(home, ignore_errors=True)
    env = environment() | {"AIRFLOW_HOME": str(home)}
    # What is measured: the waits, and whether each poke uses a new connection.
    kinds = {f"{MANY} waits": (MANY, False), "one wait": (1, False), "one wait, always a new connection": (1, True)}
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        vendor_env = env | {"PYTHONPATH": str(ROOT)}
        vendor = stack.enter_context(Helper([sys.executable, str(HERE / "vendor.py")], env=vendor_env, log=LOG))
        env["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = connection(vendor.ask("start", remember=True), LIMIT)
        for number in range(MANY):
            vendor.ask("history", link=f"bench-{number}", rows=3)
        builds = [
            stack.enter_context(waits_of(checkout, sys.executable, env, "lonely_pokes.py")) for checkout in (base, new)
        ]
        for number in range(size.rounds):
            for kind, (waits, anew) in kinds.items():
                for name, build in zip(BUILDS, builds, strict=True):
                    # It is no goal, and takes long.
                    if anew and (number % 5 or name == BUILDS[0]):
                        continue
                    before = vendor.ask("counts")["connections"]
                    pokes, cpu = build.ask("wait", interval=INTERVAL, waits=waits, anew=anew)
                    made = vendor.ask("counts")["connections"] - before
                    found.setdefault((kind, name), []).append(1e6 * cpu / pokes)
                    what = f"{1e6 * cpu / pokes:.0f} us for each of {pokes} pokes, {made} connections"
                    say(f"round {number + 1} of {size.rounds}, {kind}, {name}: {what}")
    what = f"Six hours in simulated time, a poke every {INTERVAL:g} s, {size.rounds} rounds"
    lines = [
        f"{what}; {machine.describe()}",
        "",
        "| pokes of | us of CPU per poke, median: before | now | now / before: median | of the lowest values |",
        "|---|---|---|---|---|",
        *(
            _row(kind, found[("one wait" if anew else kind), BUILDS[0]], found[kind, BUILDS[1]])
            for kind, (_, anew) in kinds.items()
        ),
        "",
        f"The goal is at most {GOAL} times.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
