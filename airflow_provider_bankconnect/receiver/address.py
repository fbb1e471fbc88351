"""The webhook receiver's settings and names: tokens, the registered address, the asset, partition keys and digests.

Nothing here does I/O. DAGs, operators, sensors and triggers know the receiver only through this module.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException, conf, mask_secret

from airflow_provider_bankconnect.arguments import check_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Asset

SECTION: Final = "bankconnect"
PREFIX: Final = "/bankconnect"
ASSET_PREFIX: Final = "bankconnect://webhook/"
# The response to a check of the address.
READY: Final = {"status": "ready"}
# What the webhook receiver answers to a wrong internal token, so that it differs from a server without the receiver.
CHALLENGE: Final = 'Bearer realm="bankconnect"'
# Airflow's limit for a partition key.
MAX_KEY_LENGTH: Final = 250
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,}")
_HASHED: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NEW_TOKEN: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105 - a command, no secret


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
    found: list[str] = []
    for name in ("webhook_token", "webhook_token_previous"):
        token = (conf.get(SECTION, name, fallback=None) or "").strip()
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            rule = "must have at least 16 characters, of letters, digits and . _ ~ - only"
            raise ValueError(f"[{SECTION}] {name} {rule}. Make one with: {_NEW_TOKEN}")
        if name == "webhook_token_previous" and not found:
            raise ValueError(f"[{SECTION}] {name} is set, but webhook_token is not: set both or neither")
        mask_secret(token)
        found.append(token)
    return tuple(found)


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
    name = _encode(conn_id)
    if not tokens():
        advice = f"set [{SECTION}] webhook_token on every component of Airflow. Make one with: {_NEW_TOKEN}"
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


def asset_uri(conn_id: str) -> str:
    """Return the URI of a connection's asset."""
    return ASSET_PREFIX + _encode(conn_id)


def conn_id_of(uri: str) -> str:
    """Return the connection id of an asset's URI."""
    return unquote(uri.removeprefix(ASSET_PREFIX))


def partition_key(link_id: str | None, entity_id: str | None) -> str:
    """Return the partition key of a customer: of the link, or of the entity if there is no link.

    A key that is too long or not printable is hashed, since Airflow logs keys as they are. Read ids from the event.
    """
    kind, name = ("link", link_id) if (link_id or "").strip() else ("entity", entity_id)
    key = f"{kind}:{name}"
    if len(key) <= MAX_KEY_LENGTH and key.isprintable():
        return key
    return f"{kind}:sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def customer_of_key(key: str) -> dict[str, str]:
    """Return the customer of a partition key as ``link_id`` or ``entity_id``; empty for a hash, or for another key."""
    kind, _, name = key.partition(":")
    is_hash = _HASHED.fullmatch(name) is not None
    return {f"{kind}_id": name} if kind in {"link", "entity"} and name.strip() and not is_hash else {}


def internal_token(token: str) -> str:
    """Derive the token that Airflow's components send, so that the webhook token itself stays out of their requests."""
    return hmac.new(token.encode(), b"bankconnect: internal token", hashlib.sha256).hexdigest()


def check_token(token: str, conn_id: str) -> str:
    """Derive what stands for the webhook token when the address is checked. It is good for nothing else."""
    checked = f"bankconnect: address check\0{conn_id}".encode("utf-8", "surrogatepass")
    return hmac.new(token.encode(), checked, hashlib.sha256).hexdigest()


def customer_digest(token: str, conn_id: str, key: str) -> str:
    """Return the keyed hash that stands for a customer in the event feed."""
    return hmac.new(token.encode(), f"{conn_id}\0{key}".encode(), hashlib.sha256).hexdigest()[:24]


def api_server_url() -> str:
    """Return the address under which Airflow's components reach an API server with the plugins.

    It is ``[bankconnect] api_server_url``, else that of the execution API, found as Airflow finds it.

    :raises ValueError: a setting is invalid; names it, not its value.
    """
    if given := (conf.get(SECTION, "api_server_url", fallback=None) or "").strip():
        if not _is_address(given):
            rule = "must be an http:// or https:// address, without user info, query and fragment"
            raise ValueError(f"[{SECTION}] api_server_url {rule}")
        return given.rstrip("/")
    base = conf.get("api", "base_url", fallback=None) or "/"
    # Airflow allows a path alone, and its own components then call this host and port.
    base = f"http://localhost:8080{base}" if base.startswith("/") else base
    found = conf.get("core", "execution_api_server_url", fallback=None) or base
    found = found.rstrip("/").removesuffix("/execution")
    if not _is_address(found):
        why = "[core] execution_api_server_url (or [api] base_url) is no plain http:// or https:// address"
        raise ValueError(f"{why}: set [{SECTION}] api_server_url to that of the API server")
    return found


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_plain = url.isprintable() and not any(character in url for character in " \\@?#")
    return parts.scheme in {"http", "https"} and has_host and is_plain


def advice_on(status: int, challenge: str | None) -> str:
    """Return what to do if the webhook receiver does not answer a request of Airflow's components as it should.

    :param challenge: the answer's header ``WWW-Authenticate``.
    """
    if status == 401 and challenge == CHALLENGE:  # noqa: PLR2004
        return f"check that [{SECTION}] webhook_token is the same on the API server"
    if status >= 500 or status in {400, 408, 413}:  # noqa: PLR2004
        return "see the API server's log"
    return (
        f"this is not the webhook receiver. Set [{SECTION}] api_server_url to that of an API server which serves "
        "plugins (airflow api-server --apps core, or all of its apps) and has airflow-provider-bankconnect"
    )


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


def _encode(conn_id: str) -> str:
    # Unlike a loan number, a connection id is always text.
    if not isinstance(conn_id, str):
        raise ValueError(f"conn_id must be text, not {type(conn_id).__name__}")
    return quote(check_id("conn_id", conn_id), safe="")
