"""The vendor's answers, and what stands in the place of ``aiohttp`` and ``requests`` to bring them.

The sandbox's ``World`` and ``Faults`` answer, as its app does over TLS; only the bytes in between are left out.
``over_tls`` sees to it that this makes no difference.
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
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import aiohttp
import requests
import urllib3
from schedules import REQUEST_TIMEOUT

from airflow_provider_bankconnect.hooks import bankconnect as hooks
from airflow_provider_bankconnect.sandbox.faults import Faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from schedules import Schedule
    from simulated_time import Loop

    from airflow_provider_bankconnect.sandbox.world import World

Ledger = tuple[str, str]


@dataclass
class Reply:
    """One answer of the vendor's; ``status`` 0 for none. ``by`` says which process had asked."""

    by: str
    ledger: Ledger
    sent: float
    faults: tuple[str, ...] = ()
    answered: float = float("inf")
    answered_on: datetime | None = None
    resent: bool = False
    status: int = 0
    retry_after: str | None = None
    body: bytes = b""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows in it."""
        answer = json.loads(self.body) if self.status == 200 and self.body.startswith(b"{") else {}
        return answer.get("payloads") or answer.get("progress") or []


class Wire:
    """Takes requests, and keeps what was answered. ``by`` says who is asking, ``nap`` how a thread lets time pass."""

    def __init__(self, schedule: Schedule, world: World, loop: Loop, clock: Callable[[], datetime]) -> None:
        self.replies: list[Reply] = []
        self.by = ""
        self.nap: Callable[[float], None] | None = None
        # Of each task, the reply that it had last; of no task, the worker's.
        self.last: dict[asyncio.Task[Any] | None, Reply] = {}
        self._schedule = schedule
        self._world = world
        self._loop = loop
        self._faults = Faults(clock, schedule.seed, schedule.faults)
        self._dice = random.Random(f"wire {schedule.seed}")

    async def fetch(self, url: str, by: str) -> Reply:
        """Answer a request of aiohttp's, which sends a GET again, once, when it is lost without an answer."""
        for attempt in range(2):
            reply, delay, complete = self._begin(url, by)
            reply.resent = attempt > 0
            self.last[asyncio.current_task()] = reply
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
        """Answer a request of ``requests``'s."""
        reply, delay, complete = self._begin(url, self.by)
        self.last[None] = reply
        if self.nap is not None:
            self.nap(min(delay, REQUEST_TIMEOUT))
            if delay >= REQUEST_TIMEOUT:
                reply.answered = self._loop.time()
                raise requests.ReadTimeout
        complete()
        if not reply.status:
            raise requests.ConnectionError
        return reply

    def _begin(self, url: str, by: str) -> tuple[Reply, float, Callable[[], None]]:
        """Take a request; gives the reply to come, the seconds until then, and what completes it."""
        parts = urlsplit(url)
        segments = parts.path.removeprefix("/bank-connect/v1/entity/").rstrip("/").split("/")
        link_id = parse_qs(parts.query).get("link_id", [""])[0]
        match segments:
            case ["webhook_payloads"]:
                ledger = ("webhook_payloads", link_id)
            case [""]:
                ledger = ("entities", link_id)
            case [entity_id, analysis]:
                ledger = (analysis, entity_id)
        faults = self._faults.for_request(ledger[0])
        met: dict[str, Any] = {fault.kind: fault for fault in faults}
        reply = Reply(by, ledger, self._loop.time(), tuple(met))
        self.replies.append(reply)
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay")
        met["stale"] = sum(fault.seconds for fault in faults if fault.kind == "stale")
        return reply, delay, functools.partial(self._complete, reply, met)

    def _complete(self, reply: Reply, met: dict[str, Any]) -> None:
        reply.answered, reply.answered_on = self._loop.time(), datetime.now(UTC)
        if "reset" in met:
            return
        if "status" in met:
            fault = met["status"]
            reply.status, reply.body = fault.status, b'{"detail": "on purpose"}'
            if fault.retry_after is not None:
                later = format_datetime(datetime.now(UTC) + timedelta(seconds=fault.retry_after), usegmt=True)
                reply.retry_after = later if fault.retry_after_form == "date" else f"{fault.retry_after:g}"
            return
        if "redirect" in met or "garbage" in met:
            reply.status, reply.body = (302 if "redirect" in met else 200), b"<html>Please come back later</html>"
            return
        reply.status, value = self._answer(reply.ledger, met["stale"])
        for name in {"payloads", "progress"} & value.keys():
            rows = value[name]
            if rows and self._dice.random() < self._schedule.repeats:
                rows = [*rows, *self._dice.choices(rows, k=2)]
                reply.faults += ("repeated",)
            if "shuffle" in met:
                rows = self._dice.sample(rows, len(rows))
            if "extra" in met:
                rows = [{"unknown": {"a": [1, None]}, **row} for row in rows]
            value[name] = rows
        reply.body = json.dumps(value).encode()

    def _answer(self, ledger: Ledger, ago: float) -> tuple[int, dict[str, Any]]:
        call, name = ledger
        if call == "entities":
            found = self._world.entities(name)
            return 200, {"count": len(found), "next": None, "previous": None, "results": found}
        if call == "webhook_payloads":
            if self._schedule.unknown_is_404 and not self._world.knows_link(name):
                return 404, {"detail": "Not found."}
            return 200, {"payloads": self._world.history(name, ago)}
        answer = self._world.analysis(name, call, None, ago)
        return (404, {"detail": "Not found."}) if answer is None else (200, dict(answer))


@contextmanager
def replaced(wire: Wire, process: Callable[[], str]) -> Iterator[None]:
    """Have this wire in the place of both libraries' own; ``process`` names the triggerer that asks."""

    class Session:
        def __init__(self, *, timeout: aiohttp.ClientTimeout, **_: object) -> None:
            self._seconds = timeout.total

        async def close(self) -> None:
            pass

        @asynccontextmanager
        async def request(self, _method: str, url: object, **_: object) -> AsyncIterator[_Response]:
            async with asyncio.timeout(self._seconds):
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
        stack.enter_context(patch.object(hooks, "_Connector", lambda **_: None))
        stack.enter_context(patch.object(requests.adapters.HTTPAdapter, "send", send))
        stack.enter_context(patch.object(ssl, "create_default_context", _context))
        yield


class _Raw(io.BytesIO):
    """What requests gives of a reply's body."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self._reply = reply

    def read1(self, size: int = -1, *, decode_content: bool = True) -> bytes:  # noqa: ARG002 - urllib3's own
        _refuse_half(self._reply, urllib3.exceptions.ProtocolError)
        return super().read1(size)


class _Response:
    """What aiohttp gives of a reply."""

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
