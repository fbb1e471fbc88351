"""The pure parts of `make fleet`: its customers, what StatsD received, and whether the result is right."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Way = Literal["by hand", "by webhook", "caught up"]
Fate = Literal["completes", "fails", "skips", "never", "forged"]
CONNECTIONS: Final = ("bankconnect_default", "bankconnect_two")
# Of ten customers, how many come in each way.
WAYS: Final[tuple[Way, ...]] = ("by hand",) * 4 + ("by webhook",) * 4 + ("caught up",) * 2
# What happens to the customers of each way, in turn.
FATES: Final[Mapping[Way, tuple[Fate, ...]]] = {
    "by hand": (*["completes"] * 7, "fails", "skips", "never"),
    "by webhook": (*["completes"] * 6, "skips", "forged"),
    "caught up": ("completes",),
}
STATES: Final[Mapping[Fate, str]] = {
    "completes": "success",
    "fails": "failed",
    "skips": "skipped",
    "never": "failed",
    "forged": "success",
}
# The last poke may come this much after the deadline: another triggerer takes the wait over.
SLACK: Final = timedelta(seconds=120)
# If no triggerer takes it over in this time, Airflow itself ends the wait, without a last poke.
WITHOUT_TRIGGERER: Final = timedelta(seconds=120)
# From the start of a task to its first poke, on a busy machine.
FIRST_POKE: Final = timedelta(seconds=60)
# BankConnect's times have whole seconds.
SECOND: Final = timedelta(seconds=1)
# The metrics of the package that every run must send.
METRICS: Final = ("polls", "open_waits", "wait_seconds", "webhooks_recorded", "webhooks_caught_up")


@dataclass
class Customer:
    """A customer: whose account, how the run starts, and how the gate must end.

    :param seconds: when the statement ends, counted from the moment at which the statements begin.
    :param over_at: that moment as a time, once it is known.
    :param began: the first poke of its wait by hand, once it is known.
    :param polled: the seconds from that to the last poke.
    """

    link: str
    conn_id: str
    way: Way
    fate: Fate
    seconds: float
    over_at: datetime | None = None
    began: datetime | None = None
    polled: float = 0.0

    @property
    def mode(self) -> Literal["online", "pdf"]:
        """How the statement comes: PDFs of the second account send no webhook, as its ``webhook_mode`` says."""
        return "pdf" if self.way == "by hand" and self.conn_id == CONNECTIONS[1] else "online"

    @property
    def dag_id(self) -> str:
        """The DAG of the run."""
        if self.way != "by hand":
            return self.on_webhook
        return f"{'short' if self.fate == 'never' else 'by_hand'}_{self.conn_id}"

    @property
    def conf(self) -> dict[str, str]:
        """What a run by hand gets."""
        return {"link": self.link, "on_failed": {"fails": "fail", "skips": "skip"}.get(self.fate, "wait")}

    @property
    def on_webhook(self) -> str:
        """The DAG of a run that a webhook event starts."""
        return f"on_webhook_{self.conn_id}"

    @property
    def may_be_lost(self) -> bool:
        """Whether nothing can find the customer again if the webhook is lost: catch-up records completed ones."""
        return self.way == "by webhook" and self.fate == "skips"

    def state(self, dag_id: str) -> str:
        """Return the state in which the gate must end."""
        return "skipped" if (self.fate, dag_id) == ("fails", self.on_webhook) else STATES[self.fate]


@dataclass(frozen=True)
class Run:
    """A run of a customer, as Airflow's database has it."""

    dag_id: str
    link: str
    wait: str | None
    work: str | None
    ended: datetime | None = None


def plan(number: int, seconds: float) -> list[Customer]:
    """Return that many customers, the same ones each time.

    :param seconds: the time over which the statements end.
    """
    fates = {way: cycle(of_way) for way, of_way in FATES.items()}
    customers = []
    for index, way in zip(range(number), cycle(WAYS), strict=False):
        conn_id = CONNECTIONS[index // len(WAYS) % len(CONNECTIONS)]
        link = f"{way.replace(' ', '-')}-{index:03}"
        at = random.Random(link).uniform(5, seconds)  # noqa: S311 - the same in every run
        customers.append(Customer(link, conn_id, way, next(fates[way]), at))
    return customers


def judge(customers: Sequence[Customer], runs: Iterable[Run], answered: Iterable[str], short: timedelta) -> list[str]:
    """Return what is wrong, in words: empty if each customer has one run and each gate ended as the records say.

    Who was started by hand has a second run, of the webhook that has woken the wait.

    :param answered: the links whose webhook got a 200.
    :param short: the timeout of a wait that nothing ends.
    """
    of_link: dict[str, list[Run]] = {}
    for run in runs:
        of_link.setdefault(run.link, []).append(run)
    kept = set(answered)
    wrong = [
        f"{link} is no customer and has a run" for link in sorted(of_link.keys() - {one.link for one in customers})
    ]
    for customer in customers:
        found = of_link.get(customer.link, [])
        needed, allowed = {customer.dag_id}, {customer.dag_id}
        if customer.may_be_lost and customer.link not in kept:
            needed = set()
        elif customer.way == "by hand":
            allowed |= {customer.on_webhook}
            needed |= {customer.on_webhook} if customer.link in kept else set()
        ids = [run.dag_id for run in found]
        if len(ids) != len(set(ids)) or not needed <= set(ids) <= allowed:
            wrong.append(f"{customer.link} has not one run of {sorted(needed)}: {ids}")
        for run in found:
            wrong += [f"{customer.link}, which {customer.fate}, {what}" for what in judge_gate(customer, run, short)]
    return wrong


def judge_gate(customer: Customer, run: Run, short: timedelta) -> Iterator[str]:
    """Yield what is wrong with a gate."""
    expected = customer.state(run.dag_id)
    if run.wait != expected:
        yield f"ended as {run.wait}, not as {expected}"
    elif customer.over_at and run.ended and run.ended < customer.over_at - SECOND:
        yield f"ended {customer.over_at - run.ended} before its statement"
    elif customer.fate == "never":
        yield from judge_deadline(customer, run, short)
    if (run.work == "success") != (expected == "success"):
        yield f"has the task after the gate {run.work}"


def judge_deadline(customer: Customer, run: Run, short: timedelta) -> Iterator[str]:
    """Yield what is wrong with the end of a wait that nothing but its deadline ends."""
    polled = timedelta(seconds=customer.polled)
    if short - 2 * SECOND <= polled <= short + SLACK:
        return
    lasted = run.ended - customer.began if run.ended and customer.began else polled
    if not polled < short <= lasted - WITHOUT_TRIGGERER + FIRST_POKE:
        yield f"polled for {customer.polled:.0f} s, ended after {lasted}, and its timeout is {short}"


@dataclass
class Metrics:
    """What StatsD received: the sum of each counter, and how often each other metric came, by name and tags."""

    sums: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    def add(self, packet: bytes) -> None:
        """Read a packet of StatsD's lines, with tags in InfluxDB's style: ``name,tag=value:1|c``."""
        for line in packet.decode("utf-8", "replace").splitlines():
            name, colon, rest = line.rpartition(":")
            value, bar, kind = rest.partition("|")
            kind, _, rate = kind.partition("|@")
            try:
                number = float(value) / (float(rate) if rate else 1.0)
            except (ValueError, ZeroDivisionError):
                number, bar = 0.0, ""
            if not (colon and bar and name):
                self.unread.append(line)
            else:
                self.sums[name] += round(number) if kind == "c" else 1

    def total(self, metric: str) -> int:
        """Return the sum of a metric of the package over all its tags."""
        wanted = f"airflow.bankconnect.{metric}"
        return sum(number for name, number in self.sums.items() if name.partition(",")[0] == wanted)

    def judge(self, events: int, *, killed: bool) -> list[str]:
        """Return what is wrong, in words.

        :param events: how many webhook events are in the database.
        :param killed: whether processes were killed; one may have recorded an event and not sent its metric.
        """
        wrong = [f"bankconnect.{metric} did not arrive at StatsD" for metric in METRICS if not self.total(metric)]
        wrong += [f"StatsD received a line that is none: {line!r}" for line in self.unread[:3]]
        counted = self.total("webhooks_recorded") + self.total("webhooks_caught_up")
        if counted > events or (counted < events and not killed):
            wrong.append(f"StatsD counted {counted} recorded events, and the database has {events}")
        return wrong


DAGS: Final = """
from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset
from airflow_provider_bankconnect.sensors.bankconnect import BankConnectStatementSensor, BankConnectWebhookPayloadSensor

HOW = {"start_date": pendulum.datetime(2026, 1, 1, tz="UTC"), "max_active_runs": 1000, "max_active_tasks": 1000}
WAIT = {
    "task_id": "wait",
    "failure_grace": timedelta(seconds=5),
    "poke_interval": 15,
    "retries": 8,
    "retry_delay": timedelta(seconds=2),
    "deferrable": True,
}

for conn_id in CONNECTIONS:
    for name, timeout in (("by_hand", 7200), ("short", SHORT)):
        with DAG(f"{name}_{conn_id}", schedule=None, **HOW):
            wait = BankConnectWebhookPayloadSensor(
                link_id="{{ dag_run.conf['link'] }}",
                on_failed="{{ dag_run.conf['on_failed'] }}",
                timeout=timeout,
                bankconnect_conn_id=conn_id,
                **WAIT,
            )
            wait >> EmptyOperator(task_id="work")

    with DAG(f"on_webhook_{conn_id}", schedule=PartitionedAssetTimetable(assets=webhook_asset(conn_id)), **HOW):
        wait = BankConnectStatementSensor(on_failed="skip", timeout=7200, bankconnect_conn_id=conn_id, **WAIT)
        wait >> EmptyOperator(task_id="work")
"""
