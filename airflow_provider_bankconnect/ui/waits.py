"""Open waits as the page shows them: read from the arguments of their triggers, and from the fields of their tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from airflow.models.asset import AssetEvent, AssetModel, association_table
from airflow.models.crypto import get_fernet
from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskreschedule import TaskReschedule
from airflow.models.trigger import Trigger
from sqlalchemy import and_, func, select
from sqlalchemy.orm import lazyload

from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate
from airflow_provider_bankconnect.sensors.customer import customer_of_run
from airflow_provider_bankconnect.triggers import bankconnect as our_triggers
from airflow_provider_bankconnect.ui.link import SENSORS
from airflow_provider_bankconnect.ui.triggerers import OUR_TRIGGERS, PATIENCE, running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session
    from sqlalchemy.sql import Select

    from airflow_provider_bankconnect.records import Gate

_GATES: Final[dict[str, type[Gate]]] = dict(zip(SENSORS, (HistoryGate, ProgressGate, CustomerGate), strict=True))
# States of a task that waits without a trigger.
_WITHOUT_TRIGGER: Final = ("running", "up_for_reschedule")
# Rows that are read at once where many may have to be left out, and how often.
_CHUNK: Final = 1000
_MOST_CHUNKS: Final = 5
_PLAIN_TYPES: Final = {"dict", "tuple", "builtins.tuple", "builtins.list"}
_NO_FIELDS: Final = (
    "its arguments are not recorded: Airflow keeps them from the start of a task, and for the last runs of a DAG only"
)
_OF_THE_RUN: Final = "the customer is that of the run"
_CUT: Final = "Truncated. "

# A task instance: its DAG, run, task and map index.
Task: TypeAlias = tuple[str, str, str, int]


@dataclass(frozen=True)
class OpenWait:
    """A task that waits, or has waited.

    :param number: of its trigger; 0 without one.
    :param state: of the task.
    :param gate: what it waits for; None if that is not known, and ``problem`` says why.
    :param since: when the wait began.
    :param deadline: when it times out; None if that is not known.
    :param next_check: when its next poke is, as far as the database knows.
    :param every: its ``poke_interval`` in seconds; None if that is not known.
    :param has_triggerer: whether a running triggerer has taken it.
    :param is_untaken: whether it has had no running triggerer for longer than Airflow needs.
    :param queue: of its trigger; ``""`` for none, as long as ``[triggerer] queues_enabled`` is off.
    :param assumed: what is not recorded, and what is taken instead.
    :param last_webhook: of the customer since the wait began, among the newest of the connection.
    :param knows_webhooks: whether ``last_webhook`` is None because there was none.
    """

    task: Task
    state: str
    number: int = 0
    gate: Gate | None = None
    problem: str = ""
    conn_id: str = ""
    since: datetime | None = None
    deadline: datetime | None = None
    next_check: datetime | None = None
    every: float | None = None
    has_triggerer: bool = True
    is_untaken: bool = False
    queue: str = ""
    assumed: str = ""
    last_webhook: datetime | None = None
    knows_webhooks: bool = False

    def matches(self, search: str) -> bool:
        """Return whether a part of an id of the customer, or of the task, is what is searched for."""
        words = [*map(str, self.task), self.conn_id, str(self.gate or "")]
        if self.gate is not None:
            wanted = self.gate.expectation
            words += [*(wanted.statement_id or ()), wanted.link_id or "", wanted.entity_id or ""]
        return any(search.lower() in word.lower() for word in words)


def deferred_waits(
    session: Session,
    may_read: Callable[[str], bool],
    size: int,
    *,
    search: str = "",
    after: int = 0,
) -> tuple[list[OpenWait], int]:
    """Return deferred waits, those that deferred first come first, and after which number to continue; 0 at the end.

    :param may_read: whether the user may read the task instances of a DAG.
    :param after: the number of the last one that was shown.
    """
    found: list[OpenWait] = []
    denied: set[str] = set()
    for chunk in range(_MOST_CHUNKS):
        # Mostly all rows are shown, and the first chunk is enough.
        limit = size + 1 if chunk == 0 and not search else _CHUNK
        query = _deferred().where(Trigger.id > after, TaskInstance.dag_id.not_in(denied)).limit(limit)
        rows = session.execute(query.order_by(Trigger.id)).all()
        for row in rows:
            after = row.Trigger.id
            if row.dag_id in denied or not may_read(row.dag_id):
                denied.add(row.dag_id)
                continue
            wait = _of_trigger(row)
            if wait.matches(search):
                found.append(wait)
                if len(found) > size:
                    return found[:size], found[size - 1].number
        if len(rows) < limit:
            return found, 0
    return found, after


def waits_without_trigger(
    session: Session, may_read: Callable[[str], bool], size: int, *, search: str = ""
) -> tuple[list[OpenWait], bool]:
    """Return waits in poke and reschedule mode, the oldest first, and whether there are more."""
    query = (
        _without_trigger()
        .where(TaskInstance.state.in_(_WITHOUT_TRIGGER), TaskInstance.operator.in_(SENSORS))
        .order_by(TaskInstance.start_date)
        .limit(_CHUNK)
    )
    found: list[OpenWait] = []
    for row in session.execute(query):
        if may_read(row.dag_id):
            wait = _of_fields(row, row.rendered_fields)
            if wait.matches(search):
                found.append(wait)
    return found[:size], len(found) > size


def find_wait(session: Session, task: Task) -> OpenWait | None:
    """Return the wait of one task instance, open or over; None if there is no such task instance."""
    dag_id, run_id, task_id, map_index = task
    this = (
        *(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id),
        *(TaskInstance.task_id == task_id, TaskInstance.map_index == map_index),
    )
    if (row := session.execute(_deferred().where(*this)).first()) is not None:
        return _of_trigger(row)
    if (row := session.execute(_without_trigger().where(*this)).first()) is None:
        return None
    wait = _of_fields(row, row.rendered_fields)
    return wait if wait.gate or row.operator not in SENSORS else _of_run(session, row, wait)


def _task_columns(*more: Any) -> Select[Any]:  # noqa: ANN401 - columns
    return select(
        *(TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index),
        *(TaskInstance.state, TaskInstance.operator, TaskInstance.start_date),
        *more,
    ).select_from(TaskInstance)


def _deferred() -> Select[Any]:
    return (
        _task_columns(Trigger, Trigger.triggerer_id.in_(running()).label("has_triggerer"))
        .join(Trigger, Trigger.id == TaskInstance.trigger_id)
        .where(TaskInstance.state == "deferred", Trigger.classpath.startswith(OUR_TRIGGERS))
        # Airflow would load the task instances with the triggers.
        .options(lazyload(Trigger.task_instance))
    )


def _without_trigger() -> Select[Any]:
    # At each poke in reschedule mode the task starts anew.
    first = select(func.min(TaskReschedule.start_date)).where(TaskReschedule.ti_id == TaskInstance.id)
    columns = (Fields.rendered_fields, first.correlate(TaskInstance).scalar_subquery().label("first_start"))
    return _task_columns(*columns).outerjoin(Fields, _same_task(Fields))


def _same_task(table: Any) -> Any:  # noqa: ANN401 - a mapped class, and a condition
    names = ("dag_id", "run_id", "task_id", "map_index")
    return and_(*(getattr(table, name) == getattr(TaskInstance, name) for name in names))


def _of_trigger(row: Any) -> OpenWait:  # noqa: ANN401 - a row
    wait = replace(
        _bare(row),
        number=row.Trigger.id,
        has_triggerer=bool(row.has_triggerer),
        is_untaken=not row.has_triggerer and datetime.now(UTC) - row.Trigger.created_date > PATIENCE,
        # Added in Airflow 3.2.
        queue=getattr(row.Trigger, "queue", None) or "",
    )
    try:
        kind = getattr(our_triggers, row.Trigger.classpath.rpartition(".")[2])
        trigger = kind(**decrypted(row.Trigger.encrypted_kwargs))
    except Exception as error:  # noqa: BLE001 - another Fernet key, or another version of this package
        why = "Was the Fernet key changed? Set the same one, and the same version of this package, on all components"
        return replace(wait, problem=f"its trigger cannot be read ({type(error).__name__}). {why}")
    known = trigger.wait.arguments()
    return replace(
        wait,
        gate=trigger.gate,
        conn_id=trigger.bankconnect_conn_id,
        since=trigger.wait.started,
        deadline=trigger.wait.deadline,
        next_check=datetime.fromisoformat(known["next_poke"]),
        every=known["poke_interval"],
    )


def decrypted(encrypted: str) -> dict[str, Any]:
    """Return the arguments of a trigger. Those of our triggers are plain values.

    Airflow's own reading can import classes that the arguments name, and a worker writes them.

    :raises ValueError: they are not plain.
    """
    # Airflow does not encrypt them where it has migrated old ones.
    text = encrypted if encrypted.startswith("{") else get_fernet().decrypt(encrypted.encode()).decode()
    arguments = _plain(json.loads(text))
    if not isinstance(arguments, dict):
        raise ValueError("no arguments of a trigger")
    return arguments


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    # As Airflow 3.2 and later write other types than those of JSON, and as older ones do.
    for kind, content in (("__classname__", "__data__"), ("__type", "__var")):
        if kind in value:
            if value[kind] not in _PLAIN_TYPES:
                raise ValueError(f"an argument of a trigger is no plain value, but {value[kind]!r}")
            inner = value[content]
            return {name: _plain(item) for name, item in inner.items()} if value[kind] == "dict" else _plain(inner)
    return {name: _plain(item) for name, item in value.items()}


def _of_fields(row: Any, fields: Mapping[str, Any] | None) -> OpenWait:  # noqa: ANN401 - a row
    wait = _bare(row)
    if row.first_start is not None:
        wait = replace(wait, since=row.first_start)
    if (kind := _GATES.get(row.operator)) is None:
        names = ", ".join(SENSORS)
        return replace(wait, problem=f"the task is a {row.operator or 'task without an operator'}, none of {names}")
    if fields is None:
        return replace(wait, problem=_NO_FIELDS)
    given = {name: fields[name] for name in kind.names if fields.get(name) is not None}
    return _with_gate(wait, kind, given, str(fields.get("bankconnect_conn_id") or ""))


def _with_gate(wait: OpenWait, kind: type[Gate], given: Mapping[str, Any], conn_id: str) -> OpenWait:
    if kind is CustomerGate and not {"link_id", "entity_id"} & given.keys():
        return replace(wait, conn_id=conn_id, problem=_OF_THE_RUN)
    if any(str(value).startswith(_CUT) for value in given.values()):
        return replace(wait, conn_id=conn_id, problem="its arguments are too long: Airflow has recorded a part of them")
    try:
        gate = kind.parse(**given)
    except (TypeError, ValueError) as error:
        return replace(wait, conn_id=conn_id, problem=f"its recorded arguments cannot be read: {error}")
    grace = "" if "failure_grace" not in kind.names else "failure_grace is not recorded. 30 minutes are assumed"
    return replace(wait, gate=gate, conn_id=conn_id, assumed=grace)


def _of_run(session: Session, row: Any, wait: OpenWait) -> OpenWait:  # noqa: ANN401 - a row
    """Return the wait of a sensor without ids, whose customer is that of the run."""
    if row.rendered_fields is None or _GATES[row.operator] is not CustomerGate:
        return wait
    run = session.scalar(select(DagRun).where(DagRun.dag_id == row.dag_id, DagRun.run_id == row.run_id))
    events: dict[Any, list[Any]] = {}
    query = (
        select(AssetModel, AssetEvent)
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .join(association_table, association_table.c.event_id == AssetEvent.id)
        .where(association_table.c.dag_run_id == getattr(run, "id", None))
    )
    for asset, event in session.execute(query):
        events.setdefault(asset, []).append(event)
    context: Any = {"dag_run": run, "triggering_asset_events": events}
    try:
        customer = customer_of_run(context, wait.conn_id)
    except ValueError as error:
        return replace(wait, problem=str(error))
    rendered = {name: row.rendered_fields.get(name) for name in CustomerGate.names}
    given = {name: value for name, value in (rendered | customer._asdict()).items() if value is not None}
    return _with_gate(replace(wait, problem=""), CustomerGate, given, wait.conn_id)


def _bare(row: Any) -> OpenWait:  # noqa: ANN401 - a row
    return OpenWait((row.dag_id, row.run_id, row.task_id, row.map_index), str(row.state or ""), since=row.start_date)
