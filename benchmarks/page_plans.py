"""Executes what the page reads, in the environment of an Airflow, and prints each query with the tables that it scans.

Prints JSON: a list of ``{part, statement, milliseconds, scanned}``.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow import settings
from sqlalchemy import event, text

from airflow_provider_bankconnect.ui.parts import Parts

if TYPE_CHECKING:
    from collections.abc import Callable

# Tables that grow with the number of customers, or with the age of an Airflow.
LARGE: Final = (
    *("asset_event", "dagrun_asset_event", "partitioned_asset_key_log", "asset_partition_dag_run", "log"),
    *("task_instance", "trigger", "dag_run", "rendered_task_instance_fields"),
)


class Everyone:
    """A user who may see everything."""

    name = "everyone"

    @staticmethod
    def may_read_tasks(_: str) -> bool:
        """Return True."""
        return True

    @staticmethod
    def may_read_asset(_: int | None = None) -> bool:
        """Return True."""
        return True


def main() -> None:
    """Read each part of the page twice, and explain the queries of the second time."""
    with settings.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    parts: Any = Parts(Everyone())  # type: ignore[arg-type]
    reads: dict[str, Callable[[], object]] = {
        "health": parts.health,
        "webhooks": lambda: parts.webhooks(10),
        "waits": lambda: parts.waits(10),
        "webhooks, older": lambda: parts.webhooks(50, "", "2000-01-01T00:00:00+00:00~1"),
        "waits, newer": lambda: parts.waits(50, "", "5000"),
    }
    found: list[dict[str, Any]] = []
    for name, read in reads.items():
        read()
        queries: list[list[Any]] = []

        def before(*given: object, into: list[list[Any]] = queries) -> None:
            into.append([given[2], given[3], time.perf_counter()])

        def after(*_: object, into: list[list[Any]] = queries) -> None:
            into[-1][2] = time.perf_counter() - into[-1][2]

        event.listen(settings.engine, "before_cursor_execute", before)
        event.listen(settings.engine, "after_cursor_execute", after)
        problem = read()
        event.remove(settings.engine, "before_cursor_execute", before)
        event.remove(settings.engine, "after_cursor_execute", after)
        if isinstance(problem, str):
            sys.exit(f"{name}: {problem}")
        found += [{"part": name, **explained(*query)} for query in queries]
    sys.stdout.write(json.dumps(found))


def explained(statement: str, parameters: dict[str, object], seconds: float) -> dict[str, Any]:
    """Return the plan of a query in short."""
    plan = ""
    if statement.lstrip().upper().startswith(("SELECT", "WITH")):
        with settings.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters)
            plan = "\n".join(row[0] for row in rows)
            connection.execute(text("ROLLBACK"))
    scanned = [table for table in re.findall(r"Seq Scan on (\w+)", plan) if table in LARGE]
    if len(sys.argv) > 1:
        with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
            file.write(f"{statement}\n\n{plan}\n\n\n")
    return {"statement": statement, "milliseconds": round(seconds * 1000, 1), "scanned": scanned}


if __name__ == "__main__":
    main()
