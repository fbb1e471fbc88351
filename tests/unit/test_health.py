"""What the page says about the webhooks of a connection, and what it tells the reader to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_bankconnect.ui import words
from airflow_provider_bankconnect.ui.health import REASONS, Health, problems_of_untaken

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
RECENT, OLD = NOW - timedelta(minutes=5), NOW - timedelta(days=3)


@dataclass
class Traffic:
    last: datetime | None = RECENT
    hours: tuple[int, ...] = (1,) * 24


@dataclass
class Dag:
    dag_id: str = "on_webhook"
    is_paused: bool = False
    is_stale: bool = False
    is_partitioned: bool = True


def problems(**changes: Any) -> list[tuple[str, str]]:
    given = {"conn_id": "bank", "traffic": Traffic(), "dags": (Dag(),)} | changes
    return [(level, text) for level, text in Health(**given).problems(NOW)]


def test_connection_with_webhooks_and_a_dag_has_no_problem():
    assert problems() == []
    assert problems(registered=(OLD, True)) == []


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"dags": ()}, "error", "No DAG is scheduled by the webhooks"),
        ({"dags": (Dag(is_paused=True),)}, "error", "on_webhook is paused: webhooks start no run. Unpause"),
        (
            {"dags": (Dag("a", is_paused=True), Dag("b", is_paused=True))},
            "error",
            "a, b are paused: webhooks start no run",
        ),
        ({"dags": (Dag(), Dag("b", is_paused=True))}, "warning", "b: paused, and gets no run"),
        ({"dags": (Dag(is_stale=True),)}, "error", "Airflow cannot parse on_webhook now"),
        ({"dags": (Dag(is_partitioned=False),)}, "warning", "Use PartitionedAssetTimetable"),
        ({"traffic": Traffic(last=None)}, "error", "no registration of the webhook endpoint is on record"),
        ({"registered": (NOW, False)}, "error", "told to send its webhooks elsewhere"),
        ({"registered": (OLD, True), "traffic": Traffic(last=None)}, "warning", "since the webhook endpoint was"),
        ({"without_run": 1}, "warning", "1 customer had a webhook more than 5 minutes ago, and no run"),
        ({"without_run": 2000}, "warning", "2,000 customers had a webhook"),
        ({"missed": 3}, "warning", "3 completed statements of the last day had no webhook here"),
        ({"refused": {"token": 7}}, "warning", "7 requests of the last day refused (token): the token in the address"),
        ({"refused": {"of the future": 1}}, "warning", "see the log of the API server"),
    ],
)
def test_problem_is_named_with_what_to_do(changes, level, said):
    [(found, text)] = problems(**changes)
    assert found == level
    assert said in text


@pytest.mark.parametrize(
    "changes",
    [
        # It was registered a moment ago.
        {"registered": (RECENT, True), "traffic": Traffic(last=None)},
        {"registered": (RECENT, True), "traffic": Traffic(last=OLD)},
        # Webhooks arrive in spite of it: somebody has registered it again by hand.
        {"registered": (OLD, False)},
    ],
)
def test_registration_is_no_problem_while_webhooks_can_still_come(changes):
    assert problems(**changes) == []


def test_errors_come_first_and_the_most_frequent_refusal_before_the_others():
    found = problems(dags=(), missed=1, refused={"json": 1, "token": 9})
    assert [level for level, _ in found] == ["error", "warning", "warning", "warning"]
    assert [text.partition(" ")[0] for _, text in found] == ["No", "1", "9", "1"]


def untaken(*, runs: bool = True, **queues: int) -> list[str]:
    return [text for _, text in problems_of_untaken(Untaken({name or None: n for name, n in queues.items()}, runs))]


@dataclass
class Untaken:
    queues: dict[str | None, int]
    runs: bool


def test_waits_without_a_triggerer_are_named_by_queue_with_how_to_start_one():
    first, second = untaken(**{"": 1, "slow": 2000})
    assert first.startswith("2,000 open waits have had no running triggerer for a minute: nothing checks them.")
    assert "[triggerer] queues_enabled is on" in first
    assert "start one with the queue 'slow' (airflow triggerer --queues). If one runs, it has as many" in first
    assert second.startswith("1 open wait has had no running triggerer")
    assert "start one without. If one runs" in second
    assert untaken(**{"": 1}, runs=False)[0].endswith("No triggerer runs: start one")
    assert untaken() == []


def test_each_reason_that_the_receiver_gives_has_a_meaning():
    import inspect  # noqa: PLC0415
    import re  # noqa: PLC0415

    address = pytest.importorskip("airflow_provider_bankconnect.receiver.address")
    if not address.is_supported():
        pytest.skip("needs Airflow 3.2")
    from airflow_provider_bankconnect.receiver import app  # noqa: PLC0415

    given = set(re.findall(r'_RefusedError\(\w+, "(\w+)"', inspect.getsource(app)))
    assert {"token", "json"} < given
    assert given <= REASONS.keys()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59.9, "60 s"), (60, "1 min"), (7199, "119 min"), (7200, "2 h"), (172_799, "47 h")),
        (172_800, "2 d"),
    ],
)
def test_span_is_in_the_largest_unit_that_fits_twice(seconds, text):
    assert words.span(seconds) == text
    assert words.age(NOW - timedelta(seconds=seconds), NOW) == f"{text} ago"
    if seconds:
        assert words.age(NOW + timedelta(seconds=seconds), NOW) == f"in {text}"


@pytest.mark.parametrize(("number", "text"), [(0, "0 runs"), (1, "1 run"), (2000, "2,000 runs")])
def test_number_has_its_noun(number, text):
    assert words.count_of(number, "run") == text
