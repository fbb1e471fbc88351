"""`make fleet`: a distributed Airflow on this machine, its customers, and processes that are killed meanwhile.

PostgreSQL behind PgBouncer, Redis, CeleryExecutor with two workers, two schedulers, two triggerers, two API servers
behind nginx with TLS and a path prefix, StatsD, and two BankConnect accounts. Each customer must get one run, each gate
must end as BankConnect's records say, no wait may be left, and no key may be in any file or table. It leaves nothing
running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Final

import processes
import psycopg2
import requests
import tenacity
from fleet_airflow import CATCH_UP, EXPECTED, PREFIX, TOKEN, FleetAirflow, StatsD, settings_of, write_home
from fleet_plan import CONNECTIONS, Customer, Run, judge, plan
from homes import REGISTER
from leaks import files_in, leaks_in, of_row
from live import Postgres, temporary_folder
from psycopg2.extras import RealDictCursor
from services import LiveError, Nginx, PgBouncer, Redis, free_port, require
from strikes import Strikes, count, in_turn, print_table, say

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.receiver.address import internal_token
from airflow_provider_bankconnect.sandbox import Sandbox, Statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PRINT_EVERY: Final = 10.0
PARTS: Final = (
    "api-server",
    "api-server#2",
    "dag-processor",
    "scheduler",
    "scheduler#2",
    "triggerer",
    "triggerer#2",
    "worker",
    "worker#2",
)


@dataclass(frozen=True)
class Size:
    """How much is done.

    :param seconds: the time over which the statements end.
    :param short: timeout in seconds of a wait that nothing ends.
    :param by_command: how many customers are started with ``airflow dags trigger``, which takes seconds each.
    """

    customers: int
    seconds: float
    short: int
    by_command: int
    kills: bool


FULL: Final = Size(customers=300, seconds=300, short=600, by_command=4, kills=True)
QUICK: Final = Size(customers=40, seconds=30, short=90, by_command=1, kills=False)


def is_passing(error: BaseException) -> bool:
    """Return whether a request failed because Airflow was too busy, or did not answer."""
    answer = error.response if isinstance(error, requests.RequestException) else None
    return isinstance(error, requests.RequestException) and (answer is None or answer.status_code >= 500)  # noqa: PLR2004


@dataclass
class Fleet(Strikes):
    """Two accounts, all servers, and the customers."""

    boxes: Mapping[str, Sandbox]
    pgbouncer: PgBouncer
    redis: Redis
    nginx: Nginx
    statsd: StatsD
    size: Size
    customers: list[Customer] = field(default_factory=list, kw_only=True)
    took: dict[str, float] = field(default_factory=dict, kw_only=True)

    def set_up(self) -> None:
        """Make the second connection, register both accounts, and say which links are expected."""
        live = self.live
        box = self.boxes[CONNECTIONS[1]]
        extra = f'{{"api_key": "{box.api_key}", "verify": "{box.ca_file}"}}'
        given = {"connection_id": CONNECTIONS[1], "conn_type": "bankconnect", "host": box.url, "extra": extra}
        live.api("POST", "connections", json=given | {"password": box.server_hash})
        for conn_id, name in zip(CONNECTIONS, (EXPECTED, f"{EXPECTED}_two"), strict=True):
            links = [one.link for one in self.customers if one.conn_id == conn_id and one.way != "by hand"]
            live.api("POST", "variables", json={"key": name, "value": str(links).replace("'", '"')})
        # The operator checks the address through nginx, and takes it from [api] base_url.
        live.api("POST", f"dags/{REGISTER}/dagRuns", json={"logical_date": None, "conf": {"allow_private_host": True}})
        live.wait_until("the first account is registered", lambda: self.boxes[CONNECTIONS[0]].webhook_url)
        # The other sandbox trusts certificates of its own only, so that its webhooks take nginx's second port.
        os.environ[f"AIRFLOW_CONN_{CONNECTIONS[1].upper()}"] = box.connection_json
        with BankConnectHook(CONNECTIONS[1]) as hook:
            url = f"https://localhost:{self.nginx.ports[1]}{PREFIX}/bankconnect/webhook/{CONNECTIONS[1]}/{TOKEN}"
            hook.update_webhook(url, WebhookMode.NET_BANKING, allow_private_host=True)

    def states(self) -> dict[str, str | None]:
        """Return the state of each wait by run id."""
        return dict(self.query("select run_id, state from task_instance where task_id = 'wait'"))

    def begin(self) -> None:
        """Start the runs of those who are started by hand, and wait until their waits have begun."""
        by_hand = [one for one in self.customers if one.way == "by hand"]

        def trigger(index: int, customer: Customer) -> None:
            how = {"logical_date": None, "dag_run_id": customer.link, "conf": customer.conf}
            if index < self.size.by_command:
                conf = str(customer.conf).replace("'", '"')
                self.live.airflow("dags", "trigger", customer.dag_id, "--run-id", customer.link, "--conf", conf)
            else:
                self.create_run(customer.dag_id, how)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(trigger, range(len(by_hand)), by_hand))
        self.live.wait_until("the waits have begun", self.reporter(len(by_hand), {"deferred", "failed"}), 1200)

    @tenacity.retry(
        retry=tenacity.retry_if_exception(is_passing),
        stop=tenacity.stop_after_delay(600),
        wait=tenacity.wait_fixed(2),
        reraise=True,
    )
    def create_run(self, dag_id: str, how: Mapping[str, object]) -> None:
        """Create a run, and try again while the API servers are too busy to answer in time."""
        try:
            self.live.api("POST", f"dags/{dag_id}/dagRuns", json=how)
        except requests.HTTPError as error:
            # An attempt whose answer was lost has created it.
            if error.response.status_code != requests.codes.conflict:
                raise

    def reporter(self, number: int, states: set[str]) -> Callable[[], bool]:
        """Return a function that says whether so many waits are in these states, and prints it now and then."""
        printed_at = 0.0

        def reached() -> bool:
            nonlocal printed_at
            try:
                found = list(self.states().values())
            except psycopg2.Error:
                return False
            if time.monotonic() - printed_at > PRINT_EVERY:
                printed_at = time.monotonic()
                say(f"waits: {count(found)}")
            return len(found) >= number and set(found) <= states

        return reached

    def play(self) -> None:
        """Let the statements end at their times, and send the forged webhooks now."""
        for one in self.customers:
            if one.fate == "never" or one.way == "caught up":
                continue
            box, progress = self.boxes[one.conn_id], "failed" if one.fate in {"fails", "skips"} else "completed"
            ids = {"link_id": one.link, "entity_id": f"e-{one.link}", "statement_id": one.link}
            one.over_at = datetime.now(UTC) + timedelta(seconds=one.seconds)
            box.play(Statement(**ids, after=one.seconds, progress=progress, mode=one.mode))
            if one.fate == "forged":
                box.webhook(ids | {"progress": "completed", "reason": ""})

    def send_no_webhooks(self, share: int) -> None:
        """Complete the statements of a third of those who are caught up, whose webhooks are never sent."""
        for one in [one for one in self.customers if one.way == "caught up"][share::3]:
            # A statement that lies in the past sends none.
            box, ids = self.boxes[one.conn_id], {"entity_id": f"e-{one.link}", "statement_id": one.link}
            box.play(Statement(link_id=one.link, after=-1, **ids))

    def finish(self, seconds: float) -> None:
        """Wait until each customer has a run, and no wait is open."""
        links = {one.link for one in self.customers if not one.may_be_lost}
        ended = self.reporter(len(links), {"success", "failed", "skipped"})
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(psycopg2.Error):
                runs = self.runs()
                of_webhooks = {run.link for run in runs if run.dag_id.startswith("on_webhook")}
                all_run = links <= {run.link for run in runs} and of_webhooks >= set(self.answered())
                if ended() and all_run and not self.open_runs():
                    return
            time.sleep(1)
        self.wrong.append(f"after {seconds:.0f} s: {count(self.states().values())}")

    def open_runs(self) -> int:
        """Return how many runs of customers have not ended."""
        customers = "select count(*) from dag_run where dag_id not like 'bankconnect%%' and end_date is null"
        return int(self.query(customers)[0][0])

    def runs(self) -> list[Run]:
        """Return the runs of customers."""
        rows = self.query(
            "select dag_run.dag_id, coalesce(partition_key, dag_run.run_id), wait.state, work.state, "
            "wait.end_date from dag_run "
            "left join task_instance wait on (wait.dag_id, wait.run_id) = (dag_run.dag_id, dag_run.run_id) "
            "and wait.task_id = 'wait' "
            "left join task_instance work on (work.dag_id, work.run_id) = (dag_run.dag_id, dag_run.run_id) "
            "and work.task_id = 'work' where dag_run.dag_id not like 'bankconnect%%'"
        )
        return [Run(dag_id, key.removeprefix("link:"), *rest) for dag_id, key, *rest in rows]

    def answered(self) -> list[str]:
        """Return the links whose webhook got a 200."""
        sent = chain.from_iterable(box.deliveries for box in self.boxes.values())
        return [str(one.body["link_id"]) for one in sent if one.status == requests.codes.ok]

    def check(self) -> None:
        """Compare runs, gates, events and metrics with what is expected, and search for secrets."""
        runs, answered = self.runs(), self.answered()
        self.note_pokes()
        self.wrong += judge(self.customers, runs, answered, timedelta(seconds=self.size.short))
        events = self.query("select partition_key, extra->>'progress' from asset_event")
        doubled = [key for (key, _), number in Counter(events).items() if number > 1]
        if doubled:
            self.wrong.append(f"recorded twice: {doubled}")
        (stuck,) = self.query("select count(*) from trigger")[0]
        if stuck:
            self.wrong.append(f"{stuck} triggers are left")
        # The last packets of the processes may be on their way.
        time.sleep(2)
        self.wrong += self.statsd.metrics.judge(len(events), killed=self.size.kills)
        self.search_for_secrets()
        say(f"{len(runs)} runs, {len(events)} webhook events, {len(answered)} webhooks answered with 200")
        ends = {one.link: one.over_at for one in self.customers if one.way == "by hand" and one.fate == "completes"}
        late = [
            (run.ended - over_at).total_seconds()
            for run in runs
            if run.ended and run.dag_id.startswith("by_hand") and (over_at := ends.get(run.link)) is not None
        ]
        if late:
            say(f"waits by hand ended {median(late):.1f} s after their statement (median), {max(late):.1f} s at most")

    def note_pokes(self) -> None:
        """Note how long each customer was polled: the time that workers need does not count."""
        times: dict[str, list[float]] = {}
        for call in chain.from_iterable(box.calls("webhook_payloads") for box in self.boxes.values()):
            times.setdefault(call.query["link_id"], []).append(call.at)
        for one in self.customers:
            of_link = times.get(one.link, [0.0])
            one.polled = max(of_link) - min(of_link)
            one.began = datetime.now(UTC) - timedelta(seconds=time.monotonic() - min(of_link))

    def search_for_secrets(self) -> None:
        """Search all files and tables, those of killed processes too."""
        secrets = {"token": TOKEN, "internal token": internal_token(TOKEN), "TLS key": "PRIVATE KEY"}
        for conn_id, box in self.boxes.items():
            secrets |= {f"API key of {conn_id}": box.api_key, f"server hash of {conn_id}": box.server_hash}
        places = list(self.traces())
        self.wrong += [f"the {leak.name} is in {leak.where}: {leak.around!r}" for leak in leaks_in(places, secrets)]
        # The search does find what is in all these places.
        seen = {leak.where.partition("/")[0] for leak in leaks_in(places, {"canary": self.customers[0].link})}
        for place in {"table dag_run", "logs", "redis-server"} - seen:
            self.wrong.append(f"the search does not find a customer in {place}")
        if not any(b"/bankconnect/webhook/***" in hay for name, hay in places if name == "nginx/access.log"):
            self.wrong.append("the search does not find a webhook in nginx's access log")
        say(f"{len(places)} files and rows searched for the keys and the token")

    def traces(self) -> Iterator[tuple[str, bytes]]:
        """Yield the files of all processes and the rows of all tables."""
        yield from files_in(self.live.home)
        for server in (self.redis, self.pgbouncer, self.nginx, self.postgres):
            data = server.folder / "data"
            for path in sorted(server.folder.rglob("*")):
                # The rows of the database are read as such; nginx has the keys of its certificates.
                if path.is_file() and data not in path.parents and path.suffix != ".key":
                    yield f"{server.name}/{path.relative_to(server.folder)}", path.read_bytes()
        fernet_key = self.live.environment["AIRFLOW__CORE__FERNET_KEY"]
        with (
            contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self.postgres.port, user="airflow", dbname="postgres")
            ) as connection,
            connection.cursor(cursor_factory=RealDictCursor) as cursor,
        ):
            cursor.execute("select table_name from information_schema.tables where table_schema = 'public'")
            for table in [row["table_name"] for row in cursor.fetchall()]:
                cursor.execute(f'select * from "{table}"')  # noqa: S608 - names from the database itself
                for row in cursor:
                    yield from of_row(table, row, fernet_key)

    def costs(self) -> list[tuple[str, ...]]:
        """Return what each part that runs has cost: processes, CPU seconds and memory."""
        lines = []
        for part, process in sorted(self.live.parts.items()):
            tree = processes.tree(process.pid)
            cpu = memory = 0.0
            for one in tree:
                with contextlib.suppress(Exception):
                    # Those of children that have ended are included.
                    cpu += sum(one.cpu_times()[:4])
                    memory += one.memory_full_info().pss / 2**20
            lines.append((part, str(len(tree)), f"{cpu:.0f}", f"{memory:.0f}"))
        return lines


@processes.command(LiveError)
def main() -> int:
    """Run it: return 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 customers, and nothing is killed")
    parser.add_argument("--customers", type=int, help="number of customers [300, or 40]")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    customers = plan(options.customers or size.customers, size.seconds)
    require(Redis, Nginx, PgBouncer)
    with contextlib.ExitStack() as stack:
        fleet = start(stack, size, customers)
        run(stack, fleet)
    if fleet.table:
        print_table(("when", "what", "waits open", "result"), *fleet.table)
    wrong = [f"WRONG: {what}" for what in fleet.wrong]
    print("\n" + ("\n".join(wrong) or f"{len(customers)} customers, and everything is right."))
    return 1 if wrong else 0


def start(stack: contextlib.ExitStack, size: Size, customers: list[Customer]) -> Fleet:
    """Start the sandboxes, the servers, and Airflow."""
    say("starting two sandboxes, PostgreSQL, PgBouncer, Redis and nginx")
    folder = stack.enter_context(temporary_folder())
    boxes = {conn_id: stack.enter_context(Sandbox(seed=seed)) for seed, conn_id in enumerate(CONNECTIONS, start=1)}
    certificates = []
    for conn_id, box in boxes.items():
        (folder / conn_id).mkdir()
        certificates.append(box.issue_certificate(folder / conn_id))
    postgres = stack.enter_context(Postgres())
    pgbouncer = stack.enter_context(PgBouncer(postgres.port))
    redis = stack.enter_context(Redis())
    ports = (free_port(), free_port())
    nginx = stack.enter_context(Nginx(ports, certificates, PREFIX))
    home = write_home(folder, size.short)
    statsd = StatsD(home.path / "statsd.log")
    first = boxes[CONNECTIONS[0]]
    settings = settings_of(pgbouncer, redis, statsd) | {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": first.connection_json}
    live = stack.enter_context(
        FleetAirflow(
            home.path,
            home.dags,
            ports=ports,
            nginx=nginx,
            database=pgbouncer.url,
            trust=first.ca_file,
            settings=settings,
        )
    )
    say("creating Airflow's tables")
    live.airflow("db", "migrate")
    say("starting Airflow: " + ", ".join(PARTS))
    live.start(*PARTS[:2])
    live.wait_until("both API servers answer", live.is_warm)
    live.start(*PARTS[2:])
    live.wait_until_up()
    live.wait_until_known(REGISTER, CATCH_UP, f"{CATCH_UP}_two", *{one.dag_id for one in customers})
    return Fleet(live, postgres, boxes, pgbouncer, redis, nginx, statsd, size, customers=customers)


def run(stack: contextlib.ExitStack, fleet: Fleet) -> None:
    """Start the customers, kill processes, and check the results."""
    say("registering both accounts")
    fleet.set_up()
    say(f"{len(fleet.customers)} customers start: {count(one.way for one in fleet.customers)}")
    fleet.begin()
    say(f"their statements end within {fleet.size.seconds:.0f} s")
    fleet.play()
    stop = threading.Event()
    keeper = threading.Thread(target=fleet.keep_alive, args=(stop,), daemon=True)
    keeper.start()
    stack.callback(stop.set)
    batches = [(fleet.size.seconds * share / 3, partial(fleet.send_no_webhooks, share)) for share in range(3)]
    kills = strikes_of(fleet) if fleet.size.kills else []
    in_turn(sorted([*batches, *kills], key=lambda one: one[0]))
    fleet.finish(1200)
    stop.set()
    keeper.join()
    fleet.check()
    print_table(("part", "processes", "CPU s", "memory MiB"), *fleet.costs())


def strikes_of(fleet: Fleet) -> list[tuple[float, Callable[[], None]]]:
    """Return what is done to the fleet, and when."""

    def kill(part: str) -> Callable[[], str]:
        return partial(fleet.crash, part)

    def gone() -> str:
        fleet.live.kill("api-server")
        return "the other one answers"

    def back() -> str:
        fleet.live.start("api-server")
        return "started again"

    def kill_server(server: PgBouncer | Nginx | Redis) -> str:
        server.kill()
        time.sleep(3)
        server.start()
        return "restarted after 3 s"

    task = partial(fleet.kill_a_process, "worker", b"airflow worker -- ", "its task is retried", 90)
    one_of_gunicorn = partial(fleet.kill_a_process, "api-server#2", b"gunicorn: worker", "gunicorn starts another one")
    planned: list[tuple[float, str, Callable[[], str]]] = [
        (5, "one of two triggerers, kill -9", kill("triggerer")),
        (25, "one of two API servers, kill -9", gone),
        (45, "one of two schedulers, kill -9", kill("scheduler")),
        (65, "a process of the other API server, kill -9", one_of_gunicorn),
        (85, "that API server is started after a minute", back),
        (100, "one of two workers, kill -9", kill("worker")),
        (120, "Redis stopped and started", lambda: fleet.restart(fleet.redis)),
        (140, "DAG processor, kill -9", kill("dag-processor")),
        (155, "PgBouncer, kill -9", partial(kill_server, fleet.pgbouncer)),
        (170, "the other scheduler, kill -9", kill("scheduler#2")),
        (190, "PostgreSQL stopped and started", lambda: fleet.restart(fleet.postgres)),
        (210, "the other API server, kill -9", kill("api-server#2")),
        (230, "the other worker, kill -9", kill("worker#2")),
        (245, "nginx, kill -9", partial(kill_server, fleet.nginx)),
        (255, "a running task, kill -9", task),
        (270, "the other triggerer, kill -9", kill("triggerer#2")),
    ]
    return [(at, partial(fleet.strike, what, act)) for at, what, act in planned]


if __name__ == "__main__":
    sys.exit(main())
