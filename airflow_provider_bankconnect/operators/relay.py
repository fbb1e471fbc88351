"""A task that fetches webhooks from a relay."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import requests
from airflow.providers.common.compat.sdk import AirflowException, BaseOperator
from pydantic import BaseModel, ValidationError

from airflow_provider_bankconnect.arguments import is_literal
from airflow_provider_bankconnect.receiver import address, names
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError
from airflow_provider_bankconnect.receiver.sessions import internal_session
from airflow_provider_bankconnect.relay.handing import NotNowError, Receiver, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

# Webhooks of one claim, and how long it lasts.
_MOST: Final = 100
_CLAIM_SECONDS: Final = 300
# How long the relay holds a request open.
_WAIT_SECONDS: Final = 20
_TIMEOUT: Final = 45.0


class RelayError(AirflowException):
    """The relay did not answer, or refused the request."""


class _Webhook(BaseModel):
    number: int
    conn_id: str
    relay_id: str
    fields: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        return self.fields | {"relay_id": self.relay_id}


class _Taken(BaseModel):
    claim: str
    webhooks: list[_Webhook]


class BankConnectRelayOperator(BaseOperator):
    """Fetches webhooks from a relay, and has the webhook receiver of this Airflow record them.

    For a relay that cannot call Airflow (``BANKCONNECT_RELAY_TO=operator``). The relay deletes a webhook when it is
    recorded, and not before: a task that is killed leaves the rest in the queue. A webhook that was recorded already is
    a duplicate. Two tasks at once get different webhooks, and each customer's come in order.

    Pushes a dict of numbers to XCom: ``{fetched, recorded, duplicates, failed, refused}``. Failed ones stay in the
    queue; refused ones are set aside there.

    :param relay_url: address of the relay, without a path that ends in ``/bankconnect``. (templated)
    :param duration: how long to go on waiting for webhooks when the queue is empty: a timedelta or seconds, which may
        be text. 0 ends the task then. (templated)
    :raises AirflowOptionalProviderFeatureException: Airflow is older than 3.2.
    :raises ValueError: an argument is invalid, or the webhook receiver is off.
    :raises RelayError: no answer from the relay, or an error.
    :raises WebhookReceiverError: the webhook receiver takes no webhooks now; they stay in the queue.
    """

    _is_stopping = False
    template_fields: Sequence[str] = ("relay_url", "duration")
    ui_color = "#d8e6f3"

    def __init__(self, *, relay_url: str, duration: timedelta | float | str = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.relay_url = relay_url
        self.duration = duration
        address.require_airflow()
        if is_literal(relay_url):
            _check_url(relay_url)
        if is_literal(duration):
            _parse_seconds(duration)

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's signature
        """Fetch webhooks until there are none, and for as long as the task is to wait for more."""
        url, end = _check_url(self.relay_url), time.monotonic() + _parse_seconds(self.duration)
        if not address.is_on():
            raise ValueError("The webhook receiver is off: set [bankconnect] webhook_token, here and on the API server")
        token = address.tokens()[0]
        try:
            receiver = Receiver(address.api_server_url(), token, address.api_server_context())
            relay = _Relay(url, token)
        except OSError as error:
            raise WebhookReceiverError(f"[api] ssl_ca_file or ssl_cert cannot be read: {error}") from None
        counts, problems = Counter[str](), dict[str, str]()
        try:
            while not self._is_stopping:
                left = end - time.monotonic()
                taken = relay.take(wait=max(0, min(_WAIT_SECONDS, math.ceil(left))))
                counts["fetched"] += len(taken.webhooks)
                problem = self._record(relay, receiver, taken, counts, problems)
                if problem or (not taken.webhooks and time.monotonic() >= end):
                    break
        finally:
            receiver.close()
            relay.close()
        counted = {name: counts[name] for name in ("fetched", "recorded", "duplicates", "failed", "refused")}
        self.log.info(
            "%(fetched)d webhooks: %(recorded)d recorded, %(duplicates)d duplicates, %(failed)d failed, "
            "%(refused)d refused",
            counted,
        )
        if problems:
            raise WebhookReceiverError("Webhooks stay in the relay's queue: " + "; ".join(problems.values()))
        return counted

    def _record(
        self, relay: _Relay, receiver: Receiver, taken: _Taken, counts: Counter[str], problems: dict[str, str]
    ) -> bool:
        """Record webhooks and settle them; return whether no more can be recorded now."""
        groups: dict[str, list[_Webhook]] = defaultdict(list)
        for one in taken.webhooks:
            groups[one.conn_id].append(one)
        settled: list[tuple[int, Result]] = []
        is_over = False
        try:
            for conn_id, webhooks in groups.items():
                if is_over:
                    break
                try:
                    results = receiver.hand_on(conn_id, webhooks)
                    settled += zip((one.number for one in webhooks), results, strict=True)
                except NotNowError as error:
                    problems[conn_id] = str(error)
                    is_over = not error.only_this
        finally:
            # A task that is told to end settles what it has recorded.
            how = {number: {"how": result.how, "why": result.why} for number, result in settled}
            outcomes = [{"number": one.number, **how.get(one.number, {"how": "free"})} for one in taken.webhooks]
            if outcomes:
                relay.settle(taken.claim, outcomes)
        names_of = {"duplicate": "duplicates"}
        counts.update(names_of.get(result.how, result.how) for _, result in settled)
        return is_over

    def on_kill(self) -> None:
        """End after the webhooks that were fetched."""
        self._is_stopping = True


class _Relay:
    """The relay, as a task sees it."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}{names.PREFIX}/queue/"
        self._session = internal_session(token, address.public_context())
        # It may be outside of the network, behind a proxy. But .netrc would replace the Authorization header.
        self._session.trust_env = True
        self._session.auth = lambda request: request

    def take(self, wait: int) -> _Taken:
        """Claim webhooks, waiting so many seconds for the first one."""
        answer = self._post("take", {"most": _MOST, "seconds": _CLAIM_SECONDS, "wait": wait})
        try:
            return _Taken.model_validate_json(answer.content)
        except ValidationError:
            raise RelayError(f"{self._url} answered HTTP 200, but not as a relay does: check relay_url") from None

    def settle(self, claim: str, outcomes: list[dict[str, object]]) -> None:
        """Tell the relay what became of webhooks."""
        self._post("settle", {"claim": claim, "outcomes": outcomes})

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _post(self, path: str, body: dict[str, object]) -> requests.Response:
        try:
            answer = self._session.post(self._url + path, json=body, timeout=_TIMEOUT, allow_redirects=False)
        except requests.RequestException as error:
            problem = f"No answer from the relay at {self._url} ({type(error).__name__})"
            raise RelayError(f"{problem}: check relay_url, and that the relay runs") from None
        if answer.status_code == requests.codes.unauthorized:
            raise RelayError("The relay answered HTTP 401: check that its webhook token is that of this Airflow")
        if answer.status_code != requests.codes.ok:
            advice = "see its log" if answer.status_code >= requests.codes.server_error else "check relay_url"
            raise RelayError(f"The relay at {self._url} answered HTTP {answer.status_code}: {advice}")
        return answer


def _check_url(url: object) -> str:
    if not isinstance(url, str) or not names.is_address(url):
        raise ValueError("relay_url must be an http:// or https:// address, without user info, query and fragment")
    return url.rstrip("/")


def _parse_seconds(duration: timedelta | float | str) -> float:
    try:
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(duration, bool) or not 0 <= seconds < math.inf:
        raise ValueError(f"duration must be a timedelta or a number of seconds from 0, not {duration!r}")
    return seconds
