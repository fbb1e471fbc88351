"""Tasks that change something at BankConnect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import WebhookMode, check_webhook_url
from airflow_provider_bankconnect.gate import Expectation, Row, is_literal, newest_of_each_statement, why_out_of_sight
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.receiver.address import is_on, require_airflow, webhook_url
from airflow_provider_bankconnect.receiver.client import DoorbellError, tell_receiver

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context

# Links between two lines of the log.
_TELL_EVERY: Final = 100


class BankConnectUpdateWebhookOperator(BaseOperator):
    """Registers the account's one webhook endpoint. Running it twice is the same as running it once.

    BankConnect keeps one URL for each account and cannot be asked for it: two environments on the same keys overwrite
    each other unseen. Source: "Updating web hook endpoint".

    :param webhook_url: absolute ``https://`` URL that answers a POST with 200; None for the doorbell of this Airflow,
        whose address is a secret and is made up only when it is sent. (templated)
    :param webhook_mode: which statements send webhooks: a :class:`~airflow_provider_bankconnect.api.WebhookMode`,
        its number, or either as text. Always sent, because leaving it out resets it. (templated)
    :param allow_private_host: take a host that is literally private, loopback or link-local: True, False, or either as
        text. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :raises ValueError: an argument cannot be meant, or a setting of the doorbell is missing; names it.
        Nothing has been sent.
    :raises AirflowOptionalProviderFeatureException: ``webhook_url`` is None, and this Airflow can have no doorbell.
    """

    template_fields: Sequence[str] = ("webhook_url", "webhook_mode", "allow_private_host", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        webhook_url: str | None,
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
        if webhook_url is None:
            require_airflow()
        elif is_literal(webhook_url) and is_literal(allow_private_host):
            check_webhook_url(webhook_url, allow_private_host=_parse_bool("allow_private_host", allow_private_host))
        if is_literal(webhook_mode):
            WebhookMode.parse(webhook_mode)

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's
        """Register the endpoint."""
        url = webhook_url(self.bankconnect_conn_id) if self.webhook_url is None else self.webhook_url
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            hook.update_webhook(
                url,
                self.webhook_mode,
                allow_private_host=_parse_bool("allow_private_host", self.allow_private_host),
            )


class BankConnectCatchUpOperator(BaseOperator):
    """Rings the doorbell for completed statements that no webhook has announced: lost ones, or those of an outage.

    It asks the payload history of each link that it is given, and tells the receiver, which knows what has rung: so it
    may run every few minutes, and twice at once. What nobody expected cannot be asked for: a link that is not given, an
    upload without a link. Source: "Handling cases when your webhook endpoint is down".

    Pushed to XCom is a dict of numbers: ``{links, completed, rung, repeated}``.

    :param link_ids: the links that are expected; a list, or what a template makes one. (templated)
    :param since: leave out statements from before: a datetime or ISO 8601 text, naive meaning UTC. (templated)
    :param again: ring even for what has rung before: for a DAG that was paused meanwhile, whose rings started no run.
        True, False, or either as text. (templated)
    :param bankconnect_conn_id: the connection whose doorbell it is. (templated)
    :raises AirflowOptionalProviderFeatureException: this Airflow can have no doorbell.
    :raises ValueError: an argument cannot be meant, or the doorbell is off.
    :raises DoorbellError: the receiver did not take it; what was rung for before that stays so.
    :raises BankConnectError: BankConnect gave no answer for some of the links, though all have been tried.
    """

    template_fields: Sequence[str] = ("link_ids", "since", "again", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        link_ids: list[str] | str,
        since: datetime | str | None = None,
        again: bool | str = False,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.link_ids = link_ids
        self.since = since
        self.again = again
        self.bankconnect_conn_id = bankconnect_conn_id
        require_airflow()
        if is_literal(since):
            Expectation.parse(since=since)
        if is_literal(again):
            _parse_bool("again", again)

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's
        """Ask for each link, and ring."""
        again, links = _parse_bool("again", self.again), self._links()
        if not is_on():
            raise ValueError("The doorbell is off: set [bankconnect] webhook_token, here and on the API server")
        counts = {"links": len(links), "completed": 0, "rung": 0, "repeated": 0}
        failed: dict[str, api.BankConnectError] = {}
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            for number, link_id in enumerate(links, start=1):
                try:
                    rows = self._completed(hook, link_id)
                except api.BankConnectAuthError:
                    raise
                except api.BankConnectError as error:
                    self.log.warning("Link %r could not be asked for, the others go on: %s", link_id, error)
                    failed[link_id] = error
                    continue
                told = tell_receiver(self.bankconnect_conn_id, rows, "again" if again else "ring") if rows else {}
                if told.get("failed"):
                    raise DoorbellError(f"The doorbell's database did not take {told['failed']} rings; see its log")
                counts["completed"] += len(rows)
                for name in ("rung", "repeated"):
                    counts[name] += told.get(name, 0)
                if told.get("rung"):
                    self.log.info("Link %r: rang for %d of %d completed statements", link_id, told["rung"], len(rows))
                if number % _TELL_EVERY == 0:
                    self.log.info("%d of %d links asked for, %d rings so far", number, len(links), counts["rung"])
        self.log.info(
            "Asked for %(links)d links, with %(completed)d completed statements: %(rung)d rung, %(repeated)d repeated",
            counts,
        )
        if failed:
            link_id, first = next(iter(failed.items()))
            raise api.BankConnectError(
                f"{len(failed)} of {len(links)} links could not be asked for, first {link_id!r}: {first}"
            ) from first
        return counts

    def _links(self) -> list[str]:
        found: object = self.link_ids
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise ValueError(
                f"link_ids must be a list of link ids, not {type(found).__name__}: for a template that makes a list, "
                "give the DAG render_template_as_native_obj=True"
            )
        return [api.check_id("link_ids", link_id) for link_id in dict.fromkeys(found)]

    def _completed(self, hook: BankConnectHook, link_id: str) -> list[dict[str, str | None]]:
        """Give the statements that are completed now, oldest first: so they were to be rung for."""
        sought = Expectation.parse(link_id=link_id, since=self.since)
        try:
            payloads = hook.get_webhook_payloads(link_id)
        except api.BankConnectNotFoundError:
            return []
        in_sight = [row for row in payloads if why_out_of_sight(sought, row) is None]
        done = [row for row in newest_of_each_statement(in_sight) if row.progress.lower() == "completed"]
        return [Row.of_payload(row).as_dict() for row in sorted(done, key=lambda row: row.date_time)]


def _parse_bool(name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in {"true", "false"}:
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return word == "true"
