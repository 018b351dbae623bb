"""The commands, their arguments and their help; what they do stands in the other modules."""

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from smsid_async import __version__
from smsid_async.cli import _bulk, _calls, _check, _journal, _track
from smsid_async.cli._output import Output
from smsid_async.cli._prepare import Order
from smsid_async.cli._session import Session, Work, new_budget
from smsid_async.errors import ConfigurationError

if TYPE_CHECKING:
    import io

__all__ = ["app", "run"]

_HELP = """\
Send SMS and one-time passwords with the SMSID API, within its rate limit.

The API key comes from the environment: SMSID_API_KEY.
If requests are signed, so does the secret: SMSID_API_SECRET.
To look around without a key, run: smsid demo
"""
_EPILOG = (
    "Exit codes: 0 all well, 1 some failed, 2 usage or configuration, "
    "3 some may have been sent or not, 130 interrupted."
)

app = typer.Typer(
    name="smsid",
    help=_HELP,
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
otp = typer.Typer(no_args_is_help=True)
bulk = typer.Typer(no_args_is_help=True)
app.add_typer(otp, name="otp", help="Send and verify one-time passwords.")
app.add_typer(bulk, name="bulk", help="Send a whole file, and follow it up.")


class Window(StrEnum):
    """The rate windows that the sandbox can be told to have."""

    SLIDING = "sliding"
    FIXED = "fixed"
    BUCKET = "bucket"


class Format(StrEnum):
    """The formats of a report."""

    CSV = "csv"
    JSONL = "jsonl"


To = Annotated[str, typer.Argument(help="The recipient in E.164, such as +447700900123.")]
File = Annotated[
    Path,
    typer.Argument(
        help="CSV with a header, or JSONL; the columns are to, message, sender_id, reference."
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--message",
        metavar="TEMPLATE",
        help="Make the text from other columns, as in 'Hi {name}'.",
    ),
]
Encoding = Annotated[str, typer.Option(help="The file's text encoding.")]
Region = Annotated[
    str | None,
    typer.Option(metavar="CODE", help="Read national numbers as those of a country, such as GB."),
]
Journal = Annotated[Path, typer.Argument(help="The journal, as `smsid bulk run` showed it.")]


def run() -> None:
    """Run the command with the process's arguments, and exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        cast("io.TextIOWrapper", stream).reconfigure(errors="backslashreplace")
    app(prog_name="smsid")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"smsid-async {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The API's URL; else SMSID_BASE_URL, else the real API.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT/SECONDS",
            help="Requests in how many seconds at the most; 120/60 if not given.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON objects, one a line, for programs.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Take the global options."""
    del version
    try:
        made = None if budget is None else new_budget(budget)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error
    context.obj = Session(Output(as_json=as_json), base_url, made)


@app.command()
def send(
    context: typer.Context,
    to: To,
    message: Annotated[str, typer.Argument(help="The text, 1 to 1600 characters.")],
    sender_id: Annotated[
        str | None, typer.Option(help="An approved sender ID of 2 to 11 characters.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait up to five minutes for its delivery.")
    ] = False,
) -> None:
    """Send one message."""
    _run(context, lambda session: _calls.send(session, to, message, sender_id, wait=wait))


@app.command()
def status(
    context: typer.Context,
    message_id: Annotated[
        str, typer.Argument(metavar="ID", help="The message's ID, as `smsid send` showed it.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait up to five minutes until it is final.")
    ] = False,
) -> None:
    """Show where a message is; exit code 1 if its delivery failed."""
    _run(context, lambda session: _calls.status(session, message_id, wait=wait))


@app.command()
def balance(context: typer.Context) -> None:
    """Show the prepaid balance."""
    _run(context, _calls.balance)


@otp.command("send")
def otp_send(context: typer.Context, to: To) -> None:
    """Send a one-time code; the API makes and keeps it."""
    _run(context, lambda session: _calls.otp_send(session, to))


@otp.command("verify")
def otp_verify(
    context: typer.Context,
    to: To,
    code: Annotated[str, typer.Argument(help="The code that the person entered.")],
) -> None:
    """Check a one-time code; exit code 1 if it is wrong."""
    _run(context, lambda session: _calls.otp_verify(session, to, code))


@bulk.command("run")
def bulk_run(
    context: typer.Context,
    file: File,
    *,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="What has been sent; else it is kept beside the file."),
    ] = None,
    message: Template = None,
    encoding: Encoding = "utf-8",
    region: Region = None,
    resend_unknown: Annotated[
        bool,
        typer.Option(
            "--resend-unknown", help="Send again what may have been sent; it may arrive twice."
        ),
    ] = False,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Send to recipients who already got a different text."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Send every row of a file, if every row is good.

    The whole file is checked before anything is sent.
    Run it again after an interruption, and it continues:
    nothing is sent twice. Of an edited file, only what is new is sent.
    Ctrl-C finishes what is in flight; a second one leaves at once.
    """
    order = Order(file, journal, message, encoding, region, resend_unknown, allow_changed)
    work = _bulk.dry_run if dry_run else _bulk.run_file
    _run(context, lambda session: work(session, order))


@bulk.command("status")
def bulk_status(context: typer.Context, journal: Journal) -> None:
    """Show how far a file has been sent, also while it is."""
    session: Session = context.obj
    _exit(session.run(lambda: _journal.status(session, journal)))


@bulk.command("settle")
def bulk_settle(
    context: typer.Context,
    journal: Journal,
    references: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE...", help="As `smsid bulk report` shows them."),
    ],
    sent: Annotated[
        bool,
        typer.Option("--sent/--not-sent", help="What you found out.", show_default=False),
    ],
) -> None:
    """Say what became of messages whose outcome is unknown.

    Those that were sent are never sent again; the others are, by the next run.
    """
    _run(context, lambda session: _journal.settle(session, journal, references, sent=sent))


@bulk.command("report")
def bulk_report(
    context: typer.Context,
    journal: Journal,
    form: Annotated[
        Format, typer.Option("--format", help="The report's format.", show_choices=True)
    ] = Format.CSV,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write it; else to stdout."),
    ] = None,
) -> None:
    """Write a line for each message, with its outcome and delivery.

    It has the phone numbers in full, so that you can find each person: keep it safe.
    In CSV a cell that a spreadsheet would take for a formula has an apostrophe in front,
    phone numbers too.
    """
    session: Session = context.obj
    _exit(session.run(lambda: _journal.write_report(session, journal, form.value, output)))


@bulk.command("track")
def bulk_track(
    context: typer.Context,
    journal: Journal,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Ask no more after this time; else to the end."),
    ] = None,
) -> None:
    """Ask where every message is, until each is delivered or has failed.

    The report has what it learns. It asks slowly, so that it never delays a send.
    Exit code 1 if some failed, 3 if some are not final yet.
    """
    _run(context, lambda session: _track.track_journal(session, journal, timeout))


@app.command()
def plan(
    context: typer.Context,
    file: File,
    *,
    message: Template = None,
    encoding: Encoding = "utf-8",
    region: Region = None,
    price: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="What a segment costs, to show the sum.")
    ] = None,
) -> None:
    """Show what sending a file would take, without sending it."""
    session: Session = context.obj
    order = Order(file, None, message, encoding, region)
    _exit(session.run(lambda: _check.plan(session, order.source(), price)))


@app.command()
def sandbox(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any.")] = 8025,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The only key accepted; else any is.")
    ] = None,
    api_secret: Annotated[
        str | None, typer.Option(metavar="SECRET", help="Ask for requests signed with it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Requests admitted in each period.")] = 120,
    period: Annotated[float, typer.Option(help="The period, in seconds.")] = 60.0,
    window: Annotated[
        Window, typer.Option(help="How the period is measured.", show_choices=True)
    ] = Window.SLIDING,
) -> None:
    """Serve the whole API on this machine, for tests and rehearsals.

    Nothing is ever sent to anybody. It runs until Ctrl-C.
    """
    session: Session = context.obj
    _exit(
        session.run(
            lambda: _serve(
                session,
                port=port,
                api_key=api_key,
                api_secret=api_secret,
                limit=limit,
                period=period,
                window=window,
            )
        )
    )


@app.command()
def demo(context: typer.Context) -> None:
    """See it at work: 300 messages to a sandbox, no key needed."""
    session: Session = context.obj
    _exit(session.run(lambda: _demo(session)))


def _serve(
    session: Session,
    *,
    port: int,
    api_key: str | None,
    api_secret: str | None,
    limit: int,
    period: float,
    window: Window,
) -> int:
    with _sandbox_needed():
        from smsid_async.cli import _sandbox  # noqa: PLC0415 - its extra may be missing
    return session.run_async(
        lambda session: _sandbox.serve(
            session,
            port=port,
            api_key=api_key,
            api_secret=api_secret,
            limit=limit,
            period=period,
            window=window.value,
        )
    )


def _demo(session: Session) -> int:
    with _sandbox_needed():
        from smsid_async.cli import _demo  # noqa: PLC0415 - as above
    return session.run_async(_demo.run_demo)


@contextlib.contextmanager
def _sandbox_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError:
        raise
    except ImportError as exc:  # its text names the extra
        raise ConfigurationError(str(exc)) from exc


def _run(context: typer.Context, work: Work) -> NoReturn:
    session: Session = context.obj
    _exit(session.run_async(work))


def _exit(code: int) -> NoReturn:
    raise typer.Exit(int(code))
