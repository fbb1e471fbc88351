"""Many waits in the event loop of one process, as in a triggerer, without Airflow's own work around them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import os
import threading
import time
from typing import TYPE_CHECKING

from bench_triggers import Nothing
from history_wait import history_wait
from talk import serve

import airflow_provider_bankconnect

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


class Waits:
    """The event loop, in a thread of its own: the main thread answers questions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def package(self) -> str:
        """Return the path of the measured package."""
        return str(airflow_provider_bankconnect.__file__)

    def open(self, kind: str, first: int, waits: int, interval: float) -> None:
        """Open more waits: `nothing`, or `ours`, each for a link of its own."""
        asyncio.run_coroutine_threadsafe(self._open(kind, first, waits, interval), self._loop).result()

    async def _open(self, kind: str, first: int, waits: int, interval: float) -> None:
        for number in range(first, first + waits):
            trigger = (
                Nothing(number=number)
                if kind == "nothing"
                else history_wait(f"bench-{number}", interval, expected_statements=1_000_000)
            )
            self._tasks.append(asyncio.create_task(self._run(*trigger.serialize())))

    @staticmethod
    async def _run(classpath: str, arguments: dict[str, object]) -> None:
        module, _, name = classpath.rpartition(".")
        # Through JSON, as through Airflow's database.
        trigger: BaseTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
        async for _ in trigger.run():
            return

    def ended(self) -> int:
        """Return how many waits have ended."""
        return sum(task.done() for task in self._tasks)

    def collect(self) -> None:
        """Return free memory to the system, before memory is measured."""
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)

    def cpu(self) -> float:
        """Return the CPU seconds of this process so far."""
        return time.process_time()


if __name__ == "__main__":
    waits = Waits()
    serve(package=waits.package, open=waits.open, ended=waits.ended, collect=waits.collect, cpu=waits.cpu)
    # No orderly end: asyncio would log each of the open waits.
    os._exit(0)
