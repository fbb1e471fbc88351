"""Deferred waits that no running triggerer has taken: nothing checks them until Airflow itself ends them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.jobs.job import Job
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import conf
from sqlalchemy import null, or_, select, union

from airflow_provider_bankconnect import triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session
    from sqlalchemy.sql import Select

# How long a wait may have no triggerer: Airflow mostly needs seconds.
PATIENCE: Final = timedelta(minutes=1)
OUR_TRIGGERS: Final = f"{triggers.__name__}."
# The oldest and the newest triggers that are read, this many of each: the column triggerer_id has no index.
_ENDS: Final = 2500


@dataclass(frozen=True)
class Untaken:
    """Deferred waits that no running triggerer has taken for a minute.

    :param queues: how many of each queue; None for those without a queue.
    :param runs: whether any triggerer runs.
    """

    queues: Mapping[str | None, int] = field(default_factory=dict)
    runs: bool = True


def running() -> Select[Any]:
    """Return a query for the ids of the triggerers that have sent a heartbeat in the last minute."""
    threshold = timedelta(seconds=conf.getfloat("triggerer", "triggerer_health_check_threshold", fallback=30.0))
    since = datetime.now(UTC) - max(PATIENCE, threshold)
    return select(Job.id).where(Job.job_type == "TriggererJob", Job.latest_heartbeat > since)


def untaken_waits(session: Session, may_read: Callable[[str], bool]) -> Untaken:
    """Return the waits without a triggerer, among the oldest and the newest triggers.

    :param may_read: whether the user may read the task instances of a DAG.
    """
    # Added in Airflow 3.2.
    queue = getattr(Trigger, "queue", null())
    columns = (Trigger.id, Trigger.classpath, Trigger.created_date, Trigger.triggerer_id, queue.label("queue"))
    ends = [
        select(*columns).order_by(order).limit(_ENDS).subquery().select() for order in (Trigger.id, Trigger.id.desc())
    ]
    found = union(*ends).subquery().c
    query = select(found.id, found.queue).where(
        found.classpath.startswith(OUR_TRIGGERS),
        found.created_date < datetime.now(UTC) - PATIENCE,
        or_(found.triggerer_id.is_(None), found.triggerer_id.not_in(running())),
    )
    queues: dict[int | None, str | None] = {row.id: row.queue for row in session.execute(query)}
    if not queues:
        return Untaken()
    tasks = select(TaskInstance.trigger_id, TaskInstance.dag_id).where(
        TaskInstance.trigger_id.in_(queues), TaskInstance.state == "deferred"
    )
    allowed: dict[str, bool] = {}
    counts: Counter[str | None] = Counter()
    for number, dag_id in session.execute(tasks):
        if dag_id not in allowed:
            allowed[dag_id] = may_read(dag_id)
        counts[queues[number]] += allowed[dag_id]
    return Untaken(+counts, session.execute(running().limit(1)).first() is not None)
