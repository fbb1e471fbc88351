"""Invalid arguments are refused when the DAG is parsed if they are literal; else before anything is sent."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from airflow_provider_bankconnect.api import WebhookMode
from airflow_provider_bankconnect.operators.bankconnect import BankConnectUpdateWebhookOperator
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor

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
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=repr)
def test_the_payload_sensor_refuses_an_invalid_argument_at_parsing_and_names_it(name, value):
    arguments = {"task_id": "wait", "link_id": "loan-4711"} | {name: value}
    with pytest.raises(ValueError, match=name):
        BankConnectWebhookPayloadSensor(**arguments)


# failure_grace is no template field: it is known when the DAG is parsed.
@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad[0] != "failure_grace"], ids=repr)
def test_the_payload_sensor_refuses_an_invalid_rendered_argument_before_a_request(box, connection, name, value):
    del connection
    sensor = BankConnectWebhookPayloadSensor(**({"task_id": "wait", "link_id": "loan-4711"} | {name: TEMPLATE}))
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
