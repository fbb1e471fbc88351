"""`make bench-catch-up`: BankConnectCatchUpOperator beside a loop that reads one link after another.

BankConnect, which is the sandbox in a process of its own, answers each request 100 ms later (LATENCY=50: 50 ms). The
webhook receiver is the real one, in another process, on SQLite. One link in ten has a completed statement, which is
recorded in the first round and a duplicate from then on. The loop is what the operator was before: one link after
another through BankConnectHook, and a request to the webhook receiver for each link with a completed statement. It
reads the first links only, since each takes the same time, and its time is multiplied. The processes run in turns;
memory is the peak of each, beside a task with one link.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HOME: Final = Path(__file__).resolve().parent.parent / ".cache" / "bench" / "catch-up"
CONN_ID: Final = "bankconnect_default"
AT_ONCE: Final = 32
ONE_IN: Final = 10
FASTER: Final = 20.0
MOST_MIB: Final = 64.0
DAG: Final = f"""
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, PartitionedAssetTimetable

from airflow_provider_bankconnect.receiver.address import webhook_asset

with DAG("on_webhook", schedule=PartitionedAssetTimetable(assets=webhook_asset({CONN_ID!r}))):
    EmptyOperator(task_id="work")
"""
PREPARE: Final = """
from airflow.cli.cli_parser import get_parser

for command in (["db", "migrate"], ["dags", "reserialize"]):
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)
"""


def main() -> int:
    """Measure, and print a table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 links, and one round")
    parser.add_argument("--latency", type=float, default=100.0, help="milliseconds of an answer")
    parser.add_argument("--run", choices=["serve", "receive", *KINDS], help=argparse.SUPPRESS)
    parser.add_argument("--links", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == "serve":
        return serve(options.links, options.latency / 1000)
    if options.run == "receive":
        return receive()
    if options.run:
        return run(options.run, options.links)
    return measure(1000 if options.quick else 10_000, 1 if options.quick else 3, options.latency)


def measure(links: int, rounds: int, latency: float) -> int:
    """Run the sandbox, the webhook receiver, and all processes in turns."""
    shutil.rmtree(HOME, ignore_errors=True)
    (HOME / "dags").mkdir(parents=True)
    (HOME / "dags" / "on_webhook.py").write_text(DAG, encoding="utf-8")
    environment = os.environ | {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN": "a-token-of-the-benchmark",
    }
    me = [sys.executable, "-W", "ignore", str(Path(__file__).resolve())]
    subprocess.run([sys.executable, "-c", PREPARE], env=environment, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, HOME, ignore_errors=True)

        def start(*arguments: str) -> str:
            command = [*me, *arguments]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
            stack.callback(process.terminate)
            return str(process.stdout.readline()).strip() if process.stdout else ""

        environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = start("--run", "receive") + "/execution/"
        environment["AIRFLOW_CONN_BANKCONNECT_DEFAULT"] = start(
            "--run", "serve", "--links", str(links), "--latency", str(latency)
        )
        for kind in list(KINDS) * rounds:
            done = subprocess.run(
                [*me, "--run", kind, "--links", str(SAMPLES[kind](links))],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                print(done.stderr[-3000:], file=sys.stderr)
                return 2
            result = json.loads(done.stdout.splitlines()[-1])
            print(f"{kind:<9} {result['links']:6} links in {result['seconds']:6.1f} s: {result}", file=sys.stderr)
            found[kind].append(result)
    return report(found, links, latency)


def report(found: dict[str, list[dict[str, float]]], links: int, latency: float) -> int:
    """Print the results; return 1 if a goal is missed."""

    def median(kind: str, name: str) -> float:
        """Return the median for all links."""
        return statistics.median(links * one[name] / one["links"] for one in found[kind])

    memory = {kind: max(one["mib"] for one in results) for kind, results in found.items()}
    print(
        f"\n{links:,} links, {latency:.0f} ms later each, {AT_ONCE} at once, medians of {len(found['loop'])} rounds\n"
    )
    print("| | seconds | CPU seconds | peak memory, MiB |\n|---|---|---|---|")
    print(f"| task with one link | | | {memory['idle']:.0f} |")
    for kind in ("loop", "operator"):
        print(f"| {kind} | {median(kind, 'seconds'):.1f} | {median(kind, 'cpu'):.1f} | {memory[kind]:.0f} |")
    faster, more = median("loop", "seconds") / median("operator", "seconds"), memory["operator"] - memory["idle"]
    print(f"\nfaster than the loop: {faster:.1f} times (at least {FASTER:.0f}; {AT_ONCE} would be all)")
    print(f"memory above a task with one link: {more:.0f} MiB (at most {MOST_MIB:.0f})")
    return 0 if faster >= FASTER and more <= MOST_MIB else 1


def serve(links: int, latency: float) -> int:
    """Run the sandbox until the end of its input."""
    from airflow_provider_bankconnect.sandbox import Fault, Sandbox  # noqa: PLC0415

    with Sandbox(log_size=0) as box:
        for number in range(0, links, ONE_IN):
            box.payload(link_id=f"loan-{number}", statement_id=f"s{number}", entity_id=f"e{number}")
        box.fault(Fault(kind="delay", seconds=latency))
        connection = json.loads(box.connection_json)
        connection["extra"] = _more(connection["extra"], max_concurrency=AT_ONCE)
        print(json.dumps(connection), flush=True)
        sys.stdin.read()
    return 0


def _more(extra: Any, **more: object) -> Any:  # noqa: ANN401 - an object, or one as text
    return json.dumps(json.loads(extra) | more) if isinstance(extra, str) else extra | more


def receive() -> int:
    """Run the webhook receiver until it is ended."""
    import socket  # noqa: PLC0415

    import uvicorn  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415

    import airflow_provider_bankconnect.receiver.app  # noqa: F401, PLC0415 - not with the first request
    from airflow_provider_bankconnect.receiver import address  # noqa: PLC0415
    from airflow_provider_bankconnect.receiver.plugin import WebhookReceiver  # noqa: PLC0415

    app = FastAPI()
    app.mount(address.PREFIX, WebhookReceiver())
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([listener])
    return 0


def run(kind: str, links: int) -> int:
    """Be one of the measured processes: catch up, and print what it took."""
    catch_up = KINDS[kind]([f"loan-{number}" for number in range(links)])
    before, began = os.times(), time.monotonic()
    numbers = catch_up()
    seconds, after = time.monotonic() - began, os.times()
    result = {
        "seconds": seconds,
        "cpu": after.user + after.system - before.user - before.system,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **numbers,
    }
    print(json.dumps(result))
    return 0


def operator(links: list[str]) -> Callable[[], dict[str, int]]:
    """Return the work of the operator."""
    from airflow_provider_bankconnect.operators.bankconnect import BankConnectCatchUpOperator  # noqa: PLC0415

    task = BankConnectCatchUpOperator(task_id="catch_up", link_ids=links)
    context: Any = {}
    return lambda: task.execute(context)


def loop(links: list[str]) -> Callable[[], dict[str, int]]:
    """Return the work of a loop."""
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415
    from airflow_provider_bankconnect.receiver.client import send_to_receiver  # noqa: PLC0415

    def catch_up() -> dict[str, int]:
        completed = 0
        with BankConnectHook(CONN_ID) as hook:
            for link_id in links:
                rows = [
                    {
                        "entity_id": row.entity_id,
                        "statement_id": row.statement_id,
                        "link_id": row.link_id,
                        "progress": row.progress,
                        "date_time": row.date_time.astimezone(UTC).isoformat(),
                    }
                    for row in hook.get_webhook_payloads(link_id)
                    if row.progress == "completed"
                ]
                completed += len(rows)
                if rows:
                    send_to_receiver(CONN_ID, rows, "record")
        return {"links": len(links), "completed": completed}

    return catch_up


KINDS: Final[dict[str, Callable[[list[str]], Callable[[], dict[str, int]]]]] = {
    "idle": operator,
    "loop": loop,
    "operator": operator,
}
# How many of the links each of them reads.
SAMPLES: Final[dict[str, Callable[[int], int]]] = {
    "idle": lambda links: min(links, 1),
    "loop": lambda links: min(links, 300),
    "operator": lambda links: links,
}


if __name__ == "__main__":
    sys.exit(main())
