"""The task that registers a webhook endpoint. Those that record missed webhooks or keep reports are here by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect.api import WebhookMode, check_webhook_url
from airflow_provider_bankconnect.arguments import check_conn_id, is_literal, parse_bool
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.operators.catch_up import BankConnectCatchUpOperator
from airflow_provider_bankconnect.operators.relay import BankConnectRelayOperator
from airflow_provider_bankconnect.operators.storage import BankConnectReportToStorageOperator
from airflow_provider_bankconnect.receiver.address import is_on, require_airflow, webhook_url
from airflow_provider_bankconnect.receiver.client import (
    WebhookReceiverError,
    check_public_address,
    tell_registered,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from airflow.providers.common.compat.sdk import Context, XComArg

__all__ = [
    "BankConnectCatchUpOperator",
    "BankConnectRelayOperator",
    "BankConnectReportToStorageOperator",
    "BankConnectUpdateWebhookOperator",
]


class BankConnectUpdateWebhookOperator(BaseOperator):
    """Registers the account's one webhook endpoint. Running it again changes nothing.

    BankConnect keeps one URL for each account and has no call that returns it: two environments with the same keys
    silently overwrite each other's. Source: "Updating web hook endpoint". The webhook receiver, if it is on, is told
    whether the registered address is its own, and keeps that in Airflow's audit log; it is not told the address.

    :param webhook_url: absolute ``https://`` URL that answers a POST with 200; None for this Airflow's webhook
        receiver, whose address is secret and only made up when it is sent. One request checks first that the webhook
        receiver answers there; it does not hold the token. (templated)
    :param webhook_mode: which statements send webhooks: a :class:`~airflow_provider_bankconnect.api.WebhookMode`,
        its number, or either as text. Always sent, because leaving it out resets it. (templated)
    :param allow_private_host: allow a host that is literally private, loopback or link-local: True, False, or either as
        text. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :raises ValueError: an argument is invalid, or a setting of the webhook receiver is missing; names it. Nothing is
        sent.
    :raises AirflowOptionalProviderFeatureException: ``webhook_url`` is None, and Airflow is older than 3.2.
    :raises WebhookReceiverError: something else than the webhook receiver answers at its address. Nothing is sent to
        BankConnect. If there is no answer, the task warns and registers the address: a worker inside a network may not
        reach what is reachable from outside.
    """

    template_fields: Sequence[str] = ("webhook_url", "webhook_mode", "allow_private_host", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        webhook_url: str | XComArg | None,
        webhook_mode: WebhookMode | Literal[0, 1] | str = WebhookMode.NET_BANKING,
        allow_private_host: bool | str = False,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.webhook_url = webhook_url
        self.webhook_mode = webhook_mode
        self.allow_private_host = allow_private_host
        self.bankconnect_conn_id = bankconnect_conn_id
        check_conn_id(bankconnect_conn_id)
        if webhook_url is None:
            require_airflow()
        elif is_literal(webhook_url) and is_literal(allow_private_host):
            check_webhook_url(webhook_url, allow_private_host=parse_bool("allow_private_host", allow_private_host))
        if is_literal(webhook_mode):
            WebhookMode.parse(webhook_mode)

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's signature
        """Register the endpoint."""
        private = parse_bool("allow_private_host", self.allow_private_host)
        url = webhook_url(self.bankconnect_conn_id) if self.webhook_url is None else self.webhook_url
        url = check_webhook_url(url, allow_private_host=private)
        if self.webhook_url is None and (problem := check_public_address(self.bankconnect_conn_id)):
            advice = "check from outside that BankConnect reaches it"
            self.log.warning(
                "Could not check the address of the webhook receiver: %s. Registering it; %s", problem, advice
            )
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            hook.update_webhook(url, self.webhook_mode, allow_private_host=private)
        self._tell_receiver(url)

    def _tell_receiver(self, url: str) -> None:
        """Have the webhook receiver keep whether its address is the registered one. The task does not depend on it."""
        try:
            if is_on():
                tell_registered(self.bankconnect_conn_id, here=_is_own(url, self.bankconnect_conn_id))
        except Exception as error:  # noqa: BLE001 - a setting may come from a command, and fail in any way
            known = isinstance(error, WebhookReceiverError | ValueError)
            why = error if known else type(error).__name__
            self.log.info("Could not tell the webhook receiver which address is registered: %s", why)


def _is_own(url: str, conn_id: str) -> bool:
    """Return whether a URL is the address of this Airflow's webhook receiver for a connection."""
    try:
        return url == webhook_url(conn_id)
    except ValueError:
        # No address is set, so it is none.
        return False
