"""The table of the gate's rules, asked of a vendor over HTTPS, in every order of its rows and in every mode."""

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
    """Time out soon where that is what has to happen; a slow machine must not bring it about elsewhere."""
    return {"timeout": 0.12 if case.state == "pending" else 30, "poke_interval": 0.05}


# Between asking and judging the clock goes on: what holds only at one very second is for the pure table alone.
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
    """Give the rows in exactly this order; but let the first look find nothing where the wait is to defer."""
    box.clear_faults()
    for body, times in ((nothing, 1), (answer, None))[mode != "deferred" :]:
        box.fault(Fault(kind="garbage", call=call, body=json.dumps(body), content_type="application/json", times=times))


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
def test_every_mode_gives_the_verdict_of_the_table_in_every_order(box, case, mode):
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
def test_every_mode_gives_the_verdict_of_the_snapshot_table_in_every_order(box, case, mode):
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
