"""The output of an API server at level DEBUG: no token, nothing of a body but its five fields, no forged line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from receivers import CONN_ID, NEEDS_3_2, NO_DAG, PREVIOUS, TOKEN, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS_3_2

HERE = Path(__file__).parent
PRIVATE = "PRIVATE-4711"
FORGED = "2026-01-01T00:00:00.000000Z [info     ] forged"
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Server:
    """An API server in its own process."""

    def __init__(self, folder, database):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "output"
        environment = os.environ | {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"{database.url}?timeout=0.1",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "serve.py"), str(self.port)], env=environment, stdout=log, stderr=log
            )

    @property
    def output(self):
        return self.log.read_text(encoding="utf-8")

    def wait_until_up(self):
        end = time.monotonic() + 600
        while "Uvicorn running" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.communicate()

    def send(self, data):
        """Send bytes; return the status of the response, or None if there is none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.sendall(data)
            answer = connection.makefile("rb").readline()
        return int(answer.split()[1]) if answer else None

    def request(self, path, body=b"", *more, method="POST", content_type="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            *(more if WEBSOCKET[0] in more else ["Connection: close", *more]),
        ]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def post_events(self, how, events, token=TOKEN):
        internal_token = f"Authorization: Bearer {address.internal_token(token)}"
        return self.request(f"{address.PREFIX}/events/{CONN_ID}", {"how": how, "events": events}, internal_token)


@pytest.fixture
def server(sqlite, configure, tmp_path, monkeypatch):
    configure(webhook_token=TOKEN, webhook_token_previous=PREVIOUS)
    monkeypatch.setenv(f"AIRFLOW_CONN_{NO_DAG.upper()}", "bankconnect://")
    server = Server(tmp_path, sqlite)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def test_logs_contain_no_token_and_nothing_of_a_body_but_its_fields(server, sqlite):
    private = statement(other=PRIVATE, **{PRIVATE: PRIVATE})
    headers = [f"X-Private: {PRIVATE}", f"Cookie: x={PRIVATE}", f"Referer: {PRIVATE}"]
    assert server.request(path_to(), private, *headers) == 200
    assert server.request(path_to(token=PREVIOUS), private, *headers) == 200
    assert server.request(path_to(), {"event_name": PRIVATE, "more": PRIVATE}) == 200
    assert server.request(path_to(NO_DAG), private) == 503
    assert server.request(path_to("unknown"), private) == 404
    # Nothing of a refused body is logged.
    for body in (
        {"entity_id": PRIVATE},
        statement(entity_id=[PRIVATE]),
        statement(reason=PRIVATE + "\0"),
        statement(progress=PRIVATE * 20),
        [PRIVATE],
        PRIVATE.encode(),
        PRIVATE.encode("utf-16"),
    ):
        assert server.request(path_to(), body) == 400
    assert server.request(path_to(), private, content_type=PRIVATE) == 200
    assert server.request(path_to(), PRIVATE.encode(), content_type=PRIVATE) == 415
    assert server.request(path_to(), statement(other=PRIVATE * 10_000)) == 413
    # Nearly valid addresses.
    for token in (TOKEN + "x", TOKEN.upper(), TOKEN + "%00", PREVIOUS + "/"):
        assert server.request(path_to(token=token), private) == 404
    for path in (f"webhok/{CONN_ID}/{TOKEN}", TOKEN, f"webhook/{TOKEN}", f"events/{TOKEN}", f"events?token={TOKEN}"):
        for method, statuses in (("POST", {401, 404, 405}), ("GET", {401, 404, 405}), (TOKEN, {400, 404, 405})):
            assert server.request(f"{address.PREFIX}/{path}", private, method=method) in statuses
    assert server.request(path_to() + f"?x={PRIVATE}", private) == 200
    assert server.request(path_to(), private, method="GET") == 405
    assert server.request(path_to(), b"", *WEBSOCKET, method="GET") in {403, 405}
    # Invalid HTTP.
    for garbage in (f"POST {path_to()}\r\n\r\n", f"POST {path_to()} HTTP/9.9\r\n\r\n", f"{path_to()} {TOKEN}\r\n\r\n"):
        assert server.send(garbage.encode()) in {400, 415, None}
    # Requests of tasks and triggerers.
    assert server.post_events("record", [private]) == 200
    assert server.post_events("again", [private], token=PREVIOUS) == 200
    assert server.post_events("check", [statement(statement_id="missed", other=PRIVATE)]) == 200
    assert server.post_events("record", [statement(entity_id=[PRIVATE])]) == 400
    assert server.post_events(PRIVATE, [private]) == 400
    events = f"{address.PREFIX}/events"
    internal_token = f"Authorization: Bearer {address.internal_token(TOKEN)}"
    assert server.request(f"{events}?since={PRIVATE}", b"", internal_token, method="GET") == 400
    assert server.request(events, b"", internal_token, method="GET") == 200
    for authorization in (f"Bearer {TOKEN}", f"Basic {PRIVATE}", PRIVATE):
        assert server.request(events, b"", f"Authorization: {authorization}", method="GET") == 401
    # A locked database, and one that refuses the event.
    with sqlite.locked("update asset set id = id"):
        assert server.request(path_to(), private | {"statement_id": "locked"}) == 503
    sqlite.change("create trigger refuse before insert on asset_event begin select raise(abort, 'refused'); end")
    assert server.request(path_to(), private | {"statement_id": "refused"}) == 503

    server.stop()
    output = server.output
    for word in (TOKEN, PREVIOUS, address.internal_token(TOKEN), address.internal_token(PREVIOUS), PRIVATE):
        assert word.lower() not in output.lower()
    # But everything is logged.
    assert "asset event added" in output
    assert output.count(f"path={address.PREFIX}/***") > 40
    assert "Recorded webhook event of 'bankconnect_default': 'link:loan-1': statement 'statement-1'" in output
    assert "Traceback" in output
    assert "Missed webhook of 'bankconnect_default', found by a sensor" in output
    # Triggerers poll once a second: Airflow's access log omits their successful requests.
    assert "method=GET path=/bankconnect/*** query= status_code=200" not in output


def test_no_field_can_forge_a_log_line(server):
    for number, end in enumerate(["\n", "\r\n", "\r", "\u2028", "\x85", "\x0b", "\x1b[2K\x1b[1G"]):
        forged = f"{number}{end}{FORGED}"
        for name in statement():
            assert server.request(path_to(), statement(**{name: forged})) == 200
            assert server.request(path_to(), statement(**{name: forged})) == 200
        assert server.request(path_to(), statement(link_id=None, entity_id=forged)) == 200
        assert server.request(path_to(forged), statement()) == 404
        assert server.post_events("check", [statement(statement_id=forged, link_id=f"y{end}{FORGED}")]) == 200
    server.stop()
    output = server.output
    assert output.count("forged") > 50
    assert not [line for line in output.splitlines() if line.startswith(FORGED)]
    assert "\x1b" not in output
