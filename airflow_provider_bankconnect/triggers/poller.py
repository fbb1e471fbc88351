"""The shared connection pool of all waits: one session for each event loop and connection.

Ten thousand waits poll through one poller. It keeps connections open between polls, limits how many polls are in
flight, answers equal polls together, and holds all of them back while BankConnect asks for a pause.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import AirflowNotFoundException, Stats

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect import wait as rules
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook
from airflow_provider_bankconnect.metrics import tag_value
from airflow_provider_bankconnect.pause import Pause, SharedPause
from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.records import IN_FULL
from airflow_provider_bankconnect.triggers.listener import event_listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from datetime import tzinfo
    from typing import Protocol

    from airflow_provider_bankconnect.records import Gate

    class Asks(Protocol):
        """A gate, or another question; those with an equal ``poll_key`` get the same answer."""

        @property
        def poll_key(self) -> tuple[str, ...]:
            """What is asked for."""

        def ask(self, timezone: tzinfo) -> api.Call[Any]:
            """Return the call."""


_log = logging.getLogger(__name__)

# A list of rows, or airflow_provider_bankconnect.records.Records.
Rows: TypeAlias = Any

# An answer of this age still serves an equal poll.
SHARED_SECONDS: Final = 1.0
# New connections are opened at most this often, in seconds, however many waits ask for it.
_RENEWAL_SECONDS: Final = 60.0
# After a pause the polls start again spread over this time.
_RETURN_SECONDS: Final = 2.0

# The triggerer has no such connection, may not read it (AirflowSecretsBackendAccessDenied), or a field is invalid.
_UNREADABLE: Final = (AirflowNotFoundException, PermissionError, ValueError)

_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()
# A pause continues after the waits that it began with.
_pauses: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedPause]] = WeakKeyDictionary()


class _HeldError(Exception):
    """A poll is held back by a pause. It starts again afterwards."""


class Poller:
    """Polls BankConnect for all waits of one event loop on one connection. Get one with :func:`shared_poller`."""

    def __init__(self, bankconnect_conn_id: str, pause: SharedPause) -> None:
        self.waits = 0
        self._hook = BankConnectAsyncHook(bankconnect_conn_id)
        self._loop = asyncio.get_running_loop()
        # The latest poll of each key; and all that are in flight, among them those that a last poke has passed by.
        self._polls: dict[tuple[str, ...], asyncio.Task[Rows | Exception]] = {}
        self._tasks: set[asyncio.Task[Rows | Exception]] = set()
        self._askers: Counter[tuple[str, ...]] = Counter()
        # Of those who await a poll: what is called when a pause begins.
        self._on_pause: dict[object, Callable[[], None]] = {}
        self._answered: dict[tuple[str, ...], float] = {}
        self._customers: dict[str, Counter[tuple[str, ...]]] = {}
        self._events: Counter[tuple[str, ...]] = Counter()
        self._listeners: dict[tuple[str, ...], set[asyncio.Future[Rows | Exception | None]]] = {}
        self._slots: asyncio.Semaphore | None = None
        self._pause = pause
        self._renewed = -math.inf
        self._is_readable = True

    def pauses(self, now: datetime) -> list[Pause]:
        """Return the pauses that BankConnect has asked for and that are not over."""
        left = [(seconds, until - self._loop.time()) for seconds, until in self._pause.asked]
        return [Pause(seconds, now + timedelta(seconds=more)) for seconds, more in left if more > 0]

    @property
    def is_held(self) -> bool:
        """Whether polls are held back now."""
        return self._loop.time() < self._pause.resume_at

    async def ask(
        self,
        gate: Asks,
        *,
        max_age: float = SHARED_SECONDS,
        waits: bool = True,
        on_pause: Callable[[], None] | None = None,
    ) -> Rows:
        """Return the rows that a gate asks for.

        An equal poll that is in flight or was just answered is shared. Cancelling the caller cancels no poll: others
        may wait for it.

        :param max_age: how many seconds old an answer may be.
        :param waits: whether the poll waits for the end of a pause.
        :param on_pause: called when BankConnect asks for a pause meanwhile, which may hold the poll back for long.
        :raises Exception: the error of the poll: a :class:`~airflow_provider_bankconnect.api.BankConnectError`, or the
            error of reading the connection.
        """
        key = gate.poll_key
        poll = self._polls.get(key)
        is_old = self._loop.time() - self._answered.get(key, self._loop.time()) > max_age
        if poll is None or is_old or not (waits or poll.done() or not self.is_held):
            # Of no wait: what it logs belongs in the triggerer's log.
            own = contextvars.Context()
            poll = self._polls[key] = self._loop.create_task(self._poll(gate, waits=waits), context=own)
            self._answered.pop(key, None)
            self._tasks.add(poll)
            poll.add_done_callback(lambda done: self._note_answer(key, done))
        self._askers[key] += 1
        asker = object()
        if on_pause is not None:
            self._on_pause[asker] = on_pause
        try:
            return result_of(await asyncio.shield(poll))
        finally:
            self._on_pause.pop(asker, None)
            self._askers[key] -= 1
            if not self._askers[key]:
                del self._askers[key]

    async def next_answer(self, gate: Asks, seconds: float) -> Rows | Exception | None:
        """Return the next answer that another wait gets to an equal poll; None after ``seconds``, or at an event.

        A wait that counts its interval from that answer polls together with the other one from then on.
        """
        key = gate.poll_key
        answer: asyncio.Future[Rows | Exception | None] = self._loop.create_future()
        timer = self._loop.call_later(seconds, _resolve, answer)
        listeners = self._listeners.setdefault(key, set())
        listeners.add(answer)
        try:
            return await answer
        finally:
            timer.cancel()
            listeners.discard(answer)
            if not listeners and self._listeners.get(key) is listeners:
                del self._listeners[key]

    @asynccontextmanager
    async def waiting(self, gate: Gate) -> AsyncIterator[int]:
        """Register an open wait for webhook events of its customer; return how many of them came before."""
        key, started = partition_key(gate.expectation.link_id, gate.expectation.entity_id), time.monotonic()
        self._customers.setdefault(key, Counter())[gate.poll_key] += 1
        seen = self.events_seen(gate)
        try:
            async with event_listener().listening(self._hook.bankconnect_conn_id, key, partial(self.notify, [key])):
                yield seen
        finally:
            poll_keys = self._customers[key]
            poll_keys[gate.poll_key] -= 1
            if not poll_keys[gate.poll_key]:
                del poll_keys[gate.poll_key]
                del self._events[gate.poll_key]
            if not poll_keys:
                del self._customers[key]
            Stats.timing("bankconnect.wait_seconds", timedelta(seconds=time.monotonic() - started))

    def notify(self, keys: Iterable[str]) -> None:
        """Notify the open waits of these customers of a webhook event.

        :param keys: as :func:`~airflow_provider_bankconnect.receiver.address.partition_key` returns them.
        """
        for gate_key in [gate_key for key in keys for gate_key in self._customers.get(key, ())]:
            self._events[gate_key] += 1
            for poll_key in (gate_key, (IN_FULL, *gate_key)):
                # An answer from before the event may lack the statement. A poll in flight is awaited, then poked again.
                if poll_key in self._polls and self._polls[poll_key].done():
                    del self._polls[poll_key]
                    self._answered.pop(poll_key, None)
                for answer in list(self._listeners.get(poll_key, ())):
                    _resolve(answer)

    def events_seen(self, gate: Asks) -> int:
        """Return how many webhook events have come for the customer of an open wait."""
        return self._events[gate.poll_key]

    def use_new_connections(self) -> None:
        """Have further requests open new network connections, unless they have done so a moment ago."""
        if self._loop.time() - self._renewed >= _RENEWAL_SECONDS:
            self._renewed = self._loop.time()
            self._hook.forget_connections()

    def count(self, more: int) -> None:
        """Count waits in, or out."""
        self.waits += more
        Stats.gauge("bankconnect.open_waits", self.waits, tags={"conn_id": tag_value(self._hook.bankconnect_conn_id)})

    async def close(self) -> None:
        """Cancel the polls in flight, and close the session."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hook.close()

    def _note_answer(self, key: tuple[str, ...], poll: asyncio.Task[Rows | Exception]) -> None:
        self._tasks.discard(poll)
        if self._polls.get(key) is poll:
            self._answered[key] = self._loop.time()
            self._loop.call_later(SHARED_SECONDS, self._forget, key, poll)
        if poll.cancelled():
            return
        outcome = poll.result()
        # Other errors are not shared: a wait that did not poll has no reason to back off.
        if not isinstance(outcome, Exception) or isinstance(outcome, api.BankConnectNotFoundError):
            for answer in self._listeners.get(key, ()):
                _resolve(answer, outcome)

    def _forget(self, key: tuple[str, ...], poll: asyncio.Task[Rows | Exception]) -> None:
        if self._polls.get(key) is poll:
            del self._polls[key]
            self._answered.pop(key, None)

    async def _poll(self, gate: Asks, *, waits: bool) -> Rows | Exception:
        try:
            settings = await self._connect()
            self._slots = self._slots or asyncio.Semaphore(settings.max_concurrency)
            while True:
                if waits:
                    await self._hold_back()
                async with self._slots:
                    # The pause may have begun while this poll queued, or between two of its requests.
                    with suppress(_HeldError):
                        return await self._send(gate, partial(self._check_before_request, gate.poll_key, waits=waits))
                await asyncio.sleep(rules.MIN_INTERVAL)
        except Exception as error:  # noqa: BLE001 - returned to all who asked
            Stats.incr("bankconnect.poll_errors", tags={"error": type(error).__name__})
            return error

    async def _connect(self) -> api.ConnectionSettings:
        conn_id = self._hook.bankconnect_conn_id
        try:
            return await self._hook.connect()
        except _UNREADABLE as error:
            raise api.BankConnectSettingsError(
                f"the triggerer cannot use connection {conn_id!r}: {error}. Workers and triggerers need the same "
                "secrets backend, environment variables and, with multi-team, team; the secrets backend may also be "
                "down"
            ) from None
        except Exception as error:  # noqa: BLE001 - secrets backends raise anything
            raise api.BankConnectTransientError(
                f"the triggerer could not read connection {conn_id!r}: {type(error).__name__}: {error}"
            ) from None

    async def _renew(self, used: api.ConnectionSettings) -> api.ConnectionSettings:
        """Read the connection anew; return what was used if that fails, as if the connection had not changed."""
        try:
            renewed = await self._hook.renew(used)
        except Exception as error:  # noqa: BLE001 - secrets backends raise anything
            if self._is_readable:
                text = "BankConnect refused a request, and connection %r could not be read anew: %s: %s"
                _log.warning(text, self._hook.bankconnect_conn_id, type(error).__name__, error)
            self._is_readable = False
            return used
        self._is_readable = True
        return renewed

    def _check_before_request(self, key: tuple[str, ...], *, waits: bool) -> None:
        """Cancel a poll whose waits have all ended while it was held back, and hold one back in a pause."""
        if not self._askers[key]:
            if self._polls.get(key) is asyncio.current_task():
                del self._polls[key]
            raise asyncio.CancelledError
        if waits and self.is_held:
            raise _HeldError

    async def _send(self, gate: Asks, before_request: Callable[[], None]) -> Rows:
        before_request()
        started = self._loop.time()
        Stats.incr("bankconnect.polls")
        settings = await self._hook.connect()
        try:
            try:
                rows: Rows = await self._hook.run(gate.ask(settings.timezone), before_next=before_request)
            except (api.BankConnectAuthError, api.BankConnectForbiddenError):
                # The keys may have been rotated during the waits.
                renewed = await self._renew(settings)
                if renewed == settings:
                    raise
                rows = await self._hook.run(gate.ask(renewed.timezone), before_next=before_request)
        except api.BankConnectTransientError as error:
            dice = random.random()  # noqa: S311 - spreads load
            self._pause.failed(error.retry_after, sent=started, now=self._loop.time(), dice=dice)
            if error.retry_after is not None:
                for call in list(self._on_pause.values()):
                    call()
            raise
        self._pause.succeeded()
        return rows

    async def _hold_back(self) -> None:
        while self.is_held:
            jitter = random.random() * _RETURN_SECONDS  # noqa: S311 - spreads load
            await asyncio.sleep(self._pause.resume_at - self._loop.time() + jitter)


def result_of(outcome: Rows | Exception) -> Rows:
    """Return the rows of an answer, or raise its error."""
    if isinstance(outcome, Exception):
        # One error goes to many waits, and each would add its own frames to it.
        raise outcome.with_traceback(None)
    return outcome


def _resolve(answer: asyncio.Future[Rows | Exception | None], outcome: Rows | Exception | None = None) -> None:
    if not answer.done():
        answer.set_result(outcome)


@asynccontextmanager
async def shared_poller(bankconnect_conn_id: str) -> AsyncIterator[Poller]:
    """Lend the running loop's poller of a connection: made for the first wait, closed after the last.

    It belongs to the loop, not to the process: ``airflow dags test`` gives each trigger a loop of its own.
    """
    loop = asyncio.get_running_loop()
    pollers = _pollers.setdefault(loop, {})
    poller = pollers.get(bankconnect_conn_id)
    if poller is None:
        pause = _pauses.setdefault(loop, {}).setdefault(bankconnect_conn_id, SharedPause())
        poller = pollers[bankconnect_conn_id] = Poller(bankconnect_conn_id, pause)
    poller.count(1)
    try:
        yield poller
    finally:
        poller.count(-1)
        if not poller.waits:
            if pollers.get(bankconnect_conn_id) is poller:
                del pollers[bankconnect_conn_id]
            await poller.close()
