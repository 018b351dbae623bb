"""Settings: where they come from, what is refused, and that no secret ever shows."""

import json
import traceback

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsid_async._config import (
    DEFAULT_BASE_URL,
    Settings,
    check_seconds,
    is_loopback,
    load_settings,
)
from smsid_async.errors import ConfigurationError

KEY = "canary-key-0f9d"
SECRET = "canary-secret-77ab"
PASSWORD = "canary-password-31c4"
VARIABLES = ("SMSID_API_KEY", "SMSID_API_SECRET", "SMSID_BASE_URL", "SMSID_SENDER_ID")
relaxed = settings(deadline=None)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def load(**given_settings):
    everything = {"api_key": KEY, "api_secret": None, "base_url": None, "sender_id": None}
    return load_settings(**everything | given_settings)


def refusal(**given_settings):
    """The error for these settings; whatever hangs on it shows no secret."""
    with pytest.raises(ConfigurationError) as caught:
        load(**given_settings)
    error = caught.value
    assert error.maybe_sent is False
    seen = everything_shown_by(error)
    for canary in (KEY, SECRET, PASSWORD, "canary"):
        assert canary not in seen
    return str(error)


def everything_shown_by(error):
    pieces, queue, done = [], [error], set()
    while queue:
        one = queue.pop()
        if one is None or id(one) in done:
            continue
        done.add(id(one))
        pieces += [str(one), repr(one), repr(one.args), repr(vars(one))]
        queue += [one.__cause__, one.__context__]
    pieces += traceback.format_exception_only(error)
    return "\n".join(pieces)


# -- where a setting comes from ---------------------------------------------------


def test_a_key_alone_is_enough():
    assert load() == Settings(KEY, None, DEFAULT_BASE_URL, None)
    assert DEFAULT_BASE_URL == "https://smsid.co.uk/api/v1"


def test_every_setting_falls_back_to_its_variable(monkeypatch):
    values = (KEY, SECRET, "https://example.com/api", "SMSID")
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    assert load(api_key=None) == Settings(*values)


def test_an_argument_wins_over_its_variable(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "https://wrong.example")
    given_settings = {
        "api_key": KEY,
        "api_secret": SECRET,
        "base_url": "https://example.com",
        "sender_id": "SMSID",
    }
    assert attrs.asdict(load(**given_settings)) == given_settings


def test_an_empty_variable_counts_as_unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert load() == Settings(KEY, None, DEFAULT_BASE_URL, None)
    assert "no API key" in refusal(api_key=None)


@pytest.mark.parametrize("name", ["api_key", "api_secret", "base_url", "sender_id"])
def test_an_empty_argument_is_refused_and_does_not_fall_back(monkeypatch, name):
    for variable, value in zip(VARIABLES, (KEY, SECRET, DEFAULT_BASE_URL, "SMSID"), strict=True):
        monkeypatch.setenv(variable, value)
    assert refusal(**{name: ""})


def test_a_missing_key_names_the_variable_and_the_argument():
    said = refusal(api_key=None)
    assert "SMSID_API_KEY" in said
    assert "api_key=" in said


def test_settings_show_neither_key_nor_secret():
    shown = repr(load(api_secret=SECRET))
    assert "canary" not in shown
    assert DEFAULT_BASE_URL in shown


def test_settings_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load().api_key = "another"


# -- keys and secrets --------------------------------------------------------------

BAD_KEYS = [
    KEY + " ",
    " " + KEY,
    KEY[:6] + " " + KEY[6:],
    KEY + "\n",
    KEY + "\r\nX-Evil: 1",
    KEY + "\t",
    KEY + "\x00",
    KEY + "\x7f",
    KEY + "\u00a0",
    KEY + "\u200b",  # no width at all, as copied from a web page
    KEY + "é",
    KEY + "\uff11",
    KEY + "\ud83d",
    " ",
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
def test_a_key_with_spaces_control_or_foreign_characters_is_refused(key):
    assert "API key" in refusal(api_key=key)
    assert "API secret" in refusal(api_secret=key)


@pytest.mark.parametrize("key", [KEY.encode(), 12345, ["k"], True])
def test_a_key_that_is_no_str_is_refused(key):
    assert "API key" in refusal(api_key=key)
    assert "API secret" in refusal(api_secret=key)


@pytest.mark.parametrize("key", BAD_KEYS[:4] + BAD_KEYS[8:12], ids=ascii)
def test_a_bad_key_in_the_environment_is_refused_likewise(monkeypatch, key):
    monkeypatch.setenv("SMSID_API_KEY", key)
    assert "API key" in refusal(api_key=None)
    monkeypatch.setenv("SMSID_API_SECRET", key)
    assert "API secret" in refusal()


@relaxed
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_any_visible_ascii_is_a_key_and_a_secret(text):
    loaded = load(api_key=text, api_secret=text)
    assert (loaded.api_key, loaded.api_secret) == (text, text)


@relaxed
@given(st.text(st.characters(codec=None), min_size=1))
def test_a_key_passes_only_if_it_is_visible_ascii(text):
    good = all(0x21 <= ord(character) <= 0x7E for character in text)
    try:
        assert load(api_key=text).api_key == text
    except ConfigurationError:
        assert not good
    else:
        assert good


@pytest.mark.parametrize("sender", ["a", "123456789012", "a\nb", 17])
def test_a_bad_sender_is_refused_with_the_name_of_the_setting(sender):
    assert refusal(sender_id=sender).startswith("sender_id: ")


# -- the base URL ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.com", "https://example.com"),
        ("https://example.com/", "https://example.com"),
        ("https://example.com/api/v1/", "https://example.com/api/v1"),
        ("https://example.com/api/v1///", "https://example.com/api/v1"),
        ("https://example.com:8443/x", "https://example.com:8443/x"),
        ("HTTPS://Example.COM/Api", "HTTPS://Example.COM/Api"),
        ("https://10.0.0.1/", "https://10.0.0.1"),
        ("https://[2001:db8::1]/", "https://[2001:db8::1]"),
        ("http://[::1]:8025/api/v1", "http://[::1]:8025/api/v1"),
    ],
)
def test_a_full_url_is_kept_without_its_trailing_slashes(url, kept):
    assert load(base_url=url).base_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/api",
        "/api/v1",
        "https://",
        "https:///api",
        "https:example.com",
        "https://:443/api",
        "ftp://example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://example.com:port",
        "https://example.com:99999",
        "https://example.com:-1",
        "https://example.com:0/api",
        "https://example.com:\uff11",
        "https://[::1",
        "https://[nonsense]/",
        "https://exa mple.com",
        "https://example.com/a b",
        " https://example.com",
        "https://example.com\n",
        "https://exam\tple.com",
        "https://exämple.com",
        17,
        b"https://example.com",
        ["https://example.com"],
    ],
    ids=ascii,
)
def test_what_is_no_full_url_is_refused(url):
    assert "base_url" in refusal(base_url=url)


@pytest.mark.parametrize(
    "tail", ["?", "#", "?a=1", "#part", "/api?", "/api#", "/api?key=canary", "/api/?a#b"]
)
def test_a_query_or_a_fragment_is_refused_even_if_empty(tail):
    assert "query" in refusal(base_url="https://example.com" + tail)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{PASSWORD}@example.com/api",
        f"https://{PASSWORD}@example.com",
        f"https://:{PASSWORD}@example.com",
        "https://@example.com",
        f"https://user:{PASSWORD}@example.com:port",
        f"https://example.com:{PASSWORD}",
        f"https://user:{PASSWORD}@[::1",
        f"https://[{PASSWORD}]/",
        f"ftp://user:{PASSWORD}@example.com",
        f"http://user:{PASSWORD}@example.com",
        f"user:{PASSWORD}@example.com",
        f"https://user:{PASSWORD}@exa mple.com",
        f"https://user:{PASSWORD}\u2100@example.com",
    ],
    ids=ascii,
)
def test_a_password_in_a_url_is_refused_and_shown_nowhere(url):
    assert "base_url" in refusal(base_url=url)


LOOPBACK = [
    "localhost",
    "LOCALHOST",
    "127.0.0.1",
    "127.8.9.10",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
]
NOT_LOOPBACK = [
    "example.com",
    "localhost.example.com",
    "api.localhost",
    "notlocalhost",
    "127.0.0.1.example.com",
    "128.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "192.168.0.1",
    "[::]",
    "[::2]",
    "[2001:db8::1]",
    "127.1",
    "0x7f000001",
    "2130706433",
]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("port", ["", ":8025"])
def test_plain_http_to_this_machine_passes(host, port):
    loaded = load(base_url=f"http://{host}{port}/api/v1")
    assert loaded.loopback
    assert load(base_url=f"https://{host}{port}").loopback


@pytest.mark.parametrize("host", NOT_LOOPBACK)
@pytest.mark.parametrize("port", ["", ":8025"])
def test_plain_http_to_another_machine_is_refused(host, port):
    assert "plain http://" in refusal(base_url=f"http://{host}{port}/api/v1")
    assert "plain http://" in refusal(base_url=f"HTTP://{host}{port}/api/v1")
    assert not load(base_url=f"https://{host}{port}").loopback


def test_the_real_api_is_no_loopback():
    assert not load().loopback


@pytest.mark.parametrize("host", ["", "::1%", "localhost.", "local host", "::ffff:10.0.0.1"])
def test_an_odd_host_is_no_loopback(host):
    assert is_loopback(host) is False


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        (DEFAULT_BASE_URL, "https://smsid.co.uk:443"),
        ("https://SMSID.co.uk:443/other", "https://smsid.co.uk:443"),
        ("HTTPS://smsid.co.uk", "https://smsid.co.uk:443"),
        ("https://smsid.co.uk:8443", "https://smsid.co.uk:8443"),
        ("https://smsid.co.uk:", "https://smsid.co.uk:443"),
        ("http://localhost", "http://localhost:80"),
        ("http://LocalHost:8025/api/v1", "http://localhost:8025"),
        ("http://127.0.0.1:8025/api/v1", "http://127.0.0.1:8025"),
    ],
)
def test_one_origin_is_written_in_one_way(url, origin):
    assert load(base_url=url).origin == origin


def test_different_ipv6_origins_differ():
    urls = ["http://[::1]", "http://[::1]:81", "https://[::1:80]", "https://[::1]:80"]
    assert len({load(base_url=url).origin for url in urls}) == len(urls)


@relaxed
@given(
    st.text(st.sampled_from(":/?#[]@.\\%a1\u00e9 \n"), max_size=20)
    | st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(["", "https://", "http://", "https://localhost", "https://h:"]),
)
def test_any_text_is_a_url_or_a_configuration_error(text, start):
    try:
        loaded = load(base_url=start + text)
    except ConfigurationError as error:
        assert error.__context__ is None  # noqa: PT017 - both ways out are right
    else:
        assert loaded.origin.startswith(("https://", "http://"))
        assert loaded.base_url.isascii()
        assert not {"?", "#", "@"} & set(loaded.base_url.split("/", 3)[2])
        assert loaded.origin.startswith("https://") or loaded.loopback


# -- seconds -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1, 0.001, 30.0, 1e9, 10**9])
def test_positive_seconds_and_none_pass_as_they_are(value):
    assert check_seconds("timeout", value) is value


@pytest.mark.parametrize(
    "value",
    [0, 0.0, -0.0, -1, -1e-9, float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)],
)
def test_seconds_that_are_not_positive_and_finite_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"^timeout is "):
        check_seconds("timeout", value)


@pytest.mark.parametrize("value", ["30", b"30", True, False, [30], {}, 1j, json])
def test_seconds_that_are_no_number_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"^max_wait is .* not a number of seconds"):
        check_seconds("max_wait", value)
