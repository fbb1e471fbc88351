"""The sandbox in a process of its own, so that its CPU time is not counted as the triggerer's."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response
from talk import serve

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Vendor:
    """One sandbox at a time."""

    def __init__(self) -> None:
        self.box = Sandbox()
        self._bytes = 0
        self._entities: list[str] = []

    def start(self, *, remember: bool = False) -> dict[str, object]:
        """Start a new sandbox; return its connection. ``remember`` keeps the log of requests, which takes memory."""
        self.box.stop()
        self.box = Sandbox(log_size=None if remember else 0).start()
        return self.box.connection | {"ca_file": self.box.ca_file}

    def certificate(self, folder: str) -> list[str]:
        """Write a certificate and its key for an API server; return the two files."""
        return [str(file) for file in self.box.issue_certificate(Path(folder))]

    def customer(self, name: str) -> dict[str, object]:
        """Add a customer's record without a webhook; return the body of that webhook."""
        played = self.box.play(Statement(link_id=name, entity_id=name, after=0, transactions=5))
        return {name: getattr(played, name) for name in ("entity_id", "statement_id", "link_id", "progress")}

    def first_poke(self, name: str) -> float | None:
        """Return when a link's payload history was requested first."""
        pokes = (record.at for record in self.box.calls("webhook_payloads") if record.query.get("link_id") == name)
        return next(pokes, None)

    def delay(self, seconds: float) -> None:
        """Delay each answer from now on."""
        self.box.clear_faults()
        if seconds:
            self.box.fault(Fault(kind="delay", seconds=seconds))

    def counts(self) -> dict[str, int]:
        """Return the numbers of polls, of the links that they asked for, and of TCP connections."""
        asked = {record.query.get("link_id", "") for record in self.box.requests}
        return {"polls": sum(self.box.counts.values()), "asked": len(asked), "connections": self.box.connections}

    def play(self, name: str) -> float:
        """Add the record that a wait waits for; return the time of day."""
        self.box.play(Statement(link_id=name, entity_id=name, after=0))
        return time.time()

    def count_bytes(self) -> None:
        """Count the bytes of the bodies of all answers from now on: the sandbox counts requests only."""
        respond = Response.__call__

        async def counted(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
            self._bytes += len(response.body)
            await respond(response, scope, receive, send)

        Response.__call__ = counted  # type: ignore[method-assign]

    def traffic(self) -> dict[str, int]:
        """Return the bytes counted so far, and the number of requests of each call."""
        return {"bytes": self._bytes, **self.box.counts}

    def entity(self, name: str, transactions: int) -> None:
        """Add an entity with a completed statement of so many transactions, and another that is processing."""
        self._entities.append(name)
        done = Statement(entity_id=name, statement_id=f"{name}-1", mode="pdf", after=-3600, transactions=transactions)
        self.box.play(done)
        self.box.play(Statement(entity_id=name, statement_id=f"{name}-2", mode="pdf", after=1e6))
        # The sandbox invents the transactions at the first request, and keeps them.
        self.box.transaction_count(name)

    def complete(self) -> float:
        """Complete the statements that are processing; return the time of day."""
        for name in self._entities:
            self.box.play(Statement(entity_id=name, statement_id=f"{name}-2", mode="pdf", after=0))
        self._entities.clear()
        return time.time()

    def history(self, link: str, rows: int) -> None:
        """Add many rows to the payload history of a link."""
        for number in range(rows):
            self.box.payload(link_id=link, entity_id=f"entity-{number % 50}", statement_id=f"statement-{number}")

    def gaps(self, since: float) -> dict[str, float]:
        """Return the longest time between two requests for a link: of all, and of those that ended after ``since``.

        The time since the last request counts too.
        """
        times: dict[str, list[float]] = defaultdict(list)
        for record in self.box.requests:
            times[record.query.get("link_id", "")].append(record.at)
        now = time.monotonic()
        found = [(later, later - earlier) for asked in times.values() for earlier, later in pairwise([*asked, now])]
        return {
            "asked": len(times),
            "longest": max((gap for later, gap in found if later >= since), default=0.0),
            "longest ever": max((gap for _, gap in found), default=0.0),
        }


def main() -> None:
    """Serve until stdin closes."""
    vendor = Vendor()
    try:
        serve(
            start=vendor.start,
            certificate=vendor.certificate,
            customer=vendor.customer,
            first_poke=vendor.first_poke,
            delay=vendor.delay,
            counts=vendor.counts,
            play=vendor.play,
            count_bytes=vendor.count_bytes,
            traffic=vendor.traffic,
            entity=vendor.entity,
            complete=vendor.complete,
            history=vendor.history,
            gaps=vendor.gaps,
        )
    finally:
        vendor.box.stop()


if __name__ == "__main__":
    main()
