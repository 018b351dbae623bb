"""`smsid bulk run`: send what a checked file has and its journal has not, and tell the outcome."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from smsid_async import SMSIDError
from smsid_async.bulk import BulkJob, JobSummary
from smsid_async.cli._output import Output
from smsid_async.cli._prepare import Order, Ready, copied, journal_for, prepare, rehearse
from smsid_async.cli._report import Report
from smsid_async.cli._session import Code, Session
from smsid_async.cli._signals import on_interrupt
from smsid_async.cli.display import BulkDisplay, BulkState, refreshing
from smsid_async.journal import SQLiteJournal

if TYPE_CHECKING:
    from smsid_async import SMSIDClient

__all__ = ["RunView", "dry_run", "run_file"]

_GOODBYE = 1.0  # seconds that the last words may take


async def run_file(session: Session, order: Order) -> int:
    """Check a file, and send it if every row is good."""
    async with session.client() as client:  # first: a missing key is told before a long check
        source, journal = order.source(), journal_for(order, client)
        job = order.job(source, journal)
        try:
            ready = await prepare(session, client, job, source, journal.path)
            if ready is None:
                return Code.USAGE
            run = RunView(client, job, journal, ready, session.out)
            return run.report.close(await run.run())
        finally:
            await journal.aclose()


async def dry_run(session: Session, order: Order) -> int:
    """Check a file, and tell what would be sent; nothing is, and no journal is changed."""
    async with session.client() as client:
        source, journal = order.source(), journal_for(order, client)
        with copied(journal) as copy:
            job = order.job(source, copy)
            try:
                ready = await prepare(session, client, job, source, journal.path)
                if ready is None:
                    return Code.USAGE
                await rehearse(session, client, job, ready)
                return Code.WELL
            finally:
                await copy.aclose()


class RunView:
    """One run of a job, shown while it goes on.

    While requests are in flight, all writing is done in threads: a reader that pauses (a
    pager, Ctrl-S) must not hold up the event loop until their answers seem to be late.

    Args:
        client: Sends.
        job: The job, prepared.
        journal: Its journal.
        ready: What that found.
        out: Where to write.
        leave: Ends the process at once, after a second Ctrl-C.
    """

    def __init__(
        self,
        client: "SMSIDClient",
        job: BulkJob,
        journal: SQLiteJournal,
        ready: Ready,
        out: Output,
        *,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.state = BulkState(
            ready.title, ready.to_send, ready.sent_earlier, ready.unknown_earlier
        )
        self.report = Report(self.state, ready, out)
        self._client = client
        self._job = job
        self._journal = journal
        self._out = out
        self._leave = leave
        self._results = job.run(client)
        self._view = out.view(BulkDisplay(self.state))

    async def run(self) -> JobSummary:
        """Send everything and tell what becomes of each row; `report` has the sums."""
        began = asyncio.get_running_loop().time()

        def look() -> None:
            self.state.elapsed = asyncio.get_running_loop().time() - began
            self.state.budget = self._client.budget.statistics()

        with self._view, on_interrupt(self._interrupt):
            async with refreshing(self._view, look), self._results:
                await self._take_all()
            with contextlib.suppress(SMSIDError):  # a disk that failed was told already
                await self._journal.run(lambda _: None)  # after it, all outcomes are written
            return await asyncio.to_thread(self._summary)

    async def _take_all(self) -> None:
        try:
            async for result in self._results:
                await asyncio.to_thread(self.report.add, result)
                if self._out.closed and not self.state.stopping:
                    self._stop()
        except SMSIDError as error:
            self.report.error = error

    def _stop(self) -> None:
        self.state.stopping = True
        self._results.stop()

    def _interrupt(self) -> None:
        """Take a Ctrl-C: stop at the first, leave at the second."""
        if not self.report.interrupted:
            self.report.interrupted = True
            self._stop()
            return
        goodbye = threading.Thread(target=self._say_goodbye, daemon=True)
        goodbye.start()
        goodbye.join(_GOODBYE)
        self._leave(Code.INTERRUPTED)

    def _say_goodbye(self) -> None:
        self._view.__exit__(None, None, None)
        self.report.close(self._summary())

    def _summary(self) -> JobSummary:
        """Look up where the job stands; what is in flight when we leave is unknown."""
        try:
            found = self._job.summary()
        except SMSIDError:  # the disk that failed cannot be read either
            return self.report.summary()
        return attrs.evolve(found, unknown=found.unknown + found.in_flight, in_flight=0)
