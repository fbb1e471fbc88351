"""Attacks, and what they get: a status, a sentence that names the field, and nothing in the database."""

from __future__ import annotations

import json
from itertools import repeat

import pytest
from doorbells import CONN_ID, CUT_OFF, JSON, LONELY, NEEDS, PREVIOUS, TOKEN, Caller, api_server, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS

NOT_FOUND = (404, b'{"detail":"Not Found"}')
MOST = 64 * 1024
NOT_JSON = "The body must be JSON, in UTF-8"
NO_OBJECT = "The body must be a JSON object"
GOOD = json.dumps(statement()).encode()
# What no answer and no log line may have.
PRIVATE = "PRIVATE-4711"


def within(text):
    """The body of a good ring, with one more member in raw JSON."""
    return GOOD[:-1] + b", " + text + b"}"


def padded(size):
    """A good ring of so many bytes."""
    bare = json.dumps(statement(padding="")).encode()
    return json.dumps(statement(padding="x" * (size - len(bare)))).encode()


NO_OBJECTS = {
    "nothing": (b"", NOT_JSON),
    "only blanks": (b" \r\n\t", NOT_JSON),
    "text": (b"completed", NOT_JSON),
    "a form": (b"entity_id=entity-1&progress=completed", NOT_JSON),
    "cut in the middle": (GOOD[:-5], NOT_JSON),
    "two objects": (GOOD + GOOD, NOT_JSON),
    "a comma too many": (GOOD[:-1] + b",}", NOT_JSON),
    "single quotes": (GOOD.replace(b'"', b"'"), NOT_JSON),
    "a comment": (GOOD + b"// ok", NOT_JSON),
    "a raw NUL": (within(b'"x": "\x00"'), NOT_JSON),
    "a raw line break": (within(b'"x": "\n"'), NOT_JSON),
    "NaN": (within(b'"x": NaN'), NOT_JSON),
    "NaN where an id is": (GOOD.replace(b'"entity-1"', b"NaN"), NOT_JSON),
    "Infinity": (within(b'"x": Infinity'), NOT_JSON),
    "-Infinity": (within(b'"x": [-Infinity]'), NOT_JSON),
    "a number too long to count": (within(b'"x": ' + b"9" * 60_000), NOT_JSON),
    "invalid UTF-8": (within(b'"x": "\xff"'), NOT_JSON),
    "UTF-8 longer than need be": (within(b'"x": "\xc0\xaf"'), NOT_JSON),
    "a surrogate in UTF-8": (within(b'"x": "\xed\xa0\x80"'), NOT_JSON),
    "half a surrogate pair": (within(b'"x": "\\ud800"'), NOT_JSON),
    "the other half": (within(b'"x": "\\udc00"'), NOT_JSON),
    "half a pair in an id": (GOOD.replace(b"entity-1", b"\\ud800"), NOT_JSON),
    "half a pair as a name": (within(b'"\\ud800": 1'), NOT_JSON),
    "Latin-1": (within('"x": "é"'.encode("latin-1")), NOT_JSON),
    "UTF-16": (GOOD.decode().encode("utf-16"), NOT_JSON),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), NOT_JSON),
    "UTF-32": (GOOD.decode().encode("utf-32"), NOT_JSON),
    "a byte order mark": (GOOD.decode().encode("utf-8-sig"), NOT_JSON),
    "lists in lists": (within(b'"x": ' + b"[" * 10_000 + b"]" * 10_000), NOT_JSON),
    "objects in objects": (within(b'"x": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000), NOT_JSON),
    "lists where an id is": (GOOD.replace(b'"entity-1"', b"[" * 10_000 + b"]" * 10_000), NOT_JSON),
    "lists that do not end": (b"[" * MOST, NOT_JSON),
    "a list": (b"[" + GOOD + b"]", NO_OBJECT),
    "a string": (b'"completed"', NO_OBJECT),
    "a number": (b"1", NO_OBJECT),
    "null": (b"null", NO_OBJECT),
    "true": (b"true", NO_OBJECT),
}
REQUIRED = ("entity_id", "statement_id", "link_id", "progress")
FIELDS = (*REQUIRED, "reason")
WRONG_KINDS = {
    "a number": 4711,
    "a fraction": 4711.5,
    "a huge number": 10**400,
    "true": True,
    "a list": [PRIVATE],
    "an object": {PRIVATE: PRIVATE},
    "a list in lists": json.loads("[" * 100 + f'"{PRIVATE}"' + "]" * 100),
    "NUL": f"{PRIVATE}\0",
}
OUT_OF_BOUNDS = {
    "entity_id": [None, "", "  ", "\u2003", PRIVATE * 84],
    "statement_id": [PRIVATE * 84],
    "link_id": [PRIVATE * 84],
    "progress": [None, "", PRIVATE * 9],
    "reason": [],
}
STRANGERS = {
    "blank": " ",
    "a dot": ".",
    "two dots": "..",
    "None": "None",
    "slashes": "a/b//c/",
    "a path": "../../../etc/passwd",
    "percents": "%2F%00%",
    "Unicode": "ड्रॉप-é-\U0001f514",
    "NUL": "a\0b",
    "line breaks": "a\r\nb",
    "10,000 letters": "x" * 10_000,
    "SQL": "' or 1=1 --",
    "another letter case": CONN_ID.upper(),
}


@pytest.fixture(autouse=True)
def _nothing_is_told(caplog):
    """Whatever is sent: what is private in it is in no line of the log."""
    caplog.set_level("DEBUG")
    yield
    assert PRIVATE not in caplog.text
    assert TOKEN not in caplog.text


async def send(doorbell, pieces, *headers, path=None, **more):
    return await doorbell.send(path or path_to(), pieces, headers=headers or [JSON], **more)


# The door


@pytest.mark.parametrize(
    "token",
    [
        "wrong",
        "x",
        "%20",
        TOKEN[:-1],
        TOKEN + "x",
        TOKEN.upper(),
        "%00",
        "%C3%A9",
        "%FF",
        "None",
        PREVIOUS,
        "x" * 10_000,
    ],
)
async def test_a_wrong_token_is_a_plain_404(doorbell, token):
    answer = await send(doorbell, [GOOD], path=path_to(token=token))
    assert (answer.status, answer.body) == NOT_FOUND
    # Nothing has been read of what it sent, either.
    assert answer.pieces == 0


@pytest.mark.parametrize(
    "path",
    [
        "/webhook",
        "/webhook/",
        f"/webhook/{CONN_ID}",
        f"/webhook/{CONN_ID}/",
        f"/webhook//{TOKEN}",
        f"/webhook/{TOKEN}",
        f"/webhook/{CONN_ID}/{TOKEN}/",
        f"/webhook/{CONN_ID}/{TOKEN}/more",
        f"//webhook/{CONN_ID}/{TOKEN}",
        f"/Webhook/{CONN_ID}/{TOKEN}",
        f"/webhok/{CONN_ID}/{TOKEN}",
        f"/webhook/{CONN_ID}?token={TOKEN}",
        "/",
        "/rings/",
        "/other",
    ],
)
async def test_a_path_that_is_none_is_a_plain_404(doorbell, sqlite, path):
    answer = await send(doorbell, [GOOD], path=address.PREFIX + path)
    assert (answer.status, answer.body) == NOT_FOUND
    assert not sqlite.events


@pytest.mark.parametrize("conn_id", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.usefixtures("sqlite")
async def test_an_unknown_connection_cannot_be_told_from_a_wrong_token(doorbell, conn_id):
    unknown = await doorbell.post(GOOD, conn_id=conn_id)
    wrong = await doorbell.post(GOOD, token="wrong-token-of-the-tests")
    assert unknown[:3] == wrong[:3]
    assert (unknown.status, unknown.body) == NOT_FOUND


@pytest.mark.usefixtures("sqlite")
async def test_a_surrogate_in_a_path_is_a_404(doorbell):
    """No server decodes a path to one; the app is ready all the same."""
    for path in (f"/webhook/\udc80/{TOKEN}", f"/webhook/{CONN_ID}/\udc80"):
        answers = []

        async def keep(message, answers=answers):
            answers.append(message)

        async def receive():
            return {"type": "http.request", "body": GOOD}

        scope = {"type": "http", "method": "POST", "path": address.PREFIX + path, "headers": [], "query_string": b""}
        await doorbell.app(scope, receive, keep)
        assert (answers[0]["status"], answers[1]["body"]) == NOT_FOUND


async def test_two_tokens_are_good_while_they_rotate(doorbell, configure, sqlite):
    assert (await doorbell.post(statement(), token=PREVIOUS)).status == 404
    configure(webhook_token_previous=PREVIOUS)
    rotating = Caller(api_server())
    assert (await rotating.post(statement(statement_id="new"))).status == 200
    assert (await rotating.post(statement(statement_id="old"), token=PREVIOUS)).status == 200
    assert (await rotating.post(statement(), token="neither-of-the-two-tokens")).status == 404
    assert sqlite.rung == ["new", "old"]


@pytest.mark.parametrize("settings", [{}, {"webhook_token": "weak"}, {"webhook_token_previous": PREVIOUS}])
async def test_without_a_good_token_there_is_no_doorbell(configure, caplog, settings):
    configure(**settings)
    closed = Caller(api_server())
    for token in (TOKEN, PREVIOUS, "weak", "None", "%20"):
        assert (await closed.post(GOOD, token=token)).status == 404
    knock = address.knock("")
    for shown in ("", "Bearer ", f"Bearer {knock}"):
        answer = await closed.send(f"{address.PREFIX}/rings", method="GET", headers=[("authorization", shown)])
        assert answer.status == 404
    # Why is told, to whom it may concern.
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == bool(settings)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "post"])
@pytest.mark.parametrize("path", [path_to(), path_to(token="wrong"), f"{address.PREFIX}/rings/{CONN_ID}"])
async def test_another_method_is_a_405(doorbell, method, path):
    answer = await send(doorbell, [GOOD], path=path, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


# What is sent


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/jsonp",
        "application/json+x",
        "application/problem+json",
        "x; application/json",
        "application/json, text/plain",
        "é",
    ],
)
async def test_another_content_type_is_a_415(doorbell, sqlite, kind):
    headers = [] if kind is None else [("content-type", kind)]
    answer = await doorbell.send(path_to(), [GOOD], headers=headers)
    assert (answer.status, answer.detail) == (415, "Content-Type must be application/json")
    assert answer.pieces == 0
    assert not sqlite.events


@pytest.mark.parametrize("kind", ["application/json;charset=utf-8", "Application/JSON", " application/json ; x=y"])
async def test_json_may_say_its_charset_and_in_any_letter_case(doorbell, sqlite, kind):
    assert (await send(doorbell, [GOOD], ("content-type", kind))).status == 200
    assert sqlite.rung == ["statement-1"]


async def test_64_kib_are_taken_and_not_a_byte_more(doorbell, sqlite):
    assert (await doorbell.post(padded(MOST))).status == 200
    answer = await doorbell.post(padded(MOST + 1))
    assert (answer.status, answer.detail) == (413, "The body must have at most 65536 bytes")
    # Said by its length alone; and the rest of it is not waited for.
    assert answer.pieces == 0
    assert answer.headers["connection"] == "close"
    assert len(sqlite.events) == 1


@pytest.mark.parametrize("length", [None, "1", str(MOST), "", "x", "-1", "+9", "²", "1e9"])
async def test_a_body_of_any_said_length_is_read_no_further_than_to_its_limit(doorbell, sqlite, length):
    headers = [JSON] if length is None else [JSON, ("content-length", length)]
    answer = await send(doorbell, repeat(b"x" * 1024, 10_000), *headers)
    assert answer.status == 413
    # What stands between reads a little ahead.
    assert answer.pieces <= 67
    answer = await send(doorbell, [padded(MOST + 1)], *headers)
    assert answer.status == 413
    assert not sqlite.events


@pytest.mark.parametrize("length", [str(MOST + 1), "9" * 400])
async def test_a_body_that_says_that_it_is_too_long_is_not_read(doorbell, length):
    answer = await send(doorbell, [GOOD], JSON, ("content-length", length))
    assert (answer.status, answer.pieces) == (413, 0)


async def test_a_body_may_come_in_pieces(doorbell, sqlite):
    answer = await send(doorbell, [bytes([byte]) for byte in GOOD])
    assert answer.status == 200
    assert sqlite.rung == ["statement-1"]


@pytest.mark.parametrize("pieces", [[], [GOOD], [GOOD[:-10]], [b""]])
async def test_a_body_that_is_cut_off_rings_nobody(doorbell, sqlite, pieces):
    """What came may look whole: nobody has said that it is."""
    answer = await send(doorbell, [*pieces, CUT_OFF])
    assert (answer.status, answer.detail) == (400, "The body was cut off")
    assert not sqlite.events


async def test_a_body_that_takes_its_time_is_not_waited_for(doorbell, sqlite, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.app._BODY_SECONDS", 0.2)
    for pieces in ([3600], [GOOD[:5], 3600, GOOD[5:]], [piece for byte in GOOD for piece in (bytes([byte]), 0.01)]):
        answer = await send(doorbell, pieces)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert not sqlite.events


@pytest.mark.parametrize(("body", "words"), NO_OBJECTS.values(), ids=NO_OBJECTS)
async def test_what_is_no_json_object_is_a_400(doorbell, sqlite, body, words):
    answer = await doorbell.post(body)
    assert (answer.status, answer.detail) == (400, words)
    assert not sqlite.events


@pytest.mark.parametrize("name", REQUIRED)
async def test_a_missing_field_is_named(doorbell, sqlite, name):
    body = statement()
    del body[name]
    answer = await doorbell.post(body)
    assert (answer.status, answer.detail) == (400, f"{name}: Field required")
    assert not sqlite.events


@pytest.mark.usefixtures("sqlite")
async def test_all_missing_fields_are_named_at_once(doorbell):
    answer = await doorbell.post({"ENTITY_ID": "entity-1"})
    assert answer.status == 400
    assert [part.split(":")[0] for part in answer.detail.split("; ")] == list(REQUIRED)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", WRONG_KINDS.values(), ids=WRONG_KINDS)
async def test_a_field_of_another_kind_is_named_and_its_value_is_not(doorbell, sqlite, name, value):
    answer = await doorbell.post(statement(**{name: value}))
    assert answer.status == 400
    assert answer.detail.startswith(f"{name}: ")
    assert "4711" not in answer.detail
    assert not sqlite.events


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in OUT_OF_BOUNDS[name]])
async def test_a_blank_field_and_one_that_is_too_long_are_named(doorbell, sqlite, name, value):
    answer = await doorbell.post(statement(**{name: value}))
    assert answer.status == 400
    assert answer.detail.startswith(f"{name}: ")
    assert "4711" not in answer.detail
    assert not sqlite.events


# What looks bad, and is taken


async def test_a_webhook_of_the_other_product_is_ignored(doorbell, sqlite, caplog):
    for body in ({"event_name": PRIVATE, "session_id": PRIVATE}, statement(event_name=None), {"event_name": []}):
        answer = await doorbell.post(body)
        assert (answer.status, answer.json()) == (200, {"status": "ignored"})
    assert not sqlite.events
    assert caplog.text.count("of another product") == 3


@pytest.mark.parametrize(
    ("changes", "kept", "key"),
    [
        ({"link_id": None}, {"link_id": None}, "entity:entity-1"),
        ({"link_id": ""}, {"link_id": None}, "entity:entity-1"),
        ({"link_id": " "}, {"link_id": None}, "entity:entity-1"),
        ({"statement_id": "", "progress": "failed"}, {"statement_id": ""}, "link:loan-1"),
        ({"statement_id": None, "progress": "failed"}, {"statement_id": ""}, "link:loan-1"),
        ({"reason": None}, {"reason": ""}, "link:loan-1"),
        ({"progress": "Completed"}, {"progress": "Completed"}, "link:loan-1"),
        ({"progress": "who knows"}, {"progress": "who knows"}, "link:loan-1"),
        ({"link_id": "ऋण/४७ \U0001f514%"}, {"link_id": "ऋण/४७ \U0001f514%"}, "link:ऋण/४७ \U0001f514%"),
        ({"link_id": " a b "}, {"link_id": " a b "}, "link: a b "),
        ({"link_id": "None"}, {"link_id": "None"}, "link:None"),
        ({"link_id": "x" * 245}, {"link_id": "x" * 245}, "link:" + "x" * 245),
        ({"reason": "x" * 20_000}, {"reason": "x" * 20_000}, "link:loan-1"),
        ({"entity_id": "\U0001f514" * 1000}, {"entity_id": "\U0001f514" * 1000}, "link:loan-1"),
    ],
)
async def test_what_the_vendor_may_well_send_is_kept_as_it_is(doorbell, database, changes, kept, key):
    answer = await doorbell.post(statement(**changes))
    assert (answer.status, answer.json()) == (200, {"status": "rung"})
    assert database.events == [(address.asset_uri(CONN_ID), key, statement(**changes) | kept)]
    assert database.runs == [("first", key)]


@pytest.mark.parametrize("link_id", ["x" * 246, "x" * 500, "\U0001f514" * 500, "x" * 1000, "a\nb", "\x1b[31ma"])
async def test_a_link_that_is_no_good_key_is_hashed_in_it_and_whole_in_the_event(doorbell, database, link_id):
    assert (await doorbell.post(statement(link_id=link_id))).status == 200
    assert (await doorbell.post(statement(link_id=link_id[:-1] + "y"))).status == 200
    (_, key, extra), (_, other, _) = database.events
    assert extra["link_id"] == link_id
    assert key.startswith("link:sha256:")
    assert key != other


async def test_unknown_fields_are_ignored_and_not_kept(doorbell, sqlite):
    more = {"accounts": [PRIVATE], "reasons": PRIVATE, "Entity_id": PRIVATE, "": {}, "x\0": "\0", "__class__": PRIVATE}
    assert (await doorbell.post(statement(**more))).status == 200
    assert [extra for _, _, extra in sqlite.events] == [statement()]
    assert not sqlite.query("select * from log where extra like :private", private=f"%{PRIVATE}%")


async def test_of_a_field_that_is_sent_twice_the_last_counts(doorbell, sqlite):
    body = b'{"entity_id": 1, ' + GOOD[1:-1] + b', "statement_id": "last"}'
    assert (await doorbell.post(body)).status == 200
    assert sqlite.rung == ["last"]


@pytest.mark.parametrize("number", [b"1e999", b"-0", b"0.1e-999", b"9" * 4000, b"[1e999]"])
async def test_a_number_of_any_size_where_nobody_reads_it_does_no_harm(doorbell, sqlite, number):
    assert (await doorbell.post(within(b'"x": ' + number))).status == 200
    assert len(sqlite.events) == 1


async def test_headers_of_any_size_do_no_harm(doorbell, sqlite):
    more = [("x-padding", "x" * 1_000_000), *(("x-many", str(number)) for number in range(5000))]
    assert (await send(doorbell, [GOOD], JSON, *more, ("x-request-id", "é\r\n"))).status == 200
    assert len(sqlite.events) == 1


async def test_a_proxy_may_put_airflow_below_a_path(doorbell, sqlite):
    answer = await doorbell.send("/airflow" + path_to(), [GOOD], headers=[JSON], root_path="/airflow")
    assert answer.status == 200
    assert len(sqlite.events) == 1


# Airflow's own parts


@pytest.mark.parametrize(
    "shown",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}", TOKEN, f"Bearer {address.knock('other')}", "Basic eDp5", "Bearer é"],
)
@pytest.mark.usefixtures("sqlite")
async def test_who_cannot_show_the_knock_is_told_nothing(doorbell, shown):
    for method, path in (("GET", "/rings"), ("POST", f"/rings/{CONN_ID}"), ("POST", "/rings/unknown")):
        headers = [JSON, ("authorization", shown)] if shown else [JSON]
        answer = await send(
            doorbell, [b'{"how": "ring", "rings": []}'], *headers, path=address.PREFIX + path, method=method
        )
        assert (answer.status, answer.body, answer.pieces) == (*NOT_FOUND, 0)


@pytest.mark.parametrize(
    ("how", "rings", "words"),
    [
        ("ring", None, "rings must be a list of at most 500"),
        ("ring", {}, "rings must be a list of at most 500"),
        ("ring", [statement()] * 501, "rings must be a list of at most 500"),
        ("no", [], "how must be ring, again or check"),
        (None, [], "how must be ring, again or check"),
        ([], [], "how must be ring, again or check"),
        ("ring", [PRIVATE], "body: Input should be"),
        ("ring", [None], "body: Input should be"),
        ("ring", [statement(), statement(entity_id="")], "entity_id: String should match"),
        ("check", [statement(progress=1)], "progress: Input should be"),
    ],
)
async def test_what_airflows_own_parts_may_not_say_is_named_as_well(doorbell, sqlite, how, rings, words):
    answer = await doorbell.tell(how, rings)
    assert (answer.status, answer.detail[: len(words)]) == (400, words)
    assert not sqlite.events


@pytest.mark.usefixtures("sqlite")
async def test_airflows_own_parts_are_told_of_unknown_connections_too(doorbell):
    assert (await doorbell.tell("ring", [statement()], conn_id="unknown")).status == 404
    assert (await doorbell.tell("ring", [statement()], conn_id=LONELY)).status == 503
    assert (await doorbell.tell("ring", [statement()], conn_id=" ")).status == 404


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("2026-01-01T00:00:00Z", 200),
        ("2026-01-01", 200),
        ("", 400),
        ("yesterday", 400),
        ("2026-01-01T00:00:00 00:00", 400),
        ("0001-01-01T00:00:00%2B23:59", 400),
        ("9999-12-31T23:59:59-23:59", 400),
        ("0001-01-01", 200),
        ("9999-12-31", 200),
    ],
)
@pytest.mark.parametrize("name", ["since", "after"])
@pytest.mark.usefixtures("database")
async def test_a_moment_from_which_to_tell_rings_may_be_any_that_there_is(doorbell, name, moment, status):
    knock = ("authorization", f"Bearer {address.knock(TOKEN)}")
    answer = await doorbell.send(f"{address.PREFIX}/rings?{name}={moment}", method="GET", headers=[knock])
    assert answer.status == status
