"""The shared wire of all waits: one session for each event loop and connection.

Ten thousand waits ask through one poller. It keeps connections open between polls, lets few polls at a time through,
answers equal ones together, and holds all of them back when BankConnect asks for that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook
from airflow_provider_bankconnect.receiver.address import partition_key
from airflow_provider_bankconnect.triggers.bell import bell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import tzinfo
    from typing import Protocol

    from airflow_provider_bankconnect.gate import Gate

    class Asks(Protocol):
        """A gate, or whatever else knows what to ask; equal ``ledger``, equal question."""

        @property
        def ledger(self) -> tuple[str, ...]:
            """What is asked."""

        def ask(self, timezone: tzinfo) -> api.Call[Any]:
            """Ask it."""


Rows: TypeAlias = Sequence[Any]

# An answer this fresh serves the next that asks the same.
SHARED_SECONDS: Final = 1.0
# One bad answer is one wait's; so many in a row, none good among them, are everybody's.
_STREAK: Final = 3
# Those that were held back come back over this time, not in the same instant.
_RETURN_SECONDS: Final = 2.0

_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()
# Until when polls are held back: the vendor's word outlives the waits that it was given to.
_holds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, float]] = WeakKeyDictionary()


class Poller:
    """Asks BankConnect for all waits of one event loop on one connection. Get one with :func:`shared_poller`."""

    def __init__(self, bankconnect_conn_id: str, *, resume_at: float = 0.0) -> None:
        self.waits = 0
        self._hook = BankConnectAsyncHook(bankconnect_conn_id)
        self._loop = asyncio.get_running_loop()
        self._polls: dict[tuple[str, ...], asyncio.Task[Rows | Exception]] = {}
        self._askers: Counter[tuple[str, ...]] = Counter()
        self._answered: dict[tuple[str, ...], float] = {}
        self._customers: dict[str, Counter[tuple[str, ...]]] = {}
        self._rings: Counter[tuple[str, ...]] = Counter()
        self._listeners: dict[tuple[str, ...], set[asyncio.Future[Rows | Exception | None]]] = {}
        self._slots: asyncio.Semaphore | None = None
        self._resume_at = resume_at
        self._streak = 0

    @property
    def connected(self) -> bool:
        """Whether the connection could be read: before that, anything may go wrong and be mended."""
        return self._hook.connected

    @property
    def held(self) -> bool:
        """Whether polls are held back now."""
        return self._loop.time() < self._resume_at

    async def ask(self, gate: Asks, *, max_age: float = SHARED_SECONDS) -> Rows:
        """Get the rows of a gate's ledger: from an equal poll in flight or just answered, else from BankConnect.

        A caller that is cancelled cancels no poll: others may wait for it.

        :param max_age: how many seconds old an answer may be.
        :raises Exception: what the poll raised; a :class:`~airflow_provider_bankconnect.api.BankConnectError`, or what
            reading the connection raised.
        """
        key = gate.ledger
        poll = self._polls.get(key)
        if poll is None or self._loop.time() - self._answered.get(key, self._loop.time()) > max_age:
            poll = self._polls[key] = self._loop.create_task(self._poll(gate))
            self._answered.pop(key, None)
            poll.add_done_callback(lambda done: self._note_answer(key, done))
        self._askers[key] += 1
        try:
            return told(await asyncio.shield(poll))
        finally:
            self._askers[key] -= 1
            if not self._askers[key]:
                del self._askers[key]

    async def hear(self, gate: Asks, seconds: float) -> Rows | Exception | None:
        """Sleep so long, and no longer than until somebody else has the answer to the same question.

        Who then counts its own interval from that answer asks together with the others the next time.

        :returns: the answer, for :func:`told`, or None when the time is over.
        """
        key = gate.ledger
        heard: asyncio.Future[Rows | Exception | None] = self._loop.create_future()
        alarm = self._loop.call_later(seconds, _wake, heard)
        listeners = self._listeners.setdefault(key, set())
        listeners.add(heard)
        try:
            return await heard
        finally:
            alarm.cancel()
            listeners.discard(heard)
            if not listeners and self._listeners.get(key) is listeners:
                del self._listeners[key]

    @asynccontextmanager
    async def waiting(self, gate: Gate) -> AsyncIterator[int]:
        """Have a wait hear when BankConnect rings for its customer; gives how many rings are old news to it."""
        key, started = partition_key(gate.expectation.link_id, gate.expectation.entity_id), time.monotonic()
        self._customers.setdefault(key, Counter())[gate.ledger] += 1
        old_news = self.rings(gate)
        try:
            async with bell().listening(self._hook.bankconnect_conn_id, key, partial(self.ring, [key])):
                yield old_news
        finally:
            ledgers = self._customers[key]
            ledgers[gate.ledger] -= 1
            if not ledgers[gate.ledger]:
                del ledgers[gate.ledger]
                del self._rings[gate.ledger]
            if not ledgers:
                del self._customers[key]
            Stats.timing("bankconnect.waited", timedelta(seconds=time.monotonic() - started))

    def ring(self, keys: Iterable[str]) -> None:
        """Have the open waits of these customers look at once: BankConnect's ledgers may have news of them.

        :param keys: as :func:`~airflow_provider_bankconnect.receiver.address.partition_key` gives them.
        """
        for ledger in [ledger for key in keys for ledger in self._customers.get(key, ())]:
            self._rings[ledger] += 1
            # An answer from before the ring may know nothing of it. One that is on the way, or held back, is waited
            # for, and who gets it looks again.
            if ledger in self._polls and self._polls[ledger].done():
                del self._polls[ledger]
                self._answered.pop(ledger, None)
            for heard in list(self._listeners.get(ledger, ())):
                _wake(heard)

    def rings(self, gate: Asks) -> int:
        """Say how often BankConnect has rung for an open wait's customer."""
        return self._rings[gate.ledger]

    def count(self, more: int) -> None:
        """Count waits in, or out."""
        self.waits += more
        Stats.gauge("bankconnect.waits", self.waits, tags={"conn_id": self._hook.bankconnect_conn_id})

    async def close(self) -> None:
        """End what is still in flight, and close the session."""
        _holds.setdefault(self._loop, {})[self._hook.bankconnect_conn_id] = self._resume_at
        polls = list(self._polls.values())
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        await self._hook.close()

    def _note_answer(self, key: tuple[str, ...], poll: asyncio.Task[Rows | Exception]) -> None:
        if self._polls.get(key) is poll:
            self._answered[key] = self._loop.time()
            self._loop.call_later(SHARED_SECONDS, self._forget, key, poll)
        if poll.cancelled():
            return
        outcome = poll.result()
        # An error is no news: who did not ask has no reason to back off.
        if not isinstance(outcome, Exception) or isinstance(outcome, api.BankConnectNotFoundError):
            for heard in self._listeners.get(key, ()):
                _wake(heard, outcome)

    def _forget(self, key: tuple[str, ...], poll: asyncio.Task[Rows | Exception]) -> None:
        if self._polls.get(key) is poll:
            del self._polls[key]
            self._answered.pop(key, None)

    async def _poll(self, gate: Asks) -> Rows | Exception:
        try:
            settings = await self._hook.connect()
            self._slots = self._slots or asyncio.Semaphore(settings.max_concurrency)
            while True:
                await self._hold_back()
                async with self._slots:
                    self._break_off_unless_wanted(gate.ledger)
                    # The word to hold back may have come while this one queued.
                    if not self.held:
                        return await self._send(gate)
        except Exception as error:  # noqa: BLE001 - handed to everyone who asked
            Stats.incr("bankconnect.poll_errors", tags={"error": type(error).__name__})
            return error

    def _break_off_unless_wanted(self, key: tuple[str, ...]) -> None:
        """Send no poll whose waits have all ended while it was held back."""
        if not self._askers[key]:
            self._polls.pop(key, None)
            raise asyncio.CancelledError

    async def _send(self, gate: Asks) -> Rows:
        started = self._loop.time()
        Stats.incr("bankconnect.polls")
        settings = await self._hook.connect()
        try:
            try:
                rows: Rows = await self._hook.run(gate.ask(settings.timezone))
            except api.BankConnectAuthError:
                # The keys may have been rotated while the waits went on.
                renewed = await self._hook.renew(settings)
                if renewed == settings:
                    raise
                rows = await self._hook.run(gate.ask(renewed.timezone))
        except api.BankConnectTransientError as error:
            # Those that were in flight together fail together: that is one failure, not many.
            is_news = started >= self._resume_at
            self._streak += is_news
            if is_news or error.retry_after is not None:
                self._hold(error.retry_after)
            raise
        self._streak = 0
        return rows

    def _hold(self, retry_after: float | None) -> None:
        failures = self._streak - _STREAK + 1
        if retry_after is None and failures < 1:
            return
        pause = api.backoff(max(failures, 1), jitter=random.random(), retry_after=retry_after)  # noqa: S311 - no secret
        self._resume_at = max(self._resume_at, self._loop.time() + pause)

    async def _hold_back(self) -> None:
        while self.held:
            jitter = random.random() * _RETURN_SECONDS  # noqa: S311 - no secret hangs on it
            await asyncio.sleep(self._resume_at - self._loop.time() + jitter)


def told(outcome: Rows | Exception) -> Rows:
    """Give the rows of an answer, or raise the error that it was."""
    if isinstance(outcome, Exception):
        # The same error goes to many: each adds its own frames to it.
        raise outcome.with_traceback(None)
    return outcome


def _wake(heard: asyncio.Future[Rows | Exception | None], outcome: Rows | Exception | None = None) -> None:
    if not heard.done():
        heard.set_result(outcome)


@asynccontextmanager
async def shared_poller(bankconnect_conn_id: str) -> AsyncIterator[Poller]:
    """Lend the running loop's poller of a connection: made for the first wait, closed after the last.

    Bound to the loop, not the process: ``airflow dags test`` gives each trigger a loop of its own.
    """
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = pollers.get(bankconnect_conn_id)
    if poller is None:
        resume_at = _holds.get(asyncio.get_running_loop(), {}).get(bankconnect_conn_id, 0.0)
        poller = pollers[bankconnect_conn_id] = Poller(bankconnect_conn_id, resume_at=resume_at)
    poller.count(1)
    try:
        yield poller
    finally:
        poller.count(-1)
        if not poller.waits:
            if pollers.get(bankconnect_conn_id) is poller:
                del pollers[bankconnect_conn_id]
            await poller.close()
