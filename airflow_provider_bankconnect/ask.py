"""Ask BankConnect now for what a gate waits for, and explain the verdict: for the command and for the page."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import explain
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, Records

if TYPE_CHECKING:
    from airflow_provider_bankconnect.explain import Explanation
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
    from airflow_provider_bankconnect.records import Gate

# If a history does not pass its gate, this many of the link's entities are asked for their progress.
_MOST_ENTITIES: Final = 10
_SMALL_ANALYSIS: Final = "accounts"


def ask_and_explain(hook: BankConnectHook, gate: Gate) -> Explanation:
    """Ask BankConnect what the gate asks, and return the verdict in words. A 404 is an answer: nothing is there yet.

    :param hook: with ``max_retries=0`` where a person waits for the result.
    :raises BankConnectError: BankConnect gave no answer that can be judged.
    """
    timezone = hook.settings.timezone
    answer: Any = Records() if isinstance(gate, CustomerGate) else []
    not_found = progress = None
    try:
        answer = hook.run(gate.ask(timezone))
    except api.BankConnectNotFoundError as error:
        not_found = error
        _refuse_wrong_path(hook, error)
    now = datetime.now(UTC)
    if isinstance(gate, HistoryGate) and _is_not_passed(gate, answer, now):
        progress = _entity_progress(hook, gate)
    explanation = explain(gate, answer, now, progress, timezone=timezone)
    if not_found is None:
        return explanation
    return replace(explanation, remarks=(*explanation.remarks, f"BankConnect said: {not_found}."))


def _refuse_wrong_path(hook: BankConnectHook, not_found: api.BankConnectNotFoundError) -> None:
    """Raise an error if the test call gets a 404 too."""
    try:
        hook.run(api.probe())
    except api.BankConnectNotFoundError as error:
        answers = f"BankConnect answers 404 to all calls ({not_found}; {error})"
        check = f"Is the path in the connection's host right ({hook.settings.base_url})?"
        raise api.BankConnectNotFoundError(f"{answers}. {check}") from None
    except api.BankConnectError:
        return


def _is_not_passed(gate: HistoryGate, rows: list[api.WebhookPayload], now: datetime) -> bool:
    try:
        return gate.judge(rows, now).state != "passed"
    except api.BankConnectTimezoneError:
        return False


def _entity_progress(hook: BankConnectHook, gate: HistoryGate) -> dict[str, list[api.StatementProgress]] | None:
    """Return the progress of the link's entities: a history may lack what sent no webhook. None: no answer."""
    try:
        entities = hook.get_entities(gate.expectation.link_id or "")[:_MOST_ENTITIES]
        return {entity_id: hook.get_progress(entity_id, _SMALL_ANALYSIS) for entity_id in entities}
    except api.BankConnectError:
        return None
