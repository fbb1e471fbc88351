"""An API server for the browser, on the database of an Airflow home."""

from __future__ import annotations

import json
import socket
import urllib.request
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from homes import Home


@contextmanager
def api_server(
    factory: pytest.TempPathFactory,
    *,
    path: str = "",
    prepare: Callable[[Home], None] = lambda _: None,
    **settings: str,
) -> Iterator[Home]:
    """Run an API server; its address is the home's ``origin``.

    :param path: that of its ``base_url``.
    :param prepare: called with the home before the server starts.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = templates.new_home(
        factory,
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__BASE_URL=f"http://127.0.0.1:{port}{path}",
        AIRFLOW__API__WORKERS="1",
        **settings,
    )
    home.origin = f"http://127.0.0.1:{port}{path}"
    prepare(home)
    with home.job("api-server") as server:
        server.until(lambda: answers(f"{home.origin}/api/v2/version"))
        yield home


def set_passwords(home: Home, **passwords: str) -> None:
    """Set the passwords of the users of Airflow's simple auth manager."""
    file = home.path / "simple_auth_manager_passwords.json.generated"
    file.write_text(json.dumps(passwords), encoding="utf-8")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - on loopback
            return response.status == 200
    except OSError:
        return False
