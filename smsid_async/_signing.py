"""The `X-Api-Sign` header's value."""

from __future__ import annotations

import hmac

__all__ = ["sign"]


def sign(body: bytes, secret: str) -> str:
    """Return the lower-case hex HMAC-SHA256 of the exact bytes that will be sent.

    Args:
        body: The raw request body; empty for a GET.
        secret: The API secret.
    """
    return hmac.digest(secret.encode(), body, "sha256").hex()
