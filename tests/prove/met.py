"""What of all that can go wrong has met an open wait: what never touched one proves nothing about it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from theorem import is_about

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schedules import Wait
    from simulation import Told, Trace
    from wire import Reply

# All of this has to have happened in a whole proof.
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
PROCESSES = ("triggerer killed", "triggerer killed across the deadline", "waits sharing a ledger")
RECORDS = (
    *("two entities on a link", "statement run again", "failed login", "identical attempts", "two rows in a second"),
    *("row from before since", "row of another link", "row in odd letters", "row still going"),
    *("statement without a link", "another zone", "wrong zone"),
)
ENDS = (
    *("passed", "failed: fail", "failed: skip", "failed: wait", "failed: pass", "timeout", "timezone"),
    *("ended by the first look", "ended by the last look"),
)
EVERYTHING = (*ANSWERS, *WEBHOOKS, *PROCESSES, *RECORDS, *ENDS)
_NAMES = {
    "half": "cut in half",
    "garbage": "HTML",
    "repeated": "rows repeated",
    "reset": "reset",
    "redirect": "redirect",
}


def met(trace: Trace) -> Counter[str]:
    """Count it: once for each answer, webhook, process or wait."""
    found: Counter[str] = Counter()
    for reply in trace.replies:
        found.update(_in_answer(trace, reply))
    for at, bell in trace.rung:
        found[bell.how] += any(told.is_open(at) and is_about(bell.body, told.wait) for told in trace.waits)
    for told in trace.waits:
        found.update(_of_wait(trace, told))
        for rows in (look.reply.rows for look in told.looks):
            found.update(_in_rows(trace, told.wait, rows))
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
    if "shuffle" in reply.faults and len(rows) > 1:
        yield "in another order"
    if "extra" in reply.faults and rows:
        yield "unknown fields"
    if "stale" in reply.faults and reply.status == 200:
        said, true = (
            {(row["statement_id"], row.get("status"), row.get("date_time")) for row in some}
            for some in (rows, trace.known(reply.ledger, reply.answered))
        )
        if said != true:
            yield "stale"


def _of_wait(trace: Trace, told: Told) -> Iterator[str]:
    wait, schedule = told.wait, trace.schedule
    yield from _of_end(told)
    for kill in schedule.kills:
        if trace.mode == "deferred" and told.is_open(kill.at):
            yield "triggerer killed"
            if kill.back > wait.deadline:
                yield "triggerer killed across the deadline"
    if sum(other.wait.ledger == wait.ledger for other in trace.waits) > 1:
        yield "waits sharing a ledger"
    if schedule.our_zone != "UTC":
        yield "another zone"
    if schedule.our_zone != schedule.vendor_zone:
        yield "wrong zone"
    if any(look.state == "failed" for look in told.looks):
        yield f"failed: {wait.on_failed}"


def _of_end(told: Told) -> Iterator[str]:
    if told.state == "timeout":
        yield "timeout"
    elif told.looks:
        last = told.looks[-1]
        if last.state != "failed":
            yield "passed" if last.state == "passed" else "timezone"
        if len(told.looks) == 1:
            yield "ended by the first look"
        if last.at >= told.wait.deadline:
            yield "ended by the last look"


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
        ("row in odd letters", any(not row["progress"].islower() for row in mine)),
        ("row still going", any(row["progress"] in {"processing", "queued"} for row in mine)),
        ("row from before since", "since" in wait.gate and any(play.ends < wait.gate["since"] for play in plays)),
    ):
        if is_there:
            yield name
