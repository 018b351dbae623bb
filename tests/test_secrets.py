"""Nothing private shows: not in what the command writes, a repr, a pickle or a refusal.

What the errors, logs, warnings and events of every fault show is watched in `faults`.
"""

from __future__ import annotations

import asyncio
import pickle
import traceback
from typing import TYPE_CHECKING

import pytest
from test_cli import answering
from typer.testing import CliRunner

from smsid_async import (
    ConfigurationError,
    DeliveryStatus,
    DeliveryTimeoutError,
    Message,
    MessageStatus,
    OTPReceipt,
    SendReceipt,
    SendResult,
    SMSIDClient,
    SMSIDError,
    ValidationError,
)
from smsid_async.cli import _app
from smsid_async.models import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.heavy

asyncio.set_event_loop(None)

KEY, SECRET, CODE = "key-canary", "secret-canary", "974318"
TEXT, NUMBER = "text-canary", "+447700900999"
CANARIES = (KEY, SECRET, CODE, TEXT, NUMBER, NUMBER[1:], NUMBER[3:])


def assert_hidden(shown: str, canaries: tuple[str, ...] = CANARIES) -> None:
    for canary in canaries:
        assert canary not in shown


# -- the command ---------------------------------------------------------------

SAID = f'{{"meta":{{"code":%d,"text":"{NUMBER}, {TEXT}, {KEY}, {SECRET} and {CODE} are bad"}}}}'


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} Any\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


ANSWERS = {
    "400": http(400, SAID % 400),
    "401": http(401, SAID % 401),
    "422": http(422, SAID % 422),
    "429": http(429, SAID % 429).replace(b"\r\n", b"\r\nRetry-After: 500\r\n", 1),
    "500": http(500, SAID % 500),
    "a page": http(200, f"<html>{NUMBER} {TEXT} {KEY}</html>"),
    "the request comes back": f"POST /sms/send {NUMBER} {TEXT} {CODE}\r\n{KEY}\r\n\r\n".encode(),
    "nothing": b"",
}
COMMANDS = {
    "send": ("send", NUMBER, TEXT),
    "otp send": ("otp", "send", NUMBER),
    "otp verify": ("otp", "verify", NUMBER, CODE),
    "balance": ("balance",),
}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_command_shows_nothing_whatever_the_server_says(
    answer: bytes, command: tuple[str, ...], form: tuple[str, ...]
) -> None:
    with answering(answer) as server:
        environment = {
            "SMSID_BASE_URL": server.url,
            "SMSID_API_KEY": KEY,
            "SMSID_API_SECRET": SECRET,
        }
        result = CliRunner(env=environment).invoke(_app.app, [*form, *command])
    assert result.exit_code in (1, 3)
    assert isinstance(result.exception, SystemExit)
    assert result.output
    # What a server says out of its own mind, of a text that was not sent, is not ours to know.
    sent = tuple(word for word in (TEXT, CODE) if word in command)
    assert_hidden(result.output, (KEY, SECRET, NUMBER, NUMBER[1:], NUMBER[3:], *sent))


# -- values and errors ---------------------------------------------------------

RAW = {"to": NUMBER, "text": TEXT}
VALUES = [
    Message(NUMBER, TEXT),
    SendReceipt("M1", "success", None, None, raw=RAW),
    MessageStatus("M1", DeliveryStatus.SENT, raw=RAW),
    OTPReceipt("sent", NUMBER, raw=RAW),
    SendResult(0, Message(NUMBER, TEXT), Outcome.NOT_SENT),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_shows_three_digits_at_the_most(value: object) -> None:
    assert_hidden(f"{value!r} {value} {[value]}")


def test_a_client_and_its_parts_show_nothing() -> None:
    client = SMSIDClient(KEY, SECRET, base_url="http://localhost")
    view = client.with_options(timeout=5)
    for thing in (client, view, client.sms, client.otp, client.budget, client._pipeline):
        assert_hidden(f"{thing!r} {thing}")
    assert_hidden(repr(client._pipeline._settings))


def test_a_pickled_error_leaves_its_answer_behind() -> None:
    last = MessageStatus("M1", DeliveryStatus.SENT, raw=RAW)
    error = DeliveryTimeoutError("not final", last=last)
    pickled = pickle.dumps(error)
    assert_hidden(repr(pickled))
    assert pickle.loads(pickled).last == last
    assert error.last is last
    assert pickle.loads(pickle.dumps(DeliveryTimeoutError("not final"))).last is None


# -- what is refused -----------------------------------------------------------

CONTROLS = ["\n", "\r\nX-Evil: 1", "\0", "\x1b[31m", "\x7f", "\u2028"]
REFUSED: dict[str, Callable[[SMSIDClient, str], object]] = {
    "number": lambda client, bad: client.sms.send(NUMBER + bad, TEXT),
    "sender ID": lambda client, bad: client.sms.send(NUMBER, TEXT, sender_id="AB" + bad),
    "number of a code": lambda client, bad: client.otp.send(NUMBER + bad),
    "code": lambda client, bad: client.otp.verify(NUMBER, CODE + bad),
}


@pytest.mark.parametrize("bad", CONTROLS, ids=ascii)
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
async def test_control_characters_are_refused_by_a_call(
    call: Callable[[SMSIDClient, str], object], bad: str
) -> None:
    async with SMSIDClient(KEY, base_url="http://localhost") as client:
        with pytest.raises(ValidationError) as caught:
            await call(client, bad)  # type: ignore[misc]
    assert_hidden("".join(traceback.format_exception_only(caught.value)))


@pytest.mark.parametrize("bad", CONTROLS, ids=ascii)
@pytest.mark.parametrize("name", ["api_key", "api_secret", "base_url", "sender_id"])
def test_control_characters_are_refused_by_the_constructor(name: str, bad: str) -> None:
    settings = {"api_key": KEY, "api_secret": SECRET, "base_url": "http://localhost"}
    with pytest.raises(ConfigurationError) as caught:
        SMSIDClient(**{**settings, name: settings.get(name, "AB") + bad})  # type: ignore[arg-type]
    assert_hidden(_all_that_shows(caught.value))


def _all_that_shows(error: SMSIDError) -> str:
    causes = [error.__cause__, error.__context__]
    return f"{error!r} {error} {causes!r} {pickle.dumps(error)!r}"
