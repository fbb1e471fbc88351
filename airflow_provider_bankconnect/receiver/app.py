"""The webhook receiver's app: records BankConnect's webhooks, and serves Airflow's components.

Airflow does not authenticate the requests to a plugin's app: each route here does. Responses and log lines contain no
token, and of a body at most the five fields of a webhook.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from airflow.providers.common.compat.sdk import Stats
from starlette.responses import JSONResponse
from starlette.routing import Route

from airflow_provider_bankconnect.metrics import tag_value
from airflow_provider_bankconnect.receiver import address, events
from airflow_provider_bankconnect.receiver.events import Outcome, Sent, Writer
from airflow_provider_bankconnect.receiver.intake import (
    Intake,
    RefusedError,
    check_conn_id,
    parse,
    read,
    unknown_connection,
)
from airflow_provider_bankconnect.receiver.journal import Journal
from airflow_provider_bankconnect.receiver.names import MAX_EVENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_bankconnect.receiver.event import WebhookEvent

_log = logging.getLogger(__name__)
# Airflow's components send many events in one request.
_MAX_INTERNAL_BYTES: Final = 4 * 1024 * 1024
_CHECK_SECONDS: Final = 5.0
_MAX_RELAY_ID: Final = 64


def make_app() -> Starlette:
    """Return the app that is mounted at the plugin's prefix."""
    tokens: tuple[str, ...] = ()
    try:
        tokens = address.tokens()
    except ValueError as error:
        _log.error("BankConnect's webhook receiver is off: %s", error)
    receiver = _Receiver(tokens)
    app = receiver.app(
        [
            Route("/events", receiver.recent_events, methods=["GET"]),
            Route("/events/{conn_id:path}", receiver.internal_events, methods=["POST"]),
        ]
    )
    app.state.writer, app.state.journal = receiver.writer, receiver.journal
    return app


class _Receiver(Intake):
    """Records webhooks in Airflow's database. 200 means that one is committed, now or earlier."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        super().__init__(tokens)
        self.writer, self.journal = Writer(), Journal()

    async def keep(self, conn_id: str, event: WebhookEvent) -> str:
        (outcome,) = await self._write(conn_id, [Sent(event)])
        if outcome is Outcome.NO_LISTENER:
            await _refuse_no_listener(conn_id)
        if outcome is Outcome.FAILED:
            raise RefusedError(503, "database", "The database could not record the event")
        _report(conn_id, event, outcome)
        return str(outcome.value)

    async def is_ready(self) -> bool:
        # A process that is held up answers late, as it would a webhook.
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await asyncio.to_thread(events.ping)
        except Exception as error:  # noqa: BLE001 - the database may raise anything
            _log.warning("A check of the webhook receiver: no answer from the database (%s)", type(error).__name__)
            return False
        return not self.writer.is_full()

    def ignored(self, reason: str) -> None:
        Stats.incr("bankconnect.webhooks_ignored", tags={"reason": reason})

    def refused(self, conn_id: str, reason: str) -> None:
        Stats.incr("bankconnect.webhooks_refused", tags={"reason": reason})
        self.journal.refused(conn_id, reason)

    async def recent_events(self, request: Request) -> Response:
        """Return recent events to a triggerer: the number of each, and the digests of its link and entity."""
        token = self.check_internal_token(request)
        self.writer.measuring.begin()
        since, after = _parse_time(request, "since"), _parse_time(request, "after")
        if after is not None:
            await self.writer.wait_for_event(after)
        now, found = await asyncio.to_thread(events.recent, since)
        feed = []
        for number, conn_id, event in found:
            keys = {event.key, *([address.partition_key(None, event.entity_id)] if event.entity_id.strip() else [])}
            feed.append([number, *(address.customer_digest(token, conn_id, key) for key in keys)])
        return JSONResponse({"now": now.isoformat(), "events": feed})

    async def internal_events(self, request: Request) -> Response:
        """Record events that a task read from BankConnect's payload history; or count those that were missed.

        Or record webhooks that a relay has taken, or keep that a task has registered a webhook endpoint. An unknown
        connection is a 400, because a 404 is the answer of a server without the webhook receiver.
        """
        self.check_internal_token(request)
        conn_id = check_conn_id(request, status=400)
        body = await read(request, _MAX_INTERNAL_BYTES)
        rows, how = body.get("events"), body.get("how")
        if how == "registered":
            return await self._keep_registered(conn_id, body.get("here"))
        if not isinstance(rows, list) or len(rows) > MAX_EVENTS:
            raise RefusedError(400, "fields", f"events must be a list of at most {MAX_EVENTS}")
        if how == "webhook":
            return await self._record_relayed(conn_id, [_parse_relayed(row) for row in rows])
        sent = [_parse_row(row, "again" if how == "again" else "record") for row in rows]
        if how == "check":
            return await self._count_missed(conn_id, sent)
        if how not in ("record", "again"):
            raise RefusedError(400, "fields", "how must be record, again, check, webhook or registered")
        outcomes = await self._write(conn_id, sent) if sent else []
        if Outcome.NO_LISTENER in outcomes:
            await _refuse_no_listener(conn_id, status=409)
        for event, outcome in zip((one.event for one in sent), outcomes, strict=True):
            if outcome is Outcome.RECORDED:
                Stats.incr("bankconnect.webhooks_caught_up", tags={"conn_id": tag_value(conn_id)})
                _log.info("Caught up on webhook event of %r: %s", conn_id, event)
        return JSONResponse({outcome.value: outcomes.count(outcome) for outcome in Outcome})

    async def _record_relayed(self, conn_id: str, sent: list[Sent]) -> Response:
        """Record webhooks, and return what became of each. The relay sends those again that failed."""
        outcomes = await self._write(conn_id, sent) if sent else []
        if Outcome.NO_LISTENER in outcomes:
            # It may be created later, and the relay keeps the webhooks until then.
            await _refuse_no_listener(conn_id, status=503)
        for one, outcome in zip(sent, outcomes, strict=True):
            if outcome is not Outcome.FAILED:
                _report(conn_id, one.event, outcome)
        return JSONResponse({"outcomes": [outcome.value for outcome in outcomes]})

    async def _count_missed(self, conn_id: str, sent: list[Sent]) -> Response:
        missed = await asyncio.to_thread(events.missing, conn_id, sent)
        for event in missed:
            Stats.incr("bankconnect.webhooks_missed", tags={"conn_id": tag_value(conn_id)})
            _log.warning("Missed webhook of %r, found by a sensor: %s", conn_id, event)
        if missed:
            self.journal.missed(conn_id, len(missed))
        return JSONResponse({"missed": len(missed)})

    async def _keep_registered(self, conn_id: str, here: object) -> Response:
        if not isinstance(here, bool):
            raise RefusedError(400, "fields", "here must be true or false")
        try:
            await self.journal.registered(conn_id, here=here)
        except Exception:  # noqa: BLE001 - the database may raise anything
            _log.exception("Could not write to the audit log that a webhook endpoint of %r was registered", conn_id)
            raise RefusedError(503, "database", "The database could not record it") from None
        return JSONResponse({"registered": 1})

    async def _write(self, conn_id: str, sent: Sequence[Sent]) -> list[Outcome]:
        if self.writer.is_full(len(sent)):
            raise RefusedError(503, "full", "Too many events are waiting for the database")
        return await self.writer.write(conn_id, sent)


def _report(conn_id: str, event: WebhookEvent, outcome: Outcome) -> None:
    Stats.incr(f"bankconnect.webhooks_{outcome.value}", tags={"conn_id": tag_value(conn_id)})
    _log.info("%s webhook event of %r: %s", outcome.value.capitalize(), conn_id, event)


async def _refuse_no_listener(conn_id: str, status: int = 404) -> None:
    if await asyncio.to_thread(events.is_known_connection, conn_id):
        raise RefusedError(503, "no_dag", f"No DAG was ever scheduled by the webhook asset of connection {conn_id!r}")
    _log.warning("Connection %r does not exist, and no DAG was ever scheduled by its webhook asset", conn_id)
    raise unknown_connection(status)


def _parse_time(request: Request, name: str) -> datetime | None:
    if name not in request.query_params:
        return None
    try:
        time = datetime.fromisoformat(request.query_params[name])
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise RefusedError(400, name, f"{name} must be ISO 8601") from None


def _parse_row(row: object, how: Literal["record", "again"]) -> Sent:
    """Return a row of the payload history as an event to record, with its time if it has a valid one."""
    event = parse(row)
    try:
        time = datetime.fromisoformat(str(row.get("date_time"))) if isinstance(row, dict) else None
    except ValueError:
        time = None
    return Sent(event, how, time if time and time.tzinfo else None)


def _parse_relayed(row: object) -> Sent:
    """Return a webhook that a relay has taken as an event to record."""
    event = parse(row)
    relay_id = row.get("relay_id") if isinstance(row, dict) else None
    if not isinstance(relay_id, str) or not relay_id.isalnum() or len(relay_id) > _MAX_RELAY_ID:
        raise RefusedError(400, "fields", "relay_id must be letters and digits")
    return Sent(event, relay_id=relay_id)
