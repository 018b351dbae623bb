"""Thousands of sends at once with no rate limit, beside bare httpx in the same run.

    python benchmarks/fan_out.py [--sends 10000] [--latency 0 50] [--patience 60]

The server is a process of its own on loopback; it answers each POST after a latency. For
each latency: the SDK with `--sends` and twice as many; httpx behind a semaphore of as many
places as the SDK lets in flight; and bare httpx as it comes with a thousand and with
`--sends`, in a process that is ended after `--patience` seconds. The seconds are this
machine's; the promises are a ratio and a count: all of ours succeed, and twice as many take
at most 2.3 times as long. Exits 1 if one is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeAlias

import attrs
import httpx

from smsid_async import RateBudget, SMSIDClient

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

NUMBER = "+447700900123"
PLACES = 50  # what `RateBudget.unlimited()` lets be in flight
LINEAR = 2.3  # at most, for twice as many
BODY = (
    b'{"meta":{"code":200,"text":"OK"},"data":{"status":"success","message_id":"M1",'
    b'"cost":"0.0400","remaining_balance":"9.96"}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)

Send: TypeAlias = Callable[[int], Awaitable[object]]


@attrs.frozen
class Result:
    """What became of so many sends at once."""

    sends: int
    succeeded: int
    errors: Counter[str]
    seconds: float

    @property
    def each(self) -> float:
        """Microseconds a send."""
        return self.seconds / self.sends * 1e6

    def line(self, who: str) -> str:
        errors = ", ".join(f"{count:,} {name}" for name, count in self.errors.most_common())
        return (
            f"{who:28} {self.sends:7,} {self.succeeded:9,} {self.seconds:8.2f} "
            f"{self.each:8.0f}  {errors or '-'}"
        )


class Server(asyncio.Protocol):
    """Reads POSTs and answers each, after a latency."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            self._read = b""
            loop = asyncio.get_running_loop()
            loop.call_later(self._latency, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)  # type: ignore[attr-defined]


def serve(pipe: Connection, latency: float) -> None:
    """Serve in a process of its own until told to stop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(latency), "127.0.0.1", 0, backlog=1024)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1")
        await asyncio.to_thread(pipe.recv)  # until told to stop
        server.close()

    asyncio.run(main())


async def at_once(send: Send, sends: int) -> Result:
    """Make all the sends at once."""
    began = time.perf_counter()
    ends = await asyncio.gather(*(send(number) for number in range(sends)), return_exceptions=True)
    seconds = time.perf_counter() - began
    errors = Counter(type(end).__name__ for end in ends if isinstance(end, BaseException))
    return Result(sends, sends - errors.total(), errors, seconds)


async def ours(url: str, sends: int) -> Result:
    async with SMSIDClient("test", base_url=url, budget=RateBudget.unlimited()) as client:
        return await at_once(lambda number: client.sms.send(NUMBER, f"Text {number}"), sends)


def post_with(client: httpx.AsyncClient, url: str) -> Send:
    async def post(number: int) -> object:
        message = {"to": NUMBER, "message": f"Text {number}"}
        response = await client.post(f"{url}/sms/send", json=message, headers={"X-Api-Key": "test"})
        return response.raise_for_status().json()["data"]["message_id"]

    return post


async def behind_a_semaphore(url: str, sends: int) -> Result:
    places = asyncio.Semaphore(PLACES)
    limits = httpx.Limits(max_connections=PLACES, max_keepalive_connections=PLACES)
    async with httpx.AsyncClient(limits=limits) as client:
        post = post_with(client, url)

        async def send(number: int) -> object:
            async with places:
                return await post(number)

        return await at_once(send, sends)


def run_bare(pipe: Connection, url: str, sends: int) -> None:
    """Tell how each post ended as soon as it has: an error's name, or nothing."""

    async def main() -> None:
        async with httpx.AsyncClient() as client:  # with the limits and timeouts it comes with
            post = post_with(client, url)

            async def told(number: int) -> None:
                try:
                    await post(number)
                except httpx.HTTPError as error:
                    pipe.send(type(error).__name__)
                else:
                    pipe.send("")

            await asyncio.gather(*(told(number) for number in range(sends)))

    asyncio.run(main())


def bare(url: str, sends: int, patience: float) -> Result:
    """Run bare httpx in a process that can be ended: its event loop may answer to nobody."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=run_bare, args=(theirs, url, sends))
    began = time.perf_counter()
    process.start()
    ends: Counter[str] = Counter()
    while ends.total() < sends and pipe.poll(max(0.0, began + patience - time.perf_counter())):
        ends[pipe.recv()] += 1
    seconds = time.perf_counter() - began
    process.kill()
    process.join()
    succeeded = ends.pop("", 0)
    if missing := sends - succeeded - ends.total():
        ends["not ended in time"] = missing
    return Result(sends, succeeded, ends, seconds)


def measure(latency: float, sends: int, patience: float) -> bool:
    """Run everyone against one server; tell whether ours kept its promises."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, latency))
    server.start()
    url = pipe.recv()

    def show(who: str, result: Result) -> Result:
        print(result.line(who), flush=True)
        return result

    try:
        print(f"\nan answer after {latency * 1000:g} ms")
        asyncio.run(ours(url, 100))  # imports what is imported late
        first = show("smsid_async", asyncio.run(ours(url, sends)))
        second = show("smsid_async", asyncio.run(ours(url, 2 * sends)))
        fair = show("httpx behind a semaphore", asyncio.run(behind_a_semaphore(url, sends)))
        for count in sorted({min(1000, sends), sends}):
            show("bare httpx", bare(url, count, patience))
    finally:
        pipe.send("stop")
        server.join()
    growth = second.seconds / first.seconds
    print(f"twice as many take {growth:.2f} times as long; {LINEAR} is allowed")
    print(f"beside httpx behind a semaphore: {first.seconds / fair.seconds:.2f} times its time")
    return growth <= LINEAR and not first.errors and not second.errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sends", type=int, default=10_000)
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 50], help="milliseconds")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds, for bare httpx")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"{'':28} {'sends':>7} {'succeeded':>9} {'seconds':>8} {'us/send':>8}  errors")
    kept = [measure(latency / 1000, given.sends, given.patience) for latency in given.latency]
    raise SystemExit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
