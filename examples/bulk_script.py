"""Send thousands of messages from any source, within the rate budget.

SMSID_API_KEY=... python bulk_script.py
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

from smsid_async import Message, SMSIDClient, SMSIDError


def reminders(count: int) -> Iterator[Message]:
    """Stand in for a database cursor: messages are pulled as they can be sent."""
    for number in range(count):
        yield Message(f"+447700900{number % 1000:03d}", f"Your visit no. {number} is tomorrow")


async def main(count: int = 20) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    async with SMSIDClient() as client:
        try:
            async for result in client.sms.send_many(reminders(count)):
                outcomes[result.outcome] += 1
                if result.error is not None:
                    print(f"message {result.index}: {result.outcome}: {result.error}")
        except SMSIDError as error:
            print(f"stopped early: {error}")
    print(", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    return outcomes


if __name__ == "__main__":
    asyncio.run(main())
