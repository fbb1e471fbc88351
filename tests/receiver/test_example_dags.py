"""The example DAGs, in each way that somebody may trigger them, and what they must not use."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from receivers import CONN_ID, NEEDS_3_2

from airflow_provider_bankconnect.receiver.address import asset_uri, partition_key
from airflow_provider_bankconnect.sandbox import Statement

pytestmark = NEEDS_3_2

ROOT = Path(__file__).parents[2]
EXAMPLES = {file.stem: file for file in sorted((ROOT / "dags").glob("*.py"))}
ON_WEBHOOK = "bankconnect_on_webhook"
LINK, CUSTOMER = "loan-1", "customer-1"
# A run that an asset starts has no logical date, so Airflow does not render these, and ignores the last two.
NEEDS_A_LOGICAL_DATE = re.compile(
    r"logical_date|data_interval|execution_date|prev_(data|start|end)|\bts(_nodash)?\b|\bds(_nodash)?\b"
    r"|depends_on_past|wait_for_downstream"
)
JOINED = re.compile(r"webhook_asset\([^)]*\)\s*&|&\s*webhook_asset\(")


def test_examples_need_no_logical_date_and_join_no_webhook_assets():
    """Each customer has events of one account only: a partition of two assets would never be complete."""
    assert len(EXAMPLES) == 6
    for file in (*EXAMPLES.values(), ROOT / "docs" / "receiver.rst", ROOT / "README.md"):
        text = file.read_text(encoding="utf-8")
        assert not JOINED.search(text), file
        if file.suffix == ".py":
            assert not NEEDS_A_LOGICAL_DATE.search(text), file


@pytest.fixture(scope="module")
def tasks():
    """The tasks of the example DAGs, by DAG and task."""
    from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415 - needs Airflow 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        bag = DagBag(ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")
    assert not bag.import_errors
    return {(dag_id, task.task_id): task for dag_id, dag in bag.dags.items() for task in dag.tasks}


def test_no_task_of_an_example_fails_for_good_by_one_killed_worker(tasks):
    assert len(tasks) == 11
    assert {name for name, task in tasks.items() if not task.retries or not task.retry_delay} == set()


def run_of(*extras, key=None, conf=None):
    """Return the context of a run with these asset events, as Airflow makes it."""
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor  # noqa: PLC0415 - needs Airflow 3

    asset = SimpleNamespace(name=asset_uri(CONN_ID), uri=asset_uri(CONN_ID))
    events = [SimpleNamespace(asset=asset, source_aliases=[], extra=extra, timestamp=None) for extra in extras]
    return {
        "ti": None,
        "triggering_asset_events": TriggeringAssetEventsAccessor.build(events),
        "dag_run": SimpleNamespace(partition_key=key, conf=conf, run_after=datetime.now(UTC)),
    }


def test_webhook_dag_works_for_the_customer_that_a_run_by_hand_names(tasks, box, configure):
    configure()
    wait, is_mine, work = (tasks[ON_WEBHOOK, name] for name in ("wait_for_statement", "is_mine", "count_transactions"))
    box.play(Statement(link_id=LINK, entity_id=CUSTOMER, statement_id="1", transactions=3))
    for context in (
        run_of(conf={"link_id": LINK}),
        run_of(conf={"entity_id": CUSTOMER}),
        run_of(conf={"link_id": LINK}, key="made up"),
        run_of(conf={"link_id": LINK}, key=partition_key("x" * 300, None)),
        # A run whose events were purged has its partition key, as has one that was triggered with it.
        run_of(key=partition_key(LINK, None), conf={}),
        run_of(key=partition_key(None, CUSTOMER)),
        # An asset event that somebody has created in Airflow's UI.
        run_of({"from_rest_api": True}, key=partition_key(LINK, None)),
        run_of({"link_id": LINK, "entity_id": CUSTOMER, "statement_id": "1", "progress": "completed"}),
    ):
        rows = copy.copy(wait).execute(context)
        assert [row["statement_id"] for row in rows] == ["1"]
        assert is_mine.python_callable(rows, context["triggering_asset_events"])
        assert work.python_callable(rows) == {"statements": 1, "transactions": 3}
    # The event of another statement: that statement's run does the work.
    other = run_of({"link_id": LINK, "statement_id": "0"})
    assert not is_mine.python_callable(rows, other["triggering_asset_events"])


def test_webhook_dag_says_what_is_missing_where_a_run_names_no_customer(tasks, box, configure):
    configure()
    hashed = partition_key("x" * 300, None)
    for context in (
        run_of(),
        run_of(conf={}),
        run_of(key="made up"),
        run_of(key=hashed),
        run_of({"from_rest_api": True}),
    ):
        with pytest.raises(ValueError, match=r"""the run names no customer.* --conf '\{"link_id": "..."\}'"""):
            copy.copy(tasks[ON_WEBHOOK, "wait_for_statement"]).execute(context)
    assert box.requests == []


def test_other_examples_render_in_a_run_by_hand(tasks):
    """A run by hand has no logical date either, unless somebody gives one."""
    from airflow.sdk.execution_time import macros  # noqa: PLC0415 - needs Airflow 3

    params = {"again": True, "link_id": LINK, "since": "2026-11-23T10:00:00Z"}
    params |= {"webhook_url": None, "allow_private_host": False}
    context = run_of() | {"params": params, "macros": macros, "var": SimpleNamespace(json={})}
    for (dag_id, task_id), expected in {
        ("bankconnect_catch_up", "catch_up"): {"link_ids": [], "again": True},
        ("bankconnect_register_webhook", "register"): {"webhook_url": None, "allow_private_host": False},
        ("bankconnect_wait_for_statement", "wait_for_statement"): {"link_id": LINK, "since": params["since"]},
    }.items():
        rendered = copy.copy(tasks[dag_id, task_id])
        rendered.render_template_fields(context)
        assert {name: getattr(rendered, name) for name in expected} == expected
