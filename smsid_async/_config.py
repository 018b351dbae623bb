"""Settings: checked once, with no secret in any message; the only reader of the environment."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs

from smsid_async.errors import ConfigurationError, ValidationError
from smsid_async.models import check_sender

if TYPE_CHECKING:
    from urllib.parse import SplitResult

__all__ = [
    "DEFAULT_BASE_URL",
    "Settings",
    "account_label",
    "check_flag",
    "check_seconds",
    "is_loopback",
    "load_settings",
]

DEFAULT_BASE_URL = "https://smsid.co.uk/api/v1"
_LONGEST = sys.float_info.max  # seconds; excludes infinity, and NaN compares as False


@attrs.frozen
class Settings:
    """Who we are and where the API is.

    Attributes:
        api_key: The key; visible ASCII.
        api_secret: The signing secret, None when requests are not signed.
        base_url: Without a trailing slash.
        sender_id: The sender ID of messages that name none; None for the account's own.
    """

    api_key: str = attrs.field(repr=False)
    api_secret: str | None = attrs.field(repr=False)
    base_url: str
    sender_id: str | None

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a budget belongs to, beside the key."""
        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}"

    @property
    def loopback(self) -> bool:
        """Whether the API is on this machine, as a sandbox is."""
        return is_loopback(urlsplit(self.base_url).hostname or "")


def load_settings(
    *,
    api_key: str | None,
    api_secret: str | None,
    base_url: str | None,
    sender_id: str | None,
) -> Settings:
    """Take each setting from its argument, else from the environment, and check it.

    Args:
        api_key: Falls back to `SMSID_API_KEY`.
        api_secret: Falls back to `SMSID_API_SECRET`, then to no signing.
        base_url: Falls back to `SMSID_BASE_URL`, then to `DEFAULT_BASE_URL`.
        sender_id: Falls back to `SMSID_SENDER_ID`, then to the account's own.

    Raises:
        ConfigurationError: A setting is missing or cannot work. Its text never
            shows the key or the secret.
    """
    key = _setting(api_key, "SMSID_API_KEY")
    secret = _setting(api_secret, "SMSID_API_SECRET")
    sender = _setting(sender_id, "SMSID_SENDER_ID")
    url = _setting(base_url, "SMSID_BASE_URL")
    return Settings(
        api_key=_checked_key(key),
        api_secret=_checked_secret(secret),
        base_url=_checked_url(DEFAULT_BASE_URL if url is None else url),
        sender_id=_checked_sender(sender),
    )


def account_label() -> str | None:
    """Return the account's label from `SMSID_ACCOUNT`, which journals are named after."""
    return os.environ.get("SMSID_ACCOUNT") or None


def check_flag(name: str, value: object) -> bool:
    """Return a plain bool, or raise: the text "false" would count as true, and send twice."""
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name} is {value!r}; give True or False")


def check_seconds(name: str, value: float | None) -> float | None:
    """Return a positive, finite number of seconds or None, or raise `ConfigurationError`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} is {type(value).__name__}, not a number of seconds")
    if not 0 < value <= _LONGEST:
        raise ConfigurationError(f"{name} is {value}; give a positive number of seconds, or None")
    return value


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _setting(argument: str | None, variable: str) -> str | None:
    """An argument wins; an empty variable counts as unset, an empty argument as given."""
    return argument if argument is not None else os.environ.get(variable) or None


def _checked_key(key: str | None) -> str:
    if key is None:
        raise ConfigurationError(
            "no API key: set SMSID_API_KEY, or pass api_key=... to SMSIDClient"
        )
    if not isinstance(key, str) or not key or not _is_visible_ascii(key):
        raise ConfigurationError(
            "the API key is empty or has spaces, control or non-ASCII characters; "
            "copy it again from Dashboard → API Credentials"
        )
    return key


def _checked_secret(secret: str | None) -> str | None:
    if secret is None:
        return None
    if not isinstance(secret, str) or not secret or not _is_visible_ascii(secret):
        raise ConfigurationError(
            "the API secret is empty or has spaces, control or non-ASCII characters; "
            "copy it again, or leave it out to send unsigned requests"
        )
    return secret


def _checked_sender(sender_id: str | None) -> str | None:
    try:
        return None if sender_id is None else check_sender(sender_id)
    except ValidationError as exc:
        raise ConfigurationError(f"sender_id: {exc}") from exc


def _checked_url(url: str) -> str:
    parts = _split_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"base_url must be a full URL such as {DEFAULT_BASE_URL}, with its https://"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("base_url must not hold a user name or password")
    if "?" in url or "#" in url:  # even an empty one would swallow the paths of the calls
        raise ConfigurationError("base_url must not have a query or a fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigurationError(
            "base_url is plain http:// to another machine, which would show the key "
            "to the network; use https://"
        )
    return url.rstrip("/")


def _split_url(url: str) -> SplitResult:
    # The text of a ValueError may hold a password, so it must not even be our error's context.
    with contextlib.suppress(ValueError):
        if isinstance(url, str) and _is_visible_ascii(url):
            parts = urlsplit(url)
            if parts.port != 0:  # a bad port is only noticed when it is read
                return parts
    raise ConfigurationError(f"base_url is not a URL; the API's own is {DEFAULT_BASE_URL}")


def _is_visible_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)
