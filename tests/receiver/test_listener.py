"""The event listener of a triggerer: it polls the event feed over HTTPS, for all waits of an event loop."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from receivers import CONN_ID, NEEDS_3_2, ODD, PREVIOUS, TOKEN, Caller, api_server, statement, until

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.triggers import listener as listeners
from airflow_provider_bankconnect.triggers.listener import event_listener

pytestmark = NEEDS_3_2

LINK, ENTITY = "link:loan-1", "entity:entity-1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Poll more often than a triggerer does."""
    monkeypatch.setattr(listeners, "_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(listeners, "_MIN_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.events._LONG_POLL_SECONDS", 0.05)
    monkeypatch.setattr(listeners, "_MAX_PAUSE_SECONDS", 0.1)
    # On a busy machine, a request may take longer than a triggerer waits.
    monkeypatch.setattr(listeners, "_TIMEOUT", aiohttp.ClientTimeout(total=300))


@pytest.fixture(autouse=True)
async def _nothing_is_left(served):
    """After the last wait, no task runs and no connection is open."""
    before = asyncio.all_tasks()
    yield
    assert event_listener()._waits == {}
    assert event_listener()._digests == {}
    assert event_listener()._task is None
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    # It ends with the event loop of the API server.
    assert {task.get_coro().__qualname__ for task in left} <= {"Measuring._measure"}
    await until(lambda: served.connections == 0)


@pytest.fixture
def post():
    """Send a webhook to another API server of the same Airflow."""
    return Caller(api_server()).post


class Wait:
    """A wait that counts how often it is woken."""

    def __init__(self, key=LINK, conn_id=CONN_ID):
        self.woken = 0
        self.listening = event_listener().listening(conn_id, key, self.wake)

    def wake(self):
        self.woken += 1

    async def __aenter__(self):
        await self.listening.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self.listening.__aexit__(*error)


def requests_to(server):
    return [asked for asked in server.front.requests if asked.startswith("GET /bankconnect/events")]


async def some_requests_later(server):
    before = len(requests_to(server))
    await until(lambda: len(requests_to(server)) >= before + 4)


def logged(caplog):
    return [record for record in caplog.records if record.name == listeners.__name__]


async def test_event_wakes_the_waits_of_its_customer_only(served, post):
    started = asyncio.get_running_loop().time()
    async with (
        Wait() as link,
        Wait() as same,
        Wait(ENTITY) as entity,
        Wait("link:loan-2") as other,
        Wait("entity:loan-1") as same_name,
        Wait(conn_id=ODD) as account,
    ):
        await some_requests_later(served)
        assert (await post(statement())).status == 200
        await until(lambda: link.woken and same.woken and entity.woken)
        await some_requests_later(served)
        # Several answers contain the event; it wakes once.
        assert (link.woken, same.woken, entity.woken) == (1, 1, 1)
        assert (other.woken, same_name.woken, account.woken) == (0, 0, 0)
        assert (await post(statement(), conn_id=ODD)).status == 200
        await until(lambda: account.woken)
        assert (link.woken, other.woken) == (1, 0)
    # All waits share one request every 0.05 seconds, less a tenth.
    assert len(requests_to(served)) <= (asyncio.get_running_loop().time() - started) / 0.045 + 1


async def test_each_event_wakes_again(served, post):
    async with Wait() as wait:
        await some_requests_later(served)
        for number in range(1, 4):
            await post(statement(statement_id="", progress="failed"))
            await until(lambda number=number: wait.woken == number)


async def test_duplicate_webhook_wakes_no_wait(served, post):
    async with Wait() as wait:
        await post(statement())
        await until(lambda: wait.woken)
        await post(statement())
        await some_requests_later(served)
        assert wait.woken == 1


async def test_event_without_link_wakes_the_waits_of_its_entity(served, post):
    async with Wait() as link, Wait(ENTITY) as entity:
        await post(statement(link_id=None))
        await until(lambda: entity.woken)
        await some_requests_later(served)
        assert link.woken == 0


async def test_event_of_any_link_wakes_its_wait(served, post):
    for link_id in ("ऋण/४७\n", "x" * 500):
        async with Wait(address.partition_key(link_id, None)) as wait:
            await post(statement(link_id=link_id))
            await until(lambda wait=wait: wait.woken)
    assert requests_to(served)


async def test_event_shortly_before_the_wait_wakes_it(served, post):
    """It arrived while the wait moved from the worker to the triggerer."""
    await post(statement())
    async with Wait() as first:
        await until(lambda: first.woken)
        # The first two come from memory, without another request.
        async with Wait() as second, Wait(ENTITY) as third, Wait("link:loan-2") as other:
            assert (second.woken, third.woken, other.woken) == (1, 1, 0)
    assert requests_to(served)


async def test_event_long_before_the_wait_does_not_wake_it(served, post, sqlite):
    await post(statement())
    sqlite.change("update asset_event set timestamp = :at", at=datetime.now(UTC) - timedelta(minutes=3))
    async with Wait() as wait:
        await some_requests_later(served)
        assert wait.woken == 0


async def test_event_in_memory_expires(served, post, monkeypatch):
    monkeypatch.setattr(listeners, "_KEEP_SECONDS", 0.0)
    async with Wait() as first:
        await post(statement())
        await until(lambda: first.woken)
        await some_requests_later(served)
        async with Wait() as second:
            await some_requests_later(served)
            assert second.woken == 0


async def test_event_of_a_slow_transaction_wakes_its_wait(served, post, sqlite, monkeypatch):
    """Its timestamp is older than that of events that were sent already."""
    monkeypatch.setattr(listeners, "_OVERLAP", timedelta(minutes=5))
    async with Wait() as early, Wait("link:late") as late:
        await post(statement())
        await until(lambda: early.woken)
        await some_requests_later(served)
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


async def test_thousand_waits_poll_as_often_as_one(served, post):
    waits = [Wait(f"link:{number}") for number in range(1000)]
    for wait in waits:
        await wait.__aenter__()
    await some_requests_later(served)
    begin, started = len(requests_to(served)), asyncio.get_running_loop().time()
    await post(statement(link_id="577"))
    await until(lambda: waits[577].woken)
    await some_requests_later(served)
    # At most one every 0.05 seconds, less a tenth.
    assert len(requests_to(served)) - begin <= (asyncio.get_running_loop().time() - started) / 0.045 + 1
    assert sum(wait.woken for wait in waits) == 1
    assert served.connections == 1
    for wait in waits:
        await wait.__aexit__(None, None, None)


async def test_newest_events_wake_when_one_answer_cannot_hold_all(served, post, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.events._MAX_FEED", 5)
    async with Wait("link:last") as last:
        await some_requests_later(served)
        await asyncio.gather(*(post(statement(link_id=str(number))) for number in range(20)))
        await post(statement(link_id="last"))
        await until(lambda: last.woken)


async def test_first_request_after_a_time_without_waits_starts_anew(served, post):
    """Else the answer would contain all events of the hours without waits."""
    async with Wait():
        await some_requests_later(served)
    begin = len(requests_to(served))
    async with Wait() as wait:
        await post(statement())
        await until(lambda: wait.woken)
    first, *others = requests_to(served)[begin:]
    assert first == requests_to(served)[0] == "GET /bankconnect/events"
    assert all("?since=" in other for other in others)


# Failures that waits survive


async def test_without_token_no_request_is_sent(served, configure, caplog):
    configure(webhook_token=None)
    async with Wait() as wait, Wait(ENTITY):
        await until(event_listener()._task.done)
        assert event_listener()._task.exception() is None
        async with Wait("link:another"):
            await asyncio.sleep(0.3)
        assert wait.woken == 0
    assert not served.front.requests
    assert not logged(caplog)


async def test_with_a_weak_token_no_request_is_sent_and_the_reason_is_logged_once(served, configure, caplog):
    configure(webhook_token="weak")
    async with Wait(), Wait(ENTITY):
        await until(event_listener()._task.done)
    assert not served.front.requests
    (record,) = logged(caplog)
    assert "Waits continue without the webhook receiver: [bankconnect] webhook_token must have" in record.getMessage()


async def test_unreachable_server_is_logged_once_and_polled_again(served, box, post, caplog, api_server_at):
    caplog.set_level("INFO")
    api_server_at("https://localhost:1", box.ca_file)
    async with Wait() as wait:
        await until(lambda: logged(caplog))
        await post(statement())
        await asyncio.sleep(1)
        (record,) = logged(caplog)
        assert record.levelname == "WARNING"
        assert (
            "No events from the webhook receiver, waits continue without: ClientConnectorError: Cannot"
            in record.getMessage()
        )
        assert not wait.woken
        api_server_at(served.url, box.ca_file)
        await until(lambda: wait.woken)
    assert "The webhook receiver answers again" in logged(caplog)[-1].getMessage()


async def test_untrusted_server_gets_no_request(served, caplog, api_server_at):
    api_server_at(served.url)
    async with Wait():
        await until(lambda: logged(caplog))
        await asyncio.sleep(1)
    (record,) = logged(caplog)
    assert "certificate verify failed" in record.getMessage()
    assert not served.front.requests


async def test_error_streak_and_its_end_are_logged_once_each(served, post, caplog):
    caplog.set_level("INFO")
    async with Wait() as wait:
        for streak in (1, 2):
            served.front.instead = (503, {}, b"{}")
            await some_requests_later(served)
            served.front.instead = None
            await post(statement(statement_id=str(streak)))
            await until(lambda streak=streak: wait.woken == streak)
            await some_requests_later(served)
    messages = [record.getMessage() for record in logged(caplog)]
    assert [message.split(",")[0] for message in messages] == [
        "No events from the webhook receiver",
        "The webhook receiver answers again",
    ] * 2
    assert messages[0].endswith("HTTP 503: see the API server's log")


INSTEAD = {
    "an API server with the execution API only": (404, {}, b'{"detail": "Not Found"}'),
    "the page that Airflow shows for an unknown path": (200, {"content-type": "text/html"}, b"<html>"),
    "no JSON": (200, {"content-type": "application/json"}, b"{"),
    "no UTF-8": (200, {"content-type": "application/json"}, b'{"now": "\xff"}'),
    "a list": (200, {"content-type": "application/json"}, b"[]"),
    "an empty object": (200, {"content-type": "application/json"}, b"{}"),
    "no time": (200, {"content-type": "application/json"}, b'{"now": null, "events": []}'),
    "an invalid time": (200, {"content-type": "application/json"}, b'{"now": "now", "events": []}'),
    "the earliest time": (200, {"content-type": "application/json"}, b'{"now": "0001-01-01", "events": []}'),
    "no events": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "events": null}'),
    "invalid events": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "events": [1]}'),
    "an empty event": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "events": [[]]}'),
    "an event of lists": (200, {"content-type": "application/json"}, b'{"now": "2026-01-01", "events": [[[], []]]}'),
    "an unterminated event": (200, {"content-type": "application/json"}, b"[" * 300),
    "a redirect to another server": (302, {"location": "https://localhost:1/"}, b""),
    "a redirect to itself": (307, {"location": "/bankconnect/events"}, b""),
    "no content": (204, {}, b""),
}


@pytest.mark.parametrize("instead", INSTEAD.values(), ids=INSTEAD)
async def test_any_other_answer_leaves_the_waits_running(served, post, caplog, instead):
    served.front.instead = instead
    async with Wait() as wait:
        await some_requests_later(served)
        assert not event_listener()._task.done()
        (record,) = logged(caplog)
        assert record.levelname == "WARNING"
        is_elsewhere = instead[0] != 200 or "html" in instead[1].get("content-type", "")
        assert ("Set [bankconnect] api_server_url to" in record.getMessage()) == is_elsewhere
        assert TOKEN not in record.getMessage()
        assert address.internal_token(TOKEN) not in record.getMessage()
        served.front.instead = None
        await post(statement())
        await until(lambda: wait.woken)


async def test_another_token_is_logged_once(served, configure, caplog):
    async with Wait():
        await some_requests_later(served)
    configure(webhook_token=PREVIOUS)
    async with Wait():
        await some_requests_later(served)
        (record,) = logged(caplog)
        assert f"{served.url} answered HTTP 401: check that [bankconnect] webhook_token is" in record.getMessage()


async def test_receiver_may_be_on_another_api_server_than_the_execution_api(served, post, configure, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "https://localhost:1/execution/")
    configure(webhook_token=TOKEN, api_server_url=served.url)
    async with Wait() as wait:
        await some_requests_later(served)
        await post(statement())
        await until(lambda: wait.woken)


async def test_invalid_address_of_the_api_server_is_logged_once(served, configure, caplog):
    configure(webhook_token=TOKEN, api_server_url="private")
    async with Wait():
        await until(event_listener()._task.done)
    (record,) = logged(caplog)
    assert "[bankconnect] api_server_url must be" in record.getMessage()
    assert not served.front.requests


async def test_missing_certificate_bundle_is_logged(served, api_server_at, caplog, tmp_path):
    api_server_at(served.url, str(tmp_path / "none.pem"))
    async with Wait():
        await until(event_listener()._task.done)
    (record,) = logged(caplog)
    assert "FileNotFoundError" in record.getMessage() or "No such file" in record.getMessage()


async def test_event_feed_contains_no_customer_id_and_no_token(served, post):
    await post(statement())
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    answer = await Caller(served.front).send(f"{address.PREFIX}/events", method="GET", headers=[internal_token])
    feed = answer.body.decode()
    assert feed.count(address.customer_digest(TOKEN, CONN_ID, LINK)) == 1
    assert feed.count(address.customer_digest(TOKEN, CONN_ID, ENTITY)) == 1
    for word in (*statement().values(), CONN_ID, TOKEN, address.internal_token(TOKEN)):
        assert not word or word not in feed
