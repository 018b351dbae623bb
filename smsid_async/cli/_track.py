"""`smsid bulk track`: follow up what a journal has sent, until each message is final."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from smsid_async import DeliveryStatus
from smsid_async.bulk import Delivery, journal_beside, summarise, track
from smsid_async.cli._output import Output
from smsid_async.cli._session import Code, Session
from smsid_async.cli._signals import on_interrupt
from smsid_async.cli.display import TrackDisplay, TrackState, refreshing
from smsid_async.journal import SQLiteJournal

__all__ = ["track_journal"]


async def track_journal(session: Session, path: Path, timeout: float | None) -> int:
    """Ask where everything is, and show it until all is final."""
    async with session.client() as client:
        found = await asyncio.to_thread(summarise, path)
        state = TrackState(path.name, found.sent, found.delivered, found.failed, found.untraceable)
        journal = SQLiteJournal(path, account=journal_beside(path, client).account)
        try:
            async with contextlib.aclosing(track(client, journal, timeout=timeout)) as deliveries:
                interrupted = await _show(deliveries, state, session.out)
        finally:
            await journal.aclose()
    _close(state, session.out)
    return Code.INTERRUPTED if interrupted else _code(state)


async def _show(deliveries: AsyncIterator[Delivery], state: TrackState, out: Output) -> bool:
    """Show each answer; tell whether Ctrl-C ended it."""
    view = out.view(TrackDisplay(state))
    taking = asyncio.ensure_future(_take_all(deliveries, state, out))
    with view, on_interrupt(taking.cancel):
        async with refreshing(view):
            await asyncio.wait([taking])
    if not taking.cancelled():
        taking.result()
    return taking.cancelled()


async def _take_all(deliveries: AsyncIterator[Delivery], state: TrackState, out: Output) -> None:
    async for each in deliveries:
        state.delivered += each.status is DeliveryStatus.DELIVERED
        state.failed += each.status is DeliveryStatus.FAILED
        state.refused += each.status is None
        await asyncio.to_thread(_tell, each, out)
        if out.closed:
            return


def _tell(each: Delivery, out: Output) -> None:
    out.record(
        {
            "line": each.line,
            "reference": each.reference,
            "message_id": each.message_id,
            "status": None if each.status is None else each.status.value,
        }
    )
    if each.status is None or each.status is DeliveryStatus.FAILED:
        where = each.reference if each.line is None else f"line {each.line}"
        what = "failed" if each.status else "the API tells nothing about it"
        out.line(f"{where}: {what} (message {each.message_id})")


def _close(state: TrackState, out: Output) -> None:
    out.line(f"{TrackDisplay(state).line()}, of {state.total:,} sent")
    out.record(
        {
            "summary": {
                "sent": state.total,
                "delivered": state.delivered,
                "failed": state.failed,
                "not_told": state.refused,
                "waiting": state.waiting,
            }
        }
    )


def _code(state: TrackState) -> int:
    if state.failed:
        return Code.FAILED
    return Code.WELL if state.delivered == state.total else Code.UNKNOWN
