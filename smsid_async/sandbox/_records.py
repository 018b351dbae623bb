"""What the sandbox remembers, as frozen values, and the one error that its parts raise.

No phone number, text or API key is shown in full by a `repr()`.
"""

from decimal import Decimal

from attrs import field, frozen

__all__ = [
    "RefusedError",
    "SandboxMessage",
    "SandboxRequest",
    "SandboxStatistics",
]


class RefusedError(Exception):
    """A request is answered with an error: the HTTP status, which is `meta.code` too, and a text.

    Attributes:
        code: The HTTP status.
        text: `meta.text`; holds nothing that the caller sent.
        headers: Further headers of the answer.
    """

    def __init__(self, code: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.headers = headers


def _masked(number: str) -> str:
    return f"'***{number[-3:]}'"


def _length(text: str) -> str:
    return f"<{len(text)} characters>"


@frozen(kw_only=True)
class SandboxMessage:
    """A message that was accepted and charged.

    Attributes:
        message_id: As answered to the sender.
        to: The recipient's number.
        text: The message.
        sender_id: The sender shown, the account's default filled in.
        segments: The number of segments that were charged.
        cost: What they cost together.
        at: When it was accepted, in seconds on the sandbox's clock.
        key: The API key that sent it.
    """

    message_id: str
    to: str = field(repr=_masked)
    text: str = field(repr=_length)
    sender_id: str
    segments: int
    cost: Decimal
    at: float
    key: str = field(repr=False)


@frozen(kw_only=True)
class SandboxRequest:
    """A request that arrived, and how it was answered.

    Attributes:
        at: When it was counted and answered, in seconds on the sandbox's clock.
        method: The HTTP method.
        path: The path, without the query.
        status: The HTTP status answered.
        text: `meta.text` of the answer.
        counted: Whether the key's rate window counted it.
        key: The API key it carried; empty without one.
    """

    at: float
    method: str
    path: str
    status: int
    text: str
    counted: bool
    key: str = field(repr=False)


@frozen(kw_only=True)
class SandboxStatistics:
    """Counts since the sandbox was made; `keep` does not limit them.

    Attributes:
        requests: Requests that arrived.
        counted: Those that a rate window counted.
        refused: Those answered 429.
        messages: Messages accepted.
        segments: Their segments.
        codes: One-time codes sent.
        charged: The cost of all messages and codes.
    """

    requests: int
    counted: int
    refused: int
    messages: int
    segments: int
    codes: int
    charged: Decimal
