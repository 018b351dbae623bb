"""The asyncio SDK for the SMSID SMS and one-time-password API.

    async with SMSIDClient() as client:
        receipt = await client.sms.send("+447700900123", "Hello")

Names are loaded from their modules when they are first asked for, so that importing
the package costs next to nothing until something of it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from smsid_async._version import __version__

if TYPE_CHECKING:
    from smsid_async._client import OptionOverrides, SMSIDClient
    from smsid_async._fanout import SendMany
    from smsid_async._options import CallOptions, PollOptions
    from smsid_async._retry import RetryPolicy
    from smsid_async.budget import Budget, BudgetStatistics, Priority, RateBudget, Slot
    from smsid_async.errors import (
        APIError,
        AuthenticationError,
        BadRequestError,
        BudgetTimeoutError,
        BudgetUnavailableError,
        ConfigurationError,
        DeliveryTimeoutError,
        DuplicateReferenceError,
        InsufficientBalanceError,
        InvalidResponseError,
        JournalUnavailableError,
        NotSentError,
        OTPVerificationError,
        OutcomeUnknownError,
        RateLimitError,
        SenderNotApprovedError,
        ServerError,
        SMSIDError,
        TransportError,
        ValidationError,
    )
    from smsid_async.journal import Journal, SQLiteJournal
    from smsid_async.models import (
        Balance,
        DeliveryStatus,
        JSONObject,
        JSONValue,
        Message,
        MessageStatus,
        OTPReceipt,
        OTPVerification,
        Outcome,
        SendReceipt,
        SendResult,
    )
    from smsid_async.segments import Segments, count_segments

__all__ = [
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "Balance",
    "Budget",
    "BudgetStatistics",
    "BudgetTimeoutError",
    "BudgetUnavailableError",
    "CallOptions",
    "ConfigurationError",
    "DeliveryStatus",
    "DeliveryTimeoutError",
    "DuplicateReferenceError",
    "InsufficientBalanceError",
    "InvalidResponseError",
    "JSONObject",
    "JSONValue",
    "Journal",
    "JournalUnavailableError",
    "Message",
    "MessageStatus",
    "NotSentError",
    "OTPReceipt",
    "OTPVerification",
    "OTPVerificationError",
    "OptionOverrides",
    "Outcome",
    "OutcomeUnknownError",
    "PollOptions",
    "Priority",
    "RateBudget",
    "RateLimitError",
    "RetryPolicy",
    "SMSIDClient",
    "SMSIDError",
    "SQLiteJournal",
    "Segments",
    "SendMany",
    "SendReceipt",
    "SendResult",
    "SenderNotApprovedError",
    "ServerError",
    "Slot",
    "TransportError",
    "ValidationError",
    "__version__",
    "count_segments",
]

_HOMES = {
    name: module
    for module, names in {
        "_client": (
            "OptionOverrides",
            "SMSIDClient",
        ),
        "_fanout": ("SendMany",),
        "_options": (
            "CallOptions",
            "PollOptions",
        ),
        "_retry": ("RetryPolicy",),
        "budget": (
            "Budget",
            "BudgetStatistics",
            "Priority",
            "RateBudget",
            "Slot",
        ),
        "errors": (
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
            "SenderNotApprovedError",
            "ServerError",
            "SMSIDError",
            "TransportError",
            "ValidationError",
        ),
        "journal": (
            "Journal",
            "SQLiteJournal",
        ),
        "models": (
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
        ),
        "segments": (
            "Segments",
            "count_segments",
        ),
    }.items()
    for name in names
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
