"""Any order of claims, outcomes, lease ends, crashes and resends, against a simple model."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from conftest import NUMBER
from full_disk import FakeDisk, look
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from smsid_async import (
    DuplicateReferenceError,
    JournalUnavailableError,
    Outcome,
    OutcomeUnknownError,
    SendReceipt,
    SQLiteJournal,
)
from smsid_async.journal import Claim

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

pytestmark = pytest.mark.heavy

LEASE = 10.0
MEMORY = Path("/dev/shm")
references = st.sampled_from(["one", "two"])
prints = st.sampled_from([*"aaaaaaa", "b"])  # rarely another message
processes = itertools.count()


@attrs.define(eq=False)
class Held:
    """A claim as the model knows it.

    Attributes:
        claim: The journal's.
        expires: The end of its lease.
        doubtful: Whether an earlier request under the reference may have had an effect.
        left: Whether its request is on its way.
    """

    claim: Claim
    expires: float
    doubtful: bool
    left: bool = False

    @property
    def reference(self) -> str:
        return self.claim.reference


@attrs.define(eq=False)
class Row:
    """What the file should say of a reference, and what is true of it."""

    state: str
    fingerprint: str
    owner: Held
    receipt: SendReceipt | None = None


class JournalMachine(RuleBasedStateMachine):
    """One process after another on one journal, each with any number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._disk = FakeDisk().install(self._patch)
        self._folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self._runner = asyncio.Runner()
        self._now = 0.0
        self._receipts = itertools.count(1)
        self._rows: dict[str, Row] = {}
        self._holders: dict[str, Held] = {}
        self._lost: list[Held] = []
        self._unresolved: dict[str, set[Held]] = {}  # requests that may have had an effect
        self._start(self._folder / "0.db")

    def teardown(self) -> None:
        self._run(_end(self._journal))
        self._runner.close()
        self._patch.undo()
        shutil.rmtree(self._folder)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def _start(self, path: Path) -> None:
        """Begin a process: nothing is held, and what was on its way is in doubt."""
        self._path = path
        self._patch.setattr("smsid_async.journal._PROCESS", f"process {next(processes)}")
        self._journal = SQLiteJournal(path, lease=LEASE, clock=lambda: self._now)
        self._run(self._journal.open("http://127.0.0.1/"))
        for row in self._rows.values():
            row.state = "unknown" if row.state == "intent" else row.state
        self._holders.clear()
        self._lost.clear()

    # -- claims ------------------------------------------------------------------

    @rule(reference=references, fingerprint=prints, resend=st.booleans())
    def claim(self, reference: str, fingerprint: str, resend: bool) -> None:
        other = self._holders.get(reference)
        if other is not None and self._now < other.expires:
            self._meet(other, fingerprint, resend=resend)
            return
        if other is not None:
            self._lost.append(self._holders.pop(reference))
        work = self._claim(reference, fingerprint, resend=resend)
        row = self._rows.get(reference)
        if row is not None and row.fingerprint != fingerprint:
            self._refused(work, DuplicateReferenceError)
        elif row is not None and row.state == "sent":
            assert self._run(work) == row.receipt
        elif row is not None and row.state in ("intent", "unknown") and not resend:
            assert self._refused(work, OutcomeUnknownError).maybe_sent
        else:
            doubtful = row is not None and row.state in ("intent", "unknown")
            claim = self._run(work)
            assert isinstance(claim, Claim)
            assert claim.doubtful is doubtful
            self._holders[reference] = Held(claim, self._now + LEASE, doubtful)

    def _claim(
        self, reference: str, fingerprint: str, *, resend: bool
    ) -> Coroutine[Any, Any, Claim | SendReceipt]:
        return self._journal.claim(
            reference, fingerprint=fingerprint, recipient=NUMBER, resend_unknown=resend
        )

    def _meet(self, other: Held, fingerprint: str, *, resend: bool) -> None:
        """Want what another holds: wait for it, or be told that it is another message's."""
        work = self._claim(other.reference, fingerprint, resend=resend)
        if fingerprint != other.claim.fingerprint:
            self._refused(work, DuplicateReferenceError)
            return

        async def wait_in_vain() -> None:
            task = asyncio.create_task(work)
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
            await asyncio.wait({task})

        self._run(wait_in_vain())

    def _refused(self, work: Coroutine[Any, Any, Any], kind: type[Exception]) -> Any:
        with pytest.raises(kind) as caught:
            self._run(work)
        return caught.value

    @precondition(lambda self: self._holders)
    @rule()
    def let_the_leases_end(self) -> None:
        self._now += LEASE

    # -- a call that holds its reference -------------------------------------------

    def _ready(self) -> list[Held]:
        return [held for held in self._holders.values() if not held.left]

    def _on_their_way(self) -> list[Held]:
        every = [*self._holders.values(), *self._lost]
        return [held for held in every if held.left]

    @precondition(lambda self: self._ready())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self._ready()))
        held.expires = self._now + LEASE
        row = self._rows.get(held.reference)
        if row is not None and row.state == "sent":  # by a request that was slower than its lease
            self._refused(self._journal.intend(held.claim), JournalUnavailableError)
            self._give_up(held)
            return
        self._run(self._journal.intend(held.claim))
        held.left = True
        unresolved = self._unresolved.setdefault(held.reference, set())
        assert held.doubtful or not unresolved, "a second request without a word from the caller"
        unresolved.add(held)
        self._intended(held)

    def _intended(self, held: Held) -> None:
        row = self._rows.get(held.reference)
        if row is None:
            row = Row("intent", held.claim.fingerprint, held)
            self._rows[held.reference] = row
        row.state, row.owner = "intent", held

    @precondition(lambda self: self._on_their_way())
    @rule(data=st.data(), outcome=st.sampled_from(["sent", "rejected", "unknown", "no effect"]))
    def answer(self, data: st.DataObject, outcome: str) -> None:
        held = data.draw(st.sampled_from(self._on_their_way()))
        if outcome == "rejected" and held.doubtful:
            outcome = "no effect"  # as the client does: an earlier request may have had one
        receipt = self._receipt() if outcome == "sent" else None
        self._run(self._told(held, outcome, receipt))
        self._answered(held, outcome, receipt)

    def _receipt(self) -> SendReceipt:
        return SendReceipt(f"M{next(self._receipts)}", "success", Decimal("0.04"), None)

    def _told(
        self, held: Held, outcome: str, receipt: SendReceipt | None
    ) -> Coroutine[Any, Any, None]:
        if outcome == "no effect":
            return self._journal.withdraw(held.claim)
        return self._journal.record(held.claim, Outcome(outcome), receipt=receipt)

    def _answered(self, held: Held, outcome: str, receipt: SendReceipt | None) -> None:
        row = self._rows[held.reference]
        held.left = False
        if outcome in ("rejected", "no effect"):
            self._unresolved[held.reference].discard(held)
        if outcome == "sent":
            row.state, row.receipt = "sent", receipt
        elif outcome == "no effect":
            self._taken_back(held, "unknown" if held.doubtful else "claimed")
        elif row.owner is held and row.state != "sent":
            row.state = outcome
        held.doubtful |= outcome == "unknown"
        if outcome in ("sent", "rejected"):
            self._ended(held)

    def _taken_back(self, held: Held, state: str) -> None:
        row = self._rows.get(held.reference)
        if row is None:
            return
        if row.state in ("claimed", "not_sent") or (row.state == "intent" and row.owner is held):
            row.state = state

    def _ended(self, held: Held) -> None:
        if self._holders.get(held.reference) is held:
            del self._holders[held.reference]
        else:
            self._lost.remove(held)

    @precondition(lambda self: self._ready())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._give_up(data.draw(st.sampled_from(self._ready())))

    def _give_up(self, held: Held) -> None:
        self._run(self._journal.release(held.claim))
        self._taken_back(held, "unknown" if held.doubtful else "not_sent")
        self._ended(held)

    @precondition(lambda self: any(not held.left for held in self._lost))
    @rule(data=st.data())
    def leave_with_a_lost_claim(self, data: st.DataObject) -> None:
        """It is refused, and then the client withdraws and releases it, as after any refusal."""
        held = data.draw(st.sampled_from([held for held in self._lost if not held.left]))
        self._refused(self._journal.intend(held.claim), JournalUnavailableError)
        self._run(self._journal.withdraw(held.claim))
        self._taken_back(held, "unknown" if held.doubtful else "claimed")
        self._give_up(held)

    # -- crashes -------------------------------------------------------------------

    @rule(data=st.data(), moment=st.sampled_from(["between", "at the end", "intent", "outcome"]))
    def die(self, data: st.DataObject, moment: str) -> None:
        """End the process, in most cases as `kill -9` does. One rule, so that it stays rare."""
        committed = data.draw(st.booleans())
        if moment == "intent" and self._ready():
            self._die_at_an_intent(data.draw(st.sampled_from(self._ready())), committed=committed)
        elif moment == "outcome" and self._on_their_way():
            outcome = data.draw(st.sampled_from(["sent", "unknown", "no effect"]))
            held = data.draw(st.sampled_from(self._on_their_way()))
            self._die_at_an_outcome(held, outcome, committed=committed)
        else:
            path = self._path if moment == "at the end" else self._copied()
            self._run(_end(self._journal))
            self._start(path)

    def _copied(self) -> Path:
        """Copy the files as a kill would leave them."""
        copy = self._folder / f"{int(self._path.stem) + 1}.db"
        for suffix in ("", "-wal"):
            source = Path(f"{self._path}{suffix}")
            if source.exists():
                shutil.copy(source, f"{copy}{suffix}")
        return copy

    def _die_at_an_intent(self, held: Held, *, committed: bool) -> None:
        row = self._rows.get(held.reference)
        if row is not None and row.state == "sent":
            return
        copy = self._crash_during(self._journal.intend(held.claim), committed=committed)
        if committed:
            self._intended(held)
        self._start(copy)

    def _die_at_an_outcome(self, held: Held, outcome: str, *, committed: bool) -> None:
        receipt = self._receipt() if outcome == "sent" else None
        copy = self._crash_during(self._told(held, outcome, receipt), committed=committed)
        if committed:
            self._answered(held, outcome, receipt)
        self._start(copy)

    def _crash_during(self, work: Coroutine[Any, Any, Any], *, committed: bool) -> Path:
        """Copy the file while a commit is under way, and let that process go its way."""

        async def crash() -> Path:
            with self._disk.held(committed=committed):
                task = asyncio.create_task(work)
                await self._disk.reached()
                assert not task.done()
                copy = self._copied()
            await task
            await _end(self._journal)
            return copy

        return self._run(crash())

    # -- what holds always -----------------------------------------------------------

    @invariant()
    def the_file_says_what_the_model_says(self) -> None:
        connection = look(self._path)
        found = connection.execute("SELECT reference, state, message_id FROM entries").fetchall()
        connection.close()
        expected = [
            (reference, row.state, None if row.receipt is None else row.receipt.message_id)
            for reference, row in self._rows.items()
        ]
        assert sorted(found) == sorted(expected)

    @invariant()
    def what_may_have_had_an_effect_is_not_forgotten(self) -> None:
        for reference, requests in self._unresolved.items():
            if requests:
                assert self._rows[reference].state in ("intent", "unknown", "sent")


def run_programs(count: int) -> None:
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=count,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_few_hundred_programs() -> None:
    run_programs(200)


@pytest.mark.long
def test_ten_thousand_programs() -> None:
    run_programs(10_000)


async def _end(journal: SQLiteJournal) -> None:
    """Close a journal as the end of its process does, whoever has a claim."""
    journal._holders.clear()
    await journal.aclose()
