"""Where the doorbell is and who may use it: its settings, the address that BankConnect gets, the asset, and the names.

Nothing here opens a connection. The receiver itself is named nowhere else: DAGs, operators and waits know it by this.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException, conf, mask_secret

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Asset

SECTION: Final = "bankconnect"
PREFIX: Final = "/bankconnect"
ASSET_PREFIX: Final = "bankconnect://webhook/"
# The longest that Airflow keeps as a partition key.
LONGEST_KEY: Final = 250
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,}")
_NEW_TOKEN: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105 - how to make one


def is_supported() -> bool:
    """Say whether this Airflow can have a doorbell: runs by partition came with 3.2."""
    major, minor = map(int, airflow_version.split(".")[:2])
    return (major, minor) >= (3, 2)


def require_airflow() -> None:
    """Refuse an Airflow that has no runs by partition.

    :raises AirflowOptionalProviderFeatureException: says what is needed, and what works without it.
    """
    if not is_supported():
        raise AirflowOptionalProviderFeatureException(
            f"BankConnect's doorbell needs Airflow 3.2 or later, and this is {airflow_version}. "
            "The sensors need no doorbell: they look at BankConnect's own records, here as everywhere"
        )


@functools.cache
def tokens() -> tuple[str, ...]:
    """Give the tokens that are good now, the current one first; none while the doorbell is off.

    Read once: a setting may be a command that takes its time.

    :raises ValueError: a token that is too weak, or cannot stand in a URL; names the setting, never its value.
    """
    found: list[str] = []
    for name in ("webhook_token", "webhook_token_previous"):
        token = (conf.get(SECTION, name, fallback=None) or "").strip()
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            raise ValueError(
                f"[{SECTION}] {name} must have at least 16 characters, of letters, digits and . _ ~ - only. "
                f"Make one with: {_NEW_TOKEN}"
            )
        if name == "webhook_token_previous" and not found:
            raise ValueError(
                f"[{SECTION}] webhook_token_previous is set, and webhook_token is not: set both, or neither"
            )
        mask_secret(token)
        found.append(token)
    return tuple(found)


def is_on() -> bool:
    """Say whether there is a doorbell: an Airflow that can have one, and a token.

    :raises ValueError: as :func:`tokens`.
    """
    return is_supported() and bool(tokens())


def webhook_url(conn_id: str = "bankconnect_default") -> str:
    """Give the address to register with BankConnect. It is a secret: whoever knows it can ring.

    Its base is ``[bankconnect] public_url``, else ``[api] base_url``.

    :param conn_id: the connection whose account rings there.
    :raises AirflowOptionalProviderFeatureException: this Airflow can have no doorbell.
    :raises ValueError: a setting is missing, or cannot be meant; names it.
    """
    require_airflow()
    name = _encode(conn_id)
    if not tokens():
        raise ValueError(
            f"The doorbell is off: set [{SECTION}] webhook_token on every part of Airflow. Make one with: {_NEW_TOKEN}"
        )
    base = conf.get(SECTION, "public_url", fallback=None) or conf.get("api", "base_url", fallback=None) or ""
    if not base.startswith("https://"):
        raise ValueError(
            f"BankConnect calls https:// addresses only: set [{SECTION}] public_url (or [api] base_url) to the one "
            f"under which it reaches Airflow's API server, not {base!r}"
        )
    return f"{base.rstrip('/')}{PREFIX}/webhook/{name}/{tokens()[0]}"


def webhook_asset(conn_id: str = "bankconnect_default") -> Asset:
    """Give the asset whose events are the rings of a connection's account, one partition for each customer.

    :raises AirflowOptionalProviderFeatureException: this Airflow can have no doorbell.
    """
    require_airflow()
    from airflow.providers.common.compat.sdk import Asset  # noqa: PLC0415 - Airflow 2 has none of this kind

    return Asset(asset_uri(conn_id))


def asset_uri(conn_id: str) -> str:
    """Spell the asset of a connection."""
    return ASSET_PREFIX + _encode(conn_id)


def conn_id_of(uri: str) -> str:
    """Read an asset's URI: the other way round."""
    return unquote(uri.removeprefix(ASSET_PREFIX))


def partition_key(link_id: str | None, entity_id: str | None) -> str:
    """Say whose ring it is: the link's, or without one the entity's. Ids are read from events, never from this.

    What is too long for a key is hashed, and what no line of a log should have in it: Airflow writes keys as they are.
    """
    kind, name = ("link", link_id) if (link_id or "").strip() else ("entity", entity_id)
    key = f"{kind}:{name}"
    return (
        key
        if len(key) <= LONGEST_KEY and key.isprintable()
        else f"{kind}:sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    )


def knock(token: str) -> str:
    """Give what Airflow's own parts show the receiver in place of the token, which would stand in too many requests."""
    return hmac.new(token.encode(), b"bankconnect: Airflow's own parts", hashlib.sha256).hexdigest()


def whisper(token: str, conn_id: str, key: str) -> str:
    """Name a customer so that only those know who know the customer: what triggerers are told of a ring."""
    return hmac.new(token.encode(), f"{conn_id}\0{key}".encode(), hashlib.sha256).hexdigest()[:24]


def api_server_url() -> str:
    """Give the address under which Airflow's own parts reach the API server."""
    own = conf.get("core", "execution_api_server_url", fallback=None) or ""
    base = own.rstrip("/").removesuffix("/execution") or conf.get("api", "base_url", fallback=None) or ""
    return (base or "http://localhost:8080").rstrip("/")


def api_server_ca() -> tuple[str | None, str | None]:
    """Give the two files that Airflow's own parts trust when they call the API server, as Airflow's client does."""
    return conf.get("api", "ssl_ca_file", fallback=None) or None, conf.get("api", "ssl_cert", fallback=None) or None


def api_server_context() -> ssl.SSLContext:
    """Make the context of a call to the API server."""
    authority, certificate = api_server_ca()
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_verify_locations(certificate)
    return context


def _encode(conn_id: str) -> str:
    from airflow_provider_bankconnect.api import check_id  # noqa: PLC0415 - pydantic; every Airflow process is here

    return quote(check_id("conn_id", conn_id), safe="")
