"""Following up what a journal has sent, until each message is delivered or has failed."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import TYPE_CHECKING

import attrs

from smsid_async import _manifest
from smsid_async._resources import FIRST_POLL, MAY_PASS, POLL_GROWTH, SLOWEST_POLL
from smsid_async.budget import Priority
from smsid_async.errors import APIError, AuthenticationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from smsid_async._client import SMSIDClient
    from smsid_async._manifest import Undelivered
    from smsid_async.journal import SQLiteJournal
    from smsid_async.models import DeliveryStatus

__all__ = ["UNTRACEABLE", "Delivery", "follow"]

UNTRACEABLE = "untraceable"  # recorded for a message that the API refuses to tell about
_AT_ONCE = 20  # polls in hand


@attrs.frozen
class Delivery:
    """Where one message of a journal is.

    Attributes:
        reference: Its name in the journal.
        line: Its line in the file, None for messages from elsewhere.
        message_id: The API's name for it.
        status: Its delivery status; None where the API refuses to tell.
    """

    reference: str
    line: int | None
    message_id: str
    status: DeliveryStatus | None


async def follow(
    client: SMSIDClient, journal: SQLiteJournal, *, timeout: float | None
) -> AsyncGenerator[Delivery, None]:
    """Poll everything that is not final, round after round, and record what is new."""
    loop = asyncio.get_running_loop()
    deadline = math.inf if timeout is None else loop.time() + timeout
    pause = FIRST_POLL
    while True:
        waiting = False
        async for found in _round(client, journal, deadline):
            waiting |= found.status is not None and not found.status.is_final
            yield found
        over = loop.time() + pause >= deadline
        if over or not (waiting or await journal.run(_manifest.any_undelivered)):
            return
        await asyncio.sleep(pause)
        pause = min(pause * POLL_GROWTH, SLOWEST_POLL)


async def _round(
    client: SMSIDClient, journal: SQLiteJournal, deadline: float
) -> AsyncGenerator[Delivery, None]:
    loop, last = asyncio.get_running_loop(), 0
    while page := await journal.run(partial(_manifest.undelivered, after=last, number=_AT_ONCE)):
        last = page[-1].id
        left = deadline - loop.time()
        if left <= 0:
            return
        found = await _poll_all(client, page, None if left == math.inf else left)
        words = {
            each.reference: UNTRACEABLE if each.status is None else each.status.value
            for each in found
        }
        await journal.run(partial(_manifest.record_deliveries, words=words, now=time.time()))
        for each in found:
            yield each


async def _poll_all(
    client: SMSIDClient, page: Sequence[Undelivered], max_wait: float | None
) -> list[Delivery]:
    """Ask for some messages at once; what cannot be told now is left out."""
    polls = [asyncio.ensure_future(_poll(client, each, max_wait)) for each in page]
    try:
        return [each for poll in polls if (each := await poll) is not None]
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


async def _poll(client: SMSIDClient, each: Undelivered, max_wait: float | None) -> Delivery | None:
    status: DeliveryStatus | None = None
    try:
        found = await client.sms.status(
            each.message_id, priority=Priority.BACKGROUND, max_wait=max_wait
        )
        status = found.status
    except AuthenticationError:
        raise
    except MAY_PASS:
        return None
    except APIError:  # of this message it will not tell
        pass
    return Delivery(each.reference, each.line, each.message_id, status)
