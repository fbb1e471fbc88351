"""The webhook receiver as Airflow's API server mounts it, its database, and a client that controls each byte."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.plugin import WebhookReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Self

TOKEN = "current-token-of-the-tests"
PREVIOUS = "previous-token-of-the-tests"
CONN_ID = "bankconnect_default"
# A valid connection id that must be escaped in a URL.
ODD = "odd/account:#1.(b)"
# A connection whose asset schedules no DAG.
NO_DAG = "no_dag"
NEEDS_3_2 = pytest.mark.skipif(not address.is_supported(), reason="needs Airflow 3.2")
DAGS = f"""
from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset

for dag_id, conn_id in (("first", {CONN_ID!r}), ("odd", {ODD!r}), ("odd_too", {ODD!r})):
    with DAG(dag_id=dag_id, schedule=PartitionedAssetTimetable(assets=webhook_asset(conn_id))):
        EmptyOperator(task_id="work")
"""
# The counts of the receiver's answer to a task; those that are not 0 are added.
NOTHING = {"recorded": 0, "duplicate": 0, "no_listener": 0, "failed": 0}
# Only ends a hang.
_HANG_SECONDS = 300.0
JSON = ("content-type", "application/json")


def statement(**changes: Any) -> dict[str, Any]:
    """Return the webhook of a completed statement."""
    usual = {"entity_id": "entity-1", "statement_id": "statement-1", "link_id": "loan-1"}
    return usual | {"progress": "completed", "reason": ""} | changes


def path_to(conn_id: str = CONN_ID, token: str = TOKEN) -> str:
    return f"{address.PREFIX}/webhook/{quote(conn_id, safe='')}/{token}"


class Database:
    """Airflow's database, through connections that are not Airflow's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url, poolclass=NullPool)

    @property
    def name(self) -> str:
        return self._engine.dialect.name

    def query(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), values)]

    def change(self, sql: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(sql), values)

    @contextmanager
    def locked(self, sql: str, *, commit: bool = False) -> Iterator[None]:
        """Execute a statement and hold its locks, then roll back or commit."""
        with self._engine.connect() as connection:
            connection.execute(text(sql))
            yield
            if commit:
                connection.commit()

    @property
    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The recorded events as (URI of the asset, partition key, extra), in the order of their ids."""
        sql = "select uri, partition_key, asset_event.extra from asset_event join asset on asset.id = asset_id"
        rows = self.query(f"{sql} order by asset_event.id")
        return [(uri, key, json.loads(extra) if isinstance(extra, str) else extra) for uri, key, extra in rows]

    @property
    def recorded(self) -> list[str]:
        """The statement ids of the recorded events."""
        return [extra["statement_id"] for _, _, extra in self.events]

    @property
    def runs(self) -> list[tuple[str, str]]:
        """The runs that Airflow's scheduler is to start, as (dag_id, partition key)."""
        return self.query("select target_dag_id, partition_key from asset_partition_dag_run order by id")


@contextmanager
def airflow_uses(url: str) -> Iterator[None]:
    """Configure Airflow, in this process, to use a database."""
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    def connect() -> None:
        settings.dispose_orm()
        settings.configure_vars()
        settings.configure_orm()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url)
        connect()
        try:
            yield
        finally:
            settings.dispose_orm()
    connect()


def api_server() -> Any:
    """Return a new webhook receiver, mounted as in Airflow and behind Airflow's middlewares."""
    from airflow.api_fastapi.auth.middlewares.refresh_token import JWTRefreshMiddleware  # noqa: PLC0415 - see above
    from airflow.api_fastapi.common.http_access_log import HttpAccessLogMiddleware  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415
    from starlette.middleware.gzip import GZipMiddleware  # noqa: PLC0415

    # Not with the first request: the import takes seconds, and clients have timeouts.
    import airflow_provider_bankconnect.receiver.app  # noqa: F401, PLC0415

    app = FastAPI()
    app.mount(address.PREFIX, WebhookReceiver())
    app.add_middleware(JWTRefreshMiddleware)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(HttpAccessLogMiddleware)
    return app


class Answer(NamedTuple):
    """A response, and how many pieces of the request's body the app had read."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return self.json()["detail"]


CUT_OFF = object()


@dataclass
class Caller:
    """Calls an ASGI app as a server does."""

    app: Any

    async def send(
        self,
        path: str,
        pieces: Iterable[Any] = (),
        *,
        method: str = "POST",
        headers: Iterable[tuple[str, str]] = (),
        root_path: str = "",
    ) -> Answer:
        """Send a request, its body in pieces: bytes, seconds to sleep, or CUT_OFF for a disconnect."""
        source, read, answered = iter(pieces), 0, asyncio.Event()
        path, _, query = path.partition("?")
        # As uvicorn sets it.
        raw = path.encode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": unquote(path),
            "raw_path": raw,
            "query_string": query.encode("ascii"),
            "root_path": root_path,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 50000),
            "server": ("localhost", 8080),
        }
        messages: list[Any] = []
        ended = False

        async def receive() -> dict[str, Any]:
            nonlocal read, ended
            for piece in source:
                if piece is CUT_OFF:
                    return {"type": "http.disconnect"}
                if isinstance(piece, bytes):
                    read += 1
                    return {"type": "http.request", "body": piece, "more_body": True}
                await asyncio.sleep(piece)
            if not ended:
                ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            # The client keeps the connection until it has the response.
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        try:
            async with asyncio.timeout(_HANG_SECONDS):
                await self.app(scope, receive, send)
        finally:
            answered.set()
        start, *rest = messages
        assert start["type"] == "http.response.start"
        assert not rest[-1].get("more_body")
        decoded = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], decoded, b"".join(part["body"] for part in rest), read)

    async def post(self, body: Any, *, conn_id: str = CONN_ID, token: str = TOKEN) -> Answer:
        """Send a webhook as BankConnect does."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [JSON, ("content-length", str(len(sent)))]
        return await self.send(path_to(conn_id, token), [sent], headers=headers)

    async def post_events(self, how: str, events: Any, *, conn_id: str = CONN_ID, token: str = TOKEN) -> Answer:
        """Send events as a task does."""
        internal_token = ("authorization", f"Bearer {address.internal_token(token)}")
        body = json.dumps({"how": how, "events": events}).encode()
        return await self.send(
            f"{address.PREFIX}/events/{quote(conn_id, safe='')}", [body], headers=[JSON, internal_token]
        )


class Front:
    """Keeps the requests to an app, and can answer in its place."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.instead: tuple[int, dict[str, str], bytes] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.requests.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}".rstrip("?"))
        self.headers.append({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
        if self.instead is None:
            number = len(self.bodies)
            self.bodies.append(b"")

            async def keep_body() -> Any:
                message = await receive()
                self.bodies[number] += message.get("body", b"")
                return message

            return await self.app(scope, keep_body, send)
        status, headers, body = self.instead
        while (await receive()).get("more_body"):
            pass
        length = {"content-length": str(len(body))}
        encoded = [(name.encode(), value.encode()) for name, value in (headers | length).items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})
        return None


class Served:
    """A webhook receiver that serves HTTPS on loopback, in a thread; HTTP if it has no certificate."""

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        import uvicorn  # noqa: PLC0415 - a test that is skipped needs none

        self.front = Front(api_server())
        self.socket = socket.create_server(("127.0.0.1", 0))
        scheme, port = "https" if certificate else "http", self.socket.getsockname()[1]
        self.url = f"{scheme}://localhost:{port}"
        config = uvicorn.Config(
            self.front, ssl_certfile=certificate, ssl_keyfile=key, log_config=None, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],), daemon=True)

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def __enter__(self) -> Self:
        self._thread.start()
        end = time.monotonic() + _HANG_SECONDS
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        # The traceback of a client's error can keep its connection open. Closing that from here takes TLS 30 seconds.
        gc.collect()
        end = time.monotonic() + 5
        while self.connections and time.monotonic() < end:
            time.sleep(0.01)
        self._server.should_exit = True
        self._thread.join(_HANG_SECONDS)
        self.socket.close()
        assert not self._thread.is_alive()


async def until(condition: Callable[[], Any], *, seconds: float = _HANG_SECONDS) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other threads change it, too
            await asyncio.sleep(0.01)
