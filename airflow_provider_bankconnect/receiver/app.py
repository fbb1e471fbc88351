"""The webhook receiver's app: takes BankConnect's webhooks, and serves Airflow's components.

Airflow does not authenticate the requests to a plugin's app: each route here does. Responses and log lines contain no
token, and of a body at most the five fields of a webhook.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow.providers.common.compat.sdk import Stats
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from airflow_provider_bankconnect.metrics import tag_value
from airflow_provider_bankconnect.receiver import address, events
from airflow_provider_bankconnect.receiver.events import Outcome, Sent, WebhookEvent, Writer
from airflow_provider_bankconnect.receiver.journal import Journal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger(__name__)
_MAX_WEBHOOK_BYTES: Final = 64 * 1024
# Airflow's components send many events in one request.
_MAX_INTERNAL_BYTES: Final = 4 * 1024 * 1024
MAX_EVENTS: Final = 500
# Slow senders must not keep connections and memory: BankConnect sends a body at once.
_BODY_SECONDS: Final = 10.0
_CHECK_SECONDS: Final = 5.0


class _RefusedError(Exception):
    """A request is refused: ``reason`` is the tag of the metric, the message is the response's ``detail``."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason = status, reason


def make_app() -> Starlette:
    """Return the app that is mounted at the plugin's prefix."""
    app = Starlette(
        routes=[
            Route("/webhook/{conn_id:path}/{token}", _webhook, methods=["POST"]),
            Route("/events", _recent_events, methods=["GET"]),
            Route("/events/{conn_id:path}", _internal_events, methods=["POST"]),
        ],
        exception_handlers={_RefusedError: _refuse, HTTPException: _answer_http_error},
    )
    # A redirect would not acknowledge a webhook, and its Location header would hold the token.
    app.router.redirect_slashes = False
    app.state.tokens, app.state.writer, app.state.journal = (), Writer(), Journal()
    try:
        app.state.tokens = address.tokens()
    except ValueError as error:
        _log.error("BankConnect's webhook receiver is off: %s", error)
    return app


async def _webhook(request: Request) -> Response:
    """Record one webhook. 200 means that it is committed to the database, now or earlier."""
    if _checks_address(request):
        return await _answer_check(request)
    conn_id = _check_conn_id(request)
    body = await _read(request, _MAX_WEBHOOK_BYTES)
    if "event_name" in body:
        # BankConnect's session flow, which may use the same endpoint.
        Stats.incr("bankconnect.webhooks_ignored", tags={"reason": "event_name"})
        _log.info("Ignored a webhook of another product for %r", conn_id)
        return JSONResponse({"status": "ignored"})
    event = _parse(body)
    if not event.names_customer:
        Stats.incr("bankconnect.webhooks_ignored", tags={"reason": "no_customer"})
        _log.warning("Ignored a webhook for %r that names neither a link nor an entity: %s", conn_id, event)
        return JSONResponse({"status": "ignored"})
    (outcome,) = await _write(request, [Sent(event)])
    if outcome is Outcome.NO_LISTENER:
        await _refuse_no_listener(conn_id)
    if outcome is Outcome.FAILED:
        raise _RefusedError(503, "database", "The database could not record the event")
    Stats.incr(f"bankconnect.webhooks_{outcome.value}", tags={"conn_id": tag_value(conn_id)})
    _log.info("%s webhook event of %r: %s", outcome.value.capitalize(), conn_id, event)
    return JSONResponse({"status": outcome.value})


async def _answer_check(request: Request) -> Response:
    """Tell whether a webhook could be recorded now: in this process, with its event loop, queue, threads and database.

    Nothing is cached, so that a process that is held up answers late, as it would a webhook.
    """
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await asyncio.to_thread(events.ping)
        is_ready = not request.app.state.writer.is_full()
    except Exception as error:  # noqa: BLE001 - the database may raise anything
        _log.warning("A check of the webhook receiver: no answer from the database (%s)", type(error).__name__)
        is_ready = False
    return JSONResponse(address.READY) if is_ready else JSONResponse({"status": "not ready"}, 503)


async def _recent_events(request: Request) -> Response:
    """Return recent events to a triggerer: the number of each, and the digests of its link and entity."""
    token = _check_internal_token(request)
    request.app.state.writer.measuring.begin()
    since, after = _parse_time(request, "since"), _parse_time(request, "after")
    if after is not None:
        await request.app.state.writer.wait_for_event(after)
    now, found = await asyncio.to_thread(events.recent, since)
    feed = []
    for number, conn_id, event in found:
        keys = {event.key, *([address.partition_key(None, event.entity_id)] if event.entity_id.strip() else [])}
        feed.append([number, *(address.customer_digest(token, conn_id, key) for key in keys)])
    return JSONResponse({"now": now.isoformat(), "events": feed})


def _parse_time(request: Request, name: str) -> datetime | None:
    if name not in request.query_params:
        return None
    try:
        time = datetime.fromisoformat(request.query_params[name])
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _RefusedError(400, name, f"{name} must be ISO 8601") from None


async def _internal_events(request: Request) -> Response:
    """Record events that a task read from BankConnect's payload history; or count those that were missed.

    Or keep that a task has registered a webhook endpoint. An unknown connection is a 400, because a 404 is the answer
    of a server without the webhook receiver.
    """
    _check_internal_token(request)
    conn_id = _check_conn_id(request, status=400)
    body = await _read(request, _MAX_INTERNAL_BYTES)
    rows, how = body.get("events"), body.get("how")
    if how == "registered":
        return await _keep_registered(request, conn_id, body.get("here"))
    if not isinstance(rows, list) or len(rows) > MAX_EVENTS:
        raise _RefusedError(400, "fields", f"events must be a list of at most {MAX_EVENTS}")
    sent = [_parse_row(row, "again" if how == "again" else "record") for row in rows]
    if how == "check":
        missed = await asyncio.to_thread(events.missing, conn_id, sent)
        for event in missed:
            Stats.incr("bankconnect.webhooks_missed", tags={"conn_id": tag_value(conn_id)})
            _log.warning("Missed webhook of %r, found by a sensor: %s", conn_id, event)
        if missed:
            request.app.state.journal.missed(conn_id, len(missed))
        return JSONResponse({"missed": len(missed)})
    if how not in ("record", "again"):
        raise _RefusedError(400, "fields", "how must be record, again, check or registered")
    outcomes = await _write(request, sent) if sent else []
    if Outcome.NO_LISTENER in outcomes:
        await _refuse_no_listener(conn_id, status=400)
    for event, outcome in zip((one.event for one in sent), outcomes, strict=True):
        if outcome is Outcome.RECORDED:
            Stats.incr("bankconnect.webhooks_caught_up", tags={"conn_id": tag_value(conn_id)})
            _log.info("Caught up on webhook event of %r: %s", conn_id, event)
    return JSONResponse({outcome.value: outcomes.count(outcome) for outcome in Outcome})


async def _keep_registered(request: Request, conn_id: str, here: object) -> Response:
    if not isinstance(here, bool):
        raise _RefusedError(400, "fields", "here must be true or false")
    journal: Journal = request.app.state.journal
    try:
        await journal.registered(conn_id, here=here)
    except Exception:  # noqa: BLE001 - the database may raise anything
        _log.exception("Could not write to the audit log that a webhook endpoint of %r was registered", conn_id)
        raise _RefusedError(503, "database", "The database could not record it") from None
    return JSONResponse({"registered": 1})


async def _write(request: Request, sent: list[Sent]) -> list[Outcome]:
    writer: Writer = request.app.state.writer
    if writer.is_full(len(sent)):
        raise _RefusedError(503, "full", "Too many events are waiting for the database")
    return await writer.write(request.path_params["conn_id"], sent)


async def _refuse_no_listener(conn_id: str, status: int = 404) -> None:
    if await asyncio.to_thread(events.is_known_connection, conn_id):
        raise _RefusedError(503, "no_dag", f"No DAG was ever scheduled by the webhook asset of connection {conn_id!r}")
    _log.warning("Connection %r does not exist, and no DAG was ever scheduled by its webhook asset", conn_id)
    raise _unknown_connection(status)


def _checks_address(request: Request) -> bool:
    """Return whether this is no webhook, but an operator's check of the address; refuse a wrong token."""
    tokens: tuple[str, ...] = request.app.state.tokens
    conn_id, token = request.path_params["conn_id"], request.path_params["token"]
    # All tokens are compared, so that the response time does not depend on which one matches.
    given = token.encode("utf-8", "surrogatepass")
    if sum(hmac.compare_digest(given, valid.encode()) for valid in tokens):
        return False
    if sum(hmac.compare_digest(given, address.check_token(valid, conn_id).encode()) for valid in tokens):
        return True
    # The same response as Airflow's for an unknown path.
    raise _RefusedError(404, "token", "Not Found")


def _check_internal_token(request: Request) -> str:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogatepass")
    tokens: tuple[str, ...] = request.app.state.tokens
    matching = [valid for valid in tokens if hmac.compare_digest(given, address.internal_token(valid).encode())]
    if not matching:
        raise _RefusedError(401, "internal_token", "Unauthorized")
    return matching[0]


def _check_conn_id(request: Request, status: int = 404) -> str:
    conn_id: str = request.path_params["conn_id"]
    try:
        address.asset_uri(conn_id)
    except ValueError:
        raise _unknown_connection(status) from None
    return conn_id


def _unknown_connection(status: int) -> _RefusedError:
    if status == 404:  # noqa: PLR2004
        # The same response as to a wrong token.
        return _RefusedError(404, "connection", "Not Found")
    return _RefusedError(status, "connection", "There is no such connection")


async def _read(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a body, whatever its content type, reading no more than ``max_bytes`` of it."""
    too_long = _RefusedError(413, "too_long", f"The body must have at most {max_bytes} bytes")
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
        raise _RefusedError(400, "cut_off", "The body was cut off") from None
    except TimeoutError:
        raise _RefusedError(408, "slow", f"The body took longer than {_BODY_SECONDS:.0f} s") from None
    try:
        value = from_json(bytes(body), allow_inf_nan=False)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise _RefusedError(415, "content_type", "The body must be a JSON object, with Content-Type application/json")
    raise _RefusedError(400, "json", "The body must be a JSON object, in UTF-8")


def _parse_row(row: object, how: Literal["record", "again"]) -> Sent:
    """Return a row of the payload history as an event to record, with its time if it has a valid one."""
    event = _parse(row)
    try:
        time = datetime.fromisoformat(str(row.get("date_time"))) if isinstance(row, dict) else None
    except ValueError:
        time = None
    return Sent(event, how, time if time and time.tzinfo else None)


def _parse(body: object) -> WebhookEvent:
    try:
        return WebhookEvent.model_validate(body)
    except ValidationError as error:
        problems = [f"{(*problem['loc'], 'body')[0]}: {problem['msg']}" for problem in error.errors()]
        raise _RefusedError(400, "fields", "; ".join(problems)) from None


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)  # noqa: S101 - Starlette calls this handler for no other type
    Stats.incr("bankconnect.webhooks_refused", tags={"reason": error.reason})
    _log.warning("Refused a request with HTTP %d (%s): %s", error.status, error.reason, error)
    request.app.state.journal.refused(request.path_params.get("conn_id", ""), error.reason)
    headers = {"Connection": "close"} if error.status in {408, 413} else {}
    if error.status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = address.CHALLENGE
    return JSONResponse({"detail": str(error)}, status_code=error.status, headers=headers)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    """Answer an unknown path or method in JSON, as Airflow does."""
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls this handler for no other type
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)
