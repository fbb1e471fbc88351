"""`python -m airflow_provider_bankconnect relay`: runs the relay, or says what is in its queue."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from airflow_provider_bankconnect.relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_bankconnect.relay.queue import Queue, Status

_EPILOG: Final = """\
environment:
  AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN   the token of Airflow; that of
                                        WEBHOOK_TOKEN_PREVIOUS is valid, too
  AIRFLOW__BANKCONNECT__API_SERVER_URL  address of Airflow's API server
  AIRFLOW__API__SSL_CA_FILE             certificates to trust there
                                        [those of the machine]
  BANKCONNECT_RELAY_TO                  receiver, rest_api or operator [receiver]
  BANKCONNECT_RELAY_DATABASE            SQLAlchemy URL
                                        [sqlite:///bankconnect-relay.db]
  BANKCONNECT_RELAY_LIMIT               most webhooks in the queue [100000]
  BANKCONNECT_RELAY_API_TOKEN           for rest_api; or the next two
  BANKCONNECT_RELAY_API_USERNAME        for rest_api
  BANKCONNECT_RELAY_API_PASSWORD        for rest_api

Exit code: 0; 1 when the queue cannot be opened; 2 for wrong arguments or settings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the relay until a signal arrives, or do what the options say."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings.read(os.environ)
        settings.context()
    except ValueError as error:
        parser.error(str(error))
    try:
        # SQLAlchemy and the web server are of an extra.
        from airflow_provider_bankconnect.relay.queue import Queue  # noqa: PLC0415
        from airflow_provider_bankconnect.relay.server import serve  # noqa: PLC0415
    except ImportError as error:
        parser.error(f"{error.name} is missing: install the package with its extra [relay]")
    try:
        queue = Queue(settings.database, settings.limit)
        queue.create()
    except Exception as error:  # noqa: BLE001 - a driver may raise anything; its text may have the URL's password
        print(f"The queue of BANKCONNECT_RELAY_DATABASE cannot be opened ({type(error).__name__})", file=sys.stderr)
        return 1
    if options.status or options.requeue:
        return _answer(queue, requeue=options.requeue)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    serve(settings, queue, host=options.host, port=options.port, certificate=options.certificate, key=options.key)
    return 0


def _answer(queue: Queue, *, requeue: bool) -> int:
    if requeue:
        print(f"{queue.requeue()} webhooks are put back")
    print(_in_words(queue.status()))
    queue.close()
    return 0


def _in_words(status: Status) -> str:
    lines = [
        f"waiting:   {status.waiting} of at most {status.limit}, the oldest for {status.oldest_seconds:.0f} s",
        *(f"           {count} of {conn_id!r}" for conn_id, count in status.connections.items()),
        f"set aside: {status.refused}",
        *(f"           {count}: {why}" for why, count in status.reasons.items()),
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_bankconnect relay",
        description="Takes BankConnect's webhooks, keeps each in a queue before it answers 200, and hands them on\n"
        "to an Airflow that the internet cannot reach.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    parser.add_argument("--port", type=int, default=8090, help="[%(default)s]")
    parser.add_argument("--certificate", metavar="FILE", help="PEM file: serve HTTPS, not HTTP")
    parser.add_argument("--key", metavar="FILE", help="PEM file with the certificate's key")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--status", action="store_true", help="say what is in the queue, and end")
    other.add_argument("--requeue", action="store_true", help="put back what was set aside, and end")
    return parser
