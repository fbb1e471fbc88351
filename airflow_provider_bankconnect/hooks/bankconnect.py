"""BankConnect over HTTPS: two thin drivers of :mod:`airflow_provider_bankconnect.api`.

They carry bytes, and see to it that the keys go to the connection's own base URL and nowhere else.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import math
import random
import ssl
import time
import uuid
from contextvars import ContextVar
from dataclasses import replace
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import requests
import tenacity
import urllib3
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context
from yarl import URL

from airflow_provider_bankconnect import __version__, api
from airflow_provider_bankconnect.api import ConnectionSettings, WebhookMode
from airflow_provider_bankconnect.get_provider_info import get_provider_info

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from types import TracebackType
    from typing import Self

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace
    from airflow.providers.common.compat.sdk import Connection as AirflowConnection
    from typing_extensions import Buffer

T = TypeVar("T")

_log = logging.getLogger(__name__)
_HEADERS: Final = {
    "Accept": "application/json",
    # Nothing is inflated: a few kilobytes could become gigabytes.
    "Accept-Encoding": "identity",
    "User-Agent": f"airflow-provider-bankconnect/{__version__}",
}
_CHUNK_BYTES: Final = 64 * 1024
_CLOSING_SECONDS: Final = 0.02
# Longer than people poll: a kept connection saves the TLS handshake of the next poll.
_KEEP_ALIVE_SECONDS: Final = 15 * 60
# A body from this size on is read in a thread: on the event loop it would hold up every other wait.
_OFF_LOOP_BYTES: Final = 64 * 1024


class BankConnectHook(BaseHook):
    """Calls BankConnect, synchronously.

    Rate limits, server errors and connection errors are tried again, at most three times: exponential back-off with
    full jitter, and never sooner than the vendor's ``Retry-After`` (up to a minute).

    Every call raises a :class:`~airflow_provider_bankconnect.api.BankConnectError`, or ``ValueError`` for an argument
    or a connection that cannot be meant.

    :param bankconnect_conn_id: the connection with both keys.
    :param max_retries: how often a failed request is sent again.
    """

    conn_name_attr = "bankconnect_conn_id"
    default_conn_name = "bankconnect_default"
    conn_type = "bankconnect"
    hook_name = "FinBox BankConnect"

    def __init__(self, bankconnect_conn_id: str = default_conn_name, *, max_retries: int = api.MAX_RETRIES) -> None:
        super().__init__()
        self.bankconnect_conn_id = bankconnect_conn_id
        self.max_retries = max_retries

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Give Airflow before 3.2 the fields of the form, which later ones read from the provider info themselves."""
        from wtforms import IntegerField, PasswordField, StringField  # type: ignore[import-untyped] # noqa: PLC0415
        from wtforms.validators import Optional  # type: ignore[import-untyped] # noqa: PLC0415

        widgets = {}
        for name, field in _form()["conn-fields"].items():
            schema = field["schema"]
            kind = PasswordField if schema.get("format") == "password" else StringField
            # A number goes as text: IntegerField takes no half seconds.
            kind = IntegerField if "integer" in schema["type"] else kind
            widgets[name] = kind(
                field["label"], validators=[Optional()], description=field["description"], widget=_widget(kind)
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Give Airflow before 3.2 what is hidden, renamed and hinted at in the form."""
        return {name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept open between calls."""
        if "_session" in self.__dict__:
            self.__dict__.pop("_session").close()

    @functools.cached_property
    def settings(self) -> ConnectionSettings:
        """What the connection says, checked.

        :raises ValueError: names the connection and the field.
        """
        connection = self.get_connection(self.bankconnect_conn_id)
        settings = _parse(self.bankconnect_conn_id, connection, connection.extra_dejson)
        for key in settings.headers.values():
            mask_secret(key)
        return settings

    @functools.cached_property
    def _session(self) -> _Session:
        return _Session(self.settings, _ca_bundle(self.bankconnect_conn_id, self.settings))

    def get_conn(self) -> requests.Session:
        """Give the session of this hook.

        The keys ride only on requests to the connection's own base URL, and redirects are never followed.
        """
        return self._session

    def update_webhook(
        self,
        webhook_url: str,
        webhook_mode: WebhookMode | int | str = WebhookMode.NET_BANKING,
        *,
        allow_private_host: bool = False,
    ) -> None:
        """Register the account's one webhook endpoint. Source: "Updating web hook endpoint".

        :param webhook_url: absolute ``https://`` URL.
        :param webhook_mode: always sent, because leaving it out resets it.
        :param allow_private_host: take a host that is literally private, loopback or link-local.
        """
        self.run(api.update_webhook(webhook_url, webhook_mode, allow_private_host=allow_private_host))
        mode = WebhookMode.parse(webhook_mode)
        self.log.info(
            "BankConnect sends webhooks to %s now, in mode %d (%s): %s",
            URL(webhook_url).host,
            mode,
            mode.name,
            mode.silences,
        )

    def get_webhook_payloads(self, link_id: str) -> list[api.WebhookPayload]:
        """Get all webhook payloads of a link, newest first. Source: "Handling cases when ... is down"."""
        return self.run(api.get_webhook_payloads(link_id, self.settings.timezone))

    def get_progress(self, entity_id: str, analysis: str = "transactions") -> list[api.StatementProgress]:
        """Get the progress of one analysis of an entity, a row for each statement."""
        return self.run(api.get_progress(entity_id, analysis))

    def get_entities(self, link_id: str) -> list[str]:
        """Get the ids of all entities of a link, from all pages."""
        return self.run(api.get_entities(link_id))

    def get_transactions(self, entity_id: str, account_id: str | None = None) -> dict[str, Any]:
        """Get the vendor's whole answer: ``entity_id``, ``progress``, ``accounts``, ``fraud``, ``transactions``.

        :raises BankConnectNotReadyError: while that very answer's ``progress`` is empty or still going.
        """
        return self.run(api.get_transactions(entity_id, account_id))

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the payloads of a link that nobody has: it needs both keys and reads nobody's data."""
        try:
            # Without retries: somebody looks at a button.
            with BankConnectHook(self.bankconnect_conn_id, max_retries=0) as hook:
                try:
                    hook.get_webhook_payloads(str(uuid.uuid4()))
                except api.BankConnectNotFoundError:
                    # The vendor may say so of a link that nobody has. Of a list it does not: then it is the path.
                    hook.run(api.probe())
        except api.BankConnectNotFoundError:
            return True, "BankConnect answers, but with HTTP 404 to every call: check the path in the connection's host"
        except (api.BankConnectError, ValueError) as error:
            return False, str(error)
        return True, "BankConnect answers, and takes both keys"

    def run(self, call: api.Call[T]) -> T:
        """Drive a call of :mod:`airflow_provider_bankconnect.api` to its end."""
        step = api.advance(call)
        while isinstance(step, api.Request):
            step = api.advance(call, self._send_persistently(step))
        return step.value

    def _send_persistently(self, request: api.Request) -> api.Answer:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_retrying),
            stop=tenacity.stop_after_attempt(1 + self.max_retries),
            wait=_wait,
            before_sleep=self._log_retry,
            reraise=True,
        )
        return retrying(self._send, request)

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        self.log.warning("%s; trying again in %.1f s (%d of %d)", error, pause, state.attempt_number, self.max_retries)

    def _send(self, request: api.Request) -> api.Answer:
        return api.check_status(request, self._exchange(request))

    def _exchange(self, request: api.Request) -> api.Answer:
        settings, session = self.settings, self._session
        answer: api.Answer | None = None
        token = _deadline.set(time.monotonic() + settings.timeout)
        try:
            with session.request(
                request.method, f"{settings.base_url}/{request.path}", json=request.json, stream=True
            ) as response:
                answer = _answer(response.status_code, response.headers)
                body = bytearray()
                # Read so, and not as a stream, its lines between the chunks have a limit.
                while piece := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        # urllib3 lets some of the last two through: a negative length of a chunk is a ValueError of a file's.
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if answer is None or answer.status == HTTPStatus.OK:
                raise _no_answer(request, error) from None
        finally:
            _deadline.reset(token)
        return answer


class BankConnectAsyncHook:
    """Asks BankConnect from a coroutine: the reading calls of :class:`BankConnectHook`.

    An async context manager that keeps one session, with keep-alive, for its life. It does not try again: it serves
    waits, and a wait's next poll is its retry. (``aiohttp`` itself sends a GET once more where a connection was closed
    without an answer: a kept one may have been closed while it was idle.)

    :param bankconnect_conn_id: the connection with both keys.
    """

    def __init__(self, bankconnect_conn_id: str = BankConnectHook.default_conn_name) -> None:
        self.bankconnect_conn_id = bankconnect_conn_id
        self._settings: ConnectionSettings | None = None
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._retired: list[aiohttp.ClientSession] = []
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session; the next call opens another, and reads the connection anew."""
        sessions = [*self._retired, *([self._session] if self._session else [])]
        self._session, self._settings, self._retired = None, None, []
        for session in sessions:
            await session.close()
        if sessions:
            # A request that was broken off leaves a TLS connection that takes a moment to close, and a loop that ends
            # at once, as that of `airflow dags test` does, would leave its socket behind.
            await asyncio.sleep(_CLOSING_SECONDS)

    @property
    def connected(self) -> bool:
        """Whether the connection has been read, and the session is open."""
        return self._session is not None

    async def connect(self) -> ConnectionSettings:
        """Read the connection and open the session, once.

        :raises ValueError: names the connection and the field.
        """
        if self._settings is None:
            async with self._opening:
                if self._settings is None:
                    await self._open(await self._read())
        return self._settings  # type: ignore[return-value]

    async def renew(self, used: ConnectionSettings) -> ConnectionSettings:
        """Read the connection anew, and open another session if it no longer says what ``used`` says.

        Requests in flight keep the session that they began with.
        """
        async with self._opening:
            if self._settings == used:
                settings = await self._read()
                if settings != used:
                    if self._session is not None:
                        self._retired.append(self._session)
                    await self._open(settings)
        return self._settings or used

    async def _read(self) -> ConnectionSettings:
        try:
            connection = await get_async_connection(self.bankconnect_conn_id)
        except AirflowNotFoundException:
            # `airflow dags test` of 3.3 runs a trigger where only the synchronous way to Airflow's database is open.
            connection = await asyncio.to_thread(BaseHook.get_connection, self.bankconnect_conn_id)
        settings = _parse(self.bankconnect_conn_id, connection, await get_async_extra_dejson(connection))
        for key in settings.headers.values():
            # In a thread: on the event loop its call to the supervisor may be refused as a deadlock.
            await asyncio.to_thread(mask_secret, key)
        return settings

    async def _open(self, settings: ConnectionSettings) -> None:
        context = await asyncio.to_thread(_ssl_context, self.bankconnect_conn_id, settings)
        self._proxy = _proxy(settings)
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=settings.max_concurrency, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=context),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._settings = settings

    async def get_webhook_payloads(self, link_id: str) -> list[api.WebhookPayload]:
        """Get all webhook payloads of a link, newest first."""
        return await self.run(api.get_webhook_payloads(link_id, (await self.connect()).timezone))

    async def get_progress(self, entity_id: str, analysis: str = "transactions") -> list[api.StatementProgress]:
        """Get the progress of one analysis of an entity, a row for each statement."""
        return await self.run(api.get_progress(entity_id, analysis))

    async def get_entities(self, link_id: str) -> list[str]:
        """Get the ids of all entities of a link, from all pages."""
        return await self.run(api.get_entities(link_id))

    async def get_transactions(self, entity_id: str, account_id: str | None = None) -> dict[str, Any]:
        """Get the vendor's whole answer, as :meth:`BankConnectHook.get_transactions` does."""
        return await self.run(api.get_transactions(entity_id, account_id))

    async def run(self, call: api.Call[T]) -> T:
        """Drive a call of :mod:`airflow_provider_bankconnect.api` to its end."""
        step = api.advance(call)
        while isinstance(step, api.Request):
            answer = await self._send(step)
            if len(answer.body) < _OFF_LOOP_BYTES:
                step = api.advance(call, answer)
            else:
                step = await asyncio.to_thread(api.advance, call, answer)
        return step.value

    async def _send(self, request: api.Request) -> api.Answer:
        settings = await self.connect()
        if self._session is None:
            raise RuntimeError("BankConnectAsyncHook was closed while it was sending")
        # Encoded already: yarl would undo a part of it.
        url = URL(f"{settings.base_url}/{request.path}", encoded=True)
        answer: api.Answer | None = None
        _connection.set(None)
        try:
            # The keys go with the request: what is the session's own, aiohttp tells the proxy too, in clear.
            async with self._session.request(
                request.method,
                url,
                json=request.json,
                headers=settings.headers,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                answer = _answer(response.status, response.headers)
                body = bytearray()
                async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                    body += piece
                    _refuse_large(request, answer, len(body))
                answer = replace(answer, body=bytes(body))
        except BaseException as error:
            # Closed only, it would wait half a minute for the goodbye of a server that may not listen.
            if (connection := _connection.get()) is not None:
                connection.abort()
            if not isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
                raise
            if answer is None or answer.status == HTTPStatus.OK:
                raise _no_answer(request, error) from None
        return api.check_status(request, answer)


# The one that the running task's request was given last.
_connection: ContextVar[asyncio.Transport | None] = ContextVar("bankconnect_connection", default=None)


class _Connector(aiohttp.TCPConnector):
    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _connection.set(connection.transport)
        return connection


class _Keys(AuthBase):
    """Puts the keys on requests to the base URL, and on no others."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if (request.url or "").startswith(f"{self._settings.base_url}/"):
            request.headers.update(self._settings.headers)
        return request


_deadline: ContextVar[float] = ContextVar("bankconnect_deadline", default=math.inf)


class _Socket(ssl.SSLSocket):
    """Reads until the request has to be over: to ``requests`` its timeout begins anew with every byte that comes."""

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes:  # noqa: A002 - ssl's own
        left = _deadline.get() - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if left < (self.gettimeout() or math.inf):
            self.settimeout(left)
        return super().read(len, buffer)


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as requests has it
        super().init_poolmanager(*arguments, **more, ssl_context=_hurried_context())

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401
        return super().proxy_manager_for(proxy, **more, ssl_context=_hurried_context())


def _hurried_context() -> ssl.SSLContext:
    context = create_urllib3_context()
    context.sslsocket_class = _Socket
    return context


class _Session(requests.Session):
    """A session that follows no redirect, and trusts what the connection says whatever the environment says."""

    def __init__(self, settings: ConnectionSettings, ca_bundle: str | None) -> None:
        super().__init__()
        self.headers.update(_HEADERS)
        self.mount("https://", _Adapter())
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.auth = _Keys(settings)
        self._timeout = settings.timeout
        self._ca_bundle = ca_bundle

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - as requests has it
        """Send with the connection's timeout where the caller gives none."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._timeout
        return super().send(request, **kwargs)

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - requests calls it by this name
        """Find none: custom headers, and so the keys, would go along to the other host."""
        return

    def merge_environment_settings(  # type: ignore[override]
        self,
        url: str,
        proxies: MutableMapping[str, str] | None,
        stream: bool | None,  # noqa: FBT001 - requests' own
        verify: bool | str | None,  # noqa: FBT001
        cert: str | tuple[str, str] | None,
    ) -> MutableMapping[str, Any]:
        settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if self._ca_bundle is not None:
            # requests itself would let REQUESTS_CA_BUNDLE win.
            settings["verify"] = self._ca_bundle
        return settings  # type: ignore[return-value]


def _form() -> dict[str, Any]:
    """Give the one description of the connection form, the provider info's."""
    (form,) = get_provider_info()["connection-types"]
    return dict(form)


def _widget(kind: type) -> object:
    """Give the dress that Airflow 2 puts on its fields; Airflow 3.0 may have wtforms without it, and needs none."""
    try:
        from flask_appbuilder import fieldwidgets  # type: ignore[import-not-found] # noqa: PLC0415
    except ImportError:
        return None
    if not kind.__name__.endswith("PasswordField"):
        return fieldwidgets.BS3TextFieldWidget()

    class KeptPassword(fieldwidgets.BS3PasswordFieldWidget):  # type: ignore[misc]
        """Shows a stored key as Airflow's own stand-in: an empty field would have the key deleted when it is saved."""

        def __call__(self, field: Any, **attributes: Any) -> Any:  # noqa: ANN401 - wtforms' own
            from airflow.www.views import SENSITIVE_FIELD_PLACEHOLDER  # type: ignore[import-not-found] # noqa: PLC0415

            self.hide_value = False
            return super().__call__(field, value=SENSITIVE_FIELD_PLACEHOLDER if field.data else "", **attributes)

    return KeptPassword()


def _parse(conn_id: str, connection: AirflowConnection, extra: dict[str, Any]) -> ConnectionSettings:
    return ConnectionSettings.parse(
        conn_id, host=connection.host, port=connection.port, password=connection.password, extra=extra
    )


def _ca_bundle(conn_id: str, settings: ConnectionSettings) -> str | None:
    if settings.verify is not None:
        _ssl_context(conn_id, settings)
    return settings.verify


def _ssl_context(conn_id: str, settings: ConnectionSettings) -> ssl.SSLContext:
    """Trust the same authorities as ``requests`` does, or poke mode and deferred mode would disagree."""
    usual = requests.Session().merge_environment_settings(settings.base_url, {}, None, None, None)["verify"]
    bundle = settings.verify or (usual if isinstance(usual, str) else DEFAULT_CA_BUNDLE_PATH)
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError):
        where = "extra 'verify'" if settings.verify else "the environment"
        raise ValueError(
            f"Connection {conn_id!r}: {bundle!r} of {where} is no readable bundle of certificates"
        ) from None


def _proxy(settings: ConnectionSettings) -> str | None:
    """Find the proxy of the environment, as ``requests`` does, and once.

    ``trust_env`` would have ``aiohttp`` look in two threads for each poll, and send along what a ``.netrc`` says.
    """
    proxies = requests.utils.get_environ_proxies(settings.base_url)
    found = requests.utils.select_proxy(settings.base_url, proxies)
    if not found:
        return None
    proxy = found if "://" in found else f"http://{found}"
    if not proxy.startswith("http://"):
        _log.warning("Deferred waits go without the environment's proxy: aiohttp knows those with http:// alone")
        return None
    return proxy


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, api.BankConnectTransientError) and not isinstance(error, api.BankConnectCertificateError)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, api.BankConnectTransientError) else None
    return api.backoff(
        state.attempt_number,
        jitter=random.random(),  # noqa: S311 - no secret hangs on it
        retry_after=min(asked or 0.0, api.MAX_BACKOFF),
    )


def _answer(status: int, headers: Mapping[str, str]) -> api.Answer:
    return api.Answer(status, b"", headers.get("Retry-After"), encoding=headers.get("Content-Encoding"))


def _refuse_large(request: api.Request, answer: api.Answer, size: int) -> None:
    if answer.status != HTTPStatus.OK and size > _CHUNK_BYTES:
        # The status is the error. Its body is read only so that the connection can be kept.
        raise OSError(errno.EFBIG, "the rest of the body is of no interest")
    if size > api.MAX_ANSWER_BYTES:
        raise api.BankConnectResponseError(
            f"{request.call}: the answer is larger than {api.MAX_ANSWER_BYTES // 2**20} MiB, and was not read on"
        )


def _no_answer(request: api.Request, error: Exception) -> api.BankConnectConnectionError:
    """Say why there was no answer; the libraries' own messages may quote what was sent or received."""
    causes = list(_causes(error))
    # aiohttp's own error is one of these too, but without the words.
    doubts = [
        getattr(cause, "verify_message", "") for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)
    ]
    if doubts:
        return api.BankConnectCertificateError(
            f"{request.call}: the server's certificate does not verify: {max(doubts, key=len)}. "
            "Check the connection's host, and its extra 'verify' for a private authority"
        )
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        return api.BankConnectConnectionError(f"{request.call}: no answer in time (the connection's timeout)")
    words = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
    return api.BankConnectConnectionError(
        f"{request.call}: no whole answer: {type(error).__name__}{f': {words}' if words else ''}"
    )


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(found) < 20:  # noqa: PLR2004 - chains are short; a loop in one must not hang us
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in found:
            found.append(cause)
            queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return found
