"""Catch-up on many links: what is asked at once, told in batches, said on the way, and left when it ends early."""

from __future__ import annotations

import copy
import itertools
import json
import signal
from concurrent.futures import CancelledError

import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath
from receivers import CONN_ID, NEEDS_3_2

from airflow_provider_bankconnect import api, catching_up
from airflow_provider_bankconnect.api import BankConnectCertificateError, BankConnectError
from airflow_provider_bankconnect.catching_up import in_minutes
from airflow_provider_bankconnect.link_ids import BadId, LinkIds
from airflow_provider_bankconnect.operators.bankconnect import BankConnectCatchUpOperator
from airflow_provider_bankconnect.receiver.client import WebhookReceiverError
from airflow_provider_bankconnect.sandbox import Fault

pytestmark = NEEDS_3_2

# An answer of the webhook receiver, which then needs no database.
ALL_RECORDED = (200, {}, b'{"recorded": 100}')


def task(link_ids, **arguments):
    return BankConnectCatchUpOperator(task_id="catch_up", link_ids=link_ids, **arguments)


def with_statements(box, count):
    """Return so many links, each with a completed statement of the link's name."""
    links = [f"loan-{number}" for number in range(count)]
    for link_id in links:
        box.payload(link_id=link_id, statement_id=link_id, entity_id=f"entity of {link_id}")
    return links


def set_connection(monkeypatch, box, **extra):
    connection = box.connection_with(box.ca_file)
    connection["extra"] |= extra
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))


# Many links


@pytest.mark.parametrize("most", [1, 20])
def test_links_are_asked_for_at_once_as_often_as_the_connection_allows(served, box, monkeypatch, most):
    served.front.instead = ALL_RECORDED
    set_connection(monkeypatch, box, max_concurrency=most)
    box.fault(Fault(kind="delay", seconds=0.05))
    assert task([f"loan-{number}" for number in range(40)]).execute({})["links"] == 40
    assert len({call.connection for call in box.requests}) == (1 if most == 1 else most)


def test_events_are_told_in_batches(served, box):
    served.front.instead = ALL_RECORDED
    links = with_statements(box, 120)
    assert task([*links, *links]).execute({}) == {"links": 120, "completed": 120, "recorded": 200, "duplicates": 0}
    assert served.front.requests == [f"POST /bankconnect/events/{CONN_ID}"] * 2


def test_retry_after_holds_all_requests(served, box):
    served.front.instead = ALL_RECORDED
    links = with_statements(box, 30)
    box.fault(Fault(kind="delay", seconds=0.02))

    def ids():
        yield from links[:5]
        box.fault(Fault(kind="status", status=429, retry_after=2, times=3))
        yield from links[5:]

    assert task(ids()).execute({})["completed"] == 30
    refused = [call.at for call in box.requests if call.status == 429]
    assert len(refused) == 3
    # Those that were on their way when the first answer came were answered within this time.
    assert not [call for call in box.requests if refused[0] + 1 < call.at < refused[0] + 2]


@pytest.mark.usefixtures("served")
def test_failed_links_are_named_after_the_others(box, sqlite, caplog):
    links = with_statements(box, 12)
    box.fault(Fault(kind="status", status=503, times=1))
    box.fault(Fault(kind="status", status=400, times=7))
    with pytest.raises(
        BankConnectError, match=r"Could not catch up on 7 of 12 links, first 'loan-.*HTTP 400"
    ) as caught:
        task(links).execute({})
    assert str(caught.value).count("HTTP 400") == 5
    assert str(caught.value).endswith("; and 2 more")
    assert len(sqlite.recorded) == 5
    assert "12 links, 5 completed: 5 recorded, 0 duplicates" in caplog.text


@pytest.mark.usefixtures("served")
def test_refused_event_does_not_end_the_others(box, sqlite):
    links = with_statements(box, 5)
    box.payload(link_id="loan-3", statement_id="x" * 1001)
    with pytest.raises(BankConnectError, match=r"1 of 5 links, first 'loan-3': .* answered HTTP 400"):
        task(links).execute({})
    assert sorted(sqlite.recorded) == links


def test_the_rest_is_not_asked_for_while_bankconnect_is_down(served, box, monkeypatch, caplog):
    monkeypatch.setattr(api, "MAX_RETRIES", 0)
    monkeypatch.setattr(catching_up, "_MOST_UNANSWERED", 2)
    served.front.instead = ALL_RECORDED
    links = with_statements(box, 1000)
    box.fault(Fault(kind="status", status=503))
    with pytest.raises(
        BankConnectError, match=r"answered none of the last 2 links, so the rest was not asked for: .*503"
    ):
        task(links).execute({})
    assert len(box.requests) < 200
    assert "Ended early: 2 of 1,000 links, 0 recorded, 2 failed. The next run asks for all links again" in caplog.text


@pytest.mark.usefixtures("served")
def test_certificate_that_does_not_verify_ends_the_task_at_once(box, monkeypatch, caplog):
    set_connection(monkeypatch, box, verify=None)
    with pytest.raises(BankConnectCertificateError):
        task(["loan-1", "loan-2", "loan-3"]).execute({})
    assert "Ended early: 1 of 3 links" in caplog.text
    assert not box.requests


def test_log_tells_the_progress(served, box, monkeypatch, caplog):
    monkeypatch.setattr(catching_up, "_LOG_EVERY", 0.0)
    served.front.instead = ALL_RECORDED
    caplog.set_level("INFO")
    box.fault(Fault(kind="status", status=400, times=1))
    with pytest.raises(BankConnectError):
        task([f"loan-{number}" for number in range(101)]).execute({})
    assert "1 of 101 links, 0 recorded, 1 failed, " in caplog.text
    assert "100 of 101 links, 0 recorded, 1 failed, 1 min left" in caplog.text
    assert [in_minutes(seconds) for seconds in (0.1, 61, 3540.5, 5400)] == ["1 min", "2 min", "1 h 0 min", "1 h 30 min"]


# Ending early


def told_to_end():
    signal.raise_signal(signal.SIGTERM)


def interrupted():
    raise KeyboardInterrupt


def broken():
    raise LookupError("the rest of the ids")


@pytest.mark.parametrize(
    ("ending", "error"), [(told_to_end, CancelledError), (interrupted, KeyboardInterrupt), (broken, LookupError)]
)
@pytest.mark.usefixtures("served")
def test_what_was_answered_is_recorded_at_an_early_end(box, sqlite, caplog, ending, error):
    links = with_statements(box, 20)

    def ids():
        yield from links[:10]
        while len(box.requests) < 10:
            yield "loan-0"
        ending()
        yield from links[10:]

    operator = task(ids())
    usual = signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    try:
        with pytest.raises(error):
            operator.execute({})
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert len(box.requests) == 10
    recorded = sorted(sqlite.recorded)
    # Not the answers that were still on their way.
    assert recorded
    assert set(recorded) <= set(links[:10])
    assert (
        f"Ended early: {len(recorded)} links, {len(recorded)} recorded. The next run asks for all links" in caplog.text
    )
    counts = task(links).execute({})
    assert counts == {
        "links": 20, "completed": 20, "recorded": 20 - len(recorded), "duplicates": len(recorded)
    }  # fmt: skip


def test_receiver_that_goes_away_ends_the_task_at_once(served, box, sqlite, monkeypatch, caplog):
    monkeypatch.setattr(catching_up, "_MOST_EVENTS", 10)
    links = with_statements(box, 15)

    def ids():
        others = (f"other-{number}" for number in itertools.count())
        yield from links
        while not served.front.requests:
            yield next(others)
        served.front.instead = (502, {}, b"")
        yield from others

    with pytest.raises(WebhookReceiverError, match="answered HTTP 502 to a request for the webhook receiver"):
        task(ids()).execute({})
    assert len(sqlite.recorded) == 10
    assert "10 recorded. The next run asks for all links again" in caplog.text


@pytest.mark.parametrize("again", [False, True])
def test_busy_receiver_is_tried_again_unless_that_could_record_twice(served, box, sqlite, monkeypatch, again):
    monkeypatch.setattr(catching_up, "_PAUSES", (0.0,))
    links = with_statements(box, 3)
    send, answers = catching_up.send_to_receiver, iter([(503, {}, b""), None])

    def send_once_in_vain(*arguments):
        served.front.instead = next(answers)
        return send(*arguments)

    monkeypatch.setattr(catching_up, "send_to_receiver", send_once_in_vain)
    if again:
        with pytest.raises(WebhookReceiverError, match="HTTP 503"):
            task(links, again=True).execute({})
    else:
        assert task(links).execute({})["recorded"] == 3
        assert sorted(sqlite.recorded) == links


@pytest.mark.usefixtures("sqlite")
def test_connection_that_the_api_server_does_not_know_ends_the_task_at_once(served, box, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_ONLY_OF_WORKERS", box.connection_json)
    served.front.instead = (409, {}, b"")
    links = with_statements(box, 30)
    with pytest.raises(WebhookReceiverError, match="check that the connection exists on the API server too"):
        task(links, bankconnect_conn_id="only_of_workers").execute({})
    assert len(served.front.requests) == 1


# What link_ids may be


def test_file_has_one_id_a_line(tmp_path):
    file = tmp_path / "links.txt"
    file.write_bytes("\ufeffloan-1\r\n\r\n  ऋण 2 \r\nloan-1\r\n\t\nloan-3".encode())
    for given in (f"file://{file}", ObjectStoragePath(f"file://{file}")):
        ids = LinkIds(given)
        assert list(ids) == ["loan-1", "ऋण 2", "loan-3"]
        assert ids.expected == 4
        assert not ids.is_counted
    file.write_bytes(b"")
    assert list(LinkIds(f"file://{file}")) == []


def test_bad_line_is_named_by_its_number(tmp_path):
    file = tmp_path / "links.txt"
    file.write_bytes(b"a\n\xff\xfeb\n" + b"x" * 200_000 + b"\nNone\nb\0\nc\n" + b"y" * 5000)
    found = list(LinkIds(f"file://{file}"))
    assert [one for one in found if isinstance(one, str)] == ["a", "c"]
    bad = [one for one in found if isinstance(one, BadId)]
    assert [one.where for one in bad] == ["line 2", "line 3", "line 4", "line 5", "line 7"]
    assert bad[0].problem == "it is not UTF-8"
    assert bad[1].problem.startswith("it is longer than 4096 bytes")
    assert "must not be blank" in bad[2].problem
    assert bad[3].problem.startswith("it has a control character")


@pytest.mark.usefixtures("served")
def test_file_is_caught_up_on_and_its_bad_lines_fail_the_task(box, sqlite, tmp_path):
    with_statements(box, 3)
    file = tmp_path / "links.txt"
    file.write_text("loan-0\nNone\nloan-2\n", encoding="utf-8")
    with pytest.raises(BankConnectError, match=r"1 of 3 links, first line 2: link_ids must not be blank"):
        task(f"file://{file}").execute({})
    assert sorted(sqlite.recorded) == ["loan-0", "loan-2"]
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        task(f"file://{tmp_path}/no-such-file").execute({})
    with pytest.raises(ValueError, match="link_ids: there is no filesystem for ftps2://"):
        task("ftps2://somewhere/links.txt").execute({})


def test_what_is_no_list_of_ids_is_refused_with_a_hint():
    for wrong in ("/data/links.txt", b"loan-1", {"loan-1": 1}, 5):
        with pytest.raises(ValueError, match=r"link_ids must be a list of link ids, not .* file:///data/links.txt"):
            LinkIds(wrong)


def test_iterator_is_read_in_the_task_and_once(served, box):
    def ids():
        read.append(1)
        yield from ["loan-1\n", 4711, None, " loan-1"]

    read = []
    with DAG(dag_id="iterator", schedule=None):
        operator = task(ids())
    # Airflow serializes arguments as text. A memory address would make each parsing another version of the DAG.
    assert str(operator.link_ids).endswith("ids>")
    assert copy.deepcopy(operator.link_ids) is operator.link_ids
    copied = copy.copy(operator)
    copied.render_template_fields({})
    assert not read
    served.front.instead = ALL_RECORDED
    with pytest.raises(BankConnectError, match=r"1 of 3 links, first item 3: link_ids must be text, not NoneType"):
        copied.execute({})
    assert sorted(call.query["link_id"] for call in box.requests) == ["4711", "loan-1"]
    with pytest.raises(ValueError, match="used up by an earlier try"):
        operator.execute({})
