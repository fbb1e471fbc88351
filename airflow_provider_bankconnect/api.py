"""BankConnect's API as values: requests to send, answers read, errors, and the back-off between them.

Nothing here does I/O or imports Airflow. A call is a generator that yields a :class:`Request`, is sent the
:class:`Answer` to it, and returns the result; the hooks only carry bytes. Sources are BankConnect's page on webhooks
and, where that is silent, its REST API pages.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from email.utils import parsedate_to_datetime
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from pydantic_core import from_json

from airflow_provider_bankconnect import errors
from airflow_provider_bankconnect.answers import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_OBJECTS,
    MAX_ANSWER_VALUES,
    AnalysisAnswer,
    Answer,
    Entity,
    EntityPage,
    History,
    LostRow,
    PdfAnswer,
    Report,
    ReportAnswer,
    Request,
    StatementPdf,
    StatementProgress,
    WebhookPayload,
    finite_json,
    read_as,
    unexpected,
)
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
    "MAX_BACKOFF", "MAX_PAGES", "MAX_RETRIES", "Analysis", "Answer", "Call", "ConnectionSettings", "Entity", "Report",
    "Request", "Result", "StatementPdf", "StatementProgress", "WebhookMode", "WebhookPayload", "advance", "backoff",
    "check_analysis", "check_by_account", "check_id", "check_status", "check_webhook_url", "get_analysis",
    "get_analysis_body", "get_entities", "get_entity", "get_pdfs", "get_progress", "get_reports", "get_transactions",
    "get_webhook_payloads", "probe", "retry_after_seconds", "update_webhook",
]  # fmt: skip
__all__ += errors.__all__

MAX_RETRIES: Final = 3
MAX_BACKOFF: Final = 60.0
MAX_PAGES: Final = 1000
# Analyses that BankConnect filters by account.
_BY_ACCOUNT: Final = {
    "transactions", "salary", "recurring_transactions", "lender_transactions", "get_expense_categories",
}  # fmt: skip
# Their list is empty, with HTTP 200, until they are ready.
_EMPTY_UNTIL_READY: Final = {"xlsx_report": "reports", "predictors": "predictors", "score": "score"}
# A longer Retry-After would hold back all waits of a connection for a mistake of one answer.
_LONGEST_PAUSE: Final = 3600.0
_NUMBER: Final = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_COMPRESSIONS: Final = {
    "gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "dcb", "dcz",
}  # fmt: skip

T = TypeVar("T")
Call: TypeAlias = Generator[Request, Answer, T]


@dataclass(frozen=True)
class Result(Generic[T]):
    """The result of a call."""

    value: T


def advance(call: Call[T], answer: Answer | errors.BankConnectError | None = None) -> Request | Result[T]:
    """Drive a call one step: return its next request, or its result.

    :param answer: the answer to the last request, or the error that it ended with.
    """
    # The result is a value because a StopIteration cannot cross threads.
    try:
        if isinstance(answer, errors.BankConnectError):
            return call.throw(answer)
        return next(call) if answer is None else call.send(answer)
    except StopIteration as done:
        return Result(done.value)


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
    answer = yield request
    payloads = read_as(History, request, answer, timezone=timezone).payloads
    rows = [row for row in payloads if isinstance(row, WebhookPayload)]
    named = {row.statement_id for row in rows if row.statement_id}
    for place, row in enumerate(payloads):
        if isinstance(row, LostRow) and row.statement_id in named:
            problem = f"but payloads.{place} cannot be read, and other rows of its statement may be older"
            raise unexpected(request, answer, problem)
    return sorted(rows, key=lambda row: row.date_time, reverse=True)


def get_progress(entity_id: str | int, analysis: Analysis = "transactions") -> Call[list[StatementProgress]]:
    """Get the progress of one analysis of an entity."""
    entity_id = check_id("entity_id", entity_id)
    request = _analysis_request(entity_id, analysis)
    return _read_analysis(request, entity_id, (yield request)).progress


def get_analysis(entity_id: str | int, analysis: Analysis, account_id: str | int | None = None) -> Call[dict[str, Any]]:
    """Get BankConnect's whole answer to any analysis; refuse it while it is not ready.

    It is not ready while its own ``progress`` is empty or has a statement in progress, and while the list of
    ``xlsx_report``, ``predictors`` or ``score`` is empty.
    """
    _, _, data = yield from _ready_analysis(entity_id, analysis, account_id)
    return data


def get_analysis_body(entity_id: str | int, analysis: Analysis, account_id: str | int | None = None) -> Call[bytes]:
    """Get the answer that :func:`get_analysis` reads, as BankConnect sent it."""
    _, answer, _ = yield from _ready_analysis(entity_id, analysis, account_id)
    return answer.body


def get_reports(entity_id: str | int) -> Call[list[Report]]:
    """Get the links of the Excel reports, one for each account; refuse them while they are not ready."""
    request, answer, _ = yield from _ready_analysis(entity_id, "xlsx_report")
    reports = read_as(ReportAnswer, request, answer).reports
    if blank := sum(not report.link for report in reports):
        raise _not_ready(request, answer, f"{blank} of {len(reports)} reports have no link yet; try again later")
    return reports


def get_pdfs(entity_id: str | int) -> Call[list[StatementPdf]]:
    """Get the links and passwords of the PDFs of an entity's statements; refuse them while there are none."""
    entity_id = check_id("entity_id", entity_id)
    request = Request("get_pdfs", "GET", f"entity/{quote(entity_id, safe='')}/get_pdfs/")
    answer = yield request
    found = read_as(PdfAnswer, request, answer)
    _check_entity(request, answer, found.entity_id, entity_id)
    if not found.statements:
        raise _not_ready(request, answer, "its list 'statements' is still empty; try again later")
    return found.statements


def get_transactions(entity_id: str | int, account_id: str | int | None = None) -> Call[dict[str, Any]]:
    """Get BankConnect's whole answer to ``transactions``, as :func:`get_analysis` does."""
    return get_analysis(entity_id, "transactions", account_id)


def get_entities(link_id: str | int, *, most: int | None = None) -> Call[list[str]]:
    """Get the ids of all entities of a link, from all pages, in BankConnect's order.

    :param most: refuse a link with more entities than this.
    """
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
        listed = read_as(EntityPage, request, answer)
        ids = (entity.entity_id for entity in listed.results if entity.link_id == link_id)
        found |= dict.fromkeys(filter(None, ids))
        if most is not None:
            check_count(link_id, list(found), most)
        # BankConnect's own `next` is not followed: the keys go only to the connection's base URL.
        if not listed.next:
            return list(found)
    too_many = f"but still a next page after {MAX_PAGES}, or {MAX_ANSWER_BYTES // 2**20} MiB of them"
    raise unexpected(request, answer, too_many)


def check_count(link_id: str, entities: list[str], most: int) -> list[str]:
    """Return the entities of a link, or refuse more than ``most`` of them."""
    if len(entities) > most:
        raise errors.BankConnectLimitError(
            f"link {link_id!r} has more than {most} entities, and each of them would be asked for at every check: "
            "name one with entity_id"
        )
    return entities


def get_entity(entity_id: str | int) -> Call[Entity]:
    """Get one entity, with the link that it belongs to."""
    entity_id = check_id("entity_id", entity_id)
    request = Request("entity", "GET", f"entity/{quote(entity_id, safe='')}/")
    answer = yield request
    entity = read_as(Entity, request, answer)
    if entity.entity_id not in {"", entity_id}:
        raise unexpected(request, answer, "but the answer is about another entity")
    return entity


def probe() -> Call[list[str]]:
    """Get the entities of a random link: an empty list where the base URL is right, and otherwise 404."""
    return get_entities(str(uuid.uuid4()))


def check_status(request: Request, answer: Answer) -> Answer:
    """Return an answer with status 200; raise the error of any other status."""
    status, start = answer.status, f"{request.call}: HTTP {answer.status}:"
    if status == 200:
        # Every request asks for an uncompressed answer: a kilobyte of a compressed one can become a megabyte.
        names = {name.strip().lower() for name in (answer.encoding or "").split(",")}
        if not names & _COMPRESSIONS:
            return answer
        problem = f"but compressed (Content-Encoding: {', '.join(sorted(names & _COMPRESSIONS))}), which was not asked "
        raise unexpected(request, answer, f"{problem}for: is there a proxy that compresses?")
    retry_after = retry_after_seconds(answer.retry_after, answer.received_at)
    asked = f" (Retry-After: {retry_after:.0f} s)" if retry_after else ""
    if status == 403 and (answer.retry_after is not None or not _has_detail(answer.body)):
        raise errors.BankConnectForbiddenError(
            f"{start} not in BankConnect's form: a firewall or a proxy on the way may have refused the request{asked}. "
            "If it stays, check that this machine's address may call BankConnect, and the connection's keys",
            status=status,
            retry_after=retry_after,
        )
    if status in {401, 402, 403}:
        problem = "BankConnect refuses these keys. Check API Key and Server Hash of the connection"
        if status == 403:
            problem = (
                f"BankConnect refuses these keys, or your account is not enabled for {request.call}. Check API Key and "
                "Server Hash of the connection; if other calls work, ask FinBox to enable this one"
            )
        raise errors.BankConnectAuthError(f"{start} {problem}", status=status)
    if status == 404:
        raise errors.BankConnectNotFoundError(f"{start} unknown, or nothing there yet", status=status)
    if status == 429:
        raise errors.BankConnectRateLimitError(f"{start} too many calls{asked}", status=status, retry_after=retry_after)
    if status in {408, 425} or 500 <= status <= 599:
        raise errors.BankConnectServerError(
            f"{start} BankConnect failed{asked}", status=status, retry_after=retry_after
        )
    problem = "expected 200"
    if 300 <= status <= 399:
        problem = "a redirect, which is never followed: the keys would go with it. Check the connection's host"
    raise errors.BankConnectResponseError(f"{start} {problem}", status=status)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a ``Retry-After`` header (seconds or HTTP date), at most an hour.

    A number with a fraction is rounded up. Of several numbers, as of a header that was sent twice, the greatest counts.
    None: the header is absent, unreadable, negative or past.
    """
    text = (value or "").strip()
    numbers = [item.strip() for item in text.split(",") if item.strip()]
    if numbers and all(map(_NUMBER.fullmatch, numbers)):
        return float(math.ceil(min(max(map(float, numbers)), _LONGEST_PAUSE))) or None
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - now).total_seconds()
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 else None


def backoff(failures: int, *, jitter: float, retry_after: float | None = None) -> float:
    """Return the seconds to wait after a failure: exponential with full jitter, up to a minute.

    :param failures: the number of failures in a row, from 1.
    :param jitter: drawn by the caller from [0, 1).
    :param retry_after: the least number of seconds, as BankConnect asked for.
    """
    ceiling = min(MAX_BACKOFF, 2.0 ** min(failures - 1, 16))
    return max(jitter * ceiling, retry_after or 0.0)


def check_by_account(analysis: Analysis) -> None:
    """Refuse an ``account_id`` for an analysis that BankConnect does not filter by account.

    :raises ValueError: names the analysis and the ones that can be filtered.
    """
    if analysis not in _BY_ACCOUNT:
        allowed = ", ".join(sorted(_BY_ACCOUNT))
        raise ValueError(f"account_id cannot be given for {analysis}: BankConnect filters only {allowed}")


def _analysis_request(entity_id: str, analysis: Analysis, account_id: str | int | None = None) -> Request:
    path = f"entity/{quote(entity_id, safe='')}/{check_analysis(analysis)}/"
    if account_id is not None:
        check_by_account(analysis)
        path += f"?{urlencode({'account_id': check_id('account_id', account_id)}, quote_via=quote, safe='')}"
    return Request(analysis, "GET", path)


def _ready_analysis(
    entity_id: str | int, analysis: Analysis, account_id: str | int | None = None
) -> Call[tuple[Request, Answer, dict[str, Any]]]:
    entity_id = check_id("entity_id", entity_id)
    request = _analysis_request(entity_id, analysis, account_id)
    answer = yield request
    progress = _read_analysis(request, entity_id, answer).progress
    _check_progress(request, answer, progress)
    try:
        # The models skip unknown fields, and so did not check these.
        data = finite_json(answer.body)
    except ValueError:
        raise unexpected(request, answer, "but not JSON: it has NaN, Infinity or too large a number") from None
    name = _EMPTY_UNTIL_READY.get(analysis)
    if name and data.get(name) in ([], None):
        has_completed = any((item.status or "").lower() == "completed" for item in progress)
        later = "try again later" if has_completed else "no statement is completed, so it may stay empty"
        raise _not_ready(request, answer, f"its list {name!r} is still empty; {later}")
    return request, answer, data


def _read_analysis(request: Request, entity_id: str, answer: Answer) -> AnalysisAnswer:
    analysis = read_as(AnalysisAnswer, request, answer)
    _check_entity(request, answer, analysis.entity_id, entity_id)
    return analysis


def _check_entity(request: Request, answer: Answer, found: str | None, entity_id: str) -> None:
    if found not in {None, entity_id}:
        raise unexpected(request, answer, "but the answer is about another entity")


def _check_progress(request: Request, answer: Answer, progress: Sequence[StatementProgress]) -> None:
    total = len(progress)
    unfinished = sum((item.status or "").lower() not in {"completed", "failed"} for item in progress)
    if unfinished or not total:
        why = f"{unfinished} of {total} statements are still being processed" if total else "no statement yet"
        raise _not_ready(request, answer, f"{why}; wait for them with a sensor first")


def _has_detail(body: bytes) -> bool:
    """Return whether a refusal has the documented form. Source: "Authentication"."""
    try:
        refusal = from_json(body)
    except ValueError:
        return False
    return isinstance(refusal, dict) and isinstance(refusal.get("detail"), str)


def _not_ready(request: Request, answer: Answer, why: str) -> errors.BankConnectNotReadyError:
    return errors.BankConnectNotReadyError(f"{request.call}: HTTP {answer.status}: {why}", status=answer.status)
