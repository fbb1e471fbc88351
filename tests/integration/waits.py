"""Runs a sensor as Airflow does in each of its modes, without a scheduler, and returns what becomes of the task."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:
    from airflow.exceptions import AirflowRescheduleException

try:
    from airflow.sensors import base as sensor_base

    AIRFLOW_3 = not hasattr(sensor_base, "_orig_start_date")
except ImportError:
    AIRFLOW_3 = True

MODES = ("poke", "reschedule", "deferred")


@dataclass
class Outcome:
    """``state`` as Airflow would set it, the XCom, the error, and the triggers with their events."""

    state: str
    rows: Any = None
    error: BaseException | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    triggers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [row["statement_id"] for row in self.rows]

    @property
    def message(self) -> str:
        """The message of the error and of its cause: Airflow's own skips have no message."""
        return f"{self.error} <- {self.error.__cause__}" if self.error else ""


class TaskInstance:
    """The part of a task instance that a sensor reads."""

    max_tries = 0
    try_number = 1
    dag_id = run_id = "run"
    task_id = "wait"
    map_index = -1

    def __init__(self) -> None:
        self.first_reschedule: datetime | None = None
        self.task = self
        self.retries = 0
        if not AIRFLOW_3:
            # Airflow 2 reads it from the database.
            sensor_base._orig_start_date = lambda *_, **__: self.first_reschedule

    if AIRFLOW_3:

        def get_first_reschedule_date(self, _context: object) -> datetime | None:
            return self.first_reschedule


def build(sensor: type, mode: str, **arguments: Any) -> Any:
    """Make a sensor for a mode."""
    return sensor(
        task_id="wait",
        mode="reschedule" if mode == "reschedule" else "poke",
        deferrable=mode == "deferred",
        **arguments,
    )


def run(make: Any, *, outcome: Outcome | None = None, more: dict[str, Any] | None = None) -> Outcome:
    """Run the sensor that ``make()`` builds to its end; each resumption gets a new sensor, as in a new process.

    :param more: what the context of the task has besides the task instance.
    """
    outcome = outcome or Outcome("running")
    ti, started = TaskInstance(), datetime.now(UTC)
    resume: tuple[str, dict[str, Any]] | None = None
    while True:
        sensor = make()
        context: Any = {"ti": ti, **(more or {})}
        try:
            rows = sensor.resume_execution(*resume, context) if resume else sensor.execute(context)
        except TaskDeferred as deferred:
            event = asyncio.run(_fire(deferred.trigger, outcome))
            resume = (deferred.method_name, {**(deferred.kwargs or {}), "event": event})
        except AirflowRescheduleException as reschedule:
            ti.first_reschedule = started
            time.sleep(max(0.0, (reschedule.reschedule_date - datetime.now(UTC)).total_seconds()))
        except AirflowSkipException as error:
            outcome.state, outcome.error = "skipped", error
            return outcome
        except (AirflowFailException, AirflowSensorTimeout) as error:
            outcome.state, outcome.error = "failed", error
            return outcome
        except Exception as error:  # noqa: BLE001 - Airflow retries the task after any other error
            outcome.state, outcome.error = "up_for_retry", error
            return outcome
        else:
            outcome.state, outcome.rows = "success", rows
            return outcome


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds. The limit is only for a test that hangs."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - no event of ours signals it
            await asyncio.sleep(0.005)


async def _fire(trigger: Any, outcome: Outcome) -> Any:
    path, arguments = trigger.serialize()
    outcome.triggers.append((path, arguments))
    rebuilt = type(trigger)(**arguments)
    async for event in rebuilt.run():
        outcome.events.append(event.payload)
        return event.payload
    raise AssertionError("the trigger ended without an event")
