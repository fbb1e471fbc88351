"""No key is in a log or in the database, in any encoding, whatever fails."""

from __future__ import annotations

import json
import secrets
import shutil
import string
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import requests
from homes import IN_POKE_MODE, NO_RETRIES, QUICK, REGISTER, REPORTS, WAIT, Home, Run
from leaks import Leak, decrypted, find_leaks, rows

from airflow_provider_bankconnect.sandbox import Fault, Sandbox, Statement
from airflow_provider_bankconnect.wait import WaitArguments

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.system

POKE_MODE = "in_poke_mode"
ONE_TRY = {"retries=5, retry_delay=timedelta(minutes=2)": "retries=0"}
# Long enough for two pokes on a busy machine.
SHORT = {"timeout=timedelta(hours=24).total_seconds()": "timeout=8"}
# Each of these characters changes in a URL, in JSON, in HTML or in Python's repr.
ODD = "+/=%&\"\\'<>{}#?~"

# Leaks keys in ways that Airflow's masker does not see.
CANARY = """
from __future__ import annotations

import base64
import html
import json
import os
from pathlib import Path
from urllib.parse import quote

import pendulum
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.triggers.bankconnect import BankConnectWebhookPayloadTrigger


class Deferring(BaseOperator):
    def execute(self, context):
        with BankConnectHook() as hook:
            trigger = BankConnectWebhookPayloadTrigger(
                link_id="x" + hook.settings.server_hash, wait={"deadline": pendulum.now("UTC")}
            )
            self.defer(trigger=trigger, method_name="done")

    def done(self, context, event=None):
        pass


with DAG(dag_id="canary", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):

    @task
    def leak():
        with BankConnectHook() as hook:
            key = hook.settings.api_key
        for prefix in ("", "x", "xx"):
            print(f"aligned by {len(prefix)}:", base64.b64encode((prefix + key + "...").encode()).decode())
        print("a part:", key[:12] + "...")
        print("hex:", key.encode().hex())
        print("html:", html.escape(key))
        folder = Path(os.environ["AIRFLOW_HOME"]) / "logs" / "deep" / "down"
        folder.mkdir(parents=True)
        (folder / "attempt=1.log").write_text(json.dumps({"event": key}))
        (folder / "attempt=2.log").write_text("before " + key + " after")
        return quote(key, safe="")

    leak()
    Deferring(task_id="defer")
"""


@dataclass
class Searched:
    """The results of all runs."""

    home: Home
    keys: dict[str, str]
    customer: dict[str, str]
    # Passwords of PDFs, and the signatures of links.
    files: dict[str, str]
    # The same home after a run that leaks keys on purpose, and the output of that run.
    leaking: Home
    leaked: str = ""
    output: str = ""
    runs: dict[str, Run] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)


def new_key() -> str:
    some = [secrets.choice(string.ascii_letters + string.digits) for _ in range(30)]
    odd = list(ODD)
    secrets.SystemRandom().shuffle(odd)
    return "".join(some[:4] + odd[:8] + some[4:26] + odd[8:] + some[26:])


@pytest.fixture(scope="module")
def keys():
    """Both keys, visible ASCII, new each time."""
    return {"api_key": new_key(), "server_hash": new_key()}


@pytest.fixture(scope="module")
def searched(new_home, keys, tmp_path_factory) -> Searched:
    """Run the example DAGs in both modes, at DEBUG, without faults and with faults of every kind.

    Airflow's masker gets no secret here, so that nothing is hidden by it. Only the runs called masked have a masker.
    """
    home = new_home(AIRFLOW__LOGGING__LOGGING_LEVEL="DEBUG")
    home.add("canary", CANARY)
    home.add_example(REGISTER, NO_RETRIES)
    home.add_example(WAIT, QUICK | ONE_TRY)
    home.add_example(WAIT, QUICK | ONE_TRY | IN_POKE_MODE, dag_id=POKE_MODE)
    home.add_example(WAIT, QUICK | SHORT, dag_id="short")
    # The history has no row for a PDF, and so no time.
    home.add_example(
        REPORTS,
        {
            'what=["xlsx"]': 'what=["xlsx", "pdf"]',
            "retries=10": "retries=0",
            **NO_RETRIES,
            'since="{{ params.since }}"': "since=None",
            "poke_interval=60": "poke_interval=1",
        },
    )
    searched = Home(tmp_path_factory.mktemp("searched"))
    found = Searched(searched, keys, {}, {}, leaking=home)
    with Sandbox(**keys) as box, Sandbox() as other, home.driver() as driver:
        assert driver.greeting["import_errors"] == {}
        play = _Play(found, box, driver, echo=json.dumps({"you sent": keys, "headers": str(keys)}))

        refused = Fault(kind="status", status=401, body=play.echo)
        play("registration", REGISTER)
        for mode in (WAIT, POKE_MODE):
            play(f"masked {mode}", mode, statement=True, masked=True)
            play(f"success {mode}", mode, statement=True)
            play(f"401 at once {mode}", mode, refused)
            play(f"401 later {mode}", mode, later=lambda: box.fault(refused))
            play(
                f"500 and reset {mode}",
                mode,
                Fault(kind="status", status=500, body=play.echo, retry_after=keys["api_key"], times=1),
                Fault(kind="reset", times=1),
                statement=True,
            )
            play(
                f"garbage {mode}",
                mode,
                Fault(kind="garbage", body=f"<html>{play.echo}</html>", times=1),
                Fault(kind="garbage", body=json.dumps({"payloads": [{"statement_id": [keys]} | keys]}), times=1),
                statement=True,
            )
            untrusted = box.connection_with(other.ca_file)
            play(f"TLS {mode}", mode, connection=untrusted)
            without_file = box.connection_with("/nowhere/ca.pem")
            play(f"no bundle {mode}", mode, connection=without_file)
            pasted = box.connection | {"password": keys["server_hash"] + " "}
            play(f"pasted key {mode}", mode, connection=pasted)
        bad_days = {
            "garbage": Fault(kind="garbage", call="transactions", body=play.echo),
            "half": Fault(kind="half", call="transactions"),
            "redirect": Fault(
                kind="redirect", call="transactions", url=f"https://elsewhere.invalid/?{keys['api_key']}"
            ),
            "422": Fault(kind="status", call="transactions", status=422, body=play.echo),
        }
        for name, fault in bad_days.items():
            play(f"transactions {name}", WAIT, fault, statement=True)
        bundle = home.folder / "ca.pem"
        for name, text in {"TLS later": other.ca_pem, "bundle gone later": "gone"}.items():
            bundle.write_text(box.ca_pem, encoding="ascii")
            copied = box.connection_with(str(bundle))
            play(name, "short", connection=copied, later=lambda text=text: bundle.write_text(text, encoding="ascii"))
        play("500 until the timeout", "short", Fault(kind="status", status=500, body=play.echo))
        play("registration refused", REGISTER, refused)
        play("registration garbled", REGISTER, Fault(kind="status", status=400, body=play.echo))

        play_reports(play, box, found)

        box.clear_faults()
        found.customer = _customer_data(box)
        found.output = driver.output
        shutil.copytree(home.folder, searched.folder, dirs_exist_ok=True)
        run = driver.run("canary", box.connection, {"a conf": keys["server_hash"]})
        found.leaked = driver.output[len(found.output) :]
        assert run.state == "success", found.leaked[-4000:]
    # Shown when a test fails.
    for name, run in found.runs.items():
        print(f"{run.seconds:5.1f} s  {run.state:8}  {name}")
    return found


def play_reports(play: _Play, box: Sandbox, found: Searched) -> None:
    """Keep reports and PDFs, with faults on the way, and once in vain."""
    password = f"pdf-{secrets.token_hex(8)}"
    faults = [Fault(kind="status", call="file", status=status, times=1, body=play.echo) for status in (403, 503)]
    for name, more in {"kept": [], "not kept": [Fault(kind="status", call="file", status=404, body=play.echo)]}.items():
        ids = {"link_id": f"loan of reports {name}", "entity_id": name}
        box.play(Statement(**ids, mode="pdf", after=-60, pdf_password=password))
        play(f"reports {name}", REPORTS, *(more or faults))
    signatures = {record.path.rpartition("/")[2].split(".")[1] for record in box.calls("file")}
    assert len(signatures) >= 6
    found.files = {"password": password} | {f"link {number}": one for number, one in enumerate(signatures)}


@dataclass
class _Play:
    found: Searched
    box: Sandbox
    driver: Any
    echo: str

    def __call__(
        self,
        name: str,
        dag_id: str,
        *faults: Fault,
        later: Callable[[], object] | None = None,
        statement: bool = False,
        connection: dict[str, Any] | None = None,
        masked: bool = False,
    ) -> None:
        link, box = f"loan of {name}", self.box
        conf: dict[str, Any] = {"link_id": link, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        if dag_id == REGISTER:
            conf = {"webhook_url": box.inbox_url, "allow_private_host": True}
        box.clear_faults()
        for fault in faults:
            box.fault(fault)
        before, seen = len(self.driver.output), len(box.requests)
        self.driver.start(dag_id, connection or box.connection, conf, masked=masked)
        if later or statement:
            self.driver.until(lambda: len(box.requests) > seen)
            self.driver.until(lambda: box.requests[seen].status is not None or box.requests[seen].faults)
        if later:
            later()
        if statement:
            box.play(Statement(link_id=link, statement_id="", progress="failed"))
            box.play(Statement(link_id=link, after=0.3))
        self.found.runs[name] = self.driver.result()
        self.found.said[name] = self.driver.output[before:]


def _customer_data(box: Sandbox) -> dict[str, str]:
    """Return customer data of the answers that must not be stored."""
    entity = box.calls("transactions")[0].path.split("/")[4]
    answer = requests.get(
        f"{box.url}/entity/{entity}/transactions/",
        headers={"x-api-key": box.api_key, "server-hash": box.server_hash},
        verify=box.ca_file,
        timeout=120,
    ).json()
    [account] = answer["accounts"]
    found = {"account number": account["account_number"], "narration": answer["transactions"][0]["transaction_note"]}
    assert all(len(text) >= 8 for text in found.values())
    return found


def test_runs_ended_as_planned(searched):
    assert {name: run.state for name, run in searched.runs.items() if run.state != "failed"} == dict.fromkeys(
        ["registration", "reports kept"]
        + [
            f"{what} {mode}" for mode in (WAIT, POKE_MODE) for what in ("masked", "success", "500 and reset", "garbage")
        ],
        "success",
    )
    words = {
        "401": "BankConnectAuthError: webhook_payloads: HTTP 401",
        "TLS": "BankConnectCertificateError",
        "no bundle": "is no readable bundle of certificates",
        "pasted key": "Server Hash (password) has a blank",
        "transactions garbage": "BankConnectResponseError: transactions",
        "transactions half": "BankConnectConnectionError: transactions",
        "transactions redirect": "a redirect, which is never followed",
        "transactions 422": "BankConnectResponseError: transactions: HTTP 422",
        "500 until the timeout": "HTTP 500",
        "TLS later": "The wait continues after an error: BankConnectCertificateError",
        "bundle gone later": "is no readable bundle of certificates",
        "reports kept": "Wrote 3 files",
        "reports not kept": "HTTP 404: the link is refused, or has expired",
        "registration refused": "BankConnectAuthError: update_webhook: HTTP 401",
        "registration garbled": "BankConnectResponseError: update_webhook: HTTP 400",
        "500 and reset": "The wait continues after an error: BankConnectServerError",
        "garbage": "The wait continues after an error: BankConnectResponseError",
    }
    for start, said in words.items():
        matching = [text for name, text in searched.said.items() if name.startswith(start)]
        assert matching
        assert all(said in text for text in matching), start
    failures = [text for name, text in searched.said.items() if searched.runs[name].state == "failed"]
    assert all("Traceback" in text for text in failures)
    assert "[debug" in searched.output


def test_no_key_is_in_any_file_or_table(searched):
    assert find_leaks(searched.home, searched.keys) == set()


def test_no_link_and_no_password_of_a_pdf_is_in_any_file_or_table_or_in_the_storage(searched):
    kept = [path.name for path in (searched.home.path / "bankconnect_reports").rglob("*") if path.is_file()]
    assert sorted(name.partition("-")[0] for name in kept) == ["report", "statement", "transactions.json"]
    assert find_leaks(searched.home, searched.files) == set()


def test_no_customer_data_is_in_any_file_or_table_but_the_storage(searched):
    leaks = find_leaks(searched.home, searched.customer)
    assert {leak for leak in leaks if "bankconnect_reports/" not in leak.where} == set()


def test_search_reads_trigger_arguments_rendered_fields_xcom_and_runs(searched):
    found: dict[str, list[str]] = {}
    for table, columns, row in rows(searched.home):
        text = decrypted(row[columns.index("kwargs")]).decode() if table == "trigger" else str(row)
        found.setdefault(table, []).append(text)
    # The arguments of each trigger are those of the wait, and nothing else.
    assert len(found["trigger"]) >= 5
    for text in found["trigger"]:
        assert "loan of " in text
        assert set(_arguments(text)) == {
            "link_id",
            "entity_id",
            "statement_id",
            "since",
            "expected_statements",
            "failure_grace",
            "bankconnect_conn_id",
            "wait",
            "webhooks_expected",
        }
        assert set(_arguments(text)["wait"]) == set(WaitArguments.__annotations__)
    for table in ("rendered_task_instance_fields", "xcom", "dag_run"):
        assert any("loan of success" in text for text in found[table]), table
    for table in ("task_instance", "log", "serialized_dag", "dag_code"):
        assert found[table], table
    assert "loan of success" in searched.output


def _arguments(kwargs: str) -> dict[str, Any]:
    """Return the arguments, with or without Airflow's type envelope."""
    value = json.loads(kwargs)
    while isinstance(value, dict) and "__var" in value:
        value = value["__var"]
    return value


def test_search_finds_a_key_that_is_leaked_on_purpose(searched, keys):
    home = searched.leaking

    leaks = find_leaks(home, keys)

    output, logs = "output-0.log", "home/logs/deep/down"
    assert leaks >= {
        Leak("api_key", "base64", output),
        Leak("api_key", "beginning", output),
        Leak("api_key", "hex", output),
        Leak("api_key", "html", output),
        Leak("api_key", "json", f"{logs}/attempt=1.log"),
        Leak("api_key", "plain", f"{logs}/attempt=2.log"),
        Leak("api_key", "end", f"{logs}/attempt=2.log"),
        Leak("api_key", "percent", "table xcom"),
        Leak("server_hash", "json", "table dag_run"),
        Leak("server_hash", "json", "table trigger"),
    }
    # Also in the raw bytes of the database or its journal, where deleted rows stay for a while.
    assert any(leak.form == "percent" and leak.where.startswith("home/airflow.db") for leak in leaks)
    # Each of the three lines with base64 is found without the others.
    lines = [line for line in searched.leaked.splitlines() if "aligned by" in line]
    assert len(lines) == 3
    for line in lines:
        alone = Home(home.folder / line.split("aligned by ")[1][0])
        alone.database.parent.mkdir()
        alone.database.touch()
        (alone.folder / "line").write_text(line, encoding="utf-8")
        assert Leak("api_key", "base64", "line") in find_leaks(alone, keys)


def test_search_finds_nothing_in_a_new_home(migrated, keys):
    assert find_leaks(migrated, keys) == set()
