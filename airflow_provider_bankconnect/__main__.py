"""`python -m airflow_provider_bankconnect explain`: ask BankConnect now, and print a gate's verdict and why."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import explain
from airflow_provider_bankconnect.gate import HistoryGate, ProgressGate

if TYPE_CHECKING:
    from airflow_provider_bankconnect.gate import Gate
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook

# If a history does not pass its gate, this many of the link's entities are asked for their progress.
_MOST_ENTITIES: Final = 10
_SMALL_ANALYSIS: Final = "accounts"


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
            page = _ask(options.conn, gate)
        sys.stdout.write(page + "\n")
    except Exception as error:  # noqa: BLE001 - one line for a person, without a traceback
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _ask(conn_id: str, gate: Gate) -> str:
    # Only after the arguments were checked: importing Airflow takes seconds.
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook  # noqa: PLC0415

    # Without retries: a person waits for the result.
    with BankConnectHook(conn_id, max_retries=0) as hook:
        rows: list[Any] = []
        not_found = progress = None
        try:
            rows = hook.run(gate.ask(hook.settings.timezone))
        except api.BankConnectNotFoundError as error:
            not_found = error
        now = datetime.now(UTC)
        if not_found is not None or _is_not_passed(gate, rows, now):
            progress = _entity_progress(hook, gate, not_found)
        page = explain(gate, rows, now, progress)
        return page if not_found is None else f"{page}\n\nBankConnect said: {not_found}."


def _is_not_passed(gate: Gate, rows: list[Any], now: datetime) -> bool:
    try:
        return isinstance(gate, HistoryGate) and gate.judge(rows, now).state != "passed"
    except api.BankConnectTimezoneError:
        return False


def _entity_progress(
    hook: BankConnectHook, gate: Gate, not_found: api.BankConnectNotFoundError | None
) -> dict[str, list[api.StatementProgress]] | None:
    """Return the progress of the link's entities: a history may lack what sent no webhook. None: no answer."""
    # For a gate without a link a random one: then it only matters whether there is an answer.
    link_id = gate.expectation.link_id or str(uuid.uuid4())
    try:
        entities = hook.get_entities(link_id)[:_MOST_ENTITIES]
    except api.BankConnectNotFoundError as error:
        if not_found is None:
            return None
        answers = f"BankConnect answers 404 to all calls ({not_found}; {error})"
        check = f"Is the path in the connection's host right ({hook.settings.base_url})?"
        raise api.BankConnectNotFoundError(f"{answers}. {check}") from None
    except api.BankConnectError:
        return None
    try:
        return {entity_id: hook.get_progress(entity_id, _SMALL_ANALYSIS) for entity_id in entities}
    except api.BankConnectError:
        return None


def _gate(options: argparse.Namespace) -> Gate:
    history_only = {"--since": options.since, "--failure-grace": options.failure_grace}
    if options.link is None:
        if options.entity is None:
            raise ValueError("give --link, or --entity, or both")
        if given := [name for name, value in history_only.items() if value is not None]:
            raise ValueError(f"{given[0]} goes with --link: progress has no times")
    elif options.analysis is not None:
        raise ValueError("--analysis goes with --entity alone: the payload history of a link knows no analyses")
    grace = {} if options.failure_grace is None else {"failure_grace": options.failure_grace * 60}
    wanted = {"entity_id": options.entity, "statement_id": options.statement}
    wanted["expected_statements"] = options.expected_statements
    if options.link is not None:
        return HistoryGate.parse(link_id=options.link, since=options.since, **wanted, **grace)
    return ProgressGate.parse(analysis=options.analysis or "transactions", **wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect", description="FinBox BankConnect for Apache Airflow."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "explain",
        help="ask BankConnect now, and say what a sensor would do, and why",
        description="Asks BankConnect now, and says what a sensor would do, and why. With --link it reads the link's "
        "payload history, as BankConnectWebhookPayloadSensor does; with --entity alone the entity's progress, as "
        "BankConnectProgressSensor does. Give the arguments of the sensor that puzzles you.",
        epilog="Exit code: 0 when BankConnect could be asked, whatever it said; 1 when not; 2 for wrong arguments.",
    )
    command.add_argument("--conn", default="bankconnect_default", metavar="ID", help="Airflow connection [%(default)s]")
    command.add_argument("--link", metavar="L", help="link_id")
    command.add_argument("--entity", metavar="E", help="entity_id")
    command.add_argument("--statement", metavar="S", action="append", help="statement_id; give it again for several")
    command.add_argument("--since", metavar="TIME", help="ISO 8601, naive meaning UTC; older rows do not count")
    command.add_argument("--expected-statements", metavar="N", default="1", help="[%(default)s]")
    command.add_argument("--failure-grace", metavar="MINUTES", type=float, help="failure_grace, in minutes [30]")
    command.add_argument("--analysis", metavar="NAME", help="whose progress [transactions]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
