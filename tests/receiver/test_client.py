"""The client of the webhook receiver over HTTPS, and its error messages."""

from __future__ import annotations

import json

import pytest
import requests
from receivers import CONN_ID, NEEDS_3_2, NO_DAG, NOTHING, ODD, PREVIOUS, TOKEN, Served, statement

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver import client as clients
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError, send_to_receiver

pytestmark = NEEDS_3_2


def rows(*numbers, **changes):
    """Rows of the payload history, as a gate returns them."""
    return [statement(statement_id=str(number), date_time="2026-01-01T00:00:00+00:00", **changes) for number in numbers]


def test_record_records_what_is_not_recorded_yet(served, sqlite):
    assert send_to_receiver(CONN_ID, rows(1, 2, 3), "record") == NOTHING | {"recorded": 3}
    assert send_to_receiver(CONN_ID, rows(2, 3, 4), "record") == NOTHING | {"recorded": 1, "duplicate": 2}
    assert send_to_receiver(CONN_ID, rows(5, 5, 5), "record") == NOTHING | {"recorded": 1, "duplicate": 2}
    assert sqlite.recorded == ["1", "2", "3", "4", "5"]
    # Only the five fields and the time are sent.
    fields = {*statement(), "date_time"}
    assert all(set(event) == fields for body in served.front.bodies for event in json.loads(body)["events"])


@pytest.mark.usefixtures("served")
def test_again_records_again(sqlite):
    assert send_to_receiver(CONN_ID, rows(1), "record") == NOTHING | {"recorded": 1}
    assert send_to_receiver(CONN_ID, rows(1, 2), "again") == NOTHING | {"recorded": 2}
    assert send_to_receiver(CONN_ID, rows(1, 1), "again") == NOTHING | {"recorded": 2}
    assert sqlite.recorded == ["1", "1", "2", "1", "1"]


@pytest.mark.usefixtures("served")
def test_check_counts_missed_webhooks_and_records_none(sqlite, caplog):
    send_to_receiver(CONN_ID, rows(1), "record")
    assert send_to_receiver(CONN_ID, rows(1, 2, 3), "check") == {"missed": 2}
    # Only a completed statement can be missed.
    assert send_to_receiver(CONN_ID, rows(4, progress="failed"), "check") == {"missed": 0}
    assert send_to_receiver(CONN_ID, rows(""), "check") == {"missed": 0}
    # Without a DAG no webhook was recorded.
    assert send_to_receiver(NO_DAG, rows(1), "check") == {"missed": 1}
    assert sqlite.recorded == ["1"]
    assert caplog.text.count("Missed webhook of") == 3


def test_many_events_are_sent_in_batches_and_counted_together(served, sqlite):
    assert send_to_receiver(CONN_ID, rows(*range(1201)), "check") == {"missed": 1201}
    assert [len(json.loads(body)["events"]) for body in served.front.bodies] == [500, 500, 201]
    send_to_receiver(CONN_ID, rows(0, 1000), "record")
    assert send_to_receiver(CONN_ID, rows(*range(1201)), "check") == {"missed": 1199}
    assert sqlite.recorded == ["0", "1000"]


def test_batches_have_the_size_that_the_receiver_accepts():
    from airflow_provider_bankconnect.receiver.app import MAX_EVENTS  # noqa: PLC0415 - needs Airflow 3.2

    assert clients.MAX_EVENTS == MAX_EVENTS


def test_no_events_send_no_request(served):
    assert send_to_receiver(CONN_ID, [], "record") == {}
    assert not served.front.requests


def test_connection_may_have_an_odd_name(served, sqlite):
    assert send_to_receiver(ODD, rows(1), "record") == NOTHING | {"recorded": 1}
    assert [uri for uri, _, _ in sqlite.events] == [address.asset_uri(ODD)]
    assert served.front.requests == [f"POST /bankconnect/events/{ODD}"]


def test_webhook_token_is_not_sent(served):
    send_to_receiver(CONN_ID, rows(1), "record")
    (headers,) = served.front.headers
    assert headers["authorization"] == f"Bearer {address.internal_token(TOKEN)}"
    assert TOKEN not in str(headers) + str(served.front.requests) + str(served.front.bodies)


def test_previous_token_is_accepted_during_rotation(served, box, sqlite, configure):
    # The server reads both tokens now, and caches them.
    configure(webhook_token=PREVIOUS, webhook_token_previous=TOKEN)
    requests.get(f"{served.url}/bankconnect/events", verify=box.ca_file, timeout=300)
    for token in (TOKEN, PREVIOUS):
        configure(webhook_token=token, webhook_token_previous=None)
        assert send_to_receiver(CONN_ID, rows(token), "record") == NOTHING | {"recorded": 1}
    assert sqlite.recorded == [TOKEN, PREVIOUS]


def test_server_certificate_itself_may_be_trusted(served, certificate, api_server_at):
    api_server_at(served.url, own_file=str(certificate[0]))
    assert send_to_receiver(CONN_ID, rows(1), "check") == {"missed": 1}


@pytest.mark.usefixtures("sqlite")
def test_plain_http_is_allowed(configure, api_server_at):
    configure(webhook_token=TOKEN)
    with Served() as server:
        api_server_at(server.url)
        assert send_to_receiver(CONN_ID, rows(1), "check") == {"missed": 1}


def test_proxy_and_netrc_of_the_environment_are_ignored(served, monkeypatch, tmp_path):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert send_to_receiver(CONN_ID, rows(1), "check") == {"missed": 1}
    assert served.front.headers[0]["authorization"].startswith("Bearer ")


NOT_HERE = (
    "to a request for the webhook receiver: this is not the webhook receiver. Set [bankconnect] api_server_url to"
)


def answer_of(status, body=b"{}", **headers):
    return status, headers, body


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        # An API server with the execution API only, and one without this package.
        (answer_of(404, b'{"detail":"Not Found"}'), f"HTTP 404 {NOT_HERE}"),
        (answer_of(405), f"HTTP 405 {NOT_HERE}"),
        # A proxy.
        (answer_of(401, **{"www-authenticate": 'Basic realm="x"'}), f"HTTP 401 {NOT_HERE}"),
        (
            answer_of(503),
            "the webhook receiver: no DAG is scheduled by the connection's webhook_asset, or the database",
        ),
        (answer_of(500), "HTTP 500 to a request for the webhook receiver: see the API server's log"),
        (answer_of(302, location="https://elsewhere.example.com/"), f"HTTP 302 {NOT_HERE}"),
        (answer_of(200, b"<html>"), f"HTTP 200 {NOT_HERE}"),
        (answer_of(200, b""), f"HTTP 200 {NOT_HERE}"),
        (answer_of(200, b"[]"), f"HTTP 200 {NOT_HERE}"),
        (answer_of(200, b'{"recorded": "one"}'), f"HTTP 200 {NOT_HERE}"),
        (answer_of(200, b'{"recorded": null}'), f"HTTP 200 {NOT_HERE}"),
        (answer_of(204, b""), f"HTTP 204 {NOT_HERE}"),
    ],
)
def test_other_answer_is_an_error_with_advice(served, instead, words):
    served.front.instead = instead
    with pytest.raises(WebhookReceiverError) as caught:
        send_to_receiver(CONN_ID, rows(1), "record")
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert address.internal_token(TOKEN) not in str(caught.value)


@pytest.mark.usefixtures("served")
def test_different_token_is_an_error(configure, sqlite):
    send_to_receiver(CONN_ID, rows(1), "record")
    configure(webhook_token=PREVIOUS)
    with pytest.raises(WebhookReceiverError, match=r"HTTP 401 .*\[bankconnect\] webhook_token is the same on the API"):
        send_to_receiver(CONN_ID, rows(2), "record")
    assert sqlite.recorded == ["1"]


def test_receiver_may_be_on_another_api_server_than_the_execution_api(served, configure, monkeypatch, sqlite):
    """As with ``airflow api-server --apps core``, and another with ``--apps execution``."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "https://localhost:1/execution/")
    configure(webhook_token=TOKEN, api_server_url=served.url)
    assert send_to_receiver(CONN_ID, rows(1), "record") == NOTHING | {"recorded": 1}
    assert sqlite.recorded == ["1"]
    configure(api_server_url="private")
    with pytest.raises(WebhookReceiverError, match=r"\[bankconnect\] api_server_url must be"):
        send_to_receiver(CONN_ID, rows(2), "record")


@pytest.mark.usefixtures("served")
def test_connection_without_a_dag_is_an_error(monkeypatch):
    with pytest.raises(WebhookReceiverError, match="that the connection exists"):
        send_to_receiver("unknown", rows(1), "record")
    monkeypatch.setenv(f"AIRFLOW_CONN_{NO_DAG.upper()}", "bankconnect://")
    with pytest.raises(WebhookReceiverError, match="no DAG is scheduled by the connection's webhook_asset"):
        send_to_receiver(NO_DAG, rows(1), "record")


def test_unreachable_or_untrusted_server_is_an_error_with_the_setting(served, box, api_server_at):
    api_server_at("https://localhost:1", box.ca_file)
    with pytest.raises(
        WebhookReceiverError,
        match=r"No answer .* at https://localhost:1 \(ConnectionError\): check \[bankconnect\] api_server_url",
    ):
        send_to_receiver(CONN_ID, rows(1), "record")
    api_server_at(served.url)
    with pytest.raises(WebhookReceiverError, match=r"\(SSLError\)"):
        send_to_receiver(CONN_ID, rows(1), "record")
    assert not served.front.requests


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unreadable_certificate_file_is_an_error_with_the_setting(served, box, api_server_at, tmp_path, content):
    """A WebhookReceiverError, since a sensor that checks must not fail."""
    file = tmp_path / "bundle.pem"
    if content:
        file.write_text(content)
    for files in ({"ca_file": str(file)}, {"ca_file": box.ca_file, "own_file": str(file)}):
        api_server_at(served.url, **files)
        with pytest.raises(WebhookReceiverError, match=r"\[api\] ssl_ca_file or ssl_cert cannot be read"):
            send_to_receiver(CONN_ID, rows(1), "check")
