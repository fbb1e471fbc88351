"""A task that records missed webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect.arguments import check_conn_id, is_literal, parse_bool, parse_since
from airflow_provider_bankconnect.catching_up import CatchingUp, Failed, Recorder
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.hooks.histories import Histories
from airflow_provider_bankconnect.link_ids import LinkIds, keep_iterator
from airflow_provider_bankconnect.receiver.address import is_on, require_airflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, XComArg

    from airflow_provider_bankconnect.catching_up import How


class BankConnectCatchUpOperator(BaseOperator):
    """Records completed statements that started no run, for instance after an outage of the API server.

    It reads the payload histories of the given links, many at once, and sends the completed statements to the webhook
    receiver, which knows what is recorded and what has a run: so it may run every few minutes, and two runs may
    overlap. A statement is recorded if no webhook announced it, and once more if its event has no run and waits for
    none. It cannot find a link that is not given, or an upload without a link. Source: "Handling cases when your
    webhook endpoint is down".

    A link that fails does not end the others: the task fails after them, and names the first links that failed. A task
    that is told to end records first what BankConnect has answered.

    Pushes a dict of numbers to XCom: ``{links, completed, recorded, duplicates}``.

    :param link_ids: the links to check: a list; an iterator, which is read while the task runs; a file with one id a
        line, in UTF-8, as an ``ObjectStoragePath`` or its URL, such as ``s3://aws_default@bucket/links.txt``; or a
        template that renders one of these. (templated)
    :param since: ignore older statements: a date, a datetime or ISO 8601 text; naive means UTC, and a date is its first
        moment in UTC. (templated)
    :param again: record even what has a run already, for a DAG that was paused while another one on the same asset
        got runs. True, False, or either as text. (templated)
    :param bankconnect_conn_id: the connection whose webhooks are recorded. Its ``max_concurrency`` is how many links
        are asked for at once. (templated)
    :raises AirflowOptionalProviderFeatureException: Airflow is older than 3.2.
    :raises ValueError: an argument is invalid, or the webhook receiver is off.
    :raises WebhookReceiverError: the webhook receiver failed; what was recorded before stays recorded.
    :raises BankConnectAuthError: BankConnect refuses the keys; what was answered before is recorded.
    :raises BankConnectCertificateError: the certificate does not verify at the first request.
    :raises BankConnectHostError: the host cannot be resolved at the first request.
    :raises BankConnectError: the history of some links could not be read, or an id of an iterator or a file is invalid;
        all others were handled. Or BankConnect has answered none of 50 links in a row.
    """

    _catching_up: CatchingUp | None = None
    _is_killed = False
    template_fields: Sequence[str] = ("link_ids", "since", "again", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        link_ids: Iterable[str | int] | ObjectStoragePath | XComArg | str,
        since: date | XComArg | str | None = None,
        again: bool | str = False,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.link_ids = keep_iterator(link_ids)
        # Airflow renders an XComArg before execute().
        self.since = cast("date | str | None", since)
        self.again = again
        self.bankconnect_conn_id = bankconnect_conn_id
        check_conn_id(bankconnect_conn_id)
        require_airflow()
        if is_literal(link_ids):
            LinkIds(link_ids)
        if is_literal(self.since):
            parse_since(self.since)
        if is_literal(again):
            parse_bool("again", again)

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's signature
        """Read the history of each link, and record what is missing."""
        how: How = "again" if parse_bool("again", self.again) else "record"
        since = parse_since(self.since)
        ids = LinkIds(self.link_ids)
        if not is_on():
            raise ValueError("The webhook receiver is off: set [bankconnect] webhook_token, here and on the API server")
        recorder = Recorder(self.bankconnect_conn_id, how, Failed())
        with Histories(self.bankconnect_conn_id) as histories:
            self._catching_up = CatchingUp(ids, histories, recorder, since)
            if self._is_killed:
                self._catching_up.stop()
            return self._catching_up.run()

    def on_kill(self) -> None:
        """End the requests to BankConnect: the task records what was answered, and fails."""
        self._is_killed = True
        if self._catching_up is not None:
            self._catching_up.stop()
