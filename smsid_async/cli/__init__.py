"""The command `smsid`: argument parsing and printing. It needs the extra `cli`."""

import sys

__all__ = ["main"]

_PARTS = ("typer", "rich")


def main() -> None:
    """Run the command with the process's arguments, and exit."""
    try:
        from smsid_async.cli import _app  # noqa: PLC0415 - its extra may be missing
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _PARTS:
            raise
        print("smsid needs its extra: pip install 'smsid-async[cli]'", file=sys.stderr)
        sys.exit(2)
    _app.run()
