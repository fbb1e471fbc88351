"""What becomes of a ring: once in the database, committed before it is answered, and nobody's neighbour's trouble."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
from doorbells import CONN_ID, LONELY, ODD, TOKEN, Caller, airflow_uses, statement
from sqlalchemy import event

from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.receiver.plugin import Doorbell

if not address.is_supported():
    pytest.skip("needs Airflow 3.2", allow_module_level=True)
from airflow_provider_bankconnect.receiver import rings

RUNG, REPEATED = {"status": "rung"}, {"status": "repeated"}
HERE = Path(__file__).parent
# Anything that an asset event may be changed by keeps the writer waiting.
LOCK = "update asset set id = id"


def outcomes(answers):
    return [answer.json() for answer in answers]


# Once


async def test_the_answer_comes_after_the_commit(doorbell, database):
    seen = []

    async def watched(scope, receive, send):
        async def look(message):
            if message["type"] == "http.response.start":
                seen.append((message["status"], database.rung, database.runs))
            await send(message)

        await doorbell.app(scope, receive, look)

    await Caller(watched).post(statement())
    assert seen == [(200, ["statement-1"], [("first", "link:loan-1")])]


async def test_a_completed_statement_rings_once_however_often_it_is_told(doorbell, database):
    told = [{}, {}, {"reason": "told anew"}, {"progress": "COMPLETED"}]
    answers = [await doorbell.post(statement(**changes)) for changes in told]
    assert outcomes(answers) == [RUNG, REPEATED, REPEATED, REPEATED]
    assert {answer.status for answer in answers} == {200}
    assert len(database.events) == 1
    # Another statement, another customer, another link of the same one: each is news.
    for changes in ({"statement_id": "2"}, {"entity_id": "2"}, {"link_id": "2"}, {"link_id": None}):
        assert (await doorbell.post(statement(**changes))).json() == RUNG
        assert (await doorbell.post(statement(**changes))).json() == REPEATED


async def test_a_completed_statement_that_is_told_twenty_times_at_once_rings_once(doorbell, database):
    answers = await asyncio.gather(*(doorbell.post(statement()) for _ in range(20)))
    assert sorted(map(str, outcomes(answers))) == sorted(map(str, [RUNG] + [REPEATED] * 19))
    assert len(database.events) == 1


async def test_failures_ring_each_time_even_when_no_byte_of_them_differs(doorbell, database):
    failed = statement(statement_id="", progress="failed", reason="wrong credentials")
    for _ in range(3):
        assert (await doorbell.post(failed)).json() == RUNG
    answers = await asyncio.gather(*(doorbell.post(failed) for _ in range(3)))
    assert outcomes(answers) == [RUNG] * 3
    assert len(database.events) == 6


async def test_a_statement_that_fails_and_then_completes_rings_for_both(doorbell, database):
    assert (await doorbell.post(statement(progress="failed"))).json() == RUNG
    assert (await doorbell.post(statement())).json() == RUNG
    assert (await doorbell.post(statement(progress="failed"))).json() == RUNG
    assert (await doorbell.post(statement())).json() == REPEATED
    assert [extra["progress"] for _, _, extra in database.events] == ["failed", "completed", "failed"]


async def test_a_completed_row_without_a_statement_is_nothing_that_could_be_repeated(doorbell, sqlite):
    for _ in range(2):
        assert (await doorbell.post(statement(statement_id=" "))).json() == RUNG
    assert len(sqlite.events) == 2


async def test_links_with_one_hash_or_key_in_common_do_not_silence_each_other(doorbell, database):
    """An entity without a link, and a link whose key looks like its."""
    assert (await doorbell.post(statement(link_id=None, entity_id="e"))).json() == RUNG
    assert (await doorbell.post(statement(link_id="entity:e"))).json() == RUNG
    assert [key for _, key, _ in database.events] == ["entity:e", "link:entity:e"]


async def test_two_connections_are_two_assets(doorbell, database):
    for conn_id in (CONN_ID, ODD):
        assert (await doorbell.post(statement(), conn_id=conn_id)).json() == RUNG
    for conn_id in (ODD, CONN_ID):
        assert (await doorbell.post(statement(), conn_id=conn_id)).json() == REPEATED
    assert [uri for uri, _, _ in database.events] == [address.asset_uri(CONN_ID), address.asset_uri(ODD)]
    assert sorted(database.runs) == [("first", "link:loan-1"), ("odd", "link:loan-1"), ("odd_too", "link:loan-1")]


async def test_an_event_that_somebody_emitted_by_hand_disturbs_nobody(doorbell, database):
    [(asset_id,)] = database.query("select id from asset where uri = :uri", uri=address.asset_uri(CONN_ID))
    insert = (
        "insert into asset_event (asset_id, extra, source_map_index, timestamp, partition_key) "
        "values (:asset_id, :extra, -1, current_timestamp, 'link:loan-1')"
    )
    for extra in ("{}", '{"from_rest_api": true}', "[]", '"text"', json.dumps(statement(statement_id=None))):
        database.change(insert, asset_id=asset_id, extra=extra)
    assert (await doorbell.post(statement())).json() == RUNG
    assert (await doorbell.post(statement())).json() == REPEATED
    knock = ("authorization", f"Bearer {address.knock(address.tokens()[0])}")
    answer = await doorbell.send(f"{address.PREFIX}/rings", method="GET", headers=[knock])
    assert answer.status == 200


def test_two_processes_that_write_at_once_ring_once_for_each_statement(database, configure):
    configure(webhook_token="current-token-of-the-tests")
    count = 40
    environment = os.environ | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    ringers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "ringer.py"), str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for ringer in ringers:
            assert ringer.stdout.readline() == "ready\n", ringer.stderr.read()
        for ringer in ringers:
            ringer.stdin.write("go\n")
            ringer.stdin.flush()
        said = [json.loads(ringer.communicate(timeout=120)[0]) for ringer in ringers]
    finally:
        for ringer in ringers:
            ringer.kill()
            ringer.communicate()
    # Nothing but these two answers.
    rung, repeated = (sum(one.pop(json.dumps(outcome), 0) for one in said) for outcome in (RUNG, REPEATED))
    assert said == [{}, {}]
    assert (rung, repeated) == (count, 3 * count)
    assert sorted(database.rung, key=int) == [str(number) for number in range(count)]
    assert len(database.runs) == 1


# Together


async def test_a_burst_is_written_in_few_transactions_in_the_order_in_which_it_came(doorbell, database):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    await doorbell.post(statement(statement_id="first"))
    commits = []
    event.listen(settings.engine, "commit", commits.append)
    answers = await asyncio.gather(*(doorbell.post(statement(statement_id=str(number))) for number in range(200)))
    assert outcomes(answers) == [RUNG] * 200
    assert database.rung == ["first", *map(str, range(200))]
    assert len(commits) < 20


# What the scheduler does between reading a partition's events and committing, which is after many more runs.
RUN_IS_MADE = """
    with made as (
        insert into dag_run (dag_id, run_id, run_type, state, run_after, clear_number, span_status)
        values ('first', 'made', 'asset_triggered', 'queued', now(), 0, 'not_started') returning id
    )
    update asset_partition_dag_run set created_dag_run_id = (select id from made) where created_dag_run_id is null
"""


async def test_a_ring_joins_no_partition_whose_run_the_scheduler_is_making(doorbell, postgres):
    """The scheduler has read the events of that run: it would be in none."""
    await doorbell.post(statement(statement_id="first"))
    with postgres.held(RUN_IS_MADE, kept=True):
        posted = asyncio.create_task(doorbell.post(statement(statement_id="second")))
        await asyncio.wait([posted], timeout=2)
    assert (await posted).json() == RUNG
    assert postgres.rung == ["first", "second"]
    assert postgres.runs == [("first", "link:loan-1")] * 2


async def test_a_ring_joins_the_partition_of_its_customer_that_has_no_run_yet_however_old(doorbell, database):
    for link in ("loan-1", "loan-2", "loan-1", "loan-3", "loan-1"):
        assert (await doorbell.post(statement(link_id=link, progress="failed"))).json() == RUNG
    assert [key for _, key in database.runs] == ["link:loan-1", "link:loan-2", "link:loan-3"]
    joined = "select count(*) from partitioned_asset_key_log where target_partition_key = 'link:loan-1'"
    assert database.query(joined) == [(3,)]


@pytest.mark.usefixtures("database")
async def test_airflow_looks_for_the_run_to_come_of_each_ring_among_new_ones_only(doorbell):
    """There is no index for what it asks, and all runs that ever were are in the table."""
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    await doorbell.post(statement(link_id="first"))
    said = []
    event.listen(settings.engine, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))
    await asyncio.gather(*(doorbell.post(statement(link_id=str(number))) for number in range(20)))
    looks = [sql for sql in said if "FROM asset_partition_dag_run" in sql and "target_dag_id =" in sql]
    assert len(looks) == 20
    assert all("asset_partition_dag_run.id >=" in sql for sql in looks)


@contextmanager
def refused(database, *, at_commit=False, code="P0001"):
    """Have the database take no event of one customer; ``53100`` is a full disk."""
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


async def test_a_ring_that_the_database_refuses_takes_no_neighbour_along(doorbell, database, caplog):
    links = ["1", "2", "poison", "3", "poison", "4"]
    with refused(database):
        answers = await asyncio.gather(*(doorbell.post(statement(link_id=link)) for link in links))
    assert [answer.status for answer in answers] == [200, 200, 503, 200, 503, 200]
    assert answers[2].detail == "The database does not take it now"
    assert [key for _, key, _ in database.events] == ["link:1", "link:2", "link:3", "link:4"]
    assert "could not be made an event" in caplog.text
    # It was not acknowledged, and is not known.
    assert (await doorbell.post(statement(link_id="poison"))).json() == RUNG
    assert [key for _, key in database.runs] == ["link:1", "link:2", "link:3", "link:4", "link:poison"]


async def test_what_fails_at_the_commit_is_not_acknowledged_to_anybody(doorbell, postgres):
    with refused(postgres, at_commit=True):
        answers = await asyncio.gather(*(doorbell.post(statement(link_id=link)) for link in ("1", "poison", "2")))
        assert [answer.status for answer in answers] == [503] * 3
        assert not postgres.events
        assert (await doorbell.post(statement(link_id="1"))).json() == RUNG
    assert not postgres.query("select 1 from asset_partition_dag_run where partition_key != 'link:1'")


async def test_trouble_of_the_databases_own_is_no_rings_fault(doorbell, postgres, caplog):
    """It is tried again for all; then nobody is told that it was taken."""
    with refused(postgres, code="53100"):
        answers = await asyncio.gather(*(doorbell.post(statement(link_id=link)) for link in ("1", "poison", "2")))
        assert [answer.status for answer in answers] == [503] * 3
        assert "The database took none of 3 rings" in caplog.text
        assert "could not be made an event" not in caplog.text
        assert not postgres.events
        assert (await doorbell.post(statement(link_id="1"))).json() == RUNG
    assert (await doorbell.post(statement(link_id="poison"))).json() == RUNG
    assert [key for _, key, _ in postgres.events] == ["link:1", "link:poison"]


async def test_a_listener_of_somebody_elses_that_raises_takes_nobody_along(doorbell, database):
    from airflow.listeners import hookimpl  # noqa: PLC0415 - a test that is skipped needs none
    from airflow.listeners.listener import get_listener_manager  # noqa: PLC0415

    heard = []

    class Listener:
        @hookimpl
        def on_asset_changed(self, asset):
            heard.append(asset.uri)
            raise RuntimeError(f"a listener of somebody else's at {asset.uri}")

    listener = Listener()
    get_listener_manager().add_listener(listener)
    try:
        answers = await asyncio.gather(*(doorbell.post(statement(link_id=str(number))) for number in range(5)))
        assert (await doorbell.post(statement(link_id="0"))).json() == REPEATED
    finally:
        get_listener_manager().pm.unregister(listener)
    assert outcomes(answers) == [RUNG] * 5
    assert heard == [address.asset_uri(CONN_ID)] * 5
    assert len(database.events) == 5


async def test_a_listener_hears_of_a_ring_when_it_is_committed(doorbell, database):
    from airflow.listeners import hookimpl  # noqa: PLC0415 - a test that is skipped needs none
    from airflow.listeners.listener import get_listener_manager  # noqa: PLC0415

    from airflow_provider_bankconnect.receiver import rings  # noqa: PLC0415

    if not rings._CALLBACKS:
        pytest.skip("needs Airflow 3.3: before, it tells listeners while it writes")
    seen = []

    class Listener:
        @hookimpl
        def on_asset_changed(self, asset):
            seen.append((asset.uri, len(database.events)))

    listener = Listener()
    get_listener_manager().add_listener(listener)
    try:
        await asyncio.gather(*(doorbell.post(statement(link_id=str(number))) for number in range(3)))
    finally:
        get_listener_manager().pm.unregister(listener)
    assert [uri for uri, _ in seen] == [address.asset_uri(CONN_ID)] * 3
    assert all(count >= number for number, (_, count) in enumerate(seen, start=1))


async def test_who_hangs_up_before_the_answer_has_rung_all_the_same(doorbell, database):
    with database.held(LOCK):
        post = asyncio.create_task(doorbell.post(statement()))
        other = asyncio.create_task(doorbell.post(statement(link_id="other")))
        await asyncio.sleep(0.5)
        post.cancel()
        await asyncio.wait([post])
    assert (await other).json() == RUNG
    assert post.cancelled()
    assert (await doorbell.post(statement())).json() == REPEATED
    assert len(database.events) == 2


# When the database does not take it


async def test_a_full_queue_is_told_at_once(doorbell, database, monkeypatch, caplog):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.rings._MOST_WAITING", 5)
    first = await doorbell.post(statement(link_id="first"))
    assert first.status == 200
    with database.held(LOCK):
        writing = asyncio.create_task(doorbell.post(statement(link_id="writing")))
        await asyncio.sleep(0.5)
        waiting = [asyncio.create_task(doorbell.post(statement(link_id=str(number)))) for number in range(5)]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(2):
            answer = await doorbell.post(statement(link_id="one too many"))
        assert (answer.status, answer.detail) == (503, "Too many are waiting for the database")
        assert (await doorbell.tell("ring", [statement()])).status == 503
        # Those that are no rings of a customer, or are wrong, need no room.
        assert (await doorbell.post({"event_name": "x"})).status == 200
        assert (await doorbell.post(statement(), token="wrong")).status == 404
        assert not any(task.done() for task in (writing, *waiting))
    assert outcomes(await asyncio.gather(writing, *waiting)) == [RUNG] * 6
    assert (await doorbell.post(statement(link_id="one too many"))).json() == RUNG
    assert len(database.events) == 8
    assert caplog.text.count("(full)") == 2


async def test_a_locked_database_is_waited_for(doorbell, database):
    await doorbell.post(statement(link_id="first"))
    with database.held(LOCK):
        posts = [asyncio.create_task(doorbell.post(statement(link_id=str(number)))) for number in range(3)]
        done, _ = await asyncio.wait(posts, timeout=2)
        assert not done
    assert outcomes(await asyncio.gather(*posts)) == [RUNG] * 3


async def test_a_sqlite_that_stays_locked_is_a_503_until_it_is_free(doorbell, sqlite, caplog):
    with airflow_uses(f"{sqlite.url}?timeout=0.1"):
        with sqlite.held(LOCK):
            answers = await asyncio.gather(*(doorbell.post(statement(link_id=str(number))) for number in range(3)))
            assert [answer.status for answer in answers] == [503] * 3
            # Who is refused for other reasons, or asks who has rung, need not wait.
            assert (await doorbell.post({})).status == 400
        assert "The database took none of" in caplog.text
        assert not sqlite.events
        assert (await doorbell.post(statement(link_id="0"))).json() == RUNG


@pytest.mark.usefixtures("postgres")
async def test_a_postgres_that_is_gone_is_a_503_until_it_is_back(doorbell, postgres_server):
    assert (await doorbell.post(statement(statement_id="before"))).json() == RUNG
    postgres_server.stop()
    try:
        answers = await asyncio.gather(*(doorbell.post(statement(link_id=str(number))) for number in range(3)))
        assert [answer.status for answer in answers] == [503] * 3
    finally:
        postgres_server.start()
    assert (await doorbell.post(statement(link_id="0"))).json() == RUNG
    assert (await doorbell.post(statement(statement_id="before"))).json() == REPEATED


async def test_a_ring_that_no_dag_waits_for_is_not_acknowledged(doorbell, database, caplog):
    answer = await doorbell.post(statement(), conn_id=LONELY)
    assert (answer.status, answer.detail) == (503, f"No DAG knows the asset of the connection '{LONELY}' yet")
    assert answer.detail in caplog.text
    # As before a DAG is parsed, and after it is gone.
    database.change("delete from asset_active")
    assert (await doorbell.post(statement(), conn_id=ODD)).status == 404
    assert f"There is no connection '{ODD}', and no DAG listens to its asset" in caplog.text
    assert not database.events


async def test_rings_for_a_dag_that_is_paused_are_kept_and_that_is_told(doorbell, database, caplog):
    database.change("update dag set is_paused = true where dag_id = 'first'")
    assert (await doorbell.post(statement())).json() == RUNG
    assert "start no run: paused are first" in caplog.text
    assert database.rung == ["statement-1"]
    assert not database.runs
    caplog.clear()
    # Nothing has rung anew.
    assert (await doorbell.post(statement())).json() == REPEATED
    assert "paused" not in caplog.text
    database.change("update dag set is_paused = false")
    assert (await doorbell.tell("ring", [statement()])).json()["repeated"] == 1
    assert not database.runs
    assert (await doorbell.tell("again", [statement()])).json()["rung"] == 1
    assert database.runs == [("first", "link:loan-1")]


async def test_as_long_as_one_of_two_dags_runs_nothing_is_said_of_the_paused_one(doorbell, sqlite, caplog):
    sqlite.change("update dag set is_paused = true where dag_id = 'odd'")
    assert (await doorbell.post(statement(), conn_id=ODD)).json() == RUNG
    assert "paused" not in caplog.text
    assert sqlite.runs == [("odd_too", "link:loan-1")]
    sqlite.change("update dag set is_paused = true where dag_id = 'odd_too'")
    assert (await doorbell.post(statement(statement_id="2"), conn_id=ODD)).json() == RUNG
    assert "paused are odd, odd_too" in caplog.text


@pytest.mark.usefixtures("doorbell")
async def test_ten_thousand_wrong_tokens_make_no_query_and_take_no_memory(sqlite, monkeypatch):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Mount  # noqa: PLC0415

    # pytest keeps what is logged.
    log = logging.getLogger("airflow_provider_bankconnect")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    statements = []
    event.listen(settings.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    body = json.dumps(statement(reason="x" * 10_000)).encode()
    # The others' middlewares take their time.
    bare = Caller(Starlette(routes=[Mount(address.PREFIX, Doorbell())]))

    async def knock(numbers):
        for number in numbers:
            answer = await bare.post(body, conn_id=f"conn-{number}", token=f"wrong-token-{number}")
            assert answer.status == 404
            # The loop, too, clears up behind itself.
            await asyncio.sleep(0)

    await knock(range(1000))
    tracemalloc.start()
    try:
        await knock(range(1000, 2000))
        before, _ = tracemalloc.get_traced_memory()
        await knock(range(2000, 10_000))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000
    assert not statements
    assert not sqlite.events
    assert (await bare.post(statement())).json() == RUNG
    assert statements


# News


async def ask_for_news(doorbell, after):
    knock = ("authorization", f"Bearer {address.knock(TOKEN)}")
    query = urlencode({"after": after.isoformat()})
    async with asyncio.timeout(60):
        answer = await doorbell.send(f"{address.PREFIX}/rings?{query}", method="GET", headers=[knock])
    return len(answer.json()["rings"])


@pytest.mark.usefixtures("sqlite")
async def test_who_asks_for_news_is_told_when_they_come(doorbell, monkeypatch):
    monkeypatch.setattr(rings, "_HOLD_SECONDS", 3600.0)
    asking = [asyncio.create_task(ask_for_news(doorbell, datetime.now(UTC))) for _ in range(3)]
    await asyncio.sleep(0.1)
    await doorbell.post(statement(link_id="loan-1"))
    assert await asyncio.gather(*asking) == [1, 1, 1]
    # And what came since the last answer, while nobody asked, is told at once.
    since = datetime.now(UTC)
    await doorbell.post(statement(link_id="loan-2"))
    assert await ask_for_news(doorbell, since) == 2


@pytest.mark.usefixtures("sqlite")
async def test_who_asks_for_news_is_not_held_for_long(doorbell, monkeypatch):
    monkeypatch.setattr(rings, "_HOLD_SECONDS", 0.01)
    assert await ask_for_news(doorbell, datetime.now(UTC)) == 0
