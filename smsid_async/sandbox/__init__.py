"""The whole SMSID API on a loopback port, for tests, demonstrations and rehearsals.

It needs the extra `sandbox`. It shares no code with the client, on purpose: so each checks the
other's reading of the API reference.
"""

try:
    from smsid_async.sandbox._sandbox import FAILING_SUFFIX, Sandbox
except ModuleNotFoundError as exc:
    if (exc.name or "").partition(".")[0] not in {"starlette", "uvicorn"}:
        raise
    raise ImportError("The sandbox needs its extra: pip install 'smsid-async[sandbox]'") from exc

from smsid_async.sandbox._records import SandboxMessage, SandboxRequest, SandboxStatistics
from smsid_async.sandbox.windows import WindowKind

__all__ = [
    "FAILING_SUFFIX",
    "Sandbox",
    "SandboxMessage",
    "SandboxRequest",
    "SandboxStatistics",
    "WindowKind",
]
