"""The part of the relay that hands webhooks on to Airflow, and sends them again until Airflow has recorded them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect.relay.handing import NotNowError, Result
from airflow_provider_bankconnect.relay.queue import Settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from airflow_provider_bankconnect.relay.handing import Target
    from airflow_provider_bankconnect.relay.queue import Queue, Webhook

_log = logging.getLogger(__name__)
# Webhooks in one request. Airflow takes some milliseconds for each, and BankConnect's own webhooks wait behind them.
_MOST: Final = 100
# More than a request may take, so that nobody else sends a webhook meanwhile.
_CLAIM_SECONDS: Final = 60.0
# Another relay on the same queue may have kept webhooks, or may have ended.
_IDLE_SECONDS: Final = 1.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
# For one webhook that Airflow cannot record, and so for its customer: one day in all.
_LONGEST_BACK_OFF: Final = 300.0
_MOST_TRIES: Final = 300
# Between two lines of the log about the same pause.
_LOG_EVERY: Final = 600.0


@dataclass
class _Pause:
    """Nothing is handed on, of a connection or at all."""

    until: float = 0.0
    failures: int = 0
    logged: float = float("-inf")

    def extend(self, least: float) -> float:
        self.failures += 1
        seconds = max(least, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10)))
        # Several relays must not all call at the same moment.
        seconds *= random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        self.until = time.monotonic() + seconds
        return seconds


class Pusher:
    """Hands webhooks on, the oldest first, and for each customer one after the other.

    :param on_queue: awaits a call of the queue.
    """

    def __init__(self, queue: Queue, on_queue: Callable[..., Awaitable[Any]], target: Target) -> None:
        self._queue, self._on_queue, self._target = queue, on_queue, target
        self._news = asyncio.Event()
        self._is_stopping = False
        # The pause of a connection; of all with None.
        self._pauses: dict[str | None, _Pause] = {}
        self.counts: Counter[str] = Counter()

    def wake(self) -> None:
        """Look at the queue now."""
        self._news.set()

    def stop(self) -> None:
        """End after the request that is on its way."""
        self._is_stopping = True
        self._news.set()

    async def run(self) -> None:
        """Hand on until :meth:`stop`."""
        while not self._is_stopping:
            try:
                is_more = await self.hand_on()
            except Exception as error:  # noqa: BLE001 - the database may raise anything, and comes back
                self._pause(None, f"the relay's queue failed ({type(error).__name__})", 0.0)
                is_more = False
            if not is_more and not self._is_stopping:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _IDLE_SECONDS)
        await asyncio.to_thread(self._target.close)

    async def hand_on(self) -> bool:
        """Hand on what is due, up to a limit, and return whether there may be more."""
        now = time.monotonic()
        if self._pauses.get(None, _Pause()).until > now:
            return False
        without = [conn_id for conn_id, pause in self._pauses.items() if conn_id and pause.until > now]
        claim, found = await self._on_queue(self._queue.take, _MOST, _CLAIM_SECONDS, without)
        settled: list[Settled] = []
        is_all = True
        found = sorted(found, key=lambda one: one.conn_id)
        for conn_id, group in groupby(found, key=lambda one: one.conn_id):
            webhooks = sorted(group, key=lambda one: one.number)
            if not is_all:
                settled += [Settled(one.number, "free") for one in webhooks]
                continue
            results: Sequence[Result]
            try:
                results = await asyncio.to_thread(self._target.hand_on, conn_id, webhooks, claim)
                self._end_pauses(conn_id)
            except NotNowError as error:
                results, is_all = error.results, error.only_this
                self._pause(conn_id if error.only_this else None, str(error), error.seconds)
            settled += self._settle(webhooks, results)
        if settled:
            await self._on_queue(self._queue.settle, claim, settled)
        return bool(found) and is_all

    def _settle(self, webhooks: Sequence[Webhook], results: Sequence[Result]) -> list[Settled]:
        settled = [settle(one, result) for one, result in zip(webhooks, results, strict=False)]
        self.counts.update(result.how for result in results)
        for one in settled:
            if one.how == "refused":
                _log.error("Webhook %d is set aside, because Airflow refuses it: %s", one.number, one.why)
        recorded = sum(one.how == "done" for one in settled)
        if recorded:
            _log.info("Handed on %d webhooks of %r", recorded, webhooks[0].conn_id)
        return settled + [Settled(one.number, "free") for one in webhooks[len(results) :]]

    def _pause(self, conn_id: str | None, problem: str, least: float) -> None:
        pause = self._pauses.setdefault(conn_id, _Pause())
        seconds = pause.extend(least)
        now = time.monotonic()
        if now - pause.logged >= _LOG_EVERY:
            pause.logged = now
            whose = "Webhooks" if conn_id is None else f"Webhooks of {conn_id!r}"
            _log.warning("%s wait in the queue: %s. Next try in %.0f s", whose, problem, seconds)

    def _end_pauses(self, conn_id: str) -> None:
        for name in (None, conn_id):
            if self._pauses.pop(name, None):
                _log.info("Webhooks%s are handed on again", "" if name is None else f" of {name!r}")


def settle(one: Webhook, result: Result) -> Settled:
    """Return what the queue does with a webhook after a result."""
    if result.how == "refused":
        return Settled(one.number, "refused", why=result.why)
    if result.how != "failed":
        return Settled(one.number, "done", mark=result.mark)
    if one.tries >= _MOST_TRIES:
        return Settled(one.number, "refused", why="Airflow could not record it for a day")
    return Settled(one.number, "again", seconds=min(_LONGEST_BACK_OFF, 2.0 ** min(one.tries, 20)))
