"""Every error the package raises.

One question matters most after a failed send: may the message have left? Every
error answers it with `maybe_sent`. False is a promise that nothing took effect.

    SMSIDError
    ├── ConfigurationError      (also ValueError)
    ├── ValidationError         (also ValueError)
    ├── BudgetTimeoutError      (also TimeoutError)
    ├── BudgetUnavailableError
    ├── DuplicateReferenceError
    ├── APIError
    │   ├── BadRequestError
    │   │   ├── InsufficientBalanceError
    │   │   └── SenderNotApprovedError
    │   ├── AuthenticationError
    │   ├── OTPVerificationError
    │   ├── RateLimitError
    │   └── ServerError
    ├── TransportError
    │   ├── NotSentError
    │   │   └── JournalUnavailableError
    │   └── OutcomeUnknownError
    ├── InvalidResponseError
    └── DeliveryTimeoutError    (also TimeoutError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from smsid_async.models import JSONObject, MessageStatus

__all__ = [
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "BudgetTimeoutError",
    "BudgetUnavailableError",
    "ConfigurationError",
    "DeliveryTimeoutError",
    "DuplicateReferenceError",
    "InsufficientBalanceError",
    "InvalidResponseError",
    "JournalUnavailableError",
    "NotSentError",
    "OTPVerificationError",
    "OutcomeUnknownError",
    "RateLimitError",
    "SMSIDError",
    "SenderNotApprovedError",
    "ServerError",
    "TransportError",
    "ValidationError",
]


class SMSIDError(Exception):
    """The base of every error of this package.

    Attributes:
        maybe_sent: May the write have taken effect? False is a promise. For reads
            it is always False.
    """

    maybe_sent: bool = False

    def __init__(self, message: str = "", *, maybe_sent: bool | None = None) -> None:
        super().__init__(message)
        if maybe_sent is not None:
            self.maybe_sent = maybe_sent

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without `raw`: an answer may hold a phone number."""
        state = {name: value for name, value in self.__dict__.items() if name != "raw"}
        return type(self), self.args, state


class ConfigurationError(SMSIDError, ValueError):
    """The client was given settings that it cannot work with; nothing was sent."""


class ValidationError(SMSIDError, ValueError):
    """An argument cannot be right, as seen before anything was sent."""


class BudgetTimeoutError(SMSIDError, TimeoutError):
    """No slot in the rate budget came, or could come, in the time allowed.

    Attributes:
        retry_after: Seconds after which a slot is expected, None where nobody knows.
    """

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float | None = None,
        maybe_sent: bool | None = None,
    ) -> None:
        super().__init__(message, maybe_sent=maybe_sent)
        self.retry_after = retry_after


class BudgetUnavailableError(SMSIDError):
    """The store of a shared budget cannot be reached; nothing was sent."""


class DuplicateReferenceError(SMSIDError):
    """This reference already belongs to another message; nothing was sent."""


class APIError(SMSIDError):
    """The API answered, and the answer was no.

    Attributes:
        status_code: The HTTP status.
        code: The `code` of the answer's `meta`, None where there was no envelope.
        text: The `text` of the answer's `meta`, with what the call sent masked.
        retry_after: Seconds, as the server asked, None where it did not.
        raw: The answer's body as received, None where it was not a JSON object.
    """

    raw: JSONObject | None = None

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        code: int | None = None,
        text: str = "",
        retry_after: float | None = None,
        raw: JSONObject | None = None,
        maybe_sent: bool | None = None,
    ) -> None:
        super().__init__(message, maybe_sent=maybe_sent)
        self.status_code = status_code
        self.code = code
        self.text = text
        self.retry_after = retry_after
        self.raw = raw


class BadRequestError(APIError):
    """HTTP 400: the API found the request invalid; nothing was charged."""


class InsufficientBalanceError(BadRequestError):
    """HTTP 400: the prepaid balance does not cover the message."""


class SenderNotApprovedError(BadRequestError):
    """HTTP 400: the sender ID is not approved for this account."""


class AuthenticationError(APIError):
    """HTTP 401: the key or the signature is missing or wrong."""


class OTPVerificationError(APIError):
    """The one-time code is wrong, expired or used."""


class RateLimitError(APIError):
    """HTTP 429: the API refused the request, and waiting did not help."""


class ServerError(APIError):
    """HTTP 5xx: raised for reads; for writes the cause of `OutcomeUnknownError`."""


class TransportError(SMSIDError):
    """The exchange broke: connection, TLS, protocol or time."""


class NotSentError(TransportError):
    """The request never left this machine."""


class JournalUnavailableError(NotSentError):
    """The journal cannot be written, so the request was not let go."""


class OutcomeUnknownError(TransportError):
    """A write left and no trustworthy answer came; `__cause__` tells what happened."""

    maybe_sent = True


class InvalidResponseError(SMSIDError):
    """The answer is not what the API documents, so it cannot be trusted."""


class DeliveryTimeoutError(SMSIDError, TimeoutError):
    """The message reached no final status in time; it was accepted all the same.

    Attributes:
        last: The last status seen, None where none was.
    """

    def __init__(self, message: str = "", *, last: MessageStatus | None = None) -> None:
        super().__init__(message)
        self.last = last

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the status's `raw`, which is an answer too."""
        kind, args, state = super().__reduce__()
        last = self.last and attrs.evolve(self.last, raw={})
        return kind, args, {**state, "last": last}
