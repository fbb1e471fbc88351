"""Each analysis has its documented shape, and the figures of all follow from the same transactions."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sandbox.answers import Bodies
from airflow_provider_bankconnect.sandbox.data import StatementShape, account_of, transactions_of
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


@pytest.fixture
def accounts(client):
    """A client whose entity ``e`` has accounts 0 and 2, and the ids of the two; account 1 has a failed statement."""
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="c", account=2))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="failed", account=1, progress="failed"))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="a"))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="d", account=2, transactions=5))
    return client, [account_of(client.box.seed, "e", number)["account_id"] for number in (0, 2)]


def test_an_account_shows_its_own_statements(accounts):
    client, ids = accounts
    found = client.analysis("e", "accounts")["accounts"]
    assert [one["account_id"] for one in found] == ids
    assert [one["statements"] for one in found] == [["a"], ["c", "d"]]
    assert len({one["account_number"] for one in found}) == 2
    assert [(row["account_id"], row["statement_id"]) for row in rows_of(client) if row["category"] == "Salary"] == [
        (ids[0], "a"), (ids[1], "c"), (ids[1], "d")
    ]  # fmt: skip
    assert len(rows_of(client, statement_id="d")) == 5


@pytest.mark.parametrize("analysis", ["identity", "xlsx_report", "predictors", "score"])
def test_an_analysis_has_one_value_for_each_account(accounts, analysis):
    client, ids = accounts
    assert [one["account_id"] for one in value(client.analysis("e", analysis), analysis)] == ids


def test_the_accounts_of_a_customer_have_one_owner_and_their_own_figures(accounts):
    client, ids = accounts
    assert len({one["name"] for one in client.analysis("e", "identity")["identity"]}) == 1
    monthly = client.analysis("e", "monthly_analysis_updated")["monthly_analysis"]["account_id"]
    assert [[*one] for one in monthly] == [[account_id] for account_id in ids]
    predictors = client.analysis("e", "predictors")["predictors"]
    for one in predictors:
        assert one["predictors"]["credits"] == amount(
            rows_of(client, account_id=one["account_id"], transaction_type="credit")
        )
    for found in client.analysis("e", "recurring_transactions")["transactions"]["credit_transactions"]:
        assert {row["account_id"] for row in found["transactions"]} == {found["account_id"]}


@pytest.mark.parametrize("analysis", sorted(FILTERED))
def test_account_id_filters_the_accounts(accounts, analysis):
    client, ids = accounts
    filtered = [client.get(f"entity/e/{analysis}/?account_id={one}").json() for one in ids]
    assert value(filtered[0], analysis) != value(filtered[1], analysis)
    if "accounts" in SHAPES[analysis]:
        assert [[one["account_id"] for one in answer["accounts"]] for answer in filtered] == [[one] for one in ids]
    if analysis in {"transactions", "salary"}:
        assert value(client.analysis("e", analysis), analysis) == [
            row for answer in filtered for row in value(answer, analysis)
        ]


def test_an_account_is_the_same_beside_others(client):
    def of_account_0(analysis):
        (found,) = (one for one in value(client.analysis("e", analysis), analysis) if one["account_id"] == first)
        return found

    first = account_of(client.box.seed, "e", 0)["account_id"]
    client.box.play(Statement(entity_id="e", statement_id="a", account=0))
    client.box.play(Statement(entity_id="e", statement_id="b", account=0))
    alone = rows_of(client), [of_account_0(analysis) for analysis in ("accounts", "predictors", "score")]
    client.box.play(Statement(entity_id="e", statement_id="c", account=7))
    assert len(client.analysis("e", "accounts")["accounts"]) == 2
    beside = [of_account_0(analysis) for analysis in ("accounts", "predictors", "score")]
    assert (rows_of(client, account_id=first), beside) == alone


def test_the_invented_data_of_account_0_stay_what_they_were():
    account = account_of(0, "e", 0)
    assert (account["account_id"], account["account_number"]) == (
        "d4df1b97-ddac-4069-84c9-d21d5b791649", "000042427473"
    )  # fmt: skip
    shapes = (StatementShape("s"), StatementShape("t", 3))
    rows = transactions_of(0, "e", 0, shapes, datetime(2025, 1, 1, tzinfo=UTC))
    digest = "1fd1e57b72a284df21c08d8a0dc88ab80d7e61311b2ca9e70d86ef76e94054c7"
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == digest


def test_a_statement_that_is_processed_again_keeps_its_account(accounts, clock):
    client, _ = accounts
    client.box.play(Statement(entity_id="e", statement_id="c", begins=5, after=10))
    clock.advance(10)
    assert [one["statements"] for one in client.analysis("e", "accounts")["accounts"]] == [["a"], ["c", "d"]]


def test_a_thousand_accounts_have_reports_in_well_under_a_second(client):
    for number in reversed(range(1000)):
        client.box.play(Statement(entity_id="e", statement_id=f"s{number}", account=number))
    took = []
    for _ in range(3):
        started = time.perf_counter()
        reports = client.analysis("e", "xlsx_report")["reports"]
        took.append(time.perf_counter() - started)
    assert [one["account_id"] for one in reports] == [
        account_of(0, "e", number)["account_id"] for number in range(1000)
    ]
    assert len({one["link"] for one in reports}) == 1000
    assert min(took) < 0.5


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
