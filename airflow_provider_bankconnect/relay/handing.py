"""How webhooks are handed on to Airflow's webhook receiver: by the relay, or by a task that fetched them from it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import quote

import requests
from pydantic import BaseModel, TypeAdapter, ValidationError

from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.sessions import internal_session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from airflow_provider_bankconnect.relay.queue import Webhook

# Less than a claim lasts.
SECONDS: Final = 30.0
# Bad Request, Forbidden (by a firewall that reads bodies), Content Too Large, Unprocessable Content.
_REFUSED: Final = {400, 403, 413, 422}
_LONGEST_DETAIL: Final = 200

How: TypeAlias = Literal["recorded", "duplicate", "failed", "refused"]


@dataclass(frozen=True)
class Result:
    """What Airflow did with a webhook.

    :param why: it was refused for good, without the webhook's values.
    :param mark: keep that this completed statement is recorded.
    """

    how: How
    why: str = ""
    mark: str | None = None


class NotNowError(Exception):
    """Airflow takes no webhooks now, of any connection or of this one; the message says why.

    :param only_this: whether other connections may be sent nevertheless.
    :param seconds: wait at least so long.
    :ivar results: of the first webhooks, which were handed on before.
    """

    results: Sequence[Result] = ()

    def __init__(self, problem: str, *, only_this: bool = False, seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.only_this, self.seconds = only_this, seconds


class Row(Protocol):
    """A webhook."""

    @property
    def row(self) -> dict[str, Any]:
        """Its fields, and the relay's number for it."""


class Target(Protocol):
    """Where webhooks go."""

    def hand_on(self, conn_id: str, webhooks: Sequence[Webhook], claim: str) -> list[Result]:
        """Hand on webhooks of one connection, at most one of each customer.

        :returns: what became of each, or of the first ones, if the time is over.
        :raises NotNowError: none of the others can be handed on now.
        """

    def close(self) -> None:
        """Close the connections."""


class _Outcomes(BaseModel):
    outcomes: list[Literal["recorded", "duplicate", "failed"]]


class Receiver:
    """The webhook receiver in Airflow's API server. It records each webhook once, however often it is sent.

    :param url: address of the API server.
    :param token: the webhook token.
    """

    def __init__(self, url: str, token: str, context: ssl.SSLContext) -> None:
        self._url = f"{url}{names.PREFIX}/events/"
        self._session = internal_session(token, context)

    def hand_on(self, conn_id: str, webhooks: Sequence[Row], claim: str = "") -> list[Result]:
        """Hand on webhooks, all in one request, or one by one if one of them is refused."""
        answer = self._post(conn_id, webhooks)
        if answer.status_code == requests.codes.ok:
            return _read_results(answer, len(webhooks))
        if len(webhooks) > 1:
            return [result for one in webhooks for result in self.hand_on(conn_id, [one], claim)]
        # It is about this webhook only if none is accepted.
        other = self._post(conn_id, [])
        if other.status_code != requests.codes.ok:
            raise _not_now(other)
        # Between the two requests whatever refused all may have ended.
        answer = self._post(conn_id, webhooks)
        if answer.status_code == requests.codes.ok:
            return _read_results(answer, 1)
        return [Result("refused", f"HTTP {answer.status_code}{_detail(answer)}")]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _post(self, conn_id: str, webhooks: Sequence[Row]) -> requests.Response:
        """Send webhooks; return the answer if it accepts or refuses them."""
        body = {"how": "webhook", "events": [one.row for one in webhooks]}
        url = self._url + quote(conn_id, safe="")
        answer = send(lambda: self._session.post(url, json=body, timeout=SECONDS, allow_redirects=False))
        if answer.status_code != requests.codes.ok and answer.status_code not in _REFUSED:
            raise _not_now(answer)
        return answer


def send(request: Callable[[], requests.Response]) -> requests.Response:
    """Send a request.

    :raises NotNowError: no answer.
    """
    try:
        return request()
    except requests.RequestException as error:
        raise NotNowError(f"no answer from Airflow's API server ({type(error).__name__})") from None


def retry_after(answer: requests.Response) -> float:
    """Return the seconds that the answer asks to wait, at most five minutes."""
    given = answer.headers.get("Retry-After", "")
    return min(300.0, float(given)) if given.isascii() and given.isdigit() else 0.0


def _not_now(answer: requests.Response) -> NotNowError:
    status = answer.status_code
    detail = _detail(answer)
    if status == requests.codes.unavailable and detail:
        # No DAG, no connection, or a full queue: the receiver says which, and other connections may work.
        return NotNowError(f"the webhook receiver answered HTTP {status}{detail}", only_this=True)
    advice = names.advice_on(status, answer.headers.get("WWW-Authenticate"))
    return NotNowError(f"Airflow's API server answered HTTP {status}: {advice}", seconds=retry_after(answer))


def _read_results(answer: requests.Response, count: int) -> list[Result]:
    with contextlib.suppress(ValidationError):
        outcomes = _Outcomes.model_validate_json(answer.content).outcomes
        if len(outcomes) == count:
            return [Result(outcome) for outcome in outcomes]
    advice = "an API server with an older airflow-provider-bankconnect takes no webhooks from a relay"
    raise NotNowError(f"Airflow's API server answered HTTP 200 without the outcomes: {advice}")


def _detail(answer: requests.Response) -> str:
    """Return the receiver's own words, which name fields and connections, and no values of a webhook."""
    with contextlib.suppress(ValidationError):
        detail = _DETAIL.validate_json(answer.content).get("detail")
        if isinstance(detail, str):
            return f": {detail[:_LONGEST_DETAIL]}"
    return ""


_DETAIL: Final = TypeAdapter(dict[str, object])
