"""Sends many POSTs, each at its time, and measures the answers."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Answer:
    """One POST: its HTTP status, 0 for none; seconds from sending it, and from when it was due, to the answer's end."""

    status: int
    seconds: float
    since_due: float


def post(
    requests: Sequence[tuple[str, object]],
    *,
    over: float,
    in_flight: int,
    ca_file: str,
    headers: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Send JSON, evenly spread over so many seconds, with at most so many requests in flight, on open connections.

    Stop, and return the answers so far, when as many requests as may be in flight were not answered.
    """
    return asyncio.run(_post(requests, over, in_flight, ssl.create_default_context(cafile=ca_file), headers or {}))


async def _post(
    requests: Sequence[tuple[str, object]],
    over: float,
    in_flight: int,
    context: ssl.SSLContext,
    headers: Mapping[str, str],
) -> list[Answer]:
    slots = asyncio.Semaphore(in_flight)
    connector = aiohttp.TCPConnector(limit=in_flight, ssl=context)
    # No sender of webhooks waits longer.
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        began = time.monotonic()
        unanswered = 0

        async def one(number: int, url: str, body: object) -> Answer | None:
            nonlocal unanswered
            due = began + over * number / len(requests)
            await asyncio.sleep(due - time.monotonic())
            async with slots:
                if unanswered >= in_flight:
                    return None
                sent = time.monotonic()
                try:
                    async with session.post(url, json=body) as answer:
                        await answer.read()
                        status = answer.status
                except (aiohttp.ClientError, TimeoutError):
                    status = 0
                    unanswered += 1
            now = time.monotonic()
            return Answer(status, now - sent, now - due)

        answers = await asyncio.gather(*(one(number, *request) for number, request in enumerate(requests)))
    return [answer for answer in answers if answer is not None]
