"""Webhooks: to which endpoint, when and how often they are sent, and what faults do to them."""

from __future__ import annotations

import pytest

from airflow_provider_bankconnect.sandbox import Fault, Statement


def ids(box):
    return [one.body["statement_id"] for one in box.inbox]


def outcomes(box):
    return [one.outcome for one in box.deliveries]


def test_a_webhook_with_five_fields_is_sent_to_the_registered_endpoint(client, clock, eventually):
    client.register()
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", after=5))
    clock.advance(5)
    eventually(lambda: outcomes(client.box) == ["delivered"])
    (received,) = client.box.inbox
    assert received.body == {
        "entity_id": "e", "statement_id": "s", "link_id": "l", "progress": "completed", "reason": ""
    }  # fmt: skip
    (sent,) = client.box.deliveries
    assert (sent.url, sent.status) == (client.box.inbox_url, 200)


def test_mode_0_suppresses_webhooks_of_manual_uploads_and_mode_1_does_not(client, eventually):
    client.register(webhook_mode=0)
    client.box.play(Statement(statement_id="suppressed", mode="pdf"))
    client.box.play(Statement(statement_id="online"))
    client.register(webhook_mode=1)
    client.box.play(Statement(statement_id="pdf", mode="pdf"))
    eventually(lambda: len(client.box.inbox) == 2)
    assert sorted(ids(client.box)) == ["online", "pdf"]
    assert client.box.inbox[-1].body["link_id"] is None


def test_no_webhook_is_sent_without_an_endpoint_or_for_the_past(client, eventually):
    client.box.play(Statement(statement_id="before"))
    client.register()
    client.box.play(Statement(statement_id="past", after=-10))
    client.box.play(Statement(statement_id="now"))
    eventually(lambda: client.box.inbox)
    assert ids(client.box) == ["now"]


def test_a_refused_or_undelivered_webhook_is_not_sent_again(client, eventually):
    client.register(f"{client.box.inbox_url}/nowhere")
    client.box.play(Statement(statement_id="a"))
    eventually(lambda: outcomes(client.box) == ["refused"])
    assert client.box.deliveries[0].status == 404
    client.register("https://localhost:1/")
    client.box.play(Statement(statement_id="b"))
    eventually(lambda: outcomes(client.box) == ["refused", "unreachable"])
    client.register()
    client.box.play(Statement(statement_id="c"))
    eventually(lambda: client.box.inbox)
    assert ids(client.box) == ["c"]


def test_all_webhooks_of_a_burst_are_delivered(client, eventually):
    client.register()
    for number in range(100):
        client.box.play(Statement(statement_id=str(number)))
    eventually(lambda: outcomes(client.box) == ["delivered"] * 100)
    assert sorted(map(int, ids(client.box))) == list(range(100))


def test_the_statement_of_a_dropped_webhook_is_in_the_history(serve, eventually):
    with serve(faults=[Fault(kind="drop", times=1)], history_omits_unsent=True) as client:
        client.register()
        client.box.play(Statement(link_id="l", statement_id="lost"))
        client.box.play(Statement(link_id="l", statement_id="found"))
        eventually(lambda: outcomes(client.box) == ["dropped", "delivered"])
        assert ids(client.box) == ["found"]
        assert len(client.history("l")) == 2


def test_a_duplicated_webhook_is_sent_twice(client, eventually):
    client.register()
    client.box.fault(Fault(kind="duplicate"))
    client.box.play(Statement(statement_id="s"))
    eventually(lambda: ids(client.box) == ["s", "s"])


def test_a_late_webhook_is_sent_later(client, clock, eventually):
    client.register()
    client.box.fault(Fault(kind="late", seconds=60, times=1))
    client.box.play(Statement(link_id="l", statement_id="late"))
    client.box.play(Statement(statement_id="prompt"))
    eventually(lambda: client.box.inbox)
    assert len(client.history("l")) == 1
    clock.advance(60)
    eventually(lambda: ids(client.box) == ["prompt", "late"])


def test_a_reordered_webhook_is_sent_after_the_next_one(client, eventually):
    client.register()
    client.box.fault(Fault(kind="reorder", times=1, seconds=60))
    client.box.play(Statement(statement_id="first"))
    client.box.play(Statement(statement_id="second"))
    eventually(lambda: ids(client.box) == ["second", "first"])


def test_a_reordered_webhook_is_sent_in_the_end_without_a_next_one(client, clock, eventually):
    client.register()
    client.box.fault(Fault(kind="reorder", times=1, seconds=60))
    client.box.play(Statement(statement_id="alone"))
    assert client.box.inbox == []
    eventually(lambda: clock.advance(5) or ids(client.box) == ["alone"])


def test_a_replay_sends_an_old_webhook_again(client, eventually):
    client.register()
    client.box.play(Statement(statement_id="old"))
    eventually(lambda: client.box.inbox)
    client.box.fault(Fault(kind="replay", times=1))
    client.box.play(Statement(statement_id="new"))
    eventually(lambda: ids(client.box) == ["old", "new", "old"])


def test_a_forged_webhook_says_completed_while_the_history_does_not(client, clock, eventually):
    client.register()
    client.box.fault(Fault(kind="forge", times=1))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", after=60, progress="failed"))
    eventually(lambda: client.box.inbox)
    assert client.box.inbox[0].body["progress"] == "completed"
    assert client.history("l") == []
    assert client.statuses("e") == ["processing"]
    clock.advance(60)
    eventually(lambda: [one.body["progress"] for one in client.box.inbox] == ["completed", "failed"])


def test_a_webhook_with_any_body_can_be_sent(client, eventually):
    client.register()
    client.box.webhook({"entity_id": "<script>", "progress": 7})
    eventually(lambda: client.box.inbox)
    assert client.box.inbox[0].body == {"entity_id": "<script>", "progress": 7}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff"])
def test_the_inbox_accepts_only_json(client, body):
    assert client.control("POST", "inbox", data=body).status_code == 400
    assert client.box.inbox == []


def test_the_log_holds_neither_the_endpoints_path_nor_the_keys(serve, eventually):
    lines = []
    with serve(on_event=lines.append) as client:
        client.register(f"{client.box.inbox_url}?token=hush")
        client.box.play(Statement(link_id="l"))
        eventually(lambda: outcomes(client.box) == ["delivered"])
        secrets = ("hush", client.box.api_key, client.box.server_hash)
    text = "\n".join(lines)
    assert "answered 200" in text
    assert not [secret for secret in secrets if secret in text]
