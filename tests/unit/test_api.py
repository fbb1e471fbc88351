"""Calls driven by answers, without I/O: each answer is read or refused."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from urllib.parse import parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo

import pytest
from api_calls import DONE, ROW, answer, answer_with, first_request, page, payloads_of, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import (
    Answer,
    BankConnectAuthError,
    BankConnectCertificateError,
    BankConnectConnectionError,
    BankConnectError,
    BankConnectForbiddenError,
    BankConnectHostError,
    BankConnectLimitError,
    BankConnectNotFoundError,
    BankConnectNotReadyError,
    BankConnectRateLimitError,
    BankConnectResponseError,
    BankConnectServerError,
    BankConnectSettingsError,
    BankConnectTimezoneError,
    BankConnectTransientError,
    Entity,
    Request,
    Result,
    StatementProgress,
    WebhookMode,
    WebhookPayload,
    check_id,
    check_status,
    retry_after_seconds,
)

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
KOLKATA = ZoneInfo("Asia/Kolkata")

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)

# update_webhook


@pytest.mark.parametrize(
    ("mode", "sent_mode"), [(WebhookMode.NET_BANKING, 0), (1, 1), ("NET_BANKING_AND_MANUAL", 1), ("0", 0)]
)
def test_update_always_sends_the_mode(mode, sent_mode):
    sent, value = answer_with(api.update_webhook("https://example.com/hook?x=1", mode), b"")
    body = {"webhook_url": "https://example.com/hook?x=1", "webhook_mode": sent_mode}
    assert sent == [Request("update_webhook", "POST", "entity/update_webhook/", body)]
    assert type(sent[0].json["webhook_mode"]) is int
    assert value is None


def test_update_refuses_a_private_endpoint_unless_it_is_allowed():
    with pytest.raises(ValueError, match=r"^webhook_url"):
        next(api.update_webhook("https://10.0.0.1/", 0))
    assert next(api.update_webhook("https://10.0.0.1/", 0, allow_private_host=True)).json == {
        "webhook_url": "https://10.0.0.1/",
        "webhook_mode": 0,
    }


def test_update_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match=r"^webhook_mode"):
        next(api.update_webhook("https://example.com/", 2))


def test_repr_of_a_request_has_no_body():
    """The endpoint's URL may carry a token."""
    assert repr(next(api.update_webhook("https://example.com/t0ken", 1))) == (
        "Request(call='update_webhook', method='POST', path='entity/update_webhook/')"
    )


# get_webhook_payloads


def test_payloads_of_a_link_are_read():
    sent, value = answer_with(api.get_webhook_payloads("L", UTC), {"payloads": [ROW]})
    assert sent == [Request("webhook_payloads", "GET", "entity/webhook_payloads/?link_id=L")]
    assert value == [
        WebhookPayload(
            statement_id="s1",
            entity_id="e1",
            link_id="L",
            progress="completed",
            reason="",
            date_time=datetime(2020, 3, 6, 12, 46, 33, tzinfo=UTC),
        )
    ]


def test_empty_history_is_read_as_no_rows():
    assert payloads_of() == []


def test_payloads_are_sorted_newest_first():
    times = [f"2020-03-0{day} 00:00:00" for day in (2, 3, 1)]
    read = payloads_of(*({**ROW, "date_time": time} for time in times))
    assert [row.date_time.day for row in read] == [3, 2, 1]


def test_payloads_of_the_same_second_keep_their_order():
    read = payloads_of(*({**ROW, "statement_id": name} for name in ("b", "c", "a")))
    assert [row.statement_id for row in read] == ["b", "c", "a"]


def test_times_are_read_in_the_connections_zone():
    (row,) = payloads_of(ROW, zone=KOLKATA)
    assert row.date_time == datetime(2020, 3, 6, 7, 16, 33, tzinfo=UTC)
    assert row.date_time.tzinfo is UTC


@pytest.mark.parametrize(
    "body",
    [
        b'{"payloads": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b'{"payloads": "\\ud800"}',
        b"[" * 300,
        b'{"payloads": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"payloads": [], "x": ' + b'{"x":' * 300 + b"1" + b"}" * 301,
        b'{"payloads": ' + b"9" * 5000 + b"}",
        b'{"payloads": []} {}',
        b"\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_broken_answer_is_a_response_error(body):
    error = refusal(api.get_webhook_payloads("L", UTC), body)
    assert type(error) is BankConnectResponseError
    assert str(error).startswith("webhook_payloads: HTTP 200, but not the documented JSON (with payloads): ")


COSTLY = (
    "HTTP 200, but the answer has more than 250000 lists and objects, or more than 4000000 values, and was not read"
)


# The document has an object, a list and a comma more. Characters in a string count as well.
@pytest.mark.parametrize(
    ("most", "one_more"), [("[" * 249_998, "["), ("{" * 249_998, "{"), ("[{" * 124_999, "["), ("," * 3_999_999, ",")],
    ids=["lists", "objects", "both", "values"],
)  # fmt: skip
def test_answer_with_too_many_values_is_not_read(most, one_more):
    """64 MiB of lists took ten gigabytes."""
    assert answer_with(api.get_webhook_payloads("L", UTC), {"payloads": [], "x": most})[1] == []
    error = refusal(api.get_webhook_payloads("L", UTC), {"payloads": [], "x": most + one_more})
    assert type(error) is BankConnectResponseError
    assert (str(error), error.status) == (f"webhook_payloads: {COSTLY}", 200)
    for call in (api.get_progress("e1"), api.get_transactions("e1"), api.get_entities("L")):
        assert COSTLY in str(refusal(call, {"x": most + 2 * one_more}))


@pytest.mark.parametrize("time", ["0001-01-01 00:00:00", "9999-12-31 23:59:59"])
def test_time_that_its_zone_moves_beyond_the_calendar_is_refused(time):
    body = {"payloads": [{**ROW, "date_time": time}]}
    zone = timezone(timedelta(hours=14 if time < "1" else -12))
    assert "date_time" in str(refusal(api.get_webhook_payloads("L", zone), body))


@often
@given(
    st.binary(max_size=40) | st.text().map(str.encode) | st.text('{}[]":,payloads \\u0123', max_size=40).map(str.encode)
)
def test_random_bytes_are_a_response_error(body):
    for call in (
        api.get_webhook_payloads("L", UTC),
        api.get_progress("e"),
        api.get_entities("L"),
        api.get_transactions("e"),
    ):
        next(call)
        with pytest.raises(BankConnectResponseError):
            call.send(answer(body))


# get_progress


def test_progress_of_an_analysis_is_read():
    sent, value = answer_with(api.get_progress("e1", "salary"), {"entity_id": "e1", "progress": [DONE]})
    assert sent == [Request("salary", "GET", "entity/e1/salary/")]
    assert value == [StatementProgress(statement_id="s1", status="completed", source="online", message=None)]


def test_progress_is_that_of_the_transactions_by_default():
    assert next(api.get_progress("e1")).path == "entity/e1/transactions/"


@pytest.mark.parametrize("analysis", api.ANALYSES)
def test_each_analysis_has_its_own_path(analysis):
    assert next(api.get_progress("e1", analysis)).path == f"entity/e1/{analysis}/"


def test_analyses_are_those_of_bankconnect():
    assert api.ANALYSES == (
        "transactions",
        "accounts",
        "identity",
        "salary",
        "recurring_transactions",
        "lender_transactions",
        "get_expense_categories",
        "top_credits_debits",
        "monthly_analysis_updated",
        "xlsx_report",
        "predictors",
        "score",
    )


@pytest.mark.parametrize("ask", [api.get_progress, api.get_analysis])
@pytest.mark.parametrize("analysis", ["", "Salary", "../transactions", "get_pdfs", None, 1, ["salary"]], ids=repr)
def test_unknown_analysis_is_refused_with_the_allowed_ones(ask, analysis):
    with pytest.raises(ValueError, match=r"^analysis") as caught:
        next(ask("e1", analysis))
    assert str(caught.value) == (
        "analysis must be one of transactions, accounts, identity, salary, recurring_transactions, "
        "lender_transactions, get_expense_categories, top_credits_debits, monthly_analysis_updated, xlsx_report, "
        f"predictors, score, not {analysis!r}"
    )


def test_empty_progress_is_read_as_no_items():
    assert answer_with(api.get_progress("e1"), {"entity_id": None, "progress": []})[1] == []


@pytest.mark.parametrize("ask", [api.get_progress, api.get_transactions])
def test_answer_about_another_entity_is_refused(ask):
    error = refusal(ask("e1"), {"entity_id": "e2", "progress": [DONE]})
    assert type(error) is BankConnectResponseError
    assert str(error) == "transactions: HTTP 200, but the answer is about another entity"
    assert error.status == 200


# get_analysis


# What each analysis has besides entity_id and progress.
SHAPES = {
    "transactions": {"accounts": [], "fraud": {"fraud_status": False}, "transactions": [{"amount": 12.5}]},
    "accounts": {"accounts": [{"account_id": "a", "months": ["2018-11"]}]},
    "identity": {"identity": [{"name": "A. Customer", "account_id": "a"}]},
    "salary": {"transactions": []},
    "recurring_transactions": {"transactions": {"credit_transactions": [], "debit_transactions": []}},
    "lender_transactions": {"transactions": []},
    "get_expense_categories": {"categories": [{"category": "Food", "percentage": 12}]},
    "top_credits_debits": {"top_5_credit_debit": {"top_5_debit": [{"data": {"TO A. CUSTOMER": 100.0}}]}},
    "monthly_analysis_updated": {"monthly_analysis": {"account_id": [{"a": {"monthly_analysis": {"Aug-2020": 1}}}]}},
    "xlsx_report": {"reports": [{"account_id": "a", "link": "https://files.example/r.xlsx"}]},
    "predictors": {"predictors": [{"account_id": "a", "predictors": {"abc": None}}]},
    "score": {"score": [{"account_id": "a", "score": 7}]},
}
GOING = {**DONE, "status": "processing"}
each_analysis = pytest.mark.parametrize("analysis", api.ANALYSES)


def test_every_analysis_has_a_shape_here():
    assert tuple(SHAPES) == api.ANALYSES


@each_analysis
def test_analysis_returns_the_whole_answer(analysis):
    whole = {"entity_id": "e1", "progress": [DONE, {**DONE, "status": "failed"}], **SHAPES[analysis], "new": None}
    sent, value = answer_with(api.get_analysis("e1", analysis), whole)
    assert sent == [Request(analysis, "GET", f"entity/e1/{analysis}/")]
    assert value == whole


@each_analysis
@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ([], "no statement yet"),
        ([GOING], "1 of 1 statements are still being processed"),
        ([DONE, {**DONE, "status": None}], "1 of 2 statements are still being processed"),
        ([{"statement_id": "s1"}, {**DONE, "status": 7}], "2 of 2 statements are still being processed"),
    ],
)
def test_analysis_is_refused_while_it_is_not_ready(analysis, progress, said):
    body = {"entity_id": "e1", "progress": progress, **SHAPES[analysis]}
    error = refusal(api.get_analysis("e1", analysis), body)
    assert type(error) is BankConnectNotReadyError
    assert str(error) == f"{analysis}: HTTP 200: {said}; wait for them with a sensor first"
    assert error.status == 200


EMPTY_LISTS = pytest.mark.parametrize(
    ("analysis", "name"), [("xlsx_report", "reports"), ("predictors", "predictors"), ("score", "score")]
)


@EMPTY_LISTS
@pytest.mark.parametrize("more", [lambda name: {name: []}, lambda name: {name: None}, lambda _: {}])
def test_empty_list_is_not_ready_even_if_all_statements_are(analysis, name, more):
    """BankConnect answers with an empty list, and HTTP 200, until it has the report."""
    error = refusal(api.get_analysis("e1", analysis), {"entity_id": "e1", "progress": [DONE], **more(name)})
    assert type(error) is BankConnectNotReadyError
    assert str(error) == f"{analysis}: HTTP 200: its list '{name}' is still empty; try again later"
    assert error.status == 200


@EMPTY_LISTS
def test_statement_in_progress_is_named_before_the_empty_list(analysis, name):
    error = refusal(api.get_analysis("e1", analysis), {"progress": [GOING], name: []})
    assert str(error) == (
        f"{analysis}: HTTP 200: 1 of 1 statements are still being processed; wait for them with a sensor first"
    )


@EMPTY_LISTS
def test_list_with_one_item_is_ready_whatever_the_item_is(analysis, name):
    whole = {"progress": [DONE], name: [None]}
    assert answer_with(api.get_analysis("e1", analysis), whole)[1] == whole


@pytest.mark.parametrize(
    "analysis", [name for name in api.ANALYSES if name not in {"xlsx_report", "predictors", "score"}]
)
@pytest.mark.parametrize(
    "name", ["accounts", "identity", "transactions", "categories", "reports", "predictors", "score"]
)
def test_empty_list_of_another_analysis_is_a_result(analysis, name):
    """A customer may have no salary."""
    whole = {"entity_id": "e1", "progress": [DONE], name: []}
    assert answer_with(api.get_analysis("e1", analysis), whole)[1] == whole


BY_ACCOUNT = (
    "transactions",
    "salary",
    "recurring_transactions",
    "lender_transactions",
    "get_expense_categories",
)


@pytest.mark.parametrize("analysis", BY_ACCOUNT)
def test_analysis_of_one_account_is_requested(analysis):
    path = f"entity/e%2F1/{analysis}/?account_id=a%26b%2Fc%20d"
    assert first_request(api.get_analysis("e/1", analysis, "a&b/c d")) == Request(analysis, "GET", path)


@pytest.mark.parametrize("analysis", [name for name in api.ANALYSES if name not in BY_ACCOUNT])
@pytest.mark.parametrize("account_id", ["a", 7, "", "None"], ids=repr)
def test_account_is_refused_where_bankconnect_does_not_filter(analysis, account_id):
    """The answer would have the data of all accounts."""
    with pytest.raises(ValueError, match=r"^account_id") as caught:
        next(api.get_analysis("e1", analysis, account_id))
    assert str(caught.value) == (
        f"account_id cannot be given for {analysis}: BankConnect filters only get_expense_categories, "
        "lender_transactions, recurring_transactions, salary, transactions"
    )


@each_analysis
@pytest.mark.parametrize("ask", [api.get_analysis, api.get_progress])
@pytest.mark.parametrize("other", ["e2", "E1", " e1", 1], ids=repr)
def test_analysis_of_another_entity_is_refused(ask, analysis, other):
    error = refusal(ask("e1", analysis), {"entity_id": other, "progress": [DONE], **SHAPES[analysis]})
    assert type(error) is BankConnectResponseError
    assert str(error) == f"{analysis}: HTTP 200, but the answer is about another entity"
    assert error.status == 200


@each_analysis
@pytest.mark.parametrize("blank", [None, "", " "], ids=repr)
def test_analysis_that_names_no_entity_is_read(analysis, blank):
    whole = {"entity_id": blank, "progress": [DONE], **SHAPES[analysis]}
    assert answer_with(api.get_analysis("e1", analysis), whole)[1] == whole


@each_analysis
def test_number_that_is_not_finite_is_refused_in_any_analysis(analysis):
    body = json.dumps({"progress": [DONE], **SHAPES[analysis], "deep": [{"a": ["HERE"]}]}).replace('"HERE"', "1e999")
    error = refusal(api.get_analysis("e1", analysis), body.encode())
    assert type(error) is BankConnectResponseError
    assert str(error) == f"{analysis}: HTTP 200, but not JSON: it has NaN, Infinity or too large a number"


def test_last_of_equal_keys_counts():
    """BankConnect uses the notes of transactions as keys."""
    progress = json.dumps([DONE])
    body = f'{{"progress": {progress}, "top_5_credit_debit": {{"NEFT": 1, "ATM": 2, "NEFT": 3}}}}'
    read = answer_with(api.get_analysis("e1", "top_credits_debits"), body.encode())[1]
    assert read == {"progress": [DONE], "top_5_credit_debit": {"NEFT": 3, "ATM": 2}}


# get_transactions


def test_transactions_return_the_whole_answer():
    whole = {
        "entity_id": "e1",
        "progress": [DONE, {"statement_id": "s2", "status": "Failed"}],
        "accounts": [{"account_id": "a", "months": ["2026-01"]}],
        "fraud": {"fraud_status": False},
        "transactions": [{"amount": 12.5, "balance": 10**30, "note": "₹ \x00", "rate": 1.7e308}],
        "something_new": None,
    }
    sent, value = answer_with(api.get_transactions("e1"), whole)
    assert sent == [Request("transactions", "GET", "entity/e1/transactions/")]
    assert value == whole


def test_transactions_of_one_account_are_requested():
    assert next(api.get_transactions("e/1", "a&b/c d")).path == "entity/e%2F1/transactions/?account_id=a%26b%2Fc%20d"


@pytest.mark.parametrize("account_id", ["", " ", "None", 5.0, ["a"]])
def test_invalid_account_id_is_refused(account_id):
    with pytest.raises(ValueError, match=r"^account_id must"):
        next(api.get_transactions("e1", account_id))


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ([], "no statement yet"),
        ([{**DONE, "status": None}], "1 of 1 statements are still being processed"),
        ([{**DONE, "status": "processing"}, DONE], "1 of 2 statements are still being processed"),
        (
            [{**DONE, "status": "COMPLETE"}, DONE, {**DONE, "status": ""}],
            "2 of 3 statements are still being processed",
        ),
    ],
)
def test_transactions_are_refused_while_statements_are_in_progress(progress, said):
    error = refusal(api.get_transactions("e1"), {"entity_id": "e1", "progress": progress, "transactions": [1]})
    assert type(error) is BankConnectNotReadyError
    assert str(error) == f"transactions: HTTP 200: {said}; wait for them with a sensor first"
    assert error.status == 200


@pytest.mark.parametrize("status", ["completed", "COMPLETED", "failed", "Failed"])
def test_finished_statements_may_be_in_any_letter_case(status):
    whole = {"progress": [{**DONE, "status": status}]}
    assert answer_with(api.get_transactions("e1"), whole)[1] == whole


@pytest.mark.parametrize("amount", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1" + b"0" * 310 + b".0"])
def test_amount_that_is_no_finite_number_is_refused(amount):
    body = (
        b'{"progress": [{"statement_id": "s", "status": "completed"}], "transactions": [{"amount": ' + amount + b"}]}"
    )
    error = refusal(api.get_transactions("e1"), body)
    assert type(error) is BankConnectResponseError
    assert str(error) == "transactions: HTTP 200, but not JSON: it has NaN, Infinity or too large a number"
    assert error.status == 200
    assert error.__suppress_context__


# get_entities


def test_entities_of_all_pages_are_returned_once_each_in_order():
    sent, value = answer_with(
        api.get_entities("a b/c"),
        page("e2", "e1", link="a b/c", more=True),
        page("e1", "e3", link="a b/c", more=True),
        page("e0", link="a b/c"),
    )
    assert sent == [Request("entities", "GET", f"entity/?page={number}&link_id=a%20b%2Fc") for number in (1, 2, 3)]
    assert value == ["e2", "e1", "e3", "e0"]


def test_link_without_entities_has_none():
    assert answer_with(api.get_entities("L"), page())[1] == []


@pytest.mark.parametrize("other", ["M", "l", "L ", "", None], ids=repr)
def test_entities_of_another_link_are_left_out(other):
    """BankConnect filters by link; an answer that is not filtered must not lead to another customer."""
    both = page("e1")
    both["results"] += page("e2", link=other)["results"]
    assert answer_with(api.get_entities("L"), both)[1] == ["e1"]


ENDLESS = "entities: HTTP 200, but still a next page after 1000, or 64 MiB of them"


def test_too_many_pages_are_an_error():
    call = api.get_entities("L")
    step = api.advance(call)
    for _ in range(api.MAX_PAGES - 1):
        step = api.advance(call, answer(page("e1", more=True)))
    with pytest.raises(BankConnectResponseError) as caught:
        api.advance(call, answer(page("e1", more=True)))
    assert step.path == "entity/?page=1000&link_id=L"
    assert str(caught.value) == ENDLESS
    assert caught.value.status == 200


def test_size_limit_holds_for_all_pages_together(monkeypatch):
    """All pages are kept in memory."""
    monkeypatch.setattr(api, "MAX_ANSWER_BYTES", 2**20)
    half = json.dumps(page("e1", more=True)).encode().ljust(2**19)
    rest = json.dumps(page("e2")).encode().ljust(2**19)
    assert answer_with(api.get_entities("L"), half, rest)[1] == ["e1", "e2"]
    assert str(refusal(api.get_entities("L"), half, rest + b" ")) == ENDLESS.replace("64", "1")


def test_bad_second_page_is_an_error():
    assert isinstance(refusal(api.get_entities("L"), page("e1", more=True), []), BankConnectResponseError)


def test_link_may_have_as_many_entities_as_the_limit():
    bodies = (page("e1", "e2", more=True), page("e2", "e3", None))
    assert answer_with(api.get_entities("L", most=3), *bodies)[1] == ["e1", "e2", "e3"]
    assert answer_with(api.get_entities("L", most=0), page())[1] == []


def test_entities_of_other_links_do_not_count_towards_the_limit():
    body = page("e1")
    body["results"] += page("e2", "e3", link="M")["results"]
    assert answer_with(api.get_entities("L", most=1), body)[1] == ["e1"]


def test_link_with_more_entities_than_the_limit_is_refused_before_the_next_page():
    call = api.get_entities("L", most=3)
    api.advance(call)
    assert api.advance(call, answer(page("e1", "e2", more=True))).path == "entity/?page=2&link_id=L"
    with pytest.raises(BankConnectLimitError) as caught:
        api.advance(call, answer(page("e3", "e4", more=True)))
    assert str(caught.value) == (
        "link 'L' has more than 3 entities, and each of them would be asked for at every check: name one with entity_id"
    )
    assert caught.value.status is None


def test_entities_have_no_limit_where_none_is_given():
    names = [f"e{number}" for number in range(2000)]
    assert answer_with(api.get_entities("L"), page(*names))[1] == names


# get_entity


def test_entity_is_read_with_its_link():
    sent, value = answer_with(
        api.get_entity("e/1?"), {"entity_id": "e/1?", "link_id": "a b", "meta_data": {"name": "A. Customer"}}
    )
    assert sent == [Request("entity", "GET", "entity/e%2F1%3F/")]
    assert value == Entity(entity_id="e/1?", link_id="a b")


@pytest.mark.parametrize("body", [{"link_id": None}, {"link_id": ""}, {}], ids=repr)
def test_entity_without_a_link_is_read(body):
    assert answer_with(api.get_entity("e1"), {"entity_id": "e1", **body})[1] == Entity(entity_id="e1", link_id=None)


def test_entity_that_does_not_name_itself_is_read():
    assert answer_with(api.get_entity("e1"), {"link_id": "L"})[1] == Entity(entity_id="", link_id="L")


def test_entity_of_a_whole_number_is_compared_with_its_text():
    read = answer_with(api.get_entity(7), {"entity_id": 7, "link_id": 8})
    assert read == ([Request("entity", "GET", "entity/7/")], Entity(entity_id="7", link_id="8"))


@pytest.mark.parametrize("other", ["e2", "E1", "e1 ", 1], ids=repr)
def test_another_entity_is_refused(other):
    error = refusal(api.get_entity("e1"), {"entity_id": other, "link_id": "L"})
    assert type(error) is BankConnectResponseError
    assert str(error) == "entity: HTTP 200, but the answer is about another entity"
    assert error.status == 200


# Statuses and errors.

ASKED = Request("some_call", "GET", "x")


def status_error(status, retry_after=None, body=b"BODY", received_at=NOW):
    with pytest.raises(BankConnectError) as caught:
        check_status(ASKED, Answer(status, body, retry_after, received_at))
    return caught.value


def test_status_200_is_returned():
    given = Answer(200, b"x")
    assert check_status(ASKED, given) is given


@pytest.mark.parametrize(
    "encoding", [None, "", " ", "identity", " Identity ", "UTF-8", "none", "identity, identity", "utf8,", "S3cret"]
)
def test_answer_whose_encoding_is_no_compression_is_returned(encoding):
    given = Answer(200, b"x", encoding=encoding)
    assert check_status(ASKED, given) is given


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        *((name, name) for name in ("gzip", "deflate", "br", "zstd", "compress", "x-gzip", "x-compress", "dcb", "dcz")),
        ("GZIP", "gzip"),
        ("identity, gzip", "gzip"),
        ("gzip,gzip", "gzip"),
        (" S3cret ,\tgzip, Br", "br, gzip"),
    ],
)
def test_compressed_answer_is_refused_with_its_compression(encoding, shown):
    """Its size after decompression is unknown."""
    with pytest.raises(BankConnectResponseError) as caught:
        check_status(ASKED, Answer(200, b"x", encoding=encoding))
    assert str(caught.value) == (
        f"some_call: HTTP 200, but compressed (Content-Encoding: {shown}), which was not asked for: "
        "is there a proxy that compresses?"
    )
    assert caught.value.status == 200


def test_compressed_error_is_its_status():
    with pytest.raises(BankConnectServerError):
        check_status(ASKED, Answer(503, b"x", encoding="gzip"))


KEYS = "some_call: HTTP {}: BankConnect refuses these keys. Check API Key and Server Hash of the connection"
NOT_ENABLED = (
    "some_call: HTTP {}: BankConnect refuses these keys, or your account is not enabled for some_call. "
    "Check API Key and Server Hash of the connection; if other calls work, ask FinBox to enable this one"
)
REFUSED = b'{"detail": "Authentication credentials were not provided."}'
FORBIDDEN = (
    "some_call: HTTP 403: not in BankConnect's form: a firewall or a proxy on the way may have refused the request{}. "
    "If it stays, check that this machine's address may call BankConnect, and the connection's keys"
)
REDIRECT = (
    "some_call: HTTP {}: a redirect, which is never followed: the keys would go with it. Check the connection's host"
)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        *((status, BankConnectAuthError, KEYS) for status in (401, 402)),
        (403, BankConnectAuthError, NOT_ENABLED),
        (404, BankConnectNotFoundError, "some_call: HTTP {}: unknown, or nothing there yet"),
        (429, BankConnectRateLimitError, "some_call: HTTP {}: too many calls"),
        *(
            (status, BankConnectServerError, "some_call: HTTP {}: BankConnect failed")
            for status in (408, 425, 500, 502, 503, 599)
        ),
        *((status, BankConnectResponseError, REDIRECT) for status in (300, 301, 302, 304, 307, 308, 399)),
        *(
            (status, BankConnectResponseError, "some_call: HTTP {}: expected 200")
            for status in (
                100,
                199,
                201,
                202,
                204,
                206,
                299,
                400,
                405,
                407,
                409,
                410,
                418,
                424,
                426,
                428,
                430,
                499,
                600,
                999,
            )
        ),
    ],
)
def test_each_status_has_its_error(status, kind, message):
    error = status_error(status, body=REFUSED)
    assert type(error) is kind
    assert str(error) == message.format(status)
    assert error.status == status


@each_analysis
def test_403_names_the_analysis_that_may_not_be_enabled(analysis):
    with pytest.raises(BankConnectAuthError) as caught:
        check_status(first_request(api.get_analysis("e1", analysis)), answer(REFUSED, 403))
    assert str(caught.value).startswith(f"{analysis}: HTTP 403: ")
    assert f"your account is not enabled for {analysis}. " in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Forbidden</body></html>",
        b"[]",
        b'"detail"',
        b"{}",
        b'{"message": "Forbidden"}',
        b'{"detail": null}',
        b'{"detail": {"a": 1}}',
        b"\xff",
        b"{" * 1000,
    ],
)
def test_403_that_has_not_the_documented_form_is_transient(body):
    error = status_error(403, body=body)
    assert type(error) is BankConnectForbiddenError
    assert (str(error), error.status, error.retry_after) == (FORBIDDEN.format(""), 403, None)


@pytest.mark.parametrize(
    ("header", "asked", "seconds"), [("30", " (Retry-After: 30 s)", 30), ("0", "", None), ("soon", "", None)]
)
def test_403_with_a_retry_after_is_transient_whatever_its_body(header, asked, seconds):
    error = status_error(403, header, REFUSED)
    assert type(error) is BankConnectForbiddenError
    assert (str(error), error.retry_after) == (FORBIDDEN.format(asked), seconds)


@pytest.mark.parametrize("status", [401, 402])
@pytest.mark.parametrize(("header", "body"), [("30", REFUSED), (None, b"<html></html>")])
def test_401_and_402_are_final_in_any_form(status, header, body):
    assert type(status_error(status, header, body)) is BankConnectAuthError


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (408, "some_call: HTTP 408: BankConnect failed (Retry-After: 120 s)"),
        (425, "some_call: HTTP 425: BankConnect failed (Retry-After: 120 s)"),
        (429, "some_call: HTTP 429: too many calls (Retry-After: 120 s)"),
        (503, "some_call: HTTP 503: BankConnect failed (Retry-After: 120 s)"),
    ],
)
@pytest.mark.parametrize("header", ["120", format_datetime(NOW + timedelta(seconds=120), usegmt=True)])
def test_error_has_the_retry_after(status, message, header):
    error = status_error(status, header)
    assert error.retry_after == 120.0
    assert str(error) == message


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("header", [None, "", "soon", "0"])
def test_error_has_no_unreadable_retry_after(status, header):
    error = status_error(status, header)
    assert error.retry_after is None
    assert "asks" not in str(error)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("0", None),
        ("1", 1.0),
        (" 30 ", 30.0),
        ("007", 7.0),
        ("3599", 3599.0),
        ("3600", 3600.0),
        ("3600.01", 3600.0),
        ("999999", 3600.0),
        ("1e+06", 3600.0),
        ("9" * 400, 3600.0),
        ("9" * 5000, 3600.0),
        ("1e999", 3600.0),
        ("-5", None),
        ("-8.5", None),
        ("-0", None),
        ("+5", None),
        ("8.5", 9.0),
        ("8.0", 8.0),
        ("0.001", 1.0),
        ("0.0", None),
        ("1e-999", None),
        ("1e2", 100.0),
        ("8.", None),
        (".5", None),
        ("1_0", None),
        ("nan", None),
        ("inf", None),
        ("Infinity", None),
        ("٣", None),
        ("²", None),
        ("soon", None),
        ("30, 60", 60.0),
        ("60,30,", 60.0),
        ("8, 8", 8.0),
        ("8, 8.5", 9.0),
        ("8, 999999", 3600.0),
        ("0, 0", None),
        ("8, -1", None),
        ("8, soon", None),
        (", ,", None),
        ("Fri, 20 Nov 2026 12:00:30 GMT, Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 12:00:01 GMT", 1.0),
        ("Fri, 20 Nov 2026 12:00:00 GMT", None),
        ("Fri, 20 Nov 2026 11:59:00 GMT", None),
        ("Fri, 20 Nov 2026 17:31:00 +0530", 60.0),
        ("Friday, 20-Nov-26 12:00:30 GMT", 30.0),
        ("Fri Nov 20 12:00:30 2026", 30.0),
        ("Fri, 20 Nov 2026 12:00:30 -0000", 30.0),
        ("Fri, 20 Nov 2026 13:00:01 GMT", 3600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Fri, 20 Nov 2026 12:00:30 +9999", None),
        ("Fri, 20 Nov 2026", 0),
        ("Fri, 99 Nov 2026 12:00:30 GMT", None),
        ("Sun, 01 Jan 0001 00:00:00 +2359", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_retry_after_is_read_in_both_its_forms(header, expected):
    assert retry_after_seconds(header, NOW) == (expected or None)


def test_retry_after_date_is_counted_from_the_time_of_the_answer():
    later = NOW.astimezone(KOLKATA) + timedelta(seconds=10)
    assert retry_after_seconds("Fri, 20 Nov 2026 12:00:30 GMT", later) == 20.0


@settings(often, max_examples=300)
@given(
    st.text()
    | st.text("0123456789 :,-+.MonJaGTE", max_size=40)
    | st.text("0123456789.eE+-", max_size=12)
    | st.from_regex(r"(Mon, )?\d{1,3}[ -](Jan|Feb|Dec)[ -]\d{1,6} \d{1,3}:\d\d(:\d{1,3})? ([+-]\d{1,6}|GMT|EST|[A-Z])?")
)
def test_any_retry_after_is_none_or_within_limits(header):
    seconds = retry_after_seconds(header, NOW)
    assert seconds is None or 0 < seconds <= 3600


# Back-off.


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (17, 60), (100, 60), (10**9, 60)],
)
def test_backoff_doubles_up_to_a_minute(failures, ceiling):
    assert api.backoff(failures, jitter=1.0) == ceiling
    assert api.backoff(failures, jitter=0.25) == ceiling / 4
    assert api.backoff(failures, jitter=0.0) == 0.0


@pytest.mark.parametrize(
    ("jitter", "retry_after", "expected"),
    [(0.5, None, 4.0), (0.5, 0.0, 4.0), (0.5, 3.9, 4.0), (0.5, 4.1, 4.1), (0.0, 300.0, 300.0), (0.0, 0.5, 0.5)],
)
def test_backoff_is_never_less_than_the_retry_after(jitter, retry_after, expected):
    assert api.backoff(4, jitter=jitter, retry_after=retry_after) == expected


@often
@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 1e9))
def test_backoff_stays_within_its_bounds(failures, jitter, retry_after):
    pause = api.backoff(failures, jitter=jitter, retry_after=retry_after)
    assert (retry_after or 0) <= pause <= max(60.0, 2.0 ** min(failures - 1, 6), retry_after or 0)
    assert pause <= max(60.0, retry_after or 0)


def test_limits_are_those_of_the_design():
    assert (api.MAX_RETRIES, api.MAX_BACKOFF, api.MAX_PAGES) == (3, 60.0, 1000)
    assert (api.MAX_ANSWER_BYTES, api.MAX_ANSWER_OBJECTS, api.MAX_ANSWER_VALUES) == (64 * 2**20, 250_000, 4_000_000)
    assert api.DEFAULT_BASE_URL == "https://apis.bankconnect.finbox.in" + api.DEFAULT_PATH
    assert api.DEFAULT_PATH == "/bank-connect/v1"


# Errors.

ERRORS = [
    BankConnectError("m", status=1),
    BankConnectAuthError("m", status=401),
    BankConnectNotFoundError("m", status=404),
    BankConnectRateLimitError("m", status=429, retry_after=1.5),
    BankConnectServerError("m", status=500, retry_after=None),
    BankConnectForbiddenError("m", status=403, retry_after=30),
    BankConnectSettingsError("m"),
    BankConnectConnectionError("m", retry_after=3.0),
    BankConnectCertificateError("m"),
    BankConnectHostError("m"),
    BankConnectLimitError("m"),
    BankConnectResponseError("m", status=200),
    BankConnectNotReadyError("m", status=200),
    BankConnectTimezoneError("m"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_can_be_pickled_with_its_fields(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert str(copy) == "m"
    assert vars(copy) == vars(error)
    assert copy.status == error.status


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_error_is_an_airflow_exception(error):
    """After a deferral, soft_fail turns any AirflowException into a skip."""
    assert isinstance(error, BankConnectError)
    assert {kind.__module__ for kind in type(error).__mro__} <= {"builtins", "airflow_provider_bankconnect.errors"}


def test_transient_errors_have_a_retry_after():
    transient = {type(error) for error in ERRORS if isinstance(error, BankConnectTransientError)}
    assert transient == {
        BankConnectRateLimitError,
        BankConnectServerError,
        BankConnectForbiddenError,
        BankConnectConnectionError,
        BankConnectCertificateError,
        BankConnectHostError,
    }
    assert BankConnectConnectionError("m").retry_after is None
    assert BankConnectConnectionError("m").status is None
    assert BankConnectError("m").status is None


MARKER = "S3cretOfACustomer"


def plant(draw, value):
    """Put the marker somewhere into a JSON value: as a value, in one, or as a name."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: plant(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        return [*value, plant(draw, value[0])]
    if isinstance(value, dict) and draw(st.booleans()):
        kept = dict(list(value.items())[: draw(st.integers(0, len(value)))])
        return {**kept, MARKER: None}
    return draw(st.sampled_from([MARKER, [MARKER], {MARKER: MARKER}, f"{value} {MARKER}", {"a": [{MARKER: 1}]}]))


@st.composite
def planted(draw, whole):
    text = json.dumps(plant(draw, whole))
    cut = draw(st.sampled_from([None, None, None, -1, -3, len(text) // 2]))
    return (text[:cut] + draw(st.sampled_from(["", "", MARKER, "\\ud800" + MARKER]))).encode()


CALLS = [
    (lambda: api.get_webhook_payloads("L", UTC), {"payloads": [ROW]}),
    (lambda: api.get_progress("e1"), {"entity_id": "e1", "progress": [DONE]}),
    (lambda: api.get_transactions("e1"), {"entity_id": "e1", "progress": [DONE], "transactions": [{"amount": 1}]}),
    (
        lambda: api.get_analysis("e1", "xlsx_report"),
        {"progress": [DONE], "reports": [{"account_id": "a", "link": "x"}]},
    ),
    (lambda: api.get_entities("L"), page("e1")),
    (lambda: api.get_entity("e1"), {"entity_id": "e1", "link_id": "L", "meta_data": {"a": 1}}),
    (
        lambda: api.get_webhook_payloads("L", UTC),
        {"payloads": [{**ROW, "progress": "failed"}, {**ROW, "progress": "failed", "date_time": "x"}]},
    ),
]


def test_error_of_a_lost_row_does_not_quote_its_statement():
    row = {**ROW, "statement_id": MARKER, "progress": "failed"}
    assert MARKER not in str(refusal(api.get_webhook_payloads("L", UTC), {"payloads": [row, {**row, "date_time": 1}]}))


def error_of(call, body):
    next(call)
    try:
        api.advance(call, answer(body))
    except BankConnectError as error:
        return error
    return None


@settings(often, max_examples=300)
@given(st.data())
def test_no_error_quotes_a_body(data):
    ask, whole = data.draw(st.sampled_from(CALLS))
    body = data.draw(planted(whole))
    error = error_of(ask(), body)
    if error is not None:
        shown = f"{error} {error!r} {error.__cause__} {vars(error)}"
        assert MARKER not in shown
        assert str(error).startswith(f"{next(ask()).call}: HTTP 200")
        assert error.status == 200
        assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize("status", [204, 301, 400, 401, 403, 404, 429, 500])
def test_no_status_error_quotes_a_body(status):
    error = status_error(status, MARKER, MARKER.encode())
    assert MARKER not in f"{error} {error!r} {vars(error)}"


def test_repr_of_an_answer_has_no_body():
    shown = repr(Answer(200, MARKER.encode(), None, NOW))
    assert MARKER not in shown
    assert shown.startswith("Answer(status=200, retry_after=None, received_at=")


def test_answer_has_the_time_of_its_arrival():
    before = datetime.now(UTC)
    assert before <= Answer(200, b"").received_at <= datetime.now(UTC)


# Driving.


def test_call_ends_with_a_result_value():
    call = api.get_webhook_payloads("L", UTC)
    assert api.advance(call) == Request("webhook_payloads", "GET", "entity/webhook_payloads/?link_id=L")
    assert api.advance(call, answer({"payloads": []})) == Result([])


ERROR = BankConnectNotFoundError("m", status=404)


@pytest.mark.parametrize("error", [ERROR, BankConnectServerError("m", status=503, retry_after=1.0)], ids=repr)
def test_error_of_a_request_is_thrown_into_the_call(error):
    call = api.get_progress("e1")
    api.advance(call)
    with pytest.raises(BankConnectError) as caught:
        api.advance(call, error)
    assert caught.value is error
    with pytest.raises(StopIteration):
        next(call)


def tolerant(*requests):
    """Go on after an error; return what came for each request."""
    came = []
    for request in requests:
        try:
            came.append((yield request))
        except BankConnectError as error:
            came.append(error)
    return came


def test_call_that_handles_an_error_goes_on():
    first, second = Request("a", "GET", "a"), Request("b", "GET", "b")
    call = tolerant(first, second)
    given = answer({})
    assert api.advance(call) is first
    assert api.advance(call, ERROR) is second
    assert api.advance(call, given) == Result([ERROR, given])


def test_call_may_end_with_a_result_after_an_error():
    call = tolerant(Request("a", "GET", "a"))
    api.advance(call)
    assert api.advance(call, ERROR) == Result([ERROR])


# Ids.


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "must be text, not NoneType"),
        (True, "must be text, not bool"),
        (5.0, "must be text, not float"),
        (b"x", "must be text, not bytes"),
        ("", "must not be blank, and is '': did its template find nothing?"),
        (" \t\n\u00a0\u2003", "must not be blank, and is ' \\t\\n\\xa0\\u2003': did its template find nothing?"),
        ("None", "must not be blank, and is 'None': did its template find nothing?"),
        (" None\n", "must not be blank, and is ' None\\n': did its template find nothing?"),
        (".", "must not be '.'"),
        ("..", "must not be '..'"),
        ("a\ud800", "has a character that cannot be sent (a lone surrogate)"),
    ],
    ids=repr,
)
def test_invalid_id_is_refused_with_its_name(value, problem):
    with pytest.raises(ValueError, match=r"^which_id") as caught:
        check_id("which_id", value)
    assert str(caught.value) == f"which_id {problem}"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["x", "none", "NONE", "None1", "...", " . ", "0", "null", "a/b", "\u200b", "😀"])
def test_valid_id_is_returned_unchanged(value):
    assert check_id("which_id", value) == value


@pytest.mark.parametrize(("value", "text"), [(4711, "4711"), (0, "0"), (-1, "-1"), (10**30, "1" + "0" * 30)])
def test_whole_number_is_returned_as_text(value, text):
    """Many loan numbers are numbers, also in a run's conf."""
    assert check_id("which_id", value) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(["a", "b", "c"], "a list of 3"), (("a",), "a tuple of 1"), ({1, 2}, "a set of 2"), ([], "a list of 0")],
    ids=repr,
)
def test_several_ids_in_place_of_one_are_refused_with_a_hint_at_expand(value, shown):
    with pytest.raises(ValueError, match=r"^link_id") as caught:
        check_id("link_id", value)
    assert str(caught.value) == (
        f"link_id must be one id, not {shown}: for a task for each of them use .partial(...).expand(link_id=[...])"
    )


def test_calls_send_a_whole_number_as_its_text():
    assert first_request(api.get_webhook_payloads(4711, UTC)).path == "entity/webhook_payloads/?link_id=4711"
    assert first_request(api.get_progress(7)).path == "entity/7/transactions/"
    assert first_request(api.get_transactions(7, 8)).path == "entity/7/transactions/?account_id=8"


def test_answers_for_a_whole_number_are_compared_with_its_text():
    assert answer_with(api.get_entities(4711), page("e1", link="4711"))[1] == ["e1"]
    body = {"entity_id": "7", "progress": [DONE]}
    assert len(answer_with(api.get_progress(7), body)[1]) == 1
    assert answer_with(api.get_transactions(7), body)[1] == body


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("link_id", lambda value: api.get_webhook_payloads(value, UTC)),
        ("link_id", api.get_entities),
        ("entity_id", api.get_progress),
        ("entity_id", api.get_transactions),
        ("entity_id", api.get_entity),
        ("entity_id", lambda value: api.get_analysis(value, "score")),
        ("account_id", lambda value: api.get_transactions("e1", value)),
        ("account_id", lambda value: api.get_analysis("e1", "salary", value)),
    ],
)
@pytest.mark.parametrize("value", ["", " ", "None", "..", "\udfff", True, ["a"]], ids=repr)
def test_no_request_is_made_with_an_invalid_id(name, ask, value):
    """For a blank link BankConnect might answer with the payloads of all customers."""
    with pytest.raises(ValueError, match=rf"^{name} "):
        next(ask(value))


ids = st.text(min_size=1, max_size=500).filter(
    lambda text: text.strip() not in ("", "None") and text not in (".", "..")
) | st.text("/.#?%&=+ ;:@\\aé", min_size=1, max_size=30).filter(lambda text: text.strip() and text not in (".", ".."))


@often
@given(ids)
def test_link_id_of_any_characters_is_sent_unchanged(link_id):
    for call, name in ((api.get_webhook_payloads(link_id, UTC), "webhook_payloads/"), (api.get_entities(link_id), "")):
        path = next(call).path
        assert path.isascii()
        assert path.isprintable()
        parts = urlsplit(f"https://h/v1/{path}")
        assert parts.path == f"/v1/entity/{name}"
        assert parts.fragment == ""
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=True, errors="strict")
        assert query.pop("link_id") == [link_id]
        assert query in ({}, {"page": ["1"]})


@pytest.mark.parametrize("link_id", ["ß日本語हिन्दी😀/&#%? "[:12] * 50, "a" * 500, "%2F&link_id=x#?+ /" * 25])
def test_long_link_id_in_any_script_is_sent_unchanged(link_id):
    query = urlsplit("https://h/" + next(api.get_webhook_payloads(link_id, UTC)).path).query
    assert parse_qs(query, strict_parsing=True) == {"link_id": [link_id]}


@often
@given(ids)
def test_entity_id_never_changes_the_path(entity_id):
    for call in (api.get_progress(entity_id, "identity"), api.get_transactions(entity_id)):
        path = next(call).path
        assert path.isascii()
        parts = urlsplit(f"https://h/{path}")
        _, entity, kept, analysis, end = parts.path.split("/")
        assert (entity, analysis in api.ANALYSES, end) == ("entity", True, "")
        assert (parts.query, parts.fragment) == ("", "")
        assert unquote(kept, errors="strict") == entity_id
        assert kept not in (".", "..")


@pytest.mark.parametrize(
    ("entity_id", "kept"),
    [
        ("../../admin", "..%2F..%2Fadmin"),
        ("e1/identity/", "e1%2Fidentity%2F"),
        ("e1?x=1#y", "e1%3Fx%3D1%23y"),
        ("%2e%2e", "%252e%252e"),
        ("..\\x", "..%5Cx"),
        ("a b+c", "a%20b%2Bc"),
    ],
)
def test_entity_id_like_a_path_is_encoded(entity_id, kept):
    assert next(api.get_progress(entity_id)).path == f"entity/{kept}/transactions/"


# Webhook modes.


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (WebhookMode.NET_BANKING, WebhookMode.NET_BANKING),
        (WebhookMode.NET_BANKING_AND_MANUAL, WebhookMode.NET_BANKING_AND_MANUAL),
        (0, WebhookMode.NET_BANKING),
        (1, WebhookMode.NET_BANKING_AND_MANUAL),
        ("0", WebhookMode.NET_BANKING),
        (" 1\n", WebhookMode.NET_BANKING_AND_MANUAL),
        ("NET_BANKING", WebhookMode.NET_BANKING),
        ("net_banking_and_manual", WebhookMode.NET_BANKING_AND_MANUAL),
        (" NET_BANKING ", WebhookMode.NET_BANKING),
        ("WebhookMode.NET_BANKING", WebhookMode.NET_BANKING),
        ("WebhookMode.NET_BANKING_AND_MANUAL", WebhookMode.NET_BANKING_AND_MANUAL),
    ],
)
def test_mode_is_the_enum_its_number_or_either_as_text(given, mode):
    assert WebhookMode.parse(given) is mode


@pytest.mark.parametrize(
    "given", [True, False, 2, -1, "2", "", "None", None, 1.0, "1.0", "True", "MANUAL", "01", [1], b"1"], ids=repr
)
def test_unknown_mode_is_refused_with_the_allowed_ones(given):
    with pytest.raises(ValueError, match=r"^webhook_mode") as caught:
        WebhookMode.parse(given)
    assert str(caught.value) == (
        f"webhook_mode must be one of 0 (NET_BANKING), 1 (NET_BANKING_AND_MANUAL), not {given!r}"
    )


def test_mode_describes_which_statements_send_webhooks():
    assert WebhookMode.NET_BANKING.coverage == (
        "statements uploaded by hand (PDF) send no webhooks; NET_BANKING_AND_MANUAL includes them"
    )
    assert WebhookMode.NET_BANKING_AND_MANUAL.coverage == ("net banking and manual (PDF) statements both send webhooks")


def test_probe_gets_the_entities_of_a_random_link():
    """The link differs each time, and has no entities."""
    first, second = (next(api.probe()) for _ in range(2))
    assert first.path.startswith("entity/?page=1&link_id=")
    assert len(first.path.rpartition("=")[2]) == len("00000000-0000-4000-8000-000000000000")
    assert first.path != second.path
    call = api.probe()
    next(call)
    body = b'{"count": 0, "next": null, "previous": null, "results": []}'
    assert api.advance(call, api.Answer(200, body)) == api.Result([])
