"""`python -m airflow_provider_bankconnect explain`: ask BankConnect now, and say what a gate would say, and why."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import explain
from airflow_provider_bankconnect.gate import Expectation, HistoryGate, ProgressGate

if TYPE_CHECKING:
    from airflow_provider_bankconnect.gate import Gate


def main(arguments: list[str] | None = None) -> int:
    """Run the command: 0 when BankConnect could be asked, 1 when not, 2 for arguments that cannot be meant."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        gate = _gate(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        sys.stdout.write(_ask(options.conn, gate) + "\n")
    except Exception as error:  # noqa: BLE001 - a person reads it: what was wrong, and no traceback
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def _ask(conn_id: str, gate: Gate) -> str:
    # Not before the arguments are right: importing Airflow takes seconds.
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    with BankConnectHook(conn_id) as hook:
        try:
            rows: list[Any] = hook.run(gate.ask(hook.settings.timezone))
            return explain(gate, rows, datetime.now(UTC))
        except api.BankConnectNotFoundError as error:
            return f"{explain(gate, [], datetime.now(UTC))}\nBankConnect said: {error}"


def _gate(options: argparse.Namespace) -> Gate:
    expectation = Expectation.parse(
        link_id=options.link,
        entity_id=options.entity,
        statement_id=options.statement,
        since=options.since,
        expected_statements=options.expected_statements,
    )
    if options.link is not None:
        return HistoryGate(expectation)
    return ProgressGate(expectation, options.analysis)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect", description="FinBox BankConnect for Apache Airflow."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "explain",
        help="ask BankConnect now, and say what a gate would say, and why",
        description="Asks BankConnect now, and says what a gate would say, and why. With --link it reads the link's "
        "payload history, as BankConnectWebhookPayloadSensor does; with --entity alone the entity's progress, as "
        "BankConnectProgressSensor does. Give the arguments of the sensor that puzzles you.",
    )
    command.add_argument("--conn", default="bankconnect_default", metavar="ID", help="Airflow connection [%(default)s]")
    command.add_argument("--link", metavar="L", help="link_id")
    command.add_argument("--entity", metavar="E", help="entity_id")
    command.add_argument("--statement", metavar="S", action="append", help="statement_id; give it again for several")
    command.add_argument("--since", metavar="TIME", help="ISO 8601, naive meaning UTC; older rows do not count")
    command.add_argument("--expected-statements", metavar="N", default="1", help="[%(default)s]")
    command.add_argument("--analysis", default="transactions", help="whose progress [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
