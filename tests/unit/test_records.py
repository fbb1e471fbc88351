"""The gates: which requests each sends, in which order, and what it makes of each answer and error."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.gate import Expectation, Row, Verdict
from airflow_provider_bankconnect.records import CustomerGate, HistoryGate, ProgressGate, Records

NOW = datetime(2026, 11, 20, 12, 30, 45, tzinfo=UTC)
HISTORY = "entity/webhook_payloads/?link_id=L"
ENTITIES = "entity/?page=1&link_id=L"
ENTITY = "entity/e1/"
IDENTITY = "entity/e1/identity/"
TRANSACTIONS = "entity/e1/transactions/"
IDENTITY_2 = "entity/e2/identity/"
TRANSACTIONS_2 = "entity/e2/transactions/"
ABSENT = "identity/ has no transaction_status, or an unknown one"
AHEAD = "identity/ says that the transactions are over, and transactions/ does not"
BEHIND = "identity/ has no statement, and transactions/ has"


def payload(statement_id, progress, *, ago, entity="e1", reason=""):
    """Make a row of a history in the vendor's JSON form, ``ago`` before now."""
    return {
        "statement_id": statement_id,
        "entity_id": entity,
        "link_id": "L",
        "progress": progress,
        "reason": reason,
        "date_time": f"{NOW - ago:%Y-%m-%d %H:%M:%S}",
    }


def small(statement_id, transaction_status):
    """Make an item of ``identity/``, which itself is over."""
    return {"statement_id": statement_id, "status": "completed", "transaction_status": transaction_status}


def full(statement_id, status):
    """Make an item of ``transactions/``."""
    return {"statement_id": statement_id, "status": status}


def answers(*, history=(), entities=("e1",), identity=(), transactions=()):
    """Return the answer to each request about link L and entity e1."""
    results = [{"entity_id": entity, "link_id": "L"} for entity in entities]
    return {
        HISTORY: {"payloads": list(history)},
        ENTITIES: {"next": None, "results": results},
        IDENTITY: {"progress": list(identity)},
        TRANSACTIONS: {"progress": list(transactions)},
    }


def poke(gate, given):
    """Drive the gate's question; return the requests and the result."""
    call, sent = gate.ask(UTC), []
    step = api.advance(call)
    while isinstance(step, api.Request):
        sent.append(step.path)
        reply = given[step.path]
        if isinstance(reply, int):
            reply = refused(step, reply)
        is_error = isinstance(reply, api.BankConnectError)
        step = api.advance(call, reply if is_error else api.Answer(200, json.dumps(reply).encode()))
    return sent, step.value


def refused(request, status):
    """Return the error of a status, as the hooks get it."""
    with pytest.raises(api.BankConnectError) as caught:
        api.check_status(request, api.Answer(status, b'{"detail": "On purpose."}'))
    return caught.value


def refusal(gate, given):
    """Drive the gate's question to an error; return the requests and the error."""
    sent = []

    class Logged(dict):
        def __getitem__(self, path):
            sent.append(path)
            return dict.__getitem__(self, path)

    with pytest.raises(api.BankConnectError) as caught:
        poke(gate, Logged(given))
    return sent, caught.value


def verdict(gate, given):
    """Return the gate's verdict on what its question got."""
    return gate.judge(poke(gate, given)[1], NOW)


def customer(**arguments):
    return CustomerGate(Expectation(link_id="L", **arguments))


def entity(**arguments):
    return CustomerGate(Expectation(entity_id="e1", **arguments))


def transactions(**arguments):
    return ProgressGate(Expectation(entity_id="e1", **arguments))


DONE = {"identity": [small("s1", "completed")], "transactions": [full("s1", "completed")]}


def test_a_small_answer_that_says_not_yet_is_the_only_one():
    gate = ProgressGate(Expectation(entity_id="e1"))
    sent, records = poke(gate, answers(identity=[small("s1", "processing")]))
    assert sent == [IDENTITY]
    assert records.distrust == ""
    assert gate.judge(records, NOW).because == "0 of 1 statement done, 1 in progress"


def test_a_small_answer_that_says_over_is_confirmed_in_the_same_poke():
    gate = ProgressGate(Expectation(entity_id="e1"))
    given = answers(identity=[small("s1", "completed")], transactions=[full("s1", "failed")])
    sent, records = poke(gate, given)
    assert sent == [IDENTITY, TRANSACTIONS]
    assert records.distrust == ""
    assert gate.judge(records, NOW).state == "failed"


@pytest.mark.parametrize("make", [customer, lambda **more: ProgressGate(Expectation(entity_id="e1", **more))])
def test_no_statement_id_makes_a_small_answer_serve_a_gate_that_asks_in_full(make):
    one, other = make(statement_id=("in full",)), make().in_full()
    given = answers(identity=[small("s1", "completed")], transactions=[full("s1", "processing")])
    assert one.poll_key != other.poll_key or other.judge(poke(one, given)[1], NOW).state == "pending"


def test_a_failure_that_counts_by_now_is_confirmed_by_an_answer_in_full():
    """The login failed 90 minutes ago, and identity/ says that the only statement failed; transactions/ disagrees."""
    given = answers(
        history=[payload("", "failed", ago=timedelta(minutes=90), reason="wrong password")],
        identity=[small("s1", "failed")],
        transactions=[full("s1", "completed")],
    )
    assert verdict(customer().in_full(), given).state == "passed"
    assert verdict(customer(), given).state == "passed"


def test_a_failure_is_confirmed_for_entities_without_a_row_in_it_too():
    """A statement that identity/ does not list yet is in progress in transactions/."""
    given = answers(
        history=[
            payload("", "failed", ago=timedelta(minutes=90), entity=""),
            payload("s0", "completed", ago=timedelta(days=30)),
        ],
        identity=[small("s0", "completed")],
        transactions=[full("s0", "completed"), full("s1", "processing")],
    )
    gate = customer(since=NOW - timedelta(days=1), failure_grace=timedelta(0))
    assert verdict(gate.in_full(), given).state == "pending"
    assert verdict(gate, given).state == "pending"


# The small answers of one entity.


@pytest.mark.parametrize("gate", [transactions(), entity()], ids=["progress", "customer"])
@pytest.mark.parametrize(
    ("identity", "transactions", "distrust", "asks_twice"),
    [
        ([small("s1", "processing")], [full("s1", "completed")], "", False),
        ([small("s1", " Processing ")], [full("s1", "completed")], "", False),
        ([small("s1", "teleported")], [full("s1", "completed")], ABSENT, True),
        ([small("s1", "")], [full("s1", "completed")], ABSENT, True),
        ([small("s1", "completed")], [full("s1", "completed")], "", True),
        ([small("s1", "COMPLETED")], [full("s1", "completed")], "", True),
        ([small("s1", "failed")], [full("s1", "failed")], "", True),
        ([small("s1", "failed")], [full("s1", "completed")], "", True),
        ([], [], "", True),
        ([small("s1", None)], [full("s1", "completed")], ABSENT, True),
        ([full("s1", "completed")], [full("s1", "processing")], ABSENT, True),
        ([small("s1", "processing"), full("s2", "completed")], [], ABSENT, True),
        ([], [full("s1", "processing")], BEHIND, True),
        ([small("s1", "completed")], [full("s1", "processing")], AHEAD, True),
        ([small("s1", "failed")], [full("s1", None)], AHEAD, True),
        ([small("s1", "completed")], [], AHEAD, True),
    ],
)
def test_an_answer_in_full_is_asked_for_unless_the_small_one_says_not_yet(
    gate, identity, transactions, distrust, asks_twice
):
    given = answers(identity=identity, transactions=transactions)
    sent, records = poke(gate, given)
    assert sent == ([IDENTITY, TRANSACTIONS] if asks_twice else [IDENTITY])
    assert records.distrust == distrust
    if asks_twice:
        assert [(item.statement_id, item.status) for item in records.items["e1"]] == [
            (item["statement_id"], item["status"]) for item in transactions
        ]
    assert gate.judge(records, NOW).state == ("pending" if not asks_twice else verdict(gate.in_full(), given).state)


def test_a_small_answer_tells_the_state_of_the_transactions_and_not_that_of_the_identity():
    gate = transactions()
    _, records = poke(gate, answers(identity=[{**small("s1", "processing"), "message": "a"}, small("s2", "failed")]))
    assert [(item.statement_id, item.status, item.message) for item in records.items["e1"]] == [
        ("s1", "processing", "a"),
        ("s2", "failed", None),
    ]
    assert gate.judge(records, NOW).rows == (
        Row("s1", "e1", None, "processing", "a", None),
        Row("s2", "e1", None, "failed", "", None),
    )


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        (403, "identity/ cannot be used: identity: HTTP 403: BankConnect refuses these keys, or your account is not"),
        (400, "identity/ cannot be used: identity: HTTP 400: expected 200"),
        ([], "identity/ cannot be used: identity: HTTP 200, but not the documented JSON"),
        (
            {"progress": [{"status": "completed"}]},
            "identity/ cannot be used: identity: HTTP 200, but not the documented",
        ),
        (404, BEHIND),
    ],
    ids=["403", "400", "no object", "no statement_id", "404"],
)
def test_an_identity_that_is_refused_or_unreadable_is_replaced_by_the_answer_in_full(identity, why):
    given = answers(transactions=[full("s1", "completed")]) | {IDENTITY: identity}
    sent, records = poke(transactions(), given)
    assert sent == [IDENTITY, TRANSACTIONS]
    assert records.distrust.startswith(why)
    assert transactions().judge(records, NOW).state == "passed"


def test_an_unknown_identity_and_empty_transactions_are_no_reason_for_distrust():
    sent, records = poke(transactions(), answers() | {IDENTITY: 404})
    assert (sent, records) == ([IDENTITY, TRANSACTIONS], Records(items={"e1": []}))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, api.BankConnectAuthError), (402, api.BankConnectAuthError), (429, api.BankConnectRateLimitError)],
)
def test_refused_keys_and_too_many_calls_end_the_poke(status, kind):
    sent, error = refusal(transactions(), answers(**DONE) | {IDENTITY: status})
    assert sent == [IDENTITY]
    assert (type(error), error.status) == (kind, status)


@pytest.mark.parametrize(
    "error",
    [
        api.BankConnectServerError("500", status=500),
        api.BankConnectForbiddenError("403", status=403),
        api.BankConnectConnectionError("reset"),
    ],
    ids=repr,
)
def test_a_fault_of_identity_alone_does_not_hold_up_the_wait(error):
    gate = transactions()
    sent, records = poke(gate, answers(transactions=[full("s1", "completed")]) | {IDENTITY: error})
    assert sent == [IDENTITY, TRANSACTIONS]
    assert records.distrust == ""
    assert gate.judge(records, NOW).state == "passed"
    assert refusal(gate, answers() | {IDENTITY: error, TRANSACTIONS: error}) == ([IDENTITY, TRANSACTIONS], error)


def test_a_fault_of_identity_that_asks_for_a_pause_ends_the_poke():
    error = api.BankConnectServerError("503", status=503, retry_after=5.0)
    assert refusal(transactions(), answers(**DONE) | {IDENTITY: error}) == ([IDENTITY], error)


def test_an_error_of_the_answer_that_confirms_ends_the_poke():
    sent, error = refusal(transactions(), answers(**DONE) | {TRANSACTIONS: 500})
    assert (sent, type(error)) == ([IDENTITY, TRANSACTIONS], api.BankConnectServerError)


@pytest.mark.parametrize("gate", [transactions(), entity()], ids=["progress", "customer"])
def test_an_entity_that_both_calls_do_not_know_is_not_found_without_a_link(gate):
    sent, error = refusal(gate, answers() | {IDENTITY: 404, TRANSACTIONS: 404})
    assert (sent, type(error)) == ([IDENTITY, TRANSACTIONS], api.BankConnectNotFoundError)


def test_an_answer_that_confirms_with_404_is_an_error_without_a_link():
    sent, error = refusal(transactions(), answers(**DONE) | {TRANSACTIONS: 404})
    assert (sent, type(error)) == ([IDENTITY, TRANSACTIONS], api.BankConnectNotFoundError)


@pytest.mark.parametrize("gate", [transactions(), entity()], ids=["progress", "customer"])
@pytest.mark.parametrize("items", [[], [full("s1", "processing")], [full("s1", "completed")]])
def test_in_full_only_transactions_is_asked_for(gate, items):
    sent, records = poke(gate.in_full(), answers(identity=[small("s1", "completed")], transactions=items))
    assert sent == [TRANSACTIONS]
    assert records.distrust == ""
    assert len(records) == len(items)


def test_another_analysis_has_no_small_answer():
    gate = ProgressGate(Expectation(entity_id="e1"), "salary")
    sent, items = poke(gate, {"entity/e1/salary/": {"progress": [full("s1", "completed")]}})
    assert sent == ["entity/e1/salary/"]
    assert gate.judge(items, NOW).state == "passed"
    assert refusal(gate, {"entity/e1/salary/": 404})[0] == ["entity/e1/salary/"]


# The requests about a customer.


def both(**arguments):
    return CustomerGate(Expectation(link_id="L", entity_id="e1", **arguments))


OF_L = {ENTITY: {"entity_id": "e1", "link_id": "L"}}


@pytest.mark.parametrize(
    ("gate", "sent"),
    [
        (customer(), [HISTORY, ENTITIES, IDENTITY, TRANSACTIONS]),
        (both(), [HISTORY, ENTITY, IDENTITY, TRANSACTIONS]),
        (entity(), [IDENTITY, TRANSACTIONS]),
        (customer().in_full(), [HISTORY, ENTITIES, TRANSACTIONS]),
        (both().in_full(), [HISTORY, ENTITY, TRANSACTIONS]),
    ],
    ids=["link", "both", "entity", "link in full", "both in full"],
)
def test_a_customer_is_asked_for_by_its_link_or_by_its_entity_or_by_both(gate, sent):
    assert poke(gate, answers(**DONE) | OF_L)[0] == sent


def test_a_history_is_read_in_the_connections_zone():
    given = answers(history=[payload("s1", "completed", ago=timedelta(0))], entities=[])
    call = customer().ask(timezone(timedelta(hours=5, minutes=30)))
    step = api.advance(call)
    while isinstance(step, api.Request):
        step = api.advance(call, api.Answer(200, json.dumps(given[step.path]).encode()))
    assert step.value.rows[0].date_time == NOW - timedelta(hours=5, minutes=30)


def test_what_a_poke_learned_of_a_customer_has_both_records():
    given = answers(history=[payload("s0", "completed", ago=timedelta(hours=1))], identity=[small("s1", "processing")])
    _, records = poke(customer(), given)
    assert [row.statement_id for row in records.rows] == ["s0"]
    assert {name: [item.statement_id for item in its] for name, its in records.items.items()} == {"e1": ["s1"]}
    assert (len(records), records.distrust, records.stranger) == (2, "", "")
    assert [row.statement_id for row in customer().judge(records, NOW).rows] == ["s0", "s1"]


def test_a_link_without_entities_is_judged_by_its_history():
    history = [payload("", "failed", ago=timedelta(hours=1), entity="")]
    sent, records = poke(customer(), answers(history=history, entities=[]))
    assert sent == [HISTORY, ENTITIES]
    assert records.items == {}
    assert customer().judge(records, NOW).state == "failed"


@pytest.mark.parametrize("entities", [{"next": None, "results": []}, 404], ids=["empty", "404"])
def test_an_entity_that_only_the_history_names_is_asked_for_too(entities):
    given = answers(history=[payload("s1", "completed", ago=timedelta(0))], identity=[small("s2", "processing")])
    sent, records = poke(customer(), given | {ENTITIES: entities})
    assert sent == [HISTORY, ENTITIES, IDENTITY]
    assert customer().judge(records, NOW).state == "pending"


def test_entities_are_those_of_the_list_and_then_those_of_the_history_each_once():
    ago = timedelta(hours=1)
    history = [payload("s1", "completed", ago=ago), payload("s3", "completed", ago=ago, entity="e3")]
    given = of_two([small("s1", "processing")], [small("s2", "processing")], entities=("e2", "e1"), history=history)
    given["entity/e3/identity/"] = {"progress": [small("s3", "processing")]}
    assert poke(customer(), given)[0] == [HISTORY, ENTITIES, IDENTITY_2, IDENTITY, "entity/e3/identity/"]


def test_an_entity_of_an_older_row_is_asked_for_and_one_of_a_row_of_another_link_is_not():
    history = [
        payload("s1", "completed", ago=timedelta(hours=2)),
        {**payload("s2", "completed", ago=timedelta(0), entity="e2"), "link_id": "another"},
    ]
    given = answers(history=history, entities=[], identity=[small("s1", "processing")])
    assert poke(customer(since=NOW - timedelta(hours=1)), given)[0] == [HISTORY, ENTITIES, IDENTITY]


@pytest.mark.parametrize(
    ("link_id", "words"),
    [("M", "entity 'e1' is of link 'M', not of link 'L'"), (None, "entity 'e1' is of no link, not of link 'L'")],
)
def test_an_entity_of_another_link_is_pending_whatever_the_records_say(link_id, words):
    given = answers(history=[payload("s1", "completed", ago=timedelta(0))], **DONE)
    sent, records = poke(both(), given | {ENTITY: {"entity_id": "e1", "link_id": link_id}})
    assert sent == [HISTORY, ENTITY]
    assert records.stranger == words
    assert (len(records.rows), records.items, records.distrust) == (1, {}, "")
    assert both().judge(records, NOW) == Verdict("pending", (), words)


@pytest.mark.parametrize("gate", [customer(), both()], ids=["link", "both"])
def test_an_unknown_history_counts_as_an_empty_one(gate):
    sent, records = poke(gate, answers(**DONE) | OF_L | {HISTORY: 404})
    assert len(sent) == 4
    assert records.rows == []
    assert gate.judge(records, NOW).state == "passed"


@pytest.mark.parametrize(("gate", "path"), [(customer(), ENTITIES), (both(), ENTITY)], ids=["link", "both"])
@pytest.mark.parametrize("status", [404, 500, 403])
def test_an_error_of_the_entities_ends_the_poke(gate, path, status):
    sent, error = refusal(gate, answers(**DONE) | OF_L | {path: status})
    assert sent == [HISTORY, path]
    assert error.status == status


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_an_error_of_the_history_ends_the_poke(status):
    sent, error = refusal(customer(), answers(**DONE) | {HISTORY: status})
    assert (sent, error.status) == ([HISTORY], status)


@pytest.mark.parametrize("gate", [customer(), both()], ids=["link", "both"])
def test_an_entity_of_a_link_without_an_answer_counts_as_one_without_statements(gate):
    given = answers(history=[payload("s1", "completed", ago=timedelta(0))])
    _, records = poke(gate, given | OF_L | {IDENTITY: 404, TRANSACTIONS: 404})
    assert records.items == {"e1": ()}
    assert records.distrust == ""
    assert gate.judge(records, NOW).state == "passed"


def test_an_entity_of_a_link_that_is_unknown_in_full_alone_is_distrusted():
    _, records = poke(customer(), answers(**DONE) | {TRANSACTIONS: 404})
    assert (records.items, records.distrust) == ({"e1": ()}, AHEAD)


def many(count):
    return [f"n{number}" for number in range(count)]


def test_up_to_fifty_entities_are_asked_for():
    given = answers(entities=many(50))
    given |= {f"entity/{name}/{call}/": {"progress": []} for name in many(50) for call in ("identity", "transactions")}
    sent, records = poke(customer(), given)
    assert len(sent) == 102
    assert list(records.items) == many(50)


def test_more_than_fifty_entities_are_refused():
    sent, error = refusal(customer(), answers(entities=many(51)))
    assert sent == [HISTORY, ENTITIES]
    assert isinstance(error, api.BankConnectLimitError)
    assert str(error) == (
        "link 'L' has more than 50 entities, and each of them would be asked for at every check: "
        "name one with entity_id"
    )


def test_the_entities_of_the_history_count_among_the_fifty():
    given = answers(entities=many(50), history=[payload("s1", "completed", ago=timedelta(0))])
    sent, error = refusal(customer(), given)
    assert (sent, type(error)) == ([HISTORY, ENTITIES], api.BankConnectLimitError)


def test_of_a_link_with_many_entities_one_can_be_named():
    assert poke(both(), answers(entities=many(1000), **DONE) | OF_L)[1].items["e1"]


# The small answers of several entities.


def of_two(first, second, *, full_first=(), full_second=(), entities=("e1", "e2"), **more):
    given = answers(entities=entities, identity=first, transactions=full_first, **more)
    return given | {IDENTITY_2: {"progress": list(second)}, TRANSACTIONS_2: {"progress": list(full_second)}}


def test_entities_are_asked_for_in_the_order_of_the_list():
    given = of_two([small("s1", "processing")], [small("s2", "processing")], entities=("e2", "e1"))
    assert poke(customer(), given)[0] == [HISTORY, ENTITIES, IDENTITY_2, IDENTITY]


def test_an_entity_without_statements_is_asked_for_in_full_at_once():
    given = of_two([], [small("s2", "processing")])
    sent, records = poke(customer(), given)
    assert sent == [HISTORY, ENTITIES, IDENTITY, TRANSACTIONS, IDENTITY_2]
    assert records.distrust == ""


def test_only_the_entity_that_passes_is_confirmed():
    given = of_two([small("s1", "processing")], [small("s2", "completed")], full_second=[full("s2", "completed")])
    sent, records = poke(customer(), given)
    assert sent == [HISTORY, ENTITIES, IDENTITY, IDENTITY_2, TRANSACTIONS_2]
    assert records.distrust == ""
    assert [row.statement_id for row in customer().judge(records, NOW).rows] == ["s2"]


def test_another_entity_that_passes_is_confirmed_if_the_first_one_is_not():
    given = of_two(
        [small("s1", "completed")],
        [small("s2", "completed")],
        full_first=[full("s1", "completed")],
        full_second=[full("s2", "processing")],
    )
    sent, records = poke(customer(), given)
    assert sent == [HISTORY, ENTITIES, IDENTITY, IDENTITY_2, TRANSACTIONS_2, TRANSACTIONS]
    assert [row.statement_id for row in customer().judge(records, NOW).rows] == ["s1"]


def test_a_failure_is_confirmed_for_every_entity_in_the_order_of_their_ids():
    given = of_two(
        [small("s1", "failed")],
        [small("s2", "failed")],
        full_first=[full("s1", "failed")],
        full_second=[full("s2", "processing")],
        entities=("e2", "e1"),
    )
    sent, records = poke(customer(), given)
    assert sent == [HISTORY, ENTITIES, IDENTITY_2, IDENTITY, TRANSACTIONS, TRANSACTIONS_2]
    assert records.distrust == AHEAD
    assert customer().judge(records, NOW).state == "pending"


def test_a_pass_of_the_history_is_confirmed_by_the_entitys_answer_in_full():
    """It may have another statement in progress that identity/ does not list."""
    given = answers(
        history=[payload("s1", "completed", ago=timedelta(0))],
        identity=[small("s1", "completed")],
        transactions=[full("s1", "completed"), full("s2", "processing")],
    )
    sent, records = poke(customer(), given)
    assert sent == [HISTORY, ENTITIES, IDENTITY, TRANSACTIONS]
    assert records.distrust == AHEAD
    assert customer().judge(records, NOW).state == "pending"


def test_a_pass_of_an_entity_that_was_asked_for_in_full_needs_no_more():
    given = of_two([], [small("s2", "processing")], history=[payload("s1", "completed", ago=timedelta(0))])
    assert poke(customer(), given)[0] == [HISTORY, ENTITIES, IDENTITY, TRANSACTIONS, IDENTITY_2]


def test_the_first_reason_for_distrust_is_the_one_that_is_kept():
    given = of_two([full("s1", "completed")], [], full_first=[full("s1", None)], full_second=[full("s2", "processing")])
    assert poke(customer(), given)[1].distrust == ABSENT
    given = of_two(
        [], [full("s2", "completed")], full_first=[full("s1", "processing")], full_second=[full("s2", "processing")]
    )
    assert poke(customer(), given)[1].distrust == BEHIND
    given = of_two(
        [full("s1", "completed")],
        [small("s2", "completed")],
        full_first=[full("s1", "processing")],
        full_second=[full("s2", "processing")],
    )
    assert poke(customer(), given)[1].distrust == ABSENT


def test_a_row_in_the_future_is_refused_when_it_is_judged():
    """While the answers are read, no time is known. The gate refuses the row later."""
    given = answers(history=[payload("s1", "completed", ago=-timedelta(hours=6))], **DONE)
    _, records = poke(customer(), given)
    with pytest.raises(api.BankConnectTimezoneError, match="6:00:00 in the future"):
        customer().judge(records, NOW)


# Poll keys: equal for gates that one answer serves.

SINCE = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("gate", "key"),
    [
        (HistoryGate(Expectation(link_id="L")), ("webhook_payloads", "L")),
        (
            HistoryGate(Expectation(link_id="L", entity_id="e1", since=SINCE, expected_statements=3)),
            ("webhook_payloads", "L"),
        ),
        (ProgressGate(Expectation(entity_id="e1"), "identity"), ("identity", "e1")),
        (ProgressGate(Expectation(entity_id="e1", expected_statements=3), "salary"), ("salary", "e1")),
        (transactions(), ("transactions", "e1", "1")),
        (transactions(expected_statements=3), ("transactions", "e1", "3")),
        (transactions(statement_id=("b", "a", "b")), ("transactions", "e1", "2", "a", "b")),
        (transactions().in_full(), ("in full", "transactions", "e1", "1")),
        (customer(), ("customer", "L", "", "", "1")),
        (customer(failure_grace=timedelta(0)), ("customer", "L", "", "", "1")),
        (entity(expected_statements=2), ("customer", "", "e1", "", "2")),
        (both(since=SINCE), ("customer", "L", "e1", "2026-11-01 00:00:00+00:00", "1")),
        (both(statement_id=("b", "a")), ("customer", "L", "e1", "", "2", "a", "b")),
        (both().in_full(), ("in full", "customer", "L", "e1", "", "1")),
    ],
)
def test_a_poll_key_has_what_the_requests_depend_on(gate, key):
    assert gate.poll_key == key


def test_in_full_changes_only_gates_that_use_small_answers():
    for gate in (HistoryGate(Expectation(link_id="L")), ProgressGate(Expectation(entity_id="e1"), "identity")):
        assert gate.in_full() is gate
    for gate in (transactions(), customer(), entity()):
        full_gate = gate.in_full()
        assert full_gate is not gate
        assert full_gate.in_full() is full_gate
        assert (gate.is_in_full, full_gate.is_in_full) == (False, True)
        assert full_gate.expectation == gate.expectation


# Arguments and names.


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (customer(), "statements of link 'L'"),
        (entity(), "statements of entity 'e1'"),
        (both(), "statements of link 'L' and entity 'e1'"),
        (transactions(), "progress of transactions of entity 'e1'"),
    ],
)
def test_a_gate_names_its_customer(gate, name):
    assert str(gate) == name


def test_a_customer_gate_without_a_customer_is_refused():
    with pytest.raises(ValueError, match=r"^link_id or entity_id must be given$"):
        CustomerGate(Expectation())


def test_a_history_gate_has_its_arguments_in_plain_types():
    gate = HistoryGate.parse(link_id=7, statement_id=["a", "b"], since="2026-11-01", failure_grace=90)
    assert gate.arguments() == {
        "link_id": "7",
        "entity_id": None,
        "statement_id": ["a", "b"],
        "since": "2026-11-01T00:00:00+00:00",
        "expected_statements": 1,
        "failure_grace": 90.0,
    }
    assert HistoryGate.parse(**gate.arguments()) == gate


def test_a_progress_gate_has_its_arguments_in_plain_types():
    gate = ProgressGate.parse(entity_id="e1", analysis="salary", expected_statements="2")
    assert gate.arguments() == {
        "entity_id": "e1",
        "analysis": "salary",
        "statement_id": None,
        "expected_statements": 2,
    }
    assert ProgressGate.parse(**gate.arguments()) == gate
    assert ProgressGate.parse(entity_id="e1") == transactions()


def test_a_customer_gate_has_its_arguments_in_plain_types():
    gate = CustomerGate.parse(entity_id="e1", statement_id="a")
    assert gate.arguments() == {
        "link_id": None,
        "entity_id": "e1",
        "statement_id": ["a"],
        "since": None,
        "expected_statements": 1,
        "failure_grace": 1800.0,
        "announced": [],
        "announced_until": None,
    }
    assert CustomerGate.parse(**gate.arguments()) == gate
    gate = CustomerGate.parse(link_id="L", announced=["s1"], announced_until="2026-11-20T12:00:00Z")
    assert gate.arguments()["announced"] == ["s1"]
    assert gate.arguments()["announced_until"] == "2026-11-20T12:00:00+00:00"
    assert CustomerGate.parse(**gate.arguments()) == gate


def test_an_announcement_changes_no_poll_key():
    assert customer(announced=("s1",), announced_until=NOW).poll_key == customer().poll_key


def test_an_announced_statement_is_awaited_and_the_answers_are_confirmed_already():
    gate = customer(announced=("s9",), announced_until=NOW + timedelta(minutes=5))
    sent, records = poke(gate, answers(**DONE))
    assert sent == [HISTORY, ENTITIES, IDENTITY, TRANSACTIONS]
    assert gate.judge(records, NOW).because == "1 statement that a webhook announced in neither record yet"
    assert gate.judge(records, NOW + timedelta(minutes=5)).state == "passed"
