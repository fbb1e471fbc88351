"""A mock BankConnect server over HTTPS, for development and tests.

From the command line: ``python -m airflow_provider_bankconnect.sandbox --help``. From Python::

    with Sandbox(statements=[Statement(link_id="loan-4711", after=5)]) as box:
        ...  # box.connection_json is the value for AIRFLOW_CONN_BANKCONNECT_DEFAULT

It imports nothing from the rest of the package: shared code would share mistakes in reading the API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .box import Sandbox
    from .clock import SimulatedClock
    from .models import Fault, Statement

__all__ = ["Fault", "Sandbox", "SimulatedClock", "Statement"]

_MODULES = {"Fault": "models", "Sandbox": "box", "SimulatedClock": "clock", "Statement": "models"}


def __getattr__(name: str) -> object:
    """Import on first use, so that a missing extra is reported only when the sandbox is used."""
    from importlib import import_module  # noqa: PLC0415 - keeps the import of this module cheap

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"starlette", "uvicorn", "trustme", "h11"}:
            raise
        raise ImportError(f"The sandbox needs {error.name!r}: install the package with its extra [sandbox]") from None
