"""Calls BankConnect in a process of its own, and says what came of it and how much memory that took.

Reads a hook's kind and connections as JSON from stdin; prints a list of objects.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
from pathlib import Path

from airflow_provider_bankconnect.api import BankConnectError
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook


def memory(name: str) -> int:
    """MiB, of what Linux calls so."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status).group(1)) // 1024


def ask(kind: str) -> str:
    """Call, once, and say what came of it."""

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
    """Begin the peak anew before each call: it never sinks by itself."""
    given = json.load(sys.stdin)
    told = []
    for connection in given["connections"]:
        os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = connection
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = memory("VmRSS")
        came = ask(given["kind"])
        told.append({"came": came, "grew": memory("VmHWM") - before})
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
