"""`make bench-relay`: webhooks through the relay into a real Airflow.

The relay is a process with its queue on SQLite. Airflow runs over HTTPS on Postgres, and the sandbox in a process of
its own. All files are in `.cache/bench`, and nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import load
import machine
import receiver
import requests
from live import Postgres, free_port
from machine import HERE, HOME, LOG, PYTHON
from receiver import TOKEN, Bench, Size, in_words, ms, pause, percentile, say
from talk import Helper

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTLE: Final = 10.0


@dataclass(frozen=True)
class Readings:
    """What was measured."""

    ends: list[float]
    answers: list[load.Answer] = field(default_factory=list)
    recorded: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class RelayBench(Bench):
    """An Airflow, whose webhooks go to a relay."""

    relay_url = ""

    def address(self, conn_id: str) -> str:
        """Return the webhook URL of a connection: the relay's."""
        return f"{self.relay_url}/bankconnect/webhook/{conn_id}/{TOKEN}"

    def recorded(self) -> tuple[list[load.Answer], dict[str, int], float]:
        """Send a burst; return the answers, what Airflow has recorded, and the seconds from the first to the last."""
        dag_id, uri, asked, headers = self._burst_requests("receiver", self.size.burst, 1)
        since = self.events.ask("latest", dag_id=dag_id, uri=uri)
        say(f"{len(asked):,} webhooks in {self.size.over:g} s, {self.size.in_flight} in flight")
        began = time.monotonic()
        answers = load.post(
            asked, over=self.size.over, in_flight=self.size.in_flight, ca_file=self.ca_file, headers=headers
        )
        say("all answered; waiting until Airflow has recorded them")
        seconds, counted = 0.0, {"events": 0}
        while counted["events"] < len(asked) and time.monotonic() - began < 300:
            counted = self.events.ask("served", since=since)
            seconds = time.monotonic() - began
            time.sleep(0.5)
        # A webhook that was recorded twice would come now.
        pause("settling", self.size.settle)
        return answers, self.events.ask("served", since=since), seconds


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers: shows that it works")
    parser.add_argument("--only", default="wait,burst", help="only these cases, of wait,burst")
    options = parser.parse_args()
    size = Size(burst=2_000, over=10.0, in_flight=50, single=20, settle=_SETTLE)
    if options.quick:
        size = Size(burst=200, over=1.0, in_flight=50, single=3, settle=3.0)
    return machine.report(lambda: write_table(size, measure(size, set(options.only.split(",")))), "relay.md")


def measure(size: Size, only: set[str]) -> Readings:
    """Run the cases, and return the figures."""
    say("setting up: a virtual environment, once")
    machine.install()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with Helper([str(PYTHON), str(HERE / "vendor.py")], env=env, log=LOG) as vendor:
        connection = vendor.ask("start", remember=True)
        with Postgres() as postgres, receiver.airflow(size, vendor, connection, postgres.url) as plain:
            bench = RelayBench(size, plain.live, vendor, plain.events, plain.ca_file)
            with relay(bench) as bench.relay_url:
                pause("settling", size.settle)
                # The first webhook, and the first request of a worker, take this Airflow longer than all later ones.
                bench.webhook("bench_burst", bench._body("first"))  # noqa: SLF001 - of its base
                requests.get(f"{bench.live.url}/execution/health", verify=bench.ca_file, timeout=300)
                ends = bench.wait()[1] if "wait" in only else []
                pause("settling", size.settle)
                return Readings(ends, *(bench.recorded() if "burst" in only else ()))


@contextlib.contextmanager
def relay(bench: Bench) -> Iterator[str]:
    """Run a relay for the ``with`` block; yield its address."""
    home = HOME / "relay"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    certificate, key = bench.vendor.ask("certificate", folder=str(home))
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW__API__SSL_CA_FILE": bench.ca_file,
        "AIRFLOW__BANKCONNECT__API_SERVER_URL": bench.live.url,
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
        "BANKCONNECT_RELAY_DATABASE": f"sqlite:///{home / 'queue.db'}",
    }
    command = [str(PYTHON), "-m", "airflow_provider_bankconnect", "relay", "--host", "localhost", "--port", str(port)]
    with machine.process([*command, "--certificate", certificate, "--key", key], env, end=signal.SIGTERM):
        url = f"https://localhost:{port}"

        def is_up() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"{url}/health", verify=bench.ca_file, timeout=5).ok
            return False

        machine.wait_until("the relay", 60, is_up)
        yield url


def write_table(size: Size, readings: Readings) -> str:
    """Return the table of the goals, and the figures."""
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine.describe()}, everything on the one machine: Airflow 3.3.2 "
        "on Postgres without fsync, one API server process over HTTPS, the relay over HTTPS, the sandbox, the client."
    )
    lines = [
        measured,
        "",
        "| what | goal | measured |",
        "|---|---|---|",
    ]
    for what, goal, met, found in (*of_burst(size, readings), *of_waits(readings)):
        lines.append(f"| {what} | {goal} | {found}{'' if met else ': **not met**'} |")
    if answers := [answer.seconds for answer in readings.answers]:
        lines += ["", f"Median answer {ms(percentile(answers, 50))}, longest {ms(max(answers))}."]
    return "\n".join([*lines, "", f"Load average of the last minute: {os.getloadavg()[0]:.1f}."])


def of_burst(size: Size, readings: Readings) -> Iterator[tuple[str, str, bool, str]]:
    """Yield each goal of the burst, whether it is met, and what was measured."""
    if not (answers := readings.answers):
        return
    recorded, statuses = readings.recorded, receiver.Burst("", size.burst, answers, 0.0, {}).statuses
    what = f"{size.burst:,} webhooks in {size.over:g} s, {size.in_flight} at a time, queue on SQLite"
    yield what, "all 200", statuses[200] == size.burst, in_words(statuses)
    late = percentile([answer.seconds for answer in answers], 99)
    yield "— p99 of the answer", "under 200 ms", late < 0.2, ms(late)
    is_all = recorded["customers"] == size.burst
    yield "— all recorded in Airflow", "within 60 s", is_all and readings.seconds < 60, f"{readings.seconds:.1f} s"
    once = f"{recorded['events']:,} events of {recorded['customers']:,} customers"
    yield "— none twice", "0", recorded["events"] == recorded["customers"], once


def of_waits(readings: Readings) -> Iterator[tuple[str, str, bool, str]]:
    """Yield the goal of the waits, whether it is met, and what was measured."""
    if not (ends := readings.ends):
        return
    middle = statistics.median(ends)
    found = f"median {middle:.2f} s, p90 {percentile(ends, 90):.2f} s ({len(ends)})"
    yield "webhook to the end of an open wait, through the relay", "median under 3 s", middle < 3, found


if __name__ == "__main__":
    sys.exit(main())
