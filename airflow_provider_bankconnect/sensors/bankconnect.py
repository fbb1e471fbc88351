"""Gates: tasks that let the tasks after them run only when BankConnect's own records say so."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.providers.common.compat.sdk import conf

from airflow_provider_bankconnect.arguments import check_id
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate
from airflow_provider_bankconnect.sensors.base import BankConnectBaseSensor, BankConnectWaitError
from airflow_provider_bankconnect.sensors.customer import customer_of_run
from airflow_provider_bankconnect.triggers.bankconnect import (
    BankConnectProgressTrigger,
    BankConnectStatementTrigger,
    BankConnectWebhookPayloadTrigger,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_bankconnect.api import Analysis
    from airflow_provider_bankconnect.expectation import OnFailed

__all__ = [
    "BankConnectProgressSensor",
    "BankConnectStatementSensor",
    "BankConnectWaitError",
    "BankConnectWebhookPayloadSensor",
]

# An id as text or number, or the result of an upstream task.
Id: TypeAlias = "str | int | XComArg"


class BankConnectWebhookPayloadSensor(BankConnectBaseSensor):
    """Waits until a link's payload history has its completed statements, and returns their rows.

    The history is BankConnect's own record of the webhooks of a link; whether a webhook arrived does not matter.
    Source: "Handling cases when your webhook endpoint is down".

    Pushes to XCom a list of dicts ``{statement_id, entity_id, link_id, progress, reason, date_time}``, newest first;
    ``date_time`` is ISO 8601 in UTC.

    :param link_id: the link, spelt as the SDK spelt it. (templated)
    :param entity_id: count only rows of this entity. (templated)
    :param statement_id: wait for this statement, or for all of these. (templated)
    :param since: count only rows from this time on: a date, a datetime or ISO 8601 text; naive means UTC, and a date is
        its first moment in UTC. Without it, a link that is used again passes at once on the rows of its last use.
        (templated)
    :param expected_statements: how many completed statements of one entity pass the gate. (templated)
    :param failure_grace: how old the newest failure must be before the verdict is failed: customers mistype, and try
        again.
    :param on_failed: what a failed verdict means: ``"fail"`` the task without retries, ``"skip"`` it, ``"wait"`` on,
        or ``"pass"`` with the failed rows. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :param deferrable: wait in the triggerer.
    :raises BankConnectAuthError: BankConnect refuses the keys: sent once in a try, never a skip under ``soft_fail``.
    :raises BankConnectTimezoneError: a row is in the future: the connection's ``timezone`` is wrong.
    :raises ValueError: an argument is invalid; the message names it.
    """

    # All but failure_grace.
    template_fields: Sequence[str] = (*HistoryGate.names[:-1], "on_failed", "bankconnect_conn_id")
    _gate_type = HistoryGate
    _trigger_type = BankConnectWebhookPayloadTrigger

    def __init__(
        self,
        *,
        link_id: Id,
        entity_id: Id | None = None,
        statement_id: Id | Sequence[Id] | None = None,
        since: date | str | XComArg | None = None,
        expected_statements: int | str | XComArg = 1,
        failure_grace: timedelta = timedelta(minutes=30),
        on_failed: OnFailed = "fail",
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(on_failed=on_failed, bankconnect_conn_id=bankconnect_conn_id, deferrable=deferrable, **kwargs)
        self.link_id = link_id
        self.entity_id = entity_id
        self.statement_id = statement_id
        self.since = since
        self.expected_statements = expected_statements
        self.failure_grace = failure_grace
        self._refuse_known_mistakes()


class BankConnectProgressSensor(BankConnectBaseSensor):
    """Waits until an entity's statements are done in one analysis, and returns their rows.

    Each analysis has its own progress: wait for the one that you will read. For ``transactions``, the pokes read the
    small answer of ``identity``, whose ``transaction_status`` says the same, and read ``transactions`` once to confirm.
    A failed login never shows here, because nothing was uploaded: only the link's payload history has it. Source: the
    ``progress`` field of the vendor's analyses.

    Pushes to XCom a list of dicts ``{statement_id, entity_id, link_id, progress, reason, date_time}``; ``link_id`` and
    ``date_time`` are None, because progress has neither.

    :param entity_id: the entity. (templated)
    :param analysis: one of :data:`~airflow_provider_bankconnect.api.ANALYSES`, such as ``transactions``. (templated)
    :param statement_id: wait for this statement, or for all of these. (templated)
    :param expected_statements: how many statements have to be done. (templated)
    :param on_failed: what a failed verdict means: ``"fail"`` the task without retries, ``"skip"`` it, ``"wait"`` on,
        or ``"pass"`` with the failed rows. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :param deferrable: wait in the triggerer.
    :raises BankConnectAuthError: BankConnect refuses the keys: sent once in a try, never a skip under ``soft_fail``.
    :raises ValueError: an argument is invalid; the message names it.
    """

    template_fields: Sequence[str] = (*ProgressGate.names, "on_failed", "bankconnect_conn_id")
    _gate_type = ProgressGate
    _trigger_type = BankConnectProgressTrigger

    def __init__(
        self,
        *,
        entity_id: Id,
        analysis: Analysis = "transactions",
        statement_id: Id | Sequence[Id] | None = None,
        expected_statements: int | str | XComArg = 1,
        on_failed: OnFailed = "fail",
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(on_failed=on_failed, bankconnect_conn_id=bankconnect_conn_id, deferrable=deferrable, **kwargs)
        self.entity_id = entity_id
        self.analysis = analysis
        self.statement_id = statement_id
        self.expected_statements = expected_statements
        self._refuse_known_mistakes()


class BankConnectStatementSensor(BankConnectBaseSensor):
    """Waits until a customer's statements are completed, and returns their rows: one gate for any customer.

    It reads both of BankConnect's records: the payload history of the link, and the progress of the ``transactions`` of
    the link's entities. So it also counts a statement that sent no webhook, and it also fails on a failed login. The
    history decides wherever it has a row of a statement. The gate does not pass while either record says that a
    statement is in progress. A link may have up to 50 entities; for one with more, name the entity.

    Give the link, the entity, or both. Without both, the sensor waits for the customer of the run: that of the webhook
    event that started it, else of its partition key, else ``link_id`` and ``entity_id`` of its ``conf``. It then also
    waits until one of the records has the statements that these events announced as completed, for up to ten minutes
    after the event.

    Pushes to XCom a list of dicts ``{statement_id, entity_id, link_id, progress, reason, date_time}``, newest first.
    Rows that only the progress has come last; their ``link_id`` and ``date_time`` are None.

    :param link_id: the link, spelt as the SDK spelt it. (templated)
    :param entity_id: the entity. With ``link_id``, it must be one of the link. (templated)
    :param statement_id: wait for this statement, or for all of these. (templated)
    :param since: count only rows of the history from this time on: a date, a datetime or ISO 8601 text; naive means
        UTC, and a date is its first moment in UTC. Of the statements that only the progress has, which has no times,
        only those in ``statement_id`` count then. (templated)
    :param expected_statements: how many completed statements of one entity pass the gate. (templated)
    :param failure_grace: how old the newest failure in the history must be before the verdict is failed. A failure that
        only the progress has counts at once.
    :param on_failed: what a failed verdict means: ``"fail"`` the task without retries, ``"skip"`` it, ``"wait"`` on,
        or ``"pass"`` with the failed rows. (templated)
    :param bankconnect_conn_id: the connection with both keys. (templated)
    :param deferrable: wait in the triggerer.
    :raises BankConnectAuthError: BankConnect refuses the keys: sent once in a try, never a skip under ``soft_fail``.
    :raises BankConnectLimitError: the link has more than 50 entities.
    :raises BankConnectTimezoneError: a row is in the future: the connection's ``timezone`` is wrong.
    :raises ValueError: an argument is invalid, or neither the arguments nor the run name a customer.
    """

    # All but failure_grace.
    template_fields: Sequence[str] = (*HistoryGate.names[:-1], "on_failed", "bankconnect_conn_id")
    _gate_type = CustomerGate
    _trigger_type = BankConnectStatementTrigger

    def __init__(
        self,
        *,
        link_id: Id | None = None,
        entity_id: Id | None = None,
        statement_id: Id | Sequence[Id] | None = None,
        since: date | str | XComArg | None = None,
        expected_statements: int | str | XComArg = 1,
        failure_grace: timedelta = timedelta(minutes=30),
        on_failed: OnFailed = "fail",
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(on_failed=on_failed, bankconnect_conn_id=bankconnect_conn_id, deferrable=deferrable, **kwargs)
        self.link_id = link_id
        self.entity_id = entity_id
        self.statement_id = statement_id
        self.since = since
        self.expected_statements = expected_statements
        self.failure_grace = failure_grace
        self.announced: Sequence[str] = ()
        self.announced_until: datetime | None = None
        self._given = [name for name in ("link_id", "entity_id") if getattr(self, name) is not None]
        self._refuse_known_mistakes()

    def _parse_time_arguments(self) -> dict[str, Any]:
        arguments = super()._parse_time_arguments()
        # The run will name the customer.
        return arguments if self._given else arguments | {"link_id": "of the run"}

    def _find_customer(self, context: Context) -> None:
        for name in self._given:
            # A template that finds nothing must not make it another customer.
            check_id(name, getattr(self, name))
        if not self._given:
            self.link_id, self.entity_id, self.announced, self.announced_until = customer_of_run(
                context, self.bankconnect_conn_id
            )
