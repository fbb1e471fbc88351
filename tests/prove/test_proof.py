"""The theorem of docs/proof.rst on 200 schedules. ``make prove`` checks 10,000, and kills the mutants."""

from __future__ import annotations

from pathlib import Path

import naive
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from named_mutants import MUTANTS, Change, planted
from over_tls import check_over_tls
from proof import kill, prove, smallest
from schedules import STARTS, Play, Schedule, Switch, Wait, draw
from simulation import play
from theorem import BrokenError

from airflow_provider_bankconnect import gate, records


@settings(
    max_examples=200,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, 9_999))
def test_theorem_holds_for_200_of_the_schedules(seed):
    try:
        prove(draw(seed))
    except BrokenError as error:
        raise BrokenError(f"{error}\n  make prove SEED={seed}") from None


@pytest.mark.parametrize("seed", range(5))
def test_each_poke_has_the_same_result_over_tls(seed):
    check_over_tls(draw(seed))


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_seed_is_played_the_same_each_time(seed):
    one, other = play(draw(seed)), play(draw(seed))
    assert one.waits == other.waits
    assert one.replies == other.replies
    assert len(one.replies) > 5


@pytest.mark.parametrize("mode", ["deferred", "poke"])
@pytest.mark.parametrize(
    ("network", "found", "until"),
    [
        # After three errors in a row, five minutes of 404, 30 minutes of a connection, and one silence.
        ({"switches": (Switch(150.0, "503"),)}, "switch 503", 420.0),
        ({"switches": (Switch(150.0, "404"),)}, "switch 404", 540.0),
        ({"switches": (Switch(150.0, "old"),)}, "switch old", 1860.0),
        ({"forgets_after": 20.0}, "forgotten", 130.0),
        ({"forgets_after": 70.0}, "forgotten", 0.0),
    ],
)
def test_kept_connections_lead_where_they_led(mode, network, found, until):
    wait = Wait("wait", 0.003, {"link_id": "link-0", "expected_statements": 1, "failure_grace": 0.0}, "fail", 60.0, 9e3)
    plays = (Play("link-0", "customer-0", "s0", 0.0, 3000.0, "completed"),)
    nothing = {"extra_rows": (), "deliveries": (), "faults": (), "kills": (), "unknown_is_404": False, "repeats": 0.0}
    zones = {"vendor_zone": "UTC", "our_zone": "UTC"}
    schedule = Schedule(seed=1, start=STARTS[0], plays=plays, waits=(wait,), **zones, **nothing, **network)
    trace = play(schedule, mode)
    old = [reply.sent for reply in trace.replies if found in reply.faults]
    assert until - 130 < max(old, default=0.0) <= until
    if found == "forgotten":
        assert len(old) == (until > 0)
    prove(schedule)


@pytest.mark.parametrize("name", MUTANTS)
def test_source_text_of_a_named_mutant_exists(name):
    with planted(name):
        pass


def test_mutant_is_planted_in_each_module_that_has_imported_the_function():
    before = gate.judge_history
    with planted("believes a webhook's body"):
        assert records.judge_history is gate.judge_history is not before
    assert records.judge_history is gate.judge_history is before


def test_mutant_whose_source_text_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setitem(MUTANTS, "ignores since", (Change("gate:why_not_considered", "no such text", ""),))
    with (
        pytest.raises(LookupError, match="gate:why_not_considered has 'no such text' 0 times"),
        planted("ignores since"),
    ):
        pass
    monkeypatch.setitem(MUTANTS, "ignores since", (Change("gate:judge_the_history", "", ""),))
    with pytest.raises(LookupError, match="gate:judge_the_history does not exist"), planted("ignores since"):
        pass


def test_schedule_that_breaks_the_theorem_is_shrunk():
    _, seeds, _ = kill("drops the last poke")
    with planted("drops the last poke"):
        schedule, broken = smallest(draw(seeds - 1))
    assert "it did not poke at its deadline" in broken
    assert not schedule.plays
    assert not schedule.deliveries
    # Only the mutant breaks it.
    assert smallest(schedule) == (schedule, "")


def test_second_implementation_does_not_import_the_package():
    assert "airflow_provider_bankconnect" not in Path(naive.__file__).read_text(encoding="utf-8")
