"""What a program's author gets from mypy and pyright, both at their strictest."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

SNIPPET = Path(__file__).parent / "typing" / "user_snippet.py"
# Each line with `# wrong` is an error of the program, and must be found.
MISTAKES = """
from typing import assert_type

from smsid_async import Message, RetryPolicy, SMSIDClient


async def program(client: SMSIDClient) -> None:
    await client.sms.send("+447700900123")  # wrong
    await client.sms.send("+447700900123", "Hello", lane=1)  # wrong
    await client.sms.send("+447700900123", "Hello", priority="high")  # wrong
    await client.sms.wait("id", timeout="5")  # wrong
    await client.sms.status(17)  # wrong
    await client.otp.check("+447700900123", 123456)  # wrong
    client.sms.send_many(["Hello"])  # wrong
    client.with_options(key="x")  # wrong
    SMSIDClient("key", timeout="1")  # wrong
    RetryPolicy(attempts=3)  # wrong
    Message("+447700900123", "Hello").text = "x"  # wrong
    balance = await client.balance()
    assert_type(balance.amount, float)  # wrong
    assert_type(client.sms, int)  # wrong
    async for result in client.sms.send_many([]):
        result.receipt.message_id  # wrong
"""
WRONG_LINES = {
    number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.endswith("# wrong")
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory far from ours, so that the checkers find the package as installed."""
    directory = tmp_path_factory.mktemp("program")
    shutil.copy(SNIPPET, directory / "program.py")
    (directory / "mistakes.py").write_text(MISTAKES, "utf-8")
    return directory


def run(project, *command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found_by_mypy(project, pytestconfig):
    """What mypy says, as file, line and message."""
    (project / "mypy.ini").write_text("[mypy]\n", "utf-8")
    said = run(
        project,
        "mypy",
        "--strict",
        "--disallow-any-expr",
        "--disallow-any-unimported",
        "--disallow-any-explicit",
        "--disallow-any-decorated",
        "--no-error-summary",
        "--hide-error-context",
        f"--cache-dir={pytestconfig.cache.mkdir('mypy')}",
        "program.py",
        "mistakes.py",
    )
    lines = [re.fullmatch(r"(\w+\.py):(\d+): (error: .*)", line) for line in said.splitlines()]
    return [(match[1], int(match[2]), match[3]) for match in lines if match]


@pytest.fixture(scope="module")
def found_by_pyright(project):
    """What pyright says, as file, line and message."""
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (project / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    said = run(project, "pyright", "--outputjson", f"--pythonpath={sys.executable}")
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in json.loads(said)["generalDiagnostics"]
    ]


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_program_that_uses_every_call_has_no_type_error(checker, request):
    found = request.getfixturevalue(f"found_by_{checker}")
    assert [each for each in found if each[0] == "program.py"] == []


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_every_mistake_of_a_program_is_found(checker, request):
    found = request.getfixturevalue(f"found_by_{checker}")
    assert {line for file, line, _ in found if file == "mistakes.py"} == WRONG_LINES


def test_the_program_uses_every_public_name():
    import smsid_async

    text = SNIPPET.read_text("utf-8")
    body = text.partition("\n)\n")[2]
    unused = [name for name in smsid_async.__all__ if not re.search(rf"\b{name}\b", body)]
    assert unused == []
