"""The rules of a wait, as properties: whatever is answered when, in every mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect import wait as rules
from airflow_provider_bankconnect.gate import Expectation, Row, Verdict
from airflow_provider_bankconnect.records import HistoryGate, ProgressGate, Records
from airflow_provider_bankconnect.wait import End, Poke, TestCall, Wait

START = datetime(2026, 11, 28, tzinfo=UTC)
GATE = HistoryGate(Expectation(link_id="loan"))
SMALL = ProgressGate(Expectation(entity_id="e1"))
UNTRUSTED = Records(items={"e1": []}, distrust="why")
PENDING = Verdict("pending", (), "no row that counts")
PASSED = Verdict("passed", (Row("s1", "e1", "loan", "completed", "", START.isoformat()),), "1 statement completed")
DOUBTFUL = (api.BankConnectForbiddenError, api.BankConnectSettingsError)
FINAL = (api.BankConnectAuthError, api.BankConnectTimezoneError)
NOTHING = timedelta(microseconds=2)


def at(seconds):
    return START + timedelta(seconds=seconds)


@dataclass
class Vendor:
    """What a poke gets, by its number; and from when on the verdict is passed."""

    errors: list[Any]
    took: list[float]
    completed: float

    def answer(self, number, begins):
        """Return the outcome and the seconds that it takes."""
        took = self.took[number % len(self.took)]
        error = self.errors[number] if number < len(self.errors) else None
        return error or (PASSED if begins + took >= self.completed else PENDING), took


@dataclass
class Trace:
    """What a driver did: ``(begun, answered, outcome, is_last)`` of each poke, and the end."""

    pokes: list[tuple[float, float, Any, bool]] = field(default_factory=list)
    notified: list[tuple[datetime, datetime]] = field(default_factory=list)
    in_full: list[bool] = field(default_factory=list)
    end: End | None = None
    ended: float = 0.0


def drive(vendor, arguments, events=(), dice=(0.5,), mode="deferred", gate=GATE):  # noqa: PLR0917 - all short
    """Execute the actions of a wait, as the sensor or the trigger does."""
    trace, now, waiting = Trace(), 0.0, sorted(events)
    wait = Wait(gate, START, arguments)
    while True:
        while waiting and waiting[0] <= now and mode == "deferred":
            before = wait.next(at(now))
            wait.notified(at(max(now, waiting.pop(0))))
            after = wait.next(at(now))
            if isinstance(before, Poke) and isinstance(after, Poke):
                trace.notified.append((before.at, after.at))
        action = wait.next(at(now))
        if isinstance(action, End):
            trace.end, trace.ended = action, now
            return trace
        if isinstance(action, TestCall):
            wait.tested(None)
            continue
        due = (action.at - START).total_seconds()
        if due > now:
            wakes = [event for event in waiting if event < due] if mode == "deferred" else []
            now = max(now, wakes[0]) if wakes else due
            if mode == "reschedule" and not action.is_last:
                wait = Wait(gate, at(now), {**arguments, "started": START}, is_new=False)
                wait.reschedule(at(now))
            continue
        number = len(trace.pokes)
        outcome, took = vendor.answer(number, now)
        wait.begin(at(now))
        trace.in_full.append(wait.question == gate.in_full())
        until = (action.until - START).total_seconds()
        if mode == "deferred" and now + took > until:
            trace.pokes.append((now, until, None, action.is_last))
            now = until
            continue
        trace.pokes.append((now, now + took, outcome, action.is_last))
        now += took
        report = wait.failed
        if not isinstance(outcome, Exception):
            report = wait.judged if isinstance(outcome, Verdict) else wait.answered
        report(outcome, at(now), dice[number % len(dice)])


seconds = st.floats(0, 900).map(lambda value: round(value, 3))
errors = st.one_of(
    st.none(),
    st.builds(
        lambda asked: api.BankConnectRateLimitError("429", status=429, retry_after=asked),
        st.none() | st.sampled_from([0.5, 30.0, 599.0, 600.0, 601.0, 3600.0]),
    ),
    st.sampled_from(
        [
            api.BankConnectServerError("500"),
            api.BankConnectConnectionError("reset"),
            api.BankConnectResponseError("no JSON"),
            api.BankConnectNotFoundError("404"),
            api.BankConnectForbiddenError("403"),
            api.BankConnectSettingsError("not found"),
        ]
    ),
)
vendors = st.builds(
    Vendor,
    st.lists(errors, max_size=12),
    st.lists(st.sampled_from([0.0, 0.01, 0.5, 7.0, 30.0]), min_size=1, max_size=5),
    st.just(float("inf")) | seconds,
)
paces = st.builds(
    lambda timeout, interval, backs_off, max_wait: {
        "deadline": at(timeout),
        "poke_interval": interval,
        "exponential_backoff": backs_off,
        "max_wait": max_wait,
    },
    seconds,
    st.sampled_from([0.05, 1.0, 20.0, 600.0]),
    st.booleans(),
    st.none() | st.sampled_from([0.5, 100.0]),
)
dice = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
many_events = st.lists(seconds, max_size=6)
modes = st.sampled_from(["poke", "reschedule", "deferred"])


@settings(max_examples=150, deadline=None)
@given(vendors, paces, many_events, dice, modes)
def test_no_poke_begins_within_a_second_of_an_answer_or_before_the_end_of_a_pause(vendor, pace, events, dice, mode):
    trace = drive(vendor, pace, events, dice, mode)
    for number, (_, answered, outcome, _) in enumerate(trace.pokes):
        asked = getattr(outcome, "retry_after", None) or 0.0
        for begun, _, _, is_last in trace.pokes[number + 1 :]:
            if outcome is not None:
                assert begun >= answered + rules.MIN_INTERVAL - 1e-5
            if not (is_last and asked > rules.LONGEST_LAST_PAUSE) and mode != "reschedule":
                assert begun >= answered + asked - 1e-5
        if mode == "reschedule" and number + 1 < len(trace.pokes) and asked <= rules.LONGEST_LAST_PAUSE:
            assert trace.pokes[number + 1][0] >= answered + asked - 1e-5, "the next poke, for a process knows no other"


@settings(max_examples=150, deadline=None)
@given(vendors, paces, many_events, dice, modes)
def test_a_wait_that_times_out_has_poked_at_its_deadline_unless_a_short_pause_forbade_it(
    vendor, pace, events, dice, mode
):
    trace = drive(vendor, pace, events, dice, mode)
    deadline = (pace["deadline"] - START).total_seconds()
    if trace.end.status != "timeout":
        return
    assert trace.ended >= deadline
    made = any(begun >= deadline - 1e-5 or answered >= deadline - 1e-5 for begun, answered, _, _ in trace.pokes)
    pauses = [(getattr(outcome, "retry_after", None) or 0.0, answered) for _, answered, outcome, _ in trace.pokes]
    paused = any(asked <= rules.LONGEST_LAST_PAUSE and answered + asked > deadline for asked, answered in pauses)
    assert made or paused
    assert len([1 for begun, _, _, _ in trace.pokes if begun >= deadline]) <= 1
    assert trace.ended <= deadline + rules.MIN_INTERVAL + 2 * rules.LAST_POKE_SECONDS


@settings(max_examples=100, deadline=None)
@given(vendors, paces, many_events, dice)
def test_an_event_never_delays_a_poke(vendor, pace, events, dice):
    for before, after in drive(vendor, pace, events, dice).notified:
        assert after <= before


@settings(max_examples=100, deadline=None)
@given(vendors, paces, dice, modes, st.sampled_from([None, *FINAL]))
def test_errors_end_no_wait_before_its_deadline_except_the_final_ones(vendor, pace, dice, mode, final):
    if final is not None:
        vendor.errors.append(final("final"))
    trace = drive(vendor, pace, (), dice, mode)
    met = [outcome for _, _, outcome, _ in trace.pokes if isinstance(outcome, FINAL)]
    # A rescheduled process does not know what the one before it got.
    if mode != "reschedule" or trace.end.status == "error":
        met += repeated(trace)
    assert (trace.end.status == "error") == bool(met)
    if trace.end.status == "passed":
        assert trace.pokes[-1][2] is PASSED
    elif not met:
        assert trace.ended >= (pace["deadline"] - START).total_seconds()


def repeated(trace):
    """Return the errors that came again after five minutes without an answer."""
    since, found = None, []
    for _, answered, outcome, _ in trace.pokes:
        if isinstance(outcome, DOUBTFUL):
            found += [outcome] if since is not None and answered - since >= 300 - 1e-6 else []
            since = answered if since is None else since
        elif isinstance(outcome, Verdict | api.BankConnectNotFoundError):
            since = None
    return found


@settings(max_examples=100, deadline=None)
@given(vendors, paces, dice)
def test_without_errors_and_slow_answers_all_modes_end_alike(vendor, pace, dice):
    vendor.errors, vendor.took = [], [0.01]
    ends = {drive(vendor, pace, (), dice, mode).end for mode in ("poke", "reschedule", "deferred")}
    assert len({(end.status, end.rows) for end in ends}) == 1


@settings(max_examples=100, deadline=None)
@given(vendors, paces, many_events, dice)
def test_a_wait_pokes_at_its_pace_while_nothing_goes_wrong(vendor, pace, events, dice):
    """No poke is forgotten: the time between two is at most the interval, twice that with jitter, or max_wait."""
    vendor.errors = []
    trace = drive(vendor, {**pace, "exponential_backoff": False}, events, dice)
    longest = (
        max(pace["poke_interval"], 1.0)
        if pace["max_wait"] is None
        else max(min(pace["poke_interval"], pace["max_wait"]), 1.0)
    )
    for (_, answered, _, _), (begun, _, _, _) in pairwise(trace.pokes):
        assert begun - answered <= longest + 1.0 + 1e-5, "the last second before the deadline has no poke"


@settings(max_examples=100, deadline=None)
@given(vendors, paces, dice, st.integers(0, 8))
def test_a_wait_that_is_deferred_and_restarted_continues_as_its_arguments_say(vendor, pace, dice, restarts):
    """Arguments, and their way through a database, lose nothing that the next action depends on."""
    wait, now = Wait(GATE, START, pace), START
    for number in range(restarts):
        wait.begin(now)
        outcome, took = vendor.answer(number, (now - START).total_seconds())
        now += timedelta(seconds=took)
        (wait.judged if isinstance(outcome, Verdict) else wait.failed)(outcome, now, dice[number % len(dice)])
        action = wait.next(now)
        if not isinstance(action, Poke) or action.is_last:
            return
        again = Wait(GATE, now, wait.arguments(), is_new=False)
        assert again.arguments() == wait.arguments()
        assert again.next(now) == action
        wait, now = again, action.at


@settings(max_examples=150, deadline=None)
@given(vendors, paces, many_events, dice, modes)
def test_a_wait_that_times_out_has_made_its_last_poke_in_full(vendor, pace, events, dice, mode):
    trace = drive(vendor, pace, events, dice, mode, SMALL)
    deadline = (pace["deadline"] - START).total_seconds()
    if trace.end.status != "timeout" or not trace.pokes:
        return
    begun, answered, _, _ = trace.pokes[-1]
    if begun >= deadline or answered >= deadline:
        asked = [(getattr(outcome, "retry_after", None) or 0.0, end) for _, end, outcome, _ in trace.pokes]
        is_paused = any(pause <= rules.LONGEST_LAST_PAUSE and end + pause > deadline for pause, end in asked)
        assert trace.in_full[-1] or is_paused


@settings(max_examples=150, deadline=None)
@given(vendors, paces, dice, st.integers(0, 6), st.sampled_from(["poke", "deferred"]))
def test_pokes_are_small_until_an_answer_cannot_be_trusted_but_for_the_last_one(vendor, pace, dice, distrusted, mode):
    vendor.completed = float("inf")
    vendor.errors = vendor.errors[:distrusted] + [None] * (distrusted - len(vendor.errors)) + [UNTRUSTED]
    trace = drive(vendor, pace, (), dice, mode, SMALL)
    deadline = (pace["deadline"] - START).total_seconds()
    is_distrusted = False
    for (begun, _, outcome, _), in_full in zip(trace.pokes, trace.in_full, strict=True):
        assert in_full == (is_distrusted or begun >= deadline - 1e-5)
        is_distrusted = is_distrusted or isinstance(outcome, Records)
