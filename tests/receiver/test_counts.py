"""What is counted at the doorbell, for whoever draws curves of it and has them alert."""

from __future__ import annotations

import pytest
from doorbells import CONN_ID, CUT_OFF, JSON, LONELY, NEEDS, TOKEN, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS


@pytest.fixture
def counted(doorbell, monkeypatch):
    """All that Airflow's Stats are told from now on."""
    from airflow_provider_bankconnect.receiver import app  # noqa: PLC0415 - needs Airflow 3.2

    told = []

    class Stats:
        @staticmethod
        def incr(stat, tags):
            told.append((stat, *tags.values()))

    del doorbell
    monkeypatch.setattr(app, "Stats", Stats)
    return told


def taken(told):
    """Give what has been counted since the last time."""
    news, told[:] = list(told), []
    return news


async def test_rings_are_counted_by_what_became_of_them(doorbell, sqlite, counted):
    await doorbell.post(statement())
    assert taken(counted) == [("bankconnect.rings", CONN_ID)]
    await doorbell.post(statement())
    assert taken(counted) == [("bankconnect.rings_repeated", CONN_ID)]
    await doorbell.post({"event_name": "other"})
    assert taken(counted) == [("bankconnect.rings_ignored", "event_name")]
    rows = [statement(statement_id=number) for number in ("statement-1", "2", "3")]
    await doorbell.tell("check", rows)
    assert taken(counted) == [("bankconnect.unannounced", CONN_ID)] * 2
    await doorbell.tell("ring", rows)
    assert taken(counted) == [("bankconnect.rings_caught_up", CONN_ID)] * 2
    await doorbell.tell("again", rows)
    assert taken(counted) == [("bankconnect.rings_caught_up", CONN_ID)] * 3
    assert len(sqlite.events) == 6


@pytest.mark.usefixtures("sqlite")
async def test_what_is_refused_is_counted_by_its_reason(doorbell, counted, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.app._BODY_SECONDS", 0.1)
    for reason, body, how in (
        ("token", statement(), {"token": "wrong"}),
        ("connection", statement(), {"conn_id": "unknown"}),
        ("no_dag", statement(), {"conn_id": LONELY}),
        ("json", b"[]", {}),
        ("json", b"{", {}),
        ("fields", {}, {}),
        ("too_long", b"x" * 65_537, {}),
    ):
        await doorbell.post(body, **how)
        assert taken(counted) == [("bankconnect.rings_refused", reason)]
    for reason, pieces, headers in (
        ("content_type", [], []),
        ("cut_off", [CUT_OFF], [JSON]),
        ("slow", [60], [JSON]),
    ):
        await doorbell.send(path_to(), pieces, headers=headers)
        assert taken(counted) == [("bankconnect.rings_refused", reason)]
    await doorbell.send(f"{address.PREFIX}/rings", method="GET")
    assert taken(counted) == [("bankconnect.rings_refused", "knock")]
    await doorbell.tell("ring", [{}])
    assert taken(counted) == [("bankconnect.rings_refused", "fields")]


async def test_what_the_database_does_not_take_is_counted_too(doorbell, sqlite, counted, monkeypatch):
    sqlite.change("create trigger refuse before insert on asset_event begin select raise(abort, 'refused'); end")
    await doorbell.post(statement())
    assert taken(counted) == [("bankconnect.rings_refused", "database")]
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.rings._MOST_WAITING", 0)
    await doorbell.post(statement())
    assert taken(counted) == [("bankconnect.rings_refused", "full")]


async def test_a_triggerer_that_asks_once_a_second_is_not_counted(doorbell, sqlite, counted):
    knock = ("authorization", f"Bearer {address.knock(TOKEN)}")
    assert (await doorbell.send(f"{address.PREFIX}/rings", method="GET", headers=[knock])).status == 200
    assert not taken(counted)
    assert not sqlite.events
