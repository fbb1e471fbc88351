"""Makes the triggers of waits, in builds of this package before and after their `wait` argument."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
)


def history_wait(
    link_id: str, poke_interval: float, *, expected_statements: int = 1
) -> BankConnectWebhookPayloadTrigger:
    """Return a trigger that waits for a payload history, for six hours."""
    return BankConnectWebhookPayloadTrigger(
        link_id=link_id, expected_statements=expected_statements, **_pace(poke_interval)
    )


def transactions_wait(
    entity_id: str, poke_interval: float, *, expected_statements: int, conn_id: str
) -> BankConnectProgressTrigger:
    """Return a trigger that waits for the transactions of an entity, for six hours."""
    return BankConnectProgressTrigger(
        entity_id=entity_id,
        expected_statements=expected_statements,
        bankconnect_conn_id=conn_id,
        **_pace(poke_interval),
    )


def _pace(poke_interval: float) -> dict[str, Any]:
    deadline = datetime.now(UTC) + timedelta(hours=6)
    pace: dict[str, Any] = {"deadline": deadline.isoformat(), "poke_interval": poke_interval}
    is_new = "wait" in inspect.signature(BankConnectWebhookPayloadTrigger).parameters
    return {"wait": pace} if is_new else pace
