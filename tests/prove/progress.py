"""Progress of a part of the proof: a line rewritten in place on a terminal, elsewhere a new one every ten seconds."""

from __future__ import annotations

import shutil
import sys
import time

_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0


class Progress:
    """Counts what is done of ``total``. ``bad`` is the word for a result that should not be, such as "broken"."""

    def __init__(self, what: str, total: int, bad: str) -> None:
        self.total = total
        self.done = self.failures = 0
        self.more = ""
        self._what, self._bad = what, bad
        self._is_terminal = sys.stdout.isatty()
        self.start()

    def start(self) -> None:
        """Count the seconds from now on."""
        self._started, self._shown = time.monotonic(), float("-inf")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __str__(self) -> str:
        seconds = self.seconds
        left = f"about {seconds / self.done * (self.total - self.done):,.0f} s left" if self.done else "time unknown"
        counts = f"{self.done:,} of {self.total:,} done, {self.failures:,} {self._bad}"
        return f"{self._what}: {counts}, {seconds:,.0f} s, {left}{self.more}"

    def add(self, *, is_bad: bool) -> None:
        self.done += 1
        self.failures += is_bad

    def show(self) -> None:
        """Print the line if the last one is old enough."""
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._is_terminal else _PLAIN_SECONDS):
            self._shown = now
            if self._is_terminal:
                line = str(self)[: shutil.get_terminal_size().columns - 1]
                print(f"\r{line}\033[K", end="", flush=True)
            else:
                print(self, flush=True)

    def print(self, text: str) -> None:
        """Print a text that stays, in place of the line."""
        print(f"\r\033[K{text}" if self._is_terminal else text, flush=True)
