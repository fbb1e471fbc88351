"""Runs a sensor while BankConnect's records change between its pokes, and returns what becomes of the task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from waits import Outcome, build, run

from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sensors.bankconnect import (
    BankConnectProgressSensor,
    BankConnectStatementSensor,
    BankConnectWebhookPayloadSensor,
)

LINK = "loan-4711"
CUSTOMER = "customer-1"

Step = Statement | Callable[[], object] | None


class Script:
    """The steps that are left: one is run after each poke. The sandbox logs a poke before it sends the answer."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.pokes = 0
        self.play: Callable[[Statement], object] = lambda _: None

    def on_event(self, event: str) -> None:
        """Count a poke, and run the next step."""
        if not event.startswith("GET "):
            return
        self.pokes += 1
        step = self.steps.popleft() if self.steps else None
        if isinstance(step, Statement):
            self.play(step)
        elif step is not None:
            step()


class Story:
    """One customer and one waiting task in one of the modes."""

    def __init__(self, box: Sandbox, mode: str, script: Script) -> None:
        self.box = box
        self.mode = mode
        self._script = script
        script.play = box.play

    @property
    def pokes(self) -> int:
        """How often BankConnect has been asked so far."""
        return self._script.pokes

    def after_each_poke(self, *steps: Step) -> None:
        """Run one of these steps after each poke: a statement to play, a function to call, or None for nothing."""
        self._script.steps.extend(steps)

    def wait(self, **arguments: Any) -> Outcome:
        """Run the sensor to its end: on the link's history if ``link_id`` is given, else on the progress."""
        return self._wait(
            BankConnectWebhookPayloadSensor if "link_id" in arguments else BankConnectProgressSensor, arguments
        )

    def wait_for_customer(self, context: dict[str, Any] | None = None, **arguments: Any) -> Outcome:
        """Run the sensor on both records to its end."""
        return self._wait(BankConnectStatementSensor, arguments, context)

    def _wait(self, sensor: type, arguments: dict[str, Any], context: dict[str, Any] | None = None) -> Outcome:
        make = partial(build, sensor, self.mode, **{"timeout": 120, "poke_interval": 0.05, **arguments})
        outcome = run(make, more=context)
        assert not self._script.steps, f"the wait ended before all steps were run: {outcome}"
        return outcome


def statement(statement_id: str, progress: str = "completed", **more: Any) -> Statement:
    """Make a statement of the customer."""
    return Statement(**{"link_id": LINK, "entity_id": CUSTOMER, **more}, statement_id=statement_id, progress=progress)


def wrong_password() -> Statement:
    """Make a failed login, which has no statement."""
    return statement("", "failed", reason="Incorrect user ID or password")
