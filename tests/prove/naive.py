"""A second implementation of the rules of the gate, slow and simple, on the vendor's JSON. It shares no code with ours.

It returns a ``Reading``: the state, and the rows that may be the result. Where the rules leave a choice (entities that
are equally new) there are several results.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

SKEW = timedelta(minutes=5)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """``pending``, ``passed``, ``failed``; or ``timezone``: a row lies in the future, which is an error."""

    state: str
    results: tuple[frozenset[tuple[Any, ...]], ...] = ()

    def ends(self, on_failed: str) -> bool:
        """Return whether the wait ends. With ``on_failed="wait"`` a failed one does not end it."""
        return self.state in {"passed", "timezone"} or (self.state == "failed" and on_failed != "wait")

    def allows(self, rows: Rows) -> bool:
        """Return whether these rows are a result: the right ones, each once, the newest first."""
        found = [tuple(row[name] for name in FIELDS) for row in rows]
        times = [row["date_time"] or "" for row in rows]
        return (
            frozenset(found) in self.results and len(set(found)) == len(found) and times == sorted(times, reverse=True)
        )


FIELDS = ("statement_id", "entity_id", "link_id", "progress", "reason", "date_time")


def when(row: dict[str, Any], zone: str) -> datetime:
    """Return the time of a row, which the vendor writes in its own zone."""
    return datetime.fromisoformat(row["date_time"]).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def word(row: dict[str, Any]) -> str:
    """Return a row's progress. Rule 2: in any letter case. Rule 3: a blank ``statement_id`` is a failed attempt."""
    return row["progress"].lower() if row["statement_id"] else "failed"


def read_history(gate: dict[str, Any], payloads: Rows, zone: str, now: datetime) -> Reading:
    """Read a link's payload history. ``gate`` has the sensor's arguments; ``since`` aware, the grace in seconds."""
    seen = _seen(gate, payloads, zone)
    # Rule 7.
    if any(when(row, zone) > now + SKEW for row in seen):
        return Reading("timezone")
    newest = _newest(seen, zone)

    # Rules 4 and 5.
    passes = []
    for entity in {entity for entity, _ in newest} - {""}:
        own = [row for (of, _), row in newest.items() if of == entity]
        completed = [row for row in own if word(row) == "completed"]
        going = [row for row in own if word(row) not in ("completed", "failed")]
        if "statement_id" in gate:
            enough = {row["statement_id"] for row in completed} == set(gate["statement_id"])
        else:
            enough = len(completed) >= gate["expected_statements"]
        if enough and not going:
            passes.append((max(when(row, zone) for row in completed), completed))
    if passes:
        last = max(at for at, _ in passes)
        return Reading("passed", tuple(_results(completed, zone) for at, completed in passes if at == last))

    # Rule 6.
    going = [row for row in newest.values() if word(row) not in ("completed", "failed")]
    if seen and not going:
        last_row = max(seen, key=lambda row: _rank(row, zone))
        age = now - when(last_row, zone)
        if word(last_row) == "failed" and age >= timedelta(seconds=gate["failure_grace"]):
            attempts = [row for row in seen if not row["statement_id"]]
            return Reading("failed", (_results([*newest.values(), *attempts], zone),))
    return Reading("pending")


def read_customer(  # noqa: C901, PLR0911, PLR0912 - rule by rule
    gate: dict[str, Any], payloads: Rows, progress: dict[str, Rows], zone: str, now: datetime
) -> Reading:
    """Read both records of a customer; ``progress`` is that of the transactions of each entity."""
    seen = _seen(gate, payloads, zone)
    if any(when(row, zone) > now + SKEW for row in seen):
        return Reading("timezone")
    newest = _newest(seen, zone)

    if now < gate.get("announced_until", now):
        there = {row["statement_id"] for row in payloads if row["link_id"] == gate.get("link_id")}
        there.update(item["statement_id"] for items in progress.values() for item in items)
        if not there.issuperset(gate["announced"]):
            return Reading("pending")

    # The history decides wherever it has a row of a statement, be it older than since.
    in_history = {(row["entity_id"], row["statement_id"]) for row in payloads if row["link_id"] == gate.get("link_id")}
    going = {name for name, row in newest.items() if word(row) not in ("completed", "failed")}
    undated = {}
    for entity, items in progress.items():
        for item in items:
            statement = item["statement_id"]
            if "statement_id" in gate and statement not in gate["statement_id"]:
                continue
            if (item["status"] or "").lower() not in ("completed", "failed"):
                going.add((entity, statement))
            # Progress has no times, so it cannot say what is newer than since; a statement that is named counts.
            elif (entity, statement) not in in_history and ("since" not in gate or "statement_id" in gate):
                failed_already = (entity, statement) in undated and undated[entity, statement][3] == "failed"
                if not failed_already:
                    status = item["status"].lower()
                    undated[entity, statement] = (statement, entity, None, status, item["message"] or "", None)
    for name in going:
        undated.pop(name, None)

    needed = len(set(gate["statement_id"])) if "statement_id" in gate else gate["expected_statements"]
    passes = []
    for entity in {entity for entity, _ in [*newest, *undated]} - {""}:
        completed = [row for (of, _), row in newest.items() if of == entity and word(row) == "completed"]
        also = {row for (of, _), row in undated.items() if of == entity and row[3] == "completed"}
        if len(completed) + len(also) >= needed and not any(of == entity for of, _ in going):
            # An entity with times is newer than one without.
            last = max((when(row, zone) for row in completed), default=datetime.min.replace(tzinfo=UTC))
            passes.append((last, _results(completed, zone) | also))
    if passes:
        newest_of_all = max(last for last, _ in passes)
        return Reading("passed", tuple(rows for last, rows in passes if last == newest_of_all))
    if going:
        return Reading("pending")

    attempts = [row for row in seen if not row["statement_id"]]
    shown = _results([*newest.values(), *attempts], zone) | set(undated.values())
    last_row = max(seen, key=lambda row: _rank(row, zone), default=None)
    ends_in_failure = last_row is not None and word(last_row) == "failed"
    if ends_in_failure and now - when(last_row, zone) < timedelta(seconds=gate["failure_grace"]):
        return Reading("pending")
    for (entity, _), row in undated.items():
        over = sum(of == entity for of, _ in [*newest, *undated])
        if row[3] == "failed" and over >= needed:
            return Reading("failed", (shown,))
    # A completed statement without a time may be newer than the failure.
    if ends_in_failure and all(row[3] == "failed" for row in undated.values()):
        return Reading("failed", (shown,))
    return Reading("pending")


def read_progress(gate: dict[str, Any], items: Rows) -> Reading:
    """Read the ``progress`` of one analysis."""
    seen = [item for item in items if "statement_id" not in gate or item["statement_id"] in gate["statement_id"]]
    expected = len(set(gate["statement_id"])) if "statement_id" in gate else gate["expected_statements"]
    words = [(item["status"] or "").lower() for item in seen]
    if not seen or any(word not in ("completed", "failed") for word in words):
        return Reading("pending")
    if len({item["statement_id"] for item in seen}) < expected:
        return Reading("pending")
    rows = frozenset(
        (item["statement_id"], gate["entity_id"], None, item["status"].lower(), item["message"] or "", None)
        for item in seen
    )
    return Reading("failed" if "failed" in words else "passed", (rows,))


def _seen(gate: dict[str, Any], payloads: Rows, zone: str) -> Rows:
    """Return the rows that are asked for: rule 1."""
    seen = []
    for row in payloads:
        if row["link_id"] != gate.get("link_id"):
            continue
        if "entity_id" in gate and row["entity_id"] != gate["entity_id"]:
            continue
        # Rule 3: blank is in no list of statements.
        if "statement_id" in gate and row["statement_id"] not in gate["statement_id"]:
            continue
        if "since" in gate and when(row, zone) < gate["since"].replace(microsecond=0):
            continue
        seen.append(row)
    return seen


def _newest(seen: Rows, zone: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest row of each statement of each entity: rule 2."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in seen:
        if row["statement_id"]:
            name = (row["entity_id"], row["statement_id"])
            if name not in newest or _rank(row, zone) > _rank(newest[name], zone):
                newest[name] = row
    return newest


def _rank(row: dict[str, Any], zone: str) -> tuple[datetime, int]:
    """Return the sort key of newness: in the same second completed before failed before anything else."""
    return when(row, zone), {"completed": 2, "failed": 1}.get(word(row), 0)


def _results(rows: Rows, zone: str) -> frozenset[tuple[Any, ...]]:
    return frozenset(
        (
            row["statement_id"],
            row["entity_id"],
            row["link_id"],
            word(row),
            row["reason"] or "",
            when(row, zone).isoformat(),
        )
        for row in rows
    )
