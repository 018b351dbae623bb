"""Our budget beside other limiters, against the sandbox's windows and a random latency.

    python benchmarks/budget.py [--quick] [--sends 480] [--limit 120] [--period 6]

Every limiter makes the same sends, all at once, against a sandbox in another process that
takes 0 to 300 ms over each request, for each kind of window. Prints for each:

- lost: sends that were never accepted,
- 429s: requests that were refused,
- largest: the most requests that reached the server in any period, the refused included,
- of N/rate: the total time over N requests at the full rate. A limiter that starts with
  all that a window admits can be done earlier, by up to one period.

The others are used as their documentation shows, with their defaults: wait for the limiter,
post with httpx, and after a 429 sleep for `Retry-After` and try again, a few times. A minute is
scaled to `--period` for all alike, but not `Retry-After`, which counts whole seconds, nor the
shortest pauses of pyrate-limiter (50 ms) and throttled-py (200 ms).

The full run takes six minutes and draws pictures/budget.svg; `--quick` does not draw.
Exits 1 if our budget breaks a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import attrs
import httpx
from aiolimiter import AsyncLimiter
from pyrate_limiter import Limiter, Rate
from throttled.asyncio import MemoryStore, Throttled, per_duration

from smsid_async import RateBudget, SMSIDClient
from smsid_async.sandbox import Sandbox, WindowKind
from smsid_async.sandbox.windows import largest_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from multiprocessing.connection import Connection

    Wait = Callable[[], Awaitable[object]]
    Make = Callable[[int, float], AbstractAsyncContextManager[Wait]]

NUMBER = "+447700900123"
LATENCY = 0.3  # seconds; each request takes up to so long
TRIES = 5  # what a plain user has patience for
SLOWEST = 1.06  # of N/rate, which we promise for so short a run
WINDOWS: tuple[WindowKind, ...] = ("sliding", "fixed", "bucket")
PICTURE = Path(__file__).parent / "pictures" / "budget.svg"
COLOURS = {"sliding": "#0969da", "fixed": "#bf8700", "bucket": "#8250df", "aligned": "#1a7f37"}
OURS = "RateBudget (ours)"


@attrs.frozen
class Seen:
    """What the server saw of one run."""

    accepted: int
    refused: int
    largest: int


@attrs.frozen
class Cell:
    """One limiter against one window."""

    limiter: str
    window: str
    lost: int
    refused: int
    largest: int
    seconds: float
    ratio: float


def serve(pipe: Connection, limit: int, period: float, window: WindowKind) -> None:
    """Run a sandbox in a process of its own until told to stop."""
    draw = random.Random(1)

    async def main() -> None:
        async with Sandbox(
            limit=limit,
            period=period,
            window=window,
            balance=10**9,
            latency=lambda: draw.uniform(0, LATENCY),
        ) as sandbox:
            pipe.send(sandbox.url)
            await asyncio.to_thread(pipe.recv)  # until told to stop
            moments = [request.at for request in sandbox.requests]
            largest = largest_count(moments, period)
            pipe.send(Seen(len(sandbox.messages), sandbox.refused, largest))

    asyncio.run(main())


# -- the limiters ----------------------------------------------------------------


@asynccontextmanager
async def whole_bucket(limit: int, period: float) -> AsyncIterator[Wait]:
    yield AsyncLimiter(limit, period).acquire


@asynccontextmanager
async def small_bucket(limit: int, period: float) -> AsyncIterator[Wait]:
    """Two at once, at 116 of 120: what careful users arrive at."""
    yield AsyncLimiter(2, period * 2 / (limit * 116 / 120)).acquire


@asynccontextmanager
async def pyrate(limit: int, period: float) -> AsyncIterator[Wait]:
    with Limiter(Rate(limit, round(period * 1000))) as limiter:
        yield limiter.try_acquire_async


@asynccontextmanager
async def throttled(limit: int, period: float) -> AsyncIterator[Wait]:
    quota = per_duration(timedelta(seconds=period), limit)
    yield Throttled(key="smsid", quota=quota, timeout=3600, store=MemoryStore()).limit


# -- the sends -------------------------------------------------------------------


async def post(client: httpx.AsyncClient, wait: Wait, text: str) -> None:
    """Send as a plain user would."""
    for _ in range(TRIES):
        await wait()
        response = await client.post("/sms/send", json={"to": NUMBER, "message": text})
        if response.status_code != 429:
            response.raise_for_status()
            return
        await asyncio.sleep(float(response.headers["Retry-After"]))


async def post_all(url: str, count: int, limit: int, period: float, make: Make) -> float:
    async with (
        make(limit, period) as wait,
        httpx.AsyncClient(base_url=url, headers={"X-Api-Key": "test"}, trust_env=False) as client,
    ):
        began = time.perf_counter()
        sends = (post(client, wait, f"Text {number}") for number in range(count))
        await asyncio.gather(*sends, return_exceptions=True)  # the server counts what is lost
        return time.perf_counter() - began


async def send_all(url: str, count: int, limit: int, period: float) -> float:
    async with SMSIDClient("test", base_url=url, budget=RateBudget(limit, period)) as client:
        began = time.perf_counter()
        sends = (client.sms.send(NUMBER, f"Text {number}") for number in range(count))
        await asyncio.gather(*sends, return_exceptions=True)
        return time.perf_counter() - began


def limiters(limit: int, period: float) -> dict[str, Make | None]:
    """Every limiter by its name; None is ours."""
    return {
        OURS: None,
        f"AsyncLimiter({limit}, {period:g})": whole_bucket,
        f"AsyncLimiter(2, {period:g}*2/{limit * 116 / 120:g})": small_bucket,
        "pyrate-limiter": pyrate,
        "throttled-py": throttled,
    }


def measure(name: str, make: Make | None, window: WindowKind, given: argparse.Namespace) -> Cell:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, given.limit, given.period, window))
    server.start()
    theirs.close()  # so that a server that fails is noticed
    run = (ours.recv(), given.sends, given.limit, given.period)
    seconds = asyncio.run(send_all(*run) if make is None else post_all(*run, make))
    ours.send("stop")
    seen: Seen = ours.recv()
    server.join()
    return Cell(
        limiter=name,
        window=window,
        lost=given.sends - seen.accepted,
        refused=seen.refused,
        largest=seen.largest,
        seconds=seconds,
        ratio=seconds / (given.sends * given.period / given.limit),
    )


# -- the results -----------------------------------------------------------------


def draw(cells: list[Cell], given: argparse.Namespace, path: Path) -> None:
    """Three panels of bars: the largest count, the 429s, the time."""
    import matplotlib as mpl  # noqa: PLC0415 - the sandbox's process imports this module too

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "smsid-async"
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of its backend

    names = list(dict.fromkeys(cell.limiter for cell in cells))
    panels: tuple[tuple[str, str, float | None, str], ...] = (
        ("largest", f"most requests in any {given.period:g} s", given.limit, "{:.0f}"),
        ("refused", "answers 429", None, "{:.0f}"),
        ("ratio", "total time over N / rate", 1.0, "{:.2f}"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.4), sharey=True, layout="constrained")
    for axis, (field, title, mark, form) in zip(axes, panels, strict=True):
        for index, window in enumerate(dict.fromkeys(cell.window for cell in cells)):
            values = [getattr(cell, field) for cell in cells if cell.window == window]
            places = [row + (index - 1) * 0.26 for row in range(len(names))]
            bars = axis.barh(places, values, 0.24, color=COLOURS[window], label=f"{window} window")
            labels = [form.format(value) for value in values]
            axis.bar_label(bars, labels, padding=3, fontsize=8, color="#1f2328")
        if mark is not None:
            axis.axvline(mark, color="#cf222e", linewidth=1.2, linestyle="--")
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, 1.15 * max(getattr(cell, field) for cell in cells) or 1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(
        f"{given.sends} sends at once, {given.limit} per {given.period:g} s, "
        f"0 to {LATENCY * 1000:.0f} ms latency",
        fontsize=11,
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="160 sends, no picture")
    parser.add_argument("--sends", type=int, default=None, help="default 480")
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--period", type=float, default=6.0)
    parser.add_argument("--window", choices=get_args(WindowKind), help="only this one")
    parser.add_argument("--picture", type=Path, default=None, help=f"default {PICTURE.name}")
    given = parser.parse_args()
    given.sends = given.sends or (160 if given.quick else 480)
    windows = (given.window,) if given.window else WINDOWS
    print(
        f"{given.sends} sends at once, sandbox at {given.limit} per {given.period:g} s, "
        f"0 to {LATENCY * 1000:.0f} ms latency, {TRIES} tries"
    )
    print(
        f"{'limiter':28} {'window':8} {'lost':>5} {'429s':>5} {'largest':>8} "
        f"{'seconds':>8} {'of N/rate':>10}"
    )
    cells = []
    for name, make in limiters(given.limit, given.period).items():
        for window in windows:
            cell = measure(name, make, window, given)
            cells.append(cell)
            print(
                f"{name:28} {window:8} {cell.lost:5} {cell.refused:5} {cell.largest:8} "
                f"{cell.seconds:8.2f} {cell.ratio:10.3f}",
                flush=True,
            )
    picture = given.picture or (None if given.quick or given.window else PICTURE)
    if picture is not None:
        draw(cells, given, picture)
        print(f"drawn: {picture}")
    broken = [
        cell
        for cell in cells
        if cell.limiter == OURS
        and (cell.lost or cell.refused or cell.largest > given.limit or cell.ratio > SLOWEST)
    ]
    sys.exit(f"our budget broke a promise: {broken}" if broken else 0)


if __name__ == "__main__":
    main()
