"""What `.ci/run` runs against the built wheel, in an environment without the source."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import smsid_async
from smsid_async import Message, RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob
from smsid_async.sandbox import Sandbox

NUMBER = "+447700900123"


async def main() -> None:
    async with (
        Sandbox(api_secret="secret") as sandbox,
        SMSIDClient("test", "secret", base_url=sandbox.url, budget=RateBudget()) as client,
    ):
        receipt = await client.sms.send(NUMBER, "Hello from the wheel")
        assert (await client.sms.status(receipt.message_id)).message_id == receipt.message_id
        await client.otp.send(NUMBER)
        assert (await client.otp.verify(NUMBER, sandbox.otp_code(NUMBER))).verified
        results = [result async for result in client.sms.send_many([Message(NUMBER, "One more")])]
        assert [result.outcome for result in results] == ["sent"]
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                job = BulkJob([Message(NUMBER, "Only once")], Path(folder) / "list.journal")
                _ = [result async for result in job.run(client)]
            assert job.summary().sent == 1
        assert len(sandbox.messages) == 3
        assert sandbox.refused == 0


package = Path(smsid_async.__file__).parent
assert package.is_relative_to(sys.prefix), f"{package} is not the installed wheel"
assert (package / "py.typed").exists()
assert files("smsid_async.cli").joinpath("demo.csv").is_file()
asyncio.run(main())
print(f"the wheel of smsid-async {smsid_async.__version__} works")
