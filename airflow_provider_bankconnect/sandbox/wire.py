"""The server below HTTP: TLS, certificates and TCP connections, which faults can break."""

# ruff: noqa: D102 - asyncio.Protocol documents its methods

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trustme
import uvicorn
from uvicorn.server import ServerState

from .faults import Connection, moment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .clock import Clock

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_BACKLOG: Final = 2048


class Certificate:
    """A certificate authority for one run, and its certificate for this machine."""

    def __init__(self, host: str) -> None:
        self._authority = trustme.CA(organization_name="BankConnect sandbox")
        extra = () if host in {*_LOOPBACK, "0.0.0.0", "::"} else (host,)  # noqa: S104 - compared, not bound
        self._own = self._authority.issue_cert(*_LOOPBACK, *extra)

    def write(self, path: Path) -> None:
        """Write the authority's certificate, which a client must trust, as PEM."""
        self._authority.cert_pem.write_to_path(str(path))

    def for_server(self) -> ssl.SSLContext:
        """Return the server's TLS context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._own.configure_cert(context)
        return context

    def issue(self, certificate: Path, key: Path) -> None:
        """Write a certificate, followed by the authority's, and its key, for another server on this machine."""
        issued = self._authority.issue_cert(*_LOOPBACK)
        issued.private_key_pem.write_to_path(str(key))
        # Airflow 3.2 trusts only the server's own certificate file, and has no setting for an authority.
        for number, blob in enumerate([*issued.cert_chain_pems, self._authority.cert_pem]):
            blob.write_to_path(str(certificate), append=number > 0)

    def for_client(self) -> ssl.SSLContext:
        """Return the TLS context for sending webhooks: it trusts this authority and the system's."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


def listen(host: str, port: int) -> list[socket.socket]:
    """Open the listening sockets: for localhost on both loopback addresses, if the machine has both.

    :raises OSError: the port is in use, or the host is no address of this machine.
    """
    first = bind("127.0.0.1" if host == "localhost" else host, port)
    if host != "localhost":
        return [first]
    try:
        return [first, bind("::1", first.getsockname()[1])]
    except OSError as error:
        # IPv4 alone is enough without IPv6, or if a random port is in use there; a chosen port must be free on both.
        if port and error.errno == errno.EADDRINUSE:
            first.close()
            raise
        return [first]


def bind(address: str, port: int, backlog: int = _BACKLOG) -> socket.socket:
    """Open one listening socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=backlog)


class Wire(asyncio.Protocol):
    """One TCP connection, in front of uvicorn's HTTP protocol."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._http = server.make_http(self)
        # The access log is a global logger, which another uvicorn in this process may use.
        self._http.access_log = False
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()
        self.number = 0
        self.connection = Connection(moment(server.clock))

    def send(self, data: bytes) -> None:
        """Send bytes before the answer of the HTTP protocol."""
        if data and self._transport is not None and not self.lost.is_set():
            self._transport.write(data)

    def reset(self) -> None:
        """Break the connection with a TCP reset, without a TLS close."""
        # After the client has disconnected there is no socket any more.
        if self._transport is not None and not self.lost.is_set():
            sock = self._transport.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def close(self) -> None:
        """Send what is buffered, then close, even if the peer does not answer the TLS close."""
        if self._transport is not None:
            self._transport.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.lost.wait(), 1.0)
            self._transport.abort()
            await self.lost.wait()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream protocol always gets a Transport
        # uvicorn writes head and body separately; with Nagle's algorithm the body would wait 40 ms for an ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.accepted += 1
        self.number = self._server.accepted
        self._server.open.add(self)
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        self._http.connection_lost(exc)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        closes: bool | None = self._http.eof_received()
        return closes

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


class WireServer:
    """Serves an ASGI app over TLS with uvicorn's HTTP protocol; ``uvicorn.Server`` gives no access to connections.

    The app finds its connection in ``scope["state"]["wire"]``.
    """

    def __init__(self, app: Callable[..., Any], keep_alive: float, clock: Clock) -> None:
        self.accepted = 0
        self.open: set[Wire] = set()
        self.clock = clock
        self._app = app
        self._config = uvicorn.Config(
            self._respond,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type]  # goes to call_later
            ws="none",
        )
        self._config.load()
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []

    async def start(self, sockets: list[socket.socket], context: ssl.SSLContext) -> None:
        """Start to serve."""
        loop = asyncio.get_running_loop()
        # asyncio's default is to wait 30 seconds for a client to answer the TLS close.
        secured: Any = {"ssl": context, "ssl_shutdown_timeout": 1.0, "backlog": _BACKLOG}
        for sock in sockets:
            server = await loop.create_server(lambda: Wire(self), sock=sock, **secured)
            self._servers.append(server)

    async def stop(self) -> None:
        """Close all connections at once."""
        for server in self._servers:
            server.close()
        for wire in list(self.open):
            wire.abort()
        for wire in list(self.open):
            await wire.lost.wait()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=1.0)

    def make_http(self, wire: Wire) -> Any:  # noqa: ANN401 - uvicorn has several such classes, none of them public
        """Make uvicorn's HTTP protocol for one connection."""
        make: Callable[..., Any] = self._config.http_protocol_class
        return make(config=self._config, server_state=self._state, app_state={"wire": wire})

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's arguments
        connection: Connection = scope["state"]["wire"].connection

        async def send_and_note(message: Any) -> None:  # noqa: ANN401
            # Before the bytes are sent, because a test may move the clock once it has them.
            connection.answered = self.clock()
            await send(message)

        await self._app(scope, receive, send_and_note)
