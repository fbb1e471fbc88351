"""``make prove``: checks ten thousand schedules, kills the named mutants, and plays fifty schedules over TLS."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

from happened import EVERYTHING
from named_mutants import MUTANTS, planted
from over_tls import check_over_tls
from progress import Progress
from proof import kill, prove, smallest
from schedules import draw
from simulation import play
from theorem import BrokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.pool import Pool

OVER_TLS = 50
ENDING = (signal.SIGINT, signal.SIGTERM)
FORK = multiprocessing.get_context("fork")
# Schedules that the mutants' processes have played.
played = FORK.Value("L", 0)


def main() -> int:
    """Prove everything, or play one seed again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play only the schedule of this seed, and print what happens")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    for name in MUTANTS:
        # Fails now, not after minutes, if the code that it changes has changed.
        with planted(name):
            pass
    parts = (
        (prove_all, Progress("Schedules", options.schedules, "broken")),
        (kill_all, Progress("Mutants", len(MUTANTS), "alive")),
        (compare_all, Progress("Over TLS", OVER_TLS, "different")),
    )
    for number in ENDING:
        signal.signal(number, stop)
    good, progress = True, parts[0][1]
    try:
        # A process that is terminated leaves the sandbox's files behind: they lie in this folder.
        with tempfile.TemporaryDirectory(prefix="prove-") as tempfile.tempdir:
            gc.freeze()
            # Blocked until the workers have their own handlers: they would run the parent's.
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            with FORK.Pool(options.processes, initializer=begin_worker) as pool:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                for act, progress in parts:
                    progress.start()
                    good &= act(pool, progress)
                    print(f"  in {progress.seconds:.0f} s\n", flush=True)
    except SystemExit as stopped:
        progress.print(f"Stopped. {progress}")
        return int(stopped.code or 0)
    return 0 if good else 1


def stop(number: int, _frame: object) -> None:
    """End at a signal, with the exit code that a shell expects; further signals change nothing."""
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def begin_worker() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the parent: it terminates the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def results(pool: Pool, act: Callable[[Any], Any], items: Iterable[Any], progress: Progress) -> Iterator[Any]:
    """Yield the results as they come, and show the progress meanwhile."""
    coming = pool.imap_unordered(act, items)
    while True:
        progress.show()
        try:
            yield coming.next(timeout=0.5)
        except multiprocessing.TimeoutError:
            progress.more = f"; {played.value:,} schedules played" if act is kill_one else ""
        except StopIteration:
            return


def prove_all(pool: Pool, progress: Progress) -> bool:
    """Prove the schedules, and print what happened in them."""
    total: Counter[str] = Counter()
    for seed, broken, found in results(pool, prove_seed, range(progress.total), progress):
        total += found
        progress.add(is_bad=bool(broken))
        if broken:
            progress.print(f"BROKEN with seed {seed}: {broken}\n  make prove SEED={seed}")
    progress.print(f"Seeds 0 to {progress.total - 1}: the theorem is broken by {progress.failures}")
    for name in sorted(total.keys() - set(EVERYTHING), key=lambda name: -total[name]):
        print(f"{total[name]:10,} {name}")
    print("Happened while a wait was open")
    for name in EVERYTHING:
        print(f"{total[name]:10,} {name}")
    missing = [name for name in EVERYTHING if not total[name]]
    if missing:
        print(f"NEVER HAPPENED: {', '.join(missing)}")
    return not (progress.failures or missing)


def prove_seed(seed: int) -> tuple[int, str, Counter[str]]:
    """Prove the schedule of a seed, in a worker."""
    try:
        return seed, "", prove(draw(seed))
    except BrokenError as error:
        return seed, str(error), Counter()


def kill_all(pool: Pool, progress: Progress) -> bool:
    """Kill each named mutant."""
    print("Named mutants, and the schedules that it took to notice each")
    for name, seeds, broken in results(pool, kill_one, MUTANTS, progress):
        progress.add(is_bad=not seeds)
        progress.print(f"{seeds or 'ALIVE':>10} {name}: {broken[:100]}")
    print(f"{progress.done - progress.failures} of {progress.total} killed")
    return not progress.failures


def kill_one(name: str) -> tuple[str, int, str]:
    """Kill a mutant, in a worker."""
    return kill(name, count_one)


def count_one() -> None:
    """Count a schedule of a mutant."""
    with played.get_lock():
        played.value += 1


def compare_all(pool: Pool, progress: Progress) -> bool:
    """Compare schedules with the same ones over TLS."""
    for different in results(pool, compare, range(progress.total), progress):
        progress.add(is_bad=bool(different))
        if different:
            progress.print(different)
    progress.print(f"Seeds 0 to {progress.total - 1} over TLS: {progress.failures} have another result there")
    return not progress.failures


def compare(seed: int) -> str:
    """Compare one, in a worker."""
    try:
        check_over_tls(draw(seed))
    except BrokenError as error:
        return str(error)
    return ""


def replay(seed: int) -> int:
    """Play a schedule again, and print what happens; and the smallest one that breaks the theorem as it does."""
    schedule = draw(seed)
    print(f"Seed {seed}:\n{schedule}")
    for mode in ("deferred", "poke"):
        for observed in play(schedule, mode).waits:
            pokes = ", ".join(f"{poke.at:.3f} {poke.state}" for poke in observed.pokes)
            print(f"  {mode}, {observed.wait.name}: {observed.state} at {observed.ended:.3f}; verdicts: {pokes}")
    small, broken = smallest(schedule)
    print(f"BROKEN: {broken}\nThe smallest that still breaks it:\n{small}" if broken else "The theorem holds.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
