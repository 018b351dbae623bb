"""`smsid plan`: a pass over a file that sends nothing."""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

from smsid_async.bulk import BadRow, Plan, Row, Source, make_plan
from smsid_async.cli._output import Output
from smsid_async.cli._session import Code, Session
from smsid_async.cli.display import duration_text
from smsid_async.errors import ConfigurationError

__all__ = ["plan", "seconds_for", "tell_bad"]

_MOST = Decimal(10**6)


def tell_bad(row: Row | BadRow, path: Path, out: Output) -> None:
    """Tell a row's line and what is wrong with it, if it is bad."""
    if isinstance(row, BadRow):
        out.record({"line": row.line, "reason": row.reason})
        out.sentence(f"{path}, line {row.line}: {row.reason}")


def plan(session: Session, source: Source, price: str | None) -> int:
    """Show what sending a file would mean."""
    each = None if price is None else _price(price)
    with session.out.busy(f"Checking {source.path.name}"):
        found = make_plan(_telling(source, session.out))
    seconds = seconds_for(found.messages, session)
    lines = {
        "messages": f"{found.messages:,}",
        "segments": f"{found.segments:,} (longest message: {found.longest})",
        "encodings": ", ".join(f"{n:,} in {name}" for name, n in sorted(found.encodings.items())),
        "bad rows": f"{found.bad_rows:,}",
        "duration": f"about {duration_text(seconds)}",
        "cost": "" if each is None else f"{found.cost(each)} at {each} a segment",
    }
    for name, words in lines.items():
        if words:
            session.out.line(f"{name + ':':<11}{words}")
    session.out.record(
        {
            "messages": found.messages,
            "segments": found.segments,
            "longest": found.longest,
            "encodings": found.encodings,
            "bad_rows": found.bad_rows,
            "seconds": round(seconds, 1),
            "cost": None if each is None else str(found.cost(each)),
        }
    )
    return Code.USAGE if found.bad_rows else Code.WELL


def seconds_for(messages: int, session: Session) -> float:
    """Estimate how long so many messages take with the session's budget."""
    found = Plan(messages, 0, 0, 0, {})
    if session.budget is None:
        return found.seconds()
    numbers = session.budget.statistics()
    return found.seconds(numbers.limit, numbers.period)


def _telling(source: Source, out: Output) -> Iterator[Row | BadRow]:
    for row in source:
        tell_bad(row, source.path, out)
        yield row


def _price(words: str) -> Decimal:
    try:
        price = Decimal(words)
    except InvalidOperation:
        price = Decimal(-1)
    if not (price.is_finite() and 0 <= price < _MOST):
        raise ConfigurationError(f"the price {words!r} is not an amount; write it as 0.04")
    return price
