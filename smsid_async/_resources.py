"""The API's resources, `sms` and `otp`: a call in, the pipeline, a value out."""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import TYPE_CHECKING

from smsid_async._config import check_flag, check_seconds
from smsid_async._fanout import SendMany, send_all
from smsid_async._options import CallOptions, Options, PollOptions, check_names, new_call
from smsid_async._registration import Registration
from smsid_async.budget import Priority
from smsid_async.errors import (
    BudgetTimeoutError,
    ConfigurationError,
    DeliveryTimeoutError,
    InvalidResponseError,
    OTPVerificationError,
    RateLimitError,
    ServerError,
    SMSIDError,
    TransportError,
)
from smsid_async.journal import fingerprint_of
from smsid_async.models import (
    Message,
    MessageStatus,
    OTPReceipt,
    OTPVerification,
    SendReceipt,
    check_code,
    check_message_id,
    check_number,
    check_reference,
    check_sender,
    check_text,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable
    from typing import Unpack

    from smsid_async._exchange import Call
    from smsid_async._http import Pipeline
    from smsid_async.journal import Journal

__all__ = ["FIRST_POLL", "MAY_PASS", "OTP", "POLL_GROWTH", "SLOWEST_POLL", "SMS"]

FIRST_POLL = 1.0  # seconds between the first two polls of a status
POLL_GROWTH = 1.5
SLOWEST_POLL = 30.0
_LAST_POLL = 1.0  # seconds before the end of a wait
MAY_PASS = (
    BudgetTimeoutError,
    InvalidResponseError,
    RateLimitError,
    ServerError,
    TransportError,
)


class _Resource:
    """What both resources are made of."""

    def __init__(self, pipeline: Pipeline, options: Options) -> None:
        self._pipeline = pipeline
        self._options = options


class SMS(_Resource):
    """Text messages: `client.sms`."""

    async def send(
        self,
        to: str,
        text: str,
        *,
        sender_id: str | None = None,
        reference: str | None = None,
        resend_unknown: bool = False,
        **options: Unpack[CallOptions],
    ) -> SendReceipt:
        """Send one message.

        Args:
            to: The recipient in E.164, such as `+447700900123`.
            text: 1 to 1600 characters; `count_segments` tells what it takes.
            sender_id: An approved sender ID of 2 to 11 characters; None for the
                client's, else the account's own.
            reference: Your own unique name for this send, which then happens at most
                once, however often this call is repeated. It needs a journal.
            resend_unknown: Send under this reference even if an earlier send may have
                taken effect; the message may then arrive, and be charged, twice.
            **options: See `CallOptions`; the lane is `NORMAL` if nothing says otherwise.

        Returns:
            The API's receipt: it has accepted the message, now or earlier under the
            same reference.

        Raises:
            ValidationError: An argument cannot be right; nothing was sent.
            ConfigurationError: A reference without a journal, a journal of another base
                URL or account, or a closed client.
            DuplicateReferenceError: The reference belongs to another message.
            BudgetTimeoutError: No slot in time; nothing was sent.
            APIError: The API refused; nothing was sent or charged.
            NotSentError: The request never left.
            OutcomeUnknownError: It left and no trustworthy answer came: the message
                may have been sent. It is not sent again.
        """
        if reference is not None and self._pipeline.journal is None:
            raise ConfigurationError(
                "a reference needs a journal, and this client has none: make it with "
                "journal=SQLiteJournal(...), or leave `reference` out"
            )
        call = self._send_call(
            Message(to, text, sender_id, reference),
            lane=Priority.NORMAL,
            resend_unknown=resend_unknown,
            **options,
        )
        return await self._pipeline.request(call)

    async def status(
        self,
        message_id: str,
        **options: Unpack[CallOptions],
    ) -> MessageStatus:
        """Ask where a message is.

        Args:
            message_id: As the receipt told it.
            **options: See `CallOptions`; the lane is `NORMAL` if nothing says otherwise.

        Returns:
            Its status; `unrecognised` for a word that the API does not document.

        Raises:
            SMSIDError: As every call; nothing is sent by a read.
        """
        call = self._status_call(message_id, lane=Priority.NORMAL, **options)
        return await self._pipeline.request(call)

    async def wait(
        self,
        message_id: str,
        *,
        timeout: float | None = 300.0,
        **options: Unpack[PollOptions],
    ) -> MessageStatus:
        """Wait until a message is delivered or has failed.

        Polls with growing pauses in the lowest lane, so that it never delays a send.
        What may pass (429, 5xx, a broken connection) does not end the wait.

        Args:
            message_id: As the receipt told it.
            timeout: Seconds for the whole wait; None waits for ever.
            **options: See `PollOptions`, for each poll; the lane is `BACKGROUND` if
                nothing says otherwise.

        Returns:
            The final status, `delivered` or `failed`.

        Raises:
            DeliveryTimeoutError: It was not final in time; `last` is the last status.
            APIError: The API refuses to tell, an unknown ID for instance.
        """
        check_message_id(message_id)
        check_seconds("timeout", timeout)
        loop = asyncio.get_running_loop()
        deadline = math.inf if timeout is None else loop.time() + timeout
        pause, last = FIRST_POLL, None
        trouble: SMSIDError | None = None
        while (left := deadline - loop.time()) > 0:
            call = self._status_call(
                message_id,
                lane=Priority.BACKGROUND,
                timeout=None if left == math.inf else left,
                **options,
            )
            try:
                last = await self._pipeline.request(call)
            except MAY_PASS as error:
                trouble = error
            else:
                trouble = None
                if last.is_final:
                    return last
            await asyncio.sleep(_nap(pause, deadline - loop.time()))
            pause = min(pause * POLL_GROWTH, SLOWEST_POLL)
        raise _not_final(timeout, last) from trouble

    def send_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        concurrency: int = 100,
        **options: Unpack[CallOptions],
    ) -> SendMany:
        """Send many messages, and tell what became of each as soon as it is known.

        Messages are pulled as they can be worked on, so the source may be endless
        and memory stays flat; a slow consumer stops the pulling. A wrong key, an
        exhausted balance or twenty refusals in a row with the same text stop it
        too: what has not left ends as `not_sent`, all in hand is reported, and the
        iterator raises that error last. After `break` what has left still finishes.

        Args:
            messages: Any iterable or async iterable.
            concurrency: Calls in hand at the most.
            **options: See `CallOptions`, for each message; the lane is `BULK` if nothing
                says otherwise.

        Returns:
            An async iterator of `SendResult`, in order of completion. It also has
            `stop()`, which ends it early and still reports all in hand, and `aclose()`.

        Raises:
            ConfigurationError: `concurrency` is not 1 or more, or the client is closed.
            AuthenticationError: At the end, if the key or the signature is wrong.
            InsufficientBalanceError: At the end, if the balance is exhausted.
            BadRequestError: At the end, after twenty such refusals in a row.
        """
        check_names(options)
        call_for = partial(
            self._send_call,
            lane=Priority.BULK,
            **options,
        )
        return send_all(self._pipeline, messages, call_for, concurrency=concurrency)

    def _status_call(
        self, message_id: str, *, lane: Priority, **options: Unpack[CallOptions]
    ) -> Call[MessageStatus]:
        return new_call(
            self._options,
            "/sms/status",
            {"message_id": check_message_id(message_id)},
            partial(MessageStatus.from_wire, message_id=message_id),
            lane=lane,
            **options,
        )

    def _send_call(
        self,
        message: Message,
        *,
        lane: Priority,
        journal: Journal | None = None,
        resend_unknown: bool = False,
        **options: Unpack[CallOptions],
    ) -> Call[SendReceipt]:
        to, text = check_number(message.to), check_text(message.text)
        payload = {"to": to, "message": text}
        sender = message.sender_id if message.sender_id is not None else self._options.sender_id
        if sender is not None:
            payload["sender_id"] = check_sender(sender)
        call = new_call(
            self._options,
            "/sms/send",
            payload,
            SendReceipt.from_wire,
            private=(to, text),
            write=True,
            lane=lane,
            **options,
        )
        journal = journal or self._pipeline.journal
        if message.reference is not None and journal is not None:
            call.registration = Registration(
                journal=journal,
                reference=check_reference(message.reference),
                fingerprint=fingerprint_of(to, text, sender),
                recipient=to,
                resend_unknown=check_flag("resend_unknown", resend_unknown),
            )
        return call


class OTP(_Resource):
    """One-time passwords: `client.otp`."""

    async def send(
        self,
        to: str,
        **options: Unpack[CallOptions],
    ) -> OTPReceipt:
        """Send a one-time code; the API makes and keeps it.

        Args:
            to: The recipient in E.164.
            **options: See `CallOptions`; the lane is `HIGH` if nothing says otherwise.

        Returns:
            The API's receipt.

        Raises:
            SMSIDError: As for `sms.send`; `OutcomeUnknownError` if it may have left.
        """
        call = new_call(
            self._options,
            "/otp/send",
            {"to": check_number(to)},
            partial(OTPReceipt.from_wire, to=to),
            private=(to,),
            write=True,
            lane=Priority.HIGH,
            **options,
        )
        return await self._pipeline.request(call)

    async def verify(
        self,
        to: str,
        code: str,
        **options: Unpack[CallOptions],
    ) -> OTPVerification:
        """Check the code that a user entered. It fails closed.

        Args:
            to: The recipient in E.164.
            code: What the user entered, as text.
            **options: See `CallOptions`; the lane is `HIGH` if nothing says otherwise.

        Returns:
            Only if the API said `verified: true`.

        Raises:
            OTPVerificationError: The code is wrong, expired or used.
            OutcomeUnknownError: No trustworthy answer: the code may be used up.
            SMSIDError: As every call.
        """
        call = new_call(
            self._options,
            "/otp/verify",
            {"to": check_number(to), "code": check_code(code)},
            OTPVerification.from_wire,
            private=(to, code),
            write=True,
            verifying=True,
            lane=Priority.HIGH,
            **options,
        )
        return await self._pipeline.request(call)

    async def check(
        self,
        to: str,
        code: str,
        **options: Unpack[CallOptions],
    ) -> bool:
        """Say whether a code is right; like `verify`, for an `if`.

        Returns:
            True if the API said `verified: true`, False only for its own 422.

        Raises:
            SMSIDError: Everything else that can go wrong, so that trouble is never
                taken for a wrong code.
        """
        try:
            await self.verify(
                to,
                code,
                **options,
            )
        except OTPVerificationError as error:
            if error.status_code == 422:
                return False
            raise
        return True


def _nap(pause: float, left: float) -> float:
    """Return the seconds until the next poll; the last one comes just before the end."""
    jittered = pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads polls, no secret
    return max(0.0, min(jittered, left - _LAST_POLL if left > 1.5 * _LAST_POLL else left))


def _not_final(timeout: float | None, last: MessageStatus | None) -> DeliveryTimeoutError:
    seen = "no status was seen" if last is None else f"the last status was {last.status}"
    return DeliveryTimeoutError(
        f"the message was not final within {timeout} s; {seen}. "
        "It was accepted all the same: ask again later, do not send it again",
        last=last,
    )
