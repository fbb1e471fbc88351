"""The tables of the gates' rules, in every mode, over HTTPS, and in several orders of their rows.

Each mode has the order of the case. Of the other orders each mode has a third, since all modes share the function that
judges; its own tests have every order. `BANKCONNECT_TESTS=full` gives every order to every mode.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from functools import partial
from itertools import permutations

import pytest
from gate_cases import (
    CASES,
    CUSTOMER_CASES,
    ENTITY,
    LINK,
    PROGRESS_CASES,
    ProgressCase,
    expect_arguments,
    payload_dicts,
    progress_dicts,
)
from waits import MODES, build, run

from airflow_provider_bankconnect.sandbox import Fault, Sandbox
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)

BECOMES = {"passed": "success", "failed": "failed", "pending": "failed", "timezone": "up_for_retry"}


def pace(case):
    """Return a short timeout only for a case that must time out."""
    return {"timeout": 0.12 if case.state == "pending" else 120, "poke_interval": 0.05}


# Cases that hold only within one second need a fixed clock: the tests of the pure functions have them.
STEADY = [case for case in CASES if not case.tight]
STEADY_CUSTOMERS = [case for case in CUSTOMER_CASES if not case.tight]

FULL = os.environ.get("BANKCONNECT_TESTS") == "full"

pytestmark = pytest.mark.usefixtures("fast")


def orders_for(mode, case, orders):
    """Return the orders that a mode has."""
    first, *others = orders
    # The name makes the modes take turns where there is one other order only.
    turn = (MODES.index(mode) + len(case.name)) % len(MODES)
    return [first, *(others if FULL else others[turn :: len(MODES)])]


@pytest.fixture(scope="module")
def vendor():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def box(vendor):
    yield vendor
    vendor.clear_faults()


def answers(box, call, mode, nothing, answer):
    """Answer exactly this; in deferred mode answer the first poke with nothing, so that the wait defers."""
    box.clear_faults()
    answer_call(box, call, mode, nothing, answer)


def answer_call(box, call, mode, nothing, answer):
    for body, times in ((nothing, 1), (answer, None))[mode != "deferred" :]:
        box.fault(Fault(kind="garbage", call=call, body=json.dumps(body), content_type="application/json", times=times))


def customer_answers(box, case, mode, rows, progress):
    """Answer all calls about a customer; in deferred mode the first poke finds nothing."""
    box.clear_faults()
    for entity_id in (ENTITY, "entity-2"):
        its = progress.get(entity_id, [])
        box.progress(entity_id, its)
        small = [{**given, "status": "completed", "transaction_status": given["status"]} for given in its]
        # A completed item must name its statement, in every analysis.
        box.progress(
            entity_id, [one if one["statement_id"] else {**one, "status": "failed"} for one in small], "identity"
        )
    if case.link is None or "entity_id" in case.expect:
        body = {"entity_id": ENTITY, "link_id": case.link}
        answer_call(box, "entity", "poke", None, body)
        if mode == "deferred":
            for call in ("identity", "transactions"):
                box.fault(
                    Fault(kind="garbage", call=call, body='{"progress": []}', content_type="application/json", times=1)
                )
    listed = {"next": None, "results": [{"entity_id": entity_id, "link_id": LINK} for entity_id in progress]}
    answer_call(box, "entities", mode, {"next": None, "results": []}, listed)
    answer_call(box, "webhook_payloads", mode, {"payloads": []}, {"payloads": rows})


def _of_run(announced):
    """Return the sensor as in a run that webhooks started; they announced these statements."""

    class Sensor(BankConnectStatementSensor):
        def _find_customer(self, _context):
            vars(self).update(announced)

    return Sensor if announced else BankConnectStatementSensor


def both_ways(rows, progress):
    """Return the records in the order of the case and, if there is another one, in reverse order."""
    backward = (rows[::-1], {entity_id: its[::-1] for entity_id, its in reversed(progress.items())})
    is_same = backward[0] == rows and [*backward[1].items()] == [*progress.items()]
    return [(rows, progress)] if is_same else [(rows, progress), backward]


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
def test_every_mode_reaches_the_verdict_of_the_history_case_in_its_orders(box, case, mode):
    now = datetime.now(UTC).replace(microsecond=0)
    sensor = partial(
        build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, **pace(case), **expect_arguments(case, now)
    )
    for rows in orders_for(mode, case, permutations(payload_dicts(case, now))):
        answers(box, "webhook_payloads", mode, {"payloads": []}, {"payloads": rows})
        outcome = run(sensor)
        assert outcome.state == BECOMES[case.state], outcome
        if case.state != "pending":
            assert bool(outcome.triggers) == (mode == "deferred")
        if case.state == "passed" and case.result is not None:
            assert outcome.ids == list(case.result)
        if case.state == "pending":
            assert "timed out" in outcome.message


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", PROGRESS_CASES, ids=lambda case: case.name)
def test_every_mode_reaches_the_verdict_of_the_progress_case_in_its_orders(box, case, mode):
    sensor = partial(
        build,
        BankConnectProgressSensor,
        mode,
        entity_id=ENTITY,
        **pace(case),
        **expect_arguments(case, datetime.now(UTC)),
    )
    for items in orders_for(mode, case, permutations(progress_dicts(case))):
        answers(
            box, "transactions", mode, {"progress": []}, {"entity_id": ENTITY, "progress": items, "transactions": []}
        )
        outcome = run(sensor)
        assert outcome.state == BECOMES[case.state], outcome
        if case.state == "passed" and case.result is not None:
            assert sorted(outcome.ids) == sorted(case.result)


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", STEADY_CUSTOMERS, ids=lambda case: case.name)
def test_every_mode_reaches_the_verdict_of_the_customer_case_in_its_orders(box, case, mode):
    now = datetime.now(UTC).replace(microsecond=0)
    link = {} if case.link is None else {"link_id": case.link}
    arguments = expect_arguments(case, now)
    announced = {name: arguments.pop(name) for name in ("announced", "announced_until") if name in arguments}
    sensor = partial(build, _of_run(announced), mode, **link, **pace(case), **arguments)
    progress = {entity_id: progress_dicts(ProgressCase("", its, "")) for entity_id, its in case.items.items()}
    for rows, items in orders_for(mode, case, both_ways(payload_dicts(case, now), progress)):
        customer_answers(box, case, mode, rows, items)
        outcome = run(sensor)
        assert outcome.state == BECOMES[case.state], outcome
        if case.state != "pending":
            assert bool(outcome.triggers) == (mode == "deferred")
        if case.state == "passed":
            assert outcome.ids == list(case.result)
        if case.state == "pending":
            assert "timed out" in outcome.message
