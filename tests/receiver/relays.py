"""Relays in this process and in processes of their own, and what they hand webhooks on to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import requests
import uvicorn
from receivers import CONN_ID, TOKEN, Caller, path_to
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.event import WebhookEvent
from airflow_provider_bankconnect.relay.app import Relay
from airflow_provider_bankconnect.relay.queue import Queue
from airflow_provider_bankconnect.relay.settings import Settings

NOWHERE = Settings((TOKEN,), to="operator")


@asynccontextmanager
async def running(queue, settings=NOWHERE):
    """Yield a client of a relay in this process."""
    relay = Relay(settings, queue)
    app = relay.make_app()
    async with app.router.lifespan_context(app):
        caller = Caller(app)
        caller.relay = relay
        yield caller


@contextmanager
def served_app(app):
    """Serve an ASGI app on loopback, in a thread; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


class Process:
    """A relay in a process of its own."""

    def __init__(self, folder, **environment):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder / 'queue.db'}"
        self._log = folder / "relay.log"
        ours = {
            "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": TOKEN,
            "BANKCONNECT_RELAY_DATABASE": self.database,
            "BANKCONNECT_RELAY_TO": "operator",
        }
        self._environment = os.environ | ours | environment

    @property
    def output(self):
        return self._log.read_text(encoding="utf-8")

    @contextmanager
    def started(self):
        command = [sys.executable, "-m", "airflow_provider_bankconnect", "relay", "--port", str(self.port)]
        with (
            self._log.open("ab") as log,
            subprocess.Popen(command, env=self._environment, stdout=log, stderr=log) as process,
        ):
            try:
                end = time.monotonic() + 300
                while not self._is_up():
                    assert process.poll() is None, self.output
                    assert time.monotonic() < end
                    time.sleep(0.02)
                yield process
            finally:
                process.kill()

    def _is_up(self):
        try:
            return requests.get(f"{self.url}/health", timeout=10).ok
        except requests.RequestException:
            return False

    def post(self, body):
        """Return whether the answer to a webhook was 200."""
        try:
            return requests.post(self.url + path_to(), json=body, timeout=60).status_code == 200
        except requests.RequestException:
            return False


class RestApi:
    """Answers as the two routes of Airflow's REST API do, and keeps the asset events."""

    def __init__(self):
        self.events = []
        self.logins = 0
        # The next requests that create an event get these: a status; or "lost", which records it and answers 504.
        self.next = []
        self.app = Starlette(
            routes=[
                Route("/auth/token", self._login, methods=["POST"]),
                Route("/api/v2/assets", self._assets),
                Route("/api/v2/assets/events", self._list),
                Route("/api/v2/assets/events", self._create, methods=["POST"]),
            ]
        )

    async def _login(self, request):
        body = await request.json()
        self.logins += 1
        good = body == {"username": "relay", "password": "secret-4711"}
        return JSONResponse({"access_token": f"token-{self.logins}"}, 201) if good else JSONResponse({}, 401)

    def _is_allowed(self, request):
        return request.headers["authorization"] == f"Bearer token-{self.logins}"

    async def _assets(self, request):
        if not self._is_allowed(request):
            return JSONResponse({}, 401)
        uris = {7: names.asset_uri(CONN_ID) + "_too", 8: names.asset_uri(CONN_ID)}
        return JSONResponse({"assets": [{"id": number, "uri": uri} for number, uri in uris.items()]})

    async def _list(self, request):
        first, most = int(request.query_params["offset"]), int(request.query_params["limit"])
        found = [{"extra": event["extra"]} for event in self.events]
        return JSONResponse({"asset_events": found[first : first + most], "total_entries": len(found)})

    async def _create(self, request):
        if not self._is_allowed(request):
            return JSONResponse({}, 401)
        answer = self.next.pop(0) if self.next else 200
        if answer in {200, "lost"}:
            self.events.append(await request.json())
        return JSONResponse({}, 504 if answer == "lost" else answer)


def event(**changes):
    return WebhookEvent.model_validate(json.loads(json.dumps(changes)))


def open_queue(folder, limit=1000, **more):
    queue = Queue(f"sqlite:///{folder / 'queue.db'}", limit, **more)
    queue.create()
    return queue
