"""BankConnect as values: requests to send, answers read, errors, and how long to back off.

Nothing here does I/O or knows Airflow. A call is a generator that yields a :class:`Request`, is sent the
:class:`Answer` to it, and returns what was asked for; the hooks only carry bytes. Behaviour comes from the
vendor's page on webhooks and, where that is silent, from its REST API pages.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import unicodedata
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

import pendulum
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import from_json

DEFAULT_BASE_URL: Final = "https://apis.bankconnect.finbox.in/bank-connect/v1"
DEFAULT_PATH: Final = "/bank-connect/v1"
ANALYSES: Final = (
    "transactions",
    "accounts",
    "identity",
    "salary",
    "recurring_transactions",
    "lender_transactions",
)
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
# Read, a byte may become hundreds: 64 MiB of nested lists are ten gigabytes. A customer's statements come nowhere near.
MAX_ANSWER_OBJECTS: Final = 250_000
MAX_ANSWER_VALUES: Final = 4_000_000
MAX_RETRIES: Final = 3
MAX_BACKOFF: Final = 60.0
MAX_PAGES: Final = 1000
# Thirty years: what is longer overflows a datetime somewhere.
_LONGEST: Final = 1e9
# From 24 days on, the milliseconds of a socket's poll() overflow.
_LONGEST_TIMEOUT: Final = 86_400

T = TypeVar("T")


class BankConnectError(Exception):
    """Something went wrong between us and BankConnect.

    Not an ``AirflowException``: after a deferral ``soft_fail`` turns any of those into a skip, and a wrong key
    must never look like one. Messages name the call and the status; never a key, never a body.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BankConnectAuthError(BankConnectError):
    """The keys are wrong, or may not do this: HTTP 401, 402 or 403."""


class BankConnectNotFoundError(BankConnectError):
    """BankConnect does not know what was asked for, or nothing is there yet: HTTP 404."""


class BankConnectTransientError(BankConnectError):
    """Asking again later may help. ``retry_after`` is what the vendor asked for, in seconds, or None."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class BankConnectRateLimitError(BankConnectTransientError):
    """Too many calls: HTTP 429."""


class BankConnectServerError(BankConnectTransientError):
    """BankConnect failed: HTTP 5xx."""


class BankConnectConnectionError(BankConnectTransientError):
    """No answer: refused, reset, timed out, cut off, or TLS failed."""


class BankConnectCertificateError(BankConnectConnectionError):
    """The server's certificate does not verify. Nothing was sent."""


class BankConnectResponseError(BankConnectError):
    """An answer that the vendor does not document: another status, not JSON, another shape."""


class BankConnectNotReadyError(BankConnectError):
    """The data was asked for while that very answer says that statements are still being processed."""


class BankConnectTimezoneError(BankConnectError):
    """A payload lies in the future: the connection's ``timezone`` is not the vendor's."""


class WebhookMode(IntEnum):
    """For which statements the vendor sends webhooks.

    Source: "Updating web hook endpoint". An update that leaves it out resets it to ``NET_BANKING``.
    """

    NET_BANKING = 0
    NET_BANKING_AND_MANUAL = 1

    @classmethod
    def parse(cls, value: WebhookMode | int | str) -> WebhookMode:
        """Take the enum, its number, or either as text.

        :raises ValueError: for anything else; names ``webhook_mode`` and the allowed values.
        """
        text = str(value).strip()
        name = text.removeprefix("WebhookMode.").upper()
        for mode in cls:
            if not isinstance(value, bool) and (name == mode.name or text == str(mode.value)):
                return mode
        allowed = ", ".join(f"{mode.value} ({mode.name})" for mode in cls)
        raise ValueError(f"webhook_mode must be one of {allowed}, not {value!r}")

    @property
    def silences(self) -> str:
        """What people will not hear of in this mode, in words."""
        if self is WebhookMode.NET_BANKING:
            return (
                "statements uploaded by hand (PDF) will send no webhook: choose NET_BANKING_AND_MANUAL to hear of them"
            )
        return "nothing is silenced: net banking and manual (PDF) statements both send webhooks"


@dataclass(frozen=True)
class ConnectionSettings:
    """What a connection says, checked.

    :param base_url: ``https://`` URL without a trailing slash.
    :param timezone: zone of the vendor's ``date_time``.
    :param verify: path of a CA bundle, or None for the usual trust.
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
        cls,
        conn_id: str,
        *,
        host: str | None,
        port: int | None,
        password: str | None,
        extra: Mapping[str, object],
    ) -> ConnectionSettings:
        """Read the fields of an Airflow connection.

        :raises ValueError: names the connection and the field, never the value of a key.
        """

        def refuse(name: str, problem: str) -> ValueError:
            return ValueError(f"Connection {conn_id!r}: {name} {problem}")

        if not isinstance(extra, Mapping):
            raise refuse("extra", "must be a JSON object")

        return cls(
            base_url=_base_url(host, port, refuse),
            api_key=_key(extra.get("api_key"), "API Key (extra 'api_key')", refuse),
            server_hash=_key(password, "Server Hash (password)", refuse),
            timezone=_timezone(extra.get("timezone"), refuse),
            verify=_verify(extra.get("verify"), refuse),
            timeout=_seconds(extra.get("timeout"), refuse),
            max_concurrency=_polls(extra.get("max_concurrency"), refuse),
        )

    @property
    def headers(self) -> dict[str, str]:
        """The two headers that every call carries. Source: "Authentication"."""
        return {"x-api-key": self.api_key, "server-hash": self.server_hash}


@dataclass(frozen=True)
class Request:
    """One request to send. ``path`` is encoded, query included, and relative to the base URL."""

    call: str
    method: str
    path: str
    json: Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer:
    """One answer as it came.

    :param retry_after: that header, and ``encoding``: the header ``Content-Encoding``.
    :param received_at: an aware time.
    """

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = None
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    encoding: str | None = None


Call: TypeAlias = Generator[Request, Answer, T]


@dataclass(frozen=True)
class Result(Generic[T]):
    """What a call has come to."""

    value: T


def advance(call: Call[T], answer: Answer | None = None) -> Request | Result[T]:
    """Take a call one step on: the next request to send, or what it has come to.

    A plain value, for a ``StopIteration`` cannot cross threads.
    """
    try:
        return next(call) if answer is None else call.send(answer)
    except StopIteration as done:
        return Result(done.value)


def _blank_for_none(value: object) -> object:
    return "" if value is None or (isinstance(value, str) and not value.strip()) else value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _vendor_time(value: object, info: ValidationInfo) -> datetime:
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC)
    try:
        naive = datetime.strptime(value, "%Y-%m-%d %H:%M:%S")  # type: ignore[arg-type]  # noqa: DTZ007 - zone below
        return naive.replace(tzinfo=(info.context or {}).get("timezone", UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be YYYY-MM-DD HH:MM:SS") from None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class WebhookPayload(_Model):
    """One row of a link's payload history. Source: "Handling cases when your webhook endpoint is down".

    ``statement_id`` is ``""`` for a net banking attempt that failed before any upload, ``link_id`` is None for a
    manual upload without a link, and ``date_time`` (aware, UTC, whole seconds) is when the webhook was supposed to
    be sent.
    """

    statement_id: Annotated[str, BeforeValidator(_blank_for_none)]
    entity_id: Annotated[str, AfterValidator(_not_blank)]
    link_id: str | None
    progress: str
    reason: Annotated[str, BeforeValidator(_blank_for_none)]
    date_time: Annotated[datetime, PlainValidator(_vendor_time)]


class StatementProgress(_Model):
    """One statement in the ``progress`` of an analysis. ``status`` may be null, which means still going."""

    statement_id: Annotated[str, AfterValidator(_not_blank)]
    status: str | None
    source: str | None = None
    message: str | None = None


# The first bad row is enough to refuse a list: a megabyte of them, each told of, would be two gigabytes.
_Rows: TypeAlias = Annotated[list[T], FailFast()]


class _History(_Model):
    payloads: _Rows[WebhookPayload]


class _Analysis(_Model):
    entity_id: str | None = None
    progress: _Rows[StatementProgress]


class _Entity(_Model):
    entity_id: Annotated[str, AfterValidator(_not_blank)]
    link_id: str | None


class _EntityPage(_Model):
    next: str | None
    results: _Rows[_Entity]


def update_webhook(
    webhook_url: str, webhook_mode: WebhookMode | int | str, *, allow_private_host: bool = False
) -> Call[None]:
    """Register the one endpoint of the account. The mode is always sent: leaving it out resets it."""
    body = {
        "webhook_url": check_webhook_url(webhook_url, allow_private_host=allow_private_host),
        "webhook_mode": int(WebhookMode.parse(webhook_mode)),
    }
    yield Request("update_webhook", "POST", "entity/update_webhook/", body)


def get_webhook_payloads(link_id: str, timezone: tzinfo) -> Call[list[WebhookPayload]]:
    """All payloads of a link, newest first, whatever order came."""
    query = urlencode({"link_id": check_id("link_id", link_id)}, quote_via=quote, safe="")
    request = Request("webhook_payloads", "GET", f"entity/webhook_payloads/?{query}")
    history = _read(_History, request, (yield request), timezone=timezone)
    return sorted(history.payloads, key=lambda row: row.date_time, reverse=True)


def get_progress(entity_id: str, analysis: str = "transactions") -> Call[list[StatementProgress]]:
    """Get the progress of one analysis of an entity."""
    request = _analysis_request(entity_id, analysis)
    answer = _read(_Analysis, request, (yield request))
    _check_entity(request, entity_id, answer)
    return answer.progress


def get_transactions(entity_id: str, account_id: str | None = None) -> Call[dict[str, Any]]:
    """Get the vendor's whole answer, refused while its own ``progress`` is empty or still going."""
    request = _analysis_request(entity_id, "transactions", account_id)
    answer = yield request
    analysis = _read(_Analysis, request, answer)
    _check_entity(request, entity_id, analysis)
    going = sum((item.status or "").lower() not in {"completed", "failed"} for item in analysis.progress)
    if going or not analysis.progress:
        said = (
            f"{going} of {len(analysis.progress)} statements are still being processed" if going else "no statement yet"
        )
        raise BankConnectNotReadyError(
            f"{request.call}: HTTP {answer.status}: {said}; wait for them with a sensor first", status=answer.status
        )
    try:
        data = _finite_json(answer.body)
    except ValueError:
        # The models skip what they do not know; this is the one place that hands it on.
        raise BankConnectResponseError(
            f"{request.call}: HTTP {answer.status}, but not JSON: NaN, Infinity or what is too large is no number",
            status=answer.status,
        ) from None
    return data


def get_entities(link_id: str) -> Call[list[str]]:
    """Get the ids of all entities of a link, in the vendor's order, from all pages."""
    check_id("link_id", link_id)
    found: dict[str, None] = {}
    size = 0
    for page in range(1, MAX_PAGES + 1):
        query = urlencode({"page": page, "link_id": link_id}, quote_via=quote, safe="")
        request = Request("entities", "GET", f"entity/?{query}")
        answer = yield request
        size += len(answer.body)
        if size > MAX_ANSWER_BYTES:
            break
        read = _read(_EntityPage, request, answer)
        found |= dict.fromkeys(entity.entity_id for entity in read.results if entity.link_id == link_id)
        # The vendor's own `next` is not followed: the keys go to the connection's base URL and nowhere else.
        if not read.next:
            return list(found)
    raise BankConnectResponseError(
        f"entities: HTTP 200, but still a next page after {MAX_PAGES}, or {MAX_ANSWER_BYTES // 2**20} MiB of them",
        status=200,
    )


def probe() -> Call[list[str]]:
    """Ask for the entities of a link that nobody has: an empty list, and not 404, wherever the base URL is right."""
    return get_entities(str(uuid.uuid4()))


def check_status(request: Request, answer: Answer) -> Answer:
    """Pass a 200 on; raise everything else as the error that it is."""
    status, call = answer.status, request.call
    if status == 200:
        # Every request asks for none: a kilobyte of a compressed answer may be a megabyte.
        if (answer.encoding or "").strip().lower() not in {"", "identity"}:
            raise BankConnectResponseError(
                f"{call}: HTTP 200, but compressed, which was not asked for: is there a proxy that compresses?",
                status=status,
            )
        return answer
    if status in {401, 402, 403}:
        raise BankConnectAuthError(
            f"{call}: HTTP {status}: BankConnect refuses these keys. Check API Key and Server Hash of the connection",
            status=status,
        )
    if status == 404:
        raise BankConnectNotFoundError(f"{call}: HTTP 404: unknown, or nothing there yet", status=status)
    retry_after = retry_after_seconds(answer.retry_after, answer.received_at)
    asked = f" (it asks to wait {retry_after:.0f} s)" if retry_after else ""
    if status == 429:
        raise BankConnectRateLimitError(
            f"{call}: HTTP 429: too many calls{asked}", status=status, retry_after=retry_after
        )
    if 500 <= status <= 599:
        raise BankConnectServerError(
            f"{call}: HTTP {status}: BankConnect failed{asked}", status=status, retry_after=retry_after
        )
    if 300 <= status <= 399:
        raise BankConnectResponseError(
            f"{call}: HTTP {status}: a redirect, which is never followed, for the keys would go along. "
            "Check the connection's host",
            status=status,
        )
    raise BankConnectResponseError(f"{call}: HTTP {status}: expected 200", status=status)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header, seconds or HTTP date; None where it is absent, unreadable or over."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST) or None
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - now).total_seconds()
    return min(seconds, _LONGEST) if seconds > 0 else None


def backoff(failures: int, *, jitter: float, retry_after: float | None = None) -> float:
    """Seconds to wait after the ``failures``-th failure in a row: exponential, full jitter, up to a minute.

    :param failures: 1 for the first.
    :param jitter: drawn by the caller from [0, 1).
    :param retry_after: never less than this, in seconds: the vendor's word counts more than ours.
    """
    ceiling = min(MAX_BACKOFF, 2.0 ** min(failures - 1, 16))
    return max(jitter * ceiling, retry_after or 0.0)


def check_id(name: str, value: object) -> str:
    """Refuse an id that might ask for something else than one customer.

    :raises ValueError: not text, blank, ``None`` as text, ``.`` or ``..``, or not encodable; names the argument.
    """
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


def check_analysis(analysis: object) -> str:
    """Refuse an analysis that the vendor does not have.

    :raises ValueError: names ``analysis`` and the allowed values.
    """
    if not isinstance(analysis, str) or analysis not in ANALYSES:
        raise ValueError(f"analysis must be one of {', '.join(ANALYSES)}, not {analysis!r}")
    return analysis


def check_webhook_url(webhook_url: object, *, allow_private_host: bool = False) -> str:
    """Refuse an endpoint that the vendor cannot or must not call.

    :raises ValueError: names ``webhook_url`` and what is wrong with it.
    """
    if not isinstance(webhook_url, str):
        raise ValueError(f"webhook_url must be text, not {type(webhook_url).__name__}")
    if "\\" in webhook_url or any(c.isspace() or not c.isprintable() for c in webhook_url):
        raise ValueError("webhook_url must have no blanks, backslashes or control characters")
    try:
        parts = urlsplit(webhook_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        # The library's own words may quote the user info.
        raise ValueError("webhook_url is not a URL: its host or port cannot be read") from None
    if parts.scheme != "https" or not (host or "").strip("."):
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
    # As the clients read it that know internationalised names: they decode, and an ideographic full stop is a dot.
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


Refuse: TypeAlias = Callable[[str, str], ValueError]


def _base_url(host: str | None, port: int | None, refuse: Refuse) -> str:
    text = (host or "").strip() or DEFAULT_BASE_URL
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        name, own_port = parts.hostname, parts.port
    except ValueError:
        raise refuse("host", "is not a URL: its name or port cannot be read") from None
    if parts.scheme == "http":
        raise refuse("host", "must not be http://: BankConnect fails plain HTTP, and the keys would travel in clear")
    if parts.scheme != "https" or not name or "\\" in text or any(c.isspace() or not c.isprintable() for c in text):
        raise refuse("host", "must be a bare host or an https:// base URL")
    if "@" in parts.netloc or parts.query or parts.fragment or {".", ".."} & set(parts.path.split("/")):
        raise refuse("host", "must have no user info, query, fragment or dot segments")
    if port and not 0 < port < 65536:
        raise refuse("port", f"must be between 1 and 65535, not {port}")
    if port and own_port and port != own_port:
        raise refuse("port", f"is {port}, but host says {own_port}: give it once")
    shown = f"[{name}]" if ":" in name else name
    number = port or own_port
    return f"https://{shown}{f':{number}' if number and number != 443 else ''}{parts.path.rstrip('/') or DEFAULT_PATH}"


def _key(value: object, name: str, refuse: Refuse) -> str:
    if value is None or value == "":
        raise refuse(name, "is missing")
    if not isinstance(value, str):
        raise refuse(name, f"must be text, not {type(value).__name__}")
    if not all("!" <= character <= "~" for character in value):
        raise refuse(name, "has a blank or a character outside visible ASCII: was it pasted with something around it?")
    if value == "***":
        raise refuse(name, "is '***': Airflow's mask was saved in the place of the key. Enter the key again")
    return value


def _timezone(value: object, refuse: Refuse) -> tzinfo:
    try:
        return pendulum.timezone(str(value)) if value not in (None, "") else UTC
    except (ValueError, KeyError, OSError):
        raise refuse("timezone", f"must be an IANA name like 'UTC' or 'Asia/Kolkata', not {value!r}") from None


def _verify(value: object, refuse: Refuse) -> str | None:
    word = str(value).strip()
    if value is None or word.lower() in {"", "true"}:
        return None
    if not isinstance(value, str) or word.lower() in {"false", "0", "no", "off", "none"}:
        raise refuse("verify", f"must be the path of a CA bundle, not {value!r}: TLS is always verified")
    return word


def _seconds(value: object, refuse: Refuse) -> float:
    number = _number(value, 30.0)
    if not 0 < number <= _LONGEST_TIMEOUT:
        raise refuse(
            "timeout", f"must be a number of seconds above 0, at most a day ({_LONGEST_TIMEOUT}), not {value!r}"
        )
    return number


def _polls(value: object, refuse: Refuse) -> int:
    number = _number(value, 16)
    if not 1 <= number < math.inf or number != int(number):
        raise refuse("max_concurrency", f"must be a whole number from 1, not {value!r}")
    return int(number)


def _number(value: object, default: float) -> float:
    if value is None or value == "":
        return default
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _analysis_request(entity_id: str, analysis: str, account_id: str | None = None) -> Request:
    path = f"entity/{quote(check_id('entity_id', entity_id), safe='')}/{check_analysis(analysis)}/"
    if account_id is not None:
        path += f"?{urlencode({'account_id': check_id('account_id', account_id)}, quote_via=quote, safe='')}"
    return Request(analysis, "GET", path)


def _check_entity(request: Request, entity_id: str, answer: _Analysis) -> None:
    if answer.entity_id is not None and answer.entity_id != entity_id:
        raise BankConnectResponseError(
            f"{request.call}: HTTP 200, but the answer is about another entity than was asked for", status=200
        )


def _finite_json(body: bytes) -> dict[str, Any]:
    """Read what the models have taken for an object.

    :raises ValueError: a number in it is none: NaN, Infinity, or one like ``1e999`` that would be read as that.
    """
    data: dict[str, Any] = from_json(body, allow_inf_nan=False)
    left: list[object] = [data]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, float) and math.isinf(value):
            raise ValueError("too large")
    return data


M = TypeVar("M", bound=_Model)


def _read(model: type[M], request: Request, answer: Answer, **context: object) -> M:
    _refuse_costly(request, answer)
    try:
        return model.model_validate_json(answer.body, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:3])
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        expected = ", ".join(model.model_fields)
        raise BankConnectResponseError(
            f"{request.call}: HTTP {answer.status}, but not the documented JSON (with {expected}): {said}{more}",
            status=answer.status,
        ) from None


def _refuse_costly(request: Request, answer: Answer) -> None:
    # Those within texts are counted in: looking closer would be reading it.
    objects = answer.body.count(b"{") + answer.body.count(b"[")
    if objects > MAX_ANSWER_OBJECTS or answer.body.count(b",") > MAX_ANSWER_VALUES:
        raise BankConnectResponseError(
            f"{request.call}: HTTP {answer.status}, but the answer has more than {MAX_ANSWER_OBJECTS} lists and "
            f"objects, or more than {MAX_ANSWER_VALUES} values, and was not read",
            status=answer.status,
        )
