"""Three of ten answers are faulty, and the result is the same as without faults."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from homes import WAIT

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement

pytestmark = [pytest.mark.system, pytest.mark.long]

SEEDS = 10
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
    """Return faults for 30 % of the answers, each kind equally often; a slow answer can have another fault too."""
    share = (1 - (1 - FAULTY) / (1 - SLOW)) / len(ENDINGS)
    # A fault is drawn only where none of the earlier ones applies.
    faults = [Fault(**kind, probability=share / (1 - number * share)) for number, kind in enumerate(ENDINGS)]
    return [Fault(kind="delay", seconds=1.5, probability=SLOW), *faults]


def test_rows_are_the_same_with_faults_as_without_for_ten_seeds(shared, home):
    found: Counter[str] = Counter()
    answers = 0
    for seed in range(SEEDS):
        with Sandbox(seed=seed) as box:
            link, now = f"loan-{seed}", datetime.now(UTC)
            connection = box.connection
            # Shorter than the delay, which so becomes a fault.
            connection["extra"]["timeout"] = 1
            conf = {"link_id": link, "since": (now - timedelta(minutes=1)).isoformat()}
            box.play(Statement(link_id=link, statement_id="last month's", after=-86_400 * 30))
            box.play(Statement(link_id=link, statement_id="", progress="failed", after=-5))
            # Every other statement is completed already, so that first pokes meet faults too.
            box.play(Statement(link_id=link, after=0.4 if seed % 2 else -2))
            for fault in bad_day():
                box.fault(fault)
            faulty = shared.run(WAIT, connection, conf)
            day = [f"{request.call}: {request.status} {'+'.join(request.faults)}" for request in box.requests]
            answers += len(day)
            found.update(fault for request in box.requests for fault in request.faults)
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
    print(f"{answers} answers, and the faults in them: {dict(found)}")
    assert sum(found.values()) >= 0.2 * answers
    assert len(found) >= 5
