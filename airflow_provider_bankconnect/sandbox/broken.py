"""The answers that faults make instead of the right one, and what they add to an answer."""

from __future__ import annotations

import json
from email.utils import formatdate
from http.client import responses
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from .clock import real_clock
from .padding import Content, FileResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Scope, Send

    from .models import Fault
    from .wire import Wire

_HTML: Final = "<html><head><title>Sandbox</title></head><body><h1>Please come back later</h1></body></html>"
_BLOCKED: Final = "<html><head><title>403 Forbidden</title></head><body><h1>Request blocked</h1></body></html>"
_NO_BODY: Final = {204, 304}


class NoAnswer(Response):
    """A TCP reset, or nothing at all, until the client closes the connection."""

    def __init__(self, wire: Wire, *, reset: bool) -> None:
        super().__init__()
        self.note = "with a reset" if reset else "with nothing"
        self._wire = wire
        self._reset = reset

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        """Answer nothing."""
        if self._reset:
            self._wire.reset()
        await self._wire.lost.wait()


class Half(Response):
    """The first half of an answer whose Content-Length is that of the whole."""

    def __init__(self, wire: Wire, whole: Response) -> None:
        super().__init__(status_code=whole.status_code)
        self._wire = wire
        self._whole = whole

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the half, and close the connection."""
        content = self._whole.content if isinstance(self._whole, FileResponse) else Content(bytes(self._whole.body))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self._whole.raw_headers})
        for piece in content.pieces(len(content) // 2):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._wire.close()


def replacement(fault: Fault, wire: Wire) -> Response:
    """Return the answer that a fault sends instead of the right one."""
    headers = {"date": formatdate(usegmt=True)}
    if fault.kind in {"reset", "forget"}:
        return NoAnswer(wire, reset=fault.kind == "reset")
    if fault.kind == "redirect":
        return Response(status_code=302, headers={**headers, "location": fault.url})
    if fault.kind == "garbage":
        return _text(200, _HTML if fault.body is None else fault.body, fault.content_type, headers)
    if (wait := fault.retry_after_header(real_clock())) is not None:
        headers["retry-after"] = wait
    if fault.kind == "firewall":
        return _text(403, _BLOCKED if fault.body is None else fault.body, fault.content_type or "text/html", headers)
    if fault.status in _NO_BODY:
        return Response(status_code=fault.status, headers=headers)
    default = json.dumps({"detail": f"The sandbox was asked to answer {fault.status}."})
    return _text(fault.status, default if fault.body is None else fault.body, fault.content_type, headers)


def interim_answers(faults: Iterable[Fault]) -> bytes:
    """Return the interim answers that precede the answer, as they are sent."""
    return b"".join(
        f"HTTP/1.1 {fault.interim_status} {responses.get(fault.interim_status, 'Interim')}\r\n"
        "link: <https://elsewhere.invalid/>; rel=preconnect\r\n\r\n".encode("ascii")
        * fault.count
        for fault in faults
        if fault.kind == "interim"
    )


def add_headers(response: Response, faults: Iterable[Fault]) -> None:
    """Add the headers of the faults to an answer."""
    for fault in faults:
        if fault.kind == "long_header":
            response.headers["sandbox-long"] = "a" * fault.size
        elif fault.kind == "encoding":
            response.headers["content-encoding"] = fault.content_encoding


def _text(status: int, body: str, content_type: str | None, headers: dict[str, str]) -> Response:
    guessed = "text/html; charset=utf-8" if body.lstrip().startswith("<") else "application/json"
    return Response(body, status, headers={**headers, "content-type": content_type or guessed})
