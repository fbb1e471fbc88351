"""The fields of a connection, and the webhook endpoint."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.api import DEFAULT_BASE_URL, ConnectionSettings, check_webhook_url

KEY = "k-4ab7!~"
HASH = "h#99Zz"

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def parse(*, host=None, port=None, password=HASH, api_key=KEY, **extra):
    return ConnectionSettings.parse(
        "my_bank", host=host, port=port, password=password, extra={"api_key": api_key, **extra}
    )


def refusal(**given):
    with pytest.raises(ValueError, match=r"^Connection 'my_bank': ") as caught:
        parse(**given)
    assert caught.value.__cause__ is None
    return str(caught.value).removeprefix("Connection 'my_bank': ")


def test_both_keys_are_enough():
    assert parse() == ConnectionSettings(
        base_url=DEFAULT_BASE_URL,
        api_key=KEY,
        server_hash=HASH,
        timezone=UTC,
        verify=None,
        timeout=30.0,
        max_concurrency=16,
    )
    assert ConnectionSettings(base_url=DEFAULT_BASE_URL, api_key=KEY, server_hash=HASH) == parse()


def test_each_key_has_its_own_header():
    assert parse().headers == {"x-api-key": KEY, "server-hash": HASH}


def test_repr_of_the_settings_has_no_keys():
    shown = f"{parse()!r} {parse()}"
    assert KEY not in shown
    assert HASH not in shown
    assert shown.startswith("ConnectionSettings(base_url='https://apis.bankconnect.finbox.in/bank-connect/v1', ")


def test_settings_can_be_pickled():
    settings = parse(timezone="Asia/Kolkata")
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own


@pytest.mark.parametrize("extra", [[], "x", None, 5], ids=repr)
def test_extra_that_is_no_object_is_refused(extra):
    with pytest.raises(ValueError, match=r"^Connection 'my_bank': extra must be a JSON object$"):
        ConnectionSettings.parse("my_bank", host=None, port=None, password=HASH, extra=extra)


# Keys.

ASCII = "has a blank or a character outside visible ASCII: was it pasted with something around it?"
MASK = "is '***': Airflow's mask was saved in the place of the key. Enter the key again"
AS_JSON = (
    ". Give the connection as JSON, not as a URI, with the key as a JSON string: in a URI, Airflow may read it as a "
    "number or a truth value, and change it, and quotes that are added there become a part of the key"
)


@pytest.mark.parametrize(
    ("field", "name"), [("api_key", "API Key (extra 'api_key')"), ("password", "Server Hash (password)")]
)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is missing"),
        (" ", ASCII),
        ("S3cret x", ASCII),
        (" S3cret", ASCII),
        ("S3cret\n", ASCII),
        ("S3cret€", ASCII),
        ("S3cret\x7f", ASCII),
        ("S3cret\x00", ASCII),
        ("S3cret\u200b", ASCII),
        ("S3cret\r\nHost: x", ASCII),
        ("***", MASK),
        (1.1, f"must be text, not float{AS_JSON}"),
        (1e300, f"must be text, not float{AS_JSON}"),
        (float("nan"), f"must be text, not float{AS_JSON}"),
        (False, f"must be text, not bool{AS_JSON}"),
        (["S3cret"], f"must be text, not list{AS_JSON}"),
        ({"S3cret": 1}, f"must be text, not dict{AS_JSON}"),
        ('"S3cret"', f"begins and ends with a double quote{AS_JSON}"),
        ('""', f"begins and ends with a double quote{AS_JSON}"),
    ],
    ids=repr,
)
def test_invalid_key_is_refused_by_its_field_and_not_shown(field, name, value, problem):
    message = refusal(**{field: value})
    assert message == f"{name} {problem}"
    assert "S3cret" not in message
    assert "1.1" not in message


@pytest.mark.parametrize("value", [None, "null"])
def test_api_key_of_null_is_missing_with_the_cause(value):
    assert refusal(api_key=value) == f"API Key (extra 'api_key') is missing: it is null{AS_JSON}"


def test_password_of_none_is_missing():
    assert refusal(password=None) == "Server Hash (password) is missing"


@pytest.mark.parametrize("digits", ["0", "5", "123456", "9" * 40])
def test_key_that_is_a_whole_number_is_its_digits(digits):
    settings = parse(api_key=int(digits), password=int(digits))
    assert settings == parse(api_key=digits, password=digits)
    assert settings.headers == {"x-api-key": digits, "server-hash": digits}


def as_text(query):
    return dict(parse_qsl(query, keep_blank_values=True))


def as_json(query):
    """Read the extras of a URI as the core of Airflow 3.1 and later does."""
    extra = as_text(query)
    for name, value in extra.items():
        with suppress(ValueError):
            extra[name] = json.loads(value)
    return extra


def outcome(extra):
    try:
        return parse(**({"api_key": KEY} | extra))
    except ValueError as error:
        return str(error).partition(", not ")[0]


@pytest.mark.parametrize(
    "query",
    [
        "api_key=123456",
        "api_key=0123456",
        "api_key=123abc",
        "api_key=12-34",
        "api_key=",
        "api_key=null",
        "api_key=None",
        "api_key=nul",
        "timezone=Asia/Kolkata",
        "timezone=null",
        "timezone=5.5",
        "timezone=",
        "verify=true",
        "verify=false",
        "verify=null",
        "verify=0",
        "verify=1",
        "verify=1.0",
        "verify=/etc/ca.pem",
        "verify=",
        "timeout=30",
        "timeout=2.5",
        "timeout=1e1",
        "timeout=1e999",
        "timeout=NaN",
        "timeout=true",
        "timeout=null",
        "timeout=",
        "max_concurrency=8",
        "max_concurrency=8.0",
        "max_concurrency=1.5",
        "max_concurrency=false",
        "max_concurrency=null",
    ],
)
def test_extra_of_a_uri_means_the_same_read_as_text_and_as_json(query):
    """Airflow reads a URI as text in a task, and as JSON in its core: the same connection came out in two ways."""
    assert outcome(as_text(query)) == outcome(as_json(query))


@pytest.mark.parametrize("key", ["1.10", "1e5", "1E400", "NaN", "Infinity", "true", "false"])
def test_api_key_that_json_may_have_changed_is_refused(key):
    (value,) = as_json(f"api_key={key}").values()
    assert refusal(api_key=value) == f"API Key (extra 'api_key') must be text, not {type(value).__name__}{AS_JSON}"
    assert parse(api_key=key).api_key == key


def test_api_key_in_quotes_in_a_uri_is_refused_where_the_quotes_would_be_sent():
    """Airflow's core reads the JSON string; a task gets the text with its quotes."""
    query = "api_key=%22123456%22"
    assert parse(**as_json(query)).api_key == "123456"
    assert refusal(**as_text(query)) == f"API Key (extra 'api_key') begins and ends with a double quote{AS_JSON}"


@often
@given(st.integers() | st.floats() | st.booleans() | st.lists(st.integers(), max_size=2))
def test_key_of_another_type_is_its_digits_or_refused_without_its_value(value):
    try:
        assert parse(api_key=value).api_key == str(value)
    except ValueError as error:
        assert not isinstance(value, int) or isinstance(value, bool)
        assert str(error).endswith(f"must be text, not {type(value).__name__}{AS_JSON}")  # noqa: PT017 - either outcome is good


def test_missing_api_key_is_reported_where_there_is_no_extra():
    with pytest.raises(ValueError, match=r"^Connection 'c': API Key \(extra 'api_key'\) is missing$"):
        ConnectionSettings.parse("c", host=None, port=None, password=HASH, extra={})


@pytest.mark.parametrize("key", ["!", '"', '"a', "'a'", "~", "a", "****", "**", "x" * 500, "%s{}\"'"])
def test_key_may_have_every_visible_ascii_character(key):
    settings = parse(api_key=key, password=key)
    assert (settings.api_key, settings.server_hash) == (key, key)


BAD_FIELDS = [
    {"host": "http://h"},
    {"host": "h/../x"},
    {"port": 70_000},
    {"timezone": "Mars"},
    {"verify": "false"},
    {"timeout": "x"},
    {"max_concurrency": 0},
]


@pytest.mark.parametrize("bad", BAD_FIELDS, ids=repr)
def test_no_error_of_another_field_shows_a_key(bad):
    message = refusal(**bad)
    assert KEY not in message
    assert HASH not in message


# Host and port.


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        (None, None, DEFAULT_BASE_URL),
        ("", 0, DEFAULT_BASE_URL),
        ("  ", None, DEFAULT_BASE_URL),
        (None, 8443, "https://apis.bankconnect.finbox.in:8443/bank-connect/v1"),
        ("bank.example", None, "https://bank.example/bank-connect/v1"),
        (" bank.example\n", None, "https://bank.example/bank-connect/v1"),
        ("BANK.example", None, "https://bank.example/bank-connect/v1"),
        ("bank.example/", None, "https://bank.example/bank-connect/v1"),
        ("bank.example/x/y", None, "https://bank.example/x/y"),
        ("bank.example:8443", None, "https://bank.example:8443/bank-connect/v1"),
        ("bank.example:8443", 8443, "https://bank.example:8443/bank-connect/v1"),
        ("bank.example:8443", 0, "https://bank.example:8443/bank-connect/v1"),
        ("bank.example", 8443, "https://bank.example:8443/bank-connect/v1"),
        ("bank.example", 1, "https://bank.example:1/bank-connect/v1"),
        ("bank.example", 65535, "https://bank.example:65535/bank-connect/v1"),
        ("bank.example:0", None, "https://bank.example/bank-connect/v1"),
        ("bank.example", 443, "https://bank.example/bank-connect/v1"),
        ("bank.example:443", None, "https://bank.example/bank-connect/v1"),
        ("bank.example:", None, "https://bank.example/bank-connect/v1"),
        ("https://bank.example", None, "https://bank.example/bank-connect/v1"),
        ("HTTPS://bank.example/", None, "https://bank.example/bank-connect/v1"),
        ("https://bank.example/v9/", None, "https://bank.example/v9"),
        ("https://bank.example:8443/v9", None, "https://bank.example:8443/v9"),
        ("https://bank.example/v9", 8443, "https://bank.example:8443/v9"),
        ("[::1]", None, "https://[::1]/bank-connect/v1"),
        ("[::1]:8443", None, "https://[::1]:8443/bank-connect/v1"),
        ("https://[2001:db8::1]/v9", 8443, "https://[2001:db8::1]:8443/v9"),
        ("127.0.0.1:8443", None, "https://127.0.0.1:8443/bank-connect/v1"),
        ("localhost", 8443, "https://localhost:8443/bank-connect/v1"),
    ],
)
def test_host_is_blank_bare_or_an_https_base_url(host, port, base_url):
    assert parse(host=host, port=port).base_url == base_url


PLAIN = "host must not be http://: BankConnect fails plain HTTP, and the keys would travel in clear"
SHAPE = "host must be a bare host or an https:// base URL"
PARTS = "host must have no user info, query, fragment or dot segments"
UNREADABLE = "host is not a URL: its name or port cannot be read"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("http://bank.example", PLAIN),
        ("HTTP://bank.example/v1", PLAIN),
        ("http://", PLAIN),
        ("ftp://bank.example", SHAPE),
        ("https://", SHAPE),
        ("https:///v1", SHAPE),
        ("//bank.example", SHAPE),
        ("/v1", SHAPE),
        ("bank example", SHAPE),
        ("bank.example/a b", SHAPE),
        ("bank\\example", SHAPE),
        ("bank.example/\x00", SHAPE),
        ("bank.example/\u202e", SHAPE),
        ("user@bank.example", PARTS),
        ("https://user:S3cret@bank.example", PARTS),
        ("https://@bank.example", PARTS),
        ("bank.example?x=1", PARTS),
        ("bank.example#x", PARTS),
        ("bank.example/v1/../admin", PARTS),
        ("bank.example/./v1", PARTS),
        ("bank.example/v1/..", PARTS),
        ("::1", UNREADABLE),
        ("[::1", UNREADABLE),
        ("bank.example:x", UNREADABLE),
        ("bank.example:65536", UNREADABLE),
        ("https://user:S3cret@bank\u2100.example", UNREADABLE),
    ],
)
def test_invalid_host_is_refused_with_the_reason(host, message):
    said = refusal(host=host)
    assert said == message
    assert "S3cret" not in said


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("bank.example:8443", 8444, "port is 8444, but host says 8443: give it once"),
        ("https://bank.example:443", 8444, "port is 8444, but host says 443: give it once"),
        ("bank.example", -1, "port must be between 1 and 65535, not -1"),
        ("bank.example", 65536, "port must be between 1 and 65535, not 65536"),
    ],
)
def test_invalid_port_is_refused(host, port, message):
    assert refusal(host=host, port=port) == message


@often
@given(st.text("htps:/.@?#[]%\\ \tbank0", max_size=24) | st.text(max_size=12), st.sampled_from([None, 0, 8443]))
def test_any_host_is_an_https_base_url_or_refused(host, port):
    try:
        base_url = parse(host=host, port=port).base_url
    except ValueError as error:
        assert str(error).startswith("Connection 'my_bank': ")  # noqa: PT017 - either outcome is good
    else:
        assert base_url.startswith("https://")
        assert not base_url.endswith("/")
        assert "@" not in base_url.split("/")[2]


# The rest of the extra.


@pytest.mark.parametrize("value", [None, "", "UTC"])
def test_timezone_is_utc_by_default(value):
    assert parse(timezone=value).timezone.utcoffset(datetime(2026, 1, 1)) == timedelta(0)  # noqa: DTZ001 - any


def test_timezone_is_read_by_its_name():
    assert parse(timezone="Asia/Kolkata").timezone.utcoffset(datetime(2026, 1, 1)) == timedelta(hours=5.5)  # noqa: DTZ001


@pytest.mark.parametrize(
    "value", ["Mars", "IST+5", " ", 5.5, True, [], "../../etc/passwd", "Asia", "a\x00", "\ud800"], ids=repr
)
def test_unknown_timezone_is_refused(value):
    assert refusal(timezone=value) == (f"timezone must be an IANA name like 'UTC' or 'Asia/Kolkata', not {value!r}")


@pytest.mark.parametrize("value", [None, "", " ", True, "true", "True", " TRUE "], ids=repr)
def test_no_bundle_means_the_usual_authorities(value):
    assert parse(verify=value).verify is None


@pytest.mark.parametrize("value", ["/etc/ca.pem", " /etc/ca.pem\n"])
def test_verify_is_the_path_of_a_bundle(value):
    assert parse(verify=value).verify == "/etc/ca.pem"


@pytest.mark.parametrize(
    "value",
    [False, 0, 1, 0.0, [], {}, "false", " FALSE ", "0", "1", " 1.0", "nan", "no", "No", "off", "OFF", "none", "None"],
    ids=repr,
)
def test_verify_refuses_every_way_to_switch_it_off(value):
    assert refusal(verify=value) == f"verify must be the path of a CA bundle, not {value!r}: TLS is always verified"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 30.0), ("", 30.0), (5, 5.0), ("2.5", 2.5), (" 7 ", 7.0), (0.5, 0.5), ("1", 1.0), (86_400, 86_400.0)],
)
def test_timeout_is_a_number_of_seconds_or_its_text(value, seconds):
    timeout = parse(timeout=value).timeout
    assert timeout == seconds
    assert type(timeout) is float


@pytest.mark.parametrize(
    "value",
    [0, "0", -1, "nan", "inf", float("inf"), "soon", True, False, [], {}, " ", 10**400, 86_400.1, "1e10"],
    ids=lambda v: repr(v)[:9],
)
def test_invalid_timeout_is_refused(value):
    """With a very long one every call failed with the socket's OverflowError."""
    assert refusal(timeout=value) == (
        f"timeout must be a number of seconds above 0, at most a day (86400), not {value!r}"
    )


@pytest.mark.parametrize(("value", "polls"), [(None, 16), ("", 16), (1, 1), ("8", 8), (4.0, 4)])
def test_max_concurrency_is_a_whole_number_or_its_text(value, polls):
    max_concurrency = parse(max_concurrency=value).max_concurrency
    assert max_concurrency == polls
    assert type(max_concurrency) is int


@pytest.mark.parametrize("value", [0, "0", -1, 0.5, "1.5", "nan", float("inf"), "many", True, []], ids=repr)
def test_invalid_max_concurrency_is_refused(value):
    assert refusal(max_concurrency=value) == f"max_concurrency must be a whole number from 1, not {value!r}"


def test_unknown_extras_are_ignored():
    assert parse(something="else") == parse()


# The endpoint.


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook/",
        "HTTPS://EXAMPLE.com:8443/a?b=c#d",
        "https://example.com./",
        "https://localhost.example.com/",
        "https://mylocalhost/",
        "https://localhost%58/",
        "https://8.8.8.8/",
        "https://134744072/",
        "https://[2606:4700::1111]/",
        "https://bücher.example/ü",
        "https://1.2.3.4.5/",
        "https://10.example.com/",
        "https://[::ffff:8.8.8.8]/",
    ],
)
def test_public_endpoint_is_returned_unchanged(url):
    assert check_webhook_url(url) == url


BLANKS = "webhook_url must have no blanks, backslashes or control characters"
ABSOLUTE = "webhook_url must be an absolute https:// URL with a host"
NO_URL = "webhook_url is not a URL: its host or port cannot be read"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "webhook_url must be text, not NoneType"),
        (b"https://example.com", "webhook_url must be text, not bytes"),
        ("", ABSOLUTE),
        ("None", ABSOLUTE),
        ("http://example.com/", ABSOLUTE),
        ("ftp://example.com/", ABSOLUTE),
        ("example.com/hook", ABSOLUTE),
        ("//example.com/hook", ABSOLUTE),
        ("https:example.com", ABSOLUTE),
        ("https://", ABSOLUTE),
        ("https:///hook", ABSOLUTE),
        ("https://:8443/", ABSOLUTE),
        ("https://./", ABSOLUTE),
        ("https://%00/", ABSOLUTE),
        ("https://.../", ABSOLUTE),
        ("https://example.com:99999/", NO_URL),
        ("https://example.com:x/", NO_URL),
        ("https://[::1/", NO_URL),
        ("https://user:S3cret@example\u2100.com/", NO_URL),
        (" https://example.com/", BLANKS),
        ("https://example.com/\n", BLANKS),
        ("https://example.com/a b", BLANKS),
        ("https://example.com\\@10.0.0.1/", BLANKS),
        ("https://example.com/\x00", BLANKS),
        ("https://example.com/\u202e", BLANKS),
        ("https://example.com/\ud800", BLANKS),
        ("https://user@example.com/", "webhook_url must have no user info"),
        ("https://user:S3cret@example.com/", "webhook_url must have no user info"),
        ("https://:S3cret@example.com/", "webhook_url must have no user info"),
        ("https://@example.com/", "webhook_url must have no user info"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("allowed", [False, True])
def test_invalid_endpoint_is_refused_with_the_reason(url, message, allowed):
    with pytest.raises(ValueError, match=r"^webhook_url") as caught:
        check_webhook_url(url, allow_private_host=allowed)
    assert str(caught.value) == message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "foo.localhost.",
        "localhost:8443",
        "ｌｏｃａｌｈｏｓｔ",  # noqa: RUF001 - full width
        "localhost。",
        "%6cocalhost",
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0177.0.0.01",
        "１２７.０.０.１",  # noqa: RUF001
        "127。0。0。1",
        "127%2e0%2e0%2e1",
        "0",
        "0.0.0.0",  # noqa: S104 - a spelling of the own host
        "10.0.0.1",
        "10.1",
        "0xa000001",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "192.168.257",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::1]:8443",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:a00:1]",
        "[::10.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fe80::1%25]",
        "[fc00::1]",
        "[fd12::1]",
        "[ff02::1]",
        "[ff0e::1]",
    ],
)
def test_private_endpoint_is_refused_in_every_spelling_unless_it_is_allowed(host):
    url = f"https://{host}/hook"
    with pytest.raises(ValueError, match=r"^webhook_url's host .* is private, loopback or link-local: "):
        check_webhook_url(url)
    assert check_webhook_url(url, allow_private_host=True) == url


def test_error_of_a_private_endpoint_says_what_to_do():
    with pytest.raises(ValueError, match=r"^webhook_url") as caught:
        check_webhook_url("https://10.1:8443/")
    assert str(caught.value) == (
        "webhook_url's host '10.1' is private, loopback or link-local: BankConnect cannot reach it. "
        "Give a public one, or allow_private_host=True for a mock BankConnect"
    )


def spellings(number):
    """Yield every spelling of an address that inet_aton reads."""
    parts = number.to_bytes(4, "big")
    wide = [[number], [parts[0], number % 2**24], [parts[0], parts[1], number % 2**16], list(parts)]
    for groups in wide:
        for write in ("{}".format, "0x{:x}".format, "0X{:X}".format, "0{:o}".format):
            yield ".".join(map(write, groups))


@often
@given(st.integers(0, 2**24 - 1), st.sampled_from([0, 10, 127]))
def test_no_spelling_of_a_private_address_passes(rest, network):
    for spelling in spellings(network * 2**24 + rest):
        with pytest.raises(ValueError, match=r"^webhook_url's host"):
            check_webhook_url(f"https://{spelling}/")


@often
@given(st.integers(0, 2**24 - 1), st.sampled_from([8, 9, 52]))
def test_every_spelling_of_a_public_address_passes(rest, network):
    for spelling in spellings(network * 2**24 + rest):
        assert check_webhook_url(f"https://{spelling}/")


@often
@given(st.text(max_size=30) | st.text("https:/@.[]%0127x。", max_size=20).map("https://".__add__))
def test_any_text_is_an_endpoint_or_a_value_error_that_names_the_argument(url):
    try:
        assert check_webhook_url(url) == url
    except ValueError as error:
        assert str(error).startswith("webhook_url")  # noqa: PT017 - either outcome is good
