"""Hosts with several addresses, of which some do not answer: RFC 8305 ("happy eyeballs").

``aiohttp`` races the addresses itself. ``requests`` would try one after another, each for the whole timeout.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import os
import queue
import selectors
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from airflow_provider_bankconnect.arguments import is_private_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    SocketOptions: TypeAlias = Sequence[tuple[int, int, int | bytes]]

# Family, type, protocol, canonical name, address: as getaddrinfo() returns them.
AddressInfo: TypeAlias = tuple[int, int, int, str, Any]

# The "connection attempt delay" of RFC 8305, and of aiohttp.
ATTEMPT_DELAY: Final = 0.25
# As aiohttp's own cache.
_CACHE_SECONDS: Final = 10.0
_IN_PROGRESS: Final = {0, errno.EINPROGRESS, errno.EWOULDBLOCK}


class PrivateAddressError(ValueError):
    """A host that has to be public has an address that is not one of the public internet."""


def resolve(host: str, port: int, family: int, seconds: float) -> list[AddressInfo]:
    """Look a host up, and return its addresses, those of both families in turn.

    :raises TimeoutError: it takes longer. The look-up goes on in a thread: nothing can end it.
    :raises OSError: the host does not resolve.
    """
    outcome: queue.SimpleQueue[list[AddressInfo] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            outcome.put(list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)))
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            outcome.put(error)

    threading.Thread(target=look_up, name="bankconnect-dns", daemon=True).start()
    try:
        found = outcome.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise TimeoutError(f"the look-up of {host!r} takes too long") from None
    if isinstance(found, Exception):
        raise found
    return _in_turn(found)


def refuse_private(found: Iterable[AddressInfo]) -> None:
    """Refuse a host with an address that is not one of the public internet.

    :raises PrivateAddressError: it has one.
    """
    for *_, where in found:
        if is_private_address(ipaddress.ip_address(where[0].partition("%")[0])):
            raise PrivateAddressError


def _in_turn(found: Iterable[AddressInfo]) -> list[AddressInfo]:
    families: dict[int, list[AddressInfo]] = {}
    for address in dict.fromkeys(found):
        families.setdefault(address[0], []).append(address)
    rounds = itertools.zip_longest(*families.values())
    return [address for one_round in rounds for address in one_round if address is not None]


def race(
    addresses: Iterable[AddressInfo], seconds: float, begin: Callable[[AddressInfo], socket.socket]
) -> tuple[socket.socket, AddressInfo]:
    """Connect to the first address that answers. The next attempt starts after a moment, or a failure.

    :param begin: makes a socket and begins to connect it; see :func:`begin`.
    :raises TimeoutError: none answers in time.
    :raises OSError: all refuse; the error of the last one.
    """
    end = time.monotonic() + seconds
    next_at = 0.0
    waiting = deque(addresses)
    error = OSError(errno.EHOSTUNREACH, "the host has no address")
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                now = time.monotonic()
                if now >= end:
                    raise TimeoutError(errno.ETIMEDOUT, "no address answers")
                if waiting and now >= next_at:
                    address = waiting.popleft()
                    try:
                        selector.register(begin(address), selectors.EVENT_WRITE, address)
                        next_at = now + ATTEMPT_DELAY
                    except OSError as failure:
                        error = failure
                    continue
                for key, _ in selector.select((min(next_at, end) if waiting else end) - now):
                    sock: Any = key.fileobj
                    selector.unregister(sock)
                    if not (failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        return sock, key.data
                    sock.close()
                    error, next_at = OSError(failed, os.strerror(failed)), 0.0
        finally:
            for key in (selector.get_map() or {}).values():
                key.fileobj.close()  # type: ignore[union-attr] # all are sockets
    raise error


def begin(
    make: type[socket.socket], address: AddressInfo, options: SocketOptions | None, source: tuple[str, int] | None
) -> socket.socket:
    """Make a socket of this class, and begin to connect it."""
    family, kind, protocol, _, where = address
    sock = make(family, kind, protocol)
    try:
        for option in options or ():
            sock.setsockopt(*option)
        if source:
            sock.bind(source)
        sock.settimeout(0)
        failed = sock.connect_ex(where)
    except BaseException:
        sock.close()
        raise
    if failed not in _IN_PROGRESS:
        sock.close()
        raise OSError(failed, os.strerror(failed))
    return sock


class Resolver(AbstractResolver):
    """Looks hosts up for ``aiohttp``, and tells each request how many addresses there are.

    :param found: called with the number of addresses; returns how many of them to move to the end.
    """

    def __init__(self, found: Callable[[int], int]) -> None:
        self._resolver = aiohttp.DefaultResolver()
        self._found = found
        self._look_ups: dict[tuple[str, int, int], asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host."""
        key = (host, port, family)
        look_up = self._look_ups.get(key)
        if look_up is None:
            # One look-up for all who ask at once; it continues if one of them is cancelled.
            look_up = self._look_ups[key] = asyncio.create_task(self._resolver.resolve(host, port, family))
            look_up.add_done_callback(lambda done: self._keep(key, done))
        addresses = await asyncio.shield(look_up)
        moved = self._found(len(addresses)) % max(len(addresses), 1)
        return [*addresses[moved:], *addresses[:moved]]

    def forget(self) -> None:
        """Look every host up anew."""
        self._look_ups.clear()

    async def close(self) -> None:
        """Stop all look-ups."""
        look_ups = list(self._look_ups.values())
        self._look_ups.clear()
        for look_up in look_ups:
            look_up.cancel()
        await asyncio.gather(*look_ups, return_exceptions=True)
        await self._resolver.close()

    def _keep(self, key: tuple[str, int, int], look_up: asyncio.Task[list[ResolveResult]]) -> None:
        seconds = _CACHE_SECONDS
        if look_up.cancelled() or look_up.exception():
            seconds = 0.0
        look_up.get_loop().call_later(seconds, self._drop, key, look_up)

    def _drop(self, key: tuple[str, int, int], look_up: asyncio.Task[list[ResolveResult]]) -> None:
        if self._look_ups.get(key) is look_up:
            del self._look_ups[key]
