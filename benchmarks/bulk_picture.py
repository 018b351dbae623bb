"""The README's picture of `smsid bulk run`: a real run, drawn half way and at its end.

    python benchmarks/bulk_picture.py [-o benchmarks/pictures/bulk.svg]

Sends the demo's messages to a sandbox at 120 requests in 6 s; takes a quarter of a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
from importlib import resources
from pathlib import Path

from rich.console import Console

from smsid_async import RateBudget, SMSIDClient
from smsid_async.bulk import Source, make_plan
from smsid_async.cli._bulk import BulkRun
from smsid_async.cli._output import Output
from smsid_async.cli.display import BulkDisplay
from smsid_async.sandbox import Sandbox

LIMIT, PERIOD = 120, 6.0


async def draw(path: Path, console: Console) -> None:
    sandbox = Sandbox(
        "key", limit=LIMIT, period=PERIOD, balance=1000, latency=lambda: random.uniform(0.02, 0.08)
    )
    source = Source(path)
    plan = make_plan(source)
    out = Output(as_json=False)
    out.console = None
    async with (
        sandbox,
        SMSIDClient("key", base_url=sandbox.url, budget=RateBudget(LIMIT, PERIOD)) as client,
    ):
        run = BulkRun(client, source, plan, out)
        running = asyncio.create_task(run.run())
        await asyncio.sleep(9.0)  # somewhat over half of it
        run.state.budget = client.budget.statistics()
        console.print("[bold]$ smsid bulk run campaign.csv")
        console.print(f"campaign.csv: {plan.messages} messages, {plan.segments} segments")
        run.state.title = "campaign.csv"
        console.print(BulkDisplay(run.state))
        await running
        out.console = console
        run.report.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, default=Path(__file__).parent / "pictures" / "bulk.svg")
    target: Path = parser.parse_args().o
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    with resources.as_file(resources.files("smsid_async.cli") / "demo.csv") as path:
        asyncio.run(draw(path, console))
    target.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="smsid bulk run")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
    target.write_text(svg, encoding="utf-8")
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
