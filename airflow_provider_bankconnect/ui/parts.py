"""The parts of the page. Each reads Airflow's database in a session of its own, and shows what the user may see."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.records import CustomerGate
from airflow_provider_bankconnect.ui.database import reading
from airflow_provider_bankconnect.ui.health import Health, problems_of_refusals, problems_of_untaken
from airflow_provider_bankconnect.ui.triggerers import untaken_waits
from airflow_provider_bankconnect.ui.waits import OpenWait, deferred_waits, find_wait, waits_without_trigger
from airflow_provider_bankconnect.ui.webhooks import (
    Traffic,
    WebhookAsset,
    last_webhooks,
    newest_webhooks,
    scheduled_dags,
    traffic,
    webhook_assets,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_provider_bankconnect.records import Gate
    from airflow_provider_bankconnect.ui.access import Reader
    from airflow_provider_bankconnect.ui.health import Problem
    from airflow_provider_bankconnect.ui.webhooks import Webhook

# A number with fewer digits fits in each database's integers.
_DIGITS: Final = 10
_DAY: Final = timedelta(days=1)
_NOT_YOURS: Final = "You may not see this: it needs the permission to read assets in Airflow."
_DEFAULT: Final = "bankconnect_default"
_FORM: Final = ("conn_id", "link_id", "entity_id", "since")


@dataclass(frozen=True)
class WebhookPage:
    """Webhooks, and where the next page begins."""

    rows: Sequence[Webhook]
    next: str = ""
    readable: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WaitPage:
    """Open waits, and where the next page begins."""

    rows: Sequence[OpenWait]
    next: str = ""
    # Whether more tasks wait in poke and reschedule mode than are shown.
    is_cut: bool = False


@dataclass(frozen=True)
class HealthPage:
    """The health of each connection.

    :param notice: why there is nothing about webhooks; ``""`` if there is.
    :param untaken: what is wrong with open waits, because no triggerer has taken them.
    :param receiver: what is wrong with the webhook receiver itself; ``""`` if nothing is.
    :param others: what was refused because it named no known connection.
    :param is_cut: whether more was refused and missed than was counted.
    """

    rows: Sequence[Health] = ()
    receiver: str = ""
    others: Sequence[Problem] = ()
    is_cut: bool = False
    notice: str = ""
    untaken: Sequence[Problem] = ()


@dataclass(frozen=True)
class Question:
    """What the explain view is about: a task instance, or a customer typed in.

    :param wait: the task instance; None for a customer.
    :param gate: what to ask; None if that is not known, and ``problem`` says why.
    """

    conn_id: str = _DEFAULT
    gate: Gate | None = None
    wait: OpenWait | None = None
    problem: str = ""
    conn_ids: Sequence[str] = field(default_factory=tuple)


class Parts:
    """The parts of the page for one user."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._found: list[WebhookAsset] | None = None

    def health(self) -> HealthPage:
        """Return the health of the webhooks of each connection, and of the open waits."""
        with reading() as session:
            untaken = problems_of_untaken(untaken_waits(session, self._reader.may_read_tasks))
            return replace(self._health_of_webhooks(session), untaken=untaken)

    def _health_of_webhooks(self, session: Session) -> HealthPage:
        if not address.is_supported():
            return HealthPage(notice="Webhooks need Airflow 3.2 or later. The waits below do not depend on them.")
        assets, hidden = self._assets(session)
        if hidden and not assets:
            return HealthPage(notice=_NOT_YOURS)
        return _health_page(session, assets, datetime.now(UTC), _receiver_problem())

    def webhooks(self, size: int, search: str = "", before: str = "") -> WebhookPage | str:
        """Return webhooks, the newest first."""
        if not address.is_supported():
            return "Webhooks need Airflow 3.2 or later."
        position = None
        if before:
            moment, _, number = before.rpartition("~")
            try:
                position = datetime.fromisoformat(moment).astimezone(UTC), _number(number)
            except (ValueError, OverflowError):
                return "The address of this page is not right. Begin with the newest webhooks."
        with reading() as session:
            assets, hidden = self._assets(session)
            if hidden and not assets:
                return _NOT_YOURS
            rows, has_more = newest_webhooks(session, assets, size, search=search, before=position)
        dags = {run.dag_id for row in rows for run in row.runs}
        following = f"{rows[-1].time.isoformat()}~{rows[-1].number}" if has_more and rows else ""
        return WebhookPage(rows, following, frozenset(filter(self._reader.may_read_tasks, dags)))

    def waits(self, size: int, search: str = "", after: str = "") -> WaitPage | str:
        """Return open waits, those that have waited longest first."""
        try:
            begin = _number(after or "0")
        except ValueError:
            return "The address of this page is not right. Begin with the oldest waits."
        may_read = self._reader.may_read_tasks
        with reading() as session:
            rows, last = deferred_waits(session, may_read, size, search=search, after=begin)
            is_cut = False
            if not begin:
                others, is_cut = waits_without_trigger(session, may_read, size, search=search)
                rows = sorted([*rows, *others], key=lambda wait: wait.since or datetime.max.replace(tzinfo=UTC))
            if address.is_supported():
                rows = self._with_webhooks(session, rows)
        return WaitPage(rows, str(last or ""), is_cut)

    def question(self, given: Mapping[str, str]) -> Question:
        """Return what the explain view is about."""
        with reading() as session:
            assets = self._assets(session)[0]
            conn_ids = tuple(dict.fromkeys([*(asset.conn_id for asset in assets), _DEFAULT]))
            question = Question(given.get("conn_id", "").strip() or conn_ids[0], conn_ids=conn_ids)
            if given.get("task_id"):
                return self._of_task(session, question, given)
            found = self._all_assets(session)
        # A connection from the environment has its name in any letter case.
        name = question.conn_id.upper()
        asset_ids = [asset.id for asset in found if asset.conn_id.upper() == name]
        return self._of_customer(question, {name: given.get(name, "").strip() for name in _FORM}, asset_ids)

    def _of_task(self, session: Session, question: Question, given: Mapping[str, str]) -> Question:
        dag_id, run_id, task_id = (given.get(name, "") for name in ("dag_id", "run_id", "task_id"))
        if not self._reader.may_read_tasks(dag_id):
            text = f"You may not read the task instances of the DAG {dag_id!r}, or there is no such DAG."
            return replace(question, problem=text)
        try:
            map_index = _number(given.get("map_index", ""))
        except ValueError:
            # A task that is not mapped.
            map_index = -1
        wait = find_wait(session, (dag_id, run_id, task_id, map_index))
        if wait is None:
            return replace(question, problem=f"There is no task instance {task_id!r} in the run {run_id!r}.")
        if address.is_supported():
            (wait,) = self._with_webhooks(session, [wait])
        return replace(question, wait=wait, gate=wait.gate, conn_id=wait.conn_id, problem=wait.problem)

    def _of_customer(self, question: Question, given: Mapping[str, str], asset_ids: Sequence[int]) -> Question:
        if not any(given[name] for name in ("link_id", "entity_id")):
            return question
        if asset_ids and not all(map(self._reader.may_read_asset, asset_ids)):
            return replace(question, problem=_NOT_YOURS)
        if not asset_ids and not self._reader.may_read_connection(question.conn_id):
            text = (
                f"No DAG is scheduled by the webhooks of the connection {question.conn_id!r}, so that a check with it "
            )
            return replace(question, problem=f"{text}needs the permission to read connections in Airflow.")
        try:
            wanted: Any = {name: given[name] for name in _FORM[1:] if given[name]}
            return replace(question, gate=CustomerGate.parse(**wanted))
        except ValueError as error:
            return replace(question, problem=str(error))

    def _all_assets(self, session: Session) -> list[WebhookAsset]:
        if self._found is None:
            self._found = webhook_assets(session) if address.is_supported() else []
        return self._found

    def _assets(self, session: Session) -> tuple[list[WebhookAsset], bool]:
        """Return the assets that the user may read, and whether there are others, or none that they could read."""
        found = self._all_assets(session)
        readable = [asset for asset in found if self._reader.may_read_asset(asset.id)]
        return readable, len(readable) < len(found) or not (found or self._reader.may_read_asset())

    def _with_webhooks(self, session: Session, waits: Sequence[OpenWait]) -> list[OpenWait]:
        """Add when the last webhook of each customer arrived."""
        assets = {asset.conn_id: asset.id for asset in self._assets(session)[0]}
        wanted: dict[int, list[tuple[str, datetime]]] = {}
        keys: list[tuple[int, str] | None] = []
        for wait in waits:
            asset = assets.get(wait.conn_id)
            if wait.gate is None or wait.since is None or asset is None:
                keys.append(None)
                continue
            customer = wait.gate.expectation
            key = address.partition_key(customer.link_id, customer.entity_id)
            wanted.setdefault(asset, []).append((key, wait.since))
            keys.append((asset, key))
        found = last_webhooks(session, wanted)
        return [
            # Webhooks of an entity with a link have the key of the link, which a gate for an entity does not know.
            replace(wait, last_webhook=found.get(key), knows_webhooks=key[1].startswith("link:"))
            if key is not None
            else wait
            for wait, key in zip(waits, keys, strict=True)
        ]


def _health_page(session: Session, assets: Sequence[WebhookAsset], now: datetime, receiver: str) -> HealthPage:
    # Only Airflow 3.2 and later have what these modules read.
    from airflow_provider_bankconnect.receiver.journal import read_journal  # noqa: PLC0415
    from airflow_provider_bankconnect.receiver.runs import customers_without_run  # noqa: PLC0415

    kept = read_journal(session, now - _DAY)
    others = problems_of_refusals(kept.refused.get("", {}))
    if not assets:
        return HealthPage((), receiver, others, kept.is_cut)
    ids = [asset.id for asset in assets]
    numbers, dags = traffic(session, ids, now), scheduled_dags(session, ids)
    without_run = customers_without_run(session, ids)
    rows = [
        Health(
            asset.conn_id,
            numbers.get(asset.id, Traffic()),
            tuple(dags.get(asset.id, ())),
            without_run.get(asset.id, 0),
            kept.missed[asset.conn_id],
            kept.refused.get(asset.conn_id, {}),
            kept.registered.get(asset.conn_id),
        )
        for asset in assets
    ]
    return HealthPage(rows, receiver, others, kept.is_cut)


def _number(text: str) -> int:
    """Return a number that each database takes for an id.

    :raises ValueError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise ValueError("no number of an id")
    return int(text)


def _receiver_problem() -> str:
    """Return why this API server takes no webhooks, or ``""``."""
    try:
        if address.is_on():
            return ""
    except ValueError as error:
        return f"The webhook receiver is off: {error}"
    setting = f"[{address.SECTION}] webhook_token"
    return f"The webhook receiver is off: set {setting} on every component of Airflow, then restart them"
