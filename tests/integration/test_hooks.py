"""Both hooks over real TLS: requests, answers, and the error of every bad answer."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from types import SimpleNamespace

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowException, redact

from airflow_provider_bankconnect.api import (
    BankConnectAuthError,
    BankConnectCertificateError,
    BankConnectConnectionError,
    BankConnectError,
    BankConnectNotFoundError,
    BankConnectNotReadyError,
    BankConnectRateLimitError,
    BankConnectResponseError,
    BankConnectServerError,
    WebhookMode,
)
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook
from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

pytestmark = pytest.mark.usefixtures("connection")


def in_a_loop(coroutine, *arguments):
    return asyncio.run(coroutine(*arguments))


both = pytest.mark.parametrize("ask", ["sync", "async"], indirect=True)


@pytest.fixture
def ask(request):
    """Call a reading method of one of the hooks, once, without retries."""

    def synchronously(method, *arguments):
        with BankConnectHook(max_retries=0) as hook:
            return getattr(hook, method)(*arguments)

    async def asynchronously(method, *arguments):
        async with BankConnectAsyncHook() as hook:
            return await getattr(hook, method)(*arguments)

    if request.param == "sync":
        return synchronously
    return partial(in_a_loop, asynchronously)


@pytest.fixture
def naps(monkeypatch):
    """Record how long the hook would sleep between two attempts, and do not sleep."""
    taken = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=taken.append))
    return taken


@both
def test_payloads_come_newest_first_with_times_in_utc(box, ask):
    for second, statement in ((10, "s1"), (30, "s3"), (20, "s2")):
        box.payload(
            link_id="L",
            entity_id="e",
            statement_id=statement,
            progress="completed",
            reason="",
            date_time=f"2026-11-23 10:00:{second}",
        )
    box.fault(Fault(kind="shuffle", call="webhook_payloads"))
    rows = ask("get_webhook_payloads", "L")
    assert [row.statement_id for row in rows] == ["s3", "s2", "s1"]
    assert rows[0].date_time.isoformat() == "2026-11-23T10:00:30+00:00"


@both
@pytest.mark.parametrize(
    "link", ["a", "loan 4711", "a/b&c=d#e%2F?f+g", "ünïcödé 銀行 🏦", "x" * 500, "/ & # % ? " * 50, "..", "...a"]
)
def test_link_id_of_any_characters_arrives_unchanged(box, ask, link):
    if link == "..":
        with pytest.raises(ValueError, match="link_id"):
            ask("get_webhook_payloads", link)
        assert box.requests == []
        return
    ask("get_webhook_payloads", link)
    assert box.calls("webhook_payloads")[0].query == {"link_id": link}


@both
@pytest.mark.parametrize(
    "entity", ["../update_webhook", "a/b", "e?x=1", "e#f", "%2e%2e", "e/../../x", "..;", "e\\..\\f"]
)
def test_entity_id_never_reaches_another_path(box, ask, entity):
    with pytest.raises(BankConnectNotFoundError):
        ask("get_progress", entity)
    (request,) = box.requests
    assert request.path.startswith("/bank-connect/v1/entity/")
    assert request.path.count("/") == "/bank-connect/v1/entity/x/transactions/".count("/")
    assert request.path.endswith("/transactions/")


@both
@pytest.mark.parametrize("link", ["", " ", None, "None", ".", ["L"]])
def test_invalid_link_id_is_refused_and_nothing_is_sent(box, ask, link):
    with pytest.raises(ValueError, match="link_id"):
        ask("get_webhook_payloads", link)
    assert box.requests == []


@both
@pytest.mark.parametrize("status", [401, 402, 403])
def test_wrong_keys_are_an_auth_error_after_one_request(box, ask, status):
    box.fault(Fault(kind="status", status=status))
    with pytest.raises(BankConnectAuthError) as raised:
        ask("get_webhook_payloads", "L")
    assert len(box.requests) == 1
    assert raised.value.status == status
    assert not isinstance(raised.value, AirflowException)
    assert box.api_key not in repr(raised.value)
    assert box.server_hash not in repr(raised.value)


def test_wrong_keys_are_not_retried(box, monkeypatch):
    wrong = json.dumps(box.connection | {"password": "wrong-server-hash"})
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", wrong)
    with BankConnectHook() as hook, pytest.raises(BankConnectAuthError) as raised:
        hook.get_webhook_payloads("L")
    assert len(box.requests) == 1
    assert "wrong-server-hash" not in str(raised.value)


@both
def test_redirect_is_an_error_and_the_keys_are_not_sent_there(box, ask):
    with Sandbox(api_key=box.api_key, server_hash=box.server_hash) as elsewhere:
        box.fault(Fault(kind="redirect", url=f"{elsewhere.url}/entity/webhook_payloads/?link_id=L"))
        with pytest.raises(BankConnectResponseError, match="redirect"):
            ask("get_webhook_payloads", "L")
        assert elsewhere.requests == []


@both
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(kind="status", status=429), BankConnectRateLimitError),
        (Fault(kind="status", status=500), BankConnectServerError),
        (Fault(kind="status", status=503), BankConnectServerError),
        (Fault(kind="status", status=404), BankConnectNotFoundError),
        (Fault(kind="status", status=400), BankConnectResponseError),
        (Fault(kind="status", status=204), BankConnectResponseError),
        (Fault(kind="reset"), BankConnectConnectionError),
        (Fault(kind="half"), BankConnectConnectionError),
        (Fault(kind="garbage"), BankConnectResponseError),
        (Fault(kind="garbage", body="[]"), BankConnectResponseError),
        (Fault(kind="garbage", body="{}"), BankConnectResponseError),
        (Fault(kind="garbage", body='{"payloads": null}'), BankConnectResponseError),
        (Fault(kind="garbage", body='{"payloads": [{}]}'), BankConnectResponseError),
        (Fault(kind="garbage", body=""), BankConnectResponseError),
    ],
    ids=lambda value: (
        f"{value.kind}-{value.status if value.kind == 'status' else value.body}" if hasattr(value, "kind") else None
    ),
)
def test_every_bad_answer_has_its_error_after_one_request(box, ask, fault, error):
    box.fault(fault)
    with pytest.raises(error) as raised:
        ask("get_webhook_payloads", "L")
    assert type(raised.value) is error
    assert "webhook_payloads" in str(raised.value)
    # aiohttp itself repeats a GET once when a connection closes without an answer: a kept one may have been idle.
    again = fault.kind == "reset" and isinstance(ask, partial)
    assert len(box.requests) == (2 if again else 1)


@both
def test_retry_after_is_read_in_both_its_forms(box, ask):
    box.fault(Fault(kind="status", status=429, retry_after=7, times=1))
    with pytest.raises(BankConnectRateLimitError) as raised:
        ask("get_webhook_payloads", "L")
    assert raised.value.retry_after == 7
    box.fault(Fault(kind="status", status=503, retry_after=120, retry_after_form="date", times=1))
    with pytest.raises(BankConnectServerError) as raised:
        ask("get_webhook_payloads", "L")
    assert 110 < raised.value.retry_after <= 120


@both
def test_late_answer_is_a_connection_error(box, ask, monkeypatch):
    quick = box.connection | {"extra": box.connection["extra"] | {"timeout": 0.3}}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(quick))
    box.fault(Fault(kind="delay", seconds=2, times=1))
    with pytest.raises(BankConnectConnectionError, match="in time"):
        ask("get_webhook_payloads", "L")


@both
def test_refused_connection_is_a_connection_error(ask, box, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | {"host": "https://localhost:1/bank-connect/v1"})
    )
    with pytest.raises(BankConnectConnectionError):
        ask("get_webhook_payloads", "L")


@both
def test_unverified_certificate_has_its_own_error_and_nothing_is_sent(box, ask, monkeypatch):
    extra = {name: value for name, value in box.connection["extra"].items() if name != "verify"}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | {"extra": extra}))
    with pytest.raises(BankConnectCertificateError, match="verify"):
        ask("get_webhook_payloads", "L")
    assert box.requests == []


@both
def test_ca_bundle_of_the_connection_replaces_that_of_the_environment(box, ask, monkeypatch, tmp_path):
    with Sandbox() as other:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", other.ca_file)
        monkeypatch.setenv("CURL_CA_BUNDLE", other.ca_file)
        assert ask("get_webhook_payloads", "L") == []
    assert len(box.requests) == 1
    del tmp_path


@both
def test_default_authorities_are_those_of_requests(box, ask, monkeypatch):
    extra = {name: value for name, value in box.connection["extra"].items() if name != "verify"}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | {"extra": extra}))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", box.ca_file)
    assert ask("get_webhook_payloads", "L") == []


@both
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"password": None}, "Server Hash"),
        ({"password": "with a blank"}, "Server Hash"),
        ({"password": "with-€-sign"}, "Server Hash"),
        ({"extra": {}}, "API Key"),
        ({"extra": {"api_key": "key\n"}}, "API Key"),
        ({"host": "http://localhost/bank-connect/v1"}, "plain HTTP"),
        ({"extra": {"api_key": "abc", "verify": False}}, "verify"),
        ({"extra": {"api_key": "abc", "verify": "/nowhere/ca.pem"}}, "verify"),
    ],
    ids=str,
)
def test_invalid_connection_is_an_error_that_names_it_and_the_field_and_nothing_is_sent(
    box, ask, monkeypatch, change, field
):
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | change))
    with pytest.raises(ValueError, match=field) as raised:
        ask("get_webhook_payloads", "L")
    assert "'bankconnect_default'" in str(raised.value)
    assert box.api_key not in str(raised.value)
    assert "blank" not in (change.get("password") or "") or "with a blank" not in str(raised.value)
    assert box.requests == []


@both
def test_missing_connection_is_an_error_that_names_it(ask, monkeypatch, tmp_path):
    monkeypatch.delenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(Exception, match="bankconnect_default"):
        ask("get_webhook_payloads", "L")


@both
def test_answer_larger_than_the_limit_is_refused(box, ask, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.api.MAX_ANSWER_BYTES", 200_000)
    box.fault(Fault(kind="garbage", body="x" * 400_000))
    with pytest.raises(BankConnectResponseError, match="larger than"):
        ask("get_webhook_payloads", "L")


@both
def test_transactions_are_returned_whole_when_they_are_ready(box, ask):
    box.play(Statement(link_id="L", entity_id="e", statement_id="s", after=0, transactions=12))
    answer = ask("get_transactions", "e")
    assert len(answer["transactions"]) == 12
    assert {"entity_id", "progress", "accounts", "fraud", "transactions"} <= answer.keys()
    assert [item.status for item in ask("get_progress", "e")] == ["completed"]


@both
def test_transactions_are_refused_while_a_statement_is_in_progress(box, ask):
    box.play(Statement(link_id="L", entity_id="e", statement_id="s1", after=0))
    box.play(Statement(link_id="L", entity_id="e", statement_id="s2", after=60))
    with pytest.raises(BankConnectNotReadyError, match="1 of 2"):
        ask("get_transactions", "e")


@both
def test_entities_of_all_pages_are_returned(box, ask):
    for number in range(23):
        box.play(Statement(link_id="L", entity_id=f"e{number}", after=0))
    box.play(Statement(link_id="M", entity_id="other", after=0))
    assert sorted(ask("get_entities", "L")) == sorted(f"e{number}" for number in range(23))
    assert [request.query["page"] for request in box.calls("entities")] == ["1", "2", "3"]


def test_hook_retries_with_full_jitter_at_most_three_times(box, naps):
    box.fault(Fault(kind="status", status=503))
    with BankConnectHook() as hook, pytest.raises(BankConnectServerError):
        hook.get_webhook_payloads("L")
    assert len(box.requests) == 4
    assert len(naps) == 3
    assert all(0 <= nap <= ceiling for nap, ceiling in zip(naps, (1, 2, 4), strict=True))


@pytest.mark.parametrize(("asked", "slept"), [(5, 5), (59, 59), (3600, 60)])
def test_hook_waits_for_the_retry_after_up_to_a_minute(box, naps, asked, slept):
    box.fault(Fault(kind="status", status=429, retry_after=asked, times=1))
    with BankConnectHook() as hook:
        assert hook.get_webhook_payloads("L") == []
    assert naps == [slept]


def test_hook_makes_a_new_connection_after_errors_in_a_row(box, naps):
    box.fault(Fault(kind="status", status=503, times=2))
    with BankConnectHook() as hook:
        assert hook.get_webhook_payloads("L") == []
    assert (len(naps), len(box.requests), box.connections) == (2, 3, 2)


@pytest.mark.parametrize("kind", ["reset", "half"])
def test_hook_retries_after_a_broken_connection(box, naps, kind):
    box.fault(Fault(kind=kind, times=2))
    with BankConnectHook() as hook:
        assert hook.get_webhook_payloads("L") == []
    assert len(naps) == 2


@pytest.mark.parametrize("fault", [Fault(kind="status", status=404), Fault(kind="garbage"), Fault(kind="redirect")])
def test_hook_does_not_retry_permanent_errors(box, naps, fault):
    box.fault(fault)
    with BankConnectHook() as hook, pytest.raises(BankConnectError):
        hook.get_webhook_payloads("L")
    assert (len(box.requests), naps) == (1, [])


def test_endpoint_is_registered_with_its_mode_and_retried(box, naps):
    box.fault(Fault(kind="status", call="update_webhook", status=503, times=1))
    with BankConnectHook() as hook:
        hook.update_webhook(box.inbox_url, WebhookMode.NET_BANKING_AND_MANUAL, allow_private_host=True)
    assert (box.webhook_url, box.webhook_mode, len(naps)) == (box.inbox_url, 1, 1)
    with BankConnectHook() as hook:
        hook.update_webhook(box.inbox_url, allow_private_host=True)
    assert json.loads(box.calls("update_webhook")[-1].body) == {"webhook_url": box.inbox_url, "webhook_mode": 0}


def test_private_endpoint_is_refused_before_anything_is_sent(box):
    with BankConnectHook() as hook, pytest.raises(ValueError, match="webhook_url"):
        hook.update_webhook(box.inbox_url)
    assert box.requests == []


def test_session_sends_the_keys_only_to_the_base_url(box):
    with BankConnectHook() as hook:
        session = hook.get_conn()
        session.get(f"{box.url}/entity/webhook_payloads/", params={"link_id": "L"})
        assert box.requests[-1].headers["x-api-key"] == box.api_key
        with Sandbox() as elsewhere:
            session.verify = elsewhere.ca_file
            for url in (
                f"{elsewhere.url}/entity/e/",
                box.url.replace("/bank-connect/v1", "/bank-connect/v1x/entity/e/"),
            ):
                prepared = session.prepare_request(requests.Request("GET", url))
                assert not {"x-api-key", "server-hash"} & {name.lower() for name in prepared.headers}


def test_session_follows_no_redirect_even_with_allow_redirects(box):
    with Sandbox() as elsewhere, BankConnectHook() as hook:
        box.fault(Fault(kind="redirect", url=f"{elsewhere.url}/entity/e/"))
        answer = hook.get_conn().get(f"{box.url}/entity/e/", allow_redirects=True)
        assert answer.status_code == 302
        assert elsewhere.requests == []


def test_session_uses_the_timeout_of_the_connection_by_default(box, monkeypatch):
    quick = box.connection | {"extra": box.connection["extra"] | {"timeout": 0.3}}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(quick))
    box.fault(Fault(kind="delay", seconds=2, times=1))
    with BankConnectHook() as hook, pytest.raises(requests.Timeout):
        hook.get_conn().get(f"{box.url}/entity/e/")


def test_one_session_serves_all_calls_of_a_hook(box):
    with BankConnectHook() as hook:
        for _ in range(5):
            hook.get_webhook_payloads("L")
    assert (len(box.requests), box.connections) == (5, 1)


def test_one_session_serves_all_calls_of_an_async_hook(box):
    async def ask_five_times():
        async with BankConnectAsyncHook() as hook:
            for _ in range(5):
                await hook.get_webhook_payloads("L")

    asyncio.run(ask_five_times())
    assert (len(box.requests), box.connections) == (5, 1)


@pytest.mark.parametrize(
    ("change", "good"),
    [({}, True), ({"password": "wrong"}, False), ({"host": "https://localhost:1"}, False), ({"password": None}, False)],
    ids=str,
)
def test_test_button_reports_whether_both_keys_are_accepted(box, monkeypatch, change, good):
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | change))
    status, message = BankConnectHook().test_connection()
    assert status is good
    assert message
    assert box.api_key not in message


def test_test_button_accepts_a_404_and_fails_on_an_undocumented_answer(box):
    box.fault(Fault(kind="status", status=404, times=1))
    assert BankConnectHook().test_connection()[0] is True
    box.fault(Fault(kind="garbage", times=1))
    assert BankConnectHook().test_connection()[0] is False


def test_test_button_reports_a_path_that_answers_404_to_every_call(box, monkeypatch):
    host = box.url.replace("bank-connect", "bank-conect")
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(box.connection | {"host": host}))
    assert "check the path" in BankConnectHook().test_connection()[1]


@both
def test_both_keys_are_masked_after_a_call(box, ask):
    ask("get_webhook_payloads", "L")
    redacted = redact(f"{box.api_key} and {box.server_hash}")
    assert box.api_key not in redacted
    assert box.server_hash not in redacted
