"""The payload histories of many links, read at once.

The requests are sent by an event loop in a thread of its own. So the task's own thread reads the ids, calls the webhook
receiver and takes signals in plain code: an exception of a signal handler that came up in an event loop could be lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook
from airflow_provider_bankconnect.pause import SharedPause

if TYPE_CHECKING:
    from typing import Self

_log = logging.getLogger(__name__)

# Links that are given to ask for ahead, for each request at once. Answers that are not taken count too, so that there
# are few in memory while the webhook receiver is slow.
_AHEAD: Final = 8
# How often a request is sent again that got HTTP 429: that is no failure of the link.
_MOST_TOO_MANY: Final = 30
# After a pause the requests start again spread over this time.
_RETURN_SECONDS: Final = 2.0
# New connections are opened at most this often, in seconds, however many requests fail.
_RENEWAL_SECONDS: Final = 60.0
# Airflow kills a task five seconds after it has told it to end.
_CLOSING_SECONDS: Final = 3.0


class History(NamedTuple):
    """A link, and its payload history, newest first; or the error that came instead."""

    link_id: str
    payloads: list[api.WebhookPayload]
    error: Exception | None = None


class Histories:
    """Reads payload histories, at most ``max_concurrency`` of the connection at once.

    All requests share one session. They wait together when BankConnect asks for a pause, and when several in a row have
    failed. What failed is tried again as :class:`~airflow_provider_bankconnect.hooks.bankconnect.BankConnectHook` does.

    :param bankconnect_conn_id: the connection with both keys.
    """

    def __init__(self, bankconnect_conn_id: str) -> None:
        self._conn_id = bankconnect_conn_id
        self._settings: Future[api.ConnectionSettings] = Future()
        # Unlike a Queue, it may be used in a signal handler.
        self._histories: SimpleQueue[History | BaseException | None] = SimpleQueue()
        self._pause = SharedPause()
        self._renewed = -math.inf
        self._open = 0
        self._most = 0
        # Of the thread: it sets them before the settings.
        self._loop: asyncio.AbstractEventLoop
        self._ids: asyncio.Queue[str]
        self._main: asyncio.Task[None]

    def __enter__(self) -> Self:
        """Read the connection.

        :raises Exception: as :meth:`BankConnectAsyncHook.connect <airflow_provider_bankconnect.hooks.bankconnect.
            BankConnectAsyncHook.connect>`.
        """
        self._thread = Thread(target=self._run, name="bankconnect-histories", daemon=True)
        self._thread.start()
        try:
            self._most = _AHEAD * self._settings.result().max_concurrency
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the requests, and close the session."""
        self.cancel()
        self._thread.join(_CLOSING_SECONDS)

    @property
    def is_full(self) -> bool:
        """Whether a history has to be taken before another one is asked for."""
        return self._open >= self._most

    @property
    def open(self) -> int:
        """How many histories were asked for and not taken."""
        return self._open

    def ask(self, link_id: str) -> None:
        """Ask for a history."""
        self._open += 1
        # A thread that has ended has left its error to be taken.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ids.put_nowait, link_id)

    def take(self, seconds: float) -> History | None:
        """Return the next history, in the order of the answers; None after so many seconds, or if woken.

        :raises Exception: the thread has ended.
        """
        try:
            found = self._histories.get(timeout=seconds) if seconds > 0 else self._histories.get_nowait()
        except Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        self._open -= found is not None
        return found

    def take_answered(self) -> History | None:
        """Return one of the histories that were answered and not taken, or None."""
        while True:
            try:
                found = self._histories.get_nowait()
            except Empty:
                return None
            if isinstance(found, History):
                return found

    def cancel(self) -> None:
        """End the requests."""
        # The loop may be closed already, or not be there yet.
        with suppress(RuntimeError, AttributeError):
            self._loop.call_soon_threadsafe(self._main.cancel)

    def wake(self) -> None:
        """End a :meth:`take` that waits. A signal handler may call it."""
        self._histories.put(None)

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:  # noqa: BLE001 - handed to the task's thread
            if self._settings.done():
                self._histories.put(error)
            else:
                self._settings.set_exception(error)

    async def _work(self) -> None:
        self._loop, self._ids = asyncio.get_running_loop(), asyncio.Queue()
        self._main = asyncio.current_task()  # type: ignore[assignment] # asyncio.run() makes it
        async with BankConnectAsyncHook(self._conn_id) as hook:
            settings = await hook.connect()
            self._settings.set_result(settings)
            async with asyncio.TaskGroup() as workers:
                for _ in range(settings.max_concurrency):
                    workers.create_task(self._work_on_ids(hook))

    async def _work_on_ids(self, hook: BankConnectAsyncHook) -> None:
        while True:
            link_id = await self._ids.get()
            try:
                history = History(link_id, await self._read(hook, link_id))
            except Exception as error:  # noqa: BLE001 - handed to the task's thread
                history = History(link_id, [], error)
            self._histories.put(history)

    async def _read(self, hook: BankConnectAsyncHook, link_id: str) -> list[api.WebhookPayload]:
        # HTTP 429 and other errors are counted apart: the one must not use up the tries of the other.
        failures: Counter[bool] = Counter()
        while True:
            await self._hold_back()
            sent = self._loop.time()
            try:
                payloads = await hook.get_webhook_payloads(link_id)
            except api.BankConnectTransientError as error:
                is_limit = isinstance(error, api.BankConnectRateLimitError)
                failures[is_limit] += 1
                self._note_failure(error, sent)
                most = _MOST_TOO_MANY if is_limit else api.MAX_RETRIES
                if failures[is_limit] > most or isinstance(error, api.BankConnectCertificateError):
                    raise
                if failures[False] > 1:
                    self._use_new_connections(hook)
                await asyncio.sleep(_backoff(failures[is_limit], error.retry_after))
            except Exception:
                self._pause.succeeded()
                raise
            else:
                self._pause.succeeded()
                return payloads

    def _note_failure(self, error: api.BankConnectTransientError, sent: float) -> None:
        now, before = self._loop.time(), self._pause.resume_at
        self._pause.failed(error.retry_after, sent=sent, now=now, dice=_dice())
        if before <= now < self._pause.resume_at:
            _log.warning("%s; all requests wait for %.0f s", error, math.ceil(self._pause.resume_at - now))

    async def _hold_back(self) -> None:
        # Not an Event: the pause may be prolonged.
        while (left := self._pause.resume_at - self._loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left + _dice() * _RETURN_SECONDS)

    def _use_new_connections(self, hook: BankConnectAsyncHook) -> None:
        # The kept ones may lead to a server that no longer works.
        if self._loop.time() - self._renewed >= _RENEWAL_SECONDS:
            self._renewed = self._loop.time()
            hook.forget_connections()


def _backoff(failures: int, retry_after: float | None) -> float:
    # What BankConnect asks for counts, however often.
    return api.backoff(1 if retry_after else failures, jitter=_dice(), retry_after=retry_after)


def _dice() -> float:
    return random.random()  # noqa: S311 - spreads load
