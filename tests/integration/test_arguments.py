"""Invalid arguments are refused when the DAG is parsed if they are literal; else before anything is sent."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest
import yaml
from airflow.providers.common.compat.sdk import AirflowSensorTimeout

from airflow_provider_bankconnect.api import BankConnectAuthError, WebhookMode
from airflow_provider_bankconnect.gate import Row
from airflow_provider_bankconnect.operators.bankconnect import BankConnectUpdateWebhookOperator
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectStatementTrigger,
    BankConnectWebhookPayloadTrigger,
    wait_event,
)
from airflow_provider_bankconnect.wait import End

TEMPLATE = "{{ dag_run.conf['x'] }}"

BAD = [
    ("link_id", ""),
    ("link_id", "  "),
    ("link_id", "None"),
    ("link_id", None),
    ("link_id", ".."),
    ("link_id", True),
    ("link_id", ["loan-1", "loan-2"]),
    ("entity_id", ""),
    ("entity_id", "None"),
    ("statement_id", []),
    ("statement_id", ["s1", ""]),
    ("statement_id", "None"),
    ("statement_id", {"s1": "s2"}),
    ("statement_id", b"s1"),
    ("since", "yesterday"),
    ("since", ""),
    ("since", "None"),
    ("since", "now"),
    ("since", 5),
    ("expected_statements", 0),
    ("expected_statements", -1),
    ("expected_statements", "two"),
    ("expected_statements", "0"),
    ("expected_statements", True),
    ("expected_statements", 1.5),
    ("on_failed", "explode"),
    ("on_failed", ""),
    ("failure_grace", timedelta(seconds=-1)),
    ("failure_grace", True),
]
# Not known when the DAG is parsed: what renders it may be anything.
RENDERED = [("statement_id", {"s1": "s2"}), ("statement_id", b"s1")]


@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad not in RENDERED], ids=repr)
def test_the_payload_sensor_refuses_an_invalid_argument_at_parsing_and_names_it(name, value):
    arguments = {"task_id": "wait", "link_id": "loan-4711"} | {name: value}
    with pytest.raises(ValueError, match=name):
        BankConnectWebhookPayloadSensor(**arguments)


# failure_grace is no template field: it is known when the DAG is parsed.
@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad[0] != "failure_grace"], ids=repr)
def test_the_payload_sensor_refuses_an_invalid_rendered_argument_before_a_request(box, connection, name, value):
    del connection
    good = {"task_id": "wait", "link_id": "loan-4711", "timeout": 1}
    sensor = BankConnectWebhookPayloadSensor(**(good | {name: TEMPLATE}))
    setattr(sensor, name, value)
    with pytest.raises(ValueError, match=name):
        sensor.execute({})
    assert box.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("entity_id", ""), ("entity_id", "."), ("entity_id", None), ("analysis", "balances"), ("analysis", "../accounts")],
    ids=repr,
)
def test_the_progress_sensor_refuses_an_invalid_argument_and_names_it(name, value):
    with pytest.raises(ValueError, match=name):
        BankConnectProgressSensor(**({"task_id": "wait", "entity_id": "e1"} | {name: value}))


def test_more_expected_statements_than_statement_ids_are_refused():
    with pytest.raises(ValueError, match=r"expected_statements is 3, but statement_id names only 2"):
        BankConnectWebhookPayloadSensor(
            task_id="wait", link_id="loan-4711", statement_id=["s1", "s2"], expected_statements=3
        )


MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
HALF_PAST_FOUR = datetime(2026, 1, 1, 4, 30, tzinfo=UTC)
# What a value that is written in YAML becomes; None: it is refused, and named.
YAML = [
    ("link_id: loan-1", "loan-1"),
    ("link_id: 4711", "4711"),
    ("link_id: '0123'", "0123"),
    ("link_id: 1.10", None),
    ("link_id: 2026-01-01", None),
    ("link_id: yes", None),
    ("link_id:", None),
    ("link_id: [loan-1]", None),
    ("entity_id:", ...),
    ("statement_id: 17", ("17",)),
    ("statement_id: [17, s2]", ("17", "s2")),
    ("statement_id: [1.5]", None),
    ("statement_id: 2026-01-01", None),
    ("since: 2026-01-01", MIDNIGHT),
    ("since: '2026-01-01'", MIDNIGHT),
    ("since: 2026-01-01 04:30:00", HALF_PAST_FOUR),
    ("since: 2026-01-01T04:30:00Z", HALF_PAST_FOUR),
    ("since: '2026-01-01T10:00:00+05:30'", HALF_PAST_FOUR),
    ("since:", ...),
    ("since: 20260101", None),
    ("since: 2026.5", None),
    ("since: no", None),
    ("expected_statements: 2", 2),
    ("expected_statements: '2'", 2),
    ("expected_statements: 2.0", None),
    ("expected_statements: yes", None),
    ("expected_statements:", None),
    ("failure_grace: 600", timedelta(minutes=10)),
    ("failure_grace: 0.5", timedelta(seconds=0.5)),
    ("failure_grace: '600'", None),
    ("failure_grace: yes", None),
    ("failure_grace:", None),
    ("failure_grace: .inf", None),
    ("on_failed: skip", "skip"),
    ("on_failed: no", None),
    ("on_failed:", None),
    ("deferrable: yes", True),
    ("deferrable: 'yes'", None),
    ("deferrable: 1", None),
    ("deferrable:", None),
    ("timeout: 3600", 3600),
    ("poke_interval: 0.5", 0.5),
    ("poke_interval: 0", None),
]


@pytest.mark.parametrize("sensor", [BankConnectWebhookPayloadSensor, BankConnectStatementSensor])
@pytest.mark.parametrize(("text", "value"), YAML, ids=[text for text, _ in YAML])
def test_a_value_of_a_yaml_file_is_read_or_refused_at_parsing(sensor, text, value):
    """An unquoted date was accepted at parsing, and failed at run time."""
    ((name, given),) = yaml.safe_load(text).items()
    arguments = {"task_id": "wait", "link_id": "loan-1", "statement_id": None} | {name: given}
    if name == "link_id" and given is None and sensor is BankConnectStatementSensor:
        # The customer is that of the run.
        assert sensor(**arguments).link_id is None
    elif value is None:
        with pytest.raises(ValueError, match=name):
            sensor(**arguments)
    else:
        made = sensor(**arguments)
        expectation = made._gate().expectation
        assert getattr(expectation, name, getattr(made, name, None)) == (None if value is ... else value)


@pytest.mark.parametrize("value", ["2", 2, " 2 "])
def test_expected_statements_is_a_number_or_its_text(value):
    sensor = BankConnectWebhookPayloadSensor(task_id="wait", link_id="loan-4711", expected_statements=value)
    assert sensor._gate().expectation.expected_statements == 2


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23T10:00:00Z",
        "2026-11-23T10:00:00",
        "2026-11-23 10:00:00+00:00",
        "2026-11-23T15:30:00+05:30",
        datetime(2026, 11, 23, 10),  # noqa: DTZ001 - naive means UTC
    ],
    ids=str,
)
def test_since_is_a_datetime_or_iso_text_and_naive_means_utc(value):
    sensor = BankConnectWebhookPayloadSensor(task_id="wait", link_id="loan-4711", since=value)
    assert sensor._gate().expectation.since.isoformat() == "2026-11-23T10:00:00+00:00"


def test_every_argument_that_may_depend_on_the_run_is_templated():
    assert set(BankConnectWebhookPayloadSensor.template_fields) >= {
        "link_id", "entity_id", "statement_id", "since", "expected_statements", "on_failed", "bankconnect_conn_id",
    }  # fmt: skip
    assert set(BankConnectProgressSensor.template_fields) >= {
        "entity_id", "analysis", "statement_id", "expected_statements", "on_failed", "bankconnect_conn_id",
    }  # fmt: skip
    assert set(BankConnectUpdateWebhookOperator.template_fields) >= {"webhook_url", "webhook_mode"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook_url", "http://example.com/hook"),
        ("webhook_url", "https://10.0.0.8/hook"),
        ("webhook_url", "https://0x7f.1/hook"),
        ("webhook_url", "https://user:word@example.com/hook"),
        ("webhook_url", "/hook"),
        ("webhook_mode", 2),
        ("webhook_mode", "manual"),
        ("allow_private_host", "perhaps"),
    ],
)
def test_the_operator_refuses_an_invalid_argument_at_parsing_and_before_a_request(box, connection, name, value):
    del connection
    good = {"task_id": "register", "webhook_url": "https://example.com/hook"}
    with pytest.raises(ValueError, match=name):
        BankConnectUpdateWebhookOperator(**(good | {name: value}))
    operator = BankConnectUpdateWebhookOperator(**(good | {name: TEMPLATE}))
    setattr(operator, name, value)
    with pytest.raises(ValueError, match=name):
        operator.execute({})
    assert box.requests == []


@pytest.mark.parametrize(
    ("mode", "arrives"),
    [
        (WebhookMode.NET_BANKING, 0),
        (WebhookMode.NET_BANKING_AND_MANUAL, 1),
        (1, 1),
        ("0", 0),
        ("NET_BANKING_AND_MANUAL", 1),
        ("WebhookMode.NET_BANKING", 0),
    ],
)
def test_the_operator_registers_the_endpoint_and_always_sends_the_mode(box, connection, mode, arrives):
    del connection
    operator = BankConnectUpdateWebhookOperator(
        task_id="register", webhook_url=box.inbox_url, webhook_mode=mode, allow_private_host="True"
    )
    operator.execute({})
    assert (box.webhook_url, box.webhook_mode) == (box.inbox_url, arrives)
    assert b'"webhook_mode"' in box.calls("update_webhook")[0].body


# What a trigger gets and sends.

JSON_TYPES = {str, int, float, bool, type(None), list, dict}
WAIT = {"deadline": datetime(2026, 1, 2, tzinfo=UTC), "started": datetime(2026, 1, 1, tzinfo=UTC), "max_wait": 60.0}
MOMENT = {"since": date(2026, 1, 1), "failure_grace": timedelta(minutes=5)}
TRIGGERS = [
    BankConnectWebhookPayloadTrigger(link_id=4711, statement_id=("s1", "s2"), wait=WAIT, **MOMENT),
    BankConnectProgressTrigger(entity_id="e1", statement_id=["s1"], wait=WAIT),
    BankConnectStatementTrigger(
        link_id="loan-1", announced=("s1",), announced_until=datetime(2026, 1, 1, tzinfo=UTC), wait=WAIT, **MOMENT
    ),
]
ROWS = (
    Row("s1", "e1", None, "completed", "", None),
    Row("", "", "loan-1", "failed", "no", "2026-01-01T10:00:00+00:00"),
)
REFUSED = BankConnectAuthError("BankConnect refuses these keys", status=401)
ENDS = [
    End("passed", "1 statement completed", ROWS[:1]),
    End("failed", "1 statement failed", ROWS),
    End("timeout", "no row that counts"),
    End("error", str(REFUSED), error=REFUSED),
]


def types_of(value):
    """Yield the types of a value and of all its parts."""
    yield type(value)
    if isinstance(value, dict):
        assert all(type(name) is str for name in value)
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from types_of(part)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: type(trigger).__name__)
def test_the_arguments_and_events_of_a_trigger_have_only_the_types_of_json(trigger):
    """A triggerer hands sets, tuples and durations on as other types than dag.test() does."""
    _, arguments = trigger.serialize()
    assert set(types_of(arguments)) <= JSON_TYPES
    assert arguments == type(trigger)(**json.loads(json.dumps(arguments))).serialize()[1]
    for end in ENDS:
        event = wait_event(end, trigger.wait)
        assert set(types_of(event)) <= JSON_TYPES
        assert event["gate"] == str(trigger.gate)


def test_the_words_of_a_wait_that_ended_are_those_of_its_event(log):
    """Airflow renders the templates of a task that resumes anew: they may name another customer by then."""
    trigger = TRIGGERS[0]
    resumed = BankConnectWebhookPayloadSensor(task_id="wait", link_id="another", on_failed="pass")
    for end in ENDS[:2]:
        assert resumed.execute_complete({}, dict(wait_event(end, trigger.wait))) == [row.as_dict() for row in end.rows]
    with pytest.raises(AirflowSensorTimeout) as caught:
        resumed.execute_complete({}, dict(wait_event(ENDS[2], trigger.wait)))
    said = log() + str(caught.value)
    assert said.count("for payload history of link '4711'") >= 3
    assert "another" not in said


@pytest.mark.parametrize(
    "make",
    [
        partial(BankConnectWebhookPayloadSensor, link_id="loan-1"),
        partial(BankConnectProgressSensor, entity_id="e1"),
        partial(BankConnectStatementSensor, link_id="loan-1"),
        partial(BankConnectUpdateWebhookOperator, webhook_url="https://receiver.example/hook"),
    ],
    ids=lambda make: make.func.__name__,
)
@pytest.mark.parametrize("given", [123456, 1.5, None, date(2026, 1, 1)], ids=repr)
def test_connection_id_that_is_no_text_is_refused_at_parsing(make, given):
    with pytest.raises(ValueError, match=f"bankconnect_conn_id must be text, not {re.escape(repr(given))}: quote it"):
        make(task_id="t", bankconnect_conn_id=given)
    assert make(task_id="t", bankconnect_conn_id="{{ params.conn }}").bankconnect_conn_id == "{{ params.conn }}"
