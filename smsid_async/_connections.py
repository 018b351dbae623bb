"""The HTTP client that we own: made for one event loop, closed with it at the latest."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx

from smsid_async._envelope import MAX_BODY
from smsid_async.errors import InvalidResponseError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Connections", "read_body"]

_KEEPALIVE = 2.5  # seconds; common servers close idle connections after 5
_TIME_FOR_A_REFUSAL = 1.0  # seconds


class Connections:
    """An `httpx.AsyncClient` of ours, closed with its event loop at the latest.

    Args:
        loop: The running loop.
        places: Connections at the most.
        loopback: Whether the API is on this machine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, places: int, loopback: bool) -> None:
        self.loop = loop
        self.over = False
        self.client = httpx.AsyncClient(
            trust_env=not loopback,  # no proxy stands between us and this machine
            limits=httpx.Limits(
                max_connections=places,
                max_keepalive_connections=places,
                keepalive_expiry=_KEEPALIVE,
            ),
        )
        self._lifetime = self._live()
        self._closing: asyncio.Future[None] | None = None  # one for all who close it

    async def start(self) -> None:
        """Tie the connections to the running loop, which ends its generators on shutdown."""
        await anext(self._lifetime)

    async def aclose(self) -> None:
        """Close every connection."""
        if self.loop is not asyncio.get_running_loop():
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._lifetime.aclose()

    async def _live(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.over = True
            await self.client.aclose()


async def read_body(response: httpx.Response) -> bytes:
    """Read an answer's body, at most `MAX_BODY` bytes of it.

    A 429 says all that matters with its status, so its body may be broken or late.
    """
    if response.status_code != 429:
        return await _read_bounded(response)
    import anyio  # noqa: PLC0415 - loaded by httpx, with the request

    with contextlib.suppress(httpx.HTTPError, InvalidResponseError):
        left = anyio.current_effective_deadline() - anyio.current_time()
        # In anyio's way, which leaves the pool whole, and before the attempt's own end.
        with anyio.move_on_after(min(_TIME_FOR_A_REFUSAL, left / 2)):
            return await _read_bounded(response)
    return b""


async def _read_bounded(response: httpx.Response) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidResponseError("the answer is compressed, though we asked it not to be")
    if response.is_stream_consumed:  # read already, by an event hook of the caller's client
        return response.content
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidResponseError(f"the answer is larger than {MAX_BODY} bytes")
    return bytes(body)
