"""The hooks: calls to BankConnect."""

from __future__ import annotations
