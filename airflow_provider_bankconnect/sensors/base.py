"""What the gates have in common: they execute the actions of a :class:`~airflow_provider_bankconnect.wait.Wait`."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.arguments import check_conn_id, is_literal
from airflow_provider_bankconnect.expectation import check_on_failed
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.lineage import report_lineage
from airflow_provider_bankconnect.map_index import NamedByCustomer
from airflow_provider_bankconnect.receiver.address import is_on
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError, send_to_receiver
from airflow_provider_bankconnect.triggers.bankconnect import wait_event
from airflow_provider_bankconnect.wait import End, Poke, TestCall, Wait, WaitArguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_bankconnect.gate import OnFailed
    from airflow_provider_bankconnect.records import Gate

Rows: TypeAlias = list[dict[str, str | None]]

# Airflow's own deferral timeout: it ends a wait whose trigger is gone.
_BACKSTOP: Final = timedelta(minutes=2)
# A webhook may arrive this much later than BankConnect's own record shows the statement.
_WEBHOOK_DELAY: Final = timedelta(seconds=10)
_CHECK_SECONDS: Final = 5.0


class BankConnectWaitError(api.BankConnectError):
    """A deferred wait returned an event that no gate may pass on."""


class BankConnectBaseSensor(NamedByCustomer, BaseSensorOperator):
    """Pokes, or defers, as its wait says."""

    ui_color = "#d8e6f3"
    _gate_type: type[Gate]
    _trigger_type: type[BaseTrigger]
    _wait: Wait | None = None
    _hook: BankConnectHook

    def __init__(
        self,
        *,
        on_failed: OnFailed = "fail",
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.on_failed = on_failed
        self.bankconnect_conn_id = bankconnect_conn_id
        self.deferrable = deferrable
        check_conn_id(bankconnect_conn_id)
        if not isinstance(deferrable, bool):
            raise ValueError(f"deferrable must be True or False, not {deferrable!r}")
        if self.poke_interval <= 0:
            raise ValueError(f"poke_interval must be more than 0 seconds, not {self.poke_interval!r}")
        if is_literal(on_failed):
            check_on_failed(on_failed)

    def execute(self, context: Context) -> Any:
        """Poke until the gate passes, or poke once and defer."""
        with BankConnectHook(self.bankconnect_conn_id, max_retries=0) as hook:
            self._begin(hook, context)
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Poke once; also the last time, when the timeout is reached."""
        wait = self._wait or self._begin(BankConnectHook(self.bankconnect_conn_id, max_retries=0), context)
        while True:
            now = datetime.now(UTC)
            action = wait.next(now)
            for level, text in wait.take_lines():
                getattr(self.log, level)("%s", text)
            match action:
                case End(error=Exception() as error):
                    raise error
                case End():
                    return PokeReturnValue(is_done=True, xcom_value=self._read_event(wait_event(action, wait)))
                case TestCall():
                    wait.tested(self._test_call())
                case Poke(at=at) if at <= now:
                    self._poke(wait, now)
                case Poke(at=at) if now < wait.deadline:
                    if self.deferrable:
                        self._defer(wait, now)
                    return False
                case Poke(at=at):
                    # Airflow itself would end the task now, without the last poke.
                    time.sleep((at - now).total_seconds())

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Rows:  # noqa: ARG002
        """End the deferred wait as the same verdict would have ended it on the worker.

        :raises BankConnectWaitError: the event is None, or one that no trigger of this package yields.
        """
        try:
            return self._read_event(event)
        # The rules that Airflow's own execute() applies to a poke. Those of resume_execution() differ from version to
        # version.
        except Exception as error:
            is_soft = self.soft_fail and isinstance(error, AirflowSensorTimeout | AirflowFailException)
            if (is_soft or self.never_fail) and not isinstance(error, AirflowSkipException):
                raise AirflowSkipException(f"Skipped because of soft_fail or never_fail: {error}") from error
            raise

    def _gate_arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._gate_type.names}

    def _gate(self) -> Gate:
        return self._gate_type.parse(**self._gate_arguments())

    def _parse_time_arguments(self) -> dict[str, Any]:
        """Return the arguments of the gate as far as parsing knows them, with stand-ins for ids that it does not."""
        arguments = self._gate_arguments()
        known = {name: value for name, value in arguments.items() if is_literal(value)}
        stand_in: dict[str, Any] = {name: "template" for name in ("link_id", "entity_id") if name in arguments}
        return stand_in | known

    def _refuse_known_mistakes(self) -> None:
        """Fail at parsing if the mistake is visible there; templates are checked when they are rendered."""
        self._gate_type.parse(**self._parse_time_arguments())

    def _begin(self, hook: BankConnectHook, context: Context) -> Wait:
        now = datetime.now(UTC)
        rescheduled = _first_start(context) if self.reschedule else None
        started = rescheduled or now
        arguments: WaitArguments = {
            "deadline": started + timedelta(seconds=self.timeout),
            "poke_interval": self.poke_interval,
            "exponential_backoff": self.exponential_backoff,
            "max_wait": self.max_wait.total_seconds() if isinstance(self.max_wait, timedelta) else self.max_wait,
            "on_failed": check_on_failed(self.on_failed),
            "silent_fail": self.silent_fail,
            "started": started,
        }
        self._hook = hook
        self._find_customer(context)
        forgets = self.reschedule and not self.deferrable
        self._wait = Wait(self._gate(), now, arguments, is_new=rescheduled is None, forgets=forgets)
        if rescheduled:
            self._wait.reschedule(now)
        return self._wait

    def _find_customer(self, context: Context) -> None:
        """Find the customer in the run, where the arguments do not name one."""

    def _poke(self, wait: Wait, now: datetime) -> None:
        if wait.needs_new_connection(now):
            self._hook.forget_connections()
        wait.begin(now)
        try:
            rows: Any = self._hook.run(wait.question.ask(self._hook.settings.timezone))
            wait.answered(rows, datetime.now(UTC), random.random())  # noqa: S311 - spreads load
        except api.BankConnectError as error:
            wait.failed(error, datetime.now(UTC), random.random())  # noqa: S311

    def _test_call(self) -> api.BankConnectError | None:
        self._hook.forget_connections()
        try:
            self._hook.run(api.probe())
        except api.BankConnectError as error:
            return error
        return None

    def _defer(self, wait: Wait, now: datetime) -> NoReturn:
        self.defer(
            trigger=self._trigger_type(
                **self._gate_arguments(),
                bankconnect_conn_id=self.bankconnect_conn_id,
                wait=wait.arguments(),
                webhooks_expected=_is_receiver_on(),
            ),
            method_name="execute_complete",
            timeout=wait.deadline - now + _BACKSTOP,
        )

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Return the seconds until the next poke of the wait."""
        now = datetime.now(UTC)
        action = self._wait.next(now) if self._wait else None
        if not isinstance(action, Poke):
            return float(super()._get_next_poke_interval(started_at, run_duration, poke_count))
        return max(0.0, (action.at - now).total_seconds())

    def _read_event(self, event: Any) -> Rows:
        """Log how the wait ended; raise if that does not pass the gate, and return the rows if it does."""
        check_on_failed(self.on_failed)
        ends = {"passed"} if self.on_failed == "wait" else {"passed", "failed"}
        match event:
            case {"status": str(state), "rows": [_, *_] as rows, "because": str(because)} if state in ends:
                shown = ((row["statement_id"] or "an attempt", row["progress"], row["date_time"]) for row in rows)
                by = ", ".join(" ".join(filter(None, words)) for words in shown)
                self.log.info("%s: %s: %s", self._waited(event), because, by)
                self._count_missed_webhooks(rows)
                if state == "failed" and self.on_failed in {"fail", "skip"}:
                    ending = AirflowFailException if self.on_failed == "fail" else AirflowSkipException
                    raise ending(f"BankConnect says failed: {because}")
                entities = dict.fromkeys(row["entity_id"] for row in rows if row["entity_id"])
                report_lineage(self, entities=entities, conn_id=self.bankconnect_conn_id)
                return list(rows)
            case {"status": "timeout", "because": str(because)}:
                timeout = timedelta(seconds=self.timeout)
                raise AirflowSensorTimeout(
                    f"{self._waited(event)}, and timed out after {timeout}. Seen last: {because}"
                )
            case {"status": "error", "error": str(name), "because": str(because)}:
                kind: Any = getattr(api, name, None)
                known = isinstance(kind, type) and issubclass(kind, api.BankConnectError)
                raise (kind if known else BankConnectWaitError)(because)
        got = f"status {event.get('status')!r}" if isinstance(event, dict) else type(event).__name__
        raise BankConnectWaitError(f"The deferred wait returned an event that no trigger of this package yields: {got}")

    def _count_missed_webhooks(self, rows: Rows) -> None:
        """Have the webhook receiver count the statements that no webhook announced. The wait does not depend on it."""
        settled = datetime.now(UTC) - _WEBHOOK_DELAY
        old = [row for row in rows if row["date_time"] and datetime.fromisoformat(row["date_time"]) < settled]
        try:
            if old and is_on():
                send_to_receiver(self.bankconnect_conn_id, old, "check", timeout=_CHECK_SECONDS)
        except (WebhookReceiverError, ValueError) as error:
            self.log.info("Could not check whether webhooks had announced these statements: %s", error)
        except Exception as error:  # noqa: BLE001 - a setting may come from a command, and fail in any way
            text = "Could not check whether webhooks had announced these statements: %s"
            self.log.info(text, type(error).__name__)

    def _waited(self, event: dict[str, Any]) -> str:
        now, started, pokes = datetime.now(UTC), event.get("started"), event.get("pokes") or 1
        since = datetime.fromisoformat(started) if isinstance(started, str) else now
        # In reschedule mode each poke is a process of its own, and cannot count the others.
        times = "" if self.reschedule and not self.deferrable else f", poked {pokes} time{'' if pokes == 1 else 's'}"
        waited_for = event.get("gate") or self._gate()
        return f"Waited {timedelta(seconds=round((now - since).total_seconds()))} for {waited_for}{times}"


def _first_start(context: Context) -> datetime | None:
    """Return when a rescheduled task began; None if it was not rescheduled."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        first: datetime | None = ti.get_first_reschedule_date(context)
    else:
        # Airflow 2.11 has no public way.
        from airflow.sensors.base import _orig_start_date  # type: ignore[import-not-found] # noqa: PLC0415

        # It counts the timeout from the first try, and its own check after each poke finds that one by `retries`. All
        # other modes and versions count from the try that runs. At the last try this is 0, and no retry follows anyway.
        ti.task.retries = max((ti.max_tries or 0) - ti.try_number + 1, 0)
        first = _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.try_number)
    return first


def _is_receiver_on() -> bool:
    try:
        return is_on()
    except Exception:  # noqa: BLE001 - a setting may come from a command, and fail in any way; no wait depends on it
        return False
