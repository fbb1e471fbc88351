"""`make chaos`: runs many waits in a whole Airflow on PostgreSQL, and kills its processes one after another.

Every wait must end as BankConnect's records say, not earlier, and be handled once. No deadline may start anew. It
prints what was killed, when, and how many waits were open. It leaves nothing running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import processes
import psycopg2
from live import Live, Postgres, temporary_folder
from services import LiveError
from strikes import Strikes, count, in_turn, print_table, say

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

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

with DAG("recorded", schedule=PartitionedAssetTimetable(assets=webhook_asset()), **HOW):
    EmptyOperator(task_id="nothing")
"""
TOKEN: Final = "chaos-token-5b1d9e07"  # noqa: S105 - of an Airflow that runs for minutes
# Seconds until the deadline of a wait that never ends otherwise.
SHORT: Final = 420
# A wait may end this much after its deadline: another triggerer takes it over, pokes a last time, and a task ends it.
SLACK: Final = 120.0
PRINT_EVERY: Final = 10.0
SETTINGS: Final = {
    "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}


@dataclass
class Wait:
    """One wait: how it must end, and from when on it may."""

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
class Chaos(Strikes):
    """The sandbox and the waits, with what is done to Airflow."""

    box: Sandbox
    waits: list[Wait]

    def states(self) -> dict[str, str | None]:
        """Return the state of each wait by run id."""
        return dict(self.query("select run_id, state from task_instance where task_id = 'wait'"))

    def begin(self) -> None:
        """Start the waits, and wait until all of them are deferred."""

        def trigger(wait: Wait) -> None:
            run = self.live.api("POST", f"dags/{wait.dag_id}/dagRuns", json={"logical_date": None, "conf": wait.conf})
            wait.run_id = run["dag_run_id"]

        say(f"{len(self.waits)} waits start")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(trigger, self.waits))
        printed_at = 0.0

        def all_wait() -> bool:
            nonlocal printed_at
            deferred = self.open_waits()
            if time.monotonic() - printed_at > PRINT_EVERY:
                printed_at = time.monotonic()
                say(f"waiting: {deferred} of {len(self.waits)}")
            return deferred == len(self.waits)

        self.live.wait_until("all waits are deferred", all_wait, 900)

    def play(self, seconds: float) -> None:
        """Let the statements end at random times within these seconds."""
        for wait in self.waits:
            if wait.fate == "never":
                continue
            wait.after = random.Random(wait.link).uniform(5, seconds)  # noqa: S311 - the same in every run
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

    def finish(self, seconds: float) -> None:
        """Wait until no wait is open."""
        until, printed_at = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            with contextlib.suppress(psycopg2.Error):
                states = self.states().values()
                if not set(states) - {"success", "failed", "skipped"}:
                    return
                if time.monotonic() - printed_at > PRINT_EVERY:
                    printed_at = time.monotonic()
                    say(count(states))
            time.sleep(1)
        self.wrong.append(f"after {seconds:.0f} s: {count(self.states().values())}")

    def check(self) -> None:
        """Compare the tasks, events and runs with what is expected."""
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
            # BankConnect's times have whole seconds.
            elif wait.over_at and end < wait.over_at - timedelta(seconds=1):
                self.wrong.append(f"{wait.link} ended {wait.over_at - end} before its statement")
            elif wait.fate == "never":
                ended = time.monotonic() - (datetime.now(UTC) - end).total_seconds()
                lasted = ended - firsts[wait.link]
                if not SHORT - 2 <= lasted <= SHORT + SLACK:
                    self.wrong.append(f"{wait.link} waited {lasted:.0f} s, and its deadline was at {SHORT} s")
            work = tasks.get((wait.run_id, "work"), (None,))[0]
            if (work == "success") != (wait.fate == "completes"):
                self.wrong.append(f"the task after {wait.link}, which {wait.fate}, is {work}")
        events = Counter(
            link
            for (link,) in self.query(
                "select extra->>'link_id' from asset_event where extra->>'progress' = 'completed'"
            )
        )
        doubled = [link for link, number in events.items() if number > 1]
        if doubled:
            self.wrong.append(f"recorded twice: {doubled}")
        self.check_runs()
        self.search_for_secrets()
        lost = sum(wait.fate == "completes" and wait.link not in events for wait in self.waits)
        say(f"{len(events)} completed statements recorded; {lost} webhooks were lost, and their gates passed without")

    def check_runs(self) -> None:
        """Compare runs with webhook events: each customer has a run, and no run is without an event."""
        events = dict(self.query("select partition_key, count(*) from asset_event group by partition_key"))
        until = time.monotonic() + SLACK
        while True:
            runs = dict(
                self.query(
                    "select partition_key, count(*) from dag_run where dag_id = 'recorded' group by partition_key"
                )
            )
            missing = sorted(set(events) - set(runs))
            if not missing or time.monotonic() > until:
                break
            time.sleep(1)
        if missing:
            self.wrong.append(f"recorded, but without a run: {missing}")
        too_many = sorted(key for key, number in runs.items() if number > events.get(key, 0))
        if too_many:
            self.wrong.append(f"more runs than events: {too_many}")

    def search_for_secrets(self) -> None:
        """Search all files and tables, those of killed processes too."""
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
        say(f"{len(left)} files and tables searched for the keys and the token")


@processes.command(LiveError)
def main() -> int:
    """Run it: return 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, default=200, help="number of waits [%(default)s]")
    options = parser.parse_args()
    fates = ["completes"] * 14 + ["fails"] * 2 + ["skips"] * 2 + ["never"] * 2
    waits = [Wait(f"chaos-{number}", fates[number % len(fates)]) for number in range(options.waits)]
    with contextlib.ExitStack() as stack:
        chaos = set_up(stack, waits)
        run(stack, chaos)
    print_table(("when", "what", "waits open", "result"), *chaos.table)
    right = len(waits) - len(chaos.wrong)
    print(f"\n{right} of {len(waits)} waits are right." if not chaos.wrong else "\nWRONG:\n" + "\n".join(chaos.wrong))
    return 1 if chaos.wrong else 0


def set_up(stack: contextlib.ExitStack, waits: list[Wait]) -> Chaos:
    """Start the sandbox, the database, and Airflow with two triggerers."""
    folder = stack.enter_context(temporary_folder())
    (folder / "dags").mkdir()
    (folder / "dags" / "chaos.py").write_text(DAG.replace("SHORT", str(SHORT)), encoding="utf-8")
    say("starting the sandbox, PostgreSQL and Airflow")
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
    live.wait_until_known("chaos", "chaos_short", "recorded")
    os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = box.connection_json
    with BankConnectHook() as hook:
        url = f"{live.url}/bankconnect/webhook/bankconnect_default/{TOKEN}"
        hook.update_webhook(url, WebhookMode.NET_BANKING_AND_MANUAL, allow_private_host=True)
    return Chaos(live, postgres, box, waits)


def run(stack: contextlib.ExitStack, chaos: Chaos) -> None:
    """Start the waits, kill processes, and check the results."""
    chaos.begin()
    chaos.play(240)
    stop = threading.Event()
    keeper = threading.Thread(target=chaos.keep_alive, args=(stop,), daemon=True)
    keeper.start()
    stack.callback(stop.set)
    worker = partial(chaos.kill_a_process, "scheduler", b"airflow worker -- 0", "its task is retried")
    strikes: list[tuple[float, str, Callable[[], str]]] = [
        (5, "one of two triggerers, kill -9", lambda: chaos.crash("triggerer")),
        (40, "API server, kill -9", lambda: chaos.crash("api-server")),
        (75, "scheduler, kill -9", lambda: chaos.crash("scheduler")),
        (100, "a worker with a running task, kill -9", worker),
        (110, "BankConnect down for two minutes", lambda: vendor_down(chaos)),
        (150, "database stopped and started", lambda: chaos.restart(chaos.postgres)),
        (200, "the other triggerer, kill -9", lambda: chaos.crash("triggerer#2")),
    ]
    in_turn((at, partial(chaos.strike, what, act)) for at, what, act in strikes)
    chaos.finish(900)
    stop.set()
    keeper.join()
    chaos.check()


def vendor_down(chaos: Chaos) -> str:
    """Reset every connection to BankConnect for two minutes."""
    chaos.box.fault(Fault(kind="reset", until=120))
    return "every wait continues"


if __name__ == "__main__":
    sys.exit(main())
