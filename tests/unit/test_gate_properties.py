"""Properties of the gate that hold for every payload history and every progress, at any time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.api import BankConnectTimezoneError, StatementProgress, WebhookPayload
from airflow_provider_bankconnect.gate import (
    Expectation,
    judge_customer,
    judge_history,
    judge_progress,
    why_not_considered,
)

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
entities = st.sampled_from(["e1", "e1", "e1", "e2"])
statements = st.sampled_from(["", "s1", "s1", "s2", "s2", "s3"])


@st.composite
def payload_rows(draw, *, link=links, at=near, says=progresses, entity=entities, statement=statements):
    return WebhookPayload(
        statement_id=draw(statement),
        entity_id=draw(entity),
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


@settings(often, max_examples=300)
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


def item_of(statement_id, status, message):
    # A completed item must name its statement. Others need not.
    says = "failed" if statement_id == "" and status in {"completed", "Completed"} else status
    return StatementProgress(statement_id=statement_id, status=says, message=message)


items = st.builds(
    item_of, st.sampled_from(["s1", "s2", "s3", "s4"] * 4 + [""]), statuses, st.sampled_from([None, "", "bad PDF"])
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
    if len({one.statement_id for one in some if one.statement_id != ""}) < expected:
        return "pending"
    return "passed" if all(word == "completed" for word in words) else "failed"


@settings(often, max_examples=250)
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


# Both records of a customer.

# Among the rows are some whose entity BankConnect does not name.
customer_histories = st.lists(payload_rows(entity=st.sampled_from(["e1"] * 5 + ["e2", ""])), max_size=4)
of_an_entity = st.lists(items, max_size=3)
customer_progress = st.fixed_dictionaries({"e1": of_an_entity}, optional={"e2": of_an_entity})
no_progress = st.just({}) | st.fixed_dictionaries({"e1": st.just([]), "e2": st.just([])})
COMPLETED = ["completed", "COMPLETED"]


def naive_progress(expect, progress):
    """Return the state of each statement in the progress, by entity; of several states, the one that is least far."""
    states = {}
    for entity, some in progress.items():
        for one in some:
            if expect.entity_id not in (None, entity):
                continue
            if expect.statement_id is not None and one.statement_id not in expect.statement_id:
                continue
            words = {(other.status or "").lower() for other in some if other.statement_id == one.statement_id}
            word = "completed" if words == {"completed"} else "failed"
            if words - {"completed", "failed"}:
                word = "in progress"
            states.setdefault(entity, {})[one.statement_id] = word
    return states


def only_in_progress(expect, rows, progress):
    """Return the statements that are over and that only the progress knows, as far as they count."""
    known = {(row.entity_id, row.statement_id) for row in rows if row.link_id == expect.link_id}
    counts = expect.since is None or expect.statement_id is not None
    return {
        (entity, statement): word
        for entity, its in naive_progress(expect, progress).items()
        for statement, word in its.items()
        if counts and word != "in progress" and (entity, statement) not in known
    }


def is_taken_back(rows, statement, when, word):
    """Return whether a row that names no entity says that the statement of an entity is not over, or not completed.

    :param when: the time of the statement's own row; None if only the progress knows it, and has no time.
    """
    nameless = [row for row in rows if (row.link_id, row.entity_id, row.statement_id) == (LINK, "", statement)]
    if statement == "" or not nameless:
        return False
    last, said = rule_2_newest(nameless)
    order = {"in progress": 0, "failed": 1, "completed": 2}
    is_newer = when is None or (last, order[said]) > (when, order[word])
    return is_newer and (said == "in progress" or (said == "failed" and word == "completed"))


def customer_naively(expect, rows, progress, now):
    """Return the state, and the possible results if it is passed: ``(entity, statement)`` of each completed one."""
    considered = [row for row in rows if rule_1_is_considered(expect, row)]
    if any(row.date_time - now > SKEW for row in considered):
        return "timezone", None
    dated = rule_4_states(considered)
    undated = only_in_progress(expect, rows, progress)
    if expect.announced_until is not None and now < expect.announced_until:
        there = {row.statement_id for row in rows if row.link_id == expect.link_id}
        there |= {one.statement_id for of, its in progress.items() if expect.entity_id in (None, of) for one in its}
        if not there.issuperset(expect.announced):
            return "pending", None
    going = {entity for entity, its in naive_progress(expect, progress).items() if "in progress" in its.values()}
    going |= {entity for entity, its in dated.items() if "in progress" in {word for _, word in its.values()}}
    needed = expect.expected_statements if expect.statement_id is None else len(set(expect.statement_id))
    names = {entity for entity in dated if entity} | {entity for entity, _ in undated}

    results, times = {}, {}
    for entity in names - going:
        its = dated.get(entity, {})
        more = {statement: word for (of, statement), word in undated.items() if of == entity}
        completed = {statement: when[0] for statement, when in its.items() if when[1] == "completed"}
        done = {*completed, *(statement for statement, word in more.items() if word == "completed")}
        told = [(statement, *when) for statement, when in its.items()]
        told += [(statement, None, word) for statement, word in more.items()]
        if len(done) >= needed and not any(is_taken_back(rows, *one) for one in told):
            results[entity] = {(entity, statement) for statement in done}
            times[entity] = max(completed.values(), default=BASE - timedelta(days=1))
    if results:
        newest = max(times.values())
        return "passed", [result for entity, result in results.items() if times[entity] == newest]
    if going:
        return "pending", None
    last, word = rule_2_newest(considered) if considered else (None, None)
    if word == "failed" and now - last < expect.failure_grace:
        return "pending", None
    over = {
        entity: len(dated.get(entity, {})) + sum(of == entity and statement != "" for of, statement in undated)
        for (entity, _), state in undated.items()
        if state == "failed"
    }
    is_old_failure = word == "failed" and "completed" not in undated.values()
    return ("failed" if is_old_failure or max(over.values(), default=0) >= needed else "pending"), None


def customer_judged(expect, rows, progress, now):
    try:
        return judge_customer(expect, rows, progress, now)
    except BankConnectTimezoneError:
        return "timezone"


def check_with_the_naive_customer(expect, rows, progress, now):
    verdict = customer_judged(expect, rows, progress, now)
    state, results = customer_naively(expect, rows, progress, now)
    assert state_of(verdict) == state
    if state == "passed":
        result = [(row.entity_id, row.statement_id) for row in verdict.rows]
        assert set(result) in results
        assert len(result) == len(set(result))
        assert {row.progress for row in verdict.rows} == {"completed"}
        times = [row.date_time or "" for row in verdict.rows]
        assert times == sorted(times, reverse=True), "newest first, and then those without a time"


@st.composite
def announcements(draw):
    """Draw the expectation of a run that webhooks started: they announced some statements."""
    announced = draw(st.lists(st.sampled_from(["s1", "s1", "s2", "s9"]), unique=True))
    until = draw(st.none() | st.integers(0, 14).map(lambda count: BASE + seconds(count)))
    return replace(draw(expectations()), announced=tuple(announced), announced_until=until)


@settings(often, max_examples=400)
@given(
    expectations() | announcements(),
    customer_histories,
    st.lists(ahead_rows, max_size=1),
    customer_progress,
    moments,
)
def test_a_customer_verdict_equals_that_of_a_naive_implementation(expect, rows, ahead, progress, now):
    check_with_the_naive_customer(expect, [*rows, *ahead], progress, now)


@settings(often, max_examples=300)
@given(expectations(), customer_histories, no_progress, moments)
def test_without_progress_a_customer_verdict_is_that_of_the_history(expect, rows, progress, now):
    verdict, history = judge_customer(expect, rows, progress, now), judge_history(expect, rows, now)
    assert (verdict.state, verdict.rows) == (history.state, history.rows)


@often
@given(expectations(), customer_histories, customer_progress, moments, st.data())
def test_order_and_repetition_of_rows_and_items_change_no_customer_verdict(expect, rows, progress, now, data):
    def shuffled(some):
        repeated = data.draw(st.lists(st.sampled_from(some), max_size=3)) if some else []
        return data.draw(st.permutations([*some, *repeated]))

    names = data.draw(st.permutations(list(progress)))
    again = {entity: shuffled(progress[entity]) for entity in names}
    assert judge_customer(expect, shuffled(rows), again, now) == judge_customer(expect, rows, progress, now)


@often
@given(expectations(), customer_histories, customer_progress, st.lists(st.integers(0, 14), min_size=2, max_size=6))
def test_time_alone_changes_a_customer_verdict_only_from_pending_to_failed_and_once(expect, rows, progress, ticks):
    verdicts = [judge_customer(expect, rows, progress, BASE + seconds(tick)) for tick in sorted(ticks)]
    for earlier, later in pairwise(verdicts):
        assert later == earlier or (earlier.state, later.state) == ("pending", "failed")
    if verdicts[0].state != "pending":
        assert set(verdicts) == {verdicts[0]}


@settings(often, max_examples=300)
@given(
    expectations(),
    customer_histories,
    customer_progress,
    st.lists(payload_rows(says=st.sampled_from(COMPLETED))),
    st.dictionaries(
        st.sampled_from(["e1", "e2", "e3"]),
        st.lists(
            st.builds(StatementProgress, statement_id=st.sampled_from(["s1", "s2", "s9"]), status=st.just("completed"))
        ),
    ),
    moments,
)
def test_further_completed_rows_and_items_never_change_passed(  # noqa: PLR0917 - drawn
    expect, rows, progress, further, more, now
):
    if judge_customer(expect, rows, progress, now).state != "passed":
        return
    grown = {entity: [*progress.get(entity, ()), *more.get(entity, ())] for entity in {**progress, **more}}
    # The history decides on a statement that it knows: a row from before `since` takes a named statement out.
    further = [row for row in further if expect.since is None or rule_1_is_considered(expect, row)]
    assert judge_customer(expect, [*rows, *further], grown, now).state == "passed"


@settings(often, max_examples=300)
@given(expectations(), customer_histories, customer_progress, moments)
def test_no_customer_passes_while_a_statement_of_it_is_in_progress_in_either_record(expect, rows, progress, now):
    verdict = judge_customer(expect, rows, progress, now)
    if verdict.state != "passed":
        return
    (entity,) = {row.entity_id for row in verdict.rows}
    named = expect.statement_id
    for one in progress.get(entity, ()):
        if named is None or one.statement_id in named:
            assert (one.status or "").lower() in {"completed", "failed"}
    considered = [row for row in rows if rule_1_is_considered(expect, row)]
    assert "in progress" not in {word for _, word in rule_4_states(considered).get(entity, {}).values()}
    for row in verdict.rows:
        its = [
            r for r in rows if (r.link_id, r.statement_id) == (LINK, row.statement_id) and r.entity_id in {entity, ""}
        ]
        assert not its or rule_2_newest(its)[1] == "completed"


@often
@given(
    expectations(),
    customer_histories,
    customer_progress,
    st.lists(payload_rows(link=st.sampled_from(["link-2", None]), at=st.sampled_from([0, 4, 10_000])), min_size=1),
    moments,
)
def test_rows_of_another_link_change_no_customer_verdict(expect, rows, progress, others, now):
    assert judge_customer(expect, [*others, *rows], progress, now) == judge_customer(expect, rows, progress, now)


@often
@given(
    expectations(),
    customer_histories,
    customer_progress,
    st.lists(payload_rows(entity=st.just(""), statement=st.just("")), min_size=1),
    moments,
)
def test_failed_logins_of_an_unknown_entity_change_no_passed(expect, rows, progress, logins, now):
    before = judge_customer(expect, rows, progress, now)
    after = judge_customer(expect, [*logins, *rows], progress, now)
    assert (before.state == "passed") == (after.state == "passed")
    if before.state == "passed":
        assert after == before


@often
@given(customer_histories, customer_progress, moments)
def test_statements_of_two_entities_in_both_records_are_never_added_up(rows, progress, now):
    """A customer that passes for two statements also passes with the records of one entity alone."""
    expect = Expectation(link_id=LINK, expected_statements=2)
    verdict = judge_customer(expect, rows, progress, now)
    if verdict.state == "passed":
        (entity,) = {row.entity_id for row in verdict.rows}
        alone = [row for row in rows if row.entity_id in {entity, ""}]
        assert judge_customer(expect, alone, {entity: progress.get(entity, [])}, now) == verdict


def test_the_customers_above_reach_every_state_often():
    seen = frequencies(
        st.tuples(expectations(), customer_histories, customer_progress, moments),
        lambda *given: judge_customer(*given).state,
    )
    assert min(seen[state] for state in ("pending", "passed", "failed")) >= 0.05 * seen.total()


def test_the_announcements_above_often_keep_a_customer_pending_that_would_pass():
    def kept(expect, rows, progress, now):
        without = replace(expect, announced=())
        states = (judge_customer(one, rows, progress, now).state for one in (without, expect))
        return tuple(states)

    seen = frequencies(st.tuples(announcements(), customer_histories, customer_progress, moments), kept)
    assert seen["passed", "pending"] >= 0.02 * seen.total()


def test_the_customers_above_often_pass_by_both_records_together():
    def by(expect, rows, progress, now):
        verdict = judge_customer(expect, rows, progress, now)
        kinds = {row.date_time is None for row in verdict.rows}
        return (verdict.state, len(kinds))

    seen = frequencies(st.tuples(expectations(), customer_histories, customer_progress, moments), by)
    assert seen["passed", 2] >= 0.005 * seen.total()
