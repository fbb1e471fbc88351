"""The sandbox's command line: ``python -m airflow_provider_bankconnect.sandbox --help``."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import signal
import sys
import textwrap
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, get_args, get_origin

from . import __name__ as package
from .models import KINDS, Fault, Statement
from .play import PlayError, read_fault, read_file, read_statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from .box import Sandbox

_DEFAULT_STATEMENTS: Final = (
    Statement(link_id="demo-loan-4711", statement_id="", progress="failed", after=5),
    Statement(link_id="demo-loan-4711", after=20),
)
_STOPPED_BY_CTRL_C: Final = 130

_DESCRIPTION: Final = """\
A mock BankConnect server on this machine: its API over HTTPS, invented customers, webhooks, and faults on request.
It sends nothing off the machine and needs no credentials. Its timeline begins with the first request to the API.
Ctrl-C ends it."""

_EPILOG: Final = """\
examples
  A customer whose first login fails and whose statement completes after 20 seconds (the default):
    python -m {package}

  Two customers; the PDF of the second fails:
    python -m {package} --statement link=loan-1,after=10 \\
        --statement link=loan-2,after=30,mode=pdf,progress=failed,reason="Password protected"

  A customer with two accounts, and files of 1 MiB and 300 KiB:
    python -m {package} --statement link=loan-1,file_bytes=1048576 \\
        --statement link=loan-1,account=1,mode=pdf,file_bytes=307200

  A failed login of which no entity is named, in an account without transaction_status and predictors:
    python -m {package} --statement link=loan-1,entity=,statement=,progress=failed \\
        --transaction-status absent --not-enabled predictors

  The history answers 503 with Retry-After 5 three times, and one webhook in three is lost:
    python -m {package} --fault kind=status,call=webhook_payloads,status=503,retry_after=5,times=3 \\
        --fault kind=drop,probability=0.33 --seed 7

  A firewall that answers 403 twice, and a network that forgets a connection after 60 idle seconds:
    python -m {package} --fault kind=firewall,retry_after=30,times=2 --fault kind=forget,seconds=60

  Two interim answers before each answer, and a header that names no compression (a comma in a value is \\,):
    python -m {package} --fault kind=interim,count=2 --fault 'kind=encoding,content_encoding=identity\\, identity'

  Of the two addresses of localhost, one answers no connection:
    python -m {package} --silent-address ::1

  Statements and faults from a file (--play day.toml):
    [[statement]]
    link_id = "loan-1"
    after = 10
    later = {{ identity = 30 }}     # the identity analysis completes 30 seconds after the statement

    [[fault]]
    kind = "delay"
    call = "transactions"
    seconds = 3.5

fields of a statement (link, entity and statement are short for the ids)
{statement}
  A statement that names a link and an entity adds the entity to the link. A statement that names only a link is one
  of the link's first entity, or of a new one if the link has none.

kinds of faults
{kinds}

fields of a fault
{fault}

control calls: from this machine only, on the same port, without keys
  POST   /sandbox/statements   add a statement: its fields as a JSON object
  POST   /sandbox/faults       add a fault: its fields as a JSON object; GET lists the faults, DELETE clears them
  POST   /sandbox/webhooks     send this JSON object to the registered endpoint, as a forged webhook
  GET    /sandbox/requests     list the requests received (?call=webhook_payloads), without the keys
  GET    /sandbox/deliveries   list the webhooks sent, with their outcomes
  POST   /sandbox/inbox        a webhook endpoint that you can register; GET lists the webhooks it received
  GET    /sandbox/files/...    fetch a report or PDF by its link: any host, without keys, for one hour

  curl --cacert CA_FILE https://localhost:8443/sandbox/faults -d '{{"kind": "reset", "times": 2}}'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox until SIGINT, SIGTERM or SIGHUP, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        statements, faults = _read_play(options)
    except PlayError as error:
        parser.error(str(error))
    try:
        from .box import Sandbox  # noqa: PLC0415 - --help and wrong options work without the extra
    except ModuleNotFoundError as error:
        return _give_up(f"the sandbox needs {error.name!r}: install the package with its extra [sandbox]")
    try:
        box = Sandbox(
            api_key=options.api_key,
            server_hash=options.server_hash,
            statements=statements,
            faults=faults,
            # A person takes a minute to paste the connection and to start a DAG.
            waits_for_request=True,
            seed=options.seed,
            timezone=options.timezone,
            history_omits_unsent=options.history_omits_unsent,
            unknown_link=options.unknown_link,
            transaction_status=options.transaction_status,
            not_enabled=options.not_enabled,
            host=options.host,
            port=options.port,
            silent_address=options.silent_address,
            on_event=_log,
        )
    except ValueError as error:
        parser.error(str(error))
    stop = _handle_signals()
    try:
        box.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _give_up(f"port {options.port} on {options.host} is in use: choose another with --port, or --port 0")
        if error.errno is None:
            return _give_up(str(error))
        return _give_up(f"cannot listen on {options.host}, port {options.port}: {error.strerror}")
    try:
        _print_start(box, options, statements, faults)
        stop.event.wait()
    except OSError as error:
        return _give_up(f"cannot write {error.filename}: {error.strerror}")
    finally:
        box.stop()
        _remove(options.connection_file)
    _log("stopped")
    return _STOPPED_BY_CTRL_C if stop.signal == signal.SIGINT else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sandbox: {' '.join(message.split())} (see --help)\n")


class _Stop:
    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None

    def __call__(self, number: int, _: object) -> None:
        self.signal = number
        self.event.set()


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(_in_columns(kind, what) for kind, what in KINDS.items())
    epilog = _EPILOG.format(package=package, statement=_fields(Statement), kinds=kinds, fault=_fields(Fault))
    parser = _Parser(
        prog=f"python -m {package}",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="localhost", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8443, help="port to listen on; 0 for any free one (default: %(default)s)")
    add(
        "--silent-address",
        metavar="ADDRESS",
        help="one address of localhost, ::1 or 127.0.0.1, answers no connection; the other one works",
    )
    add("--statement", action="append", default=[], metavar="FIELD=VALUE,...", help="add a statement; repeatable")
    add("--fault", action="append", default=[], metavar="FIELD=VALUE,...", help="add a fault; repeatable")
    add("--play", type=Path, metavar="FILE", help="read statements and faults from a TOML file")
    add("--seed", type=int, default=0, help="seed of the invented customers and of the faults (default: 0)")
    add("--timezone", default="UTC", metavar="ZONE", help="zone of the payloads' date_time (default: %(default)s)")
    add("--history-omits-unsent", action="store_true", help="omit statements without a webhook from the history")
    add(
        "--unknown-link",
        choices=("empty", "404"),
        default="empty",
        help="answer to the history of an unknown link (default: %(default)s)",
    )
    add(
        "--transaction-status",
        choices=("sent", "absent", "ahead"),
        default="sent",
        help="what identity tells about the transactions: their state, nothing, or too early that they are over "
        "(default: %(default)s)",
    )
    add(
        "--not-enabled",
        action="append",
        default=[],
        metavar="CALL",
        help="answer 403 to this call, such as predictors; repeatable",
    )
    add("--api-key", metavar="KEY", help="the API Key that requests must carry (default: an invented one)")
    add("--server-hash", metavar="KEY", help="the Server Hash that requests must carry (default: an invented one)")
    add(
        "--ca-file",
        type=Path,
        metavar="PATH",
        help="write the certificate to trust here; the printed connection names this file",
    )
    add("--connection-file", type=Path, metavar="PATH", help="once ready, write the Airflow connection here, as JSON")
    return parser


def _read_play(options: argparse.Namespace) -> tuple[list[Statement], list[Fault]]:
    statements, faults = read_file(options.play) if options.play else ([], [])
    statements += [read_statement(text) for text in options.statement]
    faults += [read_fault(text) for text in options.fault]
    return statements or ([] if options.play else list(_DEFAULT_STATEMENTS)), faults


def _print_start(
    box: Sandbox, options: argparse.Namespace, statements: Sequence[Statement], faults: Sequence[Fault]
) -> None:
    ca_file = box.ca_file
    if options.ca_file:
        options.ca_file.write_text(box.ca_pem, encoding="ascii")
        ca_file = str(options.ca_file.resolve())
    connection = json.dumps(box.connection_with(ca_file))
    lines = [
        f"BankConnect sandbox at {box.url}",
        f"Webhook endpoint that you can register, with allow_private_host=True: {box.inbox_url}",
        "For Airflow:",
        f"  export AIRFLOW_CONN_BANKCONNECT_DEFAULT={shlex.quote(connection)}",
        "Timeline, in seconds from the first request:",
        *(f"  {_describe_statement(one)}" for one in sorted(statements, key=lambda one: one.after)),
        *(f"  fault: {_describe_fault(one)}" for one in faults),
        *([f"  {options.silent_address} answers no connection"] if options.silent_address else []),
        "Ctrl-C ends it.",
    ]
    print("\n".join(lines), flush=True)
    if options.connection_file:
        # Replaced atomically, because a script may wait for this file; mode 600, because it holds the keys.
        draft = options.connection_file.with_name(f"{options.connection_file.name}.{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(connection)
        draft.replace(options.connection_file)


def _describe_statement(one: Statement) -> str:
    entity = "(new)" if one.entity_id is None else one.entity_id or "(none)"
    who = f"link {one.link_id}" if one.link_id else f"entity {entity}"
    what = "a login" if one.statement_id == "" else f"a statement ({one.mode})"
    return f"{one.after:6.1f}  {who}: {what} {one.progress}"


def _describe_fault(one: Fault) -> str:
    return ", ".join(f"{name} {value}" for name, value in one.model_dump(exclude_defaults=True).items())


def _fields(model: type[BaseModel]) -> str:
    lines = []
    for name, field in model.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        text = f"{field.description}: {', '.join(choices)}" if choices else field.description or ""
        lines.append(_in_columns(name, text))
    return "\n".join(lines)


def _in_columns(name: str, text: str) -> str:
    return "\n".join(textwrap.wrap(f"  {name:<18} {text}", 110, subsequent_indent=" " * 21))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _handle_signals() -> _Stop:
    stop = _Stop()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # A closed terminal; nohup ignores it.
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, stop)
    return stop


def _log(event: str) -> None:
    # A closed pipe or terminal must not stop the server.
    with suppress(OSError):
        print(f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3], event, flush=True)


def _remove(connection_file: Path | None) -> None:
    if connection_file is not None:
        connection_file.unlink(missing_ok=True)


def _give_up(problem: str) -> int:
    print(f"sandbox: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
