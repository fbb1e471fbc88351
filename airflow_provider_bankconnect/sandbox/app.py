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
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from .answers import Bodies, State, answer
from .broken import Half, NoAnswer, add_headers, interim_answers, replacement
from .figures import Pairs
from .files import PREFIX as FILES
from .files import Files, Links
from .models import ANALYSES, ENDINGS, Fault, Record, without_keys
from .world import PAGE_SIZE, Ago, World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.requests import Request

    from .controls import Controls
    from .faults import Faults
    from .wire import Wire

PREFIX: Final = "/bank-connect/v1"
_UNAUTHENTICATED: Final = {"detail": "Authentication credentials were not provided."}
_NOT_ENABLED: Final = {"detail": "This call is not enabled for your account."}
_NOT_FOUND: Final = {"detail": "Not found."}

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
        self.begin: Callable[[], None] | None = None
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
        """Answer one request; the first one calls ``begin`` before that."""
        if self.begin is not None:
            begin, self.begin = self.begin, None
            begin()
        path = request.scope["raw_path"].decode("ascii", "replace")
        call = _Call("file", path.removeprefix(FILES)) if path.startswith(FILES) else _parse_call(path)
        record = await self._record(request, call.name)
        wire: Wire = request.scope["state"]["wire"]
        faults = self._faults.for_request(call.name, wire.connection)
        record.faults = tuple(fault.kind for fault in faults)
        response = await self._respond(wire, call, record, faults)
        record.status = None if isinstance(response, NoAnswer) else response.status_code
        how = response.note if isinstance(response, NoAnswer) else record.status
        note = f" (faults: {', '.join(record.faults)})" if faults else ""
        self._log(f"{record.method} {record.call} answered {how}{note}")
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

    async def _respond(self, wire: Wire, call: _Call, record: Record, faults: list[Fault]) -> Response:
        ago = self._ago(faults)
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay")
        ending = next((fault for fault in faults if fault.kind in ENDINGS), None)
        if ending is None or ending.kind != "forget":
            wire.send(interim_answers(faults))
        if delay and await self._stops_within(delay):
            return NoAnswer(wire, reset=True)
        if ending is not None and ending.kind != "half":
            response = replacement(ending, wire)
        else:
            response = self._right_answer(call, record, ago, faults)
        add_headers(response, faults)
        return Half(wire, response) if ending is not None and ending.kind == "half" else response

    def _ago(self, faults: list[Fault]) -> Ago:
        seconds = sum(fault.seconds for fault in faults if fault.kind == "stale")
        frozen = self._faults.frozen_at(faults)
        return seconds if frozen is None else frozen - timedelta(seconds=seconds)

    def _right_answer(self, call: _Call, record: Record, ago: Ago, faults: list[Fault]) -> Response:
        headers = {"date": formatdate(usegmt=True)}
        if call.name == "file":
            return self._files.respond(call.subject, headers)
        return self._json(self._answer(call, record, ago), faults, headers)

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

    def _answer(self, call: _Call, record: Record, ago: Ago) -> Answer:
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

    def _about_entity(self, call: _Call, query: dict[str, str], ago: Ago) -> Answer:
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

    def _payloads(self, query: dict[str, str], ago: Ago) -> Answer:
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
