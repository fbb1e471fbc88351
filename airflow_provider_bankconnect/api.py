"""BankConnect's API as values: requests to send, answers read, errors, and the back-off between them.

Nothing here does I/O or imports Airflow. A call is a generator that yields a :class:`Request`, is sent the
:class:`Answer` to it, and returns the result; the hooks only carry bytes. Sources are BankConnect's page on webhooks
and, where that is silent, its REST API pages.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationError, ValidationInfo
from pydantic_core import from_json

from airflow_provider_bankconnect import errors
from airflow_provider_bankconnect.arguments import (
    ANALYSES,
    Analysis,
    WebhookMode,
    check_analysis,
    check_id,
    check_webhook_url,
)
from airflow_provider_bankconnect.connection import DEFAULT_BASE_URL, DEFAULT_PATH, ConnectionSettings
from airflow_provider_bankconnect.errors import *  # noqa: F403 - they are public here

__all__ = [
    "ANALYSES", "DEFAULT_BASE_URL", "DEFAULT_PATH", "MAX_ANSWER_BYTES", "MAX_ANSWER_OBJECTS", "MAX_ANSWER_VALUES",
    "MAX_BACKOFF", "MAX_PAGES", "MAX_RETRIES", "Analysis", "Answer", "Call", "ConnectionSettings", "Request", "Result",
    "StatementProgress", "WebhookMode", "WebhookPayload", "advance", "backoff", "check_analysis", "check_id",
    "check_status", "check_webhook_url", "get_entities", "get_progress", "get_transactions", "get_webhook_payloads",
    "probe", "retry_after_seconds", "update_webhook",
]  # fmt: skip
__all__ += errors.__all__

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
# A byte of JSON can become hundreds of bytes of memory: 64 MiB of nested lists became ten gigabytes.
MAX_ANSWER_OBJECTS: Final = 250_000
MAX_ANSWER_VALUES: Final = 4_000_000
MAX_RETRIES: Final = 3
MAX_BACKOFF: Final = 60.0
MAX_PAGES: Final = 1000
# Thirty years: adding more to a datetime can overflow.
_LONGEST: Final = 1e9

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request to send. ``path`` is relative to the base URL and encoded, as is the query in it."""

    call: str
    method: str
    path: str
    json: Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer:
    """One HTTP answer.

    :param retry_after: the header ``Retry-After``.
    :param received_at: an aware time.
    :param encoding: the header ``Content-Encoding``.
    """

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = None
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    encoding: str | None = None


Call: TypeAlias = Generator[Request, Answer, T]


@dataclass(frozen=True)
class Result(Generic[T]):
    """The result of a call."""

    value: T


def advance(call: Call[T], answer: Answer | None = None) -> Request | Result[T]:
    """Drive a call one step: return its next request, or its result."""
    # The result is a value because a StopIteration cannot cross threads.
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

    ``statement_id`` is ``""`` for a net banking attempt that failed before any upload, and ``link_id`` is None for a
    manual upload without a link. ``date_time`` (aware, UTC, whole seconds) is when the webhook was due.
    """

    statement_id: Annotated[str, BeforeValidator(_blank_for_none)]
    entity_id: Annotated[str, AfterValidator(_not_blank)]
    link_id: str | None
    progress: str
    reason: Annotated[str, BeforeValidator(_blank_for_none)]
    date_time: Annotated[datetime, BeforeValidator(_vendor_time)]


class StatementProgress(_Model):
    """One statement in the ``progress`` of an analysis. A null ``status`` means in progress."""

    statement_id: Annotated[str, AfterValidator(_not_blank)]
    status: str | None
    source: str | None = None
    message: str | None = None


# Validation stops at the first bad row: the errors of a megabyte of bad rows took two gigabytes.
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
    """Register the account's one endpoint. The mode is always sent: an update without it resets it."""
    body = {
        "webhook_url": check_webhook_url(webhook_url, allow_private_host=allow_private_host),
        "webhook_mode": int(WebhookMode.parse(webhook_mode)),
    }
    yield Request("update_webhook", "POST", "entity/update_webhook/", body)


def get_webhook_payloads(link_id: str | int, timezone: tzinfo) -> Call[list[WebhookPayload]]:
    """Get all payloads of a link, newest first."""
    query = urlencode({"link_id": check_id("link_id", link_id)}, quote_via=quote, safe="")
    request = Request("webhook_payloads", "GET", f"entity/webhook_payloads/?{query}")
    history = _read(_History, request, (yield request), timezone=timezone)
    return sorted(history.payloads, key=lambda row: row.date_time, reverse=True)


def get_progress(entity_id: str | int, analysis: Analysis = "transactions") -> Call[list[StatementProgress]]:
    """Get the progress of one analysis of an entity."""
    entity_id = check_id("entity_id", entity_id)
    request = _analysis_request(entity_id, analysis)
    return _read_analysis(request, entity_id, (yield request)).progress


def get_transactions(entity_id: str | int, account_id: str | int | None = None) -> Call[dict[str, Any]]:
    """Get BankConnect's whole answer; refuse it while its ``progress`` is empty or has a statement in progress."""
    entity_id = check_id("entity_id", entity_id)
    request = _analysis_request(entity_id, "transactions", account_id)
    answer = yield request
    progress = _read_analysis(request, entity_id, answer).progress
    total = len(progress)
    unfinished = sum((item.status or "").lower() not in {"completed", "failed"} for item in progress)
    if unfinished or not total:
        why = f"{unfinished} of {total} statements are still being processed" if total else "no statement yet"
        raise errors.BankConnectNotReadyError(
            f"{request.call}: HTTP {answer.status}: {why}; wait for them with a sensor first", status=answer.status
        )
    try:
        # The models skip unknown fields, and so did not check these.
        return _finite_json(answer.body)
    except ValueError:
        raise _unexpected(request, answer, "but not JSON: it has NaN, Infinity or too large a number") from None


def get_entities(link_id: str | int) -> Call[list[str]]:
    """Get the ids of all entities of a link, from all pages, in BankConnect's order."""
    link_id = check_id("link_id", link_id)
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
        # BankConnect's own `next` is not followed: the keys go only to the connection's base URL.
        if not read.next:
            return list(found)
    too_many = f"but still a next page after {MAX_PAGES}, or {MAX_ANSWER_BYTES // 2**20} MiB of them"
    raise _unexpected(request, answer, too_many)


def probe() -> Call[list[str]]:
    """Get the entities of a random link: an empty list where the base URL is right, and otherwise 404."""
    return get_entities(str(uuid.uuid4()))


def check_status(request: Request, answer: Answer) -> Answer:
    """Return an answer with status 200; raise the error of any other status."""
    status, start = answer.status, f"{request.call}: HTTP {answer.status}:"
    if status == 200:
        # Every request asks for an uncompressed answer: a kilobyte of a compressed one can become a megabyte.
        if (answer.encoding or "").strip().lower() in {"", "identity"}:
            return answer
        problem = "but compressed, which was not asked for: is there a proxy that compresses?"
        raise _unexpected(request, answer, problem)
    if status in {401, 402, 403}:
        advice = "Check API Key and Server Hash of the connection"
        raise errors.BankConnectAuthError(f"{start} BankConnect refuses these keys. {advice}", status=status)
    if status == 404:
        raise errors.BankConnectNotFoundError(f"{start} unknown, or nothing there yet", status=status)
    retry_after = retry_after_seconds(answer.retry_after, answer.received_at)
    asked = f" (Retry-After: {retry_after:.0f} s)" if retry_after else ""
    if status == 429:
        raise errors.BankConnectRateLimitError(f"{start} too many calls{asked}", status=status, retry_after=retry_after)
    if 500 <= status <= 599:
        raise errors.BankConnectServerError(
            f"{start} BankConnect failed{asked}", status=status, retry_after=retry_after
        )
    problem = "expected 200"
    if 300 <= status <= 399:
        problem = "a redirect, which is never followed: the keys would go with it. Check the connection's host"
    raise errors.BankConnectResponseError(f"{start} {problem}", status=status)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a ``Retry-After`` header (seconds or HTTP date), or None: absent, unreadable or past."""
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
    """Return the seconds to wait after a failure: exponential with full jitter, up to a minute.

    :param failures: the number of failures in a row, from 1.
    :param jitter: drawn by the caller from [0, 1).
    :param retry_after: the least number of seconds, as BankConnect asked for.
    """
    ceiling = min(MAX_BACKOFF, 2.0 ** min(failures - 1, 16))
    return max(jitter * ceiling, retry_after or 0.0)


def _analysis_request(entity_id: str, analysis: Analysis, account_id: str | int | None = None) -> Request:
    path = f"entity/{quote(entity_id, safe='')}/{check_analysis(analysis)}/"
    if account_id is not None:
        path += f"?{urlencode({'account_id': check_id('account_id', account_id)}, quote_via=quote, safe='')}"
    return Request(analysis, "GET", path)


def _read_analysis(request: Request, entity_id: str, answer: Answer) -> _Analysis:
    analysis = _read(_Analysis, request, answer)
    if analysis.entity_id not in {None, entity_id}:
        raise _unexpected(request, answer, "but the answer is about another entity")
    return analysis


def _unexpected(request: Request, answer: Answer, problem: str) -> errors.BankConnectResponseError:
    message = f"{request.call}: HTTP {answer.status}, {problem}"
    return errors.BankConnectResponseError(message, status=answer.status)


def _finite_json(body: bytes) -> dict[str, Any]:
    """Read an object; refuse NaN, Infinity, and a number like ``1e999`` that would be read as Infinity."""
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
    # Characters within strings count too: telling them apart would mean parsing.
    objects = answer.body.count(b"{") + answer.body.count(b"[")
    if objects > MAX_ANSWER_OBJECTS or answer.body.count(b",") > MAX_ANSWER_VALUES:
        most = f"more than {MAX_ANSWER_OBJECTS} lists and objects, or more than {MAX_ANSWER_VALUES} values"
        raise _unexpected(request, answer, f"but the answer has {most}, and was not read")
    try:
        return model.model_validate_json(answer.body, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:3])
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        problem = f"but not the documented JSON (with {', '.join(model.model_fields)}): {shown}{more}"
        raise _unexpected(request, answer, problem) from None
