"""The theorem of docs/proof.rst, of two hundred schedules. ``make prove`` does ten thousand, and kills the mutants."""

from __future__ import annotations

from pathlib import Path

import naive
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from named_mutants import MUTANTS, Change, planted
from over_tls import check_over_tls
from proof import kill, prove, smallest
from schedules import draw
from simulation import play
from theorem import BrokenError


@settings(
    max_examples=200,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, 9_999))
def test_the_theorem_holds_of_two_hundred_of_the_ten_thousand_schedules(seed):
    try:
        prove(draw(seed))
    except BrokenError as error:
        raise BrokenError(f"{error}\n  make prove SEED={seed}") from None


@pytest.mark.parametrize("seed", range(5))
def test_over_tls_from_the_sandbox_a_schedule_comes_to_the_same_look_by_look(seed):
    check_over_tls(draw(seed))


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_a_seed_plays_the_same_each_time(seed):
    one, other = play(draw(seed)), play(draw(seed))
    assert one.waits == other.waits
    assert one.replies == other.replies
    assert len(one.replies) > 5


@pytest.mark.parametrize("name", MUTANTS)
def test_what_a_named_mutant_changes_is_still_there(name):
    with planted(name):
        pass


def test_a_mutant_whose_code_is_not_there_any_more_is_told(monkeypatch):
    monkeypatch.setitem(MUTANTS, "ignores since", (Change("gate:why_out_of_sight", "words that nobody wrote", ""),))
    with (
        pytest.raises(LookupError, match="gate:why_out_of_sight has 'words that nobody wrote' 0 times"),
        planted("ignores since"),
    ):
        pass
    monkeypatch.setitem(MUTANTS, "ignores since", (Change("gate:judge_the_history", "", ""),))
    with pytest.raises(LookupError, match="there is no gate:judge_the_history any more"), planted("ignores since"):
        pass


def test_a_schedule_that_breaks_the_theorem_is_made_small_and_told():
    _, seeds, _ = kill("drops the last look")
    with planted("drops the last look"):
        schedule, said = smallest(draw(seeds - 1))
    assert "it did not look at its deadline" in said
    assert not schedule.plays
    assert not schedule.bells
    # Nothing of it is wrong but what was planted.
    assert smallest(schedule) == (schedule, "")


def test_the_second_reading_shares_nothing_with_the_first():
    assert "airflow_provider_bankconnect" not in Path(naive.__file__).read_text(encoding="utf-8")
