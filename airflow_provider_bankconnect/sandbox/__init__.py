"""A stand-in for BankConnect on one's own machine, over HTTPS, for development and tests.

From the command line: ``python -m airflow_provider_bankconnect.sandbox --help``. From Python::

    with Sandbox(statements=[Statement(link_id="loan-4711", after=5)]) as box:
        ...  # box.connection_json is what AIRFLOW_CONN_BANKCONNECT_DEFAULT wants

It shares no code with the rest of the package: sharing code, it would share its misreadings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .box import Sandbox
    from .clock import SimulatedClock
    from .models import Fault, Statement

__all__ = ["Fault", "Sandbox", "SimulatedClock", "Statement"]

_HOMES = {"Fault": "models", "Sandbox": "box", "SimulatedClock": "clock", "Statement": "models"}


def __getattr__(name: str) -> object:
    """Load on demand, so that a missing extra is told in words, and only to those who need it."""
    from importlib import import_module  # noqa: PLC0415 - nothing is to be loaded with this module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"starlette", "uvicorn", "trustme", "h11"}:
            raise
        raise ImportError(
            f"The sandbox needs {error.name!r}: pip install 'airflow-provider-bankconnect[sandbox]'"
        ) from None
