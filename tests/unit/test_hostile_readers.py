"""From any answer and any connection the readers make typed values or an error of ours that quotes nothing.

`FUZZ_EXAMPLES=20000 pytest tests/unit/test_hostile_readers.py` tries this many of each, different ones every time; a
failure prints the `@reproduce_failure` that repeats it. Numbers and nesting are only a little over the limits of the
libraries that read them, so that they are harmless to any library.
"""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.api import (
    Answer,
    BankConnectError,
    BankConnectTransientError,
    ConnectionSettings,
    Entity,
    Request,
    Result,
    StatementProgress,
    WebhookPayload,
    check_status,
    retry_after_seconds,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

fuzz = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# Stands for a customer's data in an answer, and for a key in a connection.
PLANTED = "PLANTED-7c0ffee1"
# Placeholders for JSON that no Python value stands for: NaN, a name twice, half a character.
HOLE, TWICE = "@@hole@@", "@@twice@@"


# JSON as text: Python's values cannot express all of it.

numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.integers(1, 5000).map(lambda digits: "9" * digits),
    st.integers(1, 1000).map(lambda power: f"1e{power}"),
    st.sampled_from(["-0", "1e-999", "-1E+400", "0." + "1" * 3000, "1" + "0" * 400 + ".0", "NaN", "-Infinity", "01"]),
)
strings = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "")),
    st.sampled_from(
        [f'"{PLANTED}"', '""', '" "', '"\\ud800"', f'"{PLANTED}\\udfff"', '"\\u0000"', '"\\x"', '"\n"', f'"{PLANTED}',
         '"completed"', '"failed"', '"processing"', '"None"', '"2026-11-20 12:00:00"', '"9999-12-31 23:59:59"',
         '"0001-01-01 00:00:00"', f'"2026-11-20 12:00:00 {PLANTED}"', '"e1"', '"L"']
    ),
)  # fmt: skip
names = st.sampled_from(
    ["payloads", "statement_id", "entity_id", "link_id", "progress", "reason", "date_time", "status", "source",
     "message", "next", "results", "transactions", "", PLANTED]
).map(json.dumps) | strings  # fmt: skip


def an_array(items):
    return f"[{','.join(items)}]"


def an_object(pairs):
    return f"{{{','.join(f'{name}:{value}' for name, value in pairs)}}}"


nested = st.builds(
    lambda depth, opening, inner, closing: opening * depth + inner + closing * depth,
    st.sampled_from([1, 50, 198, 199, 200, 201, 300]),
    st.sampled_from(["[", '{"a":', '{"progress":', "[[],"]),
    st.sampled_from(["", "1", f'"{PLANTED}"', "[]"]),
    st.sampled_from(["", "]", "}", "}]"]),
)
any_json = st.recursive(
    st.sampled_from(["null", "true", "false"]) | numbers | strings | nested,
    lambda value: (
        st.lists(value, max_size=4).map(an_array) | st.lists(st.tuples(names, value), max_size=5).map(an_object)
    ),
    max_leaves=12,
)

# A good document with a few changed places, and sometimes changed bytes.

ROW = {
    "statement_id": "s1",
    "entity_id": "e1",
    "link_id": "L",
    "progress": "completed",
    "reason": PLANTED,
    "date_time": "2020-03-06 12:46:33",
}
ITEM = {
    "statement_id": "s1", "status": "completed", "source": "online", "message": PLANTED,
    "transaction_status": "completed",
}  # fmt: skip
FAILED = ROW | {"statement_id": PLANTED * 40, "progress": "failed", "date_time": "2020-03-06 12:46:34"}
HISTORY = {"payloads": [ROW, FAILED, FAILED | {"statement_id": ""}]}
ANALYSIS = {
    "entity_id": "e1",
    "progress": [ITEM, ITEM | {"statement_id": "s2", "status": "failed"}],
    "accounts": [{"account_number": PLANTED}],
    "transactions": [{"amount": 12.5, "note": PLANTED}, {"amount": -1, "balance": 10**30}],
    "reports": [{"account_id": "a", "link": PLANTED}],
}
ENTITY = {"entity_id": "e1", "link_id": "L", "meta_data": {"name": PLANTED}}
PAGE = {"count": 2, "next": None, "previous": None, "results": [ENTITY, ENTITY | {"entity_id": "e2"}]}


class Changes:
    """Changes places of a document; JSON that no Python value stands for is inserted as text afterwards."""

    def __init__(self, draw):
        self._draw = draw
        self._holes, self._twice = [], []

    def anywhere(self, value):
        if self._draw(st.integers(0, 5)) and isinstance(value, dict | list) and value:
            return self._in_object(value) if isinstance(value, dict) else self._in_array(value)
        self._holes.append(self._draw(strings | any_json))
        return HOLE

    def _in_object(self, value):
        name = self._draw(st.sampled_from(sorted(value)))
        rest = {key: item for key, item in value.items() if key != name}
        kind = self._draw(st.sampled_from(["into", "into", "into", "away", "renamed", "twice"]))
        if kind == "renamed":
            return {**rest, self._draw(st.sampled_from([name.upper(), name + " ", PLANTED, "x"])): value[name]}
        if kind == "twice":
            self._twice.append(f"{json.dumps(name)}:{self._draw(any_json)}")
            return {**value, TWICE: None}
        return {**value, name: self.anywhere(value[name])} if kind == "into" else rest

    def _in_array(self, value):
        place = self._draw(st.integers(0, len(value) - 1))
        kind = self._draw(st.sampled_from(["into", "into", "many", "away"]))
        if kind == "many":
            return value * self._draw(st.sampled_from([2, 50]))
        return value[:place] + ([self.anywhere(value[place])] if kind == "into" else []) + value[place + 1 :]

    def as_text(self, whole):
        text = json.dumps(whole)
        # There may be more holes than places: a later change may have removed one.
        for hole in self._holes:
            text = text.replace(f'"{HOLE}"', hole, 1)
        for pair in self._twice:
            text = text.replace(f'"{TWICE}": null', pair, 1)
        return text


@st.composite
def near(draw, whole):
    """A good document with one to three places changed, as bytes."""
    changes = Changes(draw)
    for _ in range(draw(st.integers(1, 3))):
        whole = changes.anywhere(whole)
    return spoilt(draw, changes.as_text(whole).encode(errors="surrogatepass"))


def spoilt(draw, body):
    """Return the same bytes most of the time."""
    place = draw(st.integers(0, len(body)))
    return draw(
        st.sampled_from(
            [body, body, body, body[:place], body[:place] + b"\xff" + body[place:], body[:place] + body[place + 1 :],
             b"\xef\xbb\xbf" + body, body + b"{}", body + b" \n", b"\x1f\x8b" + body,
             body.decode("latin-1").encode("utf-16")]
        )
    )  # fmt: skip


def answers_like(whole):
    return (
        near(whole)
        | any_json.map(lambda text: text.encode(errors="surrogatepass"))
        | st.binary(max_size=60)
        | st.binary(max_size=20).map(lambda noise: json.dumps(whole).encode() + noise)
    )


def outcome_of(kind, call):
    """Return the result of a call, or the error if it is of this kind."""
    try:
        return call()
    except kind as error:
        return error


def quotes_nothing(error):
    """Neither the error nor one that is shown with it quotes the input."""
    shown, seen = "", error
    while seen is not None:
        shown += f"{seen} {seen!r} {vars(seen)} "
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return PLANTED not in shown


def read(call, *bodies):
    """Drive a call with these answers, repeating the last; return None where it ends in an error of ours."""
    left = list(bodies)
    first = step = api.advance(call)
    while isinstance(step, Request):
        body = left.pop(0) if len(left) > 1 else left[0]
        answer = Answer(200, body)
        step = outcome_of(BankConnectError, lambda answer=answer: api.advance(call, answer))
    if isinstance(step, BankConnectError):
        assert quotes_nothing(step)
        assert str(step).startswith(f"{first.call}: HTTP 200")
        assert len(str(step)) < 500
        assert step.status == 200
        return None
    assert isinstance(step, Result)
    return step.value


def is_text_or_empty(value):
    """Whether it is a text, and not one of blanks only."""
    return type(value) is str and (value == "" or bool(value.strip()))


@fuzz
@given(answers_like(HISTORY), st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))]))
@example(b"[" * 300, UTC)
@example(b'{"payloads":' + b"[" * 300, UTC)
@example(b'{"payloads":[],"x":' + b'{"a":' * 300, UTC)
@example(b'{"payloads":' + b"9" * 5000 + b"}", UTC)
@example(b'{"payloads":[' + b"{}," * 5000 + b"{}]}", UTC)
@example(b'{"payloads":[' + b"null," * 5000 + b"null]}", UTC)
@example(b'{"payloads":[' + b'{"statement_id":"","x":[]},' * 5000 + b"null]}", UTC)
@example(json.dumps({"payloads": [FAILED, FAILED | {"date_time": PLANTED}]}).encode(), UTC)
def test_history_is_read_as_rows_or_refused(body, zone):
    rows = read(api.get_webhook_payloads("L", zone), body)
    if rows is None:
        return
    assert type(rows) is list
    for row in rows:
        assert type(row) is WebhookPayload
        texts = (row.statement_id, row.entity_id, row.progress, row.reason)
        assert all(is_text_or_empty(text) for text in texts)
        assert row.link_id is None or (type(row.link_id) is str and row.link_id.strip())
        assert row.date_time.tzinfo is UTC
        "".join((*texts, row.link_id or "")).encode()
    assert [row.date_time for row in rows] == sorted((row.date_time for row in rows), reverse=True)


@fuzz
@given(answers_like(ANALYSIS))
@example(b'{"progress":' + b"[" * 300)
@example(b'{"progress":[' + b"0," * 5000 + b"0]}")
def test_progress_is_read_as_items_or_refused(body):
    items = read(api.get_progress("e1"), body)
    if items is None:
        return
    assert type(items) is list
    for item in items:
        assert type(item) is StatementProgress
        assert is_text_or_empty(item.statement_id)
        texts = (item.status, item.source, item.message, item.transaction_status)
        assert all(text is None or type(text) is str for text in texts)
        assert item.statement_id or (item.status or "").lower() != "completed"


def of(value):
    """Yield all values inside a value, without recursion."""
    left = [value]
    while left:
        value = left.pop()
        yield value
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []


@fuzz
@given(answers_like(ANALYSIS), st.sampled_from(["transactions", "top_credits_debits", "xlsx_report"]))
@example(b'{"progress":[{"statement_id":"s","status":"completed"}],"transactions":[{"amount":1e999}]}', "transactions")
@example(b'{"progress":[{"statement_id":"s","status":"completed"}],"x":' + b"[" * 198 + b"]" * 198 + b"}", "salary")
@example(b'{"progress":[{"statement_id":"s","status":"completed"}],"x":' + b"9" * 4300 + b"}", "score")
@example(b'{"progress":[{"statement_id":"s","status":"completed"}],"reports":[]}', "xlsx_report")
def test_analysis_is_read_whole_or_refused(body, analysis):
    whole = read(api.get_analysis("e1", analysis), body)
    if whole is None:
        return
    assert analysis != "xlsx_report" or whole["reports"] not in ([], None)
    assert type(whole) is dict
    # The checked values are the returned ones, even where a name occurs twice.
    assert whole["progress"]
    assert {item["status"].lower() for item in whole["progress"]} <= {"completed", "failed"}
    entity_id = whole.get("entity_id")
    assert entity_id in (None, "e1") or (type(entity_id) is str and not entity_id.strip())
    for value in of(whole):
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        assert not isinstance(value, float) or math.isfinite(value)
    # Ready for XCom.
    json.dumps(whole, allow_nan=False).encode()


@fuzz
@given(st.lists(answers_like(PAGE) | st.just(json.dumps(PAGE | {"next": PLANTED}).encode()), min_size=1, max_size=4))
@example([json.dumps(PAGE | {"next": "again"}).encode()])
def test_entities_are_read_as_ids_or_refused_from_a_limited_number_of_pages(bodies):
    ids = read(api.get_entities("L"), *bodies)
    if ids is None:
        return
    assert type(ids) is list
    assert all(type(name) is str and name.strip() for name in ids)
    assert len(set(ids)) == len(ids)


@fuzz
@given(answers_like(ENTITY))
@example(b'{"entity_id":"e2","link_id":"L"}')
def test_entity_is_read_with_its_link_or_refused(body):
    entity = read(api.get_entity("e1"), body)
    if entity is None:
        return
    assert type(entity) is Entity
    assert entity.entity_id in ("", "e1")
    assert entity.link_id is None or (type(entity.link_id) is str and entity.link_id.strip())


headers = st.one_of(
    st.none(),
    st.text(),
    st.text('0123456789 :,;-+.MonJaGTE()"\\', max_size=60),
    st.integers(0, 10**40).map(str),
    st.integers(1, 5000).map(lambda digits: "9" * digits),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.from_regex(
        r"((Mon|Tue)?,? ?)[0-9]{1,5}[ -](Jan|Feb|Dec|Foo)[ -]-?[0-9]{1,6} -?[0-9]{1,6}(:|\.)[0-9]{0,30}"
        r"((:|\.)[0-9]{1,5000})? ?([+-][0-9]{0,5000}|GMT|EST|[A-Z]{0,3})( \(.{0,5}\))?"
    ),
    st.sampled_from([PLANTED, "gzip", "\udcff\ud800", "Mon, 01 Jan 0001 00:00:00 +2359", "0" * 5000, "(" * 100]),
)
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))]))


@fuzz
@given(headers, moments)
def test_retry_after_is_read_as_seconds_or_as_none(header, now):
    seconds = retry_after_seconds(header, now)
    assert seconds is None or (type(seconds) is float and 0 < seconds <= 3600)


@fuzz
@given(st.integers(-1, 1000) | st.integers(), st.binary(max_size=20), headers, headers, moments)
@example(429, PLANTED.encode(), PLANTED, PLANTED, datetime(2026, 11, 20, tzinfo=UTC))
@example(200, PLANTED.encode(), None, PLANTED, datetime(2026, 11, 20, tzinfo=UTC))
@example(302, PLANTED.encode(), None, None, datetime(2026, 11, 20, tzinfo=UTC))
def test_status_200_is_returned_and_others_are_errors(status, body, retry_after, encoding, now):
    answer = Answer(status, body, retry_after, now, encoding)
    outcome = outcome_of(BankConnectError, lambda: check_status(Request("any_call", "GET", "entity/"), answer))
    if isinstance(outcome, BankConnectError):
        assert quotes_nothing(outcome)
        assert str(outcome).startswith(f"any_call: HTTP {status}")
        assert outcome.status == status
        assert isinstance(outcome, BankConnectTransientError) == (status == 429 or 500 <= status <= 599)
    else:
        assert outcome is answer
        assert status == 200


# Connections, as typed or from a secrets backend.

typed = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["", " ", "0", "1", "1e308", "1e9", "1e7", "-1", "NaN", "1_0", "٣", "9" * 5000, "1e-320", 10**400]),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)
hosts = (
    st.none()
    | st.text(max_size=30)
    | st.text("htps:/.@?#[]%\\ \tbank0é。", max_size=30)
    | st.sampled_from(["a" * 300 + ".example", "https://[::1", "[v1.x]", "\ud800.example", "xn--", "x" * 64])
)
zones = typed | st.sampled_from(
    ["UTC", "Asia/Kolkata", "zone.tab", "tzdata.zi", "Asia", "a/" * 3000, "/etc/passwd", "\x00", "+05:30", "."]
)  # fmt: skip


@fuzz
@given(
    host=hosts,
    port=st.none() | st.integers(),
    password=typed | st.just(PLANTED),
    extra=st.fixed_dictionaries(
        {},
        optional={
            "api_key": typed | st.sampled_from([PLANTED, PLANTED + "\n", f" {PLANTED}"]),
            "timezone": zones,
            "verify": typed | st.sampled_from(["/etc/ca.pem", "a\x00b", "\ud800"]),
            "timeout": typed,
            "max_concurrency": typed,
            "else": typed,
        },
    )
    | typed,
)
def test_connection_is_read_as_settings_or_refused_with_its_name(host, port, password, extra):
    read = settings_of(host=host, port=port, password=password, extra=extra)
    if read is not None:
        assert read.headers == {"x-api-key": extra["api_key"], "server-hash": password}
        assert all("!" <= letter <= "~" for key in read.headers.values() for letter in key)


@fuzz
@given(
    extra=st.fixed_dictionaries(
        {"api_key": st.just(PLANTED)},
        optional={"timezone": zones, "verify": typed, "timeout": typed, "max_concurrency": typed},
    ),
    host=hosts,
)
def test_each_field_is_read_or_refused_where_the_keys_are_good(host, extra):
    """The property above seldom gets past the keys."""
    settings_of(host=host, port=None, password=PLANTED, extra=extra)


def settings_of(**given):
    """Return the settings of a connection, or None where it is refused."""
    read = outcome_of(ValueError, lambda: ConnectionSettings.parse("my_bank", **given))
    if isinstance(read, ValueError):
        assert type(read) is ValueError
        assert str(read).startswith("Connection 'my_bank': ")
        assert quotes_nothing(read)
        return None
    assert PLANTED not in repr(read)
    assert read.base_url.startswith("https://")
    assert 0 < read.timeout <= 86_400
    assert type(read.max_concurrency) is int
    assert read.max_concurrency >= 1
    assert datetime(2026, 11, 20, tzinfo=read.timezone).utcoffset() is not None
    return read
