"""The bare poll loop in a process without a triggerer: the least that polling can cost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time

from bench_triggers import bare_wait, open_session


async def main(waits: int, interval: float) -> None:
    """Run all waits, and print when each ends."""
    vendor = json.loads(os.environ["BENCH_VENDOR"])
    session = open_session(vendor)

    async def wait(name: str) -> None:
        await asyncio.sleep(random.random() * interval)
        await bare_wait(session, vendor["host"], name, interval)
        print(json.dumps([name, time.time()]), flush=True)

    async with session:
        await asyncio.gather(*(wait(f"bench-{number}") for number in range(waits)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
