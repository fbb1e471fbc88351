"""The page's app: who asks, what they may see, and which parts of the page they get.

Airflow does not authenticate the requests to a plugin's app: each route here does. A GET changes nothing, and asks
nothing of BankConnect.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlencode

import jinja2
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.routing import Route

from airflow_provider_bankconnect import __version__
from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.ui import access, words
from airflow_provider_bankconnect.ui.checks import Checks
from airflow_provider_bankconnect.ui.link import PREFIX
from airflow_provider_bankconnect.ui.parts import Parts
from airflow_provider_bankconnect.ui.webhooks import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_bankconnect.ui.access import Reader

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_FOLDER: Final = Path(__file__).parent
_STATIC: Final = {
    "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml", "icon-dark.svg": "image/svg+xml",
}  # fmt: skip
_OVERVIEW: Final = 10
_PAGE: Final = 50
# A part of the page that takes longer is left out.
_PART_SECONDS: Final = 8.0
# In threads of its own: the API server has about forty for all of Airflow, and a slow database would hold them.
# Each may hold two of the connections to the database, of which a process has fifteen.
_MOST_THREADS: Final = 4
_MOST_FORM_BYTES: Final = 64 * 1024
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class _LoginRequired(Exception):  # noqa: N818 - no error, but a way to the login
    """Nobody is logged in."""


def make_app() -> Starlette:
    """Return the app that is mounted at the plugin's prefix."""
    app = Starlette(
        routes=[
            Route("/", _overview, methods=["GET"]),
            Route("/webhooks", _webhooks, methods=["GET"]),
            Route("/waits", _waits, methods=["GET"]),
            Route("/explain", _explain, methods=["GET"]),
            Route("/explain", _check, methods=["POST"]),
            Route("/static/{name}", _static, methods=["GET"]),
        ],
        exception_handlers={_LoginRequired: _to_login, HTTPException: _answer_http_error},
    )
    # A redirect without the path of base_url would lead nowhere.
    app.router.redirect_slashes = False
    app.state.threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="bankconnect-page")
    app.state.checks = Checks()
    app.state.templates = _templates()
    return app


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"age": words.age, "span": words.span, "count_of": words.count_of, "utc": _utc}
    environment.filters |= {"iso": lambda moment: moment.astimezone(UTC).isoformat(timespec="seconds")}
    environment.filters |= {"segment": lambda text: quote(str(text), safe="")}
    environment.globals |= {"version": __version__, "query": urlencode, "newest": NEWEST}
    return environment


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


async def _overview(request: Request) -> Response:
    """Answer with the health of all connections, the newest webhooks and the oldest waits."""
    parts = Parts(await _reader(request))
    health, webhooks, waits = await asyncio.gather(
        _part(request, parts.health), _part(request, parts.webhooks, _OVERVIEW), _part(request, parts.waits, _OVERVIEW)
    )
    return _render(request, "overview.html", health=health, webhooks=webhooks, waits=waits)


async def _webhooks(request: Request) -> Response:
    """Answer with the webhooks, the newest first."""
    parts = Parts(await _reader(request))
    search = _given(request, "q")
    webhooks = await _part(request, parts.webhooks, _PAGE, search, _given(request, "before"))
    return _render(request, "webhooks.html", webhooks=webhooks, search=search)


async def _waits(request: Request) -> Response:
    """Answer with the open waits, the oldest first."""
    parts = Parts(await _reader(request))
    search = _given(request, "q")
    waits = await _part(request, parts.waits, _PAGE, search, _given(request, "after"))
    return _render(request, "waits.html", waits=waits, search=search)


async def _explain(request: Request) -> Response:
    """Answer with what is known without BankConnect, and a button to ask it."""
    parts = Parts(await _reader(request))
    given = {name: _given(request, name) for name in request.query_params}
    question = await _part(request, parts.question, given)
    return _render(request, "explain.html", question=question, given=given, outcome=None)


async def _check(request: Request) -> Response:
    """Ask BankConnect now, and answer with the verdict."""
    reader = await _reader(request)
    if not access.is_own_form(request):
        raise HTTPException(403, "This form was sent by another site, and was not executed")
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or len(length) > len(str(_MOST_FORM_BYTES)) or int(length) > _MOST_FORM_BYTES:
        raise HTTPException(413, "The form is too long")
    parts, form = Parts(reader), await request.form(max_files=0, max_fields=20)
    given = {name: value.replace("\0", "") for name, value in form.items() if isinstance(value, str)}
    question = await _part(request, parts.question, given)
    outcome = await request.app.state.checks.check(reader, question)
    return _render(request, "explain.html", question=question, given=given, outcome=outcome)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404)
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(_FOLDER / "static" / name, media_type=_STATIC[name], headers=headers)


async def _part(request: Request, load: Callable[..., _T], *arguments: object) -> _T | str:
    """Return a part of the page, or the words that stand in its place."""
    try:
        threads: ThreadPoolExecutor = request.app.state.threads
        read = asyncio.get_running_loop().run_in_executor(threads, load, *arguments)
        return await asyncio.wait_for(read, _PART_SECONDS)
    except TimeoutError:
        return f"Airflow's database has not answered within {_PART_SECONDS:.0f} seconds. Try again later."
    except OperationalError:
        _log.exception("A part of the page of BankConnect cannot be shown")
        return "Airflow's database did not answer in time, or cannot be reached. Try again later, or search for less."
    except Exception as error:  # noqa: BLE001 - the other parts are shown
        _log.exception("A part of the page of BankConnect cannot be shown")
        return f"This part cannot be shown now ({type(error).__name__}). The log of the API server says more."


async def _reader(request: Request) -> Reader:
    try:
        return await access.reader_of(request)
    except HTTPException:
        raise _LoginRequired from None


def _given(request: Request, name: str) -> str:
    # PostgreSQL takes no NUL.
    return request.query_params.get(name, "").replace("\0", "").strip()


def _root(request: Request) -> str:
    """Return the path of Airflow's ``base_url``, without its final slash."""
    root: str = request.scope.get("root_path", "")
    return root.removesuffix(PREFIX)


def _render(request: Request, template: str, *, status: int = 200, **values: object) -> Response:
    page = request.app.state.templates.get_template(template).render(
        now=datetime.now(UTC),
        root=_root(request),
        here=f"{_root(request)}{PREFIX}",
        has_receiver=address.is_supported(),
        **values,
    )
    return HTMLResponse(page, status, headers=_HEADERS)


async def _to_login(request: Request, _: Exception) -> Response:
    """Send a browser to Airflow's login, and back; say so where that would lose a form."""
    root = _root(request)
    target = f"{root}{PREFIX}{request.url.path.removeprefix(f'{root}{PREFIX}')}"
    if request.method != "GET":
        text = "Your session has ended. Log in, then try again."
        link = access.login_url(root, target)
        return _render(request, "message.html", status=401, title="Not logged in", text=text, link=link)
    if request.url.query:
        target = f"{target}?{request.url.query}"
    return RedirectResponse(access.login_url(root, target), 302, headers=_HEADERS)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls this handler for no other type
    text = "There is no such page." if error.status_code == 404 else error.detail  # noqa: PLR2004
    return _render(request, "message.html", status=error.status_code, title="BankConnect", text=text, link=None)
