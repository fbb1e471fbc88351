"""The receiver: takes BankConnect's webhooks, and answers Airflow's own parts. Loaded with the first request.

Airflow puts no authentication before a plugin's routes: each route here has its own. No answer and no log line has more
of a body than its five fields, and none has a token.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.common.compat.sdk import Stats
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from airflow_provider_bankconnect.receiver import address, rings
from airflow_provider_bankconnect.receiver.rings import Outcome, Ring, Writer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger(__name__)
_MOST_BYTES: Final = 64 * 1024
# Of Airflow's own parts, which send many rings at once.
_MOST_OWN_BYTES: Final = 4 * 1024 * 1024
MOST_OWN_RINGS: Final = 500
# A body of 64 KiB that takes longer is sent by nobody who means well.
_BODY_SECONDS: Final = 10.0


class _RefusedError(Exception):
    """What was sent is not taken; says why, in a word for the metric and in words for who sent it."""

    def __init__(self, status: int, reason: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.reason = reason


def make_app() -> Starlette:
    """Make the app, below the plugin's prefix."""
    app = Starlette(
        routes=[
            Route("/webhook/{conn_id:path}/{token}", _webhook, methods=["POST"]),
            Route("/rings", _recent_rings, methods=["GET"]),
            Route("/rings/{conn_id:path}", _own_rings, methods=["POST"]),
        ],
        exception_handlers={_RefusedError: _refuse, HTTPException: _answer_as_airflow_does},
    )
    # A redirect would be no answer to a webhook, and has the token in it.
    app.router.redirect_slashes = False
    app.state.tokens, app.state.writer = _read_tokens(), Writer()
    return app


async def _webhook(request: Request) -> Response:
    """Take one webhook. 200 means that it is in the database, or was before."""
    conn_id = request.path_params["conn_id"]
    _check_token(request.app.state.tokens, request.path_params["token"])
    _check_conn_id(conn_id)
    body = await _read(request, _MOST_BYTES)
    if "event_name" in body:
        # The vendor's other product, which may share the endpoint.
        Stats.incr("bankconnect.rings_ignored", tags={"reason": "event_name"})
        _log.info("A webhook for %r is of another product, and ignored", conn_id)
        return JSONResponse({"status": "ignored"})
    ring = _parse(body)
    (outcome,) = await _write(request, [ring])
    if outcome is Outcome.NOBODY:
        await _refuse_nobody(conn_id)
    if outcome is Outcome.FAILED:
        raise _RefusedError(503, "database", "The database does not take it now")
    if outcome is Outcome.RUNG:
        Stats.incr("bankconnect.rings", tags={"conn_id": conn_id})
        _log.info("BankConnect rang at %r for %s", conn_id, ring)
    else:
        Stats.incr("bankconnect.rings_repeated", tags={"conn_id": conn_id})
        _log.info("BankConnect rang at %r once more for %s", conn_id, ring)
    return JSONResponse({"status": outcome.value})


async def _recent_rings(request: Request) -> Response:
    """Tell triggerers who has rung, in whispers: only who waits for a customer knows the name."""
    token = _check_knock(request)
    since, after = _moment(request, "since"), _moment(request, "after")
    if after is not None:
        writer: Writer = request.app.state.writer
        await writer.hold(after)
    now, found = await asyncio.to_thread(rings.recent, since)
    told = [
        [
            number,
            *(address.whisper(token, conn_id, key) for key in {ring.key, address.partition_key(None, ring.entity_id)}),
        ]
        for number, conn_id, ring in found
    ]
    return JSONResponse({"now": now.isoformat(), "rings": told})


def _moment(request: Request, name: str) -> datetime | None:
    if name not in request.query_params:
        return None
    try:
        moment = datetime.fromisoformat(request.query_params[name])
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _RefusedError(400, name, f"{name} must be ISO 8601") from None


async def _own_rings(request: Request) -> Response:
    """Ring for what Airflow's own parts found in the ledger; or only say, and count, what nobody has rung for."""
    _check_knock(request)
    conn_id = request.path_params["conn_id"]
    _check_conn_id(conn_id)
    body = await _read(request, _MOST_OWN_BYTES)
    sent = body.get("rings")
    how = body.get("how")
    if not isinstance(sent, list) or len(sent) > MOST_OWN_RINGS:
        raise _RefusedError(400, "fields", f"rings must be a list of at most {MOST_OWN_RINGS}")
    parsed = [_parse(ring) for ring in sent]
    if how == "check":
        unheard = await asyncio.to_thread(rings.missing, conn_id, parsed)
        for ring in unheard:
            Stats.incr("bankconnect.unannounced", tags={"conn_id": conn_id})
            _log.warning("A gate on %r found by asking what no webhook had announced: %s", conn_id, ring)
        return JSONResponse({"unheard": len(unheard)})
    if how not in ("ring", "again"):
        raise _RefusedError(400, "fields", "how must be ring, again or check")
    outcomes = await _write(request, parsed, again=how == "again") if parsed else []
    if Outcome.NOBODY in outcomes:
        await _refuse_nobody(conn_id)
    for ring, outcome in zip(parsed, outcomes, strict=True):
        if outcome is Outcome.RUNG:
            Stats.incr("bankconnect.rings_caught_up", tags={"conn_id": conn_id})
            _log.info("Caught up at %r: rang for %s", conn_id, ring)
    return JSONResponse({outcome.value: outcomes.count(outcome) for outcome in Outcome})


async def _write(request: Request, sent: list[Ring], *, again: bool = False) -> list[Outcome]:
    writer: Writer = request.app.state.writer
    if writer.is_full(len(sent)):
        raise _RefusedError(503, "full", "Too many are waiting for the database")
    return await writer.write(request.path_params["conn_id"], sent, again=again)


async def _refuse_nobody(conn_id: str) -> None:
    if await asyncio.to_thread(rings.is_known_connection, conn_id):
        raise _RefusedError(503, "no_dag", f"No DAG knows the asset of the connection {conn_id!r} yet")
    _log.warning("There is no connection %r, and no DAG listens to its asset", conn_id)
    raise _not_found("connection")


def _check_token(tokens: tuple[str, ...], token: str) -> None:
    # Each is compared, whichever is right: the time tells nothing.
    given = token.encode("utf-8", "surrogatepass")
    if not sum(hmac.compare_digest(given, good.encode()) for good in tokens):
        raise _not_found("token")


def _check_knock(request: Request) -> str:
    shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogatepass")
    fitting = [good for good in request.app.state.tokens if hmac.compare_digest(shown, address.knock(good).encode())]
    if not fitting:
        raise _not_found("knock")
    return str(fitting[0])


def _check_conn_id(conn_id: str) -> None:
    try:
        address.asset_uri(conn_id)
    except ValueError:
        raise _not_found("connection") from None


def _read_tokens() -> tuple[str, ...]:
    try:
        return address.tokens()
    except ValueError as error:
        _log.error("BankConnect's doorbell is off: %s", error)
        return ()


def _not_found(reason: str) -> _RefusedError:
    # What Airflow itself says of what it does not have.
    return _RefusedError(404, reason, "Not Found")


async def _read(request: Request, most: int) -> dict[str, Any]:
    """Read a body that is a JSON object, and no more of it than it may have."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _RefusedError(415, "content_type", "Content-Type must be application/json")
    too_long = _RefusedError(413, "too_long", f"The body must have at most {most} bytes")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_long
    except ClientDisconnect:
        raise _RefusedError(400, "cut_off", "The body was cut off") from None
    except TimeoutError:
        raise _RefusedError(408, "slow", f"The body took longer than {_BODY_SECONDS:.0f} s") from None
    try:
        value = from_json(bytes(body), allow_inf_nan=False)
    except ValueError:
        raise _RefusedError(400, "json", "The body must be JSON, in UTF-8") from None
    if not isinstance(value, dict):
        raise _RefusedError(400, "json", "The body must be a JSON object")
    return value


def _parse(body: object) -> Ring:
    try:
        return Ring.model_validate(body)
    except ValidationError as error:
        said = "; ".join(
            f"{problem['loc'][0] if problem['loc'] else 'body'}: {problem['msg']}" for problem in error.errors()
        )
        raise _RefusedError(400, "fields", said) from None


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)  # noqa: S101 - Starlette calls it for no other
    Stats.incr("bankconnect.rings_refused", tags={"reason": error.reason})
    _log.warning("A webhook was refused with %d (%s): %s", error.status, error.reason, error)
    headers = {"Connection": "close"} if error.status in {408, 413} else {}
    return JSONResponse({"detail": str(error)}, status_code=error.status, headers=headers)


async def _answer_as_airflow_does(_: Request, error: Exception) -> Response:
    """Answer what no route takes."""
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls it for no other
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)
