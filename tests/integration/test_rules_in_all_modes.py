"""The table of the gate's rules, in every mode, over HTTPS, and in every order of its rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from itertools import permutations

import pytest
from gate_cases import CASES, ENTITY, LINK, PROGRESS_CASES, expect_arguments, payload_dicts, progress_dicts
from waits import MODES, build, run

from airflow_provider_bankconnect.sandbox import Fault, Sandbox
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor

BECOMES = {"passed": "success", "failed": "failed", "pending": "failed", "timezone": "up_for_retry"}


def pace(case):
    """Return a short timeout only for a case that must time out."""
    return {"timeout": 0.12 if case.state == "pending" else 120, "poke_interval": 0.05}


# Cases that hold only within one second need a fixed clock: the tests of the pure functions have them.
STEADY = [case for case in CASES if not case.tight]

pytestmark = pytest.mark.usefixtures("fast")


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
    for body, times in ((nothing, 1), (answer, None))[mode != "deferred" :]:
        box.fault(Fault(kind="garbage", call=call, body=json.dumps(body), content_type="application/json", times=times))


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
def test_every_mode_reaches_the_verdict_of_the_history_case_in_every_order(box, case, mode):
    now = datetime.now(UTC).replace(microsecond=0)
    sensor = partial(
        build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, **pace(case), **expect_arguments(case, now)
    )
    for rows in permutations(payload_dicts(case, now)):
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
def test_every_mode_reaches_the_verdict_of_the_progress_case_in_every_order(box, case, mode):
    sensor = partial(
        build,
        BankConnectProgressSensor,
        mode,
        entity_id=ENTITY,
        **pace(case),
        **expect_arguments(case, datetime.now(UTC)),
    )
    for items in permutations(progress_dicts(case)):
        answers(
            box, "transactions", mode, {"progress": []}, {"entity_id": ENTITY, "progress": items, "transactions": []}
        )
        outcome = run(sensor)
        assert outcome.state == BECOMES[case.state], outcome
        if case.state == "passed" and case.result is not None:
            assert sorted(outcome.ids) == sorted(case.result)
