from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager

import pytest
import requests

from airflow_provider_bankconnect.sandbox import Sandbox, SimulatedClock


class Client:
    """A client with both keys and the certificate."""

    def __init__(self, box, **headers):
        self.box = box
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = box.ca_file
        self.session.headers.update(headers or {"x-api-key": box.api_key, "server-hash": box.server_hash})

    def close(self):
        self.session.close()

    def get(self, path, **arguments):
        return self.session.get(f"{self.box.url}/{path}", allow_redirects=False, timeout=60, **arguments)

    def post(self, path, **arguments):
        return self.session.post(f"{self.box.url}/{path}", timeout=60, **arguments)

    def control(self, method, path, **arguments):
        return self.session.request(
            method, f"https://localhost:{self.box.port}/sandbox/{path}", timeout=60, **arguments
        )

    def register(self, url=None, **more):
        answer = self.post("entity/update_webhook/", json={"webhook_url": url or self.box.inbox_url, **more})
        assert answer.status_code == 200

    def history(self, link_id):
        return self.get("entity/webhook_payloads/", params={"link_id": link_id}).json()["payloads"]

    def analysis(self, entity_id, analysis="transactions"):
        return self.get(f"entity/{entity_id}/{analysis}/").json()

    def statuses(self, entity_id, analysis="transactions"):
        return [item["status"] for item in self.analysis(entity_id, analysis)["progress"]]


@pytest.fixture
def serve():
    """Start a sandbox, and give a client that knows its keys."""

    @contextmanager
    def start(**arguments):
        with Sandbox(**arguments) as box, closing(Client(box)) as client:
            yield client

    return start


@pytest.fixture
def clock():
    return SimulatedClock()


@pytest.fixture
def client(serve, clock):
    """A client of a sandbox with a simulated clock."""
    with serve(clock=clock) as client:
        yield client


@pytest.fixture
def box(client):
    return client.box


@pytest.fixture
def close_later():
    """Return what it is given, and close that at the end of the test."""
    with ExitStack() as opened:
        yield lambda one: opened.enter_context(closing(one))


@pytest.fixture
def new_client(close_later):
    """Make further clients of the same sandbox, with other headers."""
    return lambda box, **headers: close_later(Client(box, **headers))


@pytest.fixture
def eventually():
    def wait(condition, seconds=60.0):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "the condition never held"
            time.sleep(0.01)

    return wait
