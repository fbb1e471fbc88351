"""The customer that a run is about: of its webhook event, of its partition key, or of its ``conf``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow_provider_bankconnect.arguments import check_id
from airflow_provider_bankconnect.receiver.address import ASSET_PREFIX, asset_uri, conn_id_of, customer_of_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.common.compat.sdk import Context

# BankConnect's records may show a statement later than its webhook. The limit keeps a forged webhook from holding up a
# run for longer.
_ANNOUNCED_FOR: Final = timedelta(minutes=10)


class Customer(NamedTuple):
    """A customer, and the statements that webhooks have announced as completed, until a limit."""

    link_id: str | None = None
    entity_id: str | None = None
    announced: tuple[str, ...] = ()
    announced_until: datetime | None = None


def customer_of_run(context: Context, conn_id: str) -> Customer:
    """Return the customer that a run is about: the link, or the entity of a customer without a link.

    :param conn_id: the connection whose webhook events count.
    :raises ValueError: the run names no customer, or several, or one of another connection.
    """
    dag_run: Any = context.get("dag_run")
    events = dict(_webhook_events(context))
    if found := _of_events(events.pop(asset_uri(conn_id), [])):
        return found
    if events:
        others = ", ".join(sorted(repr(conn_id_of(uri)) for uri in events))
        raise ValueError(f"webhook events of connection {others} started the run, and the sensor has {conn_id!r}")
    of_key = customer_of_key(getattr(dag_run, "partition_key", None) or "")
    found = Customer(of_key.get("link_id"), of_key.get("entity_id"))
    run_conf = getattr(dag_run, "conf", None)
    if found == Customer() and isinstance(run_conf, Mapping):
        found = Customer(_id_of(run_conf, "link_id"), _id_of(run_conf, "entity_id"))
    if found == Customer():
        raise ValueError(
            "link_id and entity_id are missing, and the run names no customer: no webhook event of connection "
            f"{conn_id!r} started it. Give the sensor link_id or entity_id, or trigger the run with "
            '--conf \'{"link_id": "..."}\' or the partition key link:...'
        )
    return found


def _webhook_events(context: Context) -> Iterator[tuple[str, list[Any]]]:
    """Yield the webhook assets that started the run, and their events."""
    accessor: Any = context.get("triggering_asset_events") or {}
    for asset, events in accessor.items():
        uri = getattr(asset, "uri", None) or ""
        if uri.startswith(ASSET_PREFIX):
            yield uri, list(events)


def _of_events(events: list[Any]) -> Customer | None:
    """Return the customer of webhook events: the link, whichever of its entities they name."""
    links = {_id_of(event.extra, "link_id") for event in events} - {None}
    entities = {_id_of(event.extra, "entity_id") for event in events if not _id_of(event.extra, "link_id")} - {None}
    if len(links) + len(entities) > 1:
        raise ValueError(
            f"the run was started by webhook events of {len(links) + len(entities)} customers: schedule the DAG by "
            "PartitionedAssetTimetable, which starts a run for each customer, or give the sensor link_id or entity_id"
        )
    completed = [event for event in events if str(event.extra.get("progress")).lower() == "completed"]
    announced = {_id_of(event.extra, "statement_id") for event in completed} - {None}
    times = [event.timestamp for event in completed if isinstance(getattr(event, "timestamp", None), datetime)]
    if not links and not entities:
        return None
    return Customer(
        next(iter(links), None),
        next(iter(entities), None),
        tuple(sorted(filter(None, announced))) if times else (),
        max(times) + _ANNOUNCED_FOR if times else None,
    )


def _id_of(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return None if value is None or not str(value).strip() else check_id(name, value)
