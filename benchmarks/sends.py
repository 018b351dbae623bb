"""A thousand sends at once against the sandbox in another process, for each kind of window.

    python benchmarks/sends.py [--sends 1000] [--limit 120] [--period 6]

Prints, for each window: sends that succeeded, answers 429, the largest count in any
period at the server, and the total time over N / rate. Exits 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from multiprocessing import get_context
from typing import TYPE_CHECKING

from smsid_async import RateBudget, SMSIDClient
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

NUMBER = "+447700900123"


def serve(pipe: Connection, limit: int, period: float, window: str) -> None:
    """Run a sandbox in a process of its own until told to stop."""

    async def main() -> None:
        async with Sandbox(limit=limit, period=period, window=window, balance=10**9) as sandbox:
            pipe.send(sandbox.url)
            await asyncio.to_thread(pipe.recv)  # until told to stop
            pipe.send((len(sandbox.messages), sandbox.refused, sandbox.largest_count()))

    asyncio.run(main())


async def send_all(url: str, count: int, limit: int, period: float) -> tuple[int, float]:
    async with SMSIDClient("test", base_url=url, budget=RateBudget(limit, period)) as client:
        began = time.perf_counter()
        receipts = await asyncio.gather(
            *(client.sms.send(NUMBER, f"Text {number}") for number in range(count))
        )
        return len({receipt.message_id for receipt in receipts}), time.perf_counter() - began


def measure(window: str, count: int, limit: int, period: float) -> bool:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, limit, period, window))
    server.start()
    sent, took = asyncio.run(send_all(ours.recv(), count, limit, period))
    ours.send("stop")
    accepted, refused, largest = ours.recv()
    server.join()
    ratio = took / (count * period / limit)
    print(f"{window:8} {sent:6} {refused:5} {largest:8} {took:8.2f} {ratio:8.3f}", flush=True)
    return sent == accepted == count and refused == 0 and largest <= limit and ratio <= 1.06


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sends", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--period", type=float, default=6.0)
    given = parser.parse_args()
    print(f"{given.sends} sends at once, sandbox at {given.limit} per {given.period:g} s")
    print(f"{'window':8} {'sent':>6} {'429s':>5} {'largest':>8} {'seconds':>8} {'of N/rate':>8}")
    kept = [
        measure(window, given.sends, given.limit, given.period)
        for window in ("sliding", "fixed", "bucket")
    ]
    raise SystemExit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
