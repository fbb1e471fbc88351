"""What the webhook receiver keeps in Airflow's audit log: refused requests, missed webhooks, registered addresses."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from receivers import CONN_ID, NEEDS_3_2, NO_DAG, ODD, PREVIOUS, TOKEN, path_to, statement, until
from sqlalchemy import event as sql_event

from airflow_provider_bankconnect.operators.bankconnect import BankConnectUpdateWebhookOperator
from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS_3_2

REFUSED, MISSED = "bankconnect_webhooks_refused", "bankconnect_webhooks_missed"
REGISTERED = "bankconnect_webhook_registered"


@pytest.fixture
def journals():
    """The module, which needs Airflow 3.2."""
    from airflow_provider_bankconnect.receiver import journal  # noqa: PLC0415 - see above

    return journal


class Clock:
    """A clock for the journals of a test, and these journals."""

    def __init__(self):
        self.now, self.calls, self.journals = 0.0, 0, []

    def __call__(self):
        self.calls += 1
        return self.now

    async def rounds(self):
        """Wait until the journals have written what is due."""
        (journal,) = self.journals
        before = self.calls
        # Each round reads the clock at its start, and a round that has written does so once more.
        await until(lambda: journal._task is None or journal._task.done() or self.calls > before + 3)

    async def passes(self, seconds):
        await self.rounds()
        self.now += seconds
        await self.rounds()


@pytest.fixture
def clock(journals, monkeypatch):
    """The clock of the receiver's journal, whose rounds are quick."""
    from airflow_provider_bankconnect.receiver import app  # noqa: PLC0415 - needs Airflow 3.2

    clock = Clock()

    def make():
        clock.journals.append(journals.Journal(clock=clock))
        return clock.journals[-1]

    monkeypatch.setattr(journals, "_ROUND_SECONDS", 0.001)
    monkeypatch.setattr(app, "Journal", make)
    return clock


def kept(database):
    """Return the rows as (event, connection, reason or whether it is here, count)."""
    rows = database.query("select event, extra from log where owner = 'bankconnect' order by id")
    found = []
    for event, text in rows:
        extra = json.loads(text)
        conn_id = extra.pop("conn_id")
        found.append((event, conn_id, *extra.values()))
    return found


def add(database, event, extra, dttm=None):
    extra = extra if isinstance(extra, str | None) else json.dumps(extra)
    database.change(
        "insert into log (dttm, event, extra) values (:dttm, :event, :extra)",
        dttm=dttm or datetime.now(UTC),
        event=event,
        extra=extra,
    )


@pytest.fixture
def read(journals):
    """Read the journal back, by default that of the last hour."""
    from airflow.utils.session import create_session  # noqa: PLC0415 - a test that is skipped needs none

    def read_journal(since=None, **more):
        with create_session(scoped=False) as session:
            return journals.read_journal(session, since or datetime.now(UTC) - timedelta(hours=1), **more)

    return read_journal


# Refused requests


async def test_first_refusal_is_a_row_at_once_and_the_others_of_a_minute_are_one_row(receiver, database, clock):
    await receiver.post(b"[]")
    await clock.rounds()
    assert kept(database) == [(REFUSED, CONN_ID, "json", 1)]
    for _ in range(5):
        await receiver.post(b"[]")
    await receiver.post({})
    await clock.passes(59)
    assert kept(database)[1:] == [(REFUSED, CONN_ID, "fields", 1)]
    await clock.passes(1)
    assert kept(database)[2:] == [(REFUSED, CONN_ID, "json", 5)]
    # Nothing is left, so nothing runs any more; a refusal of this minute waits again.
    (journal,) = clock.journals
    assert journal._task.done()
    await receiver.post(b"[]")
    await clock.passes(59)
    assert len(kept(database)) == 3
    await clock.passes(1)
    assert kept(database)[3:] == [(REFUSED, CONN_ID, "json", 1)]
    # After a quiet minute, it is at once again.
    clock.now += 60
    await receiver.post(b"[]")
    await clock.rounds()
    assert len(kept(database)) == 5


async def test_connection_is_kept_only_if_it_has_an_asset(receiver, sqlite, clock):
    """Anybody can send a wrong token, for any connection."""
    wrong = "wrong-token-of-the-tests"
    for conn_id in (CONN_ID, ODD, NO_DAG, "unknown", " ", "a\0b", CONN_ID.upper(), "x" * 251, "x" * 10_000):
        await receiver.post(statement(), conn_id=conn_id, token=wrong)
    # This one has a valid token, and the connection exists.
    await receiver.post(statement(), conn_id=NO_DAG)
    await receiver.post(statement(), conn_id="unknown")
    await receiver.send(f"{address.PREFIX}/events", method="GET")
    await clock.passes(60)
    counts = {}
    for _, conn_id, reason, count in kept(sqlite):
        counts[conn_id, reason] = counts.get((conn_id, reason), 0) + count
    assert counts == {
        (CONN_ID, "token"): 1,
        (ODD, "token"): 1,
        ("", "token"): 7,
        (NO_DAG, "no_dag"): 1,
        ("", "connection"): 1,
        ("", "internal_token"): 1,
    }


async def test_made_up_connections_cause_two_rows_a_minute_and_little_memory(receiver, sqlite, clock, journals):
    await receiver.post(statement(), conn_id=CONN_ID, token="wrong")
    (journal,) = clock.journals
    most = 0
    for number in range(300):
        await receiver.post(b"", conn_id=f"{number}-made-up-{'x' * number}"[:300], token="wrong")
        most = max(most, len(journal._counts))
    assert most <= journals._MOST_KEYS + 2
    await clock.passes(60)
    rows = kept(sqlite)
    assert rows[0] == (REFUSED, CONN_ID, "token", 1)
    assert {row[:3] for row in rows[1:]} == {(REFUSED, "", "token")}
    assert len(rows) <= 3
    assert sum(row[3] for row in rows[1:]) == 300
    assert journal._task.done()


async def test_more_keys_than_the_limit_are_counted_without_their_connection(sqlite, journals, monkeypatch):
    monkeypatch.setattr(journals, "_MOST_KEYS", 2)
    journal = journals.Journal()
    # The database is not asked before this loop has ended.
    for conn_id in (CONN_ID, "made up", ODD, ODD, CONN_ID):
        journal.refused(conn_id, "json")
    await journal._task
    assert sorted(kept(sqlite)) == [(REFUSED, "", "json", 3), (REFUSED, CONN_ID, "json", 2)]


LOCKS = {"sqlite": "update asset set id = id", "postgresql": "lock table log in exclusive mode"}


async def test_neither_refusals_nor_webhooks_wait_for_the_audit_log(receiver, database, clock):
    with database.locked(LOCKS[database.name]):
        for _ in range(20):
            assert (await receiver.post(b"[]")).status == 400
        # SQLite has one writer at a time.
        if database.name == "postgresql":
            assert (await receiver.post(statement())).json() == {"status": "recorded"}
        assert kept(database) == []
    await clock.passes(60)
    assert sum(row[3] for row in kept(database)) == 20


async def test_counts_are_kept_while_the_database_fails(receiver, sqlite, clock, caplog):
    sqlite.change("create trigger refuse before insert on log begin select raise(abort, 'refused'); end")
    for _ in range(3):
        assert (await receiver.post(b"[]", conn_id=ODD)).status == 400
        await clock.rounds()
    failures = "Could not write refused and missed webhooks to the audit log (IntegrityError)"
    assert caplog.text.count(failures) == 1
    await clock.passes(60)
    assert caplog.text.count(failures) == 2
    # The error's text has the values of the row.
    assert "conn_id" not in caplog.text
    sqlite.change("drop trigger refuse")
    await receiver.post_events("check", [statement()])
    await clock.passes(59)
    assert kept(sqlite) == []
    await clock.passes(1)
    assert kept(sqlite) == [(REFUSED, ODD, "json", 3), (MISSED, CONN_ID, 1)]


async def test_no_token_reaches_the_audit_log(receiver, sqlite, clock):
    odd_paths = [f"webhook/{TOKEN}/x", f"webhook/{CONN_ID}/{TOKEN}/more", f"webhook/{CONN_ID}%2F{TOKEN}/x"]
    odd_paths += [f"events/{TOKEN}", f"events/{CONN_ID}/{TOKEN}", f"webhook/{TOKEN}/{PREVIOUS}"]
    statements = []

    def keep(_, __, text, parameters, ___, ____):
        statements.append(f"{text} {parameters}")

    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    sql_event.listen(settings.engine, "before_cursor_execute", keep)
    for path in odd_paths:
        status = 401 if path.startswith("events") else 404
        assert (await receiver.send(f"{address.PREFIX}/{path}", [b"{}"])).status == status
    await receiver.send(path_to(), [b"{}"])
    await clock.passes(60)
    rows = sqlite.query("select * from log")
    assert sum(row[-1] for row in kept(sqlite)) == len(odd_paths) + 1
    for text in (str(rows), str(statements)):
        assert TOKEN not in text
        assert PREVIOUS not in text
    assert "insert into log" in str(statements).lower()


# Missed webhooks


async def test_missed_webhooks_are_one_row_a_minute(receiver, sqlite, clock):
    await receiver.post(statement(statement_id="announced"))
    await receiver.post_events("check", [statement(statement_id="announced")])
    await clock.rounds()
    assert kept(sqlite) == []
    await receiver.post_events("check", [statement(statement_id=str(number)) for number in range(3)])
    await clock.rounds()
    assert kept(sqlite) == [(MISSED, CONN_ID, 3)]
    for conn_id in (CONN_ID, CONN_ID, NO_DAG):
        await receiver.post_events("check", [statement(statement_id="missed")], conn_id=conn_id)
    await clock.passes(60)
    # Only tasks can send these, so a connection without an asset is kept, too.
    assert kept(sqlite)[1:] == [(MISSED, NO_DAG, 1), (MISSED, CONN_ID, 2)]


# Registered addresses


def register(url, **arguments):
    more = {"webhook_url": url, "allow_private_host": True} | arguments
    BankConnectUpdateWebhookOperator(task_id="register", **more).execute({})


def test_registration_is_kept_with_whether_it_is_here(served, box, sqlite, configure, read):
    configure(public_url=served.url)
    for url, here in (
        (None, True),
        ("https://hooks.example.com/bankconnect", False),
        (address.webhook_url(CONN_ID), True),
        # The receiver's address for another connection, and one that the token has left.
        (address.webhook_url(NO_DAG), False),
        (address.webhook_url(CONN_ID).replace(TOKEN, PREVIOUS), False),
    ):
        register(url)
        assert kept(sqlite)[-1] == (REGISTERED, CONN_ID, here)
    register(None, bankconnect_conn_id=NO_DAG)
    # They are not throttled.
    assert len(kept(sqlite)) == 6
    registered = read().registered
    assert {conn_id: here for conn_id, (_, here) in registered.items()} == {CONN_ID: False, NO_DAG: True}
    assert datetime.now(UTC) - registered[NO_DAG][0] < timedelta(minutes=10)
    # The receiver needs no address of its own to know of another one.
    configure(public_url=None)
    register("https://hooks.example.com/bankconnect")
    assert kept(sqlite)[-1] == (REGISTERED, CONN_ID, False)
    assert len(box.requests) == 7
    told = [body for body in served.front.bodies if b"registered" in body]
    everything = str(sqlite.query("select * from log")) + str(told)
    for secret in (TOKEN, PREVIOUS, "hooks.example.com", served.url):
        assert secret not in everything


def test_registration_succeeds_whatever_the_receiver_answers(served, box, configure, api_server_at, log):
    told = "Could not tell the webhook receiver which address is registered"

    def register_untold():
        register("https://hooks.example.com/bankconnect")
        output = log()
        assert TOKEN not in output
        (line,) = [line for line in output.splitlines() if told in line]
        return line

    for instead in ((503, {}, b""), (404, {}, b"{}"), (200, {}, b"<html>"), (302, {"location": "/"}, b"")):
        served.front.instead = instead
        assert register_untold()
    api_server_at("https://localhost:1", box.ca_file)
    assert "ConnectionError" in register_untold()
    # A setting that is invalid for the receiver only, or that its command cannot read.
    configure(webhook_token="weak")
    assert "webhook_token must have at least 16 characters" in register_untold()
    configure(webhook_token=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN_CMD", "false")
        assert register_untold()
    assert len(box.requests) == 7


def test_while_the_receiver_is_off_it_is_not_told(served, box, configure, log):
    configure(webhook_token=None)
    register("https://hooks.example.com/bankconnect")
    assert len(box.requests) == 1
    assert not served.front.requests
    assert "Could not tell" not in log()


async def test_registration_is_written_before_the_answer_or_refused(receiver, sqlite):
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    path = f"{address.PREFIX}/events/{CONN_ID}"
    for here, status in ((True, 200), (False, 200), ("true", 400), (1, 400), (None, 400)):
        body = json.dumps({"how": "registered", "here": here}).encode()
        assert (await receiver.send(path, [body], headers=[internal_token])).status == status
        assert (await receiver.send(path, [body])).status == 401
    assert [row for row in kept(sqlite) if row[0] == REGISTERED] == [
        (REGISTERED, CONN_ID, True),
        (REGISTERED, CONN_ID, False),
    ]
    sqlite.change("create trigger refuse before insert on log begin select raise(abort, 'refused'); end")
    answer = await receiver.send(path, [b'{"how": "registered", "here": true}'], headers=[internal_token])
    assert (answer.status, answer.detail) == (503, "The database could not record it")


# Reading


def test_counts_are_added_up_since_a_time(sqlite, read):
    now = datetime.now(UTC)
    for minutes, event, extra in (
        (1, REFUSED, {"conn_id": CONN_ID, "reason": "token", "count": 2}),
        (2, REFUSED, {"conn_id": CONN_ID, "reason": "token", "count": 3}),
        (3, REFUSED, {"conn_id": CONN_ID, "reason": "json", "count": 4}),
        (3, REFUSED, {"conn_id": "", "reason": "token", "count": 5}),
        (4, MISSED, {"conn_id": CONN_ID, "count": 6}),
        (5, MISSED, {"conn_id": CONN_ID, "count": 7}),
        (61, REFUSED, {"conn_id": CONN_ID, "reason": "old", "count": 8}),
        (61, MISSED, {"conn_id": ODD, "count": 9}),
        (1, "cli_webserver", {"conn_id": CONN_ID, "reason": "token", "count": 10}),
    ):
        add(sqlite, event, extra, now - timedelta(minutes=minutes))
    found = read(now - timedelta(hours=1))
    assert found.refused == {CONN_ID: {"token": 5, "json": 4}, "": {"token": 5}}
    assert found.missed == {CONN_ID: 13}
    assert not found.is_cut
    assert not read(limit=6).is_cut
    # With too many rows, it is the newest ones that are read.
    found = read(limit=2)
    assert (found.refused, found.missed, found.is_cut) == ({CONN_ID: {"token": 5}}, {}, True)


def test_newest_registration_of_each_connection_is_found_however_old(sqlite, read):
    now = datetime.now(UTC)
    for days, conn_id, here in ((900, ODD, True), (3, CONN_ID, True), (2, CONN_ID, False), (4, CONN_ID, False)):
        add(sqlite, REGISTERED, {"conn_id": conn_id, "here": here}, now - timedelta(days=days))
    expected = {ODD: (now - timedelta(days=900), True), CONN_ID: (now - timedelta(days=2), False)}
    assert read(limit=1).registered == expected
    assert not read(limit=1).is_cut


@pytest.mark.parametrize(
    "extra",
    [
        None,
        "",
        "no JSON",
        "[]",
        "null",
        '{"conn_id": "\\ud800", "reason": "token", "count": 1, "here": true}',
        {"reason": "token", "count": 1, "here": True},
        {"conn_id": None, "reason": "token", "count": 1, "here": True},
        {"conn_id": 7, "reason": "token", "count": 1, "here": True},
        {"conn_id": CONN_ID, "reason": None, "count": "1", "here": "true"},
        {"conn_id": CONN_ID, "reason": 7, "count": 0, "here": 1},
        {"conn_id": CONN_ID, "reason": "token", "count": -1},
        {"conn_id": CONN_ID, "reason": "token", "count": 1.5},
        {"conn_id": CONN_ID, "reason": "token", "count": True},
    ],
)
def test_row_that_cannot_be_read_is_skipped(sqlite, read, extra):
    for event in (REFUSED, MISSED, REGISTERED):
        add(sqlite, event, extra)
    add(sqlite, REFUSED, {"conn_id": CONN_ID, "reason": "token", "count": 1, "later": "more"})
    found = read()
    assert (found.refused, found.missed, found.registered) == ({CONN_ID: {"token": 1}}, {}, {})


def test_reading_uses_an_index(sqlite, read):
    from airflow import settings  # noqa: PLC0415 - a test that is skipped needs none

    for number in range(50):
        add(sqlite, f"cli_{number}", None)
    plans = []

    def explain(connection, _, text, parameters, ___, ____):
        if text.startswith("SELECT"):
            plan = connection.exec_driver_sql(f"explain query plan {text}", parameters)
            plans.append("; ".join(row[-1] for row in plan))

    sql_event.listen(settings.engine, "before_cursor_execute", explain)
    read()
    assert len(plans) == 2
    for plan in plans:
        assert "USING INDEX idx_log_" in plan
        assert "SCAN log" not in plan
