"""The bytes of a request: serialised once, signed, and sent as they are."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx

from smsid_async._signing import sign
from smsid_async._version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from smsid_async._config import Settings

__all__ = ["RequestFactory", "encode"]

_USER_AGENT = f"smsid-async/{__version__} python/{sys.version_info[0]}.{sys.version_info[1]}"
_NO_TIMEOUTS = httpx.Timeout(None).as_dict()  # the attempt has one hard limit of its own


def encode(payload: Mapping[str, str]) -> bytes:
    """Serialise a body, once: what is signed is what is sent."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


class RequestFactory:
    """Makes signed requests.

    Nothing of a caller's HTTP client goes in, so that no default header or parameter
    of its can spoil a signature.

    Args:
        settings: Give the key, the secret and the base URL.
    """

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.base_url
        self._secret = settings.api_secret
        self._urls: dict[str, httpx.URL] = {}
        self._headers = [
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", _USER_AGENT.encode()),
            (b"X-Api-Key", settings.api_key.encode()),
        ]

    def make(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        trace: Callable[[str, Mapping[str, Any]], Awaitable[None]],
    ) -> httpx.Request:
        """Make a request.

        Args:
            method: `GET` or `POST`.
            path: Below the base URL.
            body: Sent and signed as it is; empty for a GET.
            trace: Listens to httpcore.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx.URL(self._base_url + path)
        headers = list(self._headers)
        if body:
            headers.append((b"Content-Type", b"application/json"))
        if self._secret is not None:
            headers.append((b"X-Api-Sign", sign(body, self._secret).encode()))
        return httpx.Request(
            method,
            url,
            headers=headers,
            content=body or None,
            extensions={"timeout": _NO_TIMEOUTS, "trace": trace},
        )
