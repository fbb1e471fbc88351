"""Calls BankConnect in a process of its own, and prints each result and how much memory it took.

Reads kinds of hooks, the limit of an answer and connections as JSON from stdin; prints a list of objects for each kind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
from pathlib import Path

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import BankConnectError
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook


def memory(name: str) -> int:
    """Return a field of Linux's process status, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status).group(1)) // 1024


def ask(kind: str) -> str:
    """Call once, and return the result or the error as text."""

    async def asynchronously() -> list:
        async with BankConnectAsyncHook() as hook:
            return await hook.get_webhook_payloads("L")

    try:
        if kind == "async":
            return f"{len(asyncio.run(asynchronously()))} rows"
        with BankConnectHook(max_retries=0) as hook:
            return f"{len(hook.get_webhook_payloads('L'))} rows"
    except BankConnectError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Make the calls of each kind in a fork, because the memory of earlier calls would be used again."""
    given = json.load(sys.stdin)
    api.MAX_ANSWER_BYTES = given["limit"]
    for kind in given["kinds"]:
        if not os.fork():
            print("\n" + json.dumps(measure(kind, given["connections"])), flush=True)
            os._exit(0)
        os.wait()


def measure(kind: str, connections: list[str]) -> list[dict[str, object]]:
    """Reset the peak before each call, and return what it grew by."""
    results = []
    for connection in connections:
        os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = connection
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = memory("VmRSS")
        result = ask(kind)
        results.append({"result": result, "grew": memory("VmHWM") - before})
    return results


if __name__ == "__main__":
    main()
