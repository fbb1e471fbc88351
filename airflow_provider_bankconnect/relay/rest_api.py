"""How webhooks are handed on to Airflow's REST API, where the webhook receiver cannot be reached.

Airflow records each request there, also a repeated one, so this finds duplicates itself.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import requests

from airflow_provider_bankconnect.receiver import names
from airflow_provider_bankconnect.receiver.event import WebhookEvent
from airflow_provider_bankconnect.receiver.sessions import plain_session
from airflow_provider_bankconnect.relay.handing import SECONDS, NotNowError, Result, retry_after, send
from airflow_provider_bankconnect.relay.queue import mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_provider_bankconnect.relay.queue import Queue, Webhook
    from airflow_provider_bankconnect.relay.settings import Settings

# The body of the request is refused, and would be again.
_REFUSED: Final = {400, 413, 422}
# Airflow's clock and the relay's may differ.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_PAGE: Final = 100
# With the time of the last request, less than a claim lasts.
_MOST_SECONDS: Final = 20.0


class RestApi:
    """Creates asset events by ``POST /api/v2/assets/events``.

    :param queue: keeps which completed statements are recorded, and what was sent without an answer.
    :param on_queue: runs a call of the queue in its thread, and returns the result.
    """

    def __init__(self, settings: Settings, queue: Queue, on_queue: Callable[..., Any]) -> None:
        self._base = settings.api_server_url
        self._session = plain_session(settings.context())
        self._token, self._user = settings.api_token, settings.user
        self._queue, self._on_queue = queue, on_queue
        self._assets: dict[str, int] = {}

    def hand_on(self, conn_id: str, webhooks: Sequence[Webhook], claim: str) -> list[Result]:
        """Hand on webhooks, one by one."""
        asset_id = self._asset_id(conn_id)
        marks = {one.number: mark_of(conn_id, one.fields) for one in webhooks}
        done = self._on_queue(self._queue.done, [mark for mark in marks.values() if mark])
        unclear = [one for one in webhooks if one.sent_at is not None]
        recorded = self._recorded(asset_id, unclear) if unclear else set()
        results: list[Result] = []
        end = time.monotonic() + _MOST_SECONDS
        try:
            for one in webhooks:
                if time.monotonic() > end:
                    break
                mark = marks[one.number]
                if mark in done:
                    results.append(Result("duplicate"))
                elif one.relay_id in recorded:
                    results.append(Result("recorded", mark=mark))
                else:
                    self._on_queue(self._queue.mark_sent, claim, [one.number])
                    results.append(self._create(conn_id, asset_id, one, mark))
        except NotNowError as error:
            error.results = results
            raise
        return results

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _create(self, conn_id: str, asset_id: int, one: Webhook, mark: str | None) -> Result:
        key = WebhookEvent.model_validate(one.fields).key
        body = {"asset_id": asset_id, "partition_key": key, "extra": one.row}
        answer = self._request("POST", "assets/events", json=body)
        if answer.ok:
            return Result("recorded", mark=mark)
        if answer.status_code in _REFUSED:
            # The answer's words may have the values.
            return Result("refused", f"HTTP {answer.status_code}")
        if answer.status_code == requests.codes.not_found:
            self._assets.pop(conn_id, None)
        if answer.status_code == requests.codes.server_error:
            # Airflow could not record this one, and others may work.
            return Result("failed")
        raise _not_now(answer, "assets/events")

    def _asset_id(self, conn_id: str) -> int:
        """Return the asset of a connection. It exists since the first DAG with it was parsed."""
        if conn_id not in self._assets:
            uri = names.asset_uri(conn_id)
            found = self._get("assets", uri_pattern=uri, limit=_PAGE)
            ids = [asset["id"] for asset in found.get("assets", []) if asset.get("uri") == uri]
            if not ids:
                raise NotNowError(f"no DAG is scheduled by the webhook asset of {conn_id!r}", only_this=True)
            self._assets[conn_id] = ids[0]
        return self._assets[conn_id]

    def _recorded(self, asset_id: int, unclear: Sequence[Webhook]) -> set[str]:
        """Return those of these webhooks that an earlier request has recorded, though no answer came."""
        since = datetime.fromtimestamp(min(one.sent_at or 0.0 for one in unclear), UTC) - _CLOCKS_DIFFER
        found: set[str] = set()
        offset, total = 0, 1
        while offset < total:
            page = self._get(
                "assets/events",
                asset_id=asset_id,
                timestamp_gte=since.isoformat(),
                order_by="timestamp",
                limit=_PAGE,
                offset=offset,
            )
            events, total = page.get("asset_events", []), page.get("total_entries", 0)
            found |= {event["extra"].get("relay_id") for event in events if event.get("extra")}
            offset += _PAGE
        return found

    def _get(self, path: str, **query: Any) -> dict[str, Any]:  # noqa: ANN401 - values of a query
        answer = self._request("GET", path, params=query)
        if not answer.ok:
            raise _not_now(answer, path)
        try:
            found = answer.json()
        except requests.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise NotNowError(f"{self._base} is no REST API of Airflow: it answered without JSON")
        return found

    def _request(self, method: str, path: str, **more: Any) -> requests.Response:  # noqa: ANN401 - as in requests
        """Send a request with a token; with a new one if it has expired."""
        for attempt in (1, 2):
            headers = {"Authorization": f"Bearer {self._login()}"}
            url = f"{self._base}/api/v2/{path}"
            answer = send(
                lambda url=url, headers=headers: self._session.request(  # type: ignore[misc] # the defaults
                    method, url, headers=headers, timeout=SECONDS, allow_redirects=False, **more
                )
            )
            if answer.status_code != requests.codes.unauthorized or self._user is None:
                break
            if attempt == 1:
                self._token = ""
        if answer.status_code in {401, 403}:
            advice = (
                "check BANKCONNECT_RELAY_API_TOKEN, or the username and password, and that the user may edit assets"
            )
            raise NotNowError(f"Airflow's REST API answered HTTP {answer.status_code}: {advice}")
        return answer

    def _login(self) -> str:
        if not self._token and self._user is not None:
            body = dict(zip(("username", "password"), self._user, strict=True))
            answer = send(
                lambda: self._session.post(
                    f"{self._base}/auth/token", json=body, timeout=SECONDS, allow_redirects=False
                )
            )
            token = answer.json().get("access_token") if answer.ok else None
            if not isinstance(token, str):
                problem = f"Airflow answered HTTP {answer.status_code} to the login"
                raise NotNowError(f"{problem}: check BANKCONNECT_RELAY_API_USERNAME and BANKCONNECT_RELAY_API_PASSWORD")
            self._token = token
        return self._token


def _not_now(answer: requests.Response, path: str) -> NotNowError:
    problem = f"Airflow's REST API answered HTTP {answer.status_code} to a request for {path}"
    return NotNowError(problem, seconds=retry_after(answer))
