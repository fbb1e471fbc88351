"""A second webhook receiver: reads a line from stdin, posts webhooks to itself, and prints the counted answers.

It is without Airflow's middlewares, which take many seconds to import and have no part in recording.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter

from receivers import Caller, statement
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.plugin import WebhookReceiver


async def main() -> None:
    """Post the webhooks of ``sys.argv[1]`` statements at once, each twice."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    app = Starlette(routes=[Mount(address.PREFIX, WebhookReceiver())])
    caller, count = Caller(app), int(sys.argv[1])
    await caller.post(statement(), token="wrong")
    print("ready", file=answers)
    sys.stdin.readline()
    posts = [caller.post(statement(statement_id=str(number % count))) for number in range(2 * count)]
    outcomes = Counter(json.dumps(answer.json()) for answer in await asyncio.gather(*posts))
    print(json.dumps(outcomes), file=answers)


if __name__ == "__main__":
    asyncio.run(main())
