"""The plugin that mounts the webhook receiver. Every Airflow process imports it; the app loads at the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_bankconnect.lazy_app import LazyApp
from airflow_provider_bankconnect.receiver.address import PREFIX, is_supported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

# Airflow's access log omits this path. A triggerer's request each second would fill it.
_NOT_LOGGED: Final = "/api/v2/monitor/health"


class WebhookReceiver(LazyApp):
    """The app, with its paths hidden from Airflow's access log, because they hold the token."""

    def __init__(self) -> None:
        super().__init__("airflow_provider_bankconnect.receiver.app")

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer a request."""
        inner = dict(scope)
        # Also for a WebSocket: it is refused, but the server logs its path.
        path = f"{PREFIX}/***"
        scope.update(path=path, raw_path=path.encode(), query_string=b"")

        async def send_unlogged(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200 and scope["method"] == "GET":  # noqa: PLR2004
                scope["path"] = _NOT_LOGGED
            await send(message)

        await super().__call__(inner, receive, send_unlogged)


_MOUNT: Final = {"app": WebhookReceiver(), "url_prefix": PREFIX, "name": "BankConnect webhook receiver"}


class BankConnectPlugin(AirflowPlugin):
    """Mounts the webhook receiver where Airflow supports it."""

    name = "bankconnect"
    fastapi_apps = [_MOUNT] if is_supported() else []
