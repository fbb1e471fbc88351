"""Properties of the gate that hold for every payload history and every progress, at any time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import Expectation, judge_history, judge_progress, why_not_considered

BASE = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
LINK = "link-1"
SKEW = timedelta(minutes=5)

often = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def seconds(count):
    return timedelta(seconds=count)


# Few ids and few seconds make ties and repetitions frequent.
progresses = st.sampled_from(
    ["completed", "completed", "completed", "Completed", "failed", "failed", "FAILED", "processing", "teleported"]
)

links = st.sampled_from([LINK] * 8 + ["link-2", None])
near = st.integers(0, 4)


@st.composite
def payload_rows(draw, *, link=links, at=near, says=progresses):
    return WebhookPayload(
        statement_id=draw(st.sampled_from(["", "s1", "s1", "s2", "s2", "s3"])),
        entity_id=draw(st.sampled_from(["e1", "e1", "e1", "e2"])),
        link_id=draw(link),
        progress=draw(says),
        reason=draw(st.sampled_from(["", "", "wrong password"])),
        date_time=BASE + seconds(draw(at)),
    )


histories = st.lists(payload_rows(), max_size=6)
moments = st.integers(0, 12).map(lambda count: BASE + seconds(count))


@st.composite
def expectations(draw):
    ids = draw(st.sampled_from([None, None, None, None, ("s1",), ("s1", "s2"), ("s2", "s1", "s2")]))
    return Expectation(
        link_id=LINK,
        entity_id=draw(st.sampled_from([None, None, None, "e1"])),
        statement_id=ids,
        since=draw(st.sampled_from([None, None, None, BASE + seconds(1), BASE + timedelta(seconds=2, microseconds=7)])),
        expected_statements=1 if ids else draw(st.sampled_from([1, 1, 2, 3])),
        failure_grace=seconds(draw(st.integers(0, 6))),
    )


# The design's rules once more, slow and plain, independent of the code.


def rule_1_is_considered(expect, row):
    right_link = row.link_id == expect.link_id
    right_entity = expect.entity_id is None or row.entity_id == expect.entity_id
    right_statement = expect.statement_id is None or row.statement_id in expect.statement_id
    # The second of since counts: a row may be from anywhere within its second.
    recent = expect.since is None or row.date_time + seconds(1) > expect.since
    return right_link and right_entity and right_statement and recent


def rule_2_newest(rows):
    """Return the time of the newest row, and its state."""
    last = max(row.date_time for row in rows)
    # Rule 3: a blank statement_id is a failed attempt.
    words = {"failed" if row.statement_id == "" else row.progress.lower() for row in rows if row.date_time == last}
    for word in ("completed", "failed"):
        if word in words:
            return last, word
    return last, "in progress"


def rule_4_states(rows):
    """Return each entity's statements, with the time and the state of their newest rows."""
    ids = {(row.entity_id, row.statement_id) for row in rows if row.statement_id != ""}
    return {
        entity: {
            statement: rule_2_newest([row for row in rows if (row.entity_id, row.statement_id) == (entity, statement)])
            for of, statement in ids
            if of == entity
        }
        for entity, _ in ids
    }


def rule_5_result(expect, entity, states):
    """Return the completed statements of an entity that passes; none if it does not."""
    completed = {(entity, statement, at) for statement, (at, word) in states.items() if word == "completed"}
    if expect.statement_id is None:
        enough = len(completed) >= expect.expected_statements
    else:
        enough = {statement for _, statement, _ in completed} == set(expect.statement_id)
    in_progress = [statement for statement, (_, word) in states.items() if word == "in progress"]
    return completed if enough and not in_progress else set()


def naively(expect, rows, now):
    """Return the state, and the possible results if it is passed."""
    considered = [row for row in rows if rule_1_is_considered(expect, row)]
    # Rule 7 comes first: the times of such a history are wrong.
    if any(row.date_time - now > SKEW for row in considered):
        return "timezone", None
    states = rule_4_states(considered)
    results = [rule_5_result(expect, entity, of_entity) for entity, of_entity in states.items()]
    last_of = [max(at for *_, at in result) for result in results if result]
    if last_of:
        return "passed", [result for result in results if max(last_of) in {at for *_, at in result}]
    # Rule 6.
    in_progress = [word for of_entity in states.values() for _, word in of_entity.values() if word == "in progress"]
    if considered and not in_progress:
        last, word = rule_2_newest(considered)
        if word == "failed" and now - last >= expect.failure_grace:
            return "failed", None
    return "pending", None


def judged(expect, rows, now):
    try:
        return judge_history(expect, rows, now)
    except BankConnectTimezoneError:
        return "timezone"


def state_of(verdict):
    return verdict if verdict == "timezone" else verdict.state


# Just over five minutes ahead of the earliest now, but not of a later one.
ahead_rows = payload_rows(at=st.sampled_from([0, 1, 2, 299, 300, 301, 304, 400]))


@settings(often, max_examples=600)
@given(expectations(), histories, st.lists(ahead_rows, max_size=1), moments)
def test_a_verdict_equals_that_of_a_naive_implementation_of_the_rules(expect, rows, ahead, now):
    verdict = judged(expect, [*rows, *ahead], now)
    state, results = naively(expect, [*rows, *ahead], now)
    assert state_of(verdict) == state
    if state == "passed":
        result = [(row.entity_id, row.statement_id, datetime.fromisoformat(row.date_time)) for row in verdict.rows]
        assert set(result) in results
        assert len(result) == len(set(result))
        assert [at for *_, at in result] == sorted((at for *_, at in result), reverse=True)
        assert {row.progress for row in verdict.rows} == {"completed"}


@often
@given(expectations(), histories, moments, st.data())
def test_order_and_repetition_of_rows_change_no_verdict(expect, rows, now, data):
    repeated = data.draw(st.lists(st.sampled_from(rows), max_size=4)) if rows else []
    shuffled = data.draw(st.permutations([*rows, *repeated]))
    assert judge_history(expect, shuffled, now) == judge_history(expect, rows, now)


@often
@given(expectations(), histories, st.lists(ahead_rows, max_size=6), moments)
def test_rows_that_are_not_considered_change_no_verdict(expect, rows, others, now):
    unasked = [row for row in others if why_not_considered(expect, row) is not None]
    asked = [row for row in rows if why_not_considered(expect, row) is None]
    verdict = judge_history(expect, rows, now)
    assert judge_history(expect, [*unasked, *rows], now) == verdict
    assert judge_history(expect, asked, now) == verdict


@often
@given(
    expectations(),
    histories,
    st.lists(payload_rows(link=st.sampled_from(["link-2", None]), at=st.sampled_from([0, 4, 10_000])), min_size=1),
    moments,
)
def test_rows_of_another_link_change_no_verdict(expect, rows, others, now):
    """The same property, without why_not_considered."""
    assert judge_history(expect, [*others, *rows], now) == judge_history(expect, rows, now)


@often
@given(expectations(), histories, st.lists(st.integers(0, 14), min_size=2, max_size=6))
def test_time_alone_changes_a_verdict_only_from_pending_to_failed_and_once(expect, rows, ticks):
    verdicts = [judge_history(expect, rows, BASE + seconds(tick)) for tick in sorted(ticks)]
    first = verdicts[0]
    for earlier, later in pairwise(verdicts):
        assert later == earlier or (earlier.state, later.state) == ("pending", "failed")
    if first.state != "pending":
        assert set(verdicts) == {first}


@often
@given(expectations(), histories, st.lists(payload_rows(says=st.sampled_from(["completed", "COMPLETED"]))), moments)
def test_further_completed_rows_never_change_passed(expect, rows, further, now):
    if judge_history(expect, rows, now).state == "passed":
        assert judge_history(expect, [*rows, *further], now).state == "passed"


@often
@given(histories, moments)
def test_statements_of_two_entities_are_never_added_up(rows, now):
    """A history that passes for two statements also passes with the rows of one entity alone."""
    verdict = judge_history(Expectation(link_id=LINK, expected_statements=2), rows, now)
    if verdict.state == "passed":
        (entity,) = {row.entity_id for row in verdict.rows}
        alone = [row for row in rows if row.entity_id == entity]
        assert judge_history(Expectation(link_id=LINK, expected_statements=2), alone, now) == verdict


statuses = st.sampled_from(["completed"] * 8 + ["Completed", "failed", "failed", "Failed", None, "processing"])
items = st.builds(
    StatementProgress,
    statement_id=st.sampled_from(["s1", "s2", "s3", "s4"]),
    status=statuses,
    source=st.sampled_from(["online", "pdf"]),
    message=st.sampled_from([None, "", "bad PDF"]),
)
progress_arrays = st.lists(items, max_size=5)


@st.composite
def progress_expectations(draw):
    ids = draw(st.sampled_from([None, None, None, ("s1",), ("s1", "s2"), ("s2", "s1", "s2")]))
    return Expectation(
        entity_id="e1", statement_id=ids, expected_statements=1 if ids else draw(st.sampled_from([1, 1, 2, 3]))
    )


def naive_progress_state(expect, some):
    """Return the state by the design's one sentence on progress."""
    if expect.statement_id is not None:
        some = [one for one in some if one.statement_id in expect.statement_id]
        expected = len(set(expect.statement_id))
    else:
        expected = expect.expected_statements
    words = [(one.status or "").lower() for one in some]
    if not words or any(word not in ("completed", "failed") for word in words):
        return "pending"
    if len({one.statement_id for one in some}) < expected:
        return "pending"
    return "passed" if all(word == "completed" for word in words) else "failed"


@settings(often, max_examples=400)
@given(progress_expectations(), progress_arrays)
def test_a_progress_verdict_equals_that_of_a_naive_implementation(expect, some):
    verdict = judge_progress(expect, some)
    assert verdict.state == naive_progress_state(expect, some)
    wanted = {
        one.statement_id for one in some if expect.statement_id is None or one.statement_id in expect.statement_id
    }
    assert {row.statement_id for row in verdict.rows} == wanted


@often
@given(progress_expectations(), progress_arrays, st.data())
def test_order_and_repetition_of_items_change_no_verdict(expect, some, data):
    repeated = data.draw(st.lists(st.sampled_from(some), max_size=4)) if some else []
    shuffled = data.draw(st.permutations([*some, *repeated]))
    assert judge_progress(expect, shuffled) == judge_progress(expect, some)


@often
@given(progress_expectations(), progress_arrays, st.lists(items))
def test_items_that_are_not_considered_change_no_verdict(expect, some, others):
    unasked = [one for one in others if expect.statement_id and one.statement_id not in expect.statement_id]
    assert judge_progress(expect, [*unasked, *some]) == judge_progress(expect, some)


def frequencies(strategy, of):
    """Count the states that a strategy produces: a property says nothing about a state that never occurs."""
    seen = Counter()

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw_often(drawn):
        seen[of(*drawn)] += 1

    draw_often()
    return seen


def test_the_histories_above_reach_every_state_often():
    seen = frequencies(st.tuples(expectations(), histories, moments), lambda *given: judge_history(*given).state)
    assert min(seen[state] for state in ("pending", "passed", "failed")) >= 0.1 * seen.total()


def test_the_histories_above_often_fail_only_later():
    def states(expect, rows):
        return (
            judge_history(expect, rows, BASE + seconds(4)).state,
            judge_history(expect, rows, BASE + seconds(14)).state,
        )

    seen = frequencies(st.tuples(expectations(), histories), states)
    assert seen["pending", "failed"] >= 0.03 * seen.total()


def test_the_histories_above_often_have_a_wrong_zone():
    seen = frequencies(
        st.tuples(expectations(), st.lists(ahead_rows, max_size=2), moments),
        lambda *given: state_of(judged(*given)),
    )
    assert seen["timezone"] >= 0.05 * seen.total()


def test_the_progress_arrays_above_reach_every_state_often():
    seen = frequencies(st.tuples(progress_expectations(), progress_arrays), lambda *given: judge_progress(*given).state)
    assert min(seen[state] for state in ("pending", "passed", "failed")) >= 0.1 * seen.total()


@often
@given(expectations(), histories, moments, st.sampled_from([str.upper, str.lower, str.title, str.swapcase]))
def test_letter_case_of_a_progress_changes_no_verdict(expect, rows, now, spell):
    respelled = [row.model_copy(update={"progress": spell(row.progress)}) for row in rows]
    verdict = judge_history(expect, rows, now)
    assert judge_history(expect, respelled, now) == verdict
    assert judge_history(expect, [*rows, *respelled], now) == verdict
