"""Runs Python in forks of one process that has imported Airflow, which takes seconds; a fork takes milliseconds.

Each fork begins with the same modules, and nothing that it does reaches another one.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

# Airflow's own API, which is imported in parts.
IMPORTS = """
import airflow.providers.common.compat.sdk as sdk
sdk.AirflowPlugin, sdk.AirflowOptionalProviderFeatureException, sdk.conf, sdk.mask_secret
"""


class Forks:
    """The process with Airflow, inside a ``with``. It ends with the tests, even if these are killed.

    :param environment: environment of all forks.
    :param imports: Python that is run once, before the first fork.
    """

    def __init__(self, environment: Mapping[str, str], *, imports: str = IMPORTS) -> None:
        self._environment = dict(environment)
        self._imports = imports

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+", encoding="utf-8")
        self._process = processes.start(
            [sys.executable, "-W", "ignore", __file__, self._imports],
            # This file imports it too.
            env=self._environment | {"PYTHONPATH": str(Path(processes.__file__).parent)},
            cwd=self._folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.stdin.close()
        self._log.close()
        self._folder.cleanup()

    def run(
        self, *arguments: str, more: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python *arguments``, which begin with ``-c`` or ``-m``, and return its output.

        :param more: environment variables of this fork.
        :param check: whether another exit code than 0 fails the test.
        """
        names = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        order = {"arguments": arguments, "environment": dict(more or {}), "files": names}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise AssertionError(f"the process with Airflow ended:\n{self._log.read()[-4000:]}")
        output = [Path(name).read_text(encoding="utf-8", errors="replace") for name in names]
        done = subprocess.CompletedProcess(arguments, json.loads(answer), *output)
        assert not (check and done.returncode), done.stdout[-2000:] + done.stderr[-4000:]
        return done


def main(imports: str) -> None:
    """Answer each order on stdin with the exit code of its fork."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    exec(imports, {})  # noqa: S102 - the tests give it
    for line in orders:
        pid = os.fork()
        if not pid:
            work(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)


def work(order: dict[str, Any]) -> None:
    """Run an order as a new Python would, and end this process."""
    code: Any = 1
    try:
        for number, name in enumerate(order["files"], start=1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(order["environment"])
        kind, what, *others = order["arguments"]
        sys.argv = [kind, *others]
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the tests give it
        code = 0
    except SystemExit as end:
        code = end.code
        if not (code is None or isinstance(code, int)):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001 - as Python does at its top level
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    main(sys.argv[1])
