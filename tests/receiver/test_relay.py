"""The relay: it answers as the webhook receiver does, keeps what it answers 200, and hands it on once and in order."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sqlite3
import stat
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import requests
from receivers import CONN_ID, CUT_OFF, JSON, NEEDS_3_2, NO_DAG, ODD, PREVIOUS, TOKEN, path_to, statement, until
from relays import NOWHERE, Process, RestApi, event, open_queue, running, served_app
from test_bad_input import FIELDS, NOT_OBJECTS, OUT_OF_BOUNDS, REQUIRED, WRONG_TYPES

from airflow_provider_bankconnect.operators.bankconnect import BankConnectRelayOperator
from airflow_provider_bankconnect.operators.relay import RelayError
from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError
from airflow_provider_bankconnect.relay import push
from airflow_provider_bankconnect.relay.command import main
from airflow_provider_bankconnect.relay.queue import Queue, Settled, Webhook
from airflow_provider_bankconnect.relay.settings import Settings

pytestmark = NEEDS_3_2

INTERNAL = ("authorization", f"Bearer {names.internal_token(TOKEN)}")


@pytest.fixture
def queue(tmp_path):
    queue = open_queue(tmp_path)
    yield queue
    queue.close()


@pytest.fixture(params=["sqlite", "postgres"])
def queues(request, tmp_path):
    """Two relays' queues in one database."""
    url = (
        f"sqlite:///{tmp_path / 'shared.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres").url
    )
    both = [Queue(url, 1000), Queue(url, 1000)]
    for one in both:
        one.create()
    yield both
    for one in both:
        one.close()


@pytest.fixture
def airflow(served, box):
    """The settings of a relay that hands on to the webhook receiver."""
    return replace(NOWHERE, to="receiver", api_server_url=served.url, ca_file=box.ca_file)


@pytest.fixture
def _quick(monkeypatch):
    """Pauses are short."""
    monkeypatch.setattr(push, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(push, "_LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(push, "_IDLE_SECONDS", 0.02)


def kept(*changes, conn_id=CONN_ID):
    return [(conn_id, event(**statement(**change))) for change in changes]


def statements(found):
    return [one.fields["statement_id"] for one in found]


# Answers


async def test_bad_input_gets_the_answer_of_the_receiver(receiver, sqlite, queue):
    bodies = [body for body, _ in NOT_OBJECTS.values()]
    bodies += [statement(**{name: value}) for name in FIELDS for value in WRONG_TYPES.values()]
    bodies += [statement(**{name: value}) for name in FIELDS for value in OUT_OF_BOUNDS[name]]
    bodies += [{name: value for name, value in statement().items() if name != missing} for missing in REQUIRED]
    bodies += [{"event_name": "x"}, statement(link_id=None, entity_id=""), statement(padding="x" * 64 * 1024)]
    good = json.dumps(statement()).encode()
    paths = ["/webhook", "/webhook/", f"//webhook/{CONN_ID}/{TOKEN}", f"/webhook/{CONN_ID}/{TOKEN}/", "/other", "/"]
    async with running(queue) as relay:

        async def compare(*request, **more):
            """Send a request to both; Airflow's middlewares add headers."""
            of_relay, of_receiver = [await one.send(*request, **more) for one in (relay, receiver)]
            assert of_relay._replace(headers={}) == of_receiver._replace(headers={})
            assert of_relay.headers.items() <= of_receiver.headers.items()

        for body in bodies:
            await compare(path_to(), [body if isinstance(body, bytes) else json.dumps(body).encode()], headers=[JSON])
        for path in paths:
            await compare(names.PREFIX + path, [good], headers=[JSON])
        for token in ("wrong", TOKEN[:-1], TOKEN.upper(), "%00", "%FF", PREVIOUS):
            await compare(path_to(token=token), [good])
        for more in ({"headers": []}, {"headers": [("content-type", "text/plain")]}, {"method": "GET"}):
            await compare(path_to(), [b"no"], **more)
            await compare(path_to(), [good[:9], CUT_OFF], **more)
        for conn_id in (".", "..", " ", "None"):
            await compare(path_to(conn_id), [good])
    assert queue.status().waiting == 0
    assert not sqlite.events


async def test_webhook_is_in_the_queue_before_its_answer(queue, tmp_path):
    unusual = [
        statement(link_id=None),
        statement(statement_id="", progress="failed"),
        statement(link_id="ऋण/४७ \U0001f514"),
    ]
    async with running(queue) as relay:
        for count, body in enumerate(unusual, start=1):
            answer = await relay.post(body, conn_id=ODD)
            assert (answer.status, answer.json()) == (200, {"status": "queued"})
            with sqlite3.connect(tmp_path / "queue.db") as other:
                assert other.execute("select count(*) from bankconnect_relay_webhook").fetchone() == (count,)
            other.close()
    _, found = queue.take(10, 60)
    assert [one.fields for one in found] == unusual
    assert {one.conn_id for one in found} == {ODD}
    assert stat.S_IMODE((tmp_path / "queue.db").stat().st_mode) == 0o600


async def test_check_of_the_address_is_answered_as_by_the_receiver(queue):
    """So BankConnectUpdateWebhookOperator registers the relay's address if public_url is that."""
    path = path_to(token=names.check_token(TOKEN, CONN_ID))
    async with running(queue) as relay:
        assert (await relay.send(path, [b"{}"])).json() == names.READY
        assert (await relay.send("/health", method="GET")).json() == names.READY


async def test_full_queue_is_a_503_until_there_is_room(tmp_path):
    queue = open_queue(tmp_path, limit=3)
    async with running(queue) as relay:
        answers = await asyncio.gather(*(relay.post(statement(link_id=f"loan-{number}")) for number in range(5)))
        assert Counter(answer.status for answer in answers) == {200: 3, 503: 2}
        assert {answer.detail for answer in answers if answer.status == 503} == {"The queue is full"}
        assert (await relay.send("/health", method="GET")).status == 503
        claim, found = await relay.relay.on_queue(queue.take, 10, 60)
        await relay.relay.on_queue(queue.settle, claim, [Settled(one.number, "done") for one in found])
        assert (await relay.post(statement())).status == 200


async def test_full_disk_is_a_503_and_what_was_answered_200_is_kept(queue, caplog):
    with queue._engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        # Of this connection, which the queue uses next.
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 40}")
    async with running(queue) as relay:
        bodies = [statement(link_id=f"loan-{number}", reason="x" * 9000) for number in range(40)]
        answers = [await relay.post(body) for body in bodies]
        statuses = Counter(answer.status for answer in answers)
        assert statuses.keys() == {200, 503}
        assert queue.status().waiting == statuses[200]
        assert {answer.detail for answer in answers if answer.status == 503} == {
            "The queue could not keep it (OperationalError)"
        }
    assert "xxx" not in caplog.text


# The queue


def test_queue_gives_the_oldest_of_each_customer_and_the_next_one_when_that_is_settled(queue):
    queue.keep(kept({"statement_id": "1"}, {"statement_id": "2"}, {"link_id": "loan-2", "statement_id": "3"}))
    queue.keep(kept({"statement_id": "4"}, conn_id=ODD))
    claim, found = queue.take(10, 60)
    assert statements(found) == ["1", "3", "4"]
    assert queue.take(10, 60)[1] == []
    first, second, third = found
    how = [Settled(first.number, "again", seconds=60), Settled(second.number, "done"), Settled(third.number, "free")]
    assert queue.settle(claim, how) == 3
    # A later webhook of a customer waits for an earlier one.
    claim, found = queue.take(10, 60)
    assert statements(found) == ["4"]
    assert queue.take(10, 60, without=[CONN_ID])[1] == []


def test_webhook_that_is_set_aside_does_not_hold_up_its_customer_and_can_be_put_back(queue):
    queue.keep(kept({"statement_id": "1"}, {"statement_id": "2"}))
    claim, (one,) = queue.take(10, 60)
    queue.settle(claim, [Settled(one.number, "refused", why="HTTP 400")])
    status = queue.status()
    assert (status.waiting, status.refused, status.reasons) == (1, 1, {"HTTP 400": 1})
    assert statements(queue.take(10, 60)[1]) == ["2"]
    assert queue.requeue() == 1
    assert statements(queue.take(10, 60)[1]) == ["1"]


def test_claim_ends_with_its_time_and_can_then_settle_nothing(tmp_path):
    now = [1000.0]
    queue = open_queue(tmp_path, clock=lambda: now[0])
    queue.keep(kept({}))
    late, (one,) = queue.take(10, 60)
    now[0] += 61
    claim, (again,) = queue.take(10, 60)
    assert again.relay_id == one.relay_id
    assert queue.settle(late, [Settled(one.number, "done")]) == 0
    assert queue.settle(claim, [Settled(one.number, "done")]) == 1
    queue.close()


def test_two_relays_on_one_queue_take_each_webhook_once_and_in_order(queues):
    wanted = [f"{number}-{customer}" for number in range(4) for customer in range(30)]
    for one, part in zip(queues, (wanted[:60], wanted[60:]), strict=True):
        one.keep(kept(*({"statement_id": name, "link_id": name.partition("-")[2]} for name in part)))
    taken, lock = [], threading.Lock()

    def work(queue):
        while queue.status().waiting:
            claim, found = queue.take(7, 60)
            with lock:
                taken.extend(statements(found))
            queue.settle(claim, [Settled(one.number, "done") for one in found])

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, queues))
    assert sorted(taken) == sorted(wanted)
    for customer in range(30):
        assert [name for name in taken if name.endswith(f"-{customer}")] == [
            f"{number}-{customer}" for number in range(4)
        ]


# Handing on to the webhook receiver


@pytest.mark.usefixtures("_quick")
async def test_webhooks_are_recorded_once_and_in_order(airflow, sqlite, queue, monkeypatch):
    monkeypatch.setattr(push, "_MOST", 3)
    login = statement(statement_id="", progress="failed")
    async with running(queue, airflow) as relay:
        for number in range(4):
            assert (await relay.post(statement(statement_id=str(number)))).status == 200
        for _ in range(2):
            # Two equal failed logins are two webhooks; a repeated completed statement is none.
            assert (await relay.post(login)).status == 200
            assert (await relay.post(statement(statement_id="3"))).status == 200
        await until(lambda: queue_is_empty(queue))
    assert sqlite.recorded == ["0", "1", "2", "3", "", ""]
    assert all(re.fullmatch("[0-9a-f]{32}", extra.pop("relay_id")) for _, _, extra in [*sqlite.events])
    assert relay.relay.pusher.counts == {"recorded": 6, "duplicate": 2}


def queue_is_empty(queue):
    # Its transactions are short, and this is another connection.
    return queue.status().waiting == 0


@pytest.mark.usefixtures("_quick")
async def test_webhook_whose_answer_is_lost_is_recorded_once(airflow, sqlite, queue):
    queue.keep(kept({}, {"statement_id": "", "progress": "failed", "link_id": "loan-2"}))
    target = running(queue, airflow)
    claim, found = queue.take(10, 60)
    async with target as relay:
        # A relay that was killed after its request.
        results = await asyncio.to_thread(relay.relay._target().hand_on, CONN_ID, found, claim)
        assert [result.how for result in results] == ["recorded", "recorded"]
        queue.settle(claim, [Settled(one.number, "free") for one in found])
        await until(lambda: queue_is_empty(queue))
    assert len(sqlite.events) == 2


@pytest.mark.usefixtures("_quick")
async def test_airflow_may_be_down_or_refuse_all_and_gets_everything_when_it_is_up(
    served, airflow, sqlite, queue, caplog
):
    caplog.set_level(logging.INFO)
    front = served.front
    problems = [
        (502, {}, b"<html>"),
        (503, {}, b'{"detail": "full"}'),
        (401, {}, b"{}"),
        (403, {}, b"{}"),
        (404, {}, b""),
    ]
    problems += [(400, {}, b'{"detail": "old"}'), (413, {}, b""), (200, {}, b'{"recorded": 1}'), (429, {}, b"")]
    async with running(queue, airflow) as relay:
        for number, problem in enumerate(problems):
            front.instead = problem
            assert (await relay.post(statement(statement_id=str(number)))).status == 200
            tried = len(front.requests)
            await until(lambda tried=tried: len(front.requests) >= tried + 3)
        status = queue.status()
        assert (status.waiting, status.refused) == (len(problems), 0)
        front.instead = None
        await until(lambda: queue_is_empty(queue))
    assert sqlite.recorded == [str(number) for number in range(len(problems))]
    assert "Webhooks wait in the queue" in caplog.text
    assert "Webhooks are handed on again" in caplog.text
    assert "loan-1" not in "".join(record.getMessage() for record in caplog.records if "relay" in record.name)


@pytest.mark.usefixtures("_quick")
async def test_webhook_that_airflow_refuses_is_set_aside_and_the_others_are_recorded(airflow, sqlite, queue, caplog):
    poison = event(**statement(link_id="secret-loan")).model_copy(update={"progress": ""})
    queue.keep(
        [*kept({"link_id": "before"}), (CONN_ID, poison), *kept({"link_id": "secret-loan"}, {"link_id": "after"})]
    )
    async with running(queue, airflow) as relay:
        await until(lambda: queue_is_empty(queue))
        answer = await relay.send(f"{names.PREFIX}/queue", method="GET", headers=[INTERNAL])
    assert answer.json()["refused"] == 1
    (reason,) = answer.json()["reasons"]
    assert reason.startswith("HTTP 400: progress: ")
    assert sorted(extra["link_id"] for _, _, extra in sqlite.events) == ["after", "before", "secret-loan"]
    assert "is set aside" in caplog.text
    assert "secret-loan" not in "".join(record.getMessage() for record in caplog.records if "relay" in record.name)


@pytest.mark.usefixtures("_quick")
async def test_connection_without_a_dag_does_not_hold_up_the_others(airflow, sqlite, queue):
    queue.keep([*kept({}, conn_id=NO_DAG), *kept({}, conn_id="unknown"), *kept({"statement_id": "other"})])
    async with running(queue, airflow):
        await until(lambda: sqlite.recorded == ["other"])
        await until(lambda: queue.status().connections == {NO_DAG: 1, "unknown": 1})
    assert queue.status().refused == 0


@pytest.mark.usefixtures("_quick")
async def test_webhook_that_airflow_cannot_record_is_tried_again_before_later_ones_of_its_customer(
    airflow, sqlite, queue, monkeypatch
):
    monkeypatch.setattr(push, "_LONGEST_BACK_OFF", 0.02)
    refused = "when new.extra like '%\"statement_id\": \"1\"%' begin select raise(abort, 'refused'); end"
    sqlite.change(f"create trigger refuse before insert on asset_event {refused}")
    queue.keep(kept({"statement_id": "1"}, {"statement_id": "2"}, {"statement_id": "3", "link_id": "loan-2"}))
    async with running(queue, airflow) as relay:
        await until(lambda: relay.relay.pusher.counts["failed"] > 2)
        assert sqlite.recorded == ["3"]
        sqlite.change("drop trigger refuse")
        await until(lambda: queue_is_empty(queue))
    assert sqlite.recorded == ["3", "1", "2"]


def test_webhook_that_fails_for_a_day_is_set_aside():
    one = Webhook(1, "a", CONN_ID, statement(), tries=push._MOST_TRIES)
    assert push.settle(one, push.Result("failed")).how == "refused"
    waits = [push.settle(replace(one, tries=tries), push.Result("failed")).seconds for tries in range(push._MOST_TRIES)]
    assert waits[:3] == [1, 2, 4]
    assert 20 < sum(waits) / 3600 < 26


# Handing on to Airflow's REST API


@pytest.mark.usefixtures("_quick")
async def test_rest_api_gets_each_event_once_even_if_an_answer_is_lost(queue):
    api = RestApi()
    with served_app(api.app) as url:
        settings = replace(NOWHERE, to="rest_api", api_server_url=url, user=("relay", "secret-4711"))
        async with running(queue, settings) as relay:
            assert (await relay.post(statement())).status == 200
            await until(lambda: queue_is_empty(queue))
            # A repeated one, and one whose answer is lost, with a token that has expired.
            api.logins, api.next = 7, ["lost", 503, 502]
            for body in (statement(), statement(statement_id="2"), statement(statement_id="", progress="failed")):
                assert (await relay.post(body)).status == 200
            await until(lambda: queue_is_empty(queue))
            api.next = [422]
            assert (await relay.post(statement(statement_id="poison"))).status == 200
            assert (await relay.post(statement(statement_id="3"))).status == 200
            await until(lambda: queue_is_empty(queue))
    assert [one["extra"]["statement_id"] for one in api.events] == ["statement-1", "2", "", "3"]
    first = api.events[0]
    first["extra"].pop("relay_id")
    assert first == {"asset_id": 8, "partition_key": "link:loan-1", "extra": statement()}
    assert queue.status().reasons == {"HTTP 422": 1}


# Fetched by a task


@pytest.fixture
def relay_url(queue, configure):
    """The address of a relay that hands nothing on."""
    configure(webhook_token=TOKEN)
    from airflow_provider_bankconnect.relay.app import Relay  # noqa: PLC0415 - as the relay's own process does

    other = Queue(str(queue._engine.url), 1000)
    with served_app(Relay(NOWHERE, other).make_app()) as url:
        yield url


def fetch(relay_url, **more):
    return BankConnectRelayOperator(task_id="fetch", relay_url=relay_url, **more).execute({})


def test_task_fetches_records_and_settles(served, sqlite, queue, relay_url):
    poison = event(**statement(link_id="loan-3")).model_copy(update={"progress": ""})
    queue.keep([*kept({"statement_id": "1"}, {"statement_id": "2"}, {"statement_id": "1"}), (CONN_ID, poison)])
    counts = fetch(relay_url)
    assert counts == {"fetched": 4, "recorded": 2, "duplicates": 1, "failed": 0, "refused": 1}
    assert sqlite.recorded == ["1", "2"]
    assert queue.status().waiting == 0
    assert served.front.requests[0] == f"POST {names.PREFIX}/events/{CONN_ID}"


def test_webhooks_that_are_not_recorded_stay_in_the_queue(served, sqlite, queue, relay_url):
    queue.keep([*kept({"statement_id": "1"}), *kept({}, conn_id=NO_DAG)])
    with pytest.raises(WebhookReceiverError, match=r"stay in the relay's queue: .*No DAG was ever scheduled"):
        fetch(relay_url)
    assert sqlite.recorded == ["1"]
    assert queue.status().connections == {NO_DAG: 1}
    served.front.instead = (502, {}, b"")
    queue.keep(kept({"statement_id": "2"}))
    with pytest.raises(WebhookReceiverError, match="HTTP 502"):
        fetch(relay_url)
    assert queue.status().waiting == 2


@pytest.mark.usefixtures("served")
def test_task_waits_for_webhooks_as_long_as_it_should(sqlite, queue, relay_url):
    def post():
        time.sleep(0.3)
        requests.post(relay_url + path_to(), json=statement(), timeout=60).raise_for_status()

    thread = threading.Thread(target=post)
    thread.start()
    assert fetch(relay_url, duration="2")["recorded"] == 1
    thread.join()
    assert sqlite.recorded == ["statement-1"]
    assert queue.status().waiting == 0


def test_task_says_what_is_wrong_with_the_relay(served, relay_url, configure):
    with pytest.raises(RelayError, match=r"No answer from the relay at .*check relay_url"):
        fetch("http://127.0.0.1:9")
    with pytest.raises(RelayError, match="HTTP 404: check relay_url"):
        fetch(f"{relay_url}/other")
    configure(webhook_token="another-token-of-the-tests")
    with pytest.raises(RelayError, match="HTTP 401: check that its webhook token is that of this Airflow"):
        fetch(relay_url)
    configure(webhook_token=None)
    with pytest.raises(ValueError, match="receiver is off"):
        fetch(relay_url)
    for bad in ("ftp://x", "relay.example.com", "https://user:password@x", "https://x?y"):
        with pytest.raises(ValueError, match="relay_url must be"):
            BankConnectRelayOperator(task_id="fetch", relay_url=bad)
    for bad in (-1, "soon", True, "nan", "inf"):
        with pytest.raises(ValueError, match="duration must be"):
            BankConnectRelayOperator(task_id="fetch", relay_url=relay_url, duration=bad)
    assert not served.front.requests


async def test_queue_is_only_for_the_internal_token(queue):
    queue.keep(kept({}))
    async with running(queue) as relay:
        for method, path in (("GET", "/queue"), ("POST", "/queue/take"), ("POST", "/queue/settle")):
            for headers in ([], [("authorization", f"Bearer {TOKEN}")]):
                answer = await relay.send(names.PREFIX + path, [b"{}"], method=method, headers=headers)
                assert (answer.status, answer.pieces) == (401, 0)
        for path, body in (
            ("take", {"most": 0}),
            ("take", {"seconds": 10_000}),
            ("take", {"wait": "x"}),
            ("settle", {}),
            ("settle", {"claim": "x", "outcomes": [{"number": 1, "how": "lost"}]}),
        ):
            sent = [json.dumps(body).encode()]
            answer = await relay.send(f"{names.PREFIX}/queue/{path}", sent, headers=[JSON, INTERNAL])
            assert answer.status == 400
    assert queue.status().waiting == 1


# The command


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "WEBHOOK_TOKEN is not set"),
        ({"AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": "weak"}, "at least 16 characters"),
        ({"AIRFLOW__BANKCONNECT__API_SERVER_URL": "airflow"}, "API_SERVER_URL must be"),
        ({"BANKCONNECT_RELAY_TO": "nowhere"}, "TO must be one of receiver, rest_api, operator"),
        ({"BANKCONNECT_RELAY_TO": "rest_api"}, "needs BANKCONNECT_RELAY_API_TOKEN"),
        ({"BANKCONNECT_RELAY_API_USERNAME": "x"}, "set both or neither"),
        ({"BANKCONNECT_RELAY_LIMIT": "0"}, "LIMIT must be"),
        ({"BANKCONNECT_RELAY_LIMIT": "many"}, "LIMIT must be"),
    ],
)
def test_invalid_setting_is_named(environment, problem):
    good = {"AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN, "AIRFLOW__BANKCONNECT__API_SERVER_URL": "https://airflow"}
    with pytest.raises(ValueError, match=problem):
        Settings.read(good | environment if environment else {})


def test_settings_show_no_secret():
    secrets = {"BANKCONNECT_RELAY_API_USERNAME": "PRIVATE", "BANKCONNECT_RELAY_API_PASSWORD": "PRIVATE"}
    secrets |= {"BANKCONNECT_RELAY_DATABASE": "postgresql://a:PRIVATE@b/c", "BANKCONNECT_RELAY_API_TOKEN": "PRIVATE"}
    url = {"AIRFLOW__BANKCONNECT__API_SERVER_URL": "https://airflow", "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN}
    shown = repr(Settings.read(secrets | url))
    assert "PRIVATE" not in shown
    assert TOKEN not in shown


def kill_in_bursts(relay, times):
    """Kill a relay in the middle of a burst, so often; return the links of the webhooks that it answered 200."""
    answered = []
    for kill in range(times):
        with relay.started() as process, ThreadPoolExecutor(20) as pool:
            login = {"statement_id": "", "progress": "failed"}
            bodies = [statement(link_id=f"loan-{kill}-{number}", **login) for number in range(50)]
            bodies += [statement(link_id=f"loan-{kill}-{number}") for number in range(50, 100)]
            random.shuffle(bodies)
            posts = [pool.submit(relay.post, body) for body in bodies]
            time.sleep(random.uniform(0.05, 0.6))
            process.kill()
            answered += [body["link_id"] for body, post in zip(bodies, posts, strict=True) if post.result()]
    assert len(answered) > times
    return answered


def test_killed_relay_has_kept_all_that_it_answered_200_and_logs_no_key(tmp_path):
    relay = Process(tmp_path)
    answered = kill_in_bursts(relay, 2)
    queue = open_queue(tmp_path)
    _, found = queue.take(1000, 60)
    queue.close()
    in_queue = [one.fields["link_id"] for one in found]
    assert set(answered) <= set(in_queue)
    assert len(in_queue) == len(set(in_queue))
    for word in (TOKEN, names.internal_token(TOKEN), "loan-"):
        assert word not in relay.output
    assert "Queued" in relay.output


@pytest.mark.long
def test_relay_that_is_killed_ten_times_has_handed_on_all_that_it_answered_200_once(served, sqlite, box, tmp_path):
    relay = Process(
        tmp_path,
        BANKCONNECT_RELAY_TO="receiver",
        AIRFLOW__BANKCONNECT__API_SERVER_URL=served.url,
        AIRFLOW__API__SSL_CA_FILE=box.ca_file,
    )
    answered = kill_in_bursts(relay, 10)
    queue = open_queue(tmp_path)
    with relay.started():
        # Claims of the killed ones are over after a minute.
        end = time.monotonic() + 300
        while queue.status().waiting:
            assert time.monotonic() < end
            time.sleep(0.5)
    queue.close()
    recorded = [extra["link_id"] for _, _, extra in sqlite.events]
    assert set(answered) <= set(recorded)
    assert len(recorded) == len(set(recorded))
    assert TOKEN not in relay.output
    assert "loan-" not in relay.output


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in this process, with a queue in a file; return its exit code and what it printed."""

    def run(*options, **environment):
        usual = {"BANKCONNECT_RELAY_TO": "operator", "BANKCONNECT_RELAY_DATABASE": f"sqlite:///{tmp_path / 'queue.db'}"}
        for name, value in (usual | environment | {"AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN}).items():
            monkeypatch.setenv(name, value)
        try:
            code = main(options)
        except SystemExit as end:
            code = end.code
        return code, "".join(capsys.readouterr())

    return run


def test_command_says_what_is_in_the_queue_and_puts_back_what_was_set_aside(command, queue):
    queue.keep(kept({"statement_id": "1"}, {"statement_id": "2"}))
    claim, (one,) = queue.take(10, 60)
    queue.settle(claim, [Settled(one.number, "refused", why="HTTP 400: progress")])
    code, printed = command("--status")
    assert code == 0
    assert re.fullmatch(
        r"waiting:   1 of at most 100000, the oldest for \d+ s\n +1 of 'bankconnect_default'\n"
        r"set aside: 1\n +1: HTTP 400: progress\n",
        printed,
    )
    code, printed = command("--requeue")
    assert (code, printed.splitlines()[0]) == (0, "1 webhooks are put back")
    assert queue.status().waiting == 2


def test_command_says_what_is_wrong_without_a_secret(command, tmp_path):
    code, printed = command(BANKCONNECT_RELAY_DATABASE=f"sqlite:///{tmp_path}/no/PRIVATE.db")
    assert (code, "BANKCONNECT_RELAY_DATABASE cannot be opened" in printed) == (1, True)
    code, more = command(BANKCONNECT_RELAY_TO="PRIVATE")
    assert (code, "BANKCONNECT_RELAY_TO must be one of" in more) == (2, True)
    assert "PRIVATE" not in printed + more
