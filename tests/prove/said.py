"""What BankConnect says of the customer of a wait: in the answers to one poke, and in its records at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schedules import Schedule, Wait
    from simulation import Trace
    from wire import RecordKey, Reply

Rows = list[dict[str, Any]]


class BrokenError(AssertionError):
    """The theorem does not hold."""


@dataclass(frozen=True)
class Said:
    """The payload history, and the progress of each entity; ``on_word`` are those that only ``identity`` told.

    ``is_stranger``: the entity is not one of the link. ``distrust``: why ``identity`` must not be asked any more.
    """

    rows: Rows
    items: dict[str, Rows]
    on_word: frozenset[str] = frozenset()
    is_stranger: bool = False
    distrust: str = ""

    @property
    def ids(self) -> set[str]:
        """The statements that any record names."""
        return {row["statement_id"] for rows in (self.rows, *self.items.values()) for row in rows}

    def without_word(self) -> Said:
        """Return what is said, with all that only ``identity`` told in progress."""
        items = {
            entity_id: [{**item, "status": "processing"} if entity_id in self.on_word else item for item in some]
            for entity_id, some in self.items.items()
        }
        return replace(self, items=items)


def may_ask(schedule: Schedule, wait: Wait, record: RecordKey) -> bool:
    """Return whether a poke of this wait may make such a call."""
    call, name = record
    if record in wait.starts:
        return True
    if not wait.is_of_customer:
        return False
    link_id, entity_id = wait.gate.get("link_id"), wait.gate.get("entity_id")
    if call in {"identity", "transactions"}:
        return name == entity_id if entity_id else name in named_for(schedule, link_id)
    return record == (("entities", link_id) if entity_id is None else ("entity", entity_id))


def entities_of(schedule: Schedule, link_id: str | None, at: float = float("inf")) -> dict[str, None]:
    """Return the entities that a link has at a time: the vendor adds them when their first statement begins."""
    return {
        play.entity_id: None
        for play in schedule.plays
        if play.entity_id and link_id is not None and link_of(schedule, play.entity_id, at) == link_id
    }


def named_for(schedule: Schedule, link_id: str) -> set[str]:
    """Return the entities that a link ever has, and those that a row of its history ever names."""
    extra = {one.row["entity_id"] for one in schedule.extra_rows if one.row["link_id"] == link_id}
    of_plays = {play.entity_id for play in schedule.plays if play.link_id == link_id}
    return {*entities_of(schedule, link_id), *of_plays, *extra} - {""}


def named_in(rows: Rows, link_id: str) -> list[str]:
    """Return the entities that the rows of a link name."""
    return [row["entity_id"] for row in rows if row["link_id"] == link_id and row["entity_id"]]


def link_of(schedule: Schedule, entity_id: str, at: float) -> str | None:
    """Return the link of an entity at a time: that of its first statement with one; ``""`` if there is no entity."""
    begun = [
        (_begins(play), play.link_id) for play in schedule.plays if play.entity_id == entity_id and _begins(play) <= at
    ]
    if not begun:
        return ""
    linked = [(begins, link_id) for begins, link_id in begun if link_id is not None]
    return min(linked, key=lambda one: one[0])[1] if linked else None


def _begins(play: Any) -> float:
    return 0.0 if play.ends < 0 else play.begins


def requests_of(schedule: Schedule, wait: Wait) -> int:
    """Return how many requests a poke makes at most."""
    if not wait.is_of_customer:
        return 2 if wait.uses_identity else 1
    if "link_id" not in wait.gate:
        return 2
    return 2 + 2 * (1 if "entity_id" in wait.gate else len(named_for(schedule, wait.gate["link_id"])))


def heard(schedule: Schedule, wait: Wait, replies: Iterable[Reply]) -> Said:
    """Return what the answers to one poke said.

    :raises BrokenError: they are not those to the questions of this wait.
    """
    # aiohttp may have sent a request again, whose first answer was none.
    answered = [reply for reply in replies if reply.status]
    by = {reply.record: reply for reply in answered}
    if len(by) != len(answered) or not all(may_ask(schedule, wait, record) for record in by):
        raise BrokenError(f"it judged answers to other questions: {answered}")
    if not wait.uses_identity:
        rows = _ok(by.get(wait.starts[0])).rows
        return Said(rows, {}) if "link_id" in wait.gate else Said([], {wait.gate["entity_id"]: rows})
    link_id, entity_id = wait.gate.get("link_id"), wait.gate.get("entity_id")
    rows, entities = [], [entity_id]
    if link_id is not None:
        rows = _ok(by.get(("webhook_payloads", link_id)), 404).rows
        if entity_id is None:
            reply = _ok(by.get(("entities", link_id)), *([404] if rows else []))
            results = reply.json["results"] if reply.status == 200 else []
            listed = [one["entity_id"] for one in results if one["link_id"] == link_id]
            entities = list(dict.fromkeys([*listed, *named_in(rows, link_id)]))
        elif _ok(by.get(("entity", entity_id))).json["link_id"] != link_id:
            return Said(rows, {}, is_stranger=True)
    said = Said(rows, {})
    for one in entities:
        small, full = by.get(("identity", one)), by.get(("transactions", one))
        said = _with_entity(said, one, small, full, or_none=(404,) if link_id is not None else ())
    return said


def _with_entity(said: Said, entity_id: str, small: Reply | None, full: Reply | None, or_none: tuple[int, ...]) -> Said:
    word = _word(small) if small is not None else None
    if full is None:
        if not word:
            raise BrokenError(f"identity/ said nothing of {entity_id}, and transactions/ was not read: {small}")
        return replace(said, items={**said.items, entity_id: word}, on_word=said.on_word | {entity_id})
    items = _ok(full, *or_none).rows
    distrust = said.distrust
    # An error of the server or of a firewall, or an answer that was cut off, says nothing of the next one.
    is_error = small is None or small.is_error or small.status == 404
    if small is not None and not is_error and "half" not in small.faults:
        if word is None:
            distrust = distrust or f"of {entity_id}, identity/ did not tell the state of the transactions"
        elif not word and items:
            distrust = distrust or f"of {entity_id}, identity/ said nothing, and transactions/ did"
    return replace(said, items={**said.items, entity_id: items}, distrust=distrust)


def _word(small: Reply) -> Rows | None:
    """Return the progress of the transactions as ``identity`` tells it; None where it does not, or is cut off."""
    if "half" in small.faults:
        return None
    if small.status != 200 or "progress" not in small.json:
        return [] if small.status == 404 else None
    if any(item.get("transaction_status") is None for item in small.rows):
        return None
    return [{**item, "status": item["transaction_status"]} for item in small.rows]


def words_of(replies: Iterable[Reply]) -> dict[str, Rows]:
    """Return the progress of the transactions of each entity as ``identity`` tells it."""
    return {
        reply.record[1]: _word(reply) or []
        for reply in replies
        if reply.record[0] == "identity" and reply.status == 200 and "half" not in reply.faults
    }


def _ok(reply: Reply | None, *others: int) -> Reply:
    if reply is None or reply.status not in {200, *others}:
        raise BrokenError(f"it judged without an answer: {reply}")
    return reply


def recorded(trace: Trace, wait: Wait, at: float) -> Said:
    """Return what the vendor's records said of the customer of a wait at a time."""
    schedule, gate = trace.schedule, wait.gate
    link_id, entity_id = gate.get("link_id"), gate.get("entity_id")
    rows = [] if link_id is None else trace.known(("webhook_payloads", link_id), at)
    if not wait.is_of_customer and link_id is not None:
        return Said(rows, {})
    entities = [entity_id]
    if entity_id is None:
        entities = list(dict.fromkeys([*entities_of(schedule, link_id, at), *named_in(rows, link_id)]))
    if entity_id is not None and link_id is not None and link_of(schedule, entity_id, at) != link_id:
        return Said(rows, {}, is_stranger=True)
    analysis = gate.get("analysis", "transactions")
    return Said(rows, {one: trace.known((analysis, one), at) for one in entities})
