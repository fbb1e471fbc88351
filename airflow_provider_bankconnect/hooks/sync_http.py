"""What the synchronous hook changes in ``requests`` and in the libraries beneath it: one time limit for a request."""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakSet

import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from airflow_provider_bankconnect.hooks import addresses
from airflow_provider_bankconnect.hooks.kept import KeptConnections, Life
from airflow_provider_bankconnect.hooks.tls import context_for

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_INTERIM: Final = 100
# How far a socket's timeout may be above the time that is left.
_SLACK: Final = 1.05
# Where the caller of a session sets no timeout: a day, the longest that a connection may have.
_LONGEST: Final = 86_400.0


class TooManyInterimError(http.client.HTTPException):
    """A server sends one interim answer after another."""


@dataclass
class Trip:
    """One request on its way. ``limit`` is when the present step has to be over, ``end`` when all of it has.

    ``is_secret``: its path must not be logged.
    """

    end: float
    is_secret: bool = False
    limit: float = field(init=False)
    is_kept: bool = False
    is_answered: bool = False

    def __post_init__(self) -> None:
        self.limit = self.end

    @property
    def is_lost(self) -> bool:
        """Whether it went out on a kept connection and nothing came back, and there is time for another try."""
        return self.is_kept and not self.is_answered and time.monotonic() < self.end

    @property
    def is_silent(self) -> bool:
        """Whether the present step has taken too long."""
        return time.monotonic() >= self.limit


trip_of_request: ContextVar[Trip | None] = ContextVar("bankconnect_trip", default=None)


def _limit(sock: socket.socket) -> Trip | None:
    """Give a socket the time that is left: the timeout of ``requests`` starts anew with each byte received."""
    trip = trip_of_request.get()
    if trip is not None:
        left = trip.limit - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # Each settimeout() lets another thread run, and a file of a megabyte takes 64 reads.
        if not left <= (sock.gettimeout() or 0.0) <= _SLACK * left:
            sock.settimeout(left)
    return trip


class _Socket(socket.socket):
    """A socket before TLS, where a proxy answers."""

    def recv_into(self, *arguments: Any, **more: Any) -> int:  # noqa: ANN401 - as socket has it
        _limit(self)
        return super().recv_into(*arguments, **more)


class TlsSocket(ssl.SSLSocket):
    """A socket with TLS."""

    used: float | None = None

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes:  # noqa: A002 - ssl's own
        """Read in the time that is left."""
        trip = _limit(self)
        data = super().read(len, buffer)
        if data:
            self.used = time.monotonic()
            if trip is not None:
                trip.is_answered, trip.limit = True, trip.end
        return data


class _Response(http.client.HTTPResponse):
    _heads = 0

    def begin(self) -> None:
        """Read the head of the answer. ``http.client`` takes an interim one, but for 100, for the real one."""
        super().begin()
        while 100 <= self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:  # noqa: PLR2004
            # begin() reads nothing where there are headers.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()

    def _read_status(self) -> tuple[str, int, str]:
        # begin() itself skips 100, however often it comes.
        self._heads += 1
        if self._heads > MAX_INTERIM + 1:
            raise TooManyInterimError
        return super()._read_status()  # type: ignore[misc,no-any-return]


class _Connection(urllib3.connection.HTTPSConnection):
    response_class = _Response
    kept: ClassVar[KeptConnections]
    public_only: ClassVar[bool]
    opened: ClassVar[WeakSet[socket.socket]]
    _life: Life | None = None
    _is_new = True
    # While it connects: the addresses that are left.
    _addresses: list[addresses.AddressInfo] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the connection may carry one more request; if not, urllib3 opens a new one."""
        life = self._last_used()
        return super().is_connected and life is not None and self.kept.may_reuse(life, time.monotonic())

    def connect(self) -> None:
        """Connect to the first address that answers and completes the TLS handshake."""
        trip = self._trip()
        token = trip_of_request.set(trip)
        try:
            while True:
                try:
                    super().connect()
                    break
                except (ssl.SSLError, TimeoutError, ConnectionError):
                    if not self._addresses or time.monotonic() >= trip.end:
                        raise
                    if self.sock is not None:
                        self.sock.close()
        finally:
            self._addresses = None
            trip.limit = trip.end
            trip_of_request.reset(token)
        self.sock.settimeout(self.timeout)
        self.opened.add(self.sock)
        self._life, self._is_new = Life(time.monotonic(), time.monotonic()), True

    def request(self, method: str, url: str, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as urllib3 has it
        """Send a request. A connection that was idle has to answer it soon: it may be forgotten on the way."""
        trip, life, now = trip_of_request.get(), self._last_used(), time.monotonic()
        if trip is not None and life is not None and not self._is_new and method == "GET":
            trip.is_kept = True
            patience = self.kept.patience(life, now, trip.end - now)
            trip.limit = trip.end if patience is None else now + patience
        self._is_new = False
        super().request(method, url, *arguments, **more)

    def _trip(self) -> Trip:
        return trip_of_request.get() or Trip(time.monotonic() + (self.timeout or _LONGEST))

    def _last_used(self) -> Life | None:
        if self._life is not None:
            self._life.used = getattr(self.sock, "used", None) or self._life.opened
        return self._life

    def _new_conn(self) -> socket.socket:
        trip = self._trip()
        # With a dot at the end it is looked up as it is, without the search domains.
        host = getattr(self, "_dns_host", self.host).strip("[]")
        options, source = self.socket_options, self.source_address
        begin = partial(addresses.begin, _Socket, options=options, source=source)
        try:
            if self._addresses is None:
                self._addresses = addresses.resolve(host, self.port, allowed_gai_family(), trip.end - time.monotonic())
                # A proxy looks the host up itself.
                if self.public_only and self.proxy is None:
                    addresses.refuse_private(self._addresses)
            sock, address = addresses.race(self._addresses, trip.end - time.monotonic(), begin)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
        self._addresses.remove(address)
        # The others have a chance too, if this one does not complete the handshake.
        now = time.monotonic()
        left = max((trip.end - now) / (len(self._addresses) + 1), 0.001)
        trip.limit = now + left
        sock.settimeout(left)
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock


class Adapter(HTTPAdapter):
    """Sends requests over TLS, with one context for each CA bundle.

    :param bundle: the CA bundle of ``context``.
    :param kept: the rules for kept connections.
    :param public_only: refuse a host with an address that is not one of the public internet.
    """

    def __init__(
        self, bundle: str, context: ssl.SSLContext, kept: KeptConnections, *, public_only: bool = False
    ) -> None:
        self._contexts = {bundle: _with_limits(context)}
        self._first = context
        self._opened: WeakSet[socket.socket] = WeakSet()
        more = {"kept": kept, "public_only": public_only, "opened": self._opened}
        connection = type("_Connection", (_Connection,), more)
        self._pool = type("_Pool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": connection})
        super().__init__()

    def abort(self) -> None:
        """End what is under way on all connections, in other threads too."""
        for sock in list(self._opened):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as requests has it
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **more, ssl_context=self._first)
        self._use_pool(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401
        """Make the pools of a proxy's connections."""
        manager = super().proxy_manager_for(proxy, **more, ssl_context=self._first)
        if not proxy.lower().startswith("socks"):
            self._use_pool(manager)
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ANN401
        """Have a pool use the context of its CA bundle; urllib3 would load the file again for each connection."""
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        is_over_tls_proxy = conn.proxy is not None and conn.proxy.scheme == "https"
        if verify and not is_over_tls_proxy:
            bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
            if bundle not in self._contexts:
                self._contexts[bundle] = _with_limits(context_for(bundle))
            conn.conn_kw["ssl_context"] = self._contexts[bundle]
            conn.ca_certs = conn.ca_cert_dir = None

    def _use_pool(self, manager: urllib3.PoolManager) -> None:
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "https": self._pool}


def _with_limits(context: ssl.SSLContext) -> ssl.SSLContext:
    context.sslsocket_class = TlsSocket
    return context
