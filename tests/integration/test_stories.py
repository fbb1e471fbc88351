"""What customers do and what becomes of the task, in poke, reschedule and deferred mode; docs/recipes.rst."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from stories import CUSTOMER, LINK, statement, wrong_password

from airflow_provider_bankconnect.api import BankConnectTimezoneError, WebhookMode
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault

HOUR = 3600
DAY = 24 * HOUR
OTHER_CUSTOMER = "customer-2"

vendor_in_india = pytest.mark.parametrize("box", [{"timezone": "Asia/Kolkata"}], indirect=True, ids=["in_india"])
history_omits_unsent = pytest.mark.parametrize(
    "box", [{"history_omits_unsent": True}], indirect=True, ids=["history_omits_unsent"]
)


@pytest.fixture
def impatient(monkeypatch):
    """Make back-offs short, so that many errors take a second."""
    monkeypatch.setattr("airflow_provider_bankconnect.api.MAX_BACKOFF", 0.02)
    monkeypatch.setattr("airflow_provider_bankconnect.triggers.poller._RETURN_SECONDS", 0.02)


def test_two_failed_logins_and_then_a_success_pass_the_gate(story):
    story.after_each_poke(wrong_password(), wrong_password(), statement("october"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    assert outcome.ids == ["october"]


@pytest.mark.parametrize(("on_failed", "state"), [("fail", "failed"), ("skip", "skipped"), ("pass", "success")])
def test_two_old_failed_logins_are_a_failure_and_on_failed_decides(story, on_failed, state):
    date_time = datetime.now(UTC) - timedelta(hours=3)
    for reason in ("Incorrect user ID or password", "The account is locked"):
        story.box.payload(
            link_id=LINK, entity_id=CUSTOMER, statement_id="", progress="failed", reason=reason, date_time=date_time
        )
    outcome = story.wait(link_id=LINK, on_failed=on_failed)
    assert outcome.state == state
    if state == "success":
        assert outcome.ids == ["", ""]
    else:
        assert "'Incorrect user ID or password', 'The account is locked'" in outcome.message


def test_three_pdfs_pass_after_a_failed_one_is_uploaded_again_under_a_new_id(story):
    for statement_id, progress in (("july", "completed"), ("august", "completed"), ("september", "failed")):
        story.box.play(statement(statement_id, progress, mode="pdf"))
    story.after_each_poke(None, statement("september-again", mode="pdf"))
    outcome = story.wait(link_id=LINK, expected_statements=3)
    assert outcome.state == "success"
    assert sorted(outcome.ids) == ["august", "july", "september-again"]


def test_a_failed_statement_passes_the_gate_when_it_is_processed_again_and_completes(story):
    story.box.play(statement("october", "failed", reason="The bank did not answer"))
    story.after_each_poke(None, statement("october"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    assert [(row["statement_id"], row["progress"], row["reason"]) for row in outcome.rows] == [
        ("october", "completed", "")
    ]


def test_with_on_failed_wait_an_old_failure_does_not_end_the_wait(story):
    story.box.play(statement("october", "failed", after=-3 * HOUR))
    story.after_each_poke(None, statement("october"))
    outcome = story.wait(link_id=LINK, on_failed="wait")
    assert outcome.state == "success"
    assert outcome.ids == ["october"]


def test_a_failure_in_the_progress_counts_at_once_unless_on_failed_is_wait(story):
    story.box.play(statement("october", "failed", reason="The bank did not answer"))
    outcome = story.wait(entity_id=CUSTOMER)
    assert outcome.state == "failed"
    assert "The bank did not answer" in outcome.message
    story.after_each_poke(None, statement("october"))
    outcome = story.wait(entity_id=CUSTOMER, on_failed="wait")
    assert outcome.state == "success"
    assert outcome.ids == ["october"]


def test_an_old_failure_fails_the_task_with_the_vendors_reason(story):
    story.box.play(statement("october", "failed", after=-3 * HOUR, reason="The PDF has a password"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "failed"
    assert "The PDF has a password" in outcome.message


def test_without_since_next_months_run_passes_at_once_on_last_months_statement(story):
    story.box.play(statement("october", after=-30 * DAY))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    assert outcome.ids == ["october"], "documented: without since a link that is used again passes on old rows"
    assert story.pokes == 1


def test_with_since_next_months_run_waits_for_the_new_statement(story):
    story.box.play(statement("october", after=-30 * DAY))
    story.after_each_poke(None, None, statement("november"))
    outcome = story.wait(link_id=LINK, since=datetime.now(UTC) - timedelta(hours=1))
    assert outcome.state == "success"
    assert outcome.ids == ["november"]


def test_the_timeout_of_a_run_with_since_asks_whether_since_is_right(story):
    story.box.play(statement("october", after=-30 * DAY))
    outcome = story.wait(link_id=LINK, since=datetime.now(UTC) - timedelta(hours=1), timeout=0.1)
    assert outcome.state == "failed"
    assert "since" in outcome.message


def test_statements_of_two_entities_on_one_link_are_never_added_up(story):
    story.box.play(statement("hers"))
    story.box.play(statement("his", entity_id=OTHER_CUSTOMER))
    outcome = story.wait(link_id=LINK, expected_statements=2, timeout=0.1)
    assert outcome.state == "failed"
    assert "1 of 2 statements completed (statements of several entities are never added up)" in outcome.message


def test_entity_id_selects_one_of_two_entities_on_one_link(story):
    story.box.play(statement("hers", after=-60))
    story.box.play(statement("his", entity_id=OTHER_CUSTOMER))
    assert story.wait(link_id=LINK, entity_id=CUSTOMER).ids == ["hers"]
    assert story.wait(link_id=LINK, entity_id=OTHER_CUSTOMER).ids == ["his"]


def test_the_entity_with_enough_statements_passes_the_gate(story):
    story.box.play(statement("hers"))
    story.box.play(statement("his-first", entity_id=OTHER_CUSTOMER, after=-60))
    story.after_each_poke(None, statement("his-second", entity_id=OTHER_CUSTOMER))
    outcome = story.wait(link_id=LINK, expected_statements=2)
    assert outcome.state == "success"
    assert outcome.ids == ["his-second", "his-first"]


def test_the_progress_gate_waits_for_a_fourth_statement_that_begins_before_three_are_done(story):
    for statement_id in ("july", "august"):
        story.box.play(statement(statement_id))
    story.box.play(statement("september", after=HOUR))
    # The third ends when the fourth begins.
    story.after_each_poke(
        None,
        lambda: [story.box.play(statement("september")), story.box.play(statement("october", after=HOUR))],
        None,
        statement("october"),
    )
    outcome = story.wait(entity_id=CUSTOMER, expected_statements=3)
    assert outcome.state == "success"
    assert sorted(outcome.ids) == ["august", "july", "october", "september"]


def test_the_history_gate_passes_before_the_end_of_a_fourth_statement(story):
    for statement_id in ("july", "august"):
        story.box.play(statement(statement_id))
    story.box.play(statement("october", after=HOUR))
    story.after_each_poke(None, statement("september"))
    outcome = story.wait(link_id=LINK, expected_statements=3)
    assert outcome.state == "success"
    assert sorted(outcome.ids) == ["august", "july", "september"]


def test_the_history_gate_waits_for_a_fourth_statement_that_it_shows_as_processing(story):
    for statement_id in ("july", "august", "september"):
        story.box.play(statement(statement_id))
    story.box.payload(link_id=LINK, entity_id=CUSTOMER, statement_id="october", progress="processing")
    story.after_each_poke(None, statement("october"))
    outcome = story.wait(link_id=LINK, expected_statements=3)
    assert outcome.state == "success"
    assert sorted(outcome.ids) == ["august", "july", "october", "september"]


def test_a_pdf_without_a_link_is_never_in_the_history(story):
    story.box.play(statement("uploaded", link_id=None, mode="pdf"))
    outcome = story.wait(link_id=LINK, timeout=0.1)
    assert outcome.state == "failed"
    assert "no row" in outcome.message


def test_a_pdf_without_a_link_passes_the_progress_gate(story):
    story.box.play(statement("uploaded", link_id=None, mode="pdf", after=HOUR))
    story.after_each_poke(None, statement("uploaded", link_id=None, mode="pdf"))
    outcome = story.wait(entity_id=CUSTOMER)
    assert outcome.state == "success"
    assert outcome.ids == ["uploaded"]


@pytest.fixture
def mode_was_reset(box, connection):  # noqa: ARG001 - the hook reads it
    """Register the endpoint with the mode for PDFs, and then again with the default mode."""
    with BankConnectHook() as hook:
        for mode in (WebhookMode.NET_BANKING_AND_MANUAL, WebhookMode.NET_BANKING):
            hook.update_webhook(box.inbox_url, webhook_mode=mode, allow_private_host=True)


@history_omits_unsent
@pytest.mark.usefixtures("mode_was_reset")
def test_after_a_reset_of_the_mode_the_timeout_of_the_history_gate_says_what_to_check(story):
    story.box.play(statement("october", mode="pdf"))
    outcome = story.wait(link_id=LINK, timeout=0.1)
    assert outcome.state == "failed"
    assert "no row" in outcome.message
    assert "registered" in outcome.message
    assert "webhook_mode" in outcome.message


@history_omits_unsent
@pytest.mark.usefixtures("mode_was_reset")
def test_after_a_reset_of_the_mode_the_progress_gate_passes(story):
    story.box.play(statement("october", mode="pdf"))
    outcome = story.wait(entity_id=CUSTOMER)
    assert outcome.state == "success"
    assert outcome.ids == ["october"]


@pytest.mark.usefixtures("impatient")
def test_a_wait_continues_through_many_server_errors_and_logs_them_once(story, log):
    story.after_each_poke(
        lambda: story.box.fault(Fault(kind="status", status=503)),
        *[None] * 12,
        lambda: [story.box.play(statement("october")), story.box.clear_faults()],
    )
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    assert outcome.ids == ["october"]
    lines = log()
    # In reschedule mode each poke is a new process, without knowledge of the others.
    processes = 13 if story.mode == "reschedule" else 1
    assert lines.count("The wait continues after an error: BankConnectServerError") == processes
    assert lines.count("BankConnect answers again, after 13 errors in a row") == (story.mode != "reschedule")


@pytest.mark.usefixtures("impatient")
def test_the_timeout_names_the_error_that_lasted_until_the_deadline(story):
    story.box.fault(Fault(kind="reset"))
    outcome = story.wait(link_id=LINK, timeout=0.2)
    assert outcome.state == "failed"
    assert "BankConnectConnectionError" in outcome.message


@vendor_in_india
def test_a_wrong_timezone_of_the_connection_is_an_error_and_no_skip(story):
    story.box.play(statement("october"))
    outcome = story.wait(link_id=LINK, soft_fail=True)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, BankConnectTimezoneError)
    assert "timezone" in outcome.message


@vendor_in_india
def test_a_wrong_timezone_of_the_connection_is_the_same_error_at_a_later_poke(story):
    story.after_each_poke(None, None, statement("october"))
    outcome = story.wait(link_id=LINK, soft_fail=True)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, BankConnectTimezoneError)
    assert "timezone" in outcome.message


@vendor_in_india
def test_with_the_right_timezone_the_gate_passes_and_returns_times_in_utc(story, monkeypatch):
    connection = story.box.connection
    connection["extra"]["timezone"] = "Asia/Kolkata"
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))
    story.box.play(statement("october"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    age = datetime.now(UTC) - datetime.fromisoformat(outcome.rows[0]["date_time"])
    assert timedelta(0) <= age < timedelta(hours=1)


TEST_CALL_TOO = "even the test call gets HTTP 404: check the path in the connection's host"


@pytest.fixture
def typo_in_the_path(box, connection, monkeypatch):
    host = connection["host"].replace("bank-connect", "bank-conect")
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps({**box.connection, "host": host}))


@pytest.mark.usefixtures("typo_in_the_path")
@pytest.mark.parametrize("waits_for", [{"link_id": LINK}, {"entity_id": CUSTOMER}], ids=["history", "progress"])
def test_the_timeout_names_a_wrong_base_path(story, waits_for):
    outcome = story.wait(**waits_for, timeout=0.2)
    assert outcome.state == "failed"
    assert f"Seen last: {TEST_CALL_TOO}; " in outcome.message


# In reschedule mode each poke is a new process: only the last one, at the deadline, makes the test call.
@pytest.mark.parametrize("story", ["poke", "deferred"], indirect=True)
def test_a_wrong_base_path_is_logged_once_after_some_minutes_of_404(story, log, monkeypatch):
    patience = "airflow_provider_bankconnect.wait.NOT_FOUND_PATIENCE"
    monkeypatch.setattr(patience, timedelta(seconds=0.1), raising=False)
    story.box.fault(Fault(kind="status", status=404))
    line_is_new = []
    story.after_each_poke(
        *[lambda: line_is_new.append(TEST_CALL_TOO in log())] * 8,
        lambda: [story.box.clear_faults(), story.box.play(statement("october"))],
    )
    assert story.wait(link_id=LINK).ids == ["october"]
    assert not line_is_new[0]
    assert line_is_new.count(True) == 1


@pytest.mark.parametrize("box", [{"unknown_link": "404"}], indirect=True, ids=["vendor_says_404"])
def test_a_404_for_an_unknown_link_alone_does_not_name_the_path(story):
    outcome = story.wait(link_id=LINK, timeout=0.2)
    assert outcome.state == "failed"
    assert "HTTP 404: unknown, or nothing there yet" in outcome.message
    assert "even the test call" not in outcome.message
    story.after_each_poke(None, statement("october"))
    assert story.wait(link_id=LINK).ids == ["october"]


def test_a_task_that_is_cleared_and_run_again_returns_the_same_rows(story):
    since = datetime.now(UTC) - timedelta(hours=1)
    story.box.play(statement("october", after=-30 * DAY))
    story.box.play(wrong_password())
    story.after_each_poke(None, statement("november"))
    first = story.wait(link_id=LINK, since=since)
    again = story.wait(link_id=LINK, since=since)
    assert first.ids == ["november"]
    assert (again.state, again.rows) == ("success", first.rows)
    assert story.pokes == 4, "three pokes to wait for it, one to find it again"


def test_a_failed_task_that_is_cleared_passes_on_a_new_statement(story):
    story.box.play(statement("october", "failed", after=-HOUR))
    assert story.wait(link_id=LINK).state == "failed"
    story.box.play(statement("october-again"))
    outcome = story.wait(link_id=LINK)
    assert outcome.state == "success"
    assert outcome.ids == ["october-again"]
