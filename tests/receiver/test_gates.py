"""Gates and the doorbell, over a real wire: what a gate asks it, and how a ring reaches a wait in a triggerer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from doorbells import CONN_ID, NEEDS, Caller, api_server, statement, until

from airflow_provider_bankconnect.receiver.client import tell_receiver
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectWebhookPayloadSensor,
)
from airflow_provider_bankconnect.triggers import bell as bells
from airflow_provider_bankconnect.triggers import poller as pollers
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)

pytestmark = NEEDS

UNHEARD = "A gate on 'bankconnect_default' found by asking what no webhook had announced: 'link:loan-1'"


def minute_old(box, **more):
    """Put a statement into the ledger whose webhook has had its time to travel."""
    row = {"link_id": "loan-1", "statement_id": "statement-1", "date_time": datetime.now(UTC) - timedelta(minutes=1)}
    box.payload(**row | more)


def pass_gate(**arguments):
    rows = BankConnectWebhookPayloadSensor(task_id="gate", link_id="loan-1", **arguments).execute({"ti": None})
    return [row["statement_id"] for row in rows]


# A gate that asks whether anybody had rung


def test_what_a_gate_found_and_no_webhook_had_announced_is_told_at_the_doorbell(served, box, sqlite, caplog):
    minute_old(box)
    assert pass_gate() == ["statement-1"]
    assert served.front.asked == [f"POST /bankconnect/rings/{CONN_ID}"]
    assert caplog.text.count(UNHEARD) == 1
    # It is counted, not rung for: the gate has done its work.
    assert not sqlite.events


@pytest.mark.usefixtures("served")
async def test_what_a_webhook_had_announced_is_not(box, caplog):
    minute_old(box)
    assert (await Caller(api_server()).post(statement())).json() == {"status": "rung"}
    assert pass_gate() == ["statement-1"]
    assert UNHEARD not in caplog.text


def test_a_webhook_that_may_still_be_on_its_way_is_not_missed(served, box):
    minute_old(box, date_time=None)
    assert pass_gate() == ["statement-1"]
    assert not served.front.asked


@pytest.mark.usefixtures("served")
def test_a_failure_is_no_completion_that_could_have_been_announced(box, caplog):
    minute_old(box, progress="failed", date_time=datetime.now(UTC) - timedelta(hours=1))
    assert pass_gate(on_failed="pass") == ["statement-1"]
    assert UNHEARD not in caplog.text


def test_a_snapshot_has_no_times_and_asks_nothing(served, box):
    box.progress("entity-1", [{"status": "completed", "statement_id": "1", "source": "online", "message": None}])
    assert BankConnectProgressSensor(task_id="gate", entity_id="entity-1").execute({"ti": None})
    assert not served.front.asked


def test_without_a_token_a_gate_asks_nothing(served, box, configure):
    configure(webhook_token=None)
    minute_old(box)
    assert pass_gate() == ["statement-1"]
    assert not served.front.asked


def test_a_gate_opens_whether_the_doorbell_can_be_asked_or_not(served, box, configure, api_server_at, tmp_path):
    minute_old(box)
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


# A wait that hears


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(bells, "_EVERY_SECONDS", 0.05)


async def fire(kind, **what):
    wait = kind(deadline=datetime.now(UTC) + timedelta(minutes=10), poke_interval=600, **what)
    async for event in wait.run():
        return event.payload
    raise AssertionError("no event")


async def end(*waits):
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert not pollers._pollers.get(asyncio.get_running_loop())
    assert bells.bell()._task is None


@pytest.mark.usefixtures("_quick", "served")
async def test_a_ring_ends_the_waits_of_its_customer_and_no_other(box):
    mine = asyncio.create_task(fire(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    progress = asyncio.create_task(fire(BankConnectProgressTrigger, entity_id="entity-1"))
    others = [asyncio.create_task(fire(BankConnectWebhookPayloadTrigger, link_id=f"loan-{n}")) for n in (2, 3)]
    await until(lambda: len(box.calls("webhook_payloads")) == 3 and box.calls("transactions"))
    # The ledger has news of two, and one rings.
    minute_old(box)
    minute_old(box, link_id="loan-2")
    box.progress("entity-1", [{"status": "completed", "statement_id": "1", "source": "online", "message": None}])
    assert (await Caller(api_server()).post(statement())).status == 200
    for event in await asyncio.gather(mine, progress):
        assert (event["status"], event["looks"]) == ("passed", 2)
    assert not any(wait.done() for wait in others)
    await end(*others)


@pytest.mark.usefixtures("_quick", "served")
async def test_a_forged_ring_opens_nothing(box):
    wait = asyncio.create_task(fire(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    await until(lambda: box.calls("webhook_payloads"))
    assert (await Caller(api_server()).post(statement())).status == 200
    await until(lambda: len(box.calls("webhook_payloads")) >= 2)
    assert not wait.done()
    await end(wait)


@pytest.mark.usefixtures("_quick", "served")
async def test_a_ring_that_came_while_the_wait_was_on_its_way_is_heard(box):
    await asyncio.to_thread(tell_receiver, CONN_ID, [statement()], "ring")
    wait = asyncio.create_task(fire(BankConnectWebhookPayloadTrigger, link_id="loan-1"))
    await until(lambda: len(box.calls("webhook_payloads")) >= 2)
    await end(wait)


@pytest.mark.usefixtures("_quick")
async def test_a_wait_whose_doorbell_is_away_goes_on(served, box, api_server_at, monkeypatch):
    api_server_at("https://localhost:1", box.ca_file)
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.bankconnect.MIN_INTERVAL", 0.05)
    wait = BankConnectWebhookPayloadTrigger(
        link_id="loan-1", deadline=datetime.now(UTC) + timedelta(minutes=10), poke_interval=0.2
    )
    events = asyncio.create_task(anext(wait.run()))
    await until(lambda: len(box.calls("webhook_payloads")) >= 3)
    minute_old(box)
    assert (await events).payload["status"] == "passed"
    assert not served.front.asked
