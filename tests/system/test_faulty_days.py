"""Three of ten answers are faulty, and the same rows come out as on a good day."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from homes import WAIT

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

pytestmark = pytest.mark.system

SEEDS = 20
ENDINGS = [
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503, "retry_after": 1},
    {"kind": "status", "status": 429, "retry_after": 1},
    {"kind": "reset"},
    {"kind": "half"},
    {"kind": "garbage"},
    {"kind": "garbage", "body": "[]"},
    {"kind": "redirect"},
]
SLOW = 0.04
FAULTY = 0.3


def bad_day() -> list[Fault]:
    """Give 30 % of the answers a fault, each kind as often as any other; a slow answer may go wrong as well."""
    share = (1 - (1 - FAULTY) / (1 - SLOW)) / len(ENDINGS)
    # Each has its dice rolled only when those before it have spared the answer.
    faults = [Fault(**kind, probability=share / (1 - number * share)) for number, kind in enumerate(ENDINGS)]
    return [Fault(kind="delay", seconds=1.5, probability=SLOW), *faults]


def test_for_twenty_seeds_the_rows_are_those_of_a_day_without_faults(shared, home):
    met: Counter[str] = Counter()
    answers = 0
    for seed in range(SEEDS):
        with Sandbox(seed=seed) as box:
            link, now = f"loan-{seed}", datetime.now(UTC)
            connection = box.connection
            # Slower than this is a fault too.
            connection["extra"]["timeout"] = 1
            conf = {"link_id": link, "since": (now - timedelta(minutes=1)).isoformat()}
            box.play(Statement(link_id=link, statement_id="last month's", after=-86_400 * 30))
            box.play(Statement(link_id=link, statement_id="", progress="failed", after=-5))
            # Every other customer is there already, so that the first look is put to the test as well.
            box.play(Statement(link_id=link, after=0.4 if seed % 2 else -2))
            for fault in bad_day():
                box.fault(fault)
            faulty = shared.run(WAIT, connection, conf)
            day = [f"{request.call}: {request.status} {'+'.join(request.faults)}" for request in box.requests]
            answers += len(day)
            met.update(fault for request in box.requests for fault in request.faults)
            story = f"seed {seed}, {faulty.seconds:.1f} s: {', '.join(day)}"
            print(story)

            box.clear_faults()
            good = shared.run(WAIT, connection, conf)

        assert (faulty.state, good.state) == ("success", "success"), story
        expected = home.xcoms(WAIT, good.run_id)
        [row] = expected["wait_for_statement", "return_value"]
        assert (row["link_id"], row["progress"]) == (link, "completed")
        assert row["statement_id"] != "last month's"
        assert home.xcoms(WAIT, faulty.run_id) == expected, story
    print(f"{answers} answers, and the faults in them: {dict(met)}")
    assert sum(met.values()) >= 0.2 * answers
    assert len(met) >= 5
