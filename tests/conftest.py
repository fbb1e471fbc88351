"""What all tests have in common: the order of the files, and nothing in memory that earlier tests have left."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

# The files that take longest come first: begun last, they would keep one process busy after the others have ended.
SLOW = (
    "system/test_receiver.py",
    "system/test_secrets.py",
    "system/test_main_dag.py",
    "system/test_faulty_days.py",
    "docs/test_docs.py",
    "receiver/test_bad_input.py",
    "receiver/test_events.py",
    "receiver/test_listener.py",
    "receiver/test_operators.py",
    "receiver/test_page.py",
    "integration/test_hostile_answers.py",
    "integration/test_rules_in_all_modes.py",
    "integration/test_deferred_wait.py",
    "integration/test_poller_counts.py",
    "unit/test_gate_properties.py",
    "prove/test_proof.py",
)
# Files that run in one process, one after another, because they share an Airflow that takes many seconds to start.
TOGETHER = ("system/test_main_dag.py", "system/test_faulty_days.py")
# The modules with Airflow's maskers of secrets; which of them exist depends on its version.
MASKERS = (
    "airflow._shared.secrets_masker",
    "airflow.sdk._shared.secrets_masker",
    "airflow.sdk.execution_time.secrets_masker",
    "airflow.utils.log.secrets_masker",
)
_first_secrets: dict[str, tuple[frozenset[str], Any]] = {}
_modules_at_last_freeze = 0


def short(path: str) -> str:
    """Return the last folder and the name of a file."""
    return "/".join(path.split("/")[-2:])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first. `make test` hands the files to its processes in this order."""
    ranks = {name: rank for rank, name in enumerate(SLOW)}
    items.sort(key=lambda item: ranks.get(short(item.path.as_posix()), len(SLOW)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Make ``--dist loadfile`` keep the order of the files, and the files of :data:`TOGETHER` together."""
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - only where pytest-xdist is installed

    if config.getvalue("dist") != "loadfile":
        return None

    class InOrder(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER[0] if short(file) in TOGETHER else file

    # It would begin with the files that have the most tests, which are the quickest ones.
    config.option.loadscopereorder = False
    return InOrder(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Keep a test from what the tests before it have left."""
    forget_secrets()
    freeze_objects()


def forget_secrets() -> None:
    """Make Airflow's maskers forget the secrets of earlier tests.

    Each test has new keys. With each key, a masker compiles a pattern of all of them anew, and searches all log lines
    for it: after a thousand tests, that would take most of the time.
    """
    for name in MASKERS:
        find = getattr(sys.modules.get(name), "_secrets_masker", None)
        if find is None:
            continue
        try:
            masker = find()
        except RuntimeError:  # Airflow 2 has not configured its logs yet
            continue
        patterns, replacer = _first_secrets.setdefault(name, (frozenset(masker.patterns), masker.replacer))
        masker.patterns, masker.replacer = set(patterns), replacer


def freeze_objects() -> None:
    """Exclude what imports have left from garbage collection: many tests collect, and Airflow has a million objects."""
    global _modules_at_last_freeze  # noqa: PLW0603 - pytest calls functions
    if len(sys.modules) > _modules_at_last_freeze + 20:
        gc.collect()
        gc.freeze()
        _modules_at_last_freeze = len(sys.modules)


@pytest.fixture
def log(capsys, caplog):
    """Return what was logged since the last call: Airflow 3 logs to stdout, Airflow 2 to ``logging``."""
    caplog.set_level("INFO")

    def read():
        text = capsys.readouterr().out + caplog.text
        caplog.clear()
        return text

    return read


def pytest_sessionfinish() -> None:
    """Let pytest's last collection find all."""
    gc.unfreeze()
