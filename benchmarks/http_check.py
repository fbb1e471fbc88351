"""The response check of the http provider's `HttpEventTrigger`, which imports this module anew for each answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import requests


async def has_two_statements(response: requests.Response) -> bool:
    """Return whether two statements, and all that there are, have completed."""
    progress = response.json()["progress"]
    return len(progress) >= 2 and all(item["status"] == "completed" for item in progress)
