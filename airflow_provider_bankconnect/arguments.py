"""The checks of what DAG authors pass: ids, analyses, webhook modes, endpoints, and what a gate expects."""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import unquote, urlsplit

import pendulum

# fmt: off
Analysis: TypeAlias = Literal[
    "transactions", "accounts", "identity", "salary", "recurring_transactions", "lender_transactions",
    "get_expense_categories", "top_credits_debits", "monthly_analysis_updated", "xlsx_report", "predictors", "score",
]
# fmt: on
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
        hint = f"for a task for each of them use .partial(...).expand({name}=[...])"
        raise ValueError(f"{name} must be one id, not a {type(value).__name__} of {len(value)}: {hint}")
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
    if is_private_host(host or "") and not allow_private_host:
        raise ValueError(
            f"webhook_url's host {host!r} is private, loopback or link-local: BankConnect cannot reach it. "
            "Give a public one, or allow_private_host=True for a mock BankConnect"
        )
    return webhook_url


def is_private_host(host: str) -> bool:
    """Return whether a host is literally private, loopback or link-local; a name is not looked up."""
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
    return is_private_address(address)


def is_private_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is not one of the public internet."""
    address = getattr(address, "ipv4_mapped", None) or address
    is_site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return not address.is_global or address.is_multicast or address.is_reserved or is_site_local


def is_literal(value: object) -> bool:
    """Return whether an argument is known when the DAG is parsed: no template, nothing of an upstream task."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, list | tuple | set):
        return all(is_literal(item) for item in value)
    return value is None or isinstance(value, int | float | date | timedelta)


def check_conn_id(value: object) -> None:
    """Refuse the number that YAML makes of an unquoted connection id: Airflow fails on it with another error.

    :raises ValueError: it is known at parsing, and no text.
    """
    if is_literal(value) and not isinstance(value, str):
        raise ValueError(f"bankconnect_conn_id must be text, not {value!r}: quote it in YAML")


def plain(value: object) -> object:
    """Return a value of an argument in a type that every Airflow serializes."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


def parse_ids(statement_id: object) -> tuple[str, ...] | None:
    """Return ``statement_id``, one id or several, as a tuple."""
    if statement_id is None:
        return None
    if isinstance(statement_id, str | int):
        return (check_id("statement_id", statement_id),)
    # The parts of these would be keys, and numbers.
    if isinstance(statement_id, Iterable) and not isinstance(statement_id, Mapping | bytes):
        return tuple(check_id("statement_id", one) for one in statement_id)
    raise ValueError(f"statement_id must be one id or a list of them, not {statement_id!r}")


def parse_grace(failure_grace: timedelta | float) -> timedelta:
    """Return ``failure_grace``, which may be seconds, as a timedelta."""
    if isinstance(failure_grace, timedelta):
        return failure_grace
    try:
        if not isinstance(failure_grace, bool):
            return timedelta(seconds=failure_grace)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"failure_grace must be a timedelta or seconds, not {failure_grace!r}")


def parse_since(since: date | str | None) -> datetime | None:
    """Return ``since``, which may be ISO 8601 text or a date, in UTC. A date is its first moment in UTC."""
    if since is None:
        return None
    moment: object = since
    try:
        if isinstance(since, str):
            # It must begin with a digit: pendulum also accepts "now".
            moment = pendulum.parse(since.strip(), exact=True) if since.strip()[:1].isdigit() else None
        if isinstance(moment, datetime):
            return pendulum.instance(moment, tz="UTC").in_timezone("UTC")
        if isinstance(moment, date):
            return pendulum.datetime(moment.year, moment.month, moment.day, tz="UTC")
    except (TypeError, ValueError, OverflowError):  # pendulum raises all of them
        pass
    raise ValueError(f"since must be a datetime or ISO 8601 text like '2026-11-01T00:00:00Z', not {since!r}")


def parse_bool(name: str, value: object) -> bool:
    """Return True or False, which may be text.

    :raises ValueError: it is neither; names the argument.
    """
    text = str(value).strip().lower()
    if text not in {"true", "false"}:
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return text == "true"


def parse_count(count: object) -> int:
    """Return ``expected_statements``, which may be text, as a number."""
    if isinstance(count, int) and not isinstance(count, bool):
        return count
    if isinstance(count, str) and count.strip().isascii() and count.strip().isdigit():
        return int(count.strip()[:9])
    raise ValueError(f"expected_statements must be a whole number from 1, not {count!r}")


def parse_moment(value: datetime | str) -> datetime:
    """Return a time of a wait, which may be ISO 8601 text, in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment.tzinfo is None:
        raise ValueError(f"a deadline, or another time of a wait, must be aware, not {value!r}")
    return moment.astimezone(UTC)
