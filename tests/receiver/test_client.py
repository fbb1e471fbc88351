"""What tasks tell the receiver, over HTTPS; and what they are told when it does not take it."""

from __future__ import annotations

import json

import pytest
import requests
from doorbells import CONN_ID, LONELY, NEEDS, ODD, PREVIOUS, TOKEN, Served, statement

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver import client as clients
from airflow_provider_bankconnect.receiver.client import DoorbellError, tell_receiver

pytestmark = NEEDS

NOTHING = {"rung": 0, "repeated": 0, "nobody": 0, "failed": 0}


def rows(*numbers, **changes):
    """Rows of the ledger, as a gate gives them."""
    return [statement(statement_id=str(number), date_time="2026-01-01T00:00:00+00:00", **changes) for number in numbers]


def test_it_rings_for_what_nobody_has_rung_for(served, sqlite):
    assert tell_receiver(CONN_ID, rows(1, 2, 3), "ring") == NOTHING | {"rung": 3}
    assert tell_receiver(CONN_ID, rows(2, 3, 4), "ring") == NOTHING | {"rung": 1, "repeated": 2}
    assert tell_receiver(CONN_ID, rows(5, 5, 5), "ring") == NOTHING | {"rung": 1, "repeated": 2}
    assert sqlite.rung == ["1", "2", "3", "4", "5"]
    # Nothing but the five fields has left.
    assert all(set(ring) == set(statement()) for body in served.front.bodies for ring in json.loads(body)["rings"])


@pytest.mark.usefixtures("served")
def test_it_rings_again_on_request(sqlite):
    assert tell_receiver(CONN_ID, rows(1), "ring") == NOTHING | {"rung": 1}
    assert tell_receiver(CONN_ID, rows(1, 2), "again") == NOTHING | {"rung": 2}
    assert tell_receiver(CONN_ID, rows(1, 1), "again") == NOTHING | {"rung": 2}
    assert sqlite.rung == ["1", "1", "2", "1", "1"]


@pytest.mark.usefixtures("served")
def test_it_counts_what_nobody_has_rung_for_and_rings_nobody(sqlite, caplog):
    tell_receiver(CONN_ID, rows(1), "ring")
    assert tell_receiver(CONN_ID, rows(1, 2, 3), "check") == {"unheard": 2}
    # What a webhook announces when it is over is no completion, and no loss.
    assert tell_receiver(CONN_ID, rows(4, progress="failed"), "check") == {"unheard": 0}
    assert tell_receiver(CONN_ID, rows(""), "check") == {"unheard": 0}
    # Where no DAG listens none could have rung.
    assert tell_receiver(LONELY, rows(1), "check") == {"unheard": 1}
    assert sqlite.rung == ["1"]
    assert caplog.text.count("found by asking what no webhook had announced") == 3


def test_many_are_sent_in_parts_and_counted_together(served, sqlite):
    assert tell_receiver(CONN_ID, rows(*range(1201)), "check") == {"unheard": 1201}
    assert [len(json.loads(body)["rings"]) for body in served.front.bodies] == [500, 500, 201]
    tell_receiver(CONN_ID, rows(0, 1000), "ring")
    assert tell_receiver(CONN_ID, rows(*range(1201)), "check") == {"unheard": 1199}
    assert sqlite.rung == ["0", "1000"]


def test_the_parts_are_as_large_as_the_receiver_takes_them():
    from airflow_provider_bankconnect.receiver.app import MOST_OWN_RINGS  # noqa: PLC0415 - needs Airflow 3.2

    assert clients.MOST_RINGS == MOST_OWN_RINGS


def test_nothing_to_tell_is_told_nobody(served):
    assert tell_receiver(CONN_ID, [], "ring") == {}
    assert not served.front.asked


def test_a_connection_may_have_an_odd_name(served, sqlite):
    assert tell_receiver(ODD, rows(1), "ring") == NOTHING | {"rung": 1}
    assert [uri for uri, _, _ in sqlite.events] == [address.asset_uri(ODD)]
    assert served.front.asked == [f"POST /bankconnect/rings/{ODD}"]


def test_the_token_itself_is_not_sent(served):
    tell_receiver(CONN_ID, rows(1), "ring")
    (headers,) = served.front.headers
    assert headers["authorization"] == f"Bearer {address.knock(TOKEN)}"
    assert TOKEN not in str(headers) + str(served.front.asked) + str(served.front.bodies)


def test_parts_of_airflow_that_have_the_token_from_before_are_heard_while_it_rotates(served, box, sqlite, configure):
    # The server, which reads its settings once, knows the new one and the one before.
    configure(webhook_token=PREVIOUS, webhook_token_previous=TOKEN)
    requests.get(f"{served.url}/bankconnect/rings", verify=box.ca_file, timeout=30)
    for token in (TOKEN, PREVIOUS):
        configure(webhook_token=token, webhook_token_previous=None)
        assert tell_receiver(CONN_ID, rows(token), "ring") == NOTHING | {"rung": 1}
    assert sqlite.rung == [TOKEN, PREVIOUS]


def test_the_certificate_may_be_trusted_by_itself(served, certificate, api_server_at):
    api_server_at(served.url, own_file=str(certificate[0]))
    assert tell_receiver(CONN_ID, rows(1), "check") == {"unheard": 1}


@pytest.mark.usefixtures("sqlite")
def test_inside_a_network_of_ones_own_http_will_do(configure, api_server_at):
    configure(webhook_token=TOKEN)
    with Served() as server:
        api_server_at(server.url)
        assert tell_receiver(CONN_ID, rows(1), "check") == {"unheard": 1}


def test_neither_a_proxy_nor_netrc_of_the_environment_stands_between(served, monkeypatch, tmp_path):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert tell_receiver(CONN_ID, rows(1), "check") == {"unheard": 1}
    assert served.front.headers[0]["authorization"].startswith("Bearer ")


def answer_of(status, body=b"{}", **headers):
    return status, headers, body


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        (answer_of(404), "HTTP 404: is [bankconnect] webhook_token the same here and there"),
        (answer_of(405), "HTTP 405: is airflow-provider-bankconnect installed where the API server runs?"),
        (answer_of(503), "HTTP 503: no DAG listens to the connection's webhook_asset yet, or the database is busy"),
        (answer_of(500), "HTTP 500: see the API server's log"),
        (answer_of(302, location="https://elsewhere.example.com/"), "HTTP 302"),
        (answer_of(200, b"<html>"), "[core] execution_api_server_url (or [api] base_url) right"),
        (answer_of(200, b""), "[core] execution_api_server_url (or [api] base_url) right"),
        (answer_of(200, b"[]"), "[core] execution_api_server_url (or [api] base_url) right"),
        (answer_of(200, b'{"rung": "one"}'), "[core] execution_api_server_url (or [api] base_url) right"),
        (answer_of(200, b'{"rung": null}'), "[core] execution_api_server_url (or [api] base_url) right"),
        (answer_of(204, b""), "HTTP 204"),
    ],
)
def test_an_answer_that_is_not_the_doorbells_is_told_with_what_to_do(served, instead, words):
    served.front.instead = instead
    with pytest.raises(DoorbellError) as caught:
        tell_receiver(CONN_ID, rows(1), "ring")
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert address.knock(TOKEN) not in str(caught.value)


@pytest.mark.usefixtures("served")
def test_another_token_here_than_there_is_told(configure, sqlite):
    tell_receiver(CONN_ID, rows(1), "ring")
    configure(webhook_token=PREVIOUS)
    with pytest.raises(DoorbellError, match=r"webhook_token the same here and there"):
        tell_receiver(CONN_ID, rows(2), "ring")
    assert sqlite.rung == ["1"]


@pytest.mark.usefixtures("served")
def test_a_connection_that_no_dag_listens_to_is_told(monkeypatch):
    with pytest.raises(DoorbellError, match="does the connection exist"):
        tell_receiver("unknown", rows(1), "ring")
    monkeypatch.setenv(f"AIRFLOW_CONN_{LONELY.upper()}", "bankconnect://")
    with pytest.raises(DoorbellError, match="no DAG listens to the connection's webhook_asset yet"):
        tell_receiver(LONELY, rows(1), "ring")


def test_a_server_that_is_not_there_or_not_trusted_is_told_with_the_setting(served, box, api_server_at):
    api_server_at("https://localhost:1", box.ca_file)
    with pytest.raises(DoorbellError, match=r"No answer .* at https://localhost:1 \(ConnectionError\): is \[core\]"):
        tell_receiver(CONN_ID, rows(1), "ring")
    api_server_at(served.url)
    with pytest.raises(DoorbellError, match=r"\(SSLError\)"):
        tell_receiver(CONN_ID, rows(1), "ring")
    assert not served.front.asked


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_file_that_cannot_be_read_is_told_with_the_setting(served, box, api_server_at, tmp_path, content):
    """A sensor only counts, and must not fail of it."""
    file = tmp_path / "bundle.pem"
    if content:
        file.write_text(content)
    for files in ({"ca_file": str(file)}, {"ca_file": box.ca_file, "own_file": str(file)}):
        api_server_at(served.url, **files)
        with pytest.raises(DoorbellError, match=r"\[api\] ssl_ca_file, or ssl_cert, cannot be read"):
            tell_receiver(CONN_ID, rows(1), "check")
