"""The first pass over a file, which sends nothing: `smsid plan`, and before `smsid bulk run`."""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from smsid_async.bulk import BadRow, Plan, Row, Source, make_plan
from smsid_async.cli._output import Output
from smsid_async.cli._session import Code, Session
from smsid_async.cli.display import duration_text
from smsid_async.errors import ConfigurationError

__all__ = ["check_file", "plan", "seconds_for"]

_MOST = Decimal(10**6)


def check_file(source: Source, out: Output) -> Plan:
    """Count what a file holds, and tell every bad row with its line."""

    def telling() -> Iterator[Row | BadRow]:
        for row in source:
            if isinstance(row, BadRow):
                out.record({"line": row.line, "reason": row.reason})
                out.sentence(f"{source.path}, line {row.line}: {row.reason}")
            yield row

    with out.busy(f"Checking {source.path.name}"):
        return make_plan(telling())


def plan(session: Session, source: Source, price: str | None) -> int:
    """Show what sending a file would mean."""
    each = None if price is None else _price(price)
    found = check_file(source, session.out)
    seconds = seconds_for(found, session)
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


def seconds_for(found: Plan, session: Session) -> float:
    """Estimate the duration with the session's budget."""
    if session.budget is None:
        return found.seconds()
    numbers = session.budget.statistics()
    return found.seconds(numbers.limit, numbers.period)


def _price(words: str) -> Decimal:
    try:
        price = Decimal(words)
    except InvalidOperation:
        price = Decimal(-1)
    if not (price.is_finite() and 0 <= price < _MOST):
        raise ConfigurationError(f"the price {words!r} is not an amount; write it as 0.04")
    return price
