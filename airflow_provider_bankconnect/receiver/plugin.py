"""What Airflow's API server mounts. Every Airflow process imports this: the app comes with the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_bankconnect.receiver.address import PREFIX, is_supported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

# Airflow's access log leaves this path out: a triggerer asks once a second, and no one reads so many lines.
_NOT_LOGGED: Final = "/api/v2/monitor/health"


class Doorbell:
    """The app, which hides its paths from Airflow's access log: in them is the token."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer a request."""
        if self._app is None:
            from airflow_provider_bankconnect.receiver.app import make_app  # noqa: PLC0415 - see above

            self._app = make_app()
        inner = dict(scope)
        # Of a request, or of a WebSocket, which is refused: the server tells of that too.
        path = f"{PREFIX}/***"
        scope.update(path=path, raw_path=path.encode(), query_string=b"")

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200 and scope["method"] == "GET":  # noqa: PLR2004
                scope["path"] = _NOT_LOGGED
            await send(message)

        await self._app(inner, receive, sending)


class BankConnectPlugin(AirflowPlugin):
    """Mounts the doorbell, on an Airflow that can have one."""

    name = "bankconnect"
    fastapi_apps = [{"app": Doorbell(), "url_prefix": PREFIX, "name": "BankConnect doorbell"}] if is_supported() else []
