"""Hooks: BankConnect, called."""

from __future__ import annotations
