"""How a webhook is taken, by the webhook receiver and by the relay: its address, its body, and the answer.

Nothing here needs Airflow. Responses and log lines contain no token, and of a body at most a webhook's five fields.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.event import WebhookEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger(__name__)
_MAX_WEBHOOK_BYTES: Final = 64 * 1024
# Slow senders must not keep connections and memory: BankConnect sends a body at once.
_BODY_SECONDS: Final = 10.0


class RefusedError(Exception):
    """A request is refused: ``reason`` is the tag of the metric, the message is the response's ``detail``."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason = status, reason


class Intake(ABC):
    """Takes webhooks, and keeps each before it answers 200.

    :param tokens: the valid webhook tokens.
    """

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self.tokens = tokens

    @abstractmethod
    async def keep(self, conn_id: str, event: WebhookEvent) -> str:
        """Keep an event where a crash cannot lose it, and return the ``status`` of the answer.

        :raises RefusedError: it is not kept.
        """

    @abstractmethod
    async def is_ready(self) -> bool:
        """Return whether an event could be kept now, without anything cached."""

    @abstractmethod
    def ignored(self, reason: str) -> None:
        """Count a webhook that is answered 200 and not kept."""

    @abstractmethod
    def refused(self, conn_id: str, reason: str) -> None:
        """Count a refused request. Its connection may be made up."""

    async def webhook(self, request: Request) -> Response:
        """Answer the request of BankConnect, or a check of the address."""
        if self._checks_address(request):
            return JSONResponse(names.READY) if await self.is_ready() else JSONResponse({"status": "not ready"}, 503)
        conn_id = check_conn_id(request)
        body = await read(request, _MAX_WEBHOOK_BYTES)
        if "event_name" in body:
            # BankConnect's session flow, which may use the same endpoint.
            self.ignored("event_name")
            _log.info("Ignored a webhook of another product for %r", conn_id)
            return JSONResponse({"status": "ignored"})
        event = parse(body)
        if not event.names_customer:
            self.ignored("no_customer")
            _log.warning("Ignored a webhook for %r that names neither a link nor an entity: %s", conn_id, event)
            return JSONResponse({"status": "ignored"})
        return JSONResponse({"status": await self.keep(conn_id, event)})

    def app(self, routes: Sequence[Route]) -> Starlette:
        """Return an app with the route of webhooks and these routes."""
        app = Starlette(
            routes=[Route("/webhook/{conn_id:path}/{token}", self.webhook, methods=["POST"]), *routes],
            exception_handlers={RefusedError: self._refuse, HTTPException: answer_http_error},
        )
        # A redirect would not acknowledge a webhook, and its Location header would hold the token.
        app.router.redirect_slashes = False
        return app

    def check_internal_token(self, request: Request) -> str:
        """Return the webhook token from which the request's internal token is derived.

        :raises RefusedError: it is derived from none.
        """
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogatepass")
        matching = [valid for valid in self.tokens if hmac.compare_digest(given, names.internal_token(valid).encode())]
        if not matching:
            raise RefusedError(401, "internal_token", "Unauthorized")
        return matching[0]

    def _checks_address(self, request: Request) -> bool:
        """Return whether a request checks the address; refuse it unless it does so or has a webhook token."""
        conn_id: str = request.path_params["conn_id"]
        # All tokens are compared, so that the response time does not depend on which one matches.
        given = request.path_params["token"].encode("utf-8", "surrogatepass")
        if sum(hmac.compare_digest(given, valid.encode()) for valid in self.tokens):
            return False
        if sum(hmac.compare_digest(given, names.check_token(valid, conn_id).encode()) for valid in self.tokens):
            return True
        # The same response as Airflow's for an unknown path.
        raise RefusedError(404, "token", "Not Found")

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)  # noqa: S101 - Starlette calls this handler for no other type
        _log.warning("Refused a request with HTTP %d (%s): %s", error.status, error.reason, error)
        self.refused(request.path_params.get("conn_id", ""), error.reason)
        headers = {"Connection": "close"} if error.status in {408, 413} else {}
        if error.status == 401:  # noqa: PLR2004
            headers["WWW-Authenticate"] = names.CHALLENGE
        return JSONResponse({"detail": str(error)}, status_code=error.status, headers=headers)


def check_conn_id(request: Request, status: int = 404) -> str:
    """Return the connection of a request.

    :param status: of the answer if it can be none.
    """
    conn_id: str = request.path_params["conn_id"]
    try:
        names.asset_uri(conn_id)
    except ValueError:
        raise unknown_connection(status) from None
    return conn_id


def unknown_connection(status: int) -> RefusedError:
    """Return the refusal of a connection that does not exist."""
    # The same response as to a wrong token.
    detail = "Not Found" if status == 404 else "There is no such connection"  # noqa: PLR2004
    return RefusedError(status, "connection", detail)


async def read(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a body, whatever its content type, reading no more than ``max_bytes`` of it."""
    too_long = RefusedError(413, "too_long", f"The body must have at most {max_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_long
    except ClientDisconnect:
        raise RefusedError(400, "cut_off", "The body was cut off") from None
    except TimeoutError:
        raise RefusedError(408, "slow", f"The body took longer than {_BODY_SECONDS:.0f} s") from None
    try:
        value = from_json(bytes(body), allow_inf_nan=False)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RefusedError(415, "content_type", "The body must be a JSON object, with Content-Type application/json")
    raise RefusedError(400, "json", "The body must be a JSON object, in UTF-8")


def parse(body: object) -> WebhookEvent:
    """Return the event of a webhook's body.

    :raises RefusedError: a field is missing or invalid; names it, not its value.
    """
    try:
        return WebhookEvent.model_validate(body)
    except ValidationError as error:
        problems = [f"{(*problem['loc'], 'body')[0]}: {problem['msg']}" for problem in error.errors()]
        raise RefusedError(400, "fields", "; ".join(problems)) from None


async def answer_http_error(_: Request, error: Exception) -> Response:
    """Answer an unknown path or method in JSON, as Airflow does."""
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls this handler for no other type
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)
