"""Counts what happened while a wait was open. A fault that never met an open wait proves nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from theorem import LONGEST_LAST_PAUSE, is_about, may_ask_again

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schedules import Wait
    from simulation import Observed, Trace
    from wire import Reply

# All of this must happen in a complete proof.
ANSWERS = (
    *(
        "429",
        "5xx",
        "404",
        "Retry-After in seconds",
        "Retry-After as a date",
        "reset",
        "cut in half",
        "HTML",
        "redirect",
    ),
    *("slow", "too slow", "stale", "in another order", "unknown fields", "rows repeated"),
)
WEBHOOKS = ("prompt", "dropped", "doubled", "late", "out of order", "replayed", "forged")
PROCESSES = ("triggerer killed", "triggerer killed across the deadline", "waits sharing a record")
RECORDS = (
    *("two entities on a link", "statement run again", "failed login", "identical attempts", "two rows in a second"),
    *("row from before since", "row of another link", "row with capital letters", "row still going"),
    *("statement without a link", "another zone", "wrong zone"),
)
ENDS = (
    *("passed", "failed: fail", "failed: skip", "failed: wait", "failed: pass", "timeout", "timezone"),
    *("ended by the first poke", "ended by the last poke", "last poke in a long pause"),
)
EVERYTHING = (*ANSWERS, *WEBHOOKS, *PROCESSES, *RECORDS, *ENDS)
_NAMES = {
    "half": "cut in half",
    "garbage": "HTML",
    "duplicate": "rows repeated",
    "reset": "reset",
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
        for rows in (poke.reply.rows for poke in observed.pokes):
            found.update(_in_rows(trace, observed.wait, rows))
    return found


def _in_answer(trace: Trace, reply: Reply) -> Iterator[str]:
    rows = reply.rows
    yield from (_NAMES[fault] for fault in reply.faults if fault in _NAMES)
    if "delay" in reply.faults:
        yield "slow" if reply.status else "too slow"
    if reply.status >= 400:
        yield "5xx" if reply.status >= 500 else str(reply.status)
    if reply.retry_after is not None:
        yield f"Retry-After {'in seconds' if reply.retry_after.isdigit() else 'as a date'}"
        again = may_ask_again(reply)
        sent = [other.sent for other in trace.replies if other.by == reply.by]
        if again - reply.answered > LONGEST_LAST_PAUSE and any(reply.answered < at < again for at in sent):
            yield "last poke in a long pause"
    if "shuffle" in reply.faults and len(rows) > 1:
        yield "in another order"
    if "extra" in reply.faults and rows:
        yield "unknown fields"
    if "stale" in reply.faults and reply.status == 200:
        answered, true = (
            {(row["statement_id"], row.get("status"), row.get("date_time")) for row in some}
            for some in (rows, trace.known(reply.record, reply.answered))
        )
        if answered != true:
            yield "stale"


def _of_wait(trace: Trace, observed: Observed) -> Iterator[str]:
    wait, schedule = observed.wait, trace.schedule
    yield from _of_end(observed)
    for kill in schedule.kills:
        if trace.mode == "deferred" and observed.is_open(kill.at):
            yield "triggerer killed"
            if kill.back > wait.deadline:
                yield "triggerer killed across the deadline"
    if sum(other.wait.record == wait.record for other in trace.waits) > 1:
        yield "waits sharing a record"
    if schedule.our_zone != "UTC":
        yield "another zone"
    if schedule.our_zone != schedule.vendor_zone:
        yield "wrong zone"
    if any(poke.state == "failed" for poke in observed.pokes):
        yield f"failed: {wait.on_failed}"


def _of_end(observed: Observed) -> Iterator[str]:
    if observed.state == "timeout":
        yield "timeout"
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
