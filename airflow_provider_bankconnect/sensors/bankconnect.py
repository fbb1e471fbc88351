"""Gates: tasks that let those behind them run only when BankConnect's own records say so."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from airflow_provider_bankconnect.receiver.address import is_on
from airflow_provider_bankconnect.receiver.client import DoorbellError, tell_receiver
from airflow_provider_bankconnect.triggers.bankconnect import (
    MIN_INTERVAL,
    BankConnectProgressTrigger,
    BankConnectWebhookPayloadTrigger,
    NotFounds,
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
# A webhook may be so much later than the ledger's own record, and is not missing yet.
_WEBHOOK_TRAVELS: Final = timedelta(seconds=10)
_CHECK_SECONDS: Final = 5.0


class BankConnectWaitError(api.BankConnectError):
    """A deferred wait came back with nothing that a gate may open on."""


@dataclass
class _Wait:
    """How far a wait on the worker has come."""

    hook: BankConnectHook
    streak: Streak
    not_founds: NotFounds
    started: datetime
    is_new: bool
    not_before: datetime = field(default_factory=lambda: datetime.now(UTC))
    hold_until: datetime = field(default_factory=lambda: datetime.now(UTC))
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
            self._wait = self._begin(hook, context)
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Look once."""
        on_failed = check_on_failed(self.on_failed)
        gate = self._gate()
        if self._wait is None:
            self._wait = self._begin(BankConnectHook(self.bankconnect_conn_id, max_retries=0), context)
        wait = self._wait
        deadline = wait.started + timedelta(seconds=self.timeout)
        if datetime.now(UTC) >= wait.not_before and (verdict := self._look(gate, wait)):
            wait.seen = in_short(gate, verdict)
            if verdict.ends_wait(on_failed):
                rows: Rows = [row.as_dict() for row in verdict.rows]
                self._conclude(verdict.state, rows, verdict.because, started=wait.started, looks=wait.looks)
                return PokeReturnValue(is_done=True, xcom_value=rows)
        now = datetime.now(UTC)
        if now >= deadline:
            if now >= wait.not_before:
                self._test_path(wait, last=True)
            self._time_out(wait.streak.tell(wait.not_founds.tell(wait.seen)), started=wait.started, looks=wait.looks)
        if self.deferrable:
            next_look = now + timedelta(seconds=max(self.poke_interval, MIN_INTERVAL))
            trigger = self._trigger(
                bankconnect_conn_id=self.bankconnect_conn_id,
                deadline=deadline,
                next_look=max(wait.hold_until, next_look),
                not_before=wait.not_before,
                poke_interval=self.poke_interval,
                exponential_backoff=self.exponential_backoff,
                max_wait=self.max_wait.total_seconds() if isinstance(self.max_wait, timedelta) else self.max_wait,
                on_failed=on_failed,
                silent_fail=self.silent_fail,
                started=wait.started,
                looks=wait.looks,
                # Not the verdict's own words: they may be a customer's, and this is kept in the database.
                seen=wait.streak.last or "pending at the first look",
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
            wait.not_founds.end()
            verdict = gate.judge(rows, datetime.now(UTC))
        except api.BankConnectNotFoundError as error:
            wait.not_founds.add()
            self._test_path(wait)
            verdict = Verdict("pending", (), str(error))
        except api.BankConnectError as error:
            if is_final(error, first_look=wait.is_new and wait.looks == 1) and not self.silent_fail:
                raise
            pause = wait.streak.add(error)
            wait.not_before = datetime.now(UTC) + timedelta(seconds=pause.asked)
            wait.hold_until = datetime.now(UTC) + timedelta(seconds=max(pause.asked, pause.own))
            return None
        wait.streak.end()
        return verdict

    def _test_path(self, wait: _Wait, *, last: bool = False) -> None:
        if wait.not_founds.want_test(last=last):
            try:
                wait.hook.run(api.probe())
            except api.BankConnectNotFoundError:
                wait.not_founds.blame_path()
            except api.BankConnectError:
                self.log.info("The test call found out nothing")

    def _begin(self, hook: BankConnectHook, context: Context) -> _Wait:
        rescheduled = _first_start(context) if self.reschedule else None
        started = rescheduled or datetime.now(UTC)
        return _Wait(hook, Streak(self.log), NotFounds(self.log), started, is_new=rescheduled is None)

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Hold back as long as the vendor asks; but not beyond the deadline, where the wait ends."""
        interval = float(super()._get_next_poke_interval(started_at, run_duration, poke_count))
        hold = (self._wait.hold_until - datetime.now(UTC)).total_seconds() if self._wait else 0.0
        return max(MIN_INTERVAL, min(max(interval, hold), self.timeout - run_duration()))

    def _read_event(self, event: dict[str, Any] | None) -> Rows:
        check_on_failed(self.on_failed)
        told = event if isinstance(event, dict) else {}
        started, looks = _moment(told.get("started")), int(told.get("looks") or 1)
        ends = {"passed"} if self.on_failed == "wait" else {"passed", "failed"}
        match event:
            case {"status": str(state), "rows": [_, *_] as found, "because": str(because)} if state in ends:
                rows: Rows = list(found)
                self._conclude(state, rows, because, started=started, looks=looks)
                return rows
            case {"status": "timeout", "because": str(because)}:
                self._time_out(because, started=started, looks=looks)
            case {"status": "error", "error": str(name), "because": str(because)}:
                kind: Any = getattr(api, name, None)
                known = isinstance(kind, type) and issubclass(kind, api.BankConnectError)
                raise (kind if known else BankConnectWaitError)(because)
        said = f"status {event.get('status')!r}" if isinstance(event, dict) else type(event).__name__
        raise BankConnectWaitError(f"The deferred wait came back with an event that no trigger of ours sends: {said}")

    def _conclude(self, state: str, rows: Rows, because: str, *, started: datetime, looks: int) -> None:
        """Say how the wait has ended, and raise where a failed verdict does not open the gate."""
        said = ((row["statement_id"] or "an attempt", row["progress"], row["date_time"]) for row in rows)
        by = ", ".join(" ".join(filter(None, words)) for words in said)
        self.log.info("%s: %s: %s", self._waited(started, looks), because, by)
        self._ask_whether_rung(rows)
        if state == "failed" and self.on_failed == "fail":
            raise AirflowFailException(f"BankConnect says failed: {because}")
        if state == "failed" and self.on_failed == "skip":
            raise AirflowSkipException(f"BankConnect says failed: {because}")

    def _ask_whether_rung(self, rows: Rows) -> None:
        """Have a doorbell count what no webhook has announced. Nothing of the wait hangs on that."""
        settled = datetime.now(UTC) - _WEBHOOK_TRAVELS
        old = [row for row in rows if row["date_time"] and datetime.fromisoformat(row["date_time"]) < settled]
        try:
            if old and is_on():
                tell_receiver(self.bankconnect_conn_id, old, "check", timeout=_CHECK_SECONDS)
        except (DoorbellError, ValueError) as error:
            self.log.info("Whether webhooks had announced these statements was not to be found out: %s", error)

    def _time_out(self, seen: str, *, started: datetime, looks: int) -> NoReturn:
        raise AirflowSensorTimeout(
            f"{self._waited(started, looks)}, and timed out after {timedelta(seconds=self.timeout)}. Seen last: {seen}"
        )

    def _waited(self, started: datetime, looks: int) -> str:
        waited = timedelta(seconds=round((datetime.now(UTC) - started).total_seconds()))
        # In reschedule mode each look is a process of its own, and knows of no other.
        times = "" if self.reschedule and not self.deferrable else f", looked {looks} time{'' if looks == 1 else 's'}"
        return f"Waited {waited} for {self._gate()}{times}"


def _moment(text: object) -> datetime:
    return datetime.fromisoformat(text) if isinstance(text, str) else datetime.now(UTC)


def _first_start(context: Context) -> datetime | None:
    """Say when a task that was rescheduled began; None where it was not."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        first: datetime | None = ti.get_first_reschedule_date(context)
    else:
        # Airflow 2.11 keeps it to itself.
        from airflow.sensors.base import _orig_start_date  # type: ignore[import-not-found] # noqa: PLC0415

        try_number = (ti.max_tries or 0) - (ti.task.retries or 0) + 1
        first = _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, try_number)
    return first


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
    :raises BankConnectAuthError: the keys are refused: sent once in a try, and never a skip under ``soft_fail``.
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
    :raises BankConnectAuthError: the keys are refused: sent once in a try, and never a skip under ``soft_fail``.
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
