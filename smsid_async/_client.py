"""`SMSIDClient`: composition and lifecycle."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

import attrs
import httpx

from smsid_async._config import load_settings
from smsid_async._http import Pipeline
from smsid_async._options import CallOptions, Options, new_call
from smsid_async._resources import OTP, SMS
from smsid_async._retry import RetryPolicy
from smsid_async.budget import Budget, Priority, shared_budget
from smsid_async.errors import ConfigurationError
from smsid_async.journal import Journal
from smsid_async.models import Balance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from smsid_async._config import Settings
    from smsid_async.hooks import Hook

__all__ = ["OptionOverrides", "SMSIDClient"]


class OptionOverrides(TypedDict, total=False):
    """What `with_options` can change; see `SMSIDClient` and `Options`."""

    timeout: float | None
    attempt_timeout: float
    max_wait: float | None
    retry: RetryPolicy
    priority: Priority | None
    sender_id: str | None


class SMSIDClient:
    """The asyncio client of the SMSID API.

    Use it in `async with`, or call `aclose()`. It may be made anywhere, before any
    event loop runs, and used from one loop after another. All clients of one key in
    a process share one rate budget unless you give them others.

    Args:
        api_key: Falls back to `SMSID_API_KEY`.
        api_secret: Signs every request. Falls back to `SMSID_API_SECRET`, then to none.
        base_url: Falls back to `SMSID_BASE_URL`, then to the API's own.
        sender_id: For messages that name none. Falls back to `SMSID_SENDER_ID`, then
            to the account's own.
        budget: A `RateBudget` or your own `Budget`; None shares the key's.
        retry: What is tried again; None is `RetryPolicy()`.
        journal: Makes sends with a `reference` happen at most once; see
            `smsid_async.journal`. It is closed with the client.
        timeout: Seconds for each whole call, waiting for the budget and retries
            included. None, the default, waits as long as the budget takes. A write
            is not started with less than a second of it left.
        attempt_timeout: Seconds for one attempt, a hard total.
        max_wait: Seconds that a call may wait for each slot. A longer projected wait
            raises `BudgetTimeoutError` at once.
        http_client: Your own `httpx.AsyncClient`; never closed by us.
        transport: The engine that carries the client that we own; only `"httpx"` in
            this version.
        hooks: Called with the events of `smsid_async.hooks`.

    Raises:
        ConfigurationError: A setting is missing or cannot work.
    """

    sms: SMS
    otp: OTP

    def __init__(
        self,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        base_url: str | None = None,
        sender_id: str | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
        journal: Journal | None = None,
        timeout: float | None = None,
        attempt_timeout: float = 30.0,
        max_wait: float | None = None,
        http_client: httpx.AsyncClient | None = None,
        transport: str = "httpx",
        hooks: Sequence[Hook] = (),
    ) -> None:
        if journal is not None and not isinstance(journal, Journal):
            raise ConfigurationError(
                f"journal is {type(journal).__name__}; give a SQLiteJournal, or an object with "
                "the methods of smsid_async.journal.Journal"
            )
        if transport != "httpx":
            raise ConfigurationError(f"transport is {transport!r}; this version has only 'httpx'")
        if http_client is not None and not isinstance(http_client, httpx.AsyncClient):
            raise ConfigurationError(
                f"http_client is {type(http_client).__name__}, not an httpx.AsyncClient"
            )
        if budget is not None and not isinstance(budget, Budget):
            raise ConfigurationError(
                f"budget is {type(budget).__name__}; give a RateBudget, or an object with "
                "the methods of smsid_async.Budget"
            )
        if not isinstance(hooks, Iterable) or not all(map(callable, hooks)):
            raise ConfigurationError("hooks is a list of callables that take one event")
        settings = load_settings(
            api_key=api_key, api_secret=api_secret, base_url=base_url, sender_id=sender_id
        )
        options = Options(
            retry=retry or RetryPolicy(),
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            max_wait=max_wait,
            sender_id=settings.sender_id,
        )
        pipeline = Pipeline(
            settings,
            budget or _budget_of(settings),
            http_client=http_client,
            journal=journal,
            hooks=tuple(hooks),
        )
        self._base_url = settings.base_url
        self._owner: SMSIDClient | None = None
        self._assemble(pipeline, options)

    def _assemble(self, pipeline: Pipeline, options: Options) -> None:
        self._pipeline = pipeline
        self._options = options
        self.sms = SMS(pipeline, options)
        self.otp = OTP(pipeline, options)

    @property
    def budget(self) -> Budget:
        """The budget that every request is taken from."""
        return self._pipeline.budget

    async def balance(self, **options: Unpack[CallOptions]) -> Balance:
        """Ask for the prepaid balance.

        Args:
            **options: See `CallOptions`; the lane is `NORMAL` if nothing says otherwise.

        Returns:
            The balance, as a `Decimal` in the account's currency.

        Raises:
            SMSIDError: As every call; nothing is sent by a read.
        """
        call = new_call(
            self._options, "/balance", None, Balance.from_wire, lane=Priority.NORMAL, **options
        )
        return await self._pipeline.request(call)

    def with_options(self, **overrides: Unpack[OptionOverrides]) -> SMSIDClient:
        """Return a view on the same connections, budget and journal with other options.

        A view ends with the client that it came from; closing a view does nothing.

        Args:
            **overrides: `timeout`, `attempt_timeout`, `max_wait`, `retry`, `priority`,
                `sender_id`, as for `SMSIDClient`; `priority` replaces every method's lane.

        Raises:
            ConfigurationError: An option is unknown or cannot work.
        """
        try:
            options = attrs.evolve(self._options, **overrides)
        except TypeError as exc:
            raise ConfigurationError(
                f"with_options takes {', '.join(OptionOverrides.__annotations__)} only"
            ) from exc
        view = object.__new__(type(self))
        view._base_url = self._base_url
        view._owner = self
        view._assemble(self._pipeline, options)
        return view

    async def aclose(self) -> None:
        """Wait for what has left, then close the connections. The client is done."""
        if self._owner is None:
            await self._pipeline.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<SMSIDClient {self._base_url}{' closed' if self._pipeline.closed else ''}>"

    def __del__(self) -> None:
        pipeline: Pipeline | None = self.__dict__.get("_pipeline")
        if pipeline is not None and self._owner is None and pipeline.open_connections:
            warnings.warn(
                f"{self!r} was not closed; use `async with`, or call aclose()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def _budget_of(settings: Settings) -> Budget:
    digest = hashlib.sha256(settings.api_key.encode()).hexdigest()
    return shared_budget(settings.origin, digest)
