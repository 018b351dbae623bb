"""Ten thousand sends cut short in every way, and bare httpx cut short beside them.

    python benchmarks/cancellation.py [--messages 10000] [--seed 1]

Prints how the messages of each way ended for their callers, and what the server's ledger, the
hooks, the budget and the event loop say of it. The storm is the one of
`tests/test_cancellation.py`. Exits 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections import Counter
from pathlib import Path

from smsid_async import Outcome, RateBudget

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from cancelling import PLACES, WAYS, WAYS_OF_MANY, Summary, run, run_bare

COLUMNS = ("sent", "maybe sent", "not sent", "not told")


def column(name: str, maybe_sent: bool | None) -> str:
    if name == "sent":
        return "sent"
    return {True: "maybe sent", False: "not sent", None: "not told"}[maybe_sent]


def show(summary: Summary) -> None:
    ends = Counter((end.way, column(end.name, end.maybe_sent)) for end in summary.endings)
    print(f"{'cut short by':30}" + "".join(f"{name:>12}" for name in COLUMNS))
    for way in (*WAYS, *WAYS_OF_MANY):
        print(f"{way:30}" + "".join(f"{ends[way, name]:12,}" for name in COLUMNS))
    totals = Counter(column(end.name, end.maybe_sent) for end in summary.endings)
    print(f"{'all':30}" + "".join(f"{totals[name]:12,}" for name in COLUMNS))


def show_promises(summary: Summary) -> None:
    ended = summary.ended
    for what, figure in {
        "messages in the ledger": summary.ledger.total(),
        "posted twice": len(summary.twice),
        "maybe_sent untrue": len(summary.untrue),
        "foreign exceptions": len(summary.foreign),
        "exchanges told as sent": ended[Outcome.SENT],
        "told as unknown": ended[Outcome.UNKNOWN],
        "told as not sent": ended[Outcome.NOT_SENT],
        "told nowhere": summary.untold,
        "had left and did not finish": summary.unfinished,
        f"connections stuck, of {PLACES}": summary.stuck,
        "connections left open": summary.left_open,
        "slots leaked": summary.leaked_slots,
        "tasks leaked": summary.leaked_tasks,
    }.items():
        print(f"{what:30}{figure:12,}")
    print(f"{'seconds for the next 100':30}{summary.probes_took:12.2f}")
    print(f"{'seconds in all':30}{summary.took:12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    faults = {}
    for name, budget in {
        "no rate limit": RateBudget.unlimited(max_in_flight=PLACES),
        "a window of a million a minute": RateBudget(10**6, reserve=0, max_in_flight=PLACES),
    }.items():
        print(f"\nsmsid_async, {name}, seed {given.seed}")
        summary = asyncio.run(run(given.messages, given.seed, budget))
        show(summary)
        show_promises(summary)
        faults |= summary.faults
    lost = asyncio.run(run_bare(given.messages, given.seed))
    print(f"\nbare httpx, cut short in the same ways: {lost} of {PLACES} connections lost for good")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
