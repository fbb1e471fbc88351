"""Asking BankConnect for the explain view: few at a time, with a time limit, and errors in words."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.ask import ask_and_explain
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.ui.access import Pace
from airflow_provider_bankconnect.ui.parts import Question

if TYPE_CHECKING:
    from airflow_provider_bankconnect.explain import Explanation
    from airflow_provider_bankconnect.records import Gate
    from airflow_provider_bankconnect.ui.access import Reader

_log = logging.getLogger(__name__)
# A link may have many entities, and each takes a request.
_LONGEST_SECONDS: Final = 20.0
_MOST_AT_ONCE: Final = 4
# One text for both, so that nobody learns which connections there are.
_NO_CONNECTION: Final = "The API server finds no connection {!r} of the type 'bankconnect'."


@dataclass(frozen=True)
class Outcome:
    """What a check has found: the explanation, or why there is none."""

    explanation: Explanation | None = None
    problem: str = ""
    retry_at: datetime | None = None


class Checks:
    """Asks BankConnect in threads of its own: those of the API server are shared with all of Airflow."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="bankconnect-check")
        self._running = 0
        self._pace = Pace()

    async def check(self, reader: Reader, question: Question | str) -> Outcome | None:
        """Ask BankConnect, and return the verdict; None if there is nothing to ask."""
        if not isinstance(question, Question) or question.gate is None:
            return None
        if not self._pace.may_check(reader.name):
            return Outcome(problem="You checked less than a second ago. Check again.")
        if self._running >= _MOST_AT_ONCE:
            return Outcome(problem=f"{_MOST_AT_ONCE} other checks are running. Check again in a moment.")
        self._running += 1
        check = asyncio.get_running_loop().run_in_executor(self._threads, _check, question.conn_id, question.gate)
        check.add_done_callback(self._note_end)
        try:
            return await asyncio.wait_for(asyncio.shield(check), _LONGEST_SECONDS)
        except TimeoutError:
            return Outcome(problem=f"BankConnect has not answered within {_LONGEST_SECONDS:.0f} seconds.")

    def _note_end(self, _: object) -> None:
        self._running -= 1


def _check(conn_id: str, gate: Gate) -> Outcome:
    try:
        # The keys of another type of connection would be sent to its host.
        if Connection.get_connection_from_secrets(conn_id).conn_type != "bankconnect":
            return Outcome(problem=_NO_CONNECTION.format(conn_id))
        # Without retries: a person waits for the result.
        with BankConnectHook(conn_id, max_retries=0) as hook:
            return Outcome(ask_and_explain(hook, gate))
    except Exception as error:  # noqa: BLE001 - a secrets backend may raise anything
        return _failed(conn_id, error)


def _failed(conn_id: str, error: Exception) -> Outcome:
    match error:
        case api.BankConnectTransientError(retry_after=float() as seconds):
            again = datetime.now(UTC) + timedelta(seconds=seconds)
            return Outcome(problem=f"BankConnect could not be asked: {error}.", retry_at=again)
        case api.BankConnectError():
            return Outcome(problem=f"BankConnect could not be asked: {error}.")
        case AirflowNotFoundException():
            return Outcome(problem=_NO_CONNECTION.format(conn_id))
        case ValueError():
            return Outcome(problem=f"{error}.")
    _log.error("The page of BankConnect could not ask", exc_info=error)
    return Outcome(problem=f"BankConnect could not be asked ({type(error).__name__}): see the API server's log.")
