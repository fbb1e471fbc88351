"""`make bench-reports`: BankConnectReportToStorageOperator beside a loop that fetches one report after another.

A customer has 1,000 accounts, and so 1,000 Excel reports of 1 MiB. The sandbox answers each request 50 ms later, from a
process of its own. The loop is what people write: it asks the hook for the links, and fetches each with the hook's
session, which keeps its connection. Both write to a local folder. The processes run in turns; memory is the peak of
each, beside a process that writes one report.
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
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HOME: Final = Path(__file__).resolve().parent.parent / ".cache" / "bench" / "reports"
ENTITY: Final = "customer-1"
LATENCY: Final = 0.05
FILE_BYTES: Final = 2**20
FASTER: Final = 6.0
MOST_MIB: Final = 64.0
MIB: Final = 2**20


def main() -> int:
    """Measure, and print a table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 reports, and one round")
    parser.add_argument("--run", choices=["serve", *KINDS], help=argparse.SUPPRESS)
    parser.add_argument("--reports", type=int, default=1000, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == "serve":
        return serve(options.reports)
    if options.run:
        return run(options.run)
    return measure(100 if options.quick else 1000, 1 if options.quick else 3)


def measure(reports: int, rounds: int) -> int:
    """Run the sandbox, and all processes in turns."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    me = [sys.executable, "-W", "ignore", str(Path(__file__).resolve())]
    command = [*me, "--run", "serve", "--reports", str(reports)]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sandbox:
        try:
            connection = (sandbox.stdout or sys.stdin).readline()
            environment = os.environ | {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": connection, "AIRFLOW_HOME": str(HOME)}
            # The sandbox makes each workbook once.
            for number, kind in enumerate(["operator", *list(KINDS) * rounds]):
                done = subprocess.run(
                    [*me, "--run", kind], env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(done.stderr[-3000:], file=sys.stderr)
                    return 2
                result = json.loads(done.stdout.splitlines()[-1])
                print(f"{kind:<9} {result['files']:5} files in {result['seconds']:6.1f} s", file=sys.stderr, flush=True)
                if number:
                    found[kind].append(result)
        finally:
            sandbox.terminate()
            shutil.rmtree(HOME, ignore_errors=True)
    return report(found, reports)


def report(found: dict[str, list[dict[str, float]]], reports: int) -> int:
    """Print the results; return 1 if a goal is missed."""
    seconds = {kind: statistics.median(one["seconds"] for one in results) for kind, results in found.items()}
    memory = {kind: max(one["mib"] for one in results) for kind, results in found.items()}
    cpu = {kind: statistics.median(one["cpu"] for one in results) for kind, results in found.items()}
    print(
        f"\n{reports:,} reports of 1 MiB, {LATENCY * 1000:.0f} ms later each, medians of {len(found['loop'])} rounds\n"
    )
    print("| | seconds | CPU seconds | peak memory, MiB |\n|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {seconds[kind]:.1f} | {cpu[kind]:.1f} | {memory[kind]:.0f} |")
    faster, more = seconds["loop"] / seconds["operator"], memory["operator"] - memory["idle"]
    print(f"\nfaster than the loop: {faster:.1f} times (at least {FASTER:.0f})")
    print(f"memory above the idle task: {more:.0f} MiB (at most {MOST_MIB:.0f})")
    return 0 if faster >= FASTER and more <= MOST_MIB else 1


def serve(reports: int) -> int:
    """Run the sandbox until the end of its input."""
    from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement  # noqa: PLC0415

    usual: dict[str, Any] = {"entity_id": ENTITY, "mode": "pdf", "after": -60, "transactions": 5}
    with Sandbox() as box:
        box.play(Statement(**usual, statement_id="small", account=reports))
        for number in range(reports):
            box.play(Statement(**usual, statement_id=f"s{number}", account=number, file_bytes=FILE_BYTES))
        box.fault(Fault(kind="delay", seconds=LATENCY))
        print(box.connection_json, flush=True)
        sys.stdin.read()
    return 0


def run(kind: str) -> int:
    """Be one of the measured processes: write the reports, and print what it took."""
    folder = HOME / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write = KINDS[kind](folder)
    before, began = os.times(), time.monotonic()
    write()
    seconds, after = time.monotonic() - began, os.times()
    kept = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    result = {
        "seconds": seconds,
        "cpu": after.user + after.system - before.user - before.system,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "files": len(kept),
        "bytes": sum(kept),
    }
    print(json.dumps(result))
    return 0


def operator(folder: Path, *, what: str = "xlsx", account_id: str | None = None) -> Callable[[], object]:
    """Return the work of the operator."""
    from airflow_provider_bankconnect.operators.bankconnect import (  # noqa: PLC0415
        BankConnectReportToStorageOperator,
    )

    task = BankConnectReportToStorageOperator(
        task_id="keep", entity_id=ENTITY, path=f"file://{folder}", what=[what], account_id=account_id
    )
    context: Any = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="keep", map_index=-1)}
    return lambda: task.execute(context)


def idle(folder: Path) -> Callable[[], object]:
    """Return the work of a task that keeps one small report."""
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    with BankConnectHook() as hook:
        account = next(one.account_id for one in hook.get_pdfs(ENTITY) if one.statement_id == "small")
    return operator(folder, account_id=account)


def loop(folder: Path) -> Callable[[], object]:
    """Return the work of a loop."""
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    def write() -> None:
        with BankConnectHook() as hook:
            for one in hook.get_reports(ENTITY):
                with (
                    hook.get_conn().get(one.link, stream=True) as answer,
                    (folder / f"{one.account_id}.xlsx").open("wb") as file,
                ):
                    answer.raise_for_status()
                    for piece in answer.iter_content(MIB):
                        file.write(piece)

    return write


KINDS: Final[dict[str, Callable[[Path], Callable[[], object]]]] = {"idle": idle, "loop": loop, "operator": operator}


if __name__ == "__main__":
    sys.exit(main())
