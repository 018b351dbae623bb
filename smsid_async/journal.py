"""The journal: the idempotency keys that the API lacks.

A send under a `reference` of yours goes through three steps: the reference is claimed
before the call queues; the intent is durable before the first byte leaves; the outcome
is recorded when it is known. Only what stands as an intent when a process dies is in
doubt, so a message is sent at most once, however often its send is repeated::

    async with SMSIDClient(journal=SQLiteJournal("sms.db")) as client:
        await client.sms.send("+447700900123", "It left", reference="order-17-shipped")
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import threading
import time
import weakref
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import attrs

from smsid_async import _entries
from smsid_async._claims import Holder
from smsid_async._config import check_seconds
from smsid_async.errors import (
    ConfigurationError,
    DuplicateReferenceError,
    JournalUnavailableError,
    OutcomeUnknownError,
)
from smsid_async.models import Outcome, SendReceipt, mask_number

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from smsid_async._claims import Claims
    from smsid_async._sqlite import Store

__all__ = ["Claim", "Journal", "PastRequest", "SQLiteJournal", "State", "fingerprint_of"]

_T = TypeVar("_T")
_PROCESS = secrets.token_hex(4)


class State(StrEnum):
    """What a journal knows of a reference.

    `claimed`: to be sent, and not begun. `intent`: it may be leaving now. The others
    are outcomes: see `Outcome`.
    """

    CLAIMED = "claimed"
    INTENT = "intent"
    SENT = "sent"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@attrs.frozen
class Claim:
    """The right to send under a reference.

    Attributes:
        reference: The caller's name for the send.
        fingerprint: Of the message; see `fingerprint_of`.
        recipient: The number in E.164.
        token: Tells this claim from any other on the same reference.
        doubtful: Whether an earlier send under it may have taken effect.
    """

    reference: str
    fingerprint: str = attrs.field(repr=False)
    recipient: str = attrs.field(repr=mask_number)
    token: str
    doubtful: bool = False


@attrs.frozen
class PastRequest:
    """One request of an earlier process.

    Attributes:
        age: Seconds since its answer; else since it was given up, or left.
        answered: Whether its answer is known.
    """

    age: float
    answered: bool


def fingerprint_of(to: str, text: str, sender_id: str | None) -> str:
    """Return what tells a message from another, without being readable.

    Args:
        to: The recipient in E.164.
        text: The text.
        sender_id: The effective sender ID, None for the account's own.
    """
    parts = json.dumps([to, text, sender_id]).encode()
    return hashlib.sha256(parts).hexdigest()


@runtime_checkable
class Journal(Protocol):
    """The durable record of references and their outcomes; bring your own if you like.

    The client calls `open`, `claim`, `intend` and `record` for a send that goes well;
    `withdraw` after an attempt that provably had no effect, and `release` when the call
    ends without a `record` of `sent` or `rejected`.
    """

    async def open(self, base_url: str) -> None:
        """Make ready for sends to this API.

        Raises:
            ConfigurationError: The journal belongs to another base URL or account,
                or cannot be used.
            JournalUnavailableError: It cannot be reached or written.
        """
        ...

    async def claim(
        self,
        reference: str,
        *,
        fingerprint: str,
        recipient: str,
        resend_unknown: bool = False,
    ) -> Claim | SendReceipt:
        """Claim a reference, or return the receipt of the send that it already had.

        Waits while another call holds the reference, for its outcome or the end of
        its lease.

        Args:
            reference: The caller's name for the send.
            fingerprint: Of the message; see `fingerprint_of`.
            recipient: The number in E.164.
            resend_unknown: Whether to claim a send whose outcome is unknown.

        Raises:
            DuplicateReferenceError: The reference belongs to another message.
            OutcomeUnknownError: An earlier send may have taken effect.
            JournalUnavailableError: The journal cannot be read.
        """
        ...

    async def intend(self, claim: Claim) -> None:
        """Record durably that the message may leave from now on.

        Raises:
            JournalUnavailableError: It cannot be written, or the claim was lost; the
                message must not leave.
        """
        ...

    async def withdraw(self, claim: Claim) -> None:
        """Turn an intent back into a claim: the attempt provably had no effect.

        Where an earlier one is in doubt, it is `unknown` again.
        """
        ...

    async def record(
        self, claim: Claim, outcome: Outcome, *, receipt: SendReceipt | None = None, why: str = ""
    ) -> None:
        """Record what became of the message; `sent` and `rejected` end the claim.

        Args:
            claim: Whose intent it was.
            outcome: `sent`, `rejected` or `unknown`.
            receipt: The API's, if it was sent.
            why: What went wrong, without private data, if it was not.
        """
        ...

    async def release(self, claim: Claim, *, why: str = "") -> None:
        """End a claim; what was not recorded as sent, rejected or unknown never left."""
        ...

    async def aclose(self) -> None:
        """Finish what is being written, and let go of what is held open."""
        ...


class SQLiteJournal:
    """A journal in an SQLite file, for one process at a time.

    The file is made when it is first used. It holds the phone numbers of what was sent
    under a reference, but no texts; only its owner may read it. All the disk's work is
    done in a thread, many sends in one commit when they are many.

    Args:
        path: The file.
        account: A label for the account that it belongs to; a journal made with
            another is refused. A new key of the same account is fine.
        lease: Seconds after which another call may take a reference over from one
            that has claimed it and has not ended.
        wall_clock: Returns seconds since the epoch.
        clock: Returns monotonic seconds.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        account: str = "default",
        lease: float = 3600.0,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = _checked_path(path)
        self.account = _checked_label(account)
        self._lease = _checked_lease(lease)
        self._wall_clock = wall_clock
        self._clock = clock
        self._store: Store | None = None
        self._opening = threading.Lock()  # loops of several threads may share us
        self._holders: dict[str, Holder] = {}  # by token
        self._bound_to = ""
        self._closing = False  # the last claim to end closes the file
        self._leaving: weakref.finalize[[Store], SQLiteJournal]

    async def open(self, base_url: str) -> None:
        """Make ready for sends to this API; see `Journal.open`."""
        self._closing = False
        if self._bound_to != base_url:
            await self.run(
                lambda file: _entries.bind(file, self.path, base_url=base_url, account=self.account)
            )
            self._bound_to = base_url

    async def claim(
        self,
        reference: str,
        *,
        fingerprint: str,
        recipient: str,
        resend_unknown: bool = False,
    ) -> Claim | SendReceipt:
        """Claim a reference, or return the receipt that it already has; see `Journal.claim`."""
        store = self._opened()
        holder = Holder(fingerprint, self._clock() + self._lease)
        token = secrets.token_hex(8)
        self._holders[token] = holder  # from now on the file stays open
        try:
            found = await self._found(
                store.claims, holder, reference, fingerprint, resend=resend_unknown
            )
        except BaseException:
            self._drop(reference, token, store)
            raise
        if isinstance(found, SendReceipt):
            self._drop(reference, token, store)
            return found
        holder.doubtful = found
        return Claim(reference, fingerprint, recipient, token, doubtful=found)

    async def _found(
        self, claims: Claims, holder: Holder, reference: str, fingerprint: str, *, resend: bool
    ) -> SendReceipt | bool:
        """Wait for the reference, and return its receipt or whether it is in doubt."""
        while (other := claims.take(reference, holder, now=self._clock())) is not None:
            _check_same(reference, fingerprint, other.fingerprint)
            await claims.wait(other, seconds=max(0.0, other.expires - self._clock()))
            holder.expires = self._clock() + self._lease
            # Most often it was sent: then all who waited have it at once, not one after another.
            entry = await self.run(lambda file: _entries.find(file, reference))
            if entry is not None and entry.receipt is not None:
                _check_same(reference, fingerprint, entry.fingerprint)
                return entry.receipt
        entry = await self.run(lambda file: _entries.find(file, reference))
        return _judge(reference, fingerprint, entry, resend_unknown=resend)

    async def intend(self, claim: Claim) -> None:
        """Write durably that the message may leave from now on; see `Journal.intend`."""
        claims, holder = self._opened().claims, self._holder(claim)
        holder.expires = self._clock() + self._lease
        now = self._wall_clock()

        def work(file: sqlite3.Connection) -> None:
            if not claims.has(claim.reference, holder) or not _entries.intend(
                file,
                claim.reference,
                fingerprint=claim.fingerprint,
                recipient=claim.recipient,
                process=_this_process(),
                token=claim.token,
                doubtful=claim.doubtful,
                now=now,
            ):
                raise _lost(claim)

        await self.run(work)

    async def withdraw(self, claim: Claim) -> None:
        """Turn an intent back into a claim; see `Journal.withdraw`."""
        state = State.UNKNOWN if self._holder(claim).doubtful else State.CLAIMED
        await self.run(
            lambda file: _entries.withdraw(file, claim.reference, token=claim.token, state=state),
            again=True,
        )

    async def record(
        self, claim: Claim, outcome: Outcome, *, receipt: SendReceipt | None = None, why: str = ""
    ) -> None:
        """Write what became of the message; see `Journal.record`."""
        now = self._wall_clock()
        self._holder(claim).doubtful |= outcome is Outcome.UNKNOWN
        store = self._opened()
        written = store.submit(
            lambda file: _entries.record(
                file,
                claim.reference,
                outcome,
                token=claim.token,
                receipt=receipt,
                why=why,
                now=now,
            ),
            again=True,
        )
        if outcome is not Outcome.UNKNOWN:
            # Whoever claims it next reads the file after this was written.
            self._drop(claim.reference, claim.token, store)
        await written

    async def release(self, claim: Claim, *, why: str = "") -> None:
        """End a claim; see `Journal.release`."""
        state = State.UNKNOWN if self._holder(claim).doubtful else State.NOT_SENT
        store = self._opened()
        written = store.submit(
            lambda file: _entries.withdraw(
                file, claim.reference, token=claim.token, state=state, why=why
            ),
            again=True,
        )
        # At once, since a loop that is being shut down waits for no disk.
        self._drop(claim.reference, claim.token, store)
        await written

    async def settle(self, reference: str, *, sent: bool) -> bool:
        """Say what became of a message whose outcome is unknown, once you have found out.

        Args:
            reference: Its name.
            sent: True if it was sent, so that it never is again: its receipt has an empty
                `message_id`. False if it was not, so that the next send under it goes out.

        Returns:
            Whether it was in doubt; if not, nothing is changed.

        Raises:
            JournalUnavailableError: The file cannot be written.
            ConfigurationError: It is no journal, or another process uses it.
        """
        now = self._wall_clock()
        return await self.run(lambda file: _entries.settle(file, reference, sent=sent, now=now))

    async def requests_since(self, seconds: float) -> list[PastRequest]:
        """Return what earlier processes sent under a reference in the last `seconds`."""
        now = self._wall_clock()
        found = await self.run(
            lambda file: _entries.requests_since(file, now - seconds, process=_this_process())
        )
        return [PastRequest(max(0.0, now - last), bool(answered)) for last, answered in found]

    async def run(self, work: Callable[[sqlite3.Connection], _T], *, again: bool = False) -> _T:
        """Do some work on the file, in its thread and within a transaction.

        Args:
            work: Called with the connection.
            again: Whether to repeat it with the next commit, should this one fail.

        Raises:
            JournalUnavailableError: The file cannot be written.
            ConfigurationError: It is no journal, or another process uses it.
        """
        return await self._opened().submit(work, again=again)

    async def aclose(self) -> None:
        """Finish what is being written and close the file; the next use opens it again.

        Where a call still has a claim, what has left say, it is closed with the last.
        """
        self._bound_to = ""
        self._closing = True
        store = self._leave_if_idle()
        if store is not None:
            await asyncio.to_thread(store.join)

    def __repr__(self) -> str:
        return f"SQLiteJournal({str(self.path)!r}, account={self.account!r})"

    def _opened(self) -> Store:
        from smsid_async._sqlite import leave, store_at  # noqa: PLC0415 - with the first use only

        with self._opening:
            store = self._store
            if store is None or not store.usable:
                if store is not None:
                    self._leaving()
                path = self.path
                store = self._store = store_at(path, lambda file: _entries.prepare(file, path))
                # A journal that is forgotten lets go of its file too, when it is collected.
                self._leaving = weakref.finalize(self, leave, store)
            return store

    def _holder(self, claim: Claim) -> Holder:
        try:
            return self._holders[claim.token]
        except KeyError:
            raise _lost(claim) from None

    def _drop(self, reference: str, token: str, store: Store) -> None:
        store.claims.drop(reference, self._holders.pop(token))
        self._leave_if_idle()

    def _leave_if_idle(self) -> Store | None:
        """Let go of the file if that was asked for and no call needs it; return what closes."""
        with self._opening:
            needed = any(not holder.over for holder in self._holders.values())
            if not self._closing or needed or self._store is None:
                return None
            store, self._store, self._closing = self._store, None, False
            return store if self._leaving() else None


def _judge(
    reference: str, fingerprint: str, entry: _entries.Entry | None, *, resend_unknown: bool
) -> SendReceipt | bool:
    """Return the receipt of what was sent, or whether a claim on the reference is doubtful."""
    if entry is None:
        return False
    _check_same(reference, fingerprint, entry.fingerprint)
    if entry.receipt is not None:
        return entry.receipt
    if entry.state not in (State.INTENT, State.UNKNOWN):
        return False
    if not resend_unknown:
        raise OutcomeUnknownError(
            f"an earlier send under the reference {reference!r} may have taken effect "
            f"({entry.why or 'its outcome is not known'}). Find out, then settle it or say "
            "resend_unknown=True"
        )
    return True


def _check_same(reference: str, fingerprint: str, other: str) -> None:
    if fingerprint != other:
        raise DuplicateReferenceError(
            f"the reference {reference!r} belongs to another message, with another recipient, "
            "text or sender; give each message its own"
        )


def _lost(claim: Claim) -> JournalUnavailableError:
    return JournalUnavailableError(
        f"the claim on the reference {claim.reference!r} was taken over, or another send under it "
        "came first, so nothing was sent by this call"
    )


def _this_process() -> str:
    return f"{_PROCESS}-{os.getpid()}"


def _checked_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or str(path) in ("", ":memory:"):
        raise ConfigurationError("a journal needs the path of a file, so that it outlives us")
    return Path(path)


def _checked_lease(lease: float) -> float:
    if check_seconds("lease", lease) is None:
        raise ConfigurationError("lease is None; a claim needs an end")
    return lease


def _checked_label(label: str) -> str:
    if not isinstance(label, str) or not label.isprintable() or not label:
        raise ConfigurationError("the account's label is a short text, such as 'main'")
    return label
