"""Makes the trigger of a wait for a payload history, in builds of this package before and after its `wait` argument."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger


def history_wait(
    link_id: str, poke_interval: float, *, expected_statements: int = 1
) -> BankConnectWebhookPayloadTrigger:
    """Return a trigger that waits for six hours."""
    deadline = datetime.now(UTC) + timedelta(hours=6)
    pace: dict[str, Any] = {"deadline": deadline.isoformat(), "poke_interval": poke_interval}
    if "wait" in inspect.signature(BankConnectWebhookPayloadTrigger).parameters:
        pace = {"wait": pace}
    return BankConnectWebhookPayloadTrigger(link_id=link_id, expected_statements=expected_statements, **pace)
