"""Sensors: gates that wait for BankConnect."""

from __future__ import annotations
