"""The deferred waits: look at a ledger now and then, until its gate opens, closes, or the time is over."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.explain import in_short
from airflow_provider_bankconnect.gate import (
    Expectation,
    Gate,
    HistoryGate,
    OnFailed,
    ProgressGate,
    Verdict,
    check_on_failed,
)
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.triggers.poller import SHARED_SECONDS, Poller, Rows, shared_poller, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import tzinfo
    from typing import NotRequired, Protocol, Required, Unpack

    class Logger(Protocol):
        """What Airflow's loggers, of every version, have in common."""

        def info(self, message: str, /, *args: object) -> object:
            """Log what is as it should be."""

        def warning(self, message: str, /, *args: object) -> object:
            """Log what is not."""


MIN_INTERVAL: Final = 1.0
# The look at the deadline may take so long; Airflow's own timeout stands two minutes behind ours.
_LAST_LOOK_SECONDS: Final = 60.0
_SPREAD_SECONDS: Final = 60.0
# A ring does not wake a wait in its first moments: where a task comes back so soon that Airflow's scheduler has not yet
# seen that it had left, that takes the one for the other and fails the task ("state mismatch"; seen on 3.2.2).
_SETTLING_SECONDS: Final = 5.0
# After a ring for which the ledger has nothing yet, look again so soon.
_ECHO_SECONDS: Final = (2.0, 5.0, 20.0)
# So long a 404 is taken for "nothing there yet", before the test call is made.
_NOT_FOUND_PATIENCE: Final = timedelta(minutes=5)
_NO_PATH: Final = "even the test call gets HTTP 404: check the path in the connection's host"
# So many rows are judged in a thread: the loop belongs to all waits.
_OFF_LOOP_ROWS: Final = 500


class WaitEvent(TypedDict, total=False):
    """All that a trigger ever says.

    ``status``: the gate has ``passed`` or ``failed`` (with ``rows``), the deadline has come (``timeout``), or the
    wait cannot go on (``error``, with the name of the ``error``). ``because`` says why, in words; ``started`` and
    ``looks`` tell of the whole wait.
    """

    status: Required[Literal["passed", "failed", "timeout", "error"]]
    because: Required[str]
    rows: list[dict[str, str | None]]
    error: str
    started: str
    looks: int


class Pace(TypedDict):
    """When a wait looks, and until when: arguments of every trigger here.

    :param bankconnect_conn_id: the connection with both keys.
    :param deadline: when the wait ends; aware, or ISO 8601 text. Absolute: a restarted triggerer keeps it.
    :param next_look: when to look first; now when it is left out.
    :param not_before: the vendor has asked not to be asked before then.
    :param poke_interval: seconds between two looks; never under one.
    :param exponential_backoff: double the time between two looks each time.
    :param max_wait: the most seconds between two looks.
    :param on_failed: with ``"wait"`` a failed verdict does not end the wait.
    :param silent_fail: outlive even the errors that are final otherwise.
    :param started: when the wait began, on the worker; for what is told at its end.
    :param looks: how often the worker has looked.
    :param seen: what came of that, in words without anything of the customer's.
    """

    deadline: datetime | str
    bankconnect_conn_id: NotRequired[str]
    next_look: NotRequired[datetime | str | None]
    not_before: NotRequired[datetime | str | None]
    poke_interval: NotRequired[float]
    exponential_backoff: NotRequired[bool]
    max_wait: NotRequired[float | None]
    on_failed: NotRequired[OnFailed]
    silent_fail: NotRequired[bool]
    started: NotRequired[datetime | str | None]
    looks: NotRequired[int]
    seen: NotRequired[str]


class Pause(NamedTuple):
    """Seconds to hold back: what the vendor ``asked`` for binds even the last look, our ``own`` back-off does not."""

    asked: float
    own: float


class Streak:
    """Errors in a row: told when they begin and when they are over, not at every one."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self.count = 0
        self.last = ""

    def add(self, error: Exception) -> Pause:
        """Count an error, and say how long to hold back."""
        self.count += 1
        self.last = f"{type(error).__name__}: {error}"
        if self.count == 1:
            self._log.warning("The wait goes on after an error: %s", self.last)
        asked = error.retry_after or 0.0 if isinstance(error, api.BankConnectTransientError) else 0.0
        return Pause(
            asked=max(asked, MIN_INTERVAL),
            own=api.backoff(self.count, jitter=random.random(), retry_after=asked),  # noqa: S311 - no secret hangs on it
        )

    def end(self) -> None:
        """Note that an answer could be read."""
        if self.count:
            self._log.info("BankConnect answers again, after %d errors in a row", self.count)
        self.count, self.last = 0, ""

    def tell(self, seen: str) -> str:
        """Say what was seen last, and what has stood in the way since."""
        return f"{seen}; then {self.count} errors in a row, the last: {self.last}" if self.count else seen


class NotFounds:
    """404s in a row: nothing is there yet; or, when even the test call gets one, the base path is wrong."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._since: datetime | None = None
        self._tested = False
        self._blamed = False

    def add(self) -> None:
        """Note one."""
        self._since = self._since or datetime.now(UTC)

    def end(self) -> None:
        """Note another answer."""
        self._since, self._tested, self._blamed = None, False, False

    def want_test(self, *, last: bool = False) -> bool:
        """Say whether it is time for the test call: once, after some minutes of 404, or at the deadline."""
        if self._since is None or self._tested:
            return False
        self._tested = last or datetime.now(UTC) - self._since >= _NOT_FOUND_PATIENCE
        return self._tested

    def blame_path(self) -> None:
        """Note that the test call got a 404 too."""
        self._blamed = True
        self._log.warning("BankConnect answers 404; %s", _NO_PATH)

    def tell(self, seen: str) -> str:
        """Say what was seen last, and that it may be no answer of BankConnect's at all."""
        return f"{_NO_PATH}; {seen}" if self._blamed else seen


class _TestCall:
    """One for all waits: the poller makes equal calls once."""

    ledger = ("test call",)

    def ask(self, timezone: tzinfo) -> api.Call[list[str]]:  # noqa: ARG002 - it has no times
        return api.probe()


def is_final(error: Exception, *, first_look: bool) -> bool:
    """Say whether no later look can mend this: wrong keys, a wrong zone, at first sight a wrong certificate."""
    return isinstance(error, api.BankConnectAuthError | api.BankConnectTimezoneError) or (
        first_look and isinstance(error, api.BankConnectCertificateError)
    )


@dataclass
class _State:
    """How far a wait has come since the triggerer took it up."""

    streak: Streak
    not_founds: NotFounds
    not_before: datetime
    next_look: datetime
    looks: int
    seen: str
    settled: datetime
    # How often it has looked at its own pace, and whether the next look is before its time, for a ring's sake.
    paced: int
    hurried: bool = False
    rings: int = 0
    echoes: int = 0


class _BankConnectTrigger(BaseTrigger):
    """Looks at a ledger until the verdict is there, the deadline has come, or looking on makes no sense.

    It yields exactly one :class:`WaitEvent`, and no exception leaves it. It changes nothing at BankConnect: after a
    crash of the triggerer the wait begins to look again, and goes on with the same deadline.
    """

    def __init__(self, gate: Gate, **pace: Unpack[Pace]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gate = gate
        self.bankconnect_conn_id = pace.get("bankconnect_conn_id", BankConnectHook.default_conn_name)
        self.deadline = _moment(pace["deadline"])
        self.next_look = _moment(pace.get("next_look") or datetime.now(UTC))
        self.not_before = _moment(pace.get("not_before") or datetime.min.replace(tzinfo=UTC))
        self.poke_interval = pace.get("poke_interval", 60.0)
        self.exponential_backoff = pace.get("exponential_backoff", False)
        self.max_wait = pace.get("max_wait")
        self.on_failed = check_on_failed(pace.get("on_failed", "fail"))
        self.silent_fail = pace.get("silent_fail", False)
        self.started = _moment(pace.get("started") or datetime.now(UTC))
        self.looks = pace.get("looks", 0)
        self.seen = pace.get("seen", "no answer yet")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give the class path and its arguments, in types that every Airflow serializes. No keys among them."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            **self._gate_arguments(),
            "bankconnect_conn_id": self.bankconnect_conn_id,
            "deadline": self.deadline.isoformat(),
            "next_look": self.next_look.isoformat(),
            "not_before": self.not_before.isoformat(),
            "poke_interval": self.poke_interval,
            "exponential_backoff": self.exponential_backoff,
            "max_wait": self.max_wait,
            "on_failed": self.on_failed,
            "silent_fail": self.silent_fail,
            "started": self.started.isoformat(),
            "looks": self.looks,
            "seen": self.seen,
        }

    def _gate_arguments(self) -> dict[str, Any]:
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        try:
            event = await self._wait()
        except Exception as error:
            self.log.exception("The wait for %s broke off", self.gate)
            event = WaitEvent(
                status="error", error=type(error).__name__, because="the wait broke off; the triggerer's log says where"
            )
        event["started"] = self.started.isoformat()
        yield TriggerEvent(dict(event))  # type: ignore[no-untyped-call]

    async def _wait(self) -> WaitEvent:
        self.log.info("Waiting for %s until %s", self.gate, self.deadline.isoformat(timespec="seconds"))
        settled = datetime.now(UTC) + timedelta(seconds=_SETTLING_SECONDS if self.looks else 0.0)
        state = _State(
            Streak(self.log),
            NotFounds(self.log),
            self.not_before,
            self._first_look(),
            self.looks,
            self.seen,
            settled,
            paced=self.looks,
        )
        async with shared_poller(self.bankconnect_conn_id) as poller, poller.waiting(self.gate) as state.rings:
            while (now := datetime.now(UTC)) < self.deadline:
                try:
                    async with asyncio.timeout((self.deadline - now).total_seconds()):
                        heard = await self._rest(poller, state)
                        event = await self._look(poller, state, heard)
                except TimeoutError:
                    break
                if event is not None:
                    return event
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_SECONDS):
                    # One last look, unless the vendor has asked not to be asked so soon.
                    if state.not_before <= datetime.now(UTC) and not poller.held:
                        event = await self._look(poller, state)
                        if event is not None:
                            return event
                    if not poller.held:
                        await self._test_path(poller, state, last=True)
        because = state.streak.tell(state.not_founds.tell(state.seen))
        return WaitEvent(status="timeout", because=because, looks=state.looks)

    async def _rest(self, poller: Poller, state: _State) -> Rows | Exception | None:
        """Wait for the time of the next look; for an answer that another wait got for the same question; or for a ring.

        A ring says only that it may be worth looking, and not before the vendor or our own pace allow it.
        """
        # The loop's clock and the wall clock drift apart: a deadline is a time of day.
        while (left := (state.next_look - datetime.now(UTC)).total_seconds()) > 0:
            if state.rings != poller.rings(self.gate):
                state.rings, state.echoes = poller.rings(self.gate), len(_ECHO_SECONDS)
                soon = max(state.not_before, state.settled, datetime.now(UTC))
                if soon < state.next_look:
                    state.next_look, state.hurried = soon, True
                continue
            heard = await poller.hear(self.gate, left)
            if heard is not None:
                return heard
        return None

    async def _look(self, poller: Poller, state: _State, heard: Rows | Exception | None = None) -> WaitEvent | None:
        """Look once, or at what was ``heard``, which is no look of its own; None to go on waiting."""
        if heard is None:
            state.looks += 1
            # Else whoever can ring could lengthen the pauses of exponential_backoff, and delay the gate.
            state.paced += not state.hurried
        state.hurried = False
        pause = Pause(MIN_INTERVAL, 0.0)
        try:
            verdict = await self._judge(poller, state, heard)
        except Exception as error:
            if not isinstance(error, api.BankConnectError) and poller.connected:
                raise
            if is_final(error, first_look=False) and not self.silent_fail:
                return WaitEvent(status="error", error=type(error).__name__, because=str(error), looks=state.looks)
            pause = state.streak.add(error)
        else:
            state.streak.end()
            state.seen = in_short(self.gate, verdict)
            if verdict.ends_wait(self.on_failed):
                rows = [row.as_dict() for row in verdict.rows]
                status: Literal["passed", "failed"] = "passed" if verdict.state == "passed" else "failed"
                return WaitEvent(status=status, rows=rows, because=verdict.because, looks=state.looks)
        now = datetime.now(UTC)
        # What was heard is another wait's answer, and takes nothing back of what the vendor asked this one for.
        state.not_before = max(state.not_before, now + timedelta(seconds=pause.asked))
        interval = self._interval(state.paced)
        if state.echoes and not pause.own:
            # The bell may be faster than the ledger: what it announced is looked for a few times more.
            state.hurried = _ECHO_SECONDS[-state.echoes] < interval
            interval = min(interval, _ECHO_SECONDS[-state.echoes])
            state.echoes -= 1
        state.next_look = max(state.not_before, now + timedelta(seconds=max(pause.own, interval)))
        return None

    async def _test_path(self, poller: Poller, state: _State, *, last: bool = False) -> None:
        if state.not_founds.want_test(last=last):
            try:
                await poller.ask(_TestCall())
            except api.BankConnectNotFoundError:
                state.not_founds.blame_path()
            except api.BankConnectError:
                self.log.info("The test call found out nothing")

    async def _judge(self, poller: Poller, state: _State, heard: Rows | Exception | None) -> Verdict:
        try:
            if heard is None:
                rows = await poller.ask(self.gate, max_age=min(self.poke_interval / 2, SHARED_SECONDS))
            else:
                rows = told(heard)
        except api.BankConnectNotFoundError as error:
            state.not_founds.add()
            await self._test_path(poller, state)
            return Verdict("pending", (), str(error))
        state.not_founds.end()
        now = datetime.now(UTC)
        if len(rows) < _OFF_LOOP_ROWS:
            return self.gate.judge(rows, now)
        return await asyncio.to_thread(self.gate.judge, rows, now)

    def _first_look(self) -> datetime:
        """Keep to ``next_look``; but after a restart, when it is long over for all waits, spread them."""
        overdue = (datetime.now(UTC) - self.next_look).total_seconds()
        if overdue <= MIN_INTERVAL:
            return self.next_look
        return datetime.now(UTC) + timedelta(seconds=random.random() * min(self.poke_interval, _SPREAD_SECONDS))  # noqa: S311

    def _interval(self, looks: int) -> float:
        """Seconds between two looks; with ``exponential_backoff`` doubled each time, with jitter, as Airflow does."""
        interval = self.poke_interval
        if self.exponential_backoff:
            interval = max(interval * 2.0 ** (min(max(looks, 1), 30) - 1), MIN_INTERVAL) * random.uniform(1, 2)  # noqa: S311
        if self.max_wait is not None:
            interval = min(interval, self.max_wait)
        return min(max(interval, MIN_INTERVAL), 1e9)


class BankConnectWebhookPayloadTrigger(_BankConnectTrigger):
    """Waits for the webhook payloads of a link.

    The arguments of the gate are those of
    :class:`~airflow_provider_bankconnect.sensors.bankconnect.BankConnectWebhookPayloadSensor`, the others those of
    :class:`Pace`.
    """

    gate: HistoryGate

    def __init__(
        self,
        *,
        link_id: str,
        entity_id: str | None = None,
        statement_id: str | list[str] | None = None,
        since: datetime | str | None = None,
        expected_statements: int = 1,
        failure_grace: timedelta | float = timedelta(minutes=30),
        **pace: Unpack[Pace],
    ) -> None:
        expectation = Expectation.parse(
            link_id=link_id,
            entity_id=entity_id,
            statement_id=statement_id,
            since=since,
            expected_statements=expected_statements,
            failure_grace=failure_grace,
        )
        super().__init__(HistoryGate(expectation), **pace)

    def _gate_arguments(self) -> dict[str, Any]:
        expected = self.gate.expectation
        return {
            "link_id": expected.link_id,
            "entity_id": expected.entity_id,
            "statement_id": list(expected.statement_id) if expected.statement_id else None,
            "since": expected.since.isoformat() if expected.since else None,
            "expected_statements": expected.expected_statements,
            "failure_grace": expected.failure_grace.total_seconds(),
        }


class BankConnectProgressTrigger(_BankConnectTrigger):
    """Waits for the progress of one analysis of an entity.

    The arguments of the gate are those of
    :class:`~airflow_provider_bankconnect.sensors.bankconnect.BankConnectProgressSensor`, the others those of
    :class:`Pace`.
    """

    gate: ProgressGate

    def __init__(
        self,
        *,
        entity_id: str,
        analysis: str = "transactions",
        statement_id: str | list[str] | None = None,
        expected_statements: int = 1,
        **pace: Unpack[Pace],
    ) -> None:
        expectation = Expectation.parse(
            entity_id=entity_id, statement_id=statement_id, expected_statements=expected_statements
        )
        super().__init__(ProgressGate(expectation, analysis), **pace)

    def _gate_arguments(self) -> dict[str, Any]:
        expected = self.gate.expectation
        return {
            "entity_id": expected.entity_id,
            "analysis": self.gate.analysis,
            "statement_id": list(expected.statement_id) if expected.statement_id else None,
            "expected_statements": expected.expected_statements,
        }


def _moment(value: datetime | str) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment.tzinfo is None:
        raise ValueError(f"a deadline, or any other moment of a wait, must be aware, not {value!r}")
    return moment.astimezone(UTC)
