"""Tells a story: what happens at the vendor's between the looks of a wait, and what becomes of the task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from waits import Outcome, build, run

from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectProgressSensor, BankConnectWebhookPayloadSensor

LINK = "loan-4711"
CUSTOMER = "customer-1"

Step = Statement | Callable[[], object] | None


class Script:
    """What is still to happen: a step after each look. The sandbox tells of a look before it sends the answer."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.looks = 0
        self.play: Callable[[Statement], object] = lambda _: None

    def hear(self, event: str) -> None:
        """Count a look, and have the next step happen."""
        if not event.startswith("GET "):
            return
        self.looks += 1
        step = self.steps.popleft() if self.steps else None
        if isinstance(step, Statement):
            self.play(step)
        elif step is not None:
            step()


class Story:
    """One customer, one waiting task, in one of the modes."""

    def __init__(self, box: Sandbox, mode: str, script: Script) -> None:
        self.box = box
        self.mode = mode
        self._script = script
        script.play = box.play

    @property
    def looks(self) -> int:
        """How often BankConnect has been asked so far."""
        return self._script.looks

    def after_each_look(self, *steps: Step) -> None:
        """Have these happen, one after each look: a statement to play, something to do, or nothing."""
        self._script.steps.extend(steps)

    def wait(self, **arguments: Any) -> Outcome:
        """Run the sensor to its end: on the link's history where ``link_id`` is given, else on the progress."""
        sensor = BankConnectWebhookPayloadSensor if "link_id" in arguments else BankConnectProgressSensor
        outcome = run(partial(build, sensor, self.mode, **{"timeout": 20, "poke_interval": 0.05, **arguments}))
        assert not self._script.steps, f"the wait was over before its story was: {outcome}"
        return outcome


def statement(statement_id: str, progress: str = "completed", **more: Any) -> Statement:
    """Give a statement of the one customer."""
    return Statement(**{"link_id": LINK, "entity_id": CUSTOMER, **more}, statement_id=statement_id, progress=progress)


def wrong_password() -> Statement:
    """Give a login that failed before anything was uploaded: no statement."""
    return statement("", "failed", reason="Incorrect user ID or password")
