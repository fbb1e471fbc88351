"""The sandbox's own HTTP routes: the inbox, which any host may call, and the controls, for this machine only."""

from __future__ import annotations

import ipaddress
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .models import Delivery, Fault, Received, Record, Statement, without_keys
from .play import in_words, with_full_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from .app import Vendor
    from .faults import Faults


class Controls:
    """The sandbox's own endpoints: the inbox, which any host may call, and the controls, for this machine only."""

    def __init__(
        self,
        vendor: Vendor,
        faults: Faults,
        deliveries: list[Delivery],
        *,
        play: Callable[[Statement], Statement],
        webhook: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ) -> None:
        self.inbox: list[Received] = []
        self._vendor = vendor
        self._faults = faults
        self._deliveries = deliveries
        self._play = play
        self._webhook = webhook
        self._log = log

    def routes(self) -> list[Route]:
        """Return the routes of the inbox and the controls."""
        return [
            Route("/sandbox/inbox", self._receive, methods=["POST"]),
            Route("/sandbox/inbox", _local(self._list_inbox), methods=["GET"]),
            Route("/sandbox/statements", _local(self._add_statement), methods=["POST"]),
            Route("/sandbox/faults", _local(self._list_faults), methods=["GET"]),
            Route("/sandbox/faults", _local(self._add_fault), methods=["POST"]),
            Route("/sandbox/faults", _local(self._clear_faults), methods=["DELETE"]),
            Route("/sandbox/requests", _local(self._list_requests), methods=["GET"]),
            Route("/sandbox/deliveries", _local(self._list_deliveries), methods=["GET"]),
            Route("/sandbox/webhooks", _local(self._send_webhook), methods=["POST"]),
        ]

    async def _receive(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            return JSONResponse({"detail": "not JSON"}, 400)
        self.inbox.append(Received(body, time.monotonic()))
        self._log("the inbox received a webhook")
        return JSONResponse({"detail": "ok"}, 200)

    async def _list_inbox(self, _: Request) -> Response:
        return JSONResponse({"webhooks": [asdict(one) for one in self.inbox]})

    async def _add_statement(self, request: Request) -> Response:
        played = self._play(Statement.model_validate(with_full_names(await request.json())))
        return JSONResponse(played.model_dump(), 201)

    async def _list_faults(self, _: Request) -> Response:
        return JSONResponse({"faults": [fault.model_dump(exclude_defaults=True) for fault in self._faults.now()]})

    async def _add_fault(self, request: Request) -> Response:
        fault = Fault.model_validate(await request.json())
        self._faults.add(fault)
        self._log(f"fault added: {fault.kind} in {fault.call}")
        return JSONResponse(fault.model_dump(exclude_defaults=True), 201)

    async def _clear_faults(self, _: Request) -> Response:
        self._faults.clear()
        self._log("all faults cleared")
        return JSONResponse({"faults": []})

    async def _list_requests(self, request: Request) -> Response:
        call = request.query_params.get("call")
        found = [_without_keys(one) for one in list(self._vendor.requests) if call in {None, one.call}]
        return JSONResponse({"requests": found})

    async def _list_deliveries(self, _: Request) -> Response:
        return JSONResponse({"deliveries": [asdict(one) for one in self._deliveries]})

    async def _send_webhook(self, request: Request) -> Response:
        body = await request.json()
        if not isinstance(body, dict):
            return JSONResponse({"detail": "a webhook must be a JSON object"}, 400)
        self._webhook(body)
        return JSONResponse(body, 201)


def _local(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        try:
            is_local = ipaddress.ip_address(peer).is_loopback
        except ValueError:
            is_local = False
        if not is_local:
            return JSONResponse({"detail": "Only from this machine."}, 403)
        try:
            return await endpoint(request)
        except ValidationError as error:
            return JSONResponse({"detail": in_words(error)}, 400)
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, 400)

    return answer


def _without_keys(record: Record) -> dict[str, Any]:
    shown = asdict(record)
    shown["headers"] = without_keys(record.headers)
    shown["body"] = record.body.decode("utf-8", "replace")
    return shown
