"""Any input: the webhook receiver answers with one of its statuses, in JSON, and raises no exception."""

from __future__ import annotations

import json
from urllib.parse import quote

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from receivers import CONN_ID, CUT_OFF, JSON, NEEDS_3_2, NO_DAG, ODD, TOKEN, path_to, statement

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS_3_2

STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 503}
GOOD = json.dumps(statement()).encode()
NOT_JSON = "The body must be a JSON object, in UTF-8"
INTERNAL = ("authorization", f"Bearer {address.internal_token(TOKEN)}")


def usually(this, other):
    """Draw the first four times out of five."""
    return st.one_of(this, this, this, this, other)


# Including lone surrogates.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*statement(), "event_name", "how", "events"]) | st.text(max_size=5)
ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=1100)
events = st.builds(
    lambda good, bad: good | bad,
    st.fixed_dictionaries(
        {"entity_id": ids, "statement_id": ids, "link_id": st.none() | ids, "progress": ids, "reason": ids}
    ),
    st.dictionaries(names, anything, max_size=1),
)
batches = st.fixed_dictionaries(
    {
        "how": st.sampled_from(["record", "again", "check", "webhook", "registered"]) | anything,
        "events": st.lists(events, max_size=3) | anything,
    },
    optional={"here": st.booleans() | anything},
)


@st.composite
def damaged(draw):
    """Draw a valid body in which some bytes are replaced."""
    start = draw(st.integers(0, len(GOOD)))
    end = draw(st.integers(start, len(GOOD)))
    return GOOD[:start] + draw(st.binary(max_size=20)) + GOOD[end:]


bodies = st.binary() | damaged() | (events | batches | anything).map(lambda value: json.dumps(value).encode())
pieces = st.lists(bodies | st.just(CUT_OFF) | st.just(0), max_size=4)
segments = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([CONN_ID, ODD, NO_DAG, TOKEN, "..", ""])
known = st.sampled_from([path_to(), path_to(ODD), path_to(NO_DAG), f"{address.PREFIX}/events/{CONN_ID}"])
odd_paths = st.builds(
    lambda parts, query: f"{address.PREFIX}/{'/'.join(quote(part, safe='') for part in parts)}{query}",
    st.tuples(st.sampled_from(["webhook", "events"]) | segments, segments) | st.lists(segments, max_size=4),
    st.just("") | (st.sampled_from(["?", "?since="]) | st.text()).map(lambda text: quote(text, safe="?=")),
)
latin = st.text(st.characters(max_codepoint=255), max_size=40)
tokens_of_http = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)
usual = ["content-length", "content-type", "accept-encoding", "host", "cookie", "origin"]
headers = st.lists(
    st.sampled_from([JSON, INTERNAL, ("authorization", "Bearer"), ("content-type", "application/json; charset=x")])
    | st.tuples(st.sampled_from(usual) | tokens_of_http, latin),
    max_size=5,
)
requests = st.fixed_dictionaries(
    {
        "path": usually(known, odd_paths),
        "pieces": usually(bodies.map(lambda body: [body]), pieces),
        "headers": usually(headers.map(lambda more: [JSON, INTERNAL, *more]), headers),
        "method": usually(st.just("POST"), st.sampled_from(["GET", "HEAD", "OPTIONS"]) | tokens_of_http),
    }
)
UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


# Starlette leads no path with a line feed to a mounted app: Airflow itself answers it, and may redirect.
LINE_FEED = {"path": f"{address.PREFIX}/%0A/", "pieces": [GOOD], "headers": [JSON], "method": "POST"}


@settings(max_examples=500, **UNHURRIED)
@given(request=requests)
@example(request=LINE_FEED)
async def test_any_request_gets_a_documented_status(receiver, sqlite, request):
    answer = await receiver.send(**request)
    event(str(answer.status))
    if answer.status == 307:
        assert "%0A" in request["path"]
    else:
        assert answer.status in STATUSES
        assert answer.headers["content-type"] == "application/json"
        if request["method"] != "HEAD":
            assert answer.json()
    assert not sqlite.query("select 1 from asset_event where partition_key is null")


@settings(max_examples=150, **UNHURRIED)
@given(event=events)
async def test_recorded_event_is_in_the_database_as_sent(receiver, sqlite, event):
    before = len(sqlite.events)
    answer = await receiver.post(event)
    assert answer.status in {200, 400}
    if answer.status == 400:
        # The message names nothing but the five fields.
        assert {part.split(":")[0] for part in answer.detail.split("; ")} <= {*statement(), NOT_JSON}
    elif answer.json() == {"status": "recorded"}:
        assert len(sqlite.events) == before + 1
        _, key, extra = sqlite.events[-1]
        assert set(extra) == set(statement())
        assert extra["entity_id"] == event["entity_id"]
        assert 0 < len(key) <= 250
    else:
        assert len(sqlite.events) == before
