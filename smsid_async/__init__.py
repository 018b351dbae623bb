"""The asyncio SDK for the SMSID SMS and one-time-password API.

async with SMSIDClient() as client:
    receipt = await client.sms.send("+447700900123", "Hello")
"""

from smsid_async._client import OptionOverrides, SMSIDClient
from smsid_async._fanout import SendMany
from smsid_async._options import CallOptions, PollOptions
from smsid_async._retry import RetryPolicy
from smsid_async._version import __version__
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
