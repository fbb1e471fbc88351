"""Who asks for the page, and what they may see. Airflow does not authenticate the requests to a plugin's app."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models import resource_details
from airflow.api_fastapi.core_api.security import resolve_user_from_token
from airflow.models.dag import DagModel
from airflow.providers.common.compat.sdk import conf

if TYPE_CHECKING:
    from starlette.requests import Request

# Seconds between two checks of one user.
CHECK_SECONDS: Final = 1.0
_MOST_USERS: Final = 1000


class Reader:
    """The user of one request. What they may see is found out once; the calls may read the database."""

    def __init__(self, user: Any) -> None:  # noqa: ANN401 - each auth manager has its own
        self.user = user
        self.name = str(user.get_id())
        self.may_read_tasks = functools.cache(self._may_read_tasks)
        self.may_read_asset = functools.cache(self._may_read_asset)

    def _may_read_tasks(self, dag_id: str) -> bool:
        details: dict[str, Any] = {"id": dag_id}
        if conf.getboolean("core", "multi_team", fallback=False):
            details["team_name"] = DagModel.get_team_name(dag_id)
        return bool(
            get_auth_manager().is_authorized_dag(
                method="GET",
                access_entity=resource_details.DagAccessEntity.TASK_INSTANCE,
                details=resource_details.DagDetails(**details),
                user=self.user,
            )
        )

    def _may_read_asset(self, asset_id: int | None = None) -> bool:
        """Return whether the user may read one asset; without a number: assets at all."""
        details = None if asset_id is None else resource_details.AssetDetails(id=str(asset_id))
        return bool(get_auth_manager().is_authorized_asset(method="GET", details=details, user=self.user))

    def may_read_connection(self, conn_id: str) -> bool:
        """Return whether the user may read a connection. The page shows none: it asks with its keys."""
        details = resource_details.ConnectionDetails(conn_id=conn_id)
        return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=self.user))


async def reader_of(request: Request) -> Reader:
    """Return the user of a request: of its bearer token, or of the cookie of Airflow's UI.

    :raises fastapi.HTTPException: 401 or 403, nobody is logged in.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    token = given if scheme.lower() == "bearer" else request.cookies.get(COOKIE_NAME_JWT_TOKEN)
    return Reader(await resolve_user_from_token(token))


def login_url(root: str, target: str) -> str:
    """Return the address of Airflow's login, which leads back to ``target``.

    :param root: the path of Airflow's ``base_url``, without its final slash.
    """
    return f"{root}/api/v2/auth/login?next={quote(target, safe='')}"


def is_own_form(request: Request) -> bool:
    """Return whether a POST comes from a page of this Airflow, or from no browser."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    # A proxy may have changed the host.
    own = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback=None) or "").netloc}
    # A base_url without a host must not match the origin "null".
    return origin is None or urlsplit(origin).netloc in own - {""}


class Pace:
    """Lets each user check once in a second, in one process of the API server."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def may_check(self, user: str) -> bool:
        """Return whether the user may check now, and count it."""
        now = time.monotonic()
        if now - self._last.get(user, -CHECK_SECONDS) < CHECK_SECONDS:
            return False
        if len(self._last) >= _MOST_USERS:
            self._last = {name: at for name, at in self._last.items() if now - at < CHECK_SECONDS}
        self._last[user] = now
        return True
