"""The relay's settings. They are environment variables, because the relay runs without Airflow's configuration."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from airflow_provider_bankconnect.receiver import names

if TYPE_CHECKING:
    from collections.abc import Mapping

To: TypeAlias = Literal["receiver", "rest_api", "operator"]
_DATABASE: Final = "sqlite:///bankconnect-relay.db"
_LIMIT: Final = 100_000
_AIRFLOW: Final = f"AIRFLOW__{names.SECTION.upper()}__"
_OWN: Final = "BANKCONNECT_RELAY_"


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    :param tokens: the valid webhook tokens, the current one first.
    :param database: SQLAlchemy URL of the queue.
    :param limit: how many webhooks the queue keeps at most.
    :param to: where the webhooks go: to the webhook receiver, to Airflow's REST API, or nowhere, because
        ``BankConnectRelayOperator`` fetches them.
    :param api_server_url: address of Airflow's API server; blank if an operator fetches them.
    :param api_token: bearer token of Airflow's REST API.
    :param user: username and password that get one.
    :param ca_file: PEM file with the certificates to trust; blank for those of the machine.
    """

    tokens: tuple[str, ...] = field(repr=False)
    database: str = field(default=_DATABASE, repr=False)
    limit: int = _LIMIT
    to: To = "receiver"
    api_server_url: str = ""
    api_token: str = field(default="", repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Return the settings.

        :raises ValueError: one is missing or invalid; names it, not its value.
        """

        def get(name: str, prefix: str = _OWN) -> str:
            return environment.get(prefix + name, "").strip()

        to, limit = get("TO") or "receiver", get("LIMIT") or str(_LIMIT)
        if to not in get_args(To):
            raise ValueError(f"{_OWN}TO must be one of {', '.join(get_args(To))}")
        if not limit.isascii() or not limit.isdigit() or not 0 < len(limit) < 10 or int(limit) < 1:  # noqa: PLR2004
            raise ValueError(f"{_OWN}LIMIT must be a whole number from 1")
        user = (get("API_USERNAME"), get("API_PASSWORD"))
        found = cls(
            tokens=names.check_webhook_tokens(get("WEBHOOK_TOKEN", _AIRFLOW), get("WEBHOOK_TOKEN_PREVIOUS", _AIRFLOW)),
            database=get("DATABASE") or _DATABASE,
            limit=int(limit),
            to=to,  # type: ignore[arg-type] # checked above
            api_server_url=get("API_SERVER_URL", _AIRFLOW).rstrip("/"),
            api_token=get("API_TOKEN"),
            user=user if all(user) else None,
            ca_file=get("SSL_CA_FILE", "AIRFLOW__API__"),
        )
        found._check(any(user))
        return found

    def _check(self, has_user: bool) -> None:  # noqa: FBT001 - called once
        if not self.tokens:
            advice = f"set it to that of Airflow, or make one with: {names.NEW_TOKEN}"
            raise ValueError(f"{_AIRFLOW}WEBHOOK_TOKEN is not set: {advice}")
        if self.to != "operator" and not names.is_address(self.api_server_url):
            rule = "must be the http:// or https:// address of Airflow's API server, without user info and query"
            raise ValueError(f"{_AIRFLOW}API_SERVER_URL {rule}. If Airflow fetches the webhooks, set {_OWN}TO=operator")
        if has_user and self.user is None:
            raise ValueError(f"{_OWN}API_USERNAME and {_OWN}API_PASSWORD: set both or neither")
        if self.to == "rest_api" and not self.api_token and self.user is None:
            raise ValueError(f"{_OWN}TO=rest_api needs {_OWN}API_TOKEN, or {_OWN}API_USERNAME and {_OWN}API_PASSWORD")

    def context(self) -> ssl.SSLContext:
        """Return a TLS context for requests to Airflow.

        :raises ValueError: the file of certificates cannot be read.
        """
        try:
            return ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:
            raise ValueError(f"AIRFLOW__API__SSL_CA_FILE cannot be read ({type(error).__name__})") from None
