"""Figures computed from invented transactions: by month, by category, for predictors and the score.

Rows are those of :func:`~.data.transactions_of`, oldest first in each account. The months of each analysis have
BankConnect's formats.
"""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from statistics import fmean, median, mode
from typing import TYPE_CHECKING, Any, Final

from .data import REPEATED_MONTHLY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Row = dict[str, Any]

# strftime's %b would depend on the locale.
_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Each is a transaction channel and a transaction type; the invented transactions have only some of the channels.
_BY_CHANNEL: Final = (
    "auto_debit_payment_bounce_credit",
    "auto_debit_payment_debit",
    "bank_charge_debit",
    "bank_interest_credit",
    "bill_payment_debit",
    "cash_deposit_credit",
    "cash_withdrawl_debit",
    "chq_credit",
    "chq_debit",
    "credit_card_bill_debit",
    "debit_card_debit",
    "emi_bounce_credit",
    "international_transaction_arbitrage_credit",
    "international_transaction_arbitrage_debit",
    "investment_cashin_credit",
    "inward_cheque_bounce_credit",
    "inward_cheque_bounce_insuff_funds_credit",
    "net_banking_transfer_credit",
    "net_banking_transfer_debit",
    "outward_cheque_bounce_debit",
    "outward_cheque_bounce_insuff_funds_debit",
    "payment_gateway_purchase_debit",
    "refund_credit",
    "self_transfer_credit",
    "self_transfer_debit",
    "upi_credit",
    "upi_debit",
)
_NEVER_INVENTED: Final = ("ach_bounce_charge", "chq_bounce_charge", "bounce_charge", "investment", "loan_credits")
_SPENT_FROM_SALARY: Final = {
    "bill_payment": "bill_payment",
    "cash_withdrawl": "cash_withdrawl",
    "debit_card": "debit_card",
    "net_banking_transfer": "net_banking_transfer",
    "upi": "upi",
}
_DAYS: Final = {"1st": 1, "5th": 5, "10th": 10, "15th": 15, "20th": 20, "25th": 25, "30th": 30}
_MONTHS_OF_PREDICTORS: Final = 6
_BUSINESS: Final = 500


class Pairs(dict[str, Any]):
    """A JSON object with repeated keys: ``json.dumps`` writes each pair, because it asks a subclass for its items."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self._pairs = list(pairs)
        super().__init__(self._pairs)

    def items(self) -> Any:  # noqa: ANN401 - a list of pairs, where dict has a view
        """Return all pairs, also those of equal keys."""
        return self._pairs


def monthly_analysis(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return each figure by month; the months are written like ``Aug-2020``."""
    analysis: dict[str, dict[str, float]] = {}
    for month, figures in _each_month(rows):
        for name, value in figures.items():
            analysis.setdefault(name, {})[f"{_month_name(month)}-{month[:4]}"] = value
    return analysis


def top_five(rows: Sequence[Row], kind: str) -> dict[str, Pairs]:
    """Return the notes and amounts of the five largest credits or debits of each month, written like ``Jan-21``."""
    by_month = _by_month(row for row in rows if row["transaction_type"] == kind)
    return {
        _short(month): Pairs(
            (row["transaction_note"], row["amount"])
            for row in sorted(of_month, key=lambda row: row["amount"], reverse=True)[:5]
        )
        for month, of_month in by_month.items()
    }


def categories(rows: Iterable[Row]) -> list[Row]:
    """Return the share of each category in the debits: whole percentages, whose sum is 100."""
    totals: dict[str, float] = {}
    for row in rows:
        if row["transaction_type"] == "debit":
            totals[row["category"]] = totals.get(row["category"], 0.0) + row["amount"]
    whole = sum(totals.values())
    exact = {name: 100 * total / whole for name, total in totals.items()}
    shares = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: exact[name] % 1, reverse=True)[: 100 - sum(shares.values())]:
        shares[name] += 1
    ordered = sorted(shares.items(), key=lambda pair: pair[1], reverse=True)
    return [{"category": name, "percentage": share} for name, share in ordered]


def recurring(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the sets of recurring credits or debits of each account."""
    sets: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["transaction_type"] == kind and row["category"] in REPEATED_MONTHLY:
            sets.setdefault((row["account_id"], row["transaction_note"]), []).append(with_clean_note(row))
    return [
        {
            "account_id": found[0]["account_id"],
            "start_date": found[0]["date"],
            "end_date": found[-1]["date"],
            "clean_transaction_note": found[0]["clean_transaction_note"],
            "transaction_channel": found[0]["transaction_channel"].upper(),
            "median": median(row["amount"] for row in found),
            "transactions": found,
        }
        for found in sets.values()
    ]


def salaries(rows: Iterable[Row]) -> list[Row]:
    """Return the salaries; their ``month_year`` is written like ``1-2019``."""
    return [
        {**with_clean_note(row), "month_year": f"{int(row['date'][5:7])}-{row['date'][:4]}"}
        for row in rows
        if row["category"] == "Salary"
    ]


def with_clean_note(row: Row) -> Row:
    """Return the transaction with its note in words."""
    return {**row, "clean_transaction_note": row["transaction_note"].replace("/", " ")}


def predictors(rows: Sequence[Row], account: Mapping[str, Any], name: str) -> Row:
    """Return the predictors of an account: month 0 is the newest of at most six."""
    months = list(_each_month(rows))[-_MONTHS_OF_PREDICTORS:]
    values: Row = {
        "customer_name": name,
        "bank_name": account["bank"],
        "account_type": None,
        "accountnumber": int(account["account_number"]),
        "ifsc_code": account["ifsc"],
        "month_duration": len(months),
    }
    newest = [*reversed(months)] + [None] * (_MONTHS_OF_PREDICTORS - len(months))
    daily = _daily_balances(rows)
    for number, found in enumerate(newest):
        of_month = _predictors_of_month(*found, daily[found[0]]) if found else dict.fromkeys(_predictor_names())
        values |= {f"{key}_{number}": value for key, value in of_month.items()}
    if months:
        recent = [row for row in rows if row["date"][:7] >= months[0][0]]
        values |= _predictors_of_all(recent, [figures for _, figures in months])
    return values


def score(rows: Sequence[Row]) -> int:
    """Return a score from 300 to 900: the more of the credits is left, the higher."""
    credit, debit = _total(rows, "credit"), _total(rows, "debit")
    left = max(0.0, min(1.0, (credit - debit) / credit)) if credit else 0.0
    return 300 + round(600 * left)


def _each_month(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, float]]]:
    daily = _daily_balances(rows)
    for month, of_month in _by_month(rows).items():
        figures = _amounts_and_counts(of_month) | _balances(of_month, daily[month]) | _salary(of_month)
        yield month, {name: round(value, 2) for name, value in figures.items()}


def _amounts_and_counts(rows: Sequence[Row]) -> dict[str, float]:
    groups: dict[str, list[Row]] = {name: [] for name in (*_BY_CHANNEL, *_NEVER_INVENTED, "credit", "debit")}
    for row in rows:
        kind = row["transaction_type"]
        groups[kind].append(row)
        groups.setdefault(f"{row['transaction_channel']}_{kind}", []).append(row)
    groups["income_credit"] = groups["credit"]
    groups["business_credit"] = [row for row in groups["credit"] if row["amount"] > _BUSINESS]
    groups["emi_debit"] = [row for row in groups["debit"] if row["category"] == "Loan"]
    figures: dict[str, float] = {"cnt_transactions": len(rows)}
    for name, found in groups.items():
        figures[f"amt_{name}"] = sum(row["amount"] for row in found)
        figures[f"cnt_{name}"] = len(found)
    for name, group in (("avg_credit_transaction_size", "credit"), ("avg_debit_transaction_size", "debit")):
        figures[name] = figures[f"amt_{group}"] / max(1, len(groups[group]))
    figures["avg_emi"] = figures["amt_emi_debit"] / max(1, len(groups["emi_debit"]))
    figures["net_cash_inflow"] = figures["amt_credit"] - figures["amt_debit"]
    return figures


def _balances(rows: Sequence[Row], daily: Sequence[float]) -> dict[str, float]:
    first = rows[0]
    signed = first["amount"] if first["transaction_type"] == "credit" else -first["amount"]
    balances = [row["balance"] for row in rows]
    return {
        "opening_balance": first["balance"] - signed,
        "closing_balance": balances[-1],
        "max_bal": max(balances),
        "min_bal": min(balances),
        "avg_bal": fmean(daily),
        "median_balance": median(daily),
        "mode_balance": mode(daily),
        "max_eod_balance": max(daily),
        "min_eod_balance": min(daily),
    }


def _salary(rows: Sequence[Row]) -> dict[str, float]:
    paid = [row for row in rows if row["category"] == "Salary"]
    total = sum(row["amount"] for row in paid)
    figures = {"number_of_salary_transactions": len(paid), "total_amount_of_salary": total}
    days: set[str] = set()
    for row in paid:
        first = date.fromisoformat(row["date"][:10])
        days.update(str(first + timedelta(days=number)) for number in range(7))
    spent = [row for row in rows if row["transaction_type"] == "debit" and row["date"][:10] in days]
    for name, channel in _SPENT_FROM_SALARY.items():
        amount = sum(row["amount"] for row in spent if row["transaction_channel"] == channel)
        figures[f"perc_salary_spend_{name}"] = 100 * amount / total if total else 0
    return figures


def _predictors_of_month(month: str, figures: Mapping[str, float], daily: Sequence[float]) -> Row:
    # A February has no 30th: its last day stands for it.
    dates = {name: daily[min(day, len(daily)) - 1] for name, day in _DAYS.items()}
    income = figures["amt_income_credit"]
    return {
        "month": _short(month),
        "credits": figures["amt_credit"],
        "debits": figures["amt_debit"],
        "debitless_charges": figures["amt_bank_charge_debit"],
        "expense": figures["amt_debit"],
        "income": income,
        "expense_to_income_ratio": round(figures["amt_debit"] / income, 4) if income else None,
        "number_of_transactions": figures["cnt_transactions"],
        "total_creditcard_payment": figures["amt_credit_card_bill_debit"],
        "total_inward_payment_bounce": figures["amt_auto_debit_payment_bounce_credit"],
        "total_salary": figures["total_amount_of_salary"],
        "max_balance": figures["max_bal"],
        "min_balance": figures["min_bal"],
        "avg_balance": figures["avg_bal"],
        "bal_last": daily[-1],
        "bal_avgof_6dates": round(fmean(dates.values()), 2),
        **{f"balance_on_{name}": balance for name, balance in dates.items()},
        **{f"balance_net_off_on_{name}": balance for name, balance in dates.items()},
    }


def _predictor_names() -> Iterable[str]:
    nothing = dict.fromkeys(("max_bal", "min_bal", "avg_bal", "total_amount_of_salary"), 0.0)
    return _predictors_of_month("2000-01", nothing | _amounts_and_counts([]), [0.0])


def _predictors_of_all(rows: Sequence[Row], months: Sequence[Mapping[str, float]]) -> Row:
    def total(name: str) -> float:
        return round(sum(figures[name] for figures in months), 2)

    start, end = (date.fromisoformat(row["date"][:10]) for row in (rows[0], rows[-1]))
    credit, debit = total("amt_credit"), total("amt_debit")
    return {
        "start_date": _day(start),
        "end_date": _day(end),
        "credits": credit,
        "debits": debit,
        "annualised_credit": round(credit / max(1, (end - start).days) * 365, 2),
        "total_income": credit,
        "total_expense": debit,
        "avg_monthly_income": round(credit / len(months), 2),
        "avg_monthly_expense": round(debit / len(months), 2),
        "avg_expense_to_income_perc": round(100 * debit / credit, 2) if credit else 0.0,
        "avg_daily_closing_balance": round(fmean(figures["avg_bal"] for figures in months), 2),
        "avg_monthly_closing_balance": round(fmean(figures["closing_balance"] for figures in months), 2),
        "cash_withdrawals": total("cnt_cash_withdrawl_debit"),
        "total_cash_withdrawal": total("amt_cash_withdrawl_debit"),
        "chq_deposits": total("cnt_chq_credit"),
        "chq_issues": total("cnt_chq_debit"),
        "total_chq_deposit": total("amt_chq_credit"),
        "total_chq_issue": total("amt_chq_debit"),
        "debitless_charges": total("amt_bank_charge_debit"),
        "inward_chq_bounces": total("amt_inward_cheque_bounce_credit"),
        "outward_chq_bounces": total("amt_outward_cheque_bounce_debit"),
        "net_banking_credits": total("amt_net_banking_transfer_credit"),
        "net_banking_debits": total("amt_net_banking_transfer_debit"),
        "pos_expenses": total("amt_debit_card_debit"),
        "reversals": total("amt_refund_credit"),
        "total_bounce_or_penal_charge": total("amt_bounce_charge"),
        "total_creditcard_payment": total("amt_credit_card_bill_debit"),
        "total_emi_ecs_loan": total("amt_emi_debit"),
    }


def _daily_balances(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the balances at the end of each day; a day without transactions has that of the day before."""
    ends = {row["date"][:10]: row["balance"] for row in rows}
    balance = next(iter(ends.values()), 0.0)
    daily: dict[str, list[float]] = {}
    for month in sorted({day[:7] for day in ends}):
        daily[month] = balances = []
        for number in range(1, calendar.monthrange(int(month[:4]), int(month[5:]))[1] + 1):
            balance = ends.get(f"{month}-{number:02d}", balance)
            balances.append(balance)
    return daily


def _by_month(rows: Iterable[Row]) -> dict[str, list[Row]]:
    months: dict[str, list[Row]] = {}
    for row in rows:
        months.setdefault(row["date"][:7], []).append(row)
    return dict(sorted(months.items()))


def _total(rows: Iterable[Row], kind: str) -> float:
    amounts: Iterator[float] = (row["amount"] for row in rows if row["transaction_type"] == kind)
    return sum(amounts)


def _month_name(month: str) -> str:
    return _NAMES[int(month[5:7]) - 1]


def _short(month: str) -> str:
    return f"{_month_name(month)}-{month[2:4]}"


def _day(day: date) -> str:
    return f"{day.day:02d}-{_NAMES[day.month - 1]}-{day:%y}"
