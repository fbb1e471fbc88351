"""Sessions for requests inside a network: of tasks and the relay to the webhook receiver, and of tasks to a relay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter

from airflow_provider_bankconnect.receiver import names

if TYPE_CHECKING:
    import ssl


class ContextAdapter(HTTPAdapter):
    """Has one TLS context for all connections, those through a proxy too."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as in requests
        """Make the pool of direct connections."""
        super().init_poolmanager(*arguments, **more, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401
        """Return the pool of connections through a proxy."""
        return super().proxy_manager_for(proxy, **more, ssl_context=self._context)


def plain_session(context: ssl.SSLContext) -> requests.Session:
    """Return a session that takes nothing from the environment."""
    session = requests.Session()
    # The environment's proxies are for outside addresses, and .netrc would replace the Authorization header.
    session.trust_env = False
    session.mount("https://", ContextAdapter(context))
    return session


def internal_session(token: str, context: ssl.SSLContext) -> requests.Session:
    """Return a session whose requests have the internal token of a webhook token."""
    session = plain_session(context)
    session.headers["Authorization"] = f"Bearer {names.internal_token(token)}"
    return session
