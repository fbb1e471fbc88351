"""The webhook receiver's settings and names: tokens, the registered address, the asset, partition keys and digests.

Nothing here does I/O. DAGs, operators, sensors and triggers know the receiver only through this module.
"""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException, conf, mask_secret

from airflow_provider_bankconnect.receiver.names import (
    ASSET_PREFIX,
    CHALLENGE,
    MAX_KEY_LENGTH,
    NEW_TOKEN,
    PREFIX,
    READY,
    SECTION,
    advice_on,
    asset_uri,
    check_token,
    check_webhook_tokens,
    conn_id_of,
    customer_digest,
    customer_of_key,
    encode,
    internal_token,
    is_address,
    partition_key,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Asset

__all__ = [
    "ASSET_PREFIX",
    "CHALLENGE",
    "MAX_KEY_LENGTH",
    "PREFIX",
    "READY",
    "SECTION",
    "advice_on",
    "api_server_context",
    "api_server_url",
    "asset_uri",
    "check_token",
    "check_url",
    "conn_id_of",
    "customer_digest",
    "customer_of_key",
    "internal_token",
    "is_on",
    "is_supported",
    "partition_key",
    "public_context",
    "require_airflow",
    "tokens",
    "webhook_asset",
    "webhook_url",
]


def is_supported() -> bool:
    """Return whether this Airflow can have a webhook receiver: it needs asset partitions, added in 3.2."""
    major, minor = map(int, airflow_version.split(".")[:2])
    return (major, minor) >= (3, 2)


def require_airflow() -> None:
    """Raise an ``AirflowOptionalProviderFeatureException`` on an Airflow older than 3.2."""
    if not is_supported():
        raise AirflowOptionalProviderFeatureException(
            f"BankConnect's webhook receiver needs Airflow 3.2 or later, and this is {airflow_version}. "
            "The sensors need no webhook receiver: they work on this Airflow too"
        )


@functools.cache
def tokens() -> tuple[str, ...]:
    """Return the valid webhook tokens, the current one first; an empty tuple while the webhook receiver is off.

    Cached, because a setting may come from a slow command.

    :raises ValueError: a token is too weak or has characters that a URL cannot hold; names the setting, not its value.
    """
    found = check_webhook_tokens(
        *(conf.get(SECTION, name, fallback=None) for name in ("webhook_token", "webhook_token_previous"))
    )
    for token in found:
        mask_secret(token)
    return found


def is_on() -> bool:
    """Return whether the webhook receiver is on: Airflow supports it, and a token is set. Raises as :func:`tokens`."""
    return is_supported() and bool(tokens())


def webhook_url(conn_id: str = "bankconnect_default") -> str:
    """Return the address to register with BankConnect. It holds the webhook token, so keep it secret.

    Its base is ``[bankconnect] public_url``, else ``[api] base_url``.

    :param conn_id: the connection of the BankConnect account that sends its webhooks to this address.
    :raises AirflowOptionalProviderFeatureException: Airflow is older than 3.2.
    :raises ValueError: a setting is missing or invalid; names it.
    """
    return _public_url(conn_id) + tokens()[0]


def check_url(conn_id: str) -> str:
    """Return the address for a check of :func:`webhook_url`, without the token: another server might log it."""
    return _public_url(conn_id) + check_token(tokens()[0], conn_id)


def _public_url(conn_id: str) -> str:
    require_airflow()
    name = encode(conn_id)
    if not tokens():
        advice = f"set [{SECTION}] webhook_token on every component of Airflow. Make one with: {NEW_TOKEN}"
        raise ValueError(f"The webhook receiver is off: {advice}")
    base = conf.get(SECTION, "public_url", fallback=None) or conf.get("api", "base_url", fallback=None) or ""
    if not base.startswith("https://"):
        raise ValueError(
            f"BankConnect calls https:// addresses only: set [{SECTION}] public_url (or [api] base_url) to the one "
            f"under which it reaches Airflow's API server, not {base!r}{', which has no host' * base.startswith('/')}"
        )
    return f"{base.rstrip('/')}{PREFIX}/webhook/{name}/"


def webhook_asset(conn_id: str = "bankconnect_default") -> Asset:
    """Return the asset whose events are the webhooks of a connection's account, with one partition for each customer.

    :raises AirflowOptionalProviderFeatureException: Airflow is older than 3.2.
    """
    require_airflow()
    from airflow.providers.common.compat.sdk import Asset  # noqa: PLC0415 - missing on Airflow 2

    return Asset(asset_uri(conn_id))


def api_server_url() -> str:
    """Return the address under which Airflow's components reach an API server with the plugins.

    It is ``[bankconnect] api_server_url``, else that of the execution API, found as Airflow finds it.

    :raises ValueError: a setting is invalid; names it, not its value.
    """
    if given := (conf.get(SECTION, "api_server_url", fallback=None) or "").strip():
        if not is_address(given):
            rule = "must be an http:// or https:// address, without user info, query and fragment"
            raise ValueError(f"[{SECTION}] api_server_url {rule}")
        return given.rstrip("/")
    base = conf.get("api", "base_url", fallback=None) or "/"
    # Airflow allows a path alone, and its own components then call this host and port.
    base = f"http://localhost:8080{base}" if base.startswith("/") else base
    found = conf.get("core", "execution_api_server_url", fallback=None) or base
    found = found.rstrip("/").removesuffix("/execution")
    if not is_address(found):
        why = "[core] execution_api_server_url (or [api] base_url) is no plain http:// or https:// address"
        raise ValueError(f"{why}: set [{SECTION}] api_server_url to that of the API server")
    return found


def api_server_context() -> ssl.SSLContext:
    """Return a TLS context that trusts the same two files as Airflow's own client of the API server."""
    context = ssl.create_default_context(cafile=conf.get("api", "ssl_ca_file", fallback=None) or None)
    if certificate := conf.get("api", "ssl_cert", fallback=None):
        context.load_verify_locations(certificate)
    return context


def public_context() -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities of the machine, and those two files."""
    context = ssl.create_default_context()
    for name in ("ssl_ca_file", "ssl_cert"):
        if file := conf.get("api", name, fallback=None):
            context.load_verify_locations(file)
    return context
