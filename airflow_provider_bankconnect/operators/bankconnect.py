"""Tasks that register a webhook endpoint, record missed webhooks, or keep reports in an object storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import WebhookMode, check_webhook_url
from airflow_provider_bankconnect.arguments import check_conn_id, is_literal
from airflow_provider_bankconnect.gate import Expectation, Row, newest_of_each_statement, why_not_considered
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.operators.storage import BankConnectReportToStorageOperator
from airflow_provider_bankconnect.receiver.address import is_on, require_airflow, webhook_url
from airflow_provider_bankconnect.receiver.client import (
    WebhookReceiverError,
    check_public_address,
    send_to_receiver,
    tell_registered,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date
    from typing import Literal

    from airflow.providers.common.compat.sdk import Context, XComArg

__all__ = [
    "BankConnectCatchUpOperator",
    "BankConnectReportToStorageOperator",
    "BankConnectUpdateWebhookOperator",
]

# Links between two lines of the log.
_LOG_EVERY: Final = 100


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
            check_webhook_url(webhook_url, allow_private_host=_parse_bool("allow_private_host", allow_private_host))
        if is_literal(webhook_mode):
            WebhookMode.parse(webhook_mode)

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's signature
        """Register the endpoint."""
        private = _parse_bool("allow_private_host", self.allow_private_host)
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


class BankConnectCatchUpOperator(BaseOperator):
    """Records completed statements that started no run, for instance after an outage of the API server.

    It reads the payload history of the given links and sends the completed statements to the webhook receiver, which
    knows what is recorded and what has a run: so it may run every few minutes, and two runs may overlap. A statement
    is recorded if no webhook announced it, and once more if its event has no run and waits for none. It cannot find a
    link that is not given, or an upload without a link. Source: "Handling cases when your webhook endpoint is down".

    Pushes a dict of numbers to XCom: ``{links, completed, recorded, duplicates}``.

    :param link_ids: the links to check; a list, or a template that renders one. (templated)
    :param since: ignore older statements: a date, a datetime or ISO 8601 text; naive means UTC, and a date is its first
        moment in UTC. (templated)
    :param again: record even what has a run already, for a DAG that was paused while another one on the same asset
        got runs. True, False, or either as text. (templated)
    :param bankconnect_conn_id: the connection whose webhooks are recorded. (templated)
    :raises AirflowOptionalProviderFeatureException: Airflow is older than 3.2.
    :raises ValueError: an argument is invalid, or the webhook receiver is off.
    :raises WebhookReceiverError: the webhook receiver failed; what was recorded before stays recorded.
    :raises BankConnectError: the history of some links could not be read; all others were handled.
    """

    template_fields: Sequence[str] = ("link_ids", "since", "again", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        link_ids: Sequence[str | int] | XComArg | str,
        since: date | XComArg | str | None = None,
        again: bool | str = False,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.link_ids = link_ids
        # Airflow renders an XComArg before execute().
        self.since = cast("date | str | None", since)
        self.again = again
        self.bankconnect_conn_id = bankconnect_conn_id
        check_conn_id(bankconnect_conn_id)
        require_airflow()
        if is_literal(link_ids):
            self._links()
        if is_literal(self.since):
            Expectation.parse(since=self.since)
        if is_literal(again):
            _parse_bool("again", again)

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's signature
        """Read the history of each link, and record what is missing."""
        how: Literal["again", "record"] = "again" if _parse_bool("again", self.again) else "record"
        links = self._links()
        if not is_on():
            raise ValueError("The webhook receiver is off: set [bankconnect] webhook_token, here and on the API server")
        counts = {"links": len(links), "completed": 0, "recorded": 0, "duplicates": 0}
        failed: dict[str, api.BankConnectError] = {}
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            for number, link_id in enumerate(links, start=1):
                try:
                    rows = self._completed(hook, link_id)
                except api.BankConnectAuthError:
                    raise
                except api.BankConnectError as error:
                    self.log.warning("Could not read the history of link %r, continuing: %s", link_id, error)
                    failed[link_id] = error
                    continue
                outcomes = send_to_receiver(self.bankconnect_conn_id, rows, how) if rows else {}
                if lost := outcomes.get("failed"):
                    problem = f"could not record {lost} events: see the API server's log"
                    raise WebhookReceiverError(f"The webhook receiver {problem}")
                counts["completed"] += len(rows)
                counts["recorded"] += outcomes.get("recorded", 0)
                counts["duplicates"] += outcomes.get("duplicate", 0)
                if done := outcomes.get("recorded"):
                    self.log.info("Link %r: recorded %d of %d completed statements", link_id, done, len(rows))
                if number % _LOG_EVERY == 0:
                    self.log.info("Read %d of %d links, recorded %d events", number, len(links), counts["recorded"])
        summary = "%(links)d links, %(completed)d completed: %(recorded)d recorded, %(duplicates)d duplicates"
        self.log.info(summary, counts)
        if failed:
            link_id, first = next(iter(failed.items()))
            problem = f"Could not read the history of {len(failed)} of {len(links)} links"
            raise api.BankConnectError(f"{problem}, first {link_id!r}: {first}") from first
        return counts

    def _links(self) -> list[str]:
        found: object = self.link_ids
        if isinstance(found, str) or not isinstance(found, Iterable):
            advice = "if a template renders the list, set render_template_as_native_obj=True on the DAG"
            raise ValueError(f"link_ids must be a list of link ids, not {type(found).__name__}: {advice}")
        return list(dict.fromkeys(api.check_id("link_ids", link_id) for link_id in found))

    def _completed(self, hook: BankConnectHook, link_id: str) -> list[dict[str, str | None]]:
        """Return the statements that are completed now, oldest first."""
        expectation = Expectation.parse(link_id=link_id, since=self.since)
        try:
            payloads = hook.get_webhook_payloads(link_id)
        except api.BankConnectNotFoundError:
            return []
        considered = [row for row in payloads if why_not_considered(expectation, row) is None]
        current = newest_of_each_statement(considered)
        done = [row for row in current if row.progress.lower() == "completed" and row.entity_id]
        return [Row.of_payload(row).as_dict() for row in sorted(done, key=lambda row: row.date_time)]


def _is_own(url: str, conn_id: str) -> bool:
    """Return whether a URL is the address of this Airflow's webhook receiver for a connection."""
    try:
        return url == webhook_url(conn_id)
    except ValueError:
        # No address is set, so it is none.
        return False


def _parse_bool(name: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text not in {"true", "false"}:
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return text == "true"
