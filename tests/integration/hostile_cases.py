"""Bad answers of a server, and the error that each has to become.

Each input is finite and harmless: with any HTTP client it ends in an error or an ordinary answer.
"""

from __future__ import annotations

import gzip
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_bankconnect.api import (
    BankConnectAuthError,
    BankConnectConnectionError,
    BankConnectError,
    BankConnectResponseError,
    BankConnectServerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hostile import Peer

    Behaviour = Callable[[Peer], None]

# Stands for a customer's data.
PLANTED = b"planted-account-number-000123456789"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Unavailable\r\nRetry-After: 7\r\n"
NO_KEYS = b"HTTP/1.1 401 Unauthorized\r\n"
EMPTY = b'{"payloads":[]}'
# For MAX_ANSWER_BYTES in the tests, and the size of the bodies that exceed it.
LIMIT = 4 * 2**20
LARGE = 32 * 2**20


def whole(body: bytes, head: bytes = OK) -> bytes:
    """Make a complete answer."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def history(statement_id: str, link_id: str = "L") -> bytes:
    """Make a history with one completed statement."""
    return (
        b'{"payloads":[{"statement_id":"%s","entity_id":"e1","link_id":"%s","progress":"completed","reason":"",'
        b'"date_time":"2020-03-06 12:46:33"}]}' % (statement_id.encode(), link_id.encode())
    )


# Behaviours of a server


def always(data: bytes) -> Behaviour:
    """Send the same to every request."""

    def behave(peer: Peer) -> None:
        while peer.read_request():
            peer.send(data)

    return behave


def once(*data: bytes) -> Behaviour:
    """Answer the first request, and close the connection."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        for part in data:
            peer.send(part)

    return behave


def dripping(data: bytes, drops: bytes) -> Behaviour:
    """Send something, and then single bytes slowly."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.drip(drops)

    return behave


def hanging(data: bytes) -> Behaviour:
    """Send something, and then nothing more."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.stay_silent()

    return behave


def not_reading(data: bytes) -> Behaviour:
    """Send something, and then neither send nor read: a TLS shutdown gets no answer."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.stop_reading()

    return behave


def echo(head: bytes, tail: bytes) -> Behaviour:
    """Send the request back, with the keys in it, between these."""

    def behave(peer: Peer) -> None:
        peer.send(head + peer.read_request() + PLANTED + tail)

    return behave


def garbage(peer: Peer) -> None:
    """Answer a TLS handshake with plain HTTP."""
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + PLANTED)


def dripping_handshake(peer: Peer) -> None:
    """Send a TLS record slowly."""
    peer.drip(b"\x16\x03\x03\x3f\xff" + b"\0" * 16_000)


def silence(peer: Peer) -> None:
    """Accept the connection and send nothing."""
    peer.stay_silent()


def encoded(encoding: bytes, body: bytes, head: bytes = OK) -> Behaviour:
    """Send an answer with this Content-Encoding."""
    return always(whole(body, head + b"Content-Encoding: " + encoding + b"\r\n"))


# Inflated, it would be read as rows.
GZIPPED = gzip.compress(history("s1"))
LUMP = (PLANTED * 2000)[:65_536]
LUMPS = LUMP * (LARGE // len(LUMP))
CHUNK = b"%x\r\n" % len(LUMP) + LUMP + b"\r\n"
# Longer than a line may be, and cut off before its end.
LONG_LINE = b"x" * 100_000
MANY_LISTS = b'{"payloads":[],"x":[' + b"[]," * 250_000 + b"[]]}"
BAD_ROWS = b'{"payloads":[' + b"{}," * 5_000 + b"{}]}"

# What each becomes


@dataclass(frozen=True)
class Case:
    """One bad answer; ``timeout`` is the connection's, short where the test waits for it."""

    name: str
    behave: Behaviour
    error: type[BankConnectError]
    says: str
    timeout: float = 30.0
    tls: bool = True

    def __str__(self) -> str:
        return self.name


def too_large(name: str, behave: Behaviour) -> Case:
    return Case(name, behave, BankConnectResponseError, "larger than 4 MiB, and was not read on")


def no_whole_answer(name: str, behave: Behaviour, *, tls: bool = True) -> Case:
    return Case(name, behave, BankConnectConnectionError, "no whole answer", tls=tls)


def not_in_time(name: str, behave: Behaviour, *, tls: bool = True) -> Case:
    return Case(name, behave, BankConnectConnectionError, "no answer in time", timeout=1.0, tls=tls)


def refused(name: str, behave: Behaviour, says: str = "not the documented JSON") -> Case:
    return Case(name, behave, BankConnectResponseError, says)


def server_error(name: str, behave: Behaviour, *, timeout: float = 30.0) -> Case:
    return Case(
        name, behave, BankConnectServerError, "HTTP 503: BankConnect failed (Retry-After: 7 s)", timeout=timeout
    )


def wrong_keys(name: str, behave: Behaviour, *, timeout: float = 30.0) -> Case:
    return Case(name, behave, BankConnectAuthError, "HTTP 401: BankConnect refuses these keys", timeout=timeout)


CASES = [
    # Bodies over the limit.
    too_large("body-over-the-limit", once(OK + b"Content-Length: %d\r\n\r\n" % LARGE, LUMPS)),
    too_large("chunks-over-the-limit", once(CHUNKED, CHUNK * (LARGE // len(LUMP)), b"0\r\n\r\n")),
    too_large("chunk-over-the-limit", once(CHUNKED + b"%x\r\n" % LARGE, LUMPS, b"\r\n0\r\n\r\n")),
    too_large("body-without-length-over-the-limit", once(OK + b"\r\n", LUMPS)),
    # Long lines.
    no_whole_answer("long-status-line", once(b"HTTP/1.1 200 " + LONG_LINE)),
    no_whole_answer("long-header-line", once(OK + b"X: " + LONG_LINE)),
    no_whole_answer("long-chunk-extension", once(CHUNKED + b"1;a=" + LONG_LINE)),
    # Single bytes, slowly.
    not_in_time("dripping-handshake", dripping_handshake, tls=False),
    not_in_time("dripping-status-line", dripping(b"", b"HTTP/1.1 200 " + b"x" * 60_000)),
    not_in_time("dripping-headers", dripping(OK, b"a: b\r\n")),
    not_in_time("dripping-body", dripping(OK + b"Content-Length: 100000\r\n\r\n", b" ")),
    not_in_time("dripping-body-without-length", dripping(OK + b"\r\n", b" ")),
    not_in_time("dripping-chunks", dripping(CHUNKED, b"1\r\n \r\n")),
    not_in_time("dripping-chunk", dripping(CHUNKED + b"FFFF\r\n", b" ")),
    not_in_time("dripping-trailers", dripping(CHUNKED + b"0\r\n", b"a: b\r\n")),
    # Silence.
    not_in_time("no-handshake", silence, tls=False),
    not_in_time("no-answer", silence),
    not_in_time("half-a-head", hanging(OK)),
    not_in_time("half-a-body", hanging(OK + b"Content-Length: 15\r\n\r\n" + EMPTY[:5])),
    not_in_time("not-reading-before-the-head", not_reading(b"")),
    not_in_time("not-reading-in-the-body", not_reading(OK + b"Content-Length: 15\r\n\r\n" + EMPTY[:5])),
    no_whole_answer("connection-closed", once(b"")),
    # Compressed.
    *(
        refused(name, behave, "compressed (Content-Encoding: ")
        for name, behave in (
            ("gzip", encoded(b"gzip", GZIPPED)),
            ("deflate", encoded(b"deflate", zlib.compress(history("s1")))),
            ("gzip-within-gzip", encoded(b"gzip, gzip", gzip.compress(GZIPPED))),
            ("gzip-that-is-none", encoded(b"gzip", PLANTED)),
            ("brotli-that-is-none", encoded(b"br", PLANTED)),
            ("zstd-that-is-none", encoded(b"zstd", PLANTED)),
        )
    ),
    refused("unknown-encoding", encoded(PLANTED, PLANTED), "not the documented JSON"),
    refused("gzip-as-transfer-encoding", once(OK + b"Transfer-Encoding: gzip\r\n\r\n" + GZIPPED)),
    # Costly to parse.
    refused("many-lists", always(whole(MANY_LISTS)), "250000 lists and objects"),
    refused("nested-lists", always(whole(b'{"payloads":[],"x":' + b"[" * 300 + b"]" * 300 + b"}"))),
    refused("many-bad-rows", always(whole(BAD_ROWS))),
    # Heads.
    no_whole_answer("garbage-for-a-status-line", once(b"\x00\xff\xfe" + PLANTED + b"\r\n\r\n")),
    no_whole_answer("a-status-of-letters", once(b"HTTP/1.1 abc OK\r\n\r\n" + PLANTED)),
    no_whole_answer("a-status-of-five-digits", once(b"HTTP/1.1 20000 OK\r\n\r\n" + PLANTED)),
    no_whole_answer("http-0.9", once(EMPTY)),
    no_whole_answer("http-2", once(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    no_whole_answer("garbage-for-a-handshake", garbage, tls=False),
    refused(
        "redirect",
        always(b"HTTP/1.1 302 Found\r\nLocation: /bank-connect/v1/entity/again\r\nContent-Length: 0\r\n\r\n"),
        "a redirect, which is never followed",
    ),
    refused("redirect-to-no-url", once(b"HTTP/1.1 307 X\r\nLocation: http://[::1/\xff:x\r\n\r\n"), "a redirect"),
    refused("switching-protocols", once(b"HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n"), "HTTP 101"),
    # Wrong lengths.
    no_whole_answer("content-length-too-long", once(OK + b"Content-Length: 100\r\n\r\n" + EMPTY)),
    no_whole_answer("content-lengths-that-differ", once(OK + b"Content-Length: 15\r\n" + whole(EMPTY + b" ", b""))),
    no_whole_answer("content-length-beyond-64-bits", once(OK + b"Content-Length: %d\r\n\r\n" % 2**70 + EMPTY)),
    no_whole_answer("a-negative-chunk", once(CHUNKED + b"-5\r\n" + LUMP)),
    no_whole_answer("a-chunk-of-letters", once(CHUNKED + b"2\r\n{}\r\n" + PLANTED + b"\r\n")),
    no_whole_answer("a-chunk-cut-off", once(CHUNKED + b"F\r\n" + EMPTY[:5])),
    no_whole_answer("chunks-without-the-last", once(CHUNKED + b"F\r\n" + EMPTY + b"\r\n")),
    # The status is the error, whatever the body is.
    server_error("503-with-a-large-body", once(BUSY + b"\r\n", LUMPS)),
    server_error("503-cut-off", once(BUSY + b"Content-Length: 400\r\n\r\n" + PLANTED)),
    server_error("503-compressed", encoded(b"gzip", GZIPPED, BUSY)),
    server_error("503-compressed-badly", encoded(b"gzip", PLANTED, BUSY)),
    wrong_keys("401-with-a-large-body", once(NO_KEYS + b"\r\n", LUMPS)),
    wrong_keys("401-dripping", dripping(NO_KEYS + b"\r\n", b" "), timeout=1.0),
    wrong_keys("401-cut-off", once(NO_KEYS + b"Content-Length: 400\r\n\r\n" + PLANTED)),
    # The keys, sent back.
    refused("echo-in-the-body", echo(OK + b"\r\n", b"")),
    no_whole_answer("echo-in-the-status-line", echo(b"", b"")),
    no_whole_answer("echo-in-a-chunk-length", echo(CHUNKED, b"")),
    wrong_keys("echo-in-the-reason", echo(b"HTTP/1.1 401 ", b"\r\nContent-Length: 0\r\n\r\n")),
]  # fmt: skip


def any_answer(seed: int) -> bytes:
    """Make an answer with a few odd parts, and sometimes a few changed bytes."""
    dice = random.Random(seed)

    def pick(usual: bytes, *odd: bytes) -> bytes:
        return dice.choice([usual] * 8 + list(odd))

    status = pick(
        b"HTTP/1.1 200 OK", b"HTTP/1.1 %d X" % dice.randrange(1100), b"HTTP/1.0 200", b"HTTP/1.1  200 OK", b"ICY 200",
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 \xff", b"HTTP/1.1 101 S",
    )  # fmt: skip
    names = [
        b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"Content-Type", b"Set-Cookie", b"Location",
        b"Link", b"Retry-After", b"Connection", b"Keep-Alive", b"Upgrade", b"Trailer", b"Date", b"X \xff", b"", b" X",
    ]  # fmt: skip
    values = [
        b"", b"0", b"15", b"-1", b"15, 15", b"0x10", b"+15", b"9" * 5000, b"a" * 9000, b"\xff\xfe",
        b"gzip", b"chunked", b"identity", b"gzip, chunked", b"close", b"keep-alive", b"upgrade", b"; ;=", b"https://[::",
        b"a=b; Max-Age=60; expires=soon", b"text/html; charset=\xff", PLANTED,
    ]  # fmt: skip
    heads = [
        dice.choice(names) + pick(b": ", b":", b" : ", b"") + dice.choice(values)
        for _ in range(dice.choice([0, 1, 1, 2, 4]))
    ]
    body = EMPTY
    if dice.random() < 0.5:
        heads.append(b"Content-Length: 15")
    else:
        heads.append(b"Transfer-Encoding: chunked")
        pieces = [EMPTY[:5], EMPTY[5:]]
        lengths = [pick(b"%x" % len(piece), b"-1", b"zz", b"", b"-5", b"F" * 20, b"5;a=b", b"5_0") for piece in pieces]
        body = b"".join(
            length + b"\r\n" + piece + pick(b"\r\n", b"", b"xx") for length, piece in zip(lengths, pieces, strict=True)
        ) + pick(b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"", b"0\r\n")
    dice.shuffle(heads)
    answer = bytearray(b"".join(line + pick(b"\r\n", b"\n") for line in [status, *heads]) + pick(b"\r\n", b"") + body)
    for _ in range(dice.choice([0, 0, 0, 1, 3])):
        place = dice.randrange(len(answer))
        answer[place : place + dice.randrange(4)] = dice.randbytes(dice.randrange(4))
    return bytes(answer)
