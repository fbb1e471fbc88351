"""The sandbox as a Python object: a mock BankConnect server that runs in its own thread within a ``with`` block."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, get_args

from .app import PREFIX, Keys, Vendor, make_app
from .clock import Clock, SimulatedClock, real_clock
from .controls import Controls
from .faults import Faults
from .files import Links
from .models import CALLS, TransactionStatus
from .silent import SilentAddress
from .webhooks import Sender
from .wire import Certificate, WireServer, listen
from .world import World

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from .models import Analysis, Call, Delivery, Fault, Received, Record, Statement

_Text = TypeVar("_Text", bound=str)
_ANYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


class Sandbox:
    """A mock BankConnect server over HTTPS on loopback.

    Example::

        with Sandbox(statements=[Statement(link_id="loan-4711", after=5)]) as box:
            requests.get(box.url + "/entity/webhook_payloads/?link_id=loan-4711", verify=box.ca_file, headers=...)

    :param api_key: and ``server_hash``: the keys that requests must carry; None for invented ones.
    :param statements: the statements of the timeline; ``box.play()`` adds more.
    :param faults: the faults from the start; ``box.fault()`` adds more.
    :param waits_for_request: begin the timeline of ``statements`` and ``faults`` with the first request to the API, and
        not at the start.
    :param seed: the same seed invents the same customers, and the same faults for the same requests.
    :param timezone: zone of the payloads' ``date_time``.
    :param history_omits_unsent: omit from the history the statements that sent no webhook, because of the mode or
        because no endpoint was registered. A statement that lies in the past when it is added counts as sent.
    :param unknown_link: the answer to the history of an unknown link, ``"empty"`` or ``"404"``.
    :param transaction_status: what the items of ``identity`` tell about the transactions: ``"sent"``, their state;
        ``"absent"``, nothing, as for an old account; ``"ahead"``, they say that the transactions are over as soon as
        the statement itself has ended.
    :param not_enabled: calls that answer 403, as those that are not enabled for the account.
    :param host: the address to listen on; ``localhost`` means both loopback addresses.
    :param port: 0 for a free one.
    :param silent_address: an address of ``localhost`` that answers no connection, ``"::1"`` or ``"127.0.0.1"``; the
        sandbox listens on the other one. A further loopback address is possible if ``localhost`` has it.
    :param keep_alive: seconds for which an idle connection is kept.
    :param webhook_retries: how often a webhook without an answer is sent again, a second later. BankConnect never
        sends one again.
    :param log_size: how many requests are kept in ``box.requests``; 0 for none, None for all.
    :param clock: returns aware datetimes; with :class:`~.clock.SimulatedClock` a test moves the time.
    :param on_event: called with one line of text for each event, from any thread. The text never holds a key.
    """

    _thread: threading.Thread | None = None
    _failure: BaseException | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(
        self,
        *,
        api_key: str | None = None,
        server_hash: str | None = None,
        statements: Iterable[Statement] = (),
        faults: Iterable[Fault] = (),
        waits_for_request: bool = False,
        seed: int = 0,
        timezone: str = "UTC",
        history_omits_unsent: bool = False,
        unknown_link: Literal["empty", "404"] = "empty",
        transaction_status: TransactionStatus = "sent",
        not_enabled: Iterable[Call] = (),
        host: str = "localhost",
        port: int = 0,
        silent_address: str | None = None,
        keep_alive: float = 600.0,
        webhook_retries: int = 0,
        log_size: int | None = 100_000,
        clock: Clock = real_clock,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        invented = random.Random(f"{seed}/keys")
        self.api_key = _key("api_key", api_key, f"sandbox_{invented.getrandbits(160):040x}")
        self.server_hash = _key("server_hash", server_hash, f"{invented.getrandbits(256):064x}")
        self.seed = seed
        self.clock = clock
        self.port, self._host = port, host
        self._silent = None if silent_address is None else SilentAddress(silent_address, host)
        self._statements, self._first_faults = list(statements), list(faults)
        self._waits_for_request = waits_for_request
        log = on_event or (lambda _: None)
        status = _one_of("transaction_status", transaction_status, get_args(TransactionStatus))
        self._world = World(
            clock=clock, seed=seed, timezone=timezone, omits_unsent=history_omits_unsent, status=status, log=log
        )
        self._faults = Faults(clock, seed)
        self._sender = Sender(self._world, self._faults, clock=clock, retries=webhook_retries, log=log)
        self._vendor = Vendor(
            self._world,
            self._faults,
            Keys(self.api_key, self.server_hash),
            Links(clock, lambda: self._origin),
            unknown_link=unknown_link,
            not_enabled={_one_of("not_enabled", call, CALLS) for call in not_enabled},
            log_size=log_size,
            log=log,
        )
        self._controls = Controls(
            self._vendor, self._faults, self._sender.deliveries, play=self.play, webhook=self.webhook, log=log
        )
        self._wires = WireServer(make_app(self._vendor, self._controls), keep_alive, clock)
        self._wake = asyncio.Event()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, and the timeline unless it waits for a request.

        :raises OSError: the port is in use, or the host or the silent address is no address of this machine.
        """
        sockets = self._silent.listen(self.port) if self._silent else listen(self._host, self.port)
        self.port = sockets[0].getsockname()[1]
        self._certificate = Certificate(self._host)
        self._folder = tempfile.TemporaryDirectory(prefix="bankconnect-sandbox-")
        self._certificate.write(Path(self.ca_file))
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(sockets, up), name="bankconnect-sandbox", daemon=True)
        self._thread.start()
        up.wait()
        if self._failure is not None:
            self.stop()
            raise self._failure
        self._world.on_change = self._wake_sender
        if isinstance(self.clock, SimulatedClock):
            self.clock.on_advance(self._clock_moved)
        if self._waits_for_request:
            self._vendor.begin = self._begin
        else:
            self._begin()
        return self

    def _begin(self) -> None:
        for fault in self._first_faults:
            self.fault(fault)
        for statement in self._statements:
            self.play(statement)

    def stop(self) -> None:
        """Stop the server at once, and remove its files."""
        if self._thread is None or self._loop is None:
            return
        self._world.on_change = lambda: None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._vendor.stopping.set)
        self._wake_sender()
        self._thread.join()
        self._thread = self._loop = None
        if self._silent:
            self._silent.close()
        self._folder.cleanup()

    # Addresses

    @property
    def url(self) -> str:
        """The base URL of the mock API."""
        return f"{self._origin}{PREFIX}"

    @property
    def inbox_url(self) -> str:
        """The sandbox's own endpoint for webhooks."""
        return f"{self._origin}/sandbox/inbox"

    @property
    def ca_file(self) -> str:
        """The PEM file of the certificate that a client must trust; deleted when the sandbox stops."""
        return str(Path(self._folder.name) / "ca.pem")

    @property
    def ca_pem(self) -> str:
        """The certificate that a client must trust, as PEM text."""
        return Path(self.ca_file).read_text(encoding="ascii")

    @property
    def connection(self) -> dict[str, Any]:
        """An Airflow connection to this sandbox."""
        return self.connection_with(self.ca_file)

    @property
    def connection_json(self) -> str:
        """The connection as the value of ``AIRFLOW_CONN_BANKCONNECT_DEFAULT``."""
        return json.dumps(self.connection)

    def connection_with(self, ca_file: str) -> dict[str, Any]:
        """Return the connection with another path of the certificate."""
        extra = {"api_key": self.api_key, "verify": ca_file}
        return {"conn_type": "bankconnect", "host": self.url, "password": self.server_hash, "extra": extra}

    def issue_certificate(self, folder: Path) -> tuple[Path, Path]:
        """Write a certificate and its key for another server on this machine, which may then receive webhooks."""
        certificate, key = folder / "server.pem", folder / "server.key"
        self._certificate.issue(certificate, key)
        key.chmod(0o600)
        return certificate, key

    # Controls

    def play(self, statement: Statement) -> Statement:
        """Add a statement to the timeline, its seconds counted from now, and return it with all its ids."""
        return self._world.play(statement)

    def payload(
        self,
        *,
        link_id: str | None,
        entity_id: str | None = "entity-1",
        statement_id: str | None = "statement-1",
        progress: str | None = "completed",
        reason: str | None = "",
        date_time: datetime | str | None = None,
        filed_under: str | None = None,
        **unknown: object,
    ) -> None:
        """Add one raw row to the history, without a webhook and without an entity.

        :param date_time: an aware datetime is written in the sandbox's zone, text as it is; None for now.
        :param filed_under: the link whose history gets the row, if that is not its own ``link_id``.
        """
        row = {"statement_id": statement_id, "entity_id": entity_id, "link_id": link_id}
        row |= {"progress": progress, "reason": reason}
        link = link_id if filed_under is None else filed_under
        self._world.payload({**row, **unknown}, filed_under=link, date_time=date_time)

    def progress(
        self, entity_id: str, items: Sequence[Mapping[str, object]], analysis: Analysis = "transactions"
    ) -> None:
        """Set the ``progress`` array of an entity's analysis from now on, unchanged.

        That of ``transactions`` also decides ``transaction_status`` in ``identity``, and a statement that only it names
        is in the progress of ``identity`` too, unless that is set as well.
        """
        self._world.progress(entity_id, [dict(item) for item in items], analysis)

    def webhook(self, body: Mapping[str, object]) -> None:
        """Send a webhook with this body to the registered endpoint."""
        self._world.webhook(dict(body))

    def fault(self, fault: Fault) -> None:
        """Add a fault, from now on."""
        self._faults.add(fault)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    # Observations

    @property
    def requests(self) -> list[Record]:
        """The requests to the mock API, in order of arrival."""
        return list(self._vendor.requests)

    def calls(self, call: str) -> list[Record]:
        """Return the requests of one call."""
        return [record for record in self.requests if record.call == call]

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of requests of each call so far, independent of ``log_size``."""
        return self._vendor.counts

    @property
    def connections(self) -> int:
        """The number of TCP connections that were accepted and completed the TLS handshake."""
        return self._wires.accepted

    @property
    def open_connections(self) -> int:
        """The number of those connections that are still open."""
        return len(self._wires.open)

    @property
    def webhook_url(self) -> str | None:
        """The registered endpoint, or None."""
        return self._world.webhook_url

    @property
    def webhook_mode(self) -> int | None:
        """The mode of the registered endpoint, or None."""
        return self._world.webhook_mode

    @property
    def deliveries(self) -> list[Delivery]:
        """The webhooks that were sent or dropped by a fault; not those that the mode suppressed."""
        return list(self._sender.deliveries)

    @property
    def inbox(self) -> list[Received]:
        """The webhooks that the sandbox's own endpoint received."""
        return list(self._controls.inbox)

    def transaction_count(self, entity_id: str) -> int:
        """Return the number of an entity's transactions that can be read now."""
        answer = self._world.analysis(entity_id, "transactions", None)
        return 0 if answer is None else len(answer["transactions"])

    # Helpers

    @property
    def _origin(self) -> str:
        host = "localhost" if self._host in _ANYWHERE else self._host
        return f"https://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _clock_moved(self) -> None:
        self._world.advance()
        self._wake_sender()

    def _wake_sender(self) -> None:
        loop = self._loop
        # The loop may be closed already: a statement may be added while the sandbox stops.
        with suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(self._wake.set)

    def _run(self, sockets: list[socket.socket], up: threading.Event) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._serve(sockets, up))
            except Exception as error:
                if up.is_set():
                    raise
                self._failure = error
                up.set()

    async def _serve(self, sockets: list[socket.socket], up: threading.Event) -> None:
        await self._wires.start(sockets, self._certificate.for_server())
        up.set()
        try:
            await self._sender.run(self._wake, self._vendor.stopping, self._certificate.for_client())
        finally:
            await self._wires.stop()


def _one_of(name: str, value: _Text, allowed: tuple[str, ...]) -> _Text:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is unknown; allowed: {', '.join(allowed)}")
    return value


def _key(name: str, value: str | None, invented: str) -> str:
    if value is None:
        return invented
    if not value or not all("!" <= letter <= "~" for letter in value):
        raise ValueError(f"{name} must be visible ASCII without blanks: it is sent in a header")
    return value
