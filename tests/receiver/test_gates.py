"""Gates and the webhook receiver over HTTPS: gates report missed webhooks, and events wake waits in a triggerer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from receivers import CONN_ID, NEEDS_3_2, Caller, api_server, statement, until

from airflow_provider_bankconnect.receiver.client import send_to_receiver
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectWebhookPayloadSensor,
)
from airflow_provider_bankconnect.triggers import listener as listeners
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)

pytestmark = NEEDS_3_2

MISSED = "Missed webhook of 'bankconnect_default', found by a sensor: 'link:loan-1'"


def add_minute_old(box, **more):
    """Add a statement to the payload history whose webhook would have arrived by now."""
    row = {"link_id": "loan-1", "statement_id": "statement-1", "date_time": datetime.now(UTC) - timedelta(minutes=1)}
    box.payload(**row | more)


def pass_gate(**arguments):
    rows = BankConnectWebhookPayloadSensor(task_id="gate", link_id="loan-1", **arguments).execute({"ti": None})
    return [row["statement_id"] for row in rows]


# Missed webhooks


def test_gate_reports_a_missed_webhook(served, box, sqlite, caplog, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.sensors.base._CHECK_SECONDS", 300.0)
    add_minute_old(box)
    assert pass_gate() == ["statement-1"]
    assert served.front.requests == [f"POST /bankconnect/events/{CONN_ID}"]
    assert caplog.text.count(MISSED) == 1
    # It is counted, not recorded.
    assert not sqlite.events


@pytest.mark.usefixtures("served")
async def test_gate_reports_no_recorded_webhook(box, caplog):
    add_minute_old(box)
    assert (await Caller(api_server()).post(statement())).json() == {"status": "recorded"}
    assert pass_gate() == ["statement-1"]
    assert MISSED not in caplog.text


def test_webhook_of_a_new_statement_is_not_missed_yet(served, box, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.sensors.base._WEBHOOK_DELAY", timedelta(minutes=10))
    add_minute_old(box, date_time=None)
    assert pass_gate() == ["statement-1"]
    assert not served.front.requests


@pytest.mark.usefixtures("served")
def test_failed_statement_is_no_missed_webhook(box, caplog):
    add_minute_old(box, progress="failed", date_time=datetime.now(UTC) - timedelta(hours=1))
    assert pass_gate(on_failed="pass") == ["statement-1"]
    assert MISSED not in caplog.text


def test_progress_gate_sends_no_request(served, box):
    box.progress("entity-1", [{"status": "completed", "statement_id": "1", "source": "online", "message": None}])
    assert BankConnectProgressSensor(task_id="gate", entity_id="entity-1").execute({"ti": None})
    assert not served.front.requests


def test_without_token_a_gate_sends_no_request(served, box, configure):
    configure(webhook_token=None)
    add_minute_old(box)
    assert pass_gate() == ["statement-1"]
    assert not served.front.requests


def test_gate_passes_whatever_the_receiver_answers(served, box, configure, api_server_at, tmp_path):
    add_minute_old(box)
    for url, ca_file in (
        ("https://localhost:1", box.ca_file),
        (served.url, None),
        (served.url, str(tmp_path / "none.pem")),
    ):
        api_server_at(url, ca_file)
        assert pass_gate() == ["statement-1"]
    api_server_at(served.url, box.ca_file)
    for instead in ((404, {}, b"{}"), (500, {}, b""), (200, {}, b"<html>"), (302, {"location": "/"}, b"")):
        served.front.instead = instead
        assert pass_gate() == ["statement-1"]
    configure(webhook_token="weak")
    assert pass_gate() == ["statement-1"]


# Waking a wait


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(listeners, "_INTERVAL_SECONDS", 0.05)


async def run(kind, **ids):
    wait = kind(**ids, wait={"deadline": datetime.now(UTC) + timedelta(minutes=10), "poke_interval": 600})
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


async def end(*waits):
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert not pollers._pollers.get(asyncio.get_running_loop())
    assert listeners.event_listener()._task is None


@pytest.mark.usefixtures("_quick", "served")
async def test_event_ends_the_waits_of_its_customer_only(box):
    mine = asyncio.create_task(run(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    progress = asyncio.create_task(run(BankConnectProgressTrigger, entity_id="entity-1"))
    others = [asyncio.create_task(run(BankConnectWebhookPayloadTrigger, link_id=f"loan-{n}")) for n in (2, 3)]
    await until(lambda: len(box.calls("webhook_payloads")) == 3 and box.calls("transactions"))
    # Two statements are completed, and one webhook is sent.
    add_minute_old(box)
    add_minute_old(box, link_id="loan-2")
    box.progress("entity-1", [{"status": "completed", "statement_id": "1", "source": "online", "message": None}])
    assert (await Caller(api_server()).post(statement())).status == 200
    for event in await asyncio.gather(mine, progress):
        assert (event["status"], event["pokes"]) == ("passed", 2)
    assert not any(wait.done() for wait in others)
    await end(*others)


@pytest.mark.usefixtures("_quick", "served")
async def test_forged_webhook_passes_no_gate(box):
    wait = asyncio.create_task(run(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    await until(lambda: box.calls("webhook_payloads"))
    assert (await Caller(api_server()).post(statement())).status == 200
    await until(lambda: len(box.calls("webhook_payloads")) >= 2)
    assert not wait.done()
    await end(wait)


@pytest.mark.usefixtures("_quick", "served")
async def test_event_before_the_wait_reaches_the_triggerer_wakes_it(box):
    await asyncio.to_thread(send_to_receiver, CONN_ID, [statement()], "record")
    wait = asyncio.create_task(run(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    await until(lambda: len(box.calls("webhook_payloads")) >= 2)
    await end(wait)


@pytest.mark.usefixtures("_quick")
async def test_wait_continues_without_the_receiver(served, box, api_server_at, monkeypatch):
    api_server_at("https://localhost:1", box.ca_file)
    monkeypatch.setattr("airflow_provider_bankconnect.wait.MIN_INTERVAL", 0.05)
    wait = BankConnectWebhookPayloadTrigger(
        link_id="loan-1", wait={"deadline": datetime.now(UTC) + timedelta(minutes=10), "poke_interval": 0.2}
    )
    events = asyncio.create_task(anext(wait.run()))
    await until(lambda: len(box.calls("webhook_payloads")) >= 3)
    add_minute_old(box)
    assert (await events).payload["status"] == "passed"
    assert not served.front.requests
