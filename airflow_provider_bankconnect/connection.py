"""The fields of an Airflow connection, checked. Import from :mod:`airflow_provider_bankconnect.api`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Final
from urllib.parse import urlsplit

import pendulum

DEFAULT_BASE_URL: Final = "https://apis.bankconnect.finbox.in/bank-connect/v1"
DEFAULT_PATH: Final = "/bank-connect/v1"
# From 24 days on, the milliseconds of a socket's poll() overflow.
_LONGEST_TIMEOUT: Final = 86_400
_HIGHEST_PORT: Final = 65_535
_HTTPS_PORT: Final = 443
_AS_JSON: Final = (
    "Give the connection as JSON, not as a URI, with the key as a JSON string: in a URI, Airflow may read it as a "
    "number or a truth value, and change it, and quotes that are added there become a part of the key"
)


@dataclass(frozen=True)
class ConnectionSettings:
    """The checked fields of a connection.

    :param base_url: ``https://`` URL without a trailing slash.
    :param timezone: zone of BankConnect's ``date_time``.
    :param verify: path of a CA bundle, or None for the usual authorities.
    :param timeout: seconds for one request.
    :param max_concurrency: polls at once from one triggerer.
    """

    base_url: str
    api_key: str = field(repr=False)
    server_hash: str = field(repr=False)
    timezone: tzinfo = UTC
    verify: str | None = None
    timeout: float = 30.0
    max_concurrency: int = 16

    @classmethod
    def parse(
        cls, conn_id: str, *, host: str | None, port: int | None, password: str | None, extra: Mapping[str, object]
    ) -> ConnectionSettings:
        """Read the fields of an Airflow connection.

        :raises ValueError: names the connection and the field, never the value of a key.
        """
        if not isinstance(extra, Mapping):
            raise ValueError(f"Connection {conn_id!r}: extra must be a JSON object")
        # Airflow reads the extras of a URI as text in a task, and as JSON in its core: both have to mean the same.
        extra = {name: None if value == "null" else value for name, value in extra.items()}
        try:
            return cls(
                base_url=_base_url(host, port),
                api_key=_key(extra.get("api_key", ""), "API Key (extra 'api_key')"),
                server_hash=_key("" if password is None else password, "Server Hash (password)"),
                timezone=_timezone(extra.get("timezone")),
                verify=_verify(extra.get("verify")),
                timeout=_seconds(extra.get("timeout")),
                max_concurrency=_polls(extra.get("max_concurrency")),
            )
        except ValueError as error:
            raise ValueError(f"Connection {conn_id!r}: {error}") from None

    @property
    def headers(self) -> dict[str, str]:
        """The two headers of every call. Source: "Authentication"."""
        return {"x-api-key": self.api_key, "server-hash": self.server_hash}


def _base_url(host: str | None, port: int | None) -> str:
    text = (host or "").strip() or DEFAULT_BASE_URL
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        name, own_port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("host is not a URL: its name or port cannot be read") from None
    if parts.scheme == "http":
        raise ValueError("host must not be http://: BankConnect fails plain HTTP, and the keys would travel in clear")
    if parts.scheme != "https" or not name or "\\" in text or any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError("host must be a bare host or an https:// base URL")
    if "@" in parts.netloc or parts.query or parts.fragment or {".", ".."} & set(parts.path.split("/")):
        raise ValueError("host must have no user info, query, fragment or dot segments")
    if port and not 0 < port <= _HIGHEST_PORT:
        raise ValueError(f"port must be between 1 and {_HIGHEST_PORT}, not {port}")
    if port and own_port and port != own_port:
        raise ValueError(f"port is {port}, but host says {own_port}: give it once")
    shown = f"[{name}]" if ":" in name else name
    number = port or own_port or _HTTPS_PORT
    return f"https://{shown}{'' if number == _HTTPS_PORT else f':{number}'}{parts.path.rstrip('/') or DEFAULT_PATH}"


def _key(value: object, name: str) -> str:
    if value == "":
        raise ValueError(f"{name} is missing")
    if value is None:
        raise ValueError(f"{name} is missing: it is null. {_AS_JSON}")
    if isinstance(value, int) and not isinstance(value, bool):
        # JSON has no number with leading zeros, so these were the characters of the key.
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type(value).__name__}. {_AS_JSON}")
    if not all("!" <= character <= "~" for character in value):
        problem = "has a blank or a character outside visible ASCII: was it pasted with something around it?"
        raise ValueError(f"{name} {problem}")
    if len(value) > 1 and value[0] == value[-1] == '"':
        raise ValueError(f"{name} begins and ends with a double quote. {_AS_JSON}")
    if value == "***":
        raise ValueError(f"{name} is '***': Airflow's mask was saved in the place of the key. Enter the key again")
    return value


def _timezone(value: object) -> tzinfo:
    try:
        return pendulum.timezone(str(value)) if value not in (None, "") else UTC
    except (ValueError, KeyError, OSError):
        raise ValueError(f"timezone must be an IANA name like 'UTC' or 'Asia/Kolkata', not {value!r}") from None


def _verify(value: object) -> str | None:
    word = str(value).strip()
    if value is None or word.lower() in {"", "true"}:
        return None
    # A number is no path, in quotes either.
    is_number = word.lower() == "nan" or not math.isnan(_number(word, 0))
    if not isinstance(value, str) or is_number or word.lower() in {"false", "no", "off", "none"}:
        raise ValueError(f"verify must be the path of a CA bundle, not {value!r}: TLS is always verified")
    return word


def _seconds(value: object) -> float:
    number = _number(value, 30.0)
    if not 0 < number <= _LONGEST_TIMEOUT:
        allowed = f"a number of seconds above 0, at most a day ({_LONGEST_TIMEOUT})"
        raise ValueError(f"timeout must be {allowed}, not {value!r}")
    return number


def _polls(value: object) -> int:
    number = _number(value, 16)
    if not 1 <= number < math.inf or number != int(number):
        raise ValueError(f"max_concurrency must be a whole number from 1, not {value!r}")
    return int(number)


def _number(value: object, default: float) -> float:
    if value is None or value == "":
        return default
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
