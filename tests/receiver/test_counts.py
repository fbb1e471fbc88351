"""The metrics of the webhook receiver."""

from __future__ import annotations

import pytest
from receivers import CONN_ID, CUT_OFF, JSON, NEEDS_3_2, NO_DAG, TOKEN, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS_3_2


@pytest.fixture
def counted(receiver, monkeypatch):
    """The metrics that are counted, as (name, value of the tag)."""
    from airflow_provider_bankconnect.receiver import app  # noqa: PLC0415 - needs Airflow 3.2

    metrics = []

    class Stats:
        @staticmethod
        def incr(stat, tags):
            metrics.append((stat, *tags.values()))

    del receiver
    monkeypatch.setattr(app, "Stats", Stats)
    return metrics


def take(metrics):
    """Return and remove all metrics."""
    taken, metrics[:] = list(metrics), []
    return taken


async def test_events_are_counted_by_outcome(receiver, sqlite, counted):
    await receiver.post(statement())
    assert take(counted) == [("bankconnect.webhooks_recorded", CONN_ID)]
    await receiver.post(statement())
    assert take(counted) == [("bankconnect.webhooks_duplicate", CONN_ID)]
    await receiver.post({"event_name": "other"})
    assert take(counted) == [("bankconnect.webhooks_ignored", "event_name")]
    rows = [statement(statement_id=number) for number in ("statement-1", "2", "3")]
    await receiver.post_events("check", rows)
    assert take(counted) == [("bankconnect.webhooks_missed", CONN_ID)] * 2
    await receiver.post_events("record", rows)
    assert take(counted) == [("bankconnect.webhooks_caught_up", CONN_ID)] * 2
    await receiver.post_events("again", rows)
    assert take(counted) == [("bankconnect.webhooks_caught_up", CONN_ID)] * 3
    assert len(sqlite.events) == 6


@pytest.mark.usefixtures("sqlite")
async def test_refusals_are_counted_by_reason(receiver, counted, monkeypatch):
    for reason, body, how in (
        ("token", statement(), {"token": "wrong"}),
        ("connection", statement(), {"conn_id": "unknown"}),
        ("no_dag", statement(), {"conn_id": NO_DAG}),
        ("json", b"[]", {}),
        ("json", b"{", {}),
        ("fields", {}, {}),
        ("too_long", b"x" * 65_537, {}),
    ):
        await receiver.post(body, **how)
        assert take(counted) == [("bankconnect.webhooks_refused", reason)]
    for reason, pieces, headers in (
        ("content_type", [], []),
        ("cut_off", [CUT_OFF], [JSON]),
    ):
        await receiver.send(path_to(), pieces, headers=headers)
        assert take(counted) == [("bankconnect.webhooks_refused", reason)]
    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_bankconnect.receiver.intake._BODY_SECONDS", 0.1)
        await receiver.send(path_to(), [60], headers=[JSON])
    assert take(counted) == [("bankconnect.webhooks_refused", "slow")]
    await receiver.send(f"{address.PREFIX}/events", method="GET")
    assert take(counted) == [("bankconnect.webhooks_refused", "internal_token")]
    await receiver.post_events("record", [{}])
    assert take(counted) == [("bankconnect.webhooks_refused", "fields")]


async def test_database_errors_are_counted(receiver, sqlite, counted, monkeypatch):
    sqlite.change("create trigger refuse before insert on asset_event begin select raise(abort, 'refused'); end")
    await receiver.post(statement())
    assert take(counted) == [("bankconnect.webhooks_refused", "database")]
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.events._MAX_QUEUED", 0)
    await receiver.post(statement())
    assert take(counted) == [("bankconnect.webhooks_refused", "full")]


async def test_requests_of_triggerers_are_not_counted(receiver, sqlite, counted):
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    assert (await receiver.send(f"{address.PREFIX}/events", method="GET", headers=[internal_token])).status == 200
    assert not take(counted)
    assert not sqlite.events
