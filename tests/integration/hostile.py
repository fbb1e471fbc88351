"""A server on loopback that sends any bytes over TLS."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Self

import trustme

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

API_KEY = "planted-api-key-0f1e2d3c"
SERVER_HASH = "planted-server-hash-4b5a6978"
# A test that hangs is ended after this, and fails.
PATIENCE = 60.0
# Slow answers end after this many bytes, ten seconds, with every client.
MOST_DROPS = 200


class Peer:
    """One connection of a client."""

    def __init__(self, sock: socket.socket, server: Hostile) -> None:
        self._sock = sock
        self._server = server

    def read_request(self) -> bytes:
        """Read one request without a body; empty when the client has left."""
        request = b""
        while b"\r\n\r\n" not in request:
            data = self._sock.recv(65536)
            if not data:
                return b""
            request += data
        self._server.requests.append(request)
        self._server.asked.set()
        return request

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.sendall(data)

    def drip(self, data: bytes) -> None:
        """Send twenty bytes a second of it, repeated, until the client has left."""
        for number in range(MOST_DROPS):
            self._sock.sendall(data[number % len(data) :][:1])
            if self._server.stopping.wait(0.05):
                return

    def refuse_others(self) -> None:
        """Have the server refuse further connections."""
        # close() alone would not wake the thread in accept().
        with contextlib.suppress(OSError):
            self._server.listening.shutdown(socket.SHUT_RDWR)

    def stop_reading(self) -> None:
        """Neither send nor read, and wait for the client to leave."""
        leaving = select.poll()
        leaving.register(self._sock, select.POLLRDHUP)
        while not self._server.stopping.is_set() and not leaving.poll(50):
            pass

    def stay_silent(self) -> None:
        """Send nothing, and wait for the client to leave."""
        while self._sock.recv(65536):
            pass


class Hostile:
    """Calls ``behave`` for every connection, in a thread of its own, inside a ``with``.

    :param behave: gets the :class:`Peer`; the connection is closed when it returns or the client has left.
    :param tls: False hands over the connection without a TLS handshake.
    """

    def __init__(self, behave: Callable[[Peer], None], *, tls: bool = True) -> None:
        self._behave = behave
        self._tls = tls
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self.connections = 0
        self.stopping = threading.Event()
        self.timed_out = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self._context)
        self._ca = authority.cert_pem
        self.listening = socket.create_server(("127.0.0.1", 0))
        self._timer = threading.Timer(PATIENCE, self._time_out)
        self._timer.daemon = True
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._close_all()
        for thread in self._threads:
            thread.join()
        self.listening.close()

    @property
    def url(self) -> str:
        """The base URL of this server."""
        return f"https://127.0.0.1:{self.listening.getsockname()[1]}/bank-connect/v1"

    def connection(self, folder: Path, **extra: object) -> str:
        """Return an Airflow connection to this server, as JSON for its environment variable."""
        ca_file = folder / f"{self.listening.getsockname()[1]}.pem"
        self._ca.write_to_path(str(ca_file))
        extras = {"api_key": API_KEY, "verify": str(ca_file), **extra}
        return json.dumps({"conn_type": "bankconnect", "host": self.url, "password": SERVER_HASH, "extra": extras})

    def has_no_connections(self) -> bool:
        """Wait until no client has a connection open; return False when one keeps it."""
        end = time.monotonic() + 10
        while self._open and time.monotonic() < end:
            time.sleep(0.01)
        return not self._open

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _time_out(self) -> None:
        self.timed_out = True
        self._close_all()

    def _close_all(self) -> None:
        self.stopping.set()
        # close() alone would not wake the threads in accept() and recv().
        for sock in (self.listening, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self.stopping.is_set():
                sock, _ = self.listening.accept()
                if not self.connections:
                    self._timer.start()
                self.connections += 1
                self._open.add(sock)
                self._start(self._serve, sock)

    def _serve(self, bare: socket.socket) -> None:
        # The TLS socket takes over the descriptor of the bare one.
        with contextlib.suppress(OSError), contextlib.closing(self._secured(bare)) as sock:
            self._open.add(sock)
            self._open.discard(bare)
            try:
                if isinstance(sock, ssl.SSLSocket):
                    sock.do_handshake()
                self._behave(Peer(sock, self))
            finally:
                self._open.discard(sock)

    def _secured(self, bare: socket.socket) -> socket.socket:
        if not self._tls:
            return bare
        return self._context.wrap_socket(bare, server_side=True, do_handshake_on_connect=False)
