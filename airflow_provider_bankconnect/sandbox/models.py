"""The sandbox's inputs (statements, faults) and its records (requests, deliveries, received webhooks)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Analysis = Literal[
    "transactions",
    "accounts",
    "identity",
    "salary",
    "recurring_transactions",
    "lender_transactions",
    "get_expense_categories",
    "top_credits_debits",
    "monthly_analysis_updated",
    "xlsx_report",
    "predictors",
    "score",
]
Call = Literal["update_webhook", "webhook_payloads", "entities", "entity", "get_pdfs", Analysis]
# "file" is the fetch of a report or a PDF by its link; "webhook" is what the sandbox itself sends.
FaultCall = Literal["*", Call, "file", "webhook"]
TransactionStatus = Literal["sent", "absent", "ahead"]
ANALYSES: Final = get_args(Analysis)
CALLS: Final = get_args(Call)

FaultKind = Literal[
    "status",
    "delay",
    "reset",
    "garbage",
    "half",
    "redirect",
    "firewall",
    "forget",
    "stale",
    "switch",
    "shuffle",
    "extra",
    "interim",
    "long_header",
    "encoding",
    "drop",
    "duplicate",
    "late",
    "reorder",
    "replay",
    "forge",
]
KINDS: Final[dict[FaultKind, str]] = {
    "status": "answer this status, with BankConnect's JSON or with a body of your own",
    "delay": "answer this many seconds later",
    "reset": "a TCP reset instead of the answer",
    "garbage": "200 with HTML instead of JSON",
    "half": "the first half of the answer, then the end of the connection",
    "redirect": "302 to another url",
    "firewall": "403 with HTML, as a firewall in front of BankConnect sends it; Retry-After and the body can be given",
    "forget": "a kept connection that was idle for this many seconds gets no answer any more, and is not closed; "
    "0: each connection gets one answer. A new connection works",
    "stale": "the answer of this many seconds ago",
    "switch": "connections made before the fault begins keep getting the answers of that moment; newer ones get the "
    "current ones",
    "shuffle": "the rows in another order",
    "extra": "unknown fields at every level",
    "interim": "interim answers (102, 103) before the answer; with delay: before the delay",
    "long_header": "a header of this size",
    "encoding": "a Content-Encoding header; the body is not encoded",
    "drop": "do not send the webhook",
    "duplicate": "send it twice",
    "late": "send it this many seconds later",
    "reorder": "hold it back this many seconds, or until after the next one",
    "replay": "send an earlier webhook again after it",
    "forge": "send a webhook that says completed when the statement begins",
}
WEBHOOK_KINDS: Final = ("drop", "duplicate", "late", "reorder", "replay", "forge")
# These replace the answer, at most one of them; the others change it, and several may be applied to one answer.
ENDINGS: Final = ("status", "reset", "garbage", "half", "redirect", "firewall", "forget")

MOST_FILE_BYTES: Final = 512 * 2**20

_KEYS: Final = {"x-api-key", "server-hash"}
_FIELD_OF_KIND: Final = {
    "interim_status": "interim",
    "count": "interim",
    "size": "long_header",
    "content_encoding": "encoding",
}
# An HTTP date has a year of four digits.
_LONGEST_DATE: Final = 100 * 365 * 86_400.0


def plain(number: float) -> str:
    """Write a number in digits, without an exponent and without a needless fraction."""
    return str(int(number)) if number.is_integer() else format(Decimal(repr(number)), "f")


def _number_or_text(value: object) -> object:
    # Text that is not written as the sandbox writes a number stays text, so that it is sent as given.
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) and plain(number) == value else value
    return value


def _header_value(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and value == value.strip()):
        raise ValueError("must be printable ASCII, with no blank at either end: it is sent in a header")
    return value


_HeaderText = Annotated[str, AfterValidator(_header_value)]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statement(_Input):
    """One statement of a customer, or one failed login, and the time of its end.

    Seconds count from the moment at which it is added: for those given at the start, from the start.
    """

    link_id: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="the link that the SDK was given; left out: a statement without a link"
    )
    entity_id: str | None = Field(
        default=None,
        description="the customer; left out: the link's, or a new one; '': a failed login of which no entity is named",
    )
    statement_id: str | None = Field(
        default=None, description="left out: a new one; '' with progress failed: a login that failed before any upload"
    )
    mode: Literal["online", "pdf"] = Field(default="online", description="net banking, or a manual upload")
    after: float = Field(default=0.0, description="seconds until it ends; negative: it ended that long ago")
    progress: Literal["completed", "failed"] = Field(default="completed", description="how it ends")
    reason: str | None = Field(default=None, description="the vendor's reason of a failure; left out: a default")
    begins: float | None = Field(
        default=None,
        description="seconds until it is processing; left out: 0. For a statement that is processed a second time",
    )
    processing_as: Literal["processing", "null"] = Field(
        default="processing", description="its status in `progress` while it is processing"
    )
    later: dict[Analysis, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="analyses that complete this many seconds after the statement itself"
    )
    transactions: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="how many it has; left out: a few dozen, from the seed"
    )
    account: Annotated[int, Field(ge=0)] = Field(
        default=0, description="which of the entity's accounts it is of, counted from 0"
    )
    file_bytes: Annotated[int, Field(ge=1, le=MOST_FILE_BYTES)] | None = Field(
        default=None,
        description="the size of its PDF; the workbook of its account has that of the account's largest. Left out, or "
        "smaller than the content: as large as the content",
    )
    pdf_password: str | None = Field(
        default=None, repr=False, description="for mode pdf: the password of its PDF, which get_pdfs answers in clear"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Statement:
        if self.statement_id == "" and (self.progress, self.mode) != ("failed", "online"):
            raise ValueError("a blank statement_id is a failed login: it needs progress 'failed' and mode 'online'")
        if self.entity_id == "" and self.statement_id != "":
            raise ValueError("a blank entity_id is for a failed login only: it needs statement_id '' as well")
        if self.statement_id == "" and (self.account or self.file_bytes):
            raise ValueError("account and file_bytes are of a statement: a failed login has none")
        if self.pdf_password is not None and self.mode != "pdf":
            raise ValueError("pdf_password is for a manual upload: it needs mode 'pdf'")
        if self.begins is not None and self.begins > self.after:
            raise ValueError(f"begins ({self.begins:g}) must not come later than after ({self.after:g})")
        return self


class Fault(_Input):
    """One fault: what it does, to which call, when and how often. Seconds count from the moment at which it is added.

    Request kinds: ``status``, ``delay``, ``reset``, ``garbage``, ``half``, ``redirect``, ``firewall``, ``forget``,
    ``stale``, ``switch``, ``shuffle``, ``extra``, ``interim``, ``long_header``, ``encoding``. Webhook kinds: ``drop``,
    ``duplicate``, ``late``, ``reorder``, ``replay``, ``forge``. ``--help`` of the command says what each does.
    """

    kind: FaultKind = Field(description="what it does")
    call: FaultCall = Field(default="*", description="to which call; '*' is any. Webhook kinds: '*' or 'webhook'")
    times: Annotated[int, Field(ge=1)] | None = Field(default=None, description="how often at most; left out: no limit")
    probability: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="how likely, each time")
    after: Annotated[float, Field(ge=0)] = Field(default=0.0, description="seconds until it begins")
    until: Annotated[float, Field(gt=0)] | None = Field(default=None, description="seconds until it ends")
    status: Annotated[int, Field(ge=200, le=599)] = Field(default=503, description="for status")
    retry_after: Annotated[float | str | None, BeforeValidator(_number_or_text), AfterValidator(_header_value)] = Field(
        default=None, description="for status and firewall: seconds, such as 8.5, or any text, sent unchanged"
    )
    retry_after_form: Literal["seconds", "date"] = Field(
        default="seconds", description="whether those seconds are sent as an HTTP date"
    )
    body: str | None = Field(default=None, description="for status, garbage and firewall: this body")
    content_type: _HeaderText | None = Field(default=None, description="of that body; left out: guessed from it")
    seconds: Annotated[float, Field(ge=0)] = Field(default=1.0, description="for delay, stale, late, reorder, forget")
    url: _HeaderText = Field(default="https://elsewhere.invalid/", description="for redirect")
    interim_status: Annotated[int, Field(ge=100, le=199)] = Field(
        default=103, description="for interim: their status; 101, which no client may skip, can be tried as well"
    )
    count: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="for interim: how many")
    size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=9_000, description="for long_header: the bytes of its value"
    )
    content_encoding: _HeaderText = Field(
        default="UTF-8",
        description="for encoding: the header's value, such as none; a comma is written \\, in an option",
    )
    connections: Literal["any", "old"] = Field(
        default="any", description="old: only on connections made before the fault begins; one of"
    )

    @property
    def is_for_webhooks(self) -> bool:
        """Whether the fault applies to webhooks and not to answers."""
        return self.kind in WEBHOOK_KINDS

    @property
    def is_for_old_connections(self) -> bool:
        """Whether the fault applies only to connections that were made before it begins."""
        return self.connections == "old" or self.kind == "switch"

    def retry_after_header(self, now: datetime) -> str | None:
        """Return the ``Retry-After`` of an answer that is sent ``now``, a time in UTC; None for none."""
        wait = self.retry_after
        if wait is None or isinstance(wait, str):
            return wait
        if self.retry_after_form == "date":
            return format_datetime(now + timedelta(seconds=wait), usegmt=True)
        return plain(wait)

    @model_validator(mode="after")
    def _is_consistent(self) -> Fault:
        if self.is_for_webhooks and self.call not in {"*", "webhook"}:
            raise ValueError(f"{self.kind} is for webhooks: call must be 'webhook' or left out, not {self.call!r}")
        if not self.is_for_webhooks and self.call == "webhook":
            raise ValueError(f"{self.kind} is for answers; the kinds for webhooks are {', '.join(WEBHOOK_KINDS)}")
        if self.until is not None and self.until <= self.after:
            raise ValueError(f"until ({self.until:g}) must come later than after ({self.after:g})")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Fault:
        for name, kind in _FIELD_OF_KIND.items():
            value = getattr(self, name)
            if self.kind != kind and value != type(self).model_fields[name].default:
                raise ValueError(f"{name} ({value!r}) is for {kind}, not for {self.kind}: leave it out")
        if self.connections == "old" and self.is_for_webhooks:
            raise ValueError(f"connections ('old') is for answers, and {self.kind} is for webhooks: leave it out")
        if self.kind == "firewall" and self.status not in {403, type(self).model_fields["status"].default}:
            raise ValueError(f"firewall answers 403: for {self.status} give kind 'status' and a body")
        if self.retry_after_form == "date" and self.retry_after is not None:
            if isinstance(self.retry_after, str):
                raise ValueError(
                    f"retry_after ({self.retry_after!r}) must be seconds, such as 90, to be sent as a date"
                )
            if abs(self.retry_after) > _LONGEST_DATE:
                wait = plain(self.retry_after)
                raise ValueError(f"retry_after ({wait}) must be at most {plain(_LONGEST_DATE)} to be sent as a date")
        return self


@dataclass(slots=True)
class Record:
    """One request to the mock API. ``status`` is None before the answer, and if a fault left none."""

    call: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    at: float
    connection: int
    status: int | None = None
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class Delivery:
    """One webhook that was sent. ``status`` is that of the endpoint's answer, or None."""

    url: str
    body: dict[str, object]
    at: float
    outcome: Literal["sending", "delivered", "refused", "unreachable", "dropped"] = "sending"
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook that the sandbox's own inbox received; ``body`` is its JSON."""

    body: object
    at: float


def without_keys(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers of a request with the values of the keys masked."""
    return {name: "***" if name in _KEYS else value for name, value in headers.items()}
