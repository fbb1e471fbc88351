"""The faults of the network and of servers in between, as bytes on a connection."""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement, silent, wire
from airflow_provider_bankconnect.sandbox.play import PlayError, read_fault

HISTORY = "entity/webhook_payloads/?link_id=l"
SILENCE = 0.3


class Raw:
    """One TLS connection, whose bytes are seen as they arrive."""

    def __init__(self, box, address="127.0.0.1"):
        self._box = box
        context = ssl.create_default_context(cafile=box.ca_file)
        plain = socket.create_connection((address, box.port), timeout=60)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.bytes = b""

    def close(self):
        self.socket.close()

    def ask(self, path=HISTORY):
        keys = f"x-api-key: {self._box.api_key}\r\nserver-hash: {self._box.server_hash}\r\n"
        self.socket.sendall(f"GET /bank-connect/v1/{path} HTTP/1.1\r\nhost: localhost\r\n{keys}\r\n".encode())

    def read_to(self, end):
        while end not in self.bytes:
            self.bytes += self.socket.recv(65536)
        found, _, self.bytes = self.bytes.partition(end)
        return found + end

    def heads(self, path=HISTORY):
        """Ask, and return each head that arrives, the interim ones before that of the answer, and the body."""
        self.ask(path)
        heads = [self.read_to(b"\r\n\r\n")]
        while heads[-1].startswith(b"HTTP/1.1 1"):
            heads.append(self.read_to(b"\r\n\r\n"))
        length = int(dict(fields(heads[-1]))["content-length"])
        while len(self.bytes) < length:
            self.bytes += self.socket.recv(65536)
        body, self.bytes = self.bytes[:length], self.bytes[length:]
        return heads, body

    def status(self, path=HISTORY):
        return int(self.heads(path)[0][-1].split()[1])


def fields(head):
    return [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")[1:] if line]


@pytest.fixture
def connect(close_later):
    """Open connections to a sandbox."""
    return lambda box, **arguments: close_later(Raw(box, **arguments))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, b"HTTP/1.1 103 Early Hints"),
        ({"interim_status": 102, "count": 3}, b"HTTP/1.1 102 Processing"),
        ({"interim_status": 101}, b"HTTP/1.1 101 Switching Protocols"),
        ({"interim_status": 199}, b"HTTP/1.1 199 Interim"),
    ],
)
def test_interim_answers_precede_the_answer(box, connect, fields, line):
    box.fault(Fault(kind="interim", times=1, **fields))
    raw = connect(box)
    heads, body = raw.heads()
    assert [head.split(b"\r\n")[0] for head in heads] == [line] * fields.get("count", 1) + [b"HTTP/1.1 200 OK"]
    assert body == b'{"payloads":[]}'
    assert [len(raw.heads()[0]), box.connections] == [1, 1]


def test_an_interim_answer_is_sent_before_a_delay(box, connect):
    box.fault(Fault(kind="delay", seconds=600))
    box.fault(Fault(kind="interim", interim_status=102))
    raw = connect(box)
    raw.ask()
    assert raw.read_to(b"\r\n\r\n").startswith(b"HTTP/1.1 102 Processing\r\n")
    assert box.requests[0].status is None


@pytest.mark.parametrize("kind", ["status", "extra"])
@pytest.mark.parametrize(("more", "size"), [({}, 9000), ({"size": 200_000}, 200_000)])
def test_a_long_header_is_sent_with_any_answer(box, connect, kind, more, size):
    box.fault(Fault(kind=kind))
    box.fault(Fault(kind="long_header", **more))
    raw = connect(box)
    for _ in range(2):
        heads, _ = raw.heads()
        assert dict(fields(heads[-1]))["sandbox-long"] == "a" * size


@pytest.mark.parametrize("value", [None, "none", "identity, identity", "gzip"])
def test_a_content_encoding_is_named_and_the_body_is_not_encoded(box, connect, value):
    box.fault(Fault(kind="encoding", **({} if value is None else {"content_encoding": value})))
    heads, body = connect(box).heads()
    assert dict(fields(heads[-1]))["content-encoding"] == (value or "UTF-8")
    assert body == b'{"payloads":[]}'


@contextmanager
def no_answer(raw):
    """Assert that within SILENCE there comes neither an answer nor an end of the connection."""
    yield
    raw.socket.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        raw.socket.recv(1)
    raw.socket.settimeout(60)


def test_a_connection_that_was_idle_is_forgotten_and_a_new_one_works(box, clock, connect):
    box.fault(Fault(kind="forget", seconds=30))
    raw = connect(box)
    for _ in range(3):
        assert raw.status() == 200
        clock.advance(29)
    clock.advance(1)
    with no_answer(raw):
        raw.ask()
    box.clear_faults()
    with no_answer(raw):
        raw.ask()
    assert connect(box).status() == 200
    assert [(one.connection, one.status, one.faults) for one in box.requests] == [
        *[(1, 200, ())] * 3,
        (1, None, ("forget",)),
        (2, 200, ()),
    ]


def test_with_zero_seconds_each_connection_gets_one_answer(box, connect):
    box.fault(Fault(kind="forget", seconds=0, call="webhook_payloads"))
    box.fault(Fault(kind="interim"))
    for _ in range(2):
        raw = connect(box)
        assert raw.status() == 200
        assert raw.status("entity/") == 200
        with no_answer(raw):
            raw.ask()


def test_a_connection_is_not_idle_while_its_answer_is_delayed(box, clock, connect, eventually):
    box.fault(Fault(kind="delay", seconds=0.2, times=1))
    raw = connect(box)
    raw.ask()
    eventually(lambda: box.requests)
    clock.advance(100)
    raw.read_to(b"}")
    box.fault(Fault(kind="forget", seconds=30))
    raw.bytes = b""
    assert raw.status() == 200


def test_after_a_switch_old_connections_keep_the_old_answers(serve, connect):
    with serve(statements=[Statement(link_id="l", entity_id="e", statement_id="1", after=-5)]) as client:
        box, old = client.box, connect(client.box)
        box.fault(Fault(kind="switch"))
        box.play(Statement(link_id="l", entity_id="e", statement_id="2"))
        new = connect(box)
        for path in (HISTORY, "entity/e/transactions/"):
            assert b'"2"' not in old.heads(path)[1]
            assert b'"1"' in old.heads(path)[1]
            assert b'"2"' in new.heads(path)[1]
        box.fault(Fault(kind="stale", seconds=60))
        assert old.heads()[1] == b'{"payloads":[]}'
        box.clear_faults()
        assert b'"2"' in old.heads()[1]


def test_a_switch_may_begin_later_and_old_answers_last_until_it_ends(box, clock, connect):
    box.fault(Fault(kind="switch", after=10, until=60))
    clock.advance(5)
    between = connect(box)
    assert between.status() == 200
    clock.advance(5)
    after = connect(box)
    clock.advance(20)
    box.play(Statement(link_id="l", statement_id="1"))
    assert b'"1"' not in between.heads()[1]
    assert b'"1"' in after.heads()[1]
    clock.advance(30)
    assert b'"1"' in between.heads()[1]


def test_a_connection_of_before_two_switches_stays_with_the_first_server(box, clock, connect):
    first = connect(box)
    box.fault(Fault(kind="switch"))
    clock.advance(1)
    box.play(Statement(link_id="l", statement_id="1"))
    second = connect(box)
    clock.advance(1)
    box.fault(Fault(kind="switch"))
    clock.advance(1)
    box.play(Statement(link_id="l", statement_id="2"))
    seen = [one.heads()[1] for one in (first, second, connect(box))]
    assert [(b'"1"' in body, b'"2"' in body) for body in seen] == [(False, False), (True, False), (True, True)]


def test_a_fault_may_concern_old_connections_alone(box, connect):
    old = connect(box)
    box.fault(Fault(kind="status", status=404, connections="old"))
    assert [old.status(), connect(box).status()] == [404, 200]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ("text/html", None, b"<html><head><title>403 Forbidden</title>")),
        ({"retry_after": 30}, ("text/html", "30", b"<html>")),
        ({"retry_after": 30, "body": ""}, ("text/html", "30", b"")),
        ({"body": "no", "content_type": "text/plain"}, ("text/plain", None, b"no")),
    ],
)
def test_the_403_of_a_firewall_is_not_json(box, connect, more, expected):
    box.fault(Fault(kind="firewall", **more))
    heads, body = connect(box).heads()
    found = dict(fields(heads[-1]))
    assert heads[-1].startswith(b"HTTP/1.1 403 ")
    assert (found["content-type"], found.get("retry-after")) == expected[:2]
    assert body.startswith(expected[2])
    assert bool(body) == bool(expected[2])


def test_the_403_of_bankconnect_is_json(box, connect):
    box.fault(Fault(kind="status", status=403))
    heads, body = connect(box).heads()
    assert dict(fields(heads[-1]))["content-type"] == "application/json"
    assert body.startswith(b'{"detail": ')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "interim", "interim_status": 200}, "less than or equal to 199"),
        ({"kind": "interim", "count": 0}, "greater than or equal to 1"),
        ({"kind": "long_header", "size": 0}, "greater than or equal to 1"),
        ({"kind": "status", "size": 5}, r"size \(5\) is for long_header, not for status: leave it out"),
        ({"kind": "delay", "content_encoding": "br"}, r"content_encoding \('br'\) is for encoding"),
        ({"kind": "encoding", "content_encoding": "a\nb"}, "printable ASCII"),
        ({"kind": "status", "retry_after": "30 \N{SNOWMAN}"}, "printable ASCII"),
        ({"kind": "status", "retry_after": "soon", "retry_after_form": "date"}, r"\('soon'\) must be seconds"),
        ({"kind": "status", "retry_after": 1e10, "retry_after_form": "date"}, r"\(10000000000\) must be at most"),
        ({"kind": "firewall", "status": 429}, "firewall answers 403: for 429 give kind 'status'"),
        ({"kind": "drop", "connections": "old"}, "for webhooks: leave it out"),
        ({"kind": "status", "connections": "new"}, "'any' or 'old'"),
        ({"kind": "forget", "seconds": -1}, "greater than or equal to 0"),
    ],
)
def test_an_invalid_network_fault_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Fault(**given)


def test_a_comma_in_option_text_can_be_escaped():
    fault = read_fault(r"kind=encoding,content_encoding=identity\, identity,times=2")
    assert (fault.content_encoding, fault.times) == ("identity, identity", 2)
    with pytest.raises(PlayError, match=r"write \\, in a value"):
        read_fault("kind=encoding,content_encoding=identity, identity")


@pytest.fixture
def addresses(monkeypatch):
    """Give localhost these addresses, in this order, for every client of this process."""
    real = socket.getaddrinfo

    def give(*found):
        def resolve(host, port, *more, **named):
            if host not in {"localhost", b"localhost"}:
                return real(host, port, *more, **named)
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (one, port or 0, 0, 0))
                if ":" in one
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port or 0))
                for one in found
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    return give


@pytest.mark.parametrize(
    ("silent", "working"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("127.0.0.2", "127.0.0.1")]
)
def test_a_silent_address_answers_no_connection_and_the_other_one_works(serve, connect, addresses, silent, working):
    for address in (silent, working):
        try:
            wire.bind(address, 0).close()
        except OSError:
            pytest.skip(f"this machine has no address {address}")
    addresses(silent, working)
    with serve(silent_address=silent) as client:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection((silent, client.box.port), timeout=SILENCE)
        # By the name, the first address is tried in vain.
        with socket.create_connection(("localhost", client.box.port), timeout=SILENCE) as found:
            assert found.getpeername()[0] == working
        assert connect(client.box, address=working).status() == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((silent, client.box.port), timeout=60)


def test_a_silent_address_that_localhost_does_not_have_is_refused(addresses):
    addresses("127.0.0.1")
    with pytest.raises(
        OSError, match=r"which has only 127\.0\.0\.1 on this machine: add the line '127\.0\.0\.2 localho"
    ):
        Sandbox(silent_address="127.0.0.2").start()


@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
def test_without_ipv6_a_silent_address_is_refused(addresses, monkeypatch, address):
    def bind(address, _):
        if ":" in address:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return socket.create_server((address, 0))

    addresses("::1", "127.0.0.1")
    monkeypatch.setattr(silent, "bind", bind)
    with pytest.raises(OSError, match="silent_address needs ::1 on this machine: IPv6 is missing"):
        Sandbox(silent_address=address).start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"silent_address": "10.0.0.1"}, "'10.0.0.1' is no loopback address; give ::1 or 127.0.0.1"),
        ({"silent_address": "localhost"}, "'localhost' is no loopback address"),
        ({"silent_address": "::1", "host": "127.0.0.1"}, "needs host 'localhost', .* not '127.0.0.1'"),
    ],
)
def test_an_invalid_silent_address_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sandbox(**arguments)
