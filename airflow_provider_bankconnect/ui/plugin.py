"""The plugin that adds the page and the link. Every Airflow process imports it; the app loads at the first request."""

from __future__ import annotations

from typing import Final

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_bankconnect.lazy_app import LazyApp
from airflow_provider_bankconnect.ui.link import PREFIX, BankConnectExplainLink, address_of, is_supported

_APP: Final = LazyApp("airflow_provider_bankconnect.ui.app")
_MOUNT: Final = {"app": _APP, "url_prefix": PREFIX, "name": "BankConnect page"}
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
