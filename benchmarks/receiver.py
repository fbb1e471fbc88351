"""`make bench-receiver`: latency and throughput of the webhook receiver, compared with Airflow's own asset events.

It runs a whole Airflow over HTTPS, on Postgres and then on SQLite, and the sandbox in a process of its own. All files
are in `.cache/bench`, and nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import load
import machine
import requests
from live import PARTS, Live, LiveError, Postgres, family
from machine import HERE, HOME, LOG, PYTHON, ROOT, BenchError
from talk import Helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STARTED: Final = time.monotonic()
TOKEN: Final = "benchmark-token-0123456789"  # noqa: S105 - of an Airflow that runs for minutes, on loopback
# Postgres counts what an idle connection did after ten seconds.
COUNTED: Final = 12.0
DAGS: Final = (
    "bankconnect_on_webhook", "bench_wait", "bench_receiver", "bench_receiver_two", "bench_keyed", "bench_plain"
)  # fmt: skip
BURSTS: Final = ("bench_burst", "bench_burst_two")
CASES: Final = "poke,wait,receiver,keyed_few,plain_few,keyed,plain,again,again_keyed,wrong,workers,sqlite,sqlite_keyed"
QUICK_CASES: Final = "poke,wait,receiver,keyed_few,again,wrong,workers,sqlite"
FEW: Final = 10
ON_SQLITE: Final = {"sqlite", "sqlite_keyed"}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    single: int = 20
    old: int = 100_000
    burst: int = 1_000
    over: float = 10.0
    in_flight: int = 50
    again: int = 60
    together: int = 200
    afterwards: float = 60.0
    wrong: int = 10_000
    warm: int = 2_000
    settle: float = 10.0
    rounds: int = 3


QUICK: Final = Size(
    single=3,
    old=5_000,
    burst=100,
    over=1.0,
    again=10,
    together=40,
    afterwards=10.0,
    wrong=500,
    warm=100,
    settle=3.0,
    rounds=1,
)


@dataclass
class Burst:
    """Many POSTs, and their results."""

    name: str
    asked: int
    answers: list[load.Answer]
    took: float
    cpu: dict[str, float]
    served: dict[str, int] = field(default_factory=dict)
    served_after: float = 0.0
    health: dict[str, str] = field(default_factory=dict)

    @property
    def statuses(self) -> Counter[int]:
        """The number of answers of each status."""
        return Counter(answer.status for answer in self.answers)

    @property
    def is_all_200(self) -> bool:
        """Whether every answer was 200."""
        return self.statuses[200] == self.asked

    def percentile(self, share: float) -> float:
        """Return the seconds from sending to the answer that so many percent do not exceed."""
        return percentile([answer.seconds for answer in self.answers], share)

    @property
    def size(self) -> str:
        """The number of POSTs."""
        sent = len(self.answers)
        return f"{sent:,}" if sent == self.asked else f"{sent:,} of {self.asked:,}, then stopped"

    @property
    def raw(self) -> str:
        """All figures, in a line."""
        late = percentile([answer.since_due for answer in self.answers], 99)
        counts = ", ".join(f"{name} {value}" for name, value in (self.served | self.health).items())
        cpu = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.cpu.items())
        return (
            f"{self.name}: {self.size} POSTs in {self.took:.1f} s, {in_words(self.statuses)}, "
            f"p50 {self.percentile(50):.3f} s, p99 {self.percentile(99):.3f} s, longest {self.percentile(100):.3f} s, "
            f"p99 from when it was due {late:.3f} s; CPU s meanwhile: {cpu}; {counts}; "
            f"a run for each after {self.served_after:.1f} s"
        )


@dataclass
class Wrong:
    """Many POSTs with a wrong token."""

    statuses: Counter[int]
    took: float
    cpu: float
    transactions: int
    idle_transactions: int
    memory: list[int]
    memory_elsewhere: list[int]

    @property
    def raw(self) -> str:
        """All figures, in a line."""
        memory, elsewhere = (
            ", ".join(f"{size / 2**20:.1f}" for size in sizes) for sizes in (self.memory, self.memory_elsewhere)
        )
        return (
            f"wrong token: {in_words(self.statuses)} in {self.took:.1f} s, {self.cpu:.1f} CPU s, "
            f"{self.transactions} transactions, {self.idle_transactions} in the same time idle; MiB meanwhile: "
            f"{memory}; then with POSTs to an address that Airflow does not have: {elsewhere}"
        )


@dataclass
class Readings:
    """The results; empty where a case was not measured."""

    first: float = 0.0
    pokes: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    bursts: dict[str, Burst] = field(default_factory=dict)
    wrong: Wrong | None = None
    # Webhooks a second, of each round, by the number of connections and of API server processes.
    rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)


class Bench:
    """One Airflow, and the sandbox."""

    def __init__(self, size: Size, live: Live, vendor: Helper, events: Helper, ca_file: str) -> None:
        self.size = size
        self.live = live
        self.vendor = vendor
        self.events = events
        self.ca_file = ca_file
        self._bursts = 0

    def poke(self) -> list[float]:
        """Send a webhook for one new customer after the other; return the seconds until the first poke of each run.

        There is one more than was asked for: the first webhook that this Airflow receives at all.
        """
        found = []
        for number in range(1 + self.size.single):
            name = f"poke-{number}"
            body = self.vendor.ask("customer", name=name)
            sent = time.monotonic()
            self.webhook("bankconnect_default", body)
            self.live.wait_until(
                f"the run for {name} pokes", lambda name=name: self.vendor.ask("first_poke", name=name)
            )
            found.append(self.vendor.ask("first_poke", name=name) - sent)
            # The next one is to find the machine idle.
            self.live.wait_until(f"the run for {name} is over", lambda: self._runs_are_over("bankconnect_on_webhook"))
            say(f"POST to the first poke: {found[-1]:.2f} s")
        return found

    def wait(self) -> tuple[list[float], list[float]]:
        """Send webhooks for open waits, one by one; return the seconds until each event, and each task's end."""
        names = [f"wait-{number}" for number in range(self.size.single)]
        runs = {}
        for name in names:
            conf = {"logical_date": None, "conf": {"link_id": name}}
            runs[name] = self.live.api("POST", "dags/bench_wait/dagRuns", json=conf)["dag_run_id"]
        say(f"{len(names)} waits, starting")
        self.live.wait_until("all waits are open", lambda: self._waits() == {"deferred": len(names)}, 300)
        # No event wakes a wait in its first five seconds.
        time.sleep(max(6.0, self.size.settle))
        events, ends = [], []
        for name in names:
            body = self.vendor.ask("customer", name=name)
            sent = time.time()
            self.webhook("bench_waits", body)

            def over(run_id: str = runs[name]) -> dict[str, float] | None:
                return self.events.ask("wait_of", dag_id="bench_wait", run_id=run_id)  # type: ignore[no-any-return]

            self.live.wait_until(f"the wait {name} is over", over)
            times = over()
            assert times  # noqa: S101 - it was just waited for
            events.append(times["event"] - sent)
            ends.append(times["end"] - sent)
            say(f"POST to the end of an open wait: its event {events[-1]:.2f} s, its task {ends[-1]:.2f} s")
            time.sleep(1.0)
        return events, ends

    def burst(self, how: str, name: str, *, count: int, over: float, in_flight: int, times: int = 1) -> Burst:
        """Send webhooks for so many customers, and wait until there are runs for them, or no more come.

        :param how: ``receiver``, or Airflow's own asset events: ``keyed`` with a partition key, or ``plain``.
        :param times: statements of each customer, all customers' first ones first.
        """
        dag_id, uri, asked, headers = self._burst_requests(how, count, times)
        since = self.events.ask("latest", dag_id=dag_id, uri=uri)
        say(f"{name}: {len(asked):,} POSTs in {over:g} s, {in_flight} in flight")
        before, began = self.cpu(), time.monotonic()
        answers = load.post(asked, over=over, in_flight=in_flight, ca_file=self.ca_file, headers=headers)
        took = time.monotonic() - began
        after = self.cpu()
        result = Burst(name, len(asked), answers, took, {part: after[part] - before[part] for part in before})
        self._wait_for_runs(result, since, began, count)
        say(result.raw)
        if not result.is_all_200:
            # The next case is to find it sound.
            self.live.stop("api-server")
            self.live.start("api-server")
            self.live.wait_until_up()
        return result

    def rates(self) -> dict[tuple[int, int], list[float]]:
        """Send webhooks as fast as they are answered, to one API server process and to two in turns.

        Return the recorded webhooks a second of each round, by the number of connections and of processes. Nothing else
        of Airflow runs.
        """
        self.live.stop("scheduler", "dag-processor", "triggerer")
        found: dict[tuple[int, int], list[float]] = {(many, count): [] for many in (1, 2) for count in (1, 2)}
        for processes in (1, 2) * self.size.rounds:
            self.live.stop("api-server")
            self.live.environment["AIRFLOW__API__WORKERS"] = str(processes)
            self.live.start("api-server")
            self.live.wait_until_up()
            self._send(BURSTS, self.size.burst // 5)
            for connections in (1, 2):
                pause("settling", self.size.settle)
                rate = self._send(BURSTS[:connections], self.size.burst)
                found[connections, processes].append(rate)
                say(f"connections: {connections}; API server processes: {processes}; {rate:.0f} webhooks a second")
        return found

    def _send(self, conn_ids: Sequence[str], count: int) -> float:
        """Send webhooks as fast as they are answered; return how many were recorded a second."""
        uris = [f"bankconnect://webhook/{conn_id}" for conn_id in conn_ids]
        since = [self.events.ask("latest", dag_id="bench_receiver", uri=uri) for uri in uris]
        self._bursts += 1
        asked = [
            (self.address(conn_ids[number % len(conn_ids)]), self._body(f"burst-{self._bursts}-{number}"))
            for number in range(count)
        ]
        began = time.monotonic()
        answers = load.post(asked, over=0, in_flight=self.size.in_flight, ca_file=self.ca_file)
        took = time.monotonic() - began
        recorded = sum(self.events.ask("served", since=one)["customers"] for one in since)
        if recorded != count or {answer.status for answer in answers} != {200}:
            statuses = in_words(Counter(answer.status for answer in answers))
            raise BenchError(f"{recorded:,} of {count:,} webhooks were recorded: {statuses}")
        return float(count / took)

    def wrong(self) -> Wrong:
        """Send webhooks with wrong tokens to an Airflow that has nothing else to do."""
        self.live.stop("scheduler", "dag-processor", "triggerer")
        self.events.ask("quiet")
        body = self._body("wrong")
        wrong = self._in_steps(f"{self.live.url}/bankconnect/webhook/bench_burst/wrong-token-", body, self.size.wrong)
        say("wrong token: a few first, so that everything is loaded")
        for _ in self._in_steps(f"{self.live.url}/bankconnect/webhook/bench_burst/wrong-first-", body, self.size.warm):
            pass
        pause("Postgres counts", COUNTED)
        say(f"wrong token: {self.size.wrong:,} POSTs")
        counted, cpu, began = self.events.ask("transactions"), self.cpu()["api-server"], time.monotonic()
        memory, statuses = [self.memory()], Counter[int]()
        for answers in wrong:
            statuses.update(answer.status for answer in answers)
            memory.append(self.memory())
        took, cpu = time.monotonic() - began, self.cpu()["api-server"] - cpu
        pause("Postgres counts", COUNTED)
        counted_after = self.events.ask("transactions")
        pause("as long again, idle", took + COUNTED)
        idle = self.events.ask("transactions") - counted_after
        say("as many POSTs to another address")
        elsewhere = [self.memory()]
        elsewhere += [self.memory() for _ in self._in_steps(f"{self.live.url}/api/v2/nothing/", body, self.size.wrong)]
        result = Wrong(statuses, took, cpu, counted_after - counted, idle, memory, elsewhere)
        say(result.raw)
        return result

    def health(self, burst: Burst) -> None:
        """Check, some time later, which parts of Airflow still run."""
        pause(f"{burst.name}: which parts of Airflow run", self.size.afterwards)
        for part in PARTS:
            code = self.live.parts[part].poll()
            burst.health[part] = "runs" if code is None else f"ended with {code}"
        with contextlib.suppress(requests.RequestException):
            for part, health in self.live.api("GET", "monitor/health").items():
                burst.health[f"{part}'s health"] = health["status"]
        say(burst.raw)

    def webhook(self, conn_id: str, body: dict[str, Any]) -> None:
        """Send a webhook as BankConnect does: each over a new TCP connection."""
        answer = requests.post(self.address(conn_id), json=body, verify=self.ca_file, timeout=30)
        if answer.status_code != 200:
            raise BenchError(f"The webhook receiver answers {answer.status_code}: {answer.text[:300]}")

    def address(self, conn_id: str) -> str:
        """Return the webhook URL of a connection."""
        return f"{self.live.url}/bankconnect/webhook/{conn_id}/{TOKEN}"

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds of each part so far."""
        return {part: machine.cpu(family(process.pid)) for part, process in self.live.parts.items()}

    def memory(self) -> int:
        """Return the resident bytes of the API server."""
        return max(map(machine.memory, family(self.live.parts["api-server"].pid)))

    def _in_steps(self, address: str, body: object, count: int) -> Iterator[list[load.Answer]]:
        step = max(1, count // 5)
        for first in range(0, count, step):
            asked = [(f"{address}{number:08}", body) for number in range(first, min(count, first + step))]
            yield load.post(asked, over=0, in_flight=self.size.in_flight, ca_file=self.ca_file)

    def _burst_requests(
        self, how: str, count: int, times: int
    ) -> tuple[str, str, list[tuple[str, object]], dict[str, str]]:
        self._bursts += 1
        bodies = [
            self._body(f"burst-{self._bursts}-{number}", statement=f"s-{time}")
            for time in range(times)
            for number in range(count)
        ]
        if how == "receiver":
            url = self.address("bench_burst")
            return "bench_receiver", "bankconnect://webhook/bench_burst", [(url, body) for body in bodies], {}
        uri = f"bench://own/{how}"
        asset_id = self.events.ask("asset_id", uri=uri)
        url = f"{self.live.url}/api/v2/assets/events"
        keys = [{"partition_key": f"link:{body['link_id']}"} if how == "keyed" else {} for body in bodies]
        asked: list[tuple[str, object]] = [
            (url, {"asset_id": asset_id, "extra": body} | key) for body, key in zip(bodies, keys, strict=True)
        ]
        return f"bench_{how}", uri, asked, {"Authorization": f"Bearer {self.live.token()}"}

    @staticmethod
    def _body(name: str, statement: str = "s") -> dict[str, str]:
        ids = {"entity_id": f"e-{name}", "statement_id": statement, "link_id": name}
        return ids | {"progress": "completed", "reason": ""}

    def _wait_for_runs(self, burst: Burst, since: dict[str, Any], began: float, customers: int) -> None:
        last_change, seen = time.monotonic(), (0, 0)
        while time.monotonic() - last_change < 30:
            burst.served = self.events.ask("served", since=since)
            now = time.monotonic()
            if seen != (seen := (burst.served["served"], burst.served["stranded"])):
                last_change, burst.served_after = now, now - began
            if seen == (customers, 0):
                break
            time.sleep(0.5)
        say(f"{burst.name}: runs for {seen[0]} customers after {burst.served_after:.1f} s; waiting until they are over")
        with contextlib.suppress(LiveError):
            self.live.wait_until("the runs are over", lambda: not self.events.ask("served", since=since)["going"], 900)

    def _waits(self) -> dict[str, int]:
        return self.events.ask("waits", dag_id="bench_wait")  # type: ignore[no-any-return]

    def _runs_are_over(self, dag_id: str) -> bool:
        return all(run["state"] in {"success", "failed"} for run in self.live.runs(dag_id))


def main() -> int:
    """Measure, and print the table; return 0 when it could be measured, whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="small numbers: shows that it works, the figures mean little"
    )
    parser.add_argument("--only", default="", help=f"only these cases, of {CASES}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    HOME.mkdir(parents=True, exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    readings, size = Readings(), QUICK if options.quick else Size()
    try:
        only = options.only or (QUICK_CASES if options.quick else CASES)
        measure_all(size, set(only.split(",")), readings)
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.")
        return 130
    except (BenchError, LiveError, requests.RequestException) as error:
        # The figures so far are printed nevertheless.
        print(f"\n{error}", file=sys.stderr)
    table = write_table(size, readings)
    print(f"\n{table}")
    (HOME / "receiver.md").write_text(table + "\n", encoding="utf-8")
    return 0


def measure_all(size: Size, only: set[str], readings: Readings) -> None:
    """Run those cases, one after the other."""
    say("setting up: a virtual environment, once")
    machine.install()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with Helper([str(PYTHON), str(HERE / "vendor.py")], env=env, log=LOG) as vendor:
        connection = vendor.ask("start", remember=True)
        if only - ON_SQLITE:
            with Postgres() as postgres, airflow(size, vendor, connection, postgres.url) as bench:
                on_postgres(bench, only, readings)
        if only & ON_SQLITE:
            with airflow(size, vendor, connection, None) as bench:
                on_sqlite(bench, only, readings)


def on_postgres(bench: Bench, only: set[str], readings: Readings) -> None:
    """Run the cases that need Postgres and many old customers."""
    size = bench.size
    say(f"adding {size.old:,} old customers")
    bench.events.ask("fill", dag_id="bench_receiver", uri="bankconnect://webhook/bench_burst", rows=size.old)
    pause("settling", size.settle)
    if "poke" in only:
        readings.first, *readings.pokes = bench.poke()
    if "wait" in only:
        readings.events, readings.ends = bench.wait()
    spread = {"over": size.over, "in_flight": size.in_flight}
    # Fewer than the API server has connections to the database.
    few = {"over": size.over, "in_flight": FEW}
    thrice = {"over": size.again / 10, "in_flight": FEW, "times": 3}
    for case, how, name, count, more in (
        ("receiver", "receiver", "the webhook receiver", size.burst, spread),
        ("keyed_few", "keyed", f"Airflow's own, with a partition key, {FEW} in flight", size.burst, few),
        ("plain_few", "plain", f"Airflow's own, plain, {FEW} in flight", size.burst, few),
        ("keyed", "keyed", "Airflow's own, with a partition key", size.burst, spread),
        ("plain", "plain", "Airflow's own, plain", size.burst, spread),
        ("again", "receiver", "the webhook receiver, three statements of each customer", size.again, thrice),
        ("again_keyed", "keyed", "Airflow's own with a key, three of each customer", size.again, thrice),
    ):
        if case in only:
            pause("settling", size.settle)
            readings.bursts[case] = bench.burst(how, name, count=count, **more)
    if "wrong" in only:
        readings.wrong = bench.wrong()
    if "workers" in only:
        readings.rates = bench.rates()


def on_sqlite(bench: Bench, only: set[str], readings: Readings) -> None:
    """Run the cases on SQLite: many POSTs at once."""
    count = bench.size.together
    for case, how, name in (
        ("sqlite", "receiver", "the webhook receiver, SQLite, all at once"),
        ("sqlite_keyed", "keyed", "Airflow's own, with a partition key, SQLite, all at once"),
    ):
        if case in only:
            pause("settling", bench.size.settle)
            readings.bursts[case] = bench.burst(how, name, count=count, over=0.0, in_flight=count)
            bench.health(readings.bursts[case])


@contextlib.contextmanager
def airflow(size: Size, vendor: Helper, connection: dict[str, Any], database: str | None) -> Iterator[Bench]:
    """Run an Airflow with a webhook receiver for as long as the ``with`` lasts."""
    home, dags = HOME / "receiver", HOME / "receiver" / "dags"
    shutil.rmtree(home, ignore_errors=True)
    dags.mkdir(parents=True)
    for file in (ROOT / "dags" / "bankconnect_on_webhook.py", HERE / "receiver_dags.py"):
        shutil.copy(file, dags)
    ca_file = connection["ca_file"]
    ours = json.dumps({name: connection[name] for name in ("conn_type", "host", "password", "extra")})
    settings = {
        "AIRFLOW_CONN_BANKCONNECT_DEFAULT": ours,
        "AIRFLOW_CONN_BENCH_WAITS": ours,
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "PYTHONPATH": str(HERE),
    }
    certificate = tuple(map(Path, vendor.ask("certificate", folder=str(home))))
    say(f"setting up: Airflow on {'Postgres' if database else 'SQLite'}")
    with Live(
        home, dags, database=database, certificate=certificate, trust=ca_file, settings=settings, python=str(PYTHON)
    ) as live:
        live.airflow("db", "migrate")
        live.start()
        live.wait_until_up()
        live.wait_until_known(*DAGS)
        with Helper([str(PYTHON), str(HERE / "events.py")], env=live.environment, log=LOG) as events:
            yield Bench(size, live, vendor, events, ca_file)


def write_table(size: Size, readings: Readings) -> str:
    """Return the tables: the goals, the bursts side by side, and every figure."""
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine.describe()}, everything on the one machine: Airflow 3.3.2, "
        "one API server process over HTTPS, scheduler, triggerer, DAG processor, the sandbox and the client. Postgres "
        f"without fsync, with {size.old:,} old customers: each an event, a partition row, a run."
    )
    lines = [
        measured,
        "",
        "| what | goal | measured |",
        "|---|---|---|",
        *(f"| {what} | {goal} | {found} |" for what, goal, found in goals(size, readings)),
    ]
    raw = [burst.raw for burst in readings.bursts.values()]
    if readings.bursts:
        head = (
            "| burst | answers | took | p50, p99 | CPU s of the API server; scheduler | customers with a run | "
            "events that no run got |"
        )
        lines += ["", head, "|---|---|---|---|---|---|---|"]
    for burst in readings.bursts.values():
        served = burst.served
        lines.append(
            f"| {burst.name} ({burst.size}) | {in_words(burst.statuses)} | {burst.took:.1f} s | "
            f"{ms(burst.percentile(50))}, {ms(burst.percentile(99))} | "
            f"{burst.cpu['api-server']:.1f}; {burst.cpu['scheduler']:.1f} | "
            f"{served['served']:,}, the last after {burst.served_after:.0f} s | {served['stranded']:,} |"
        )
    for name, values in (("first pokes", readings.pokes), ("events", readings.events), ("ends", readings.ends)):
        if values:
            raw.append(f"{name}: " + ", ".join(f"{value:.2f}" for value in sorted(values)))
    if readings.wrong:
        raw.append(readings.wrong.raw)
    return "\n".join([*lines, "", "```", *raw, "```"])


def goals(size: Size, readings: Readings) -> Iterator[tuple[str, str, str]]:
    """Yield each goal, and what was measured."""

    def verdict(met: bool, found: str) -> str:  # noqa: FBT001 - read as a sentence
        return found if met else f"{found}: **not met**"

    def seconds(values: Sequence[float]) -> str:
        middle, most = statistics.median(values), percentile(values, 90)
        return verdict(middle < 2, f"median {middle:.2f} s, p90 {most:.2f} s ({len(values)})")

    if readings.pokes:
        yield "POST to the first poke of the new run, idle", "median under 2 s", seconds(readings.pokes)
        yield "— the very first after a start", "", f"{readings.first:.1f} s"
    if readings.ends:
        yield (
            "POST to the end of an open wait, `poke_interval` 600: its task has succeeded",
            "median under 2 s",
            seconds(readings.ends),
        )
        yield "— the triggerer's event is in the database", "", seconds(readings.events)
    if burst := readings.bursts.get("receiver"):
        served, total = burst.served, burst.asked
        what = f"{total:,} POSTs in {size.over:g} s, {size.in_flight} in flight, {size.old:,} old partition rows"
        yield what, "every one 200", verdict(burst.is_all_200, in_words(burst.statuses))
        late = burst.percentile(99)
        yield "— p99 of the answer", "under 1 s", verdict(late < 1, f"{late:.2f} s")
        kept = {served["events"], served["customers"], served["partitions"]} == {total}
        yield (
            "— every customer has an event and a partition row",
            f"{total:,}",
            verdict(kept, f"{served['events']:,} events of {served['customers']:,}, {served['partitions']:,} rows"),
        )
        all_served = served["served"] == total and not served["stranded"]
        yield (
            "— every customer has a run, nothing stranded",
            f"{total:,}, 0",
            verdict(
                all_served,
                f"{served['served']:,}, {served['stranded']}; the last {burst.served_after:.0f} s after the first POST",
            ),
        )
    if burst := readings.bursts.get("again"):
        served, total = burst.served, burst.asked
        yield (
            f"{total} POSTs in {size.again / 10:g} s, three statements of each customer",
            "each is in a run",
            verdict(served["stranded"] == 0, f"{served['stranded']} are in none"),
        )
    for connections in (1, 2) if readings.rates else ():
        rates = [readings.rates[connections, processes] for processes in (1, 2)]
        one, two = map(statistics.median, rates)
        each = "; ".join(", ".join(f"{rate:.0f}" for rate in of_rounds) for of_rounds in rates)
        yield (
            f"webhooks recorded a second, on two API server processes against one; connections: {connections}",
            "at least 1.6 times",
            verdict(two >= 1.6 * one, f"{two / one:.2f} times: {one:.0f} and {two:.0f} ({each})"),
        )
    if burst := readings.bursts.get("sqlite"):
        good = not any(status >= 500 and status != 503 for status in burst.statuses) and 0 not in burst.statuses
        yield f"{len(burst.answers)} POSTs at once on SQLite", "no 500", verdict(good, in_words(burst.statuses))
        alive = bool(burst.health) and set(burst.health.values()) == {"runs", "healthy"}
        bad = {part: state for part, state in burst.health.items() if state not in {"runs", "healthy"}}
        yield (
            f"— {size.afterwards:.0f} s later all parts of Airflow run, with recent heartbeats",
            "all",
            verdict(alive, "all" if alive else ", ".join(f"{part} {state}" for part, state in bad.items())),
        )
    if wrong := readings.wrong:
        total = wrong.statuses.total()
        # The audit log gets one row a minute, after a query for the connections.
        most = wrong.idle_transactions + 2 * (wrong.took // 60 + 1)
        clean = set(wrong.statuses) == {404} and wrong.transactions <= most
        found = f"{in_words(wrong.statuses)}; {wrong.transactions} transactions ({wrong.idle_transactions} when idle)"
        yield f"{total:,} POSTs with a wrong token", "404, at most two queries a minute", verdict(clean, found)
        grown = (wrong.memory[-1] - wrong.memory[0]) / 2**20
        yield (
            "— memory of the API server",
            "flat: under 4 MiB more",
            verdict(
                grown < 4,
                f"{grown:+.1f} MiB on {wrong.memory[0] / 2**20:.0f} (by as many to an address that Airflow does not "
                f"have: {(wrong.memory_elsewhere[-1] - wrong.memory_elsewhere[0]) / 2**20:+.1f})",
            ),
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 100) - 1)]


def in_words(statuses: Counter[int]) -> str:
    """Return the number of answers of each status, in words."""
    return ", ".join(f"{count:,} answered {status or 'nothing'}" for status, count in sorted(statuses.items()))


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{1000 * seconds:.0f} ms"


def pause(what: str, seconds: float) -> None:
    """Sleep, and print why."""
    say(f"{what}, for {seconds:.0f} s")
    time.sleep(seconds)


def say(what: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
