"""The request examples of the API reference, run as they stand against the sandbox.

Each is a program of its own in `sandbox_examples/`. Only the base URL and the placeholders of the
credentials are replaced; where an example needs a value that the API itself hands out (a message
id, a code), the test runs it once as it stands and once with the value that was handed out.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from smsid_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parent / "sandbox_examples"
REFERENCE_URL = "https://smsid.co.uk/api/v1"
NUMBER = "+447700900123"
SECRET = "s3cret-of-the-account"
LANGUAGES = {
    "curl": ("sh", [shutil.which("sh"), "-e"], ["curl", "openssl", "sh"]),
    "python": ("py", [sys.executable], []),
    "node": ("mjs", [shutil.which("node")], ["node"]),
}


@pytest.fixture(params=LANGUAGES)
def language(request):
    for program in LANGUAGES[request.param][2]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")
    if request.param == "python":
        pytest.importorskip("requests", reason="the package requests is not installed")
    return request.param


@pytest.fixture
def run(language, tmp_path):
    suffix, command, _ = LANGUAGES[language]

    async def run_example(sandbox, name, handed_out=None):
        """Run one example and return what it printed."""
        source = (EXAMPLES / language / f"{name}.{suffix}").read_text()
        assert REFERENCE_URL in source
        for old, new in {
            REFERENCE_URL: sandbox.url,
            "YOUR_API_KEY": "key-of-the-account",
            "YOUR_API_SECRET": SECRET,
            **(handed_out or {}),
        }.items():
            source = source.replace(old, new)
        script = tmp_path / f"{name}.{suffix}"
        script.write_text(source)
        process = await asyncio.create_subprocess_exec(
            *command,
            script,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            printed, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        return printed.decode()

    return run_example


@pytest.fixture
async def sandbox():
    async with Sandbox(api_key="key-of-the-account") as sandbox:
        yield sandbox


def last(sandbox):
    request = sandbox.requests[-1]
    return request.path.removeprefix("/api/v1"), request.status, request.text


async def test_sms_send(run, sandbox):
    printed = await run(sandbox, "sms_send")
    assert last(sandbox) == ("/sms/send", 200, "OK")
    (message,) = sandbox.messages
    assert (message.to, message.sender_id, message.text) == (NUMBER, "SMSID", "Hello from SMSID")
    assert message.message_id in printed


async def test_sms_status(run, sandbox):
    await run(sandbox, "sms_status")
    assert last(sandbox) == ("/sms/status", 400, "Unknown message_id")
    await run(sandbox, "sms_send")
    message_id = sandbox.messages[0].message_id
    printed = await run(sandbox, "sms_status", {"Dcshuhod0PMAAAFQ...": message_id})
    assert last(sandbox) == ("/sms/status", 200, "OK")
    assert any(word in printed for word in ("queued", "sent", "delivered"))


async def test_balance(run, sandbox):
    printed = await run(sandbox, "balance")
    assert last(sandbox) == ("/balance", 200, "OK")
    assert "100.0000" in printed


async def test_otp(run, sandbox):
    printed = await run(sandbox, "otp_send")
    assert last(sandbox) == ("/otp/send", 200, "OK")
    assert NUMBER in printed
    code = sandbox.otp_code(NUMBER)
    wrong = "654321" if code == "123456" else "123456"
    await run(sandbox, "otp_verify", {"123456": wrong})
    assert last(sandbox) == ("/otp/verify", 422, "Invalid or expired code")
    printed = await run(sandbox, "otp_verify", {"123456": code})
    assert last(sandbox) == ("/otp/verify", 200, "OK")
    assert "verified" in printed


async def test_a_signed_send(run):
    async with Sandbox(api_key="key-of-the-account", api_secret=SECRET) as sandbox:
        await run(sandbox, "sms_send_signed")
        assert last(sandbox) == ("/sms/send", 200, "OK")
        assert [message.text for message in sandbox.messages] == ["Hello"]
        await run(sandbox, "sms_send")  # the same without a signature
        assert last(sandbox) == ("/sms/send", 401, "Missing or invalid signature")
        assert len(sandbox.messages) == 1


async def test_a_secret_that_differs_is_refused(run):
    async with Sandbox(api_key="key-of-the-account", api_secret="another") as sandbox:
        await run(sandbox, "sms_send_signed")
        assert last(sandbox) == ("/sms/send", 401, "Missing or invalid signature")
        assert sandbox.messages == []
