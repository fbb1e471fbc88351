"""Each analysis has its documented shape, and the figures of all follow from the same transactions."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest

from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sandbox.answers import Bodies
from airflow_provider_bankconnect.sandbox.models import ANALYSES

SHARED = {"entity_id", "progress"}
WITH_ACCOUNTS = SHARED | {"accounts", "fraud"}
SHAPES = {
    "transactions": WITH_ACCOUNTS | {"transactions"},
    "accounts": WITH_ACCOUNTS,
    "identity": WITH_ACCOUNTS | {"identity"},
    "salary": WITH_ACCOUNTS | {"transactions"},
    "recurring_transactions": WITH_ACCOUNTS | {"transactions"},
    "lender_transactions": WITH_ACCOUNTS | {"transactions"},
    "get_expense_categories": SHARED | {"categories"},
    "top_credits_debits": SHARED | {"top_5_credit_debit"},
    "monthly_analysis_updated": SHARED | {"accounts", "monthly_analysis"},
    "xlsx_report": SHARED | {"reports"},
    "predictors": SHARED | {"predictors"},
    "score": SHARED | {"score"},
}
EMPTY = {
    "transactions": [],
    "identity": [],
    "salary": [],
    "recurring_transactions": {"credit_transactions": [], "debit_transactions": []},
    "lender_transactions": [],
    "get_expense_categories": [],
    "top_credits_debits": {"top_5_credit": {}, "top_5_debit": {}},
    "monthly_analysis_updated": {"account_id": []},
    "xlsx_report": [],
    "predictors": [],
    "score": [],
}
FILTERED = {"transactions", "salary", "recurring_transactions", "lender_transactions", "get_expense_categories"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def value(answer, analysis):
    names = SHAPES[analysis] - WITH_ACCOUNTS or {"accounts"}
    return answer[names.pop()]


def rows_of(client, **wanted):
    rows = client.analysis("e")["transactions"]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def of_month(rows, month):
    return [row for row in rows if row["date"].startswith(month)]


def amount(rows):
    return round(sum(row["amount"] for row in rows), 2)


def month_of(name):
    """Return ``2025-01`` for ``Jan-25`` or ``Jan-2025``."""
    word, year = name.split("-")
    return f"20{year[-2:]}-{MONTHS.index(word) + 1:02d}"


@pytest.fixture
def customer(client):
    """A client whose entity ``e`` has three completed statements."""
    for number in range(3):
        client.box.play(Statement(link_id="l", entity_id="e", statement_id=f"s{number}"))
    return client


def test_there_are_twelve_analyses():
    assert set(ANALYSES) == SHAPES.keys()
    assert len(ANALYSES) == 12


@pytest.mark.parametrize("analysis", ANALYSES)
def test_each_analysis_has_its_shape_and_its_own_progress(client, clock, analysis):
    client.box.play(Statement(entity_id="e", statement_id="s", after=5, later={analysis: 10}))
    clock.advance(5)
    answer = client.analysis("e", analysis)
    assert answer.keys() == SHAPES[analysis]
    assert [item["status"] for item in answer["progress"]] == ["processing"]
    assert value(answer, analysis) == EMPTY.get(analysis, [])
    for other in set(ANALYSES) - {analysis}:
        assert client.statuses("e", other) == ["completed"]
    clock.advance(10)
    answer = client.analysis("e", analysis)
    assert answer.keys() == SHAPES[analysis]
    assert [item["status"] for item in answer["progress"]] == ["completed"]
    assert value(answer, analysis) != EMPTY.get(analysis, [])


@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_entity_without_statements_has_empty_values(client, analysis):
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="", progress="failed"))
    answer = client.analysis("e", analysis)
    assert answer["progress"] == []
    assert value(answer, analysis) == EMPTY.get(analysis, [])


@pytest.mark.parametrize("analysis", ANALYSES)
def test_account_id_filters_only_the_analyses_that_document_it(customer, analysis):
    account = customer.analysis("e")["accounts"][0]["account_id"]
    whole = value(customer.analysis("e", analysis), analysis)
    for account_id, found in ((account, whole), ("another", EMPTY[analysis] if analysis in FILTERED else whole)):
        answer = customer.get(f"entity/e/{analysis}/?account_id={account_id}").json()
        # Each report has a new link.
        expected = [{**found[0], "link": answer["reports"][0]["link"]}] if analysis == "xlsx_report" else found
        assert value(answer, analysis) == expected


def test_all_analyses_have_the_same_account(customer):
    (account,) = customer.analysis("e", "accounts")["accounts"]
    assert account["statements"] == ["s0", "s1", "s2"]
    assert account["months"] == sorted({row["date"][:7] for row in rows_of(customer)})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", account["last_updated"])
    for analysis in ANALYSES:
        assert customer.analysis("e", analysis).get("accounts", [account]) == [account]
    (name,) = customer.analysis("e", "identity")["identity"]
    assert name["name"].endswith(" SAMPLE")
    assert name["account_number"] == account["account_number"]


def test_salaries_are_credits_with_their_month(customer):
    salaries = customer.analysis("e", "salary")["transactions"]
    assert len(salaries) == 3
    for row, salary in zip(rows_of(customer, category="Salary"), salaries, strict=True):
        month = f"{int(row['date'][5:7])}-{row['date'][:4]}"
        assert salary == row | {"month_year": month, "clean_transaction_note": salary["clean_transaction_note"]}


def test_lender_transactions_are_those_that_are_described_so(customer):
    lender = customer.analysis("e", "lender_transactions")["transactions"]
    assert lender == rows_of(customer, description="lender_transaction") != []


def test_recurring_transactions_are_sets_of_equal_notes(customer):
    sets = customer.analysis("e", "recurring_transactions")["transactions"]
    assert (len(sets["credit_transactions"]), len(sets["debit_transactions"])) == (1, 2)
    for kind in ("credit", "debit"):
        for found in sets[f"{kind}_transactions"]:
            transactions = found["transactions"]
            assert {row["transaction_type"] for row in transactions} == {kind}
            assert {row["clean_transaction_note"] for row in transactions} == {found["clean_transaction_note"]}
            assert (found["start_date"], found["end_date"]) == (transactions[0]["date"], transactions[-1]["date"])
            assert found["median"] == sorted(row["amount"] for row in transactions)[1]
            assert found["transaction_channel"] == transactions[0]["transaction_channel"].upper()


def test_expense_categories_are_whole_percentages_of_the_debits(customer):
    categories = customer.analysis("e", "get_expense_categories")["categories"]
    assert sum(one["percentage"] for one in categories) == 100
    debits = rows_of(customer, transaction_type="debit")
    assert {one["category"] for one in categories} == {row["category"] for row in debits}
    for one in categories:
        exact = 100 * amount(row for row in debits if row["category"] == one["category"]) / amount(debits)
        assert abs(one["percentage"] - exact) < 1


def test_top_credits_and_debits_repeat_a_key_for_each_equal_note(customer):
    pairs = json.loads(customer.get("entity/e/top_credits_debits/").text, object_pairs_hook=list)
    tops = dict(dict(pairs)["top_5_credit_debit"])
    repeated = 0
    for kind in ("credit", "debit"):
        months = defaultdict(list)
        for row in rows_of(customer, transaction_type=kind):
            months[row["date"][:7]].append((row["transaction_note"], row["amount"]))
        shown = {month_of(name): [tuple(pair) for pair in found] for name, found in tops[f"top_5_{kind}"]}
        for month, found in shown.items():
            assert found == sorted(months[month], key=lambda pair: pair[1], reverse=True)[:5]
            repeated += len(found) - len(dict(found))
        assert shown.keys() == months.keys()
    assert repeated > 0


def test_repeated_keys_stay_when_faults_change_the_answer(customer):
    before = customer.get("entity/e/top_credits_debits/").text
    customer.box.fault(Fault(kind="extra", call="top_credits_debits"))
    customer.box.fault(Fault(kind="shuffle", call="top_credits_debits"))
    after = customer.get("entity/e/top_credits_debits/").text
    assert "sandbox_extra" in after
    for note in ("ATM WDL/NOWHERE", "UPI/A FICTIONAL FRIEND"):
        assert after.count(note) == before.count(note) > 1


def test_the_monthly_analysis_follows_from_the_transactions(customer):
    (by_account,) = customer.analysis("e", "monthly_analysis_updated")["monthly_analysis"]["account_id"]
    ((account_id, found),) = by_account.items()
    assert account_id == rows_of(customer)[0]["account_id"]
    figures = found["monthly_analysis"]
    assert {month_of(name) for name in figures["cnt_transactions"]} == {row["date"][:7] for row in rows_of(customer)}
    assert all(re.fullmatch(r"[A-Z][a-z]{2}-\d{4}", name) for months in figures.values() for name in months)
    for name, count in figures["cnt_transactions"].items():
        rows = of_month(rows_of(customer), month_of(name))
        debits = [row for row in rows if row["transaction_type"] == "debit"]
        upi = [row for row in debits if row["transaction_channel"] == "upi"]
        assert count == len(rows)
        assert figures["amt_debit"][name] == amount(debits)
        assert (figures["amt_upi_debit"][name], figures["cnt_upi_debit"][name]) == (amount(upi), len(upi))
        assert figures["closing_balance"][name] == rows[-1]["balance"]
        change = figures["closing_balance"][name] - figures["opening_balance"][name]
        assert figures["net_cash_inflow"][name] == round(change, 2)
        assert figures["min_bal"][name] <= figures["avg_bal"][name] <= figures["max_eod_balance"][name]
    assert sum(figures["number_of_salary_transactions"].values()) == 3


def test_predictors_count_months_from_the_newest(customer):
    (found,) = customer.analysis("e", "predictors")["predictors"]
    predictors = found["predictors"]
    rows = rows_of(customer)
    months = sorted({row["date"][:7] for row in rows}, reverse=True)
    assert predictors["month_duration"] == len(months) < 6
    assert predictors["month_5"] is predictors["credits_5"] is predictors["balance_on_1st_5"] is None
    assert [month_of(predictors[f"month_{number}"]) for number in range(len(months))] == months
    for number, month in enumerate(months):
        of_credits = [row for row in of_month(rows, month) if row["transaction_type"] == "credit"]
        assert predictors[f"credits_{number}"] == amount(of_credits)
        assert predictors[f"bal_last_{number}"] == of_month(rows, month)[-1]["balance"]
    assert predictors["credits"] == amount(row for row in rows if row["transaction_type"] == "credit")
    assert re.fullmatch(r"\d\d-[A-Z][a-z]{2}-\d\d", predictors["end_date"])
    assert isinstance(predictors["accountnumber"], int)


def test_predictors_are_those_of_at_most_six_months(client):
    for number in range(9):
        client.box.play(Statement(entity_id="e", statement_id=f"s{number}", transactions=40))
    predictors = client.analysis("e", "predictors")["predictors"][0]["predictors"]
    recent = sorted({row["date"][:7] for row in rows_of(client)})[-6:]
    assert predictors["month_duration"] == 6
    assert predictors["debits"] == amount(
        row for row in rows_of(client, transaction_type="debit") if row["date"][:7] in recent
    )


@pytest.mark.parametrize("transactions", [0, 1, 4])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_few_transactions_are_enough(client, analysis, transactions):
    client.box.play(Statement(entity_id="e", transactions=transactions))
    assert client.get(f"entity/e/{analysis}/").status_code == 200


def test_the_score_is_between_300_and_900(client):
    scores = set()
    for number in range(5):
        client.box.play(Statement(entity_id=f"e{number}"))
        (found,) = client.analysis(f"e{number}", "score")["score"]
        scores.add(found["score"])
    assert all(300 <= score <= 900 for score in scores)


@pytest.mark.parametrize(
    ("statuses", "shown"),
    [
        (["completed"], {"xlsx_report", "predictors", "score"}),
        (["completed", "failed"], {"xlsx_report", "predictors", "score"}),
        (["completed", "processing"], set()),
        (["completed", None], set()),
        (["completed", ["odd"]], {"xlsx_report", "predictors"}),
        (["failed"], set()),
        ([], set()),
    ],
)
def test_reports_predictors_and_score_are_empty_until_all_statements_have_ended(client, statuses, shown):
    items = [{"status": status, "statement_id": f"s{number}"} for number, status in enumerate(statuses)]
    found = set()
    for analysis in ("xlsx_report", "predictors", "score"):
        client.box.progress("e", items, analysis=analysis)
        answer = client.get(f"entity/e/{analysis}/")
        assert answer.status_code == 200
        found |= {analysis} if value(answer.json(), analysis) else set()
    assert found == shown


def test_an_analysis_grows_with_each_completed_statement(client, clock):
    client.box.play(Statement(entity_id="e", transactions=5))
    client.box.play(Statement(entity_id="e", transactions=7, after=10))
    assert len(rows_of(client)) == 5
    clock.advance(10)
    assert len(rows_of(client)) == 12


def test_kept_bodies_are_bounded():
    bodies = Bodies(most=100_000)
    made = []

    def get(key):
        return bodies.get(key, lambda: made.append(key) or b"x" * 30_000)

    for key in "abab":
        assert get(key) == b"x" * 30_000
    assert made == ["a", "b"]
    for key in "cda":
        get(key)
    assert made == ["a", "b", "c", "d", "a"]
