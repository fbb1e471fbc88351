"""Triggers for comparison: one that does nothing, a bare poll loop, and a watch that measures the event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TICK: Final = 0.005


class _Trigger(BaseTrigger):
    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - those of the subclass
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments = arguments

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        return f"bench_triggers.{type(self).__name__}", self.arguments


class Nothing(_Trigger):
    """A wait that does nothing."""

    running = 0

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep."""
        Nothing.running += 1
        await asyncio.sleep(1e6)
        yield TriggerEvent({})  # type: ignore[no-untyped-call]


class Bare(_Trigger):
    """The least that a wait can do: a shared session, a GET, a sleep. It handles no error."""

    session: aiohttp.ClientSession | None = None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there is a record."""
        vendor = json.loads(os.environ["BENCH_VENDOR"])
        Bare.session = session = Bare.session or open_session(vendor)
        # Spread, as ours are: polls in a burst cost less each.
        await asyncio.sleep(random.random() * self.arguments["poke_interval"])
        await bare_wait(session, vendor["host"], self.arguments["link_id"], self.arguments["poke_interval"])
        yield TriggerEvent({})  # type: ignore[no-untyped-call]


class _Collector:
    """Measures how long Python's garbage collector stops everything."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._seconds = 0.0
        self._began: float | None = None

    def note(self, phase: str, _: dict[str, int]) -> None:
        """Record a start or a stop, in any thread."""
        now = time.monotonic()
        if phase == "start":
            self._began = now
        elif self._began is not None:
            self._seconds += now - self._began
            self.longest = max(self.longest, now - self._began)
            self._began = None

    @property
    def seconds(self) -> float:
        """The seconds that it has taken so far."""
        began = self._began
        return self._seconds + (time.monotonic() - began if began is not None else 0.0)


class Watch(_Trigger):
    """Writes each second how long the loop was blocked at most, and how long by the collector."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tick."""
        collector = _Collector()
        gc.callbacks.append(collector.note)
        with Path(self.arguments["path"]).open("a", encoding="utf-8") as file:  # noqa: ASYNC230 - a line a second
            while True:
                written = time.monotonic()
                late = late_without = 0.0
                while time.monotonic() - written < 1.0:
                    began, collected = time.monotonic(), collector.seconds
                    await asyncio.sleep(TICK)
                    over = time.monotonic() - began - TICK
                    late = max(late, over)
                    late_without = max(late_without, over - (collector.seconds - collected))
                line = {"at": time.monotonic(), "late": late, "without": late_without, "gc": collector.longest}
                line["idle"] = Nothing.running
                print(json.dumps(line), file=file, flush=True)
                collector.longest = 0.0
        yield TriggerEvent({})  # type: ignore[no-untyped-call]


def open_session(vendor: dict[str, Any]) -> aiohttp.ClientSession:
    """Return the shared session of the bare loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=vendor["limit"], keepalive_timeout=900, ssl=ssl.create_default_context(cafile=vendor["ca_file"])
        ),
        headers={"x-api-key": vendor["extra"]["api_key"], "server-hash": vendor["password"]},
    )


async def bare_wait(session: aiohttp.ClientSession, base_url: str, link_id: str, interval: float) -> None:
    """Poll until there is a record."""
    url = f"{base_url}/entity/webhook_payloads/?link_id={link_id}"
    while True:
        async with session.get(url) as response:
            payloads = json.loads(await response.read())["payloads"]
        if payloads:
            return
        await asyncio.sleep(interval)
