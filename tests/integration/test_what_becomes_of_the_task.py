"""The table of what becomes of a task: by what went wrong, the mode of the wait, and the task's options."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from waits import build, run

from airflow_provider_bankconnect.api import BankConnectAuthError
from airflow_provider_bankconnect.sandbox import Fault
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectWaitError, BankConnectWebhookPayloadSensor
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger

LINK = "loan-4711"
OPTIONS = ("none", "soft_fail", "silent_fail", "never_fail")
# "up_for_retry": the task fails, and Airflow tries it again while it has retries. "failed": it fails for good.
BECOMES = {
    #                    none            soft_fail       silent_fail     never_fail
    "vendor's failure": ("failed", "skipped", "failed", "skipped"),
    "wrong keys": ("up_for_retry", "up_for_retry", "failed", "skipped"),
    "nothing in time": ("failed", "skipped", "failed", "skipped"),
    "errors for a while": ("success", "success", "success", "success"),
}
TABLE = [
    pytest.param(what, where, option, state, id=f"{what}-{where}-{option}")
    for what, row in BECOMES.items()
    for where in ("poke", "reschedule", "first poke", "deferred")
    for option, state in zip(OPTIONS, row, strict=True)
]

pytestmark = pytest.mark.usefixtures("connection", "fast")


def sensor(mode, option="none", **arguments):
    flags = {option: True} if option != "none" else {}
    arguments = {"timeout": 0.4, "poke_interval": 0.05} | arguments | flags
    return partial(build, BankConnectWebhookPayloadSensor, mode, link_id=LINK, **arguments)


def happens(box, what, *, later):
    """Make it happen at the first poke, or after a first poke that finds nothing."""
    if later:
        nothing = json.dumps({"payloads": []})
        box.fault(Fault(kind="garbage", call="webhook_payloads", body=nothing, times=1))
    if what == "vendor's failure":
        box.payload(
            link_id=LINK,
            entity_id="e1",
            statement_id="s1",
            progress="failed",
            reason="Statement is password protected",
            date_time=datetime.now(UTC) - timedelta(hours=1),
        )
    elif what == "wrong keys":
        box.fault(Fault(kind="status", call="webhook_payloads", status=401))
    elif what == "errors for a while":
        # One error only: the back-off after a second one in a row takes seconds.
        box.fault(Fault(kind="status", call="webhook_payloads", status=404, times=1))
        box.fault(Fault(kind="garbage", call="webhook_payloads", times=1))
        box.payload(link_id=LINK, entity_id="e1", statement_id="s1", progress="completed", reason="")


@pytest.mark.parametrize(("what", "where", "option", "state"), TABLE)
def test_the_task_ends_as_the_table_says(box, what, where, option, state):
    mode = "deferred" if where in {"first poke", "deferred"} else where
    happens(box, what, later=where == "deferred")
    # Only a case that must time out has a short timeout.
    times_out = what == "nothing in time" or (what, option) == ("wrong keys", "silent_fail")
    timeout = 0.4 if times_out else 120
    outcome = run(sensor(mode, option, timeout=timeout))
    assert outcome.state == state, outcome
    if what == "vendor's failure":
        assert "Statement is password protected" in outcome.message
    if what == "wrong keys" and state == "up_for_retry":
        assert isinstance(outcome.error, BankConnectAuthError)
        assert not isinstance(outcome.error, AirflowException)
        assert len(box.calls("webhook_payloads")) == (2 if where == "deferred" else 1)
    if what == "nothing in time" and state == "failed":
        assert "timed out after 0:00:00.4" in outcome.message
        assert "Seen last: no row that counts" in outcome.message


BAD_EVENTS = [
    None,
    {},
    "success",
    {"status": "success"},
    {"status": "passed"},
    {"status": "passed", "rows": [], "because": "nothing"},
    {"status": "passed", "rows": None, "because": "nothing"},
    {"status": "PASSED", "rows": [{"statement_id": "s1"}], "because": "other words"},
    {"status": ["passed"], "rows": [{"statement_id": "s1"}], "because": "a list"},
]


@pytest.mark.parametrize("event", BAD_EVENTS, ids=repr)
@pytest.mark.parametrize(("option", "skipped"), zip(OPTIONS, (False, False, False, True), strict=True))
def test_an_unknown_event_never_passes_the_gate(event, option, skipped):
    gate = sensor("deferred", option)()
    if skipped:
        with pytest.raises(AirflowException, match="never_fail"):
            gate.resume_execution("execute_complete", {"event": event}, {})
        return
    with pytest.raises(BankConnectWaitError) as raised:
        gate.resume_execution("execute_complete", {"event": event}, {})
    assert not isinstance(raised.value, AirflowException)


@pytest.mark.parametrize(("option", "state"), zip(OPTIONS, ("up_for_retry",) * 3 + ("skipped",), strict=True))
def test_a_crash_of_the_trigger_fails_the_task_and_never_passes_the_gate(box, monkeypatch, option, state):
    def crash(*_, **__):
        raise ZeroDivisionError("with a secret in it")

    monkeypatch.setattr(BankConnectWebhookPayloadTrigger, "_judge", crash)
    outcome = run(sensor("deferred", option, timeout=120))
    assert outcome.state == state
    (event,) = outcome.events
    assert (event["status"], event["error"]) == ("error", "ZeroDivisionError")
    assert "secret" not in str(event)
    assert len(box.calls("webhook_payloads")) == 2


@pytest.mark.parametrize("where", ["poke", "reschedule", "first poke", "deferred"])
@pytest.mark.parametrize(
    ("on_failed", "state"), [("fail", "failed"), ("skip", "skipped"), ("wait", "failed"), ("pass", "success")]
)
def test_on_failed_means_the_same_at_the_first_poke_and_later(box, where, on_failed, state):
    happens(box, "vendor's failure", later=where == "deferred")
    mode = "deferred" if where in {"first poke", "deferred"} else where
    outcome = run(sensor(mode, on_failed=on_failed, timeout=3 if on_failed == "wait" else 120))
    assert outcome.state == state
    if on_failed == "pass":
        assert [(row["statement_id"], row["progress"]) for row in outcome.rows] == [("s1", "failed")]
    if on_failed == "wait":
        assert "timed out" in outcome.message
        assert "Statement is password protected" in outcome.message


@pytest.mark.parametrize("where", ["poke", "reschedule", "first poke", "deferred"])
def test_a_row_in_the_future_ends_the_wait_with_an_error_that_names_the_timezone(box, where):
    happens(box, "nothing", later=where == "deferred")
    box.payload(
        link_id=LINK,
        entity_id="e1",
        statement_id="s1",
        progress="completed",
        reason="",
        date_time=datetime.now(UTC) + timedelta(hours=5, minutes=30),
    )
    mode = "deferred" if where in {"first poke", "deferred"} else where
    outcome = run(sensor(mode, "soft_fail", timeout=120))
    assert outcome.state == "up_for_retry"
    assert "timezone" in outcome.message
    assert "5:30" in outcome.message
