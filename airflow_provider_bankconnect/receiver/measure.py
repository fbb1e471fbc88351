"""When webhook events without a run are measured. What is measured is in :mod:`.runs`."""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import Context
from typing import Final

from airflow_provider_bankconnect.receiver import runs

_SECONDS: Final = 60.0


class Measuring:
    """Measures events without a run once a minute: while events are new, and then until each has a run.

    It is a task of the API server's event loop and ends with it: Airflow calls no lifespan of a plugin's app. One for
    each process: all of them measure the same tables.
    """

    def __init__(self) -> None:
        self._until = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._reported: dict[str, int] = {}

    def begin(self) -> None:
        """Measure at the start of a process, too: the one before it may have ended before an event was late."""
        if self._task is None:
            self.go_on()

    def go_on(self) -> None:
        """Measure until each event that is recorded by now is late or has a run, and on while one has none."""
        self._until = time.monotonic() + runs.LATE.total_seconds() + _SECONDS
        if self._task is None or self._task.done():
            # Without the context of the request, which would add its id to the log lines.
            self._task = asyncio.get_running_loop().create_task(self._measure(), context=Context())

    async def _measure(self) -> None:
        is_left, began = True, -math.inf
        # An event may have come during the last measurement.
        while is_left or began <= self._until:
            await asyncio.sleep(_SECONDS)
            began = time.monotonic()
            is_left = await asyncio.to_thread(runs.report_without_run, self._reported)
