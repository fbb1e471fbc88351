"""One wait, or a few, whose time is simulated: it passes while nothing is in flight, and stands still otherwise."""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import time
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final, Self

from history_wait import history_wait
from talk import serve

import airflow_provider_bankconnect
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook

if TYPE_CHECKING:
    from airflow_provider_bankconnect.api import Answer, ConnectionSettings, Request

_PATIENCE: Final = 60.0
_START: Final = datetime.now(UTC)


class Clock(selectors.DefaultSelector):
    """Lets the time of an event loop pass at once."""

    now = 0.0
    in_flight = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Return what is ready; if nothing is, wait for the network, or let the time pass."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if Clock.in_flight or timeout is None:
            return super().select(_PATIENCE)
        Clock.now += timeout
        return []


class Now(datetime):
    """The time of day in simulated time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return it."""
        return cls.fromtimestamp((_START + timedelta(seconds=Clock.now)).timestamp(), tz)


class Lonely:
    """An event loop with one wait, or a few."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop(Clock())
        self._loop.time = lambda: Clock.now  # type: ignore[method-assign]
        self._pokes = 0
        self._anew = False
        for module in list(sys.modules.values()):
            is_ours = module.__name__.startswith("airflow_provider_bankconnect") or module.__name__ == "history_wait"
            if is_ours and getattr(module, "datetime", None) is datetime:
                module.datetime = Now  # type: ignore[attr-defined]
        send, connect = BankConnectAsyncHook._send, BankConnectAsyncHook.connect  # noqa: SLF001

        async def counted_send(hook: BankConnectAsyncHook, request: Request) -> Answer:
            self._pokes += 1
            if self._anew:
                hook.forget_connections()
            Clock.in_flight += 1
            try:
                return await send(hook, request)
            finally:
                Clock.in_flight -= 1

        async def counted_connect(hook: BankConnectAsyncHook) -> ConnectionSettings:
            Clock.in_flight += 1
            try:
                return await connect(hook)
            finally:
                Clock.in_flight -= 1

        BankConnectAsyncHook._send = counted_send  # type: ignore[method-assign] # noqa: SLF001
        BankConnectAsyncHook.connect = counted_connect  # type: ignore[method-assign]

    def package(self) -> str:
        """Return the path of the measured package."""
        return str(airflow_provider_bankconnect.__file__)

    def wait(self, interval: float, *, waits: int = 1, anew: bool = False) -> tuple[int, float]:
        """Wait six hours; return the pokes and their CPU seconds. ``anew``: each poke on a new connection."""
        self._anew, self._pokes = anew, 0
        before = time.process_time()
        self._loop.run_until_complete(self._all(interval, waits))
        return self._pokes, time.process_time() - before

    async def _all(self, interval: float, waits: int) -> None:
        await asyncio.gather(*(self._wait(f"bench-{number}", interval, number / waits) for number in range(waits)))

    async def _wait(self, link: str, interval: float, part: float) -> None:
        # Evenly spread, as the pokes of many waits are after a while.
        await asyncio.sleep(part * interval)
        async for event in history_wait(link, interval, expected_statements=1_000_000).run():
            if event.payload["status"] != "timeout":
                raise RuntimeError(str(event.payload))
            return


if __name__ == "__main__":
    lonely = Lonely()
    serve(package=lonely.package, wait=lonely.wait)
    os._exit(0)
