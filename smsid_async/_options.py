"""What may be set for a client, for a view on it, and for one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, TypeVar

import attrs

from smsid_async._config import check_seconds
from smsid_async._exchange import Call
from smsid_async._request import encode
from smsid_async._retry import RetryPolicy
from smsid_async.budget import Priority
from smsid_async.errors import ConfigurationError, ValidationError
from smsid_async.models import check_sender

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from smsid_async.models import JSONObject

__all__ = ["CallOptions", "Options", "PollOptions", "check_names", "new_call"]

_T = TypeVar("_T")


class PollOptions(TypedDict, total=False):
    """What every call takes; None means: as the client or the view says.

    Attributes:
        priority: The lane in which it waits for its slot.
        attempt_timeout: Seconds for one attempt, a hard total.
        max_wait: Seconds to wait for each slot in the budget.
    """

    priority: Priority | None
    attempt_timeout: float | None
    max_wait: float | None


class CallOptions(PollOptions, total=False):
    """What every call takes; None means: as the client or the view says.

    Attributes:
        timeout: Seconds for the whole call, waiting and retries included.
    """

    timeout: float | None


def _check_priority(value: Priority | None) -> None:
    if value is not None and not isinstance(value, Priority):
        raise ConfigurationError(f"priority is {value!r}; use Priority.HIGH, NORMAL, BULK ...")


@attrs.frozen(kw_only=True)
class Options:
    """What a client or a view on it sets for its calls; see `SMSIDClient`."""

    retry: RetryPolicy
    attempt_timeout: float
    timeout: float | None = None
    max_wait: float | None = None
    priority: Priority | None = None
    sender_id: str | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("timeout", "attempt_timeout", "max_wait"):
            check_seconds(name, getattr(self, name))
        _check_priority(self.priority)
        if self.attempt_timeout is None:
            raise ConfigurationError("attempt_timeout is None; every attempt needs an end")
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(f"retry is {type(self.retry).__name__}, not a RetryPolicy")
        try:
            _ = self.sender_id is None or check_sender(self.sender_id)
        except ValidationError as exc:
            raise ConfigurationError(f"sender_id: {exc}") from exc


def check_names(given: CallOptions) -> None:
    """Refuse a misspelt option, which would otherwise be ignored."""
    if unknown := given.keys() - CallOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")


def new_call(
    options: Options,
    path: str,
    payload: dict[str, str] | None,
    decode: Callable[[JSONObject], _T],
    *,
    lane: Priority,
    private: tuple[str, ...] = (),
    write: bool = False,
    verifying: bool = False,
    **given: Unpack[CallOptions],
) -> Call[_T]:
    """Make a call: what it is given wins, then the view's options, then the method's lane.

    Args:
        options: The client's or the view's.
        path: Below the base URL.
        payload: The body's fields; None makes it a GET.
        decode: Turns an answer's `data` into the result.
        lane: The method's own.
        private: What must appear in no error's text.
        write: Whether it costs money or changes something.
        verifying: Whether a 422 means a wrong code.
        **given: What the caller said.

    Raises:
        ConfigurationError: A given option cannot work.
    """
    check_names(given)
    timeout = check_seconds("timeout", given.get("timeout"))
    attempt_timeout = check_seconds("attempt_timeout", given.get("attempt_timeout"))
    max_wait = check_seconds("max_wait", given.get("max_wait"))
    priority = given.get("priority")
    _check_priority(priority)
    if priority is None:
        priority = lane if options.priority is None else options.priority
    return Call(
        method="GET" if payload is None else "POST",
        path=path,
        body=b"" if payload is None else encode(payload),
        decode=decode,
        private=private,
        write=write,
        verifying=verifying,
        policy=options.retry,
        priority=priority,
        timeout=options.timeout if timeout is None else timeout,
        attempt_timeout=options.attempt_timeout if attempt_timeout is None else attempt_timeout,
        max_wait=options.max_wait if max_wait is None else max_wait,
    )
