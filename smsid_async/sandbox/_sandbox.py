"""The sandbox: state, application and server put together."""

import asyncio
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from types import TracebackType
from typing import Self

from smsid_async.sandbox._app import BASE_PATH, App
from smsid_async.sandbox._records import SandboxMessage, SandboxRequest, SandboxStatistics
from smsid_async.sandbox._server import Listener
from smsid_async.sandbox._state import Settings, State
from smsid_async.sandbox.windows import WindowKind

__all__ = ["FAILING_SUFFIX", "Sandbox"]

FAILING_SUFFIX = "999"
"""Messages to numbers that end in this are accepted, and end as `failed`."""


def loop_time() -> float:
    """Return the running event loop's time in seconds; without one, the monotonic clock."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


class Sandbox:
    """The whole SMSID API on a loopback port; nothing is ever sent to anybody.

    ::

        async with Sandbox(limit=120, period=60.0) as sandbox:
            ...  # a client with base_url=sandbox.url and api_key="test"
        assert sandbox.largest_count() <= 120

    What was sent is kept when the block ends, and when the same object is started again. Without
    `async with`, `app` can be called through an ASGI transport.

    Args:
        api_key: The only key accepted; None accepts any, each with its own balance and window.
        api_secret: Requests must be signed with it; None asks for no signature.
        limit: Requests admitted a period for each key; None for no limit.
        period: Length of the rate window in seconds.
        window: "sliding" (never more than `limit` in any `period`), "fixed" (a window opens with
            the first request after the last one closed), "aligned" (windows at whole multiples of
            `period` on the clock) or "bucket" (`limit` tokens, refilled evenly).
        port: The port on 127.0.0.1; 0 takes any free one at each start.
        balance: What each key has to begin with.
        price: What a segment costs.
        otp_price: What a one-time code costs.
        senders: The approved sender ids, the default one first; None approves any.
        latency: Seconds from a request's arrival until it is counted and answered, or a callable
            that returns them for each request.
        delivery: Seconds after which a message is `sent`, and after which `delivered` (`failed`
            for numbers that end in `FAILING_SUFFIX`).
        otp_ttl: Seconds for which a one-time code can be used.
        keep: Remember only this many of the newest requests, messages and codes; None: all.
        clock: Returns the present moment in seconds; by default the running loop's time.
    """

    def __init__(
        self,
        api_key: str | None = "test",
        api_secret: str | None = None,
        limit: int | None = 120,
        period: float = 60.0,
        window: WindowKind = "sliding",
        *,
        port: int = 0,
        balance: Decimal | int | str = Decimal("100.0000"),
        price: Decimal | int | str = Decimal("0.0400"),
        otp_price: Decimal | int | str = Decimal("0.0000"),
        senders: Iterable[str] | None = ("SMSID",),
        latency: float | Callable[[], float] = 0.0,
        delivery: tuple[float, float] = (0.5, 2.0),
        otp_ttl: float = 300.0,
        keep: int | None = None,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        settings = Settings(
            api_key=api_key,
            api_secret=api_secret,
            limit=limit,
            period=period,
            window=window,
            balance=balance,
            price=price,
            otp_price=otp_price,
            senders=senders,
            delivery=delivery,
            failing=FAILING_SUFFIX,
            otp_ttl=otp_ttl,
            keep=keep,
        )
        self._port = port
        self._period = period
        self._state = State(settings)
        self._app = App(self._state, clock, latency if callable(latency) else lambda: latency)
        self._listener = Listener()
        self._url: str | None = None

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            RuntimeError: It is being served already.
            OSError: The port is taken.
        """
        if self._url is not None:
            raise RuntimeError("the sandbox is running already")
        self._url = await self._listener.start(self._app, self._port) + BASE_PATH
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to serve; connections still open are dropped."""
        self._url = None
        await self._listener.stop()

    @property
    def url(self) -> str:
        """The base URL, `http://127.0.0.1:PORT/api/v1`.

        Raises:
            RuntimeError: The sandbox is not being served.
        """
        if self._url is None:
            raise RuntimeError("the sandbox is not running: use `async with`")
        return self._url

    @property
    def app(self) -> App:
        """The ASGI application; its base path is `/api/v1`."""
        return self._app

    @property
    def messages(self) -> list[SandboxMessage]:
        """The messages accepted by `/sms/send`, oldest first, as a new list."""
        return self._state.messages()

    @property
    def requests(self) -> list[SandboxRequest]:
        """Every request that arrived, oldest first, as a new list."""
        return self._state.requests()

    @property
    def refused(self) -> int:
        """How many requests were answered 429."""
        return self.statistics().refused

    def statistics(self) -> SandboxStatistics:
        """Return the counts since the sandbox was made; cheap, however much is remembered."""
        return self._state.statistics()

    def largest_count(self, span: float | None = None) -> int:
        """Return the most requests counted in any half-open span, from the log.

        Each key is looked at by itself; with `keep`, only the requests still remembered are.

        Args:
            span: Length of the span in seconds; the rate window's period by default.
        """
        return self._state.largest_count(self._period if span is None else span)

    def otp_code(self, to: str) -> str:
        """Return the one-time code last sent to a number, even if it is used or expired.

        Raises:
            LookupError: None was sent.
        """
        return self._state.code(to)

    def __repr__(self) -> str:
        counts = self.statistics()
        where = self._url or "not running"
        return f"<Sandbox {where}: {counts.requests} requests, {counts.messages} messages>"
