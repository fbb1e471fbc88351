"""How a triggerer hears the doorbell: one cheap question now and then, for all waits of its loop, over HTTPS."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from doorbells import CONN_ID, NEEDS, ODD, PREVIOUS, TOKEN, Caller, api_server, statement, until

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.triggers import bell as bells
from airflow_provider_bankconnect.triggers.bell import bell

pytestmark = NEEDS

LINK, ENTITY = "link:loan-1", "entity:entity-1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Ask more often than a triggerer has to."""
    monkeypatch.setattr(bells, "_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(bells, "_LEAST_SECONDS", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.rings._HOLD_SECONDS", 0.05)
    monkeypatch.setattr(bells, "_LONGEST_PAUSE", 0.1)


@pytest.fixture(autouse=True)
async def _nothing_is_left(served):
    """After the last wait no task runs, and no connection is open."""
    before = asyncio.all_tasks()
    yield
    assert bell()._waits == {}
    assert bell()._whispers == {}
    assert bell()._task is None
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}
    await until(lambda: served.connections == 0)


@pytest.fixture
def ring():
    """Ring as BankConnect does, at another API server of the same Airflow."""
    return Caller(api_server()).post


class Wait:
    """A wait that counts how often it is woken."""

    def __init__(self, key=LINK, conn_id=CONN_ID):
        self.woken = 0
        self.listening = bell().listening(conn_id, key, self.wake)

    def wake(self):
        self.woken += 1

    async def __aenter__(self):
        await self.listening.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self.listening.__aexit__(*error)


def questions(server):
    return [asked for asked in server.front.asked if asked.startswith("GET /bankconnect/rings")]


async def some_questions_later(server):
    heard = len(questions(server))
    await until(lambda: len(questions(server)) >= heard + 4)


def said(caplog):
    return [record for record in caplog.records if record.name == bells.__name__]


async def test_a_ring_wakes_the_waits_of_that_customer_and_no_other(served, ring):
    async with (
        Wait() as link,
        Wait() as same,
        Wait(ENTITY) as entity,
        Wait("link:loan-2") as other,
        Wait("entity:loan-1") as name_alike,
        Wait(conn_id=ODD) as account,
    ):
        await some_questions_later(served)
        assert (await ring(statement())).status == 200
        await until(lambda: link.woken and same.woken and entity.woken)
        await some_questions_later(served)
        # The same ring is told several times, and heard once.
        assert (link.woken, same.woken, entity.woken) == (1, 1, 1)
        assert (other.woken, name_alike.woken, account.woken) == (0, 0, 0)
        assert (await ring(statement(), conn_id=ODD)).status == 200
        await until(lambda: account.woken)
        assert (link.woken, other.woken) == (1, 0)
    # One question for all of them.
    assert len(questions(served)) < 100


async def test_every_ring_wakes_anew(served, ring):
    async with Wait() as wait:
        await some_questions_later(served)
        for number in range(1, 4):
            await ring(statement(statement_id="", progress="failed"))
            await until(lambda number=number: wait.woken == number)


async def test_a_repeated_delivery_wakes_nobody(served, ring):
    async with Wait() as wait:
        await ring(statement())
        await until(lambda: wait.woken)
        await ring(statement())
        await some_questions_later(served)
        assert wait.woken == 1


async def test_a_ring_without_a_link_wakes_the_waits_for_the_entity(served, ring):
    async with Wait() as link, Wait(ENTITY) as entity:
        await ring(statement(link_id=None))
        await until(lambda: entity.woken)
        await some_questions_later(served)
        assert link.woken == 0


async def test_a_link_of_any_length_and_script_is_heard(served, ring):
    for link_id in ("ऋण/४७\n", "x" * 500):
        async with Wait(address.partition_key(link_id, None)) as wait:
            await ring(statement(link_id=link_id))
            await until(lambda wait=wait: wait.woken)
    assert questions(served)


async def test_a_ring_from_just_before_the_wait_is_meant_for_it(served, ring):
    """It came while the wait was on the way from the worker to the triggerer."""
    await ring(statement())
    async with Wait() as first:
        await until(lambda: first.woken)
        # Remembered, with no question more.
        async with Wait() as second, Wait(ENTITY) as third, Wait("link:loan-2") as other:
            assert (second.woken, third.woken, other.woken) == (1, 1, 0)
    assert questions(served)


async def test_a_ring_from_long_before_is_not(served, ring, sqlite):
    await ring(statement())
    sqlite.change("update asset_event set timestamp = :at", at=datetime.now(UTC) - timedelta(minutes=3))
    async with Wait() as wait:
        await some_questions_later(served)
        assert wait.woken == 0


async def test_what_is_remembered_is_forgotten_in_time(served, ring, monkeypatch):
    monkeypatch.setattr(bells, "_REMEMBERED_SECONDS", 0.0)
    async with Wait() as first:
        await ring(statement())
        await until(lambda: first.woken)
        await some_questions_later(served)
        async with Wait() as second:
            await some_questions_later(served)
            assert second.woken == 0


async def test_a_ring_whose_transaction_took_its_time_is_heard(served, ring, sqlite):
    """It is written with an earlier time than others that have been told already."""
    async with Wait() as early, Wait("link:late") as late:
        await ring(statement())
        await until(lambda: early.woken)
        await some_questions_later(served)
        [(asset_id,)] = sqlite.query("select asset_id from asset_event")
        sqlite.change(
            "insert into asset_event (asset_id, extra, source_map_index, timestamp, partition_key) "
            "values (:asset_id, :extra, -1, :at, 'link:late')",
            asset_id=asset_id,
            extra=json.dumps(statement(link_id="late")),
            at=datetime.now(UTC) - timedelta(seconds=5),
        )
        await until(lambda: late.woken)
        assert early.woken == 1


async def test_a_thousand_waits_ask_as_often_as_one(served, ring):
    waits = [Wait(f"link:{number}") for number in range(1000)]
    for wait in waits:
        await wait.__aenter__()
    await some_questions_later(served)
    begin, started = len(questions(served)), asyncio.get_running_loop().time()
    await ring(statement(link_id="577"))
    await until(lambda: waits[577].woken)
    await some_questions_later(served)
    # At most one every 0.05 seconds, less a tenth.
    assert len(questions(served)) - begin <= (asyncio.get_running_loop().time() - started) / 0.045 + 1
    assert sum(wait.woken for wait in waits) == 1
    assert served.connections == 1
    for wait in waits:
        await wait.__aexit__(None, None, None)


async def test_more_rings_than_one_answer_holds_make_nobody_deaf(served, ring, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.rings._MOST_TOLD", 5)
    async with Wait("link:last") as last:
        await some_questions_later(served)
        await asyncio.gather(*(ring(statement(link_id=str(number))) for number in range(20)))
        await ring(statement(link_id="last"))
        await until(lambda: last.woken)


async def test_the_first_question_after_a_rest_is_like_the_first_of_all(served, ring):
    """Else it would be told all rings of the hours in which nobody waited."""
    async with Wait():
        await some_questions_later(served)
    begin = len(questions(served))
    async with Wait() as wait:
        await ring(statement())
        await until(lambda: wait.woken)
    first, *others = questions(served)[begin:]
    assert first == questions(served)[0] == "GET /bankconnect/rings"
    assert all("?since=" in other for other in others)


# What waits outlive


async def test_without_a_token_nothing_is_asked(served, configure, caplog):
    configure(webhook_token=None)
    async with Wait() as wait, Wait(ENTITY):
        await until(bell()._task.done)
        assert bell()._task.exception() is None
        async with Wait("link:another"):
            await asyncio.sleep(0.3)
        assert wait.woken == 0
    assert not served.front.asked
    assert not said(caplog)


async def test_with_a_weak_token_nothing_is_asked_and_why_is_told_once(served, configure, caplog):
    configure(webhook_token="weak")
    async with Wait(), Wait(ENTITY):
        await until(bell()._task.done)
    assert not served.front.asked
    (record,) = said(caplog)
    assert "The waits go on without the doorbell: [bankconnect] webhook_token must have" in record.getMessage()


async def test_a_server_that_is_away_is_told_once_and_heard_when_it_is_back(served, box, ring, caplog, api_server_at):
    caplog.set_level("INFO")
    api_server_at("https://localhost:1", box.ca_file)
    async with Wait() as wait:
        await until(lambda: said(caplog))
        await ring(statement())
        await asyncio.sleep(1)
        (record,) = said(caplog)
        assert record.levelname == "WARNING"
        assert "without the doorbell, which does not answer: ClientConnectorError: Cannot" in record.getMessage()
        assert not wait.woken
        api_server_at(served.url, box.ca_file)
        await until(lambda: wait.woken)
    assert "The doorbell can be heard again" in said(caplog)[-1].getMessage()


async def test_a_server_that_cannot_be_trusted_is_not_asked(served, caplog, api_server_at):
    api_server_at(served.url)
    async with Wait():
        await until(lambda: said(caplog))
        await asyncio.sleep(1)
    (record,) = said(caplog)
    assert "certificate verify failed" in record.getMessage()
    assert not served.front.asked


async def test_a_streak_without_an_answer_is_told_once_and_so_is_its_end(served, ring, caplog):
    caplog.set_level("INFO")
    async with Wait() as wait:
        for streak in (1, 2):
            served.front.instead = (503, {}, b"{}")
            await some_questions_later(served)
            served.front.instead = None
            await ring(statement(statement_id=str(streak)))
            await until(lambda streak=streak: wait.woken == streak)
            await some_questions_later(served)
    messages = [record.getMessage() for record in said(caplog)]
    assert [message[:27] for message in messages] == ["The waits go on without the", "The doorbell can be heard a"] * 2
    assert messages[0].endswith("HTTP 503")


INSTEAD = {
    "another token": (404, {}, b'{"detail": "Not Found"}'),
    "the page that Airflow shows for what it does not have": (200, {"content-type": "text/html"}, b"<html>"),
    "no JSON": (200, {"content-type": "application/json"}, b"{"),
    "no UTF-8": (200, {"content-type": "application/json"}, b'{"now": "\xff"}'),
    "a list": (200, {"content-type": "application/json"}, b"[]"),
    "an empty object": (200, {"content-type": "application/json"}, b"{}"),
    "no time": (200, {"content-type": "application/json"}, b'{"now": null, "rings": []}'),
    "a time that is none": (200, {"content-type": "application/json"}, b'{"now": "now", "rings": []}'),
    "a time before all time": (200, {"content-type": "application/json"}, b'{"now": "0001-01-01", "rings": []}'),
    "no rings": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "rings": null}'),
    "rings that are none": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "rings": [1]}'),
    "an empty ring": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "rings": [[]]}'),
    "a ring of lists": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "rings": [[[], []]]}'),
    "a ring without end": (200, {"content-type": "application/json"}, b"[" * 100_000),
    "a way to elsewhere": (302, {"location": "https://localhost:1/"}, b""),
    "a way to itself": (307, {"location": "/bankconnect/rings"}, b""),
    "less than nothing": (204, {}, b""),
}


@pytest.mark.parametrize("instead", INSTEAD.values(), ids=INSTEAD)
async def test_whatever_answers_in_the_doorbells_place_harms_no_wait(served, ring, caplog, instead):
    served.front.instead = instead
    async with Wait() as wait:
        await some_questions_later(served)
        assert not bell()._task.done()
        (record,) = said(caplog)
        assert record.levelname == "WARNING"
        assert TOKEN not in record.getMessage()
        assert address.knock(TOKEN) not in record.getMessage()
        served.front.instead = None
        await ring(statement())
        await until(lambda: wait.woken)


async def test_a_triggerer_with_another_token_hears_nothing_and_says_so_once(served, configure, caplog):
    async with Wait():
        await some_questions_later(served)
    configure(webhook_token=PREVIOUS)
    async with Wait():
        await some_questions_later(served)
        (record,) = said(caplog)
        assert record.getMessage().endswith("HTTP 404")


async def test_a_certificate_bundle_that_is_not_there_is_told(served, api_server_at, caplog, tmp_path):
    api_server_at(served.url, str(tmp_path / "none.pem"))
    async with Wait():
        await until(bell()._task.done)
    (record,) = said(caplog)
    assert "FileNotFoundError" in record.getMessage() or "No such file" in record.getMessage()


async def test_no_name_of_a_customer_and_no_token_is_in_what_a_triggerer_is_told(served, ring):
    await ring(statement())
    knock = ("authorization", f"Bearer {address.knock(TOKEN)}")
    answer = await Caller(served.front).send(f"{address.PREFIX}/rings", method="GET", headers=[knock])
    told = answer.body.decode()
    assert told.count(address.whisper(TOKEN, CONN_ID, LINK)) == 1
    assert told.count(address.whisper(TOKEN, CONN_ID, ENTITY)) == 1
    for word in (*statement().values(), CONN_ID, TOKEN, address.knock(TOKEN)):
        assert not word or word not in told
