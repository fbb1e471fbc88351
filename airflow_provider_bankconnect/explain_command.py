"""`python -m airflow_provider_bankconnect explain`: ask BankConnect now, and print a gate's verdict and why."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from typing import TYPE_CHECKING

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.ask import ask_and_explain
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate

if TYPE_CHECKING:
    from airflow_provider_bankconnect.records import Gate


def main(arguments: list[str] | None = None) -> int:
    """Run the command: 0 when BankConnect could be asked, 1 when not, 2 for invalid arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        gate = _gate(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        # Airflow 2 logs to stdout, which is to have only the page.
        with contextlib.redirect_stdout(io.StringIO()):
            page = _explain(options.conn, gate)
        sys.stdout.write(page + "\n")
    except Exception as error:  # noqa: BLE001 - one line for a person, without a traceback
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _explain(conn_id: str, gate: Gate) -> str:
    # Only after the arguments were checked: importing Airflow takes seconds.
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    # Without retries: a person waits for the result.
    with BankConnectHook(conn_id, max_retries=0) as hook:
        return str(ask_and_explain(hook, gate))


def _gate(options: argparse.Namespace) -> Gate:
    history_only = {"--since": options.since, "--failure-grace": options.failure_grace}
    if options.link is None and options.entity is None:
        raise ValueError("give --link, or --entity, or both")
    is_progress = options.link is None and not options.customer
    if is_progress and (given := [name for name, value in history_only.items() if value is not None]):
        raise ValueError(f"{given[0]} goes with --link or --customer: progress has no times")
    if options.analysis is not None and not is_progress:
        other = "--customer always reads transactions" if options.customer else "a payload history has no analyses"
        raise ValueError(f"--analysis goes with --entity alone: {other}")
    wanted = {"entity_id": options.entity, "statement_id": options.statement}
    wanted["expected_statements"] = options.expected_statements
    if is_progress:
        return ProgressGate.parse(analysis=options.analysis or "transactions", **wanted)
    wanted |= {"link_id": options.link, "since": options.since}
    if options.failure_grace is not None:
        wanted["failure_grace"] = options.failure_grace * 60
    return CustomerGate.parse(**wanted) if options.customer else HistoryGate.parse(**wanted)


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect explain",
        description="Asks BankConnect now, and says what a sensor would do, and why. With --link it reads the link's "
        "payload history, as BankConnectWebhookPayloadSensor does; with --entity alone the entity's progress, as "
        "BankConnectProgressSensor does; with --customer both records, as BankConnectStatementSensor does. Give the "
        "arguments of the sensor that puzzles you.",
        epilog="Exit code: 0 when BankConnect could be asked, whatever it said; 1 when not; 2 for wrong arguments.",
    )
    command.add_argument("--conn", default="bankconnect_default", metavar="ID", help="Airflow connection [%(default)s]")
    command.add_argument("--link", metavar="L", help="link_id")
    command.add_argument("--entity", metavar="E", help="entity_id")
    command.add_argument(
        "--customer",
        action="store_true",
        help="as BankConnectStatementSensor: both records of --link, --entity, or both",
    )
    command.add_argument("--statement", metavar="S", action="append", help="statement_id; give it again for several")
    command.add_argument("--since", metavar="TIME", help="ISO 8601, naive meaning UTC; older rows do not count")
    command.add_argument("--expected-statements", metavar="N", default="1", help="[%(default)s]")
    command.add_argument("--failure-grace", metavar="MINUTES", type=float, help="failure_grace, in minutes [30]")
    analyses = ", ".join(api.ANALYSES)
    command.add_argument("--analysis", metavar="NAME", help=f"whose progress: {analyses} [transactions]")
    return command
