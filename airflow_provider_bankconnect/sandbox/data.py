"""Invented customers: consistent accounts, identities and transactions, the same for the same seed."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

BANK = "sandbox_bank"
REPEATED_MONTHLY = ("Salary", "Rent", "Loan")
_MONTHS_BACK = 24
_SPENDING = (
    ("upi", "UPI/EXAMPLE GROCERS", "Groceries", 12_000, 240_000),
    ("upi", "UPI/SAMPLE TEA STALL", "Food", 1_000, 30_000),
    ("debit_card", "POS/INVENTED BOOKS", "Shopping", 20_000, 350_000),
    ("net_banking_transfer", "BIL/MADE UP POWER CO", "Bills", 50_000, 300_000),
    ("cash_withdrawl", "ATM WDL/NOWHERE", "Cash Withdrawal", 50_000, 1_000_000),
)
_INCOMING = ("upi", "UPI/A FICTIONAL FRIEND", "Transfer in", 10_000, 500_000)
_FIRST_NAMES = ("ASHA", "RAVI", "MEENA", "KIRAN", "FARAH", "JOSEPH")


@dataclass(frozen=True)
class StatementShape:
    """What is needed to invent a statement: its id, the number of transactions, and the size of its file."""

    statement_id: str
    transactions: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class AccountShape:
    """One of the accounts of an entity: its number, its statements, and when one of them ended last."""

    number: int
    statements: tuple[StatementShape, ...]
    updated: datetime


def new_id(rng: random.Random) -> str:
    """Invent a UUID4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def count_of(seed: int, shape: StatementShape) -> int:
    """Return the number of transactions of a statement."""
    if shape.transactions is not None:
        return shape.transactions
    return random.Random(f"{seed}/count/{shape.statement_id}").randint(28, 60)


@lru_cache(maxsize=8192)
def account_of(seed: int, entity_id: str, number: int) -> dict[str, Any]:
    """Invent a bank account of an entity; they are counted from 0. The dict is shared: do not change it."""
    rng = random.Random(f"{seed}/{_numbered('account', number)}/{entity_id}")
    return {
        "account_id": new_id(rng),
        "account_number": f"0000{rng.randrange(10**8):08d}",
        "bank": BANK,
        "ifsc": None,
        "micr": None,
        "account_category": "individual",
        "credit_limit": 0,
    }


@lru_cache(maxsize=8192)
def identity_of(seed: int, entity_id: str, number: int) -> dict[str, Any]:
    """Invent the owner of an account, who is that of all accounts of the entity. Do not change the shared dict."""
    account = account_of(seed, entity_id, number)
    rng = random.Random(f"{seed}/identity/{entity_id}")
    return {
        "account_id": account["account_id"],
        "account_number": account["account_number"],
        "account_category": account["account_category"],
        "credit_limit": account["credit_limit"],
        "name": f"{rng.choice(_FIRST_NAMES)} SAMPLE",
        "address": f"{rng.randint(1, 99)} EXAMPLE ROAD, NOWHERE 000000",
    }


@lru_cache(maxsize=256)
def transactions_of(
    seed: int, entity_id: str, number: int, shapes: tuple[StatementShape, ...], anchor: datetime
) -> dict[str, list[dict[str, Any]]]:
    """Invent the transactions of each statement of an account: one month each, with balances that add up."""
    account_id = account_of(seed, entity_id, number)["account_id"]
    balance = random.Random(f"{seed}/{_numbered('opening', number)}/{entity_id}").randint(1_000_000, 9_000_000)
    first = (anchor - timedelta(days=30 * _MONTHS_BACK)).replace(hour=0, minute=0, second=0, microsecond=0)
    transactions: dict[str, list[dict[str, Any]]] = {}
    for month, shape in enumerate(shapes):
        rng = random.Random(f"{seed}/statement/{shape.statement_id}")
        days = sorted(rng.randrange(30) for _ in range(count_of(seed, shape)))
        transactions[shape.statement_id] = rows = []
        for position, day in enumerate(days):
            channel, note, category, low, high, credit = _pick(rng, position)
            amount = rng.randint(low, high)
            # A debit above the balance becomes a credit, so that no account is overdrawn.
            credit = credit or amount > balance
            balance += amount if credit else -amount
            rows.append(
                {
                    "hash": f"{rng.getrandbits(128):032x}",
                    "account_id": account_id,
                    "statement_id": shape.statement_id,
                    "date": f"{first + timedelta(days=30 * month + day):%Y-%m-%d %H:%M:%S}",
                    "transaction_type": "credit" if credit else "debit",
                    "transaction_channel": channel,
                    "transaction_note": note,
                    "category": category,
                    "merchant_category": "",
                    "description": {"Salary": "salary", "Loan": "lender_transaction"}.get(category, ""),
                    "amount": amount / 100,
                    "balance": balance / 100,
                }
            )
    return transactions


def _numbered(name: str, number: int) -> str:
    # The number stands before the entity's id, which may be any text, so that no two accounts are alike.
    return f"{name} {number}" if number else name


def _pick(rng: random.Random, position: int) -> tuple[str, str, str, int, int, bool]:
    monthly = (
        ("net_banking_transfer", "NEFT/EXAMPLE INDUSTRIES SALARY", "Salary", 4_500_000, 4_500_000, True),
        ("net_banking_transfer", "ACH/IMAGINARY LANDLORD RENT", "Rent", 1_500_000, 1_500_000, False),
        ("auto_debit_payment", "ACH/SAMPLE FINANCE EMI", "Loan", 620_000, 620_000, False),
    )
    if position < len(monthly):
        return monthly[position]
    if rng.random() < 0.15:  # noqa: PLR2004 - the share of incoming transfers
        return (*_INCOMING, True)
    return (*rng.choice(_SPENDING), False)
