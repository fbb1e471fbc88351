"""Starts processes that end with the program that started them, even where that program is killed.

The program has a guard process. When the program has ended, for whatever reason, the guard ends the processes that
still run and removes their folders. The guard has a session of its own, so Ctrl-C does not reach it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPING_SECONDS: Final = 20.0


def start(
    command: list[str],
    *,
    ending: signal.Signals = signal.SIGTERM,
    **more: Any,  # noqa: ANN401 - what Popen takes
) -> subprocess.Popen[Any]:
    """Start a process in a session of its own; where this program leaves it running, the guard ends it.

    :param ending: signal that the guard sends first.
    :param more: further arguments of :class:`subprocess.Popen`.
    """
    with _signals_delayed():
        guard = _guard()
        process = subprocess.Popen(command, start_new_session=True, **more)
        _order(guard, pid=process.pid, ending=ending)
    return process


def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - what Popen takes
    """Run a command to its end and return its output."""
    pipe = subprocess.PIPE
    with start(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **more) as process:
        try:
            stdout, stderr = process.communicate()
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def remove_at_the_end(folder: Path) -> None:
    """Have the guard remove a folder, after it has ended the processes."""
    with _signals_delayed():
        _order(_guard(), folder=str(folder))


def end_as_by_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, so that ``finally`` blocks run."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def command(*errors: type[Exception]) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """Return a decorator of a command, for which Ctrl-C, SIGTERM and SIGHUP are alike.

    :param errors: are printed without a traceback; the exit code is 1.
    """

    def decorate(main: Callable[[], int]) -> Callable[[], int]:
        @wraps(main)
        def run_main() -> int:
            end_as_by_ctrl_c()
            try:
                return main()
            except KeyboardInterrupt:
                print("\nStopped. Nothing is left running.")
                return 130
            except errors as error:
                print(f"\n{error}", file=sys.stderr)
                return 1

        return run_main

    return decorate


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all its descendants."""
    _kill(tree(process.pid))
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def stop(*processes: subprocess.Popen[Any], ending: signal.Signals = signal.SIGTERM) -> None:
    """Send each process group a signal; after 20 seconds kill what is left of it and its descendants."""
    _stop({found: ending for process in processes for found in tree(process.pid)[:1]})
    for process in processes:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants. Unlike an id, these objects never refer to another process later."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop(processes: Mapping[psutil.Process, signal.Signals]) -> None:
    # Some of Airflow's parts start children in sessions of their own, and these may run on.
    relatives = {relative for process in processes for relative in tree(process.pid)}
    for process, ending in processes.items():
        _signal_group(process.pid, ending)
    deadline = time.monotonic() + _STOPPING_SECONDS
    while time.monotonic() < deadline and (alive := [process for process in processes if is_alive(process)]):
        relatives.update(relative for process in alive for relative in tree(process.pid))
        time.sleep(0.1)
    _kill(relatives)
    for process in processes:
        _signal_group(process.pid, signal.SIGKILL)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


@contextlib.contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay signals: between the start of a process and the order to the guard, nobody else knows the process."""
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread only.
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    delayed = {number: handler for number, handler in handlers.items() if handler not in {signal.SIG_IGN, None}}
    for number in delayed:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in delayed.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


@cache
def _guard() -> subprocess.Popen[bytes]:
    guard = subprocess.Popen(
        [sys.executable, __file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    return guard


def _order(guard: subprocess.Popen[bytes], **order: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(guard.stdin.fileno(), json.dumps(order).encode() + b"\n")


def main(program: int) -> None:
    """Act as the guard: read orders until the program has ended, then end its processes."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    processes: dict[psutil.Process, signal.Signals] = {}
    folders: list[str] = []
    for order in _orders(program):
        if "folder" in order:
            folders.append(order["folder"])
        else:
            processes |= dict.fromkeys(tree(order["pid"])[:1], signal.Signals(order["ending"]))
    _stop({process: ending for process, ending in processes.items() if is_alive(process)})
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _orders(program: int) -> Iterator[dict[str, Any]]:
    waiting = b""
    while True:
        # A fork of the program may keep the pipe open after the program has ended.
        if select.select([0], [], [], 0.5)[0]:
            read = os.read(0, 65536)
            *lines, waiting = (waiting + read).split(b"\n")
            yield from map(json.loads, lines)
            if not read:
                return
        elif os.getppid() != program:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
