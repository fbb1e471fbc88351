"""The sandbox's inputs (statements, faults) and its records (requests, deliveries, received webhooks)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
    "stale",
    "shuffle",
    "extra",
    "drop",
    "duplicate",
    "late",
    "reorder",
    "replay",
    "forge",
]
WEBHOOK_KINDS: Final = ("drop", "duplicate", "late", "reorder", "replay", "forge")
# These replace the answer, at most one of them; the others change it, and several may be applied to one answer.
ENDINGS: Final = ("status", "reset", "garbage", "half", "redirect")

_KEYS: Final = {"x-api-key", "server-hash"}


def _number_or_text(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


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
    pdf_password: str | None = Field(
        default=None, repr=False, description="for mode pdf: the password of its PDF, which get_pdfs answers in clear"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Statement:
        if self.statement_id == "" and (self.progress, self.mode) != ("failed", "online"):
            raise ValueError("a blank statement_id is a failed login: it needs progress 'failed' and mode 'online'")
        if self.entity_id == "" and self.statement_id != "":
            raise ValueError("a blank entity_id is for a failed login only: it needs statement_id '' as well")
        if self.pdf_password is not None and self.mode != "pdf":
            raise ValueError("pdf_password is for a manual upload: it needs mode 'pdf'")
        if self.begins is not None and self.begins > self.after:
            raise ValueError(f"begins ({self.begins:g}) must not come later than after ({self.after:g})")
        return self


class Fault(_Input):
    """One fault: what it does, to which call, when and how often. Seconds count from the moment at which it is added.

    Request kinds: ``status``, ``delay``, ``reset``, ``garbage``, ``half``, ``redirect``, ``stale``, ``shuffle``,
    ``extra``. Webhook kinds: ``drop``, ``duplicate``, ``late``, ``reorder``, ``replay``, ``forge``.
    """

    kind: FaultKind = Field(description="what it does")
    call: FaultCall = Field(default="*", description="to which call; '*' is any. Webhook kinds: '*' or 'webhook'")
    times: Annotated[int, Field(ge=1)] | None = Field(default=None, description="how often at most; left out: no limit")
    probability: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="how likely, each time")
    after: Annotated[float, Field(ge=0)] = Field(default=0.0, description="seconds until it begins")
    until: Annotated[float, Field(gt=0)] | None = Field(default=None, description="seconds until it ends")
    status: Annotated[int, Field(ge=200, le=599)] = Field(default=503, description="for status")
    retry_after: Annotated[float | str | None, BeforeValidator(_number_or_text)] = Field(
        default=None, description="for status: seconds, or any text, sent unchanged"
    )
    retry_after_form: Literal["seconds", "date"] = Field(
        default="seconds", description="whether those seconds are sent as an HTTP date"
    )
    body: str | None = Field(default=None, description="for status and garbage: this body")
    content_type: str | None = Field(default=None, description="of that body; left out: guessed from it")
    seconds: Annotated[float, Field(ge=0)] = Field(default=1.0, description="for delay, stale, late, reorder")
    url: str = Field(default="https://elsewhere.invalid/", description="for redirect")

    @property
    def is_for_webhooks(self) -> bool:
        """Whether the fault applies to webhooks and not to answers."""
        return self.kind in WEBHOOK_KINDS

    @model_validator(mode="after")
    def _is_consistent(self) -> Fault:
        if self.is_for_webhooks and self.call not in {"*", "webhook"}:
            raise ValueError(f"{self.kind} is for webhooks: call must be 'webhook' or left out, not {self.call!r}")
        if not self.is_for_webhooks and self.call == "webhook":
            raise ValueError(f"{self.kind} is for answers; the kinds for webhooks are {', '.join(WEBHOOK_KINDS)}")
        if self.until is not None and self.until <= self.after:
            raise ValueError(f"until ({self.until:g}) must come later than after ({self.after:g})")
        return self


@dataclass(slots=True)
class Record:
    """One request to the mock API. ``status`` is None before the answer and after a reset."""

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
