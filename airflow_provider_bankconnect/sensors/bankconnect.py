"""Gates: tasks that let those behind them run only when BankConnect's own records say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import in_short
from airflow_provider_bankconnect.gate import (
    Expectation,
    Gate,
    HistoryGate,
    ProgressGate,
    Verdict,
    check_on_failed,
    is_literal,
)
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.triggers.bankconnect import (
    MIN_INTERVAL,
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
    Streak,
    is_final,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

Rows: TypeAlias = list[dict[str, str | None]]

# Airflow's own deferral timeout stands this far behind ours, for a trigger that is no longer there to keep it.
_BACKSTOP: Final = timedelta(minutes=2)


class BankConnectWaitError(api.BankConnectError):
    """A deferred wait came back with nothing that a gate may open on."""


@dataclass
class _Wait:
    """How far a wait on the worker has come."""

    hook: BankConnectHook
    streak: Streak
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    not_before: datetime = field(default_factory=lambda: datetime.now(UTC))
    looks: int = 0
    seen: str = "no answer yet"


class _BankConnectSensor(BaseSensorOperator):
    """What the gates have in common: when they look, and what becomes of what they see."""

    ui_color = "#d8e6f3"
    _wait: _Wait | None = None

    def __init__(
        self,
        *,
        on_failed: str = "fail",
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.on_failed = on_failed
        self.bankconnect_conn_id = bankconnect_conn_id
        self.deferrable = deferrable
        if is_literal(on_failed):
            check_on_failed(on_failed)

    def execute(self, context: Context) -> Any:
        """Look until the gate opens, or look once and defer."""
        with BankConnectHook(self.bankconnect_conn_id, max_retries=0) as hook:
            self._wait = _Wait(hook, Streak(self.log))
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Look once."""
        on_failed = check_on_failed(self.on_failed)
        gate = self._gate()
        wait = self._wait = self._wait or _Wait(
            BankConnectHook(self.bankconnect_conn_id, max_retries=0), Streak(self.log)
        )
        deadline = self._deadline(context, wait)
        if datetime.now(UTC) >= wait.not_before and (verdict := self._look(gate, wait)):
            wait.seen = in_short(gate, verdict)
            if verdict.ends_wait(on_failed):
                rows: Rows = [row.as_dict() for row in verdict.rows]
                return PokeReturnValue(is_done=True, xcom_value=self._conclude(verdict.state, rows, verdict.because))
        now = datetime.now(UTC)
        if now >= deadline:
            raise AirflowSensorTimeout(self._timed_out(wait.streak.tell(wait.seen)))
        if self.deferrable:
            next_look = now + timedelta(seconds=max(self.poke_interval, MIN_INTERVAL))
            trigger = self._trigger(
                bankconnect_conn_id=self.bankconnect_conn_id,
                deadline=deadline,
                next_look=max(wait.not_before, next_look),
                poke_interval=self.poke_interval,
                exponential_backoff=self.exponential_backoff,
                max_wait=self.max_wait.total_seconds() if isinstance(self.max_wait, timedelta) else self.max_wait,
                on_failed=on_failed,
                silent_fail=self.silent_fail,
            )
            self.defer(trigger=trigger, method_name="execute_complete", timeout=deadline - now + _BACKSTOP)
        return False

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Rows:  # noqa: ARG002
        """End the deferred wait as the same verdict would have ended it on the worker.

        :raises BankConnectWaitError: the event is None or says what no trigger of ours says.
        """
        try:
            return self._read_event(event)
        except AirflowSkipException:
            raise
        # The same two rules that Airflow's own execute() applies to a poke; resume_execution() has others, and they
        # differ from version to version.
        except (AirflowSensorTimeout, AirflowFailException) as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipped, as soft_fail or never_fail says: {error}") from error
            raise
        except Exception as error:
            if self.never_fail:
                raise AirflowSkipException(f"Skipped, as never_fail says: {error}") from error
            raise

    def _gate_arguments(self) -> dict[str, Any]:
        """Give the arguments that say what is waited for, the trigger's names for them."""
        raise NotImplementedError

    def _gate_of(self, **arguments: Any) -> Gate:
        raise NotImplementedError

    def _trigger(self, **pace: Any) -> BaseTrigger:
        raise NotImplementedError

    def _gate(self) -> Gate:
        return self._gate_of(**self._gate_arguments())

    def _refuse_known_mistakes(self) -> None:
        """Fail at parsing where all that matters is known there; templates are judged when they are rendered."""
        # An id that only the run knows stands in for itself: everything else is judged without it.
        stand_in = {"link_id": "template", "entity_id": "template"}
        arguments = self._gate_arguments()
        known = {name: value for name, value in arguments.items() if is_literal(value)}
        self._gate_of(**{name: stand_in[name] for name in stand_in.keys() & arguments.keys()} | known)

    def _look(self, gate: Gate, wait: _Wait) -> Verdict | None:
        """Ask the ledger once. None: no answer to judge, and the wait outlives that."""
        wait.looks += 1
        timezone = wait.hook.settings.timezone
        try:
            rows: Iterable[Any] = wait.hook.run(gate.ask(timezone))
            verdict = gate.judge(rows, datetime.now(UTC))
        except api.BankConnectNotFoundError as error:
            verdict = Verdict("pending", (), str(error))
        except api.BankConnectError as error:
            if is_final(error, first_look=wait.looks == 1) and not self.silent_fail:
                raise
            hold = max(wait.streak.add(error), MIN_INTERVAL)
            wait.not_before = datetime.now(UTC) + timedelta(seconds=min(hold, 1e9))
            return None
        wait.streak.end()
        return verdict

    def _deadline(self, context: Context, wait: _Wait) -> datetime:
        started = wait.started
        if self.reschedule and not self.deferrable:
            started = context["ti"].get_first_reschedule_date(context) or started
        return started + timedelta(seconds=self.timeout)

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Hold back as long as the vendor asks; but not beyond the deadline, where the wait ends."""
        interval = float(super()._get_next_poke_interval(started_at, run_duration, poke_count))
        hold = (self._wait.not_before - datetime.now(UTC)).total_seconds() if self._wait else 0.0
        return max(MIN_INTERVAL, min(max(interval, hold), self.timeout - run_duration()))

    def _conclude(self, state: str, rows: Rows, because: str) -> Rows:
        if state == "failed" and self.on_failed == "fail":
            raise AirflowFailException(f"BankConnect says failed: {because}")
        if state == "failed" and self.on_failed == "skip":
            raise AirflowSkipException(f"BankConnect says failed: {because}")
        self.log.info("The gate opens: %s", because)
        return rows

    def _read_event(self, event: dict[str, Any] | None) -> Rows:
        check_on_failed(self.on_failed)
        match event:
            case {"status": "passed", "rows": [_, *_] as rows, "because": str(because)}:
                return self._conclude("passed", rows, because)
            case {"status": "failed", "rows": [_, *_] as rows, "because": str(because)} if self.on_failed != "wait":
                return self._conclude("failed", rows, because)
            case {"status": "timeout", "because": str(because)}:
                raise AirflowSensorTimeout(self._timed_out(because))
            case {"status": "error", "error": str(name), "because": str(because)}:
                kind: Any = getattr(api, name, None)
                known = isinstance(kind, type) and issubclass(kind, api.BankConnectError)
                raise (kind if known else BankConnectWaitError)(because)
        raise BankConnectWaitError(
            f"The deferred wait came back with an event that no trigger of ours sends (status {event.get('status')!r})"
            if isinstance(event, dict)
            else f"The deferred wait came back without an event ({type(event).__name__})"
        )

    def _timed_out(self, seen: str) -> str:
        return f"Timed out after {timedelta(seconds=self.timeout)} of waiting for {self._gate()}. Seen last: {seen}"


class BankConnectWebhookPayloadSensor(_BankConnectSensor):
    """Waits until a link's payload history holds its completed statements, and returns their rows.

    The history is BankConnect's own record of the webhooks that it was to send; whether one arrived does not matter.
    Source: "Handling cases when your webhook endpoint is down".

    Pushed to XCom is a list of dicts ``{statement_id, entity_id, link_id, progress, reason, date_time}``, newest
    first; ``date_time`` is ISO 8601 in UTC.

    :param link_id: the link, spelt as the SDK spelt it. (templated)
    :param entity_id: take only rows of this entity. (templated)
    :param statement_id: wait for this statement, or for all of these. (templated)
    :param since: take only rows from this moment on: a datetime or ISO 8601 text, naive meaning UTC. A link that is
        used again opens at once on its last run's rows without it. (templated)
    :param expected_statements: how many completed statements of one entity open the gate. (templated)
    :param on_failed: what a failed verdict means: ``"fail"`` the task without retries, ``"skip"`` it, ``"wait"`` on,
        or ``"pass"`` the failed rows on. (templated)
    :param failure_grace: how old the newest failure has to be before the verdict is failed: customers mistype, and
        try again.
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :param deferrable: wait in the triggerer.
    :raises BankConnectAuthError: the keys are refused; never retried, never a skip under ``soft_fail``.
    :raises BankConnectTimezoneError: a row lies in the future: the connection's ``timezone`` is wrong.
    :raises ValueError: an argument cannot be meant; names it.
    """

    template_fields: Sequence[str] = (
        "link_id",
        "entity_id",
        "statement_id",
        "since",
        "expected_statements",
        "on_failed",
        "bankconnect_conn_id",
    )

    def __init__(
        self,
        *,
        link_id: str,
        entity_id: str | None = None,
        statement_id: str | list[str] | None = None,
        since: datetime | str | None = None,
        expected_statements: int | str = 1,
        failure_grace: timedelta = timedelta(minutes=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.link_id = link_id
        self.entity_id = entity_id
        self.statement_id = statement_id
        self.since = since
        self.expected_statements = expected_statements
        self.failure_grace = failure_grace
        self._refuse_known_mistakes()

    def _gate_arguments(self) -> dict[str, Any]:
        return {
            "link_id": self.link_id,
            "entity_id": self.entity_id,
            "statement_id": self.statement_id,
            "since": self.since,
            "expected_statements": self.expected_statements,
            "failure_grace": self.failure_grace,
        }

    def _gate_of(self, **arguments: Any) -> HistoryGate:
        return HistoryGate(Expectation.parse(**arguments))

    def _trigger(self, **pace: Any) -> BankConnectWebhookPayloadTrigger:
        return BankConnectWebhookPayloadTrigger(**self._gate_arguments(), **pace)


class BankConnectProgressSensor(_BankConnectSensor):
    """Waits until an entity's statements are done in one analysis, and returns their rows.

    Each analysis has a progress of its own: wait for the one that you will read. The answer to ``transactions`` comes
    with all the transactions at every look; ``accounts`` or ``identity`` are smaller. A failed login never shows here,
    for nothing was uploaded: that only the link's payload history knows. Source: the ``progress`` field of the
    vendor's analyses.

    Pushed to XCom is a list of dicts ``{statement_id, entity_id, link_id, progress, reason, date_time}``; ``link_id``
    and ``date_time`` are None, for the snapshot has neither.

    :param entity_id: the entity. (templated)
    :param analysis: ``transactions``, ``accounts``, ``identity``, ``salary``, ``recurring_transactions`` or
        ``lender_transactions``. (templated)
    :param statement_id: wait for this statement, or for all of these. (templated)
    :param expected_statements: how many statements have to be done. (templated)
    :param on_failed: what a failed verdict means: ``"fail"`` the task without retries, ``"skip"`` it, ``"wait"`` on,
        or ``"pass"`` the failed rows on. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :param deferrable: wait in the triggerer.
    :raises BankConnectAuthError: the keys are refused; never retried, never a skip under ``soft_fail``.
    :raises ValueError: an argument cannot be meant; names it.
    """

    template_fields: Sequence[str] = (
        "entity_id",
        "analysis",
        "statement_id",
        "expected_statements",
        "on_failed",
        "bankconnect_conn_id",
    )

    def __init__(
        self,
        *,
        entity_id: str,
        analysis: str = "transactions",
        statement_id: str | list[str] | None = None,
        expected_statements: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entity_id = entity_id
        self.analysis = analysis
        self.statement_id = statement_id
        self.expected_statements = expected_statements
        self._refuse_known_mistakes()

    def _gate_arguments(self) -> dict[str, Any]:
        return {
            "entity_id": self.entity_id,
            "analysis": self.analysis,
            "statement_id": self.statement_id,
            "expected_statements": self.expected_statements,
        }

    def _gate_of(self, *, analysis: str = "transactions", **arguments: Any) -> ProgressGate:
        return ProgressGate(Expectation.parse(**arguments), analysis)

    def _trigger(self, **pace: Any) -> BankConnectProgressTrigger:
        return BankConnectProgressTrigger(**self._gate_arguments(), **pace)
