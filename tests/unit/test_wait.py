"""The rules of a wait: next actions and log lines, from what was learned. Properties stand in test_wait_properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.gate import Expectation, Row, Verdict
from airflow_provider_bankconnect.pause import Pause, SharedPause
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate, Records
from airflow_provider_bankconnect.wait import End, Poke, TestCall, Wait, WaitArguments

NOW = datetime(2026, 11, 28, 20, 41, tzinfo=UTC)
GATE = HistoryGate(Expectation(link_id="loan-4711"))
PENDING = Verdict("pending", (), "no row that counts")
NOT_FOUND = api.BankConnectNotFoundError("webhook_payloads: HTTP 404: unknown", status=404)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def wait(*, gate=GATE, timeout=3600.0, is_new=True, **arguments):
    return Wait(gate, NOW, {"deadline": at(timeout), "poke_interval": 60.0, **arguments}, is_new=is_new)


def row(statement_id="", progress="failed", reason="", ago=0.0):
    return Row(statement_id, "e1", "loan-4711", progress, reason, at(-ago).isoformat())


def rate_limited(seconds):
    return api.BankConnectRateLimitError("webhook_payloads: HTTP 429", status=429, retry_after=seconds)


def poked(one, outcome=PENDING, *, begins=0.0, ends=None, dice=0.0):
    """Poke, and report the outcome."""
    one.begin(at(begins))
    report = one.judged if isinstance(outcome, Verdict) else one.failed
    report(outcome, at(begins if ends is None else ends), dice)
    return one


def next_poke(one, now=0.0):
    action = one.next(at(now))
    assert isinstance(action, Poke), action
    return (action.at - NOW).total_seconds()


def texts(one):
    return [text for _, text in one.take_lines()]


# The pace


def test_the_first_poke_is_due_at_once_and_may_take_until_the_deadline():
    assert wait().next(NOW) == Poke(NOW, at(3600))


def test_the_next_poke_is_one_interval_after_the_answer():
    assert next_poke(poked(wait(), begins=0, ends=5)) == 65


@pytest.mark.parametrize(("interval", "pause"), [(0.01, 1), (1.5, 1.5), (1e12, 3600)])
def test_the_interval_is_never_under_a_second_and_never_beyond_the_deadline(interval, pause):
    assert next_poke(poked(wait(poke_interval=interval))) == pause


def test_exponential_backoff_doubles_the_interval_with_jitter_up_to_max_wait():
    one = wait(timeout=1e6, exponential_backoff=True, max_wait=500.0)
    pauses, now = [], 0.0
    for dice in (0.0, 0.5, 0.25, 0.0):
        poked(one, begins=now, dice=dice)
        pauses.append(next_poke(one, now) - now)
        now += pauses[-1]
    assert pauses == [60, 180, 300, 480]
    poked(one, begins=now)
    assert next_poke(one, now) - now == 500


def test_an_event_at_the_time_of_the_next_poke_makes_no_early_poke_of_it():
    one = wait(timeout=1e6, exponential_backoff=True)
    one.notified(NOW)
    poked(one)
    for begins in (2, 7, 27):
        assert next_poke(one, begins) == begins
        poked(one, begins=begins)
    assert next_poke(one, 27) == 27 + 60


def test_a_short_interval_is_not_an_early_poke_after_an_event():
    one = wait(timeout=1e6, poke_interval=2.0, exponential_backoff=True, max_wait=2.0)
    one.notified(NOW)
    poked(one)
    poked(one, begins=2)
    one.max_wait = None
    poked(one, begins=4)
    assert one.next(at(4)).at == at(4 + 8)


def test_the_pace_has_defaults_and_the_arguments_say_them():
    one = Wait(GATE, NOW, {"deadline": at(3600)})
    told = one.arguments()
    assert next_poke(poked(one)) == 60
    for name in ("exponential_backoff", "silent_fail", "in_full"):
        assert told[name] is False
    assert (told["paused"], told["pokes"], told["max_wait"], told["logged"]) == (0.0, 0, None, None)
    assert told["paused_until"].startswith("1970-01-01")
    assert one.deadline.tzinfo is UTC
    error = api.BankConnectHostError("x")
    assert isinstance(poked(Wait(GATE, NOW, {"deadline": at(9)}), error).next(NOW), End), "it is new"


def test_a_very_long_exponential_backoff_overflows_nothing():
    one = wait(timeout=1e8, exponential_backoff=True, pokes=5000)
    assert next_poke(poked(one, dice=0.999)) == 1e8


@pytest.mark.parametrize(("elapsed", "pause"), [(0, 60), (59, 60), (100, 120), (500, 480), (1000, 960)])
def test_a_rescheduled_wait_estimates_from_the_elapsed_time_how_often_it_has_poked(elapsed, pause):
    one = Wait(
        GATE,
        at(elapsed),
        {"deadline": at(1e6), "poke_interval": 60.0, "exponential_backoff": True, "started": NOW},
        is_new=False,
    )
    one.reschedule(at(elapsed))
    poked(one, begins=elapsed)
    assert next_poke(one, elapsed) - elapsed == pause


def test_an_answer_is_followed_by_the_interval_with_its_own_jitter():
    one = wait(timeout=1e6, exponential_backoff=True)
    one.begin(NOW)
    one.answered([], NOW, 0.5)
    assert next_poke(one) == 90


@pytest.mark.parametrize(("interval", "elapsed", "pause"), [(0.9, 0.0, 1.0), (0.5, 1.5, 2.0)])
def test_a_rescheduled_wait_with_a_short_interval_estimates_as_well(interval, elapsed, pause):
    arguments = {"deadline": at(1e6), "poke_interval": interval, "exponential_backoff": True, "started": NOW}
    one = Wait(GATE, at(elapsed), arguments, is_new=False)
    one.reschedule(at(elapsed))
    poked(one, begins=elapsed)
    assert next_poke(one, elapsed) - elapsed == pause


# Errors


@pytest.mark.parametrize("error", [api.BankConnectResponseError("x"), OSError("x"), rate_limited(None)])
def test_an_error_without_a_retry_after_is_no_pause(error):
    assert poked(wait(), error).arguments()["paused"] == 0


@pytest.mark.parametrize(
    "error",
    [rate_limited(None), api.BankConnectServerError("x"), api.BankConnectResponseError("x"), OSError("x")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_does_not_end_the_wait(error):
    assert next_poke(poked(wait(), error)) == 60


@pytest.mark.parametrize("retry_after", [100.0, 300.0])
def test_the_next_poke_waits_for_the_retry_after(retry_after):
    assert next_poke(poked(wait(), rate_limited(retry_after))) == retry_after


def test_errors_in_a_row_back_off_up_to_a_minute():
    one, pauses = wait(poke_interval=1.0, timeout=1e6), []
    for number in range(9):
        poked(one, api.BankConnectServerError("x"), begins=1000 * number, dice=0.5)
        pauses.append(next_poke(one, 1000 * number) - 1000 * number)
    assert pauses == [1, 1, 2, 4, 8, 16, 30, 30, 30]
    poked(one, begins=9000)
    poked(one, api.BankConnectServerError("x"), begins=9100, dice=0.5)
    assert next_poke(one, 9100) - 9100 == 1, "a verdict ends the streak"


def test_a_streak_of_errors_is_logged_when_it_begins_and_when_it_is_over():
    one = poked(wait(), PENDING)
    one.take_lines()
    for number in range(1, 4):
        poked(one, api.BankConnectServerError("webhook_payloads: HTTP 500"), begins=60 * number)
    poked(one, PENDING, begins=240)
    assert one.take_lines() == [
        (
            "warning",
            (
                "The wait continues after an error: BankConnectServerError: webhook_payloads: HTTP 500; "
                "next check 20:43 UTC"
            ),
        ),
        ("info", "BankConnect answers again, after 3 errors in a row"),
    ]


@pytest.mark.parametrize("pokes", [0, 7])
@pytest.mark.parametrize(
    "error",
    [api.BankConnectAuthError("no"), api.BankConnectTimezoneError("zone"), api.BankConnectLimitError("too many")],
    ids=lambda e: type(e).__name__,
)
def test_wrong_keys_a_wrong_timezone_and_too_many_entities_end_the_wait_at_any_poke(error, pokes):
    one = poked(wait(is_new=False, pokes=pokes), error)
    assert one.next(NOW) == End("error", str(error), error=error)


@pytest.mark.parametrize("kind", [api.BankConnectCertificateError, api.BankConnectHostError])
def test_a_wrong_certificate_or_host_ends_the_wait_at_its_first_poke_only(kind):
    error = kind("why")
    assert poked(wait(), error).next(NOW) == End("error", "why", error=error)
    assert next_poke(poked(poked(wait()), error, begins=60), 60) == 120
    assert next_poke(poked(wait(is_new=False), error)) == 60


def test_with_silent_fail_no_error_is_final():
    one = poked(wait(silent_fail=True), api.BankConnectAuthError("no"))
    assert next_poke(one) == 60
    poked(one, api.BankConnectForbiddenError("no"), begins=60)
    poked(one, api.BankConnectForbiddenError("no"), begins=360)
    assert next_poke(one, 360) == 420


doubtful = pytest.mark.parametrize("kind", [api.BankConnectForbiddenError, api.BankConnectSettingsError])


@doubtful
@pytest.mark.parametrize("is_new", [False, True])
def test_an_error_that_may_be_final_is_final_when_it_comes_again_after_five_minutes(kind, is_new):
    error = kind("why")
    one = poked(wait(is_new=is_new), error)
    assert next_poke(one) == 60
    poked(one, error, begins=299)
    assert isinstance(one.next(at(299)), Poke)
    poked(one, error, begins=300)
    assert one.next(at(300)) == End("error", "why", error=error)


@doubtful
@pytest.mark.parametrize("between", [PENDING, NOT_FOUND], ids=["answer", "404"])
def test_an_answer_between_two_such_errors_starts_the_five_minutes_anew(kind, between):
    one = poked(wait(), kind("why"))
    poked(one, between, begins=200)
    poked(one, kind("why"), begins=210)
    poked(one, kind("why"), begins=509)
    assert not isinstance(one.next(at(509)), End)
    poked(one, kind("why"), begins=510)
    assert one.next(at(510)).status == "error"


@doubtful
def test_another_error_between_two_such_errors_changes_nothing(kind):
    one = poked(wait(), kind("why"))
    poked(one, api.BankConnectServerError("x"), begins=200)
    assert isinstance(one.next(at(300)), Poke)
    poked(one, api.BankConnectServerError("x"), begins=300)
    assert isinstance(one.next(at(300)), Poke)
    poked(one, kind("why"), begins=301)
    assert one.next(at(301)).status == "error"


# New network connections


def test_after_three_errors_in_a_row_a_poke_needs_a_new_connection():
    one, needs = wait(), []
    for number in range(4):
        poked(one, api.BankConnectServerError("x"), begins=60 * number)
        needs.append(one.needs_new_connection(at(60 * number)))
    assert needs == [False, False, True, True]
    poked(one, begins=300)
    assert not one.needs_new_connection(at(300))


def test_after_five_minutes_of_404_a_poke_needs_a_new_connection():
    one = poked(wait(), NOT_FOUND)
    assert not one.needs_new_connection(at(299))
    assert one.needs_new_connection(at(300))
    poked(one, begins=300)
    assert not one.needs_new_connection(at(900))


def test_the_last_poke_needs_a_new_connection():
    one = poked(wait(timeout=100))
    assert not one.needs_new_connection(at(99))
    assert one.needs_new_connection(at(100))


# Verdicts


@pytest.mark.parametrize("on_failed", ["fail", "skip", "wait", "pass"])
@pytest.mark.parametrize("state", ["pending", "passed", "failed"])
def test_a_verdict_ends_the_wait_as_on_failed_says(state, on_failed):
    verdict = Verdict(state, (row("s1", "completed"),), "because")
    action = poked(wait(on_failed=on_failed), verdict).next(NOW)
    if state == "pending" or (state, on_failed) == ("failed", "wait"):
        assert isinstance(action, Poke)
    else:
        assert action == End(state, "because", verdict.rows)


def test_an_ended_wait_stays_ended():
    one = poked(wait(), Verdict("passed", (row("s1", "completed"),), "1 statement completed"))
    assert one.next(NOW) == one.next(at(1e9))


# The deadline


def test_the_last_poke_is_at_the_deadline_and_then_the_wait_times_out():
    one = poked(wait(timeout=100))
    poked(one, begins=60)
    assert one.next(at(61)) == Poke(at(100), at(160), is_last=True)
    poked(one, begins=100)
    end = one.next(at(100))
    assert (end.status, end.rows) == ("timeout", ())
    assert end.because.startswith("no row that counts (to check: is the link spelt as the SDK was given it")


def test_no_poke_is_in_the_last_second_before_the_deadline():
    assert next_poke(poked(wait(timeout=60.5))) == 60.5
    assert next_poke(poked(wait(timeout=61))) == 60
    assert next_poke(poked(wait(timeout=60.999))) == 60.999


def test_the_last_poke_keeps_a_second_from_the_answer_before():
    one = poked(wait(timeout=10), begins=0, ends=9.5)
    assert one.next(at(10)) == Poke(at(10.5), at(70.5), is_last=True)


def test_a_poke_that_ends_after_the_deadline_was_the_last_one():
    assert poked(wait(timeout=10), begins=5, ends=10).next(at(10)).status == "timeout"


def test_a_poke_that_was_cancelled_at_the_deadline_was_not_the_last_one():
    one = wait(timeout=10)
    one.begin(at(5))
    assert one.next(at(10)) == Poke(at(10), at(70), is_last=True)
    one.begin(at(10))
    assert one.next(at(70)).status == "timeout"


def test_an_answer_of_another_wait_is_not_the_last_poke():
    one = poked(wait(timeout=10))
    one.next(at(10))
    one.judged(PENDING, at(10), 0.0)
    assert one.next(at(11)) == Poke(at(11), at(71), is_last=True)


@pytest.mark.parametrize(("seconds", "is_made"), [(599.0, False), (600.0, False), (601.0, True)])
def test_a_pause_of_at_most_ten_minutes_leaves_out_the_last_poke(seconds, is_made):
    for one in (poked(wait(timeout=100), rate_limited(seconds)), poked(wait(timeout=100))):
        one.paused(Pause(seconds, at(seconds)), NOW)
        assert isinstance(one.next(at(100)), Poke if is_made else End)


def test_a_pause_that_is_over_leaves_out_nothing():
    one = poked(wait(timeout=100), rate_limited(50.0))
    one.paused(Pause(100.0, at(100)), at(50))
    assert isinstance(one.next(at(100)), Poke)


@pytest.mark.parametrize(("first", "second"), [(900, 700), (500, 400)])
def test_of_two_pauses_the_one_that_ends_later_counts(first, second):
    """It may be the one of fewer seconds, if BankConnect asked for it later."""
    one = poked(wait(timeout=1000))
    one.paused(Pause(first, at(first)), NOW)
    one.paused(Pause(second, at(first + 600)), at(first - 1))
    if second <= 600:
        # It ends after the deadline, so that the last poke is left out.
        assert isinstance(one.next(at(1000)), End)
    else:
        poked(one, begins=1000)
    assert f"pause of {second} s" in one.next(at(1001)).because


def test_a_404_is_told_with_what_bankconnect_answered_and_what_to_check():
    one = poked(wait(), NOT_FOUND)
    [text] = texts(one)
    assert text.startswith(f"Not yet: {GATE}: {NOT_FOUND} (to check: ")
    assert one.seen.startswith(f"{NOT_FOUND} (to check: ")


def test_a_short_pause_within_a_long_one_leaves_out_the_last_poke():
    one = poked(wait(timeout=100))
    one.paused(Pause(3600.0, at(3600)), NOW)
    one.paused(Pause(90.0, at(110)), at(20))
    assert one.next(at(100)).status == "timeout"
    assert one.next(at(100)).because.startswith("BankConnect asked for a pause of 3600 s")


def test_a_timeout_names_the_errors_since_the_last_verdict():
    one = poked(wait(timeout=100), Verdict("pending", (row("s1", "processing"),), "0 of 1 statement completed"))
    poked(one, api.BankConnectServerError("HTTP 500"), begins=60)
    poked(one, api.BankConnectServerError("HTTP 503"), begins=100)
    assert one.next(at(100)).because == (
        "0 of 1 statement completed; then 2 errors in a row, the last: BankConnectServerError: HTTP 503"
    )


def test_a_timeout_names_a_single_error():
    one = poked(wait(timeout=100))
    poked(one, OSError("x"), begins=100)
    assert one.next(at(100)).because.endswith("; then 1 error in a row, the last: OSError: x")


HELD = "BankConnect asked for a pause of {} s (Retry-After): {} held until {}"


@pytest.mark.parametrize(
    ("asked", "shared", "who"),
    [
        (3600.0, None, "this wait is"),
        (0.0, 3600.0, "all waits of the connection are"),
        (50.0, 3600.0, "all waits of the connection are"),
    ],
)
def test_a_timeout_names_a_pause_that_is_not_over(asked, shared, who):
    one = poked(wait(timeout=100), rate_limited(asked) if asked else PENDING)
    if shared:
        one.paused(Pause(shared, at(shared)), NOW)
    one.begin(at(100))
    because = one.next(at(160)).because
    assert because.startswith(HELD.format(3600, who, "21:41 UTC") + ". Before that: ")
    assert one.seen in because


def test_a_timeout_does_not_name_a_pause_that_is_over():
    for seconds in (99.0, 100.0):
        one = poked(wait(timeout=100), rate_limited(seconds))
        poked(one, begins=100)
        assert one.next(at(100)).because == one.seen


def test_a_timeout_does_not_say_that_all_waits_are_held_by_a_pause_that_is_over():
    one = poked(wait(timeout=100), rate_limited(3600.0))
    one.paused(Pause(90.0, at(100)), NOW)
    poked(one, begins=100)
    assert "this wait is held until" in one.next(at(100)).because


def test_a_long_pause_is_logged_once_by_each_wait():
    one = wait()
    one.paused(Pause(3600.0, at(3600)), NOW)
    one.paused(Pause(3600.0, at(3600.9)), at(60))
    assert one.take_lines() == [("warning", HELD.format(3600, "all waits of the connection are", "21:41 UTC"))]
    one.paused(Pause(3600.0, at(3661.0)), at(61))
    assert texts(one) == [HELD.format(3600, "all waits of the connection are", "21:42 UTC")]


@pytest.mark.parametrize(("seconds", "lines"), [(60.0, 0), (61.0, 1)])
def test_a_pause_of_a_minute_is_not_logged(seconds, lines):
    one = wait()
    one.paused(Pause(seconds, at(seconds)), NOW)
    assert len(one.take_lines()) == lines


def test_an_error_with_a_long_pause_is_logged_in_a_streak_too():
    one = poked(poked(wait(), api.BankConnectServerError("x")), rate_limited(60.0), begins=60)
    assert len(texts(one)) == 1
    poked(one, rate_limited(61.0), begins=120)
    assert texts(one) == [
        "The wait continues after an error: BankConnectRateLimitError: webhook_payloads: HTTP 429; next check 20:44 UTC"
    ]


def test_a_timeout_without_any_answer_says_so():
    one = wait(timeout=0)
    one.begin(NOW)
    assert one.next(at(60)).because == "no answer yet"


# 404


def test_after_five_minutes_of_404_and_not_before_the_test_call_is_made_once():
    one = poked(wait(timeout=1000), NOT_FOUND)
    assert isinstance(one.next(at(299)), Poke)
    assert one.next(at(300)) == TestCall(at(1000))
    one.tested(None)
    assert isinstance(one.next(at(301)), Poke)
    poked(one, begins=301)
    poked(one, NOT_FOUND, begins=400)
    assert isinstance(one.next(at(699)), Poke)
    assert one.next(at(700)) == TestCall(at(1000)), "another answer in between begins a new streak of 404"


def test_404_through_an_error_is_one_streak():
    one = poked(wait(), NOT_FOUND)
    poked(one, api.BankConnectServerError("x"), begins=60)
    poked(one, NOT_FOUND, begins=120)
    assert isinstance(one.next(at(300)), TestCall)


def test_at_the_deadline_the_test_call_follows_the_last_poke():
    one = poked(wait(timeout=100), NOT_FOUND)
    assert isinstance(one.next(at(100)), Poke)
    poked(one, NOT_FOUND, begins=100)
    assert one.next(at(100)) == TestCall(at(160), is_last=True)
    one.paused(Pause(3600.0, at(100)), NOW)
    assert one.next(at(100)) == TestCall(at(160), is_last=True), "a pause that is over delays nothing"
    one.tested(NOT_FOUND)
    assert one.next(at(101)).because.startswith("even the test call gets HTTP 404: check the path in the connection's")


@pytest.mark.parametrize("shared", [False, True])
def test_during_a_pause_no_test_call_is_made_at_the_deadline(shared):
    one = poked(wait(timeout=100), NOT_FOUND)
    poked(one, begins=100, outcome=PENDING if shared else rate_limited(601.0))
    if shared:
        one.failed(NOT_FOUND, at(100), 0.0)
        one.paused(Pause(601.0, at(701)), at(100))
    assert one.next(at(100)).status == "timeout"


def test_the_outcome_of_the_test_call_is_logged():
    one = wait()
    one.tested(NOT_FOUND)
    one.tested(api.BankConnectServerError("HTTP 500"))
    one.tested(None)
    assert one.take_lines() == [
        (
            "warning",
            "BankConnect answers 404; even the test call gets HTTP 404: check the path in the connection's host",
        ),
        ("info", "The test call found out nothing: HTTP 500"),
    ]


def test_an_answer_after_the_test_call_takes_back_that_the_path_is_wrong():
    one = poked(wait(timeout=1000), NOT_FOUND)
    one.tested(NOT_FOUND)
    poked(one, begins=1000)
    assert not one.next(at(1000)).because.startswith("even the test call")


# Small answers

SMALL = ProgressGate(Expectation(entity_id="e1"))
CUSTOMER = CustomerGate(Expectation(link_id="loan-4711"))
HTTP_500 = api.BankConnectServerError("transactions: HTTP 500")


def records(status="processing", distrust=""):
    item = api.StatementProgress(statement_id="s1", status=status)
    return Records(items={"e1": [item]}, distrust=distrust)


def answered(one, rows, *, begins=0.0, ends=None):
    """Poke, and report the rows of the answer."""
    one.begin(at(begins))
    one.answered(rows, at(begins if ends is None else ends), 0.0)
    return one


@pytest.mark.parametrize("gate", [SMALL, CUSTOMER], ids=["progress", "customer"])
def test_a_wait_pokes_with_small_answers_until_one_cannot_be_trusted(gate):
    one = wait(gate=gate)
    assert one.question is gate
    answered(one, records())
    assert one.question is gate
    answered(one, records(distrust="why"), begins=60)
    assert one.question == gate.in_full()
    answered(one, records(), begins=120)
    assert one.question == gate.in_full()


def test_distrust_is_logged_once_after_what_is_there():
    one = answered(wait(gate=SMALL), records(distrust="identity/ has no transaction_status"))
    reads = "Each further check reads transactions/ instead of the smaller identity/"
    assert one.take_lines() == [
        ("info", "Not yet: progress of transactions of entity 'e1': 1 statement in progress; next check 20:42 UTC"),
        ("info", f"{reads}: identity/ has no transaction_status"),
    ]
    answered(one, records(distrust="another reason"), begins=60)
    assert one.take_lines() == []


def test_an_answer_that_can_be_trusted_logs_nothing_of_it():
    assert len(texts(answered(wait(gate=SMALL), records()))) == 1


@pytest.mark.parametrize(("status", "state"), [("completed", "passed"), ("failed", "failed")])
def test_distrust_is_not_logged_if_that_answer_ends_the_wait(status, state):
    one = answered(wait(gate=SMALL), records(status, "why"))
    assert one.take_lines() == []
    assert one.next(NOW).status == state
    assert one.arguments()["in_full"] is False


def test_the_list_of_another_gate_has_no_distrust():
    rows = [api.StatementProgress(statement_id="s1", status="processing")]
    one = answered(wait(gate=ProgressGate(Expectation(entity_id="e1"), "identity")), rows)
    assert one.arguments()["in_full"] is False
    assert one.question is one.gate


def test_a_wait_stays_in_full_when_it_is_deferred_and_restarted():
    one = answered(wait(gate=SMALL), records(distrust="why"))
    assert one.arguments()["in_full"] is True
    again = Wait(SMALL, at(1), one.arguments(), is_new=False)
    assert again.question == SMALL.in_full()
    again.take_lines()
    answered(again, records(distrust="why"), begins=60)
    assert texts(again) == []
    assert again.arguments()["in_full"] is True
    assert wait(gate=SMALL).arguments()["in_full"] is False


def test_an_answer_is_judged_at_its_time():
    gate = CustomerGate(Expectation(link_id="loan-4711"))
    login = api.WebhookPayload(
        statement_id="", entity_id="e1", link_id="loan-4711", progress="failed", reason="", date_time=NOW
    )
    one = answered(wait(gate=gate), Records(rows=[login]), begins=0, ends=1799)
    assert isinstance(one.next(at(1799)), Poke)
    assert answered(wait(gate=gate), Records(rows=[login]), begins=0, ends=1800).next(at(1800)).status == "failed"


def test_errors_change_nothing_of_what_is_asked_for():
    one = answered(wait(gate=SMALL), records())
    for number in range(1, 6):
        poked(one, HTTP_500, begins=60 * number)
        assert one.question is SMALL


def test_the_last_poke_is_in_full():
    one = answered(wait(gate=SMALL, timeout=10), records())
    assert one.next(at(10)) == Poke(at(10), at(70), is_last=True)
    assert one.question is SMALL, "not begun"
    one.begin(at(10))
    assert one.question == SMALL.in_full()
    one.answered(records(), at(11), 0.0)
    assert one.next(at(11)).status == "timeout"


def test_a_small_poke_that_ends_after_the_deadline_is_followed_by_one_in_full():
    one = answered(wait(gate=SMALL, timeout=10), records(), begins=5, ends=12)
    assert one.next(at(12)) == Poke(at(13), at(73), is_last=True)
    assert texts(one)[-1].endswith("; next check 20:41 UTC")
    answered(one, records(), begins=13, ends=14)
    assert one.question == SMALL.in_full()
    assert one.next(at(14)).status == "timeout"


def test_a_small_poke_that_ends_after_the_deadline_with_an_error_is_followed_by_one_in_full():
    one = poked(wait(gate=SMALL, timeout=10), HTTP_500, begins=5, ends=12)
    assert one.next(at(12)) == Poke(at(13), at(73), is_last=True)


@pytest.mark.parametrize("gate", [SMALL, CUSTOMER, GATE], ids=["progress", "customer", "history"])
def test_a_poke_in_full_that_ends_after_the_deadline_was_the_last_one(gate):
    one = poked(wait(gate=gate, timeout=10, in_full=True), begins=5, ends=12)
    assert one.next(at(12)).status == "timeout"


def test_a_small_answer_of_another_wait_does_not_replace_the_last_poke():
    one = answered(wait(gate=SMALL, timeout=10), records())
    one.next(at(10))
    one.answered(records(), at(10), 0.0)
    assert one.next(at(11)) == Poke(at(11), at(71), is_last=True)


REJECTED = (
    "was the upload rejected (wrong or missing PDF password, unknown bank, unreadable: then no statement ever appears)"
)
BEGUN = "is the link spelt as the SDK was given it, and has the customer begun"
UNLINKED = "was a PDF uploaded without the link (then give its entity_id)"
UPLOADED = "has the customer uploaded anything"
NO_LOGIN = "(a failed login never shows here, only in the link's payload history)"


@pytest.mark.parametrize(
    ("expected", "checks"),
    [
        ({"link_id": "L"}, f"{BEGUN}; {UNLINKED}; {REJECTED}"),
        ({"entity_id": "E"}, f"is entity_id right, and {UPLOADED} {NO_LOGIN}; {REJECTED}"),
        (
            {"link_id": "L", "entity_id": "E"},
            f"are link_id and entity_id of the same customer, and {UPLOADED}; {REJECTED}",
        ),
    ],
)
def test_a_timeout_without_a_statement_says_what_to_check(expected, checks):
    one = answered(wait(gate=CustomerGate(Expectation(**expected)), timeout=0), Records())
    assert one.next(NOW).because == f"no statement that counts (to check: {checks})"


def test_a_timeout_says_that_the_entity_is_not_of_the_link():
    gate = CustomerGate(Expectation(link_id="L", entity_id="E"))
    one = answered(wait(gate=gate, timeout=0), Records(stranger="entity 'E' is of no link, not of link 'L'"))
    assert one.next(NOW).because.startswith("entity 'E' is of no link, not of link 'L'")


# Events


def test_an_event_makes_the_next_poke_due_at_once():
    one = poked(wait())
    one.notified(at(10))
    assert next_poke(one, 10) == 10


def test_an_event_keeps_the_second_after_an_answer_and_the_pause():
    one = poked(wait())
    one.notified(at(0.2))
    assert next_poke(one) == 1
    one = poked(wait(), rate_limited(300.0))
    one.notified(at(10))
    assert next_poke(one, 10) == 300


def test_an_event_never_delays_a_poke():
    one = poked(wait())
    one.notified(at(59))
    one.notified(at(59.5))
    assert next_poke(one, 59.5) == 59
    one = wait(next_poke=at(3))
    one.resume(NOW, 0.0)
    one.notified(at(2))
    assert next_poke(one, 2) == 2


def test_after_an_event_the_wait_pokes_three_times_more_at_short_intervals():
    one, times = poked(wait()), []
    one.notified(at(10))
    for _ in range(5):
        times.append(next_poke(one, 10))
        poked(one, begins=times[-1])
    assert times == [10, 12, 17, 37, 97]


def test_the_pokes_for_an_event_do_not_lengthen_the_exponential_backoff():
    one = poked(wait(exponential_backoff=True))
    assert next_poke(one) == 60
    one.notified(at(10))
    for begins in (10, 12, 17, 37):
        poked(one, begins=begins)
    assert next_poke(one, 37) == 37 + 60


def test_errors_after_an_event_are_followed_by_the_back_off_and_keep_the_short_intervals():
    one, times = poked(wait(poke_interval=600.0)), []
    one.notified(at(10))
    poked(one, api.BankConnectServerError("x"), begins=10, dice=0.9)
    for begins, dice in ((12, 0.9), (14, 0.9), (17.6, 0.9)):
        times.append(next_poke(one, begins))
        poked(one, api.BankConnectConnectionError("x"), begins=begins, dice=dice)
    times.append(next_poke(one, 17.6))
    assert times == pytest.approx([12, 14, 17.6, 17.6 + 0.9 * 8])
    poked(one, begins=30)
    assert next_poke(one, 30) == 32, "no answer has used up a short interval yet"


def test_an_error_after_an_event_with_a_retry_after_is_followed_by_its_pause():
    one = poked(wait(poke_interval=600.0))
    one.notified(at(10))
    poked(one, rate_limited(45.0), begins=10)
    assert next_poke(one, 10) == 55


def test_pokes_after_an_event_and_an_error_do_not_lengthen_the_exponential_backoff():
    one = poked(wait(exponential_backoff=True))
    one.notified(at(10))
    for begins in (10, 12, 14):
        poked(one, api.BankConnectServerError("x"), begins=begins)
    for begins in (16, 18, 23):
        poked(one, begins=begins)
    assert next_poke(one, 43) == 43
    poked(one, begins=43)
    assert next_poke(one, 43) == 43 + 60


def test_an_event_wakes_no_wait_in_its_first_five_seconds_in_the_triggerer():
    one = wait(pokes=1, next_poke=at(60))
    one.resume(NOW, 0.5)
    one.notified(at(1))
    assert next_poke(one, 1) == 5


# A deferred wait


def test_a_resumed_wait_keeps_its_next_poke():
    one = wait(next_poke=at(30))
    one.resume(NOW, 0.5)
    assert next_poke(one) == 30
    one.resume(at(31), 0.5)
    assert next_poke(one, 31) == 30, "one second late is not overdue"


@pytest.mark.parametrize(("interval", "late"), [(10.0, 5.0), (60.0, 30.0), (600.0, 30.0)])
def test_overdue_pokes_are_spread_over_the_interval_and_at_most_a_minute(interval, late):
    one = wait(poke_interval=interval, next_poke=at(-2))
    one.resume(NOW, 0.5)
    assert next_poke(one) == late


def test_the_arguments_make_the_same_wait_again():
    one = poked(wait(max_wait=90.0, on_failed="wait", exponential_backoff=True), rate_limited(100.0))
    again = Wait(GATE, at(1), one.arguments(), is_new=False)
    assert again.arguments() == one.arguments()
    assert again.next(at(1)) == one.next(at(1))
    assert set(one.arguments()) == set(WaitArguments.__annotations__)


def test_the_arguments_have_no_words_of_a_verdict_or_an_answer():
    one = poked(wait(), Verdict("pending", (row("s1", "private"),), "private"))
    assert "private" not in str(one.arguments())
    assert one.arguments()["seen"] == "pending at the first poke"
    poked(one, rate_limited(5.0), begins=60)
    assert one.arguments()["seen"] == "BankConnectRateLimitError: webhook_payloads: HTTP 429"


def test_each_change_is_logged_and_its_checksum_has_sixteen_bits():
    one, checksums = wait(timeout=1e6), set()
    for number in range(9):
        poked(one, Verdict("pending", (row(f"s{number}", "processing", ago=number * 3600),), "x"), begins=60 * number)
        assert len(texts(one)) == 1
        checksums.add(one.arguments()["logged"])
        poked(one, Verdict("pending", (), f"reason {number}"), begins=60 * number + 30)
        assert len(texts(one)) == 1
        checksums.add(one.arguments()["logged"])
    assert len(checksums) > 9
    assert all(0 <= checksum <= 0xFFFF for checksum in checksums)


def test_times_may_be_text_and_must_be_aware():
    one = wait(next_poke="2026-11-29T02:12:00+05:30")
    assert next_poke(one) == 60
    with pytest.raises(ValueError, match=r"must be aware, not '2026-11-28T20:41:00'"):
        wait(next_poke="2026-11-28T20:41:00")


def test_an_invalid_on_failed_is_refused():
    with pytest.raises(ValueError, match="on_failed must be one of"):
        wait(on_failed="explode")


# The log


def test_a_failed_login_is_logged_with_its_reason_and_when_it_ends_the_wait():
    verdict = Verdict("pending", (row(reason="Incorrect user ID or password"),), "because")
    assert texts(poked(wait(), verdict, dice=0.5)) == [
        (
            "Not yet: payload history of link 'loan-4711': "
            '1 failed login 20:41 UTC ("Incorrect user ID or password"); '
            "fails at 21:11 UTC unless a new statement arrives; next check 20:42 UTC"
        )
    ]


@pytest.mark.parametrize(
    ("on_failed", "words"),
    [
        ("fail", "; fails at 21:11 UTC unless a new statement arrives"),
        ("skip", "; is skipped at 21:11 UTC unless a new statement arrives"),
        ("pass", "; passes at 21:11 UTC unless a new statement arrives"),
        ("wait", ""),
    ],
)
def test_the_line_says_what_a_failure_does(on_failed, words):
    (text,) = texts(poked(wait(on_failed=on_failed), Verdict("pending", (row("s1"),), "because")))
    assert (
        text
        == f"Not yet: payload history of link 'loan-4711': 1 failed statement 20:41 UTC{words}; next check 20:42 UTC"
    )


def test_the_line_counts_what_is_there_and_names_what_is_needed():
    rows = (
        *(row(f"s{n}", "completed") for n in range(2)),
        row("s2", "processing"),
        *(row(reason=str(n)) for n in range(5)),
    )
    one = wait(gate=HistoryGate(Expectation(link_id="loan-4711", expected_statements=4)))
    (text,) = texts(poked(one, Verdict("pending", rows, "because")))
    assert text == (
        "Not yet: payload history of link 'loan-4711': 2 completed statements; 1 statement in progress; "
        '5 failed logins 20:41 UTC ("0"), 20:41 UTC ("1"), 20:41 UTC ("2") (4 needed); next check 20:42 UTC'
    )


def test_the_line_of_progress_has_no_times():
    gate = ProgressGate(Expectation(entity_id="e1"), "identity")
    rows = (Row("s1", "e1", None, "processing", "", None),)
    assert texts(poked(wait(gate=gate), Verdict("pending", rows, "because"))) == [
        "Not yet: progress of identity of entity 'e1': 1 statement in progress; next check 20:42 UTC"
    ]


@pytest.mark.parametrize("outcome", [PENDING, rate_limited(300.0)], ids=["pending", "429"])
def test_after_the_last_poke_no_check_is_announced(outcome):
    one = poked(wait(timeout=60), outcome, begins=60)
    assert texts(one)[-1].endswith("; no further check before the timeout")


def test_a_pause_that_skips_the_last_poke_is_announced():
    assert texts(poked(wait(timeout=60), rate_limited(300.0)))[-1].endswith("; no further check before the timeout")
    assert texts(poked(wait(timeout=60), rate_limited(601.0)))[-1].endswith("; next check 20:42 UTC")


def test_a_rescheduled_wait_announces_the_last_poke_whatever_the_pause_is():
    """It is a process of its own, which does not know of the pause."""
    one = Wait(GATE, NOW, {"deadline": at(120)}, forgets=True)
    assert texts(poked(one, rate_limited(600.0)))[-1].endswith("; next check 20:43 UTC")
    assert one.next(NOW) == Poke(at(120), at(180), is_last=True)
    poked(one, rate_limited(600.0), begins=120)
    assert "HTTP 429" in one.next(at(120)).because


def test_another_day_is_written_out():
    verdict = Verdict("pending", (row("s1", ago=86400.0),), "because")
    (text,) = texts(poked(wait(timeout=1e6, poke_interval=86400.0), verdict))
    assert "1 failed statement 2026-11-27 20:41 UTC; fails at 2026-11-27 21:11 UTC" in text
    assert text.endswith("next check 2026-11-29 20:41 UTC")


def test_the_same_again_is_not_logged_and_a_change_is():
    one = poked(wait())
    assert len(texts(one)) == 1
    assert texts(poked(one, begins=60)) == []
    assert len(texts(poked(one, Verdict("pending", (row("s1", "processing"),), "x"), begins=120))) == 1
    assert texts(poked(one, Verdict("pending", (row("s1", "processing"),), "x"), begins=180)) == []


def test_what_the_worker_logged_the_triggerer_does_not_log_again():
    one = poked(wait())
    again = Wait(GATE, at(1), one.arguments(), is_new=False)
    assert texts(poked(again, begins=60)) == []
    assert len(texts(poked(again, Verdict("pending", (row("s1", "processing"),), "x"), begins=120))) == 1


def test_no_control_character_of_a_reason_reaches_the_log():
    (text,) = texts(poked(wait(), Verdict("pending", (row(reason="a\nb\x1b[31m"),), "x")))
    assert '("a?b?[31m")' in text


def test_a_passing_verdict_logs_nothing_here():
    assert texts(poked(wait(), Verdict("passed", (row("s1", "completed"),), "x"))) == []


# The pause that all waits of a connection share


def test_a_retry_after_to_one_wait_holds_all():
    pause = SharedPause()
    pause.failed(300.0, sent=0.0, now=1.0, dice=0.5)
    assert (pause.resume_at, pause.asked) == (301.0, [(300.0, 301.0)] * 2)
    pause.failed(5.0, sent=0.5, now=2.0, dice=0.5)
    assert (pause.resume_at, pause.asked) == (301.0, [(300.0, 301.0)] * 2), "the longer pause holds"


@pytest.mark.parametrize(("first", "second"), [((3600.0, 1.0), (90.0, 2.0)), ((90.0, 2.0), (3600.0, 1.0))])
def test_a_short_pause_within_a_long_one_is_kept_for_the_last_pokes(first, second):
    pause = SharedPause()
    for seconds, now in (first, second):
        pause.failed(seconds, sent=0.0, now=now, dice=0.5)
    assert pause.asked == [(3600.0, 3601.0), (90.0, 92.0)]


def test_a_pause_of_ten_minutes_is_a_short_one():
    pause = SharedPause()
    pause.failed(601.0, sent=0.0, now=0.0, dice=0.5)
    assert pause.asked == [(601.0, 601.0)]
    pause.failed(600.0, sent=0.0, now=0.0, dice=0.5)
    assert pause.asked == [(601.0, 601.0), (600.0, 600.0)]


def test_three_errors_in_a_row_hold_all_and_an_answer_ends_the_row():
    pause = SharedPause()
    for now in (1.0, 2.0):
        pause.failed(None, sent=now, now=now, dice=0.5)
    assert pause.resume_at == 0
    pause.succeeded()
    for now in (3.0, 4.0, 5.0):
        pause.failed(None, sent=now, now=now, dice=0.5)
    assert (pause.resume_at, pause.asked) == (5.5, [])
    pause.failed(None, sent=6.0, now=6.0, dice=0.5)
    assert pause.resume_at == 7.0


def test_errors_of_pokes_that_were_in_flight_together_count_once():
    pause = SharedPause()
    for number in range(3):
        pause.failed(None, sent=1.0, now=2.0 + number, dice=0.5)
    before = pause.resume_at
    assert before == 4.5
    pause.failed(None, sent=1.0, now=4.4, dice=0.5)
    assert pause.resume_at == before
