"""A second API server: reads a line from stdin, posts webhooks to its own receiver, and prints the counted answers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter

from receivers import Caller, api_server, statement


async def main() -> None:
    """Post the webhooks of ``sys.argv[1]`` statements at once, each twice."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    caller, count = Caller(api_server()), int(sys.argv[1])
    await caller.post(statement(), token="wrong")
    print("ready", file=answers)
    sys.stdin.readline()
    posts = [caller.post(statement(statement_id=str(number % count))) for number in range(2 * count)]
    outcomes = Counter(json.dumps(answer.json()) for answer in await asyncio.gather(*posts))
    print(json.dumps(outcomes), file=answers)


if __name__ == "__main__":
    asyncio.run(main())
