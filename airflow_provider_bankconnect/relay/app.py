"""The relay's app: takes webhooks as the webhook receiver does, and serves the task that fetches them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.intake import Intake, RefusedError, answer_http_error, read
from airflow_provider_bankconnect.relay.handing import Receiver, Result
from airflow_provider_bankconnect.relay.push import Pusher, settle
from airflow_provider_bankconnect.relay.queue import Queue, Settled, Webhook
from airflow_provider_bankconnect.relay.rest_api import RestApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_bankconnect.receiver.event import WebhookEvent
    from airflow_provider_bankconnect.relay.handing import Target
    from airflow_provider_bankconnect.relay.settings import Settings

_log = logging.getLogger(__name__)
_GROUP_SIZE: Final = 500
_GATHER_SECONDS: Final = 0.01
# With more that wait for the database, BankConnect would give up before the last one is kept.
_MOST_PENDING: Final = 5000
_READY_SECONDS: Final = 5.0
_MAX_BYTES: Final = 4 * 1024 * 1024
_LOOK_EVERY: Final = 1.0
# A task gives webhooks back that Airflow does not take now. It must not get them again at once.
_FREE_SECONDS: Final = 20.0
_AnyModel = TypeVar("_AnyModel", bound=BaseModel)
_Result = TypeVar("_Result")


class _Take(BaseModel):
    """What a task asks for: so many webhooks, for so many seconds, waiting so long for the first one."""

    model_config = ConfigDict(strict=True)

    most: Annotated[int, Field(ge=1, le=names.MAX_EVENTS)] = 100
    seconds: Annotated[int, Field(ge=10, le=600)] = 120
    wait: Annotated[int, Field(ge=0, le=30)] = 0


class _Outcome(BaseModel):
    model_config = ConfigDict(strict=True)

    number: int
    how: Literal["recorded", "duplicate", "failed", "refused", "free"]
    why: Annotated[str, Field(max_length=300)] = ""


class _Settle(BaseModel):
    model_config = ConfigDict(strict=True)

    claim: Annotated[str, Field(max_length=32)]
    outcomes: Annotated[list[_Outcome], Field(max_length=names.MAX_EVENTS)]


class Relay(Intake):
    """Keeps webhooks in the queue. 200 means that one is committed there.

    :param queue: all its calls run in one thread, so that they do not wait for each other's locks.
    """

    def __init__(self, settings: Settings, queue: Queue) -> None:
        super().__init__(settings.tokens)
        self.queue = queue
        self.pusher: Pusher | None = None
        self._settings = settings
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="queue")
        self._pending: deque[tuple[str, WebhookEvent, asyncio.Future[bool]]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def make_app(self) -> Starlette:
        """Return the app, which hands webhooks on while it runs."""
        routes = [
            Route("/queue", self.status, methods=["GET"]),
            Route("/queue/take", self.take, methods=["POST"]),
            Route("/queue/settle", self.settle, methods=["POST"]),
        ]
        app = Starlette(
            routes=[Route("/health", self.health, methods=["GET"]), Mount(names.PREFIX, app=self.app(routes))],
            exception_handlers={HTTPException: answer_http_error},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self.on_queue(self.queue.create)
        target = self._target()
        if target:
            self.pusher = Pusher(self.queue, self.on_queue, target)
        pushing = asyncio.create_task(self.pusher.run()) if self.pusher else None
        try:
            yield
        finally:
            if self.pusher and pushing:
                self.pusher.stop()
                await pushing
            await self.on_queue(self.queue.close)
            self._executor.shutdown()

    def _target(self) -> Target | None:
        settings = self._settings
        if settings.to == "operator":
            return None
        if settings.to == "rest_api":
            return RestApi(settings, self.queue, lambda call, *given: self._executor.submit(call, *given).result())
        return Receiver(settings.api_server_url, settings.tokens[0], settings.context())

    async def on_queue(self, call: Callable[..., _Result], *given: Any) -> _Result:  # noqa: ANN401 - arguments of the call
        """Run a call of the queue in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *given)

    # What every request to the route of webhooks needs

    async def keep(self, conn_id: str, event: WebhookEvent) -> str:
        """Keep a webhook: many that come together are one transaction."""
        if len(self._pending) >= _MOST_PENDING:
            raise RefusedError(503, "full", "Too many webhooks are waiting for the database")
        kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending.append((conn_id, event, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        try:
            is_kept = await kept
        except Exception as error:  # noqa: BLE001 - the database may raise anything
            # A full disk, for instance. The error's text has no values, but nobody needs more than its name here.
            raise RefusedError(503, "database", f"The queue could not keep it ({type(error).__name__})") from None
        if not is_kept:
            raise RefusedError(503, "full", "The queue is full")
        return "queued"

    async def is_ready(self) -> bool:
        """Return whether a webhook could be kept now."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                return await self.on_queue(self.queue.keep, ()) == 0 and await self.on_queue(self.queue.has_room)
        except Exception as error:  # noqa: BLE001 - the database may raise anything
            _log.warning("A check of the relay: no answer from the database (%s)", type(error).__name__)
            return False

    def ignored(self, reason: str) -> None:
        """Do nothing: the log has a line."""

    def refused(self, conn_id: str, reason: str) -> None:
        """Do nothing: the log has a line."""

    async def _write(self) -> None:
        while self._pending:
            # A transaction costs more than a webhook, and those of a burst come within milliseconds.
            await asyncio.sleep(_GATHER_SECONDS)
            group = [self._pending.popleft() for _ in range(min(len(self._pending), _GROUP_SIZE))]
            error: Exception | None = None
            kept = 0
            try:
                kept = await self.on_queue(self.queue.keep, [(conn_id, event) for conn_id, event, _ in group])
            except Exception as raised:  # noqa: BLE001 - each request of the group must be answered
                _log.error("The queue kept none of %d webhooks (%s)", len(group), type(raised).__name__)
                error = raised
            for number, (_, _, future) in enumerate(group):
                # It is done already if the client has disconnected.
                if not future.done():
                    future.set_exception(error) if error else future.set_result(number < kept)
            if kept:
                _log.info("Queued %d webhooks", kept)
                self._tell()

    def _tell(self) -> None:
        if self.pusher:
            self.pusher.wake()
        self._news.set()
        self._news = asyncio.Event()

    # What people and load balancers ask for

    async def health(self, _: Request) -> Response:
        """Return whether a webhook could be kept now."""
        is_ready = await self.is_ready()
        return JSONResponse(names.READY if is_ready else {"status": "not ready"}, 200 if is_ready else 503)

    async def status(self, request: Request) -> Response:
        """Return what is in the queue, without customers."""
        self.check_internal_token(request)
        return JSONResponse(asdict(await self.on_queue(self.queue.status)))

    # What BankConnectRelayOperator asks for

    async def take(self, request: Request) -> Response:
        """Return webhooks to a task, which has to settle them in time."""
        self.check_internal_token(request)
        asked = _parse(_Take, await read(request, _MAX_BYTES))
        end = asyncio.get_running_loop().time() + asked.wait
        while True:
            news = self._news
            claim, found = await self.on_queue(self.queue.take, asked.most, asked.seconds)
            left = end - asyncio.get_running_loop().time()
            if found or left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), min(left, _LOOK_EVERY))
        webhooks = [
            {"number": one.number, "conn_id": one.conn_id, "relay_id": one.relay_id, "fields": one.fields}
            for one in found
        ]
        return JSONResponse({"claim": claim, "webhooks": webhooks})

    async def settle(self, request: Request) -> Response:
        """Take what became of webhooks: they are deleted, sent again later, or set aside."""
        self.check_internal_token(request)
        given = _parse(_Settle, await read(request, _MAX_BYTES))
        tries = await self.on_queue(self.queue.tries, given.claim)
        settled = [_settled(one, tries.get(one.number, 0)) for one in given.outcomes]
        for one in settled:
            if one.how == "refused":
                _log.error("Webhook %d is set aside, because Airflow refuses it: %s", one.number, one.why)
        return JSONResponse({"settled": await self.on_queue(self.queue.settle, given.claim, settled)})


def _settled(one: _Outcome, tries: int) -> Settled:
    if one.how == "free":
        return Settled(one.number, "free", seconds=_FREE_SECONDS)
    why = "".join(character for character in one.why if character.isprintable())
    return settle(Webhook(one.number, "", "", {}, tries), Result(one.how, why))


def _parse(model: type[_AnyModel], body: dict[str, Any]) -> _AnyModel:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        wrong = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        raise RefusedError(400, "fields", f"invalid: {wrong}") from None
