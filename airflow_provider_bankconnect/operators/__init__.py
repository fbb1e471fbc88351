"""Operators: what a task tells BankConnect."""

from __future__ import annotations
