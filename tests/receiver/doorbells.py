"""The doorbell as Airflow's API server has it, the database behind it, and those who ring it, byte for byte."""

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
from airflow_provider_bankconnect.receiver.plugin import Doorbell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Self

TOKEN = "current-token-of-the-tests"
PREVIOUS = "previous-token-of-the-tests"
CONN_ID = "bankconnect_default"
# A connection may have such a name.
ODD = "odd/account:#1.(b)"
# To be had by DAGs below, but no DAG knows it.
LONELY = "lonely"
NEEDS = pytest.mark.skipif(not address.is_supported(), reason="needs Airflow 3.2")
DAGS = f"""
from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset

for dag_id, conn_id in (("first", {CONN_ID!r}), ("odd", {ODD!r}), ("odd_too", {ODD!r})):
    with DAG(dag_id=dag_id, schedule=PartitionedAssetTimetable(assets=webhook_asset(conn_id))):
        EmptyOperator(task_id="work")
"""
# What takes longer hangs.
_LONGEST = 120.0
JSON = ("content-type", "application/json")


def statement(**changes: Any) -> dict[str, Any]:
    """What BankConnect sends of a completed statement."""
    usual = {"entity_id": "entity-1", "statement_id": "statement-1", "link_id": "loan-1"}
    return usual | {"progress": "completed", "reason": ""} | changes


def path_to(conn_id: str = CONN_ID, token: str = TOKEN) -> str:
    return f"{address.PREFIX}/webhook/{quote(conn_id, safe='')}/{token}"


class Database:
    """Airflow's database, seen through connections that Airflow knows nothing of."""

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
    def held(self, sql: str, *, kept: bool = False) -> Iterator[None]:
        """Change something, and keep all locks until the end; then take it back, unless it is to be kept."""
        with self._engine.connect() as connection:
            connection.execute(text(sql))
            yield
            if kept:
                connection.commit()

    @property
    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        """All rings: the asset's URI, the partition key and the extra, in the order of their ids."""
        sql = "select uri, partition_key, asset_event.extra from asset_event join asset on asset.id = asset_id"
        rows = self.query(f"{sql} order by asset_event.id")
        return [(uri, key, json.loads(extra) if isinstance(extra, str) else extra) for uri, key, extra in rows]

    @property
    def rung(self) -> list[str]:
        """Statements of all rings."""
        return [extra["statement_id"] for _, _, extra in self.events]

    @property
    def runs(self) -> list[tuple[str, str]]:
        """What Airflow's scheduler is to start: the DAG and the partition."""
        return self.query("select target_dag_id, partition_key from asset_partition_dag_run order by id")


@contextmanager
def airflow_uses(url: str) -> Iterator[None]:
    """Have Airflow, in this process, use a database."""
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
    """Mount a fresh doorbell as Airflow does, with what Airflow has around all its apps."""
    from airflow.api_fastapi.auth.middlewares.refresh_token import JWTRefreshMiddleware  # noqa: PLC0415 - see above
    from airflow.api_fastapi.common.http_access_log import HttpAccessLogMiddleware  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415
    from starlette.middleware.gzip import GZipMiddleware  # noqa: PLC0415

    app = FastAPI()
    app.mount(address.PREFIX, Doorbell())
    app.add_middleware(JWTRefreshMiddleware)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(HttpAccessLogMiddleware)
    return app


class Answer(NamedTuple):
    """What came back, and how many pieces of the body had been read."""

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
    """Sends requests to an app as a server does that has read them from a socket."""

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
        """Send one, its body in pieces: bytes, seconds to sleep, or CUT_OFF.

        :raises Exception: what the app lets out.
        """
        source, read, over = iter(pieces), 0, asyncio.Event()
        path, _, query = path.partition("?")
        # As uvicorn does.
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
        said: list[Any] = []
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
            # A client that has said all waits for the answer.
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)

        try:
            async with asyncio.timeout(_LONGEST):
                await self.app(scope, receive, send)
        finally:
            over.set()
        start, *rest = said
        assert start["type"] == "http.response.start"
        assert not rest[-1].get("more_body")
        answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], answered, b"".join(part["body"] for part in rest), read)

    async def post(self, body: Any, *, conn_id: str = CONN_ID, token: str = TOKEN) -> Answer:
        """Ring as BankConnect does."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [JSON, ("content-length", str(len(sent)))]
        return await self.send(path_to(conn_id, token), [sent], headers=headers)

    async def tell(self, how: str, rings: Any, *, conn_id: str = CONN_ID, token: str = TOKEN) -> Answer:
        """Ring as Airflow's own parts do."""
        knock = ("authorization", f"Bearer {address.knock(token)}")
        body = json.dumps({"how": how, "rings": rings}).encode()
        return await self.send(f"{address.PREFIX}/rings/{quote(conn_id, safe='')}", [body], headers=[JSON, knock])


class Front:
    """An app before the app: it notes what is asked, and can answer in its place."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.instead: tuple[int, dict[str, str], bytes] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.asked.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}".rstrip("?"))
        self.headers.append({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
        if self.instead is None:
            number = len(self.bodies)
            self.bodies.append(b"")

            async def noting() -> Any:
                message = await receive()
                self.bodies[number] += message.get("body", b"")
                return message

            return await self.app(scope, noting, send)
        status, headers, body = self.instead
        while (await receive()).get("more_body"):
            pass
        length = {"content-length": str(len(body))}
        encoded = [(name.encode(), value.encode()) for name, value in (headers | length).items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})
        return None


class Served:
    """A doorbell that serves HTTPS on loopback, in a thread; without a certificate it serves HTTP."""

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
        until = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        # An error that was raised has kept its connection. One that nobody ends takes TLS half a minute to end.
        gc.collect()
        until = time.monotonic() + 5
        while self.connections and time.monotonic() < until:
            time.sleep(0.01)
        self._server.should_exit = True
        self._thread.join(60)
        self.socket.close()
        assert not self._thread.is_alive()


async def until(condition: Callable[[], Any], *, seconds: float = 30.0) -> None:
    """Wait for what has to come; only its own time is lost where it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads, too
            await asyncio.sleep(0.01)
