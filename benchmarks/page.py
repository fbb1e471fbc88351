"""`make bench-page`: the page beside Airflow's own list of asset events, and what it costs the webhook receiver.

An API server on PostgreSQL with 100,000 webhook events, 10,000 open waits and 100,000 rows of the audit log. All files
are in `.cache/bench`, and nothing is left running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import certifi
import load
import machine
from live import Live, LiveError, Postgres
from machine import HERE, HOME, LOG, PYTHON, ROOT, BenchError

TOKEN: Final = "benchmark-token-0123456789"  # noqa: S105 - of an Airflow that runs for minutes, on loopback
DAGS: Final = ("bankconnect_on_webhook", "bankconnect_wait_for_statement")
PAGE: Final = "/bankconnect-ui/"
PEER: Final = "/api/v2/assets/events?limit=50"
GOALS: Final = {"p95": 0.3, "faster": 2.0, "receiver": 1.1, "queries": 20}
READERS: Final = 3
# Somebody who has the page open loads it again this often, in seconds.
RELOAD: Final = 5.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    events: int
    waits: int
    audit: int
    rounds: int
    seconds: float
    burst: int


FULL: Final = Size(events=100_000, waits=10_000, audit=100_000, rounds=4, seconds=20.0, burst=600)
QUICK: Final = Size(events=20_000, waits=2_000, audit=20_000, rounds=1, seconds=8.0, burst=200)


def main() -> int:
    """Measure, and print a table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows, and one round")
    size = QUICK if parser.parse_args().quick else FULL
    HOME.mkdir(parents=True, exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    try:
        say("setting up the virtual environment")
        machine.install()
        return measure(size)
    except (BenchError, LiveError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def measure(size: Size) -> int:
    """Run one Airflow, and measure."""
    home = HOME / "page"
    shutil.rmtree(home, ignore_errors=True)
    (home / "dags").mkdir(parents=True)
    for name in DAGS:
        shutil.copy(ROOT / "dags" / f"{name}.py", home / "dags")
    settings = {"AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN, "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False"}
    with (
        Postgres() as postgres,
        Live(home / "airflow", home / "dags", database=postgres.url, settings=settings, python=str(PYTHON)) as live,
    ):
        say("creating the database")
        live.airflow("db", "migrate")
        live.airflow("dags", "reserialize")
        say(f"adding {size.events:,} webhook events with a run each, and {size.waits:,} open waits")
        what = {"events": size.events, "waits": size.waits, "audit": size.audit, "span_hours": 720.0}
        run(live, str(ROOT / "tests" / "browser" / "many_customers.py"), json.dumps(what))
        plans_file = HOME / "page-plans.txt"
        plans_file.unlink(missing_ok=True)
        plans = json.loads(run(live, str(HERE / "page_plans.py"), str(plans_file)))
        live.start("api-server")
        live.wait_until_up()
        headers = {"Authorization": f"Bearer {live.token()}"}
        say("a first request each")
        gets(live, [PAGE, PEER, PAGE, PEER], 2.0, headers)
        times: dict[str, list[float]] = {PAGE: [], PEER: []}
        for number in range(size.rounds):
            for path in (PAGE, PEER) if number % 2 == 0 else (PEER, PAGE):
                say(f"{path}: 5 requests a second for {size.seconds:.0f} s")
                times[path] += gets(live, [path] * int(5 * size.seconds), size.seconds, headers)
        bursts: dict[int, list[float]] = {0: [], READERS: []}
        for number in range(2 * size.rounds):
            readers = (0, READERS)[number % 2]
            say(f"{size.burst} webhooks in {size.burst / 40:.0f} s, {readers} people with the page open")
            bursts[readers] += burst(live, size, number, readers, headers)
    return report(plans, times, bursts, str(plans_file))


def gets(live: Live, paths: list[str], over: float, headers: dict[str, str]) -> list[float]:
    """Send GETs evenly over so many seconds, and return the seconds of each, from when it was due."""

    async def all_of_them() -> list[float]:
        began = time.monotonic()
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:

            async def one(number: int, path: str) -> float:
                due = began + over * number / len(paths)
                await asyncio.sleep(due - time.monotonic())
                async with session.get(f"{live.url}{path}") as answer:
                    body = await answer.read()
                if answer.status != 200 or b"cannot be shown" in body or b"has not answered" in body:
                    raise BenchError(f"{path} answers {answer.status}: {body[:500]!r}")
                return time.monotonic() - due

            return await asyncio.gather(*(one(number, path) for number, path in enumerate(paths)))

    return asyncio.run(all_of_them())


def burst(live: Live, size: Size, number: int, readers: int, headers: dict[str, str]) -> list[float]:
    """Send webhooks while so many people load the page now and then; return the seconds of each webhook."""
    over = size.burst / 40
    paths = [PAGE] * int(readers * over / RELOAD)
    reading = threading.Thread(target=gets, args=(live, paths, over, headers)) if paths else None
    ids = [f"burst-{number}-{one}" for one in range(size.burst)]
    usual = {"statement_id": "s", "progress": "completed", "reason": ""}
    url = f"{live.url}/bankconnect/webhook/bankconnect_default/{TOKEN}"
    bodies = [(url, {"entity_id": f"e-{one}", "link_id": one} | usual) for one in ids]
    if reading:
        reading.start()
    answers = load.post(bodies, over=over, in_flight=50, ca_file=certifi.where())
    if reading:
        reading.join()
    if (statuses := {answer.status for answer in answers}) != {200}:
        raise BenchError(f"The webhook receiver answers {statuses}")
    return [answer.seconds for answer in answers]


def run(live: Live, *arguments: str) -> str:
    """Run Python in the environment of the Airflow, and return its output."""
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", *arguments], env=live.environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout[done.stdout.rfind("\n[{") + 1 :] if "\n[{" in done.stdout else done.stdout


def report(
    plans: list[dict[str, Any]], times: dict[str, list[float]], bursts: dict[int, list[float]], file: str
) -> int:
    """Print the results; return 1 if a goal is missed."""
    first = [one for one in plans if one["part"] in {"health", "webhooks", "waits"}]
    page, peer = (p(times[path], 95) for path in (PAGE, PEER))
    alone, beside = p(bursts[0], 99), p(bursts[READERS], 99)
    scanned = sorted({f"{one['part']}: {table}" for one in plans for table in one["scanned"]})
    rows = [
        ("queries of the first answer", f"{len(first)}", len(first) <= GOALS["queries"], f"at most {GOALS['queries']}"),
        ("large tables scanned", ", ".join(scanned) or "none", not scanned, "none"),
        ("page, p95 (p50)", f"{page:.3f} s ({p(times[PAGE], 50):.3f})", page < GOALS["p95"], f"under {GOALS['p95']} s"),
        ("peer, p95 (p50)", f"{peer:.3f} s ({p(times[PEER], 50):.3f})", True, ""),
        ("page faster than the peer", f"{peer / page:.1f} times", peer / page >= GOALS["faster"], "at least 2 times"),
        ("receiver, p99", f"{alone:.3f} s", True, ""),
        (f"receiver, p99, {READERS} people", f"{beside:.3f} s", True, ""),
        ("ratio", f"{beside / alone:.2f}", beside / alone <= GOALS["receiver"], f"at most {GOALS['receiver']}"),
    ]
    print()
    for one in first:
        print(f"{one['part']:<10} {one['milliseconds']:7.1f} ms  {' '.join(one['statement'].split())[:90]}")
    print()
    for name, value, is_met, goal in rows:
        print(f"{name:<32} {value:<26} {goal:<16} {'' if is_met else 'MISSED'}")
    print(f"\nPlans of all queries: {file}")
    return 0 if all(is_met for _, _, is_met, _ in rows) else 1


def p(values: list[float], share: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def say(text: str) -> None:
    """Print what is done now."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
