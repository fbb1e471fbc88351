"""The page in Airflow's UI, as the API server mounts it, with Airflow's own login and a database."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from receivers import CONN_ID, NEEDS_3_2, TOKEN

from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.ui.link import PREFIX

pytestmark = NEEDS_3_2
HOSTILE = ('<script>alert("x")</script>\'&{{7*7}}' + "प्रिय客户" * 80)[:500]
# Only ends a hang, in seconds.
LONGEST = 300
LOGIN = "/api/v2/auth/login?next="


@pytest.fixture
def manager(sqlite, monkeypatch):  # noqa: ARG001 - the page reads it
    """Airflow's own auth manager, with a secret for tokens."""
    from airflow.api_fastapi import app as api_app  # noqa: PLC0415 - not on Airflow 2

    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "secret-of-the-tests-" * 4)
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ada:admin,vic:viewer")
    return api_app.create_auth_manager()


@pytest.fixture
def browser(manager, configure):
    """Return a client of the page for a user; None for nobody."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser  # noqa: PLC0415
    from airflow.api_fastapi.auth.middlewares.refresh_token import JWTRefreshMiddleware  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415
    from starlette.testclient import TestClient  # noqa: PLC0415

    from airflow_provider_bankconnect.lazy_app import LazyApp  # noqa: PLC0415

    configure(webhook_token=TOKEN)

    page = LazyApp("airflow_provider_bankconnect.ui.app")

    def open_as(role="viewer", name=None, root_path=""):
        # As Airflow does where its base_url has a path.
        app = FastAPI(root_path=root_path)
        app.mount(PREFIX, page)
        app.add_middleware(JWTRefreshMiddleware)
        client = TestClient(app, base_url="http://airflow.test", follow_redirects=False)
        if role:
            token = manager.generate_jwt(SimpleAuthManagerUser(username=name or role, role=role.upper()))
            client.cookies.set("_token", token)
        return client

    return open_as


@pytest.fixture
def filled(sqlite):  # noqa: ARG001 - it is filled
    """Fill the database; see ``many_customers.fill``."""
    from many_customers import fill  # noqa: PLC0415 - it imports what Airflow 2 lacks

    def fill_in(**what):
        fill(on_webhook="first", wait_dag="first", **what)

    return fill_in


def text_of(answer):
    """Return what a reader sees, without tags and styles."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text)))


def task_of(answer):
    """Return the address of the first link to an explanation."""
    return html.unescape(re.search(r'href="([^"]*explain\?dag_id[^"]*)"', answer.text)[1])


def pages_from(client, path):
    """Return the text of a page and of all that follow it."""
    pages = []
    while path:
        pages.append(client.get(path).text)
        following = re.search(r'rel="next" href="([^"]*)"', pages[-1])
        path = html.unescape(following[1]) if following else None
    return "".join(pages)


def form_of(path):
    """Return the query of an address as a form."""
    return dict(parse_qsl(path.partition("?")[2]))


# Who may see what


@pytest.mark.parametrize("path", ["/", "/webhooks?q=a%20b&before=x", "/waits", "/explain?dag_id=d&run_id=a%2Bb"])
def test_reader_without_login_is_sent_to_the_login_and_back_to_the_same_address(browser, path):
    answer = browser(None).get(f"{PREFIX}{path}")

    assert answer.status_code == 302
    assert answer.headers["location"].startswith(LOGIN)
    assert parse_qs(urlsplit(answer.headers["location"]).query)["next"] == [f"{PREFIX}{path}"]


@pytest.mark.parametrize("token", ["nonsense", "a.b.c"])
def test_token_that_is_not_airflows_leads_to_the_login(browser, token):
    client = browser(None)
    client.cookies.set("_token", token)
    assert client.get(f"{PREFIX}/").status_code == 302
    assert client.get(f"{PREFIX}/", headers={"Authorization": f"Bearer {token}"}).status_code == 302


def test_form_of_a_reader_whose_session_has_ended_is_not_executed(browser, box):
    answer = browser(None).post(f"{PREFIX}/explain", data={"link_id": "loan-1"})
    assert answer.status_code == 401
    assert "Your session has ended" in text_of(answer)
    assert not box.requests


def test_addresses_keep_the_path_of_the_base_url(browser, filled):
    filled(events=1, waits=1)
    answer = browser(root_path="/team-a").get(f"/team-a{PREFIX}/")
    links = re.findall(r'(?:href|src|action)="([^"]*)"', answer.text)
    assert answer.status_code == 200
    assert all(link.startswith(("/team-a/", "#")) for link in links), links
    login = browser(None, root_path="/team-a").get(f"/team-a{PREFIX}/waits").headers["location"]
    assert login == f"/team-a{LOGIN}%2Fteam-a%2Fbankconnect-ui%2Fwaits"


def test_waits_and_runs_of_a_dag_that_the_reader_may_not_read_are_left_out(browser, filled, manager, monkeypatch):
    filled(events=1, waits=2)
    path = task_of(browser().get(f"{PREFIX}/waits"))
    asked = []

    def refuse(*, method, user, access_entity, details):
        asked.append((method, user.username, access_entity.value, details.id))
        return False

    monkeypatch.setattr(manager, "is_authorized_dag", refuse)
    overview = browser().get(f"{PREFIX}/")

    assert "No task of a BankConnect sensor waits now" in text_of(overview)
    assert "a run of a DAG that you may not read" in text_of(overview)
    assert "manual-" not in overview.text
    assert "runs/webhook-" not in overview.text
    assert set(asked) == {("GET", "viewer", "TASK_INSTANCE", "first")}
    for answer in (browser().get(path), browser().post(f"{PREFIX}/explain", data=form_of(path))):
        assert "You may not read the task instances of the DAG 'first'" in text_of(answer)
        assert "loan-0" not in answer.text


def test_explain_asks_always_for_a_named_dag(browser, manager, monkeypatch):
    """Without a DAG, Airflow's check would mean: any DAG."""
    asked = []
    monkeypatch.setattr(manager, "is_authorized_dag", lambda **given: bool(asked.append(given["details"].id)))
    answer = browser().get(f"{PREFIX}/explain?task_id=t&run_id=r")
    assert "You may not read the task instances" in text_of(answer)
    assert asked == [""]


def test_webhooks_and_health_need_the_right_to_read_the_asset(browser, filled, manager, monkeypatch, box):
    filled(events=2, waits=1)
    monkeypatch.setattr(manager, "is_authorized_asset", lambda **_: False)
    client = browser()
    overview = client.get(f"{PREFIX}/")

    assert text_of(overview).count("it needs the permission to read assets") == 2
    assert "statement-0" not in overview.text
    assert "wait_for_statement" in overview.text
    typed = client.post(f"{PREFIX}/explain", data={"link_id": "loan-1", "conn_id": CONN_ID})
    assert "it needs the permission to read assets" in text_of(typed)
    assert not box.requests


def test_customer_cannot_be_asked_for_with_the_secrets_of_another_kind_of_connection(browser, box, monkeypatch):
    other = json.loads(box.connection_json) | {"conn_type": "http"}
    monkeypatch.setenv("AIRFLOW_CONN_SOMETHING_ELSE", json.dumps(other))
    answer = browser("admin").post(f"{PREFIX}/explain", data={"link_id": "loan-1", "conn_id": "something_else"})
    assert "finds no connection 'something_else' of the type 'bankconnect'" in text_of(answer)
    missing = browser("admin", "ada").post(f"{PREFIX}/explain", data={"link_id": "loan-1", "conn_id": "nobody_made_it"})
    assert "finds no connection 'nobody_made_it' of the type 'bankconnect'" in text_of(missing)
    assert not box.requests


def test_connection_without_webhooks_needs_the_right_to_read_connections(browser, box, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER_TEAMS", box.connection_json)
    form = {"link_id": "loan-1", "conn_id": "another_teams"}
    assert "needs the permission to read connections" in text_of(browser().post(f"{PREFIX}/explain", data=form))
    assert not box.requests
    assert "STILL WAITING" in text_of(browser("admin").post(f"{PREFIX}/explain", data=form))


def test_hidden_asset_keeps_its_connection_from_being_asked_in_any_letter_case(browser, box, manager, monkeypatch):
    monkeypatch.setattr(manager, "is_authorized_asset", lambda details=None, **_: details is None)
    for number, conn_id in enumerate((CONN_ID, CONN_ID.upper())):
        answer = browser(name=f"reader-{number}").post(f"{PREFIX}/explain", data={"link_id": "l", "conn_id": conn_id})
        assert "it needs the permission to read assets" in text_of(answer)
    assert not box.requests


def test_a_long_form_is_refused(browser, box):
    answer = browser().post(f"{PREFIX}/explain", data={"link_id": "x" * 70_000})
    assert answer.status_code == 413
    assert not box.requests


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://airflow.test"}, 200),
        ({"Origin": "http://airflow.test"}, 200),
        ({}, 200),
    ],
)
def test_only_forms_of_this_airflow_are_executed(browser, box, headers, status):
    answer = browser().post(f"{PREFIX}/explain", data={"link_id": "loan-1"}, headers=headers)
    assert answer.status_code == status
    assert bool(box.requests) == (status == 200)


# Webhooks and health


def test_ids_of_any_script_and_with_markup_are_shown_as_text(browser, filled):
    filled(events=2, waits=2, links=[HOSTILE])
    client = browser()
    for path in ("/", "/webhooks", "/waits"):
        answer = client.get(f"{PREFIX}{path}")
        assert "<script>alert" not in answer.text
        assert HOSTILE in html.unescape(answer.text)
    explained = client.get(task_of(client.get(f"{PREFIX}/waits")))
    assert "<script>alert" not in explained.text
    searched = client.get(f"{PREFIX}/waits", params={"q": HOSTILE})
    assert "<script>alert" not in searched.text
    assert "wait_for_statement" in searched.text


def test_each_webhook_is_on_one_page_of_the_list(browser, filled):
    filled(events=120)
    seen = re.findall(r'title="(statement-\d+)"', pages_from(browser(), f"{PREFIX}/webhooks"))

    assert seen == [f"statement-{number}" for number in range(120)]


@pytest.mark.parametrize(("search", "found"), [("loan-11", 1), ("customer-11", 1), ("statement-11", 1), ("oan-1", 3)])
def test_webhooks_are_found_by_a_part_of_any_id(browser, filled, search, found):
    filled(events=12)
    answer = browser().get(f"{PREFIX}/webhooks", params={"q": search})
    assert len(re.findall(r'title="statement-\d+"', answer.text)) == found


def test_webhooks_are_found_by_an_id_in_another_script(browser, filled):
    filled(events=3, links=["कर्ज-१"])
    answer = browser().get(f"{PREFIX}/webhooks", params={"q": "कर्ज"})
    assert re.findall(r'title="(statement-\d+)"', answer.text) == ["statement-0"]


def test_search_without_a_hit_says_what_to_do(browser, filled):
    filled(events=3, waits=1)
    assert "No recorded webhook has" in text_of(browser().get(f"{PREFIX}/webhooks?q=nobody"))
    assert "No open wait has" in text_of(browser().get(f"{PREFIX}/waits?q=nobody"))


def test_webhook_shows_the_run_that_it_started_and_one_without_a_run_says_so(browser, filled, sqlite):
    filled(events=1)
    [(event_id,)] = sqlite.query("select id from asset_event")
    sqlite.change("update asset_event set timestamp = :then", then="2020-01-01 00:00:00.000000")
    answer = browser().get(f"{PREFIX}/webhooks")
    assert re.search(r'href="/dags/first/runs/webhook-[0-9a-f]+-0"', answer.text)
    sqlite.change("delete from dagrun_asset_event where event_id = :event_id", event_id=event_id)
    assert "recorded; no run" in text_of(browser().get(f"{PREFIX}/webhooks"))


def test_asset_event_that_is_no_webhook_is_named_as_such(browser, filled, sqlite):
    filled(events=1)
    sqlite.change("""update asset_event set extra = '{"from": "somebody"}'""")
    answer = browser().get(f"{PREFIX}/webhooks")
    assert "somebody else created this asset event" in text_of(answer)
    assert "'from'" not in text_of(answer)


def test_health_counts_each_hour_and_names_what_is_wrong(browser, filled, sqlite):
    filled(events=48, span_hours=24)
    overview = browser().get(f"{PREFIX}/")
    counts = re.search(r"the oldest first: ([\d, ]*)", overview.text)[1]
    assert sum(map(int, counts.split(", "))) == 48
    assert set(map(int, counts.split(", "))) == {2}
    assert "Nothing is wrong." in text_of(overview)

    sqlite.change("update dag set is_paused = true where dag_id = 'first'")
    paused = text_of(browser().get(f"{PREFIX}/"))
    assert "Error: first is paused: webhooks start no run. Unpause, then BankConnectCatchUpOperator" in paused


def test_customers_with_a_webhook_and_no_run_are_counted(browser, filled, sqlite):
    filled(events=10, span_hours=10)
    sqlite.change("delete from dagrun_asset_event where event_id <= 5")
    assert "5 customers had a webhook more than 5 minutes ago, and no run" in text_of(browser().get(f"{PREFIX}/"))


def test_page_of_a_new_airflow_says_what_to_do_first(browser, sqlite):
    for table in ("dag_schedule_asset_reference", "asset_active", "asset"):
        sqlite.change(f"delete from {table}")  # noqa: S608 - a constant
    said = text_of(browser().get(f"{PREFIX}/"))
    assert "To start runs by webhooks: Set [bankconnect] webhook_token" in said
    assert "No webhook has arrived yet" in said
    assert "A wait appears here when a run reaches its gate" in said


def test_receiver_without_a_token_is_named(browser, configure):
    client = browser()
    configure(webhook_token=None)
    assert "The webhook receiver is off: set [bankconnect] webhook_token" in text_of(client.get(f"{PREFIX}/"))


# Waits


def test_wait_shows_its_customer_its_times_and_its_last_webhook(browser, filled):
    filled(events=2, waits=2)
    answer = browser().get(f"{PREFIX}/waits")
    row = text_of(answer).partition("loan-0")[2].partition("Explain")[0]

    assert "wait_for_statement" in row
    assert "(24 h ago)" in row
    assert "(in 119 min)" in row
    assert "within 1 min" in row
    assert "none since" not in row
    assert re.search(r'href="/dags/first/runs/manual-[^"]*/tasks/wait_for_statement"', answer.text)


def test_wait_whose_trigger_cannot_be_read_has_a_row_that_says_so(browser, filled):
    filled(waits=3, unreadable=True)
    answer = browser().get(f"{PREFIX}/waits")
    assert "its trigger cannot be read" in text_of(answer)
    assert "loan-2" in answer.text
    assert "Was the Fernet key changed" in text_of(browser().get(task_of(answer)))


@pytest.mark.parametrize("kind", ["__classname__", "__type"])
def test_classes_that_the_arguments_of_a_trigger_name_are_not_imported(kind):
    from airflow_provider_bankconnect.ui.waits import decrypted  # noqa: PLC0415 - Airflow 2 lacks what it imports

    given = {"link_id": {kind: "some.module.Class", "__data__": {}, "__var": {}}}
    with pytest.raises(ValueError, match=r"is no plain value, but 'some.module.Class'"):
        decrypted(json.dumps(given))


@pytest.mark.parametrize(
    "written",
    [
        {
            "link_id": "l",
            "ids": {"__classname__": "builtins.tuple", "__version__": 1, "__data__": ["a"]},
            "n": {"x": 1},
        },
        {
            "__type": "dict",
            "__var": {
                "link_id": "l",
                "ids": {"__type": "tuple", "__var": ["a"]},
                "n": {"__type": "dict", "__var": {"x": 1}},
            },
        },
    ],
    ids=["Airflow 3.2", "Airflow 3.1"],
)
def test_arguments_of_a_trigger_are_read_as_each_airflow_writes_them(written):
    from airflow_provider_bankconnect.ui.waits import decrypted  # noqa: PLC0415

    assert decrypted(json.dumps(written)) == {"link_id": "l", "ids": ["a"], "n": {"x": 1}}


def test_each_wait_is_on_one_page_of_the_list_and_can_be_searched(browser, filled):
    filled(waits=120)
    client = browser()
    seen = re.findall(r'title="(loan-\d+)"', pages_from(client, f"{PREFIX}/waits"))

    assert seen == [f"loan-{number}" for number in range(120)]
    assert re.findall(r'title="(loan-\d+)"', client.get(f"{PREFIX}/waits?q=LOAN-117").text) == ["loan-117"]


UNTAKEN = {
    "taken by none, and a triggerer runs": (
        ["update trigger set triggerer_id = null"],
        "A triggerer with --queues does not take them: start one without",
    ),
    "of a queue that no triggerer has": (
        ["update trigger set triggerer_id = null, queue = 'slow'"],
        "start one with the queue 'slow' (airflow triggerer --queues)",
    ),
    "of a triggerer that has ended": (
        ["update job set latest_heartbeat = '2020-01-01 00:00:00.000000'"],
        "No triggerer runs: start one",
    ),
}


@pytest.mark.parametrize(("changes", "said"), UNTAKEN.values(), ids=UNTAKEN)
def test_waits_without_a_running_triggerer_are_named_in_the_list_and_in_health(browser, filled, sqlite, changes, said):
    filled(waits=2)
    assert "triggerer" not in text_of(browser().get(f"{PREFIX}/"))
    for change in changes:
        sqlite.change(change)
    overview = text_of(browser().get(f"{PREFIX}/"))
    assert "2 open waits have had no running triggerer for a minute: nothing checks them" in overview
    assert said in overview
    assert "Nothing is wrong" not in overview
    assert text_of(browser().get(f"{PREFIX}/waits")).count("no running triggerer has taken it") == 2


def test_wait_that_was_deferred_a_moment_ago_may_be_without_a_triggerer(browser, filled, sqlite):
    filled(waits=1)
    sqlite.change("update trigger set triggerer_id = null, created_date = '2100-01-01 00:00:00.000000'")
    overview = text_of(browser().get(f"{PREFIX}/"))
    assert "a triggerer takes it in a few seconds" in overview
    assert "no running triggerer" not in overview


def test_waits_without_a_triggerer_are_counted_only_for_those_who_may_read_their_dag(
    browser, filled, sqlite, manager, monkeypatch
):
    filled(waits=1)
    sqlite.change("update trigger set triggerer_id = null")
    monkeypatch.setattr(manager, "is_authorized_asset", lambda **_: False)
    assert "1 open wait has had no running triggerer" in text_of(browser().get(f"{PREFIX}/"))
    monkeypatch.setattr(manager, "is_authorized_dag", lambda **_: False)
    assert "no running triggerer" not in text_of(browser().get(f"{PREFIX}/"))


def without_trigger(sqlite, operator, fields, state="up_for_reschedule"):
    """Make the only wait one in reschedule mode."""
    sqlite.change(
        "update task_instance set state = :state, trigger_id = null, operator = :op", state=state, op=operator
    )
    [(dag_id, task_id, run_id)] = sqlite.query("select dag_id, task_id, run_id from task_instance")
    sqlite.change("delete from rendered_task_instance_fields")
    sqlite.change(
        "insert into rendered_task_instance_fields (dag_id, task_id, run_id, map_index, rendered_fields)"
        " values (:dag_id, :task_id, :run_id, -1, :fields)",
        dag_id=dag_id,
        task_id=task_id,
        run_id=run_id,
        fields=json.dumps(fields),
    )


def test_wait_in_reschedule_mode_is_read_from_its_rendered_arguments(browser, filled, sqlite):
    filled(waits=1)
    given = {"link_id": "loan-9", "entity_id": None, "statement_id": "['s-1', 's-2']", "since": None}
    without_trigger(sqlite, "BankConnectWebhookPayloadSensor", given | {"bankconnect_conn_id": CONN_ID})
    answer = browser().get(f"{PREFIX}/waits")
    assert re.findall(r'title="(loan-9)"', answer.text) == ["loan-9"]
    assert "failure_grace is not recorded. 30 minutes are assumed" in text_of(browser().get(task_of(answer)))


@pytest.mark.parametrize("state", ["success", "failed", "queued"])
def test_wait_that_is_over_or_not_begun_can_be_explained(browser, filled, sqlite, state):
    filled(waits=1)
    path = task_of(browser().get(f"{PREFIX}/waits"))
    without_trigger(sqlite, "BankConnectProgressSensor", {"entity_id": "e-7", "analysis": "accounts"}, state)
    said = text_of(browser().get(path))
    assert "e-7" in said
    assert ("This wait is over" in said) == (state != "queued")


def test_sensor_without_ids_is_explained_with_the_customer_of_its_run(browser, filled, sqlite):
    filled(events=1, waits=1)
    path = task_of(browser().get(f"{PREFIX}/waits"))
    without_trigger(sqlite, "BankConnectStatementSensor", {"link_id": None, "bankconnect_conn_id": CONN_ID})
    assert "the run names no customer" in text_of(browser().get(path))
    assert "the customer is that of the run" in text_of(browser().get(f"{PREFIX}/waits"))

    sqlite.change("update dag_run set partition_key = 'entity:e-5' where run_id like 'manual%'")
    assert "e-5" in text_of(browser().get(path))
    sqlite.change(
        "update dagrun_asset_event set dag_run_id = (select id from dag_run where run_id like 'manual%')",
    )
    assert re.search(r'title="loan-0"', browser().get(path).text)


def test_task_instance_that_does_not_exist_or_is_no_sensor_is_named(browser, filled, sqlite):
    filled(waits=1)
    path = task_of(browser().get(f"{PREFIX}/waits"))
    assert "There is no task instance" in text_of(browser().get(path.replace("wait_for_statement", "other")))
    without_trigger(sqlite, "EmptyOperator", {})
    assert "the task is a EmptyOperator, none of BankConnectWebhookPayloadSensor" in text_of(browser().get(path))


# Explain


def test_looking_asks_nothing_and_the_button_asks_now(browser, filled, box):
    filled(waits=1)
    client = browser()
    path = task_of(client.get(f"{PREFIX}/waits"))
    client.get(path)
    client.get(f"{PREFIX}/explain?link_id=loan-0")
    assert not box.requests

    box.play(Statement(link_id="loan-0", statement_id="s-1", after=0.0))
    answer = client.post(f"{PREFIX}/explain", data=form_of(path))
    assert "PASSED: payload history of link 'loan-0'" in text_of(answer)
    assert "s-1" in answer.text
    assert "Check again" in text_of(answer)
    assert box.requests


def test_customer_typed_in_is_explained_with_both_records(browser, box):
    box.play(Statement(link_id="loan-3", statement_id="s-3", after=0.0, progress="failed"))
    answer = browser().post(f"{PREFIX}/explain", data={"link_id": " loan-3 ", "conn_id": CONN_ID})
    assert "STILL WAITING: statements of link 'loan-3'" in text_of(answer)
    assert 'value=" loan-3 "' in answer.text or 'value="loan-3"' in answer.text
    assert box.calls("webhook_payloads")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind="status", status=429, retry_after=90), "too many calls (Retry-After: 90 s)"),
        (Fault(kind="status", status=401), "BankConnect refuses these keys"),
        (Fault(kind="status", status=503), "BankConnect failed"),
        (Fault(kind="reset"), "BankConnect could not be asked"),
        (Fault(kind="garbage"), "BankConnect could not be asked"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_explain_says_in_words_why_bankconnect_could_not_be_asked(browser, box, fault, said):
    box.fault(fault)
    answer = browser().post(f"{PREFIX}/explain", data={"link_id": "loan-1"})
    assert answer.status_code == 200
    assert said in text_of(answer)
    assert ("Try again at" in text_of(answer)) == (fault.retry_after == 90)
    assert box.api_key not in answer.text
    assert box.server_hash not in answer.text


def test_reader_may_check_once_in_a_second(browser, box, monkeypatch):
    from airflow_provider_bankconnect.ui import access  # noqa: PLC0415 - Airflow 2 lacks what it imports

    # On a busy machine the first check may take longer than a second.
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    form = {"link_id": "loan-1"}
    ada, vic = browser("admin", "ada"), browser("viewer", "vic")
    first, second = (text_of(ada.post(f"{PREFIX}/explain", data=form)) for _ in range(2))
    asked = len(box.requests)
    other = text_of(vic.post(f"{PREFIX}/explain", data=form))

    assert "STILL WAITING" in first
    assert "You checked less than a second ago" in second
    assert "STILL WAITING" in other
    assert len(box.requests) == 2 * asked


def test_invalid_input_is_named(browser, box):
    answer = browser().post(f"{PREFIX}/explain", data={"link_id": "loan-1", "since": "yesterday"})
    assert "since must be a datetime or ISO 8601 text" in text_of(answer)
    assert "Which customer?" in text_of(browser().post(f"{PREFIX}/explain", data={}))
    assert not box.requests


# The page as a whole


def test_part_that_fails_or_is_slow_does_not_cost_the_others(browser, filled, monkeypatch):
    from airflow_provider_bankconnect.ui import app, parts  # noqa: PLC0415 - Airflow 2 lacks what they import

    filled(events=1, waits=1)
    answered, ended = threading.Event(), []

    def hang(*_, **__):
        answered.wait(LONGEST)
        ended.append("webhooks")

    def fail(*_, **__):
        raise OSError("secret detail")

    monkeypatch.setattr(app, "_PART_SECONDS", 3.0)
    monkeypatch.setattr(parts, "newest_webhooks", hang)
    monkeypatch.setattr(parts, "traffic", fail)
    said = text_of(browser().get(f"{PREFIX}/"))
    # The answer has not waited for the slow part.
    assert not ended
    answered.set()
    assert "Airflow's database has not answered within 3 seconds" in said
    assert "This part cannot be shown now (OSError)" in said
    assert "secret detail" not in said
    assert "wait_for_statement" in said


@contextmanager
def counted():
    """Count the statements that are sent to the database."""
    from airflow import settings  # noqa: PLC0415
    from sqlalchemy import event  # noqa: PLC0415

    found = []

    def note(_connection, _cursor, statement, *_):
        found.append(statement)

    event.listen(settings.engine, "before_cursor_execute", note)
    yield found
    event.remove(settings.engine, "before_cursor_execute", note)


def test_first_answer_takes_at_most_twenty_queries_and_changes_nothing(browser, filled):
    filled(events=60, waits=60)
    client = browser()
    with counted() as queries:
        assert client.get(f"{PREFIX}/").status_code == 200
    assert 0 < len(queries) <= 20
    assert {query.split()[0].upper() for query in queries} <= {"SELECT", "WITH", "PRAGMA"}


def test_page_keeps_other_sites_out_and_nothing_in_caches(browser):
    answer = browser().get(f"{PREFIX}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"\son\w+=|style=|<script>", answer.text)


@pytest.mark.parametrize(("path", "status"), [("/static/page.css", 200), ("/static/../app.py", 404), ("/nothing", 404)])
def test_unknown_paths_are_an_error_page_and_static_files_are_public(browser, path, status):
    answer = browser(None).get(f"{PREFIX}{path}")
    assert answer.status_code == status
    assert "import" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        *("webhooks?before=x", "webhooks?before=2026-01-01T00:00:00~x", "webhooks?before=~"),
        *("webhooks?before=9999-99-99~1", "webhooks?before=2026-01-01~99999999999", "waits?after=x"),
        *("waits?after=-1", "waits?after=99999999999"),
    ],
)
def test_address_with_a_wrong_position_is_named(browser, filled, path):
    filled(events=1)
    assert "The address of this page is not right" in text_of(browser().get(f"{PREFIX}/{path}"))


def test_token_and_keys_are_on_no_page(browser, filled, box):
    filled(events=3, waits=3)
    client = browser("admin")
    pages = [client.get(f"{PREFIX}/{path}").text for path in ("", "webhooks", "waits", "explain")]
    pages.append(client.post(f"{PREFIX}/explain", data={"link_id": "loan-1"}).text)
    for secret in (TOKEN, box.api_key, box.server_hash):
        assert not any(secret in page for page in pages)


def test_airflow_takes_the_view_and_the_link_and_imports_no_sensor_for_them():
    code = (
        "import sys; from airflow_provider_bankconnect.ui.plugin import BankConnectPagePlugin as plugin;"
        "heavy = [name for name in sys.modules if name.startswith('airflow_provider_bankconnect.')];"
        "from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse as View;"
        "print(View(**plugin.external_views[0]).destination, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    package = "airflow_provider_bankconnect"
    modules = [f"{package}.{name}" for name in ("get_provider_info", "lazy_app", "ui", "ui.link", "ui.plugin")]
    assert done.stdout.split("\n")[-2] == f"nav {modules}"


def test_link_leads_to_the_page_for_this_task_instance_and_costs_no_other_link():
    from airflow_provider_bankconnect.ui.link import BankConnectExplainLink  # noqa: PLC0415

    key = SimpleNamespace(dag_id="d", run_id="manual__2026-11-28T00:00:00+00:00", task_id="t", map_index=3)
    link = BankConnectExplainLink()
    assert link.get_link(None, ti_key=key) == (
        "bankconnect-ui/explain?dag_id=d&run_id=manual__2026-11-28T00%3A00%3A00%2B00%3A00&task_id=t&map_index=3"
    )
    assert link.get_link(None, ti_key=None) == ""


def test_page_reads_postgresql_too(browser, filled, monkeypatch, postgres):
    """In the same process, after SQLite: queries, paging, search and the time limit."""
    from sqlalchemy import text  # noqa: PLC0415

    from airflow_provider_bankconnect.ui import database, parts  # noqa: PLC0415

    filled(events=60, waits=60)
    client = browser()
    assert "Nothing is wrong." in text_of(client.get(f"{PREFIX}/"))
    postgres.change("update trigger set triggerer_id = null where id % 2 = 0")
    assert "30 open waits have had no running triggerer" in text_of(client.get(f"{PREFIX}/"))
    assert "statement-7" in client.get(f"{PREFIX}/webhooks?q=loan-7").text
    assert 'title="loan-55"' in client.get(f"{PREFIX}/waits?q=loan-55").text
    monkeypatch.setattr(database, "QUERY_SECONDS", 1)
    monkeypatch.setattr(
        parts, "newest_webhooks", lambda session, *_, **__: session.execute(text("select pg_sleep(30)"))
    )
    said = text_of(client.get(f"{PREFIX}/webhooks"))
    assert "Airflow's database did not answer in time" in said
