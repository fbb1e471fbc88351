"""The tests that the page on testing shows pass, as they are pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing.rst"


@pytest.mark.system
def test_the_shown_tests_of_a_dag_pass(tmp_path):
    blocks = re.findall(
        r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    (tmp_path / "dags").mkdir()
    for name, block in zip(("dags/loans.py", "conftest.py", "test_loans.py"), blocks, strict=True):
        (tmp_path / name).write_text(textwrap.dedent(block), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            "-o",
            "pythonpath=dags",
        ],
        cwd=tmp_path,
        # Airflow's home goes where pytest removes it.
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
