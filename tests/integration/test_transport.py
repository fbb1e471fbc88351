"""The HTTP transport of both hooks: what becomes of a request when servers, names and networks misbehave."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import ssl
import sys
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import requests
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hostile import API_KEY, SERVER_HASH, Hostile
from hostile_cases import EMPTY, OK, always, dripping, once, whole

from airflow_provider_bankconnect.api import (
    BankConnectCertificateError,
    BankConnectConnectionError,
    BankConnectError,
    ConnectionSettings,
    Request,
)
from airflow_provider_bankconnect.hooks import addresses, kept
from airflow_provider_bankconnect.hooks.async_http import AsyncTrip
from airflow_provider_bankconnect.hooks.kept import KeptConnections, Life
from airflow_provider_bankconnect.hooks.tls import ssl_context
from airflow_provider_bankconnect.hooks.transport import AsyncSession, Session
from airflow_provider_bankconnect.sandbox import Fault, Statement

both = pytest.mark.parametrize("kind", ["sync", "async"])
GET = Request("webhook_payloads", "GET", "entity/webhook_payloads/?link_id=L")
POST = Request("update_webhook", "POST", "entity/update_webhook/", {"webhook_mode": 0})


def settings_of(connection, **extra):
    """Read a connection as Airflow has it, as JSON or as a dict."""
    fields = json.loads(connection) if isinstance(connection, str) else connection
    extras = {**fields["extra"], **extra}
    return ConnectionSettings.parse(
        "t", host=fields["host"], port=fields.get("port"), password=fields["password"], extra=extras
    )


@contextmanager
def opened(kind, settings):
    """Open a session; yield a function that makes one step with it."""
    if kind == "sync":
        with Session("t", settings) as session:
            yield lambda step: session.exchange(step) if isinstance(step, Request) else step(session)
        return

    async def opened_session():
        return AsyncSession(settings, ssl_context("t", settings))

    async def make(step):
        return await session.exchange(step) if isinstance(step, Request) else step(session)

    with asyncio.Runner() as runner:
        session = runner.run(opened_session())
        yield lambda step: runner.run(make(step))
        runner.run(closed(session))


async def closed(session):
    """Close a session as the hook does."""
    await session.close()
    await asyncio.sleep(0.05)


def ask(kind, settings, *steps):
    """Send these requests in one session; return the bodies and the errors. Other steps are called with the session."""
    results = []
    with opened(kind, settings) as make:
        for step in steps:
            try:
                answer = make(step)
            except BankConnectError as error:
                results.append(error)
            else:
                results += [answer.body] if isinstance(step, Request) else []
    return results


def forget(session):
    session.forget_connections()


def ask_hostile(kind, folder, behave, *steps, **extra):
    with Hostile(behave) as server:
        return ask(kind, settings_of(server.connection(folder, **extra)), *(steps or (GET,))), server


# Interim answers


@both
@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 199 X\r\n\r\n" * 10,
    ],
    ids=["102", "103", "many"],
)
def test_interim_answers_are_skipped(interim, kind, tmp_path):
    results, server = ask_hostile(kind, tmp_path, always(interim + whole(EMPTY)), GET, GET)
    assert results == [EMPTY, EMPTY]
    assert server.connections == 1


@both
@pytest.mark.parametrize("status", [100, 103])
def test_endless_interim_answers_end_after_a_hundred(status, kind, tmp_path):
    (error,), _ = ask_hostile(kind, tmp_path, once(b"HTTP/1.1 %d X\r\n\r\n" % status * 200, whole(EMPTY)))
    assert type(error) is BankConnectConnectionError
    assert "more than 100 interim answers (HTTP 1xx)" in str(error)


@both
def test_interim_answers_do_not_prolong_a_request(kind, tmp_path):
    (error,), _ = ask_hostile(kind, tmp_path, dripping(b"", b"HTTP/1.1 103 X\r\n\r\n"), timeout=0.7)
    assert "no answer in time" in str(error)


# Heads


def head(length):
    """Make a head with one header line of this length, with its end."""
    return OK + b"X: " + b"x" * (length - 5) + b"\r\n"


@both
def test_header_line_may_have_64_kib_and_no_more(kind, tmp_path):
    (body,), _ = ask_hostile(kind, tmp_path, always(whole(EMPTY, head(65_536))))
    assert body == EMPTY
    # aiohttp counts a few bytes of some lines less.
    (error,), _ = ask_hostile(kind, tmp_path, always(whole(EMPTY, head(65_544))))
    assert type(error) is BankConnectConnectionError
    assert str(error) == (
        "webhook_payloads: no whole answer: a header is longer than the limit of 65536 bytes: "
        "BankConnect, or a proxy on the way, has to send less"
    )


@both
def test_answer_may_have_99_headers_and_none_more(kind, tmp_path):
    # With Content-Type and Content-Length.
    (body,), _ = ask_hostile(kind, tmp_path, always(whole(EMPTY, OK + b"X: y\r\n" * 97)))
    assert body == EMPTY
    (error,), _ = ask_hostile(kind, tmp_path, always(whole(EMPTY, OK + b"X: y\r\n" * 98)))
    assert type(error) is BankConnectConnectionError
    assert str(error) == (
        "webhook_payloads: no whole answer: it has more headers than the limit of 99: "
        "BankConnect, or a proxy on the way, has to send less"
    )


@both
def test_headers_that_are_sent_twice_are_read_alike_by_both_hooks(kind, tmp_path):
    twice = b"Retry-After: 8\r\nRetry-After: 9\r\nContent-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    with (
        Hostile(always(whole(EMPTY, OK + twice))) as server,
        opened(kind, settings_of(server.connection(tmp_path))) as make,
    ):
        answer = make(GET)
    assert (answer.retry_after, answer.encoding) == ("8, 9", "identity, gzip")


# Addresses


@pytest.fixture
def silent():
    """Addresses of this machine that answer no SYN, and one that accepts a connection and sends nothing."""
    with ExitStack() as stack:

        def listening(backlog):
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
            return sock.getsockname()

        def full():
            where = listening(0)
            # Linux drops the SYNs that its queue has no place for.
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(where)
            return where

        yield {"no SYN": full, "no TLS": lambda: listening(50)}


@both
@pytest.mark.parametrize(
    "others",
    [["no SYN"], ["no SYN"] * 4, ["no TLS"], ["no SYN", "no TLS", "no TLS"], ["refused", "no SYN", "refused"]],
    ids=", ".join,
)
def test_one_good_address_among_silent_ones_is_enough(others, kind, box, names, silent):
    made = [("127.0.0.1", 1) if other == "refused" else silent[other]() for other in others]
    names[box.port] = [*made, ("127.0.0.1", box.port)]
    began = time.monotonic()
    (body,) = ask(kind, settings_of(box.connection, timeout=4), GET)
    assert json.loads(body) == {"payloads": []}
    assert time.monotonic() - began < 4


@both
@pytest.mark.parametrize("other", ["no SYN", "no TLS"])
def test_timeout_holds_for_all_addresses_together(other, kind, box, names, silent):
    names[box.port] = [silent[other]() for _ in range(5)]
    began = time.monotonic()
    (error,) = ask(kind, settings_of(box.connection, timeout=1), GET)
    assert "no answer in time" in str(error)
    # With five times the timeout it would be 5 seconds.
    assert 0.9 < time.monotonic() - began < 3


@both
def test_timeout_holds_while_a_name_is_looked_up(kind, box, monkeypatch):
    is_over, usual = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host, *arguments, **more):
        if host == "localhost":
            is_over.wait(30)
        return usual(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    began, took = time.monotonic(), []
    # An event loop that ends waits for the look-up.
    steps = (GET, lambda _: took.append(time.monotonic() - began), lambda _: is_over.set())
    (error,) = ask(kind, settings_of(box.connection, timeout=0.5), *steps)
    assert "no answer in time" in str(error)
    assert took[0] < 5
    assert box.requests == []


def test_urllib3_has_what_the_adapter_relies_on():
    """The name with its dot, and the method that opens a connection, are not public."""
    connection = urllib3.connection.HTTPSConnection("localhost.", 1)
    assert connection._dns_host == "localhost."
    assert callable(connection._new_conn)


# Kept connections


@pytest.fixture
def _idle_at_once(monkeypatch):
    """Have a connection count as idle at once."""
    monkeypatch.setattr(kept, "SURELY_KNOWN", -1.0)


def forgotten(peer):
    """Answer the first request of each connection only."""
    peer.read_request()
    peer.send(whole(EMPTY))
    peer.read_request()
    peer.stay_silent()


def reset(peer):
    """Answer the first request, and break the connection at the second."""
    peer.read_request()
    peer.send(whole(EMPTY))
    peer.read_request()


@both
@pytest.mark.parametrize("behave", [forgotten, reset])
@pytest.mark.usefixtures("_idle_at_once")
def test_request_lost_on_an_idle_connection_is_sent_again_on_a_new_one(behave, kind, tmp_path):
    began = time.monotonic()
    results, server = ask_hostile(kind, tmp_path, behave, GET, GET, timeout=6)
    assert results == [EMPTY, EMPTY]
    assert (server.connections, len(server.requests)) == (2, 3)
    assert time.monotonic() - began < 6


async def test_request_is_sent_again_though_all_kept_connections_break(tmp_path):
    with Hostile(reset) as server:
        settings = settings_of(server.connection(tmp_path, timeout=6))
        session = AsyncSession(settings, ssl_context("t", settings))
        await asyncio.gather(*(session.exchange(GET) for _ in range(4)))
        assert (await session.exchange(GET)).body == EMPTY
        await closed(session)


@both
@pytest.mark.parametrize(
    ("trouble", "message"),
    [("refused", "refused|Connect call failed"), ("unresolvable", "does not resolve"), ("certificate", "not verify")],
)
def test_what_keeps_a_lost_request_from_its_new_connection_is_the_error_at_once(
    trouble, message, kind, tmp_path, monkeypatch
):
    look_ups, usual, others = [], socket.getaddrinfo, []
    monkeypatch.setattr(addresses, "_CACHE_SECONDS", 0.0)

    def getaddrinfo(host, port, *arguments, **more):
        if host != "localhost":
            return usual(host, port, *arguments, **more)
        look_ups.append(port)
        if len(look_ups) > 1 and trouble == "unresolvable":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        where = others[0] if len(look_ups) > 1 and trouble == "certificate" else ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where)]

    def behave(peer):
        reset(peer)
        if trouble == "refused":
            peer.refuse_others()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Hostile(behave) as server, Hostile(always(whole(EMPTY))) as other:
        others.append(other.listening.getsockname())
        settings = settings_of(server.connection(tmp_path, timeout=5))
        settings = replace(settings, base_url=settings.base_url.replace("127.0.0.1", "localhost"))
        began = time.monotonic()
        first, error = ask(kind, settings, GET, GET)
    assert first == EMPTY
    assert isinstance(error, BankConnectConnectionError)
    assert re.search(message, str(error)), error
    # The first request had one, too.
    assert 2 <= len(look_ups) <= 4
    assert time.monotonic() - began < 4, "not until the timeout"


async def test_lost_request_is_sent_once_more_and_not_again():
    """Other requests may have opened connections since, which break too."""
    rules, now = KeptConnections(), asyncio.get_running_loop().time()
    trip = AsyncTrip(now + 5, can_repeat=True)
    for is_repeated in (True, False):
        async with trip.set_out():
            trip.connected(None, Life(now, now), 1.0, is_kept=True)
        assert trip.take_another_way(aiohttp.ServerDisconnectedError(), rules) == is_repeated
    assert trip.step == "", "the second one may be silent until the end"


@both
@pytest.mark.usefixtures("_idle_at_once")
def test_idle_connections_are_not_used_after_one_was_silent(kind, tmp_path):
    results, server = ask_hostile(kind, tmp_path, forgotten, GET, GET, GET, GET, timeout=4)
    assert results == [EMPTY] * 4
    # Only the second request was sent twice.
    assert (server.connections, len(server.requests)) == (4, 5)


@both
@pytest.mark.usefixtures("_idle_at_once")
def test_post_is_never_sent_twice(kind, tmp_path):
    (first, second), server = ask_hostile(kind, tmp_path, forgotten, GET, POST, timeout=0.8)
    assert first == EMPTY
    assert "no answer in time" in str(second)
    assert [request.split()[0] for request in server.requests] == [b"GET", b"POST"]


@both
@pytest.mark.usefixtures("_idle_at_once")
def test_slow_answer_on_a_kept_connection_is_awaited_on_the_next(kind, tmp_path):
    def slow(peer):
        number = 0
        while peer.read_request():
            number += 1
            if number > 1:
                time.sleep(0.6)
            peer.send(whole(EMPTY))

    # A quarter of the timeout is the patience.
    results, _ = ask_hostile(kind, tmp_path, slow, GET, GET, GET, timeout=2)
    assert results == [EMPTY] * 3


@both
def test_connection_of_the_greatest_age_is_replaced(kind, box, monkeypatch):
    settings = settings_of(box.connection)
    ask(kind, settings, GET, GET, GET)
    assert box.connections == 1
    monkeypatch.setattr(kept, "GREATEST_AGE", 0.0)
    ask(kind, settings, GET, GET, GET)
    assert box.connections == 4


@both
def test_forgetting_the_connections_leads_to_the_new_server_after_a_switch(kind, box, names):
    with socket.create_server(("127.0.0.1", 0)) as relay:
        relay.settimeout(5)
        names[box.port] = [("127.0.0.1", box.port)]
        moved = []

        def switch(_session):
            names[box.port] = [relay.getsockname()]

        def accept():
            moved.append(relay.accept()[0])
            moved[0].close()

        new_server = threading.Thread(target=accept, daemon=True)
        new_server.start()
        results = ask(kind, settings_of(box.connection, timeout=2), GET, switch, GET, forget, GET)
        new_server.join()
    assert [type(result) for result in results] == [bytes, bytes, BankConnectConnectionError]
    assert moved
    assert len(box.requests) == 2


async def test_connection_in_use_is_forgotten_when_it_is_free(box):
    settings = settings_of(box.connection)
    session = AsyncSession(settings, ssl_context("t", settings))
    box.fault(Fault(kind="delay", seconds=0.3, times=1))
    asked = asyncio.create_task(session.exchange(GET))
    while not box.requests:  # noqa: ASYNC110 - no event of ours signals it
        await asyncio.sleep(0.01)
    session.forget_connections()
    assert (await asked).status == 200
    await session.exchange(GET)
    await closed(session)
    assert box.connections == 2


def test_rules_for_kept_connections():
    rules = KeptConnections()
    life = Life(opened=100.0, used=130.0)
    assert rules.may_reuse(life, 131.0)
    assert rules.may_reuse(life, 100.0 + kept.GREATEST_AGE - 1)
    assert not rules.may_reuse(life, 100.0 + kept.GREATEST_AGE)
    # Idle connections have to answer within a quarter of the timeout, and within ten seconds.
    assert rules.patience(life, 130.0 + kept.SURELY_KNOWN, 30.0) is None
    assert rules.patience(life, 190.0, 30.0) == 7.5
    assert rules.patience(life, 190.0, 600.0) == 10.0
    rules.note_silence(150.0)
    assert rules.may_reuse(life, 130.0 + kept.SURELY_KNOWN)
    assert not rules.may_reuse(life, 190.0)
    assert rules.may_reuse(Life(opened=3700.0, used=3700.0), 3800.0)
    rules.forget(4000.0)
    assert not rules.may_reuse(Life(opened=3999.0, used=4000.0), 4000.0)
    assert rules.may_reuse(Life(opened=4001.0, used=4001.0), 4002.0)


# The queue


async def test_time_begins_when_the_request_may_go(box):
    settings = settings_of(box.connection, timeout=1.5, max_concurrency=2)
    session = AsyncSession(settings, ssl_context("t", settings))
    box.fault(Fault(kind="delay", seconds=0.25))
    answers = await asyncio.gather(*(session.exchange(GET) for _ in range(20)))
    await closed(session)
    assert {answer.status for answer in answers} == {200}
    assert box.connections == 2


# TLS


NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])


def certificate(subject, key, issuer, signing_key, *extensions):
    """Issue a certificate of a day, with these extensions: (extension, critical)."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing_key, hashes.SHA256())


class OldServer(Hostile):
    """A server with a certificate as old tools made it.

    :param with_name: False leaves out subjectAltName.
    """

    def __init__(self, folder, *, with_name):
        super().__init__(always(whole(EMPTY)))
        self._folder = folder
        self._with_name = with_name

    def __enter__(self):
        super().__enter__()
        authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an old authority")])
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        # Neither a key usage nor the identifiers of keys, and the constraint is not critical.
        ca = certificate(
            authority, ca_key, authority, ca_key, (x509.BasicConstraints(ca=True, path_length=None), False)
        )
        address = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        own = certificate(NAME, key, authority, ca_key, *([(address, False)] if self._with_name else []))
        files = {"ca": ca, "own": own}
        for name, made in files.items():
            (self._folder / name).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (self._folder / "key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self._folder / "own", self._folder / "key")
        return self

    @property
    def settings(self):
        url = self.url.replace("127.0.0.1", "localhost")
        return ConnectionSettings(url, API_KEY, SERVER_HASH, verify=str(self._folder / "ca"), timeout=10.0)


@both
def test_old_private_authority_is_trusted_as_this_python_has_it(kind, tmp_path):
    with OldServer(tmp_path, with_name=True) as server:
        (result,) = ask(kind, server.settings, GET)
    if sys.version_info < (3, 13):
        assert result == EMPTY
    else:
        assert type(result) is BankConnectCertificateError
        assert "RFC 5280" in str(result)
        # As the page on troubleshooting has it: the server's own certificate in the place of its authority's.
        with OldServer(tmp_path, with_name=True) as server:
            assert ask(kind, replace(server.settings, verify=str(tmp_path / "own")), GET) == [EMPTY]


@both
def test_certificate_without_subject_alternative_name_is_refused(kind, tmp_path):
    with OldServer(tmp_path, with_name=False) as server:
        (result,) = ask(kind, server.settings, GET)
    assert type(result) is BankConnectCertificateError


@both
def test_folder_of_authorities_is_read_as_requests_reads_it(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    with Hostile(always(whole(EMPTY))) as server:
        settings = settings_of(server.connection(tmp_path), verify=None)
        (result,) = ask(kind, settings, GET)
    assert type(result) is BankConnectCertificateError


def test_both_hooks_have_one_tls_recipe(box):
    settings = settings_of(box.connection)
    ours = ssl_context("t", settings)
    with Session("t", settings) as session:
        theirs = session.get_adapter(box.url).poolmanager.connection_pool_kw["ssl_context"]
        assert requests.Session.get(session, f"{box.url}/entity/e/").status_code == 404
    for name in ("verify_flags", "verify_mode", "check_hostname", "minimum_version", "options"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert ours.verify_mode is ssl.CERT_REQUIRED
    assert ours.hostname_checks_common_name is theirs.hostname_checks_common_name is False
    assert ours.get_ca_certs() == theirs.get_ca_certs()


async def test_an_answered_poll_leaves_nothing_to_the_garbage_collector(connection, box):
    """The tasks of thousands of polls, each with its rows, would stay until a full collection."""
    box.play(Statement(link_id="L", entity_id="e1", after=0))
    settings = settings_of(connection)
    session = AsyncSession(settings, ssl_context("t", settings))
    await session.exchange(GET)
    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(session.exchange(GET))
        assert (await task).status == 200
        left = weakref.ref(task)
        del task
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()
        await session.close()
