"""The lineage of a task: the customers that it has read, and the files that it has written.

Airflow's hook lineage collector takes them, and its OpenLineage provider reads them there when the task ends. Without
that provider the collector drops them, and nothing of OpenLineage is imported. Airflow imports this module at start-up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.common.compat.sdk import Asset, BaseOperator

# Airflow drops what follows #, sorts what follows ?, and refuses what is not ASCII.
_KEPT: Final = "".join(chr(code) for code in range(32, 127) if chr(code) not in "#?")
_log: Final = logging.getLogger(__name__)


def report_lineage(task: BaseOperator, *, entities: Iterable[str], conn_id: str, outputs: Iterable[str] = ()) -> None:
    """Report what a task has read and written. The task does not depend on it.

    :param task: its declared inlets and outlets are reported too: OpenLineage leaves them out if anything is reported.
    :param entities: the customers that were read.
    :param conn_id: the connection that they were read with.
    :param outputs: the URLs of the written files.
    """
    try:
        # Not above: it loads Airflow's plugins.
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector  # noqa: PLC0415

        collector: Any = get_hook_lineage_collector()  # type: ignore[no-untyped-call]
        for uri in [*(entity_uri(conn_id, entity) for entity in entities), *_declared(task, "inlets")]:
            collector.add_input_asset(context=task, uri=uri)
        for uri in [*map(output_uri, outputs), *_declared(task, "outlets")]:
            collector.add_output_asset(context=task, uri=uri)
    except Exception as error:  # noqa: BLE001 - a collector or a path that fails in any way
        _log.info("Could not report the lineage: %s", type(error).__name__)


def entity_uri(conn_id: str, entity_id: str) -> str:
    """Return the asset URI of a customer."""
    return f"bankconnect://entity/{quote(conn_id, safe='')}/{quote(entity_id, safe='')}"


def output_uri(url: str) -> str:
    """Return the asset URI of a file: its URL without the Airflow connection."""
    scheme, _, rest = url.partition("://")
    place, slash, key = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{quote(key, safe=_KEPT)}"


def convert_asset_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:  # noqa: ARG001 - Airflow's signature
    """Return the dataset of an asset ``bankconnect://<kind>/<connection>[/<id>]``."""
    # Only OpenLineage's provider calls this.
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415

    parts = urlsplit(asset.uri)
    conn_id, _, identifier = parts.path.removeprefix("/").partition("/")
    name = f"{parts.netloc}/{unquote(identifier)}" if identifier else parts.netloc
    return Dataset(namespace=f"bankconnect://{unquote(conn_id)}", name=name)


def _declared(task: BaseOperator, which: str) -> list[str]:
    return [asset.uri for asset in getattr(task, which, None) or () if getattr(asset, "uri", None)]
