"""What tasks have to say to the receiver: ring for these; or, had anybody rung for these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

import requests
from airflow.providers.common.compat.sdk import AirflowException
from pydantic import TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter

from airflow_provider_bankconnect.receiver import address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_RINGS: Final = 500
_COUNTS: Final = TypeAdapter(dict[str, int])
_FIELDS: Final = ("entity_id", "statement_id", "link_id", "progress", "reason")


class DoorbellError(AirflowException):
    """The receiver could not be reached, or did not take it. Nothing of BankConnect's is wrong."""


class _Adapter(HTTPAdapter):
    """Trusts what Airflow's own client trusts."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as requests has it
        super().init_poolmanager(*arguments, **more, ssl_context=address.api_server_context())


def tell_receiver(
    conn_id: str,
    rings: Sequence[Mapping[str, object]],
    how: Literal["ring", "again", "check"],
    *,
    timeout: float = 30.0,
) -> dict[str, int]:
    """Tell the receiver of rows of the ledger, and give its counts.

    :param rings: rows with the five fields of a webhook; others of theirs stay here.
    :param how: ``ring`` for those that nobody has rung for, ring ``again`` for all, or only ``check`` and count them.
    :param timeout: seconds for one request.
    :raises DoorbellError: no answer, or not the right one; says what to do.
    """
    counts: dict[str, int] = {}
    url = f"{address.api_server_url()}{address.PREFIX}/rings/{quote(conn_id, safe='')}"
    with requests.Session() as session:
        # A proxy of the environment is for the world outside, and .netrc would take the place of our header.
        session.trust_env = False
        try:
            session.mount("https://", _Adapter())
        except OSError as error:
            raise DoorbellError(f"[api] ssl_ca_file, or ssl_cert, cannot be read: {error}") from None
        session.headers["Authorization"] = f"Bearer {address.knock(address.tokens()[0])}"
        for first in range(0, len(rings), MOST_RINGS):
            sent = [{name: row.get(name) for name in _FIELDS} for row in rings[first : first + MOST_RINGS]]
            try:
                answer = session.post(url, json={"how": how, "rings": sent}, timeout=timeout, allow_redirects=False)
                told = _COUNTS.validate_json(answer.content) if answer.status_code == requests.codes.ok else {}
            except (requests.RequestException, ValidationError) as error:
                raise DoorbellError(
                    f"No answer from BankConnect's doorbell at {address.api_server_url()} ({type(error).__name__}): is "
                    "[core] execution_api_server_url (or [api] base_url) right, and does the API server run?"
                ) from None
            if answer.status_code != requests.codes.ok:
                raise DoorbellError(f"BankConnect's doorbell answers HTTP {answer.status_code}: {_advice(answer)}")
            for name, count in told.items():
                counts[name] = counts.get(name, 0) + count
    return counts


def _advice(answer: requests.Response) -> str:
    match answer.status_code:
        case 404:
            return "is [bankconnect] webhook_token the same here and there, and does the connection exist?"
        case 405:
            return "is airflow-provider-bankconnect installed where the API server runs?"
        case 503:
            return "no DAG listens to the connection's webhook_asset yet, or the database is busy; see its log"
    return "see the API server's log"
