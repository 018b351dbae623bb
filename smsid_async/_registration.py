"""A call's reference, on its way through the journal: claim → intent → outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import attrs

from smsid_async.errors import (
    APIError,
    BudgetTimeoutError,
    JournalUnavailableError,
    RateLimitError,
    SMSIDError,
)
from smsid_async.models import Outcome, SendReceipt, mask_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smsid_async.journal import Claim, Journal

__all__ = ["Registration"]

_logger = logging.getLogger("smsid_async")


@attrs.define(eq=False, kw_only=True)
class Registration:
    """What a journal is told about one call.

    Attributes:
        journal: The journal.
        reference: The caller's name for the send.
        fingerprint: Of the message.
        recipient: The number in E.164.
        resend_unknown: Whether to send what is in doubt.
        over: Whether the claim has ended.
        abandoned: Whether the call was cancelled while its exchange goes on, so that
            the exchange must end the claim.
    """

    journal: Journal = attrs.field(repr=False)
    reference: str
    fingerprint: str = attrs.field(repr=False)
    recipient: str = attrs.field(repr=mask_number)
    resend_unknown: bool = False
    over: bool = False
    abandoned: bool = False
    _claim: Claim | None = attrs.field(default=None, init=False)
    _intended: bool = attrs.field(default=False, init=False)

    async def claim(self, base_url: str, deadline: float | None) -> SendReceipt | None:
        """Claim the reference, or return the receipt of the send that it already had.

        Args:
            base_url: Of the API, to which the journal must belong.
            deadline: When to stop waiting for another call, on the loop's clock.
        """
        limit = asyncio.timeout_at(deadline)
        try:
            with _told():
                async with limit:
                    await self.journal.open(base_url)
                    found = await self.journal.claim(
                        self.reference,
                        fingerprint=self.fingerprint,
                        recipient=self.recipient,
                        resend_unknown=self.resend_unknown,
                    )
        except TimeoutError as exc:
            if not limit.expired():
                raise _failed(exc) from exc
            raise BudgetTimeoutError(
                f"another send of the reference {self.reference!r}, or the journal, did not end "
                "in time; this one sent nothing"
            ) from exc
        if isinstance(found, SendReceipt):
            return found
        self._claim = found
        return None

    @property
    def doubtful(self) -> bool:
        """Whether an earlier send under the reference may have taken effect."""
        return self._claim is not None and self._claim.doubtful

    async def intend(self) -> None:
        """Write that the message may leave from now on."""
        assert self._claim is not None  # noqa: S101 - claimed before the call queued
        self._intended = True  # also if we are cancelled while it is being written
        try:
            with _told():
                await self.journal.intend(self._claim)
        except (SMSIDError, TimeoutError):
            self._intended = False
            raise

    async def note(self, error: SMSIDError | None, receipt: object, *, doubtful: bool) -> None:
        """Write how an exchange ended. A journal that fails then changes no outcome.

        Args:
            error: What went wrong; None if it was sent.
            receipt: The API's, if it was.
            doubtful: Whether an earlier attempt may have taken effect.
        """
        try:
            with _logged():
                await self._note(error, receipt, doubtful=doubtful)
        finally:  # also when a loop that shuts down cancels us here
            if self.abandoned:
                await self.release(error)

    async def _note(self, error: SMSIDError | None, receipt: object, *, doubtful: bool) -> None:
        claim = self._claim
        if not self._intended or claim is None:
            return
        self._intended = False
        if error is None:
            assert isinstance(receipt, SendReceipt)  # noqa: S101 - only a send has a reference
            self.over = True
            await self.journal.record(claim, Outcome.SENT, receipt=receipt)
        elif error.maybe_sent:
            await self.journal.record(claim, Outcome.UNKNOWN, why=_words(error))
        elif isinstance(error, APIError) and not (doubtful or isinstance(error, RateLimitError)):
            self.over = True
            await self.journal.record(claim, Outcome.REJECTED, why=_words(error))
        else:
            await self.journal.withdraw(claim)

    async def release(self, error: SMSIDError | None = None) -> None:
        """End the claim, if it has not ended yet."""
        if self.over or self._claim is None:
            return
        self.over = True
        with _logged():
            if isinstance(error, RateLimitError) and not self.doubtful:
                await self.journal.record(self._claim, Outcome.REJECTED, why=_words(error))
            else:
                await self.journal.release(self._claim, why=_words(error))


def _words(error: SMSIDError | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what a journal of the caller's raises into an error of ours."""
    try:
        yield
    except (SMSIDError, TimeoutError):
        raise
    except Exception as exc:
        raise _failed(exc) from exc


def _failed(exc: Exception) -> JournalUnavailableError:
    return JournalUnavailableError(
        f"the journal raised {type(exc).__name__}, so nothing was sent; mend the journal"
    )


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Let a failing journal change no outcome: its intent stays, and will be in doubt."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - as said; the error may hold private data
        _logger.error(  # noqa: TRY400
            "the journal could not record an outcome (%s) yet; it may stay unknown to it",
            type(exc).__name__,
        )
