"""The gates: what each asks BankConnect for, and which rules judge the answer.

A gate on ``transactions`` asks for ``identity`` first, whose items carry ``transaction_status``: kilobytes instead of
megabytes. It asks for ``transactions`` in the same poke when that says that all is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import StatementProgress, WebhookPayload, check_id
from airflow_provider_bankconnect.arguments import plain
from airflow_provider_bankconnect.expectation import Expectation, Verdict
from airflow_provider_bankconnect.gate import judge_customer, judge_history, judge_progress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo
    from typing import Self

    from airflow_provider_bankconnect.api import Analysis

# Each entity of a link is asked for at every poke.
MAX_ENTITIES: Final = 50
# The beginning of the poll key of a gate that does not use the small answers.
IN_FULL: Final = "in full"
_FORBIDDEN: Final = 403
_STATES: Final = {"processing", "completed", "failed"}
_ABSENT: Final = "identity/ has no transaction_status, or an unknown one"
_AHEAD: Final = "identity/ says that the transactions are over, and transactions/ does not"
_BEHIND: Final = "identity/ has no statement, and transactions/ has"
_AT_LAST: Final = datetime.max.replace(tzinfo=UTC)

Items: TypeAlias = Sequence[StatementProgress]


@dataclass(frozen=True)
class Records:
    """What one poke learned of a customer.

    :param rows: the payload history of the link.
    :param items: the progress of ``transactions`` of each entity.
    :param distrust: why the small answers cannot be used for this customer; ``""`` if they can.
    :param stranger: why the entity is not one of the link; ``""`` if it is.
    """

    rows: Sequence[WebhookPayload] = ()
    items: Mapping[str, Items] = field(default_factory=dict)
    distrust: str = ""
    stranger: str = ""

    def __len__(self) -> int:
        return len(self.rows) + sum(map(len, self.items.values()))


@dataclass(frozen=True)
class _Gate:
    """What a sensor waits for. ``names`` are those of its arguments."""

    expectation: Expectation
    names: ClassVar[tuple[str, ...]]
    # Those that are fields of the gate, not of its expectation.
    own_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, **arguments: Any) -> Self:  # noqa: ANN401 - checked below
        """Make a gate of the arguments of its sensor or trigger.

        :raises ValueError: an argument is invalid; the message names it.
        """
        own = {name: arguments.pop(name) for name in cls.own_names if name in arguments}
        return cls(Expectation.parse(**arguments), **own)

    def in_full(self) -> Self:
        """Return the gate that does not use the small answers."""
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the arguments, in types that every Airflow serializes."""
        return {name: plain(getattr(self.expectation, name, getattr(self, name, None))) for name in self.names}


@dataclass(frozen=True)
class HistoryGate(_Gate):
    """A gate on the payload history of ``expectation.link_id``."""

    names = ("link_id", "entity_id", "statement_id", "since", "expected_statements", "failure_grace")

    def __post_init__(self) -> None:
        check_id("link_id", self.expectation.link_id)

    def __str__(self) -> str:
        return f"payload history of link {self.expectation.link_id!r}"

    @property
    def poll_key(self) -> tuple[str, ...]:
        """What is asked for: equal for gates that one answer serves."""
        return ("webhook_payloads", self.expectation.link_id or "")

    def ask(self, timezone: tzinfo) -> api.Call[list[WebhookPayload]]:
        """Ask for the payload history; ``timezone`` is that of the vendor's ``date_time``."""
        return api.get_webhook_payloads(self.expectation.link_id or "", timezone)

    def judge(self, rows: Iterable[WebhookPayload], now: datetime) -> Verdict:
        """Judge the rows of the answer."""
        return judge_history(self.expectation, rows, now)


@dataclass(frozen=True)
class ProgressGate(_Gate):
    """A gate on the ``progress`` of one analysis of ``expectation.entity_id``."""

    names = ("entity_id", "analysis", "statement_id", "expected_statements")
    own_names = ("analysis",)
    analysis: Analysis = "transactions"
    is_in_full: bool = False

    def __post_init__(self) -> None:
        check_id("entity_id", self.expectation.entity_id)
        api.check_analysis(self.analysis)

    def __str__(self) -> str:
        return f"progress of {self.analysis} of entity {self.expectation.entity_id!r}"

    def in_full(self) -> Self:
        """Return the gate that does not use the small answers."""
        is_needed = self.analysis == "transactions" and not self.is_in_full
        return replace(self, is_in_full=True) if is_needed else self

    @property
    def poll_key(self) -> tuple[str, ...]:
        """What is asked for: equal for gates that one answer serves."""
        key = (self.analysis, self.expectation.entity_id or "")
        return _key(key, self.expectation, is_in_full=self.is_in_full) if self.analysis == "transactions" else key

    def ask(self, timezone: tzinfo) -> api.Call[Records] | api.Call[list[StatementProgress]]:  # noqa: ARG002 - no times
        """Ask for the progress."""
        entity_id = self.expectation.entity_id or ""
        if self.analysis != "transactions":
            return api.get_progress(entity_id, self.analysis)
        return _ask_transactions([entity_id], lambda items: self._judge(items[entity_id]), is_in_full=self.is_in_full)

    def judge(self, rows: Records | Iterable[StatementProgress], now: datetime) -> Verdict:  # noqa: ARG002 - likewise
        """Judge the rows of the answer."""
        return self._judge(rows.items[self.expectation.entity_id or ""] if isinstance(rows, Records) else rows)

    def _judge(self, items: Iterable[StatementProgress]) -> Verdict:
        return judge_progress(self.expectation, items)


@dataclass(frozen=True)
class CustomerGate(_Gate):
    """A gate on both records of a customer: the payload history of a link, and the progress of its entities.

    It needs ``expectation.link_id``, or ``entity_id``, or both.
    """

    names = (*HistoryGate.names, "announced", "announced_until")
    is_in_full: bool = False

    def __post_init__(self) -> None:
        if self.expectation.link_id is None and self.expectation.entity_id is None:
            raise ValueError("link_id or entity_id must be given")

    def __str__(self) -> str:
        link_id, entity_id = self.expectation.link_id, self.expectation.entity_id
        names = (f"link {link_id!r}" if link_id else "", f"entity {entity_id!r}" if entity_id else "")
        return f"statements of {' and '.join(filter(None, names))}"

    def in_full(self) -> Self:
        """Return the gate that does not use the small answers."""
        return self if self.is_in_full else replace(self, is_in_full=True)

    @property
    def poll_key(self) -> tuple[str, ...]:
        """What is asked for: equal for gates that one answer serves."""
        since = str(self.expectation.since or "")
        key = ("customer", self.expectation.link_id or "", self.expectation.entity_id or "", since)
        return _key(key, self.expectation, is_in_full=self.is_in_full)

    def ask(self, timezone: tzinfo) -> api.Call[Records]:
        """Ask for the history of the link, for its entities, and for the progress of each."""
        link_id, entity_id = self.expectation.link_id, self.expectation.entity_id
        rows: list[WebhookPayload] = []
        entities = [] if entity_id is None else [entity_id]
        if link_id is not None:
            try:
                rows = yield from api.get_webhook_payloads(link_id, timezone)
            except api.BankConnectNotFoundError:
                rows = []
            if entity_id is None:
                entities = yield from self._ask_entities(link_id, rows)
            elif (entity := (yield from api.get_entity(entity_id))).link_id != link_id:
                whose = "no link" if entity.link_id is None else f"link {entity.link_id!r}"
                return Records(rows, stranger=f"entity {entity_id!r} is of {whose}, not of link {link_id!r}")
        # A failure that counts only later must be confirmed too: the time of the verdict is not known here.
        found = yield from _ask_transactions(
            entities,
            lambda items: judge_customer(self.expectation, rows, items, _AT_LAST),
            is_in_full=self.is_in_full,
            is_optional=link_id is not None,
        )
        return replace(found, rows=rows)

    def _ask_entities(self, link_id: str, rows: list[WebhookPayload]) -> api.Call[list[str]]:
        """Ask for the entities of the link, and add those that only its history names."""
        try:
            listed = yield from api.get_entities(link_id, most=MAX_ENTITIES)
        except api.BankConnectNotFoundError:
            # With both answers 404, nothing is there yet, or the path in the connection's host is wrong.
            if not rows:
                raise
            listed = []
        named = (row.entity_id for row in rows if row.link_id == link_id)
        return api.check_count(link_id, list(dict.fromkeys((*listed, *filter(None, named)))), MAX_ENTITIES)

    def judge(self, rows: Records, now: datetime) -> Verdict:
        """Judge the answers."""
        if rows.stranger:
            return Verdict("pending", (), rows.stranger)
        return judge_customer(self.expectation, rows.rows, rows.items, now)


Gate: TypeAlias = HistoryGate | ProgressGate | CustomerGate


def _key(key: tuple[str, ...], expectation: Expectation, *, is_in_full: bool) -> tuple[str, ...]:
    """Return a poll key. Whether the answers in full are asked for depends on what is expected."""
    full = (IN_FULL,) if is_in_full else ()
    return (*full, *key, str(expectation.needed), *sorted(set(expectation.statement_id or ())))


def _ask_transactions(
    entities: Sequence[str],
    judge: Callable[[Mapping[str, Items]], Verdict],
    *,
    is_in_full: bool,
    is_optional: bool = False,
) -> api.Call[Records]:
    """Ask for the progress of the transactions of each entity, with small answers while they say: not yet.

    :param is_optional: whether an entity without an answer counts as one without statements.
    """
    items: dict[str, Items] = {}
    small: set[str] = set()
    distrust = ""
    for entity_id in entities:
        is_behind = False
        if not is_in_full:
            found, why = yield from _ask_small(entity_id)
            if found:
                items[entity_id] = found
                small.add(entity_id)
                continue
            is_behind, distrust = found is not None, distrust or why
        items[entity_id] = yield from _ask_in_full(entity_id, is_optional=is_optional)
        if items[entity_id] and is_behind:
            distrust = distrust or _BEHIND
    verdict = judge(items)
    while small and verdict.state != "pending":
        named = {row.entity_id for row in verdict.rows}
        # Any entity may have a statement in progress, which keeps a failure from counting.
        if not (decisive := sorted(small if verdict.state == "failed" else small & named)):
            break
        for entity_id in decisive:
            items[entity_id] = yield from _ask_in_full(entity_id, is_optional=is_optional)
        small.difference_update(decisive)
        verdict = judge(items)
        if verdict.state == "pending":
            distrust = distrust or _AHEAD
    return Records(items=items, distrust=distrust)


def _ask_small(entity_id: str) -> api.Call[tuple[Items | None, str]]:
    """Return the state of the transactions as ``identity`` has it; None, and why, if that cannot be used."""
    try:
        items = yield from api.get_progress(entity_id, "identity")
    except api.BankConnectNotFoundError:
        return (), ""
    except (api.BankConnectAuthError, api.BankConnectResponseError) as error:
        # 403 may mean that only this call is not enabled.
        if isinstance(error, api.BankConnectAuthError) and error.status != _FORBIDDEN:
            raise
        return None, f"identity/ cannot be used: {error}"
    except (api.BankConnectServerError, api.BankConnectForbiddenError, api.BankConnectConnectionError) as error:
        if error.retry_after is not None:
            raise
        # A fault of this call alone must not hold up the wait.
        return None, ""
    states = [(item.transaction_status or "").strip().lower() for item in items]
    if not set(states) <= _STATES:
        return None, _ABSENT
    return [item.model_copy(update={"status": state}) for item, state in zip(items, states, strict=True)], ""


def _ask_in_full(entity_id: str, *, is_optional: bool) -> api.Call[Items]:
    try:
        return (yield from api.get_progress(entity_id, "transactions"))
    except api.BankConnectNotFoundError:
        if is_optional:
            return ()
        raise
