"""What is told to the sandbox (statements, faults), and what it tells (requests, deliveries, the inbox)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ANALYSES: Final = ("transactions", "accounts", "identity", "salary", "recurring_transactions", "lender_transactions")

Analysis = Literal["transactions", "accounts", "identity", "salary", "recurring_transactions", "lender_transactions"]
FaultCall = Literal[
    "*",
    "update_webhook",
    "webhook_payloads",
    "entities",
    "entity",
    "transactions",
    "accounts",
    "identity",
    "salary",
    "recurring_transactions",
    "lender_transactions",
    "webhook",
]
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
# These take the place of the answer; the others change it, and several of them may meet in one.
ENDINGS: Final = ("status", "reset", "garbage", "half", "redirect")


def _number_if_it_is_one(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statement(_Told):
    """One statement of a customer, or one failed login, and when it is over.

    Seconds count from the moment it is played: for those given at the start, from the start.
    """

    link_id: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="as the SDK was given it; left out: a statement that no link can ask for"
    )
    entity_id: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the customer; left out: the link's, or a new one"
    )
    statement_id: str | None = Field(
        default=None, description="left out: a new one; '' with progress failed: a login that failed before any upload"
    )
    mode: Literal["online", "pdf"] = Field(default="online", description="net banking, or a manual upload")
    after: float = Field(default=0.0, description="seconds until it is over; negative: it was over that long ago")
    progress: Literal["completed", "failed"] = Field(default="completed", description="how it ends")
    reason: str | None = Field(default=None, description="the vendor's words for a failure; left out: some")
    begins: float | None = Field(
        default=None,
        description="seconds until it shows as processing; left out: at once. For a statement that is run again",
    )
    processing_as: Literal["processing", "null"] = Field(
        default="processing", description="its status in `progress` while it is going"
    )
    later: dict[Analysis, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="analyses that are done so many seconds after the statement itself"
    )
    transactions: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="how many it has; left out: a few dozen, by the seed"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Statement:
        if self.statement_id == "" and (self.progress, self.mode) != ("failed", "online"):
            raise ValueError("a blank statement_id is a failed login: it needs progress 'failed' and mode 'online'")
        if self.begins is not None and self.begins > self.after:
            raise ValueError(f"begins ({self.begins:g}) must not come later than after ({self.after:g})")
        return self


class Fault(_Told):
    """One way to misbehave: in what, when, how often. Seconds count from the moment it is set.

    Request kinds: ``status``, ``delay``, ``reset``, ``garbage``, ``half``, ``redirect``, ``stale``, ``shuffle``,
    ``extra``. Webhook kinds: ``drop``, ``duplicate``, ``late``, ``reorder``, ``replay``, ``forge``.
    """

    kind: FaultKind = Field(description="what happens")
    call: FaultCall = Field(default="*", description="to which call; '*' is any. Webhook kinds: '*' or 'webhook'")
    times: Annotated[int, Field(ge=1)] | None = Field(default=None, description="how often at most; left out: for ever")
    probability: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="how likely, each time")
    after: Annotated[float, Field(ge=0)] = Field(default=0.0, description="not in the first so many seconds")
    until: Annotated[float, Field(gt=0)] | None = Field(default=None, description="and no longer after so many")
    status: Annotated[int, Field(ge=200, le=599)] = Field(default=503, description="for status")
    retry_after: Annotated[float | str | None, BeforeValidator(_number_if_it_is_one)] = Field(
        default=None, description="for status: seconds, or any text as it stands"
    )
    retry_after_form: Literal["seconds", "date"] = Field(
        default="seconds", description="write those seconds as an HTTP date"
    )
    body: str | None = Field(default=None, description="for status and garbage: this body")
    content_type: str | None = Field(default=None, description="of that body; left out: guessed from it")
    seconds: Annotated[float, Field(ge=0)] = Field(default=1.0, description="for delay, stale, late, reorder")
    url: str = Field(default="https://elsewhere.invalid/", description="for redirect")

    @property
    def is_for_webhooks(self) -> bool:
        """Whether it is the webhooks that misbehave, and not the answers."""
        return self.kind in WEBHOOK_KINDS

    @model_validator(mode="after")
    def _makes_sense(self) -> Fault:
        if self.is_for_webhooks and self.call not in {"*", "webhook"}:
            raise ValueError(f"{self.kind} is about webhooks: call must be 'webhook' or left out, not {self.call!r}")
        if not self.is_for_webhooks and self.call == "webhook":
            raise ValueError(f"{self.kind} is about answers: for webhooks there are {', '.join(WEBHOOK_KINDS)}")
        if self.until is not None and self.until <= self.after:
            raise ValueError(f"until ({self.until:g}) must come later than after ({self.after:g})")
        return self


@dataclass(slots=True)
class Record:
    """One request to the vendor's API. ``status`` is None while it is unanswered, and after a reset."""

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
    """One webhook that was sent. ``status`` is the receiver's answer, if there was one."""

    url: str
    body: dict[str, object]
    at: float
    outcome: Literal["sending", "delivered", "refused", "unreachable", "dropped"] = "sending"
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook that the sandbox's own inbox took; ``body`` is its JSON."""

    body: object
    at: float
