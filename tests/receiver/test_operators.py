"""The operators, against the sandbox and a webhook receiver with a database."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from receivers import CONN_ID, NEEDS_3_2, NO_DAG, PREVIOUS, TOKEN, Caller, api_server, statement

from airflow_provider_bankconnect.api import BankConnectAuthError, BankConnectError, WebhookMode
from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.address import webhook_url
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError
from airflow_provider_bankconnect.sandbox import Fault, Statement

pytestmark = NEEDS_3_2

LINKS = ["loan-1", "loan-2", "loan-3"]


def catch_up(link_ids=LINKS, **arguments):
    return BankConnectCatchUpOperator(task_id="catch_up", link_ids=link_ids, **arguments).execute({})


@pytest.fixture
def log(capsys, caplog):
    """Return all log lines: Airflow 3 writes those of a task to stdout."""
    caplog.set_level("DEBUG")
    return lambda: capsys.readouterr().out + caplog.text


def counts(links=3, completed=0, recorded=0, duplicates=0):
    return {"links": links, "completed": completed, "recorded": recorded, "duplicates": duplicates}


def links_read(box):
    return sorted(call.query["link_id"] for call in box.calls("webhook_payloads"))


def ago(**time):
    return datetime.now(UTC) - timedelta(**time)


def render(operator, **context):
    """Render an operator's templates as Airflow does before it runs it."""
    rendered = copy.copy(operator)
    rendered.render_template_fields(context)
    return rendered


# Catching up


def test_missed_completions_are_recorded(served, box, sqlite):
    del served
    box.payload(link_id="loan-1", statement_id="1")
    box.payload(link_id="loan-2", statement_id="2", progress="failed", reason="no")
    box.payload(link_id="loan-2", statement_id="", progress="failed", reason="wrong credentials")
    box.payload(link_id="loan-3", statement_id="3", entity_id="entity-3", date_time=ago(hours=1))
    box.payload(link_id="loan-3", statement_id="4", entity_id="entity-3")
    box.payload(link_id="loan-4", statement_id="5")
    assert catch_up() == counts(completed=3, recorded=3)
    # The same events as from webhooks. Those of one customer are in the order of their times.
    assert [extra for _, key, extra in sqlite.events if key == "link:loan-3"] == [
        statement(link_id="loan-3", statement_id=number, entity_id="entity-3") for number in ("3", "4")
    ]
    assert sorted(sqlite.recorded) == ["1", "3", "4"]
    assert sorted(sqlite.runs) == [("first", "link:loan-1"), ("first", "link:loan-3")]
    assert links_read(box) == LINKS


async def test_recorded_webhook_is_a_duplicate(served, box, sqlite):
    box.payload(link_id="loan-1", statement_id="announced")
    box.payload(link_id="loan-1", statement_id="lost")
    announced = await Caller(served.front).post(statement(statement_id="announced"))
    assert announced.json() == {"status": "recorded"}
    assert catch_up() == counts(completed=2, recorded=1, duplicates=1)
    late = await Caller(served.front).post(statement(statement_id="lost"))
    assert late.json() == {"status": "duplicate"}
    assert sqlite.recorded == ["announced", "lost"]


@pytest.mark.usefixtures("served")
def test_second_run_records_nothing_twice(box, sqlite):
    for number in range(5):
        box.payload(link_id=f"loan-{number}", statement_id=str(number))
    links = [f"loan-{number}" for number in range(5)]
    assert catch_up(links) == counts(5, completed=5, recorded=5)
    assert catch_up(links) == counts(5, completed=5, duplicates=5)
    box.payload(link_id="loan-3", statement_id="new")
    assert catch_up(links) == counts(5, completed=6, recorded=1, duplicates=5)
    assert len(sqlite.events) == 6


@pytest.mark.usefixtures("served")
def test_concurrent_runs_record_each_statement_once(box, sqlite):
    links = [f"loan-{number}" for number in range(10)]
    for link_id in links:
        for number in range(3):
            box.payload(link_id=link_id, statement_id=f"{link_id}-{number}")
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: catch_up(links), range(3)))
    assert sum(one["recorded"] for one in results) == 30
    assert sum(one["duplicates"] for one in results) == 60
    assert len(set(sqlite.recorded)) == len(sqlite.recorded) == 30


@pytest.mark.usefixtures("served")
def test_newest_row_decides_about_a_statement(box, sqlite):
    """Failed first and completed later: recorded. Completed first and failed later: not."""
    box.payload(link_id="loan-1", statement_id="completed later", progress="failed", date_time=ago(hours=2))
    box.payload(link_id="loan-1", statement_id="completed later", date_time=ago(hours=1))
    box.payload(link_id="loan-1", statement_id="failed later", date_time=ago(hours=2))
    box.payload(link_id="loan-1", statement_id="failed later", progress="failed", date_time=ago(hours=1))
    box.payload(link_id="loan-1", statement_id="", progress="completed")
    box.payload(link_id="somebody-elses", statement_id="foreign", filed_under="loan-1")
    assert catch_up() == counts(completed=1, recorded=1)
    assert sqlite.recorded == ["completed later"]


@pytest.mark.usefixtures("served")
def test_catch_up_starts_the_runs_of_a_dag_that_was_paused(box, sqlite):
    sqlite.change("update dag set is_paused = true")
    box.payload(link_id="loan-1", statement_id="1")
    assert catch_up() == counts(completed=1, recorded=1)
    assert catch_up() == counts(completed=1, duplicates=1)
    sqlite.change("update dag set is_paused = false")
    assert catch_up() == counts(completed=1, recorded=1)
    assert sqlite.runs == [("first", "link:loan-1")]
    assert catch_up() == counts(completed=1, duplicates=1)
    assert catch_up(again=True) == counts(completed=1, recorded=1)


@pytest.mark.usefixtures("served")
def test_statements_older_than_since_are_ignored(box, sqlite):
    moment = ago(days=1).replace(microsecond=0)
    box.payload(link_id="loan-1", statement_id="old", date_time=moment - timedelta(seconds=1))
    box.payload(link_id="loan-1", statement_id="at that second", date_time=moment)
    box.payload(link_id="loan-1", statement_id="new")
    assert catch_up(since=moment) == counts(completed=2, recorded=2)
    assert catch_up(since=moment.replace(tzinfo=None).isoformat()) == counts(completed=2, duplicates=2)
    assert sqlite.recorded == ["at that second", "new"]
    assert catch_up(since=None) == counts(completed=3, recorded=1, duplicates=2)


@pytest.mark.usefixtures("served")
def test_unknown_link_is_no_error(box, sqlite):
    box.fault(Fault(kind="status", status=404, call="webhook_payloads", times=1))
    assert catch_up() == counts()
    assert catch_up([]) == counts(0)
    assert not sqlite.events
    assert len(links_read(box)) == 3


@pytest.mark.usefixtures("served")
def test_repeated_link_is_read_once(box):
    assert catch_up(["loan-2", "loan-1", "loan-2"]) == counts(2)
    assert links_read(box) == ["loan-1", "loan-2"]


@pytest.mark.usefixtures("served")
def test_link_may_be_a_number(box, sqlite):
    box.payload(link_id="4711", statement_id="1")
    assert catch_up((4711, "4711")) == counts(1, completed=1, recorded=1)
    assert sqlite.runs == [("first", "link:4711")]


def test_argument_may_come_from_an_upstream_task():
    with DAG(dag_id="upstream", schedule=None):
        upstream = BaseOperator(task_id="upstream")
        tasks = [
            BankConnectCatchUpOperator(task_id="catch_up", link_ids=upstream.output, since=upstream.output),
            BankConnectUpdateWebhookOperator(task_id="register", webhook_url=upstream.output),
        ]
    assert [task.upstream_task_ids for task in tasks] == [{"upstream"}] * 2


@pytest.mark.usefixtures("served")
def test_unreadable_link_fails_the_task_after_the_others(box, sqlite, log):
    for number, link_id in enumerate(LINKS):
        box.payload(link_id=link_id, statement_id=str(number))
    box.fault(Fault(kind="status", status=400, call="webhook_payloads", times=1))
    with pytest.raises(BankConnectError, match=r"Could not catch up on 1 of 3 links, first 'loan-1': .*HTTP 400"):
        catch_up()
    assert sqlite.recorded == ["1", "2"]
    assert "Could not read the history of 'loan-1', continuing" in log()
    # The retry records the rest.
    assert catch_up() == counts(completed=3, recorded=1, duplicates=2)


@pytest.mark.usefixtures("served")
def test_wrong_keys_end_the_task_at_once(box, sqlite):
    box.fault(Fault(kind="status", status=401))
    with pytest.raises(BankConnectAuthError):
        catch_up()
    assert links_read(box) == ["loan-1"]
    assert not sqlite.events


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"link_ids": "loan-1"}, "render_template_as_native_obj=True"),
        ({"link_ids": "['loan-1']"}, "link_ids must be a list of link ids, not str"),
        ({"link_ids": None}, "link_ids must be a list of link ids, not NoneType"),
        ({"link_ids": 5}, "link_ids must be a list of link ids, not int"),
        ({"link_ids": ["loan-1", ""]}, "link_ids must not be blank"),
        ({"link_ids": ["None"]}, "link_ids must not be blank"),
        ({"link_ids": [None]}, "link_ids must be text, not NoneType"),
        ({"link_ids": [True]}, "link_ids must be text, not bool"),
        ({"link_ids": [".."]}, "link_ids must not be '..'"),
        ({"again": "perhaps"}, "again must be True or False, not 'perhaps'"),
        ({"again": None}, "again must be True or False"),
        ({"since": "yesterday"}, "since"),
        ({"since": ""}, "since"),
    ],
)
def test_invalid_argument_is_named_before_any_request(box, served, arguments, words):
    with pytest.raises(ValueError, match=r".") as caught:
        catch_up(**arguments)
    assert words in str(caught.value)
    # Also after rendering.
    template = dict.fromkeys(arguments, "{{ params.x }}")
    operator = BankConnectCatchUpOperator(task_id="catch_up", **({"link_ids": LINKS} | template))
    vars(operator).update(arguments)
    with pytest.raises(ValueError, match=r".") as caught:
        operator.execute({})
    assert words in str(caught.value)
    assert box.requests == []
    assert served.front.requests == []


@pytest.mark.usefixtures("served")
def test_native_templates_render_lists_and_times(box, sqlite):
    box.payload(link_id="loan-1", statement_id="old", date_time=ago(days=3))
    box.payload(link_id="loan-2", statement_id="new")
    with DAG(dag_id="catch_up", schedule=None, render_template_as_native_obj=True):
        operator = BankConnectCatchUpOperator(
            task_id="catch_up",
            link_ids="{{ conf.links }}",
            since="{{ moment.isoformat() }}",
            again="{{ conf.again }}",
            bankconnect_conn_id="{{ conf.account }}",
        )
    conf = {"links": LINKS, "again": False, "account": CONN_ID}
    assert render(operator, conf=conf, moment=ago(days=1)).execute({}) == counts(completed=1, recorded=1)
    assert render(operator, conf=conf | {"again": True}, moment=ago(days=7)).execute({}) == counts(
        completed=2, recorded=2
    )
    assert sqlite.recorded == ["new", "old", "new"]


@pytest.mark.usefixtures("served")
def test_without_token_the_message_names_the_setting(box, configure):
    configure(webhook_token=None)
    with pytest.raises(
        ValueError, match=r"The webhook receiver is off: set \[bankconnect\] webhook_token, here and on the API"
    ):
        catch_up()
    assert box.requests == []


def test_receiver_error_fails_the_task_with_advice(served, box, sqlite, configure, api_server_at):
    box.payload(link_id="loan-2", statement_id="2")
    box.payload(link_id="loan-3", statement_id="3")
    for conn_id, words in (
        ("unknown", "doesn't exist|isn't defined"),
        (NO_DAG, "no DAG is scheduled by the connection's"),
    ):
        with pytest.raises(Exception, match=words):
            catch_up(bankconnect_conn_id=conn_id)
    sqlite.change(
        "create trigger refuse before insert on asset_event when new.partition_key = 'link:loan-3' "
        "begin select raise(abort, 'refused'); end"
    )
    with pytest.raises(WebhookReceiverError, match="The webhook receiver could not record 1 events: see"):
        catch_up()
    # What was recorded before stays recorded.
    assert sqlite.recorded == ["2"]
    sqlite.change("drop trigger refuse")
    api_server_at("https://localhost:1", box.ca_file)
    with pytest.raises(WebhookReceiverError, match="No answer from the webhook receiver at https://localhost:1"):
        catch_up()
    api_server_at(served.url, box.ca_file)
    configure(webhook_token=PREVIOUS)
    with pytest.raises(WebhookReceiverError, match=r"HTTP 401 .* \[bankconnect\] webhook_token is the same"):
        catch_up()
    configure(webhook_token=TOKEN)
    assert catch_up() == counts(completed=2, recorded=1, duplicates=1)


@pytest.mark.usefixtures("served")
def test_link_of_any_length_and_script_is_recorded(box, sqlite):
    links = ["ऋण/४७ %2F", "x" * 500, "a\nb"]
    for link_id in links:
        box.payload(link_id=link_id, statement_id=link_id[:9])
    assert catch_up(links) == counts(completed=3, recorded=3)
    assert [extra["link_id"] for _, _, extra in sqlite.events] == links


# Registering


@pytest.fixture
def public(served, configure):
    configure(public_url=served.url)
    return served


def register(**arguments):
    return BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None, allow_private_host=True, **arguments)


@pytest.mark.usefixtures("public")
def test_without_url_the_secret_receiver_address_is_registered(box, log):
    operator = register(webhook_mode="{{ mode }}", bankconnect_conn_id="{{ account }}")
    rendered = render(operator, mode="1", account=CONN_ID)
    assert rendered.execute({}) is None
    assert box.webhook_url == webhook_url()
    assert box.webhook_mode == 1
    # The secret address is not in the task, before or after rendering.
    for one in (operator, rendered):
        assert one.webhook_url is None
        assert TOKEN not in str(vars(one))
    output = log()
    assert TOKEN not in output
    assert "BankConnect sends webhooks to localhost now, in mode 1" in output


@pytest.mark.usefixtures("served")
def test_public_address_needs_no_further_argument(box, configure, monkeypatch):
    configure(public_url="https://airflow.example.com/team/")
    # Nothing leaves this machine.
    checks = []
    monkeypatch.setattr("airflow_provider_bankconnect.operators.bankconnect.check_public_address", checks.append)
    BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None).execute({})
    assert box.webhook_url == f"https://airflow.example.com/team/bankconnect/webhook/{CONN_ID}/{TOKEN}"
    assert box.webhook_mode == 0
    assert checks == [CONN_ID]


def test_address_is_registered_only_if_the_receiver_may_be_there(public, box, configure, log):
    """The check does not hold the token: a server that is not the receiver may log it."""
    wrong = [{"public_url": f"{public.url}/{path}"} for path in ("airflow", "bankconnect", "bankconnect/webhook/x")]
    for settings in (*wrong, {"webhook_token": PREVIOUS}):
        configure(**{"webhook_token": TOKEN, "public_url": public.url} | settings)
        with pytest.raises(
            WebhookReceiverError, match=r"is not the address of this Airflow's webhook receiver"
        ) as caught:
            register().execute({})
        assert "/bankconnect_default/***" in str(caught.value)
    configure(webhook_token=TOKEN, public_url=public.url)
    for status, body in ((200, b"<html>"), (200, b'{"status": "ignored"}'), (302, b""), (404, b"{}"), (405, b"{}")):
        public.front.instead = (status, {"location": "/auth/login"}, body)
        with pytest.raises(WebhookReceiverError, match=f"a check got HTTP {status}"):
            register().execute({})
    assert box.requests == []
    # BankConnect may reach it nevertheless.
    for status in (401, 403, 407, 408, 429, 500, 502, 503):
        public.front.instead = (status, {}, b"")
        register().execute({})
        assert f"/*** answered HTTP {status}. Registering it" in log()
    configure(public_url="https://localhost:1/a")
    register().execute({})
    warning = "no answer from https://localhost:1/a/bankconnect/webhook/bankconnect_default/*** (ConnectionError)"
    output = log()
    assert warning in output
    assert len(box.requests) == 9
    for token in (TOKEN, PREVIOUS):
        assert token not in output
        assert token not in str(public.front.requests)


async def test_check_of_the_address_records_nothing_and_works_with_both_tokens(public, sqlite, configure):
    configure(webhook_token_previous=PREVIOUS)
    rotating = Caller(api_server())
    for token, status in ((TOKEN, 200), (PREVIOUS, 200), ("x" * 16, 404)):
        answer = await rotating.post({}, token=address.check_token(token, CONN_ID))
        assert answer.status == status
        # Not at the address of another connection.
        assert (await rotating.post({}, token=address.check_token(token, NO_DAG))).status == 404
    # It is good for nothing but the check.
    for body in (statement(), b"", b"[]"):
        answer = await rotating.post(body, token=address.check_token(TOKEN, CONN_ID))
        assert (answer.status, answer.json(), answer.pieces) == (200, {"status": "ready"}, 0)
    check = address.check_token(TOKEN, CONN_ID)
    assert (await Caller(public.front).post_events("record", [], token=check)).status == 401
    assert sqlite.events == []


async def test_check_of_the_address_is_a_503_while_no_webhook_can_be_recorded(receiver, sqlite, monkeypatch, caplog):
    """So a monitor sees it, too. The registration warns, and registers the address."""
    from airflow_provider_bankconnect.receiver import app, events  # noqa: PLC0415 - needs Airflow 3.2

    async def check():
        answer = await receiver.post({}, token=address.check_token(TOKEN, CONN_ID))
        return answer.status, answer.json()["status"]

    assert await check() == (200, "ready")
    with monkeypatch.context() as patch:
        patch.setattr(events, "_MAX_QUEUED", 0)
        assert await check() == (503, "not ready")
    answered = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(app, "_CHECK_SECONDS", 0.1)
        patch.setattr(events, "ping", answered.wait)
        assert await check() == (503, "not ready")
    answered.set()
    assert "no answer from the database (TimeoutError)" in caplog.text
    assert await check() == (200, "ready")
    # A monitor's checks are no refused webhooks.
    assert sqlite.query("select count(*) from log where owner = 'bankconnect'") == [(0,)]


def test_rotated_token_registers_a_new_address(public, box, configure):
    register().execute({})
    configure(webhook_token=PREVIOUS, webhook_token_previous=TOKEN)
    # As if it had been restarted.
    public.front.app = api_server()
    register().execute({})
    assert box.webhook_url == webhook_url()
    assert box.webhook_url.endswith(PREVIOUS)


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"webhook_token": None}, {}, "The webhook receiver is off: set [bankconnect] webhook_token"),
        ({"webhook_token": "weak"}, {}, "[bankconnect] webhook_token must have at least 16 characters"),
        ({"public_url": "http://hooks.example.com"}, {}, "set [bankconnect] public_url"),
        ({}, {"allow_private_host": False}, "webhook_url"),
        ({"public_url": "https://user:word@hooks.example.com"}, {}, "webhook_url"),
        ({}, {"webhook_mode": "{{ x }}"}, "webhook_mode"),
    ],
)
def test_invalid_address_is_refused_without_the_token(box, configure, settings, arguments, words):
    configure(**settings)
    operator = BankConnectUpdateWebhookOperator(
        **({"task_id": "register", "webhook_url": None, "allow_private_host": True} | arguments)
    )
    with pytest.raises(ValueError, match=r".") as caught:
        operator.execute({})
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert box.requests == []


def test_vendor_sends_webhooks_to_the_registered_address(public, box, sqlite):
    """From the registration to the run, with everything but Airflow's scheduler."""
    register(webhook_mode=WebhookMode.NET_BANKING_AND_MANUAL).execute({})
    played = [box.play(Statement(link_id=f"loan-{number}")) for number in range(3)]
    played.append(box.play(Statement(mode="pdf")))
    played.append(box.play(Statement(link_id="loan-0", statement_id="", progress="failed", reason="no such user")))
    until = time.monotonic() + 300
    while len(sqlite.events) < 5 or any(delivery.outcome == "sending" for delivery in box.deliveries):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert sorted(sqlite.recorded) == sorted(one.statement_id for one in played)
    assert {delivery.status for delivery in box.deliveries} == {200}
    expected = {f"link:loan-{number}" for number in range(3)} | {f"entity:{played[3].entity_id}"}
    assert {key for _, key in sqlite.runs} == expected
    assert catch_up([f"loan-{number}" for number in range(3)]) == counts(completed=3, duplicates=3)
    assert public.front.requests[0].startswith("POST /bankconnect/webhook/")
