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
from typing import TYPE_CHECKING, Any

from bench_triggers import Nothing
from history_wait import history_wait, transactions_wait
from talk import serve

import airflow_provider_bankconnect

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


def trigger(kind: str, number: int, interval: float, conn_id: str) -> tuple[str, dict[str, Any]]:
    """Return the class path and the arguments of a wait's trigger."""
    name = f"bench-{number}"
    if kind == "nothing":
        return Nothing(number=number).serialize()
    if kind == "transactions":
        return transactions_wait(name, interval, expected_statements=2, conn_id=conn_id).serialize()
    if kind == "http":
        return "airflow.providers.http.triggers.http.HttpEventTrigger", {
            "endpoint": f"entity/{name}/transactions/",
            "response_check_path": "http_check.has_two_statements",
            "http_conn_id": conn_id,
            "poll_interval": interval,
        }
    return history_wait(name, interval, expected_statements=1_000_000).serialize()


class Waits:
    """The event loop, in a thread of its own: the main thread answers questions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._results: dict[int, dict[str, Any]] = {}
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def package(self) -> str:
        """Return the path of the measured package."""
        return str(airflow_provider_bankconnect.__file__)

    def open(self, kind: str, first: int, waits: int, interval: float, conn_id: str = "bankconnect_default") -> None:
        """Open more waits: `nothing`; `ours`, each for a link of its own; `transactions` and `http`, for an entity."""
        asyncio.run_coroutine_threadsafe(self._open(kind, first, waits, interval, conn_id), self._loop).result()

    async def _open(self, kind: str, first: int, waits: int, interval: float, conn_id: str) -> None:
        for number in range(first, first + waits):
            classpath, arguments = trigger(kind, number, interval, conn_id)
            self._tasks.append(asyncio.create_task(self._run(number, classpath, arguments)))

    async def _run(self, number: int, classpath: str, arguments: dict[str, Any]) -> None:
        module, _, name = classpath.rpartition(".")
        # Through JSON, as through Airflow's database.
        wait: BaseTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
        async for event in wait.run():
            # Not the whole event: that of the http provider holds the answer.
            kept = {name: event.payload.get(name) for name in ("status", "because", "rows")}
            self._results[number] = kept | {"at": time.time()}
            return

    def results(self) -> dict[int, dict[str, Any]]:
        """Return the events by the number of the wait, and the time of each."""
        return self._results

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
    serve(
        package=waits.package,
        open=waits.open,
        ended=waits.ended,
        results=waits.results,
        collect=waits.collect,
        cpu=waits.cpu,
    )
    # No orderly end: asyncio would log each of the open waits.
    os._exit(0)
