"""One gate for any customer, and the small answers: what customers do, in poke, reschedule and deferred mode."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import pytest
from stories import CUSTOMER, LINK, statement, wrong_password
from waits import build, run

from airflow_provider_bankconnect.api import BankConnectAuthError, BankConnectHostError, BankConnectLimitError
from airflow_provider_bankconnect.receiver.address import asset_uri, partition_key
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectStatementSensor

HOUR = 3600
OTHER = "customer-2"
IN_FULL = "Each further check reads transactions/ instead of the smaller identity/: "


def options(name, **more):
    return pytest.mark.parametrize("box", [more], indirect=True, ids=[name])


def calls(story, *names):
    return [record.call for record in story.box.requests if not names or record.call in names]


# Which record knows the statement


def test_a_statement_of_the_history_passes_and_its_row_has_a_time(story):
    story.after_each_poke(None, None, None, statement("october"))
    outcome = story.wait_for_customer(link_id=LINK)
    assert outcome.ids == ["october"]
    assert outcome.rows[0]["date_time"]


@options("history_omits_unsent", history_omits_unsent=True)
def test_a_statement_without_a_webhook_passes_by_the_progress_of_the_links_entity(story):
    story.box.play(statement("october", mode="pdf"))
    outcome = story.wait_for_customer(link_id=LINK)
    assert outcome.rows == [
        {
            "statement_id": "october",
            "entity_id": CUSTOMER,
            "link_id": None,
            "progress": "completed",
            "reason": "",
            "date_time": None,
        }
    ]


def test_an_upload_without_a_link_passes_by_its_entity(story):
    story.box.play(statement("uploaded", link_id=None, mode="pdf", after=HOUR))
    story.after_each_poke(None, statement("uploaded", link_id=None, mode="pdf"))
    assert story.wait_for_customer(entity_id=CUSTOMER).ids == ["uploaded"]


def test_an_upload_without_a_link_by_an_entity_of_the_link_passes_by_the_link(story):
    story.box.play(wrong_password())
    story.box.play(statement("uploaded", link_id=None, mode="pdf"))
    assert story.wait_for_customer(link_id=LINK).ids == ["uploaded"]


def test_an_entity_that_is_added_late_to_the_link_passes(story):
    story.box.play(statement("hers", after=HOUR))
    story.after_each_poke(None, None, None, statement("his", entity_id=OTHER))
    assert story.wait_for_customer(link_id=LINK).ids == ["his"]


def test_a_failed_login_fails_the_gate_after_its_grace(story):
    story.box.play(wrong_password().model_copy(update={"after": -2 * HOUR}))
    outcome = story.wait_for_customer(link_id=LINK)
    assert outcome.state == "failed"
    assert "Incorrect user ID or password" in outcome.message


def test_a_failure_that_only_the_progress_has_fails_the_gate_at_once(story):
    story.box.play(statement("october", "failed", link_id=None, mode="pdf", reason="not a statement"))
    outcome = story.wait_for_customer(entity_id=CUSTOMER)
    assert outcome.state == "failed"
    assert "not a statement" in outcome.message


def test_a_statement_in_progress_by_the_progress_blocks_a_completed_row_of_the_history(story):
    story.box.play(statement("october"))
    story.box.play(statement("november", after=HOUR))
    story.after_each_poke(None, None, None, statement("november"))
    assert sorted(story.wait_for_customer(link_id=LINK).ids) == ["november", "october"]


def test_since_leaves_out_a_statement_without_a_time_unless_it_is_named(story):
    since = datetime.now(UTC) - timedelta(hours=1)
    story.box.play(wrong_password())
    story.box.play(statement("uploaded", link_id=None, mode="pdf"))
    outcome = story.wait_for_customer(link_id=LINK, since=since, timeout=0.3)
    assert outcome.state == "failed"
    assert "1 statement only in the progress, which has no times" in outcome.message
    assert story.wait_for_customer(link_id=LINK, since=since, statement_id="uploaded").ids == ["uploaded"]


def test_an_entity_of_another_link_times_out_with_the_reason(story):
    story.box.play(statement("october", link_id="loan-1"))
    outcome = story.wait_for_customer(link_id=LINK, entity_id=CUSTOMER, timeout=0.3)
    assert outcome.state == "failed"
    assert f"entity '{CUSTOMER}' is of link 'loan-1', not of link '{LINK}'" in outcome.message


def test_the_entity_of_the_link_passes_while_another_one_is_in_progress(story):
    story.box.play(statement("hers"))
    story.box.play(statement("his", entity_id=OTHER, after=HOUR))
    assert story.wait_for_customer(link_id=LINK, entity_id=CUSTOMER).ids == ["hers"]


def test_a_link_with_too_many_entities_is_an_error_at_once(story):
    for number in range(51):
        story.box.play(Statement(link_id=LINK, entity_id=f"customer-{number}", after=HOUR))
    outcome = story.wait_for_customer(link_id=LINK, soft_fail=True)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, BankConnectLimitError)
    assert "more than 50 entities" in outcome.message


# Failed logins without an entity


@pytest.mark.parametrize("gate", ["history", "customer"])
def test_a_failed_login_without_an_entity_is_an_attempt_and_the_statement_after_it_passes(story, gate):
    story.box.play(Statement(link_id=LINK, entity_id="", statement_id="", progress="failed"))
    story.after_each_poke(None, None, None, statement("october"))
    wait = story.wait if gate == "history" else story.wait_for_customer
    outcome = wait(link_id=LINK)
    assert (outcome.state, outcome.ids) == ("success", ["october"])


@pytest.mark.parametrize("gate", ["history", "customer"])
def test_an_old_failed_login_without_an_entity_fails_the_gate(story, gate):
    story.box.play(Statement(link_id=LINK, entity_id="", statement_id="", progress="failed", after=-2 * HOUR))
    outcome = (story.wait if gate == "history" else story.wait_for_customer)(link_id=LINK)
    assert outcome.state == "failed"


def test_a_completed_row_without_an_entity_passes_no_gate(story):
    story.box.payload(link_id=LINK, entity_id="", statement_id="october")
    outcome = story.wait(link_id=LINK, timeout=0.1)
    assert outcome.state == "failed"
    assert "0 of 1 statement completed" in outcome.message


# The customer of the run


def run_of(events=(), key=None, conf=None, conn_id="bankconnect_default"):
    asset = SimpleNamespace(uri=asset_uri(conn_id))
    extras = [SimpleNamespace(extra=event) for event in events]
    return {
        "triggering_asset_events": SimpleNamespace(items=lambda: [(asset, extras)]) if extras else {},
        "dag_run": SimpleNamespace(partition_key=key, conf=conf),
    }


def webhook(link_id, entity_id=CUSTOMER):
    return {"link_id": link_id, "entity_id": entity_id, "statement_id": "october", "progress": "completed"}


@pytest.mark.parametrize(
    "context",
    [
        run_of([webhook(LINK)]),
        run_of([webhook(LINK, ""), webhook(LINK, OTHER)], key="link:loan-1"),
        run_of(key=partition_key(LINK, CUSTOMER)),
        run_of(conf={"link_id": LINK}),
    ],
    ids=["event", "events before key", "partition key", "conf"],
)
def test_without_ids_it_waits_for_the_link_of_the_run(story, context):
    story.after_each_poke(None, None, None, statement("october"))
    outcome = story.wait_for_customer(context)
    assert (outcome.state, outcome.ids) == ("success", ["october"])


@pytest.mark.parametrize(
    "context",
    [run_of([webhook(None)]), run_of(key=partition_key(None, CUSTOMER)), run_of(conf={"entity_id": CUSTOMER})],
    ids=["event", "partition key", "conf"],
)
def test_without_ids_it_waits_for_the_entity_of_a_run_without_a_link(story, context):
    story.box.play(statement("uploaded", link_id=None, mode="pdf"))
    assert story.wait_for_customer(context).ids == ["uploaded"]


@pytest.mark.parametrize(
    "context",
    [
        {},
        run_of(),
        run_of([webhook(None, "")]),
        run_of(key="2026-11-28"),
        run_of(key=partition_key("x" * 300, None)),
        run_of(conf={"loan": 4711}),
    ],
    ids=["no run", "no event", "nobody", "another key", "hashed key", "another conf"],
)
def test_without_ids_a_run_that_names_no_customer_is_an_error_that_says_what_to_give(story, context):
    outcome = story.wait_for_customer(context)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, ValueError)
    assert "link_id and entity_id are missing, and the run names no customer" in outcome.message


def test_an_event_of_another_connection_is_an_error_though_the_partition_key_names_a_customer(story):
    story.box.play(statement("october"))
    outcome = story.wait_for_customer(run_of([webhook(LINK)], key=f"link:{LINK}", conn_id="bankconnect_uat"))
    assert outcome.state == "up_for_retry"
    assert "webhook events of connection 'bankconnect_uat' started the run" in outcome.message


def test_both_ids_of_the_conf_count(story):
    story.box.play(statement("hers", entity_id=OTHER))
    story.after_each_poke(*[None] * 5, statement("his"))
    story.box.play(statement("his", after=HOUR))
    outcome = story.wait_for_customer(run_of(conf={"link_id": LINK, "entity_id": CUSTOMER}))
    assert outcome.ids == ["his"]


@pytest.mark.parametrize("name", ["link_id", "entity_id"])
def test_an_id_that_renders_as_none_is_an_error_and_not_the_customer_of_the_run(story, name):
    story.box.play(statement("october"))
    make = partial(build, BankConnectStatementSensor, story.mode, **{name: "{{ ti.xcom_pull('find') }}"})

    def rendered():
        sensor = make()
        setattr(sensor, name, None)
        return sensor

    outcome = run(rendered, more=run_of([webhook(LINK)], conf={"link_id": LINK}))
    assert outcome.state == "up_for_retry"
    assert f"{name} must be text, not NoneType" in outcome.message


def announced(link_id, statement_id, *, ago=0, **more):
    event = {**webhook(link_id), "statement_id": statement_id, **more}
    return SimpleNamespace(extra=event, timestamp=datetime.now(UTC) - timedelta(seconds=ago))


def run_of_announced(*events):
    asset = SimpleNamespace(uri=asset_uri("bankconnect_default"))
    return {"triggering_asset_events": SimpleNamespace(items=lambda: [(asset, list(events))])}


@pytest.mark.parametrize("link_id", [LINK, None])
def test_a_run_does_not_pass_on_an_older_statement_while_the_announced_one_is_in_no_record(story, link_id):
    story.box.play(statement("september", link_id=link_id, mode="pdf", after=-HOUR))
    story.after_each_poke(*[None] * 7, statement("october", link_id=link_id, mode="pdf"))
    outcome = story.wait_for_customer(run_of_announced(announced(link_id, "october")))
    assert "october" in outcome.ids


def test_a_forged_announcement_holds_a_run_up_for_ten_minutes_only(story):
    story.box.play(statement("october", after=-HOUR))
    assert story.wait_for_customer(run_of_announced(announced(LINK, "forged", ago=601))).ids == ["october"]
    outcome = story.wait_for_customer(run_of_announced(announced(LINK, "forged", ago=500)), timeout=0.3)
    assert outcome.state == "failed"
    assert "1 statement that a webhook announced in neither record yet" in outcome.message


def test_a_failed_announcement_holds_nothing_up(story):
    story.box.play(statement("october"))
    event = announced(LINK, "november", progress="failed")
    assert story.wait_for_customer(run_of_announced(event)).ids == ["october"]


def test_an_entity_that_only_the_history_names_is_asked_for_its_progress(story):
    story.box.payload(link_id=LINK, entity_id="ghost", statement_id="s1")
    items = [{"statement_id": "s1", "status": "completed"}, {"statement_id": "s2", "status": "processing"}]
    story.box.progress("ghost", items)
    outcome = story.wait_for_customer(link_id=LINK, timeout=0.3)
    assert outcome.state == "failed"
    assert "1 in progress" in outcome.message


def test_a_404_of_the_list_of_entities_does_not_hide_the_history(story):
    story.box.play(statement("october"))
    story.box.fault(Fault(kind="status", call="entities", status=404))
    assert story.wait_for_customer(link_id=LINK).ids == ["october"]


def test_wrong_keys_are_sent_once(story, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps({**story.box.connection, "password": "wrong"}))
    outcome = story.wait(entity_id=CUSTOMER)
    assert isinstance(outcome.error, BankConnectAuthError)
    assert calls(story) == ["identity"]


@pytest.mark.parametrize("word", ["", "success", "partial"])
def test_an_unknown_transaction_status_does_not_hold_up_a_wait(story, word):
    story.box.play(statement("october"))
    items = [{"statement_id": "october", "status": "completed", "transaction_status": word}]
    story.box.progress(CUSTOMER, items, "identity")
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]
    assert calls(story) == ["identity", "transactions"]


def test_without_ids_a_run_of_several_customers_is_an_error(story):
    outcome = story.wait_for_customer(run_of([webhook("loan-1"), webhook("loan-2")]))
    assert "webhook events of 2 customers" in outcome.message


# The small answers


def test_a_wait_for_transactions_reads_them_once_when_identity_says_that_they_are_over(story):
    story.box.play(statement("october", after=HOUR))
    story.after_each_poke(None, None, None, statement("october"))
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]
    assert calls(story) == ["identity"] * 5 + ["transactions"]


@options("an_old_account", transaction_status="absent")
def test_without_transaction_status_a_wait_reads_transactions_for_good_and_logs_it_once(story, log):
    story.box.play(statement("october", after=HOUR))
    story.after_each_poke(None, None, None, None, statement("october"))
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]
    lines = log()
    assert IN_FULL + "identity/ has no transaction_status, or an unknown one" in lines
    if story.mode != "reschedule":
        # In reschedule mode each poke is a new process, without knowledge of the others.
        assert lines.count(IN_FULL) == 1
        assert calls(story).count("identity") == 1


@options("runs_ahead", transaction_status="ahead")
def test_where_transaction_status_runs_ahead_the_verdict_is_that_of_transactions(story, log):
    story.box.play(statement("october", after=-1, later={"transactions": HOUR}))
    story.after_each_poke(*[None] * 6, lambda: story.box.progress(CUSTOMER, [
        {"statement_id": "october", "status": "completed", "source": "online", "message": None}
    ]))  # fmt: skip
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]
    assert IN_FULL + "identity/ says that the transactions are over, and transactions/ does not" in log()


@options("identity_is_not_enabled", not_enabled=["identity"])
def test_where_identity_is_not_enabled_a_wait_for_transactions_passes(story):
    story.box.play(statement("october", after=HOUR))
    story.after_each_poke(None, None, None, statement("october"))
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]


@options("transactions_are_not_enabled", not_enabled=["transactions"])
def test_where_transactions_are_not_enabled_the_error_names_both_causes(story):
    story.box.play(statement("october"))
    outcome = story.wait(entity_id=CUSTOMER)
    assert isinstance(outcome.error, BankConnectAuthError)
    assert "refuses these keys, or your account is not enabled for transactions" in outcome.message


def test_the_last_poke_reads_transactions_if_identity_says_still_processing(story):
    story.box.play(statement("october"))
    items = [{"statement_id": "october", "status": "completed", "transaction_status": "processing"}]
    story.box.progress(CUSTOMER, items, "identity")
    outcome = story.wait(entity_id=CUSTOMER, timeout=0.3)
    assert outcome.ids == ["october"]
    assert calls(story, "transactions") == ["transactions"]


def test_a_customer_gate_reads_transactions_once(story):
    story.box.play(statement("october", after=HOUR))
    story.after_each_poke(*[None] * 5, statement("october"))
    assert story.wait_for_customer(link_id=LINK).ids == ["october"]
    assert len(calls(story, "transactions")) == 1
    assert len(calls(story, "identity")) >= 2


# Words at the right place


def test_the_timeout_of_an_empty_progress_says_that_the_upload_may_have_been_rejected(story):
    story.box.progress(CUSTOMER, [])
    outcome = story.wait(entity_id=CUSTOMER, timeout=0.2)
    assert outcome.state == "failed"
    assert "rejected" in outcome.message


def test_a_host_that_does_not_resolve_ends_the_wait_at_its_first_poke(story, monkeypatch):
    host = "https://no-such-host.invalid/bank-connect/v1"
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps({**story.box.connection, "host": host}))
    outcome = story.wait(link_id=LINK, soft_fail=True)
    assert outcome.state == "up_for_retry"
    assert isinstance(outcome.error, BankConnectHostError)
    assert "'no-such-host.invalid' does not resolve" in outcome.message


# In the other modes one process reads the connection once. The rule itself is a unit test of the wait.
@pytest.mark.parametrize("story", ["reschedule"], indirect=True)
def test_a_wait_continues_when_the_host_no_longer_resolves_at_a_later_poke(story, monkeypatch):
    bad = json.dumps({**story.box.connection, "host": "https://no-such-host.invalid/bank-connect/v1"})
    story.after_each_poke(lambda: monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", bad))
    outcome = story.wait(link_id=LINK, poke_interval=1.5, timeout=2)
    assert outcome.state == "failed"
    assert "BankConnectHostError" in outcome.message


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 500}, {"kind": "reset"}], ids=["500", "reset"])
def test_a_failing_identity_call_does_not_hold_up_a_wait_for_transactions(story, fault):
    story.box.play(statement("october"))
    story.box.fault(Fault(call="identity", **fault))
    assert story.wait(entity_id=CUSTOMER).ids == ["october"]
    assert "identity" in calls(story)
