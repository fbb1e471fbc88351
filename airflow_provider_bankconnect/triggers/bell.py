"""Hears the doorbell in a triggerer: one cheap question a second to Airflow's own API server, for all waits of a loop.

It only shortens waits. What it cannot hear, the next poll finds.
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
_EVERY_SECONDS: Final = 1.0
# The receiver answers at once when there are news; so long at least it is left alone.
_LEAST_SECONDS: Final = 0.4
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_LONGEST_PAUSE: Final = 60.0
# Rings are written in transactions that may end in another order than they began.
_OVERLAP: Final = timedelta(seconds=10)
# A ring that came while its wait was on the way from the worker to the triggerer is meant for it all the same.
_REMEMBERED_SECONDS: Final = 120.0

_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()


def bell() -> Bell:
    """Give the running loop's bell."""
    return _bells.setdefault(asyncio.get_running_loop(), Bell())


class Bell:
    """Asks who has rung while there is a wait that wants to know; without a doorbell it asks nothing."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._whispers: dict[str, tuple[str, str]] = {}
        self._heard: dict[str, float] = {}
        self._known: set[int] = set()
        self._query: dict[str, str] = {}
        self._token: str | None = None
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listening(self, conn_id: str, key: str, wake: Callable[[], None]) -> AsyncIterator[None]:
        """Have ``wake`` called whenever BankConnect rings for a customer.

        :param key: the customer, as :func:`~airflow_provider_bankconnect.receiver.address.partition_key` has it.
        """
        customer = (conn_id, key)
        self._waits.setdefault(customer, []).append(wake)
        self._name(customer)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())
        try:
            yield
        finally:
            self._waits[customer].remove(wake)
            if not self._waits[customer]:
                del self._waits[customer]
                if self._token is not None:
                    self._whispers.pop(address.whisper(self._token, *customer), None)
            if not self._waits and self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _name(self, customer: tuple[str, str]) -> None:
        if self._token is None:
            return
        whisper = address.whisper(self._token, *customer)
        self._whispers[whisper] = customer
        if whisper in self._heard:
            self._wake(customer)

    def _wake(self, customer: tuple[str, str]) -> None:
        for wake in list(self._waits.get(customer, ())):
            wake()

    async def _listen(self) -> None:
        try:
            if not await asyncio.to_thread(address.is_on):
                return
            self._token = (await asyncio.to_thread(address.tokens))[0]
            context = await asyncio.to_thread(address.api_server_context)
        except (ValueError, OSError) as error:
            _log.warning("The waits go on without the doorbell: %s", error)
            return
        # After hours without a wait, what has rung since the last one is no news to the next.
        self._query, self._whispers = {}, {}
        for customer in self._waits:
            self._name(customer)
        failures = 0
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=context),
            headers={"Authorization": f"Bearer {address.knock(self._token)}"},
            timeout=_TIMEOUT,
        ) as session:
            while True:
                asked, news = time.monotonic(), False
                try:
                    news = await self._ask(session)
                except Exception as error:  # noqa: BLE001 - whatever it was told: who breaks off hears nothing any more
                    failures += 1
                    if failures == 1:
                        _log.warning("The waits go on without the doorbell, which does not answer: %s", _tell(error))
                else:
                    if failures:
                        _log.info("The doorbell can be heard again, after %d questions without an answer", failures)
                    failures = 0
                pause = min(_EVERY_SECONDS * 2 ** min(failures, 10), _LONGEST_PAUSE)
                if not failures:
                    # The receiver has held the line for a while; one of an older version has not.
                    pause = _LEAST_SECONDS if news else max(_LEAST_SECONDS, pause - (time.monotonic() - asked))
                await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - no secret hangs on it

    async def _ask(self, session: aiohttp.ClientSession) -> bool:
        url = f"{address.api_server_url()}{address.PREFIX}/rings"
        async with session.get(
            url, params=self._query, allow_redirects=False, raise_for_status=_raise_for_status
        ) as answer:
            told: dict[str, Any] = await answer.json()
        now = asyncio.get_running_loop().time()
        moment = datetime.fromisoformat(told["now"])
        self._query = {"since": (moment - _OVERLAP).isoformat(), "after": moment.isoformat()}
        self._heard = {name: at for name, at in self._heard.items() if now - at < _REMEMBERED_SECONDS}
        numbers, known = set(), self._known
        for number, *whispers in told["rings"]:
            numbers.add(number)
            if number not in known:
                self._heard |= dict.fromkeys(whispers, now)
                for whisper in whispers:
                    if whisper in self._whispers:
                        self._wake(self._whispers[whisper])
        self._known = numbers
        return not numbers <= known


async def _raise_for_status(answer: aiohttp.ClientResponse) -> None:
    """Take nothing but 200: aiohttp itself lets a redirect through."""
    if answer.status != 200:  # noqa: PLR2004
        raise aiohttp.ClientResponseError(answer.request_info, (), status=answer.status)


def _tell(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}".strip()
    return f"{type(error).__name__}: {error}"
