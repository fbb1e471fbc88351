"""The HTTP routes of BankConnect's calls, as its documentation describes them."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, formatdate
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from .answers import Bodies, State, answer
from .clock import real_clock
from .figures import Pairs
from .files import PREFIX as FILES
from .files import Files, Links
from .models import ANALYSES, ENDINGS, Fault, Record, without_keys
from .world import PAGE_SIZE, World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from .controls import Controls
    from .faults import Faults
    from .wire import Wire

PREFIX: Final = "/bank-connect/v1"
_HTML: Final = "<html><head><title>Sandbox</title></head><body><h1>Please come back later</h1></body></html>"
_UNAUTHENTICATED: Final = {"detail": "Authentication credentials were not provided."}
_NOT_ENABLED: Final = {"detail": "This call is not enabled for your account."}
_NOT_FOUND: Final = {"detail": "Not found."}
_NO_BODY: Final = {204, 304}

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Keys:
    """The two keys that every call must carry."""

    api_key: str
    server_hash: str

    def fit(self, headers: dict[str, str]) -> bool:
        """Return whether the headers carry both keys."""
        return hmac.compare_digest(
            headers.get("x-api-key", "").encode(), self.api_key.encode()
        ) and hmac.compare_digest(headers.get("server-hash", "").encode(), self.server_hash.encode())


@dataclass(frozen=True)
class _Call:
    """The call that a request's path names: its name, its entity (or a file's token) and its method."""

    name: str
    subject: str = ""
    method: str = "GET"


class Vendor:
    """Answers the calls under ``/bank-connect/v1``, keeps the request log, and applies the faults."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        keys: Keys,
        links: Links,
        *,
        unknown_link: str,
        not_enabled: Collection[str],
        log_size: int | None,
        log: Callable[[str], None],
    ) -> None:
        self.requests: deque[Record] = deque(maxlen=log_size)
        self.counts: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self._world = world
        self._faults = faults
        self._keys = keys
        self._links = links
        self._bodies = Bodies()
        self._files = Files(world, links, self._bodies)
        self._unknown_link = unknown_link
        self._not_enabled = not_enabled
        self._log = log
        self._random = random.Random(f"{world.seed}/shuffles")

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        path = request.scope["raw_path"].decode("ascii", "replace")
        call = _Call("file", path.removeprefix(FILES)) if path.startswith(FILES) else _parse_call(path)
        record = await self._record(request, call.name)
        faults = self._faults.for_request(call.name)
        record.faults = tuple(fault.kind for fault in faults)
        response = await self._respond(request, call, record, faults)
        if not isinstance(response, _Reset):
            record.status = response.status_code
        note = f" (faults: {', '.join(record.faults)})" if faults else ""
        self._log(f"{record.method} {record.call} answered {record.status or 'with a reset'}{note}")
        return response

    async def _record(self, request: Request, name: str) -> Record:
        raw = request.scope["raw_path"].decode("ascii", "replace")
        text = request.scope["query_string"].decode("ascii", "replace")
        record = Record(
            call=name,
            method=request.method,
            path=f"{raw}?{text}" if text else raw,
            query=dict(parse_qsl(text, keep_blank_values=True)),
            headers=_headers(request, name),
            body=await request.body(),
            at=time.monotonic(),
            connection=request.scope["state"]["wire"].number,
        )
        self.requests.append(record)
        self.counts[name] += 1
        return record

    async def _respond(self, request: Request, call: _Call, record: Record, faults: list[Fault]) -> Response:
        wire: Wire = request.scope["state"]["wire"]
        ago = sum(fault.seconds for fault in faults if fault.kind == "stale")
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay")
        if delay and await self._stops_within(delay):
            return _Reset(wire)
        ending = next((fault for fault in faults if fault.kind in ENDINGS), None)
        if ending is not None and ending.kind != "half":
            return _fault_response(ending, wire)
        headers = {"date": formatdate(usegmt=True)}
        if call.name == "file":
            response = self._files.respond(call.subject, headers)
        else:
            response = self._json(self._answer(call, record, ago), faults, headers)
        return response if ending is None else _Half(wire, response)

    def _json(self, answered: Answer, faults: list[Fault], headers: dict[str, str]) -> Response:
        status, value = answered
        changes = [fault.kind for fault in faults if fault.kind in {"shuffle", "extra"}]
        if isinstance(value, State):
            state = value
            # Each xlsx_report has new links.
            if not changes and state.analysis != "xlsx_report":
                body = self._bodies.get(state, lambda: _encode(answer(state)))
                return Response(body, status, headers=headers, media_type="application/json")
            value = answer(state, self._links.make)
        for change in changes:
            if change == "shuffle":
                self._shuffle(value)
            else:
                value = _with_unknown_fields(value)
        return Response(_encode(value), status, headers=headers, media_type="application/json")

    async def _stops_within(self, seconds: float) -> bool:
        try:
            return await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return False

    def _answer(self, call: _Call, record: Record, ago: float) -> Answer:
        refusal = self._refuse(call, record)
        if refusal is not None:
            return refusal
        if call.subject:
            return self._about_entity(call, record.query, ago)
        if call.name == "update_webhook":
            return self._update_webhook(record)
        return self._entities(record.query) if call.name == "entities" else self._payloads(record.query, ago)

    def _refuse(self, call: _Call, record: Record) -> Answer | None:
        if record.path.startswith(f"{PREFIX}/") and not self._keys.fit(record.headers):
            return 401, _UNAUTHENTICATED
        if call.name in self._not_enabled:
            return 403, _NOT_ENABLED
        if call.name == "unknown":
            return 404, _NOT_FOUND
        if record.method != call.method:
            return 405, {"detail": f'Method "{record.method}" not allowed.'}
        return None

    def _about_entity(self, call: _Call, query: dict[str, str], ago: float) -> Answer:
        entity_id = call.subject
        found: object
        if call.name == "entity":
            found = self._world.entity(entity_id)
        elif call.name == "get_pdfs":
            files = self._world.pdfs(entity_id, lambda one: self._links.make("pdf", entity_id, one), ago)
            found = None if files is None else {"statements": files}
        else:
            found = self._world.state(entity_id, call.name, query.get("account_id"), ago)
        return (404, _NOT_FOUND) if found is None else (200, found)

    def _update_webhook(self, record: Record) -> Answer:
        try:
            body = json.loads(record.body)
        except ValueError:
            return 400, {"detail": "JSON parse error"}
        if not isinstance(body, dict):
            return 400, {"detail": "Invalid data. Expected a dictionary."}
        url = body.get("webhook_url")
        # BankConnect itself resets the mode when it is left out.
        mode = body.get("webhook_mode", 0)
        if not isinstance(url, str) or not _is_web_address(url):
            return 400, {"webhook_url": ["Enter a valid URL."]}
        if isinstance(mode, bool) or mode not in (0, 1):
            return 400, {"webhook_mode": [f'"{mode}" is not a valid choice.']}
        self._world.register(url, mode)
        return 200, {"message": "Webhook updated"}

    def _payloads(self, query: dict[str, str], ago: float) -> Answer:
        link_id = query.get("link_id")
        if link_id and self._unknown_link == "404" and not self._world.knows_link(link_id):
            return 404, _NOT_FOUND
        return 200, {"payloads": self._world.history(link_id, ago)}

    def _entities(self, query: dict[str, str]) -> Answer:
        link_id = query.get("link_id")
        found = self._world.entities(link_id)
        pages = max(1, -(-len(found) // PAGE_SIZE))
        text = query.get("page", "1")
        page = int(text) if text.isascii() and text.isdigit() else 0
        if not 1 <= page <= pages:
            return 404, {"detail": "Invalid page."}

        def other(number: int) -> str | None:
            wanted = {"page": number} | ({} if link_id is None else {"link_id": link_id})
            query_text = urlencode(wanted, quote_via=quote)
            return f"{self._links.origin()}{PREFIX}/entity/?{query_text}" if 1 <= number <= pages else None

        return 200, {
            "count": len(found),
            "next": other(page + 1),
            "previous": other(page - 1),
            "results": found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        }

    def _shuffle(self, value: object) -> None:
        if isinstance(value, dict):
            for name in ("payloads", "progress", "results"):
                if isinstance(value.get(name), list):
                    value[name] = self._random.sample(value[name], len(value[name]))


def make_app(vendor: Vendor, controls: Controls) -> Starlette:
    """Make the app: the controls' routes first, then the vendor for every other path."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app = Starlette(routes=[*controls.routes(), Route("/{rest:path}", vendor.__call__, methods=methods)])
    app.router.redirect_slashes = False
    return app


class _Reset(Response):
    """A TCP reset instead of an answer."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        self._wire.reset()
        await self._wire.lost.wait()


class _Half(Response):
    """The first half of an answer whose Content-Length is that of the whole."""

    def __init__(self, wire: Wire, whole: Response) -> None:
        super().__init__(status_code=whole.status_code)
        self._wire = wire
        self._whole = whole

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        body = bytes(self._whole.body)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self._whole.raw_headers})
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await self._wire.close()


def _parse_call(raw_path: str) -> _Call:
    # The raw path is split before it is decoded, so that an encoded slash stays part of an id.
    base, _, rest = raw_path.partition(f"{PREFIX}/")
    segments = [] if base else [unquote(part) for part in rest.split("/")]
    match segments:
        case ["entity", ""]:
            return _Call("entities")
        case ["entity", "update_webhook", ""]:
            return _Call("update_webhook", method="POST")
        case ["entity", "webhook_payloads", ""]:
            return _Call("webhook_payloads")
        case ["entity", entity_id, ""] if entity_id:
            return _Call("entity", entity_id)
        case ["entity", entity_id, name, ""] if entity_id and name in {"get_pdfs", *ANALYSES}:
            return _Call(name, entity_id)
    return _Call("unknown")


def _headers(request: Request, name: str) -> dict[str, str]:
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in request.scope["headers"]}
    # A file is fetched from another host than BankConnect's, which must not learn the keys.
    return without_keys(headers) if name == "file" else headers


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _fault_response(fault: Fault, wire: Wire) -> Response:
    headers = {"date": formatdate(usegmt=True)}
    if fault.kind == "reset":
        return _Reset(wire)
    if fault.kind == "redirect":
        return Response(status_code=302, headers={**headers, "location": fault.url})
    if fault.kind == "garbage":
        return _text(200, _HTML if fault.body is None else fault.body, fault.content_type, headers)
    wait = fault.retry_after
    if isinstance(wait, str):
        headers["retry-after"] = wait
    elif wait is not None:
        later = format_datetime(real_clock() + timedelta(seconds=wait), usegmt=True)
        headers["retry-after"] = later if fault.retry_after_form == "date" else f"{wait:g}"
    if fault.status in _NO_BODY:
        return Response(status_code=fault.status, headers=headers)
    default = json.dumps({"detail": f"The sandbox was asked to answer {fault.status}."})
    return _text(fault.status, default if fault.body is None else fault.body, fault.content_type, headers)


def _text(status: int, body: str, content_type: str | None, headers: dict[str, str]) -> Response:
    guessed = "text/html; charset=utf-8" if body.lstrip().startswith("<") else "application/json"
    return Response(body, status, headers={**headers, "content-type": content_type or guessed})


def _with_unknown_fields(value: object) -> object:
    if isinstance(value, list):
        return [_with_unknown_fields(item) for item in value]
    if isinstance(value, dict) and not isinstance(value, Pairs):
        return {"sandbox_extra": {"a": [1, None]}} | {key: _with_unknown_fields(item) for key, item in value.items()}
    return value


def _is_web_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)
