"""The doorbell's settings, its address, the asset, and the names; on every Airflow."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module

import pytest
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from doorbells import CONN_ID, NEEDS, ODD, PREVIOUS, TOKEN

from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.triggers.bell import Bell

ODDLY = "odd%2Faccount%3A%231.%28b%29"
TOO_OLD = ["2.11.2", "3.0.6", "3.1.8"]


@pytest.fixture
def base_url(monkeypatch):
    """Set ``[api] base_url``; None takes it away."""

    def set_url(url):
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
        if url is not None:
            monkeypatch.setenv("AIRFLOW__API__BASE_URL", url)

    set_url(None)
    return set_url


@pytest.fixture(params=TOO_OLD)
def too_old(request, monkeypatch):
    """An Airflow that can have no doorbell."""
    monkeypatch.setattr(address, "airflow_version", request.param)
    return request.param


# Settings


def test_there_is_no_doorbell_unless_a_token_says_so(configure):
    assert not address.is_on()
    assert address.tokens() == ()
    configure(webhook_token="", webhook_token_previous=" ")
    assert not address.is_on()


@NEEDS
def test_a_token_makes_a_doorbell(configure):
    configure(webhook_token=TOKEN)
    assert address.is_on()
    assert address.tokens() == (TOKEN,)


def test_the_current_token_is_the_first_of_two(configure):
    configure(webhook_token=f" {TOKEN}\n", webhook_token_previous=PREVIOUS)
    assert address.tokens() == (TOKEN, PREVIOUS)


@pytest.mark.parametrize("name", ["webhook_token", "webhook_token_previous"])
@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "with/a/slash/in/its/middle", "with a blank in its middle", "é" * 20, "x" * 20 + "%"]
)
def test_a_token_that_is_weak_or_no_part_of_a_path_is_named_and_not_told(configure, name, token):
    configure(**{"webhook_token": TOKEN, name: token})
    with pytest.raises(ValueError, match=rf"\[bankconnect\] {name} must have at least 16 characters") as caught:
        address.tokens()
    assert token not in str(caught.value)
    assert "secrets.token_urlsafe" in str(caught.value)


def test_a_previous_token_without_a_current_one_is_half_a_rotation(configure):
    configure(webhook_token_previous=PREVIOUS)
    with pytest.raises(ValueError, match="webhook_token_previous is set, and webhook_token is not"):
        address.tokens()


def test_what_the_message_tells_to_make_a_token_with_makes_a_good_one(configure):
    configure(webhook_token="weak")
    with pytest.raises(ValueError, match="Make one with") as caught:
        address.tokens()
    code = str(caught.value).partition("python -c '")[2].rstrip("'")
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    configure(webhook_token=made)
    assert address.tokens() == (made,)


@NEEDS
def test_a_token_may_come_from_a_command(configure, monkeypatch):
    monkeypatch.setenv("AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN_CMD", f"echo {TOKEN}")
    configure()
    assert address.tokens() == (TOKEN,)


def test_tokens_are_masked_in_what_tasks_log(configure):
    masked = "masked-token-of-the-tests"
    configure(webhook_token=masked, webhook_token_previous=PREVIOUS)
    address.tokens()
    for name in (
        "airflow.sdk._shared.secrets_masker",
        "airflow.sdk.execution_time.secrets_masker",
        "airflow.utils.log.secrets_masker",
    ):
        try:
            redact = import_module(name).redact
        except ImportError:
            continue
        assert redact(f"https://a/{masked}/{PREVIOUS}") == "https://a/***/***"
        return
    raise AssertionError("this Airflow masks nothing")


# The address


@NEEDS
@pytest.mark.parametrize(
    ("public_url", "base", "begin"),
    [
        ("https://bell.example.com", None, "https://bell.example.com"),
        ("https://bell.example.com/", "https://other.example.com", "https://bell.example.com"),
        ("https://example.com:8443/airflow/", None, "https://example.com:8443/airflow"),
        (None, "https://example.com/airflow", "https://example.com/airflow"),
        ("", "https://example.com/", "https://example.com"),
    ],
)
def test_the_address_begins_as_the_settings_say(configure, base_url, public_url, base, begin):
    configure(webhook_token=TOKEN, webhook_token_previous=PREVIOUS, public_url=public_url)
    base_url(base)
    assert address.webhook_url() == f"{begin}/bankconnect/webhook/bankconnect_default/{TOKEN}"
    assert address.webhook_url(ODD) == f"{begin}/bankconnect/webhook/{ODDLY}/{TOKEN}"


@NEEDS
@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "http://bell.example.com", "bell.example.com", "//x", "ftp://x"]
)
def test_an_address_that_bankconnect_does_not_call_is_refused(configure, base_url, url):
    base_url(url)
    configure(webhook_token=TOKEN)
    with pytest.raises(ValueError, match=r"set \[bankconnect\] public_url \(or \[api\] base_url\)") as caught:
        address.webhook_url()
    assert repr(url) in str(caught.value)
    base_url("https://good.example.com")
    configure(public_url=url)
    with pytest.raises(ValueError, match="https:// addresses only"):
        address.webhook_url()


@NEEDS
def test_without_a_token_there_is_no_address(configure, base_url):
    base_url("https://bell.example.com")
    with pytest.raises(ValueError, match=r"The doorbell is off: set \[bankconnect\] webhook_token"):
        address.webhook_url()
    configure(webhook_token="weak")
    with pytest.raises(ValueError, match="at least 16"):
        address.webhook_url()


@NEEDS
@pytest.mark.parametrize("conn_id", ["", " ", "None", ".", "..", "\ud800", None, 1])
def test_a_connection_that_cannot_be_meant_has_neither_an_address_nor_an_asset(configure, conn_id):
    configure(webhook_token=TOKEN, public_url="https://bell.example.com")
    for make in (address.webhook_url, address.webhook_asset):
        with pytest.raises(ValueError, match="conn_id"):
            make(conn_id)


@pytest.mark.parametrize(
    ("execution_url", "base", "url"),
    [
        ("http://api:8080/execution/", "https://outside", "http://api:8080"),
        ("https://api/airflow/execution", None, "https://api/airflow"),
        (None, "https://outside/airflow/", "https://outside/airflow"),
        (None, None, "http://localhost:8080"),
    ],
)
def test_airflows_own_parts_find_the_api_server_as_its_tasks_do(monkeypatch, base_url, execution_url, base, url):
    base_url(base)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", execution_url or "")
    assert address.api_server_url() == url


# The asset and its partitions


@NEEDS
@pytest.mark.parametrize("conn_id", [CONN_ID, ODD, "a b%c", "ॐ", "a/../b", "-.~_", "x" * 250])
def test_an_asset_is_spelt_in_one_way_and_can_be_read_back(conn_id):
    asset = address.webhook_asset(conn_id)
    # As Airflow has taken it, too.
    assert asset.uri == address.asset_uri(conn_id)
    assert asset.uri.startswith("bankconnect://webhook/")
    assert address.conn_id_of(asset.uri) == conn_id
    assert address.webhook_asset(conn_id) == asset


@NEEDS
def test_the_default_connection_has_the_default_asset_and_address(configure):
    configure(webhook_token=TOKEN, public_url="https://bell.example.com")
    assert address.webhook_asset().uri == "bankconnect://webhook/bankconnect_default"
    assert address.webhook_url() == address.webhook_url(CONN_ID)


@pytest.mark.parametrize(
    ("link_id", "entity_id", "key"),
    [
        ("loan", "entity", "link:loan"),
        (None, "entity", "entity:entity"),
        ("", "entity", "entity:entity"),
        (" \t", "entity", "entity:entity"),
        (" loan ", None, "link: loan "),
        ("entity:x", None, "link:entity:x"),
        ("ऋण", None, "link:ऋण"),
        ("x" * 245, None, "link:" + "x" * 245),
        ("\U0001f514" * 245, None, "link:" + "\U0001f514" * 245),
        (None, "x" * 243, "entity:" + "x" * 243),
    ],
)
def test_a_partition_is_the_links_or_else_the_entitys(link_id, entity_id, key):
    assert address.partition_key(link_id, entity_id) == key


def test_a_key_that_would_be_too_long_or_break_a_line_is_hashed_as_a_whole():
    ids = ["x" * 246, "x" * 247, "y" * 500, "a\nb", "a\rb", "a\u2028b", "a\x1bb", "a\x7fb"]
    keys = [address.partition_key(name, None) for name in ids]
    assert all(key.startswith("link:sha256:") and len(key) == 76 for key in keys)
    assert len(set(keys)) == len(ids)
    assert address.partition_key(None, "x" * 244).startswith("entity:sha256:")
    # Of a link and an entity of one name.
    assert address.partition_key("x" * 300, None)[12:] != address.partition_key(None, "x" * 300)[14:]


def test_what_triggerers_are_told_names_a_customer_only_to_who_knows_the_customer():
    told = address.whisper(TOKEN, CONN_ID, "link:loan")
    others = {
        address.whisper(TOKEN, ODD, "link:loan"),
        address.whisper(TOKEN, CONN_ID, "entity:loan"),
        address.whisper(PREVIOUS, CONN_ID, "link:loan"),
        address.whisper(TOKEN, f"{CONN_ID}l", "ink:loan"),
        address.knock(TOKEN),
        address.knock(PREVIOUS),
    }
    assert len(others) == 6
    assert told not in others
    assert address.whisper(TOKEN, CONN_ID, "link:loan") == told
    assert TOKEN not in told + address.knock(TOKEN)


# An Airflow that can have none


def test_below_airflow_3_2_asking_for_a_doorbell_says_what_it_needs(configure, too_old):
    configure(webhook_token=TOKEN, public_url="https://bell.example.com")
    asked = [
        address.webhook_url,
        address.webhook_asset,
        address.require_airflow,
        lambda: BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None),
        lambda: BankConnectCatchUpOperator(task_id="catch_up", link_ids=["loan"]),
    ]
    for ask in asked:
        with pytest.raises(AirflowOptionalProviderFeatureException) as caught:
            ask()
        assert str(caught.value).startswith(
            f"BankConnect's doorbell needs Airflow 3.2 or later, and this is {too_old}. The sensors need no doorbell"
        )


@pytest.mark.usefixtures("too_old")
async def test_below_airflow_3_2_no_wait_listens(configure, monkeypatch):
    configure(webhook_token=TOKEN)
    # Nobody is there who could answer.
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://localhost:1/execution/")
    assert not address.is_on()
    bell = Bell()
    async with bell.listening(CONN_ID, "link:loan", lambda: None):
        await asyncio.wait([bell._task])
        assert bell._task.exception() is None
    assert bell._token is None


@pytest.mark.parametrize("version", ["3.2.0", "3.2.2", "3.3.2", "3.10.0", "4.0.0", "3.2.0rc1", "3.3.0.dev0"])
def test_from_airflow_3_2_on_there_can_be_a_doorbell(monkeypatch, version):
    monkeypatch.setattr(address, "airflow_version", version)
    assert address.is_supported()


def test_other_urls_are_registered_as_ever_by_an_airflow_without_a_doorbell(too_old):  # noqa: ARG001
    BankConnectUpdateWebhookOperator(task_id="register", webhook_url="https://bell.example.com/hook")
