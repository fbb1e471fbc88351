"""The table of the gate's rules, asked of a vendor over HTTPS, in poke, reschedule and deferred mode."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from gate_cases import CASES, payload_dicts
from waits import MODES, build, run

from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWebhookPayloadSensor

BY_STATE = {"passed": "success", "failed": "failed", "pending": "failed", "timezone": "up_for_retry"}


@pytest.mark.usefixtures("connection", "fast")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_every_mode_gives_the_verdict_of_the_table(box, case, mode):
    now = datetime.now(UTC).replace(microsecond=0)
    for row in payload_dicts(case, now):
        box.payload(**row)
    expect = {name: value for name, value in case.expectation(now).items() if name != "link_id"}
    sensor = partial(
        build, BankConnectWebhookPayloadSensor, mode, link_id=case.link_id, timeout=0.15, poke_interval=0.05, **expect
    )
    outcome = run(sensor)
    assert outcome.state == BY_STATE[case.state]
    if case.state == "passed" and case.result is not None:
        assert outcome.ids == list(case.result)
    if case.state == "pending":
        assert "Timed out" in outcome.message
