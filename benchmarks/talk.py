"""A helper process that answers lines of JSON: one question on its stdin, one answer on its stdout."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def serve(**answers: Callable[..., Any]) -> None:
    """Answer questions until stdin is closed. Everything else that is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(answers[question.pop("what")](**question)), file=out, flush=True)


class Helper:
    """Starts a helper process, asks it, and ends it."""

    def __init__(self, command: list[str], *, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("a", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command,
                env=dict(env),
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin and self.process.stdout:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process.stdout.close()
        self.process.kill()
        self.process.wait()

    def ask(self, what: str, **arguments: object) -> Any:  # noqa: ANN401 - any JSON
        """Ask, and wait for the answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the helper has no pipes")
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a helper process of the benchmark has ended; see {self._log}")
        return json.loads(line)
