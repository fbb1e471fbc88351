"""An ASGI app that is made at its first request: every Airflow process imports the plugins, and few serve them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping


class LazyApp:
    """Answers with the app that ``make_app()`` of a module returns.

    :param module: imported at the first request.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._app: Any = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer a request."""
        if self._app is None:
            self._app = import_module(self._module).make_app()
        await self._app(scope, receive, send)
