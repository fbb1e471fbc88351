"""Ten thousand schedules, and how many of them it takes to notice each named mutant; or one seed once more."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from multiprocessing import get_context
from typing import TYPE_CHECKING

from met import EVERYTHING
from named_mutants import MUTANTS
from over_tls import check_over_tls
from proof import kill, prove, smallest
from schedules import draw
from simulation import play
from theorem import BrokenError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.pool import Pool

OVER_TLS = 50


def main() -> int:
    """Prove all, or play one once more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one once more, and tell it")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    gc.freeze()
    with get_context("fork").Pool(options.processes) as pool:
        held = timed(lambda: prove_all(pool, range(options.schedules)))
        killed = timed(lambda: kill_all(pool))
        same = timed(lambda: all_over_tls(pool))
    return 0 if held and killed and same else 1


def timed(act: Callable[[], bool]) -> bool:
    """Do it, and say how long it took."""
    started = time.monotonic()
    result = act()
    print(f"  in {time.monotonic() - started:.0f} s\n", flush=True)
    return result


def prove_all(pool: Pool, seeds: range) -> bool:
    """Prove the schedules of these seeds, and say what they have met."""
    total: Counter[str] = Counter()
    broken = 0
    for seed, said, found in pool.imap_unordered(prove_seed, seeds, chunksize=20):
        total += found
        broken += bool(said)
        if said:
            print(f"BROKEN with seed {seed}: {said}\n  make prove SEED={seed}", flush=True)
    print(f"Seeds {seeds[0]} to {seeds[-1]}: the theorem is broken by {broken}")
    for name in sorted(total.keys() - set(EVERYTHING), key=lambda name: -total[name]):
        print(f"{total[name]:10,} {name}")
    print("An open wait has met")
    for name in EVERYTHING:
        print(f"{total[name]:10,} {name}")
    unmet = [name for name in EVERYTHING if not total[name]]
    if unmet:
        print(f"NEVER MET: {', '.join(unmet)}")
    return not (broken or unmet)


def prove_seed(seed: int) -> tuple[int, str, Counter[str]]:
    """Prove the schedule of a seed, in a process of several."""
    try:
        return seed, "", prove(draw(seed))
    except BrokenError as error:
        return seed, str(error), Counter()


def kill_all(pool: Pool) -> bool:
    """Find out each named mutant."""
    print("Named mutants, and the schedules that it took to notice each")
    alive = 0
    for name, seeds, said in pool.imap(kill, MUTANTS):
        alive += not seeds
        print(f"{seeds or 'ALIVE':>10} {name}: {said[:100]}", flush=True)
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} killed")
    return not alive


def all_over_tls(pool: Pool) -> bool:
    """Play some once more over TLS."""
    different = list(filter(None, pool.imap(compare, range(OVER_TLS))))
    print(
        "\n".join([*different, f"Seeds 0 to {OVER_TLS - 1} over TLS too: {len(different)} end or look otherwise there"])
    )
    return not different


def compare(seed: int) -> str:
    """Play one over TLS, in a process of several."""
    try:
        check_over_tls(draw(seed))
    except BrokenError as error:
        return str(error)
    return ""


def replay(seed: int) -> int:
    """Play one once more, and tell it; and the smallest like it, if it breaks the theorem."""
    schedule = draw(seed)
    print(f"Seed {seed}:\n{schedule}")
    for mode in ("deferred", "poke"):
        for told in play(schedule, mode).waits:
            looks = ", ".join(f"{look.at:.3f} {look.state}" for look in told.looks)
            print(f"  {mode}, {told.wait.name}: {told.state} at {told.ended:.3f}; it judged: {looks}")
    small, said = smallest(schedule)
    print(f"BROKEN: {said}\nThe smallest that still breaks it:\n{small}" if said else "The theorem holds.")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
