"""Files behind the links that BankConnect's answers hold: fetched without keys, over TLS, within limits.

A link needs no keys and is valid for one hour, so it is a secret: no message, log line or exception holds one.
"""

from __future__ import annotations

import logging
import threading
import time
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from airflow_provider_bankconnect import __version__, api
from airflow_provider_bankconnect.arguments import is_private_host
from airflow_provider_bankconnect.hooks.addresses import PrivateAddressError
from airflow_provider_bankconnect.hooks.kept import KeptConnections
from airflow_provider_bankconnect.hooks.sync_http import Adapter, Trip, trip_of_request
from airflow_provider_bankconnect.hooks.tls import ssl_context, usual_bundle
from airflow_provider_bankconnect.hooks.transport import connection_error

if TYPE_CHECKING:
    from collections.abc import Callable

# The size of the pieces in which a file is read and written.
PIECE_BYTES: Final = 2**20
# For a whole file. Each piece also has to arrive within the connection's timeout.
_MOST_SECONDS: Final = 15 * 60.0
_MOST_REDIRECTS: Final = 3
# Object stores answer so for a link that has expired, each in its own way.
_EXPIRED: Final = {400, 401, 403, 404, 410}
_LATER: Final = {408, 425, 429, *range(500, 600)}


class ExpiredLinkError(api.BankConnectLinkError):
    """The host refuses a link: most likely it has expired."""


class CancelledError(Exception):
    """Another file has failed, so the rest is not needed."""


class Links:
    """Fetches files, in several threads at once. It has no keys, and a session for each thread.

    :param conn_id: the connection, for messages.
    :param settings: its timeout and CA bundle count. The usual authorities are trusted beside the CA bundle: the files
        may be kept elsewhere.
    :param max_bytes: the largest file that is read.
    """

    def __init__(self, conn_id: str, settings: api.ConnectionSettings, max_bytes: int) -> None:
        self.stopping = threading.Event()
        self._settings = settings
        self._max_bytes = max_bytes
        self._context = ssl_context(conn_id, settings)
        if settings.verify:
            self._context.load_default_certs()
            self._context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        self._of_thread = threading.local()
        self._sessions: list[_Session] = []
        _silence_urllib3()

    def close(self) -> None:
        """Close all connections, and end the fetches of other threads."""
        self.stopping.set()
        for session in list(self._sessions):
            session.adapter.abort()
            session.close()

    def check_going_on(self) -> None:
        """Raise if the rest is not needed.

        :raises CancelledError: another file has failed, or the task has been ended.
        """
        if self.stopping.is_set():
            raise CancelledError("the task ends, so the rest of the files is not fetched")

    def fetch(self, call: str, link: str, write: Callable[[bytes], object]) -> None:
        """Hand a file on in pieces of at most 1 MiB.

        :param call: the call that returned the link, for messages.
        :raises ExpiredLinkError: the host refuses the link.
        :raises BankConnectLinkError: the link, or what it leads to, may not be followed or read.
        :raises BankConnectTransientError: there was no complete answer; some pieces may have been handed on.
        """
        url, trip, end = link, Trip(0.0, is_secret=True), time.monotonic() + _MOST_SECONDS
        token = trip_of_request.set(trip)
        try:
            for hop in range(_MOST_REDIRECTS + 1):
                self.check_going_on()
                what = self._check(call, url, is_redirect=hop > 0)
                self._extend(trip, end)
                with self._get(what, url, is_redirect=hop > 0) as response:
                    if (target := _redirect_of(response)) is None:
                        self._check_status(what, response)
                        self._read(what, response, write, trip, end)
                        return
                try:
                    url = urljoin(url, target)
                except ValueError:
                    raise api.BankConnectLinkError(f"{call}: a redirect of the link is not a URL") from None
        finally:
            trip_of_request.reset(token)
        raise api.BankConnectLinkError(f"{call}: the link leads to more than {_MOST_REDIRECTS} redirects")

    def _check(self, call: str, url: str, *, is_redirect: bool) -> api.Request:
        kind = "a redirect of the link" if is_redirect else "the link"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise api.BankConnectLinkError(f"{call}: {kind} is not a URL") from None
        # HTTP clients differ in what they make of a backslash.
        if parts.scheme != "https" or not host or "\\" in url:
            raise api.BankConnectLinkError(f"{call}: {kind} must be an https:// URL, and is none")
        if is_redirect and is_private_host(host):
            raise _private(call, host)
        return api.Request(f"{call} file from {host}", "GET", "")

    def _get(self, request: api.Request, url: str, *, is_redirect: bool) -> requests.Response:
        try:
            return self._session(public_only=is_redirect).get(url, stream=True, allow_redirects=False)
        except PrivateAddressError:
            raise _private(request.call, urlsplit(url).hostname) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._error(request, error) from None

    def _check_status(self, request: api.Request, response: requests.Response) -> None:
        status = response.status_code
        if status in _LATER:
            api.check_status(request, api.Answer(status, b"", response.headers.get("Retry-After")))
        if status in _EXPIRED:
            raise ExpiredLinkError(f"{request.call}: HTTP {status}: the link is refused, or has expired", status=status)
        if status != HTTPStatus.OK:
            raise api.BankConnectLinkError(f"{request.call}: HTTP {status}: expected 200", status=status)
        length = response.headers.get("Content-Length", "")
        if response.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return
        if not (length.isascii() and length.isdecimal()):
            raise api.BankConnectLinkError(f"{request.call}: the answer has no length, so its end cannot be known")
        if int(length[:20]) > self._max_bytes:
            raise self._too_large(request)

    def _read(
        self,
        request: api.Request,
        response: requests.Response,
        write: Callable[[bytes], object],
        trip: Trip,
        end: float,
    ) -> None:
        size = 0
        while True:
            self.check_going_on()
            self._extend(trip, end)
            try:
                piece = response.raw.read(PIECE_BYTES, decode_content=False)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise self._error(request, error) from None
            if not piece:
                return
            size += len(piece)
            if size > self._max_bytes:
                raise self._too_large(request)
            write(piece)

    def _extend(self, trip: Trip, end: float) -> None:
        trip.end = trip.limit = min(end, time.monotonic() + self._settings.timeout)

    def _session(self, *, public_only: bool) -> requests.Session:
        name = f"public_{public_only}"
        session: _Session | None = getattr(self._of_thread, name, None)
        if session is None:
            adapter = Adapter(usual_bundle(self._settings), self._context, KeptConnections(), public_only=public_only)
            session = _Session(usual_bundle(self._settings), adapter, self._settings.timeout)
            setattr(self._of_thread, name, session)
            self._sessions.append(session)
        return session

    def _too_large(self, request: api.Request) -> api.BankConnectLinkError:
        limit = f"{self._max_bytes / 2**20:g} MiB (max_file_bytes)"
        return api.BankConnectLinkError(f"{request.call}: the file is larger than {limit}, and was not read on")

    def _error(self, request: api.Request, error: Exception) -> api.BankConnectConnectionError:
        made = connection_error(request, error, self._settings)
        if isinstance(made, api.BankConnectHostError):
            # Its message names the connection's host.
            made = api.BankConnectConnectionError(f"{request.call}: the host does not resolve on this machine")
        return made


class _Session(requests.Session):
    """A session without keys, cookies, redirects, and the credentials of a .netrc."""

    def __init__(self, bundle: str, adapter: Adapter, timeout: float) -> None:
        super().__init__()
        self._bundle = bundle
        self._timeout = timeout
        self._of_host: dict[str, Any] = {}
        self.adapter = adapter
        self.mount("https://", adapter)
        self.headers.update(
            # A compressed file would be another one.
            {
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": f"airflow-provider-bankconnect/{__version__}",
            }
        )
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        # requests reads a .netrc where a session has no auth.
        self.auth = lambda request: request

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: each redirect is checked first."""

    def merge_environment_settings(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as requests has it
        """Use the proxies of the environment, and the authorities of the connection."""
        host = urlsplit(arguments[0]).netloc
        if host not in self._of_host:
            # To read the environment takes longer than to read a small file.
            self._of_host[host] = super().merge_environment_settings(*arguments, **more)
        return {**self._of_host[host], "verify": self._bundle}

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401
        """Send with the connection's timeout."""
        return super().send(request, **{**kwargs, "timeout": self._timeout})


def _redirect_of(response: requests.Response) -> str | None:
    is_redirect = response.status_code in {301, 302, 303, 307, 308}
    return response.headers.get("Location") if is_redirect else None


def _private(call: str, host: str | None) -> api.BankConnectLinkError:
    problem = f"the link redirects to {host!r}, which is private, loopback or link-local, and was not followed"
    return api.BankConnectLinkError(f"{call}: {problem}")


class _NoLinks(logging.Filter):
    """Drops what urllib3 logs about requests of links: it holds their paths."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - logging's signature
        """Return False while this thread fetches a link."""
        trip = trip_of_request.get()
        return trip is None or not trip.is_secret


def _silence_urllib3() -> None:
    for name in ("connection", "connectionpool", "response", "util.retry"):
        logger = logging.getLogger(f"urllib3.{name}")
        if not any(isinstance(one, _NoLinks) for one in logger.filters):
            logger.addFilter(_NoLinks())
