"""The example DAGs, as ``airflow dags test`` runs them, deferred, against the sandbox over TLS.

The command itself is run by ``tests/browser``, by ``make readme`` and by ``make matrix``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from homes import REGISTER, WAIT
from leaks import find_leaks

from airflow_provider_bankconnect.sandbox import Fault, Statement

pytestmark = pytest.mark.system

ROW = ["statement_id", "entity_id", "link_id", "progress", "reason", "date_time"]


def test_endpoint_is_registered_once_in_the_mode_that_sends_webhooks_for_pdfs_too(shared, home, box):
    run = shared.run(REGISTER, box.connection, {"webhook_url": box.inbox_url, "allow_private_host": True})

    assert run.state == "success"
    assert (box.webhook_url, box.webhook_mode) == (box.inbox_url, 1)
    assert [json.loads(request.body) for request in box.requests] == [{"webhook_url": box.inbox_url, "webhook_mode": 1}]
    assert home.xcoms(REGISTER) == {}


def test_gate_passes_on_the_statement_after_a_failed_login_and_the_next_task_runs(shared, home, box):
    link = "loan 4711/März & co?"
    box.play(Statement(link_id=link, entity_id="customer", statement_id="last-month", after=-30 * 86_400))
    since = datetime.now(UTC) - timedelta(seconds=5)

    shared.start(WAIT, box.connection, {"link_id": link, "since": since.isoformat()})
    # The second poke is the first of the deferred wait.
    shared.until(lambda: len(box.calls("webhook_payloads")) >= 2)
    earliest = datetime.now(UTC)
    box.play(Statement(link_id=link, entity_id="customer", statement_id="", progress="failed", after=1))
    box.play(Statement(link_id=link, entity_id="customer", statement_id="this-month", after=2.5, transactions=17))
    latest = datetime.now(UTC)
    run = shared.result()

    assert run.state == "success"
    pushed = home.xcoms(WAIT, run.run_id)
    [row] = pushed.pop(("wait_for_statement", "return_value"))
    assert list(row) == ROW
    written = datetime.fromisoformat(row.pop("date_time"))
    # BankConnect's times have whole seconds.
    assert earliest + timedelta(seconds=1.5) <= written <= latest + timedelta(seconds=3.5)
    assert written.utcoffset() == timedelta(0)
    assert row == {
        "statement_id": "this-month",
        "entity_id": "customer",
        "link_id": link,
        "progress": "completed",
        "reason": "",
    }
    # The customer has two statements: the task reads the transactions of both, and only counts become XCom.
    transactions = box.transaction_count("customer")
    assert transactions > 17
    assert pushed == {
        ("summarise_transactions", "return_value"): {"statements": 2, "transactions": transactions},
        ("summarise_transactions", "statements"): 2,
        ("summarise_transactions", "transactions"): transactions,
    }

    pokes = box.calls("webhook_payloads")
    assert {poke.query["link_id"] for poke in pokes} == {link}
    assert len(pokes) >= 3
    # The first poke, on the worker, has one connection; all pokes of the deferred wait share another one.
    assert len({poke.connection for poke in pokes}) == 2
    assert len({poke.connection for poke in pokes[1:]}) == 1
    assert min(later.at - earlier.at for earlier, later in pairwise(pokes)) >= 0.95
    assert len(box.calls("transactions")) == 1
    assert find_leaks(home, {"api_key": box.api_key, "server_hash": box.server_hash}) == set()


def test_wrong_keys_are_sent_once_in_each_try_and_are_not_in_the_log(shared, box):
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
    ("dag_id", "before"),
    [
        pytest.param(WAIT, [], id="deferred, at the first poke"),
        pytest.param(WAIT, [200], id="deferred, at a later poke"),
        pytest.param("in_poke_mode", [200], id="poke mode, at a later poke"),
    ],
)
def test_first_403_ends_the_wait_with_an_auth_error(shared, box, dag_id, before):
    refused = Fault(kind="status", status=403)
    if not before:
        box.fault(refused)
    start = len(shared.output)

    shared.start(dag_id, box.connection, {"link_id": "loan-403", "since": datetime.now(UTC).isoformat()})
    shared.until(lambda: box.calls("webhook_payloads"))
    shared.until(lambda: box.requests[0].status is not None)
    box.fault(refused)
    run = shared.result()

    assert (run.state, run.tasks["wait_for_statement"]) == ("failed", "failed")
    assert "BankConnectAuthError: webhook_payloads: HTTP 403" in shared.output[start:]
    *earlier, last = [request.status for request in box.requests]
    # A slow machine may poke again before the fault is set.
    assert (set(earlier), last) == (set(before), 403)
    assert all(later.at - earlier.at >= 0.95 for earlier, later in pairwise(box.requests))


def test_deferred_waits_of_one_run_work_each_in_its_own_event_loop(shared, home, box):
    links = ["loan-first", "loan-second"]
    before = len(shared.output)

    shared.start("two_waits", box.connection, {"links": links})
    for number, link in enumerate(links):
        shared.until(lambda link=link: any(poke.query["link_id"] == link for poke in box.calls("webhook_payloads")))
        ids = {"entity_id": f"customer-{number}", "statement_id": f"statement-{number}"}
        # On a slow machine the third task begins many seconds after the second has passed.
        box.play(Statement(link_id=link, **ids, after=0.5, later={"identity": 15}))
    run = shared.result()

    assert run.state == "success"
    assert shared.output[before:].count("running trigger in line") == 3
    pushed = home.xcoms("two_waits", run.run_id)
    assert [pushed[task, "return_value"][0]["statement_id"] for task in ("first", "second", "third")] == [
        "statement-0",
        "statement-1",
        "statement-1",
    ]
