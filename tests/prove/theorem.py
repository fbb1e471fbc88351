"""Checks the theorem of docs/proof.rst on the trace of one schedule.

It uses the vendor's answers (read by ``naive``), the vendor's records and the schedule, and no result of the package.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from naive import Reading, read_customer, read_history, read_progress, when
from said import BrokenError, Said, heard, may_ask, recorded, requests_of, words_of
from schedules import REQUEST_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schedules import Schedule, Wait
    from simulation import Observed, Poke, Trace
    from wire import Reply

# The figures of the theorem, in seconds.
SHORTEST_PAUSE = 1.0
SHARED = 1.0  # greatest age of an answer that another wait got
LONGEST_BACKOFF = 60.0
RESUME = 2.0  # polls that were held back resume spread over this time
SPREAD = 60.0  # a restarted triggerer spreads overdue pokes over this time, or poke_interval
LAST_POKE = 60.0
LONGEST_LAST_PAUSE = 600.0
LONGEST_RETRY_AFTER = 3600.0
REPEATED = 300.0  # a 403 of a firewall is final if it comes again after this time without an answer
POKES_FOR_AN_EVENT = 4
PATIENCE = REQUEST_TIMEOUT / 4  # with a kept connection that was idle and is silent
GREATEST_AGE = 1800.0  # of a connection that carries a request
ERRORS = 3  # in a row, and a wait has a new connection used
NOT_FOUND = 300.0  # of 404, and it does so too
RENEWAL = 60.0  # between two new connections that waits have used
# Closing a session takes 0.02 s, and floats are not exact.
A_MOMENT = 0.05
NOTHING = 1e-6


def check(trace: Trace) -> int:
    """Check a trace. Return how many waits the bound said would end before the deadline.

    :raises BrokenError: names the wait, and what is wrong.
    """
    bounded = 0
    for observed in trace.waits:
        try:
            _reads_as_the_rules_say(trace, observed)
            _stops_to_ask_for_identity(trace, observed)
            _ends_with_what_it_read(trace, observed)
            _keeps_its_deadline(trace, observed)
            _pokes_one_last_time(trace, observed)
            _times_out_on_transactions(trace, observed)
            _pokes_at_its_pace(trace, observed)
            _pokes_soon_after_an_event(trace, observed)
            bounded += _is_no_later_than_the_bound(trace, observed)
        except BrokenError as error:
            raise BrokenError(f"{observed.wait.name} ({trace.mode}): {error}") from None
    _gives_the_vendor_its_time(trace)
    _leaves_nothing_running(trace)
    return bounded


def check_alike(one: Trace, other: Trace) -> bool:
    """Check that the first wait has the outcome that the records decide in both modes; False where they decide none."""
    what = decided(one, one.waits[0])
    if what is None:
        return False
    for trace in (one, other):
        observed = trace.waits[0]
        if not _is_outcome(observed, what):
            raise BrokenError(f"{trace.mode}: it ended as {observed.state} {observed.rows}, and the records say {what}")
    return True


# The verdict


def read(schedule: Schedule, wait: Wait, said: Said, at: float) -> Reading:
    """Return what ``naive`` says of what BankConnect said."""
    gate = dict(wait.gate)
    if "since" in gate:
        gate["since"] = schedule.moment(gate["since"])
    if "announced_until" in gate:
        gate["announced_until"] = schedule.moment(gate["announced_until"])
    if said.is_stranger:
        return Reading("pending")
    if wait.is_of_customer:
        return read_customer(gate, said.rows, said.items, schedule.our_zone, schedule.moment(at))
    if "link_id" in gate:
        return read_history(gate, said.rows, schedule.our_zone, schedule.moment(at))
    return read_progress(gate, said.items[gate["entity_id"]])


def _state(poke: Poke) -> str:
    return "timezone" if poke.state == "BankConnectTimezoneError" else poke.state


def _reads_as_the_rules_say(trace: Trace, observed: Observed) -> None:
    schedule, wait = trace.schedule, observed.wait
    for poke in observed.pokes:
        said, last = heard(schedule, wait, poke.replies), poke.replies[-1]
        if not 0 <= poke.at - last.answered <= SHARED + A_MOMENT or poke.now != schedule.moment(poke.at):
            raise BrokenError(f"it judged an old answer, or at a wrong time: {poke}")
        reading = read(schedule, wait, said, poke.at)
        if _state(poke) != reading.state:
            raise BrokenError(f"the verdict was {poke.state}, not {reading}: {poke}")
        if poke.state in {"passed", "failed"}:
            if not reading.allows(poke.rows):
                raise BrokenError(f"the rows were {poke.rows}, not {reading}")
            sure = read(schedule, wait, said.without_word(), poke.at)
            if sure.state != poke.state or not sure.allows(poke.rows):
                raise BrokenError(f"the verdict was {poke.state} on the word of identity/: {poke}")


def _stops_to_ask_for_identity(trace: Trace, observed: Observed) -> None:
    """Check that a wait reads only ``transactions`` once ``identity`` is of no use; a killed triggerer forgets it."""
    schedule, wait = trace.schedule, observed.wait
    distrust, since = "", 0.0
    for poke in observed.pokes if wait.uses_identity else ():
        if any(since <= kill.at <= poke.at for kill in schedule.kills):
            distrust = ""
        words = words_of(poke.replies)
        if distrust and words:
            raise BrokenError(f"it asked for identity/ again, though {distrust}: {poke}")
        said = heard(schedule, wait, poke.replies)
        if not distrust and (said.distrust or _is_ahead(trace, observed, said, words, poke.at)):
            distrust, since = said.distrust or "identity/ was ahead", poke.at


def _is_ahead(trace: Trace, observed: Observed, said: Said, words: dict[str, Any], at: float) -> bool:
    """Return whether ``identity`` said that all is over, and ``transactions`` did not."""
    if said.on_word or not words:
        return False
    promised = read(trace.schedule, observed.wait, replace(said, items={**said.items, **words}), at)
    return promised.state in {"passed", "failed"} and read(trace.schedule, observed.wait, said, at).state == "pending"


def _ends_with_what_it_read(trace: Trace, observed: Observed) -> None:
    # A result that is lost with the triggerer is found again by the next one.
    kills = [kill.at for kill in trace.schedule.kills if kill.at < observed.ended]
    pokes = [poke for poke in observed.pokes if not any(poke.at <= kill <= poke.at + A_MOMENT for kill in kills)]
    endings = [poke for poke in pokes if Reading(_state(poke)).ends(observed.wait.on_failed)]
    if observed.state == "BankConnectForbiddenError" and not endings:
        _was_refused_again(trace, observed)
    elif not endings and observed.state != "timeout":
        raise BrokenError(f"it ended as {observed.state} without such a verdict: {pokes}")
    if endings and endings != pokes[-1:]:
        raise BrokenError(f"it continued after a verdict that ends it: {[poke.state for poke in pokes]}")
    for poke in endings:
        if observed.ended - poke.at > A_MOMENT:
            raise BrokenError(f"it ended at {observed.ended}, and its verdict was there at {poke.at}")
        if not _is_outcome(observed, Reading(_state(poke))) or (
            observed.state == "success" and observed.rows != poke.rows
        ):
            raise BrokenError(f"{poke} made it {observed.state}: {observed.rows}")


def _was_refused_again(trace: Trace, observed: Observed) -> None:
    """Check that a wait which ended with a 403 of a firewall got one again after five minutes without an answer."""
    wait, schedule = observed.wait, trace.schedule
    since: float | None = None
    for reply in trace.replies:
        if reply.answered > observed.ended or not may_ask(schedule, wait, reply.record) or not _binds(reply, observed):
            continue
        if not _is_failure(reply) and reply.record in wait.starts[-1:]:
            since = None
        elif "firewall" in reply.faults and reply.status == 403:
            since = reply.answered if since is None else since
            if reply.answered - since >= REPEATED - A_MOMENT:
                return
    raise BrokenError(f"it ended with a 403 that did not come again after {REPEATED} s")


def _is_outcome(observed: Observed, reading: Reading) -> bool:
    """Return whether the task ended as this verdict says."""
    state = {"timezone": "BankConnectTimezoneError", "passed": "success"}.get(reading.state)
    state = state or {"fail": "failed", "skip": "skipped", "pass": "success"}[observed.wait.on_failed]
    return observed.state == state and (state != "success" or not reading.results or reading.allows(observed.rows))


# The deadline


def _keeps_its_deadline(trace: Trace, observed: Observed) -> None:
    deadline, schedule = observed.wait.deadline, trace.schedule
    if len(observed.events) != (trace.mode == "deferred" and bool(observed.asks or observed.events)):
        raise BrokenError(f"{len(observed.events)} events: {observed.events}")
    if observed.state == "timeout" and observed.ended < deadline:
        raise BrokenError(f"it timed out early, at {observed.ended}")
    if trace.mode == "poke":
        # A thread that waits for an answer cannot be interrupted.
        latest = deadline + SHORTEST_PAUSE + 2 * _slowest_poke(schedule, observed.wait)
    else:
        gone = [kill.back for kill in schedule.kills if kill.at < deadline + LAST_POKE]
        latest = max([deadline, *gone]) + LAST_POKE
    if observed.ended > latest + A_MOMENT:
        raise BrokenError(f"it ended at {observed.ended}; its deadline was {deadline}")


def _pokes_one_last_time(trace: Trace, observed: Observed) -> None:
    """Check that a wait which times out has poked at its deadline, unless a ``Retry-After`` forbade it."""
    deadline = observed.wait.deadline
    theirs = [reply for reply in trace.replies if reply.answered <= observed.ended and _binds(reply, observed)]
    own = [reply for reply in theirs if reply.record in observed.wait.starts]
    poked = any(ask.at >= deadline - SHORTEST_PAUSE for ask in observed.asks)
    poked = poked or any(reply.answered >= deadline - SHORTEST_PAUSE for reply in own)
    pauses = [(may_ask_again(reply), reply) for reply in theirs]
    forbidden = any(until > deadline and until - reply.answered <= LONGEST_LAST_PAUSE for until, reply in pauses)
    if observed.state == "timeout" and not (poked or forbidden):
        raise BrokenError("it did not poke at its deadline")


def _times_out_on_transactions(trace: Trace, observed: Observed) -> None:
    """Check that the last poke of a wait that times out reads ``transactions``."""
    wait, schedule = observed.wait, trace.schedule
    late = [poke for poke in observed.pokes if poke.at >= wait.deadline]
    if observed.state != "timeout" or not late or not heard(schedule, wait, late[-1].replies).on_word:
        return
    # A thread may be late with a usual poke; the last one that follows may have no answer.
    after = [reply for reply in trace.replies if reply.sent > late[-1].at and may_ask(schedule, wait, reply.record)]
    if not after:
        raise BrokenError(f"the last poke did not read transactions/: {late[-1]}")


def _binds(reply: Reply, observed: Observed) -> bool:
    """Return whether the wait knows of this answer: those of a worker are known to its own wait only."""
    return reply.by == f"worker {observed.wait.name}" or reply.by.startswith("triggerer")


# The pace


def may_ask_again(reply: Reply) -> float:
    """Return when the vendor may be asked again, with a simple reading of ``Retry-After``."""
    if reply.retry_after is None:
        return reply.answered
    if reply.retry_after.endswith("GMT"):
        asked = (parsedate_to_datetime(reply.retry_after) - reply.answered_on) / timedelta(seconds=1)
    else:
        # A fraction is rounded up.
        asked = float(math.ceil(float(reply.retry_after)))
    return reply.answered + min(max(asked, 0.0), LONGEST_RETRY_AFTER)


def _gives_the_vendor_its_time(trace: Trace) -> None:
    for reply in trace.replies:
        if reply.retry_after is None:
            continue
        again = may_ask_again(reply) - NOTHING
        is_long = again - reply.answered > LONGEST_LAST_PAUSE
        for other in trace.replies:
            if is_long and _is_last_poke(trace, other):
                continue
            if other.by == reply.by and reply.answered < other.begun < again:
                raise BrokenError(f"asked to wait until {again:.3f}, {reply.by} asked at {other.sent:.3f}: {reply}")
        for observed in trace.waits:
            until = min(again, observed.wait.deadline) if is_long else again
            early = [ask for ask in observed.asks if ask.at < until]
            if early and reply.by == f"worker {observed.wait.name}":
                raise BrokenError(f"{observed.wait.name} forgot the Retry-After of its worker: {reply}, {early}")


def _is_last_poke(trace: Trace, reply: Reply) -> bool:
    waits = [observed.wait for observed in trace.waits if may_ask(trace.schedule, observed.wait, reply.record)]
    return any(wait.deadline <= reply.sent <= wait.deadline + LAST_POKE for wait in waits)


def _pokes_at_its_pace(trace: Trace, observed: Observed) -> None:
    wait, schedule = observed.wait, trace.schedule
    sent = [reply for reply in trace.replies if reply.is_first and reply.record in wait.starts]
    sharing = sum(bool(set(other.wait.starts) & set(wait.starts)) for other in trace.waits)
    for first, last in zip(sent, sent[sharing:], strict=False):
        if first.by == last.by and last.sent - first.sent < SHORTEST_PAUSE - NOTHING:
            raise BrokenError(f"more pokes within a second than there are waits: {first}, {last}")

    interval = max(wait.poke_interval, SHORTEST_PAUSE)
    events = POKES_FOR_AN_EVENT * sum(is_about(delivery.body, wait) for _, delivery in trace.recorded)
    # An error uses up none of the pokes for an event.
    events += sum(_is_failure(reply) for reply in trace.replies) if events else 0
    pokes = (
        [(ask.at, ask.restarts) for ask in observed.asks]
        if trace.mode == "deferred"
        else [(one.sent, 0) for one in sent]
    )
    if len(pokes) > 3 + len(schedule.kills) + wait.timeout / interval + events:
        raise BrokenError(f"{len(pokes)} pokes in {wait.timeout} s, of which webhooks explain {events}")
    if trace.mode == "poke" and wait.exponential_backoff:
        return  # Airflow begins with half of the interval
    quick = [
        two - one
        for (one, restarts), (two, other_restarts) in pairwise(pokes)
        if restarts == other_restarts and two < wait.deadline and two - one < interval - NOTHING
    ]
    if len(quick) > events:
        raise BrokenError(f"pauses of {quick}, not {interval}, of which webhooks explain {events}")


def _is_failure(reply: Reply) -> bool:
    return reply.status not in {200, 404} or (not reply.json and reply.status == 200) or "half" in reply.faults


def _pokes_soon_after_an_event(trace: Trace, observed: Observed) -> None:
    """Check that errors after an event do not put off the next poke by more than the back-off and the pauses."""
    schedule, wait = trace.schedule, observed.wait
    theirs = [reply for reply in trace.replies if reply.by.startswith("triggerer")]
    for at, delivery in trace.recorded:
        if delivery.how in {"dropped", "suppressed"} or not is_about(delivery.body, wait) or not observed.is_open(at):
            continue
        pokes = [ask for ask in observed.asks if ask.at >= at]
        # A triggerer that did not run has not learned of the event.
        if not pokes or any(kill.at <= pokes[0].at and at <= kill.back for kill in schedule.kills):
            continue
        for one, two in pairwise(pokes):
            between = [reply for reply in theirs if one.at <= reply.sent < two.at]
            own = [reply for reply in between if may_ask(schedule, wait, reply.record)]
            if one.restarts != two.restarts or not own or not all(map(_is_failure, own)):
                break
            # What the poke itself was answered explains nothing of its time.
            before = [reply for reply in theirs if reply.sent < two.at and _is_failure(reply)]
            asked = max(map(may_ask_again, before), default=0.0)
            # Errors of other waits may hold back all waits for as long again.
            latest = max(one.at + _slowest_poke(schedule, wait), asked) + 2 * (LONGEST_BACKOFF + RESUME)
            if two.at > latest + A_MOMENT:
                raise BrokenError(
                    f"after an event at {at:.3f} and an error it poked at {two.at:.3f}, not by {latest:.3f}"
                )


def is_about(body: dict[str, Any], wait: Wait) -> bool:
    """Return whether a webhook is about the customer of a wait."""
    name = "link_id" if "link_id" in wait.gate else "entity_id"
    return body[name] == wait.gate[name]


def _leaves_nothing_running(trace: Trace) -> None:
    if trace.leftovers:
        raise BrokenError(f"still running: {trace.leftovers}")
    for reply in trace.replies:
        waits = [
            observed
            for observed in trace.waits
            if reply.record[0] == "entities" or may_ask(trace.schedule, observed.wait, reply.record)
        ]
        # A request that got no answer on a kept connection is sent again, also after the end of its wait.
        sent = reply.sent if reply.is_first else reply.begun
        if not any(observed.began <= sent <= observed.ended for observed in waits):
            raise BrokenError(f"asked when no wait was open: {reply}")


# The bound


def longest_pause(wait: Wait, at: float) -> float:
    """Return the longest pause between two pokes that may have begun by ``at``.

    ``exponential_backoff`` doubles it each time, with a jitter of up to two: it is at most twice the time before it.
    """
    pause = max(wait.poke_interval, SHORTEST_PAUSE)
    if wait.exponential_backoff:
        pause = max(pause, min(2 * (at - wait.begins + pause), wait.max_wait or float("inf")))
    return pause


def _slowest(schedule: Schedule) -> float:
    """Return the most seconds that a request takes, of which some may go by on a connection that is forgotten."""
    delay = sum(fault.seconds for fault in schedule.faults if fault.kind == "delay")
    is_silent = delay > PATIENCE or schedule.forgets_after is not None
    return min(REQUEST_TIMEOUT, delay + (PATIENCE if is_silent else 0.0))


def _slowest_poke(schedule: Schedule, wait: Wait) -> float:
    return requests_of(schedule, wait) * _slowest(schedule)


def _stalest(schedule: Schedule) -> float:
    return sum(fault.seconds for fault in schedule.faults if fault.kind == "stale")


def _unreliable(schedule: Schedule, wait: Wait, true_since: float) -> Iterator[tuple[float, float, float]]:
    """Yield the times in which an answer may not show the records: from, until, and the pause that may follow."""
    for fault in schedule.faults:
        end = fault.until or float("inf")
        if fault.call == "identity" and fault.kind in {"status", "garbage"}:
            continue  # the poke reads transactions/ instead
        too_slow = fault.kind == "delay" and _slowest(schedule) >= REQUEST_TIMEOUT
        if too_slow or fault.kind in {"status", "firewall", "reset", "half", "garbage", "redirect"}:
            asked = min(max(float(fault.retry_after or 0), 0.0), LONGEST_RETRY_AFTER)
            yield fault.after, end, max(asked, 0.0 if fault.status == 404 else LONGEST_BACKOFF)
        if fault.kind == "stale":
            yield fault.after, min(end, true_since + _stalest(schedule)), 0.0
    for switch in schedule.switches:
        # A 404 of one record counts as an empty one, while another call may reach the present server.
        if switch.answers == "old" or (switch.answers == "404" and requests_of(schedule, wait) > 1):
            yield switch.at, switch.at + GREATEST_AGE, 0.0
    for frozen in schedule.frozen:
        if wait.uses_identity and may_ask(schedule, wait, ("identity", frozen.entity_id)):
            yield frozen.at, float("inf"), 0.0
    for kill in schedule.kills:
        yield kill.at, kill.back, min(wait.poke_interval, SPREAD)


def bound(schedule: Schedule, wait: Wait, true_since: float) -> float:
    """Return the time by which a wait ends if the vendor's records say from ``true_since`` on that it has to."""
    slow = _slowest_poke(schedule, wait)
    latest = max(true_since, wait.begins)
    if true_since > wait.begins:
        # The first answers of a poke with several requests may be from before.
        latest += SHARED + (slow if requests_of(schedule, wait) > 1 else 0.0)
        latest += longest_pause(wait, latest)
    old = sum(_on_old_connections(schedule, wait, latest, switch.answers) for switch in schedule.switches)
    for start, end, pause in sorted(_unreliable(schedule, wait, true_since)):
        # The pokes on connections from before a switch may come at any time.
        if start <= latest + old:
            # A poke that began in it, its answer, and the test call after a 404.
            over = end + slow + _slowest(schedule)
            latest = max(latest, over + max(pause, longest_pause(wait, over)) + RESUME)
    return latest + old + slow


def _on_old_connections(schedule: Schedule, wait: Wait, at: float, answers: str) -> float:
    """Return the seconds that pass until a wait uses a new connection, because the old server does not serve it."""
    if answers == "old":
        return 0.0
    slow = _slowest_poke(schedule, wait) + _slowest(schedule)
    before = at
    if answers == "404":
        return NOT_FOUND + RENEWAL + 2 * (longest_pause(wait, at + NOT_FOUND) + slow + RESUME)
    for _ in range(ERRORS):
        # Errors of other waits may hold back all waits for as long again.
        at += max(longest_pause(wait, at), 2 * (LONGEST_BACKOFF + RESUME)) + slow
    return at - before + RENEWAL


def truth(trace: Trace, observed: Observed) -> list[tuple[float, Reading]]:
    """Return what the vendor's records said of a wait, each with the time from when on, until it ended."""
    changes = sorted(
        {at for at in _changes(trace, observed.wait) if observed.began < at <= observed.ended} | {observed.began}
    )
    return [(at, read(trace.schedule, observed.wait, recorded(trace, observed.wait, at), at)) for at in changes]


def _changes(trace: Trace, wait: Wait) -> Iterator[float]:
    schedule = trace.schedule
    for play in schedule.plays:
        yield from (play.begins, play.ends, play.ends + play.later, play.ends + play.later / 2)
        yield play.ends + play.transactions_later
    for extra_row in schedule.extra_rows:
        yield extra_row.at
    yield from (frozen.at for frozen in schedule.frozen)
    if "announced_until" in wait.gate:
        yield wait.gate["announced_until"]
    if "link_id" in wait.gate:
        for row in trace.known(wait.starts[0], trace.over):
            at = (when(row, schedule.our_zone) - schedule.start) / timedelta(seconds=1)
            # The grace of a failure ends; a row is no longer in the future.
            yield from (at + wait.gate["failure_grace"], at - 300)


def promised(trace: Trace, observed: Observed) -> list[tuple[float, float]]:
    """Return since when the records say that the wait has to end, and its bound, where that is before the deadline."""
    on_failed, readings = observed.wait.on_failed, truth(trace, observed)
    found = []
    for number, (at, reading) in enumerate(readings):
        if reading.ends(on_failed):
            until = next((later for later, other in readings[number:] if not other.ends(on_failed)), float("inf"))
            latest = bound(trace.schedule, observed.wait, at)
            if latest < min(until, observed.wait.deadline):
                found.append((at, latest))
    return found


def _is_no_later_than_the_bound(trace: Trace, observed: Observed) -> bool:
    bounds = promised(trace, observed)
    for since, latest in bounds:
        if observed.ended > latest + A_MOMENT:
            raise BrokenError(
                f"the records said so since {since:.3f}; it ended at {observed.ended:.3f}, not by {latest:.3f}"
            )
    return bool(bounds)


def decided(trace: Trace, observed: Observed) -> Reading | None:
    """Return the one verdict that the records allow, whenever the pokes are made and however stale the answers are.

    None where there are several, or where the bound is after the deadline.
    """
    wait, schedule = observed.wait, trace.schedule
    if wait.is_of_customer and any(
        fault.kind in {"delay", "stale"} or fault.status == 404 for fault in schedule.faults
    ):
        # A poke may read its records as they were at different times, or no history: a link with a 404 has no rows.
        return None
    if schedule.switches:
        # Some pokes read the old records, and others the present ones.
        return None
    if wait.poke_interval >= REPEATED and any(fault.kind == "firewall" for fault in schedule.faults):
        # Two of its pokes in a row, which a bound for shorter intervals does not expect, may end it with a 403.
        return None
    first = next((at for at, reading in truth(trace, observed) if reading.ends(wait.on_failed)), None)
    if first is None or (until := bound(schedule, wait, first)) >= min(wait.deadline, trace.over):
        return None
    stale = SHARED + _slowest_poke(schedule, wait) + _stalest(schedule)
    begins = observed.began - stale
    changes = sorted({at for at in _changes(trace, wait) if begins < at <= until} | {begins, observed.began})
    endings = set()
    for seen, next_seen in pairwise([*changes, until]):
        said = recorded(trace, wait, seen)
        for at in changes:
            if max(seen, observed.began) <= at <= next_seen + stale:
                reading = read(schedule, wait, said, at)
                if reading.ends(wait.on_failed):
                    endings.add(reading)
                elif first <= at < next_seen:
                    return None
    return endings.pop() if len(endings) == 1 else None
