"""The client that tasks use to send completed statements to the webhook receiver: to record them, or to check them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

import requests
from airflow.providers.common.compat.sdk import AirflowException
from pydantic import TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_EVENTS: Final = 500
_COUNTS: Final = TypeAdapter(dict[str, int])
_FIELDS: Final = ("entity_id", "statement_id", "link_id", "progress", "reason")
_ADVICE: Final = {
    404: "check that [bankconnect] webhook_token is the same on the API server, and that the connection exists",
    405: "check that airflow-provider-bankconnect is installed on the API server",
    503: "no DAG is scheduled by the connection's webhook_asset, or the database is busy; see its log",
}


class WebhookReceiverError(AirflowException):
    """The webhook receiver in Airflow's API server did not answer, or refused the request."""


class _Adapter(HTTPAdapter):
    """Trusts the certificates that Airflow's own client trusts."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as in requests
        super().init_poolmanager(*arguments, **more, ssl_context=address.api_server_context())


def send_to_receiver(
    conn_id: str,
    events: Sequence[Mapping[str, object]],
    how: Literal["record", "again", "check"],
    *,
    timeout: float = 30.0,
) -> dict[str, int]:
    """Send rows of the payload history to the webhook receiver, and return its counts.

    :param events: rows with the five fields of a webhook; other fields are not sent.
    :param how: ``record`` those that are not recorded yet, record all ``again``, or ``check`` how many were missed.
    :param timeout: seconds for one request.
    :raises WebhookReceiverError: no answer or an error; the message says what to do.
    """
    counts: Counter[str] = Counter()
    url = f"{address.api_server_url()}{address.PREFIX}/events/{quote(conn_id, safe='')}"
    with requests.Session() as session:
        # The environment's proxies are for outside addresses, and .netrc would replace the Authorization header.
        session.trust_env = False
        try:
            session.mount("https://", _Adapter())
        except OSError as error:
            raise WebhookReceiverError(f"[api] ssl_ca_file or ssl_cert cannot be read: {error}") from None
        session.headers["Authorization"] = f"Bearer {address.internal_token(address.tokens()[0])}"
        for first in range(0, len(events), MAX_EVENTS):
            sent = [{name: row.get(name) for name in _FIELDS} for row in events[first : first + MAX_EVENTS]]
            try:
                answer = session.post(url, json={"how": how, "events": sent}, timeout=timeout, allow_redirects=False)
                counted = _COUNTS.validate_json(answer.content) if answer.status_code == requests.codes.ok else {}
            except (requests.RequestException, ValidationError) as error:
                where = f"the webhook receiver at {address.api_server_url()} ({type(error).__name__})"
                advice = "check [core] execution_api_server_url (or [api] base_url), and that the API server runs"
                raise WebhookReceiverError(f"No answer from {where}: {advice}") from None
            if (status := answer.status_code) != requests.codes.ok:
                advice = _ADVICE.get(status, "see the API server's log")
                raise WebhookReceiverError(f"The webhook receiver answered HTTP {status}: {advice}")
            counts.update(counted)
    return dict(counts)
