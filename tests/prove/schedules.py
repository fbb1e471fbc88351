"""Schedules: customers and their statements, waits for them, and faults; drawn from a seed. ``simulation`` plays them.

Seconds count from the schedule's start.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from airflow_provider_bankconnect.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whole and broken seconds; the hour that New York has twice; the end of a year.
STARTS = (
    datetime(2026, 11, 25, 9, 0, tzinfo=UTC),
    datetime(2026, 6, 30, 18, 29, 58, 400_000, tzinfo=UTC),
    datetime(2026, 11, 1, 5, 30, 0, 750_000, tzinfo=UTC),
    datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
)
ZONES = ("UTC", "UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York")
REQUEST_TIMEOUT = 10.0


@dataclass(frozen=True)
class Play:
    """A statement in progress from ``begins`` to ``ends``; one with a blank id is a failed login."""

    link_id: str | None
    entity_id: str
    statement_id: str
    begins: float
    ends: float
    progress: str
    mode: str = "online"
    later: float = 0.0

    @property
    def body(self) -> dict[str, Any]:
        """The body of the vendor's webhook at its end."""
        ids = {"entity_id": self.entity_id, "statement_id": self.statement_id, "link_id": self.link_id}
        return {**ids, "progress": self.progress, "reason": "" if self.progress == "completed" else "bad day"}


@dataclass(frozen=True)
class ExtraRow:
    """A row that is added to the history of ``filed_under`` unchanged."""

    at: float
    filed_under: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    """A webhook, and ``how`` it is delivered; a ``dropped`` one is not."""

    at: float
    how: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """No triggerer runs from ``at`` to ``back``."""

    at: float
    back: float


@dataclass(frozen=True)
class Wait:
    """One sensor. ``gate`` has its arguments of the gate, with ``since`` and the grace in seconds."""

    name: str
    begins: float
    gate: dict[str, Any]
    on_failed: str
    poke_interval: float
    timeout: float
    exponential_backoff: bool = False
    max_wait: float | None = None

    @property
    def deadline(self) -> float:
        """The second at which it times out."""
        return round(self.begins + self.timeout, 6)

    @property
    def record(self) -> tuple[str, str]:
        """The call that it makes, and the id that it asks for."""
        link_id = self.gate.get("link_id")
        return ("webhook_payloads", link_id) if link_id else (self.gate["analysis"], self.gate["entity_id"])


@dataclass(frozen=True)
class Schedule:
    """Everything that happens, and when."""

    seed: int
    start: datetime
    vendor_zone: str
    our_zone: str
    unknown_is_404: bool
    repeats: float
    plays: tuple[Play, ...]
    extra_rows: tuple[ExtraRow, ...]
    deliveries: tuple[Delivery, ...]
    faults: tuple[Fault, ...]
    kills: tuple[Kill, ...]
    waits: tuple[Wait, ...]

    def moment(self, seconds: float) -> datetime:
        """Return that second as a time of day."""
        return self.start + timedelta(microseconds=round(seconds * 1e6))

    def __str__(self) -> str:
        lines = [f"start {self.start.isoformat()}, vendor in {self.vendor_zone}, the connection in {self.our_zone}"]
        for name in ("plays", "extra_rows", "deliveries", "faults", "kills", "waits"):
            lines += [f"  {one!r}" for one in getattr(self, name)]
        return "\n".join(lines)


def smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Yield the schedules with one thing left out."""
    for field in fields(schedule):
        things = getattr(schedule, field.name)
        if isinstance(things, tuple):
            for number in range(len(things)):
                left = things[:number] + things[number + 1 :]
                if left or field.name != "waits":
                    yield replace(schedule, **{field.name: left})
    if schedule.repeats:
        yield replace(schedule, repeats=0.0)


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed: always the same one."""
    return _Draw(seed).schedule()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(f"schedule {seed}")
        # The unit of this schedule: intervals, faults and graces are multiples of it, so that they coincide.
        self.pace = self.rng.choice((2.0, 5.0, 15.0, 60.0))
        self.span = self.pace * self.rng.randint(8, 20)
        self.moments = [round(self.rng.uniform(0, self.span) * 4) / 4 for _ in range(4)]

    def schedule(self) -> Schedule:
        rng = self.rng
        plays = [play for customer in self._customers() for play in self._plays(*customer)]
        vendor_zone = rng.choice(ZONES)
        return Schedule(
            seed=self.seed,
            start=rng.choice(STARTS),
            vendor_zone=vendor_zone,
            our_zone=rng.choice(ZONES) if self._often(0.08) else vendor_zone,
            unknown_is_404=self._often(0.5),
            repeats=rng.choice((0.0, 0.0, 0.5)),
            plays=tuple(plays),
            extra_rows=tuple(self._extra_row(plays) for _ in range(rng.choice((0, 0, 1, 2)))),
            deliveries=tuple(self._deliveries(plays)),
            faults=tuple(self._fault() for _ in range(rng.choice((0, 1, 1, 2, 3, 4)))),
            kills=tuple(self._kills()),
            waits=tuple(self._wait(f"wait-{number}", plays) for number in range(rng.choice((1, 2, 2, 3)))),
        )

    def _often(self, share: float) -> bool:
        return self.rng.random() < share

    def _when(self) -> float:
        """Return some time, often in the same second as something else."""
        if self._often(0.3):
            return self.rng.choice(self.moments) + self.rng.choice((0.0, 0.0, 0.25, 0.5))
        return round(self.rng.uniform(0, self.span) * 4) / 4

    def _customers(self) -> Iterator[tuple[str | None, str]]:
        for link in range(self.rng.choice((1, 1, 2))):
            for entity in range(self.rng.choice((1, 1, 2))):
                yield f"link-{link}", f"customer-{link}{entity}"
        if self._often(0.3):
            yield None, self.rng.choice(("customer-00", "customer-by-hand"))

    def _plays(self, link_id: str | None, entity_id: str) -> Iterator[Play]:
        rng = self.rng
        for number in range(rng.choice((1, 2, 2, 3))):
            mode = "pdf" if link_id is None else rng.choice(("online", "online", "pdf"))
            name = f"{entity_id}-{'' if link_id else 'hand-'}s{number}"
            ends = self._when()
            begins = max(0.0, ends - rng.choice((0.0, 0.5, 1.0, 4.0)) * self.pace)
            kind = rng.choice(("completed", "completed", "completed", "failed", "again", "login", "old"))
            if kind == "old":
                ago = rng.choice((1.0, 4 * self.pace, 3600.0, 30 * 86400.0))
                progress = rng.choice(("completed", "failed"))
                yield Play(link_id, entity_id, rng.choice((name, f"{name}-old")), -ago, -ago, progress, mode)
            if kind == "login" and link_id is not None:
                for _ in range(rng.choice((1, 2))):
                    yield Play(link_id, entity_id, "", ends, ends, "failed")
            if kind in {"completed", "failed", "old"}:
                progress = "failed" if kind == "failed" else "completed"
                yield Play(link_id, entity_id, name, begins, ends, progress, mode, rng.choice((0.0, 0.0, self.pace)))
            if kind == "again":
                yield Play(link_id, entity_id, name, begins, ends, rng.choice(("failed", "failed", "completed")), mode)
                rerun = ends + rng.choice((0.0, 0.25, 1.0, self.pace, 3 * self.pace))
                over = rerun + rng.choice((0.0, 0.5, self.pace))
                yield Play(
                    link_id, entity_id, name, rerun, over, rng.choice(("completed", "completed", "failed")), mode
                )

    def _extra_row(self, plays: list[Play]) -> ExtraRow:
        """Return a row with unusual letters, of another link, or still in progress."""
        like = self.rng.choice(plays)
        link_id = like.link_id or "link-0"
        progress = self.rng.choice(("COMPLETED", "Failed", "processing", "queued", "processing"))
        row = {**like.body, "progress": progress, "reason": "" if progress == "COMPLETED" else "bad day"}
        return ExtraRow(self._when(), link_id, {**row, "link_id": self.rng.choice((link_id, link_id, "link-9", None))})

    def _deliveries(self, plays: list[Play]) -> list[Delivery]:
        rng, deliveries = self.rng, []
        for play in plays:
            if play.ends < 0:
                if self._often(0.6):
                    deliveries.append(Delivery(self._when(), "replayed", play.body))
                continue
            how = rng.choice(("prompt", "prompt", "dropped", "dropped", "doubled", "late"))
            at = play.ends + (rng.uniform(0.5, 6) * self.pace if how == "late" else rng.choice((0.0, 0.1, 2.0)))
            deliveries.append(Delivery(at, how, play.body))
            if how == "doubled":
                deliveries.append(Delivery(at + rng.choice((0.0, 0.3, 5.0)), how, play.body))
            if self._often(0.25):
                lie = {"progress": "completed", "reason": "", "statement_id": play.statement_id or "invented"}
                at, apart = self._when(), rng.choice((0.0, 0.4, 1.0)) * self.pace
                forged = Delivery(at, "forged", {**play.body, **lie})
                deliveries += [replace(forged, at=at + number * apart) for number in range(rng.choice((1, 1, 8)))]
        for number in range(len(deliveries) - 1):
            one, other = deliveries[number : number + 2]
            if self._often(0.15) and one.how == other.how == "prompt":
                deliveries[number] = replace(one, at=max(one.at, other.at) + 0.5, how="out of order")
                deliveries[number + 1] = replace(other, at=min(one.at, other.at), how="out of order")
        return deliveries

    def _fault(self) -> Fault:
        rng = self.rng
        after = 0.0 if self._often(0.3) else self._when()
        until = after + rng.choice((0.25, 1.0, 3.0, 6.0)) * self.pace
        kind = rng.choice(
            ("429", "429", "503", "404", "reset", "half", "garbage", "redirect", "delay", "stale", "shuffle", "extra")
        )
        more: dict[str, Any] = {}
        if kind.isdigit():
            more = {"status": int(kind)}
            if kind in {"429", "503"}:
                more["status"] = 429 if kind == "429" else rng.choice((500, 502, 503, 504))
                more["retry_after"] = rng.choice((None, 1, 3, 20, 90, round(3 * self.pace) if self.pace < 60 else 700))
                more["retry_after_form"] = rng.choice(("seconds", "date"))
            kind = "status"
        if kind == "delay":
            more = {"seconds": rng.choice((0.2, 1.5, 4.0, 9.5, 15.0))}
        if kind == "stale":
            more = {"seconds": rng.choice((1.0, 5.0, 20.0, 60.0))}
        return Fault(kind=kind, after=after, until=until, probability=rng.choice((1.0, 1.0, 0.6)), **more)

    def _kills(self) -> Iterator[Kill]:
        at = 0.0
        for _ in range(self.rng.choice((0, 0, 0, 1, 2))):
            at += self.rng.uniform(0.2, 0.7) * self.span
            yield Kill(at, at := at + self.rng.choice((0.1, 1.0, 4.0)) * self.pace)

    def _wait(self, name: str, plays: list[Play]) -> Wait:
        rng = self.rng
        # Never at exactly the time of something else: no rule says which comes first then.
        begins = 0.003 + (0.0 if self._often(0.6) else round(rng.uniform(0, 0.7) * self.span, 2))
        backs_off = self._often(0.25)
        return Wait(
            name=name,
            begins=begins,
            gate=self._gate(rng.choice(plays), plays, begins),
            on_failed=rng.choice(("fail", "skip", "wait", "pass")),
            poke_interval=rng.choice((0.05, 0.5, 1.0) if self.pace == 2 else (0.5, 1.0, 2.0))
            * self.pace
            / (4 if backs_off else 1),
            # With back-off the bound grows with the time waited, so the wait needs more time.
            timeout=round(rng.choice((0.3, 0.7, 1.0, 1.0, 1.5)) * self.span * (4 if backs_off else 1), 2),
            exponential_backoff=backs_off,
            max_wait=rng.choice((None, 4 * self.pace)) if backs_off else None,
        )

    def _gate(self, play: Play, plays: list[Play], begins: float) -> dict[str, Any]:
        rng = self.rng
        mine = sorted({other.statement_id for other in plays if other.entity_id == play.entity_id} - {""})
        expected = {"expected_statements": rng.choice((1, 1, 2, 2, 3))}
        if mine and self._often(0.25):
            names = rng.sample(mine, rng.randint(1, len(mine)))
            expected = {"statement_id": names, "expected_statements": 1}
        if play.link_id is None or self._often(0.25):
            analysis = rng.choice(("transactions", "identity", "salary"))
            return {"entity_id": play.entity_id, "analysis": analysis, **expected}
        gate = {"link_id": play.link_id if self._often(0.96) else "link-unknown", **expected}
        if self._often(0.25):
            gate["entity_id"] = play.entity_id
        if self._often(0.6):
            gate["since"] = rng.choice((0.0, begins, -1.0, -5 * self.pace, self._when(), float(int(play.ends))))
        gate["failure_grace"] = rng.choice((0.0, self.pace, 3 * self.pace, 1800.0))
        return gate
