"""`make chaos`: waits in a whole Airflow on PostgreSQL, its processes killed one after another while statements end.

Afterwards every wait has to have ended as BankConnect's records say, none earlier, none handled twice, and no deadline
may have begun anew. It prints what was killed, when, what was open, and what came of it. Nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg2
from live import Live, LiveError, Postgres, family, temporary_folder

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

STARTED: Final = time.monotonic()
DAG: Final = """
from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

HOW = {"start_date": pendulum.datetime(2026, 1, 1, tz="UTC"), "max_active_runs": 1000, "max_active_tasks": 1000}

for name, timeout in (("chaos", 7200), ("chaos_short", SHORT)):
    with DAG(name, schedule=None, **HOW):
        wait = BankConnectWebhookPayloadSensor(
            task_id="wait",
            link_id="{{ dag_run.conf['link'] }}",
            on_failed="{{ dag_run.conf['on_failed'] }}",
            failure_grace=timedelta(seconds=5),
            poke_interval=15,
            timeout=timeout,
            retries=8,
            retry_delay=timedelta(seconds=2),
            deferrable=True,
        )
        wait >> EmptyOperator(task_id="work")

with DAG("rung", schedule=PartitionedAssetTimetable(assets=webhook_asset()), **HOW):
    EmptyOperator(task_id="nothing")
"""
TOKEN: Final = "chaos-token-5b1d9e07"  # noqa: S105 - of an Airflow that lives for minutes
SHORT: Final = 420
# A wait may end so long after its deadline: one last look, the triggerer that takes it over, the task that tells it.
SLACK: Final = 120.0
SAY_EVERY: Final = 10.0
SETTINGS: Final = {
    "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}


@dataclass
class Wait:
    """One wait: how it has to end, and from when on it may."""

    link: str
    fate: str
    after: float = 0.0
    run_id: str = ""
    over_at: datetime | None = None

    @property
    def dag_id(self) -> str:
        return "chaos_short" if self.fate == "never" else "chaos"

    @property
    def conf(self) -> dict[str, str]:
        return {"link": self.link, "on_failed": {"fails": "fail", "skips": "skip"}.get(self.fate, "wait")}

    @property
    def state(self) -> str:
        return {"completes": "success", "fails": "failed", "skips": "skipped", "never": "failed"}[self.fate]


@dataclass
class Chaos:
    """The vendor, Airflow, its database, and those who wait."""

    box: Sandbox
    live: Live
    postgres: Postgres
    waits: list[Wait]
    table: list[tuple[str, str, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with (
            contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self.postgres.port, user="airflow", dbname="postgres")
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    def states(self) -> dict[str, str | None]:
        """How it stands with each wait: run id -> state."""
        return dict(self.query("select run_id, state from task_instance where task_id = 'wait'"))

    def begin(self) -> None:
        """Start the waits, and have all of them in the triggerers."""

        def trigger(wait: Wait) -> None:
            run = self.live.api("POST", f"dags/{wait.dag_id}/dagRuns", json={"logical_date": None, "conf": wait.conf})
            wait.run_id = run["dag_run_id"]

        say(f"{len(self.waits)} waits begin")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(trigger, self.waits))
        told = 0.0

        def all_wait() -> bool:
            nonlocal told
            count = Counter(self.states().values())
            if time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
                say(f"waiting: {count['deferred']} of {len(self.waits)}")
            return count["deferred"] == len(self.waits)

        self.live.wait_until("all waits are deferred", all_wait, 900)

    def play(self, seconds: float) -> None:
        """Have the statements end over that time."""
        for wait in self.waits:
            if wait.fate == "never":
                continue
            wait.after = random.Random(wait.link).uniform(5, seconds)  # noqa: S311 - the same every time
            wait.over_at = datetime.now(UTC) + timedelta(seconds=wait.after)
            progress: Any = "completed" if wait.fate == "completes" else "failed"
            self.box.play(
                Statement(
                    link_id=wait.link,
                    entity_id=f"e-{wait.link}",
                    statement_id=wait.link,
                    after=wait.after,
                    progress=progress,
                )
            )

    def strike(self, what: str, act: Callable[[], str]) -> None:
        """Do one thing, and write down what was open then."""
        try:
            open_waits = str(Counter(self.states().values())["deferred"])
        except psycopg2.Error:
            open_waits = "?"
        at = f"{time.monotonic() - STARTED:.0f} s"
        came = act()
        say(f"{what}: {open_waits} waits open; {came}")
        self.table.append((at, what, open_waits, came))

    def crash(self, part: str) -> str:
        """Kill a part, and start it anew as those who run Airflow do."""
        self.live.kill(part)
        time.sleep(3)
        self.live.start(part)
        return "started anew after 3 s"

    def kill_a_worker(self) -> str:
        """Kill a task in mid-work."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for pid in family(self.live.parts["scheduler"].pid):
                with contextlib.suppress(OSError):
                    if b"airflow worker -- 0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        for member in family(pid):
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(member, signal.SIGKILL)
                        return "its task is tried again"
            time.sleep(0.05)
        self.wrong.append("no worker could be found in mid-task")
        return "none was found"

    def restart_database(self) -> str:
        """Stop the database, and start it again."""
        self.postgres.stop()
        time.sleep(5)
        self.postgres.start()
        return "back after 5 s"

    def keep_alive(self, stop: threading.Event) -> None:
        """Start anew what ended by itself, as a service manager does."""
        while not stop.wait(1):
            for part, process in list(self.live.parts.items()):
                if process.poll() is not None and part in self.live.parts:
                    say(f"{part} ended by itself ({process.returncode}), and is started anew")
                    self.table.append(
                        (f"{time.monotonic() - STARTED:.0f} s", f"{part} ended by itself", "", "started anew")
                    )
                    self.live.kill(part)
                    self.live.start(part)

    def finish(self, seconds: float) -> None:
        """Wait until nothing is open any more."""
        until, told = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            with contextlib.suppress(psycopg2.Error):
                count = Counter(self.states().values())
                if not set(count) - {"success", "failed", "skipped"}:
                    return
                if time.monotonic() - told > SAY_EVERY:
                    told = time.monotonic()
                    say(", ".join(f"{number} {state}" for state, number in sorted(count.items(), key=str)))
            time.sleep(1)
        self.wrong.append(f"after {seconds:.0f} s: {dict(Counter(self.states().values()))}")

    def check(self) -> None:
        """Compare with what had to come of it."""
        rows = self.query(
            "select run_id, task_id, state, start_date, end_date from task_instance where dag_id like 'chaos%%'"
        )
        tasks = {(run_id, task_id): (state, start, end) for run_id, task_id, state, start, end in rows}
        firsts = {}
        for call in self.box.calls("webhook_payloads"):
            firsts.setdefault(call.query["link_id"], call.at)
        for wait in self.waits:
            state, _, end = tasks[wait.run_id, "wait"]
            if state != wait.state:
                self.wrong.append(f"{wait.link} ended as {state}, not as {wait.state}")
            # BankConnect's times are whole seconds.
            elif wait.over_at and end < wait.over_at - timedelta(seconds=1):
                self.wrong.append(f"{wait.link} ended {wait.over_at - end} before its statement")
            elif wait.fate == "never":
                ended = time.monotonic() - (datetime.now(UTC) - end).total_seconds()
                lasted = ended - firsts[wait.link]
                if not SHORT - 2 <= lasted <= SHORT + SLACK:
                    self.wrong.append(f"{wait.link} waited {lasted:.0f} s, and its deadline was at {SHORT} s")
            work = tasks.get((wait.run_id, "work"), (None,))[0]
            if (work == "success") != (wait.fate == "completes"):
                self.wrong.append(f"the work behind {wait.link}, which {wait.fate}, is {work}")
        events = Counter(
            link
            for (link,) in self.query(
                "select extra->>'link_id' from asset_event where extra->>'progress' = 'completed'"
            )
        )
        doubled = [link for link, count in events.items() if count > 1]
        if doubled:
            self.wrong.append(f"rung for twice: {doubled}")
        self.check_runs()
        self.search_for_secrets()
        lost = sum(wait.fate == "completes" and wait.link not in events for wait in self.waits)
        say(f"{len(events)} completions rang; {lost} webhooks got no answer, and their gates opened all the same")

    def check_runs(self) -> None:
        """Compare the runs that were rung for with the rings: a run for each customer, and none without a ring."""
        rings = dict(self.query("select partition_key, count(*) from asset_event group by partition_key"))
        until = time.monotonic() + SLACK
        while True:
            runs = dict(
                self.query("select partition_key, count(*) from dag_run where dag_id = 'rung' group by partition_key")
            )
            stranded = sorted(set(rings) - set(runs))
            if not stranded or time.monotonic() > until:
                break
            time.sleep(1)
        if stranded:
            self.wrong.append(f"rung, and no run came of it: {stranded}")
        too_many = sorted(key for key, count in runs.items() if count > rings.get(key, 0))
        if too_many:
            self.wrong.append(f"more runs than rings: {too_many}")

    def search_for_secrets(self) -> None:
        """Look into all that was left behind, by those that were killed too."""
        secrets = {"token": TOKEN, "API key": self.box.api_key, "server hash": self.box.server_hash}
        left = {str(path): path.read_bytes() for path in self.live.home.rglob("*") if path.is_file()}
        for (table,) in self.query("select table_name from information_schema.tables where table_schema = 'public'"):
            left[f"table {table}"] = str(self.query(f'select t::text from "{table}" t')).encode()  # noqa: S608
        self.wrong += [
            f"the {name} is in {where}"
            for where, hay in left.items()
            for name, secret in secrets.items()
            if secret.encode() in hay
        ]
        say(f"neither keys nor the token are to be in {len(left)} files and tables: searched")


def main() -> int:
    """Run it: 0 when all is as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, default=200, help="how many [%(default)s]")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    fates = ["completes"] * 14 + ["fails"] * 2 + ["skips"] * 2 + ["never"] * 2
    waits = [Wait(f"chaos-{number}", fates[number % len(fates)]) for number in range(options.waits)]
    try:
        with contextlib.ExitStack() as stack:
            chaos = set_up(stack, waits)
            run(stack, chaos)
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.")
        return 130
    except LiveError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    lines = [("when", "what", "waits open", "what came of it"), *[("---",) * 4], *chaos.table]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    right = len(waits) - len(chaos.wrong)
    print(
        f"\n{right} of {len(waits)} waits as they have to be."
        if not chaos.wrong
        else "\nWRONG:\n" + "\n".join(chaos.wrong)
    )
    return 1 if chaos.wrong else 0


def set_up(stack: contextlib.ExitStack, waits: list[Wait]) -> Chaos:
    """Start the vendor, the database, and Airflow with two triggerers."""
    folder = stack.enter_context(temporary_folder())
    (folder / "dags").mkdir()
    (folder / "dags" / "chaos.py").write_text(DAG.replace("SHORT", str(SHORT)), encoding="utf-8")
    say("setting up: the vendor, PostgreSQL, Airflow")
    box = stack.enter_context(Sandbox())
    postgres = stack.enter_context(Postgres())
    certificate = box.issue_certificate(folder)
    settings = SETTINGS | {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json}
    live = stack.enter_context(
        Live(
            folder,
            folder / "dags",
            database=postgres.url,
            certificate=certificate,
            trust=box.ca_file,
            settings=settings,
        )
    )
    live.airflow("db", "migrate")
    live.start("api-server", "scheduler", "dag-processor", "triggerer", "triggerer#2")
    live.wait_until_up()
    live.wait_until_known("chaos", "chaos_short", "rung")
    # Not in a DAG of its own: what is to be broken comes later.
    os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = box.connection_json
    with BankConnectHook() as hook:
        url = f"{live.url}/bankconnect/webhook/bankconnect_default/{TOKEN}"
        hook.update_webhook(url, WebhookMode.NET_BANKING_AND_MANUAL, allow_private_host=True)
    return Chaos(box, live, postgres, waits)


def run(stack: contextlib.ExitStack, chaos: Chaos) -> None:
    """Start the waits, strike, and see what came of it."""
    chaos.begin()
    chaos.play(240)
    stop = threading.Event()
    keeper = threading.Thread(target=chaos.keep_alive, args=(stop,), daemon=True)
    keeper.start()
    stack.callback(stop.set)
    strikes: list[tuple[float, str, Callable[[], str]]] = [
        (5, "a triggerer of two, kill -9", lambda: chaos.crash("triggerer")),
        (40, "API server, kill -9", lambda: chaos.crash("api-server")),
        (75, "scheduler, kill -9", lambda: chaos.crash("scheduler")),
        (100, "a worker in mid-task, kill -9", chaos.kill_a_worker),
        (110, "BankConnect down for two minutes", lambda: vendor_down(chaos)),
        (150, "database stopped and started", chaos.restart_database),
        (200, "the other triggerer, kill -9", lambda: chaos.crash("triggerer#2")),
    ]
    began = time.monotonic()
    for at, what, act in strikes:
        time.sleep(max(0.0, began + at - time.monotonic()))
        chaos.strike(what, act)
    chaos.finish(900)
    stop.set()
    keeper.join()
    chaos.check()


def vendor_down(chaos: Chaos) -> str:
    """Break off every answer for two minutes."""
    chaos.box.fault(Fault(kind="reset", until=120))
    return "every wait goes on"


def say(what: str) -> None:
    """Tell who watches."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
