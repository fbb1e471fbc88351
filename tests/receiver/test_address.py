"""The webhook receiver's settings, address, asset and partition keys; on every supported Airflow."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module

import pytest
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from receivers import CONN_ID, NEEDS_3_2, ODD, PREVIOUS, TOKEN

from airflow_provider_bankconnect.operators.bankconnect import (
    BankConnectCatchUpOperator,
    BankConnectUpdateWebhookOperator,
)
from airflow_provider_bankconnect.receiver import address
from airflow_provider_bankconnect.triggers.listener import EventListener

ODDLY = "odd%2Faccount%3A%231.%28b%29"
TOO_OLD = ["2.11.2", "3.0.6", "3.1.8"]


@pytest.fixture
def base_url(monkeypatch):
    """Set ``[api] base_url``; None removes it."""

    def set_url(url):
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
        if url is not None:
            monkeypatch.setenv("AIRFLOW__API__BASE_URL", url)

    set_url(None)
    return set_url


@pytest.fixture(params=TOO_OLD)
def too_old(request, monkeypatch):
    """The version of an Airflow without a webhook receiver."""
    monkeypatch.setattr(address, "airflow_version", request.param)
    return request.param


# Settings


def test_receiver_is_off_without_a_token(configure):
    assert not address.is_on()
    assert address.tokens() == ()
    configure(webhook_token="", webhook_token_previous=" ")
    assert not address.is_on()


@NEEDS_3_2
def test_token_switches_the_receiver_on(configure):
    configure(webhook_token=TOKEN)
    assert address.is_on()
    assert address.tokens() == (TOKEN,)


def test_current_token_comes_first(configure):
    configure(webhook_token=f" {TOKEN}\n", webhook_token_previous=PREVIOUS)
    assert address.tokens() == (TOKEN, PREVIOUS)


@pytest.mark.parametrize("name", ["webhook_token", "webhook_token_previous"])
@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "with/a/slash/in/its/middle", "with a blank in its middle", "é" * 20, "x" * 20 + "%"]
)
def test_invalid_token_is_refused_without_its_value(configure, name, token):
    configure(**{"webhook_token": TOKEN, name: token})
    with pytest.raises(ValueError, match=rf"\[bankconnect\] {name} must have at least 16 characters") as caught:
        address.tokens()
    assert token not in str(caught.value)
    assert "secrets.token_urlsafe" in str(caught.value)


def test_previous_token_without_a_current_one_is_refused(configure):
    configure(webhook_token_previous=PREVIOUS)
    with pytest.raises(ValueError, match="webhook_token_previous is set, but webhook_token is not"):
        address.tokens()


def test_command_in_the_message_makes_a_valid_token(configure):
    configure(webhook_token="weak")
    with pytest.raises(ValueError, match="Make one with") as caught:
        address.tokens()
    code = str(caught.value).partition("python -c '")[2].rstrip("'")
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    configure(webhook_token=made)
    assert address.tokens() == (made,)


@NEEDS_3_2
def test_token_may_come_from_a_command(configure, monkeypatch):
    monkeypatch.setenv("AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN_CMD", f"echo {TOKEN}")
    configure()
    assert address.tokens() == (TOKEN,)


def test_tokens_are_masked_in_task_logs(configure):
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


@NEEDS_3_2
@pytest.mark.parametrize(
    ("public_url", "base", "begin"),
    [
        ("https://hooks.example.com", None, "https://hooks.example.com"),
        ("https://hooks.example.com/", "https://other.example.com", "https://hooks.example.com"),
        ("https://example.com:8443/airflow/", None, "https://example.com:8443/airflow"),
        (None, "https://example.com/airflow", "https://example.com/airflow"),
        ("", "https://example.com/", "https://example.com"),
    ],
)
def test_address_starts_with_the_configured_url(configure, base_url, public_url, base, begin):
    configure(webhook_token=TOKEN, webhook_token_previous=PREVIOUS, public_url=public_url)
    base_url(base)
    assert address.webhook_url() == f"{begin}/bankconnect/webhook/bankconnect_default/{TOKEN}"
    assert address.webhook_url(ODD) == f"{begin}/bankconnect/webhook/{ODDLY}/{TOKEN}"


@NEEDS_3_2
@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "http://hooks.example.com", "hooks.example.com", "//x", "ftp://x", "/airflow"]
)
def test_address_without_https_is_refused(configure, base_url, url):
    base_url(url)
    configure(webhook_token=TOKEN)
    with pytest.raises(ValueError, match=r"set \[bankconnect\] public_url \(or \[api\] base_url\)") as caught:
        address.webhook_url()
    assert repr(url) in str(caught.value)
    base_url("https://good.example.com")
    configure(public_url=url)
    with pytest.raises(ValueError, match="https:// addresses only"):
        address.webhook_url()


@NEEDS_3_2
def test_without_token_there_is_no_address(configure, base_url):
    base_url("https://hooks.example.com")
    with pytest.raises(ValueError, match=r"The webhook receiver is off: set \[bankconnect\] webhook_token"):
        address.webhook_url()
    configure(webhook_token="weak")
    with pytest.raises(ValueError, match="at least 16"):
        address.webhook_url()


@NEEDS_3_2
@pytest.mark.parametrize("conn_id", ["", " ", "None", ".", "..", "\ud800", None, 1])
def test_invalid_connection_id_is_refused(configure, conn_id):
    configure(webhook_token=TOKEN, public_url="https://hooks.example.com")
    for make in (address.webhook_url, address.webhook_asset):
        with pytest.raises(ValueError, match="conn_id"):
            make(conn_id)


@pytest.mark.parametrize(
    ("execution_url", "base", "url"),
    [
        ("http://api:8080/execution/", "https://outside", "http://api:8080"),
        ("https://api/airflow/execution", None, "https://api/airflow"),
        (None, "https://outside/airflow/", "https://outside/airflow"),
        (None, "/airflow", "http://localhost:8080/airflow"),
        (None, "/", "http://localhost:8080"),
        (None, None, "http://localhost:8080"),
    ],
)
@pytest.mark.usefixtures("configure")
def test_api_server_is_found_as_tasks_find_it(monkeypatch, base_url, execution_url, base, url):
    base_url(base)
    if execution_url:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", execution_url)
    assert address.api_server_url() == url
    executor = import_module("airflow.executors.base_executor")
    if hasattr(executor, "get_execution_api_server_url"):
        assert f"{url}/execution" == executor.get_execution_api_server_url().rstrip("/")


def test_api_server_with_the_plugins_may_be_another_than_that_of_the_tasks(configure, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://execution:8080/execution/")
    for url in ("http://core:8080", "https://core.example.com/airflow"):
        configure(api_server_url=f" {url}/ ")
        assert address.api_server_url() == url


INVALID_URLS = [
    *("core:8080", "/airflow", "ftp://core", "http:///x", "http://:8080", "http://core:port", "http://core:0"),
    *("http://private@core", "http://core/?private", "http://core/#private", "http://a core", "http://core\\x"),
    *("http://[core", "http://core\n.example.com"),
]


@pytest.mark.parametrize("url", INVALID_URLS)
def test_invalid_address_of_the_api_server_is_refused_without_its_value(configure, monkeypatch, base_url, url):
    configure(api_server_url=url)
    with pytest.raises(ValueError, match=r"\[bankconnect\] api_server_url must be an http:// or https://") as caught:
        address.api_server_url()
    assert url not in str(caught.value)
    configure(api_server_url=None)
    base_url(None)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", url.replace("/airflow", "airflow"))
    with pytest.raises(ValueError, match=r"\[core\] execution_api_server_url .* set \[bankconnect\] api_server_url"):
        address.api_server_url()


# The asset and its partitions


@NEEDS_3_2
@pytest.mark.parametrize("conn_id", [CONN_ID, ODD, "a b%c", "ॐ", "a/../b", "-.~_", "x" * 250])
def test_asset_uri_is_stable_and_gives_back_the_connection_id(conn_id):
    asset = address.webhook_asset(conn_id)
    # Airflow has not normalised it.
    assert asset.uri == address.asset_uri(conn_id)
    assert asset.uri.startswith("bankconnect://webhook/")
    assert address.conn_id_of(asset.uri) == conn_id
    assert address.webhook_asset(conn_id) == asset


@NEEDS_3_2
def test_default_connection_has_the_default_asset_and_address(configure):
    configure(webhook_token=TOKEN, public_url="https://hooks.example.com")
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
def test_partition_key_is_the_link_or_else_the_entity(link_id, entity_id, key):
    assert address.partition_key(link_id, entity_id) == key


def test_partition_key_too_long_or_not_printable_is_hashed():
    ids = ["x" * 246, "x" * 247, "y" * 500, "a\nb", "a\rb", "a\u2028b", "a\x1bb", "a\x7fb"]
    keys = [address.partition_key(name, None) for name in ids]
    assert all(key.startswith("link:sha256:") and len(key) == 76 for key in keys)
    assert len(set(keys)) == len(ids)
    assert address.partition_key(None, "x" * 244).startswith("entity:sha256:")
    # A link and an entity of the same name differ.
    assert address.partition_key("x" * 300, None)[12:] != address.partition_key(None, "x" * 300)[14:]


def test_customer_digest_depends_on_token_connection_and_key():
    digest = address.customer_digest(TOKEN, CONN_ID, "link:loan")
    others = {
        address.customer_digest(TOKEN, ODD, "link:loan"),
        address.customer_digest(TOKEN, CONN_ID, "entity:loan"),
        address.customer_digest(PREVIOUS, CONN_ID, "link:loan"),
        address.customer_digest(TOKEN, f"{CONN_ID}l", "ink:loan"),
        address.internal_token(TOKEN),
        address.internal_token(PREVIOUS),
    }
    assert len(others) == 6
    assert digest not in others
    assert address.customer_digest(TOKEN, CONN_ID, "link:loan") == digest
    assert TOKEN not in digest + address.internal_token(TOKEN)


# Airflow before 3.2


def test_before_airflow_3_2_the_receiver_is_refused(configure, too_old):
    configure(webhook_token=TOKEN, public_url="https://hooks.example.com")
    calls = [
        address.webhook_url,
        address.webhook_asset,
        address.require_airflow,
        lambda: BankConnectUpdateWebhookOperator(task_id="register", webhook_url=None),
        lambda: BankConnectCatchUpOperator(task_id="catch_up", link_ids=["loan"]),
    ]
    for call in calls:
        with pytest.raises(AirflowOptionalProviderFeatureException) as caught:
            call()
        assert str(caught.value).startswith(
            f"BankConnect's webhook receiver needs Airflow 3.2 or later, and this is {too_old}. "
            "The sensors need no webhook receiver"
        )


@pytest.mark.usefixtures("too_old")
async def test_before_airflow_3_2_the_listener_sends_no_request(configure, monkeypatch):
    configure(webhook_token=TOKEN)
    # A request would fail.
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://localhost:1/execution/")
    assert not address.is_on()
    event_listener = EventListener()
    async with event_listener.listening(CONN_ID, "link:loan", lambda: None):
        await asyncio.wait([event_listener._task])
        assert event_listener._task.exception() is None
    assert event_listener._token is None


@pytest.mark.parametrize("version", ["3.2.0", "3.2.2", "3.3.2", "3.10.0", "4.0.0", "3.2.0rc1", "3.3.0.dev0"])
def test_from_airflow_3_2_the_receiver_is_supported(monkeypatch, version):
    monkeypatch.setattr(address, "airflow_version", version)
    assert address.is_supported()


def test_before_airflow_3_2_other_urls_can_be_registered(too_old):  # noqa: ARG001
    BankConnectUpdateWebhookOperator(task_id="register", webhook_url="https://hooks.example.com/hook")
