"""A worker of a queue that delivers at least once: each SMS still goes out at most once.

SMSID_API_KEY=... python task_queue.py
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from smsid_async import OutcomeUnknownError, SMSIDClient, SQLiteJournal


@dataclass(frozen=True)
class Task:
    """What the queue carries; `id` is the same whenever it is delivered again."""

    id: str
    to: str
    text: str


async def handle(client: SMSIDClient, task: Task) -> str:
    """Do one task, and say what became of it."""
    try:
        receipt = await client.sms.send(task.to, task.text, reference=task.id)
    except OutcomeUnknownError:  # a person, or the delivery report, has to find out
        return "unknown"
    return receipt.message_id


async def main(deliveries: list[Task], journal: Path = Path("sms.db")) -> list[str]:
    async with SMSIDClient(journal=SQLiteJournal(journal)) as client:
        return await asyncio.gather(*(handle(client, task) for task in deliveries))


if __name__ == "__main__":
    order = Task("order-17-shipped", "+447700900123", "Your order has shipped")
    print(asyncio.run(main([order, order])))  # the second delivery gets the first one's receipt
