"""The tests that the page on testing shows pass, as they are pasted."""

from __future__ import annotations

import os
import sys

import pytest
from test_docs import BLOCKS, run


@pytest.mark.system
def test_the_shown_tests_of_a_dag_pass(tmp_path):
    blocks = [block for name, language, block in BLOCKS if name.startswith("testing-") and language == "python"]
    (tmp_path / "dags").mkdir()
    for name, block in zip(("dags/loans.py", "conftest.py", "test_loans.py"), blocks, strict=True):
        (tmp_path / name).write_text(block, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-o", "pythonpath=dags"]
    # Airflow's home goes where pytest removes it.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
