"""The pure parts of `make fleet`: they say what is right, so that a wrong run must not pass them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fleet_plan import CONNECTIONS, FATES, METRICS, STATES, Metrics, Run, judge, plan
from services import LiveError, Nginx, Redis, require

SHORT = timedelta(seconds=90)
BEGAN = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def customers():
    planned = plan(40, 30)
    for one in planned:
        one.over_at = BEGAN + timedelta(seconds=one.seconds) if one.fate != "never" else None
        one.polled = SHORT.total_seconds()
    return planned


def right(customer):
    """The run of a customer whose gate has ended as it must."""
    return run_of(customer, customer.dag_id)


def run_of(customer, dag_id):
    state = customer.state(dag_id)
    work = "success" if state == "success" else "skipped"
    return Run(dag_id, customer.link, state, work, customer.over_at or BEGAN + SHORT)


def test_customers_come_in_all_ways_with_all_fates_to_both_accounts_and_are_the_same_each_time(customers):
    assert Counter(one.way for one in customers) == {"by hand": 16, "by webhook": 16, "caught up": 8}
    assert {(one.way, one.fate) for one in customers} == {(way, fate) for way, of in FATES.items() for fate in of}
    assert {one.conn_id for one in customers if one.way == "by webhook"} == set(CONNECTIONS)
    assert len({one.link for one in customers}) == 40
    assert [one.seconds for one in plan(40, 30)] == [one.seconds for one in customers]


def test_one_right_run_for_each_customer_is_right(customers):
    assert judge(customers, map(right, customers), [], SHORT) == []


@pytest.mark.parametrize(
    ("fate", "change", "problem"),
    [
        (fate, change, problem)
        for fate in sorted(STATES)
        for change, problem in (
            (lambda _: [], "has not one run"),
            (lambda run: [run, run], "has not one run"),
            (lambda run: [replace(run, dag_id=run.dag_id + "_2")], "has not one run"),
            (lambda run: [replace(run, wait="deferred")], "ended as deferred"),
            (lambda run: [replace(run, work={"success": None}.get(run.work, "success"))], "the task after the gate"),
        )
    ],
)
def test_a_customer_without_a_run_with_two_or_with_a_wrong_gate_is_named(customers, fate, change, problem):
    one = next(one for one in customers if one.fate == fate and one.way != "caught up")
    runs = [run for run in map(right, customers) if run.link != one.link] + change(right(one))
    said = judge(customers, runs, [one.link] if one.way == "by webhook" else [], SHORT)
    assert {line.partition(" ")[0].strip(",") for line in said} == {one.link}
    assert problem in said[0]


def test_a_gate_that_ends_before_its_statement_is_named(customers):
    one = next(one for one in customers if one.fate == "completes")
    runs = [replace(run, ended=BEGAN) if run.link == one.link else run for run in map(right, customers)]
    (said,) = judge(customers, runs, [], SHORT)
    assert "before its statement" in said


@pytest.mark.parametrize("seconds", [80, 300])
def test_a_deadline_that_came_early_or_began_anew_is_named(customers, seconds):
    one = next(one for one in customers if one.fate == "never")
    one.polled = seconds
    (said,) = judge(customers, map(right, customers), [], SHORT)
    assert said.startswith(one.link)
    assert "polled for" in said


@pytest.mark.parametrize(("lasted", "is_right"), [(100, False), (195, True)])
def test_airflow_itself_ends_a_wait_without_a_last_poke_only_two_minutes_after_the_deadline(
    customers, lasted, is_right
):
    one = next(one for one in customers if one.fate == "never")
    one.polled, one.began = 60, BEGAN
    ended = replace(right(one), ended=BEGAN + timedelta(seconds=lasted))
    runs = [ended if run.link == one.link else run for run in map(right, customers)]
    assert bool(judge(customers, runs, [], SHORT)) is not is_right


def test_a_webhook_of_a_customer_started_by_hand_starts_one_more_run_which_is_judged_too(customers):
    one = next(one for one in customers if one.fate == "fails")
    runs = [*map(right, customers), run_of(one, one.on_webhook)]
    assert judge(customers, runs, [one.link], SHORT) == []
    assert "has not one run" in judge(customers, runs[:-1], [one.link], SHORT)[0]
    assert "has not one run" in judge(customers, [*runs, runs[-1]], [one.link], SHORT)[0]
    assert "ended as failed" in judge(customers, [*runs[:-1], replace(runs[-1], wait="failed")], [one.link], SHORT)[0]


def test_a_failed_statement_whose_webhook_got_no_answer_may_have_no_run(customers):
    one = next(one for one in customers if one.may_be_lost)
    runs = [run for run in map(right, customers) if run.link != one.link]
    assert judge(customers, runs, [], SHORT) == []


def test_a_run_of_nobody_is_named(customers):
    thief = Run("on_webhook_bankconnect_default", "thief", "success", "success")
    (said,) = judge(customers, [*map(right, customers), thief], [], SHORT)
    assert "thief" in said


def of_every_metric():
    metrics = Metrics()
    metrics.add(b"\n".join(f"airflow.bankconnect.{metric}:1|c".encode() for metric in METRICS))
    return metrics


def test_counters_of_statsd_are_added_up_over_packets_lines_tags_and_sample_rates():
    metrics = Metrics()
    metrics.add(b"airflow.bankconnect.polls,conn_id=one:2|c\nairflow.bankconnect.polls,conn_id=two:3|c")
    metrics.add(b"airflow.bankconnect.polls:1|c|@0.5\nairflow.bankconnect.polls_of_another:9|c\n")
    metrics.add(b"airflow.bankconnect.wait_seconds,conn_id=one:31500.5|ms\nairflow.bankconnect.open_waits:12|g")
    assert (metrics.total("polls"), metrics.total("wait_seconds"), metrics.total("open_waits")) == (7, 1, 1)
    assert metrics.unread == []


def test_metrics_are_right_only_if_all_arrived_and_the_recorded_events_add_up():
    assert of_every_metric().judge(2, killed=False) == []
    assert len(Metrics().judge(0, killed=False)) == len(METRICS)
    assert "has 3" in of_every_metric().judge(3, killed=False)[0]
    assert of_every_metric().judge(3, killed=True) == []
    assert "has 1" in of_every_metric().judge(1, killed=True)[0]


@pytest.mark.parametrize("line", [b"no value", b"name:|c", b"name:x|c", b":1|c", b"name:1", b"name:1|c|@0", b"\xff:1"])
def test_a_line_that_is_none_of_statsd_is_shown(line):
    metrics = of_every_metric()
    metrics.add(line)
    (said,) = metrics.judge(2, killed=False)
    assert "a line that is none" in said


def test_missing_servers_are_named_with_what_installs_them():
    class First(Redis):
        name = "redis-of-nowhere"

    class Second(Nginx):
        name = "nginx-of-nowhere"

    with pytest.raises(LiveError, match=r"^Missing: redis-server, nginx\. .* scripts/install-system-packages\.sh$"):
        require(First, Second)
