"""What is read of each answer, and what a strange value in one costs: the value, its row, or the answer."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from api_calls import DONE, ROW, answer_with, page, payloads_of, refusal, without
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect import answers, api
from airflow_provider_bankconnect.api import BankConnectResponseError, StatementProgress

KOLKATA = ZoneInfo("Asia/Kolkata")
# Stands for a customer's data.
CUSTOMER = "Wrong password of A. Customer"

often = settings(max_examples=200, deadline=None, derandomize=True, database=None)


# What a strange value costs.

MISSING = "missing"
STRANGE = {"null": None, MISSING: MISSING, "''": "", "'  '": "  ", "7": 7, "1.5": 1.5, "true": True, "[]": [], "{}": {}}
LOST = "the row is lost"


@dataclass(frozen=True)
class Refused:
    """The answer is refused. The message names the field, unless another field is the problem."""

    problem: str
    field: str | None = None


NEEDED = Refused("Field required")
NO_TEXT = Refused("Input should be a valid string")
NO_LIST = Refused("Input should be a valid array")
NO_OBJECT = Refused("Input should be an object")
NO_TIME = Refused("Value error, must be YYYY-MM-DD HH:MM:SS")
# The problem is the whole item, and the message names the field by itself.
UNNAMED = Refused("Value error, a completed statement must have a statement_id", "")

COMPLETED = {**ROW, "reason": CUSTOMER}
FAILED = {**COMPLETED, "progress": "failed"}
ATTEMPT = {**FAILED, "statement_id": ""}
ITEM = {**DONE, "message": CUSTOMER, "transaction_status": "processing"}
FAILED_ITEM = {**ITEM, "status": "failed"}
GOING_ITEM = {**ITEM, "status": "processing"}

ID = ["", "", "", "", "7", *[NO_TEXT] * 4]
ID_OR_NONE = [None, None, None, None, "7", *[NO_TEXT] * 4]
TEXT = [""] * 9
TEXT_OR_NONE = [None, None, "", "  ", *[None] * 5]
NEEDED_LIST = [NO_LIST, NEEDED, *[NO_LIST] * 5, [], NO_LIST]
ROW_OR_LOST = ["", "", "", "", "7", *[LOST] * 4]

# Where the value is, and its cost for null, missing, "", "  ", 7, 1.5, true, [] and {}.
COSTS = [
    ("history", None, "payloads", NEEDED_LIST),
    ("history", COMPLETED, "statement_id", ["", NEEDED, "", "", "7", *[NO_TEXT] * 4]),
    ("history", COMPLETED, "entity_id", ID),
    ("history", COMPLETED, "link_id", [None, NEEDED, None, None, "7", *[NO_TEXT] * 4]),
    ("history", COMPLETED, "progress", TEXT),
    ("history", COMPLETED, "reason", TEXT),
    ("history", COMPLETED, "date_time", [NO_TIME, NEEDED, *[NO_TIME] * 7]),
    # A statement that failed is not a completed one.
    ("history", FAILED, "statement_id", ["", NEEDED, "", "", "7", *[NO_TEXT] * 4]),
    ("history", FAILED, "entity_id", ROW_OR_LOST),
    ("history", FAILED, "link_id", [None, LOST, None, None, "7", *[LOST] * 4]),
    ("history", FAILED, "progress", TEXT),
    ("history", FAILED, "reason", TEXT),
    ("history", FAILED, "date_time", [LOST] * 9),
    # Nor is an attempt without a statement.
    ("history", ATTEMPT, "entity_id", ROW_OR_LOST),
    ("history", ATTEMPT, "link_id", [None, LOST, None, None, "7", *[LOST] * 4]),
    ("history", ATTEMPT, "progress", TEXT),
    ("history", ATTEMPT, "reason", TEXT),
    ("history", ATTEMPT, "date_time", [LOST] * 9),
    ("progress", None, "entity_id", [*[None] * 4, Refused("but the answer is about another entity"), *[NO_TEXT] * 4]),
    ("progress", None, "progress", NEEDED_LIST),
    ("progress", ITEM, "statement_id", [*[UNNAMED] * 4, "7", *[NO_TEXT] * 4]),
    ("progress", FAILED_ITEM, "statement_id", ID),
    ("progress", GOING_ITEM, "statement_id", ID),
    *(("progress", ITEM, field, TEXT_OR_NONE) for field in ("status", "source", "message", "transaction_status")),
    # A blank text in the place of a URL is the last page's, unless it has spaces: then one more page is asked for.
    ("page", None, "next", [None, NEEDED, "", "  ", *[NO_TEXT] * 5]),
    ("page", None, "results", NEEDED_LIST),
    ("page", {}, "entity_id", ID),
    ("page", {}, "link_id", ID_OR_NONE),
    ("entity", None, "entity_id", ["", "", "", "", Refused("but the answer is about another entity"), *[NO_TEXT] * 4]),
    ("entity", None, "link_id", ID_OR_NONE),
]

CASES = [
    pytest.param(kind, row, field, name, outcome, id=f"{kind}-{(row or {}).get('progress', '')}-{field}-{name}")
    for kind, row, field, outcomes in COSTS
    for name, outcome in zip(STRANGE, outcomes, strict=True)
]

FRAMES = {
    # A good row before and after the strange one.
    "history": ("payloads", {}, {**COMPLETED, "statement_id": "s8"}),
    "progress": ("progress", {"entity_id": "e1"}, {**ITEM, "statement_id": "s8"}),
    "page": ("results", without("results", page()), {"entity_id": "e8", "link_id": "L", "meta_data": {"a": CUSTOMER}}),
}
MODELS = {
    "history": (answers.History, "payloads"),
    "progress": (answers.AnalysisAnswer, "entity_id, progress"),
    "page": (answers.EntityPage, "next, results"),
    "entity": (answers.Entity, "entity_id, link_id"),
}


def put(given, field, name):
    return without(field, given) if name == MISSING else {**given, field: STRANGE[name]}


def body_with(kind, row, field, name):
    """Return an answer with the strange value, and the row or item that has it."""
    if kind == "entity":
        return put({"entity_id": "e1", "link_id": "L", "meta_data": {"a": CUSTOMER}}, field, name)
    rows, frame, good = FRAMES[kind]
    if row is None:
        return put({**frame, rows: [good]}, field, name)
    return {**frame, rows: [good, put(row or good, field, name), good]}


def call_of(kind):
    return {
        "history": lambda: api.get_webhook_payloads("L", UTC),
        "progress": lambda: api.get_progress("e1", "identity"),
        "page": lambda: api.get_entities("L"),
        "entity": lambda: api.get_entity("e1"),
    }[kind]()


def read_of(kind, body):
    """Return the answer as its model, as the call reads it."""
    request = api.advance(call_of(kind))
    return request, answers.read_as(MODELS[kind][0], request, api.Answer(200, json.dumps(body).encode()), timezone=UTC)


@pytest.mark.parametrize(("kind", "row", "field", "name", "outcome"), CASES)
def test_strange_value_costs_no_more_than_it_must(kind, row, field, name, outcome):
    body = body_with(kind, row, field, name)
    if isinstance(outcome, Refused):
        error = refusal(call_of(kind), body)
        assert type(error) is BankConnectResponseError
        assert str(error) == expected_message(kind, row, field, outcome)
        return
    _, read = read_of(kind, body)
    if row is None:
        assert getattr(read, field) == outcome
        return
    before, strange, after = getattr(read, FRAMES[kind][0])
    assert before == after
    if outcome == LOST:
        statement_id = row["statement_id"]
        assert strange == answers.LostRow(statement_id)
        assert [one.statement_id for one in answer_with(call_of(kind), body)[1]] == ["s8", "s8"]
    else:
        assert getattr(strange, field) == outcome
        assert {other: getattr(strange, other) for other in type(strange).model_fields if other != field} == {
            other: getattr(type(strange)(**(row or FRAMES[kind][2])), other)
            for other in type(strange).model_fields
            if other != field
        }


def expected_message(kind, row, field, outcome):
    call = api.advance(call_of(kind)).call
    if outcome.problem.startswith("but "):
        return f"{call}: HTTP 200, {outcome.problem}"
    fields = MODELS[kind][1]
    place = field if row is None else ".".join([FRAMES[kind][0], "1", *([] if outcome.field == "" else [field])])
    return f"{call}: HTTP 200, but not the documented JSON (with {fields}): {place}: {outcome.problem}"


def test_table_has_every_field_of_every_answer():
    there = {(kind, row is not None, field) for kind, row, field, _ in COSTS}
    rows = {"history": api.WebhookPayload, "progress": StatementProgress, "page": answers.Entity}
    assert there == {(kind, False, field) for kind, (model, _) in MODELS.items() for field in model.model_fields} | {
        (kind, True, field) for kind, model in rows.items() for field in model.model_fields
    }


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("row", ["", "  ", 7, 1.5, True, []], ids=repr)
def test_row_that_is_no_object_refuses_the_answer(kind, row):
    """It could be a completed statement, or an entity."""
    rows, frame, good = FRAMES[kind]
    error = refusal(call_of(kind), {**frame, rows: [good, row]})
    assert str(error).endswith(f"(with {MODELS[kind][1]}): {rows}.1: {NO_OBJECT.problem}")


@pytest.mark.parametrize("kind", ["progress", "page"])
def test_null_in_place_of_an_item_or_an_entity_refuses_the_answer(kind):
    rows, frame, good = FRAMES[kind]
    error = refusal(call_of(kind), {**frame, rows: [good, None]})
    assert str(error).endswith(f"(with {MODELS[kind][1]}): {rows}.1: {NO_OBJECT.problem}")


def test_null_in_place_of_a_row_is_lost_alone():
    assert payloads_of(None, ROW, None) == payloads_of(ROW)


def test_blank_entities_are_left_out():
    body = page("e1", "", "  ", None, 7)
    body["results"].insert(0, {"link_id": "L"})
    assert answer_with(api.get_entities("L"), body)[1] == ["e1", "7"]


def test_blank_next_page_is_the_last():
    assert answer_with(api.get_entities("L"), {**page("e1"), "next": ""})[1] == ["e1"]


def test_entity_of_a_link_that_is_a_number_is_one_of_its_text():
    assert answer_with(api.get_entities("4711"), page("e1", link=4711))[1] == ["e1"]


# Rows that are lost.


@pytest.mark.parametrize("progress", ["failed", "Failed", "FAILED"])
@pytest.mark.parametrize("date_time", ["yesterday", None, "2020-02-30 00:00:00"], ids=repr)
def test_unreadable_failed_row_is_lost_alone(progress, date_time):
    lost = {**ROW, "statement_id": "s2", "progress": progress, "date_time": date_time}
    assert payloads_of(lost, ROW, lost) == payloads_of(ROW)


UNREADABLE = "payloads.0.date_time: Value error, must be YYYY-MM-DD HH:MM:SS"


@pytest.mark.parametrize(
    "progress", ["completed", "processing", " failed", "failed ", "", None, 7, ["failed"]], ids=repr
)
def test_unreadable_row_of_a_statement_that_may_be_completed_refuses_the_answer(progress):
    lost = {**ROW, "statement_id": "s2", "progress": progress, "date_time": "yesterday"}
    assert str(refusal(api.get_webhook_payloads("L", UTC), {"payloads": [lost, ROW]})).endswith(f"): {UNREADABLE}")


@pytest.mark.parametrize("progress", ["completed", "processing", "", None, 7, ["failed"]], ids=repr)
def test_unreadable_row_without_a_statement_is_lost_alone(progress):
    lost = {**ROW, "statement_id": "", "progress": progress, "date_time": "yesterday"}
    assert payloads_of(lost, ROW) == payloads_of(ROW)


def test_unreadable_row_that_does_not_mention_a_statement_refuses_the_answer():
    lost = without("statement_id", {**ROW, "progress": "failed"})
    error = refusal(api.get_webhook_payloads("L", UTC), {"payloads": [lost, ROW]})
    assert str(error).endswith("): payloads.0.statement_id: Field required")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("progress", ["completed", "failed", "processing"])
@pytest.mark.parametrize("statement_id", ["s2", 7], ids=repr)
def test_lost_failure_of_a_statement_that_another_row_names_refuses_the_answer(statement_id, progress, order):
    """Without its time, nobody knows which of them is the newest."""
    lost = {**ROW, "statement_id": statement_id, "progress": "failed", "date_time": None, "reason": CUSTOMER}
    rows = [ROW, lost, {**ROW, "statement_id": str(statement_id), "progress": progress}]
    error = refusal(api.get_webhook_payloads("L", UTC), {"payloads": [rows[place] for place in order]})
    assert type(error) is BankConnectResponseError
    assert str(error) == (
        f"webhook_payloads: HTTP 200, but payloads.{order.index(1)} cannot be read, "
        "and other rows of its statement may be older"
    )
    assert error.status == 200


def test_lost_attempts_do_not_concern_each_other():
    """Rows without a statement are not rows of one statement."""
    attempt = {**ROW, "statement_id": "", "progress": "failed"}
    lost = {**attempt, "date_time": "yesterday"}
    assert payloads_of(lost, attempt, lost, ROW) == payloads_of(attempt, ROW)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
strange = plain | st.sampled_from(["", " ", "failed", "completed", "Completed", "s1", "2020-03-06 12:46:33", "L", "e1"])
times = st.integers(0, 59).map(lambda second: f"2020-03-06 12:46:{second:02}")
readable = st.fixed_dictionaries(
    {
        "statement_id": st.sampled_from(["s1", "s2", "s3", "", None, 7]),
        "entity_id": st.sampled_from(["e1", "e2", "", None]),
        "link_id": st.sampled_from(["L", None]),
        "progress": st.sampled_from(["completed", "Completed", "failed", "processing", None]),
        "reason": st.sampled_from(["", None, CUSTOMER]),
        "date_time": times,
    }
)
strange_attempt = st.fixed_dictionaries(
    {"statement_id": st.sampled_from([None, "", " ", "\t\n"])},
    optional={
        "entity_id": strange, "link_id": strange, "reason": strange, "more": strange,
        "progress": strange | st.sampled_from(["failed", "Failed"]), "date_time": strange | times,
    },
)  # fmt: skip


@often
@given(st.data(), st.lists(readable, max_size=6), st.lists(st.none() | strange_attempt, min_size=1, max_size=4))
def test_strange_failed_logins_never_change_which_statements_are_completed(data, rows, attempts):
    mixed = list(rows)
    for attempt in attempts:
        mixed.insert(data.draw(st.integers(0, len(mixed))), attempt)
    statements = [row for row in payloads_of(*mixed) if row.statement_id]
    assert statements == [row for row in payloads_of(*rows) if row.statement_id]


@often
@given(
    st.fixed_dictionaries(
        {"statement_id": st.sampled_from(["s2", 7]), "progress": st.sampled_from(["completed", "COMPLETED"])},
        optional={"entity_id": strange, "link_id": strange, "reason": strange, "date_time": strange | times},
    ),
    st.lists(readable.filter(lambda row: row["statement_id"] not in {"s2", 7}), max_size=3),
)
def test_completed_statement_is_read_or_refuses_the_answer_and_is_never_lost(completed, rows):
    refused = ""
    read = []
    try:
        read = payloads_of(*rows, completed)
    except BankConnectResponseError as error:
        refused = str(error)
    if refused:
        assert f" payloads.{len(rows)}." in refused
    else:
        assert [row.progress for row in read if row.statement_id == str(completed["statement_id"])] == [
            completed["progress"]
        ]


# The models.


def test_payload_takes_a_datetime_of_any_zone():
    made = api.WebhookPayload(**{**ROW, "date_time": datetime(2020, 3, 6, 18, 16, 33, tzinfo=KOLKATA)})
    assert made == payloads_of(ROW)[0]
    assert made.date_time.tzinfo is UTC


def test_payload_takes_text_as_a_time_in_utc():
    assert api.WebhookPayload(**ROW) == payloads_of(ROW)[0]


def test_payload_refuses_a_naive_datetime():
    with pytest.raises(ValueError, match="must be YYYY-MM-DD HH:MM:SS"):
        api.WebhookPayload(**{**ROW, "date_time": datetime(2020, 3, 6)})  # noqa: DTZ001 - naive is the case


def test_bytes_are_not_taken_for_text():
    assert api.WebhookPayload(**{**ROW, "progress": b"completed"}).progress == ""
    with pytest.raises(ValueError, match=r"statement_id\n  Input should be a valid string"):
        api.WebhookPayload(**{**ROW, "statement_id": b"s1"})


def test_payload_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        payloads_of(ROW)[0].progress = "failed"


def test_unknown_fields_are_ignored():
    body = {"payloads": [{**ROW, "event_name": "x", "more": {"deep": [1]}}], "next": None}
    assert answer_with(api.get_webhook_payloads("L", UTC), body)[1] == payloads_of(ROW)


@pytest.mark.parametrize("field", ["statement_id", "entity_id", "progress", "reason"])
@pytest.mark.parametrize("blank", ["\t\n", "\u00a0", "\u2003 "], ids=repr)
def test_text_of_any_blanks_is_read_as_empty(field, blank):
    """With blanks in it, an id must not count as a statement or an entity."""
    assert getattr(payloads_of({**ROW, field: blank})[0], field) == ""


def test_texts_are_kept_unchanged():
    odd = {
        "statement_id": " s 1 ", "entity_id": " e\n", "link_id": " L", "progress": " Done\n",
        "reason": " Wrong password\u202e ",
    }  # fmt: skip
    read = payloads_of({**ROW, **odd})[0]
    assert {name: getattr(read, name) for name in odd} == odd


@pytest.mark.parametrize(("number", "digits"), [(0, "0"), (-1, "-1"), (10**30, "1" + "0" * 30)])
def test_whole_number_is_read_as_its_digits(number, digits):
    (row,) = payloads_of({**ROW, "statement_id": number, "entity_id": number, "link_id": number})
    assert (row.statement_id, row.entity_id, row.link_id) == (digits, digits, digits)


def test_progress_has_the_state_of_the_transactions():
    body = {"progress": [{**DONE, "transaction_status": "failed"}, DONE]}
    assert [item.transaction_status for item in answer_with(api.get_progress("e1", "identity"), body)[1]] == [
        "failed",
        None,
    ]


def test_progress_without_optional_fields_is_read():
    assert answer_with(api.get_progress("e1"), {"progress": [{"statement_id": "s1", "status": None}, {}]})[1] == [
        StatementProgress(statement_id="s1", status=None, source=None, message=None, transaction_status=None),
        StatementProgress(statement_id="", status=None, source=None, message=None, transaction_status=None),
    ]


@pytest.mark.parametrize("status", ["completed", "Completed", "COMPLETED"])
def test_completed_item_must_name_its_statement(status):
    error = refusal(api.get_progress("e1"), {"progress": [DONE, {**DONE, "statement_id": " ", "status": status}]})
    assert str(error).endswith("): progress.1: Value error, a completed statement must have a statement_id")


# Answers that are refused.

HISTORY = "webhook_payloads: HTTP 200, but not the documented JSON (with payloads): "


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "body: Input should be an object"),
        (None, "body: Input should be an object"),
        ("payloads", "body: Input should be an object"),
        ({}, "payloads: Field required"),
        *(
            (
                {"payloads": [{**ROW, "date_time": time}]},
                "payloads.0.date_time: Value error, must be YYYY-MM-DD HH:MM:SS",
            )
            for time in (
                "yesterday",
                1583498793,
                "2020-03-06",
                "2020-03-06T12:46:33Z",
                "2020-03-06 12:46:33.5",
                "2020-03-06 12:46:60",
                "2020-02-30 00:00:00",
                "06-03-2020 12:46:33",
            )
        ),
        (
            {"payloads": [{}]},
            (
                "payloads.0.statement_id: Field required; payloads.0.link_id: Field required; "
                "payloads.0.date_time: Field required"
            ),
        ),
        (
            {"payloads": [{"statement_id": True, "entity_id": [], "link_id": 1.5}]},
            (
                "payloads.0.statement_id: Input should be a valid string; "
                "payloads.0.entity_id: Input should be a valid string; "
                "payloads.0.link_id: Input should be a valid string and 1 more"
            ),
        ),
        (b"", "body: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"<html>Sorry</html>", "body: Invalid JSON: expected value at line 1 column 1"),
        (b'{"payloads": [', "body: Invalid JSON: EOF while parsing a list at line 1 column 14"),
        (b'{"payloads": NaN}', "payloads: Input should be a valid array"),
    ],
)
def test_undocumented_history_is_refused_with_the_expected_fields(body, problem):
    error = refusal(api.get_webhook_payloads("L", UTC), body)
    assert type(error) is BankConnectResponseError
    assert str(error) == HISTORY + problem
    assert error.status == 200
    assert error.__cause__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize(
    ("ask", "body", "problems"),
    [
        (
            lambda: api.get_webhook_payloads("L", UTC),
            {"payloads": [ROW, *[{}] * 1000]},
            (
                "payloads.1.statement_id: Field required; payloads.1.link_id: Field required; "
                "payloads.1.date_time: Field required"
            ),
        ),
        (
            lambda: api.get_progress("e1"),
            {"progress": [DONE, *[{"statement_id": True}] * 1000]},
            "progress.1.statement_id: Input should be a valid string",
        ),
        (
            lambda: api.get_entities("L"),
            {"next": None, "results": [*[{"entity_id": True, "link_id": True}] * 1000]},
            "results.0.entity_id: Input should be a valid string; results.0.link_id: Input should be a valid string",
        ),
    ],
)
def test_error_of_many_bad_rows_names_only_the_first(ask, body, problems):
    """The errors of a megabyte of bad rows took two gigabytes."""
    assert str(refusal(ask(), body)).endswith(f"): {problems}")


@pytest.mark.parametrize("kind", ["progress", "page", "entity"])
@pytest.mark.parametrize("body", [[], None, "x", 7], ids=repr)
def test_answer_that_is_no_object_is_refused_with_the_expected_fields(kind, body):
    call = api.advance(call_of(kind)).call
    assert str(refusal(call_of(kind), body)) == (
        f"{call}: HTTP 200, but not the documented JSON (with {MODELS[kind][1]}): body: {NO_OBJECT.problem}"
    )
