"""A picture of requests over time: two common ways and ours, against the same server.

    python benchmarks/requests_over_time.py [--sends 480] [--picture PATH]

All sends are asked for at once; the server admits 120 in any 60 s and takes 0 to 300 ms over
each request. The minutes are virtual, so this takes seconds. Draws
pictures/requests_over_time.svg and prints what it shows. Exits 1 if ours met a 429.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import looptime
from aiolimiter import AsyncLimiter

from smsid_async import RateBudget
from smsid_async.sandbox.windows import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from matplotlib.axes import Axes

    Send = Callable[["Server"], Awaitable[None]]

LIMIT, PERIOD = 120, 60.0
LATENCY = 0.3
PICTURE = Path(__file__).parent / "pictures" / "requests_over_time.svg"
ACCEPTED, REFUSED = "#0969da", "#cf222e"


@attrs.define
class Server:
    """Counts each request at some moment of its latency, and logs it."""

    window: SlidingWindow = attrs.field(factory=lambda: SlidingWindow(LIMIT, PERIOD))
    draw: random.Random = attrs.field(factory=lambda: random.Random(1))
    accepted: list[float] = attrs.field(factory=list)
    refused: list[float] = attrs.field(factory=list)

    async def post(self) -> float:
        """Make one request: 0 if it was accepted, else the seconds of `Retry-After`."""
        await asyncio.sleep(self.draw.uniform(0, LATENCY))
        now = asyncio.get_running_loop().time()
        wait = self.window.hit(now)
        (self.refused if wait else self.accepted).append(now)
        return float(math.ceil(wait))


def run(main: Coroutine[object, object, None]) -> None:
    """Run a coroutine in a loop in which sleeping takes no real time."""
    loop_class = looptime.make_event_loop_class(asyncio.SelectorEventLoop)
    with asyncio.Runner(loop_factory=lambda: loop_class(noop_cycles=3)) as runner:
        runner.run(main)


def retrying(wait: Callable[[], Awaitable[object]] | None) -> Send:
    """Wait for a limiter, if there is one; after a 429 sleep for `Retry-After`, try again."""

    async def send(server: Server) -> None:
        while True:
            if wait is not None:
                await wait()
            pause = await server.post()
            if not pause:
                return
            await asyncio.sleep(pause)

    return send


def budgeted(budget: RateBudget) -> Send:
    async def send(server: Server) -> None:
        slot = await budget.acquire()
        await server.post()
        slot.answered()

    return send


def simulate(make: Callable[[], Send], sends: int) -> Server:
    server = Server()

    async def main() -> None:
        send = make()
        await asyncio.gather(*(send(server) for _ in range(sends)))

    run(main())
    return server


def steps(moments: list[float]) -> tuple[list[float], list[int]]:
    """The count over time, with one point for each second in which it changed."""
    counts = {0.0: 0}
    for index, moment in enumerate(moments, start=1):
        counts[min(math.floor(moment + 1), moments[-1])] = index
    return list(counts), list(counts.values())


def panel(axis: Axes, title: str, server: Server) -> None:
    """The accepted requests as a line; on it a dot for the 429s of each three seconds."""
    axis.step(*steps(server.accepted), where="post", color=ACCEPTED, linewidth=2)
    groups = Counter(math.floor(moment / 3) * 3 for moment in server.refused)
    for start, count in groups.items():
        level = sum(moment < start + 3 for moment in server.accepted)
        axis.scatter([start], [level], s=3 * count, color=REFUSED, alpha=0.8, zorder=3, lw=0)
        if count > 50:
            axis.annotate(
                f"{count} answers 429",
                (start, level),
                xytext=(4 + math.sqrt(3 * count / math.pi), -12),
                textcoords="offset points",
                fontsize=8,
                color=REFUSED,
            )
    axis.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axis.text(
        0.03,
        0.95,
        f"{len(server.refused)} answers 429\ndone after {server.accepted[-1]:.0f} s",
        transform=axis.transAxes,
        verticalalignment="top",
        fontsize=9,
        color=REFUSED if server.refused else "#1f2328",
    )


def draw(servers: dict[str, Server], sends: int, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - the one user of it, and slow to load

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "smsid-async"
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of its backend

    end = 30 * math.ceil(max(max(server.accepted) for server in servers.values()) / 30)
    figure, axes = plt.subplots(
        1, len(servers), figsize=(10, 3.4), sharey=True, layout="constrained"
    )
    for axis, (name, server) in zip(axes, servers.items(), strict=True):
        panel(axis, name, server)
        axis.set_xlim(-end / 25, end)
        axis.set_ylim(0, sends * 1.25)
        axis.set_xticks(range(0, end + 1, 60))
        axis.tick_params(labelsize=8)
        axis.set_xlabel("seconds", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#d1d9e0", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("messages accepted", fontsize=9)
    figure.suptitle(
        f"{sends} sends at once; the server admits {LIMIT} in any {PERIOD:g} s", fontsize=10
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sends", type=int, default=480)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    ways: dict[str, Callable[[], Send]] = {
        "No limiter, plain retry": lambda: retrying(None),
        f"AsyncLimiter({LIMIT}, {PERIOD:g})": lambda: retrying(AsyncLimiter(LIMIT, PERIOD).acquire),
        "smsid-async": lambda: budgeted(RateBudget(LIMIT, PERIOD)),
    }
    servers = {name: simulate(make, given.sends) for name, make in ways.items()}
    print(f"{given.sends} sends at once, server at {LIMIT} in any {PERIOD:g} s")
    print(f"{'':24} {'requests':>9} {'429s':>6} {'done after':>11}")
    for name, server in servers.items():
        requests = len(server.accepted) + len(server.refused)
        print(f"{name:24} {requests:9} {len(server.refused):6} {max(server.accepted):9.1f} s")
    draw(servers, given.sends, given.picture)
    print(f"drawn: {given.picture}")
    sys.exit(1 if servers["smsid-async"].refused else 0)


if __name__ == "__main__":
    main()
