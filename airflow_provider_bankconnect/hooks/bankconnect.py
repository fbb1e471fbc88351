"""BankConnect over HTTPS: two thin drivers of :mod:`airflow_provider_bankconnect.api`."""

from __future__ import annotations

import asyncio
import functools
import random
import uuid
from typing import TYPE_CHECKING, Any, Final, TypeVar

import tenacity
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret
from yarl import URL

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import ConnectionSettings, WebhookMode
from airflow_provider_bankconnect.hooks import form
from airflow_provider_bankconnect.hooks.tls import ssl_context
from airflow_provider_bankconnect.hooks.transport import AsyncSession, Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import requests
    from airflow.providers.common.compat.sdk import Connection

T = TypeVar("T")

_CLOSING_SECONDS: Final = 0.02
# Larger bodies are read in a thread: on the event loop they would delay all other waits.
_OFF_LOOP_BYTES: Final = 64 * 1024


class BankConnectHook(BaseHook):
    """Calls BankConnect, synchronously.

    Rate limits, server errors and connection errors are tried again, at most three times: exponential back-off with
    full jitter, and never sooner than BankConnect's ``Retry-After`` (up to a minute). Every call raises a
    :class:`~airflow_provider_bankconnect.api.BankConnectError`, or ``ValueError`` for an invalid argument or connection
    field.

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
        """Return the fields of the connection form, for Airflow before 3.2."""
        return form.widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the behaviour of the connection form, for Airflow before 3.2."""
        return form.field_behaviour()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept open between calls."""
        if "_session" in self.__dict__:
            self.__dict__.pop("_session").close()

    def forget_connections(self) -> None:
        """Send the next request on a new connection: the kept ones may lead to a server that was replaced."""
        if "_session" in self.__dict__:
            self._session.forget_connections()

    @functools.cached_property
    def settings(self) -> ConnectionSettings:
        """The checked fields of the connection.

        :raises ValueError: names the connection and the field.
        """
        connection = self.get_connection(self.bankconnect_conn_id)
        settings = _parse(self.bankconnect_conn_id, connection, connection.extra_dejson)
        for key in settings.headers.values():
            mask_secret(key)
        return settings

    @functools.cached_property
    def _session(self) -> Session:
        return Session(self.bankconnect_conn_id, self.settings)

    def get_conn(self) -> requests.Session:
        """Return the session: it sends the keys only to the connection's base URL, and never follows redirects."""
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
        :param webhook_mode: always sent, because an update without it resets it.
        :param allow_private_host: accept a host that is literally private, loopback or link-local.
        """
        self.run(api.update_webhook(webhook_url, webhook_mode, allow_private_host=allow_private_host))
        mode = WebhookMode.parse(webhook_mode)
        sends = "BankConnect sends webhooks to %s now, in mode %d (%s): %s"
        self.log.info(sends, URL(webhook_url).host, mode, mode.name, mode.coverage)

    def get_webhook_payloads(self, link_id: str | int) -> list[api.WebhookPayload]:
        """Get all webhook payloads of a link, newest first. Source: "Handling cases when ... is down"."""
        return self.run(api.get_webhook_payloads(link_id, self.settings.timezone))

    def get_progress(
        self, entity_id: str | int, analysis: api.Analysis = "transactions"
    ) -> list[api.StatementProgress]:
        """Get the progress of one analysis of an entity, a row for each statement."""
        return self.run(api.get_progress(entity_id, analysis))

    def get_entities(self, link_id: str | int) -> list[str]:
        """Get the ids of all entities of a link, from all pages."""
        return self.run(api.get_entities(link_id))

    def get_analysis(
        self, entity_id: str | int, analysis: api.Analysis, account_id: str | int | None = None
    ) -> dict[str, Any]:
        """Get BankConnect's whole answer to an analysis. Source: the vendor's REST API pages.

        The answer is a dict with ``entity_id``, ``progress`` and what the analysis has, such as ``transactions``, or
        ``reports`` for ``xlsx_report``. Of equal keys in a JSON object, as in ``top_credits_debits``, the last one
        counts.

        :param analysis: one of :data:`~airflow_provider_bankconnect.api.ANALYSES`.
        :param account_id: only the data of this account; for ``transactions``, ``salary``, ``recurring_transactions``,
            ``lender_transactions`` and ``get_expense_categories``.
        :raises BankConnectNotReadyError: the answer's ``progress`` is empty or has a statement in progress, or the list
            of ``xlsx_report``, ``predictors`` or ``score`` is still empty.
        """
        return self.run(api.get_analysis(entity_id, analysis, account_id))

    def get_transactions(self, entity_id: str | int, account_id: str | int | None = None) -> dict[str, Any]:
        """Get BankConnect's whole answer: ``entity_id``, ``progress``, ``accounts``, ``fraud``, ``transactions``.

        :raises BankConnectNotReadyError: as in :meth:`get_analysis`.
        """
        return self.get_analysis(entity_id, "transactions", account_id)

    def get_reports(self, entity_id: str | int) -> list[api.Report]:
        """Get the links of the Excel reports, one for each account. They need no keys and are valid for one hour.

        :raises BankConnectNotReadyError: as in :meth:`get_analysis`, or a report has no link yet.
        """
        return self.run(api.get_reports(entity_id))

    def get_pdfs(self, entity_id: str | int) -> list[api.StatementPdf]:
        """Get the links and passwords of the PDFs of an entity's statements. The passwords are masked in logs.

        Airflow masks no text of fewer than five characters. Links need no keys and are valid for one hour; from 30 days
        after the upload on they are blank.

        :raises BankConnectNotReadyError: there is no statement yet.
        """
        found = self.run(api.get_pdfs(entity_id))
        for pdf in found:
            if pdf.password:
                mask_secret(pdf.password)
        return found

    def test_connection(self) -> tuple[bool, str]:
        """Get the payloads of a random link: that needs both keys and reads no customer's data."""
        try:
            # Without retries: a person waits for the result.
            with BankConnectHook(self.bankconnect_conn_id, max_retries=0) as hook:
                try:
                    hook.get_webhook_payloads(str(uuid.uuid4()))
                except api.BankConnectNotFoundError:
                    # BankConnect may answer 404 for an unknown link, but not for a list: then the path is wrong.
                    hook.run(api.probe())
        except api.BankConnectNotFoundError:
            return True, "BankConnect answers, but with HTTP 404 to every call: check the path in the connection's host"
        except (api.BankConnectError, ValueError) as error:
            return False, str(error)
        return True, "BankConnect answers, and takes both keys"

    def run(self, call: api.Call[T], *, sleep: Callable[[float], None] = tenacity.nap.sleep) -> T:
        """Drive a call of :mod:`airflow_provider_bankconnect.api` to its result.

        :param sleep: waits so many seconds between two attempts.
        """
        retrying = retries(self.max_retries, self._log_retry, sleep)
        step = api.advance(call)
        while isinstance(step, api.Request):
            answer: api.Answer | api.BankConnectError
            try:
                answer = retrying(self._send, step)
            except api.BankConnectError as error:
                answer = error
            step = api.advance(call, answer)
        return step.value

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        self.log.warning("%s; trying again in %.1f s (%d of %d)", error, pause, state.attempt_number, self.max_retries)
        if state.attempt_number > 1:
            # The kept connection may lead to a server that no longer works.
            self.forget_connections()

    def _send(self, request: api.Request) -> api.Answer:
        return api.check_status(request, self._session.exchange(request))


class BankConnectAsyncHook:
    """Calls BankConnect from a coroutine: the reading calls of :class:`BankConnectHook`.

    An async context manager that keeps one session with keep-alive. It does not retry: it serves waits, whose next
    poll is the retry. (A GET is sent once more where a kept connection breaks or stays silent: something on the way may
    have forgotten it while it was idle.)

    :param bankconnect_conn_id: the connection with both keys.
    """

    def __init__(self, bankconnect_conn_id: str = BankConnectHook.default_conn_name) -> None:
        self.bankconnect_conn_id = bankconnect_conn_id
        self._settings: ConnectionSettings | None = None
        self._session: AsyncSession | None = None
        self._retired: list[AsyncSession] = []
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session; the next call reads the connection anew and opens another."""
        sessions = [session for session in (*self._retired, self._session) if session]
        self._session, self._settings, self._retired = None, None, []
        for session in sessions:
            await session.close()
        if sessions:
            # The TLS connection of an aborted request closes a moment later. A loop that ends at once, as in
            # `airflow dags test`, would leave its socket open.
            await asyncio.sleep(_CLOSING_SECONDS)

    def forget_connections(self) -> None:
        """Send the next request on a new connection, as :meth:`BankConnectHook.forget_connections` does."""
        if self._session is not None:
            self._session.forget_connections()

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
        """Read the connection anew, and if it differs from ``used``, open another session for further requests."""
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
            # Triggers in `airflow dags test` of 3.3 reach Airflow's database only synchronously.
            connection = await asyncio.to_thread(BaseHook.get_connection, self.bankconnect_conn_id)
        settings = _parse(self.bankconnect_conn_id, connection, await get_async_extra_dejson(connection))
        for key in settings.headers.values():
            # In a thread: on the event loop its call to the supervisor may be refused as a deadlock.
            await asyncio.to_thread(mask_secret, key)
        return settings

    async def _open(self, settings: ConnectionSettings) -> None:
        self._session = AsyncSession(settings, await asyncio.to_thread(ssl_context, self.bankconnect_conn_id, settings))
        self._settings = settings

    async def get_webhook_payloads(self, link_id: str | int) -> list[api.WebhookPayload]:
        """Get all webhook payloads of a link, newest first."""
        return await self.run(api.get_webhook_payloads(link_id, (await self.connect()).timezone))

    async def get_progress(
        self, entity_id: str | int, analysis: api.Analysis = "transactions"
    ) -> list[api.StatementProgress]:
        """Get the progress of one analysis of an entity, a row for each statement."""
        return await self.run(api.get_progress(entity_id, analysis))

    async def get_entities(self, link_id: str | int) -> list[str]:
        """Get the ids of all entities of a link, from all pages."""
        return await self.run(api.get_entities(link_id))

    async def get_analysis(
        self, entity_id: str | int, analysis: api.Analysis, account_id: str | int | None = None
    ) -> dict[str, Any]:
        """Get BankConnect's whole answer to an analysis, as :meth:`BankConnectHook.get_analysis` does."""
        return await self.run(api.get_analysis(entity_id, analysis, account_id))

    async def get_transactions(self, entity_id: str | int, account_id: str | int | None = None) -> dict[str, Any]:
        """Get BankConnect's whole answer, as :meth:`BankConnectHook.get_transactions` does."""
        return await self.get_analysis(entity_id, "transactions", account_id)

    async def get_reports(self, entity_id: str | int) -> list[api.Report]:
        """Get the links of the Excel reports, as :meth:`BankConnectHook.get_reports` does."""
        return await self.run(api.get_reports(entity_id))

    async def get_pdfs(self, entity_id: str | int) -> list[api.StatementPdf]:
        """Get the links and passwords of the PDFs, as :meth:`BankConnectHook.get_pdfs` does."""
        found = await self.run(api.get_pdfs(entity_id))
        for pdf in found:
            if pdf.password:
                await asyncio.to_thread(mask_secret, pdf.password)
        return found

    async def run(self, call: api.Call[T], *, before_next: Callable[[], None] | None = None) -> T:
        """Drive a call of :mod:`airflow_provider_bankconnect.api` to its result.

        :param before_next: called before each request but the first; what it raises ends the call.
        """
        step = api.advance(call)
        while isinstance(step, api.Request):
            step = await self._step(call, step)
            if before_next is not None and isinstance(step, api.Request):
                before_next()
        return step.value

    async def _step(self, call: api.Call[T], request: api.Request) -> api.Request | api.Result[T]:
        try:
            answer = await self._send(request)
        except api.BankConnectError as error:
            return api.advance(call, error)
        is_large = len(answer.body) >= _OFF_LOOP_BYTES
        return await asyncio.to_thread(api.advance, call, answer) if is_large else api.advance(call, answer)

    async def _send(self, request: api.Request) -> api.Answer:
        await self.connect()
        if self._session is None:
            raise RuntimeError("BankConnectAsyncHook was closed while it was sending")
        return api.check_status(request, await self._session.exchange(request))


def retries(
    most: int, before_sleep: Callable[[tenacity.RetryCallState], None], sleep: Callable[[float], None]
) -> tenacity.Retrying:
    """Return the rules of when to try again what has failed: never a certificate that does not verify."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(api.BankConnectTransientError)
        & tenacity.retry_if_not_exception_type(api.BankConnectCertificateError),
        stop=tenacity.stop_after_attempt(1 + most),
        wait=_wait,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )


def _parse(conn_id: str, connection: Connection, extra: dict[str, Any]) -> ConnectionSettings:
    return ConnectionSettings.parse(
        conn_id, host=connection.host, port=connection.port, password=connection.password, extra=extra
    )


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, api.BankConnectTransientError) else None
    jitter = random.random()  # noqa: S311 - not for cryptography
    return api.backoff(state.attempt_number, jitter=jitter, retry_after=min(asked or 0.0, api.MAX_BACKOFF))
