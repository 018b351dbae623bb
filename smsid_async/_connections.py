"""The HTTP clients that we own: made for one event loop, closed with it at the latest.

One for each request in flight, with one connection. A pool of httpcore looks at all of
its connections for every one of them with every request, which at fifty costs several
times what the request does; and a connection lost by one exchange can stop no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, cast

import httpx

from smsid_async._envelope import MAX_BODY
from smsid_async.errors import InvalidResponseError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator

__all__ = ["Connections", "read_body"]

_KEEPALIVE = 2.5  # seconds; common servers close idle connections after 5
_TIME_FOR_A_REFUSAL = 1.0  # seconds
_LIMITS = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEPALIVE)
_PIECES = 100  # of a body, read before others have their turn


class _NoCookies(CookieJar):
    """Keeps no cookie: no request of ours sends one, and a server could set millions."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


class Connections:
    """HTTP clients of one connection each, closed with their event loop at the latest.

    Args:
        loop: The running loop.
        places: Requests that may be under way at once.
        loopback: Whether the API is on this machine, so that no proxy is in between.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, places: int, loopback: bool) -> None:
        self.loop = loop
        self.over = False
        self._trust_env = not loopback
        self._places = asyncio.Semaphore(places)
        self._context: ssl.SSLContext | None = None
        self._free: deque[tuple[httpx.AsyncClient, float]] = deque()  # the last used at the end
        self._retiring: set[asyncio.Task[None]] = set()
        self._lifetime = self._live()
        self._closing: asyncio.Future[None] | None = None  # one for all who close it

    async def start(self) -> None:
        """Tie the connections to the running loop, which ends its generators on shutdown."""
        await anext(self._lifetime)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend a client for one exchange; one whose exchange broke is not used again."""
        async with self._places:
            client = self._free.pop()[0] if self._free else self._new_client()
            whole = False
            try:
                yield client
                whole = True
            finally:
                if whole and not self.over:
                    self._free.append((client, self.loop.time()))
                else:
                    self._retire(client)
                self._retire_idle()

    async def aclose(self) -> None:
        """Close every connection."""
        if self.loop is not asyncio.get_running_loop():
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def _new_client(self) -> httpx.AsyncClient:
        if self._context is None:
            self._context = httpx.create_ssl_context(trust_env=self._trust_env)
        return httpx.AsyncClient(
            verify=self._context,
            cookies=_NoCookies(),
            trust_env=self._trust_env,
            limits=_LIMITS,
        )

    def _retire_idle(self) -> None:
        """Close connections that the server may soon close, so that none is left half open."""
        while self._free and self._free[0][1] < self.loop.time() - _KEEPALIVE:
            self._retire(self._free.popleft()[0])

    def _retire(self, client: httpx.AsyncClient) -> None:
        task = self.loop.create_task(client.aclose())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self) -> None:
        await self._lifetime.aclose()

    async def _live(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.over = True
            while self._free:
                self._retire(self._free.popleft()[0])
            while self._retiring:
                await asyncio.wait(self._retiring)


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
    encoding = response.headers.get("Content-Encoding", "identity").strip(" \t").lower()
    if encoding not in ("", "identity"):
        raise InvalidResponseError("the answer is compressed, though we asked it not to be")
    if response.is_stream_consumed:  # read already, by an event hook of the caller's client
        return response.content
    import anyio.lowlevel  # noqa: PLC0415 - loaded by httpx, with the request

    body, pieces = bytearray(), 0
    # Not `aiter_raw`, which would hand the connection on before we have looked at it.
    async for chunk in cast("httpx.AsyncByteStream", response.stream):
        body += chunk
        pieces += 1
        if pieces % _PIECES == 0:  # one read can hold tiny ones by the thousand
            await anyio.lowlevel.checkpoint()
        if len(body) > MAX_BODY:
            raise InvalidResponseError(f"the answer is larger than {MAX_BODY} bytes")
    _spoil_if_more_came(response)
    return bytes(body)


def _spoil_if_more_came(response: httpx.Response) -> None:
    """Let nobody use a connection on which bytes came after the answer's end.

    httpcore would read them as the next answer. There is no public way to ask for them;
    where the private ones are gone, nothing is done.
    """
    state = _inner(response, "stream", "_stream", "_httpcore_stream", "_stream", "_connection")
    state = _inner(state, "_h11_state")
    stream = _inner(response.extensions.get("network_stream"), "_stream")
    trailing = getattr(state, "trailing_data", (b"",))[0]
    if state is not None and (trailing or _holds_bytes(stream)):
        state.send_failed()  # h11's way of saying that this connection is done


def _holds_bytes(stream: Any) -> bool:  # noqa: ANN401 - its parts are private
    """Whether a stream of anyio has read bytes that nobody has taken from it yet."""
    while stream is not None:
        records, tls = _inner(stream, "_read_bio"), _inner(stream, "_ssl_object")
        if records is not None and (records.pending or tls.pending()):
            return True
        if _inner(stream, "_protocol", "read_queue"):
            return True
        stream = _inner(stream, "transport_stream")
    return False


def _inner(thing: Any, *names: str) -> Any:  # noqa: ANN401 - likewise
    for name in names:
        thing = getattr(thing, name, None)
    return thing
