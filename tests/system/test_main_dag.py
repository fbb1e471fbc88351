"""The example DAGs, as people run them: ``airflow dags test``, deferred, against a BankConnect over TLS."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from homes import QUICK, REGISTER, WAIT
from leaks import find_leaks

from airflow_provider_bankconnect.sandbox import Fault, Statement

pytestmark = pytest.mark.system

ROW = ["statement_id", "entity_id", "link_id", "progress", "reason", "date_time"]


def test_the_endpoint_is_registered_once_and_in_the_mode_that_hears_of_pdfs_too(shared, home, box):
    run = shared.run(REGISTER, box.connection, {"webhook_url": box.inbox_url, "allow_private_host": True})

    assert run.state == "success"
    assert (box.webhook_url, box.webhook_mode) == (box.inbox_url, 1)
    assert [json.loads(request.body) for request in box.requests] == [{"webhook_url": box.inbox_url, "webhook_mode": 1}]
    assert home.xcoms(REGISTER) == {}


def test_the_gate_opens_on_the_statement_that_follows_a_failed_login_and_the_work_behind_it_is_done(new_home, box):
    home = new_home()
    home.add_example(WAIT, QUICK)
    link = "loan 4711/März & co?"
    box.play(Statement(link_id=link, entity_id="customer", statement_id="last-month", after=-30 * 86_400))
    since = datetime.now(UTC) - timedelta(seconds=5)
    conf = json.dumps({"link_id": link, "since": since.isoformat()})

    with home.job("dags", "test", WAIT, "--conf", conf, connection=box.connection) as job:
        job.until(lambda: box.calls("webhook_payloads"))
        box.play(Statement(link_id=link, entity_id="customer", statement_id="", progress="failed", after=1))
        box.play(Statement(link_id=link, entity_id="customer", statement_id="this-month", after=2.5, transactions=17))
        due = datetime.now(UTC) + timedelta(seconds=2.5)
        assert job.finish() == 0, job.output[-4000:]

    assert home.state_of(WAIT) == "success"
    pushed = home.xcoms(WAIT)
    [row] = pushed.pop(("wait_for_statement", "return_value"))
    assert list(row) == ROW
    written = datetime.fromisoformat(row.pop("date_time"))
    assert abs(written - due) < timedelta(seconds=2)
    assert written.utcoffset() == timedelta(0)
    assert row == {
        "statement_id": "this-month",
        "entity_id": "customer",
        "link_id": link,
        "progress": "completed",
        "reason": "",
    }
    # Two statements of one customer: the work is done on all that the vendor has, and nothing but counts is kept.
    transactions = box.transaction_count("customer")
    assert transactions > 17
    assert pushed == {
        ("summarise_transactions", "return_value"): {"statements": 2, "transactions": transactions},
        ("summarise_transactions", "statements"): 2,
        ("summarise_transactions", "transactions"): transactions,
    }

    looks = box.calls("webhook_payloads")
    assert {look.query["link_id"] for look in looks} == {link}
    assert len(looks) >= 3
    # One connection for the first look, on the worker; one for all the looks of the deferred wait.
    assert len({look.connection for look in looks}) == 2
    assert len({look.connection for look in looks[1:]}) == 1
    assert min(later.at - earlier.at for earlier, later in pairwise(looks)) >= 0.95
    assert len(box.calls("transactions")) == 1
    assert find_leaks(home, {"api_key": box.api_key, "server_hash": box.server_hash}) == set()


def test_wrong_keys_are_sent_exactly_once_in_each_try_and_told_to_nobody(shared, box):
    wrong = {"api_key": "wrong-api-key-4b0c", "server_hash": "wrong-server-hash-77e1"}
    connection = box.connection
    connection["password"], connection["extra"]["api_key"] = wrong["server_hash"], wrong["api_key"]
    conf = {"link_id": "loan-wrong-keys", "since": datetime.now(UTC).isoformat()}
    before = len(shared.output)

    run = shared.run("with_two_tries", connection, conf)

    assert (run.state, run.tasks["wait_for_statement"]) == ("failed", "failed")
    assert run.tasks["summarise_transactions"] == "upstream_failed"
    assert [(request.call, request.status) for request in box.requests] == [("webhook_payloads", 401)] * 2
    assert {request.headers["x-api-key"] for request in box.requests} == {wrong["api_key"]}
    said = shared.output[before:]
    assert "BankConnectAuthError: webhook_payloads: HTTP 401" in said
    for key in (*wrong.values(), box.api_key, box.server_hash):
        assert key not in said


@pytest.mark.parametrize(
    ("dag_id", "begins", "requests"),
    [
        pytest.param(WAIT, "before the first look", 1, id="deferred, from the first look on"),
        pytest.param(WAIT, "after it", 2, id="deferred, from the second look on"),
        pytest.param("in_poke_mode", "after it", 2, id="poke mode, from the second look on"),
    ],
)
def test_403_for_ever_ends_the_wait_as_an_auth_error_at_the_first_one(shared, box, dag_id, begins, requests):
    refused = Fault(kind="status", status=403)
    if begins == "before the first look":
        box.fault(refused)
    before = len(shared.output)

    shared.start(dag_id, box.connection, {"link_id": "loan-403", "since": datetime.now(UTC).isoformat()})
    shared.until(lambda: box.calls("webhook_payloads"))
    shared.until(lambda: box.requests[0].status is not None)
    box.fault(refused)
    run = shared.result()

    assert (run.state, run.tasks["wait_for_statement"]) == ("failed", "failed")
    assert "BankConnectAuthError: webhook_payloads: HTTP 403" in shared.output[before:]
    assert [request.status for request in box.requests] == [200, 403][-requests:]
    assert all(later.at - earlier.at >= 0.95 for earlier, later in pairwise(box.requests))


def test_several_deferred_waits_of_one_run_each_have_a_loop_of_their_own(shared, home, box):
    links = ["loan-first", "loan-second"]
    before = len(shared.output)

    shared.start("two_waits", box.connection, {"links": links})
    for number, link in enumerate(links):
        shared.until(lambda link=link: any(look.query["link_id"] == link for look in box.calls("webhook_payloads")))
        ids = {"entity_id": f"customer-{number}", "statement_id": f"statement-{number}"}
        box.play(Statement(link_id=link, **ids, after=0.5, later={"identity": 1.5}))
    run = shared.result()

    assert run.state == "success"
    assert shared.output[before:].count("running trigger in line") == 3
    pushed = home.xcoms("two_waits", run.run_id)
    assert [pushed[task, "return_value"][0]["statement_id"] for task in ("first", "second", "third")] == [
        "statement-0",
        "statement-1",
        "statement-1",
    ]
