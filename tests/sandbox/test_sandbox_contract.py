"""The mock API answers each call as BankConnect's documentation describes it."""

from __future__ import annotations

import socket
import time
from itertools import pairwise

import pytest
import requests

from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sandbox.models import ANALYSES

CALLS = [
    "entity/webhook_payloads/?link_id=l",
    "entity/",
    "entity/e/",
    "entity/e/get_pdfs/",
    *(f"entity/e/{analysis}/" for analysis in ANALYSES),
]


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("headers", [{"x-api-key": "A"}, {"server-hash": "B"}, {"x-api-key": "A", "server-hash": "x"}])
def test_every_call_needs_both_correct_keys(serve, new_client, path, headers):
    with serve(api_key="A", server_hash="B", statements=[Statement(link_id="l", entity_id="e")]) as client:
        refused = new_client(client.box, **headers).get(path)
        assert client.get(path).status_code == 200
    assert refused.status_code == 401
    assert refused.json() == {"detail": "Authentication credentials were not provided."}


def test_registration_needs_the_keys(client, new_client):
    stranger = new_client(client.box, **{"x-api-key": "other"})
    assert stranger.post("entity/update_webhook/", json={"webhook_url": "https://a.example/"}).status_code == 401
    assert client.box.webhook_url is None


def test_plain_http_fails(box):
    with pytest.raises(requests.ConnectionError):
        requests.get(box.url.replace("https", "http"), timeout=60)


def test_the_certificate_is_valid_for_each_loopback_name(client):
    for host in ("localhost", "127.0.0.1"):
        answer = client.session.get(f"https://{host}:{client.box.port}/bank-connect/v1/entity/", timeout=60)
        assert answer.status_code == 200


def test_a_client_without_the_certificate_refuses_the_connection(box):
    with requests.Session() as session:
        session.trust_env = False
        with pytest.raises(requests.exceptions.SSLError):
            session.get(box.url, timeout=60)


def test_a_registration_without_the_mode_resets_it(client):
    client.register("https://a.example/hook", webhook_mode=1)
    assert (client.box.webhook_url, client.box.webhook_mode) == ("https://a.example/hook", 1)
    client.register("https://a.example/hook")
    assert client.box.webhook_mode == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "webhook_url"),
        ({"webhook_url": "nonsense"}, "webhook_url"),
        ({"webhook_url": "ftp://a.example/"}, "webhook_url"),
        ({"webhook_url": 7}, "webhook_url"),
        ({"webhook_url": "https://a.example/", "webhook_mode": 2}, "webhook_mode"),
        ({"webhook_url": "https://a.example/", "webhook_mode": "1"}, "webhook_mode"),
        ({"webhook_url": "https://a.example/", "webhook_mode": True}, "webhook_mode"),
        ([], "detail"),
    ],
)
def test_an_invalid_registration_is_refused_and_changes_nothing(client, body, field):
    answer = client.post("entity/update_webhook/", json=body)
    assert answer.status_code == 400
    assert field in answer.json()
    assert client.box.webhook_url is None


@pytest.mark.parametrize(
    "path",
    [
        "entity/nobody/",
        "entity/nobody/transactions/",
        "entity/nobody/xlsx_report/",
        "entity/nobody/get_pdfs/",
        "entity/e/balances/",
        "entity/e/transactions",
        "entity/webhook_payloads?link_id=l",
        "entity",
        "",
        "entity//",
    ],
)
def test_an_unknown_path_or_entity_is_a_404(client, path):
    client.box.play(Statement(entity_id="e"))
    assert client.get(path).status_code == 404


def test_a_wrong_base_path_is_a_404_even_without_keys_and_is_logged(client, new_client):
    url = f"https://localhost:{client.box.port}/bank-conect/v1/entity/"
    assert new_client(client.box, accept="*/*").session.get(url, timeout=60).status_code == 404
    assert [record.path for record in client.box.calls("unknown")] == ["/bank-conect/v1/entity/"]


def test_a_wrong_method_is_refused(client):
    assert client.get("entity/update_webhook/").status_code == 405
    assert client.post("entity/webhook_payloads/").status_code == 405


def test_an_encoded_slash_is_part_of_the_id(client):
    client.box.play(Statement(entity_id="a/b", statement_id="s"))
    assert client.get("entity/a%2Fb/").json()["entity_id"] == "a/b"
    assert client.get("entity/a%2Ftransactions/").status_code == 404
    assert [record.call for record in client.box.requests] == ["entity", "entity"]


def test_a_link_of_500_special_characters_arrives_unchanged(client):
    link = ("ü/&#%?+ 界" * 60)[:500]
    client.box.play(Statement(link_id=link, statement_id="s"))
    assert [row["link_id"] for row in client.history(link)] == [link]
    assert client.box.requests[-1].query == {"link_id": link}


def test_an_unknown_link_is_empty_or_404_as_configured(serve):
    with serve() as client:
        assert client.history("nobody") == []
    with serve(unknown_link="404", statements=[Statement(link_id="l", after=100)]) as client:
        assert client.get("entity/webhook_payloads/?link_id=nobody").status_code == 404
        assert client.history("l") == []


def test_without_a_link_the_history_has_the_rows_of_all_links(client):
    client.box.play(Statement(link_id="a", statement_id="1"))
    client.box.play(Statement(link_id="b", statement_id="2"))
    rows = client.get("entity/webhook_payloads/").json()["payloads"]
    assert {row["statement_id"] for row in rows} == {"1", "2"}


def test_entities_are_returned_in_pages_of_ten(client):
    for number in range(23):
        client.box.play(Statement(link_id="many", entity_id=f"e{number}"))
    client.box.play(Statement(link_id="other", entity_id="f"))
    first = client.get("entity/?page=1&link_id=many").json()
    assert (first["count"], len(first["results"]), first["previous"]) == (23, 10, None)
    assert first["results"][0] == {"entity_id": "e0", "link_id": "many", "meta_data": {}}
    assert first["next"] == f"{client.box.url}/entity/?page=2&link_id=many"
    last = client.get("entity/?page=3&link_id=many").json()
    assert (len(last["results"]), last["next"]) == (3, None)
    assert client.get("entity/").json()["count"] == 24
    for page in ("0", "4", "x", "-1"):
        assert client.get(f"entity/?link_id=many&page={page}").status_code == 404


def test_an_entity_without_a_link_has_a_null_link(client):
    client.box.play(Statement(entity_id="e", mode="pdf"))
    assert client.get("entity/e/").json() == {"entity_id": "e", "link_id": None, "meta_data": {}}


def test_completed_statements_have_transactions_whose_balances_add_up(client):
    for number in range(3):
        client.box.play(Statement(entity_id="e", statement_id=f"s{number}"))
    answer = client.analysis("e")
    rows = answer["transactions"]
    assert 3 * 24 <= len(rows) == client.box.transaction_count("e")
    for before, row in pairwise(rows):
        signed = row["amount"] if row["transaction_type"] == "credit" else -row["amount"]
        assert round(before["balance"] + signed, 2) == row["balance"]
        assert before["date"] <= row["date"]
    assert {row["account_id"] for row in rows} == {answer["accounts"][0]["account_id"]}
    assert answer["accounts"][0]["statements"] == ["s0", "s1", "s2"]


def test_a_statement_has_the_requested_number_of_transactions(client):
    client.box.play(Statement(entity_id="e", transactions=5))
    client.box.play(Statement(entity_id="f", transactions=0))
    assert (client.box.transaction_count("e"), client.box.transaction_count("f")) == (5, 0)
    assert client.box.transaction_count("nobody") == 0


def test_the_same_seed_invents_the_same_customers():
    def customer(seed):
        with Sandbox(seed=seed) as box:
            played = box.play(Statement(link_id="l"))
            return played.entity_id, played.statement_id, box.transaction_count(played.entity_id), box.api_key

    assert customer(1) == customer(1)
    assert customer(1) != customer(2)


def test_localhost_is_served_on_both_loopback_addresses(box):
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            socket.create_server((address, 0), family=family).close()
        except OSError:
            continue
        socket.create_connection((address, box.port), timeout=60).close()


@pytest.mark.parametrize("call", ["predictors", "get_pdfs", "webhook_payloads", "entities"])
def test_a_call_that_is_not_enabled_is_a_403_even_though_the_keys_are_right(serve, new_client, call):
    path = {"webhook_payloads": "entity/webhook_payloads/", "entities": "entity/"}.get(call, f"entity/e/{call}/")
    with serve(not_enabled=[call], statements=[Statement(link_id="l", entity_id="e")]) as client:
        refused = client.get(path)
        assert (refused.status_code, list(refused.json())) == (403, ["detail"])
        assert client.get("entity/e/transactions/").status_code == 200
        assert new_client(client.box, **{"x-api-key": "wrong"}).get(path).status_code == 401


@pytest.mark.parametrize("call", ["balances", "*", "webhook", "file"])
def test_not_enabled_refuses_an_unknown_call(call):
    with pytest.raises(ValueError, match=r"not_enabled: .* is unknown; allowed: update_webhook, .*predictors"):
        Sandbox(not_enabled=["score", call])


def test_a_big_answer_is_made_once_and_then_answered_quickly(client, clock):
    client.box.play(Statement(entity_id="e", statement_id="s", transactions=20_000))
    first = client.get("entity/e/transactions/")
    assert len(first.json()["transactions"]) == 20_000
    started = time.monotonic()
    for _ in range(5):
        assert client.get("entity/e/transactions/").content == first.content
    # About 0.03 seconds each on an idle machine.
    assert time.monotonic() - started < 2.5
    client.box.play(Statement(entity_id="e", statement_id="t", after=5, transactions=1))
    assert client.statuses("e") == ["completed", "processing"]
    clock.advance(5)
    assert len(client.analysis("e")["transactions"]) == 20_001
