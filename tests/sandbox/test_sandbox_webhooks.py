"""Webhooks: to whom, when, how often, and how they go astray."""

from __future__ import annotations

import pytest

from airflow_provider_bankconnect.sandbox import Fault, Statement


def ids(box):
    return [one.body["statement_id"] for one in box.inbox]


def outcomes(box):
    return [one.outcome for one in box.deliveries]


def test_a_webhook_carries_the_five_fields_to_the_registered_endpoint(client, clock, eventually):
    client.register()
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", after=5))
    clock.advance(5)
    eventually(lambda: outcomes(client.box) == ["delivered"])
    (taken,) = client.box.inbox
    assert taken.body == {
        "entity_id": "e", "statement_id": "s", "link_id": "l", "progress": "completed", "reason": ""
    }  # fmt: skip
    (sent,) = client.box.deliveries
    assert (sent.url, sent.status) == (client.box.inbox_url, 200)


def test_mode_0_silences_manual_uploads_and_mode_1_does_not(client, eventually):
    client.register(webhook_mode=0)
    client.box.play(Statement(statement_id="silent", mode="pdf"))
    client.box.play(Statement(statement_id="online"))
    client.register(webhook_mode=1)
    client.box.play(Statement(statement_id="pdf", mode="pdf"))
    eventually(lambda: len(client.box.inbox) == 2)
    assert sorted(ids(client.box)) == ["online", "pdf"]
    assert client.box.inbox[-1].body["link_id"] is None


def test_without_an_endpoint_and_for_the_past_nothing_is_sent(client, eventually):
    client.box.play(Statement(statement_id="before"))
    client.register()
    client.box.play(Statement(statement_id="past", after=-10))
    client.box.play(Statement(statement_id="now"))
    eventually(lambda: client.box.inbox)
    assert ids(client.box) == ["now"]


def test_what_is_refused_or_meets_nobody_is_not_sent_again(client, eventually):
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


def test_a_burst_arrives_whole(client, eventually):
    client.register()
    for number in range(100):
        client.box.play(Statement(statement_id=str(number)))
    eventually(lambda: outcomes(client.box) == ["delivered"] * 100)
    assert sorted(map(int, ids(client.box))) == list(range(100))


def test_a_dropped_webhook_is_in_the_history_all_the_same(serve, eventually):
    with serve(faults=[Fault(kind="drop", times=1)], history_omits_unsent=True) as client:
        client.register()
        client.box.play(Statement(link_id="l", statement_id="lost"))
        client.box.play(Statement(link_id="l", statement_id="found"))
        eventually(lambda: outcomes(client.box) == ["dropped", "delivered"])
        assert ids(client.box) == ["found"]
        assert len(client.history("l")) == 2


def test_a_duplicated_webhook_comes_twice(client, eventually):
    client.register()
    client.box.fault(Fault(kind="duplicate"))
    client.box.play(Statement(statement_id="s"))
    eventually(lambda: ids(client.box) == ["s", "s"])


def test_a_late_webhook_comes_late(client, clock, eventually):
    client.register()
    client.box.fault(Fault(kind="late", seconds=60, times=1))
    client.box.play(Statement(link_id="l", statement_id="late"))
    client.box.play(Statement(statement_id="prompt"))
    eventually(lambda: client.box.inbox)
    assert len(client.history("l")) == 1
    clock.advance(60)
    eventually(lambda: ids(client.box) == ["prompt", "late"])


def test_reordered_webhooks_change_places(client, eventually):
    client.register()
    client.box.fault(Fault(kind="reorder", times=1, seconds=60))
    client.box.play(Statement(statement_id="first"))
    client.box.play(Statement(statement_id="second"))
    eventually(lambda: ids(client.box) == ["second", "first"])


def test_a_webhook_that_waits_for_another_does_not_wait_for_ever(client, clock, eventually):
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


def test_a_forged_webhook_says_completed_while_the_ledger_does_not(client, clock, eventually):
    client.register()
    client.box.fault(Fault(kind="forge", times=1))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", after=60, progress="failed"))
    eventually(lambda: client.box.inbox)
    assert client.box.inbox[0].body["progress"] == "completed"
    assert client.history("l") == []
    assert client.statuses("e") == ["processing"]
    clock.advance(60)
    eventually(lambda: [one.body["progress"] for one in client.box.inbox] == ["completed", "failed"])


def test_a_webhook_of_ones_own_making_is_sent(client, eventually):
    client.register()
    client.box.ring({"entity_id": "<script>", "progress": 7})
    eventually(lambda: client.box.inbox)
    assert client.box.inbox[0].body == {"entity_id": "<script>", "progress": 7}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff"])
def test_the_inbox_takes_json_only(client, body):
    assert client.control("POST", "inbox", data=body).status_code == 400
    assert client.box.inbox == []


def test_the_log_never_tells_a_receivers_path_nor_the_keys(serve, eventually):
    lines = []
    with serve(on_event=lines.append) as client:
        client.register(f"{client.box.inbox_url}?token=hush")
        client.box.play(Statement(link_id="l"))
        eventually(lambda: outcomes(client.box) == ["delivered"])
        secrets = ("hush", client.box.api_key, client.box.server_hash)
    told = "\n".join(lines)
    assert "answered 200" in told
    assert not [secret for secret in secrets if secret in told]
