"""The values that go in and come out: checked, frozen, without any I/O.

`from_wire` reads the `data` object of an answer: unknown fields pass, missing or
wrongly typed ones raise `InvalidResponseError`. Nothing shows a phone number or a
message text in its repr.
"""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import attrs

from smsid_async.errors import (
    InvalidResponseError,
    OTPVerificationError,
    SMSIDError,
    ValidationError,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "Balance",
    "DeliveryStatus",
    "JSONObject",
    "JSONValue",
    "Message",
    "MessageStatus",
    "OTPReceipt",
    "OTPVerification",
    "Outcome",
    "SendReceipt",
    "SendResult",
]

JSONValue: TypeAlias = "dict[str, JSONValue] | list[JSONValue] | str | int | Decimal | bool | None"
JSONObject: TypeAlias = "dict[str, JSONValue]"

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_AMOUNT = re.compile(r"[+-]?([0-9]{1,18}|[0-9]{1,3}(,[0-9]{3}){1,5})(\.[0-9]{1,18})?")
_TOO_MUCH = 10**18
_MAX_TEXT = 1600
_MAX_REFERENCE = 200
_SENDER_LENGTH = range(2, 12)
_STATUS_FIELDS = ("status", "delivery_status", "message_status", "state")


class DeliveryStatus(StrEnum):
    """Where a message is; `unrecognised` stands for any word not documented."""

    QUEUED = "queued"
    SENT = "sent"
    DELIVERED = "delivered"
    FAILED = "failed"
    UNRECOGNISED = "unrecognised"

    @property
    def is_final(self) -> bool:
        """Whether the status can no longer change."""
        return self in (DeliveryStatus.DELIVERED, DeliveryStatus.FAILED)


_DOCUMENTED = frozenset({"queued", "sent", "delivered", "failed"})


class Outcome(StrEnum):
    """What became of one send.

    `sent`: accepted by the API. `rejected`: refused by it, nothing charged.
    `not_sent`: never left. `unknown`: it left, and no trustworthy answer came.
    """

    SENT = "sent"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


def mask_number(number: object) -> str:
    """Show a phone number's last three digits and nothing else."""
    return f"***{number[-3:]}" if isinstance(number, str) and len(number) > 6 else "***"


def _text_length(text: object) -> str:
    return f"<{len(text)} characters>" if isinstance(text, str) else "<not a text>"


@attrs.frozen
class Message:
    """One message to send.

    Args:
        to: The recipient in E.164, such as `+447700900123`.
        text: 1 to 1600 characters.
        sender_id: An approved sender ID of 2 to 11 characters; None for the default.
        reference: Your own unique name for this send. With a journal it is sent at most
            once under it; without one it is only carried to the result.
    """

    to: str = attrs.field(repr=mask_number)
    text: str = attrs.field(repr=_text_length)
    sender_id: str | None = None
    reference: str | None = None


@attrs.frozen
class SendReceipt:
    """The API accepted a message.

    Attributes:
        message_id: Its name for `sms.status` and `sms.wait`.
        status: The API's word, normally `success`.
        cost: What the message cost, in the account's currency; None if not told.
        remaining_balance: What is left, likewise.
        raw: The answer's `data` as received.
    """

    message_id: str
    status: str
    cost: Decimal | None
    remaining_balance: Decimal | None
    raw: JSONObject = attrs.field(repr=False, eq=False, factory=dict)

    @classmethod
    def from_wire(cls, data: JSONObject) -> Self:
        """Read the `data` of an answer to `/sms/send`."""
        return cls(
            message_id=_required_text(data, "message_id"),
            status=_optional_text(data, "status"),
            cost=_optional_money(data, "cost"),
            remaining_balance=_optional_money(data, "remaining_balance"),
            raw=data,
        )


@attrs.frozen
class MessageStatus:
    """Where a message is.

    Attributes:
        message_id: The message's name, as the receipt told it.
        status: Its delivery status.
        raw: The answer's `data` as received.
    """

    message_id: str
    status: DeliveryStatus
    raw: JSONObject = attrs.field(repr=False, eq=False, factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the status can no longer change."""
        return self.status.is_final

    @classmethod
    def from_wire(cls, data: JSONObject, *, message_id: str) -> Self:
        """Read the `data` of an answer to `/sms/status` about `message_id`."""
        if data.get("message_id", message_id) != message_id:
            raise InvalidResponseError("the answer is about another message")
        words = [
            str(data[name]).strip().lower() for name in _STATUS_FIELDS if _is_word(data.get(name))
        ]
        if not words:
            raise InvalidResponseError("the answer has no text in `status`")
        known = [DeliveryStatus(word) for word in words if word in _DOCUMENTED]
        status = known[0] if known else DeliveryStatus.UNRECOGNISED
        return cls(message_id=message_id, status=status, raw=data)


@attrs.frozen
class OTPReceipt:
    """The API sent a one-time code.

    Attributes:
        status: The API's word, normally `sent`.
        to: The recipient in E.164.
        raw: The answer's `data` as received.
    """

    status: str
    to: str = attrs.field(repr=mask_number)
    raw: JSONObject = attrs.field(repr=False, eq=False, factory=dict)

    @classmethod
    def from_wire(cls, data: JSONObject, *, to: str) -> Self:
        """Read the `data` of an answer to `/otp/send` for the number `to`."""
        return cls(status=_optional_text(data, "status"), to=to, raw=data)


@attrs.frozen
class OTPVerification:
    """A one-time code was right.

    Attributes:
        status: The API's word, normally `verified`.
        verified: Always True: anything else raises.
        raw: The answer's `data` as received.
    """

    status: str
    verified: bool
    raw: JSONObject = attrs.field(repr=False, eq=False, factory=dict)

    @classmethod
    def from_wire(cls, data: JSONObject) -> Self:
        """Read the `data` of an answer to `/otp/verify`; only a plain true passes."""
        verified = data.get("verified")
        if verified is False:
            raise OTPVerificationError("the code was not verified", status_code=200, code=200)
        if verified is not True:
            raise InvalidResponseError("the answer does not say `verified: true`")
        return cls(status=_optional_text(data, "status"), verified=True, raw=data)


@attrs.frozen
class Balance:
    """The prepaid balance.

    Attributes:
        amount: In the account's currency.
        raw: The answer's `data` as received.
    """

    amount: Decimal
    raw: JSONObject = attrs.field(repr=False, eq=False, factory=dict)

    @classmethod
    def from_wire(cls, data: JSONObject) -> Self:
        """Read the `data` of an answer to `/balance`."""
        amount = _optional_money(data, "balance")
        if amount is None:
            raise InvalidResponseError("the answer has no `balance`")
        return cls(amount=amount, raw=data)


@attrs.frozen
class SendResult:
    """What became of one message of `sms.send_many`.

    Attributes:
        index: Its place in the source, from 0.
        message: The message itself.
        outcome: `sent`, `rejected`, `not_sent` or `unknown`.
        receipt: The API's receipt when it was sent, else None.
        error: What went wrong when it was not, else None.
    """

    index: int
    message: Message
    outcome: Outcome
    receipt: SendReceipt | None = None
    error: SMSIDError | None = None


def check_number(to: object) -> str:
    """Return an E.164 number, or raise `ValidationError` with what to do."""
    if isinstance(to, str) and _E164.fullmatch(to):
        return to
    raise ValidationError(
        f"the number {mask_number(to)} is not in E.164 form: "
        "write + and the country code, then digits only, such as +447700900123"
    )


def check_text(text: object) -> str:
    """Return a text of 1 to 1600 encodable characters, or raise `ValidationError`."""
    if not isinstance(text, str):
        raise ValidationError(f"the message text is {type(text).__name__}, not a str")
    if not 1 <= len(text) <= _MAX_TEXT:
        raise ValidationError(
            f"the message text has {len(text)} characters; the API takes 1 to {_MAX_TEXT}"
        )
    if not _is_encodable(text):
        raise ValidationError("the message text has half a surrogate pair; repair its encoding")
    return text


def check_sender(sender_id: object) -> str:
    """Return a printable sender ID of 2 to 11 characters, or raise `ValidationError`."""
    if not isinstance(sender_id, str):
        raise ValidationError(f"the sender ID is {type(sender_id).__name__}, not a str")
    if len(sender_id) not in _SENDER_LENGTH:
        raise ValidationError(
            f"the sender ID has {len(sender_id)} characters; the API takes 2 to 11"
        )
    if not sender_id.isprintable():
        raise ValidationError("the sender ID has control characters; remove them")
    return sender_id


def check_code(code: object) -> str:
    """Return a one-time code that is not empty, or raise `ValidationError`."""
    if not isinstance(code, str):
        raise ValidationError(
            f"the code is {type(code).__name__}, not a str; leading zeros count, so keep it text"
        )
    if not code.strip() or not code.isprintable():
        raise ValidationError("the code is empty or has control characters")
    return code


def check_message_id(message_id: object) -> str:
    """Return an encodable message ID that is not empty, or raise `ValidationError`."""
    if not isinstance(message_id, str) or not message_id.strip():
        raise ValidationError("the message ID is empty; use the receipt's `message_id`")
    if not _is_encodable(message_id):
        raise ValidationError("the message ID has half a surrogate pair; repair its encoding")
    return message_id


def check_reference(reference: object) -> str:
    """Return a printable reference of 1 to 200 characters, or raise `ValidationError`."""
    if not isinstance(reference, str):
        raise ValidationError(f"the reference is {type(reference).__name__}, not a str")
    if not 1 <= len(reference) <= _MAX_REFERENCE:
        raise ValidationError(
            f"the reference has {len(reference)} characters; give 1 to {_MAX_REFERENCE}"
        )
    if not reference.isprintable():
        raise ValidationError("the reference has control characters; remove them")
    return reference


def _is_encodable(text: str) -> bool:
    """Whether it can be sent. Python's own error holds the text, so it must not get out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _required_text(data: JSONObject, field: str) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not value.strip() or not _is_encodable(value):
        raise InvalidResponseError(f"the answer has no text in `{field}`")
    return value


def _optional_text(data: JSONObject, field: str) -> str:
    value = data.get(field)
    if value is None:
        return ""
    if not isinstance(value, str) or not _is_encodable(value):
        raise InvalidResponseError(f"the answer's `{field}` is not a text")
    return value


def _optional_money(data: JSONObject, field: str) -> Decimal | None:
    value = data.get(field)
    if value is None:
        return None
    if isinstance(value, str) and _AMOUNT.fullmatch(value):
        return Decimal(value.replace(",", ""))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_MUCH:
        return Decimal(value)
    if isinstance(value, Decimal) and value.is_finite() and -30 < value.adjusted() < 18:
        return value
    raise InvalidResponseError(f"the answer's `{field}` is not an amount")
