"""A webhook event: the five fields of a webhook, checked. Needs no Airflow."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from airflow_provider_bankconnect.receiver import names


def _refuse_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must have no NUL")
    return value


def _blank_for_none(value: object) -> object:
    return "" if value is None else value


def _none_for_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


# BankConnect's ids are UUIDs, and its links have up to 500 characters.
Id: TypeAlias = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_refuse_nul)]


class WebhookEvent(BaseModel):
    """The five fields of a webhook; all others are dropped. Source: "Receiving payload".

    ``statement_id`` is blank for an attempt that failed before any upload, and ``entity_id`` is blank where BankConnect
    names no entity. ``link_id`` is None for an upload without a link.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)

    entity_id: Annotated[Id, BeforeValidator(_blank_for_none)]
    statement_id: Annotated[Id, BeforeValidator(_blank_for_none)]
    link_id: Annotated[Id | None, BeforeValidator(_none_for_blank)]
    progress: Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_refuse_nul)]
    reason: Annotated[str, BeforeValidator(_blank_for_none), AfterValidator(_refuse_nul)] = ""

    @property
    def names_customer(self) -> bool:
        """Whether it names a link or an entity."""
        return bool(self.link_id or self.entity_id.strip())

    @property
    def key(self) -> str:
        """The partition key of the customer."""
        return names.partition_key(self.link_id, self.entity_id)

    @property
    def completion(self) -> Completion | None:
        """The completed statement, which is recorded once; None for any other event."""
        if self.progress.lower() == "completed" and self.statement_id.strip():
            return (self.link_id, self.entity_id, self.statement_id)
        return None

    def __str__(self) -> str:
        return f"{self.key!r}: statement {self.statement_id!r} of entity {self.entity_id!r} is {self.progress!r}"


Completion: TypeAlias = tuple[str | None, str, str]


def read_back(extra: object) -> WebhookEvent | None:
    """Return the webhook event of an asset event's extra, or None if somebody else created the asset event."""
    try:
        return WebhookEvent.model_validate(extra)
    except ValidationError:
        return None
