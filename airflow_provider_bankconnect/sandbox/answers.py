"""The answers of BankConnect's analyses: each has its own frame, made from the invented transactions. No HTTP."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from . import figures
from .data import AccountShape, account_of, identity_of, transactions_of

if TYPE_CHECKING:
    from datetime import datetime

Row = dict[str, Any]
# Makes a link that expires, from the kind of file, the entity and the number of the account.
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
    accounts: tuple[AccountShape, ...]
    seed: int
    anchor: datetime


@dataclass(frozen=True)
class Account:
    """An invented account with at least one completed statement, as a state shows it.

    Its transactions are invented on first use: the list of a thousand reports needs none.
    """

    state: State
    shape: AccountShape
    completed: list[str]

    @property
    def account_id(self) -> str:
        """The id of the account."""
        account_id: str = self._invented["account_id"]
        return account_id

    @cached_property
    def rows(self) -> list[Row]:
        """The transactions of the completed statements."""
        seed, entity_id, anchor = self.state.seed, self.state.entity_id, self.state.anchor
        found = transactions_of(seed, entity_id, self.shape.number, self.shape.statements, anchor)
        return [row for statement_id in self.completed for row in found.get(statement_id, [])]

    @cached_property
    def item(self) -> Row:
        """The item of the account in ``accounts``."""
        return {
            **self._invented,
            "months": sorted({row["date"][:7] for row in self.rows}),
            "statements": self.completed,
            "last_updated": f"{self.shape.updated:%Y-%m-%dT%H:%M:%S.%f}Z",
        }

    @property
    def identity(self) -> Row:
        """The owner of the account."""
        return identity_of(self.state.seed, self.state.entity_id, self.shape.number)

    @property
    def _invented(self) -> Row:
        return account_of(self.state.seed, self.state.entity_id, self.shape.number)


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
    accounts = accounts_in(state, items)
    shown: Row = {"entity_id": state.entity_id, "progress": items}
    if state.analysis in _WITH_ACCOUNTS:
        shown["accounts"] = [account.item for account in accounts]
        if state.analysis != "monthly_analysis_updated":
            shown["fraud"] = {"fraudulent_statements": [], "fraud_type": []}
    if not _is_ready(state.analysis, [item.get("status") for item in items]):
        accounts = []
    return shown | _values(state, accounts, link)


def accounts_in(state: State, items: list[Row] | None = None) -> list[Account]:
    """Return the accounts that have a completed statement, by number; in some analyses only the one asked for."""
    found = json.loads(state.progress) if items is None else items
    done = [str(item.get("statement_id")) for item in found if item.get("status") == "completed"]
    number_of = {shape.statement_id: account.number for account in state.accounts for shape in account.statements}
    completed: dict[int, list[str]] = {}
    for statement_id in done:
        completed.setdefault(number_of.get(statement_id, 0), []).append(statement_id)
    accounts = [Account(state, one, completed[one.number]) for one in state.accounts if one.number in completed]
    wanted = state.account_id if state.analysis in _FILTERED else None
    return [account for account in accounts if wanted in {None, account.account_id}]


def _is_ready(analysis: str, statuses: list[object]) -> bool:
    """Return whether the answer shows its values; the lists of most analyses grow with each completed statement."""
    if analysis == "score":
        return all(status in _OVER for status in statuses)
    if analysis in {"xlsx_report", "predictors"}:
        return not any(status in _PROCESSING for status in statuses)
    return True


def _values(state: State, accounts: list[Account], link: Link | None) -> Row:
    if state.analysis in _OF_ROWS:
        name, make = _OF_ROWS[state.analysis]
        return {name: make([row for account in accounts for row in account.rows])}
    if state.analysis in _OF_ACCOUNT:
        name, describe = _OF_ACCOUNT[state.analysis]
        return {name: [describe(account) for account in accounts]}
    if state.analysis == "xlsx_report":
        return {"reports": [_report(account, link) for account in accounts]}
    if state.analysis == "monthly_analysis_updated":
        # So it is documented: a list below "account_id", of objects whose only key is the account's id.
        return {"monthly_analysis": {"account_id": [_monthly_analysis(account) for account in accounts]}}
    return {}


def _lender_transactions(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["description"] == "lender_transaction"]


def _recurring_transactions(rows: list[Row]) -> Row:
    return {f"{kind}_transactions": figures.recurring(rows, kind) for kind in ("credit", "debit")}


def _top_credits_debits(rows: list[Row]) -> Row:
    return {f"top_5_{kind}": figures.top_five(rows, kind) for kind in ("credit", "debit")}


def _monthly_analysis(account: Account) -> Row:
    return {account.account_id: {"monthly_analysis": figures.monthly_analysis(account.rows)}}


def _report(account: Account, link: Link | None) -> Row:
    made = link("xlsx", account.state.entity_id, str(account.shape.number)) if link else ""
    return {"account_id": account.account_id, "link": made}


def _predictors(account: Account) -> Row:
    values = figures.predictors(account.rows, account.item, account.identity["name"])
    return {"account_id": account.account_id, "predictors": values}


def _score(account: Account) -> Row:
    return {"account_id": account.account_id, "score": figures.score(account.rows)}


_OF_ROWS: Final[dict[str, tuple[str, Callable[[list[Row]], object]]]] = {
    "transactions": ("transactions", list),
    "salary": ("transactions", figures.salaries),
    "lender_transactions": ("transactions", _lender_transactions),
    "recurring_transactions": ("transactions", _recurring_transactions),
    "get_expense_categories": ("categories", figures.categories),
    "top_credits_debits": ("top_5_credit_debit", _top_credits_debits),
}
_OF_ACCOUNT: Final[dict[str, tuple[str, Callable[[Account], Row]]]] = {
    "identity": ("identity", lambda account: account.identity),
    "predictors": ("predictors", _predictors),
    "score": ("score", _score),
}
