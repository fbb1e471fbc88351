"""Whether webhooks arrive and start runs, and in words what to do where they do not. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from airflow_provider_bankconnect.ui.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_bankconnect.ui.triggerers import Untaken
    from airflow_provider_bankconnect.ui.webhooks import ScheduledDag, Traffic

# After a registration the first webhook should arrive in this time, if customers are sent to BankConnect at all.
_FIRST_WEBHOOK: Final = timedelta(days=1)
_CATCH_UP: Final = (
    "BankConnectCatchUpOperator (DAG bankconnect_catch_up) starts their runs, for the links that it is given"
)
_REGISTER: Final = "run the DAG bankconnect_register_webhook, without a webhook_url"
_LOST: Final = f"BankConnect does not send them again; {_CATCH_UP}"

# What each reason for a refusal means, and what to do.
REASONS: Final = {
    "token": "the token in the address is wrong. Somebody may be guessing; after a change of [bankconnect] "
    f"webhook_token, {_REGISTER}",
    "internal_token": "a component of Airflow, or a stranger, sent a wrong token. Set the same [bankconnect] "
    "webhook_token on all components",
    "connection": "the address names a connection that does not exist. If BankConnect sends them, register the address "
    "again with the right connection",
    "no_dag": f"no DAG is scheduled by the webhook asset of the connection. {_LOST}",
    "database": f"the database did not record them. {_LOST}",
    "full": f"too many webhooks waited for the database. {_LOST}",
    "json": "the body was no JSON object. Somebody other than BankConnect may send them",
    "fields": "a field was missing or had another type. Has BankConnect changed its webhooks, or is it somebody else?",
    "content_type": "the body was no JSON object. Somebody other than BankConnect may send them",
    "too_long": "the body was too long. Somebody other than BankConnect may send them",
    "cut_off": f"the connection broke off. {_LOST}",
    "slow": f"the body took too long to arrive. {_LOST}",
}


class Problem(NamedTuple):
    """Something that is wrong, and what to do about it."""

    level: Literal["error", "warning"]
    text: str


@dataclass(frozen=True)
class Health:
    """What is known about the webhooks of one connection.

    :param dags: those that its webhooks schedule.
    :param without_run: how many customers have a webhook of the last day and no run.
    :param missed: how many completed statements of the last day had no webhook.
    :param refused: how many webhooks were refused in the last day, by reason.
    :param registered: when the endpoint was registered last, and whether as the webhook receiver of this Airflow.
    """

    conn_id: str
    traffic: Traffic
    dags: Sequence[ScheduledDag] = ()
    without_run: int = 0
    missed: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    registered: tuple[datetime, bool] | None = None

    @property
    def hour(self) -> int:
        """How many webhooks were recorded in the last hour."""
        return self.traffic.hours[-1]

    @property
    def day(self) -> int:
        """How many webhooks were recorded in the last 24 hours."""
        return sum(self.traffic.hours)

    def problems(self, now: datetime) -> list[Problem]:
        """Return what is wrong, the worst first."""
        found = [*_of_dags(self.dags), *self._of_registration(now)]
        if self.without_run:
            text = f"{count_of(self.without_run, 'customer')} had a webhook more than 5 minutes ago, and no run"
            found.append(Problem("warning", f"{text}. When a DAG is scheduled and not paused, {_CATCH_UP}"))
        if self.missed:
            text = f"{count_of(self.missed, 'completed statement')} of the last day had no webhook here"
            check = f"Check the refusals and [bankconnect] public_url, and {_REGISTER}: it sets webhook_mode again"
            found.append(Problem("warning", f"{text}. {check}. {_CATCH_UP}"))
        found += problems_of_refusals(self.refused)
        return sorted(found, key=lambda problem: problem.level)

    def _of_registration(self, now: datetime) -> list[Problem]:
        last = self.traffic.last
        if self.registered is None:
            if last is not None:
                return []
            text = "No webhook has arrived, and no registration of the webhook endpoint is on record"
            return [Problem("error", f"{text}: {_REGISTER}")]
        when, is_here = self.registered
        if not is_here and (last is None or last < when):
            text = "BankConnect was told to send its webhooks elsewhere, not to this Airflow"
            return [Problem("error", f"{text}. For this one, {_REGISTER}")]
        if is_here and (last is None or last < when) and now - when > _FIRST_WEBHOOK:
            text = "No webhook has arrived since the webhook endpoint was registered"
            check = "Check from outside that BankConnect reaches [bankconnect] public_url"
            return [Problem("warning", f"{text}. {check}, and that no other Airflow has registered itself since")]
        return []


def problems_of_refusals(refused: Mapping[str, int]) -> list[Problem]:
    """Return what refused requests mean, the most frequent reason first."""
    return [
        Problem(
            "warning",
            f"{count_of(number, 'request')} of the last day refused ({reason}): "
            f"{REASONS.get(reason, 'see the log of the API server')}",
        )
        for reason, number in sorted(refused.items(), key=lambda item: -item[1])
    ]


def problems_of_untaken(untaken: Untaken) -> list[Problem]:
    """Return what deferred waits without a triggerer mean, the queue with most of them first."""
    found = []
    for queue, number in sorted(untaken.queues.items(), key=lambda item: -item[1]):
        have = "has" if number == 1 else "have"
        text = f"{count_of(number, 'open wait')} {have} had no running triggerer for a minute: nothing checks them"
        start = f"start one with the queue {queue!r} (airflow triggerer --queues)" if queue else "start one"
        if not untaken.runs:
            why = f"No triggerer runs: {start}"
        elif queue:
            why = f"[triggerer] queues_enabled is on, and a triggerer takes only the queues that it is given: {start}"
        else:
            why = "A triggerer with --queues does not take them: start one without"
        full = ". If one runs, it has as many triggers as its capacity allows" if untaken.runs else ""
        found.append(Problem("error", f"{text}. {why}{full}"))
    return found


def _of_dags(dags: Sequence[ScheduledDag]) -> list[Problem]:
    advice = "Copy the example DAG bankconnect_on_webhook, or schedule a DAG by webhook_asset() of this connection"
    if not dags:
        return [Problem("error", f"No DAG is scheduled by the webhooks: they start no run. {advice}")]
    found = []
    if stale := [dag.dag_id for dag in dags if dag.is_stale]:
        text = f"Airflow cannot parse {', '.join(stale)} now, or its file is gone"
        found.append(Problem("error", f"{text}. See Airflow's import errors. Its runs start when it is parsed again"))
    paused = [dag.dag_id for dag in dags if dag.is_paused]
    if len(paused) == len(dags):
        text = f"{', '.join(paused)} {'is' if len(paused) == 1 else 'are'} paused: webhooks start no run"
        found.append(Problem("error", f"{text}. Unpause, then {_CATCH_UP}"))
    elif paused:
        found.append(Problem("warning", f"{', '.join(paused)}: paused, and gets no run from webhooks"))
    if plain := [dag.dag_id for dag in dags if not dag.is_partitioned]:
        text = f"{', '.join(plain)}: scheduled by an asset without partitions, so that a webhook starts no run"
        found.append(Problem("warning", f"{text}. Use PartitionedAssetTimetable(assets=webhook_asset(...))"))
    return found
