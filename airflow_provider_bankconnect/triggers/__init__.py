"""Triggers: the waits of those gates, in the triggerer."""

from __future__ import annotations
