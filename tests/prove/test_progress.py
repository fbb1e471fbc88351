"""``make prove`` shows how far it is, and leaves no process behind when it is ended."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import progress
import pytest
from progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_line_has_counts_seconds_and_an_estimate(clock):
    shown = Progress("Schedules", 10_000, "broken")
    assert str(shown) == "Schedules: 0 of 10,000 done, 0 broken, 0 s, time unknown"
    for number in range(2_500):
        shown.add(is_bad=number < 3)
    clock[0] += 60
    assert str(shown) == "Schedules: 2,500 of 10,000 done, 3 broken, 60 s, about 180 s left"


def test_a_new_line_every_ten_seconds_where_stdout_is_no_terminal(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    shown = Progress("Mutants", 12, "alive")
    for _ in range(25):
        clock[0] += 1
        shown.show()
    assert [line.split(", ")[2] for line in out.getvalue().splitlines()] == ["1 s", "11 s", "21 s"]


def test_the_line_is_rewritten_in_place_on_a_terminal(clock, monkeypatch):
    out = _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    shown = Progress("Mutants", 12, "alive")
    for _ in range(3):
        clock[0] += 1
        shown.show()
    shown.print("a mutant is alive")
    *lines, last = out.getvalue().replace("\033[K", "").split("\r")[1:]
    assert lines == [f"Mutants: 0 of 12 done, 0 alive, {seconds} s, time unknown"[:39] for seconds in (1, 2, 3)]
    assert last == "a mutant is alive\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_signal_ends_it_with_one_line_and_leaves_no_process(number, code, tmp_path):
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent), "--processes", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        assert "Schedules: " in process.stdout.readline()
        # Ctrl-C reaches all processes of a terminal, kill only the one that it names.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        *_, last = process.communicate(timeout=300)[0].splitlines()
        assert process.returncode == code
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert last.startswith("Stopped. Schedules: ")
    assert " of 10,000 done, 0 broken" in last
    assert not list(tmp_path.iterdir())
