"""What becomes of events when Airflow forgets, drops or purges something: with Airflow's own scheduler and parser."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from receivers import CONN_ID, DAGS, NOTHING, ODD, TOKEN, statement, until

from airflow_provider_bankconnect.receiver import address

if not address.is_supported():
    pytest.skip("needs Airflow 3.2", allow_module_level=True)
from airflow_provider_bankconnect.receiver import measure, runs
from airflow_provider_bankconnect.receiver.app import make_app

IS_3_2 = address.airflow_version.startswith("3.2.")
BROKEN = "import no_such_module  # airflow dag"
EDITED = DAGS.replace("assets=webhook_asset(conn_id)", "assets=webhook_asset(conn_id) | webhook_asset('more')")


class Airflow:
    """The parts of a DAG processor and a scheduler that concern webhook events, in this process."""

    def __init__(self, database, folder):
        from airflow.jobs.job import Job  # noqa: PLC0415 - takes seconds
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner  # noqa: PLC0415

        self._database, self._folder = database, folder
        self._scheduler = SchedulerJobRunner(job=Job())

    def parse(self, text):
        """Parse a DAG file with this text in the place of the one with all DAGs; None for no file."""
        from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db  # noqa: PLC0415
        from airflow.models.asset import remove_references_to_deleted_dags  # noqa: PLC0415
        from airflow.models.dag import DagModel  # noqa: PLC0415
        from airflow.utils.session import create_session  # noqa: PLC0415

        file = self._folder / self._database.query("select distinct relative_fileloc from dag")[0][0]
        file.unlink(missing_ok=True)
        with create_session(scoped=False) as session:
            if text is None:
                DagModel.deactivate_deleted_dags(bundle_name="dags-folder", rel_filelocs=[], session=session)
            else:
                file.write_text(text, encoding="utf-8")
                bag = DagBag(self._folder, bundle_path=self._folder, bundle_name="dags-folder")
                sync_bag_to_db(bag, "dags-folder", None, session=session)
        # A real DAG processor does this whenever the file of any known DAG is missing.
        with create_session(scoped=False) as session:
            remove_references_to_deleted_dags(session)
        self._scheduler._update_asset_orphanage()

    def create_runs(self):
        """Create runs as the scheduler does, and return all: DAG, partition key and number of events."""
        from airflow.utils.session import create_session  # noqa: PLC0415

        with create_session(scoped=False) as session:
            self._scheduler._create_dagruns_for_partitioned_asset_dags(session)
        return self._database.query(
            "select dag_id, partition_key, count(event_id) from dag_run left join dagrun_asset_event "
            "on dag_run.id = dag_run_id group by dag_run.id, dag_id, partition_key order by dag_run.id"
        )

    def clean(self, *tables):
        """Purge these tables as `airflow db clean` does."""
        from airflow.utils.db_cleanup import run_cleanup  # noqa: PLC0415

        run_cleanup(
            clean_before_timestamp=datetime.now(UTC) + timedelta(hours=1),
            table_names=list(tables),
            confirm=False,
            skip_archive=True,
        )


@pytest.fixture
def airflow(database, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL", "0")
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    folder = tmp_path / "dags"
    folder.mkdir()
    return Airflow(database, folder)


async def caught_up(receiver, *rows, how="record", **more):
    return (await receiver.post_events(how, rows, **more)).json()


def row(number=1, *, ago=timedelta(0), **changes):
    """Return a row of the payload history as the catch-up operator sends it."""
    return statement(statement_id=str(number), date_time=(datetime.now(UTC) - ago).isoformat(), **changes)


async def test_event_for_a_broken_dag_is_recorded_and_its_run_comes_when_the_dag_is_parsed(
    receiver, database, airflow, caplog
):
    airflow.parse(BROKEN)
    # What Airflow makes of it: nothing refers to the asset, and so it is not active.
    assert not database.query("select 1 from dag_schedule_asset_reference union select 1 from asset_active")
    assert [(await receiver.post(row(number))).json() for number in (1, 2, 1)] == [
        {"status": status} for status in ("recorded", "recorded", "duplicate")
    ]
    assert (
        "recorded for first, whose file is broken or missing; their runs start when Airflow has parsed it"
        in caplog.text
    )
    # Nothing but the pending run is left of the schedule, and catch-up sees that the events wait.
    assert not database.query("select 1 from dag_schedule_asset_reference")
    assert (await caught_up(receiver, row()))["duplicate"] == 1
    if not IS_3_2:
        assert airflow.create_runs() == []
    airflow.parse(DAGS)
    assert airflow.create_runs() == [("first", "link:loan-1", 2)]
    assert (await receiver.post(row(3))).json() == {"status": "recorded"}
    assert airflow.create_runs()[1:] == [("first", "link:loan-1", 1)]
    assert (await caught_up(receiver, row(1), row(2), row(3)))["duplicate"] == 3
    assert database.query("select count(*) from dag_schedule_asset_reference") == [(3,)]


async def test_event_is_recorded_for_a_missing_dag_only_if_no_other_is_scheduled(receiver, database, airflow, caplog):
    airflow.parse(None)
    assert (await receiver.post(row(), conn_id=ODD)).status == 200
    assert sorted(database.runs) == [("odd", "link:loan-1"), ("odd_too", "link:loan-1")]
    # A renamed DAG is missing for ever. A broken one will come back beside the others.
    airflow.parse(DAGS)
    database.change("update dag set is_stale = true where dag_id in ('odd', 'first')")
    database.change("delete from dag_schedule_asset_reference where dag_id in ('odd', 'first')")
    database.change("delete from asset_partition_dag_run")
    assert (await receiver.post(row(2), conn_id=ODD)).status == 200
    assert database.runs == [("odd_too", "link:loan-1")]
    database.change("update dag set has_import_errors = true where dag_id = 'odd'")
    assert (await receiver.post(row(3), conn_id=ODD)).status == 200
    assert sorted(database.runs) == [("odd", "link:loan-1"), ("odd_too", "link:loan-1")]
    # One that is paused or missing for long gets no runs: its events are recorded for catch-up.
    for gone, value in {"is_paused": True, "last_parsed_time": datetime.now(UTC) - timedelta(days=8)}.items():
        database.change(f"update dag set {gone} = :value where dag_id = 'first'", value=value)  # noqa: S608
        caplog.clear()
        assert (await receiver.post(row(gone))).json() == {"status": "recorded"}
        assert "No DAG is scheduled by the webhook asset of 'bankconnect_default' now. Its events are" in caplog.text
    assert len(database.runs) == 2
    assert (await caught_up(receiver, row(gone)))["duplicate"] == 1
    database.change("update dag set is_paused = false")
    airflow.parse(DAGS)
    assert (await caught_up(receiver, row(gone)))["recorded"] == 1
    assert database.runs[2:] == [("first", "link:loan-1")]


async def test_catch_up_records_anew_what_an_edit_of_the_schedule_dropped(receiver, database, airflow):
    for number in (1, 2):
        assert (await receiver.post(row(number))).status == 200
    airflow.parse(EDITED)
    dropped = airflow.create_runs()
    if IS_3_2:
        # It drops nothing.
        assert dropped == [("first", "link:loan-1", 2)]
        return
    assert (dropped, database.runs) == ([], [])
    # A webhook is not recorded twice. Catch-up looks for the run.
    assert (await receiver.post(row())).json() == {"status": "duplicate"}
    assert await caught_up(receiver, row(1), row(2), row(3)) == events_of(recorded=3)
    assert await caught_up(receiver, row(1), row(2), row(3)) == events_of(duplicate=3)
    assert airflow.create_runs() == [("first", "link:loan-1", 3)]
    assert await caught_up(receiver, row(1), row(2), row(3)) == events_of(duplicate=3)
    # A run that somebody deleted is not made again.
    database.change("delete from dagrun_asset_event")
    database.change("delete from asset_partition_dag_run")
    database.change("delete from dag_run")
    assert await caught_up(receiver, row(1)) == events_of(duplicate=1)
    # An event that Airflow never queues is not recorded for ever.
    database.change("delete from partitioned_asset_key_log")
    for _ in range(3):
        assert await caught_up(receiver, row(3)) == events_of(recorded=1)
        database.change("delete from partitioned_asset_key_log")
    database.change("update dag set timetable_partitioned = false")
    assert await caught_up(receiver, row(3)) == events_of(duplicate=1)
    database.change("update dag set timetable_partitioned = true")
    assert await caught_up(receiver, row(3)) == events_of(recorded=1)
    database.change("delete from partitioned_asset_key_log")
    assert await caught_up(receiver, row(3)) == events_of(duplicate=1)


async def test_events_of_a_pause_start_runs_through_catch_up(receiver, database, airflow, caplog):
    """One DAG was paused: `again` is needed only if another DAG got the event."""
    database.change("update dag set is_paused = true where dag_id != 'odd'")
    for conn_id in (CONN_ID, ODD):
        assert (await receiver.post(row(), conn_id=conn_id)).json() == {"status": "recorded"}
    assert "start no run, paused are: first; unpause one, then run BankConnectCatchUpOperator" in caplog.text
    assert airflow.create_runs() == [("odd", "link:loan-1", 1)]
    # While nothing can start a run, catch-up adds no events.
    assert await caught_up(receiver, row()) == events_of(duplicate=1)
    database.change("update dag set is_paused = false")
    assert airflow.create_runs() == [("odd", "link:loan-1", 1)]
    assert await caught_up(receiver, row()) == events_of(recorded=1)
    assert await caught_up(receiver, row(), conn_id=ODD) == events_of(duplicate=1)
    assert await caught_up(receiver, row(), conn_id=ODD, how="again") == events_of(recorded=1)
    assert sorted(airflow.create_runs()[1:]) == [
        ("first", "link:loan-1", 1),
        ("odd", "link:loan-1", 1),
        ("odd_too", "link:loan-1", 1),
    ]


async def test_catch_up_knows_statements_whose_events_are_purged(receiver, database, airflow, caplog):
    assert (await receiver.post(row(1))).status == 200
    assert (await receiver.post(row(2, link_id="loan-2"))).status == 200
    assert len(airflow.create_runs()) == 2
    airflow.clean("asset_event")
    assert database.events == []
    minute = timedelta(minutes=1)
    rows = [row(1, ago=minute), row(2, link_id="loan-2", ago=minute)]
    assert await caught_up(receiver, *rows, how="check") == {"missed": 0}
    assert "Missed webhook" not in caplog.text
    assert await caught_up(receiver, *rows) == events_of(duplicate=2)
    # A newer statement of the same customer, or one of another customer, is none of them.
    # The one that was completed four minutes later may be in no run: that of the purged event may have ended before.
    new = [
        row(3, ago=-timedelta(hours=1)),
        row(4, ago=-4 * minute),
        row(1, link_id="loan-3"),
        statement(statement_id="1", date_time="?"),
    ]
    assert await caught_up(receiver, *new, how="check") == {"missed": 4}
    assert await caught_up(receiver, *new) == events_of(recorded=4)
    assert await caught_up(receiver, *rows, how="again") == events_of(recorded=2)


def events_of(**counts):
    return NOTHING | counts


async def test_customers_without_a_run_are_counted(receiver, database, airflow, caplog, monkeypatch):
    gauges, reported = {}, {}
    monkeypatch.setattr(
        runs.Stats, "gauge", lambda name, value, *, tags: gauges.update({(name, *tags.values()): value})
    )
    caplog.set_level("INFO")

    def report():
        before = len(caplog.messages)
        is_left = runs.report_without_run(reported)
        # For each connection, whether or not it has events.
        first, odd = (gauges["bankconnect.webhooks_without_run", tag] for tag in (CONN_ID, "odd_account__1._b_"))
        assert (first, is_left) == (0, odd > 0)
        lines.append([line for line in caplog.messages[before:] if "run" in line])
        return odd

    lines = []

    for number, link in enumerate(("a", "a", "b", "c")):
        assert (await receiver.post(row(number, link_id=link), conn_id=ODD)).status == 200
    assert report() == 0
    database.change("update asset_event set timestamp = :late", late=datetime.now(UTC) - timedelta(minutes=6))
    assert report() == report() == 3
    assert [len(some) for some in lines] == [0, 1, 0]
    assert f"3 customers of '{ODD}' have webhooks older than 5 minutes and no run" in lines[1][0]
    database.change("delete from asset_partition_dag_run where partition_key = 'link:c'")
    airflow.create_runs()
    assert report() == 1
    # A later event of the customer has a run, or the event is old.
    assert (await receiver.post(row(5, link_id="c"), conn_id=ODD)).status == 200
    assert report() == 1
    airflow.create_runs()
    assert report() == 0
    database.change("delete from dagrun_asset_event")
    database.change("update asset_event set timestamp = :old", old=datetime.now(UTC) - timedelta(hours=25))
    assert report() == 0
    assert f"No customer of '{ODD}' has a webhook of the last day without a run any more" in caplog.text
    # The table cannot be read: there may be some.
    database.change("alter table asset_event rename to away")
    assert runs.report_without_run(reported)
    assert "Could not count the webhook events without a run" in caplog.text


class Measured:
    """Measurements, each with the result of ``is_left``, and a clock. Each minute takes no time."""

    def __init__(self, monkeypatch):
        self.now, self.count, self.is_left = 1000.0, 0, False
        monkeypatch.setattr(measure, "_SECONDS", 0.0)
        monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(runs, "report_without_run", self.report)

    def report(self, _reported):
        self.count += 1
        return self.is_left

    async def twice_more(self):
        """Wait for a measurement that has begun since."""
        count = self.count
        await until(lambda: self.count >= count + 2)


@pytest.mark.usefixtures("sqlite")
async def test_customers_without_a_run_are_measured_until_the_last_event_is_late_and_each_has_a_run(
    receiver, monkeypatch
):
    measured = Measured(monkeypatch)
    receiver.app.routes[-1].app._app = app = make_app()
    writer = app.state.writer
    await receiver.post(row())
    task = writer.measuring._task
    await measured.twice_more()
    # A later event puts the end off.
    measured.now += 299
    await receiver.post(row(2))
    measured.now += 299
    await measured.twice_more()
    measured.is_left = True
    measured.now += 86400
    await measured.twice_more()
    assert writer.measuring._task is task
    assert not task.done()
    measured.is_left = False
    await until(task.done)
    count = measured.count
    # With the next event it begins again.
    await receiver.post(row(3))
    await until(lambda: measured.count > count)


async def test_event_during_the_last_measurement_is_measured_too(monkeypatch):
    measured, measuring = Measured(monkeypatch), measure.Measuring()

    def report(_reported):
        measured.count += 1
        if measured.count == 1:
            measuring.go_on()
        return False

    monkeypatch.setattr(runs, "report_without_run", report)
    measuring.go_on()
    measured.now += 301
    await until(lambda: measured.count > 1)
    measured.now += 301
    await until(measuring._task.done)


@pytest.mark.usefixtures("sqlite")
async def test_customers_without_a_run_are_measured_when_a_triggerer_first_asks(receiver, monkeypatch):
    """An API server that was restarted may get no further webhook."""
    measured = Measured(monkeypatch)
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    for _ in range(2):
        assert (await receiver.send(f"{address.PREFIX}/events", method="GET", headers=[internal_token])).status == 200
        await until(lambda: measured.count)
        measured.now += 301
        await asyncio.sleep(0)
    measuring = receiver.app.routes[-1].app._app.state.writer.measuring
    await until(measuring._task.done)
    assert (await receiver.send(f"{address.PREFIX}/events", method="GET", headers=[internal_token])).status == 200
    assert measuring._task.done()


def test_measuring_ends_with_the_event_loop():
    measuring = measure.Measuring()

    async def serve():
        measuring.go_on()
        await asyncio.sleep(0)
        assert not measuring._task.done()

    asyncio.run(serve())
    assert measuring._task.cancelled()
