"""The vendor's answers without sockets: replaces what lies beneath ``aiohttp`` and ``requests``.

The sandbox's ``World`` and ``Faults`` make the answers, as they do in its app. ``over_tls`` checks that leaving out TLS
makes no difference.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import random
import ssl
import time
from collections import deque
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import aiohttp
import requests
import urllib3
from multidict import CIMultiDict
from schedules import REQUEST_TIMEOUT

from airflow_provider_bankconnect.hooks.kept import Life
from airflow_provider_bankconnect.hooks.sync_http import Trip, trip_of_request
from airflow_provider_bankconnect.sandbox.faults import Faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from schedules import Schedule, Switch
    from simulated_time import Loop

    from airflow_provider_bankconnect.sandbox import Fault
    from airflow_provider_bankconnect.sandbox.world import World

RecordKey = tuple[str, str]
_FOR_EVER = 86400.0


@dataclass
class Reply:
    """One answer of the vendor, with ``status`` 0 for none. ``by`` names the process that asked.

    ``is_first``: a poke began with it. ``begun``: when the request was sent first, if it was lost and sent again.
    """

    by: str
    record: RecordKey
    sent: float
    faults: tuple[str, ...] = ()
    answered: float = float("inf")
    answered_on: datetime | None = None
    begun: float = 0.0
    is_first: bool = False
    status: int = 0
    retry_after: str | None = None
    body: bytes = b""

    @functools.cached_property
    def json(self) -> dict[str, Any]:
        """The answer, once it is there; empty for an error."""
        return json.loads(self.body) if self.status == 200 and self.body.startswith(b"{") else {}

    @property
    def is_error(self) -> bool:
        """Whether it is an answer of a server or a firewall that says nothing of the records."""
        return self.status >= 500 or self.status in {408, 425, 429} or "firewall" in self.faults

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the answer."""
        answer = self.json
        return answer.get("payloads") or answer.get("progress") or []


@dataclass
class Line:
    """A connection: when it was opened, and when an answer last came on it."""

    opened: float
    used: float


class Wire:
    """Answers requests, and keeps the answers. ``by`` names the process, ``sleep`` lets time pass for a thread."""

    def __init__(self, schedule: Schedule, world: World, loop: Loop, clock: Callable[[], datetime]) -> None:
        self.replies: list[Reply] = []
        self.by = ""
        self.sleep: Callable[[float], None] | None = None
        # The replies to the poke of each task; under None, to that of the worker.
        self.of_poke: dict[asyncio.Task[Any] | None, list[Reply]] = {}
        self._schedule = schedule
        self._world = world
        self._loop = loop
        self._faults = Faults(clock, schedule.seed, schedule.faults)
        self._rng = random.Random(f"wire {schedule.seed}")

    async def fetch(self, url: str, by: str, line: Line) -> Reply:
        """Answer a request of aiohttp."""
        reply, delay, complete = self._begin(url, by, asyncio.current_task(), line)
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            reply.answered = self._loop.time()
            raise
        complete()
        line.used = self._loop.time()
        return reply

    def fetch_at_once(self, url: str, line: Line, limit: float) -> Reply:
        """Answer a request of ``requests`` within some seconds."""
        reply, delay, complete = self._begin(url, self.by, None, line)
        if self.sleep is not None:
            self.sleep(min(delay, limit))
            if delay >= limit:
                reply.answered = self._loop.time()
                raise requests.ReadTimeout
        complete()
        if not reply.status:
            raise requests.ConnectionError
        line.used = self._loop.time()
        return reply

    def line(self) -> Line:
        """Open a connection."""
        return Line(self._loop.time(), self._loop.time())

    def _begin(
        self, url: str, by: str, task: asyncio.Task[Any] | None, line: Line
    ) -> tuple[Reply, float, Callable[[], None]]:
        """Take a request. Return its reply, the seconds until that is there, and what completes it then."""
        parts = urlsplit(url)
        segments = parts.path.removeprefix("/bank-connect/v1/entity/").rstrip("/").split("/")
        link_id = parse_qs(parts.query).get("link_id", [""])[0]
        match segments:
            case ["webhook_payloads"]:
                record = ("webhook_payloads", link_id)
            case [""]:
                record = ("entities", link_id)
            case [entity_id]:
                record = ("entity", entity_id)
            case [entity_id, analysis]:
                record = (analysis, entity_id)
        switch = next((one for one in self._schedule.switches if line.opened < one.at <= self._loop.time()), None)
        # The faults are those of the present server.
        faults = self._faults.for_request(record[0]) if switch is None else []
        active: dict[str, Any] = {fault.kind: fault for fault in faults}
        reply = Reply(by, record, self._loop.time(), tuple(active))
        self.replies.append(reply)
        of_poke = self.of_poke.setdefault(task, [])
        reply.is_first = not of_poke
        is_again = bool(of_poke) and of_poke[-1].record == record and not of_poke[-1].status
        reply.begun = of_poke[-1].begun if is_again else reply.sent
        of_poke.append(reply)
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay")
        active["stale"] = sum(fault.seconds for fault in faults if fault.kind == "stale")
        if switch is not None:
            active["switch"], reply.faults = switch, (f"switch {switch.answers}",)
        forgets_after = self._schedule.forgets_after
        if forgets_after is not None and self._loop.time() - line.used > forgets_after:
            reply.faults, delay = ("forgotten",), _FOR_EVER
        return reply, delay, functools.partial(self._complete, reply, active)

    def _complete(self, reply: Reply, active: dict[str, Any]) -> None:
        reply.answered, reply.answered_on = self._loop.time(), datetime.now(UTC)
        if "reset" in active:
            return
        switch: Switch | None = active.get("switch")
        if switch is not None and switch.answers != "old":
            reply.status, reply.body = int(switch.answers), b'{"detail": "This server is no longer in use."}'
            return
        if fault := active.get("status") or active.get("firewall"):
            _fill_error(reply, fault)
            return
        if "redirect" in active or "garbage" in active:
            reply.status, reply.body = (302 if "redirect" in active else 200), b"<html>Please come back later</html>"
            return
        ago = active["stale"] if switch is None else reply.answered - switch.at
        reply.status, value = self._answer(reply.record, ago)
        for name in {"payloads", "progress", "results"} & value.keys():
            rows = value[name]
            if rows and self._rng.random() < self._schedule.repeats:
                rows = [*rows, *self._rng.choices(rows, k=2)]
                reply.faults += ("duplicate",)
            if "shuffle" in active:
                rows = self._rng.sample(rows, len(rows))
            if "extra" in active:
                rows = [{"unknown": {"a": [1, None]}, **row} for row in rows]
            value[name] = rows
        reply.body = json.dumps(value).encode()

    def _answer(self, record: RecordKey, ago: float) -> tuple[int, dict[str, Any]]:
        call, name = record
        if call == "entities":
            found = self._world.entities(name)
            return 200, {"count": len(found), "next": None, "previous": None, "results": found}
        if call == "webhook_payloads":
            if self._schedule.unknown_is_404 and not self._world.knows_link(name):
                return 404, {"detail": "Not found."}
            return 200, {"payloads": self._world.history(name, ago)}
        if call == "entity":
            found = self._world.entity(name)
            return (404, {"detail": "Not found."}) if found is None else (200, found)
        answer = self._world.analysis(name, call, None, ago)
        return (404, {"detail": "Not found."}) if answer is None else (200, dict(answer))


def _fill_error(reply: Reply, fault: Fault) -> None:
    is_firewall = fault.kind == "firewall"
    reply.status = 403 if is_firewall else fault.status
    reply.body = b"<html>Forbidden</html>" if is_firewall else b'{"detail": "on purpose"}'
    reply.retry_after = fault.retry_after_header(datetime.now(UTC))


@contextmanager
def replaced(wire: Wire, process: Callable[[], str]) -> Iterator[None]:
    """Connect both libraries to this wire. ``process`` names the triggerer that asks."""

    def make_pool(connector: Any, **_: object) -> None:
        connector.idle, connector._closed = deque(), True

    async def connect(connector: Any) -> _Connection:
        # The one that has been idle for longest, as aiohttp does.
        return _Connection(connector.idle.popleft() if connector.idle else _Protocol(wire.line()))

    def send(adapter: Any, request: requests.PreparedRequest, **_: object) -> requests.Response:
        return _send(wire, adapter, request.url or "")

    with ExitStack() as stack:
        stack.enter_context(patch.object(aiohttp, "ClientSession", functools.partial(_Session, wire, process)))
        # Beneath our Connector, which decides which connection is used again.
        stack.enter_context(patch.object(aiohttp.TCPConnector, "__init__", make_pool))
        stack.enter_context(patch.object(aiohttp.TCPConnector, "connect", connect))
        stack.enter_context(patch.object(requests.adapters.HTTPAdapter, "send", send))
        stack.enter_context(patch.object(ssl, "create_default_context", _context))
        yield


class _Session:
    """A session of ``aiohttp``."""

    def __init__(self, wire: Wire, process: Callable[[], str], *, connector: Any, **_: object) -> None:
        self._wire, self._process, self._connector = wire, process, connector

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def request(self, _method: str, url: object, **_: object) -> AsyncIterator[_Response]:
        # aiohttp repeats a GET once when the connection is lost without an answer.
        for _ in range(2):
            protocol = (await self._connector.connect()).protocol
            reply = await self._wire.fetch(str(url), self._process(), protocol.line)
            if reply.status:
                break
        else:
            raise aiohttp.ServerDisconnectedError
        yield _Response(reply)
        # Only after a whole answer.
        self._connector.idle.append(protocol)


def _send(wire: Wire, adapter: Any, url: str) -> requests.Response:
    """Send with ``requests``: one thread has one connection. The rules are those of our own ``_Connection``."""
    trip, now = trip_of_request.get() or Trip(time.monotonic() + REQUEST_TIMEOUT), time.monotonic()
    kept = adapter._pool.ConnectionCls.kept
    line, life = adapter.__dict__.pop("idle", (None, None))
    if line is None or not kept.may_reuse(life, now):
        line, life = wire.line(), Life(now, now)
    else:
        trip.is_kept = True
        patience = kept.patience(life, now, trip.end - now)
        trip.limit = trip.end if patience is None else now + patience
    reply = wire.fetch_at_once(url, line, trip.limit - now)
    life.used, trip.is_answered, trip.limit = time.monotonic(), True, trip.end
    if "half" not in reply.faults:
        adapter.idle = line, life
    response = requests.Response()
    response.status_code = reply.status
    response.raw = _Raw(reply)
    if reply.retry_after is not None:
        response.headers["Retry-After"] = reply.retry_after
    return response


@dataclass(eq=False)
class _Protocol:
    """An open connection in a pool."""

    line: Line


@dataclass
class _Connection:
    """A connection that is lent to a request."""

    protocol: _Protocol
    transport: Any = field(default_factory=lambda: SimpleNamespace(abort=lambda: None))

    def close(self) -> None:
        pass


class _Raw(io.BytesIO):
    """The body of a reply, for ``requests``."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self._reply = reply

    def read1(self, size: int = -1, *, decode_content: bool = True) -> bytes:  # noqa: ARG002 - named by urllib3
        _refuse_half(self._reply, urllib3.exceptions.ProtocolError)
        return super().read1(size)


class _Response:
    """A reply, as ``aiohttp`` has it."""

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self.headers = CIMultiDict({} if reply.retry_after is None else {"Retry-After": reply.retry_after})
        self.content = self
        self._reply = reply

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        _refuse_half(self._reply, aiohttp.ClientPayloadError)
        yield self._reply.body


def _refuse_half(reply: Reply, broken: type[Exception]) -> None:
    if "half" in reply.faults:
        raise broken


_context = functools.cache(lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
