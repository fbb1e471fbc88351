"""The webhook receiver in a complete Airflow on PostgreSQL: webhooks start runs, BankConnect's records decide gates.

`make receiver` runs the tests with large numbers, `make test` with small ones.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
import requests
import templates
from homes import ROOT
from leaks import files_in, leaks_in, of_row
from live import Live, LiveError, Postgres
from psycopg2.extras import RealDictCursor

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.sandbox import Sandbox, Statement

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.skipif(not address.is_supported(), reason="the webhook receiver needs Airflow 3.2"),
]

FULL = os.environ.get("BANKCONNECT_RECEIVER") == "full"
SIZE = SimpleNamespace(stuck=20, at_once=50, kills=10) if FULL else SimpleNamespace(stuck=3, at_once=6, kills=1)
# Only ends a hang. On a busy machine, a task takes a minute to import Airflow.
PATIENCE = 1800.0
TOKEN, PREVIOUS = "planted-token-9f2c51d7e0", "previous-planted-3b77a0c4"
CONN_ID = "bankconnect_default"
ON_WEBHOOK, CATCH_UP, WAIT, LISTENER = (
    "bankconnect_on_webhook",
    "bankconnect_catch_up",
    "bankconnect_wait_for_statement",
    "listener",
)
# A second DAG on the asset, with cheap runs.
LISTENER_DAG = """
from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset

with DAG(
    dag_id="listener",
    schedule=PartitionedAssetTimetable(assets=webhook_asset()),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    max_active_runs=1000,
):
    EmptyOperator(task_id="nothing")
"""


@dataclass
class World:
    """A sandbox, an Airflow, and the port of its database."""

    box: Sandbox
    live: Live
    port: int

    @cached_property
    def _connection(self) -> Any:
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="airflow", dbname="postgres")
        connection.autocommit = True
        return connection

    def query(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        with self._connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(sql, parameters)
            return [dict(row) for row in cursor.fetchall()]

    def events(self, prefix: str) -> list[dict[str, Any]]:
        """Return the events of links with this prefix."""
        rows = self.query("select extra from asset_event where partition_key like %s order by id", f"link:{prefix}%")
        return [row["extra"] for row in rows]

    def tasks(self, dag_id: str, task_id: str, prefix: str) -> dict[str, list[str]]:
        """Return the states of a task in the runs of links with this prefix, by link."""
        rows = self.query(
            "select dag_run.partition_key, task_instance.state from dag_run left join task_instance on "
            "task_instance.dag_id = dag_run.dag_id and task_instance.run_id = dag_run.run_id and task_id = %s "
            "where dag_run.dag_id = %s and partition_key like %s",
            task_id,
            dag_id,
            f"link:{prefix}%",
        )
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["partition_key"].removeprefix("link:"), []).append(row["state"])
        return found

    def done(self, prefix: str) -> set[str]:
        """Return the links with this prefix for which the work is done."""
        states = self.tasks(ON_WEBHOOK, "count_transactions", prefix)
        return {link for link, of_runs in states.items() if "success" in of_runs}

    def complete(self, link: str) -> dict[str, object]:
        """Complete a statement and return its webhook, which the sandbox sends only to a registered endpoint."""
        statement = Statement(link_id=link, entity_id=f"e-{link}", statement_id=f"s-{link}", transactions=3)
        self.box.play(statement)
        return body(link)

    def post(self, sent: object, *, token: str = TOKEN) -> int:
        url = f"{self.live.url}/bankconnect/webhook/{CONN_ID}/{token}"
        how = (
            {"data": sent, "headers": {"Content-Type": "application/json"}} if isinstance(sent, str) else {"json": sent}
        )
        return requests.post(url, verify=self.live.trust, timeout=PATIENCE, **how).status_code


def body(link: str, **other: object) -> dict[str, object]:
    return {
        "entity_id": f"e-{link}",
        "statement_id": f"s-{link}",
        "link_id": link,
        "progress": "completed",
        "reason": "",
    } | other


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("live")
    dags = home / "dags"
    dags.mkdir()
    for name, changes in {
        ON_WEBHOOK: {"minutes=2": "seconds=5"},
        CATCH_UP: {"schedule=timedelta(minutes=10)": "schedule=None"},
        WAIT: {"poke_interval=30": "poke_interval=3600"},
    }.items():
        text = (ROOT / "dags" / f"{name}.py").read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) >= 1
            text = text.replace(old, new)
        (dags / f"{name}.py").write_text(text, encoding="utf-8")
    (dags / "listener.py").write_text(LISTENER_DAG, encoding="utf-8")
    try:
        postgres = Postgres(copy_of=templates.postgres(tmp_path_factory))
    except LiveError as error:
        pytest.skip(str(error))
    with postgres, Sandbox(webhook_retries=1800) as box:
        settings = {
            "AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json,
            "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
            "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN_PREVIOUS": PREVIOUS,
            # The DAGs do not change: parsing them again and again would take a third of a processor.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        }
        certificate = box.issue_certificate(home)
        with Live(
            home, dags, database=postgres.url, certificate=certificate, trust=box.ca_file, settings=settings
        ) as live:
            live.start()
            live.wait_until_up(PATIENCE)
            live.wait_until_known(ON_WEBHOOK, CATCH_UP, WAIT, LISTENER, seconds=PATIENCE)
            for dag_id in (ON_WEBHOOK, CATCH_UP, WAIT, LISTENER):
                live.unpause(dag_id)
            yield World(box, live, postgres.port)
            # Some parts take 20 seconds to stop.
            for part in list(live.parts):
                live.kill(part)


def all_at_once(send, sent):
    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(send, sent))


def test_burst_gives_every_customer_a_run_and_only_records_pass_a_gate(world):
    """Forged webhooks start runs that wait. Duplicates and invalid webhooks in a burst do not affect the others."""
    stuck = [f"stuck-{number}" for number in range(SIZE.stuck)]
    assert set(all_at_once(world.post, [body(link) for link in stuck])) == {200}
    waiting = {link: ["deferred"] for link in stuck}
    world.live.wait_until(
        "gates without a statement wait",
        lambda: world.tasks(ON_WEBHOOK, "wait_for_statement", "stuck-") == waiting,
        PATIENCE,
    )

    links = [f"burst-{number}" for number in range(SIZE.at_once)]
    sent = [world.complete(link) for link in links]
    invalid = body("burst-invalid", reason="\0")
    codes = all_at_once(world.post, [*sent, *sent[::5], invalid, "{"])
    assert codes == [200] * (len(links) + len(links[::5])) + [400, 400]
    assert world.post(sent[0], token="x" * len(TOKEN)) == 404
    assert world.post(sent[0], token=PREVIOUS) == 200

    assert Counter(event["link_id"] for event in world.events("burst-")) == dict.fromkeys(links, 1)
    world.live.wait_until("the work is done for every customer", lambda: world.done("burst-") == set(links), PATIENCE)
    assert world.tasks(ON_WEBHOOK, "wait_for_statement", "burst-") == {link: ["success"] for link in links}
    world.live.wait_until(
        "the other DAG has runs", lambda: world.tasks(LISTENER, "nothing", "burst-").keys() == set(links), PATIENCE
    )

    # The gates have checked BankConnect's records, which have nothing for these links, and still wait.
    assert world.tasks(ON_WEBHOOK, "wait_for_statement", "stuck-") == waiting
    assert len(world.box.calls("webhook_payloads")) >= len(links) + len(stuck)


def test_webhook_wakes_an_open_wait_before_its_next_poke(world):
    """The next poke is an hour away: a forged webhook only causes a poke, the real one ends the wait."""
    live = world.live
    conf = {"link_id": "woken-1", "since": "2026-01-01T00:00:00Z"}
    run = live.api("POST", f"dags/{WAIT}/dagRuns", json={"logical_date": None, "conf": conf})["dag_run_id"]

    def state():
        return world.query("select state from task_instance where run_id = %s and task_id = 'wait_for_statement'", run)[
            0
        ]["state"]

    def pokes():
        return [call for call in world.box.calls("webhook_payloads") if call.query["link_id"] == "woken-1"]

    live.wait_until("the wait is deferred", lambda: state() == "deferred", PATIENCE)
    assert world.post(body("woken-1")) == 200
    live.wait_until("the forged webhook has caused a poke", lambda: len(pokes()) >= 3, PATIENCE)
    assert state() == "deferred"

    # Not the statement of the forged webhook, since that is recorded.
    world.box.play(Statement(link_id="woken-1", entity_id="e-woken-1", statement_id="real", transactions=3))
    assert world.post(body("woken-1", statement_id="real")) == 200
    live.wait_until("the wait has ended", lambda: state() == "success", PATIENCE)


def test_three_statements_of_one_customer_start_three_runs_and_one_does_the_work(world):
    for number in range(3):
        # BankConnect's times have whole seconds: these statements ended two seconds apart.
        ended = {"statement_id": f"s-{number}", "after": 2.0 * (number - 3)}
        world.box.play(Statement(link_id="three-1", entity_id="e-three-1", transactions=3, **ended))
    for number in range(3):
        assert world.post(body("three-1", statement_id=f"s-{number}")) == 200
        world.live.wait_until(
            "the webhook has started a run",
            lambda runs=number + 1: len(world.tasks(ON_WEBHOOK, "is_mine", "three-1").get("three-1", [])) == runs,
            PATIENCE,
        )
    world.live.wait_until(
        "the three runs have ended",
        lambda: (
            sorted(world.tasks(ON_WEBHOOK, "count_transactions", "three-1")["three-1"], key=str)
            == ["skipped", "skipped", "success"]
        ),
        PATIENCE,
    )


def test_events_recorded_while_a_dag_is_paused_can_be_recorded_again(world):
    live = world.live
    live.unpause(LISTENER, paused=True)
    sent = [world.complete(f"paused-{number}") for number in range(3)]
    assert set(all_at_once(world.post, sent)) == {200}
    live.unpause(LISTENER)
    links = {str(one["link_id"]) for one in sent}
    live.wait_until("the other DAG has run", lambda: world.done("paused-") == links, PATIENCE)
    assert world.tasks(LISTENER, "nothing", "paused-") == {}

    catch_up(world, links, again=True)

    live.wait_until("they have runs", lambda: world.tasks(LISTENER, "nothing", "paused-").keys() == links, PATIENCE)


def test_webhooks_missed_while_the_api_server_is_down_are_caught_up(world):
    live = world.live
    live.stop("api-server")
    links = {f"outage-{number}" for number in range(3)}
    for sent in [world.complete(link) for link in links]:
        with pytest.raises(requests.ConnectionError):
            world.post(sent)
    live.start("api-server")
    live.wait_until_up(PATIENCE)

    counts = [catch_up(world, links), catch_up(world, links)]

    live.wait_until("the work is done", lambda: world.done("outage-") == links, PATIENCE)
    assert [(count["recorded"], count["duplicates"]) for count in counts] == [(3, 0), (0, 3)]


def catch_up(world, links, *, again=False):
    live = world.live
    with contextlib.suppress(requests.HTTPError):
        live.api("DELETE", "variables/bankconnect_expected_links")
    live.api(
        "POST",
        "variables",
        json={"key": "bankconnect_expected_links", "value": json.dumps(sorted(links))},
    )
    run = live.api("POST", f"dags/{CATCH_UP}/dagRuns", json={"logical_date": None, "conf": {"again": again}})
    path = f"dags/{CATCH_UP}/dagRuns/{run['dag_run_id']}"
    live.wait_until("catch-up has ended", lambda: live.api("GET", path)["state"] in {"success", "failed"}, PATIENCE)
    return live.api("GET", f"{path}/taskInstances/catch_up/xcomEntries/return_value?deserialize=true")["value"]


def test_killed_api_server_loses_no_acknowledged_event_and_duplicates_none(world):
    """The sandbox sends unanswered webhooks again: in the end, each statement has one event."""
    live, box = world.live, world.box
    live.unpause(ON_WEBHOOK, paused=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", box.connection_json)
        with BankConnectHook() as hook:
            url = f"{live.url}/bankconnect/webhook/{CONN_ID}/{TOKEN}"
            hook.update_webhook(url, 1, allow_private_host=True)
    links: set[str] = set()

    def unreachable(before):
        return any(one.outcome == "unreachable" for one in box.deliveries[before:])

    try:
        for kill in range(SIZE.kills):
            more = [f"killed-{kill}-{number}" for number in range(40)]
            before = len(box.deliveries)
            for link in more[:30]:
                world.complete(link)
            links |= set(more)
            live.wait_until("the burst has begun", lambda before=before: len(box.deliveries) > before + 5, PATIENCE)
            live.kill("api-server")
            for link in more[30:]:
                world.complete(link)
            live.wait_until("webhooks get no answer", lambda before=before: unreachable(before), PATIENCE)
            live.start("api-server")
            live.wait_until_up(PATIENCE)

        def answered():
            return {str(one.body["link_id"]) for one in box.deliveries if one.status == 200}

        live.wait_until("every webhook has been answered", lambda: links <= answered(), PATIENCE)
    finally:
        live.unpause(ON_WEBHOOK)
    assert Counter(event["link_id"] for event in world.events("killed-")) == dict.fromkeys(links, 1)
    live.wait_until(
        "every customer has a run", lambda: world.tasks(LISTENER, "nothing", "killed-").keys() == links, PATIENCE
    )


def test_no_secret_and_no_account_number_is_in_a_log_or_table(world, monkeypatch):
    """Must be the last test of this file, to cover all others."""
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", world.box.connection_json)
    with BankConnectHook() as hook:
        # A task has read it for this customer.
        (account,) = hook.get_transactions("e-burst-0")["accounts"]
    secrets = {
        "token": TOKEN,
        "previous token": PREVIOUS,
        "internal token": address.internal_token(TOKEN),
        "API key": world.box.api_key,
        "server hash": world.box.server_hash,
        "account number": account["account_number"],
        "TLS key": "PRIVATE KEY",
    }
    traces = list(traces_of(world))
    # The search does find the link of a wait that is still open.
    seen = {leak.where for leak in leaks_in(traces, {"canary": "stuck-0"})}
    assert {"table asset_event", "table trigger", "table dag_run", "api-server.log"} <= seen
    assert any(where.startswith("logs/") for where in seen)

    assert leaks_in(traces, secrets) == set()
    assert world.live.log("api-server").read_text(encoding="utf-8").count("path=/bankconnect/***") > 5


def traces_of(world):
    yield from ((name, hay) for name, hay in files_in(world.live.home) if name != "server.key")
    tables = world.query("select table_name from information_schema.tables where table_schema = 'public'")
    for (table,) in (row.values() for row in tables):
        for row in world.query(f'select * from "{table}"'):  # noqa: S608 - names from the database itself
            yield from of_row(table, row, world.live.environment["AIRFLOW__CORE__FERNET_KEY"])
