"""The link of each task of our sensors to the page, and where the page is. Imported by every Airflow process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)
PREFIX: Final = "/bankconnect-ui"
SENSORS: Final = ("BankConnectWebhookPayloadSensor", "BankConnectProgressSensor", "BankConnectStatementSensor")
_MODULE: Final = "airflow_provider_bankconnect.sensors.bankconnect"


def is_supported() -> bool:
    """Return whether this Airflow can have the page: its UI takes views of plugins since 3.1."""
    major, minor = map(int, airflow_version.split(".")[:2])
    return (major, minor) >= (3, 1)


def address_of(path: str, query: Mapping[str, object] | None = None) -> str:
    """Return the address of a part of the page, relative to Airflow's ``base_url``, which may have a path."""
    return f"{PREFIX[1:]}/{path}{'?' if query else ''}{urlencode(query or {})}"


class BankConnectExplainLink(BaseOperatorLink):
    """Leads from a task of our sensors to the page that says what it waits for."""

    name = "BankConnect: why is it waiting?"
    # Airflow compares only names. The sensors themselves would take half a second to import.
    operators: ClassVar[list[Any]] = [type(name, (), {"__module__": _MODULE}) for name in SENSORS]

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ANN401, ARG002 - as Airflow has it
        """Return the address for one task instance."""
        try:
            names = ("dag_id", "run_id", "task_id", "map_index")
            return address_of("explain", {name: getattr(ti_key, name) for name in names})
        except Exception:  # noqa: BLE001 - an exception would cost the task all of its links
            _log.exception("Could not make the link to the page of BankConnect")
            return ""
