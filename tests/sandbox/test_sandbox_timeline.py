"""The payload history and the progress as time passes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from airflow_provider_bankconnect.sandbox import Sandbox, SimulatedClock, Statement
from airflow_provider_bankconnect.sandbox.models import ANALYSES


def test_a_statement_is_processing_until_it_is_completed(client, clock):
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", after=10))
    assert client.analysis("e")["progress"] == [
        {"status": "processing", "statement_id": "s", "source": "online", "message": None}
    ]
    assert client.analysis("e")["transactions"] == []
    assert client.history("l") == []
    clock.advance(10)
    assert client.statuses("e") == ["completed"]
    assert client.history("l") == [
        {
            "entity_id": "e",
            "statement_id": "s",
            "link_id": "l",
            "progress": "completed",
            "reason": "",
            "date_time": clock().strftime("%Y-%m-%d %H:%M:%S"),
        }
    ]


def test_a_failed_statement_has_its_reason_in_the_history_and_in_the_progress(client):
    client.box.play(Statement(link_id="l", entity_id="e", mode="pdf", progress="failed", reason="Password protected"))
    (item,) = client.analysis("e")["progress"]
    assert (item["status"], item["source"], item["message"]) == ("failed", "pdf", "Password protected")
    assert client.history("l")[0]["reason"] == "Password protected"
    assert client.analysis("e")["transactions"] == []


def test_a_failed_login_is_in_the_history_and_never_in_progress(client, clock):
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="", progress="failed", after=5))
    clock.advance(5)
    (row,) = client.history("l")
    assert (row["statement_id"], row["progress"], row["reason"]) == ("", "failed", "Incorrect user ID or password")
    assert client.statuses("e") == []


def test_two_equal_failed_logins_are_two_rows(client):
    for _ in range(2):
        client.box.play(Statement(link_id="l", entity_id="e", statement_id="", progress="failed"))
    first, second = client.history("l")
    assert first == second


def test_a_failed_login_without_an_entity_has_a_blank_one_and_creates_none(client, clock, eventually):
    client.register()
    client.box.play(Statement(link_id="l", entity_id="", statement_id="", progress="failed", after=5))
    assert client.history("l") == []
    clock.advance(5)
    (row,) = client.history("l")
    assert (row["entity_id"], row["statement_id"], row["progress"]) == ("", "", "failed")
    eventually(lambda: client.box.inbox)
    assert client.box.inbox[0].body == {name: row[name] for name in row if name != "date_time"}
    assert client.get("entity/?link_id=l").json()["count"] == client.get("entity/").json()["count"] == 0


def test_a_later_statement_of_the_same_link_has_an_entity(client):
    client.box.play(Statement(link_id="l", entity_id="", statement_id="", progress="failed"))
    played = client.box.play(Statement(link_id="l"))
    assert [row["entity_id"] for row in client.history("l")] == [played.entity_id, ""]
    assert client.get("entity/?link_id=l").json()["count"] == 1


def test_the_link_of_a_login_without_an_entity_is_known_before_it_fails(serve):
    login = Statement(link_id="l", entity_id="", statement_id="", progress="failed", after=100)
    with serve(unknown_link="404", statements=[login]) as client:
        assert client.history("l") == []


def test_a_statement_without_a_link_is_in_the_progress_and_never_in_the_history(client):
    client.box.play(Statement(entity_id="e", statement_id="s", mode="pdf"))
    assert client.statuses("e") == ["completed"]
    assert client.get("entity/webhook_payloads/").json()["payloads"] == []


def test_a_failed_statement_that_is_processed_again_becomes_completed(client, clock):
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", progress="failed", after=5))
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", begins=10, after=20))
    seen = []
    for _ in range(5):
        seen.append(client.statuses("e"))
        clock.advance(5)
    assert seen == [["processing"], ["failed"], ["processing"], ["processing"], ["completed"]]
    assert [row["progress"] for row in client.history("l")] == ["completed", "failed"]


def test_a_second_run_without_begins_shows_only_its_end(client, clock):
    client.box.play(Statement(entity_id="e", statement_id="s", progress="failed", after=5))
    client.box.play(Statement(entity_id="e", statement_id="s", after=20))
    clock.advance(10)
    assert client.statuses("e") == ["failed"]
    clock.advance(10)
    assert client.statuses("e") == ["completed"]


def test_each_analysis_has_its_own_progress(client, clock):
    client.box.play(Statement(entity_id="e", after=5, later={"identity": 30}))
    clock.advance(5)
    assert (client.statuses("e"), client.statuses("e", "identity")) == (["completed"], ["processing"])
    assert client.analysis("e", "identity")["identity"] == []
    clock.advance(30)
    assert client.statuses("e", "identity") == ["completed"]


def transaction_statuses(client):
    return [item.get("transaction_status", "absent") for item in client.analysis("e", "identity")["progress"]]


@pytest.mark.parametrize("progress", ["completed", "failed"])
def test_identity_has_the_status_of_the_transactions(client, clock, progress):
    client.box.play(Statement(entity_id="e", after=5, progress=progress, later={"transactions": 30, "identity": 2}))
    seen = []
    for seconds in (5, 2, 28, 0):
        seen.append((*client.statuses("e", "identity"), *transaction_statuses(client), *client.statuses("e")))
        clock.advance(seconds)
    assert seen == [
        ("processing", "processing", "processing"),
        ("processing", "processing", "processing"),
        (progress, "processing", "processing"),
        (progress, progress, progress),
    ]


def test_only_identity_has_a_transaction_status(client):
    client.box.play(Statement(entity_id="e", processing_as="null", after=5))
    assert transaction_statuses(client) == ["processing"]
    for analysis in ANALYSES:
        (item,) = client.analysis("e", analysis)["progress"]
        assert ("transaction_status" in item) == (analysis == "identity")


def test_an_old_account_has_no_transaction_status(serve):
    with serve(transaction_status="absent", statements=[Statement(entity_id="e")]) as client:
        client.box.progress("e", [{"status": "completed", "statement_id": "fixed"}])
        assert transaction_statuses(client) == ["absent", "absent"]


def test_a_transaction_status_that_runs_ahead_ends_with_the_statement(serve, clock):
    statement = Statement(link_id="l", entity_id="e", after=5, later={"transactions": 30, "identity": 30})
    with serve(clock=clock, transaction_status="ahead", statements=[statement]) as client:
        assert transaction_statuses(client) == ["processing"]
        clock.advance(5)
        assert len(client.history("l")) == 1
        assert (transaction_statuses(client), client.statuses("e")) == (["completed"], ["processing"])


def test_the_transaction_status_follows_a_fixed_progress_of_the_transactions(client):
    client.box.play(Statement(entity_id="e", statement_id="s"))
    client.box.progress("e", [{"status": "processing", "statement_id": "s"}])
    assert transaction_statuses(client) == ["processing"]
    client.box.progress("e", [{"status": "failed", "statement_id": "s"}, {"status": None, "statement_id": ["odd"]}])
    assert transaction_statuses(client) == ["failed", "processing"]
    assert client.statuses("e", "identity") == ["completed", None]
    client.box.progress("e", [])
    assert transaction_statuses(client) == ["processing"]


def test_a_fixed_progress_of_identity_stays_unchanged(client):
    client.box.play(Statement(entity_id="e", statement_id="s"))
    items = [{"status": "odd", "statement_id": "s"}]
    client.box.progress("e", items, analysis="identity")
    client.box.progress("e", [{"status": "failed", "statement_id": "s"}])
    assert client.analysis("e", "identity")["progress"] == items


def test_an_unknown_transaction_status_is_refused():
    with pytest.raises(ValueError, match="transaction_status: 'late' is unknown; allowed: sent, absent, ahead"):
        Sandbox(transaction_status="late")


def test_a_status_may_be_null_while_the_statement_is_processed(client):
    client.box.play(Statement(entity_id="e", after=5, processing_as="null"))
    assert client.statuses("e") == [None]


def test_the_history_is_newest_first(client, clock):
    for after in (20, -50, 10):
        client.box.play(Statement(link_id="l", statement_id=str(after), after=after))
    clock.advance(60)
    assert [row["statement_id"] for row in client.history("l")] == ["20", "10", "-50"]


def test_of_two_rows_of_one_second_the_later_comes_first_and_times_are_whole_seconds(client):
    moment = datetime(2026, 11, 23, 10, tzinfo=UTC)
    client.box.payload(link_id="l", statement_id="a", date_time=moment + timedelta(milliseconds=900))
    client.box.payload(link_id="l", statement_id="b", date_time=moment)
    assert [(row["statement_id"], row["date_time"]) for row in client.history("l")] == [
        ("b", "2026-11-23 10:00:00"),
        ("a", "2026-11-23 10:00:00"),
    ]


def test_date_times_are_written_in_the_configured_zone(serve):
    start = datetime(2026, 11, 23, 10, tzinfo=UTC)
    with serve(timezone="Asia/Kolkata", clock=SimulatedClock(start)) as client:
        client.box.play(Statement(link_id="l"))
        client.box.payload(link_id="l", date_time=start - timedelta(hours=1))
        client.box.payload(link_id="l", date_time="yesterday")
        assert [row["date_time"] for row in client.history("l")] == [
            "yesterday",
            "2026-11-23 15:30:00",
            "2026-11-23 14:30:00",
        ]


def test_a_raw_row_is_kept_unchanged_even_under_another_link(client):
    client.box.payload(
        link_id=None, entity_id="e", statement_id="s", progress=None, reason=None, filed_under="l", event_name="?"
    )
    (row,) = client.history("l")
    assert row.pop("date_time")
    assert row == {
        "statement_id": "s", "entity_id": "e", "link_id": None, "progress": None, "reason": None, "event_name": "?"
    }  # fmt: skip


def test_a_naive_date_time_is_refused(box):
    with pytest.raises(ValueError, match="aware"):
        box.payload(link_id="l", date_time=datetime(2026, 1, 1))  # noqa: DTZ001


def test_the_progress_can_be_set_to_any_items(client):
    client.box.play(Statement(entity_id="e"))
    client.box.progress("e", [{"status": "odd", "statement_id": None}], analysis="salary")
    assert client.analysis("e", "salary")["progress"] == [{"status": "odd", "statement_id": None}]
    assert client.statuses("e") == ["completed"]


def test_completed_statements_of_a_progress_that_was_set_have_transactions(client):
    client.box.progress("new", [{"status": "completed", "statement_id": "s"}])
    assert client.box.transaction_count("new") > 0


def test_missing_ids_are_generated(box):
    first = box.play(Statement(link_id="l"))
    second = box.play(Statement(link_id="l"))
    other = box.play(Statement(link_id="m"))
    assert first.entity_id == second.entity_id != other.entity_id
    assert len({first.statement_id, second.statement_id, other.statement_id, ""}) == 4


def test_seconds_count_from_the_call_of_play(client, clock):
    clock.advance(100)
    client.box.play(Statement(link_id="l", after=10))
    clock.advance(9)
    assert client.history("l") == []
    clock.advance(1)
    assert len(client.history("l")) == 1


def test_the_timeline_works_in_real_time(eventually):
    with Sandbox() as box:
        before = time.time()
        box.play(Statement(entity_id="e", after=0.2, transactions=3))
        eventually(lambda: box.transaction_count("e") == 3)
        assert time.time() - before >= 0.2


@pytest.mark.parametrize("omits", [False, True])
def test_history_omits_unsent_leaves_out_statements_without_a_webhook(serve, omits):
    with serve(history_omits_unsent=omits) as client:
        client.box.play(Statement(link_id="l", statement_id="past", after=-60))
        client.box.play(Statement(link_id="l", statement_id="no endpoint"))
        client.register()
        client.box.play(Statement(link_id="l", statement_id="suppressed", mode="pdf"))
        client.box.play(Statement(link_id="l", statement_id="sent"))
        found = {row["statement_id"] for row in client.history("l")}
    assert found == ({"past", "sent"} if omits else {"past", "no endpoint", "suppressed", "sent"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"statement_id": ""}, "failed login"),
        ({"statement_id": "", "progress": "failed", "mode": "pdf"}, "failed login"),
        ({"entity_id": ""}, "blank entity_id is for a failed login only"),
        ({"entity_id": "", "statement_id": "s", "progress": "failed"}, "blank entity_id is for a failed login only"),
        ({"entity_id": "", "statement_id": ""}, "failed login"),
        ({"pdf_password": "p"}, "pdf_password is for a manual upload"),
        ({"begins": 5, "after": 1}, "begins"),
        ({"link_id": ""}, "at least 1 character"),
        ({"after": float("nan")}, "finite"),
        ({"later": {"balances": 1}}, "identity"),
    ],
)
def test_an_invalid_statement_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Statement(**fields)


def test_the_simulated_clock_refuses_to_go_back(clock):
    with pytest.raises(ValueError, match="negative"):
        clock.advance(-1)


def test_any_callable_can_be_the_clock(serve, eventually):
    now = [datetime(2026, 11, 23, tzinfo=UTC)]
    with serve(clock=lambda: now[0]) as client:
        client.register()
        client.box.play(Statement(link_id="l", after=3600))
        now[0] += timedelta(hours=1)
        eventually(lambda: client.box.inbox)


def test_an_unknown_zone_is_refused_by_name():
    with pytest.raises(ValueError, match=r"timezone: 'Nowhere/Land'.*Asia/Kolkata"):
        Sandbox(timezone="Nowhere/Land")


def test_a_timeline_that_waits_for_a_request_begins_with_it(serve):
    clock = SimulatedClock()
    statement = Statement(link_id="l", after=20)
    with serve(statements=[statement], waits_for_request=True, clock=clock) as client:
        clock.advance(3600)
        client.control("GET", "requests")
        assert client.history("l") == []
        clock.advance(19)
        assert client.history("l") == []
        clock.advance(1)
        assert [row["progress"] for row in client.history("l")] == ["completed"]
