"""Whatever comes, the doorbell answers with one of its statuses, in JSON, and lets no exception out."""

from __future__ import annotations

import json
from urllib.parse import quote

from doorbells import CONN_ID, CUT_OFF, JSON, LONELY, NEEDS, ODD, TOKEN, path_to, statement
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.receiver import address

pytestmark = NEEDS

STATUSES = {200, 400, 404, 405, 408, 413, 415, 503}
GOOD = json.dumps(statement()).encode()
NOT_JSON = "The body must be JSON, in UTF-8"
KNOCK = ("authorization", f"Bearer {address.knock(TOKEN)}")


def often(this, other):
    """Four times out of five this."""
    return st.one_of(this, this, this, this, other)


# With half surrogate pairs and all.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*statement(), "event_name", "how", "rings"]) | st.text(max_size=5)
ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=1100)
rings = st.builds(
    lambda good, bad: good | bad,
    st.fixed_dictionaries(
        {"entity_id": ids, "statement_id": ids, "link_id": st.none() | ids, "progress": ids, "reason": ids}
    ),
    st.dictionaries(names, anything, max_size=1),
)
orders = st.fixed_dictionaries(
    {"how": st.sampled_from(["ring", "again", "check"]) | anything, "rings": st.lists(rings, max_size=3) | anything}
)


@st.composite
def torn(draw):
    """A good body with some bytes of it replaced."""
    start = draw(st.integers(0, len(GOOD)))
    end = draw(st.integers(start, len(GOOD)))
    return GOOD[:start] + draw(st.binary(max_size=20)) + GOOD[end:]


bodies = st.binary() | torn() | (rings | orders | anything).map(lambda value: json.dumps(value).encode())
pieces = st.lists(bodies | st.just(CUT_OFF) | st.just(0), max_size=4)
segments = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([CONN_ID, ODD, LONELY, TOKEN, "..", ""])
known = st.sampled_from([path_to(), path_to(ODD), path_to(LONELY), f"{address.PREFIX}/rings/{CONN_ID}"])
odd_paths = st.builds(
    lambda parts, query: f"{address.PREFIX}/{'/'.join(quote(part, safe='') for part in parts)}{query}",
    st.tuples(st.sampled_from(["webhook", "rings"]) | segments, segments) | st.lists(segments, max_size=4),
    st.just("") | (st.sampled_from(["?", "?since="]) | st.text()).map(lambda text: quote(text, safe="?=")),
)
latin = st.text(st.characters(max_codepoint=255), max_size=40)
tokens_of_http = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)
usual = ["content-length", "content-type", "accept-encoding", "host", "cookie", "origin"]
headers = st.lists(
    st.sampled_from([JSON, KNOCK, ("authorization", "Bearer"), ("content-type", "application/json; charset=x")])
    | st.tuples(st.sampled_from(usual) | tokens_of_http, latin),
    max_size=5,
)
requests = st.fixed_dictionaries(
    {
        "path": often(known, odd_paths),
        "pieces": often(bodies.map(lambda body: [body]), pieces),
        "headers": often(headers.map(lambda more: [JSON, KNOCK, *more]), headers),
        "method": often(st.just("POST"), st.sampled_from(["GET", "HEAD", "OPTIONS"]) | tokens_of_http),
    }
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
async def test_whatever_comes_has_one_of_the_documented_answers(doorbell, sqlite, request):
    answer = await doorbell.send(**request)
    event(str(answer.status))
    assert answer.status in STATUSES
    assert answer.headers["content-type"] == "application/json"
    if request["method"] != "HEAD":
        assert answer.json()
    assert not sqlite.query("select 1 from asset_event where partition_key is null")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ring=rings)
async def test_what_is_taken_is_in_the_database_as_it_was_sent(doorbell, sqlite, ring):
    before = len(sqlite.events)
    answer = await doorbell.post(ring)
    assert answer.status in {200, 400}
    if answer.status == 400:
        # Each field that is named is one of the five.
        assert {part.split(":")[0] for part in answer.detail.split("; ")} <= {*statement(), NOT_JSON}
    elif answer.json() == {"status": "rung"}:
        assert len(sqlite.events) == before + 1
        _, key, extra = sqlite.events[-1]
        assert set(extra) == set(statement())
        assert extra["entity_id"] == ring["entity_id"]
        assert 0 < len(key) <= 250
    else:
        assert len(sqlite.events) == before
