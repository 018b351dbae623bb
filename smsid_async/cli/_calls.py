"""The commands that make one call: send, status, balance, otp."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from smsid_async import (
    Balance,
    DeliveryStatus,
    DeliveryTimeoutError,
    MessageStatus,
    SendReceipt,
    SMSIDError,
)
from smsid_async.cli._session import Code, Session
from smsid_async.models import mask_number

__all__ = ["balance", "otp_send", "otp_verify", "send", "status"]

_T = TypeVar("_T")


async def send(session: Session, to: str, text: str, sender_id: str | None, *, wait: bool) -> int:
    """Send one message, and wait for its delivery if asked to."""
    async with session.client() as client:
        try:
            receipt = await _telling(session, client.sms.send(to, text, sender_id=sender_id))
        except SMSIDError as error:
            return session.tell(error, _doubt(error, "The message may have been sent"))
        _show_receipt(session, receipt)
        if not wait:
            return Code.WELL
        try:
            return _show_status(session, await client.sms.wait(receipt.message_id))
        except SMSIDError as error:
            session.tell(error, ". The message was accepted; do not send it again")
            return Code.UNKNOWN


async def status(session: Session, message_id: str, *, wait: bool) -> int:
    """Show where a message is, or wait until that is final."""
    async with session.client() as client:
        try:
            found = await (client.sms.wait if wait else client.sms.status)(message_id)
        except DeliveryTimeoutError as error:
            session.tell(error)
            return Code.UNKNOWN
        return _show_status(session, found)


async def balance(session: Session) -> int:
    """Show the prepaid balance."""
    async with session.client() as client:
        found: Balance = await client.balance()
    session.out.line(f"Balance: {found.amount}")
    session.out.record({"balance": str(found.amount)})
    return Code.WELL


async def otp_send(session: Session, to: str) -> int:
    """Send a one-time code."""
    async with session.client() as client:
        try:
            receipt = await _telling(session, client.otp.send(to))
        except SMSIDError as error:
            return session.tell(error, _doubt(error, "The code may have been sent"))
    session.out.line(f"A one-time code was sent to {mask_number(receipt.to)}.")
    session.out.record({"status": receipt.status, "to": mask_number(receipt.to)})
    return Code.WELL


async def otp_verify(session: Session, to: str, code: str) -> int:
    """Check a one-time code."""
    async with session.client() as client:
        try:
            found = await client.otp.verify(to, code)
        except SMSIDError as error:
            return session.tell(error, _doubt(error, "The code may be used up"))
    session.out.line("The code is right.")
    session.out.record({"status": found.status, "verified": found.verified})
    return Code.WELL


async def _telling(session: Session, call: Awaitable[_T]) -> _T:
    """Await a write; if it is interrupted after it left, say so."""
    try:
        return await call
    except asyncio.CancelledError as cancelled:
        if getattr(cancelled, "maybe_sent", False):
            session.out.sentence("interrupted after the request had left: it may have been sent")
        raise


def _doubt(error: SMSIDError, what: str) -> str:
    return f". {what}" if error.maybe_sent else ""


def _show_receipt(session: Session, receipt: SendReceipt) -> None:
    cost = "" if receipt.cost is None else f", cost {receipt.cost}"
    left = "" if receipt.remaining_balance is None else f", balance {receipt.remaining_balance}"
    session.out.line(f"Accepted as {receipt.message_id}{cost}{left}")
    session.out.record(
        {
            "message_id": receipt.message_id,
            "status": receipt.status,
            "cost": _money(receipt.cost),
            "remaining_balance": _money(receipt.remaining_balance),
        }
    )


def _show_status(session: Session, found: MessageStatus) -> int:
    session.out.line(f"{found.message_id}: {found.status}")
    session.out.record(
        {
            "message_id": found.message_id,
            "status": found.status.value,
            "is_final": found.is_final,
        }
    )
    return Code.FAILED if found.status is DeliveryStatus.FAILED else Code.WELL


def _money(amount: object) -> str | None:
    return None if amount is None else str(amount)
