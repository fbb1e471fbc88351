"""What the asynchronous hook changes in ``aiohttp``: which connections are used again, and what each step may take."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from weakref import WeakKeyDictionary

import aiohttp

from airflow_provider_bankconnect.hooks.kept import KeptConnections, Life
from airflow_provider_bankconnect.hooks.sync_http import MAX_INTERIM, TooManyInterimError

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection


@dataclass
class AsyncTrip:
    """One request on its way. All of it has to be over at ``end``; a step may have an earlier limit of its own.

    ``can_repeat``: whether it may be sent again if it was lost on a kept connection.
    """

    end: float
    can_repeat: bool
    timer: asyncio.Timeout | None = None
    transport: asyncio.Transport | None = None
    step: Literal["connecting", "silent", ""] = ""
    _life: Life | None = None
    _is_kept: bool = False
    _addresses: int = 1
    _given_up: int = 0

    @property
    def now(self) -> float:
        """The time of the event loop."""
        return asyncio.get_running_loop().time()

    def set_out(self) -> asyncio.Timeout:
        """Begin, or begin anew; return the timer of this try."""
        self.timer = asyncio.timeout_at(self.end)
        self.transport, self.step = None, ""
        self.disconnected()
        trip_of_task.set(self)
        return self.timer

    def disconnected(self) -> None:
        """Note that there is no connection yet, or not any more. ``aiohttp`` itself sends a broken request twice."""
        self._life, self._is_kept = None, False
        self.proceed()

    def found(self, addresses: int) -> int:
        """Share the time out among the addresses of the host; return how many have been given up.

        ``aiohttp`` races them, but does not leave one that accepts the connection and stays silent in the handshake.
        """
        self._addresses = addresses
        if self._given_up + 1 < addresses:
            self._limit("connecting", (self.end - self.now) / (addresses - self._given_up))
        return self._given_up

    def connected(
        self, transport: asyncio.Transport | None, life: Life, patience: float | None, *, is_kept: bool
    ) -> None:
        """Note the connection, and how long it may be silent. None: to the end."""
        self.transport, self._life, self._is_kept = transport, life, is_kept
        if patience is None or not self.can_repeat:
            self.proceed()
        else:
            self._limit("silent", patience)

    def proceed(self) -> None:
        """Leave a step in time."""
        if self.step and self.timer is not None:
            self.timer.reschedule(self.end)
        self.step = ""

    def take_another_way(self, error: BaseException, kept: KeptConnections) -> bool:
        """Return whether the request should be sent again: a step took too long, or a kept connection broke.

        A request that was lost on a kept connection is sent once more.
        """
        if self.now >= self.end:
            return False
        if self.timer is not None and self.timer.expired() and self.step:
            if self.step == "connecting":
                self._given_up += 1
                return True
            kept.note_silence(self.now)
        # aiohttp has sent it twice by now; the second connection too may have been kept.
        elif not (self._is_kept and self.can_repeat and isinstance(error, _BROKEN)):
            return False
        kept.forget(self.now)
        self.can_repeat = False
        return True

    def note_use(self) -> None:
        """Note that the connection is idle from now on."""
        if self._life is not None:
            self._life.used = self.now

    def release(self) -> None:
        """Let go of the task, whose context holds this trip: such a cycle stays until the garbage collector runs."""
        self.timer = self.transport = None

    def _limit(self, step: Literal["connecting", "silent"], seconds: float) -> None:
        self.step = step
        if self.timer is not None:
            self.timer.reschedule(min(self.now + seconds, self.end))


# Before an answer; a body that breaks off is a ClientPayloadError.
_BROKEN: Final = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
trip_of_task: ContextVar[AsyncTrip | None] = ContextVar("bankconnect_async_trip", default=None)


def note_addresses(count: int) -> int:
    """Tell the request of this task how many addresses its host has; return how many it has given up."""
    trip = trip_of_task.get()
    return 0 if trip is None else trip.found(count)


class Connector(aiohttp.TCPConnector):
    """Uses a connection again only as the rules for kept ones allow.

    :param timeout: the seconds of a whole request.
    """

    def __init__(self, *, kept: KeptConnections, timeout: float, **more: Any) -> None:  # noqa: ANN401 - as aiohttp has it
        super().__init__(**more)
        self._kept = kept
        self._timeout = timeout
        self._lives: WeakKeyDictionary[ResponseHandler, Life] = WeakKeyDictionary()

    async def connect(self, *arguments: Any, **more: Any) -> Connection:  # noqa: ANN401 - as aiohttp has it
        """Return a kept connection, or a new one."""
        trip, loop = trip_of_task.get(), asyncio.get_running_loop()
        if trip is not None:
            trip.disconnected()
        while True:
            connection = await super().connect(*arguments, **more)
            now, protocol, transport = loop.time(), connection.protocol, connection.transport
            life = self._lives.get(protocol) if protocol is not None else None
            is_kept = life is not None
            if life is not None and not self._kept.may_reuse(life, now):
                if transport is not None:
                    transport.abort()
                connection.close()
                continue
            if life is None:
                life = Life(now, now)
                if protocol is not None:
                    self._lives[protocol] = life
            if trip is not None:
                patience = self._kept.patience(life, now, self._timeout) if is_kept else None
                trip.connected(transport, life, patience, is_kept=is_kept)
            return connection


class Response(aiohttp.ClientResponse):
    """An answer after few interim ones: ``aiohttp`` skips any number of them."""

    async def start(self, connection: Connection) -> Self:
        """Read the head of the answer."""
        protocol: Any = connection.protocol
        read, heads = protocol.read, 0

        async def read_head() -> Any:  # noqa: ANN401 - as aiohttp has it
            nonlocal heads
            heads += 1
            if heads > MAX_INTERIM + 1:
                raise aiohttp.ClientPayloadError from TooManyInterimError()
            return await read()

        protocol.read = read_head
        try:
            await super().start(connection)
        finally:
            del protocol.read
        return self
