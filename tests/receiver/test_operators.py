"""The operators of the doorbell, against the sandbox as vendor and a doorbell before a database."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import DAG
from doorbells import CONN_ID, LONELY, NEEDS, PREVIOUS, TOKEN, Caller, statement

from airflow_provider_bankconnect.api import BankConnectAuthError, BankConnectError, WebhookMode
from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.receiver.address import webhook_url
from airflow_provider_bankconnect.receiver.client import DoorbellError
from airflow_provider_bankconnect.sandbox import Fault, Statement

pytestmark = NEEDS

LINKS = ["loan-1", "loan-2", "loan-3"]


def catch_up(link_ids=LINKS, **arguments):
    return BankConnectCatchUpOperator(task_id="catch_up", link_ids=link_ids, **arguments).execute({})


@pytest.fixture
def log(capsys, caplog):
    """What is logged: Airflow 3 writes a task's to stdout."""
    caplog.set_level("DEBUG")
    return lambda: capsys.readouterr().out + caplog.text


def counts(links=3, completed=0, rung=0, repeated=0):
    return {"links": links, "completed": completed, "rung": rung, "repeated": repeated}


def asked(box):
    return [call.query["link_id"] for call in box.calls("webhook_payloads")]


def ago(**time):
    return datetime.now(UTC) - timedelta(**time)


def render(operator, **context):
    """Render an operator's templates as Airflow does before it runs it."""
    rendered = copy.copy(operator)
    rendered.render_template_fields(context)
    return rendered


# Catching up


def test_it_rings_for_the_completions_that_no_webhook_has_announced(served, box, sqlite):
    del served
    box.payload(link_id="loan-1", statement_id="1")
    box.payload(link_id="loan-2", statement_id="2", progress="failed", reason="no")
    box.payload(link_id="loan-2", statement_id="", progress="failed", reason="wrong credentials")
    box.payload(link_id="loan-3", statement_id="3", entity_id="entity-3", date_time=ago(hours=1))
    box.payload(link_id="loan-3", statement_id="4", entity_id="entity-3")
    box.payload(link_id="loan-4", statement_id="5")
    assert catch_up() == counts(completed=3, rung=3)
    assert sqlite.rung == ["1", "3", "4"]
    # As if the webhooks had come.
    assert [extra for _, _, extra in sqlite.events[1:]] == [
        statement(link_id="loan-3", statement_id=number, entity_id="entity-3") for number in ("3", "4")
    ]
    assert sqlite.runs == [("first", "link:loan-1"), ("first", "link:loan-3")]
    assert asked(box) == LINKS


async def test_what_a_webhook_has_announced_is_not_rung_for_again(served, box, sqlite):
    box.payload(link_id="loan-1", statement_id="heard")
    box.payload(link_id="loan-1", statement_id="lost")
    heard = await Caller(served.front).post(statement(statement_id="heard"))
    assert heard.json() == {"status": "rung"}
    assert catch_up() == counts(completed=2, rung=1, repeated=1)
    late = await Caller(served.front).post(statement(statement_id="lost"))
    assert late.json() == {"status": "repeated"}
    assert sqlite.rung == ["heard", "lost"]


@pytest.mark.usefixtures("served")
def test_running_it_again_rings_for_nothing_twice(box, sqlite):
    for number in range(5):
        box.payload(link_id=f"loan-{number}", statement_id=str(number))
    links = [f"loan-{number}" for number in range(5)]
    assert catch_up(links) == counts(5, completed=5, rung=5)
    assert catch_up(links) == counts(5, completed=5, repeated=5)
    box.payload(link_id="loan-3", statement_id="new")
    assert catch_up(links) == counts(5, completed=6, rung=1, repeated=5)
    assert len(sqlite.events) == 6


@pytest.mark.usefixtures("served")
def test_two_that_run_at_once_ring_once_for_each(box, sqlite):
    links = [f"loan-{number}" for number in range(10)]
    for link_id in links:
        for number in range(3):
            box.payload(link_id=link_id, statement_id=f"{link_id}-{number}")
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda _: catch_up(links), range(3)))
    assert sum(one["rung"] for one in told) == 30
    assert sum(one["repeated"] for one in told) == 60
    assert len(set(sqlite.rung)) == len(sqlite.rung) == 30


@pytest.mark.usefixtures("served")
def test_a_statement_is_what_its_newest_row_says(box, sqlite):
    """Failed and run again by the vendor: rung for. Completed, and withdrawn: not."""
    box.payload(link_id="loan-1", statement_id="mended", progress="failed", date_time=ago(hours=2))
    box.payload(link_id="loan-1", statement_id="mended", date_time=ago(hours=1))
    box.payload(link_id="loan-1", statement_id="withdrawn", date_time=ago(hours=2))
    box.payload(link_id="loan-1", statement_id="withdrawn", progress="failed", date_time=ago(hours=1))
    box.payload(link_id="loan-1", statement_id="", progress="completed")
    box.payload(link_id="somebody-elses", statement_id="foreign", filed_under="loan-1")
    assert catch_up() == counts(completed=1, rung=1)
    assert sqlite.rung == ["mended"]


@pytest.mark.usefixtures("served")
def test_a_paused_dags_lost_rings_can_be_rung_again(box, sqlite):
    sqlite.change("update dag set is_paused = true")
    box.payload(link_id="loan-1", statement_id="1")
    assert catch_up() == counts(completed=1, rung=1)
    sqlite.change("update dag set is_paused = false")
    assert catch_up() == counts(completed=1, repeated=1)
    assert sqlite.runs == []
    assert catch_up(again=True) == counts(completed=1, rung=1)
    assert sqlite.runs == [("first", "link:loan-1")]


@pytest.mark.usefixtures("served")
def test_what_is_older_than_since_is_left_out(box, sqlite):
    moment = ago(days=1).replace(microsecond=0)
    box.payload(link_id="loan-1", statement_id="old", date_time=moment - timedelta(seconds=1))
    box.payload(link_id="loan-1", statement_id="at that second", date_time=moment)
    box.payload(link_id="loan-1", statement_id="new")
    assert catch_up(since=moment) == counts(completed=2, rung=2)
    assert catch_up(since=moment.replace(tzinfo=None).isoformat()) == counts(completed=2, repeated=2)
    assert sqlite.rung == ["at that second", "new"]
    assert catch_up(since=None) == counts(completed=3, rung=1, repeated=2)


@pytest.mark.usefixtures("served")
def test_links_of_which_nothing_is_known_yet_are_no_error(box, sqlite):
    box.fault(Fault(kind="status", status=404, call="webhook_payloads", times=1))
    assert catch_up() == counts()
    assert catch_up([]) == counts(0)
    assert not sqlite.events
    assert len(asked(box)) == 3


@pytest.mark.usefixtures("served")
def test_a_link_that_is_given_twice_is_asked_for_once(box):
    assert catch_up(["loan-2", "loan-1", "loan-2"]) == counts(2)
    assert asked(box) == ["loan-2", "loan-1"]


@pytest.mark.usefixtures("served")
def test_one_link_that_cannot_be_asked_for_stops_not_the_others_and_fails_the_task(box, sqlite, log):
    for number, link_id in enumerate(LINKS):
        box.payload(link_id=link_id, statement_id=str(number))
    box.fault(Fault(kind="status", status=400, call="webhook_payloads", times=1))
    with pytest.raises(BankConnectError, match=r"1 of 3 links could not be asked for, first 'loan-1': .*HTTP 400"):
        catch_up()
    assert sqlite.rung == ["1", "2"]
    assert "Link 'loan-1' could not be asked for, the others go on" in log()
    # Its retry makes good what is missing.
    assert catch_up() == counts(completed=3, rung=1, repeated=2)


@pytest.mark.usefixtures("served")
def test_wrong_keys_stop_it_at_once(box, sqlite):
    box.fault(Fault(kind="status", status=401))
    with pytest.raises(BankConnectAuthError):
        catch_up()
    assert asked(box) == ["loan-1"]
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
        ({"link_ids": [".."]}, "link_ids must not be '..'"),
        ({"again": "perhaps"}, "again must be True or False, not 'perhaps'"),
        ({"again": None}, "again must be True or False"),
        ({"since": "yesterday"}, "since"),
        ({"since": ""}, "since"),
    ],
)
def test_arguments_that_cannot_be_meant_are_named_before_anything_is_sent(box, served, arguments, words):
    with pytest.raises(ValueError, match=r".") as caught:
        catch_up(**arguments)
    assert words in str(caught.value)
    # The same after rendering.
    template = dict.fromkeys(arguments, "{{ params.x }}")
    operator = BankConnectCatchUpOperator(task_id="catch_up", **({"link_ids": LINKS} | template))
    vars(operator).update(arguments)
    with pytest.raises(ValueError, match=r".") as caught:
        operator.execute({})
    assert words in str(caught.value)
    assert box.requests == []
    assert served.front.asked == []


@pytest.mark.usefixtures("served")
def test_templates_of_a_native_dag_give_lists_and_moments(box, sqlite):
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
    assert render(operator, conf=conf, moment=ago(days=1)).execute({}) == counts(completed=1, rung=1)
    assert render(operator, conf=conf | {"again": True}, moment=ago(days=7)).execute({}) == counts(completed=2, rung=2)
    assert sqlite.rung == ["new", "old", "new"]


@pytest.mark.usefixtures("served")
def test_without_a_token_it_says_what_to_set(box, configure):
    configure(webhook_token=None)
    with pytest.raises(
        ValueError, match=r"The doorbell is off: set \[bankconnect\] webhook_token, here and on the API"
    ):
        catch_up()
    assert box.requests == []


def test_a_doorbell_that_does_not_take_it_fails_the_task_with_what_to_do(served, box, sqlite, configure, api_server_at):
    box.payload(link_id="loan-2", statement_id="2")
    box.payload(link_id="loan-3", statement_id="3")
    for conn_id, words in (("unknown", "doesn't exist|isn't defined"), (LONELY, "no DAG listens to the connection's")):
        with pytest.raises(Exception, match=words):
            catch_up(bankconnect_conn_id=conn_id)
    sqlite.change(
        "create trigger refuse before insert on asset_event when new.partition_key = 'link:loan-3' "
        "begin select raise(abort, 'refused'); end"
    )
    with pytest.raises(DoorbellError, match="The doorbell's database did not take 1 rings; see its log"):
        catch_up()
    # What was rung for before that stays so.
    assert sqlite.rung == ["2"]
    sqlite.change("drop trigger refuse")
    api_server_at("https://localhost:1", box.ca_file)
    with pytest.raises(DoorbellError, match="No answer from BankConnect's doorbell at https://localhost:1"):
        catch_up()
    api_server_at(served.url, box.ca_file)
    configure(webhook_token=PREVIOUS)
    with pytest.raises(DoorbellError, match=r"HTTP 404: is \[bankconnect\] webhook_token the same here and there"):
        catch_up()
    configure(webhook_token=TOKEN)
    assert catch_up() == counts(completed=2, rung=1, repeated=1)


@pytest.mark.usefixtures("served")
def test_a_link_of_any_length_and_script_is_rung_for(box, sqlite):
    links = ["ऋण/४७ %2F", "x" * 500, "a\nb"]
    for link_id in links:
        box.payload(link_id=link_id, statement_id=link_id[:9])
    assert catch_up(links) == counts(completed=3, rung=3)
    assert [extra["link_id"] for _, _, extra in sqlite.events] == links


# Registering


@pytest.fixture
def public(served, configure):
    configure(public_url=served.url)
    return served


def register(**arguments):
    return BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None, allow_private_host=True, **arguments)


@pytest.mark.usefixtures("public")
def test_without_a_url_the_doorbells_own_address_is_registered_and_told_nobody(box, log):
    operator = register(webhook_mode="{{ mode }}", bankconnect_conn_id="{{ account }}")
    rendered = render(operator, mode="1", account=CONN_ID)
    assert rendered.execute({}) is None
    assert box.webhook_url == webhook_url()
    assert box.webhook_mode == 1
    # The address is a secret: it is nowhere in the task, before or after.
    for one in (operator, rendered):
        assert one.webhook_url is None
        assert TOKEN not in str(vars(one))
    said = log()
    assert TOKEN not in said
    assert "BankConnect sends webhooks to localhost now, in mode 1" in said


@pytest.mark.usefixtures("served")
def test_an_address_that_the_world_reaches_needs_nothing_more_to_be_said(box, configure):
    configure(public_url="https://airflow.example.com/team/")
    BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None).execute({})
    assert box.webhook_url == f"https://airflow.example.com/team/bankconnect/webhook/{CONN_ID}/{TOKEN}"
    assert box.webhook_mode == 0


@pytest.mark.usefixtures("public")
def test_after_a_rotation_the_new_address_is_registered(box, configure):
    register().execute({})
    configure(webhook_token=PREVIOUS, webhook_token_previous=TOKEN)
    register().execute({})
    assert box.webhook_url == webhook_url()
    assert box.webhook_url.endswith(PREVIOUS)


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"webhook_token": None}, {}, "The doorbell is off: set [bankconnect] webhook_token"),
        ({"webhook_token": "weak"}, {}, "[bankconnect] webhook_token must have at least 16 characters"),
        ({"public_url": "http://bell.example.com"}, {}, "set [bankconnect] public_url"),
        ({}, {"allow_private_host": False}, "webhook_url"),
        ({"public_url": "https://user:word@bell.example.com"}, {}, "webhook_url"),
        ({}, {"webhook_mode": "{{ x }}"}, "webhook_mode"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_with_the_setting_and_not_told(
    box, configure, settings, arguments, words
):
    configure(**settings)
    operator = BankConnectUpdateWebhookOperator(
        **({"task_id": "register", "webhook_url": None, "allow_private_host": True} | arguments)
    )
    with pytest.raises(ValueError, match=r".") as caught:
        operator.execute({})
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert box.requests == []


def test_the_vendor_rings_at_the_address_that_was_registered(public, box, sqlite):
    """From the registration to the run, with nothing of ours left out but Airflow's scheduler."""
    register(webhook_mode=WebhookMode.NET_BANKING_AND_MANUAL).execute({})
    played = [box.play(Statement(link_id=f"loan-{number}")) for number in range(3)]
    played.append(box.play(Statement(mode="pdf")))
    played.append(box.play(Statement(link_id="loan-0", statement_id="", progress="failed", reason="no such user")))
    until = time.monotonic() + 30
    while len(sqlite.events) < 5 or any(delivery.outcome == "sending" for delivery in box.deliveries):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert sorted(sqlite.rung) == sorted(one.statement_id for one in played)
    assert {delivery.status for delivery in box.deliveries} == {200}
    expected = {f"link:loan-{number}" for number in range(3)} | {f"entity:{played[3].entity_id}"}
    assert {key for _, key in sqlite.runs} == expected
    assert catch_up([f"loan-{number}" for number in range(3)]) == counts(completed=3, repeated=3)
    assert public.front.asked[0].startswith("POST /bankconnect/webhook/")
