"""Send thousands of messages from any source; killed and run again, it continues.

SMSID_API_KEY=... python bulk_script.py
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from smsid_async import Message, SMSIDClient, SMSIDError
from smsid_async.bulk import BulkJob, JobSummary


def reminders(count: int) -> Iterator[Message]:
    """Stand in for a database cursor: messages are pulled as they can be sent."""
    for number in range(count):
        yield Message(f"+447700900{number % 1000:03d}", f"Your visit no. {number} is tomorrow")


async def main(count: int = 20, journal: Path = Path("reminders.journal")) -> JobSummary:
    job = BulkJob(reminders(count), journal)
    async with SMSIDClient() as client:
        try:
            async for result in job.run(client):
                if result.error is not None:
                    print(f"message {result.index}: {result.outcome}: {result.error}")
        except SMSIDError as error:
            print(f"stopped early: {error}")
    return job.summary()


if __name__ == "__main__":
    print(asyncio.run(main()))
