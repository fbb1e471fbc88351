"""`python -m airflow_provider_bankconnect explain`: ask BankConnect now, and print a gate's verdict and why."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import explain
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate, Records

if TYPE_CHECKING:
    from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
    from airflow_provider_bankconnect.records import Gate

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
        timezone = hook.settings.timezone
        answer: Any = Records() if isinstance(gate, CustomerGate) else []
        not_found = progress = None
        try:
            answer = hook.run(gate.ask(timezone))
        except api.BankConnectNotFoundError as error:
            not_found = error
            _refuse_wrong_path(hook, error)
        now = datetime.now(UTC)
        if isinstance(gate, HistoryGate) and _is_not_passed(gate, answer, now):
            progress = _entity_progress(hook, gate)
        page = explain(gate, answer, now, progress, timezone=timezone)
        return page if not_found is None else f"{page}\n\nBankConnect said: {not_found}."


def _refuse_wrong_path(hook: BankConnectHook, not_found: api.BankConnectNotFoundError) -> None:
    """Raise an error if the test call gets a 404 too."""
    try:
        hook.run(api.probe())
    except api.BankConnectNotFoundError as error:
        answers = f"BankConnect answers 404 to all calls ({not_found}; {error})"
        check = f"Is the path in the connection's host right ({hook.settings.base_url})?"
        raise api.BankConnectNotFoundError(f"{answers}. {check}") from None
    except api.BankConnectError:
        return


def _is_not_passed(gate: HistoryGate, rows: list[api.WebhookPayload], now: datetime) -> bool:
    try:
        return gate.judge(rows, now).state != "passed"
    except api.BankConnectTimezoneError:
        return False


def _entity_progress(hook: BankConnectHook, gate: HistoryGate) -> dict[str, list[api.StatementProgress]] | None:
    """Return the progress of the link's entities: a history may lack what sent no webhook. None: no answer."""
    try:
        entities = hook.get_entities(gate.expectation.link_id or "")[:_MOST_ENTITIES]
        return {entity_id: hook.get_progress(entity_id, _SMALL_ANALYSIS) for entity_id in entities}
    except api.BankConnectError:
        return None


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
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect", description="FinBox BankConnect for Apache Airflow."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "explain",
        help="ask BankConnect now, and say what a sensor would do, and why",
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
