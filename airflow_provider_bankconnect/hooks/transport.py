"""Bytes to BankConnect and back, for both hooks: deadlines, proxies, size limits, and errors of the HTTP clients.

The keys go to the connection's base URL and nowhere else.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import http.client
import logging
import socket
import ssl
import time
from dataclasses import replace
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import requests
import urllib3
from aiohttp import http_exceptions
from yarl import URL

from airflow_provider_bankconnect import __version__, api
from airflow_provider_bankconnect.hooks.addresses import Resolver
from airflow_provider_bankconnect.hooks.async_http import AsyncTrip, Connector, Response, note_addresses
from airflow_provider_bankconnect.hooks.kept import GREATEST_AGE, KeptConnections
from airflow_provider_bankconnect.hooks.sync_http import (
    MAX_INTERIM,
    Adapter,
    TooManyInterimError,
    Trip,
    trip_of_request,
)
from airflow_provider_bankconnect.hooks.tls import ssl_context, usual_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidict import CIMultiDictProxy

_log = logging.getLogger(__name__)
_HEADERS: Final = {
    "Accept": "application/json",
    # Compressed answers are refused: a few kilobytes could become gigabytes.
    "Accept-Encoding": "identity",
    "User-Agent": f"airflow-provider-bankconnect/{__version__}",
}
_CHUNK_BYTES: Final = 64 * 1024
# The limits of http.client, which are fixed: the bytes of a line of the head, and the number of headers.
_LINE_BYTES: Final = 64 * 1024
_MOST_HEADERS: Final = 99
# OpenSSL's errors of VERIFY_X509_STRICT, from X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA on.
_STRICT_CODES: Final = range(80, 94)


class Session(requests.Session):
    """A session that adds the keys, follows no redirect, and uses the connection's timeout and CA bundle.

    :raises ValueError: the CA bundle cannot be read; names the connection.
    """

    def __init__(self, conn_id: str, settings: api.ConnectionSettings) -> None:
        super().__init__()
        self._kept = KeptConnections()
        self.headers.update(_HEADERS)
        self.mount("https://", Adapter(usual_bundle(settings), ssl_context(conn_id, settings), self._kept))
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.auth = functools.partial(_add_keys, settings)
        self._settings = settings

    def exchange(self, request: api.Request) -> api.Answer:
        """Send a request and read its answer.

        A GET that was lost on a kept connection is sent once more, on a new one.

        :raises BankConnectError: there was no complete answer, or it is too large.
        """
        trip = Trip(time.monotonic() + self._settings.timeout)
        try:
            return self._exchange(request, trip)
        except api.BankConnectConnectionError:
            if not trip.is_lost:
                raise
        if trip.is_silent:
            self._kept.note_silence(time.monotonic())
        self.forget_connections()
        return self._exchange(request, Trip(trip.end))

    def _exchange(self, request: api.Request, trip: Trip) -> api.Answer:
        answer: api.Answer | None = None
        url = f"{self._settings.base_url}/{request.path}"
        token = trip_of_request.set(trip)
        try:
            with self.request(request.method, url, json=request.json, stream=True) as response:
                answer = _answer(response.status_code, response.headers.get)
                body = bytearray()
                # Unlike stream(), read1() limits the length of the lines between chunks.
                while piece := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        # urllib3 does not wrap all of its errors: a negative chunk length is a ValueError.
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if answer is None or answer.status == HTTPStatus.OK:
                raise connection_error(request, error, self._settings) from None
        finally:
            trip_of_request.reset(token)
        return answer

    def forget_connections(self) -> None:
        """Send the next request on a new connection."""
        self._kept.forget(time.monotonic())
        # requests opens new ones after a close().
        self.close()

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - as requests has it
        """Send with the connection's timeout where the caller gives none."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._settings.timeout
        return super().send(request, **kwargs)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: requests would send the keys, as custom headers, to the other host."""

    def merge_environment_settings(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as requests has it
        """Have the connection's CA bundle win over REQUESTS_CA_BUNDLE."""
        settings = super().merge_environment_settings(*arguments, **more)
        if self._settings.verify is not None:
            settings["verify"] = self._settings.verify
        return settings


def _add_keys(settings: api.ConnectionSettings, request: requests.PreparedRequest) -> requests.PreparedRequest:
    if (request.url or "").startswith(f"{settings.base_url}/"):
        request.headers.update(settings.headers)
    return request


class AsyncSession:
    """An ``aiohttp`` session with the connection's keys, timeout and proxy. It follows no redirect.

    At most ``max_concurrency`` requests are sent at once. The time of the others begins when they may go.
    """

    def __init__(self, settings: api.ConnectionSettings, context: ssl.SSLContext) -> None:
        self._settings = settings
        self._kept = KeptConnections()
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._resolver = Resolver(note_addresses)
        self._session = aiohttp.ClientSession(
            connector=Connector(
                kept=self._kept, timeout=settings.timeout, resolver=self._resolver, use_dns_cache=False, limit=0,
                keepalive_timeout=GREATEST_AGE, ssl=context,
            ),
            headers=_HEADERS,
            proxy=_proxy(settings),
            # The time limit is that of each trip.
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=Response,
            max_line_size=_LINE_BYTES,
            # Without the ": " and the end of the line, which http.client counts.
            max_field_size=_LINE_BYTES - 4,
            max_headers=_MOST_HEADERS,
        )  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._resolver.close()

    def forget_connections(self) -> None:
        """Send the next request on a new connection."""
        self._kept.forget(asyncio.get_running_loop().time())
        self._resolver.forget()

    async def exchange(self, request: api.Request) -> api.Answer:
        """Send a request and read its answer, as :meth:`Session.exchange` does."""
        async with self._slots:
            now = asyncio.get_running_loop().time()
            trip = AsyncTrip(now + self._settings.timeout, can_repeat=request.method == "GET")
            answer = None
            try:
                while answer is None:
                    answer = await self._exchange(request, trip)
            finally:
                trip.release()
            return answer

    async def _exchange(self, request: api.Request, trip: AsyncTrip) -> api.Answer | None:
        """Send a request once. Return None if it was lost on the way and has to be sent again."""
        # The path is encoded already: yarl would decode a part of it.
        url = URL(f"{self._settings.base_url}/{request.path}", encoded=True)
        answer: api.Answer | None = None
        try:
            # The keys are headers of the request: aiohttp sends those of the session to the proxy too, unencrypted.
            async with (
                trip.set_out(),
                self._session.request(
                    request.method, url, json=request.json, headers=self._settings.headers, allow_redirects=False
                ) as response,
            ):
                trip.proceed()
                answer = _answer(response.status, functools.partial(_joined, response.headers))
                body = bytearray()
                async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        except BaseException as error:
            # A mere close() would wait half a minute for the TLS shutdown of a server that does not answer.
            if trip.transport is not None:
                trip.transport.abort()
            if not isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
                raise
            if answer is None and trip.take_another_way(error, self._kept):
                return None
            if answer is None or answer.status == HTTPStatus.OK:
                raise connection_error(request, error, self._settings) from None
        trip.note_use()
        return answer


def _proxy(settings: api.ConnectionSettings) -> str | None:
    # trust_env of aiohttp would use two threads for each poll, and send the credentials of a .netrc.
    proxies = requests.utils.get_environ_proxies(settings.base_url)
    found = requests.utils.select_proxy(settings.base_url, proxies)
    proxy = found if not found or "://" in found else f"http://{found}"
    if proxy and not proxy.startswith("http://"):
        _log.warning("Deferred waits go without the environment's proxy: aiohttp supports only http:// proxies")
        return None
    return proxy or None


def _answer(status: int, header: Callable[[str], str | None]) -> api.Answer:
    return api.Answer(status, b"", header("Retry-After"), encoding=header("Content-Encoding"))


def _joined(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """Return the values of all headers of a name, as ``requests`` does; ``get()`` would return the first one."""
    values = headers.getall(name, None)
    return None if values is None else ", ".join(values)


def _refuse_large(request: api.Request, answer: api.Answer, size: int) -> None:
    if answer.status != HTTPStatus.OK and size > _CHUNK_BYTES:
        # Only the status matters. A short body is read so that the connection can be reused.
        raise OSError(errno.EFBIG, "the rest of the body is not needed")
    if size > api.MAX_ANSWER_BYTES:
        raise api.BankConnectResponseError(
            f"{request.call}: the answer is larger than {api.MAX_ANSWER_BYTES // 2**20} MiB, and was not read on"
        )


def connection_error(
    request: api.Request, error: Exception, settings: api.ConnectionSettings
) -> api.BankConnectConnectionError:
    """Make our error of a library's, whose message may quote what was sent or received."""
    causes = _causes(error)
    refused = [cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)]
    # aiohttp's own error is one of these too, but has no message.
    if messages := [getattr(cause, "verify_message", "") for cause in refused]:
        is_strict = any(getattr(cause, "verify_code", 0) in _STRICT_CODES for cause in refused)
        cure = "Check the connection's host, and its extra 'verify' for a private authority"
        strict = "Python 3.13 and later refuse a certificate that breaks RFC 5280: see the page on troubleshooting"
        return api.BankConnectCertificateError(
            f"{request.call}: the server's certificate does not verify: {max(messages, key=len)}. "
            f"{strict if is_strict else cure}"
        )
    if unresolved := next((cause for cause in causes if isinstance(cause, socket.gaierror)), None):
        host = URL(settings.base_url).host
        return api.BankConnectHostError(
            f"{request.call}: the host {host!r} does not resolve: {unresolved.strerror}. "
            "Check the connection's host, the DNS of this machine, and a proxy of the environment"
        )
    if problem := next(filter(None, map(_bad_head, causes)), None):
        return api.BankConnectConnectionError(f"{request.call}: no whole answer: {problem}")
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        return api.BankConnectConnectionError(f"{request.call}: no answer in time (the connection's timeout)")
    detail = next((f": {cause.strerror}" for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
    return api.BankConnectConnectionError(f"{request.call}: no whole answer: {type(error).__name__}{detail}")


def _bad_head(error: BaseException) -> str | None:
    """Return what a person needs to know about a head that was not read on, or None."""
    if isinstance(error, TooManyInterimError):
        return f"more than {MAX_INTERIM} interim answers (HTTP 1xx), and none after them"
    cure = "BankConnect, or a proxy on the way, has to send less"
    if isinstance(error, http.client.LineTooLong | http_exceptions.LineTooLong):
        return f"a header is longer than the limit of {_LINE_BYTES} bytes: {cure}"
    is_bad = isinstance(error, http_exceptions.BadHttpMessage) and "many headers" in error.message
    # The only error of http.client without a class of its own.
    if is_bad or type(error) is http.client.HTTPException:
        return f"it has more headers than the limit of {_MOST_HEADERS}: {cure}"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(found) < 20:  # noqa: PLR2004 - ends also where causes form a loop
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in found:
            found.append(cause)
            queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return found
