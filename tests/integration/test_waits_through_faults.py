"""Waits go on through faults of the network and of BankConnect, and end where a fault stays, in every mode."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout
from stories import CUSTOMER, LINK, statement
from test_wake import fire, notify, pokes, resting, trigger
from waits import AIRFLOW_3, AirflowRescheduleException, TaskInstance, build

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect import wait as rules
from airflow_provider_bankconnect.sandbox import Fault
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

in_one_process = pytest.mark.parametrize("story", ["poke", "deferred"], indirect=True)
deferred = pytest.mark.parametrize("story", ["deferred"], indirect=True)
FIREWALL = "not in BankConnect's form: a firewall or a proxy on the way may have refused the request"


# A 403 that is not BankConnect's


@pytest.mark.parametrize("fault", [{}, {"retry_after": 0.01, "body": ""}], ids=["html", "retry_after"])
def test_a_403_of_a_firewall_does_not_end_a_wait(story, log, fault):
    story.box.fault(Fault(kind="firewall", times=2, **fault))
    story.box.play(statement("october"))
    assert story.wait(link_id=LINK).ids == ["october"]
    assert FIREWALL in log()


@in_one_process
def test_a_403_of_a_firewall_that_stays_ends_a_wait_with_its_cause(story, monkeypatch):
    monkeypatch.setattr(rules, "REPEAT_PATIENCE", timedelta(seconds=0.2))
    story.box.fault(Fault(kind="firewall"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, api.BankConnectForbiddenError)
    assert FIREWALL in outcome.message


@pytest.mark.parametrize("story", ["reschedule"], indirect=True)
def test_a_403_of_a_firewall_that_stays_is_named_in_the_timeout_of_a_rescheduled_wait(story, monkeypatch):
    """Each poke is a process of its own, which does not know that the one before got the same."""
    monkeypatch.setattr(rules, "REPEAT_PATIENCE", timedelta(seconds=0.2))
    story.box.fault(Fault(kind="firewall"))
    outcome = story.wait(link_id=LINK, timeout=0.4)
    assert isinstance(outcome.error, AirflowSensorTimeout)
    assert FIREWALL in outcome.message


# What does not belong into an answer, and changes nothing


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "encoding", "content_encoding": "UTF-8"},
        {"kind": "encoding", "content_encoding": "identity, identity"},
        {"kind": "interim", "count": 2},
        {"kind": "interim", "interim_status": 102},
        {"kind": "long_header", "size": 60_000},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_a_wait_passes_whatever_comes_before_or_beside_the_answer(story, log, fault):
    story.box.fault(Fault(**fault))
    story.box.play(statement("october"))
    assert story.wait(link_id=LINK).ids == ["october"]
    assert "continues after an error" not in log()


def test_a_header_beyond_the_limit_is_named_in_the_timeout_in_every_mode(story):
    story.box.fault(Fault(kind="long_header", size=70_000))
    message = story.wait(link_id=LINK, timeout=0.3).message
    assert "a header is longer than the limit of 65536 bytes" in message


# A Retry-After without limit


def test_a_retry_after_without_limit_does_not_keep_a_wait_from_its_last_poke(story):
    story.box.fault(Fault(kind="status", status=429, retry_after=999_999, times=1))
    story.box.play(statement("october"))
    assert story.wait(link_id=LINK, timeout=3).ids == ["october"]
    assert story.pokes == 2


def test_a_timeout_names_a_pause_of_an_hour(story):
    story.box.fault(Fault(kind="status", status=429, retry_after=999_999))
    message = story.wait(link_id=LINK, timeout=0.2).message
    assert "Seen last: BankConnect asked for a pause of 3600 s (Retry-After): " in message
    assert "spelt" not in message


def test_only_a_rescheduled_wait_makes_its_last_poke_in_a_pause_and_the_log_says_so(story, log):
    """The process of its last poke does not know of the pause."""
    story.box.fault(Fault(kind="status", status=429, retry_after=600, times=1))
    story.box.play(statement("october"))
    outcome, said = story.wait(link_id=LINK, timeout=1), log()
    if story.mode == "reschedule":
        assert (outcome.ids, story.pokes) == (["october"], 2)
        assert "HTTP 429: too many calls (Retry-After: 600 s); next check " in said
        assert "no further check" not in said
    else:
        assert (outcome.state, story.pokes) == ("failed", 1)
        assert "HTTP 429: too many calls (Retry-After: 600 s); no further check before the timeout" in said


@deferred
def test_a_wait_logs_until_when_all_waits_are_held(story, log):
    story.after_each_poke(lambda: story.box.fault(Fault(kind="status", status=429, retry_after=999_999, times=1)), None)
    story.wait(link_id=LINK, timeout=3)
    held = "BankConnect asked for a pause of 3600 s (Retry-After): all waits of the connection are held until "
    assert log().count(held) == 1


@pytest.mark.usefixtures("connection", "fast")
async def test_a_pause_of_one_wait_is_logged_by_another_and_named_in_its_timeout(box, log):
    box.fault(Fault(kind="status", status=429, retry_after=999_999, times=1))
    deadline = datetime.now(UTC) + timedelta(seconds=4)
    first = asyncio.create_task(fire(trigger(deadline=deadline, poke_interval=0.3)))
    await resting(box, 1)
    log()
    event = await fire(trigger(deadline=deadline, poke_interval=0.3))
    await first
    held = "BankConnect asked for a pause of 3600 s (Retry-After): all waits of the connection are held until "
    assert held in log()
    assert event["status"] == "timeout"
    assert event["because"].startswith(held)
    assert len(pokes(box)) <= 3, "one, and the last ones"


# Errors after a webhook event


@pytest.mark.usefixtures("connection", "fast")
@pytest.mark.parametrize("kind", [{"kind": "status", "status": 503}, {"kind": "reset"}], ids=["503", "reset"])
async def test_an_error_after_an_event_does_not_put_off_the_pokes_for_it(box, monkeypatch, kind):
    monkeypatch.setattr(rules, "ECHO_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setattr(api, "MAX_BACKOFF", 0.1)
    wait = asyncio.create_task(fire(trigger(poke_interval=600)))
    await resting(box, 1)
    # aiohttp sends a request again once when the connection was reset.
    box.fault(Fault(**kind, times=4))
    box.play(statement("october", link_id="loan-1"))
    notify()
    assert (await wait)["status"] == "passed"


# A connection that only the worker can read


@deferred
def test_a_wait_whose_triggerer_cannot_read_the_connection_ends_with_the_cause(story, log, monkeypatch):
    monkeypatch.setattr(rules, "REPEAT_PATIENCE", timedelta(seconds=0.3))
    story.after_each_poke(lambda: monkeypatch.delenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT"))
    outcome = story.wait(link_id=LINK)
    assert isinstance(outcome.error, api.BankConnectSettingsError)
    assert "the triggerer cannot use connection 'bankconnect_default': " in outcome.message
    assert "The wait continues after an error: BankConnectSettingsError: the triggerer cannot use connection" in log()


# Kept connections that lead to an old server


@in_one_process
def test_three_errors_in_a_row_are_followed_by_a_new_connection(story):
    old = Fault(kind="status", status=503, connections="old")
    # The first poke of a deferred wait is the worker's, which has a connection of its own.
    story.after_each_poke(None, lambda: story.box.fault(old), None, None, None, statement("october"))
    assert story.wait(link_id=LINK).ids == ["october"]


@in_one_process
def test_a_lasting_404_is_followed_by_a_new_connection(story, monkeypatch):
    monkeypatch.setattr(rules, "NOT_FOUND_PATIENCE", timedelta(seconds=0.2))
    old = Fault(kind="status", status=404, connections="old")
    story.after_each_poke(None, lambda: story.box.fault(old), None, statement("october"))
    assert story.wait(link_id=LINK).ids == ["october"]


def test_the_last_poke_is_answered_by_the_new_server_after_a_switch(story):
    """The connections that were kept since before the switch go on getting the old answers."""
    switch = Fault(kind="switch")
    story.after_each_poke(None, lambda: story.box.fault(switch), statement("october"))
    assert story.wait(link_id=LINK, timeout=1.5).ids == ["october"]


@pytest.mark.parametrize("analysis", ["transactions", "salary"])
def test_a_wait_for_progress_goes_on_through_a_firewall(story, analysis):
    story.box.fault(Fault(kind="firewall", times=2))
    story.box.play(statement("october"))
    assert story.wait(entity_id=CUSTOMER, analysis=analysis).ids == ["october"]


# Retries of a task


@pytest.mark.skipif(AIRFLOW_3, reason="Airflow 3 deletes what it knows of the try before")
@pytest.mark.usefixtures("connection", "fast")
def test_each_try_of_a_rescheduled_wait_has_the_whole_timeout(monkeypatch):
    from airflow.sensors import base  # noqa: PLC0415

    ti = TaskInstance()
    ti.max_tries, ti.retries, ti.try_number = 2, 2, 2
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    # The first try began an hour ago, and the second was not rescheduled yet.
    first = {1: an_hour_ago, 2: None}
    monkeypatch.setattr(base, "_orig_start_date", lambda *where: first[where[-1]])
    sensor = build(BankConnectWebhookPayloadSensor, "reschedule", link_id=LINK, poke_interval=30, timeout=60)
    ti.task = sensor
    with pytest.raises(AirflowRescheduleException):
        sensor.execute({"ti": ti})
    assert sensor._wait.deadline > datetime.now(UTC) + timedelta(seconds=50)
    assert ti.max_tries - sensor.retries + 1 == ti.try_number, "so does Airflow's own check find this try"
