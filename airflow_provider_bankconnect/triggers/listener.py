"""The event listener: learns of new webhook events from Airflow's API server, for all waits of an event loop.

It only makes waits poke earlier. If it misses an event, the next poke finds the statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import aiohttp

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS: Final = 1.0
# The receiver answers at once when an event arrives. This pause limits the request rate in a burst.
_MIN_PAUSE_SECONDS: Final = 0.4
_MAX_PAUSE_SECONDS: Final = 60.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
# Transactions may end in another order than they began.
_OVERLAP: Final = timedelta(seconds=10)
# An event that arrived while its wait moved from the worker to the triggerer still wakes it.
_KEEP_SECONDS: Final = 120.0

_listeners: WeakKeyDictionary[asyncio.AbstractEventLoop, EventListener] = WeakKeyDictionary()


def event_listener() -> EventListener:
    """Return the event listener of the running loop."""
    return _listeners.setdefault(asyncio.get_running_loop(), EventListener())


class EventListener:
    """Polls the receiver's event feed while there are waits; sends nothing if the webhook receiver is off."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._digests: dict[str, tuple[str, str]] = {}
        self._recent_digests: dict[str, float] = {}
        self._seen: set[int] = set()
        self._query: dict[str, str] = {}
        self._token: str | None = None
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listening(self, conn_id: str, key: str, wake: Callable[[], None]) -> AsyncIterator[None]:
        """Call ``wake`` at each webhook event of a customer.

        :param key: the customer's :func:`~airflow_provider_bankconnect.receiver.address.partition_key`.
        """
        customer = (conn_id, key)
        self._waits.setdefault(customer, []).append(wake)
        self._add_digest(customer)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())
        try:
            yield
        finally:
            self._waits[customer].remove(wake)
            if not self._waits[customer]:
                del self._waits[customer]
                if self._token is not None:
                    self._digests.pop(address.customer_digest(self._token, *customer), None)
            if not self._waits and self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _add_digest(self, customer: tuple[str, str]) -> None:
        if self._token is None:
            return
        digest = address.customer_digest(self._token, *customer)
        self._digests[digest] = customer
        if digest in self._recent_digests:
            self._wake(customer)

    def _wake(self, customer: tuple[str, str]) -> None:
        for wake in list(self._waits.get(customer, ())):
            wake()

    async def _listen(self) -> None:
        try:
            if not await asyncio.to_thread(address.is_on):
                return
            self._token = (await asyncio.to_thread(address.tokens))[0]
            address.api_server_url()
            context = await asyncio.to_thread(address.api_server_context)
        except (ValueError, OSError) as error:
            _log.warning("Waits continue without the webhook receiver: %s", error)
            return
        # Start anew: after a time without waits, its events are not needed.
        self._query, self._digests = {}, {}
        for customer in self._waits:
            self._add_digest(customer)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=context),
            headers={"Authorization": f"Bearer {address.internal_token(self._token)}"},
            timeout=_TIMEOUT,
            raise_for_status=_raise_for_status,
        ) as session:
            await self._poll_feed(session)

    async def _poll_feed(self, session: aiohttp.ClientSession) -> None:
        failures = 0
        while True:
            started, has_news = time.monotonic(), False
            try:
                has_news = await self._read_feed(session)
            except Exception as error:  # noqa: BLE001 - if this loop ended, the triggerer would receive no more events
                failures += 1
                if failures == 1:
                    _log.warning("No events from the webhook receiver, waits continue without: %s", _describe(error))
            else:
                if failures:
                    _log.info("The webhook receiver answers again, after %d failed requests", failures)
                failures = 0
            pause = min(_INTERVAL_SECONDS * 2 ** min(failures, 10), _MAX_PAUSE_SECONDS)
            if not failures:
                # The receiver has held the request open for part of the interval.
                pause = _MIN_PAUSE_SECONDS if has_news else max(_MIN_PAUSE_SECONDS, pause - time.monotonic() + started)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - jitter

    async def _read_feed(self, session: aiohttp.ClientSession) -> bool:
        """Wake the waits of new events; return whether there were any."""
        url = f"{address.api_server_url()}{address.PREFIX}/events"
        async with session.get(url, params=self._query, allow_redirects=False) as answer:
            feed: dict[str, Any] = await answer.json()
        now = asyncio.get_running_loop().time()
        until = datetime.fromisoformat(feed["now"])
        self._query = {"since": (until - _OVERLAP).isoformat(), "after": until.isoformat()}
        self._recent_digests = {name: at for name, at in self._recent_digests.items() if now - at < _KEEP_SECONDS}
        numbers, seen = set(), self._seen
        for number, *digests in feed["events"]:
            numbers.add(number)
            if number not in seen:
                self._recent_digests |= dict.fromkeys(digests, now)
                for digest in self._digests.keys() & digests:
                    self._wake(self._digests[digest])
        self._seen = numbers
        return not numbers <= seen


async def _raise_for_status(answer: aiohttp.ClientResponse) -> None:
    """Raise for anything but 200; aiohttp's own check accepts a redirect."""
    if answer.status != 200:  # noqa: PLR2004
        raise aiohttp.ClientResponseError(answer.request_info, (), status=answer.status, headers=answer.headers)


def _describe(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        challenge = error.headers.get("WWW-Authenticate") if error.headers else None
        return f"{address.api_server_url()} answered HTTP {error.status}: {address.advice_on(error.status, challenge)}"
    return f"{type(error).__name__}: {error}"
