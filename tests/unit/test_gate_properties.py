"""What holds for every history and every snapshot, whatever the vendor sends and whenever we look."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import Expectation, judge_history, judge_progress, why_out_of_sight

BASE = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
LINK = "link-1"
SKEW = timedelta(minutes=5)

often = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def seconds(count):
    return timedelta(seconds=count)


# Few ids, few seconds: ties, repetitions and interesting neighbours are the rule.
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


# A second reading of the design's rules, slow and plain, and not of the code.


def rule_1_is_in_sight(expect, row):
    right_link = row.link_id == expect.link_id
    right_entity = expect.entity_id is None or row.entity_id == expect.entity_id
    right_statement = expect.statement_id is None or row.statement_id in expect.statement_id
    # The boundary second counts: a row is anywhere within its second.
    recent = expect.since is None or row.date_time + seconds(1) > expect.since
    return right_link and right_entity and right_statement and recent


def rule_2_newest(rows):
    """When the newest row is from, and what it says."""
    last = max(row.date_time for row in rows)
    # Rule 3: blank is a failed attempt.
    words = {"failed" if row.statement_id == "" else row.progress.lower() for row in rows if row.date_time == last}
    for word in ("completed", "failed"):
        if word in words:
            return last, word
    return last, "going"


def rule_4_states(rows):
    """Each entity's statements, and when each came to say what."""
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
    """Give the completed statements of an entity that passes; none where it does not."""
    completed = {(entity, statement, at) for statement, (at, word) in states.items() if word == "completed"}
    if expect.statement_id is None:
        enough = len(completed) >= expect.expected_statements
    else:
        enough = {statement for _, statement, _ in completed} == set(expect.statement_id)
    going = [statement for statement, (_, word) in states.items() if word == "going"]
    return completed if enough and not going else set()


def naively(expect, rows, now):
    """Give the state, and what may be the result where it is passed."""
    in_sight = [row for row in rows if rule_1_is_in_sight(expect, row)]
    # Rule 7 comes first: nothing can be said of such a ledger.
    if any(row.date_time - now > SKEW for row in in_sight):
        return "timezone", None
    states = rule_4_states(in_sight)
    results = [rule_5_result(expect, entity, of_entity) for entity, of_entity in states.items()]
    last_of = [max(at for *_, at in result) for result in results if result]
    if last_of:
        return "passed", [result for result in results if max(last_of) in {at for *_, at in result}]
    # Rule 6.
    going = [word for of_entity in states.values() for _, word in of_entity.values() if word == "going"]
    if in_sight and not going:
        last, word = rule_2_newest(in_sight)
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


# Five minutes and a bit ahead of the earliest now, and of no later one.
ahead_rows = payload_rows(at=st.sampled_from([0, 1, 2, 299, 300, 301, 304, 400]))


@settings(often, max_examples=600)
@given(expectations(), histories, st.lists(ahead_rows, max_size=1), moments)
def test_a_verdict_is_what_a_naive_reading_of_the_rules_says(expect, rows, ahead, now):
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
def test_no_order_and_no_repetition_changes_a_verdict(expect, rows, now, data):
    repeated = data.draw(st.lists(st.sampled_from(rows), max_size=4)) if rows else []
    shuffled = data.draw(st.permutations([*rows, *repeated]))
    assert judge_history(expect, shuffled, now) == judge_history(expect, rows, now)


@often
@given(expectations(), histories, st.lists(ahead_rows, max_size=6), moments)
def test_rows_that_are_not_asked_for_change_nothing(expect, rows, others, now):
    unasked = [row for row in others if why_out_of_sight(expect, row) is not None]
    asked = [row for row in rows if why_out_of_sight(expect, row) is None]
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
def test_rows_of_another_link_change_nothing(expect, rows, others, now):
    """The same without asking the code under test what is asked for."""
    assert judge_history(expect, [*others, *rows], now) == judge_history(expect, rows, now)


@often
@given(expectations(), histories, st.lists(st.integers(0, 14), min_size=2, max_size=6))
def test_with_time_alone_nothing_changes_but_that_a_failure_ripens_once(expect, rows, ticks):
    verdicts = [judge_history(expect, rows, BASE + seconds(tick)) for tick in sorted(ticks)]
    first = verdicts[0]
    for earlier, later in pairwise(verdicts):
        assert later == earlier or (earlier.state, later.state) == ("pending", "failed")
    if first.state != "pending":
        assert set(verdicts) == {first}


@often
@given(expectations(), histories, st.lists(payload_rows(says=st.sampled_from(["completed", "COMPLETED"]))), moments)
def test_further_completed_rows_never_take_a_pass_back(expect, rows, further, now):
    if judge_history(expect, rows, now).state == "passed":
        assert judge_history(expect, [*rows, *further], now).state == "passed"


@often
@given(histories, moments)
def test_statements_of_two_entities_are_never_added_up(rows, now):
    """A pass for two is a pass for two of the entity alone."""
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
snapshots = st.lists(items, max_size=5)


@st.composite
def snapshot_expectations(draw):
    ids = draw(st.sampled_from([None, None, None, ("s1",), ("s1", "s2"), ("s2", "s1", "s2")]))
    return Expectation(
        entity_id="e1", statement_id=ids, expected_statements=1 if ids else draw(st.sampled_from([1, 1, 2, 3]))
    )


def naively_a_snapshot(expect, some):
    """Read the design's one sentence on snapshots anew."""
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
@given(snapshot_expectations(), snapshots)
def test_a_snapshots_verdict_is_what_a_naive_reading_says(expect, some):
    verdict = judge_progress(expect, some)
    assert verdict.state == naively_a_snapshot(expect, some)
    wanted = {
        one.statement_id for one in some if expect.statement_id is None or one.statement_id in expect.statement_id
    }
    assert {row.statement_id for row in verdict.rows} == wanted


@often
@given(snapshot_expectations(), snapshots, st.data())
def test_no_order_and_no_repetition_changes_a_snapshots_verdict(expect, some, data):
    repeated = data.draw(st.lists(st.sampled_from(some), max_size=4)) if some else []
    shuffled = data.draw(st.permutations([*some, *repeated]))
    assert judge_progress(expect, shuffled) == judge_progress(expect, some)


@often
@given(snapshot_expectations(), snapshots, st.lists(items))
def test_items_that_are_not_asked_for_change_nothing(expect, some, others):
    unasked = [one for one in others if expect.statement_id and one.statement_id not in expect.statement_id]
    assert judge_progress(expect, [*unasked, *some]) == judge_progress(expect, some)


def frequencies(strategy, of):
    """Count the states that a strategy comes to: properties that never see a state say nothing about it."""
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


def test_the_histories_above_come_to_every_state_often():
    seen = frequencies(st.tuples(expectations(), histories, moments), lambda *given: judge_history(*given).state)
    assert min(seen[state] for state in ("pending", "passed", "failed")) >= 0.1 * seen.total()


def test_the_histories_above_ripen_often():
    def ripens(expect, rows):
        return (
            judge_history(expect, rows, BASE + seconds(4)).state,
            judge_history(expect, rows, BASE + seconds(14)).state,
        )

    seen = frequencies(st.tuples(expectations(), histories), ripens)
    assert seen["pending", "failed"] >= 0.03 * seen.total()


def test_the_histories_above_are_taken_for_a_wrong_zone_often():
    seen = frequencies(
        st.tuples(expectations(), st.lists(ahead_rows, max_size=2), moments),
        lambda *given: state_of(judged(*given)),
    )
    assert seen["timezone"] >= 0.05 * seen.total()


def test_the_snapshots_above_come_to_every_state_often():
    seen = frequencies(st.tuples(snapshot_expectations(), snapshots), lambda *given: judge_progress(*given).state)
    assert min(seen[state] for state in ("pending", "passed", "failed")) >= 0.1 * seen.total()


@often
@given(expectations(), histories, moments, st.sampled_from([str.upper, str.lower, str.title, str.swapcase]))
def test_the_letter_case_of_a_progress_never_matters(expect, rows, now, spell):
    respelled = [row.model_copy(update={"progress": spell(row.progress)}) for row in rows]
    verdict = judge_history(expect, rows, now)
    assert judge_history(expect, respelled, now) == verdict
    assert judge_history(expect, [*rows, *respelled], now) == verdict
