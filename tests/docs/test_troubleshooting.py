"""The page on troubleshooting has each message that people can meet, and no other."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jinja2
import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG
from messages import Code

import airflow_provider_bankconnect

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.rst"
# Sections with messages of other software. All other rows are of messages in our code.
OTHERS = {"Messages of Airflow", "Installation"}
# Its rows are of forms that many messages have, so they stand for errors of arguments only.
ARGUMENTS = "Arguments"
ARGUMENT_ERRORS = {"ValueError", "ArgumentTypeError", "command"}
ADVICE = """
Give it a row in docs/troubleshooting.rst, in the section of what raises it: in the first cell a part of its text that
no value changes (``...`` stands for what differs), then its cause, and what to do. If a row there has the same cause
and cure, add the text to its first cell."""
# Errors that never leave the package, and why.
CAUGHT = {
    "too large": "get_analysis() raises 'but not JSON' instead",
    "the rest of the body is not needed": "only the status of such an answer counts",
}
# What is raised or logged here is the text of another error, whose own row says what to do.
OTHER_TEXT = {
    "catching_up.py:run": "of an id that is not valid: its parts have a row",
    "connection.py:parse": "of the field",
    "explain_command.py:main": "of an argument",
    "hooks/addresses.py:begin": "of the operating system",
    "hooks/addresses.py:race": "of the operating system",
    "hooks/sync_http.py:_new_conn": "of urllib3",
    "receiver/client.py:_post": "of the setting that holds the address",
    "receiver/intake.py:check_internal_token": "one word, for Airflow's own components and the relay",
    "receiver/intake.py:parse": "of pydantic, for each field",
    "relay/app.py:_parse": "the fields, of a request that only BankConnectRelayOperator sends",
    "relay/command.py:main": "of a setting",
    "sandbox/__main__.py:main": "of an argument, or of the operating system",
    "sandbox/play.py:read_fault": "of a field",
    "sandbox/play.py:read_file": "of the operating system, or of a field",
    "sandbox/play.py:read_statement": "of a field",
    "sensors/base.py:_read_event": "of the error that ended the wait",
    "triggers/listener.py:_raise_for_status": "the status",
    "triggers/poller.py:result_of": "of the error of a poke that several waits share",
    "ui/app.py:_static": "the status",
    "ui/checks.py:_failed": "of an argument or a connection",
}


class Row(NamedTuple):
    """A row of a table: the texts in its first cell, and the other cells."""

    section: str
    texts: list[str]
    cells: list[str]


def rows_of(page: str) -> list[Row]:
    """Return the rows of all tables under "By message"."""
    found = []
    body = page.partition("By message\n----------\n")[2].partition("\n.. _details:\n")[0]
    for section in re.finditer(r"^([^\n]+)\n~+\n(.*?)(?=^[^\n]+\n~+\n|\Z)", body, flags=re.MULTILINE | re.DOTALL):
        for row in re.split(r"^   \* - ", section[2], flags=re.MULTILINE)[2:]:
            first, *cells = (" ".join(cell.split()) for cell in row.split("\n     - "))
            found.append(Row(section[1], re.findall(r"``(.+?)``", first), cells))
    return found


@cache
def pattern_of(text: str) -> re.Pattern[str]:
    return re.compile(".*?".join(re.escape(part) for part in text.split("...")))


ROWS = rows_of(PAGE.read_text(encoding="utf-8"))
OURS = [(row, text) for row in ROWS if row.section not in OTHERS for text in row.texts]
CODE = Code(Path(airflow_provider_bankconnect.__file__).parent)


def stands_for(row: Row, text: str, message) -> bool:
    """Return whether a text of a row is of a message."""
    if row.section == ARGUMENTS and message.kind not in ARGUMENT_ERRORS:
        return False
    return pattern_of(text).search(message.text) is not None


def test_each_message_that_people_can_meet_has_a_row():
    missing = {
        message.place: message.text
        for message in CODE.messages
        if message.is_readable and message.text not in CAUGHT
        if not any(stands_for(row, text, message) for row, text in OURS)
    }
    assert not missing, "\n".join(f"{place}: {text}" for place, text in missing.items()) + ADVICE


def test_each_row_is_of_a_message_in_the_code():
    gone = [
        f"{row.section}: {text}"
        for row, text in OURS
        if not any(stands_for(row, text, message) for message in CODE.messages)
        # A part of a message that is put together at run time.
        if not pattern_of(text).search(CODE.strings)
    ]
    assert not gone, f"not in the code any more, so remove them from docs/troubleshooting.rst: {gone}"


def test_rows_of_other_software_are_not_of_our_messages():
    ours = [
        text
        for row in ROWS
        if row.section in OTHERS
        for text in row.texts
        if any(pattern_of(text).search(message.text) for message in CODE.messages)
    ]
    assert ours == []


def test_rows_are_whole_and_none_stands_for_everything():
    assert {row.section for row in ROWS} > OTHERS | {ARGUMENTS}
    for row in ROWS:
        assert row.texts, row
        assert len(row.cells) == 2, row
        assert all(cell.endswith((".", "?", "``")) for cell in row.cells), row
        for text in row.texts:
            assert len(re.findall(r"[A-Za-z0-9]{2,}", text)) > 1 or row.section in OTHERS, text
    texts = [text for row in ROWS for text in row.texts]
    assert len(texts) == len(set(texts)), sorted(text for text in texts if texts.count(text) > 1)


def test_messages_without_text_of_their_own_are_known():
    """So that a message that these tests cannot read does not go unseen."""
    unread = {message.function for message in CODE.messages if not message.is_readable}
    assert unread - OTHER_TEXT.keys() == set(), "name the text in its raise, or add it to OTHER_TEXT with the reason"
    assert OTHER_TEXT.keys() - unread == set()
    assert CAUGHT.keys() <= {message.text for message in CODE.messages}


SAMPLE = '''
"""A docstring is no message."""
CURE = "call a person"

def check(name, value):
    """Raise an error."""
    problem = "is odd"
    if value > 1:
        problem = f"is {value}, which is too much"
    if value > 2:
        raise KeyError(f"{name} {problem}: {CURE}")
    problem = "is small"
    raise made(f"{name} {problem}")

def made(text):
    return OSError(5, text)

def run(self):
    _log.warning("%s of %d went wrong", 1, 2)
    _log.info("all is well")
    check("the first value", 1)
    self._log("warning", "odd" if self else "not odd at all")
'''


def test_messages_are_read_in_each_way_that_they_are_put_together(tmp_path):
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    found = {(message.kind, message.text) for message in Code(tmp_path).messages}
    assert found == {
        ("KeyError", "the first value is odd: call a person"),
        ("KeyError", "the first value is …, which is too much: call a person"),
        ("OSError", "the first value is small"),
        ("log", "… of … went wrong"),
        ("log", "odd"),
        ("log", "not odd at all"),
    }


@pytest.mark.parametrize("template", ["{{ dag_run.conf['link_id'] }}", "{{ data_interval_start }}", "{{ ds }}"])
def test_messages_of_airflows_templates_are_as_the_page_has_them(template):
    """A run without ``--conf``, and a run without a date."""
    with DAG("any", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")) as dag:
        pass
    with pytest.raises(jinja2.UndefinedError) as raised:
        dag.get_template_env().from_string(template).render(dag_run=SimpleNamespace(conf={}))
    texts = [text for row in ROWS if row.section == "Messages of Airflow" for text in row.texts]
    assert str(raised.value) in texts
