"""The relay as a process that serves HTTP or HTTPS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from airflow_provider_bankconnect.relay.app import Relay

if TYPE_CHECKING:
    from airflow_provider_bankconnect.relay.queue import Queue
    from airflow_provider_bankconnect.relay.settings import Settings


def serve(settings: Settings, queue: Queue, *, host: str, port: int, certificate: str | None, key: str | None) -> None:
    """Serve until a signal arrives. There is no access log, because the path of a webhook has the token."""
    uvicorn.run(
        Relay(settings, queue).make_app(),
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
    )
