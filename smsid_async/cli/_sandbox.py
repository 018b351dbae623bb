"""`smsid sandbox`: the API on this machine, until Ctrl-C."""

import asyncio
import shlex

from smsid_async.cli._session import Code, Session
from smsid_async.cli._signals import on_interrupt
from smsid_async.errors import ConfigurationError
from smsid_async.sandbox import Sandbox, WindowKind

__all__ = ["serve"]

_BALANCE = 1_000_000  # enough for any rehearsal
_KEEP = 10_000  # newest messages whose status can be asked for


async def serve(
    session: Session,
    *,
    port: int,
    api_key: str | None,
    api_secret: str | None,
    limit: int,
    period: float,
    window: WindowKind,
) -> int:
    """Serve the sandbox, and tell how to point a client at it."""
    try:
        sandbox = Sandbox(
            api_key,
            api_secret,
            limit,
            period,
            window,
            port=port,
            balance=_BALANCE,
            senders=None,
            keep=_KEEP,
        )
    except ValueError as exc:
        raise ConfigurationError(f"the sandbox cannot work like that: {exc}") from exc
    ended = asyncio.Event()
    try:
        async with sandbox:
            with on_interrupt(ended.set):
                _introduce(session, sandbox.url, api_key, api_secret)
                await ended.wait()
    except OSError as exc:
        raise ConfigurationError(
            f"port {port} cannot be used ({exc.strerror}); choose another with --port"
        ) from exc
    return Code.WELL


def _introduce(session: Session, url: str, api_key: str | None, api_secret: str | None) -> None:
    settings = {"SMSID_BASE_URL": url, "SMSID_API_KEY": api_key or "test"}
    if api_secret is not None:
        settings["SMSID_API_SECRET"] = api_secret
    session.out.record({"base_url": url})
    session.out.line(f"The sandbox is at {url}; nothing is ever sent to anybody. Ctrl-C ends it.")
    session.out.line("Point a client at it with:")
    for name, value in settings.items():
        session.out.line(f"  export {name}={shlex.quote(value)}")
