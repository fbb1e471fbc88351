"""The theorem of docs/proof.rst, checked of one schedule that was played.

It judges by what the vendor answered (``naive``), by what the vendor knew, and by the schedule: never by what the
package says of itself.
"""

from __future__ import annotations

from datetime import timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from naive import Reading, read_history, read_progress, when
from schedules import REQUEST_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schedules import Schedule, Wait
    from simulation import Look, Told, Trace
    from wire import Reply

# The figures of the theorem, in seconds.
SHORTEST_PAUSE = 1.0
SHARED = 1.0  # so old may an answer be that another wait's look has brought
LONGEST_BACKOFF = 60.0
RETURN = 2.0  # over this time those come back that were held back
SPREAD = 60.0  # over this time, or poke_interval, those come back that a triggerer takes up again
LAST_LOOK = 60.0
LOOKS_FOR_A_RING = 4
# Closing a session takes a fiftieth, and floats are not exact.
A_MOMENT = 0.05
NOTHING = 1e-6


class BrokenError(AssertionError):
    """The theorem does not hold."""


def check(trace: Trace) -> None:
    """Check a trace.

    :raises BrokenError: says of which wait, and what.
    """
    for told in trace.waits:
        try:
            _reads_as_the_rules_say(trace, told)
            _ends_with_what_it_read(trace, told)
            _keeps_its_deadline(trace, told)
            _looks_one_last_time(trace, told)
            _looks_at_its_pace(trace, told)
            _is_no_later_than_the_bound(trace, told)
        except BrokenError as error:
            raise BrokenError(f"{told.wait.name} ({trace.mode}): {error}") from None
    _gives_the_vendor_its_time(trace)
    _leaves_nothing_behind(trace)


def check_alike(one: Trace, other: Trace) -> bool:
    """Check that the first wait has the same outcome in two modes, where the records alone say which; or say no."""
    what = decided(one, one.waits[0])
    if what is None:
        return False
    for trace in (one, other):
        told = trace.waits[0]
        if not _is_outcome(told, what):
            raise BrokenError(f"{trace.mode}: it came to {told.state} {told.rows}, and the records say {what}")
    return True


# The verdict


def read(schedule: Schedule, wait: Wait, rows: list[dict[str, Any]], at: float) -> Reading:
    """Read a ledger's rows naively."""
    gate = dict(wait.gate)
    if "link_id" not in gate:
        return read_progress(gate, rows)
    if "since" in gate:
        gate["since"] = schedule.moment(gate["since"])
    return read_history(gate, rows, schedule.our_zone, schedule.moment(at))


def _state(look: Look) -> str:
    return "timezone" if look.state == "BankConnectTimezoneError" else look.state


def _reads_as_the_rules_say(trace: Trace, told: Told) -> None:
    for look in told.looks:
        reply, reading = look.reply, read(trace.schedule, told.wait, look.reply.rows, look.at)
        if reply.ledger != told.wait.ledger or reply.status != 200:
            raise BrokenError(f"it judged what it had not asked: {reply}")
        if not 0 <= look.at - reply.answered <= SHARED + A_MOMENT or look.now != trace.schedule.moment(look.at):
            raise BrokenError(f"it judged an old answer, or at another time than it was: {look}")
        if _state(look) != reading.state:
            raise BrokenError(f"the gate said {look.state}, the rules say {reading}: {look}")
        if look.state in {"passed", "failed"} and not reading.gives(look.rows):
            raise BrokenError(f"the gate gave {look.rows}, the rules give {reading}")


def _ends_with_what_it_read(trace: Trace, told: Told) -> None:
    # What dies with the triggerer before it is handed on is found again.
    kills = [kill.at for kill in trace.schedule.kills if kill.at < told.ended]
    looks = [look for look in told.looks if not any(look.at <= kill <= look.at + A_MOMENT for kill in kills)]
    endings = [look for look in looks if Reading(_state(look)).ends(told.wait.on_failed)]
    if not endings and told.state != "timeout":
        raise BrokenError(f"it ended as {told.state}, and no look had said so: {looks}")
    if endings and endings != looks[-1:]:
        raise BrokenError(f"it went on after an end: {[look.state for look in looks]}")
    for look in endings:
        if told.ended - look.at > A_MOMENT:
            raise BrokenError(f"it ended at {told.ended}, and knew at {look.at}")
        if not _is_outcome(told, Reading(_state(look))) or (told.state == "success" and told.rows != look.rows):
            raise BrokenError(f"{look} made it {told.state}: {told.rows}")


def _is_outcome(told: Told, reading: Reading) -> bool:
    """Say whether the task came to what this verdict means."""
    state = {"timezone": "BankConnectTimezoneError", "passed": "success"}.get(reading.state)
    state = state or {"fail": "failed", "skip": "skipped", "pass": "success"}[told.wait.on_failed]
    return told.state == state and (state != "success" or not reading.results or reading.gives(told.rows))


# The deadline


def _keeps_its_deadline(trace: Trace, told: Told) -> None:
    deadline, schedule = told.wait.deadline, trace.schedule
    if len(told.events) != (trace.mode == "deferred" and bool(told.asks or told.events)):
        raise BrokenError(f"{len(told.events)} events: {told.events}")
    if told.state == "timeout" and told.ended < deadline:
        raise BrokenError(f"it timed out early, at {told.ended}")
    if trace.mode == "poke":
        # A thread that waits for an answer cannot be called away.
        latest = deadline + SHORTEST_PAUSE + 2 * _slowest(schedule)
    else:
        gone = [kill.back for kill in schedule.kills if kill.at < deadline + LAST_LOOK]
        latest = max([deadline, *gone]) + LAST_LOOK
    if told.ended > latest + A_MOMENT:
        raise BrokenError(f"it ended at {told.ended}; its deadline was {deadline}")


def _looks_one_last_time(trace: Trace, told: Told) -> None:
    """Who times out has looked in its last second, unless the vendor had asked it not to, or it was held back."""
    deadline = told.wait.deadline
    theirs = [reply for reply in trace.replies if reply.answered <= told.ended and _binds(reply, told)]
    own = [reply for reply in theirs if reply.ledger == told.wait.ledger]
    looked = any(ask.at >= deadline - SHORTEST_PAUSE for ask in told.asks)
    looked = looked or any(reply.answered >= deadline - SHORTEST_PAUSE for reply in own)
    asked_not_to = any(may_ask_again(reply) > deadline for reply in theirs)
    latest = sorted((reply for reply in theirs if reply.answered <= deadline), key=lambda reply: reply.answered)[-3:]
    held = len(latest) == 3 and all(map(_is_failure, latest))
    held = held and deadline - latest[-1].answered <= LONGEST_BACKOFF + RETURN
    if told.state == "timeout" and not (looked or asked_not_to or held):
        raise BrokenError("it did not look at its deadline")


def _binds(reply: Reply, told: Told) -> bool:
    """What a worker was told, only its own wait knows."""
    return reply.by == f"worker {told.wait.name}" or reply.by.startswith("triggerer")


def _is_failure(reply: Reply) -> bool:
    return reply.status in {0, 429} or reply.status >= 500 or (reply.status == 200 and "half" in reply.faults)


# The pace


def may_ask_again(reply: Reply) -> float:
    """Say from when on the vendor wants to be asked again, reading ``Retry-After`` naively."""
    if reply.retry_after is None:
        return reply.answered
    if reply.retry_after.isdigit():
        return reply.answered + int(reply.retry_after)
    return reply.answered + (parsedate_to_datetime(reply.retry_after) - reply.answered_on) / timedelta(seconds=1)


def _gives_the_vendor_its_time(trace: Trace) -> None:
    for reply in trace.replies:
        if reply.retry_after is None:
            continue
        again = may_ask_again(reply) - NOTHING
        for other in trace.replies:
            if other.by == reply.by and reply.answered < other.sent < again:
                raise BrokenError(f"asked to wait until {again:.3f}, {reply.by} asked at {other.sent:.3f}: {reply}")
        for told in trace.waits:
            early = [ask for ask in told.asks if ask.at < again]
            if early and reply.by == f"worker {told.wait.name}":
                raise BrokenError(f"{told.wait.name} forgot what its worker was told: {reply}, {early}")


def _looks_at_its_pace(trace: Trace, told: Told) -> None:
    wait, schedule = told.wait, trace.schedule
    sent = [reply for reply in trace.replies if reply.ledger == wait.ledger and not reply.resent]
    sharing = sum(other.wait.ledger == wait.ledger for other in trace.waits)
    for first, last in zip(sent, sent[sharing:], strict=False):
        if first.by == last.by and last.sent - first.sent < SHORTEST_PAUSE - NOTHING:
            raise BrokenError(f"more looks within a second than there are waits: {first}, {last}")

    interval = max(wait.poke_interval, SHORTEST_PAUSE)
    rings = LOOKS_FOR_A_RING * sum(is_about(bell.body, wait) for _, bell in trace.rung)
    looks = [(ask.at, ask.life) for ask in told.asks] if trace.mode == "deferred" else [(one.sent, 0) for one in sent]
    if len(looks) > 3 + len(schedule.kills) + wait.timeout / interval + rings:
        raise BrokenError(f"{len(looks)} looks in {wait.timeout} s, and {rings} for the sake of rings")
    if trace.mode == "poke" and wait.exponential_backoff:
        return  # Airflow begins with half the interval
    quick = [
        two - one
        for (one, life), (two, other_life) in pairwise(looks)
        if life == other_life and two < wait.deadline and two - one < interval - NOTHING
    ]
    if len(quick) > rings:
        raise BrokenError(f"pauses of {quick}, not {interval}, and {rings} looks for the sake of rings")


def is_about(body: dict[str, Any], wait: Wait) -> bool:
    """Say whether a webhook is about the customer that a wait is for."""
    name = "link_id" if "link_id" in wait.gate else "entity_id"
    return body[name] == wait.gate[name]


def _leaves_nothing_behind(trace: Trace) -> None:
    if trace.left:
        raise BrokenError(f"left behind: {trace.left}")
    for reply in trace.replies:
        waits = [told for told in trace.waits if reply.ledger in {told.wait.ledger, ("entities", reply.ledger[1])}]
        if not any(told.began <= reply.sent <= told.ended for told in waits):
            raise BrokenError(f"asked when no wait was open: {reply}")


# The bound


def longest_pause(wait: Wait, at: float) -> float:
    """Give the longest time between two looks that may have begun by ``at``.

    ``exponential_backoff`` doubles it each time, with a jitter of up to two: then it is no longer than twice all the
    time before it.
    """
    pause = max(wait.poke_interval, SHORTEST_PAUSE)
    if wait.exponential_backoff:
        pause = max(pause, min(2 * (at - wait.begins + pause), wait.max_wait or float("inf")))
    return pause


def _slowest(schedule: Schedule) -> float:
    return min(REQUEST_TIMEOUT, sum(fault.seconds for fault in schedule.faults if fault.kind == "delay"))


def _stalest(schedule: Schedule) -> float:
    return sum(fault.seconds for fault in schedule.faults if fault.kind == "stale")


def _spoilt(schedule: Schedule, wait: Wait, true_since: float) -> Iterator[tuple[float, float, float]]:
    """Give the times in which a look may not tell the truth: from, until, and the pause that may follow."""
    for fault in schedule.faults:
        end = fault.until or float("inf")
        too_slow = fault.kind == "delay" and _slowest(schedule) >= REQUEST_TIMEOUT
        if too_slow or fault.kind in {"status", "reset", "half", "garbage", "redirect"}:
            asked = float(fault.retry_after or 0)
            yield fault.after, end, max(asked, 0.0 if fault.status == 404 else LONGEST_BACKOFF)
        if fault.kind == "stale":
            yield fault.after, min(end, true_since + _stalest(schedule)), 0.0
    for kill in schedule.kills:
        yield kill.at, kill.back, min(wait.poke_interval, SPREAD)


def bound(schedule: Schedule, wait: Wait, true_since: float) -> float:
    """Give the time by which a wait has ended, if from ``true_since`` on the vendor's records say that it has to."""
    slow = _slowest(schedule)
    latest = max(true_since, wait.begins)
    if true_since > wait.begins:
        latest += SHARED + longest_pause(wait, true_since + SHARED)
    for start, end, pause in sorted(_spoilt(schedule, wait, true_since)):
        if start <= latest:
            # A look that began in it, its answer, and the test call after a 404.
            over = end + 2 * slow
            latest = max(latest, over + max(pause, longest_pause(wait, over)) + RETURN)
    return latest + slow


def truth(trace: Trace, told: Told) -> list[tuple[float, Reading]]:
    """Say what the vendor's own records said of a wait, and from when on, until it ended."""
    changes = sorted({at for at in _changes(trace, told.wait) if told.began < at <= told.ended} | {told.began})
    return [(at, read(trace.schedule, told.wait, trace.known(told.wait.ledger, at), at)) for at in changes]


def _changes(trace: Trace, wait: Wait) -> Iterator[float]:
    schedule = trace.schedule
    for play in schedule.plays:
        yield from (play.begins, play.ends, play.ends + play.later, play.ends + play.later / 2)
    for odd in schedule.odds:
        yield odd.at
    if "link_id" in wait.gate:
        for row in trace.known(wait.ledger, trace.over):
            at = (when(row, schedule.our_zone) - schedule.start) / timedelta(seconds=1)
            # A failure ripens; a row is no longer in the future.
            yield from (at + wait.gate["failure_grace"], at - 300)


def promised(trace: Trace, told: Told) -> list[tuple[float, float]]:
    """Give since when the records have said that it has to end, and by when it has to, where the bound says so."""
    on_failed, said = told.wait.on_failed, truth(trace, told)
    found = []
    for number, (at, reading) in enumerate(said):
        if reading.ends(on_failed):
            until = next((later for later, other in said[number:] if not other.ends(on_failed)), float("inf"))
            latest = bound(trace.schedule, told.wait, at)
            if latest < min(until, told.wait.deadline):
                found.append((at, latest))
    return found


def _is_no_later_than_the_bound(trace: Trace, told: Told) -> None:
    for since, latest in promised(trace, told):
        if told.ended > latest + A_MOMENT:
            raise BrokenError(
                f"the records said so since {since:.3f}; it ended at {told.ended:.3f}, not by {latest:.3f}"
            )


def decided(trace: Trace, told: Told) -> Reading | None:
    """Give the one verdict that the records allow, whenever looks fall and however stale they are.

    None where there are several, or where the bound lies behind the deadline.
    """
    wait, schedule = told.wait, trace.schedule
    first = next((at for at, reading in truth(trace, told) if reading.ends(wait.on_failed)), None)
    if first is None or (until := bound(schedule, wait, first)) >= min(wait.deadline, trace.over):
        return None
    stale = SHARED + _slowest(schedule) + _stalest(schedule)
    begins = told.began - stale
    changes = sorted({at for at in _changes(trace, wait) if begins < at <= until} | {begins, told.began})
    endings = set()
    for seen, next_seen in pairwise([*changes, until]):
        rows = trace.known(wait.ledger, seen)
        for at in changes:
            if max(seen, told.began) <= at <= next_seen + stale:
                reading = read(schedule, wait, rows, at)
                if reading.ends(wait.on_failed):
                    endings.add(reading)
                elif first <= at < next_seen:
                    return None
    return endings.pop() if len(endings) == 1 else None
