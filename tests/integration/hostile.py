"""A server that keeps to no rule: TLS on loopback, and after that whatever bytes a test has it send."""

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
# For what must end by itself: a hang is broken off then, and the test sees that it was.
PATIENCE = 60.0


class Peer:
    """One connection of a client."""

    def __init__(self, sock: socket.socket, server: Hostile) -> None:
        self._sock = sock
        self._server = server

    def read_request(self) -> bytes:
        """Read one request without a body; empty when the client has gone."""
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

    def send_for_ever(self, data: bytes) -> None:
        """Send it again and again, until the client has gone."""
        while not self._server.stopping.is_set():
            self._sock.sendall(data)

    def drip(self, data: bytes) -> None:
        """Send one byte now and then, round and round, until the client has gone."""
        while True:
            for number in range(len(data)):
                self._sock.sendall(data[number : number + 1])
                if self._server.stopping.wait(0.05):
                    return

    def be_deaf(self) -> None:
        """Neither speak nor listen, and wait for the client to leave."""
        leaving = select.poll()
        leaving.register(self._sock, select.POLLRDHUP)
        while not self._server.stopping.is_set() and not leaving.poll(50):
            pass

    def say_nothing(self) -> None:
        """Keep the connection, and wait for the client to leave."""
        while self._sock.recv(65536):
            pass


class Hostile:
    """Does to every connection what ``behave`` says, in a thread of its own, for as long as a ``with`` lasts.

    :param behave: is given the :class:`Peer`; when it returns, or the client has gone, the connection is closed.
    :param tls: False hands the bare connection over, before any handshake.
    """

    def __init__(self, behave: Callable[[Peer], None], *, tls: bool = True) -> None:
        self._behave = behave
        self._tls = tls
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self.connections = 0
        self.stopping = threading.Event()
        self.lost_patience = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._ca = authority.cert_pem
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._timer = threading.Timer(PATIENCE, self._lose_patience)
        self._timer.daemon = True
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._hang_up()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    @property
    def url(self) -> str:
        """The base URL that leads here."""
        return f"https://127.0.0.1:{self._listening.getsockname()[1]}/bank-connect/v1"

    def connection(self, folder: Path, **extra: object) -> str:
        """Give an Airflow connection that leads here, as its environment variable wants it."""
        ca_file = folder / f"{self._listening.getsockname()[1]}.pem"
        self._ca.write_to_path(str(ca_file))
        extras = {"api_key": API_KEY, "verify": str(ca_file), **extra}
        return json.dumps({"conn_type": "bankconnect", "host": self.url, "password": SERVER_HASH, "extra": extras})

    def is_left_alone(self) -> bool:
        """Wait until no client has a connection open; False when one keeps it."""
        end = time.monotonic() + 10
        while self._open and time.monotonic() < end:
            time.sleep(0.01)
        return not self._open

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _lose_patience(self) -> None:
        self.lost_patience = True
        self._hang_up()

    def _hang_up(self) -> None:
        self.stopping.set()
        # Closing alone would leave their threads in accept() and recv().
        for sock in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self.stopping.is_set():
                sock, _ = self._listening.accept()
                if not self.connections:
                    self._timer.start()
                self.connections += 1
                self._open.add(sock)
                self._start(self._serve, sock)

    def _serve(self, bare: socket.socket) -> None:
        # TLS takes the descriptor over; what it was is shut down by its other name.
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
