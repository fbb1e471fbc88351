"""The output of ``explain``, and its short form in the message of a timeout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gate_cases import CASES, expectation, payloads
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stories import CUSTOMER, LINK, statement, wrong_password

from airflow_provider_bankconnect.__main__ import main
from airflow_provider_bankconnect.api import ANALYSES, StatementProgress, WebhookMode, WebhookPayload
from airflow_provider_bankconnect.ask import ask_and_explain
from airflow_provider_bankconnect.expectation import Expectation
from airflow_provider_bankconnect.explain import explain
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate, Records
from airflow_provider_bankconnect.sandbox import Fault, Sandbox
from airflow_provider_bankconnect.words import counts_from, in_short, not_yet

PINNED = Path(__file__).with_name("explain")
COMMAND = "python -m airflow_provider_bankconnect explain"
NOW = datetime(2025, 3, 6, 13, 0, tzinfo=UTC)
OTHER_CUSTOMER = "customer-2"
PASSES = "The sensor passes, whatever on_failed is."
WAITS = "The sensor continues to wait, whatever on_failed is."
ON_FAILED = [
    '  "fail"  the task fails, and is not retried (the default)',
    '  "skip"  the task is skipped',
    '  "wait"  the sensor continues to wait',
    '  "pass"  the sensor passes, and returns the failed rows with the others',
]
ASK_BEGUN = "Is the link spelt as the SDK was given it, and has the customer begun?"
ASK_UPLOADED = "Is entity_id right, and has the customer uploaded anything"
ASK_REJECTED = (
    "Was the upload rejected (wrong or missing PDF password, unknown bank, unreadable: then no statement ever appears)?"
)
HISTORY = "Entity customer-1, payload history, newest first, times in UTC:"
PROGRESS = "Entity customer-1, progress of its transactions:"


@pytest.fixture
def box(request):
    with Sandbox(**getattr(request, "param", {})) as sandbox:
        yield sandbox


@pytest.fixture
def ask(capsys, connection):  # noqa: ARG001 - the command reads it
    """Run the command, and return its lines."""

    def ask(*arguments):
        assert main(["explain", *arguments]) == 0
        output, errors = capsys.readouterr()
        assert errors == ""
        return output.splitlines()

    return ask


@pytest.fixture
def refused(capsys, connection):  # noqa: ARG001 - the command reads it
    """Run the command, which must fail, and return its one line of error."""

    def refused(*arguments):
        assert main(["explain", *arguments]) == 1
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.count("\n") == 1
        return errors

    return refused


def put(box, time, statement_id, progress="completed", **more):
    """Add a row of 6 March 2025 to the history."""
    row = {"link_id": LINK, "entity_id": CUSTOMER, "statement_id": statement_id, "progress": progress, **more}
    box.payload(date_time=datetime.fromisoformat(f"2025-03-06T{time}+00:00"), **row)


def wrong_password_then_success(box):
    for time in ("12:41:52", "12:44:10"):
        put(box, time, "", "failed", reason="Incorrect user ID or password")
    put(box, "12:46:33", "march")


def next_month(box):
    put(box, "12:46:33", "march")


def history_silent(box):
    with BankConnectHook() as hook:
        for mode in (WebhookMode.NET_BANKING_AND_MANUAL, WebhookMode.NET_BANKING):
            hook.update_webhook(box.inbox_url, webhook_mode=mode, allow_private_host=True)
    box.play(statement("march", mode="pdf"))


@pytest.mark.parametrize(
    ("story", "commands", "box"),
    [
        (wrong_password_then_success, [f"--link {LINK} --since 2025-03-06"], {}),
        (next_month, [f"--link {LINK}", f"--link {LINK} --since 2025-04-01"], {}),
        (history_silent, [f"--link {LINK}", f"--link {LINK} --customer"], {"history_omits_unsent": True}),
    ],
    indirect=["box"],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("connection")
def test_explain_prints_what_the_readme_shows(box, capsys, story, commands):
    story(box)
    capsys.readouterr()
    transcript = []
    for command in commands:
        assert main(["explain", *command.split()]) == 0
        transcript.append(f"$ {COMMAND} {command}\n{capsys.readouterr().out}")
    assert "\n".join(transcript) == (PINNED / f"{story.__name__}.txt").read_text(encoding="utf-8")


def test_an_old_failed_login_is_a_failure_with_the_vendors_reason(box, ask):
    put(box, "12:41:52", "", "failed", reason="Incorrect user ID or password")
    lines = ask("--link", LINK)
    assert lines[0] == (
        f"FAILED: payload history of link '{LINK}': the newest row is a failure; "
        "reasons: 'Incorrect user ID or password'."
    )
    assert lines[-6:] == ["Missing: 1 completed statement.", "What happens now depends on on_failed:", *ON_FAILED]


def test_a_new_failed_login_is_pending_and_the_time_when_it_counts_is_named(box, ask):
    box.play(wrong_password())
    lines = ask("--link", LINK)
    assert lines[0].startswith("STILL WAITING: ")
    until = re.fullmatch(
        r"The sensor continues to wait\. If no new statement arrives until (.{19}) UTC, on_failed decides:", lines[-5]
    )
    minutes = (datetime.fromisoformat(f"{until[1]}+00:00") - datetime.now(UTC)).total_seconds() / 60
    assert 15 < minutes <= 30
    assert lines[-4:] == ON_FAILED


def test_failure_grace_can_be_given(box, ask):
    box.play(statement("march", "failed", after=-600))
    assert ask("--link", LINK)[0].startswith("STILL WAITING: ")
    assert ask("--link", LINK, "--failure-grace", "5")[0].startswith("FAILED: ")


def test_a_failed_pdf_and_the_number_of_missing_statements_are_named(box, ask):
    put(box, "12:41:00", "january")
    put(box, "12:42:00", "february")
    put(box, "12:43:00", "march", "failed", reason="The file is not a bank statement")
    asked = ("--link", LINK, "--expected-statements", "3")
    lines = ask(*asked)
    assert "  2025-03-06 12:43:00  failed      statement march (The file is not a bank statement): it failed" in lines
    assert "Missing: 1 more completed statement." in lines
    put(box, "12:44:00", "march-again")
    lines = ask(*asked)
    assert lines[0] == f"PASSED: payload history of link '{LINK}': 3 statements completed."
    assert lines[4].endswith(": it failed, but enough others are completed")


def test_a_statement_that_was_processed_again_counts_by_its_newest_row(box, ask):
    put(box, "12:41:00", "march", "failed", reason="The bank did not answer")
    put(box, "12:43:00", "march")
    assert ask("--link", LINK, "--since", "2025-03-06")[3:] == [
        "  2025-03-06 12:43:00  completed   statement march: counts",
        (
            "  2025-03-06 12:41:00  failed      statement march (The bank did not answer): "
            "does not count: the same statement has a newer row"
        ),
        "",
        PASSES,
    ]


def test_the_rows_of_two_entities_are_listed_separately(box, ask):
    put(box, "12:41:00", "hers")
    put(box, "12:42:00", "his", entity_id=OTHER_CUSTOMER)
    assert ask("--link", LINK, "--expected-statements", "2") == [
        f"STILL WAITING: payload history of link '{LINK}': 1 of 2 statements completed.",
        "",
        "Entity customer-2, newest first, times in UTC:",
        "  2025-03-06 12:42:00  completed   statement his: counts",
        "Entity customer-1, newest first, times in UTC:",
        "  2025-03-06 12:41:00  completed   statement hers: counts",
        "",
        "Missing: 1 more completed statement.",
        WAITS,
        "",
        "To check:",
        "- Statements of several entities are never added up: name the right one with entity_id.",
    ]
    assert (
        "  2025-03-06 12:41:00  completed   statement hers: not in the result: entity customer-2 passes the gate"
        in ask("--link", LINK)
    )
    assert "  2025-03-06 12:42:00  completed   statement his: does not count: of another entity, 'customer-2'" in ask(
        "--link", LINK, "--entity", CUSTOMER
    )


def test_a_fourth_statement_in_progress_is_named(box, ask):
    for statement_id in ("july", "august", "september"):
        box.play(statement(statement_id, after=-60))
    box.play(statement("october", after=3600))
    assert ask("--entity", CUSTOMER, "--expected-statements", "3")[2:] == [
        "Statements:",
        "  completed   statement august (online): counts",
        "  completed   statement july (online): counts",
        "  processing  statement october (online): in progress",
        "  completed   statement september (online): counts",
        "",
        "Missing: the end of october.",
        WAITS,
    ]


def test_a_statement_in_progress_without_a_row_is_shown_from_the_progress(box, ask):
    put(box, "12:41:00", "july")
    box.play(statement("august", after=3600))
    lines = ask("--link", LINK, "--expected-statements", "2")
    assert lines[4:6] == [
        "Entity customer-1, known to BankConnect but not in this history:",
        "  processing  statement august (online): in progress: its row comes when it is over",
    ]
    assert "To check:" not in lines


def test_a_failed_statement_that_is_processed_again_is_shown_from_the_progress(box, ask):
    box.play(statement("march", "failed", after=-7200))
    assert "march" not in "".join(ask("--link", LINK)[4:])
    box.play(statement("march", after=3600))
    lines = ask("--link", LINK)
    assert lines[0].startswith("FAILED: ")
    assert lines[4:6] == [
        "Entity customer-1, known to BankConnect but not in this history:",
        "  processing  statement march (online): in progress: its row comes when it is over",
    ]


def test_a_pdf_without_a_link_is_among_the_things_to_check(box, ask):
    box.play(statement("march", link_id=None, mode="pdf"))
    assert ask("--link", LINK) == [
        f"STILL WAITING: payload history of link '{LINK}': no row at all.",
        "",
        "Missing: 1 completed statement.",
        WAITS,
        "",
        "To check:",
        f"- BankConnect knows no entity of this link: {ASK_BEGUN[0].lower()}{ASK_BEGUN[1:]}",
        "- Was a PDF uploaded without the link (then no payload history has it, only the progress of its entity)?",
    ]
    assert (
        ask("--entity", CUSTOMER)[0]
        == "PASSED: progress of transactions of entity 'customer-1': 1 statement completed."
    )


def test_if_the_links_entities_cannot_be_read_all_causes_are_to_be_checked(box, ask):
    box.fault(Fault(kind="status", call="entities"))
    lines = ask("--link", LINK)
    assert lines[-4:-2] == ["To check:", f"- {ASK_BEGUN}"]
    assert "webhook_mode 1" in lines[-1]


@pytest.mark.parametrize("box", [{"unknown_link": "404"}], indirect=True, ids=[""])
def test_a_404_is_shown_with_its_possible_meanings(ask):
    lines = ask("--link", LINK)
    assert lines[0] == f"STILL WAITING: payload history of link '{LINK}': no row at all."
    assert lines[-1] == "BankConnect said: webhook_payloads: HTTP 404: unknown, or nothing there yet."


@pytest.mark.parametrize("box", [{"timezone": "Asia/Kolkata"}], indirect=True, ids=[""])
def test_a_wrong_timezone_is_named_with_the_one_that_was_used(box, ask):
    box.play(statement("march"))
    lines = ask("--link", LINK)
    assert lines[0].startswith(f"ERROR: payload history of link '{LINK}': A payload is 5:")
    assert lines[-4:] == [
        "The sensor ends with this error, whatever on_failed and soft_fail say.",
        "",
        "To check:",
        "- Set the connection's timezone to that of BankConnect's times: they were read as UTC.",
    ]


def test_for_a_failed_statement_of_the_progress_on_failed_decides(box, ask):
    box.play(statement("march", "failed", reason="The PDF has a password"))
    lines = ask("--entity", CUSTOMER)
    assert lines[0].startswith("FAILED: ")
    assert lines[-5:] == ["What happens now depends on on_failed:", *ON_FAILED]


def test_an_unknown_entity_is_among_the_things_to_check(ask):
    lines = ask("--entity", "nobody")
    assert lines[0] == "STILL WAITING: progress of transactions of entity 'nobody': no statement at all."
    assert lines[-4].startswith(f"- {ASK_UPLOADED} (a failed login never shows here")
    assert lines[-3] == f"- {ASK_REJECTED}"


def test_the_output_does_not_depend_on_the_order_of_rows_of_one_second(box, ask):
    for entity_id in (OTHER_CUSTOMER, CUSTOMER):
        for number, progress in enumerate(("completed", "failed", "completed", "processing")):
            put(box, "12:41:00", f"{entity_id}-{number}", progress, entity_id=entity_id)
            put(box, "12:41:00", f"{entity_id}-{number}", "failed", entity_id=entity_id)
    lines = ask("--link", LINK)
    box.fault(Fault(kind="shuffle"))
    assert all(ask("--link", LINK) == lines for _ in range(5))


def test_control_characters_of_a_reason_are_replaced(box, ask):
    put(box, "12:41:00", "march", "failed", reason="\x1b[31mred\nPASSED: all is well")
    assert "  2025-03-06 12:41:00  failed      statement march (?[31mred?PASSED: all is well): it failed" in ask(
        "--link", LINK
    )


def test_a_wrong_base_path_is_named(box, refused, monkeypatch):
    connection = box.connection
    connection["host"] = connection["host"].replace("bank-connect", "bank-conect")
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))
    for arguments in (("--link", LINK), ("--entity", CUSTOMER)):
        error = refused(*arguments)
        assert "404" in error
        assert f"Is the path in the connection's host right ({connection['host']})?" in error


def test_wrong_keys_are_named_and_not_shown(box, refused, monkeypatch):
    connection = {**box.connection, "password": "a-wrong-hash"}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))
    error = refused("--link", LINK)
    assert error.startswith("BankConnectAuthError: webhook_payloads: HTTP 401")
    assert "a-wrong-hash" not in error
    assert box.api_key not in error


def test_an_invalid_key_is_named_and_not_shown(box, refused, monkeypatch):
    connection = {**box.connection, "password": "s3cret s3cret"}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))
    error = refused("--link", LINK)
    assert "Server Hash" in error
    assert "s3cret" not in error


@pytest.mark.parametrize("kind", ["status", "reset", "garbage", "half", "redirect"])
def test_an_error_of_the_vendor_is_reported_in_one_line(box, refused, kind):
    box.fault(Fault(kind=kind))
    assert refused("--link", LINK).startswith("BankConnect")


def test_a_missing_connection_is_named(refused):
    assert "nowhere" in refused("--conn", "nowhere", "--link", LINK)


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give --link, or --entity, or both"),
        (["--link", " "], "link_id must not be blank"),
        (["--link", LINK, "--since", "yesterday"], "since must be a datetime or ISO 8601 text"),
        (["--link", LINK, "--expected-statements", "0"], "expected_statements must be a whole number from 1"),
        (["--link", LINK, "--failure-grace", "soon"], "--failure-grace"),
        (["--link", LINK, "--failure-grace", "nan"], "failure_grace must be"),
        (["--link", LINK, "--failure-grace", "-1"], "failure_grace must not be negative"),
        (["--link", LINK, "--statement", "a", "--expected-statements", "2"], "could never pass"),
        (["--customer"], "give --link, or --entity, or both"),
        (["--link", LINK, "--analysis", "identity"], "--analysis goes with --entity alone: a payload history has no"),
        (["--entity", CUSTOMER, "--customer", "--analysis", "identity"], "--customer always reads transactions"),
        (["--entity", CUSTOMER, "--customer", "--since", "yesterday"], "since must be a datetime or ISO 8601 text"),
        (["--entity", CUSTOMER, "--analysis", "fraud"], "analysis must be one of"),
        (["--entity", CUSTOMER, "--since", "2025-03-06"], "--since goes with --link or --customer"),
        (["--entity", CUSTOMER, "--failure-grace", "5"], "--failure-grace goes with --link or --customer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_refused_before_a_request(box, capsys, arguments, named):
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert box.requests == []


def test_help_describes_the_options_and_the_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--link",
        "--entity",
        "--customer",
        "--since",
        "monthly_analysis_updated",
        "Exit code: 0 when BankConnect could be asked",
    ):
        assert words in text


@pytest.mark.parametrize("box", [{"unknown_link": "404"}], indirect=True, ids=[""])
@pytest.mark.usefixtures("connection")
def test_the_parts_of_an_explanation_are_those_of_the_commands_output(box, ask):
    gate = HistoryGate.parse(link_id=LINK)
    with BankConnectHook(max_retries=0) as hook:
        nothing = ask_and_explain(hook, gate)
        assert str(nothing).splitlines() == ask("--link", LINK)
        put(box, "12:43:00", "march")
        passed = ask_and_explain(hook, gate)
    assert (nothing.state, nothing.table) == ("pending", ())
    assert nothing.outcome == ("Missing: 1 completed statement.", WAITS)
    assert nothing.hints[0].startswith("BankConnect knows no entity of this link")
    assert nothing.remarks == ("BankConnect said: webhook_payloads: HTTP 404: unknown, or nothing there yet.",)
    assert (passed.state, len(passed.table), passed.outcome, passed.remarks) == ("passed", 2, (PASSES,), ())


@pytest.mark.usefixtures("connection")
def test_the_command_writes_the_page_to_stdout_and_nothing_else(box):
    wrong_password_then_success(box)
    command = [sys.executable, "-W", "ignore", *COMMAND.split()[1:], "--link", LINK, "--since", "2025-03-06"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pinned = (PINNED / "wrong_password_then_success.txt").read_text(encoding="utf-8")
    assert done.stdout == pinned.partition("\n")[2]


HEADINGS = {"passed": "PASSED: ", "pending": "STILL WAITING: ", "failed": "FAILED: ", "timezone": "ERROR: "}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_each_case_of_the_gates_rules_has_one_explanation_independent_of_order(case):
    gate, rows = HistoryGate(expectation(case, NOW)), payloads(case, NOW)
    page = str(explain(gate, rows, NOW))
    assert page.startswith(HEADINGS[case.state])
    assert str(explain(gate, rows[::-1], NOW)) == page
    counted = re.findall(r"  statement (\S+).*: counts$", page, flags=re.MULTILINE)
    if case.state == "passed" and case.result is not None:
        assert sorted(counted) == sorted(case.result)


def test_a_repeated_row_counts_once(box, ask):
    for _ in range(2):
        put(box, "12:41:00", "march")
    assert ask("--link", LINK)[3:5] == [
        "  2025-03-06 12:41:00  completed   statement march: counts",
        "  2025-03-06 12:41:00  completed   statement march: the same row again",
    ]


def short(gate, *rows):
    return in_short(gate, gate.judge(rows, NOW))


def test_the_short_form_for_an_empty_history_says_what_to_check():
    assert short(HistoryGate(Expectation(link_id=LINK))) == (
        "no row that counts (to check: is the link spelt as the SDK was given it, and has the customer begun; "
        "was a PDF uploaded without the link (then no payload history has it, only the progress of its entity); "
        "is the webhook endpoint registered, with webhook_mode 1 for PDFs "
        "(an update that leaves it out resets it to 0))"
    )


def test_the_short_form_asks_for_since_first_where_it_is_given():
    gate = HistoryGate(Expectation(link_id=LINK, since=NOW - timedelta(hours=1)))
    assert short(gate).startswith(
        "no row that counts (to check: is since right, and is the connection's timezone that of BankConnect's times; "
    )


def test_the_short_form_for_an_empty_progress_says_what_to_check():
    assert short(ProgressGate(Expectation(entity_id=CUSTOMER))) == (
        "no statement that counts (to check: is entity_id right, and has the customer uploaded anything "
        "(a failed login never shows here, only in the link's payload history); "
        "was the upload rejected (wrong or missing PDF password, unknown bank, unreadable: "
        "then no statement ever appears))"
    )


# The small answers


@pytest.mark.parametrize("box", [{"transaction_status": "absent"}], indirect=True, ids=[""])
@pytest.mark.parametrize("more", [(), ("--customer",)], ids=["progress", "customer"])
def test_why_the_small_answer_was_not_used_is_said_in_one_line(box, ask, more):
    box.play(statement("march"))
    lines = ask("--entity", CUSTOMER, *more)
    assert lines[0].startswith("PASSED: ")
    why = "identity/ has no transaction_status, or an unknown one"
    assert lines[-1] == f"Read from transactions/, not from the smaller identity/: {why}."


def test_statements_in_progress_are_shown_from_the_small_answer(box, ask):
    box.play(statement("march", after=3600))
    for arguments in (("--entity", CUSTOMER), ("--link", LINK, "--customer")):
        lines = ask(*arguments)
        assert any(line.startswith("  processing  statement march (online): in progress") for line in lines)
        assert lines[-1] == WAITS
    assert box.counts["transactions"] == 0


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_progress_of_any_analysis_is_explained(box, ask, analysis):
    box.play(statement("march"))
    assert ask("--entity", CUSTOMER, "--analysis", analysis) == [
        f"PASSED: progress of {analysis} of entity 'customer-1': 1 statement completed.",
        "",
        "Statements:",
        "  completed   statement march (online): counts",
        "",
        PASSES,
    ]


# Both records of a customer


def set_progress(box, **statuses):
    """Set the progress of the customer's transactions."""
    items = [
        {
            "statement_id": name,
            "status": status,
            "source": "pdf",
            "message": "unreadable" if status == "failed" else None,
        }
        for name, status in statuses.items()
    ]
    box.play(statement("", "failed", after=-1e8))
    box.progress(CUSTOMER, items)


def test_both_records_are_shown_and_the_history_decides(box, ask):
    set_progress(box, march="completed", april="completed", may="processing", june="failed")
    put(box, "12:46:33", "march")
    lines = ask("--link", LINK, "--customer", "--since", "2025-03-06", "--statement", "march", "--statement", "april")
    assert lines == [
        f"PASSED: statements of link '{LINK}': 2 statements completed.",
        "",
        HISTORY,
        "  2025-03-06 12:46:33  completed   statement march: counts",
        *[line for line in lines if "login" in line],
        PROGRESS,
        "  completed   statement april (pdf): counts",
        "  failed      statement june (unreadable): does not count: of another statement",
        "  completed   statement march (pdf): the history decides: completed",
        "  processing  statement may (pdf): does not count: of another statement",
        "",
        PASSES,
    ]


def test_with_since_the_page_says_why_a_statement_of_the_progress_does_not_count(box, ask):
    set_progress(box, march="completed", april="completed")
    put(box, "12:46:33", "march")
    lines = ask("--link", LINK, "--customer", "--since", "2025-04-01")
    assert lines[0] == (
        f"STILL WAITING: statements of link '{LINK}': "
        "no statement that counts; 1 statement only in the progress, which has no times."
    )
    assert lines[lines.index(PROGRESS) + 1 :] == [
        (
            "  completed   statement april (pdf): does not count: "
            "since is given, and progress has no times; name it in statement_id"
        ),
        "  completed   statement march (pdf): the history decides: its rows do not count",
        "",
        "Missing: 1 completed statement.",
        WAITS,
        "",
        "To check:",
        "- Is since right, and is the connection's timezone that of BankConnect's times?",
    ]
    assert ask("--link", LINK, "--customer", "--since", "2025-04-01", "--statement", "april")[0].startswith("PASSED: ")


def test_a_statement_in_progress_in_either_record_is_what_the_gate_waits_for(box, ask):
    set_progress(box, march="processing", april="completed")
    put(box, "12:46:33", "march")
    put(box, "12:47:00", "april", "processing")
    lines = ask("--link", LINK, "--customer")
    assert "  2025-03-06 12:47:00  processing  statement april: in progress" in lines
    assert "  completed   statement april (pdf): the history decides: in progress" in lines
    assert "  processing  statement march (pdf): in progress: the gate waits for its end" in lines
    assert lines[-2:] == ["Missing: the end of april, march.", WAITS]


def test_a_completed_statement_that_is_processed_again_is_not_counted_twice(box, ask):
    set_progress(box, march="processing")
    put(box, "12:46:33", "march")
    lines = ask("--link", LINK, "--customer", "--expected-statements", "2")
    assert lines[-3:] == ["Missing: the end of march.", "Missing: 1 more completed statement.", WAITS]


def test_statements_of_two_entities_are_missing_per_entity(box, ask):
    put(box, "12:41:00", "hers")
    put(box, "12:42:00", "his", "processing", entity_id=OTHER_CUSTOMER)
    lines = ask("--link", LINK, "--customer", "--expected-statements", "2")
    assert lines[-3:] == ["Missing: the end of his.", "Missing: 1 more completed statement.", WAITS]


def test_a_customer_without_a_link_is_explained_by_the_entity(box, ask):
    box.play(statement("march", "failed", link_id=None, mode="pdf", reason="The PDF has a password"))
    lines = ask("--entity", CUSTOMER, "--customer")
    assert lines[:4] == [
        "FAILED: statements of entity 'customer-1': 1 statement failed; reasons: 'The PDF has a password'.",
        "",
        PROGRESS,
        "  failed      statement march (The PDF has a password): it failed",
    ]
    assert lines[-5:] == ["What happens now depends on on_failed:", *ON_FAILED]


def test_a_failure_does_not_end_the_wait_beside_a_completed_statement_without_a_time(box, ask):
    set_progress(box, april="completed")
    put(box, "12:41:52", "", "failed")
    lines = ask("--link", LINK, "--customer", "--expected-statements", "2")
    assert lines[0].startswith("STILL WAITING: ")
    assert lines[-2] == WAITS
    assert lines[-1].endswith(" does not end the wait: a completed statement that only the progress has may be newer.")


def test_a_failed_login_of_which_no_entity_is_named_reads_well(box, ask):
    put(box, "12:41:52", "", "failed", entity_id="", reason="Incorrect user ID or password")
    heading = "Without an entity, newest first, times in UTC:"
    line = (
        "  2025-03-06 12:41:52  failed      login (Incorrect user ID or password): "
        "does not count: BankConnect names no entity"
    )
    lines = ask("--link", LINK)
    assert lines[0].startswith("FAILED: ")
    assert lines[2:4] == [heading, line]
    lines = ask("--link", LINK, "--customer")
    assert lines[0].startswith("FAILED: ")
    assert lines[2:4] == ["Without an entity, payload history, newest first, times in UTC:", line]
    lines = ask("--link", LINK, "--entity", CUSTOMER)
    assert lines[2:4] == [heading, line]
    assert "Is entity_id right?" not in "".join(lines)


@pytest.mark.parametrize(
    ("progress", "remark"),
    [
        ("completed", "does not count: BankConnect names no entity"),
        ("failed", "it failed; BankConnect names no entity"),
        ("processing", "in progress; BankConnect names no entity"),
    ],
)
def test_a_statement_without_an_entity_never_counts(box, ask, progress, remark):
    put(box, "12:41:52", "march", progress, entity_id="")
    for more in ((), ("--customer",)):
        lines = ask("--link", LINK, *more)
        assert lines[3].endswith(f"statement march: {remark}")
        assert "Missing: 1 completed statement." in lines


def test_a_row_without_an_entity_that_is_newer_than_the_statements_own_is_named(box, ask):
    put(box, "12:41:00", "march")
    put(box, "12:42:00", "march", "failed", entity_id="")
    line = "  2025-03-06 12:41:00  completed   statement march: over, but a newer row of this statement names no entity"
    for more in ((), ("--customer",), ("--entity", CUSTOMER)):
        assert line in ask("--link", LINK, *more)


def test_an_entity_of_another_link_is_named_with_what_to_check(box, ask):
    box.play(statement("march"))
    put(box, "12:41:00", "april", link_id="loan-1")
    assert ask("--link", "loan-1", "--entity", CUSTOMER, "--customer") == [
        (
            "STILL WAITING: statements of link 'loan-1' and entity 'customer-1': "
            f"entity 'customer-1' is of link '{LINK}', not of link 'loan-1'."
        ),
        "",
        HISTORY,
        "  2025-03-06 12:41:00  completed   statement april: not judged",
        "",
        "Missing: 1 completed statement.",
        WAITS,
        "",
        "To check:",
        "- Are link_id and entity_id of the same customer? The sensor needs only one of them.",
    ]


def test_for_a_customer_without_any_statement_the_page_asks_whether_the_upload_was_rejected(box, ask):
    assert ask("--link", LINK, "--customer")[-2:] == [
        f"- BankConnect knows no entity of this link: {ASK_BEGUN[0].lower()}{ASK_BEGUN[1:]}",
        "- Was a PDF uploaded without the link (then give its entity_id)?",
    ]
    box.play(statement("march", begins=3600, after=7200))
    lines = ask("--link", LINK, "--customer")
    assert lines[2] == f"{PROGRESS} no statement"
    assert lines[-2:] == [
        "- BankConnect knows the link, but has no statement: has the customer finished?",
        f"- {ASK_REJECTED}",
    ]
    assert ask("--link", LINK)[-2:] == lines[-2:]
    assert ask("--entity", CUSTOMER, "--customer")[-2].startswith(f"- {ASK_UPLOADED} (a failed login never shows here")
    assert ask("--link", LINK, "--entity", CUSTOMER, "--customer")[-2:] == [f"- {ASK_UPLOADED}?", f"- {ASK_REJECTED}"]
    put(box, "12:41:00", "april")
    assert ask("--link", LINK, "--since", "2025-04-01", "--customer")[-1] == f"- {ASK_REJECTED}"


@pytest.mark.parametrize("more", [(), ("--link", LINK)], ids=["entity", "both"])
def test_an_unknown_entity_of_a_customer_is_shown_with_the_404(ask, more):
    lines = ask("--entity", "nobody", "--customer", *more)
    assert lines[0].endswith(" entity 'nobody': no statement at all.")
    assert lines[-1].endswith(": HTTP 404: unknown, or nothing there yet.")


def test_the_page_of_a_customer_makes_no_requests_of_its_own(box, ask):
    box.play(statement("march", after=3600))
    ask("--link", LINK, "--customer")
    assert [record.call for record in box.requests] == ["webhook_payloads", "entities", "identity"]


def test_a_link_with_too_many_entities_is_refused_in_one_line(box, refused):
    for number in range(51):
        box.play(statement(f"statement-{number}", entity_id=f"entity-{number}", after=3600))
    assert "has more than 50 entities" in refused("--link", LINK, "--customer")


def test_a_wrong_timezone_is_named_for_a_customer_too(box, ask, monkeypatch):
    box.play(statement("march"))
    connection = {**box.connection, "extra": {**box.connection["extra"], "timezone": "America/New_York"}}
    monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(connection))
    for more in ((), ("--customer",)):
        lines = ask("--link", LINK, *more)
        assert lines[0].startswith("ERROR: ")
        assert lines[-1].endswith("they were read as America/New_York.")
    assert "  completed   statement march (online): not judged" in lines


@pytest.mark.parametrize(
    ("arguments", "checks"),
    [
        (
            {"link_id": LINK},
            [
                "is the link spelt as the SDK was given it, and has the customer begun",
                "was a PDF uploaded without the link (then give its entity_id)",
            ],
        ),
        (
            {"entity_id": CUSTOMER},
            [f"{ASK_UPLOADED.lower()} (a failed login never shows here, only in the link's payload history)"],
        ),
        (
            {"link_id": LINK, "entity_id": CUSTOMER},
            ["are link_id and entity_id of the same customer, and has the customer uploaded anything"],
        ),
        (
            {"link_id": LINK, "entity_id": CUSTOMER, "since": NOW},
            [
                "is since right (with it, a statement that only the progress has counts only if statement_id names it)",
                "are link_id and entity_id of the same customer, and has the customer uploaded anything",
            ],
        ),
    ],
    ids=["link", "entity", "both", "since"],
)
def test_the_short_form_for_a_customer_without_a_statement_says_what_to_check(arguments, checks):
    gate = CustomerGate(Expectation(**arguments))
    checks = [*checks, f"{ASK_REJECTED[0].lower()}{ASK_REJECTED[1:-1]}"]
    text = in_short(gate, gate.judge(Records(), NOW))
    assert text == f"no statement that counts (to check: {'; '.join(checks)})"
    assert not_yet(gate, gate.judge(Records(), NOW), "fail", NOW) == f"{gate}: {text}"
    assert "webhook_mode" not in text


def test_the_line_of_a_customer_has_both_records():
    items = [
        StatementProgress(statement_id=name, status=status)
        for name, status in (("s1", "completed"), ("", "processing"))
    ]
    login = WebhookPayload(
        statement_id="", entity_id="e1", link_id=LINK, progress="failed", reason="wrong", date_time=NOW
    )
    gate = CustomerGate(Expectation(link_id=LINK))
    verdict = gate.judge(Records([login], {"e1": items}), NOW)
    assert not_yet(gate, verdict, "fail", NOW) == (
        f"statements of link '{LINK}': 1 failed login 13:00 UTC (\"wrong\"); 1 statement in progress; "
        "1 completed statement"
    )


# The words and the verdict

entities = st.sampled_from(["e1", "e1", "e1", "e2", ""])
statement_ids = st.sampled_from(["", "s1", "s1", "s2", "s3"])
rows_of_a_history = st.builds(
    lambda sid, entity, progress, seconds: WebhookPayload(
        statement_id=sid,
        entity_id=entity,
        link_id=LINK,
        progress=progress,
        reason="",
        date_time=NOW - timedelta(seconds=seconds),
    ),
    statement_ids,
    entities,
    st.sampled_from(["completed", "failed", "failed", "failed", "processing"]),
    st.integers(0, 9),
)
items_of_a_progress = st.builds(
    lambda sid, status: StatementProgress(
        statement_id=sid, status=status if sid or status != "completed" else "failed"
    ),
    statement_ids,
    st.sampled_from(["completed", "completed", "failed", "failed", None]),
)
customers = st.builds(
    Records,
    st.lists(rows_of_a_history, max_size=4),
    st.dictionaries(st.sampled_from(["e1", "e2"]), st.lists(items_of_a_progress, max_size=3), max_size=2),
)
expectations = st.builds(
    lambda entity, named, since, needed, grace: Expectation(
        link_id=LINK,
        entity_id=entity,
        statement_id=named,
        since=since,
        expected_statements=1 if named else needed,
        failure_grace=timedelta(seconds=grace),
    ),
    st.sampled_from([None, None, "e1"]),
    st.sampled_from([None, None, None, ("s1",), ("s1", "s2")]),
    st.sampled_from([None, None, NOW - timedelta(seconds=5)]),
    st.integers(1, 3),
    st.integers(5, 20),
)


RECENT_LOGIN = WebhookPayload(
    statement_id="", entity_id="e1", link_id=LINK, progress="failed", reason="", date_time=NOW - timedelta(minutes=1)
)
DONE_AND_FAILED = [
    StatementProgress(statement_id="s1", status="completed"),
    StatementProgress(statement_id="s2", status="failed"),
]


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@example(Expectation(link_id=LINK, expected_statements=2), Records([RECENT_LOGIN], {"e1": DONE_AND_FAILED}))
@example(Expectation(link_id=LINK, expected_statements=3), Records([RECENT_LOGIN], {"e1": DONE_AND_FAILED}))
@given(expectations, customers)
def test_a_failure_is_announced_for_exactly_the_time_when_the_verdict_becomes_failed(expect, records):
    for gate, seen in ((CustomerGate(expect), records), (HistoryGate(expect), records.rows)):
        verdict = gate.judge(seen, NOW)
        explanation = explain(gate, seen, NOW)
        page = str(explanation)
        assert explanation.state == verdict.state
        assert page.startswith(HEADINGS[verdict.state])
        if verdict.state != "pending":
            continue
        line = not_yet(gate, verdict, "fail", NOW)
        until = counts_from(gate, verdict)
        assert ("fails at" in line) == ("on_failed decides" in page) == (until is not None)
        if until is None:
            assert gate.judge(seen, NOW + timedelta(days=1)).state == "pending"
        else:
            assert f"until {until:%Y-%m-%d %H:%M:%S} UTC" in page
            assert gate.judge(seen, until - timedelta(seconds=1)).state == "pending"
            assert gate.judge(seen, until).state == "failed"


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(expectations, customers)
def test_the_page_of_a_customer_agrees_with_the_verdict_and_does_not_depend_on_order(expect, records):
    gate = CustomerGate(expect)
    verdict = gate.judge(records, NOW)
    page = str(explain(gate, records, NOW))
    reverse = Records(records.rows[::-1], {name: items[::-1] for name, items in reversed(records.items.items())})
    assert str(explain(gate, reverse, NOW)) == page
    counted = re.findall(r"  statement (\S+).*: counts$", page, flags=re.MULTILINE)
    if verdict.state == "passed":
        assert sorted(counted) == sorted(row.statement_id for row in verdict.rows)
    assert ("Missing: " in page) <= (verdict.state != "passed")
