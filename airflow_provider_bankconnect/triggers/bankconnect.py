"""The deferred waits: a trigger executes the actions of a :class:`~airflow_provider_bankconnect.wait.Wait`."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate
from airflow_provider_bankconnect.triggers.listener import event_listener
from airflow_provider_bankconnect.triggers.poller import SHARED_SECONDS, Rows, result_of, shared_poller
from airflow_provider_bankconnect.wait import End, Poke, TestCall, Wait, WaitArguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import date, timedelta, tzinfo
    from typing import Required

    from airflow_provider_bankconnect.api import Analysis
    from airflow_provider_bankconnect.records import Gate
    from airflow_provider_bankconnect.triggers.poller import Asks, Poller

# This many rows are judged in a thread, to keep the event loop free.
_OFF_LOOP_ROWS: Final = 500


class WaitEvent(TypedDict, total=False):
    """The event of a trigger.

    ``status``: the gate has ``passed`` or ``failed`` (with ``rows``), the deadline was reached (``timeout``), or the
    wait cannot continue (``error``, with the name of the ``error``). ``because`` says why, in words; ``gate`` says what
    was waited for; ``started`` and ``pokes`` describe the whole wait.
    """

    status: Required[Literal["passed", "failed", "timeout", "error"]]
    because: Required[str]
    rows: list[dict[str, str | None]]
    error: str
    gate: str
    started: str
    pokes: int


class _TestCall:
    """The test call as the poller takes it: equal calls are made once, for all waits."""

    poll_key = ("test call",)

    def ask(self, timezone: tzinfo) -> api.Call[list[str]]:  # noqa: ARG002 - the answer has no times
        return api.probe()


def wait_event(end: End, wait: Wait) -> WaitEvent:
    """Return the event of a wait that has ended."""
    event = WaitEvent(status=end.status, because=end.because, gate=str(wait.gate))
    event |= {"pokes": wait.pokes, "started": wait.started.isoformat()}
    if end.error is not None:
        event["error"] = type(end.error).__name__
    if end.rows:
        event["rows"] = [row.as_dict() for row in end.rows]
    return event


class _BankConnectTrigger(BaseTrigger):
    """Pokes until the gate passes or fails, the deadline is reached, or an error is final.

    It yields exactly one :class:`WaitEvent`, and no exception leaves it. It changes nothing at BankConnect: after a
    crash of the triggerer the wait continues with the same deadline.
    """

    def __init__(self, gate: Gate, wait: WaitArguments, bankconnect_conn_id: str, *, webhooks_expected: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gate = gate
        self.bankconnect_conn_id = bankconnect_conn_id
        self.webhooks_expected = webhooks_expected
        self.wait = Wait(gate, datetime.now(UTC), wait, is_new=False)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and its arguments, in types that every Airflow serializes. No keys among them."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            **self.gate.arguments(),
            "bankconnect_conn_id": self.bankconnect_conn_id,
            "wait": self.wait.arguments(),
            "webhooks_expected": self.webhooks_expected,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        try:
            event = await self._wait()
        except Exception as error:
            self.log.exception("The wait for %s crashed", self.gate)
            event = wait_event(End("error", "the wait crashed; see the triggerer's log", error=error), self.wait)
        yield TriggerEvent(dict(event))  # type: ignore[no-untyped-call]

    async def _wait(self) -> WaitEvent:
        wait = self.wait
        self.log.info("Waiting for %s until %s", self.gate, wait.deadline.isoformat(timespec="seconds"))
        wait.resume(datetime.now(UTC), random.random())  # noqa: S311 - spreads load
        async with shared_poller(self.bankconnect_conn_id) as poller, poller.waiting(self.gate) as before:
            events, is_problem_logged = before, False
            while True:
                now = datetime.now(UTC)
                if not is_problem_logged:
                    is_problem_logged = self._log_webhook_problem()
                if events != poller.events_seen(self.gate):
                    events = poller.events_seen(self.gate)
                    wait.notified(now)
                self._note_pauses(poller, now)
                action = wait.next(now)
                self._log_lines()
                match action:
                    case End():
                        return wait_event(action, wait)
                    case TestCall():
                        wait.tested(await self._test_call(poller, action, now))
                    case Poke(at=at) if at > now:
                        answer = await poller.next_answer(wait.question, (at - now).total_seconds())
                        if answer is not None:
                            await self._judge(answer)
                    case Poke():
                        await self._poke(poller, action, now)

    def _note_pauses(self, poller: Poller, now: datetime) -> None:
        for pause in poller.pauses(now):
            self.wait.paused(pause, now)

    def _log_lines(self) -> None:
        for level, text in self.wait.take_lines():
            getattr(self.log, level)("%s", text)

    def _log_webhook_problem(self) -> bool:
        problem = event_listener().problem(is_expected=self.webhooks_expected)
        if problem is not None:
            self.log.info("Webhooks do not wake this wait, so it may end a poke_interval later: %s", problem)
        return problem is not None

    async def _poke(self, poller: Poller, poke: Poke, now: datetime) -> None:
        if self.wait.needs_new_connection(now):
            poller.use_new_connections()
        self.wait.begin(now)
        answer = await self._ask(poller, self.wait.question, poke, now)
        if answer is not None:
            await self._judge(answer)

    async def _test_call(self, poller: Poller, call: TestCall, now: datetime) -> api.BankConnectError | None:
        poller.use_new_connections()
        answer = await self._ask(poller, _TestCall(), call, now)
        return answer if isinstance(answer, api.BankConnectError) else None

    async def _ask(self, poller: Poller, gate: Asks, action: Poke | TestCall, now: datetime) -> Rows | Exception | None:
        """Return the answer, or the error; None if there is none in time."""
        max_age = min(self.wait.poke_interval / 2, SHARED_SECONDS)

        def log_pause() -> None:
            # Not after the answer: the poll may be held back until the deadline.
            self._note_pauses(poller, datetime.now(UTC))
            self._log_lines()

        try:
            async with asyncio.timeout((action.until - now).total_seconds()) as limit:
                return await poller.ask(gate, max_age=max_age, waits=not action.is_last, on_pause=log_pause)
        except Exception as error:  # noqa: BLE001 - judged like an answer
            return None if limit.expired() else error

    async def _judge(self, answer: Rows | Exception) -> None:
        """Report an answer to the wait, and its verdict."""
        dice = random.random()  # noqa: S311 - spreads load
        try:
            rows = result_of(answer)
            if len(rows) < _OFF_LOOP_ROWS:
                self._judge_rows(rows, dice)
            else:
                await asyncio.to_thread(self._judge_rows, rows, dice)
        except api.BankConnectError as error:
            self.wait.failed(error, datetime.now(UTC), dice)

    def _judge_rows(self, rows: Rows, dice: float) -> None:
        self.wait.answered(rows, datetime.now(UTC), dice)


class BankConnectWebhookPayloadTrigger(_BankConnectTrigger):
    """Waits for the webhook payloads of a link. The arguments of the gate are those of the sensor.

    :param wait: the pace and the state of the wait, see :class:`~airflow_provider_bankconnect.wait.WaitArguments`.
    :param bankconnect_conn_id: the connection with both keys.
    :param webhooks_expected: whether the worker has the webhook receiver's token; then the log says so if webhooks wake
        no wait of this triggerer.
    """

    gate: HistoryGate

    def __init__(
        self,
        *,
        link_id: str | int,
        entity_id: str | int | None = None,
        statement_id: str | int | Sequence[str | int] | None = None,
        since: date | str | None = None,
        expected_statements: int | str = 1,
        failure_grace: timedelta | float = 1800.0,
        wait: WaitArguments,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        webhooks_expected: bool = False,
    ) -> None:
        gate = HistoryGate.parse(
            link_id=link_id,
            entity_id=entity_id,
            statement_id=statement_id,
            since=since,
            expected_statements=expected_statements,
            failure_grace=failure_grace,
        )
        super().__init__(gate, wait, bankconnect_conn_id, webhooks_expected=webhooks_expected)


class BankConnectProgressTrigger(_BankConnectTrigger):
    """Waits for the progress of one analysis of an entity. The arguments of the gate are those of the sensor.

    :param wait: the pace and the state of the wait, see :class:`~airflow_provider_bankconnect.wait.WaitArguments`.
    :param bankconnect_conn_id: the connection with both keys.
    :param webhooks_expected: whether the worker has the webhook receiver's token; then the log says so if webhooks wake
        no wait of this triggerer.
    """

    gate: ProgressGate

    def __init__(
        self,
        *,
        entity_id: str | int,
        analysis: Analysis = "transactions",
        statement_id: str | int | Sequence[str | int] | None = None,
        expected_statements: int | str = 1,
        wait: WaitArguments,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        webhooks_expected: bool = False,
    ) -> None:
        gate = ProgressGate.parse(
            entity_id=entity_id, analysis=analysis, statement_id=statement_id, expected_statements=expected_statements
        )
        super().__init__(gate, wait, bankconnect_conn_id, webhooks_expected=webhooks_expected)


class BankConnectStatementTrigger(_BankConnectTrigger):
    """Waits for the statements of a customer. The arguments of the gate are those of the sensor.

    :param announced: the statements of the webhook events that started the run: the gate is pending until one of the
        records has them.
    :param announced_until: when that ends.
    :param wait: the pace and the state of the wait, see :class:`~airflow_provider_bankconnect.wait.WaitArguments`.
    :param bankconnect_conn_id: the connection with both keys.
    :param webhooks_expected: whether the worker has the webhook receiver's token; then the log says so if webhooks wake
        no wait of this triggerer.
    """

    gate: CustomerGate

    def __init__(
        self,
        *,
        link_id: str | int | None = None,
        entity_id: str | int | None = None,
        statement_id: str | int | Sequence[str | int] | None = None,
        since: date | str | None = None,
        expected_statements: int | str = 1,
        failure_grace: timedelta | float = 1800.0,
        announced: Sequence[str] = (),
        announced_until: datetime | str | None = None,
        wait: WaitArguments,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        webhooks_expected: bool = False,
    ) -> None:
        gate = CustomerGate.parse(
            link_id=link_id,
            entity_id=entity_id,
            statement_id=statement_id,
            since=since,
            expected_statements=expected_statements,
            failure_grace=failure_grace,
            announced=announced,
            announced_until=announced_until,
        )
        super().__init__(gate, wait, bankconnect_conn_id, webhooks_expected=webhooks_expected)
