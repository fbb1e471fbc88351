"""Bad and unusual input: what is refused, with which status and message, and what is recorded."""

from __future__ import annotations

import json
from itertools import repeat

import pytest
from receivers import CONN_ID, CUT_OFF, JSON, NEEDS_3_2, NO_DAG, PREVIOUS, TOKEN, Caller, api_server, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS_3_2

NOT_FOUND = (404, b'{"detail":"Not Found"}')
MOST = 64 * 1024
NOT_JSON = "The body must be a JSON object, in UTF-8"
GOOD = json.dumps(statement()).encode()
# No response and no log line may contain it.
PRIVATE = "PRIVATE-4711"
OTHER = address.internal_token("other")


def within(text):
    """Return a valid body with one more member, in raw JSON."""
    return GOOD[:-1] + b", " + text + b"}"


def padded(size):
    """Return a valid body of that many bytes."""
    bare = json.dumps(statement(padding="")).encode()
    return json.dumps(statement(padding="x" * (size - len(bare)))).encode()


NOT_OBJECTS = {
    "nothing": (b"", NOT_JSON),
    "only blanks": (b" \r\n\t", NOT_JSON),
    "text": (b"completed", NOT_JSON),
    "a form": (b"entity_id=entity-1&progress=completed", NOT_JSON),
    "cut in the middle": (GOOD[:-5], NOT_JSON),
    "two objects": (GOOD + GOOD, NOT_JSON),
    "a trailing comma": (GOOD[:-1] + b",}", NOT_JSON),
    "single quotes": (GOOD.replace(b'"', b"'"), NOT_JSON),
    "a comment": (GOOD + b"// ok", NOT_JSON),
    "a raw NUL": (within(b'"x": "\x00"'), NOT_JSON),
    "a raw line break": (within(b'"x": "\n"'), NOT_JSON),
    "NaN": (within(b'"x": NaN'), NOT_JSON),
    "NaN as an id": (GOOD.replace(b'"entity-1"', b"NaN"), NOT_JSON),
    "Infinity": (within(b'"x": Infinity'), NOT_JSON),
    "-Infinity": (within(b'"x": [-Infinity]'), NOT_JSON),
    "a number of 60,000 digits": (within(b'"x": ' + b"9" * 60_000), NOT_JSON),
    "invalid UTF-8": (within(b'"x": "\xff"'), NOT_JSON),
    "overlong UTF-8": (within(b'"x": "\xc0\xaf"'), NOT_JSON),
    "a surrogate in UTF-8": (within(b'"x": "\xed\xa0\x80"'), NOT_JSON),
    "a high surrogate": (within(b'"x": "\\ud800"'), NOT_JSON),
    "a low surrogate": (within(b'"x": "\\udc00"'), NOT_JSON),
    "a surrogate in an id": (GOOD.replace(b"entity-1", b"\\ud800"), NOT_JSON),
    "a surrogate in a name": (within(b'"\\ud800": 1'), NOT_JSON),
    "Latin-1": (within('"x": "é"'.encode("latin-1")), NOT_JSON),
    "UTF-16": (GOOD.decode().encode("utf-16"), NOT_JSON),
    "UTF-16 without a byte order mark": (GOOD.decode().encode("utf-16-le"), NOT_JSON),
    "UTF-32": (GOOD.decode().encode("utf-32"), NOT_JSON),
    "a byte order mark": (GOOD.decode().encode("utf-8-sig"), NOT_JSON),
    "lists in lists": (within(b'"x": ' + b"[" * 300 + b"]" * 300), NOT_JSON),
    "objects in objects": (within(b'"x": ' + b'{"a":' * 300 + b"1" + b"}" * 300), NOT_JSON),
    "lists in lists as an id": (GOOD.replace(b'"entity-1"', b"[" * 300 + b"]" * 300), NOT_JSON),
    "unclosed lists": (b"[" * 300, NOT_JSON),
    "a list": (b"[" + GOOD + b"]", NOT_JSON),
    "a string": (b'"completed"', NOT_JSON),
    "a number": (b"1", NOT_JSON),
    "null": (b"null", NOT_JSON),
    "true": (b"true", NOT_JSON),
}
REQUIRED = ("entity_id", "statement_id", "link_id", "progress")
FIELDS = (*REQUIRED, "reason")
WRONG_TYPES = {
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
    "entity_id": [PRIVATE * 84],
    "statement_id": [PRIVATE * 84],
    "link_id": [PRIVATE * 84],
    "progress": [None, "", PRIVATE * 9],
    "reason": [],
}
UNKNOWN_CONN_IDS = {
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
def _nothing_private_is_logged(caplog):
    """After each test, check the log."""
    caplog.set_level("DEBUG")
    yield
    assert PRIVATE not in caplog.text
    assert TOKEN not in caplog.text


async def send(receiver, pieces, *headers, path=None, **more):
    return await receiver.send(path or path_to(), pieces, headers=headers or [JSON], **more)


# Paths, tokens and methods


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
async def test_wrong_token_is_a_404(receiver, token):
    answer = await send(receiver, [GOOD], path=path_to(token=token))
    assert (answer.status, answer.body) == NOT_FOUND
    # The body is not read.
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
        "/event",
        "/other",
    ],
)
async def test_unknown_path_is_a_404(receiver, sqlite, path):
    answer = await send(receiver, [GOOD], path=address.PREFIX + path)
    assert (answer.status, answer.body) == NOT_FOUND
    assert not sqlite.events


@pytest.mark.parametrize("conn_id", UNKNOWN_CONN_IDS.values(), ids=UNKNOWN_CONN_IDS)
@pytest.mark.usefixtures("sqlite")
async def test_unknown_connection_gets_the_same_response_as_a_wrong_token(receiver, conn_id):
    unknown = await receiver.post(GOOD, conn_id=conn_id)
    wrong = await receiver.post(GOOD, token="wrong-token-of-the-tests")
    assert unknown[:3] == wrong[:3]
    assert (unknown.status, unknown.body) == NOT_FOUND


@pytest.mark.usefixtures("sqlite")
async def test_surrogate_in_a_path_is_a_404(receiver):
    """Servers decode no path to one, but ASGI does not forbid it."""
    for path in (f"/webhook/\udc80/{TOKEN}", f"/webhook/{CONN_ID}/\udc80"):
        answers = []

        async def keep(message, answers=answers):
            answers.append(message)

        async def receive():
            return {"type": "http.request", "body": GOOD}

        scope = {"type": "http", "method": "POST", "path": address.PREFIX + path, "headers": [], "query_string": b""}
        await receiver.app(scope, receive, keep)
        assert (answers[0]["status"], answers[1]["body"]) == NOT_FOUND


async def test_both_tokens_are_valid_during_a_rotation(receiver, configure, sqlite):
    assert (await receiver.post(statement(), token=PREVIOUS)).status == 404
    configure(webhook_token_previous=PREVIOUS)
    rotating = Caller(api_server())
    assert (await rotating.post(statement(statement_id="new"))).status == 200
    assert (await rotating.post(statement(statement_id="old"), token=PREVIOUS)).status == 200
    assert (await rotating.post(statement(), token="neither-of-the-two-tokens")).status == 404
    assert sqlite.recorded == ["new", "old"]


@pytest.mark.parametrize("settings", [{}, {"webhook_token": "weak"}, {"webhook_token_previous": PREVIOUS}])
async def test_without_a_valid_token_no_path_does_anything(configure, caplog, settings):
    configure(**settings)
    off = Caller(api_server())
    for token in (TOKEN, PREVIOUS, "weak", "None", "%20"):
        assert (await off.post(GOOD, token=token)).status == 404
    internal_token = address.internal_token("")
    for authorization in ("", "Bearer ", f"Bearer {internal_token}"):
        answer = await off.send(f"{address.PREFIX}/events", method="GET", headers=[("authorization", authorization)])
        assert answer.status == 401
    # Invalid settings are logged.
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == bool(settings)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "post"])
@pytest.mark.parametrize("path", [path_to(), path_to(token="wrong"), f"{address.PREFIX}/events/{CONN_ID}"])
async def test_other_methods_are_a_405(receiver, method, path):
    answer = await send(receiver, [GOOD], path=path, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


# Content types, sizes and bodies


MEDIA_TYPES = [
    None,
    "",
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=application/json",
    "application/problem+json",
    "application/json, text/plain",
    "é",
]


async def test_webhook_is_recorded_whatever_its_content_type(receiver, sqlite):
    types = [*MEDIA_TYPES, "application/json;charset=utf-8", "Application/JSON", " application/json ; x=y"]
    for number, media_type in enumerate(types):
        body = json.dumps(statement(statement_id=str(number))).encode()
        headers = [] if media_type is None else [("content-type", media_type)]
        answer = await receiver.send(path_to(), [body], headers=headers)
        assert (answer.status, answer.json()) == (200, {"status": "recorded"})
    assert len(sqlite.events) == len(types)


async def test_other_body_is_a_415_unless_it_is_sent_as_json(receiver, sqlite):
    for media_type in MEDIA_TYPES:
        for body in (b"", b"entity_id=entity-1", b"[]", GOOD[:-1], b"<xml/>"):
            headers = [] if media_type is None else [("content-type", media_type)]
            answer = await receiver.send(path_to(), [body], headers=headers)
            problem = "The body must be a JSON object, with Content-Type application/json"
            assert (answer.status, answer.detail) == (415, problem)
        # The fields of an object are named.
        answer = await receiver.send(path_to(), [b"{}"], headers=headers)
        assert (answer.status, answer.detail.partition(":")[0]) == (400, "entity_id")
    assert not sqlite.events


async def test_body_may_have_64_kib_and_no_more(receiver, sqlite):
    assert (await receiver.post(padded(MOST))).status == 200
    answer = await receiver.post(padded(MOST + 1))
    assert (answer.status, answer.detail) == (413, "The body must have at most 65536 bytes")
    # Content-Length suffices to refuse it. The client need not send the body.
    assert answer.pieces == 0
    assert answer.headers["connection"] == "close"
    assert len(sqlite.events) == 1


@pytest.mark.parametrize("length", [None, "1", str(MOST), "", "x", "-1", "+9", "²", "1e9"])
async def test_body_is_read_no_further_than_64_kib_whatever_its_content_length(receiver, sqlite, length):
    headers = [JSON] if length is None else [JSON, ("content-length", length)]
    answer = await send(receiver, repeat(b"x" * 1024, 10_000), *headers)
    assert answer.status == 413
    # The middlewares read a little ahead.
    assert answer.pieces <= 67
    answer = await send(receiver, [padded(MOST + 1)], *headers)
    assert answer.status == 413
    assert not sqlite.events


@pytest.mark.parametrize("length", [str(MOST + 1), "9" * 400])
async def test_body_with_too_large_a_content_length_is_not_read(receiver, length):
    answer = await send(receiver, [GOOD], JSON, ("content-length", length))
    assert (answer.status, answer.pieces) == (413, 0)


async def test_body_may_come_in_pieces(receiver, sqlite):
    answer = await send(receiver, [bytes([byte]) for byte in GOOD])
    assert answer.status == 200
    assert sqlite.recorded == ["statement-1"]


@pytest.mark.parametrize("pieces", [[], [GOOD], [GOOD[:-10]], [b""]])
async def test_body_that_is_cut_off_is_a_400(receiver, sqlite, pieces):
    """Even if the part that came is valid JSON."""
    answer = await send(receiver, [*pieces, CUT_OFF])
    assert (answer.status, answer.detail) == (400, "The body was cut off")
    assert not sqlite.events


async def test_body_that_takes_too_long_is_a_408(receiver, sqlite, monkeypatch):
    monkeypatch.setattr("airflow_provider_bankconnect.receiver.intake._BODY_SECONDS", 0.2)
    for pieces in ([3600], [GOOD[:5], 3600, GOOD[5:]], [piece for byte in GOOD for piece in (bytes([byte]), 0.01)]):
        answer = await send(receiver, pieces)
        assert (answer.status, answer.headers.get("connection")) == (408, "close"), answer.detail
    assert not sqlite.events


@pytest.mark.parametrize(("body", "words"), NOT_OBJECTS.values(), ids=NOT_OBJECTS)
async def test_body_that_is_no_json_object_is_a_400(receiver, sqlite, body, words):
    answer = await receiver.post(body)
    assert (answer.status, answer.detail) == (400, words)
    assert not sqlite.events


@pytest.mark.parametrize("name", REQUIRED)
async def test_missing_field_is_named(receiver, sqlite, name):
    body = statement()
    del body[name]
    answer = await receiver.post(body)
    assert (answer.status, answer.detail) == (400, f"{name}: Field required")
    assert not sqlite.events


@pytest.mark.usefixtures("sqlite")
async def test_all_missing_fields_are_named(receiver):
    answer = await receiver.post({"ENTITY_ID": "entity-1"})
    assert answer.status == 400
    assert [part.split(":")[0] for part in answer.detail.split("; ")] == list(REQUIRED)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", WRONG_TYPES.values(), ids=WRONG_TYPES)
async def test_field_of_a_wrong_type_is_named_without_its_value(receiver, sqlite, name, value):
    answer = await receiver.post(statement(**{name: value}))
    assert answer.status == 400
    assert answer.detail.startswith(f"{name}: ")
    assert "4711" not in answer.detail
    assert not sqlite.events


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in OUT_OF_BOUNDS[name]])
async def test_blank_or_too_long_field_is_named_without_its_value(receiver, sqlite, name, value):
    answer = await receiver.post(statement(**{name: value}))
    assert answer.status == 400
    assert answer.detail.startswith(f"{name}: ")
    assert "4711" not in answer.detail
    assert not sqlite.events


# Unusual input that is accepted


@pytest.mark.parametrize("entity_id", [None, "", "  ", "\u2003"])
async def test_webhook_without_an_entity_is_recorded_for_its_link(receiver, sqlite, entity_id):
    login = statement(entity_id=entity_id, statement_id="", progress="failed", reason="Incorrect user ID or password")
    assert (await receiver.post(login)).json() == {"status": "recorded"}
    ((_, key, extra),) = sqlite.events
    assert (key, extra["entity_id"]) == ("link:loan-1", entity_id or "")
    # Two failed logins may have equal webhooks, and are two events.
    assert (await receiver.post(login)).json() == {"status": "recorded"}


async def test_webhook_that_names_no_customer_is_answered_200_and_ignored(receiver, sqlite, caplog):
    answer = await receiver.post(statement(link_id=None, entity_id="", statement_id="", progress="failed"))
    assert (answer.status, answer.json()) == (200, {"status": "ignored"})
    assert not sqlite.events
    assert "names neither a link nor an entity" in caplog.text


async def test_webhook_of_another_product_is_ignored(receiver, sqlite, caplog):
    for body in ({"event_name": PRIVATE, "session_id": PRIVATE}, statement(event_name=None), {"event_name": []}):
        answer = await receiver.post(body)
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
        ({"progress": "unknown"}, {"progress": "unknown"}, "link:loan-1"),
        ({"link_id": "ऋण/४७ \U0001f514%"}, {"link_id": "ऋण/४७ \U0001f514%"}, "link:ऋण/४७ \U0001f514%"),
        ({"link_id": " a b "}, {"link_id": " a b "}, "link: a b "),
        ({"link_id": "None"}, {"link_id": "None"}, "link:None"),
        ({"link_id": "x" * 245}, {"link_id": "x" * 245}, "link:" + "x" * 245),
        ({"reason": "x" * 20_000}, {"reason": "x" * 20_000}, "link:loan-1"),
        ({"entity_id": "\U0001f514" * 1000}, {"entity_id": "\U0001f514" * 1000}, "link:loan-1"),
    ],
)
async def test_unusual_values_are_recorded(receiver, database, changes, kept, key):
    answer = await receiver.post(statement(**changes))
    assert (answer.status, answer.json()) == (200, {"status": "recorded"})
    assert database.events == [(address.asset_uri(CONN_ID), key, statement(**changes) | kept)]
    assert database.runs == [("first", key)]


@pytest.mark.parametrize("link_id", ["x" * 246, "x" * 500, "\U0001f514" * 500, "x" * 1000, "a\nb", "\x1b[31ma"])
async def test_link_that_cannot_be_a_partition_key_is_hashed_there_and_whole_in_the_event(receiver, database, link_id):
    assert (await receiver.post(statement(link_id=link_id))).status == 200
    assert (await receiver.post(statement(link_id=link_id[:-1] + "y"))).status == 200
    (_, key, extra), (_, other, _) = database.events
    assert extra["link_id"] == link_id
    assert key.startswith("link:sha256:")
    assert key != other


async def test_unknown_fields_are_not_recorded(receiver, sqlite):
    more = {"accounts": [PRIVATE], "reasons": PRIVATE, "Entity_id": PRIVATE, "": {}, "x\0": "\0", "__class__": PRIVATE}
    assert (await receiver.post(statement(**more))).status == 200
    assert [extra for _, _, extra in sqlite.events] == [statement()]
    assert not sqlite.query("select * from log where extra like :private", private=f"%{PRIVATE}%")


async def test_last_value_of_a_repeated_field_counts(receiver, sqlite):
    body = b'{"entity_id": 1, ' + GOOD[1:-1] + b', "statement_id": "last"}'
    assert (await receiver.post(body)).status == 200
    assert sqlite.recorded == ["last"]


@pytest.mark.parametrize("number", [b"1e999", b"-0", b"0.1e-999", b"9" * 4000, b"[1e999]"])
async def test_any_number_is_accepted_in_unknown_fields(receiver, sqlite, number):
    assert (await receiver.post(within(b'"x": ' + number))).status == 200
    assert len(sqlite.events) == 1


async def test_headers_of_any_size_are_accepted(receiver, sqlite):
    more = [("x-padding", "x" * 1_000_000), *(("x-many", str(number)) for number in range(5000))]
    assert (await send(receiver, [GOOD], JSON, *more, ("x-request-id", "é\r\n"))).status == 200
    assert len(sqlite.events) == 1


async def test_airflow_may_be_served_below_a_path(receiver, sqlite):
    answer = await receiver.send("/airflow" + path_to(), [GOOD], headers=[JSON], root_path="/airflow")
    assert answer.status == 200
    assert len(sqlite.events) == 1


# Requests of tasks and triggerers


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}", TOKEN, f"Bearer {OTHER}", "Basic eDp5", "Bearer é"],
)
@pytest.mark.usefixtures("sqlite")
async def test_wrong_internal_token_is_a_401_that_names_the_receiver(receiver, authorization):
    for method, path in (("GET", "/events"), ("POST", f"/events/{CONN_ID}"), ("POST", "/events/unknown")):
        headers = [JSON, ("authorization", authorization)] if authorization else [JSON]
        answer = await send(
            receiver, [b'{"how": "record", "events": []}'], *headers, path=address.PREFIX + path, method=method
        )
        assert (answer.status, answer.body, answer.pieces) == (401, b'{"detail":"Unauthorized"}', 0)
        assert answer.headers["www-authenticate"] == address.CHALLENGE


@pytest.mark.parametrize(
    ("how", "events", "words"),
    [
        ("record", None, "events must be a list of at most 500"),
        ("record", {}, "events must be a list of at most 500"),
        ("record", [statement()] * 501, "events must be a list of at most 500"),
        ("no", [], "how must be record, again, check, webhook or registered"),
        (None, [], "how must be record, again, check, webhook or registered"),
        ([], [], "how must be record, again, check, webhook or registered"),
        ("registered", [], "here must be true or false"),
        ("webhook", [statement()], "relay_id must be letters and digits"),
        ("webhook", [statement(relay_id=f"{PRIVATE}\n")], "relay_id must be letters and digits"),
        ("webhook", [statement(relay_id="a", entity_id=7)], "entity_id: Input should be"),
        ("record", [PRIVATE], "body: Input should be"),
        ("record", [None], "body: Input should be"),
        ("record", [statement(), statement(entity_id=7)], "entity_id: Input should be"),
        ("check", [statement(progress=1)], "progress: Input should be"),
    ],
)
async def test_invalid_request_of_a_task_is_a_400(receiver, sqlite, how, events, words):
    answer = await receiver.post_events(how, events)
    assert (answer.status, answer.detail[: len(words)]) == (400, words)
    assert not sqlite.events


@pytest.mark.usefixtures("sqlite")
async def test_tasks_get_a_409_or_503_for_a_connection_without_an_asset(receiver):
    """A 404 would look as if the webhook receiver were not there."""
    assert (await receiver.post_events("record", [statement()], conn_id="unknown")).status == 409
    assert (await receiver.post_events("record", [statement()], conn_id=NO_DAG)).status == 503
    assert (await receiver.post_events("record", [statement()], conn_id=" ")).status == 400


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
async def test_time_of_the_event_feed_may_be_any_valid_time(receiver, name, moment, status):
    internal_token = ("authorization", f"Bearer {address.internal_token(TOKEN)}")
    answer = await receiver.send(f"{address.PREFIX}/events?{name}={moment}", method="GET", headers=[internal_token])
    assert answer.status == status
