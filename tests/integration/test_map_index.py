"""A mapped task is shown by its customer. Airflow's own part is in ``tests/system`` and ``make matrix``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from jinja2 import DebugUndefined
from jinja2.nativetypes import NativeEnvironment
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)

ENVIRONMENTS = (SandboxedEnvironment(undefined=DebugUndefined), NativeEnvironment(undefined=DebugUndefined))


def shown(sensor, map_index=0, **more):
    """Render the arguments of a task, and return what Airflow then makes of the task's map index."""
    context = {"ti": SimpleNamespace(map_index=map_index), "map_index_template": None, "id": "it's {{ 1 }}", **more}
    found = set()
    for environment in ENVIRONMENTS:
        sensor.render_template_fields(context, environment)
        template = context["map_index_template"]
        found.add(template if template is None else environment.from_string(template).render(context))
    (text,) = found
    return text


@pytest.mark.parametrize(
    ("sensor", "arguments", "text"),
    [
        (BankConnectWebhookPayloadSensor, {"link_id": "loan-4711", "entity_id": None}, "link loan-4711"),
        (BankConnectWebhookPayloadSensor, {"link_id": "{{ id }}"}, "link it's {{ 1 }}"),
        (BankConnectProgressSensor, {"entity_id": "e-1"}, "entity e-1"),
        (BankConnectProgressSensor, {"entity_id": -1}, "entity -1"),
        (BankConnectStatementSensor, {"link_id": "loan-4711", "entity_id": "e-1"}, "link loan-4711, entity e-1"),
        (BankConnectStatementSensor, {"entity_id": "e\n1"}, "entity e?1"),
        (BankConnectStatementSensor, {"link_id": "ऋ" * 500}, "link " + "ऋ" * 245),
        # All mapped tasks have the customer of the run: the number tells them apart.
        (BankConnectStatementSensor, {}, None),
    ],
    ids=lambda value: getattr(value, "__name__", "")[:30],
)
def test_a_mapped_task_is_shown_by_its_customer(sensor, arguments, text):
    assert shown(sensor(task_id="wait", **arguments)) == text


def test_the_template_of_the_dag_wins():
    sensor = BankConnectProgressSensor(task_id="wait", entity_id="e-1")
    assert shown(sensor, map_index_template="mine") == "mine"


def test_a_task_that_is_not_mapped_and_an_invalid_id_are_left_alone():
    assert shown(BankConnectProgressSensor(task_id="wait", entity_id="e-1"), map_index=-1) is None
    assert shown(BankConnectProgressSensor(task_id="wait", entity_id="{{ none }}")) is None
