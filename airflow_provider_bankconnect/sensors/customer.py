"""The customer that a run is about: of its webhook event, of its partition key, or of its ``conf``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect.arguments import check_id
from airflow_provider_bankconnect.receiver.address import asset_uri, customer_of_key

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_NAMES: Final = ("link_id", "entity_id")


def customer_of_run(context: Context, conn_id: str) -> dict[str, str]:
    """Return the ``link_id`` of the customer that a run is about, or the ``entity_id`` of one without a link.

    :param conn_id: the connection whose webhook events count.
    :raises ValueError: the run names no customer, or several.
    """
    dag_run: Any = context.get("dag_run")
    customers = _of_events(context, conn_id)
    if not customers and (found := customer_of_key(getattr(dag_run, "partition_key", None) or "")):
        customers = [found]
    run_conf = getattr(dag_run, "conf", None)
    if not customers and isinstance(run_conf, Mapping):
        customers = list(filter(None, [_customer(run_conf)]))
    if not customers:
        raise ValueError(
            "link_id and entity_id are missing, and the run names no customer: no webhook event of connection "
            f"{conn_id!r} started it. Give the sensor link_id or entity_id, or trigger the run with "
            '--conf \'{"link_id": "..."}\''
        )
    if len(customers) > 1:
        raise ValueError(
            f"the run was started by webhook events of {len(customers)} customers: schedule the DAG by "
            "PartitionedAssetTimetable, which starts a run for each customer, or give the sensor link_id or entity_id"
        )
    return customers[0]


def _of_events(context: Context, conn_id: str) -> list[dict[str, str]]:
    """Return the different customers of the webhook events that started the run."""
    accessor: Any = context.get("triggering_asset_events") or {}
    uri = asset_uri(conn_id)
    found: list[dict[str, str]] = []
    for asset, events in accessor.items():
        for event in events if getattr(asset, "uri", None) == uri else ():
            customer = _customer(event.extra or {})
            if customer and customer not in found:
                found.append(customer)
    return found


def _customer(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the link, or the entity where there is no link: a link is the customer, whoever its entities are."""
    for name in _NAMES:
        value = values.get(name)
        if value is not None and str(value).strip():
            return {name: check_id(name, value)}
    return {}
