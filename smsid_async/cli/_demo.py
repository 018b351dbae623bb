"""`smsid demo`: the client's main job against the sandbox, in a quarter of a minute."""

import random
import tempfile
from importlib import resources
from pathlib import Path

from smsid_async import RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob
from smsid_async.cli._bulk import RunView
from smsid_async.cli._prepare import Ready
from smsid_async.cli._session import Code, Session
from smsid_async.journal import SQLiteJournal
from smsid_async.sandbox import Sandbox

__all__ = ["run_demo"]

_LIMIT, _PERIOD = 120, 6.0  # the API's own limit with its minute scaled to a tenth
_LATENCY = (0.02, 0.08)  # seconds, as over a good network
_BALANCE = 1000
_KEYS = ("demo-key", "demo-secret")


async def run_demo(session: Session, *, limit: int = _LIMIT, period: float = _PERIOD) -> int:
    """Send the bundled messages to a sandbox of its own, and show how the limit was kept.

    Args:
        session: Where to write; its URL and budget are not used.
        limit: Requests in each period, for both sides.
        period: Seconds.
    """
    sandbox = Sandbox(
        *_KEYS,
        limit,
        period,
        balance=_BALANCE,
        latency=lambda: random.uniform(*_LATENCY),  # noqa: S311 - no secret
    )
    with (
        resources.as_file(resources.files("smsid_async.cli") / "demo.csv") as path,
        tempfile.TemporaryDirectory(prefix="smsid-") as folder,
    ):
        async with sandbox:
            journal = SQLiteJournal(Path(folder) / "demo.journal")
            code = await _send(session, sandbox, path, journal, RateBudget(limit, period))
    return Code.FAILED if sandbox.refused and code == Code.WELL else code


async def _send(
    session: Session, sandbox: Sandbox, path: Path, journal: SQLiteJournal, budget: RateBudget
) -> int:
    rules = budget.statistics()
    session.out.line(
        "Sending to a sandbox in this process, over a real socket; no message goes to anybody.\n"
        f"It admits {rules.limit} requests in any {rules.period:g} s: "
        "the API's limit, with its minute scaled down."
    )
    async with SMSIDClient(
        *_KEYS, base_url=sandbox.url, sender_id="SMSID", budget=budget
    ) as client:
        job = BulkJob(path, journal)
        found = await job.prepare(client)
        ready = Ready("demo.csv", found.rows, found.repeats, found.to_send)
        run = RunView(client, job, journal, ready, session.out)
        try:
            summary = await run.run()
        finally:
            await journal.aclose()
    _judge(session, run, sandbox, rules.limit, rules.period)
    return run.report.close(summary)


def _judge(session: Session, run: RunView, sandbox: Sandbox, limit: int, period: float) -> None:
    """Add to the report what the sandbox saw."""
    moments = [request.at for request in sandbox.requests if request.counted]
    possible = (moments[-1] - moments[0]) * limit / period if moments else 0.0
    used = (len(moments) - 1) / possible if possible else 0.0
    largest = sandbox.largest_count()
    run.report.more = [
        ("largest count", f"{largest:,} of {limit:,} in {period:g} s"),
        ("budget used", f"{used:.0%}"),
    ]
    session.out.record(
        {
            "demo": {
                "refused": sandbox.refused,
                "largest_count": largest,
                "limit": limit,
                "period": period,
                "budget_used": round(used, 3),
            }
        }
    )
