"""What a hostile server does to a client, and which error has to come of it."""

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


def whole(body: bytes, head: bytes = OK) -> bytes:
    """Make an answer as it should be."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def history(statement_id: str, link_id: str = "L") -> bytes:
    """Make a history with one completed statement."""
    return (
        b'{"payloads":[{"statement_id":"%s","entity_id":"e1","link_id":"%s","progress":"completed","reason":"",'
        b'"date_time":"2020-03-06 12:46:33"}]}' % (statement_id.encode(), link_id.encode())
    )


# What a server does


def always(data: bytes) -> Behaviour:
    """Send the same to every request."""

    def behave(peer: Peer) -> None:
        while peer.read_request():
            peer.send(data)

    return behave


def once(data: bytes) -> Behaviour:
    """Send it to the first request, and hang up."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)

    return behave


def endless(data: bytes, again: bytes) -> Behaviour:
    """Send something, and then something else for ever."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.send_for_ever(again)

    return behave


def dripping(data: bytes, drops: bytes) -> Behaviour:
    """Send something, and then a byte now and then for ever."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.drip(drops)

    return behave


def hanging(data: bytes) -> Behaviour:
    """Send something, and then no more."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.say_nothing()

    return behave


def deaf(data: bytes) -> Behaviour:
    """Send something, and then neither speak nor listen: no goodbye is answered."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.be_deaf()

    return behave


def echo(head: bytes, tail: bytes) -> Behaviour:
    """Send the request back, the keys in it, between these."""

    def behave(peer: Peer) -> None:
        peer.send(head + peer.read_request() + PLANTED + tail)

    return behave


def garbage(peer: Peer) -> None:
    """Answer a handshake with something else."""
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + PLANTED)


def dripping_handshake(peer: Peer) -> None:
    """Begin a record of TLS, and never end it."""
    peer.drip(b"\x16\x03\x03\x3f\xff" + b"\0" * 16_000)


def silence(peer: Peer) -> None:
    """Accept, and say nothing."""
    peer.say_nothing()


def compressed(encoding: bytes, body: bytes, head: bytes = OK) -> Behaviour:
    """Send what grows when it is inflated."""
    return always(whole(body, head + b"Content-Encoding: " + encoding + b"\r\n"))


def squeezed(mebibytes: int, *, wbits: int) -> bytes:
    """So many of nothing, compressed: about a kilobyte each."""
    squeeze, nothing = zlib.compressobj(9, zlib.DEFLATED, wbits), b"\0" * 2**20
    return b"".join([*(squeeze.compress(nothing) for _ in range(mebibytes)), squeeze.flush()])


GZIP, DEFLATE = 31, 15
BOMB = squeezed(2000, wbits=GZIP)
LUMP = (PLANTED * 2000)[:65_536]
CHUNK = b"%x\r\n" % len(LUMP) + LUMP + b"\r\n"
NOTHING = b"a: b\r\n" * 10_000

# What comes of it


@dataclass(frozen=True)
class Case:
    """One hostile answer; ``timeout`` is the connection's, short where only that ends it."""

    name: str
    behave: Behaviour
    error: type[BankConnectError]
    says: str
    timeout: float = 30.0
    tls: bool = True

    def __str__(self) -> str:
        return self.name


def too_large(name: str, behave: Behaviour) -> Case:
    return Case(name, behave, BankConnectResponseError, "larger than 64 MiB, and was not read on")


def no_whole_answer(name: str, behave: Behaviour, *, tls: bool = True) -> Case:
    return Case(name, behave, BankConnectConnectionError, "no whole answer", tls=tls)


def broken_off(name: str, behave: Behaviour) -> Case:
    """The HTTP clients differ in whether they have a limit of their own: the timeout is one for all."""
    return Case(name, behave, BankConnectConnectionError, ": no ", timeout=1.0)


def some_error(name: str, behave: Behaviour) -> Case:
    """One client sees that the length is none, the other reads on to its limit."""
    return Case(name, behave, BankConnectError, ": ")


def not_in_time(name: str, behave: Behaviour, *, tls: bool = True) -> Case:
    return Case(name, behave, BankConnectConnectionError, "no answer in time", timeout=1.0, tls=tls)


def refused(name: str, behave: Behaviour, says: str = "not the documented JSON") -> Case:
    return Case(name, behave, BankConnectResponseError, says)


def told_by_status(name: str, behave: Behaviour, *, timeout: float = 30.0) -> Case:
    return Case(
        name, behave, BankConnectServerError, "HTTP 503: BankConnect failed (it asks to wait 7 s)", timeout=timeout
    )


def wrong_keys(name: str, behave: Behaviour, *, timeout: float = 30.0) -> Case:
    return Case(name, behave, BankConnectAuthError, "HTTP 401: BankConnect refuses these keys", timeout=timeout)


CASES = [
    # A body without an end.
    too_large("body-over-the-limit", endless(OK + b"Content-Length: 99999999999\r\n\r\n", LUMP)),
    too_large("endless-chunks", endless(CHUNKED, CHUNK)),
    too_large("endless-chunk", endless(CHUNKED + b"FFFFFFFFFF\r\n", LUMP)),
    too_large("endless-body", endless(OK + b"\r\n", LUMP)),
    not_in_time("endless-tiny-chunks", endless(CHUNKED, b"1\r\ny\r\n" * 10_000)),
    # What is no body, without an end.
    broken_off("endless-interim-answers", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
    broken_off("endless-status-line", endless(b"HTTP/1.1 200 ", LUMP)),
    broken_off("endless-header-line", endless(OK + b"X: ", LUMP)),
    broken_off("endless-header-lines", endless(OK, NOTHING)),
    broken_off("endless-folded-header", endless(OK + b"a: b\r\n", b" b\r\n" * 10_000)),
    broken_off("endless-chunk-length", endless(CHUNKED, b"1" * 65_536)),
    broken_off("endless-chunk-extension", endless(CHUNKED + b"1;a=", LUMP)),
    broken_off("endless-trailer-line", endless(CHUNKED + b"0\r\na: ", LUMP)),
    broken_off("endless-trailer-lines", endless(CHUNKED + b"0\r\n", NOTHING)),
    # A byte now and then.
    not_in_time("dripping-handshake", dripping_handshake, tls=False),
    not_in_time("dripping-status-line", dripping(b"", b"HTTP/1.1 200 " + b"x" * 60_000)),
    not_in_time("dripping-headers", dripping(OK, b"a: b\r\n")),
    not_in_time("dripping-interim-answers", dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    not_in_time("dripping-body", dripping(OK + b"Content-Length: 100000\r\n\r\n", b" ")),
    not_in_time("dripping-body-to-the-end-of-the-connection", dripping(OK + b"\r\n", b" ")),
    not_in_time("dripping-chunks", dripping(CHUNKED, b"1\r\n \r\n")),
    not_in_time("dripping-chunk", dripping(CHUNKED + b"FFFF\r\n", b" ")),
    not_in_time("dripping-trailers", dripping(CHUNKED + b"0\r\n", b"a: b\r\n")),
    # Silence.
    not_in_time("no-handshake", silence, tls=False),
    not_in_time("no-answer", silence),
    not_in_time("half-a-head", hanging(OK)),
    not_in_time("half-a-body", hanging(OK + b"Content-Length: 15\r\n\r\n" + EMPTY[:5])),
    not_in_time("deaf-before-the-head", deaf(b"")),
    not_in_time("deaf-in-the-body", deaf(OK + b"Content-Length: 15\r\n\r\n" + EMPTY[:5])),
    no_whole_answer("hung-up", once(b"")),
    # What grows when it is read.
    *(
        refused(name, behave, "compressed, which was not asked for")
        for name, behave in (
            ("gzip-bomb", compressed(b"gzip", BOMB)),
            ("deflate-bomb", compressed(b"deflate", squeezed(500, wbits=DEFLATE))),
            ("gzip-bomb-within-gzip", compressed(b"gzip, gzip", gzip.compress(BOMB))),
            ("many-gzip-bombs-in-one", compressed(b"gzip", squeezed(1, wbits=GZIP) * 2000)),
            ("what-says-brotli", compressed(b"br", PLANTED)),
            ("what-says-zstd", compressed(b"zstd", PLANTED)),
            ("compressed-with-something", compressed(PLANTED, PLANTED)),
        )
    ),
    refused("gzip-as-transfer-encoding", once(OK + b"Transfer-Encoding: gzip\r\n\r\n" + BOMB[:1000])),
    refused("nested-lists", always(whole(b"[" * 20_000_000)), "250000 lists and objects"),
    refused("nested-lists-in-a-field", always(whole(b'{"payloads":[],"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))),
    refused("many-bad-rows", always(whole(b'{"payloads":[' + b"{}," * 240_000 + b"{}]}"))),
    # Heads.
    no_whole_answer("header-of-1-mb", always(whole(EMPTY, OK + b"X: " + b"y" * 2**20 + b"\r\n"))),
    no_whole_answer(
        "100000-header-lines", always(whole(EMPTY, OK + b"".join(b"X-%d: yyyyyy\r\n" % n for n in range(100_000))))
    ),
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
    refused("redirect-nowhere", once(b"HTTP/1.1 307 X\r\nLocation: http://[::1/\xff:x\r\n\r\n"), "a redirect"),
    refused("switching-protocols", once(b"HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n"), "HTTP 101"),
    # Lengths that lie.
    no_whole_answer("content-length-too-long", once(OK + b"Content-Length: 100\r\n\r\n" + EMPTY)),
    no_whole_answer("content-lengths-that-differ", once(OK + b"Content-Length: 15\r\n" + whole(EMPTY + b" ", b""))),
    no_whole_answer("content-length-beyond-64-bits", once(OK + b"Content-Length: %d\r\n\r\n" % 2**70 + EMPTY)),
    some_error("a-chunk-of-less-than-nothing", endless(CHUNKED + b"-1\r\n", LUMP)),
    some_error("a-chunk-of-still-less", endless(CHUNKED + b"-5\r\n", LUMP)),
    no_whole_answer("a-chunk-of-letters", once(CHUNKED + b"2\r\n{}\r\n" + PLANTED + b"\r\n")),
    no_whole_answer("a-chunk-cut-off", once(CHUNKED + b"F\r\n" + EMPTY[:5])),
    no_whole_answer("chunks-without-the-last", once(CHUNKED + b"F\r\n" + EMPTY + b"\r\n")),
    # A status says what it says, whatever its body is.
    told_by_status("503-without-end", endless(BUSY + b"\r\n", LUMP)),
    told_by_status("503-cut-off", once(BUSY + b"Content-Length: 400\r\n\r\n" + PLANTED)),
    told_by_status("503-compressed", compressed(b"gzip", BOMB, BUSY)),
    told_by_status("503-compressed-badly", compressed(b"gzip", PLANTED, BUSY)),
    wrong_keys("401-without-end", endless(NO_KEYS + b"\r\n", LUMP)),
    wrong_keys("401-dripping", dripping(NO_KEYS + b"\r\n", b" "), timeout=1.0),
    wrong_keys("401-cut-off", once(NO_KEYS + b"Content-Length: 400\r\n\r\n" + PLANTED)),
    # The keys, sent back.
    refused("echo-in-the-body", echo(OK + b"\r\n", b"")),
    no_whole_answer("echo-in-the-status-line", echo(b"", b"")),
    no_whole_answer("echo-in-a-chunk-length", echo(CHUNKED, b"")),
    wrong_keys("echo-in-the-reason", echo(b"HTTP/1.1 401 ", b"\r\nContent-Length: 0\r\n\r\n")),
]  # fmt: skip


def any_answer(seed: int) -> bytes:
    """Make an answer that is nearly one: a few of its parts are odd, and then perhaps a few of its bytes."""
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
        b"", b"0", b"15", b"-1", b"15, 15", b"0x10", b"+15", b"9" * 5000, b"a" * 9000, b"\xff\xfe", b"\x00", b"\r",
        b"gzip", b"chunked", b"identity", b"gzip, chunked", b"close", b"keep-alive", b"upgrade", b"; ;=", b"https://[::",
        b"a=b; Max-Age=%d; expires=Thu, 01 Jan 99999 00:00:00 GMT" % 10**30, b"text/html; charset=\xff", PLANTED,
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
