"""The tests that the page on testing shows pass, as they are pasted."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import templates
from homes import Home
from test_docs import BLOCKS, run


@pytest.mark.system
def test_the_shown_tests_of_a_dag_pass(tmp_path, tmp_path_factory):
    blocks = [block for name, language, block in BLOCKS if name.startswith("testing-") and language == "python"]
    (tmp_path / "dags").mkdir()
    names = ("test_report.py", "dags/loans.py", "conftest.py", "test_loans.py")
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(block, encoding="utf-8")
    # initdb() of the page finds its tables there: making them takes many seconds.
    database = shutil.copy(Home(templates.sqlite(tmp_path_factory)).database, tmp_path / "airflow.db")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-o", "pythonpath=dags"]
    # Airflow's home goes where pytest removes it.
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
    }
    done = run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
