"""Schedules: customers and their statements, waits for them, and faults; drawn from a seed. ``simulation`` plays them.

Seconds count from the schedule's start.
"""

from __future__ import annotations

from collections import Counter
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
# Of waits for an hour: each poke takes a millisecond of the proof's time.
_LONG_INTERVAL = 30.0


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
    transactions_later: float = 0.0

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
class Frozen:
    """From ``at`` on, ``identity`` says of an entity what it said then."""

    at: float
    entity_id: str


@dataclass(frozen=True)
class Delivery:
    """A webhook, and ``how`` it is delivered; a ``dropped`` or ``suppressed`` one is not."""

    at: float
    how: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """No triggerer runs from ``at`` to ``back``."""

    at: float
    back: float


@dataclass(frozen=True)
class Switch:
    """From ``at`` on, only new connections lead to BankConnect.

    Those that are open lead to a server that answers 503 or 404, or, with ``old``, tells its records of that time.
    """

    at: float
    answers: str


@dataclass(frozen=True)
class Wait:
    """One sensor. ``gate`` has its arguments of the gate, with ``since`` and the grace in seconds.

    One ``is_of_customer`` reads both records.
    """

    name: str
    begins: float
    gate: dict[str, Any]
    on_failed: str
    poke_interval: float
    timeout: float
    exponential_backoff: bool = False
    max_wait: float | None = None
    is_of_customer: bool = False

    @property
    def deadline(self) -> float:
        """The second at which it times out."""
        return round(self.begins + self.timeout, 6)

    @property
    def starts(self) -> tuple[tuple[str, str], ...]:
        """The calls that a poke of it may begin with, each with the id that it asks for."""
        if "link_id" in self.gate:
            return (("webhook_payloads", self.gate["link_id"]),)
        entity_id = self.gate["entity_id"]
        if self.uses_identity:
            return (("identity", entity_id), ("transactions", entity_id))
        return ((self.gate["analysis"], entity_id),)

    @property
    def uses_identity(self) -> bool:
        """Whether it asks for ``identity`` first, and for ``transactions`` when that says that they are over."""
        return self.is_of_customer or self.gate.get("analysis") == "transactions"


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
    transaction_status: str = "sent"
    # With a mode, the history omits the statements that sent no webhook.
    webhook_mode: int | None = None
    frozen: tuple[Frozen, ...] = ()
    switches: tuple[Switch, ...] = ()
    # Something on the way forgets a connection that was idle for so long: no answer comes back on it.
    forgets_after: float | None = None

    def moment(self, seconds: float) -> datetime:
        """Return that second as a time of day."""
        return self.start + timedelta(microseconds=round(seconds * 1e6))

    def __str__(self) -> str:
        lines = [f"start {self.start.isoformat()}, vendor in {self.vendor_zone}, the connection in {self.our_zone}"]
        lines.append(f"transaction_status {self.transaction_status}, webhook_mode {self.webhook_mode}")
        lines.append(f"idle connections are forgotten after {self.forgets_after} s")
        for name in ("plays", "extra_rows", "deliveries", "faults", "kills", "waits", "frozen", "switches"):
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
    usually = {"repeats": 0.0, "transaction_status": "sent", "webhook_mode": None, "forgets_after": None}
    for name, usual in usually.items():
        if getattr(schedule, name) != usual:
            yield replace(schedule, **{name: usual})


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed: always the same one."""
    return _Draw(seed).schedule()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(f"schedule {seed}")
        # For what was added later: it leaves the rest of each schedule as it was.
        self.more = Random(f"customers {seed}")
        self.network = Random(f"network {seed}")
        self.long = Random(f"long {seed}")
        self.longer = Random(f"longer {seed}")
        self.ways = Random(f"ways {seed}")
        # The unit of this schedule: intervals, faults and graces are multiples of it, so that they coincide.
        self.pace = self.rng.choice((2.0, 5.0, 15.0, 60.0))
        self.span = self.pace * self.rng.randint(8, 20)
        self.moments = [round(self.rng.uniform(0, self.span) * 4) / 4 for _ in range(4)]

    def schedule(self) -> Schedule:
        rng, more = self.rng, self.more
        plays = [play for customer in self._customers() for play in self._plays(*customer)]
        vendor_zone = rng.choice(ZONES)
        names = Counter((play.entity_id, play.statement_id) for play in plays)
        told = [self._blank_or_later(play, is_once=names[play.entity_id, play.statement_id] == 1) for play in plays]
        webhook_mode = more.choice((None, None, None, 0, 0))
        schedule = Schedule(
            seed=self.seed,
            start=rng.choice(STARTS),
            vendor_zone=vendor_zone,
            our_zone=rng.choice(ZONES) if self._often(0.08) else vendor_zone,
            unknown_is_404=self._often(0.5),
            repeats=rng.choice((0.0, 0.0, 0.5)),
            plays=tuple(told),
            extra_rows=tuple(self._extra_row(plays) for _ in range(rng.choice((0, 0, 1, 2)))),
            deliveries=tuple(self._deliveries(told, are_suppressed=webhook_mode == 0)),
            faults=tuple(self._fault() for _ in range(rng.choice((0, 1, 1, 2, 3, 4)))),
            kills=tuple(self._kills()),
            waits=tuple(self._wait(f"wait-{number}", plays) for number in range(rng.choice((1, 2, 2, 3)))),
            transaction_status=more.choice(("sent", "sent", "absent", "ahead", "ahead")),
            webhook_mode=webhook_mode,
        )
        waits = self._with_customers(schedule.waits, plays)
        error: tuple[Fault, ...] = ()
        if self.pace == 60 and self.long.random() < 0.3:
            waits, error = self._with_an_error_after_an_event(waits, plays)
        elif self.longer.random() < 0.04:
            waits, error = self._with_a_pause_without_limit(waits)
        switches: tuple[Switch, ...] = ()
        forgets_after = None
        # With a shorter pace, all statements would be over before it.
        if self.pace > 5 and self.ways.random() < 0.25:
            waits, switches = self._with_a_switch(waits)
        elif self.pace > 2 and self.ways.random() < 0.3:
            forgets_after = self.ways.choice((6.0, 8.0, 15.0))
            waits = self._with_long_intervals(waits, 1.25 * forgets_after)
        if (switches or forgets_after) and self.ways.random() < 0.6:
            # Errors of the vendor hide what the network does.
            schedule, error = replace(schedule, faults=(), kills=()), ()
        frozen = more.choice(plays).entity_id if more.random() < 0.2 else None
        return replace(
            schedule,
            waits=waits,
            switches=switches,
            forgets_after=forgets_after,
            frozen=() if frozen is None else (Frozen(round(more.uniform(0, self.span), 2) + 0.001, frozen),),
            faults=(*schedule.faults, *self._faults_of_identity(waits), *self._faults_of_the_network(), *error),
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

    def _blank_or_later(self, play: Play, *, is_once: bool) -> Play:
        """Return a failed login of an unknown entity, or a statement whose transactions come later than its webhook."""
        more = self.more
        if not play.statement_id:
            return replace(play, entity_id="") if more.random() < 0.3 else play
        later = more.choice((0.0, 0.0, 0.25, 1.0, self.pace, 3 * self.pace))
        # One that is run again would end, by its first run, in the middle of its second.
        return replace(play, transactions_later=later) if is_once else play

    def _deliveries(self, plays: list[Play], *, are_suppressed: bool) -> list[Delivery]:
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
        by_hand = [play.body for play in plays if play.mode == "pdf"] if are_suppressed else []
        honest = {"prompt", "doubled", "late", "out of order"}
        return [
            replace(one, how="suppressed") if one.how in honest and one.body in by_hand else one for one in deliveries
        ]

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

    def _with_customers(self, waits: tuple[Wait, ...], plays: list[Play]) -> tuple[Wait, ...]:
        """Return the waits, of which some are for both records of a customer, or for ``transactions``."""
        first, *rest = waits
        if self.network.random() < 0.2 and not first.exponential_backoff:
            # Longer than the back-off, as in the example DAGs.
            first = replace(first, poke_interval=4 * first.poke_interval)
        kind = self.more.choice(("customer", "customer", "transactions", "as it was", "as it was"))
        play = self.more.choice(plays)
        if kind == "customer":
            first = replace(first, is_of_customer=True, gate=self._customer_gate(play, plays, first.begins))
            if self.more.random() < 0.4:
                # The same customer again, or another one.
                other = play if self.more.random() < 0.5 else self.more.choice(plays)
                gate = self._customer_gate(other, plays, first.begins)
                begins = first.begins + self.more.choice((0.0, 0.4, self.pace))
                rest.append(replace(first, name="wait-more", gate=gate, begins=begins))
        if kind == "transactions":
            expected = {"expected_statements": self.more.choice((1, 1, 2))}
            first = replace(first, gate={"entity_id": play.entity_id, "analysis": "transactions", **expected})
        return (first, *rest)

    def _with_an_error_after_an_event(
        self, waits: tuple[Wait, ...], plays: list[Play]
    ) -> tuple[tuple[Wait, ...], tuple[Fault, ...]]:
        """Return the waits, the first with an interval longer than any back-off, and an error when a statement ends."""
        first, *rest = waits
        timeout = max(first.timeout, 1.5 * self.span)
        first = replace(first, poke_interval=480.0, timeout=timeout, exponential_backoff=False, max_wait=None)
        after = max(0.0, round(self.long.choice(plays).ends * 4) / 4)
        return (first, *rest), (Fault(kind="status", status=503, after=after, until=after + 4.0),)

    def _with_a_pause_without_limit(self, waits: tuple[Wait, ...]) -> tuple[tuple[Wait, ...], tuple[Fault, ...]]:
        """Return the waits, the first of which outlasts the longest pause, and an answer that asks for a longer one."""
        first, *rest = waits
        after = round(self.longer.uniform(0, 0.5 * self.span) * 4) / 4
        fault = Fault(kind="status", status=429, retry_after=999_999, after=after, until=after + 2 * self.pace)
        timeout = self.span + 3600.0 + 20 * self.pace
        interval = max(first.poke_interval, _LONG_INTERVAL)
        first = replace(first, poke_interval=interval, timeout=timeout, exponential_backoff=False, max_wait=None)
        return (first, *rest), (fault,)

    def _with_a_switch(self, waits: tuple[Wait, ...]) -> tuple[tuple[Wait, ...], tuple[Switch, ...]]:
        """Return the waits, the first of which outlasts what its kept connections lead to, and a switch."""
        first, *rest = waits
        interval = max(first.poke_interval, _LONG_INTERVAL)
        answers = self.ways.choice(("503", "503", "404", "old", "old"))
        at = round(self.ways.uniform(1.2, 3) * interval, 2) + 0.007
        timeout = max(self.span, at) + (2000.0 if answers == "old" else 1000.0) + 4 * interval
        first = replace(
            first, begins=0.003, poke_interval=interval, timeout=timeout, exponential_backoff=False, max_wait=None
        )
        return (first, *rest), (Switch(at, answers),)

    @staticmethod
    def _with_long_intervals(waits: tuple[Wait, ...], interval: float) -> tuple[Wait, ...]:
        """Return the waits, of which the first pokes no more often than that."""
        first, *rest = waits
        interval = max(first.poke_interval, interval)
        timeout = max(first.timeout, 6 * interval)
        return (
            replace(
                first, begins=0.003, poke_interval=interval, timeout=timeout, exponential_backoff=False, max_wait=None
            ),
            *rest,
        )

    def _customer_gate(self, play: Play, plays: list[Play], begins: float) -> dict[str, Any]:
        more = self.more
        gate: dict[str, Any] = {}
        if play.link_id is not None:
            gate["link_id"] = play.link_id if more.random() < 0.97 else "link-unknown"
        if play.link_id is None or more.random() < 0.4:
            gate["entity_id"] = play.entity_id
        if "entity_id" in gate and more.random() < 0.4:
            gate.pop("link_id", None)
        elif len(gate) > 1 and more.random() < 0.3:
            gate["entity_id"] = more.choice(plays).entity_id
        mine = sorted({other.statement_id for other in plays if other.entity_id == play.entity_id} - {""})
        gate["expected_statements"] = more.choice((1, 1, 2, 2, 3))
        if mine and more.random() < 0.25:
            gate |= {"statement_id": more.sample(mine, more.randint(1, len(mine))), "expected_statements": 1}
        if more.random() < 0.35:
            gate["since"] = more.choice((0.0, begins, -1.0, -5 * self.pace, float(int(play.ends))))
        gate["failure_grace"] = more.choice((0.0, self.pace, 3 * self.pace, 1800.0))
        if self.network.random() < 0.3:
            names = sorted({other.statement_id for other in plays} - {""})
            gate["announced"] = (self.network.choice([*names, *mine, "announced"]),)
            gate["announced_until"] = begins + round(self.network.uniform(0, 0.8) * self.span, 2) + 0.001
        return gate

    def _faults_of_the_network(self) -> Iterator[Fault]:
        rng = self.network
        if rng.random() < 0.3:
            # The long one has a 403 come again after five minutes.
            after = round(rng.uniform(0, 0.7 * self.span) * 4) / 4
            times: dict[str, Any] = {"after": after, "until": after + rng.choice((0.5, 2.0, 5.0, 20.0)) * self.pace}
            asked = rng.choice((None, None, 8.5, 0.5, 999_999, "-5"))
            if rng.random() < 0.5:
                yield Fault(kind="firewall", retry_after=asked, **times)
            else:
                yield Fault(kind="status", status=rng.choice((408, 425, 429)), retry_after=asked, **times)

    def _faults_of_identity(self, waits: tuple[Wait, ...]) -> Iterator[Fault]:
        more = self.more
        if more.random() < 0.25:
            kind = more.choice(("stale", "stale", "garbage", "403"))
            after = round(more.uniform(0, self.span) * 4) / 4
            times = {"after": after, "until": after + more.choice((1.0, 3.0, 20.0)) * self.pace}
            if kind == "stale":
                yield Fault(kind=kind, call="identity", seconds=more.choice((1.0, self.pace, 5 * self.pace)), **times)
            elif all(wait.gate.get("analysis") != "identity" for wait in waits):
                # It would end a wait for identity itself.
                more_of_it = {"kind": "status", "status": 403} if kind == "403" else {"kind": kind}
                yield Fault(call="identity", **more_of_it, **times)
