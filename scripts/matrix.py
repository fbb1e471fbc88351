"""`make matrix`: installs the built wheel beside every supported Airflow, on each of its Pythons, and tests it.

A pair is an Airflow and a Python; each file in `constraints/` is one. Each pair gets a new virtual environment in
`.cache/matrix/<pair>/` with the same wheel, and is tested where the source tree cannot be imported. First without
extras, as users have it: Airflow's command line and its database. Then with the sandbox: the behaviour tests (all on
the oldest Python of each Airflow, the main ones on the others), and a real Airflow that runs the example DAGs and a DAG
of edge cases. With some sets of dependencies only the execution of a task fails, so every pair executes tasks.

It needs only the standard library. All output is in `.cache/matrix/<pair>/*.log`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "matrix"
TREE_COPY = CACHE / "tree"
PACKAGE = "airflow_provider_bankconnect"
# Files that the tests read. The package is not among them, so that the tests import the wheel.
TREE = (
    *("tests", "scripts", "dags", "docs", "constraints"),
    *("pyproject.toml", "hatch_build.py", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"),
)
# Two runs at once: the first uses the CPU, the second waits most of the time.
TESTS = (("tests/unit", "tests/package", "tests/sandbox", "tests/matrix"), ("tests/integration", "tests/receiver"))
QUICK_TESTS = (
    ("tests/unit/test_gate.py", "tests/package/test_package.py", "tests/matrix"),
    (
        "tests/integration/test_what_becomes_of_the_task.py",
        "tests/integration/test_hooks.py",
        "tests/integration/test_arguments.py",
        "tests/receiver",
    ),
)
# Only Airflow 3.0 builds the form with wtforms without requiring it: its test runs a second time with wtforms.
FORM_NEEDS = {"3.0": "wtforms>=3.1,<4"}
# Limits for a busy machine.
CLI_SECONDS, INSTALL_SECONDS, TEST_SECONDS, DAG_SECONDS = 600, 1800, 5400, 3600


RUNNING: set[subprocess.Popen[bytes]] = set()


class StepError(Exception):
    """A step failed; the message names the step and its log."""


@dataclass(frozen=True, order=True)
class Pair:
    """An Airflow and a Python."""

    airflow: tuple[int, ...]
    minor: int

    @property
    def version(self) -> str:
        return ".".join(map(str, self.airflow))

    @property
    def name(self) -> str:
        return f"{self.version}-py3{self.minor}"

    @property
    def constraints(self) -> Path:
        return self.folder / "tree" / "constraints" / f"constraints-{self.name}.txt"

    @property
    def folder(self) -> Path:
        return CACHE / self.name


@dataclass
class Result:
    """The results of a pair."""

    pair: Pair
    installed: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    tested: float = 0.0
    dags: str = "-"
    total: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "ok" if not self.wrong else self.wrong[0]


def known_pairs() -> list[Pair]:
    """Return the pairs that have constraints; those that Airflow's Requires-Python excludes have none."""
    names = (re.fullmatch(r"constraints-([\d.]+)-py3(\d+)\.txt", path.name) for path in ROOT.glob("constraints/*.txt"))
    return sorted(Pair(tuple(map(int, name[1].split("."))), int(name[2])) for name in names if name)


def python_of(pair: Pair) -> str | None:
    """Find the Python of a pair, and run it: pyenv has commands of Pythons that are not installed."""
    code = f"import sys; print(sys.executable if sys.version_info[:2] == (3, {pair.minor}) else '')"
    named = [shutil.which(name) for name in (f"python3.{pair.minor}", "python3")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (*named, sys.executable, *sorted(pyenv.glob(f"3.{pair.minor}.*/bin/python"), reverse=True)):
        if path:
            done = subprocess.run([str(path), "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.strip()
    return None


def find_uv() -> str | None:
    """Find uv or install it; return None where that fails."""
    own = CACHE / "uv"
    for path in (shutil.which("uv"), ROOT / ".venv" / "bin" / "uv", own / "bin" / "uv"):
        if path and Path(path).exists():
            return str(path)
    subprocess.run([sys.executable, "-m", "venv", str(own)], check=True)
    pip = [str(own / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
    return str(own / "bin" / "uv") if subprocess.run(pip, check=False).returncode == 0 else None


def environment_of(pair: Pair | None) -> dict[str, str]:
    """Return the environment without this shell's settings of Airflow, uv, pytest and virtual environments."""
    ours = ("AIRFLOW", "_AIRFLOW", "PYTHONPATH", "VIRTUAL_ENV", "UV_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if pair is None:
        return kept
    home = pair.folder / "home"
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-the-matrix-" * 4,
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


def run(command: list[str], log: Path, *, cwd: Path, environment: dict[str, str], seconds: float) -> str:
    """Run a command with its output in a file, and return the output."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        start = log.stat().st_size
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        RUNNING.add(process)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            RUNNING.discard(process)
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        said = file.read()
    if code != 0:
        why = f"exit code {code}" if code is not None else f"not finished in {seconds:.0f} s"
        raise StepError(f"{why}: {' '.join(Path(part).name for part in command[:4])}; see {log.relative_to(ROOT)}")
    return said


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Kill what runs, and exit."""
    for process in RUNNING.copy():
        os.killpg(process.pid, signal.SIGKILL)
    sys.exit(128 + number)


def build_wheel(uv: str | None) -> Path:
    """Build the wheel for all pairs."""
    out = CACHE / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if uv:
        command = [uv, "build", "--quiet", "--wheel", "--out-dir", str(out), str(ROOT)]
    else:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    run(command, CACHE / "wheel.log", cwd=CACHE, environment=environment_of(None), seconds=INSTALL_SECONDS)
    (wheel,) = out.glob("*.whl")
    return wheel


def copy_tree() -> None:
    """Copy the files that the tests read, so that edits during the run change nothing."""
    shutil.rmtree(TREE_COPY, ignore_errors=True)
    TREE_COPY.mkdir(parents=True)
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, TREE_COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, TREE_COPY)


class Check:
    """Installs and tests one pair."""

    def __init__(self, pair: Pair, wheel: Path, uv: str | None, *, quick: bool) -> None:
        self.pair = pair
        self.wheel = wheel
        self.uv = uv
        self.quick = quick
        self.result = Result(pair)
        self.venv = pair.folder / "venv"
        self.tree = pair.folder / "tree"
        self.python = str(self.venv / "bin" / "python")
        self.started = time.monotonic()

    def run(self, interpreter: str) -> Result:
        shutil.rmtree(self.pair.folder, ignore_errors=True)
        (self.pair.folder / "home" / "dags").mkdir(parents=True)
        shutil.copytree(TREE_COPY, self.tree)
        try:
            self.install(interpreter)
            # Each of these needs the one before.
            self.command_line()
            self.add_extras()
        except StepError as error:
            self.wrong(error)
        else:
            for step in (self.test, self.form, self.dags):
                try:
                    step()
                except StepError as error:
                    self.wrong(error)
        self.result.total = time.monotonic() - self.started
        self.say(f"{'GREEN' if not self.result.wrong else 'RED'}, {self.result.total:.0f} s in all")
        return self.result

    def install(self, interpreter: str) -> None:
        """Install the wheel without extras, and the pair's Airflow."""
        started = time.monotonic()
        log = self.log("install")
        if self.uv:
            self.call([self.uv, "venv", "--quiet", "--python", interpreter, str(self.venv)], log, INSTALL_SECONDS)
        else:
            self.call([interpreter, "-m", "venv", str(self.venv)], log, INSTALL_SECONDS)
            self.call([self.python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1"], log, INSTALL_SECONDS)
        self.pip(str(self.wheel), f"apache-airflow=={self.pair.version}", log="install")
        self.result.installed = time.monotonic() - started
        self.say(f"installed in {self.result.installed:.0f} s")

    def command_line(self) -> None:
        """Check that Airflow's commands work and list the provider."""
        where = self.call(
            [self.python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"], self.log("cli"), CLI_SECONDS
        )
        if str(self.venv) not in where:
            raise StepError(f"the imported package is not the wheel: {where.strip()}")
        said = self.airflow("version")
        if self.pair.version not in said.split():
            raise StepError(f"airflow version prints {said.strip()!r}")
        self.expect_in("airflow-provider-bankconnect", self.airflow("providers", "list"))
        self.airflow("db", "migrate")
        if not self.quick:
            hooks = self.airflow("providers", "hooks", "--output", "plain")
            self.expect_in("bankconnect", hooks)
            self.expect_in(f"{PACKAGE}.hooks.bankconnect.BankConnectHook", hooks)
            commands = self.airflow("providers", "--help")
            if re.search(r"^ +triggers ", commands, flags=re.MULTILINE):
                self.expect_in(f"{PACKAGE}.triggers.bankconnect", self.airflow("providers", "triggers"))
            self.expect_in("airflow-provider-bankconnect", self.airflow("info"))
        code = (
            f"import sys, {PACKAGE}.sensors.bankconnect, {PACKAGE}.operators.bankconnect;"
            f"assert not [name for name in sys.modules if name == 'trustme' or '{PACKAGE}.sandbox' in name]"
        )
        self.call([self.python, "-W", "ignore", "-c", code], self.log("cli"), CLI_SECONDS)
        self.say("the command line works, without extras")

    def add_extras(self) -> None:
        group = f"{self.tree / 'pyproject.toml'}:dev"
        self.pip(f"{self.wheel}[sandbox,storage]", "--group", group, log="install")

    def test(self) -> None:
        """Run the behaviour tests."""
        started = time.monotonic()
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(self.pytest, f"tests-{number}", tests) for number, tests in enumerate(self.tests)]
        self.result.tested = time.monotonic() - started
        said = (
            f"{self.result.passed} tests passed, {self.result.failed} failed, {self.result.skipped} skipped or xfailed"
        )
        self.say(f"{said}, {self.result.tested:.0f} s")
        for done in runs:
            done.result()

    @property
    def tests(self) -> tuple[tuple[str, ...], ...]:
        return QUICK_TESTS if self.quick else TESTS

    def pytest(self, name: str, tests: tuple[str, ...]) -> None:
        report = self.pair.folder / f"{name}.xml"
        command = [str(self.venv / "bin" / "pytest"), *tests, "-q", "-p", "no:cacheprovider", "--junitxml", str(report)]
        try:
            self.call(command, self.log(name), TEST_SECONDS)
        finally:
            if report.exists():
                suite = ET.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest has just written it
                count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
                failed = count["failures"] + count["errors"]
                self.result.failed += failed
                self.result.skipped += count["skipped"]
                self.result.passed += count["tests"] - failed - count["skipped"]

    def form(self) -> None:
        """Test the connection form of Airflow 3.0, which needs wtforms."""
        needed = FORM_NEEDS.get(".".join(map(str, self.pair.airflow[:2])))
        if needed:
            self.pip(needed, log="form")
            test = "tests/matrix/test_form.py"
            self.call([str(self.venv / "bin" / "pytest"), test, "-q"], self.log("form"), TEST_SECONDS)

    def dags(self) -> None:
        started = time.monotonic()
        self.result.dags = "no"
        said = self.call([self.python, "tests/matrix/real_airflow.py"], self.log("dags"), DAG_SECONDS)
        self.result.dags = f"{time.monotonic() - started:.0f} s"
        self.say("; ".join(line for line in said.splitlines() if ": ok, " in line))

    def airflow(self, *arguments: str) -> str:
        return self.call([self.python, "-m", "airflow", *arguments], self.log("cli"), CLI_SECONDS)

    def pip(self, *arguments: str, log: str) -> None:
        how = [self.uv, "pip", "install", "--python"] if self.uv else []
        command = [*how, self.python] if how else [self.python, "-m", "pip", "install", "--quiet"]
        self.call([*command, "-c", str(self.pair.constraints), *arguments], self.log(log), INSTALL_SECONDS)

    def call(self, command: list[str], log: Path, seconds: float) -> str:
        return run(command, log, cwd=self.tree, environment=self.environment, seconds=seconds)

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.pair) | {"BANKCONNECT_WHEEL": str(self.wheel)}

    def expect_in(self, wanted: str, said: str) -> None:
        if wanted not in said:
            raise StepError(f"{wanted!r} is not in the output; see {self.log('cli').relative_to(ROOT)}")

    def log(self, name: str) -> Path:
        return self.pair.folder / f"{name}.log"

    def wrong(self, error: StepError) -> None:
        self.result.wrong.append(str(error))
        self.say(f"WRONG: {error}")

    def say(self, words: str) -> None:
        print(f"  {time.monotonic() - self.started:5.0f} s  {self.pair.name:<13} {words}", flush=True)


def table(results: list[Result], missing: list[Pair]) -> str:
    """Return a table with a line for each pair."""
    lines = [("pair", "installed", "passed", "failed", "skipped", "tests", "DAGs", "all", "verdict")]
    for result in results:
        numbers = (
            f"{result.installed:.0f} s",
            str(result.passed),
            str(result.failed),
            str(result.skipped),
            f"{result.tested:.0f} s",
        )
        lines.append((result.pair.name, *numbers, result.dags, f"{result.total:.0f} s", result.verdict))
    lines += [(pair.name, *["-"] * 7, f"not run: Python 3.{pair.minor} is not installed") for pair in missing]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in aligned)


def main() -> int:
    """Check the pairs: return 0 when all are green."""
    pairs = known_pairs()
    names = [pair.name for pair in pairs]
    parser = argparse.ArgumentParser(description="Test the wheel beside every supported Airflow.")
    parser.add_argument("--only", action="append", metavar="PAIR", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("--full", action="store_true", help="all tests on every Python, not only on the oldest")
    parser.add_argument("--quick", action="store_true", help="fewer tests, and fewer of Airflow's commands")
    parser.add_argument("--allow-missing", action="store_true", help="do not fail where a Python is not installed")
    parser.add_argument("--keep", action="store_true", help="keep the virtual environments of green pairs too")
    options = parser.parse_args()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    CACHE.mkdir(parents=True, exist_ok=True)
    chosen = [pair for pair in pairs if not options.only or pair.name in options.only]
    uv = find_uv()
    copy_tree()
    wheel = build_wheel(uv)
    print(f"{wheel.name}, {len(chosen)} pairs, {'uv' if uv else 'pip'}; logs in {CACHE.relative_to(ROOT)}/", flush=True)
    results: list[Result] = []
    missing: list[Pair] = []
    for number, pair in enumerate(chosen, start=1):
        python = python_of(pair)
        print(f"[{number} of {len(chosen)}] Airflow {pair.version}, Python 3.{pair.minor}", flush=True)
        if python is None:
            missing.append(pair)
            continue
        # The other Pythons of an Airflow differ little, so they run only the main tests.
        oldest = min(other.minor for other in pairs if other.airflow == pair.airflow)
        quick = options.quick or (pair.minor != oldest and not options.full)
        results.append(Check(pair, wheel, uv, quick=quick).run(python))
        if not results[-1].wrong and not options.keep:
            shutil.rmtree(pair.folder / "venv")
    lines = table(results, missing)
    (CACHE / "table.txt").write_text(lines + "\n", encoding="utf-8")
    print(f"\n{lines}", flush=True)
    return 1 if any(result.wrong for result in results) or (missing and not options.allow_missing) else 0


if __name__ == "__main__":
    sys.exit(main())
