"""The gate: its rules, each case in every order of its rows; its arguments; and the words of its verdicts."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from enum import IntEnum

import pytest
from gate_cases import (
    CASES,
    CUSTOMER_CASES,
    ENTITY,
    HOUR,
    LINK,
    MINUTE,
    PROGRESS_CASES,
    Case,
    CustomerCase,
    ProgressCase,
    attempt,
    customer_expectation,
    customer_items,
    expect_arguments,
    expectation,
    item,
    one,
    payload_dicts,
    payloads,
    progress_dicts,
    progress_items,
    row,
    two,
)

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.arguments import is_literal
from airflow_provider_bankconnect.expectation import check_on_failed
from airflow_provider_bankconnect.gate import (
    Expectation,
    Row,
    Verdict,
    judge_customer,
    judge_history,
    judge_progress,
    newest_of_each_statement,
    why_not_considered,
)
from airflow_provider_bankconnect.records import HistoryGate, ProgressGate

NOW = datetime(2026, 11, 20, 12, 30, 45, tzinfo=UTC)


def orders(rows):
    """Yield every order of the rows, also with repeated rows at either end."""
    for order in itertools.permutations(rows):
        yield list(order)
    for repeated in rows:
        yield [repeated, *rows]
        yield [*reversed(rows), repeated, repeated]
    yield [*rows, *rows]


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_each_case_of_the_history_holds_in_every_order_of_its_rows(case):
    expected = expectation(case, NOW)
    verdicts = set()
    for rows in orders(payloads(case, NOW)):
        if case.state == "timezone":
            with pytest.raises(api.BankConnectTimezoneError):
                judge_history(expected, rows, NOW)
            continue
        verdict = judge_history(expected, iter(rows), NOW)
        assert verdict.state == case.state
        if case.result is not None:
            assert tuple(row.statement_id for row in verdict.rows) == case.result
        verdicts.add(verdict)
    assert len(verdicts) == (case.state != "timezone")


@pytest.mark.parametrize("case", PROGRESS_CASES, ids=by_name)
def test_each_case_of_the_progress_holds_in_every_order_of_its_items(case):
    expected = Expectation(entity_id=ENTITY, **expect_arguments(case, NOW))
    verdicts = set()
    for items in orders(progress_items(case)):
        verdict = judge_progress(expected, iter(items))
        assert verdict.state == case.state
        if case.result is not None:
            assert tuple(row.statement_id for row in verdict.rows) == case.result
        verdicts.add(verdict)
    assert len(verdicts) == 1


def orders_of_both(case):
    """Yield the rows and the items of a customer, each in every order and also repeated."""
    models = customer_items(case)
    ways = [orders(payloads(case, NOW)), *(orders(its) for its in models.values())]
    for rows, *progress in itertools.product(*map(list, ways)):
        yield rows, dict(zip(models, progress, strict=True))
        yield rows, dict(reversed([*zip(models, progress, strict=True)]))


@pytest.mark.parametrize("case", CUSTOMER_CASES, ids=by_name)
def test_each_case_of_the_customer_holds_in_every_order_of_its_rows_and_items(case):
    expected = customer_expectation(case, NOW)
    verdicts = set()
    for rows, progress in orders_of_both(case):
        items = {entity_id: iter(its) for entity_id, its in progress.items()}
        if case.state == "timezone":
            with pytest.raises(api.BankConnectTimezoneError):
                judge_customer(expected, iter(rows), items, NOW)
            continue
        verdict = judge_customer(expected, iter(rows), items, NOW)
        assert verdict.state == case.state
        assert tuple(shown.statement_id for shown in verdict.rows) == case.result
        verdicts.add(verdict)
    assert len(verdicts) == (case.state != "timezone")


def test_the_cases_are_small_and_their_names_are_unique():
    assert max(len(case.rows) for case in (*CASES, *CUSTOMER_CASES)) <= 5
    assert max(len(case.items) for case in PROGRESS_CASES) <= 5
    assert max(sum(map(len, case.items.values())) for case in CUSTOMER_CASES) <= 3
    for table in (CASES, PROGRESS_CASES, CUSTOMER_CASES):
        assert len({case.name for case in table}) == len(table)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_case_in_the_vendors_json_form_has_the_same_rows(case):
    """The tables are used with the sandbox, too."""
    call = api.get_webhook_payloads(LINK, UTC)
    next(call)
    body = json.dumps({"payloads": payload_dicts(case, NOW)}).encode()
    with pytest.raises(StopIteration) as done:
        call.send(api.Answer(200, body))
    assert sorted(map(repr, done.value.value)) == sorted(map(repr, payloads(case, NOW)))


@pytest.mark.parametrize("case", PROGRESS_CASES, ids=by_name)
def test_a_progress_case_in_the_vendors_json_form_has_the_same_items(case):
    read = [api.StatementProgress(**given) for given in progress_dicts(case)]
    assert [i.model_copy(update={"source": None}) for i in read] == progress_items(case)


# The words and rows of a verdict.


def judge(*rows, now=NOW, **expect):
    case = Case("", rows, "", expect=expect)
    return judge_history(expectation(case, now), payloads(case, now), now)


def judge_items(*items, **expect):
    case = ProgressCase("", items, "", expect=expect)
    return judge_progress(Expectation(entity_id=ENTITY, **expect), progress_items(case))


def judge_both(*rows, items=None, link=LINK, **expect):
    case = CustomerCase("", rows, items or {}, "", expect=expect, link=link)
    return judge_customer(customer_expectation(case, NOW), payloads(case, NOW), customer_items(case), NOW)


def test_a_row_has_the_documented_fields():
    verdict = judge(row("s1", "COMPLETED", ago=45, reason="Fine"))
    assert verdict.rows == (Row("s1", ENTITY, LINK, "completed", "Fine", "2026-11-20T12:30:00+00:00"),)
    assert verdict.rows[0].as_dict() == {
        "statement_id": "s1",
        "entity_id": ENTITY,
        "link_id": LINK,
        "progress": "completed",
        "reason": "Fine",
        "date_time": "2026-11-20T12:30:00+00:00",
    }


def test_a_row_of_progress_has_no_link_and_no_time():
    verdict = judge_items(item("s1", "Failed", "bad PDF"))
    assert verdict.rows == (Row("s1", ENTITY, None, "failed", "bad PDF", None),)


def test_a_row_of_progress_has_blank_text_for_a_null_status_and_message():
    assert judge_items(item("s1", None)).rows == (Row("s1", ENTITY, None, "", "", None),)


def test_a_row_of_progress_without_an_entity_has_a_blank_entity():
    (only,) = judge_progress(Expectation(), [api.StatementProgress(statement_id="s1", status="completed")]).rows
    assert only.entity_id == ""


def test_a_failed_attempt_is_shown_as_failed_whatever_its_progress():
    """With on_failed="pass" people branch on the rows: a row without a statement must not read as completed."""
    assert [shown.progress for shown in judge(row("", "completed", ago=HOUR)).rows] == ["failed"]


@pytest.mark.parametrize(
    ("ask", "because"),
    [
        (judge, "no row that counts"),
        (lambda: judge(row("s1", "completed")), "1 statement completed"),
        (lambda: judge(row("s1", "completed"), row("s2", "completed"), row("s3", "failed")), "2 statements completed"),
        (lambda: judge(row("s1", "processing")), "0 of 1 statement completed, 1 in progress"),
        (lambda: judge(row("s1", "completed"), expected_statements=2), "1 of 2 statements completed"),
        (
            lambda: judge(row("s1", "completed"), row("s2", "processing"), row("s3", "x"), expected_statements=2),
            "1 of 2 statements completed, 2 in progress",
        ),
        (
            lambda: judge(
                row("s1", "completed"),
                row("s2", "completed"),
                row("s3", "completed", entity="entity-2"),
                expected_statements=3,
            ),
            "2 of 3 statements completed",
        ),
        (lambda: judge(row("s1", "completed"), statement_id=("s1", "s2")), "1 of 2 statements completed"),
        (lambda: judge(row("s1", "completed", entity="")), "0 of 1 statement completed"),
        (
            lambda: judge(row("s1", "completed", entity=""), row("s2", "completed"), expected_statements=2),
            "1 of 2 statements completed",
        ),
        (
            lambda: judge(row("s1", "failed", ago=HOUR, reason="bad PDF")),
            "the newest row is a failure; reasons: 'bad PDF'",
        ),
        (
            lambda: judge(
                attempt(ago=2 * HOUR), row("s1", "failed", ago=HOUR), row("s2", "failed", ago=HOUR, reason="bad PDF")
            ),
            "the newest row is a failure; reasons: '', 'bad PDF', 'wrong password'",
        ),
        (
            lambda: judge(
                row("s1", "failed", ago=2 * HOUR, reason="first"), row("s1", "failed", ago=HOUR, reason="second")
            ),
            "the newest row is a failure; reasons: 'first', 'second'",
        ),
        (
            lambda: judge(attempt(ago=MINUTE), failure_grace=timedelta(hours=2)),
            "the newest row is a failure, which counts when it is 2:00:00 old; reasons: 'wrong password'",
        ),
        (judge_items, "no statement that counts"),
        (lambda: judge_items(item("s1", "completed")), "1 statement completed"),
        (lambda: judge_items(item("s1", "completed"), item("s2", "completed")), "2 statements completed"),
        (lambda: judge_items(item("s1", "completed"), expected_statements=3), "1 of 3 statements done"),
        (
            lambda: judge_items(item("s1", "completed"), item("s2", None), item("s3", "")),
            "1 of 1 statement done, 2 in progress",
        ),
        (
            lambda: judge_items(item("s1", None), item("s1", "x"), item("s1", "failed")),
            "0 of 1 statement done, 1 in progress",
        ),
        (
            lambda: judge_items(item("s1", "failed", "b"), item("s2", "completed", "c"), item("s3", "failed", "a")),
            "2 of 3 statements failed; reasons: 'a', 'b'",
        ),
        (lambda: judge_items(item("s1", "failed")), "1 of 1 statement failed; reasons: ''"),
        (lambda: judge_items(item("", "failed")), "0 of 1 statement done"),
        (lambda: judge_items(item("", None), item("s1", "completed")), "1 of 1 statement done, 1 in progress"),
    ],
)
def test_a_verdict_has_its_reason_in_words(ask, because):
    assert ask().because == because


UNDATED = "only in the progress, which has no times"


@pytest.mark.parametrize(
    ("ask", "because"),
    [
        (judge_both, "no statement that counts"),
        (lambda: judge_both(link=None, entity_id=ENTITY), "no statement that counts"),
        (lambda: judge_both(row("s1", "completed")), "1 statement completed"),
        (
            lambda: judge_both(row("s1", "completed"), items=one(item("s2", "completed"), item("s3", "failed"))),
            "2 statements completed",
        ),
        (lambda: judge_both(row("s1", "processing")), "0 of 1 statement completed, 1 in progress"),
        (lambda: judge_both(items=one(item("s1", None))), "0 of 1 statement completed, 1 in progress"),
        (
            lambda: judge_both(row("s1", "processing"), items=one(item("s1", "processing"))),
            "0 of 1 statement completed, 1 in progress",
        ),
        (
            lambda: judge_both(row("s1", "processing"), items=one(item("s2", ""), item("s3", "x"))),
            "0 of 1 statement completed, 3 in progress",
        ),
        (
            lambda: judge_both(row("s1", "processing"), items=two((), (item("s1", "processing"),))),
            "0 of 1 statement completed, 2 in progress",
        ),
        (
            lambda: judge_both(row("s1", "completed"), items=one(item("s1", "processing"))),
            "1 of 1 statement completed, 1 in progress",
        ),
        (lambda: judge_both(row("s1", "completed"), expected_statements=2), "1 of 2 statements completed"),
        (
            lambda: judge_both(
                row("s1", "completed"),
                row("s2", "failed", ago=2 * HOUR),
                items=two((item("s3", "completed"), item("s4", "failed")), (item("s5", "completed"),)),
                expected_statements=5,
            ),
            "2 of 5 statements completed",
        ),
        (
            lambda: judge_both(items=two((item("s1", "failed"),), (item("s2", "completed"),)), expected_statements=2),
            "1 of 2 statements completed",
        ),
        (lambda: judge_both(items=one(item("", "failed"))), "0 of 1 statement completed"),
        (lambda: judge_both(attempt(), items=one(item("s1", "failed"))), "0 of 1 statement completed"),
        (
            lambda: judge_both(attempt(), items=one()),
            "the newest row is a failure, which counts when it is 0:30:00 old; reasons: 'wrong password'",
        ),
        (lambda: judge_both(items=one(item("s1", "failed"))), "1 statement failed; reasons: ''"),
        (
            lambda: judge_both(
                items=one(item("s1", "failed", "b"), item("s2", "failed", "a"), item("s3", "completed", "c")),
                expected_statements=3,
            ),
            "2 statements failed; reasons: 'a', 'b'",
        ),
        (
            lambda: judge_both(row("s1", "failed", ago=HOUR, reason="old"), items=one(item("s2", "failed", "new"))),
            "1 statement failed; reasons: 'new'",
        ),
        (
            lambda: judge_both(attempt(ago=HOUR), items=one(item("s1", "failed", "b")), expected_statements=2),
            "the newest row is a failure; reasons: 'wrong password'",
        ),
        (
            lambda: judge_both(items=one(item("s1", "completed")), since_ago=HOUR),
            f"no statement that counts; 1 statement {UNDATED}",
        ),
        (
            lambda: judge_both(items=one(item("s1", "failed")), since_ago=HOUR, link=None, entity_id=ENTITY),
            f"no statement that counts; 1 statement {UNDATED}",
        ),
        (
            lambda: judge_both(
                row("s1", "completed"),
                items=one(item("s2", "completed"), item("s3", "failed"), item("s1", "completed")),
                since_ago=HOUR,
                expected_statements=2,
            ),
            f"1 of 2 statements completed; 2 statements {UNDATED}",
        ),
        (
            lambda: judge_both(
                row("s1", "completed"), items=one(item("s2", "completed"), item("s3", None)), since_ago=HOUR
            ),
            f"1 of 1 statement completed, 1 in progress; 1 statement {UNDATED}",
        ),
        (
            lambda: judge_both(attempt(ago=HOUR), items=one(item("s2", "completed")), since_ago=2 * HOUR),
            "the newest row is a failure; reasons: 'wrong password'",
        ),
    ],
)
def test_a_verdict_on_a_customer_has_its_reason_in_words(ask, because):
    assert ask().because == because


def test_a_customers_rows_with_and_without_a_time_have_the_documented_fields():
    verdict = judge_both(
        row("s1", "Completed", ago=45, reason="Fine"),
        items=one(item("s3", "FAILED", "bad PDF"), item("s2", None)),
    )
    assert verdict.rows == (
        Row("s1", ENTITY, LINK, "completed", "Fine", "2026-11-20T12:30:00+00:00"),
        Row("s2", ENTITY, None, "", "", None),
        Row("s3", ENTITY, None, "failed", "bad PDF", None),
    )


def test_of_several_items_of_a_statement_the_same_one_is_always_shown():
    for items in itertools.permutations(
        [item("s1", "failed", "b"), item("s1", "completed"), item("s1", "failed", "a")]
    ):
        assert judge_both(items=one(*items)).rows == (Row("s1", ENTITY, None, "failed", "a", None),)
    for items in itertools.permutations([item("s1", "x", "b"), item("s1", "failed"), item("s1", "a", "z")]):
        assert judge_both(items=one(*items)).rows == (Row("s1", ENTITY, None, "a", "z", None),)


LATER = NOW + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("expect", "because"),
    [
        ({}, "1 statement completed"),
        ({"announced": ("s9",)}, "1 statement completed"),
        ({"announced": ("s9",), "announced_until": NOW}, "1 statement completed"),
        (
            {"announced": ("s9",), "announced_until": LATER},
            "1 statement that a webhook announced in neither record yet",
        ),
        (
            {"announced": ("s8", "s1", "s9"), "announced_until": LATER},
            "2 statements that a webhook announced in neither record yet",
        ),
        ({"announced": ("s1", "s2", "s3", "s4"), "announced_until": LATER}, "1 statement completed"),
    ],
)
def test_a_customer_is_pending_until_a_record_has_the_announced_statements_or_they_are_given_up(expect, because):
    """Of s1 to s4, each record has some, in the other entity or out of the time of since, too."""
    verdict = judge_both(
        row("s1", "completed"),
        row("s2", "failed", ago=2 * HOUR),
        items=two((item("s3", "failed"),), (item("s4", "completed"),)),
        since_ago=HOUR,
        **expect,
    )
    assert verdict.because == because
    assert verdict.state == ("passed" if because == "1 statement completed" else "pending")
    assert [shown.statement_id for shown in verdict.rows] == ["s1"]


def test_a_verdict_that_waits_for_an_announced_statement_has_the_rows_of_both_records():
    verdict = judge_both(
        row("s1", "completed"),
        items=one(item("s2", "completed"), item("s3", None)),
        announced=("s9",),
        announced_until=LATER,
    )
    assert [shown.statement_id for shown in verdict.rows] == ["s1", "s3", "s2"]


def test_an_announced_statement_of_another_link_is_in_no_record():
    verdict = judge_both(
        row("s1", "completed"), row("s9", "completed", link="link-2"), announced=("s9",), announced_until=LATER
    )
    assert verdict.state == "pending"


def test_a_customer_without_a_link_is_counted_by_its_items_alone():
    verdict = judge_both(
        items=two((item("s1", "completed"),), (item("s2", "processing"),)), link=None, entity_id="entity-2"
    )
    assert [shown.statement_id for shown in verdict.rows] == ["s2"]


def test_the_error_of_a_row_in_the_future_names_the_timezone_setting():
    with pytest.raises(api.BankConnectTimezoneError) as caught:
        judge(row("s1", "completed", ago=-HOUR), row("s2", "completed"), now=NOW)
    assert str(caught.value) == (
        "A payload is 1:00:00 in the future: the connection's timezone is not the zone of the vendor's date_time "
        "(or this machine's clock is wrong)"
    )


def test_the_error_has_the_time_of_the_row_furthest_in_the_future():
    now = NOW - timedelta(milliseconds=400)
    rows = payloads(Case("", (row("s1", "completed", ago=-HOUR), row("s2", "completed", ago=-2 * HOUR)), ""), NOW)
    with pytest.raises(api.BankConnectTimezoneError, match=r"^A payload is 2:00:00 in the future"):
        judge_history(Expectation(link_id=LINK), rows, now)


def test_times_of_another_zone_are_shown_in_utc():
    given = api.WebhookPayload(
        statement_id="s1",
        entity_id=ENTITY,
        link_id=LINK,
        progress="completed",
        reason="",
        date_time=datetime(2026, 11, 20, 17, 0, 0, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    )
    assert judge_history(Expectation(link_id=LINK), [given], NOW).rows[0].date_time == "2026-11-20T11:30:00+00:00"


def test_rows_of_the_same_second_are_sorted_independent_of_their_arrival():
    """They are sorted by state, entity, statement and reason."""
    verdict = judge(
        attempt(ago=HOUR, reason="b"),
        attempt(ago=HOUR, reason="a"),
        row("s1", "failed", ago=HOUR),
        row("s0", "failed", ago=HOUR, entity="entity-2"),
        row("s2", "completed", ago=HOUR, entity="entity-0"),
        expected_statements=2,
    )
    assert [(shown.entity_id, shown.statement_id, shown.reason) for shown in verdict.rows] == [
        ("entity-0", "s2", ""),
        ("entity-2", "s0", ""),
        ("entity-1", "s1", ""),
        ("entity-1", "", "b"),
        ("entity-1", "", "a"),
    ]


def test_of_several_rows_in_progress_of_one_second_the_same_one_is_always_shown():
    rows = [row("s1", "abc", reason="y"), row("s1", "xyz", reason="x"), row("s1", "xyz", reason="w")]
    for order in itertools.permutations(rows):
        assert [(shown.progress, shown.reason) for shown in judge(*order).rows] == [("xyz", "x")]


@pytest.mark.parametrize(
    ("given", "expect", "why"),
    [
        (row("s1", "completed"), {}, None),
        (row("s1", "completed", link="other"), {}, "of another link, 'other'"),
        (row("s1", "completed", link=None), {}, "of another link, None"),
        (row("s1", "completed", entity="e9"), {"entity_id": ENTITY}, "of another entity, 'e9'"),
        (row("s1", "completed", entity=ENTITY), {"entity_id": ENTITY}, None),
        (row("s1", "completed", entity=""), {"entity_id": ENTITY}, "BankConnect names no entity"),
        (attempt(entity=""), {}, None),
        (row("s1", "completed"), {"statement_id": ("s2", "s3")}, "of another statement"),
        (row("s1", "completed"), {"statement_id": ("s2", "s1")}, None),
        (attempt(), {"statement_id": ("s2",)}, "an attempt, and statement_id is given"),
        (attempt(), {}, None),
        (row("s1", "failed", ago=61), {"since_ago": 60}, "older than since, 2026-11-20T12:29:45+00:00"),
        (row("s1", "failed", ago=60), {"since_ago": 60}, None),
    ],
)
def test_the_reason_why_a_row_is_not_considered_is_named(given, expect, why):
    case = Case("", (given,), "", expect=expect)
    assert why_not_considered(expectation(case, NOW), *payloads(case, NOW)) == why


def test_newest_of_each_statement_keeps_one_row_of_each():
    case = Case(
        "",
        (
            row("s1", "failed", ago=90),
            row("s1", "completed", ago=30),
            row("s1", "processing", ago=60),
            row("s1", "failed", ago=50, entity="entity-2"),
            attempt(),
        ),
        "",
    )
    left = newest_of_each_statement(payloads(case, NOW))
    assert sorted((kept.entity_id, kept.progress) for kept in left) == [
        ("entity-1", "completed"),
        ("entity-2", "failed"),
    ]


@pytest.mark.parametrize(
    ("state", "on_failed", "ends"),
    [
        ("passed", "fail", True),
        ("passed", "wait", True),
        ("failed", "fail", True),
        ("failed", "skip", True),
        ("failed", "pass", True),
        ("failed", "wait", False),
        ("pending", "fail", False),
        ("pending", "wait", False),
        ("pending", "pass", False),
    ],
)
def test_a_verdict_ends_the_wait_unless_it_is_pending_or_on_failed_is_wait(state, on_failed, ends):
    assert Verdict(state, (), "").ends_wait(on_failed) is ends


# The arguments of an expectation.


def test_all_arguments_but_the_link_have_defaults():
    expected = Expectation.parse(link_id="L")
    assert expected == Expectation("L", None, None, None, 1, timedelta(minutes=30))
    assert expected.needed == 1


def test_every_argument_is_parsed():
    assert Expectation.parse(
        link_id="L",
        entity_id="E",
        statement_id=["a", "b"],
        since="2026-11-01T05:30:00+05:30",
        expected_statements=" 2 ",
        failure_grace=90,
    ) == Expectation("L", "E", ("a", "b"), datetime(2026, 11, 1, tzinfo=UTC), 2, timedelta(seconds=90))


@pytest.mark.parametrize(
    ("given", "kept"), [("a", ("a",)), (["a", "b"], ("a", "b")), ({"a": 1}.keys(), ("a",)), (None, None)]
)
def test_statement_id_is_one_id_or_several(given, kept):
    assert Expectation.parse(link_id="L", statement_id=given).statement_id == kept


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        (None, None),
        ("2026-11-01T00:00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
        (" 2026-11-01T00:00:00Z\n", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01 10:20:30", datetime(2026, 11, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-11-01T10:20:30.25+05:30", datetime(2026, 11, 1, 4, 50, 30, 250000, tzinfo=UTC)),
        ("2026-11-02", datetime(2026, 11, 2, tzinfo=UTC)),
        ("20261102T101112Z", datetime(2026, 11, 2, 10, 11, 12, tzinfo=UTC)),
        (date(2026, 11, 1), datetime(2026, 11, 1, tzinfo=UTC)),
        (datetime(2026, 11, 1, 7), datetime(2026, 11, 1, 7, tzinfo=UTC)),  # noqa: DTZ001 - naive is the case
        (datetime(2026, 11, 1, 7, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ],
)
def test_since_is_a_datetime_or_iso_text_and_naive_means_utc(given, moment):
    since = Expectation.parse(link_id="L", since=given).since
    assert since == moment
    assert since is None or since.utcoffset() == timedelta(0)


UNREADABLE_SINCE = [
    "",
    " ",
    "None",
    "now",
    "yesterday",
    "P1D",
    "10:20:30",
    "2:",
    "2026-13-01",
    "2026-11-01/2026-11-02",
    "0001-01-01T00:00:00+05:00",
    "{{ ds }}",
    5,
    True,
]


@pytest.mark.parametrize("given", UNREADABLE_SINCE, ids=repr)
def test_an_invalid_since_is_refused(given):
    with pytest.raises(ValueError, match=r"^since must be") as caught:
        Expectation.parse(link_id="L", since=given)
    assert str(caught.value) == (
        f"since must be a datetime or ISO 8601 text like '2026-11-01T00:00:00Z', not {given!r}"
    )


@pytest.mark.parametrize(("given", "count"), [(1, 1), ("1", 1), (" 12\n", 12), (3, 3), ("999999999", 999999999)])
def test_expected_statements_is_a_number_or_its_text(given, count):
    assert Expectation.parse(link_id="L", expected_statements=given).expected_statements == count


@pytest.mark.parametrize(
    "given", [0, -1, "", " ", "0", "-1", "1.5", "one", "None", 1.0, True, None, "٣", "²"], ids=repr
)
def test_an_invalid_expected_statements_is_refused(given):
    with pytest.raises(ValueError, match=r"^expected_statements must be a whole number from 1, not ") as caught:
        Expectation.parse(link_id="L", expected_statements=given)
    assert str(caught.value).endswith(f"not {0 if given == '0' else given!r}")


def test_the_constructor_refuses_an_expected_statements_of_true():
    with pytest.raises(ValueError, match=r"^expected_statements must be a whole number from 1, not True$"):
        Expectation(link_id="L", expected_statements=True)


def test_an_expected_statements_of_many_digits_is_capped():
    assert Expectation.parse(link_id="L", expected_statements="9" * 10_000).expected_statements == 999_999_999


@pytest.mark.parametrize(
    ("given", "grace"),
    [(timedelta(hours=1), timedelta(hours=1)), (0, timedelta(0)), (1.5, timedelta(milliseconds=1500))],
)
def test_failure_grace_is_a_duration_or_seconds(given, grace):
    assert Expectation.parse(link_id="L", failure_grace=given).failure_grace == grace


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "soon", None, 1e300], ids=repr)
def test_an_invalid_failure_grace_is_refused(given):
    with pytest.raises(ValueError, match=r"^failure_grace") as caught:
        Expectation.parse(link_id="L", failure_grace=given)
    assert str(caught.value) == f"failure_grace must be a timedelta or seconds, not {given!r}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"link_id": " "}, "link_id must not be blank, and is ' ': did its template find nothing?"),
        ({"link_id": "None"}, "link_id must not be blank, and is 'None': did its template find nothing?"),
        ({"entity_id": ""}, "entity_id must not be blank, and is '': did its template find nothing?"),
        ({"entity_id": ".."}, "entity_id must not be '..'"),
        ({"statement_id": ""}, "statement_id must not be blank, and is '': did its template find nothing?"),
        ({"statement_id": ["a", None]}, "statement_id must be text, not NoneType"),
        ({"statement_id": 1.5}, "statement_id must be one id or a list of them, not 1.5"),
        (
            {"statement_id": []},
            "statement_id must not be an empty list: leave it out to wait for any statement",
        ),
        (
            {"statement_id": ["a", "a", "b"], "expected_statements": 3},
            "expected_statements is 3, but statement_id names only 2: the gate could never pass",
        ),
        ({"failure_grace": -1}, "failure_grace must not be negative, and is -1 day, 23:59:59"),
    ],
)
def test_the_error_of_an_invalid_argument_names_it(arguments, message):
    with pytest.raises(ValueError, match=r"^\w") as caught:
        Expectation.parse(**{"link_id": "L", **arguments})
    assert str(caught.value) == message


def test_the_constructor_refuses_a_naive_since():
    with pytest.raises(ValueError, match=r"^since must be aware: give it a time zone$"):
        Expectation(since=datetime(2026, 11, 1))  # noqa: DTZ001 - naive is the case


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ({"expected_statements": 3}, 3),
        ({"statement_id": ("a", "b")}, 2),
        ({"statement_id": ("a", "b"), "expected_statements": 2}, 2),
        ({"statement_id": ("a", "b", "a")}, 2),
    ],
)
def test_needed_is_the_number_of_statement_ids_or_expected_statements(arguments, needed):
    assert Expectation(**arguments).needed == needed


@pytest.mark.parametrize("meaning", ["fail", "skip", "wait", "pass"])
def test_each_value_of_on_failed_is_accepted(meaning):
    assert check_on_failed(meaning) == meaning


@pytest.mark.parametrize("given", ["explode", "", "FAIL", None, 1], ids=repr)
def test_an_invalid_on_failed_is_refused_and_the_allowed_values_are_named(given):
    with pytest.raises(ValueError, match=r"^on_failed") as caught:
        check_on_failed(given)
    assert str(caught.value) == f"on_failed must be one of 'fail', 'skip', 'wait', 'pass', not {given!r}"


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "known"),
    [
        ("L", True),
        ("", True),
        ("{ L }", True),
        ("{{ params.link_id }}", False),
        ("x{% if y %}z{% endif %}", False),
        (None, True),
        (1, True),
        (1.5, True),
        (Number.ONE, True),
        (NOW, True),
        (timedelta(1), True),
        (["a", "b"], True),
        (["a", "{{ b }}"], False),
        (("a", "{{ b }}"), False),
        ({"a", "{{ b }}"}, False),
        ((), True),
        (object(), False),
        ({"a": 1}, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_argument_is_literal_unless_it_has_a_template_or_is_no_plain_value(value, known):
    assert is_literal(value) is known


# A gate: an expectation and the call that reads its records.


def test_a_history_gate_asks_for_its_link_in_the_connections_zone():
    gate = HistoryGate(Expectation(link_id="a b"))
    call = gate.ask(timezone(timedelta(hours=5, minutes=30)))
    assert next(call).path == "entity/webhook_payloads/?link_id=a%20b"
    body = (
        b'{"payloads": [{"statement_id": "s", "entity_id": "e", "link_id": "a b", "progress": "completed",'
        b' "reason": "", "date_time": "2026-11-20 17:30:00"}]}'
    )
    rows = api.advance(call, api.Answer(200, body)).value
    assert gate.judge(rows, NOW) == Verdict(
        "passed", (Row("s", "e", "a b", "completed", "", "2026-11-20T12:00:00+00:00"),), "1 statement completed"
    )
    assert str(gate) == "payload history of link 'a b'"


def test_a_history_gate_judges_at_the_given_time():
    gate = HistoryGate(Expectation(link_id=LINK))
    rows = payloads(Case("", (attempt(ago=0),), ""), NOW)
    assert gate.judge(rows, NOW).state == "pending"
    assert gate.judge(rows, NOW + timedelta(minutes=30)).state == "failed"


def test_a_history_gate_without_a_link_is_refused():
    with pytest.raises(ValueError, match=r"^link_id must be text, not NoneType$"):
        HistoryGate(Expectation(entity_id="e"))


def test_a_progress_gate_asks_for_its_analysis():
    gate = ProgressGate(Expectation(entity_id="e/1"), "identity")
    call = gate.ask(UTC)
    assert next(call).path == "entity/e%2F1/identity/"
    items = api.advance(call, api.Answer(200, b'{"progress": [{"statement_id": "s", "status": "completed"}]}')).value
    assert gate.judge(items, NOW) == Verdict(
        "passed", (Row("s", "e/1", None, "completed", "", None),), "1 statement completed"
    )
    assert str(gate) == "progress of identity of entity 'e/1'"
    assert ProgressGate(Expectation(entity_id="e")).analysis == "transactions"


def test_a_progress_gate_without_an_entity_is_refused():
    with pytest.raises(ValueError, match=r"^entity_id must be text, not NoneType$"):
        ProgressGate(Expectation(link_id="L"))


def test_a_progress_gate_on_an_unknown_analysis_is_refused():
    with pytest.raises(ValueError, match=r"^analysis must be one of transactions, "):
        ProgressGate(Expectation(entity_id="e"), "horoscope")


def test_the_core_imports_neither_airflow_nor_an_http_client():
    code = (
        "import sys, airflow_provider_bankconnect.gate\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'airflow', 'aiohttp', 'requests', 'httpx', 'urllib3'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_failed_item_without_a_statement_is_counted_with_the_failed_ones():
    items = [api.StatementProgress(statement_id="", status="failed", message=words) for words in ("x", "y")]
    verdict = judge_progress(
        Expectation(entity_id="e1"), [*items, api.StatementProgress(statement_id="s1", status="completed")]
    )
    assert (verdict.state, verdict.because) == ("failed", "1 of 2 statements failed; reasons: 'x', 'y'")


def test_a_completion_that_a_row_without_an_entity_takes_back_is_named():
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    rows = [
        api.WebhookPayload(
            statement_id="s1", entity_id=entity_id, link_id="L", progress=progress, date_time=now - timedelta(hours=ago)
        )
        for entity_id, progress, ago in (("e1", "completed", 2), ("", "processing", 1))
    ]
    verdict = judge_history(Expectation(link_id="L", entity_id="e1"), rows, now)
    text = "1 of 1 statement completed, but a newer row that names no entity says otherwise"
    assert (verdict.state, verdict.because) == ("pending", text)
