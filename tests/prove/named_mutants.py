"""Thirty-three mutants: small changes of the package's code, each of which breaks the theorem.

A change names a function and the source text that it replaces. It fails where either no longer exists.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import simulation

from airflow_provider_bankconnect.api import WebhookPayload

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Change:
    """Replaces source text of a function. ``more`` are names that the new text uses."""

    where: str
    old: str
    new: str
    more: dict[str, Any] = field(default_factory=dict)


def _claimed(now: Any) -> list[WebhookPayload]:
    """Return the bodies of the webhooks so far, as rows of the payload history."""
    recorded = simulation.current.trace.recorded
    return [WebhookPayload(**delivery.body, date_time=now) for _, delivery in recorded if delivery.how != "dropped"]


MUTANTS: dict[str, tuple[Change, ...]] = {
    "believes a webhook's body": (
        Change(
            "gate:judge_history",
            "_History(expectation, rows)",
            "_History(expectation, [*rows, *_claimed(now)])",
            {"_claimed": _claimed},
        ),
    ),
    "ignores since": (Change("gate:why_not_considered", "expectation.since is not None and", "False and"),),
    "counts attempts": (
        Change("gate:newest_of_each_statement", "if row.statement_id and", "if"),
        Change("gate:_completed_if_passed", "len(completed) >=", "completed and len(entity) >="),
    ),
    "adds up two entities": (Change("gate:_judge_history", "by_entity[row.entity_id]", 'by_entity[""]'),),
    "lets one old failure fail the gate": (
        Change(
            "gate:_judge_history",
            '_is(shown[0], "failed")',
            'any(_is(row, "failed") for row in shown)',
        ),
        Change(
            "gate:_failed_or_soon",
            "now - shown[0].date_time",
            'now - min(row.date_time for row in shown if _is(row, "failed"))',
        ),
    ),
    "takes an empty progress for done": (
        Change("gate:judge_progress", 'Verdict("pending", (), "no statement', 'Verdict("passed", (), "no statement'),
    ),
    "relative deadline": (
        Change(
            "triggers.bankconnect:_BankConnectTrigger.run",
            "event = await self._wait()",
            "wait = self.wait; wait.deadline = datetime.now(UTC) + (wait.deadline - wait.started); "
            "event = await self._wait()",
        ),
    ),
    "forgets Retry-After": (
        Change("api:check_status", "retry_after_seconds(answer.retry_after, answer.received_at)", "None"),
    ),
    "reads no fraction of a Retry-After": (
        Change("api:retry_after_seconds", "map(_NUMBER.fullmatch, numbers)", "map(str.isdigit, numbers)"),
    ),
    "keeps a Retry-After of any length": (
        Change("api:retry_after_seconds", "min(max(map(float, numbers)), _LONGEST_PAUSE)", "max(map(float, numbers))"),
    ),
    "tries a 408 or 425 as any other answer": (Change("api:check_status", "status in {408, 425} or ", ""),),
    "takes a 403 of a firewall for BankConnect's": (
        Change("api:check_status", "not _has_detail(answer.body)", "False"),
    ),
    "ends at the second 403 of a firewall": (
        Change("wait:Wait._is_final", "now - self._doubtful_since >= REPEAT_PATIENCE", "True"),
    ),
    "waits a whole interval after an event and an error": (
        Change("wait:Wait._schedule", "if self._echoes:", "if self._echoes and backoff is None:"),
    ),
    "takes the order of rows for time": (
        Change(
            "api:get_webhook_payloads",
            "sorted(rows, key=lambda row: row.date_time, reverse=True)",
            "rows",
        ),
        Change(
            "gate:_History.__init__",
            "{row for row in self.rows if why_not_considered(expectation, row) is None}",
            "dict.fromkeys(row for row in self.rows if why_not_considered(expectation, row) is None)",
        ),
        Change("gate:newest_of_each_statement", "or _newness(row) > _newness(newest[key])", "or False"),
    ),
    "passes on 404": (
        Change("wait:Wait.failed", 'Verdict("pending", (), str(error))', 'Verdict("passed", (), str(error))'),
    ),
    "drops the last poke": (
        Change("wait:Wait.next", "if not self._is_last_poke_made and not self._is_last_poke_paused(now):", "if False:"),
    ),
    "leaves out the last poke in a pause of any length": (
        Change("wait:Wait._is_last_poke_paused", "pause.seconds <= LONGEST_LAST_PAUSE and ", ""),
    ),
    "pokes for an event during a pause": (
        Change(
            "wait:Wait.notified", "max(self._rested, self._pause.until, self._settled, now)", "max(self._rested, now)"
        ),
    ),
    "keeps its connections after errors in a row": (
        Change("wait:Wait.needs_new_connection", "self._errors >= STREAK", "False"),
    ),
    "keeps its connections in a lasting 404": (
        Change("wait:Wait.needs_new_connection", "now - self._not_found_since >= NOT_FOUND_PATIENCE", "False"),
        Change("triggers.bankconnect:_BankConnectTrigger._test_call", "poller.use_new_connections()", "pass"),
    ),
    "uses a connection of any age": (
        Change("hooks.kept:KeptConnections.may_reuse", "now - life.opened >= GREATEST_AGE", "False"),
    ),
    "awaits an answer on a forgotten connection": (
        Change("hooks.async_http:AsyncTrip.connected", "patience is None or", "True or"),
    ),
    "sends no request again on a new connection": (
        Change("hooks.async_http:AsyncTrip.take_another_way", "self.now >= self.end", "True"),
    ),
    "keeps polling after success": (
        Change(
            "triggers.bankconnect:_BankConnectTrigger.run",
            "yield TriggerEvent(dict(event))",
            "yield TriggerEvent(dict(event)); self.wait._end = None; await self._wait()",
        ),
    ),
    "passes on the word of identity": (Change("records:_ask_transactions", "while small and", "while False and"),),
    "asks for identity again after it was of no use": (
        Change("wait:Wait.answered", "self._is_in_full = True", "self._is_in_full = False"),
    ),
    "asks for identity at the deadline": (Change("wait:Wait.question", " or self._is_last_poke_made", ""),),
    "ignores what is in progress only in the progress": (
        Change("gate:_Customer._add", "self.going.append(row)", "pass"),
    ),
    "counts statements without a time under since": (
        Change("gate:_Customer._add", "self.expectation.since is not None and named is None", "False"),
    ),
    "lets the progress overrule the history": (
        Change("gate:_Customer.__init__", "is_known=(entity_id, row.statement_id) in known", "is_known=False"),
    ),
    "asks for one entity of a link": (
        Change(
            "records:CustomerGate._ask_entities",
            "yield from api.get_entities(link_id, most=MAX_ENTITIES)",
            "(yield from api.get_entities(link_id, most=MAX_ENTITIES))[:1]",
        ),
    ),
    "takes the entity of another link": (
        Change("records:CustomerGate.ask", ".link_id != link_id:", '.link_id == "":'),
    ),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Change the package as a mutant says.

    :raises LookupError: the source text is not there: the mutant has to follow the code.
    """
    sources: dict[str, str] = {}
    names: list[tuple[Any, str]] = []
    for change in MUTANTS[name]:
        module, owner, attribute = _find(change.where)
        source = sources.get(change.where) or _source(getattr(owner, attribute))
        if source.count(change.old) != 1:
            raise LookupError(f"{name}: {change.where} has {change.old!r} {source.count(change.old)} times, not once")
        sources[change.where] = source.replace(change.old, change.new)
        for more, value in change.more.items():
            setattr(module, more, value)
            names.append((module, more))
    before = []
    for where, source in sources.items():
        module, owner, attribute = _find(where)
        made: dict[str, Any] = {}
        exec(f"from __future__ import annotations\n{source}", vars(module), made)  # noqa: S102 - our own source, changed
        function = getattr(owner, attribute)
        for holder in _holders(owner, attribute, function):
            before.append((holder, attribute, function))
            setattr(holder, attribute, made[attribute])
    try:
        yield
    finally:
        for holder, attribute, function in before:
            setattr(holder, attribute, function)
        for module, more in names:
            delattr(module, more)


def _holders(owner: Any, attribute: str, function: Any) -> list[Any]:
    """Return the owner of a function, and the modules that have imported it."""
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("airflow_provider_bankconnect")]
    return [owner, *(module for module in ours if module is not owner and vars(module).get(attribute) is function)]


def _source(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(function.fget if isinstance(function, property) else function))


def _find(where: str) -> tuple[Any, Any, str]:
    """Return the module, the owner of the function, and the function's name."""
    path, _, name = where.partition(":")
    module = owner = importlib.import_module(f"airflow_provider_bankconnect.{path}")
    *classes, attribute = name.split(".")
    for kind in classes:
        owner = getattr(owner, kind, None)
    if not hasattr(owner, attribute):
        raise LookupError(f"{where} does not exist")
    return module, owner, attribute
