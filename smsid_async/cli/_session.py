"""One run of the command: its client, its output, and the exit code that errors become."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from smsid_async import RateBudget
from smsid_async.cli._output import Output
from smsid_async.errors import ConfigurationError, SMSIDError, ValidationError

if TYPE_CHECKING:
    from smsid_async import SMSIDClient

__all__ = ["Code", "Session", "Work", "new_budget"]

Work: TypeAlias = "Callable[[Session], Coroutine[Any, Any, int]]"

_BUDGET = re.compile(r"([0-9]{1,9})/([0-9]{1,9}(?:\.[0-9]{1,9})?)", re.ASCII)


class Code(IntEnum):
    """What the command's exit code tells."""

    WELL = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    INTERRUPTED = 130


@attrs.frozen
class Session:
    """What the global options say.

    Attributes:
        out: Where to write.
        base_url: The API's URL; None for the environment's, else the real one.
        budget: The rate budget; None for the key's own.
    """

    out: Output
    base_url: str | None = None
    budget: RateBudget | None = None

    def client(self) -> "SMSIDClient":
        """Make a client; key and secret come from the environment."""
        from smsid_async import SMSIDClient  # noqa: PLC0415 - it takes longer than `--help` may

        return SMSIDClient(base_url=self.base_url, budget=self.budget)

    def run(self, work: Callable[[], int]) -> int:
        """Do some work, and turn an error into one sentence and an exit code."""
        try:
            return work()
        except SMSIDError as error:
            return self.tell(error)
        except KeyboardInterrupt:
            return Code.INTERRUPTED

    def run_async(self, work: Work) -> int:
        """Do some work in an event loop of its own, likewise."""
        return self.run(lambda: asyncio.run(work(self)))

    def tell(self, error: SMSIDError, more: str = "") -> int:
        """Write an error as one sentence, and return its exit code."""
        self.out.record(
            {
                "error": type(error).__name__,
                "error_text": str(error),
                "maybe_sent": error.maybe_sent,
            }
        )
        self.out.sentence(f"{error}{more}")
        if isinstance(error, ConfigurationError | ValidationError):
            return Code.USAGE
        return Code.UNKNOWN if error.maybe_sent else Code.FAILED


def new_budget(words: str) -> RateBudget:
    """Make the budget of `--budget LIMIT/SECONDS`.

    Raises:
        ConfigurationError: It is something else.
    """
    found = _BUDGET.fullmatch(words)
    if found is None or int(found[1]) == 0 or float(found[2]) == 0:
        raise ConfigurationError(
            f"the budget {words!r} is not LIMIT/SECONDS; write 120/60 for 120 requests a minute"
        )
    limit = int(found[1])
    return RateBudget(limit, float(found[2]), burst=min(10, limit), reserve=1 if limit > 1 else 0)
