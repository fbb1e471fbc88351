"""BankConnect's answers as models: what is read of each, and what a strange value in one costs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import from_json

from airflow_provider_bankconnect import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
# A byte of JSON can become hundreds of bytes of memory: 64 MiB of nested lists became ten gigabytes.
MAX_ANSWER_OBJECTS: Final = 250_000
MAX_ANSWER_VALUES: Final = 4_000_000

_USUAL_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d ([01]\d|2[0-3]):\d\d:\d\d", re.ASCII)
# A message shows this many problems of an answer.
_MOST_SHOWN: Final = 3

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


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def id_as_text(value: object) -> object:
    """Return an id as text: ``""`` if there is none, and the digits of a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if _is_blank(value) else value


def _id_or_none(value: object) -> object:
    text = id_as_text(value)
    return None if text == "" else text


def text_or_blank(value: object) -> str:
    """Return a text, and ``""`` for anything else."""
    return value if isinstance(value, str) and value.strip() else ""


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _vendor_time(value: object, info: ValidationInfo) -> datetime:
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC)
    try:
        naive = _read_time(value)
        return naive.replace(tzinfo=(info.context or {}).get("timezone", UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be YYYY-MM-DD HH:MM:SS") from None


def _read_time(text: Any) -> datetime:  # noqa: ANN401 - what is no text raises a TypeError
    # Reading a history with strptime alone takes a third longer.
    if _USUAL_TIME.fullmatch(text):
        return datetime.fromisoformat(text)
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 - the zone is the connection's


Id: TypeAlias = Annotated[str, BeforeValidator(id_as_text)]
IdOrNone: TypeAlias = Annotated[str | None, BeforeValidator(_id_or_none)]
Text: TypeAlias = Annotated[str, BeforeValidator(text_or_blank)]
TextOrNone: TypeAlias = Annotated[str | None, BeforeValidator(_text_or_none)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class WebhookPayload(_Model):
    """One row of a link's payload history. Source: "Handling cases when your webhook endpoint is down".

    ``statement_id`` is ``""`` for a net banking attempt that failed before any upload. ``entity_id`` is ``""`` where
    BankConnect names no entity; such a row never counts for an entity. ``link_id`` is None for a manual upload without
    a link. ``progress`` is ``""`` if the row has none, which means in progress. ``date_time`` (aware, UTC, whole
    seconds) is when the webhook was due.
    """

    statement_id: Id
    entity_id: Id = ""
    link_id: IdOrNone
    progress: Text = ""
    reason: Text = ""
    date_time: Annotated[datetime, BeforeValidator(_vendor_time)]


class StatementProgress(_Model):
    """One statement in the ``progress`` of an analysis. A null ``status`` means in progress.

    ``transaction_status`` is the state of the transactions. Only ``identity`` has it, and only since 2022.
    """

    statement_id: Id = ""
    status: TextOrNone = None
    source: TextOrNone = None
    message: TextOrNone = None
    transaction_status: TextOrNone = None

    @model_validator(mode="after")
    def _names_its_statement(self) -> StatementProgress:
        if not self.statement_id and (self.status or "").lower() == "completed":
            raise ValueError("a completed statement must have a statement_id")
        return self


@dataclass(frozen=True)
class LostRow:
    """A row of a history that could not be read and is no completed statement; of this statement, if of any."""

    statement_id: str


def _row_or_lost(value: object, read_row: ValidatorFunctionWrapHandler) -> object:
    """Read a row of a history. An unreadable row is lost alone only if it cannot be a completed statement."""
    try:
        return read_row(value)
    except ValidationError:
        if value is None:
            return LostRow("")
        if isinstance(value, dict) and "statement_id" in value:
            statement_id = id_as_text(value["statement_id"])
            has_failed = text_or_blank(value.get("progress")).lower() == "failed"
            if isinstance(statement_id, str) and (has_failed or not statement_id):
                return LostRow(statement_id)
        raise


# Validation stops at the first bad row: the errors of a megabyte of bad rows took two gigabytes.
_Rows: TypeAlias = Annotated[list[T], FailFast()]
_HistoryRow: TypeAlias = Annotated[WebhookPayload, WrapValidator(_row_or_lost)]


class History(_Model):
    """The answer of ``webhook_payloads``."""

    payloads: _Rows[_HistoryRow]


class AnalysisAnswer(_Model):
    """The answer of an analysis, as far as a gate needs it."""

    entity_id: IdOrNone = None
    progress: _Rows[StatementProgress]


class Report(_Model):
    """The Excel report of an account. Source: the vendor's REST API page on Excel reports.

    ``link`` is ``""`` while there is none. It is valid for one hour and needs no keys, so it is a secret.
    """

    account_id: Id
    link: Annotated[Text, Field(repr=False)] = ""


class ReportAnswer(AnalysisAnswer):
    """The answer of ``xlsx_report``."""

    reports: _Rows[Report]


class StatementPdf(_Model):
    """The PDF of a statement that was uploaded. Source: the vendor's REST API page on the PDFs of statements.

    ``link`` is valid for one hour and needs no keys, so it is a secret. It is ``""`` from 30 days after the upload on.
    ``password`` opens the PDF, and is None if it has none.
    """

    statement_id: Id
    account_id: IdOrNone = None
    bank: Annotated[Text, Field(validation_alias="bank_name")] = ""
    link: Annotated[Text, Field(validation_alias="pdf_url", repr=False)] = ""
    password: Annotated[IdOrNone, Field(validation_alias="pdf_password", repr=False)] = None


class PdfAnswer(_Model):
    """The answer of ``get_pdfs``. It has no ``progress``."""

    entity_id: IdOrNone = None
    statements: _Rows[StatementPdf]


class Entity(_Model):
    """One entity, as ``entity/`` and ``entity/<entity_id>/`` list it."""

    entity_id: Id = ""
    link_id: IdOrNone = None


class EntityPage(_Model):
    """One page of ``entity/``."""

    next: str | None
    results: _Rows[Entity]


def unexpected(request: Request, answer: Answer, problem: str) -> errors.BankConnectResponseError:
    """Return the error of an answer that is not as documented."""
    message = f"{request.call}: HTTP {answer.status}, {problem}"
    return errors.BankConnectResponseError(message, status=answer.status)


def finite_json(body: bytes) -> dict[str, Any]:
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


def read_as(model: type[M], request: Request, answer: Answer, **context: object) -> M:
    """Read an answer.

    :param context: what the model needs besides, such as the ``timezone`` of the vendor's times.
    :raises BankConnectResponseError: it is not the documented JSON, or too large; the message has no value of it.
    """
    # Characters within strings count too: telling them apart would mean parsing.
    objects = answer.body.count(b"{") + answer.body.count(b"[")
    if objects > MAX_ANSWER_OBJECTS or answer.body.count(b",") > MAX_ANSWER_VALUES:
        most = f"more than {MAX_ANSWER_OBJECTS} lists and objects, or more than {MAX_ANSWER_VALUES} values"
        raise unexpected(request, answer, f"but the answer has {most}, and was not read")
    try:
        return model.model_validate_json(answer.body, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:_MOST_SHOWN])
        more = f" and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        problem = f"but not the documented JSON (with {', '.join(model.model_fields)}): {shown}{more}"
        raise unexpected(request, answer, problem) from None
