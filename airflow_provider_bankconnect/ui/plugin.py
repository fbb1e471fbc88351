"""The plugin that adds the page and the link. Every Airflow process imports it; the app loads at the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_bankconnect.ui.link import PREFIX, BankConnectExplainLink, address_of, is_supported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping


class Page:
    """The page's app, which is imported when somebody opens the page."""

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
            from airflow_provider_bankconnect.ui.app import make_app  # noqa: PLC0415 - see above

            self._app = make_app()
        await self._app(scope, receive, send)


_MOUNT: Final = {"app": Page(), "url_prefix": PREFIX, "name": "BankConnect page"}
# Without a url_route it opens in a tab of its own. In the frame that a url_route opens, links to Airflow's own pages
# are blocked.
_VIEW: Final = {
    "name": "BankConnect",
    "href": address_of(""),
    "icon": address_of("static/icon.svg"),
    "icon_dark_mode": address_of("static/icon-dark.svg"),
    "destination": "nav",
    "category": "browse",
}


class BankConnectPagePlugin(AirflowPlugin):
    """Adds the page "BankConnect" to the menu Browse, and a link to it to each task of our sensors."""

    name = "bankconnect_page"
    fastapi_apps = [_MOUNT] if is_supported() else []
    external_views = [_VIEW] if is_supported() else []
    operator_extra_links = [BankConnectExplainLink()] if is_supported() else []
