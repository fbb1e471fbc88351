"""Operators: tasks that register a webhook endpoint or record missed webhooks."""

from __future__ import annotations
