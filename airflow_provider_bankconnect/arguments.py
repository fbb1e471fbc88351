"""The checks of what DAG authors pass: ids, analyses, webhook modes and endpoints.

Import them from :mod:`airflow_provider_bankconnect.api`.
"""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from enum import IntEnum
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import unquote, urlsplit

Analysis: TypeAlias = Literal[
    "transactions", "accounts", "identity", "salary", "recurring_transactions", "lender_transactions"
]
ANALYSES: Final[tuple[Analysis, ...]] = get_args(Analysis)


class WebhookMode(IntEnum):
    """For which statements BankConnect sends webhooks.

    Source: "Updating web hook endpoint". An update without a mode resets it to ``NET_BANKING``.
    """

    NET_BANKING = 0
    NET_BANKING_AND_MANUAL = 1

    @classmethod
    def parse(cls, value: WebhookMode | int | str) -> WebhookMode:
        """Return the mode for an enum member, its number, or either as text.

        :raises ValueError: for any other value; the message has ``webhook_mode`` and the allowed values.
        """
        text = str(value).strip()
        name = text.removeprefix("WebhookMode.").upper()
        for mode in cls:
            if not isinstance(value, bool) and (name == mode.name or text == str(mode.value)):
                return mode
        allowed = ", ".join(f"{mode.value} ({mode.name})" for mode in cls)
        raise ValueError(f"webhook_mode must be one of {allowed}, not {value!r}")

    @property
    def coverage(self) -> str:
        """Which statements send webhooks in this mode, in words."""
        if self is WebhookMode.NET_BANKING:
            return "statements uploaded by hand (PDF) send no webhooks; NET_BANKING_AND_MANUAL includes them"
        return "net banking and manual (PDF) statements both send webhooks"


def check_id(name: str, value: object) -> str:
    """Return an id as text, or refuse it where it might not name exactly one customer.

    :param value: text, or a whole number, as many loan numbers are.
    :raises ValueError: another type, blank, ``None`` as text, ``.`` or ``..``, or not encodable; names the argument.
    """
    if isinstance(value, list | tuple | set | frozenset):
        raise ValueError(
            f"{name} must be one id, not a {type(value).__name__} of {len(value)}: "
            f"for a task for each of them use .partial(...).expand({name}=[...])"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type(value).__name__}")
    if not value.strip() or value.strip() == "None":
        raise ValueError(f"{name} must not be blank, and is {value!r}: did its template find nothing?")
    if value in {".", ".."}:
        raise ValueError(f"{name} must not be {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a character that cannot be sent (a lone surrogate)") from None
    return value


def check_analysis(analysis: object) -> Analysis:
    """Return the analysis, or refuse one that BankConnect does not have.

    :raises ValueError: names ``analysis`` and the allowed values.
    """
    if not isinstance(analysis, str) or analysis not in ANALYSES:
        raise ValueError(f"analysis must be one of {', '.join(ANALYSES)}, not {analysis!r}")
    return analysis


def check_webhook_url(webhook_url: object, *, allow_private_host: bool = False) -> str:
    """Return the endpoint, or refuse one that BankConnect cannot or must not call.

    :raises ValueError: names ``webhook_url`` and the problem.
    """
    if not isinstance(webhook_url, str):
        raise ValueError(f"webhook_url must be text, not {type(webhook_url).__name__}")
    if "\\" in webhook_url or any(c.isspace() or not c.isprintable() for c in webhook_url):
        raise ValueError("webhook_url must have no blanks, backslashes or control characters")
    try:
        parts = urlsplit(webhook_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        # The library's message may quote the user info.
        raise ValueError("webhook_url is not a URL: its host or port cannot be read") from None
    if parts.scheme != "https" or not (host or "").strip(".") or not unquote(host or "").isprintable():
        raise ValueError("webhook_url must be an absolute https:// URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("webhook_url must have no user info")
    if _is_private(host or "") and not allow_private_host:
        raise ValueError(
            f"webhook_url's host {host!r} is private, loopback or link-local: BankConnect cannot reach it. "
            "Give a public one, or allow_private_host=True for a vendor inside your own network"
        )
    return webhook_url


def _is_private(host: str) -> bool:
    # HTTP clients decode percent escapes, and read an ideographic full stop as a dot.
    name = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, UnicodeEncodeError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return not address.is_global or address.is_multicast or address.is_reserved
