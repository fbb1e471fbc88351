"""Tasks that change something at BankConnect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect.api import WebhookMode, check_webhook_url
from airflow_provider_bankconnect.gate import is_literal
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context


class BankConnectUpdateWebhookOperator(BaseOperator):
    """Registers the account's one webhook endpoint. Running it twice is the same as running it once.

    BankConnect keeps one URL for each account and cannot be asked for it: two environments on the same keys overwrite
    each other unseen. Source: "Updating web hook endpoint".

    :param webhook_url: absolute ``https://`` URL that answers a POST with 200. (templated)
    :param webhook_mode: which statements send webhooks: a :class:`~airflow_provider_bankconnect.api.WebhookMode`,
        its number, or either as text. Always sent, because leaving it out resets it. (templated)
    :param allow_private_host: take a host that is literally private, loopback or link-local: True, False, or either as
        text. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :raises ValueError: an argument cannot be meant; names it. Nothing has been sent.
    """

    template_fields: Sequence[str] = ("webhook_url", "webhook_mode", "allow_private_host", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        webhook_url: str,
        webhook_mode: WebhookMode | int | str = WebhookMode.NET_BANKING,
        allow_private_host: bool | str = False,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.webhook_url = webhook_url
        self.webhook_mode = webhook_mode
        self.allow_private_host = allow_private_host
        self.bankconnect_conn_id = bankconnect_conn_id
        if is_literal(webhook_url) and is_literal(allow_private_host):
            check_webhook_url(webhook_url, allow_private_host=_parse_bool("allow_private_host", allow_private_host))
        if is_literal(webhook_mode):
            WebhookMode.parse(webhook_mode)

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's
        """Register the endpoint."""
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            hook.update_webhook(
                self.webhook_url,
                self.webhook_mode,
                allow_private_host=_parse_bool("allow_private_host", self.allow_private_host),
            )


def _parse_bool(name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in {"true", "false"}:
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return word == "true"
