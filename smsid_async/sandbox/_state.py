"""The account's side of the API: keys, balances, messages and one-time codes.

No I/O and no clock: every method that depends on time takes `now`, in seconds.
"""

import hashlib
import hmac
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable
from decimal import Decimal

from attrs import define, field, frozen

from smsid_async.sandbox import windows
from smsid_async.sandbox._records import (
    RefusedError,
    SandboxMessage,
    SandboxRequest,
    SandboxStatistics,
)
from smsid_async.sandbox._segments import count_segments

__all__ = ["Account", "Settings", "State"]

_UNIT = Decimal("0.0001")


def _money(amount: Decimal | int | str) -> Decimal:
    return Decimal(amount).quantize(_UNIT)


def _senders(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


@frozen(kw_only=True)
class Settings:
    """How the account behaves; the fields are described at `Sandbox`."""

    api_key: str | None = field(repr=False)
    api_secret: str | None = field(repr=False)
    limit: int | None
    period: float
    window: windows.WindowKind
    balance: Decimal = field(converter=_money)
    price: Decimal = field(converter=_money)
    otp_price: Decimal = field(converter=_money)
    senders: tuple[str, ...] | None = field(converter=_senders)
    delivery: tuple[float, float]
    failing: str
    otp_ttl: float
    keep: int | None

    def __attrs_post_init__(self) -> None:
        windows.make_window(self.window, self.limit, self.period)  # says what is wrong with them
        if self.api_key == "" or self.api_secret == "":
            raise ValueError("api_key and api_secret must not be empty; None asks for none")
        if self.senders == ():
            raise ValueError("senders must name at least one sender id; None allows any")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep!r}")


@define(eq=False)
class Account:
    """What belongs to one API key."""

    key: str = field(repr=False)
    balance: Decimal
    window: windows.Window


@define
class _Code:
    code: str = field(repr=False)
    expires: float
    used: bool = False


class State:
    """Everything that the API remembers, and the rules of its five methods."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._accounts: dict[str, Account] = {}
        self._messages: OrderedDict[str, SandboxMessage] = OrderedDict()
        self._codes: OrderedDict[tuple[str, str], _Code] = OrderedDict()
        self._requests: deque[SandboxRequest] = deque(maxlen=settings.keep)
        self._seen = self._counted = self._refused = 0
        self._sent = self._segments = self._codes_sent = 0
        self._charged = Decimal(0)

    # The checks, in the order in which the API makes them.

    def authenticate(self, key: str) -> Account:
        """Return the key's account.

        Raises:
            RefusedError: 401, the key is missing or wrong.
        """
        expected = self._settings.api_key
        if not key or (expected is not None and not _equal(key, expected)):
            raise RefusedError(401, "Missing or invalid API key")
        account = self._accounts.get(key)
        if account is None:
            settings = self._settings
            window = windows.make_window(settings.window, settings.limit, settings.period)
            account = self._accounts[key] = Account(key, settings.balance, window)
        return account

    def count(self, account: Account, now: float) -> None:
        """Count one request in the key's rate window.

        Raises:
            RefusedError: 429, with the seconds to wait as `Retry-After`.
        """
        wait = account.window.hit(now)
        if wait > 0:
            raise RefusedError(429, "Rate limit exceeded", {"Retry-After": str(math.ceil(wait))})

    def check_signature(self, body: bytes, signature: str) -> None:
        """Compare a signature with that of the exact raw body.

        Raises:
            RefusedError: 401, it is missing or wrong.
        """
        secret = self._settings.api_secret
        if secret is None:
            return
        expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        if not _equal(signature, expected):
            raise RefusedError(401, "Missing or invalid signature")

    # The methods.

    def send(
        self, account: Account, to: str, text: str, sender_id: str | None, now: float
    ) -> SandboxMessage:
        """Accept a message and charge its segments.

        Raises:
            RefusedError: 400, the sender is not approved or the balance too low; then nothing
                is charged and nothing stored.
        """
        sender = self._approved(sender_id)
        segments = count_segments(text)
        cost = segments * self._settings.price
        self._charge(account, cost)
        message = SandboxMessage(
            message_id=secrets.token_urlsafe(24),
            to=to,
            text=text,
            sender_id=sender,
            segments=segments,
            cost=cost,
            at=now,
            key=account.key,
        )
        self._messages[message.message_id] = message
        self._bound(self._messages)
        self._sent += 1
        self._segments += segments
        return message

    def status(self, account: Account, message_id: str, now: float) -> str:
        """Return the delivery status of a message of this account.

        Raises:
            RefusedError: 400, there is no such message.
        """
        message = self._messages.get(message_id)
        if message is None or message.key != account.key:
            raise RefusedError(400, "Unknown message_id")
        sent, delivered = self._settings.delivery
        age = now - message.at
        if age < sent:
            return "queued"
        if age < delivered:
            return "sent"
        return "failed" if message.to.endswith(self._settings.failing) else "delivered"

    def send_code(self, account: Account, to: str, now: float) -> None:
        """Make a new one-time code for a number; an earlier one is void.

        Raises:
            RefusedError: 400, the balance is too low.
        """
        self._charge(account, self._settings.otp_price)
        code = f"{secrets.randbelow(10**6):06d}"
        self._codes[account.key, to] = _Code(code, now + self._settings.otp_ttl)
        self._codes.move_to_end((account.key, to))
        self._bound(self._codes)
        self._codes_sent += 1

    def verify(self, account: Account, to: str, code: str, now: float) -> None:
        """Use a one-time code up.

        Raises:
            RefusedError: 422, the code is wrong, expired or used.
        """
        issued = self._codes.get((account.key, to))
        if issued is None or issued.used or now >= issued.expires or code != issued.code:
            raise RefusedError(422, "Invalid or expired code")
        issued.used = True

    # The log.

    def record(self, request: SandboxRequest) -> None:
        """Add an answered request to the log."""
        self._requests.append(request)
        self._seen += 1
        self._counted += request.counted
        self._refused += request.status == 429

    def messages(self) -> list[SandboxMessage]:
        """Return the accepted messages, oldest first."""
        return list(self._messages.values())

    def requests(self) -> list[SandboxRequest]:
        """Return the requests, oldest first."""
        return list(self._requests)

    def code(self, to: str) -> str:
        """Return the code last sent to a number, by any key.

        Raises:
            LookupError: None was sent.
        """
        for (_, number), issued in reversed(self._codes.items()):
            if number == to:
                return issued.code
        raise LookupError("no one-time code was sent to this number")

    def largest_count(self, span: float) -> int:
        """Return the most requests that any one key had counted in any `span` seconds."""
        moments: dict[str, list[float]] = {}
        for request in self._requests:
            if request.counted:
                moments.setdefault(request.key, []).append(request.at)
        return max((windows.largest_count(each, span) for each in moments.values()), default=0)

    def statistics(self) -> SandboxStatistics:
        """Return the counts."""
        return SandboxStatistics(
            requests=self._seen,
            counted=self._counted,
            refused=self._refused,
            messages=self._sent,
            segments=self._segments,
            codes=self._codes_sent,
            charged=self._charged,
        )

    def _approved(self, sender_id: str | None) -> str:
        senders = self._settings.senders
        if sender_id is None:
            return senders[0] if senders else "SMSID"
        if senders is not None and sender_id not in senders:
            raise RefusedError(400, "Sender ID not approved")
        return sender_id

    def _charge(self, account: Account, cost: Decimal) -> None:
        if cost > account.balance:
            raise RefusedError(400, "Insufficient balance")
        account.balance -= cost
        self._charged += cost

    def _bound(
        self, entries: OrderedDict[str, SandboxMessage] | OrderedDict[tuple[str, str], _Code]
    ) -> None:
        keep = self._settings.keep
        if keep is not None and len(entries) > keep:
            entries.popitem(last=False)


def _equal(given: str, expected: str) -> bool:
    """Compare secrets in a time that tells nothing about them."""
    return hmac.compare_digest(given.encode(), expected.encode())
