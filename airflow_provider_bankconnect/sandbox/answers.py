"""The answers of BankConnect's analyses: each has its own frame, made from the invented transactions. No HTTP."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from . import figures
from .data import StatementShape, account_of, identity_of, transactions_of

if TYPE_CHECKING:
    from datetime import datetime

Row = dict[str, Any]
# Makes a link that expires, from the kind of file, the entity and the account.
Link = Callable[[Literal["xlsx"], str, str], str]

_FILTERED: Final = {
    "transactions",
    "salary",
    "recurring_transactions",
    "lender_transactions",
    "get_expense_categories",
}
_WITH_ACCOUNTS: Final = {
    "transactions",
    "accounts",
    "identity",
    "salary",
    "recurring_transactions",
    "lender_transactions",
    "monthly_analysis_updated",
}
_PROCESSING: Final = ("processing", None)
_OVER: Final = ("completed", "failed")
_CACHED_BYTES: Final = 64_000_000
_BYTES_OF_A_KEY: Final = 2_000


@dataclass(frozen=True)
class State:
    """What the answer of one analysis depends on: equal states have equal answers, apart from links."""

    analysis: str
    entity_id: str
    account_id: str | None
    progress: str
    shapes: tuple[StatementShape, ...]
    updated: datetime
    seed: int
    anchor: datetime


@dataclass(frozen=True)
class Customer:
    """The invented account of an entity, and its transactions that can be read in a state."""

    account: Row
    name: Row
    rows: list[Row]


class Bodies:
    """Keeps the newest encoded answers, so that one of several megabytes is not encoded again at each request."""

    def __init__(self, most: int = _CACHED_BYTES) -> None:
        self._most = most
        self._size = 0
        self._kept: OrderedDict[object, bytes] = OrderedDict()

    def get(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Return the kept bytes of this key, or make and keep them."""
        body = self._kept.pop(key, None)
        if body is None:
            body = make()
            self._size += len(body) + _BYTES_OF_A_KEY
        self._kept[key] = body
        while self._size > self._most:
            self._size -= len(self._kept.popitem(last=False)[1]) + _BYTES_OF_A_KEY
        return body


def answer(state: State, link: Link | None = None) -> Row:
    """Return the whole answer of an analysis; without ``link`` its links are blank."""
    items: list[Row] = json.loads(state.progress)
    customer = customer_of(state, items)
    shown: Row = {"entity_id": state.entity_id, "progress": items}
    if state.analysis in _WITH_ACCOUNTS:
        shown["accounts"] = [] if customer is None else [customer.account]
        if state.analysis != "monthly_analysis_updated":
            shown["fraud"] = {"fraudulent_statements": [], "fraud_type": []}
    if not _is_ready(state.analysis, [item.get("status") for item in items]):
        customer = None
    return shown | _values(state, customer, link)


def customer_of(state: State, items: list[Row] | None = None) -> Customer | None:
    """Return the customer with the transactions of the completed statements, or None if there is none to show."""
    found = json.loads(state.progress) if items is None else items
    done = [str(item.get("statement_id")) for item in found if item.get("status") == "completed"]
    account = account_of(state.seed, state.entity_id)
    wanted = state.account_id if state.analysis in _FILTERED else None
    if not done or wanted not in {None, account["account_id"]}:
        return None
    by_statement = transactions_of(state.seed, state.entity_id, account["account_id"], state.shapes, state.anchor)
    rows = [row for statement_id in done for row in by_statement.get(statement_id, [])]
    shown = {
        **account,
        "months": sorted({row["date"][:7] for row in rows}),
        "statements": done,
        "last_updated": f"{state.updated:%Y-%m-%dT%H:%M:%S.%f}Z",
    }
    return Customer(shown, identity_of(state.seed, state.entity_id), rows)


def _is_ready(analysis: str, statuses: list[object]) -> bool:
    """Return whether the answer shows its values; the lists of most analyses grow with each completed statement."""
    if analysis == "score":
        return all(status in _OVER for status in statuses)
    if analysis in {"xlsx_report", "predictors"}:
        return not any(status in _PROCESSING for status in statuses)
    return True


def _values(state: State, customer: Customer | None, link: Link | None) -> Row:
    rows = customer.rows if customer else []
    if state.analysis in _OF_ROWS:
        name, make = _OF_ROWS[state.analysis]
        return {name: make(rows)}
    if state.analysis in _OF_ACCOUNT:
        name, describe = _OF_ACCOUNT[state.analysis]
        return {name: [describe(customer)] if customer else []}
    if state.analysis == "xlsx_report":
        return {"reports": [_report(state, customer, link)] if customer else []}
    if state.analysis == "monthly_analysis_updated":
        # So it is documented: a list below "account_id", of objects whose only key is the account's id.
        return {"monthly_analysis": {"account_id": [_monthly_analysis(customer)] if customer else []}}
    return {}


def _lender_transactions(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["description"] == "lender_transaction"]


def _recurring_transactions(rows: list[Row]) -> Row:
    return {f"{kind}_transactions": figures.recurring(rows, kind) for kind in ("credit", "debit")}


def _top_credits_debits(rows: list[Row]) -> Row:
    return {f"top_5_{kind}": figures.top_five(rows, kind) for kind in ("credit", "debit")}


def _monthly_analysis(customer: Customer) -> Row:
    return {customer.account["account_id"]: {"monthly_analysis": figures.monthly_analysis(customer.rows)}}


def _report(state: State, customer: Customer, link: Link | None) -> Row:
    account_id = customer.account["account_id"]
    return {"account_id": account_id, "link": link("xlsx", state.entity_id, account_id) if link else ""}


def _predictors(customer: Customer) -> Row:
    values = figures.predictors(customer.rows, customer.account, customer.name["name"])
    return {"account_id": customer.account["account_id"], "predictors": values}


def _score(customer: Customer) -> Row:
    return {"account_id": customer.account["account_id"], "score": figures.score(customer.rows)}


_OF_ROWS: Final[dict[str, tuple[str, Callable[[list[Row]], object]]]] = {
    "transactions": ("transactions", list),
    "salary": ("transactions", figures.salaries),
    "lender_transactions": ("transactions", _lender_transactions),
    "recurring_transactions": ("transactions", _recurring_transactions),
    "get_expense_categories": ("categories", figures.categories),
    "top_credits_debits": ("top_5_credit_debit", _top_credits_debits),
}
_OF_ACCOUNT: Final[dict[str, tuple[str, Callable[[Customer], Row]]]] = {
    "identity": ("identity", lambda customer: customer.name),
    "predictors": ("predictors", _predictors),
    "score": ("score", _score),
}
