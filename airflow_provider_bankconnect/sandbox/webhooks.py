"""Sends each webhook with one POST, without retries, except where a fault changes that."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp

from .clock import Clock, SimulatedClock, real_clock
from .models import Delivery
from .world import Hook, World

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from .faults import Faults

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_IN_FLIGHT: Final = 32
_OK: Final = 200
_LONG: Final = 3600.0
# A clock of another class has no callback for its moves: it is polled this often.
_CLOCK_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0


class Sender:
    """Advances the world with the clock, and sends each webhook when it is due."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        *,
        clock: Clock,
        log: Callable[[str], None],
        retries: int = 0,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self._world = world
        self._faults = faults
        self._clock = clock
        has_callback = clock is real_clock or isinstance(clock, SimulatedClock)
        self._longest_sleep = _LONG if has_callback else _CLOCK_POLL_SECONDS
        self._log = log
        self._retries = retries
        self._random = random.Random(f"{world.seed}/replays")
        self._held: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, wake: asyncio.Event, stop: asyncio.Event, trust: ssl.SSLContext) -> None:
        """Send until ``stop`` is set, then cancel the requests in flight."""
        connector = aiohttp.TCPConnector(ssl=trust, limit=_IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            while not stop.is_set():
                wake.clear()
                pause = self._world.advance()
                while self._world.hooks_due:
                    self._dispatch(self._world.hooks_due.popleft(), session)
                sleep = self._longest_sleep if pause is None else max(0.0, min(pause, self._longest_sleep))
                try:
                    await asyncio.wait_for(wake.wait(), sleep)
                except TimeoutError:
                    continue
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _dispatch(self, hook: Hook, session: aiohttp.ClientSession) -> None:
        if self._world.webhook_url is None:
            if not hook.forged:
                self._log("webhook not sent: no endpoint is registered")
            return
        if hook.untouched:
            self._start(session, [hook.body])
            return
        faults = {fault.kind: fault for fault in self._faults.for_webhook(forged=hook.forged)}
        if hook.forged:
            if faults:
                self._start(session, [hook.body], "forged")
            return
        if "drop" in faults:
            self.deliveries.append(Delivery(self._world.webhook_url, hook.body, time.monotonic(), "dropped"))
            self._log("webhook dropped by a fault")
        elif "late" in faults:
            self._send_in(faults["late"].seconds, lambda: [hook.body])
        elif "reorder" in faults:
            self._held.append(hook.body)
            self._send_in(faults["reorder"].seconds, self._take_held)
        else:
            bodies = [hook.body] * (2 if "duplicate" in faults else 1) + self._take_held()
            if "replay" in faults:
                bodies.append(self._random.choice([one.body for one in self.deliveries] or [hook.body]))
            self._start(session, bodies)

    def _send_in(self, seconds: float, bodies: Callable[[], list[dict[str, Any]]]) -> None:
        def send() -> None:
            self._world.hooks_due.extend(Hook(body, untouched=True) for body in bodies())
            self._world.on_change()

        self._world.at(self._clock() + timedelta(seconds=seconds), send)

    def _take_held(self) -> list[dict[str, Any]]:
        held, self._held = self._held, []
        return held

    def _start(self, session: aiohttp.ClientSession, bodies: list[dict[str, Any]], note: str = "") -> None:
        task = asyncio.get_running_loop().create_task(self._send_in_turn(session, bodies, note))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_in_turn(self, session: aiohttp.ClientSession, bodies: list[dict[str, Any]], note: str) -> None:
        for body in bodies:
            for _ in range(self._retries):
                if await self._send(session, body, note):
                    break
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await self._send(session, body, note)

    async def _send(self, session: aiohttp.ClientSession, body: dict[str, Any], note: str) -> bool:
        """Send once, and return whether there was an answer."""
        delivery = Delivery(self._world.webhook_url or "", body, time.monotonic())
        self.deliveries.append(delivery)
        # Only the host is logged: an endpoint's path may hold its token.
        where = f"{note} webhook to {urlsplit(delivery.url).netloc.rpartition('@')[2]}".strip()
        try:
            async with session.post(delivery.url, json=body, allow_redirects=False) as answer:
                delivery.status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            delivery.outcome = "unreachable"
            self._log(f"{where}: no answer ({type(error).__name__}){'' if self._retries else '; it is not sent again'}")
            return False
        else:
            delivery.outcome = "delivered" if delivery.status == _OK else "refused"
            again = "" if delivery.status == _OK else ", which is not 200; it is not sent again"
            self._log(f"{where}: answered {delivery.status}{again}")
        return True
