"""The webhook receiver's names: paths, the asset, partition keys, derived tokens and digests.

Nothing here needs Airflow, because the relay runs without it. DAGs and Airflow's components use :mod:`.address`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_bankconnect.arguments import check_id

SECTION: Final = "bankconnect"
PREFIX: Final = "/bankconnect"
ASSET_PREFIX: Final = "bankconnect://webhook/"
# The response to a check of the address.
READY: Final = {"status": "ready"}
# What the webhook receiver answers to a wrong internal token, so that it differs from a server without the receiver.
CHALLENGE: Final = 'Bearer realm="bankconnect"'
# Airflow's limit for a partition key.
MAX_KEY_LENGTH: Final = 250
# Statements that one request of Airflow's components may send.
MAX_EVENTS: Final = 500
NEW_TOKEN: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105 - a command, no secret
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,}")
_HASHED: Final = re.compile(r"sha256:[0-9a-f]{64}")


def check_webhook_tokens(current: str | None, previous: str | None) -> tuple[str, ...]:
    """Return the valid webhook tokens, the current one first; an empty tuple if none is set.

    :raises ValueError: a token is too weak or has characters that a URL cannot hold; names the setting, not its value.
    """
    found: list[str] = []
    for name, value in (("webhook_token", current), ("webhook_token_previous", previous)):
        token = (value or "").strip()
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            rule = "must have at least 16 characters, of letters, digits and . _ ~ - only"
            raise ValueError(f"[{SECTION}] {name} {rule}. Make one with: {NEW_TOKEN}")
        if name == "webhook_token_previous" and not found:
            raise ValueError(f"[{SECTION}] {name} is set, but webhook_token is not: set both or neither")
        found.append(token)
    return tuple(found)


def asset_uri(conn_id: str) -> str:
    """Return the URI of a connection's asset."""
    return ASSET_PREFIX + encode(conn_id)


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


def encode(conn_id: str) -> str:
    """Return a connection id as a part of a URL.

    :raises ValueError: it is no valid id.
    """
    # Unlike a loan number, a connection id is always text.
    if not isinstance(conn_id, str):
        raise ValueError(f"conn_id must be text, not {type(conn_id).__name__}")
    return quote(check_id("conn_id", conn_id), safe="")


def is_address(url: str) -> bool:
    """Return whether this is an ``http`` or ``https`` address, without user info, query and fragment."""
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
