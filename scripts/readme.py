"""`make readme`: runs the commands of the quick start and the README on a machine that has Python, make and a network.

It uses a fresh clone, an empty home, and from the environment only PATH and the network settings. It runs the bash
blocks of both pages in order, as a new reader does, and saves the first DAG where they say. That DAG's gate must
wait and then pass, and the task after it must run. The exit code is 1 where a page is wrong.
`tests/package/test_readme.py` reads the blocks with the same code.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import processes

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = ("docs/quick-start.rst", "README.md")
VERSIONS: Final = f"constraints/constraints-3.3.2-py3{sys.version_info[1]}.txt"
# Kinds of commands on the pages, each with the method of Newcomer that runs it. Any other command is an error.
KINDS: Final = {
    "skip": r"make test|make standalone",
    "run": r"make demo|python3 -m venv \w+ && \. \w+/bin/activate|export AIRFLOW_CONN_\w+=.+|airflow db migrate"
    r"|pip wheel --no-deps --wheel-dir dist \.",
    "install": r"pip install (?:'?\.(?:\[\w+\])?'?|dist/\S+\.whl|git\+https://\S+\.git)",
    "sandbox": r"python -m airflow_provider_bankconnect\.sandbox .+",
    "dag": r"airflow dags test \w+ .+",
    "explain": r"python -m airflow_provider_bankconnect explain .+",
    "trigger": r"airflow dags trigger \w+ .+",
}
# The pages do not say how a machine reaches the network.
NETWORK: Final = re.compile(r"PIP_\w+|UV_\w+|SSL_CERT_\w+|(?i:\w+_proxy)")
# Limit in seconds for each command.
LONGEST: Final = 1800.0
STARTED: Final = time.monotonic()


class ReadmeError(Exception):
    """A page is wrong; the message says where."""


class Block(NamedTuple):
    """A block of code, and the line in which it starts."""

    language: str
    text: str
    line: int


class Command(NamedTuple):
    """A command of a bash block, without its comment."""

    kind: str
    text: str
    line: int


def read_blocks(page: str) -> list[Block]:
    """Return all blocks of a Markdown or reStructuredText page in order."""
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    directives = re.finditer(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", page, flags=re.MULTILINE)
    return [
        Block(found[1], textwrap.dedent(found[2]).rstrip("\n") + "\n", page[: found.start(2)].count("\n") + 1)
        for found in (*fences, *directives)
    ]


def read_commands(page: str) -> list[Command]:
    """Return the commands of all bash blocks; a command continues on the next line after an open quote or a backslash.

    :raises ReadmeError: a command is of no known kind.
    """
    commands = []
    for block in read_blocks(page):
        text = ""
        for number, line in enumerate(block.text.splitlines() if block.language == "bash" else (), start=block.line):
            text = f"{text}\n{line}" if text else re.sub(r"(^|\s+)#\s.*$", "", line)
            if text and _is_whole(text):
                kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, text, re.DOTALL)), None)
                if kind is None:
                    raise ReadmeError(f"line {number}: nothing runs {text!r}; see KINDS in scripts/readme.py")
                commands.append(Command(kind, text, number - text.count("\n")))
                text = ""
        if text:
            raise ReadmeError(f"line {block.line}: the block ends within {text!r}")
    return commands


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    return not text.endswith("\\")


def read_first_dag(readme: str, page: str) -> tuple[str, str]:
    """Return the README's first DAG, and the path below the reader's home where a page saves it.

    :raises ReadmeError: the page names no path.
    """
    place = re.search(r"[Ss]ave (?:this DAG|the DAG at the top) as ``?~/([\w/]+\.py)`", page)
    if not place:
        raise ReadmeError("it does not say where to save the first DAG")
    return next(block.text for block in read_blocks(readme) if block.language == "python"), place[1]


class Newcomer:
    """A reader with a new machine that has Python and make."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.clone = folder, folder / "home", folder / "clone"
        # The machine's Python, not that of the virtual environment in which this runs.
        path = f"{Path(sys.base_prefix, 'bin')}:/usr/local/bin:/usr/bin:/bin"
        network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
        self.environment = network | {"PATH": path, "HOME": str(self.home), "PWD": str(self.clone)}
        self.box: subprocess.Popen[bytes] | None = None
        self.shown: list[str] = []
        self.passed = False

    def follow(self) -> None:
        say(f"a fresh clone of the last commit, an empty home; environment: {', '.join(self.environment)}")
        clone = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", str(ROOT), str(self.clone)]
        subprocess.run(clone, check=True)
        readme = (self.clone / "README.md").read_text(encoding="utf-8")
        try:
            for page in PAGES:
                text = (self.clone / page).read_text(encoding="utf-8")
                dag, place = read_first_dag(readme, text)
                (self.home / place).parent.mkdir(parents=True, exist_ok=True)
                (self.home / place).write_text(dag, encoding="utf-8")
                self.shown = [
                    line for block in read_blocks(text) if block.language == "text" for line in block.text.splitlines()
                ]
                for command in read_commands(text):
                    print(f"\n{page}, line {command.line}\n$ {command.text}", flush=True)
                    getattr(self, command.kind)(command.text)
        finally:
            self.end_sandbox()
        if not self.passed:
            raise ReadmeError("no page says how to run the first DAG")

    def skip(self, _: str) -> None:
        say("skipped: CI runs it separately")

    def run(self, command: str) -> str:
        """Run a command in the reader's shell, keep what it exports, and return its output."""
        log, after = self.folder / "log", self.folder / "environment"
        process = self.start(f"set -eo pipefail\n{command}\nenv -0 >'{after}'", log)
        try:
            code: int | str = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            code = f"none after {LONGEST:.0f} s"
        finally:
            processes.kill(process)
        said = log.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            raise ReadmeError(f"exit code {code}, after this:\n{said[-6000:]}")
        entries = after.read_text(encoding="utf-8").rstrip("\0").split("\0")
        self.environment = dict(entry.split("=", 1) for entry in entries)
        say("done")
        return said

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a script in the reader's shell."""
        with log.open("wb") as output:
            return processes.start(
                ["/bin/bash", "-c", script],
                env=self.environment,
                cwd=self.environment["PWD"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def install(self, command: str) -> None:
        local = re.sub(r"git\+https://\S+", f"git+file://{self.clone}", command)
        say(f"constraints: {VERSIONS}{'; the clone replaces the repository' if local != command else ''}")
        self.run(f"{local} -c {VERSIONS}")

    def explain(self, command: str) -> None:
        if "PASSED" not in self.run(command):
            raise ReadmeError("the verdict is not PASSED")

    def trigger(self, command: str) -> None:
        """Trigger a run, after what the DAG processor of a running Airflow does."""
        self.run("airflow dags reserialize")
        self.run(command)

    def sandbox(self, command: str) -> None:
        """Run the sandbox as in another terminal, and paste the export line that it prints."""
        self.end_sandbox()
        log = self.folder / "sandbox.log"
        self.box = self.start(f"exec {command}", log)
        deadline = time.monotonic() + LONGEST
        while "Ctrl-C ends it." not in (said := log.read_text(encoding="utf-8")):
            if self.box.poll() is not None or time.monotonic() > deadline:
                raise ReadmeError(f"the sandbox does not start:\n{said}")
            time.sleep(0.1)
        say("the sandbox runs; the export line that it prints is pasted")
        self.run(*re.findall(r"^ +(export AIRFLOW_CONN_.*)$", said, flags=re.MULTILINE))

    def end_sandbox(self) -> None:
        if self.box:
            self.box.send_signal(signal.SIGINT)
            self.box.wait(LONGEST)
            self.box = None

    def dag(self, command: str) -> None:
        """Run the first DAG: the gate must wait and pass, and the task after it must log what the pages say."""
        said = self.run(command)
        with closing(sqlite3.connect(self.home / "airflow" / "airflow.db")) as database:
            states = dict(database.execute("select task_id, state from task_instance").fetchall())
        lines = [line for line in said.splitlines() if re.search(r"Not yet: |work on entity \w|Waited ", line)]
        told = "".join(lines)
        if set(states.values()) != {"success"} or not ("Not yet: " in told and "work on entity" in told):
            raise ReadmeError(f"the tasks ended as {states}, after this:\n{said[-6000:]}")
        for line in self.shown:
            # What differs from run to run has a digit, or is left out.
            words = (r"\S+" if re.search(r"\d", word) else re.escape(word) for word in line.split())
            if not re.search(r"\s+".join(words).replace(re.escape("..."), ".*"), said):
                raise ReadmeError(f"no line of the log is like {line!r}, in this:\n{said[-6000:]}")
        self.passed = True
        print("\n".join(f"          {line}" for line in lines))
        say(f"the gate waited and passed, and the task after it has run: {states}")


def say(words: str) -> None:
    """Print a line with the time."""
    print(f"  {time.monotonic() - STARTED:5.0f} s  {words}", flush=True)


@processes.command()
def main() -> int:
    """Follow the pages: return 0 when they are right."""
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        try:
            Newcomer(Path(folder)).follow()
        except ReadmeError as error:
            print(f"\nThe page is wrong: {error}", file=sys.stderr)
            return 1
    say(f"{' and '.join(PAGES)} are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
