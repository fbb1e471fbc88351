"""What a doorbell's process writes, all its logs on: no token, no more of a body than five fields, no forged line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doorbells import CONN_ID, LONELY, NEEDS, PREVIOUS, TOKEN, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS

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
    """A doorbell in a process of its own."""

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
        until = time.monotonic() + 120
        while "Uvicorn running" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.communicate()

    def say(self, data):
        """Send bytes, and give the status of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            answer = connection.makefile("rb").readline()
        return int(answer.split()[1]) if answer else None

    def ask(self, path, body=b"", *more, method="POST", kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            *(more if WEBSOCKET[0] in more else ["Connection: close", *more]),
        ]
        return self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def tell(self, how, rings, token=TOKEN):
        knock = f"Authorization: Bearer {address.knock(token)}"
        return self.ask(f"{address.PREFIX}/rings/{CONN_ID}", {"how": how, "rings": rings}, knock)


@pytest.fixture
def server(sqlite, configure, tmp_path, monkeypatch):
    configure(webhook_token=TOKEN, webhook_token_previous=PREVIOUS)
    monkeypatch.setenv(f"AIRFLOW_CONN_{LONELY.upper()}", "bankconnect://")
    server = Server(tmp_path, sqlite)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def test_no_log_has_a_token_or_more_of_a_body_than_its_fields(server, sqlite):
    private = statement(other=PRIVATE, **{PRIVATE: PRIVATE})
    headers = [f"X-Private: {PRIVATE}", f"Cookie: x={PRIVATE}", f"Referer: {PRIVATE}"]
    assert server.ask(path_to(), private, *headers) == 200
    assert server.ask(path_to(token=PREVIOUS), private, *headers) == 200
    assert server.ask(path_to(), {"event_name": PRIVATE, "more": PRIVATE}) == 200
    assert server.ask(path_to(LONELY), private) == 503
    assert server.ask(path_to("unknown"), private) == 404
    # What is refused is not told at all.
    for body in (
        {"entity_id": PRIVATE},
        statement(entity_id=[PRIVATE]),
        statement(reason=PRIVATE + "\0"),
        statement(progress=PRIVATE * 20),
        [PRIVATE],
        PRIVATE.encode(),
        PRIVATE.encode("utf-16"),
    ):
        assert server.ask(path_to(), body) == 400
    assert server.ask(path_to(), private, kind=PRIVATE) == 415
    assert server.ask(path_to(), statement(other=PRIVATE * 10_000)) == 413
    # Addresses that are nearly right.
    for token in (TOKEN + "x", TOKEN.upper(), TOKEN + "%00", PREVIOUS + "/"):
        assert server.ask(path_to(token=token), private) == 404
    for path in (f"webhok/{CONN_ID}/{TOKEN}", TOKEN, f"webhook/{TOKEN}", f"rings/{TOKEN}", f"rings?token={TOKEN}"):
        for method, statuses in (("POST", {404, 405}), ("GET", {404, 405}), (TOKEN, {400, 404, 405})):
            assert server.ask(f"{address.PREFIX}/{path}", private, method=method) in statuses
    assert server.ask(path_to() + f"?x={PRIVATE}", private) == 200
    assert server.ask(path_to(), private, method="GET") == 405
    assert server.ask(path_to(), b"", *WEBSOCKET, method="GET") in {403, 405}
    # What is no HTTP.
    for garbage in (f"POST {path_to()}\r\n\r\n", f"POST {path_to()} HTTP/9.9\r\n\r\n", f"{path_to()} {TOKEN}\r\n\r\n"):
        assert server.say(garbage.encode()) in {400, 415, None}
    # Airflow's own parts.
    assert server.tell("ring", [private]) == 200
    assert server.tell("again", [private], token=PREVIOUS) == 200
    assert server.tell("check", [statement(statement_id="unheard", other=PRIVATE)]) == 200
    assert server.tell("ring", [statement(entity_id=[PRIVATE])]) == 400
    assert server.tell(PRIVATE, [private]) == 400
    rings = f"{address.PREFIX}/rings"
    assert server.ask(f"{rings}?since={PRIVATE}", b"", f"Authorization: {address.knock(TOKEN)}", method="GET") == 400
    assert server.ask(rings, b"", f"Authorization: Bearer {address.knock(TOKEN)}", method="GET") == 200
    for shown in (f"Bearer {TOKEN}", f"Basic {PRIVATE}", PRIVATE):
        assert server.ask(rings, b"", f"Authorization: {shown}", method="GET") == 404
    # A database that takes nothing, and one that takes not this.
    with sqlite.held("update asset set id = id"):
        assert server.ask(path_to(), private | {"statement_id": "locked"}) == 503
    sqlite.change("create trigger refuse before insert on asset_event begin select raise(abort, 'refused'); end")
    assert server.ask(path_to(), private | {"statement_id": "refused"}) == 503

    said = server.output
    for word in (TOKEN, PREVIOUS, address.knock(TOKEN), address.knock(PREVIOUS), PRIVATE):
        assert word.lower() not in said.lower()
    # Which is not for want of logs.
    assert "asset event added" in said
    assert said.count(f"path={address.PREFIX}/***") > 40
    assert "BankConnect rang at 'bankconnect_default' for 'link:loan-1': statement 'statement-1'" in said
    assert "Traceback" in said
    assert "A gate on 'bankconnect_default' found by asking what no webhook had announced" in said
    # One who asks once a second is not worth a line each time.
    assert "method=GET path=/bankconnect/*** query= status_code=200" not in said


def test_no_id_can_forge_a_line_of_the_log(server):
    for number, end in enumerate(["\n", "\r\n", "\r", "\u2028", "\x85", "\x0b", "\x1b[2K\x1b[1G"]):
        forged = f"{number}{end}{FORGED}"
        for name in statement():
            assert server.ask(path_to(), statement(**{name: forged})) == 200
            assert server.ask(path_to(), statement(**{name: forged})) == 200
        assert server.ask(path_to(), statement(link_id=None, entity_id=forged)) == 200
        assert server.ask(path_to(forged), statement()) == 404
        assert server.tell("check", [statement(statement_id=forged, link_id=f"y{end}{FORGED}")]) == 200
    said = server.output
    assert said.count("forged") > 50
    assert not [line for line in said.splitlines() if line.startswith(FORGED)]
    assert "\x1b" not in said
