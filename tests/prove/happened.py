"""Counts what happened while a wait was open. A fault that never met an open wait proves nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from said import heard, recorded, words_of
from theorem import LONGEST_LAST_PAUSE, LONGEST_RETRY_AFTER, is_about, may_ask_again, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from said import Said
    from schedules import Wait
    from simulation import Observed, Poke, Trace
    from wire import Reply

# All of this must happen in a complete proof.
ANSWERS = (
    *(
        "408",
        "425",
        "429",
        "5xx",
        "404",
        "Retry-After in seconds",
        "Retry-After as a date",
        "Retry-After in a fraction",
        "Retry-After without limit",
        "Retry-After that is negative",
        "403 of a firewall",
        "reset",
        "cut in half",
        "HTML",
        "redirect",
    ),
    *("old server: 503", "old server: 404", "old server: its records", "connection forgotten"),
    *("slow", "too slow", "stale", "in another order", "unknown fields", "rows repeated", "403 of identity"),
)
WEBHOOKS = ("prompt", "dropped", "doubled", "late", "out of order", "replayed", "forged", "suppressed")
PROCESSES = ("triggerer killed", "triggerer killed across the deadline", "waits sharing a record")
RECORDS = (
    *("two entities on a link", "statement run again", "failed login", "identical attempts", "two rows in a second"),
    *("row from before since", "row of another link", "row with capital letters", "row still going"),
    *("statement without a link", "another zone", "wrong zone"),
)
# Of the gate for both records, and of those that ask for identity first.
CUSTOMERS = (
    *(
        "by link",
        "by entity",
        "by both",
        "entity of another link",
        "entity added late",
        "failed login without an entity",
    ),
    *("statement that only the progress has", "undated statement under since", "named statement without a time"),
    *(
        "in progress only in transactions",
        "passed: both records",
        "failed: both records",
        "announced: held",
        "announced: given up",
    ),
    *("identity: over", "identity: not yet", "identity: ahead", "identity: no transaction_status", "identity: behind"),
    *("ended although identity said not yet", "transactions only, for good"),
)
ENDS = (
    *("passed", "failed: fail", "failed: skip", "failed: wait", "failed: pass", "timeout", "timezone"),
    *("ended by the first poke", "ended by the last poke", "last poke in a long pause", "ended by a firewall"),
)
EVERYTHING = (*ANSWERS, *WEBHOOKS, *PROCESSES, *RECORDS, *CUSTOMERS, *ENDS)
_NAMES = {
    "half": "cut in half",
    "garbage": "HTML",
    "duplicate": "rows repeated",
    "reset": "reset",
    "switch 503": "old server: 503",
    "switch 404": "old server: 404",
    "switch old": "old server: its records",
    "forgotten": "connection forgotten",
    "redirect": "redirect",
}


def happened(trace: Trace) -> Counter[str]:
    """Count what happened: once for each answer, webhook, process or wait."""
    found: Counter[str] = Counter()
    for reply in trace.replies:
        found.update(_in_answer(trace, reply))
    for at, delivery in trace.recorded:
        found[delivery.how] += any(
            observed.is_open(at) and is_about(delivery.body, observed.wait) for observed in trace.waits
        )
    for observed in trace.waits:
        found.update(_of_wait(trace, observed))
        for poke in observed.pokes:
            found.update(_in_rows(trace, observed.wait, heard(trace.schedule, observed.wait, poke.replies).rows))
        found.update(_of_customer(trace, observed))
    return found


def _in_answer(trace: Trace, reply: Reply) -> Iterator[str]:
    rows = reply.rows
    yield from (_NAMES[fault] for fault in reply.faults if fault in _NAMES)
    if "delay" in reply.faults:
        yield "slow" if reply.status else "too slow"
    if reply.status == 403:
        yield "403 of a firewall" if "firewall" in reply.faults else "403 of identity"
    elif reply.status >= 400:
        yield "5xx" if reply.status >= 500 else str(reply.status)
    if reply.retry_after is not None:
        yield f"Retry-After {_form(reply.retry_after)}"
        again = may_ask_again(reply)
        sent = [other.sent for other in trace.replies if other.by == reply.by]
        if again - reply.answered > LONGEST_LAST_PAUSE and any(reply.answered < at < again for at in sent):
            yield "last poke in a long pause"
    if "shuffle" in reply.faults and len(rows) > 1:
        yield "in another order"
    if "extra" in reply.faults and rows:
        yield "unknown fields"
    if "stale" in reply.faults and reply.status == 200 and reply.record[0] not in {"entities", "entity"}:
        answered, true = (
            {(row["statement_id"], row.get("status"), row.get("date_time")) for row in some}
            for some in (rows, trace.known(reply.record, reply.answered))
        )
        if answered != true:
            yield "stale"


def _form(retry_after: str) -> str:
    if retry_after.isdigit():
        return "without limit" if int(retry_after) > LONGEST_RETRY_AFTER else "in seconds"
    if retry_after.endswith("GMT"):
        return "as a date"
    return "that is negative" if retry_after.startswith("-") else "in a fraction"


def _of_wait(trace: Trace, observed: Observed) -> Iterator[str]:
    wait, schedule = observed.wait, trace.schedule
    yield from _of_end(observed)
    for kill in schedule.kills:
        if trace.mode == "deferred" and observed.is_open(kill.at):
            yield "triggerer killed"
            if kill.back > wait.deadline:
                yield "triggerer killed across the deadline"
    if sum(bool(set(other.wait.starts) & set(wait.starts)) for other in trace.waits) > 1:
        yield "waits sharing a record"
    if schedule.our_zone != "UTC":
        yield "another zone"
    if schedule.our_zone != schedule.vendor_zone:
        yield "wrong zone"
    if any(poke.state == "failed" for poke in observed.pokes):
        yield f"failed: {wait.on_failed}"


def _of_end(observed: Observed) -> Iterator[str]:
    if observed.state in {"timeout", "BankConnectForbiddenError"}:
        yield "timeout" if observed.state == "timeout" else "ended by a firewall"
    elif observed.pokes:
        last = observed.pokes[-1]
        if last.state != "failed":
            yield "passed" if last.state == "passed" else "timezone"
        if len(observed.pokes) == 1:
            yield "ended by the first poke"
        if last.at >= observed.wait.deadline:
            yield "ended by the last poke"


def _in_rows(trace: Trace, wait: Wait, rows: list[dict[str, Any]]) -> Iterator[str]:
    plays = trace.schedule.plays
    if "link_id" not in wait.gate:
        if any(play.link_id is None and play.entity_id == wait.gate["entity_id"] for play in plays):
            yield "statement without a link"
        return
    mine = [row for row in rows if row["link_id"] == wait.gate["link_id"]]
    statements = [row["statement_id"] for row in mine if row["statement_id"]]
    attempts = [row["date_time"] for row in mine if not row["statement_id"]]
    different = {json.dumps({**row, "unknown": None}, sort_keys=True) for row in mine}
    for name, is_there in (
        ("row of another link", len(mine) < len(rows)),
        ("two entities on a link", len({row["entity_id"] for row in mine}) > 1),
        ("failed login", attempts),
        ("identical attempts", len(attempts) > len(set(attempts))),
        ("two rows in a second", len(different) > len({row["date_time"] for row in mine})),
        ("statement run again", len(statements) > len(set(statements))),
        ("row with capital letters", any(not row["progress"].islower() for row in mine)),
        ("row still going", any(row["progress"] in {"processing", "queued"} for row in mine)),
        ("row from before since", "since" in wait.gate and any(play.ends < wait.gate["since"] for play in plays)),
    ):
        if is_there:
            yield name


def _of_customer(trace: Trace, observed: Observed) -> Iterator[str]:
    wait, schedule = observed.wait, trace.schedule
    if not wait.uses_identity:
        return
    entities: set[str] = set()
    for number, poke in enumerate(observed.pokes):
        said, words = heard(schedule, wait, poke.replies), words_of(poke.replies)
        ends = poke.state in {"passed", "failed"}
        yield from _in_words(said, words)
        if number and not words:
            yield "transactions only, for good"
            late = {name for name, items in recorded_word(trace, wait, poke.at).items() if items}
            if ends and late & said.items.keys():
                yield "ended although identity said not yet"
        if "announced" in wait.gate:
            yield from _of_announced(trace, wait, poke, said)
        if wait.is_of_customer:
            yield from _in_said(wait, said)
            if number and "entity_id" not in wait.gate and said.items.keys() - entities:
                yield "entity added late"
            entities |= said.items.keys()
            if ends:
                yield f"{poke.state}: both records"
    if wait.is_of_customer:
        names = {"link_id", "entity_id"} & wait.gate.keys()
        yield "by both" if len(names) > 1 else "by link" if "link_id" in names else "by entity"


def _of_announced(trace: Trace, wait: Wait, poke: Poke, said: Said) -> Iterator[str]:
    gate = {name: value for name, value in wait.gate.items() if not name.startswith("announced")}
    if read(trace.schedule, replace(wait, gate=gate), said, poke.at).state == "passed":
        if poke.state == "pending":
            yield "announced: held"
        elif {*wait.gate["announced"]} - said.ids:
            yield "announced: given up"


def recorded_word(trace: Trace, wait: Wait, at: float) -> dict[str, list[dict[str, Any]]]:
    """Return of each entity the statements that ``identity`` says are in progress."""
    entities = recorded(trace, wait, at).items
    return {
        one: [
            item
            for item in trace.known(("identity", one), at)
            if item.get("transaction_status") not in {"completed", "failed", None}
        ]
        for one in entities
    }


def _in_words(said: Said, words: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    over = {"completed", "failed"}
    for name, items in words.items():
        going = [item for item in items if item["status"] not in over]
        full = [] if name in said.on_word else said.items.get(name, [])
        if items:
            yield "identity: not yet" if going else "identity: over"
        if items and not going and any(item["status"] not in over for item in full):
            yield "identity: ahead"
    if "did not tell" in said.distrust:
        yield "identity: no transaction_status"
    if "said nothing" in said.distrust:
        yield "identity: behind"


def _in_said(wait: Wait, said: Said) -> Iterator[str]:
    if said.is_stranger:
        yield "entity of another link"
        return
    if any(not row["statement_id"] and not row["entity_id"] for row in said.rows):
        yield "failed login without an entity"
    known = {(row["entity_id"], row["statement_id"]): row["progress"].lower() for row in said.rows}
    for entity_id, items in said.items.items():
        for item in items:
            name, is_over = (entity_id, item["statement_id"]), item["status"] in {"completed", "failed"}
            if is_over and name not in known and "link_id" in wait.gate:
                yield "statement that only the progress has"
            if is_over and name not in known and "since" in wait.gate:
                named = item["statement_id"] in wait.gate.get("statement_id", ())
                yield "named statement without a time" if named else "undated statement under since"
            if not is_over and known.get(name) in {"completed", "failed"}:
                yield "in progress only in transactions"
