"""Bytes to BankConnect and back, for both hooks: TLS, deadlines, proxies, size limits, and errors of the HTTP clients.

The keys go to the connection's base URL and nowhere else.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import socket
import ssl
import time
from contextvars import ContextVar
from dataclasses import replace
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context
from yarl import URL

from airflow_provider_bankconnect import __version__, api

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from aiohttp.connector import Connection
    from typing_extensions import Buffer

_log = logging.getLogger(__name__)
_HEADERS: Final = {
    "Accept": "application/json",
    # Compressed answers are refused: a few kilobytes could become gigabytes.
    "Accept-Encoding": "identity",
    "User-Agent": f"airflow-provider-bankconnect/{__version__}",
}
_CHUNK_BYTES: Final = 64 * 1024
# Longer than usual poke intervals, so that the next poll needs no TLS handshake.
_KEEP_ALIVE_SECONDS: Final = 15 * 60


class Session(requests.Session):
    """A session that adds the keys, follows no redirect, and uses the connection's timeout and CA bundle.

    :raises ValueError: the CA bundle cannot be read; names the connection.
    """

    def __init__(self, conn_id: str, settings: api.ConnectionSettings) -> None:
        super().__init__()
        if settings.verify is not None:
            ssl_context(conn_id, settings)
        self.headers.update(_HEADERS)
        self.mount("https://", _Adapter())
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.auth = functools.partial(_add_keys, settings)
        self._settings = settings

    def exchange(self, request: api.Request) -> api.Answer:
        """Send a request and read its answer.

        :raises BankConnectError: there was no complete answer, or it is too large.
        """
        answer: api.Answer | None = None
        url = f"{self._settings.base_url}/{request.path}"
        token = _deadline.set(time.monotonic() + self._settings.timeout)
        try:
            with self.request(request.method, url, json=request.json, stream=True) as response:
                answer = _answer(response.status_code, response.headers)
                body = bytearray()
                # Unlike stream(), read1() limits the length of the lines between chunks.
                while piece := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        # urllib3 does not wrap all of its errors: a negative chunk length is a ValueError.
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if answer is None or answer.status == HTTPStatus.OK:
                raise _connection_error(request, error, self._settings) from None
        finally:
            _deadline.reset(token)
        return answer

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


_deadline: ContextVar[float] = ContextVar("bankconnect_deadline", default=math.inf)


class _Socket(ssl.SSLSocket):
    """Limits the time of a whole request: the timeout of ``requests`` starts anew with each byte received."""

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes:  # noqa: A002 - ssl's own
        left = _deadline.get() - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if left < (self.gettimeout() or math.inf):
            self.settimeout(left)
        return super().read(len, buffer)


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as requests has it
        super().init_poolmanager(*arguments, **more, ssl_context=_deadline_context())

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401
        return super().proxy_manager_for(proxy, **more, ssl_context=_deadline_context())


def _deadline_context() -> ssl.SSLContext:
    context = create_urllib3_context()
    context.sslsocket_class = _Socket
    return context


class AsyncSession:
    """An ``aiohttp`` session with the connection's keys, timeout and proxy. It follows no redirect."""

    def __init__(self, settings: api.ConnectionSettings, context: ssl.SSLContext) -> None:
        self._settings = settings
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=settings.max_concurrency, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=context),
            headers=_HEADERS,
            proxy=_proxy(settings),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def exchange(self, request: api.Request) -> api.Answer:
        """Send a request and read its answer, as :meth:`Session.exchange` does."""
        # The path is encoded already: yarl would decode a part of it.
        url = URL(f"{self._settings.base_url}/{request.path}", encoded=True)
        answer: api.Answer | None = None
        _transport.set(None)
        try:
            # The keys are headers of the request: aiohttp sends those of the session to the proxy too, unencrypted.
            async with self._session.request(
                request.method, url, json=request.json, headers=self._settings.headers, allow_redirects=False
            ) as response:
                answer = _answer(response.status, response.headers)
                body = bytearray()
                async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        except BaseException as error:
            # A mere close() would wait half a minute for the TLS shutdown of a server that does not answer.
            if (transport := _transport.get()) is not None:
                transport.abort()
            if not isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
                raise
            if answer is None or answer.status == HTTPStatus.OK:
                raise _connection_error(request, error, self._settings) from None
        return answer


# The transport of the running task's latest request.
_transport: ContextVar[asyncio.Transport | None] = ContextVar("bankconnect_transport", default=None)


class _Connector(aiohttp.TCPConnector):
    async def connect(self, *arguments: Any, **more: Any) -> Connection:  # noqa: ANN401 - as aiohttp has it
        connection = await super().connect(*arguments, **more)
        _transport.set(connection.transport)
        return connection


def ssl_context(conn_id: str, settings: api.ConnectionSettings) -> ssl.SSLContext:
    """Make a context that trusts the same authorities as ``requests``, so that all modes of a sensor agree.

    :raises ValueError: the CA bundle cannot be read; names the connection.
    """
    usual = requests.Session().merge_environment_settings(settings.base_url, {}, None, None, None)["verify"]
    bundle = settings.verify or (usual if isinstance(usual, str) else DEFAULT_CA_BUNDLE_PATH)
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError):
        where = "extra 'verify'" if settings.verify else "the environment"
        problem = f"{bundle!r} of {where} is no readable bundle of certificates"
        raise ValueError(f"Connection {conn_id!r}: {problem}") from None


def _proxy(settings: api.ConnectionSettings) -> str | None:
    # trust_env of aiohttp would use two threads for each poll, and send the credentials of a .netrc.
    proxies = requests.utils.get_environ_proxies(settings.base_url)
    found = requests.utils.select_proxy(settings.base_url, proxies)
    proxy = found if not found or "://" in found else f"http://{found}"
    if proxy and not proxy.startswith("http://"):
        _log.warning("Deferred waits go without the environment's proxy: aiohttp supports only http:// proxies")
        return None
    return proxy or None


def _answer(status: int, headers: Mapping[str, str]) -> api.Answer:
    return api.Answer(status, b"", headers.get("Retry-After"), encoding=headers.get("Content-Encoding"))


def _refuse_large(request: api.Request, answer: api.Answer, size: int) -> None:
    if answer.status != HTTPStatus.OK and size > _CHUNK_BYTES:
        # Only the status matters. A short body is read so that the connection can be reused.
        raise OSError(errno.EFBIG, "the rest of the body is not needed")
    if size > api.MAX_ANSWER_BYTES:
        raise api.BankConnectResponseError(
            f"{request.call}: the answer is larger than {api.MAX_ANSWER_BYTES // 2**20} MiB, and was not read on"
        )


def _connection_error(
    request: api.Request, error: Exception, settings: api.ConnectionSettings
) -> api.BankConnectConnectionError:
    """Make our error of a library's, whose message may quote what was sent or received."""
    causes = _causes(error)
    refused = [cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)]
    # aiohttp's own error is one of these too, but has no message.
    if messages := [getattr(cause, "verify_message", "") for cause in refused]:
        return api.BankConnectCertificateError(
            f"{request.call}: the server's certificate does not verify: {max(messages, key=len)}. "
            "Check the connection's host, and its extra 'verify' for a private authority"
        )
    if unresolved := next((cause for cause in causes if isinstance(cause, socket.gaierror)), None):
        host = URL(settings.base_url).host
        return api.BankConnectHostError(
            f"{request.call}: the host {host!r} does not resolve: {unresolved.strerror}. "
            "Check the connection's host, the DNS of this machine, and a proxy of the environment"
        )
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        return api.BankConnectConnectionError(f"{request.call}: no answer in time (the connection's timeout)")
    detail = next((f": {cause.strerror}" for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
    return api.BankConnectConnectionError(f"{request.call}: no whole answer: {type(error).__name__}{detail}")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(found) < 20:  # noqa: PLR2004 - ends also where causes form a loop
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in found:
            found.append(cause)
            queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return found
