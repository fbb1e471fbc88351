"""What Airflow's own parts say to the doorbell, over a real wire: tasks that catch up, gates, and triggerers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
import requests
import uvicorn
from doorbells import NEEDS, TOKEN, api_server, statement

from airflow_provider_bankconnect.api import BankConnectAuthError, BankConnectError
from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.receiver import address, client, rings
from airflow_provider_bankconnect.receiver.client import DoorbellError, tell_receiver
from airflow_provider_bankconnect.sandbox import Fault, Sandbox
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor
from airflow_provider_bankconnect.triggers import bell as bells
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger

pytestmark = [NEEDS, pytest.mark.usefixtures("sqlite")]
CONN_ID = "bankconnect_default"


@contextmanager
def serving(app, **more):
    """Serve on loopback; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off", **more))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def asked():
    """Paths that the API server was asked for."""
    return []


@pytest.fixture
def receiver(configure, asked, monkeypatch):
    """A doorbell that Airflow's own parts find where Airflow says that it is."""
    configure(webhook_token=TOKEN)
    app = api_server()

    async def noting(scope, receive, send):
        asked.append(scope["path"])
        await app(scope, receive, send)

    with serving(noting) as port:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"http://127.0.0.1:{port}/execution/")
        yield port


@pytest.fixture
def box(monkeypatch):
    with Sandbox() as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", sandbox.connection_json)
        yield sandbox


def completed(box, link, number=1, **more):
    row = {"link_id": link, "entity_id": f"e-{link}", "statement_id": f"{link}-{number}"}
    box.payload(**row | {"progress": "completed", "reason": ""} | more)


def catch_up(*links, **arguments):
    return BankConnectCatchUpOperator(task_id="catch_up", link_ids=list(links), **arguments).execute({})


# Catching up


@pytest.mark.usefixtures("receiver")
def test_what_nobody_has_rung_for_rings_and_nothing_twice(box, sqlite):
    completed(box, "loan-1")
    completed(box, "loan-1", 2)
    completed(box, "loan-2")
    completed(box, "loan-3", progress="failed", reason="Password protected")
    assert catch_up("loan-1", "loan-2", "loan-3", "nobody", "loan-1") == {
        "links": 4,
        "completed": 3,
        "rung": 3,
        "repeated": 0,
    }
    assert sorted(sqlite.rung) == ["loan-1-1", "loan-1-2", "loan-2-1"]
    assert catch_up("loan-1", "loan-2")["rung"] == 0
    assert catch_up("loan-1", "loan-2", again="True")["rung"] == 3
    assert len(sqlite.events) == 6


@pytest.mark.usefixtures("receiver")
def test_two_that_catch_up_at_once_ring_once(box, sqlite):
    links = [f"loan-{number}" for number in range(10)]
    for link in links:
        completed(box, link)
    with ThreadPoolExecutor() as pool:
        counts = list(pool.map(lambda _: catch_up(*links), range(2)))
    assert sum(count["rung"] for count in counts) == 10
    assert sorted(sqlite.rung) == sorted(f"{link}-1" for link in links)


@pytest.mark.usefixtures("receiver")
def test_what_was_completed_before_since_is_left_out_and_a_statement_is_what_its_newest_row_says(box, sqlite):
    now = datetime.now(UTC)
    completed(box, "loan-1", 1, date_time=now - timedelta(days=9))
    completed(box, "loan-1", 2, date_time=now - timedelta(hours=2))
    completed(box, "loan-1", 2, date_time=now - timedelta(hours=1), progress="failed")
    completed(box, "loan-1", 3, date_time=now - timedelta(hours=1), progress="failed")
    completed(box, "loan-1", 3, date_time=now)
    assert catch_up("loan-1", since=(now - timedelta(days=7)).isoformat())["rung"] == 1
    assert sqlite.rung == ["loan-1-3"]


@pytest.mark.usefixtures("receiver")
def test_one_link_that_cannot_be_asked_for_does_not_stop_the_others_and_is_told(box, sqlite):
    box.fault(Fault(kind="status", call="webhook_payloads", status=400, times=1))
    completed(box, "loan-2")
    with pytest.raises(BankConnectError, match=r"1 of 2 links could not be asked for, first 'loan-1': .*HTTP 400"):
        catch_up("loan-1", "loan-2")
    assert sqlite.rung == ["loan-2-1"]


@pytest.mark.usefixtures("receiver")
def test_a_wrong_key_stops_it_at_once(box):
    box.fault(Fault(kind="status", call="webhook_payloads", status=401))
    with pytest.raises(BankConnectAuthError):
        catch_up("loan-1", "loan-2")
    assert len(box.calls("webhook_payloads")) == 1


@pytest.mark.usefixtures("receiver", "box")
def test_links_that_are_no_list_are_refused_with_what_to_do():
    operator = BankConnectCatchUpOperator(task_id="catch_up", link_ids="['loan-1']")
    with pytest.raises(ValueError, match="render_template_as_native_obj=True"):
        operator.execute({})
    with pytest.raises(ValueError, match="link_ids must not be blank"):
        catch_up(" ")


@pytest.mark.usefixtures("box")
def test_without_a_token_it_says_what_is_missing(configure):
    configure(webhook_token=None)
    with pytest.raises(ValueError, match=r"set \[bankconnect\] webhook_token"):
        catch_up("loan-1")


# Telling the receiver


def test_more_rings_than_one_request_takes_go_in_several(receiver, asked, monkeypatch, sqlite):
    assert receiver
    monkeypatch.setattr(client, "MOST_RINGS", 2)
    rings = [statement(statement_id=str(number), date_time="not a field of a webhook") for number in range(5)]
    assert tell_receiver(CONN_ID, rings, "ring")["rung"] == 5
    assert len(asked) == 3
    assert "date_time" not in json.dumps(sqlite.events)


def test_a_receiver_that_is_not_there_or_knows_another_token_is_told_with_what_to_do(receiver, configure, monkeypatch):
    assert receiver
    # It reads its own token with the first request.
    assert tell_receiver(CONN_ID, [], "ring") == {}
    tell_receiver(CONN_ID, [statement()], "ring")
    configure(webhook_token="x" * 20)
    with pytest.raises(DoorbellError, match=r"HTTP 404: is \[bankconnect\] webhook_token the same") as caught:
        tell_receiver(CONN_ID, [statement()], "ring")
    assert "x" * 20 not in str(caught.value)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://127.0.0.1:9/execution/")
    with pytest.raises(DoorbellError, match=r"is .*execution_api_server_url .*right"):
        tell_receiver(CONN_ID, [statement()], "ring")


def test_https_is_trusted_as_airflows_own_client_trusts_it(configure, monkeypatch, tmp_path, sqlite):
    configure(webhook_token=TOKEN)
    with Sandbox() as box:
        certificate, key = box.issue_certificate(tmp_path)
        with serving(api_server(), ssl_certfile=str(certificate), ssl_keyfile=str(key)) as port:
            monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"https://localhost:{port}/execution/")
            with pytest.raises(DoorbellError, match="SSLError"):
                tell_receiver(CONN_ID, [statement()], "ring")
            monkeypatch.setenv("AIRFLOW__API__SSL_CERT", str(certificate))
            assert tell_receiver(CONN_ID, [statement()], "ring")["rung"] == 1
    assert sqlite.rung == ["statement-1"]


# A gate that asks whether anybody had rung


@pytest.mark.parametrize("rung", [True, False])
def test_a_gate_has_counted_what_it_found_and_no_webhook_had_announced(rung, receiver, box, caplog):
    completed(box, "loan-1", date_time=datetime.now(UTC) - timedelta(minutes=1))
    if rung:
        url = f"http://127.0.0.1:{receiver}{address.PREFIX}/webhook/{CONN_ID}/{TOKEN}"
        body = statement(link_id="loan-1", entity_id="e-loan-1", statement_id="loan-1-1")
        assert requests.post(url, json=body, timeout=30).json() == {"status": "rung"}
    with caplog.at_level(logging.WARNING):
        BankConnectWebhookPayloadSensor(task_id="gate", link_id="loan-1").execute({"ti": None})
    assert ("found by asking what no webhook had announced" in caplog.text) is not rung


@pytest.mark.usefixtures("receiver")
def test_a_gate_opens_whether_the_doorbell_can_be_asked_or_not(box, monkeypatch):
    completed(box, "loan-1", date_time=datetime.now(UTC) - timedelta(minutes=1))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://127.0.0.1:9/execution/")
    rows = BankConnectWebhookPayloadSensor(task_id="gate", link_id="loan-1").execute({"ti": None})
    assert [row["statement_id"] for row in rows] == ["loan-1-1"]


# Registering the address


@pytest.mark.usefixtures("receiver")
def test_the_doorbells_own_address_is_registered_and_stands_in_no_template_and_no_log(box, configure, caplog, capsys):
    configure(webhook_token=TOKEN, public_url="https://airflow.example.com/team/")
    operator = BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None, webhook_mode=1)
    with caplog.at_level(logging.DEBUG):
        assert operator.execute({}) is None
    assert box.webhook_url == f"https://airflow.example.com/team/bankconnect/webhook/{CONN_ID}/{TOKEN}"
    assert box.webhook_mode == 1
    assert operator.webhook_url is None
    said = caplog.text + "".join(capsys.readouterr())
    assert TOKEN not in said
    assert "sends webhooks to airflow.example.com now" in said


# A triggerer that hears


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bells, "_EVERY_SECONDS", 0.05)


def waiting_for(link):
    return BankConnectWebhookPayloadTrigger(
        link_id=link, deadline=datetime.now(UTC) + timedelta(minutes=10), poke_interval=600
    )


async def fire(wait):
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


async def until(happened):
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - what happens is not ours to signal
            await asyncio.sleep(0.01)


async def ask_for_news(doorbell, after):
    knock = ("authorization", f"Bearer {address.knock(TOKEN)}")
    query = urlencode({"after": after.isoformat()})
    async with asyncio.timeout(60):
        answer = await doorbell.send(f"{address.PREFIX}/rings?{query}", method="GET", headers=[knock])
    return len(answer.json()["rings"])


async def test_who_asks_for_news_is_told_when_they_come(doorbell, monkeypatch):
    monkeypatch.setattr(rings, "_HOLD_SECONDS", 3600.0)
    asking = [asyncio.create_task(ask_for_news(doorbell, datetime.now(UTC))) for _ in range(3)]
    await asyncio.sleep(0.1)
    await doorbell.post(statement(link_id="loan-1"))
    assert await asyncio.gather(*asking) == [1, 1, 1]
    # And what came since the last answer, while nobody asked, is told at once.
    since = datetime.now(UTC)
    await doorbell.post(statement(link_id="loan-2"))
    assert await ask_for_news(doorbell, since) == 2


async def test_who_asks_for_news_is_not_held_for_long(doorbell, monkeypatch):
    monkeypatch.setattr(rings, "_HOLD_SECONDS", 0.01)
    assert await ask_for_news(doorbell, datetime.now(UTC)) == 0


@pytest.mark.usefixtures("quick")
async def test_a_ring_ends_an_open_wait_and_no_other(receiver, box):
    waits = [asyncio.create_task(fire(waiting_for(f"loan-{number}"))) for number in range(3)]
    await until(lambda: len(box.calls("webhook_payloads")) == 3)
    completed(box, "loan-1")
    completed(box, "loan-2")
    url = f"http://127.0.0.1:{receiver}{address.PREFIX}/webhook/{CONN_ID}/{TOKEN}"
    body = statement(link_id="loan-1", entity_id="e-loan-1", statement_id="loan-1-1")
    assert (await asyncio.to_thread(requests.post, url, json=body, timeout=30)).status_code == 200
    event = await waits[1]
    assert (event["status"], event["looks"]) == ("passed", 2)
    assert not waits[0].done()
    assert not waits[2].done()
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert not pollers._pollers.get(asyncio.get_running_loop())
    assert bells.bell()._task is None


@pytest.mark.usefixtures("quick", "receiver")
async def test_a_ring_that_came_just_before_the_wait_is_heard_all_the_same(box):
    await asyncio.to_thread(tell_receiver, CONN_ID, [statement(link_id="loan-1")], "ring")
    wait = asyncio.create_task(fire(waiting_for("loan-1")))
    await until(lambda: len(box.calls("webhook_payloads")) >= 2)
    wait.cancel()
    await asyncio.wait([wait])


@pytest.mark.usefixtures("quick", "box")
async def test_a_doorbell_that_does_not_answer_is_told_once_and_the_waits_go_on(configure, monkeypatch, caplog):
    configure(webhook_token=TOKEN)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://127.0.0.1:9/execution/")
    monkeypatch.setattr(bells, "_LONGEST_PAUSE", 0.05)
    wait = asyncio.create_task(fire(waiting_for("loan-1")))
    await asyncio.sleep(1)
    assert not wait.done()
    assert caplog.text.count("The waits go on without the doorbell") == 1
    assert TOKEN not in caplog.text
    wait.cancel()
    await asyncio.wait([wait])


@pytest.mark.usefixtures("quick")
async def test_without_a_token_nobody_is_asked_anything(receiver, asked, box, configure):
    assert receiver
    configure(webhook_token=None)
    wait = asyncio.create_task(fire(waiting_for("loan-1")))
    await until(lambda: box.calls("webhook_payloads"))
    await asyncio.sleep(0.5)
    assert asked == []
    wait.cancel()
    await asyncio.wait([wait])
