"""The README's pictures of `smsid bulk run`: real runs, drawn on their way and at their end.

    python benchmarks/bulk_picture.py [-o benchmarks/pictures]

Sends the demo's messages to a sandbox at 120 requests in 6 s: once as a whole (bulk.svg),
and once interrupted and run again (resume.svg). Takes half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import random
import re
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console

from smsid_async import RateBudget, SMSIDClient
from smsid_async.cli._bulk import RunView
from smsid_async.cli._output import Output
from smsid_async.cli._prepare import Order, journal_for, prepare
from smsid_async.cli._session import Session
from smsid_async.cli.display import BulkDisplay, Display, PlainView, View
from smsid_async.sandbox import Sandbox

LIMIT, PERIOD = 120, 6.0
FILE = "campaign.csv"


class Drawing(Output):
    """Writes to a recording console, and draws only when it is told to."""

    def __init__(self, console: Console) -> None:
        super().__init__(as_json=False)
        self.console = None
        self.recorder = console

    def line(self, text: str) -> None:
        self.recorder.print(text, markup=False)

    def sentence(self, text: str) -> None:
        self.recorder.print(f"smsid: {text}", markup=False)

    def view(self, display: Display) -> View:
        return PlainView(display, lambda _: None)


async def run(
    sandbox: Sandbox, budget: RateBudget, out: Drawing, *, draw_after: float, interrupt: bool
) -> None:
    """Run the command once, and draw it once on its way."""
    out.recorder.print(f"[bold]$ smsid bulk run {FILE}")
    async with SMSIDClient("key", base_url=sandbox.url, budget=budget) as client:
        order = Order(Path(FILE))
        source, journal = order.source(), journal_for(order, client)
        job = order.job(source, journal)
        ready = await prepare(Session(out, budget=budget), client, job, source, journal.path)
        assert ready is not None
        view = RunView(client, job, journal, ready, out)
        running = asyncio.create_task(view.run())
        await asyncio.sleep(draw_after)
        view.state.budget = budget.statistics()
        out.recorder.print(BulkDisplay(view.state))
        if interrupt:
            view._interrupt()  # noqa: SLF001 - what Ctrl-C calls
            out.recorder.print("[bold]^C")
        summary = await running
        out.console = out.recorder
        view.report.close(summary)
        await journal.aclose()


async def run_all(console: Console, runs: Sequence[tuple[float, bool]]) -> None:
    """Run the same command as often as it says here, against one sandbox."""
    sandbox = Sandbox(
        "key", limit=LIMIT, period=PERIOD, balance=1000, latency=lambda: random.uniform(0.02, 0.08)
    )
    budget = RateBudget(LIMIT, PERIOD)  # a process of its own would restore it
    async with sandbox:
        for draw_after, interrupt in runs:
            out = Drawing(console)
            await run(sandbox, budget, out, draw_after=draw_after, interrupt=interrupt)
    assert len(sandbox.messages) == 300
    assert sandbox.refused == 0


def draw(path: Path, title: str, *runs: tuple[float, bool]) -> None:
    """Make one picture."""
    console = Console(
        record=True, width=90, file=io.StringIO(), highlight=False, force_terminal=True
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path(FILE).write_bytes((resources.files("smsid_async.cli") / "demo.csv").read_bytes())
        asyncio.run(run_all(console, runs))
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
    path.write_text(svg, encoding="utf-8")
    print(f"wrote {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, default=Path(__file__).parent / "pictures")
    folder: Path = parser.parse_args().o.resolve()
    folder.mkdir(exist_ok=True)
    os.environ["SMSID_ACCOUNT"] = "main"
    draw(folder / "bulk.svg", "smsid bulk run", (9.0, False))
    draw(folder / "resume.svg", "smsid bulk run, again", (7.0, True), (3.0, False))


if __name__ == "__main__":
    main()
