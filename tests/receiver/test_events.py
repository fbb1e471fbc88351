"""Recording webhook events: once each, committed before the response, and independently of each other."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
from receivers import CONN_ID, NO_DAG, ODD, TOKEN, Caller, airflow_uses, statement, until
from sqlalchemy import event

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.plugin import WebhookReceiver

if not address.is_supported():
    pytest.skip("needs Airflow 3.2", allow_module_level=True)
from airflow_provider_bankconnect.receiver import events

RECORDED, DUPLICATE = {"status": "recorded"}, {"status": "duplicate"}
HERE = Path(__file__).parent
# The writer waits for this lock.
LOCK = "update asset set id = id"


def outcomes(answers):
    return [answer.json() for answer in answers]


@pytest.fixture
def calls(monkeypatch):
    """The number of calls of the writer's methods, by name."""
    made = Counter()
    for method in (events.Writer.write, events.Writer.wait_for_event):

        def counting(*arguments, _method=method, **more):
            made[_method.__name__] += 1
            return _method(*arguments, **more)

        monkeypatch.setattr(events.Writer, method.__name__, counting)
    return made


# Duplicates


async def test_response_comes_after_the_commit(receiver, database):
    seen = []

    async def watched(scope, receive, send):
        async def check(message):
            if message["type"] == "http.response.start":
                seen.append((message["status"], database.recorded, database.runs))
            await send(message)

        await receiver.app(scope, receive, check)

    await Caller(watched).post(statement())
    assert seen == [(200, ["statement-1"], [("first", "link:loan-1")])]


async def test_completed_statement_is_recorded_once(receiver, database):
    sent = [{}, {}, {"reason": "another"}, {"progress": "COMPLETED"}]
    answers = [await receiver.post(statement(**changes)) for changes in sent]
    assert outcomes(answers) == [RECORDED, DUPLICATE, DUPLICATE, DUPLICATE]
    assert {answer.status for answer in answers} == {200}
    assert len(database.events) == 1
    # Another statement, entity or link makes another event.
    for changes in ({"statement_id": "2"}, {"entity_id": "2"}, {"link_id": "2"}, {"link_id": None}):
        assert (await receiver.post(statement(**changes))).json() == RECORDED
        assert (await receiver.post(statement(**changes))).json() == DUPLICATE


async def test_completed_statement_is_recorded_once_of_twenty_concurrent_webhooks(receiver, database):
    answers = await asyncio.gather(*(receiver.post(statement()) for _ in range(20)))
    assert sorted(map(str, outcomes(answers))) == sorted(map(str, [RECORDED] + [DUPLICATE] * 19))
    assert len(database.events) == 1


async def test_failures_are_recorded_each_time_even_if_they_are_identical(receiver, database):
    failed = statement(statement_id="", progress="failed", reason="wrong credentials")
    for _ in range(3):
        assert (await receiver.post(failed)).json() == RECORDED
    answers = await asyncio.gather(*(receiver.post(failed) for _ in range(3)))
    assert outcomes(answers) == [RECORDED] * 3
    assert len(database.events) == 6


async def test_failure_and_completion_of_one_statement_are_both_recorded(receiver, database):
    assert (await receiver.post(statement(progress="failed"))).json() == RECORDED
    assert (await receiver.post(statement())).json() == RECORDED
    assert (await receiver.post(statement(progress="failed"))).json() == RECORDED
    assert (await receiver.post(statement())).json() == DUPLICATE
    assert [extra["progress"] for _, _, extra in database.events] == ["failed", "completed", "failed"]


async def test_completion_without_a_statement_id_is_recorded_each_time(receiver, sqlite):
    for _ in range(2):
        assert (await receiver.post(statement(statement_id=" "))).json() == RECORDED
    assert len(sqlite.events) == 2


async def test_link_named_like_the_key_of_an_entity_is_no_duplicate_of_it(receiver, database):
    assert (await receiver.post(statement(link_id=None, entity_id="e"))).json() == RECORDED
    assert (await receiver.post(statement(link_id="entity:e"))).json() == RECORDED
    assert [key for _, key, _ in database.events] == ["entity:e", "link:entity:e"]


async def test_each_connection_has_its_own_asset(receiver, database):
    for conn_id in (CONN_ID, ODD):
        assert (await receiver.post(statement(), conn_id=conn_id)).json() == RECORDED
    for conn_id in (ODD, CONN_ID):
        assert (await receiver.post(statement(), conn_id=conn_id)).json() == DUPLICATE
    assert [uri for uri, _, _ in database.events] == [address.asset_uri(CONN_ID), address.asset_uri(ODD)]
    assert sorted(database.runs) == [("first", "link:loan-1"), ("odd", "link:loan-1"), ("odd_too", "link:loan-1")]


async def test_asset_events_from_elsewhere_are_ignored(receiver, database):
    [(asset_id,)] = database.query("select id from asset where uri = :uri", uri=address.asset_uri(CONN_ID))
    insert = (
        "insert into asset_event (asset_id, extra, source_map_index, timestamp, partition_key) "
        "values (:asset_id, :extra, -1, current_timestamp, 'link:loan-1')"
    )
    for extra in ("{}", '{"from_rest_api": true}', "[]", '"text"', json.dumps(statement(statement_id=None))):
        database.change(insert, asset_id=asset_id, extra=extra)
    assert (await receiver.post(statement())).json() == RECORDED
    assert (await receiver.post(statement())).json() == DUPLICATE
    internal_token = ("authorization", f"Bearer {address.internal_token(address.tokens()[0])}")
    answer = await receiver.send(f"{address.PREFIX}/events", method="GET", headers=[internal_token])
    assert answer.status == 200


def test_two_processes_record_each_statement_once(database, configure):
    configure(webhook_token="current-token-of-the-tests")
    count = 40
    patient = "?timeout=300" if database.name == "sqlite" else ""
    environment = os.environ | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url + patient,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    senders = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "sender.py"), str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for sender in senders:
            assert sender.stdout.readline() == "ready\n", sender.stderr.read()
        for sender in senders:
            sender.stdin.write("go\n")
            sender.stdin.flush()
        counts = [json.loads(sender.communicate(timeout=600)[0]) for sender in senders]
    finally:
        for sender in senders:
            sender.kill()
            sender.communicate()
    total = sum(map(Counter, counts), Counter())
    assert total == {json.dumps(RECORDED): count, json.dumps(DUPLICATE): 3 * count}
    assert sorted(database.recorded, key=int) == [str(number) for number in range(count)]
    assert len(database.runs) == 1


# Transactions


async def test_burst_is_recorded_in_few_transactions_and_in_order(receiver, database, calls):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    await receiver.post(statement(statement_id="first"))
    commits = []
    event.listen(settings.engine, "commit", commits.append)
    with database.locked(LOCK):
        posts = [asyncio.create_task(receiver.post(statement(statement_id=str(number)))) for number in range(200)]
        await until(lambda: calls["write"] == 201)
    assert outcomes(await asyncio.gather(*posts)) == [RECORDED] * 200
    assert database.recorded == ["first", *map(str, range(200))]
    assert len(commits) < 20


async def test_webhooks_of_two_connections_by_turns_are_recorded_in_few_transactions(receiver, database, calls):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    await receiver.post(statement(statement_id="first"))
    commits = []
    event.listen(settings.engine, "commit", commits.append)
    with database.locked(LOCK):
        posts = [
            asyncio.create_task(receiver.post(statement(statement_id=str(number)), conn_id=(CONN_ID, ODD)[number % 2]))
            for number in range(100)
        ]
        await until(lambda: calls["write"] == 101)
    assert outcomes(await asyncio.gather(*posts)) == [RECORDED] * 100
    for conn_id, numbers in ((CONN_ID, ["first", *range(0, 100, 2)]), (ODD, range(1, 100, 2))):
        uri = address.asset_uri(conn_id)
        recorded = [extra["statement_id"] for of, _, extra in database.events if of == uri]
        assert recorded == [str(number) for number in numbers]
    assert len(commits) < 20


# The scheduler does this after it has read the events of a partition, and commits later, after other runs.
RUN_IS_CREATED = """
    with made as (
        insert into dag_run (dag_id, run_id, run_type, state, run_after, clear_number, span_status)
        values ('first', 'made', 'asset_triggered', 'queued', now(), 0, 'not_started') returning id
    )
    update asset_partition_dag_run set created_dag_run_id = (select id from made) where created_dag_run_id is null
"""


async def test_event_joins_no_run_that_the_scheduler_is_creating(receiver, postgres):
    """The scheduler has already read the events of that run, so no run would get this event."""
    await receiver.post(statement(statement_id="first"))
    blocked = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with postgres.locked(RUN_IS_CREATED, commit=True):
        posted = asyncio.create_task(receiver.post(statement(statement_id="second")))
        await until(lambda: posted.done() or postgres.query(blocked))
    assert (await posted).json() == RECORDED
    assert postgres.recorded == ["first", "second"]
    assert postgres.runs == [("first", "link:loan-1")] * 2


async def test_event_joins_the_pending_run_of_its_customer(receiver, database):
    for link in ("loan-1", "loan-2", "loan-1", "loan-3", "loan-1"):
        assert (await receiver.post(statement(link_id=link, progress="failed"))).json() == RECORDED
    assert [key for _, key in database.runs] == ["link:loan-1", "link:loan-2", "link:loan-3"]
    joined = "select count(*) from partitioned_asset_key_log where target_partition_key = 'link:loan-1'"
    assert database.query(joined) == [(3,)]


@pytest.mark.usefixtures("database")
async def test_pending_run_is_searched_among_new_rows_only(receiver):
    """The table has no index for Airflow's query, and keeps the rows of all runs."""
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    await receiver.post(statement(link_id="first"))
    executed = []
    event.listen(settings.engine, "before_cursor_execute", lambda *arguments: executed.append(arguments[2]))
    await asyncio.gather(*(receiver.post(statement(link_id=str(number))) for number in range(20)))
    searches = [sql for sql in executed if "FROM asset_partition_dag_run" in sql and "target_dag_id =" in sql]
    assert len(searches) == 20
    assert all("asset_partition_dag_run.id >=" in sql for sql in searches)


@contextmanager
def refused(database, *, at_commit=False, code="P0001"):
    """Make the database refuse the events of one customer; code ``53100`` means a full disk."""
    if database.name == "sqlite":
        database.change(
            "create trigger refuse before insert on asset_event when new.partition_key = 'link:poison' "
            "begin select raise(abort, 'refused'); end"
        )
    else:
        database.change(
            "create function refuse() returns trigger language plpgsql as $$ begin "
            f"if new.partition_key = 'link:poison' then raise 'refused' using errcode = '{code}'; end if; "
            "return new; end $$"
        )
        when = "constraint trigger refuse after" if at_commit else "trigger refuse before"
        deferred = "deferrable initially deferred" if at_commit else ""
        database.change(f"create {when} insert on asset_event {deferred} for each row execute function refuse()")
    yield
    database.change("drop trigger refuse" + ("" if database.name == "sqlite" else " on asset_event"))


async def test_event_that_the_database_refuses_does_not_affect_its_group(receiver, database, caplog):
    links = ["1", "2", "poison", "3", "poison", "4"]
    with refused(database):
        answers = await asyncio.gather(*(receiver.post(statement(link_id=link)) for link in links))
    assert [answer.status for answer in answers] == [200, 200, 503, 200, 503, 200]
    assert answers[2].detail == "The database could not record the event"
    assert [key for _, key, _ in database.events] == ["link:1", "link:2", "link:3", "link:4"]
    assert "Could not record one webhook event" in caplog.text
    # It was not recorded, so it is no duplicate.
    assert (await receiver.post(statement(link_id="poison"))).json() == RECORDED
    assert [key for _, key in database.runs] == ["link:1", "link:2", "link:3", "link:4", "link:poison"]


async def test_failed_commit_is_a_503_for_the_whole_group(receiver, postgres):
    with refused(postgres, at_commit=True):
        answers = await asyncio.gather(*(receiver.post(statement(link_id=link)) for link in ("1", "poison", "2")))
        assert [answer.status for answer in answers] == [503] * 3
        assert not postgres.events
        assert (await receiver.post(statement(link_id="1"))).json() == RECORDED
    assert not postgres.query("select 1 from asset_partition_dag_run where partition_key != 'link:1'")


async def test_database_error_is_a_503_for_the_whole_group(receiver, postgres, caplog):
    """Unlike a refused event, a full disk concerns all events of the transaction, which is retried."""
    with refused(postgres, code="53100"):
        answers = await asyncio.gather(*(receiver.post(statement(link_id=link)) for link in ("1", "poison", "2")))
        assert [answer.status for answer in answers] == [503] * 3
        assert "The database recorded none of 3 webhook events" in caplog.text
        assert "Could not record one webhook event" not in caplog.text
        assert not postgres.events
        assert (await receiver.post(statement(link_id="1"))).json() == RECORDED
    assert (await receiver.post(statement(link_id="poison"))).json() == RECORDED
    assert [key for _, key, _ in postgres.events] == ["link:1", "link:poison"]


async def test_airflow_listener_that_raises_does_not_affect_the_events(receiver, database):
    from airflow.listeners import hookimpl  # noqa: PLC0415 - a test that is skipped needs none
    from airflow.listeners.listener import get_listener_manager  # noqa: PLC0415

    uris = []

    class Listener:
        @hookimpl
        def on_asset_changed(self, asset):
            uris.append(asset.uri)
            raise RuntimeError(f"a listener at {asset.uri}")

    listener = Listener()
    get_listener_manager().add_listener(listener)
    try:
        answers = await asyncio.gather(*(receiver.post(statement(link_id=str(number))) for number in range(5)))
        assert (await receiver.post(statement(link_id="0"))).json() == DUPLICATE
    finally:
        get_listener_manager().pm.unregister(listener)
    assert outcomes(answers) == [RECORDED] * 5
    assert uris == [address.asset_uri(CONN_ID)] * 5
    assert len(database.events) == 5


async def test_airflow_listener_is_called_after_the_commit(receiver, database):
    from airflow.listeners import hookimpl  # noqa: PLC0415 - a test that is skipped needs none
    from airflow.listeners.listener import get_listener_manager  # noqa: PLC0415

    from airflow_provider_bankconnect.receiver import events  # noqa: PLC0415

    if not events._HAS_CALLBACK_SINK:
        pytest.skip("needs Airflow 3.3: older ones call listeners before the commit")
    seen = []

    class Listener:
        @hookimpl
        def on_asset_changed(self, asset):
            seen.append((asset.uri, len(database.events)))

    listener = Listener()
    get_listener_manager().add_listener(listener)
    try:
        await asyncio.gather(*(receiver.post(statement(link_id=str(number))) for number in range(3)))
    finally:
        get_listener_manager().pm.unregister(listener)
    assert [uri for uri, _ in seen] == [address.asset_uri(CONN_ID)] * 3
    assert all(count >= number for number, (_, count) in enumerate(seen, start=1))


async def test_event_is_recorded_if_the_client_disconnects_before_the_response(receiver, database, calls):
    with database.locked(LOCK):
        post = asyncio.create_task(receiver.post(statement()))
        other = asyncio.create_task(receiver.post(statement(link_id="other")))
        await until(lambda: calls["write"] == 2)
        post.cancel()
        await asyncio.wait([post])
    assert (await other).json() == RECORDED
    assert post.cancelled()
    assert (await receiver.post(statement())).json() == DUPLICATE
    assert len(database.events) == 2


# Unavailable databases


async def test_full_queue_is_a_503_at_once(receiver, database, calls, monkeypatch, caplog):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.events._MAX_QUEUED", 5)
    first = await receiver.post(statement(link_id="first"))
    assert first.status == 200
    with database.locked(LOCK):
        writing = asyncio.create_task(receiver.post(statement(link_id="writing")))
        await until(lambda: calls["write"] == 2)
        waiting = [asyncio.create_task(receiver.post(statement(link_id=str(number)))) for number in range(5)]
        await until(lambda: calls["write"] == 7)
        answer = await receiver.post(statement(link_id="one too many"))
        assert (answer.status, answer.detail) == (503, "Too many events are waiting for the database")
        assert (await receiver.post_events("record", [statement()])).status == 503
        # Requests that record nothing need no room in the queue.
        assert (await receiver.post({"event_name": "x"})).status == 200
        assert (await receiver.post(statement(), token="wrong")).status == 404
        assert not any(task.done() for task in (writing, *waiting))
    assert outcomes(await asyncio.gather(writing, *waiting)) == [RECORDED] * 6
    assert (await receiver.post(statement(link_id="one too many"))).json() == RECORDED
    assert len(database.events) == 8
    assert caplog.text.count("(full)") == 2


async def test_writer_waits_for_a_locked_database(receiver, database, calls):
    await receiver.post(statement(link_id="first"))
    with database.locked(LOCK):
        posts = [asyncio.create_task(receiver.post(statement(link_id=str(number)))) for number in range(3)]
        await until(lambda: calls["write"] == 4)
        done, _ = await asyncio.wait(posts, timeout=1)
        assert not done
    assert outcomes(await asyncio.gather(*posts)) == [RECORDED] * 3


async def test_sqlite_that_stays_locked_is_a_503_until_it_is_free(receiver, sqlite, caplog):
    with airflow_uses(f"{sqlite.url}?timeout=0.1"):
        with sqlite.locked(LOCK):
            answers = await asyncio.gather(*(receiver.post(statement(link_id=str(number))) for number in range(3)))
            assert [answer.status for answer in answers] == [503] * 3
            # Other refusals do not wait for the database.
            assert (await receiver.post({})).status == 400
        assert "The database recorded none of" in caplog.text
        assert not sqlite.events
        assert (await receiver.post(statement(link_id="0"))).json() == RECORDED


@pytest.mark.usefixtures("postgres")
async def test_postgres_that_is_down_is_a_503_until_it_is_up(receiver, postgres_server):
    assert (await receiver.post(statement(statement_id="before"))).json() == RECORDED
    postgres_server.stop()
    try:
        answers = await asyncio.gather(*(receiver.post(statement(link_id=str(number))) for number in range(3)))
        assert [answer.status for answer in answers] == [503] * 3
    finally:
        postgres_server.start()
    assert (await receiver.post(statement(link_id="0"))).json() == RECORDED
    assert (await receiver.post(statement(statement_id="before"))).json() == DUPLICATE


async def test_event_of_an_asset_that_no_dag_ever_used_is_refused(receiver, database, caplog):
    answer = await receiver.post(statement(), conn_id=NO_DAG)
    never = f"No DAG was ever scheduled by the webhook asset of connection '{NO_DAG}'"
    assert (answer.status, answer.detail) == (503, never)
    assert answer.detail in caplog.text
    assert (await receiver.post(statement(), conn_id="unknown")).status == 404
    assert "Connection 'unknown' does not exist, and no DAG was ever scheduled by its webhook asset" in caplog.text
    assert not database.events


async def test_event_for_a_paused_dag_is_recorded_with_a_warning(receiver, database, caplog):
    database.change("update dag set is_paused = true where dag_id = 'first'")
    assert (await receiver.post(statement())).json() == RECORDED
    assert "start no run, paused are: first;" in caplog.text
    assert database.recorded == ["statement-1"]
    assert not database.runs
    caplog.clear()
    # Duplicates are not worth a warning.
    assert (await receiver.post(statement())).json() == DUPLICATE
    assert "paused" not in caplog.text


async def test_no_warning_if_one_of_two_dags_is_not_paused(receiver, sqlite, caplog):
    sqlite.change("update dag set is_paused = true where dag_id = 'odd'")
    assert (await receiver.post(statement(), conn_id=ODD)).json() == RECORDED
    assert "paused" not in caplog.text
    assert sqlite.runs == [("odd_too", "link:loan-1")]
    sqlite.change("update dag set is_paused = true where dag_id = 'odd_too'")
    assert (await receiver.post(statement(statement_id="2"), conn_id=ODD)).json() == RECORDED
    assert "paused are: odd, odd_too;" in caplog.text


@pytest.mark.long
@pytest.mark.usefixtures("receiver")
async def test_ten_thousand_wrong_tokens_cause_two_queries_a_minute_and_no_memory_growth(sqlite, monkeypatch):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Mount  # noqa: PLC0415

    from airflow_provider_bankconnect.receiver.journal import Journal  # noqa: PLC0415

    # pytest keeps log records in memory.
    log = logging.getLogger("airflow_provider_bankconnect")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    statements = []
    event.listen(settings.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    body = json.dumps(statement(reason="x" * 10_000)).encode()
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.app.Journal", lambda: Journal(clock=lambda: 0.0))
    # Without Airflow's middlewares, which are slow.
    bare = Caller(Starlette(routes=[Mount(address.PREFIX, WebhookReceiver())]))

    async def try_tokens(numbers):
        for number in numbers:
            answer = await bare.post(body, conn_id=f"conn-{number}", token=f"wrong-token-{number}")
            assert answer.status == 404
            # The event loop, too, frees memory.
            await asyncio.sleep(0)

    await try_tokens(range(1000))
    # SQLAlchemy keeps how it has made its first queries.
    await until(lambda: sqlite.query("select * from log where owner = 'bankconnect'"))
    tracemalloc.start()
    try:
        await try_tokens(range(1000, 2000))
        before, _ = tracemalloc.get_traced_memory()
        await try_tokens(range(2000, 10_000))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000
    # Which connections there are, and one row for the audit log.
    assert [text.split()[0] for text in statements] == ["SELECT", "INSERT"]
    assert not sqlite.events
    assert (await bare.post(statement())).json() == RECORDED
    assert len(statements) > 2


# Long polling


async def poll(receiver, after):
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    query = urlencode({"after": after.isoformat()})
    answer = await receiver.send(f"{address.PREFIX}/events?{query}", method="GET", headers=[internal_token])
    return len(answer.json()["events"])


@pytest.mark.usefixtures("sqlite")
async def test_long_poll_returns_as_soon_as_an_event_is_recorded(receiver, calls, monkeypatch):
    monkeypatch.setattr(events, "_LONG_POLL_SECONDS", 3600.0)
    polls = [asyncio.create_task(poll(receiver, datetime.now(UTC))) for _ in range(3)]
    await until(lambda: calls["wait_for_event"] == 3)
    await receiver.post(statement(link_id="loan-1"))
    assert await asyncio.gather(*polls) == [1, 1, 1]
    # It returns at once if an event was recorded since the last response.
    since = datetime.now(UTC)
    await receiver.post(statement(link_id="loan-2"))
    assert await poll(receiver, since) == 2


@pytest.mark.usefixtures("sqlite")
async def test_long_poll_returns_without_events_after_its_time(receiver, monkeypatch):
    monkeypatch.setattr(events, "_LONG_POLL_SECONDS", 0.01)
    assert await poll(receiver, datetime.now(UTC)) == 0
