"""The client of the webhook receiver that tasks use.

They send completed statements, to record them or to check them, and tell that a webhook endpoint was registered.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote

import requests
import urllib3
from airflow.providers.common.compat.sdk import AirflowException
from pydantic import TypeAdapter, ValidationError

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.names import MAX_EVENTS
from airflow_provider_bankconnect.receiver.sessions import ContextAdapter, internal_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_COUNTS: Final = TypeAdapter(dict[str, int])
_FIELDS: Final = ("entity_id", "statement_id", "link_id", "progress", "reason", "date_time")
_READY: Final = TypeAdapter(dict[str, str])
_ADVICE: Final = {
    409: "check that the connection exists on the API server too; see its log",
    503: "no DAG is scheduled by the connection's webhook_asset, or the database is busy: see the API server's log. If "
    "that has no line about it, a proxy in front of the API server has answered",
}
_BY_DEFAULT: Final = "[core] execution_api_server_url, or [api] base_url"
# Bad Request, and Content Too Large.
_REFUSED: Final = {400, 413}
# While an API server starts anew, or its database is busy.
_PASSING: Final = {502, 503, 504}
# A firewall that answers so, or a server that is busy, may let BankConnect through.
_UNCLEAR: Final = {401, 403, 407, 408, 425, 429}


class WebhookReceiverError(AirflowException):
    """The webhook receiver in Airflow's API server did not answer, or refused the request.

    :param is_passing: whether the same request may succeed in a moment.
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class EventsRefusedError(WebhookReceiverError):
    """The webhook receiver refuses the events of a request: one of them is invalid, or they are too large."""


def check_public_address(conn_id: str) -> str | None:
    """Send one request to the webhook receiver's public address, as BankConnect will, but without the token.

    :returns: None if this Airflow's webhook receiver has answered; else why that is not known.
    :raises WebhookReceiverError: another server, or another path of this one, has answered.
    """
    url = address.check_url(conn_id)
    where = f"{url.rpartition('/')[0]}/***"
    with requests.Session() as session:
        # .netrc would add an Authorization header.
        session.auth = lambda request: request
        try:
            session.mount("https://", ContextAdapter(address.public_context()))
            with session.post(url, json={}, timeout=10, allow_redirects=False, stream=True) as answer:
                status, body = answer.status_code, answer.raw.read(1024, decode_content=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return f"no answer from {where} ({type(error).__name__})"
    if status in _UNCLEAR or status >= requests.codes.server_error:
        return f"{where} answered HTTP {status}"
    try:
        is_ready = status == requests.codes.ok and _READY.validate_json(body) == address.READY
    except ValidationError:
        is_ready = False
    if not is_ready:
        raise WebhookReceiverError(
            f"{where} is not the address of this Airflow's webhook receiver: a check got HTTP {status}. Check the path "
            "and its letter case in [bankconnect] public_url (or [api] base_url), and that [bankconnect] webhook_token "
            "is the same on the API server"
        )
    return None


def send_to_receiver(
    conn_id: str,
    events: Sequence[Mapping[str, object]],
    how: Literal["record", "again", "check"],
    *,
    timeout: float = 30.0,
) -> dict[str, int]:
    """Send rows of the payload history to the webhook receiver, and return its counts.

    :param events: rows with the five fields of a webhook, and ``date_time`` if known; other fields are not sent.
    :param how: ``record`` those that are not recorded yet, record all ``again``, or ``check`` how many were missed.
    :param timeout: seconds for one request.
    :raises WebhookReceiverError: no answer or an error; the message says what to do.
    """
    counts: Counter[str] = Counter()
    with _session() as session:
        for first in range(0, len(events), MAX_EVENTS):
            sent = [{name: row.get(name) for name in _FIELDS} for row in events[first : first + MAX_EVENTS]]
            counts.update(_post(session, conn_id, {"how": how, "events": sent}, timeout))
    return dict(counts)


def tell_registered(conn_id: str, *, here: bool, timeout: float = 5.0) -> None:
    """Tell the webhook receiver that a webhook endpoint was registered with BankConnect. The endpoint is not sent.

    :param here: whether it is the address of this Airflow's webhook receiver.
    :param timeout: seconds for the request.
    :raises WebhookReceiverError: no answer or an error; the message says what to do.
    """
    with _session() as session:
        _post(session, conn_id, {"how": "registered", "here": here}, timeout)


def _session() -> requests.Session:
    """Return a session that the webhook receiver trusts, and that trusts its certificate."""
    try:
        return internal_session(address.tokens()[0], address.api_server_context())
    except OSError as error:
        raise WebhookReceiverError(f"[api] ssl_ca_file or ssl_cert cannot be read: {error}") from None


def _post(session: requests.Session, conn_id: str, body: Mapping[str, object], timeout: float) -> dict[str, int]:
    try:
        base = address.api_server_url()
    except ValueError as error:
        raise WebhookReceiverError(str(error)) from None
    try:
        url = f"{base}{address.PREFIX}/events/{quote(conn_id, safe='')}"
        answer = session.post(url, json=body, timeout=timeout, allow_redirects=False)
    except requests.RequestException as error:
        advice = f"check [bankconnect] api_server_url (by default {_BY_DEFAULT}), and that the API server runs"
        problem = f"No answer from the webhook receiver at {base} ({type(error).__name__})"
        raise WebhookReceiverError(f"{problem}: {advice}", is_passing=True) from None
    status = answer.status_code
    with contextlib.suppress(ValidationError):
        if status == requests.codes.ok:
            return _COUNTS.validate_json(answer.content)
    advice = _ADVICE.get(status) or address.advice_on(status, answer.headers.get("WWW-Authenticate"))
    refusal = EventsRefusedError if status in _REFUSED else WebhookReceiverError
    text = f"{base} answered HTTP {status} to a request for the webhook receiver: {advice}"
    raise refusal(text, is_passing=status in _PASSING)
