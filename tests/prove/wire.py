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
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import aiohttp
import requests
import urllib3
from schedules import REQUEST_TIMEOUT

from airflow_provider_bankconnect.hooks import transport
from airflow_provider_bankconnect.sandbox.faults import Faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from schedules import Schedule
    from simulated_time import Loop

    from airflow_provider_bankconnect.sandbox import Fault
    from airflow_provider_bankconnect.sandbox.world import World

RecordKey = tuple[str, str]


@dataclass
class Reply:
    """One answer of the vendor, with ``status`` 0 for none. ``by`` names the process that asked.

    ``is_first``: a poke began with it.
    """

    by: str
    record: RecordKey
    sent: float
    faults: tuple[str, ...] = ()
    answered: float = float("inf")
    answered_on: datetime | None = None
    resent: bool = False
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

    async def fetch(self, url: str, by: str) -> Reply:
        """Answer a request of aiohttp, which repeats a GET once when the connection is lost without an answer."""
        for attempt in range(2):
            reply, delay, complete = self._begin(url, by, asyncio.current_task())
            reply.resent = attempt > 0
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                reply.answered = self._loop.time()
                raise
            complete()
            if reply.status:
                return reply
        raise aiohttp.ServerDisconnectedError

    def fetch_at_once(self, url: str) -> Reply:
        """Answer a request of ``requests``."""
        reply, delay, complete = self._begin(url, self.by, None)
        if self.sleep is not None:
            self.sleep(min(delay, REQUEST_TIMEOUT))
            if delay >= REQUEST_TIMEOUT:
                reply.answered = self._loop.time()
                raise requests.ReadTimeout
        complete()
        if not reply.status:
            raise requests.ConnectionError
        return reply

    def _begin(self, url: str, by: str, task: asyncio.Task[Any] | None) -> tuple[Reply, float, Callable[[], None]]:
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
        faults = self._faults.for_request(record[0])
        active: dict[str, Any] = {fault.kind: fault for fault in faults}
        reply = Reply(by, record, self._loop.time(), tuple(active))
        self.replies.append(reply)
        of_poke = self.of_poke.setdefault(task, [])
        reply.is_first = not of_poke
        of_poke.append(reply)
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay")
        active["stale"] = sum(fault.seconds for fault in faults if fault.kind == "stale")
        return reply, delay, functools.partial(self._complete, reply, active)

    def _complete(self, reply: Reply, active: dict[str, Any]) -> None:
        reply.answered, reply.answered_on = self._loop.time(), datetime.now(UTC)
        if "reset" in active:
            return
        if fault := active.get("status") or active.get("firewall"):
            _fill_error(reply, fault)
            return
        if "redirect" in active or "garbage" in active:
            reply.status, reply.body = (302 if "redirect" in active else 200), b"<html>Please come back later</html>"
            return
        reply.status, value = self._answer(reply.record, active["stale"])
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

    class Session:
        def __init__(self, **_: object) -> None:
            pass

        async def close(self) -> None:
            pass

        @asynccontextmanager
        async def request(self, _method: str, url: object, **_: object) -> AsyncIterator[_Response]:
            yield _Response(await wire.fetch(str(url), process()))

    def send(_adapter: object, request: requests.PreparedRequest, **_: object) -> requests.Response:
        reply = wire.fetch_at_once(request.url or "")
        response = requests.Response()
        response.status_code = reply.status
        response.raw = _Raw(reply)
        if reply.retry_after is not None:
            response.headers["Retry-After"] = reply.retry_after
        return response

    with ExitStack() as stack:
        stack.enter_context(patch.object(aiohttp, "ClientSession", Session))
        stack.enter_context(patch.object(transport, "Connector", lambda **_: None))
        stack.enter_context(patch.object(requests.adapters.HTTPAdapter, "send", send))
        stack.enter_context(patch.object(ssl, "create_default_context", _context))
        yield


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
        self.headers = {} if reply.retry_after is None else {"Retry-After": reply.retry_after}
        self.content = self
        self._reply = reply

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        _refuse_half(self._reply, aiohttp.ClientPayloadError)
        yield self._reply.body


def _refuse_half(reply: Reply, broken: type[Exception]) -> None:
    if "half" in reply.faults:
        raise broken


_context = functools.cache(lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
