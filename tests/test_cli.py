"""The commands in this process, against a sandbox in a thread."""

import asyncio
import errno
import importlib.metadata
import io
import os
import runpy
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
from command import (
    FAILING,
    TO,
    Latency,
    answering,
    interrupt_when,
    invoke,
    records,
    serving,
    write_list,
)

import smsid_async.cli
from smsid_async import (
    BudgetTimeoutError,
    ConfigurationError,
    DeliveryTimeoutError,
    RateBudget,
    __version__,
)
from smsid_async.cli import _app, _bulk, _calls, _demo, _output, _signals
from smsid_async.cli._prepare import Order
from smsid_async.cli._session import Session, new_budget
from smsid_async.sandbox import Sandbox

NOT_A_NUMBER = (
    "the number *** is not in E.164 form: write + and the country code, then digits only, "
    "such as +447700900123"
)


@pytest.fixture
def sandbox():
    with serving() as running:
        yield running


@pytest.fixture
def listed(tmp_path):
    """Write a CSV file."""
    return partial(write_list, tmp_path)


@pytest.fixture
def written(monkeypatch):
    """What has been written to stdout so far."""
    texts, write = [], _output.Output._write

    def noting(self, text):
        write(self, text)
        texts.append(text)

    monkeypatch.setattr(_output.Output, "_write", noting)
    return texts


# -- help and usage ------------------------------------------------------------


def commands(app, *path):
    for command in app.registered_commands:
        yield (*path, command.name or command.callback.__name__)
    for group in app.registered_groups:
        yield from commands(group.typer_instance, *path, group.name)


def test_the_commands_are_those_that_we_promise():
    assert sorted(" ".join(path) for path in commands(_app.app)) == [
        "balance",
        "bulk report",
        "bulk run",
        "bulk settle",
        "bulk status",
        "bulk track",
        "demo",
        "otp send",
        "otp verify",
        "plan",
        "sandbox",
        "send",
        "status",
    ]


@pytest.mark.parametrize("path", [(), ("otp",), ("bulk",), *commands(_app.app)])
def test_every_command_has_help_for_all_that_it_takes(path):
    import typer

    result = invoke(None, *path, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    command = typer.main.get_command(_app.app)
    for name in path:
        command = command.commands[name]
    assert command.help
    assert all(each.help for each in command.params)


def test_without_arguments_it_shows_its_help():
    assert "Send SMS and one-time passwords" in invoke(None).output


def test_the_version():
    assert invoke(None, "--version").stdout == f"smsid-async {__version__}\n"


@pytest.mark.parametrize("budget", ["", "120", "0/60", "120/0", "-1/5", "1e3/5", "5/nan", "٣/5"])
def test_a_budget_that_is_none_is_a_usage_error(budget):
    result = invoke(None, "--budget", budget, "balance")
    assert result.exit_code == 2
    assert "LIMIT/SECONDS" in result.stderr


@pytest.mark.parametrize(("words", "limit", "period"), [("1/1", 1, 1.0), ("120/0.5", 120, 0.5)])
def test_a_budget_is_limit_and_seconds(words, limit, period):
    statistics = new_budget(words).statistics()
    assert (statistics.limit, statistics.period) == (limit, period)


# -- single calls --------------------------------------------------------------


def test_send(sandbox):
    result = invoke(sandbox, "send", TO, "Hello", "--sender-id", "SMSID")
    (message,) = sandbox.messages
    assert (message.to, message.text, message.sender_id) == (TO, "Hello", "SMSID")
    assert result.exit_code == 0
    assert result.stdout == f"Accepted as {message.message_id}, cost 0.0400, balance 99.9600\n"


def test_send_as_json(sandbox):
    (receipt,) = records(invoke(sandbox, "--json", "send", TO, "Hello"))
    assert receipt == {
        "message_id": sandbox.messages[0].message_id,
        "status": "success",
        "cost": "0.0400",
        "remaining_balance": "99.9600",
    }


def test_send_and_wait():
    with serving(delivery=(0, 0)) as sandbox:
        result = invoke(sandbox, "send", TO, "Hello", "--wait")
        assert result.exit_code == 0
        assert result.stdout.splitlines()[1] == f"{sandbox.messages[0].message_id}: delivered"
        result = invoke(sandbox, "send", FAILING, "Hello", "--wait")
        assert result.exit_code == 1
        assert result.stdout.endswith(": failed\n")


def test_what_goes_wrong_after_a_send_never_looks_like_a_failed_send(sandbox, monkeypatch):
    async def wait(*_, **__):
        raise BudgetTimeoutError("no slot")

    monkeypatch.setattr("smsid_async._resources.SMS.wait", wait)
    result = invoke(sandbox, "send", TO, "Hello", "--wait")
    assert result.exit_code == 3
    assert result.stderr == "smsid: no slot. The message was accepted; do not send it again\n"


def test_a_refused_send_exits_with_1(sandbox):
    result = invoke(sandbox, "send", TO, "Hello", "--sender-id", "Nobody")
    assert result.exit_code == 1
    assert result.stderr.startswith("smsid: HTTP 400, the API said: Sender ID not approved")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("send", "07700900456", "Hello"), "the number ***456 is not in E.164 form"),
        (("send", TO, ""), "the message text has 0 characters"),
        (("send", TO, "x" * 1601), "the message text has 1601 characters"),
        (("send", TO, "Hello", "--sender-id", "x"), "the sender ID has 1 characters"),
        (("otp", "send", "1"), "the number *** is not in E.164 form"),
        (("otp", "verify", TO, " "), "the code is empty"),
        (("status", " "), "the message ID is empty"),
    ],
)
def test_wrong_arguments_exit_with_2(sandbox, arguments, said):
    result = invoke(sandbox, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"smsid: {said}")
    assert result.stderr.count("\n") == 1
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("send", TO, "x"),
        ("status", "x"),
        ("balance",),
        ("otp", "send", TO),
        ("otp", "verify", TO, "1"),
    ],
)
def test_a_missing_key_exits_with_2(arguments):
    result = invoke(None, *arguments, key=None)
    assert result.exit_code == 2
    assert result.stderr.startswith("smsid: no API key: set SMSID_API_KEY")


def test_a_wrong_key_exits_with_1_and_is_not_shown(sandbox):
    result = invoke(sandbox, "balance", key="not-the-key")
    assert result.exit_code == 1
    assert result.stderr.startswith("smsid: HTTP 401, the API said: ")
    assert "check SMSID_API_KEY" in result.stderr
    assert "not-the-key" not in result.output


def test_a_base_url_that_cannot_be_exits_with_2():
    result = invoke(None, "--base-url", "http://example.com", "balance")
    assert result.exit_code == 2
    assert "use https://" in result.stderr


def test_a_send_whose_outcome_is_unknown_exits_with_3_and_says_so():
    with answering(b"") as server:
        for arguments, doubt in (
            (("send", TO, "Hello"), "The message may have been sent"),
            (("otp", "send", TO), "The code may have been sent"),
            (("otp", "verify", TO, "123456"), "The code may be used up"),
        ):
            result = invoke(server, "--json", *arguments)
            assert result.exit_code == 3
            assert result.stderr.endswith(f". {doubt}\n")
            (told,) = records(result)
            assert told["error"] == "OutcomeUnknownError"
            assert told["maybe_sent"] is True
            assert told["error_text"] in result.stderr


def test_a_refused_connection_exits_with_1():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1"
    result = invoke(None, "--base-url", url, "send", TO, "Hello")
    assert result.exit_code == 1
    assert result.stderr.startswith("smsid: the request never left")


def test_a_receipt_may_tell_no_money():
    body = b'{"meta":{"code":200,"text":"OK"},"data":{"message_id":"m-1"}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with answering(head % len(body) + body) as server:
        assert invoke(server, "send", TO, "Hello").stdout == "Accepted as m-1\n"
        assert records(invoke(server, "--json", "send", TO, "Hello"))[0]["cost"] is None


def test_an_interrupted_send_says_whether_it_may_have_left():
    latency = Latency(0.5)
    with serving(latency=latency) as sandbox:
        pressed = interrupt_when(lambda: latency.arrived)
        result = invoke(sandbox, "send", TO, "Hello")
        pressed.join()
    assert result.exit_code == 130
    assert result.stderr == (
        "smsid: interrupted after the request had left: it may have been sent\n"
    )
    assert len(sandbox.messages) == 1


def test_an_interrupt_before_anything_left_needs_no_words(sandbox, capsys):
    async def interrupted():
        raise asyncio.CancelledError

    session = Session(_output.Output(as_json=False), sandbox.url)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_calls._telling(session, interrupted()))
    assert capsys.readouterr() == ("", "")


def test_status(sandbox):
    invoke(sandbox, "send", TO, "Hello")
    message_id = sandbox.messages[0].message_id
    result = invoke(sandbox, "status", message_id)
    assert (result.exit_code, result.stdout) == (0, f"{message_id}: queued\n")
    (found,) = records(invoke(sandbox, "--json", "status", message_id))
    assert found == {"message_id": message_id, "status": "queued", "is_final": False}
    assert invoke(sandbox, "status", "unknown").exit_code == 1


def test_status_and_wait(monkeypatch):
    with serving(delivery=(0, 0)) as sandbox:
        invoke(sandbox, "send", FAILING, "Hello")
        message_id = sandbox.messages[0].message_id
        result = invoke(sandbox, "status", message_id, "--wait")
        assert (result.exit_code, result.stdout) == (1, f"{message_id}: failed\n")

        async def wait(*_, **__):
            raise DeliveryTimeoutError("the message was not final")

        monkeypatch.setattr("smsid_async._resources.SMS.wait", wait)
        result = invoke(sandbox, "status", message_id, "--wait")
        assert (result.exit_code, result.stderr) == (3, "smsid: the message was not final\n")


def test_balance(sandbox):
    assert invoke(sandbox, "balance").stdout == "Balance: 100.0000\n"
    assert records(invoke(sandbox, "--json", "balance")) == [{"balance": "100.0000"}]


def test_one_time_passwords(sandbox):
    result = invoke(sandbox, "otp", "send", TO)
    assert (result.exit_code, result.stdout) == (0, "A one-time code was sent to ***456.\n")
    code = sandbox.otp_code(TO)
    wrong = invoke(sandbox, "otp", "verify", TO, "000000" if code != "000000" else "1")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("smsid: HTTP 422")
    right = invoke(sandbox, "--json", "otp", "verify", TO, code)
    assert (right.exit_code, records(right)) == (0, [{"status": "verified", "verified": True}])
    assert invoke(sandbox, "otp", "verify", TO, code).exit_code == 1  # used
    assert records(invoke(sandbox, "--json", "otp", "send", TO)) == [
        {"status": "sent", "to": "***456"}
    ]


# -- plan ----------------------------------------------------------------------


def test_plan(listed):
    path = listed([f"{TO},Hello", f"{TO},Zoë ✓", f"{TO},{'x' * 200}"])
    result = invoke(None, "plan", path, key=None)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "messages:  3",
        "segments:  4 (longest message: 2)",
        "encodings: 2 in GSM-7, 1 in UCS-2",
        "bad rows:  0",
        "duration:  about 1.0 s",
    ]
    result = invoke(None, "--budget", "2/60", "plan", path, "--price", "0.04")
    assert result.stdout.splitlines()[4:] == [
        "duration:  about 2 min 2 s",
        "cost:      0.16 at 0.04 a segment",
    ]
    assert records(invoke(None, "--json", "plan", path, "--price", "1.5")) == [
        {
            "messages": 3,
            "segments": 4,
            "longest": 2,
            "encodings": {"GSM-7": 2, "UCS-2": 1},
            "bad_rows": 0,
            "seconds": 1.0,
            "cost": "6.0",
        }
    ]


def test_a_plan_of_bad_rows_tells_them_all(listed):
    path = listed([f"{TO},", "456,Hello", f"{TO},Hello"])
    result = invoke(None, "plan", path)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"smsid: {path}, line 2: the message text has 0 characters; the API takes 1 to 1600",
        f"smsid: {path}, line 3: {NOT_A_NUMBER}",
    ]
    assert "bad rows:  2" in result.stdout


def test_a_plan_of_national_numbers(listed):
    path = listed(["07700 900456,Hello"])
    assert "bad rows:  1" in invoke(None, "plan", path).stdout
    assert "messages:  1" in invoke(None, "plan", path, "--region", "GB").stdout


@pytest.mark.parametrize("price", ["x", "-1", "nan", "inf", "1e9", ""])
def test_a_price_that_is_none_is_told(listed, price):
    result = invoke(None, "plan", listed(1), f"--price={price}")
    assert result.exit_code == 2
    assert f"the price {price!r} is not an amount" in result.stderr


@pytest.mark.parametrize("command", [("plan",), ("bulk", "run")])
def test_a_file_that_cannot_be_used_exits_with_2(tmp_path, listed, command):
    for arguments, said in (
        ((str(tmp_path / "no.csv"),), "there is no file"),
        ((str(tmp_path),), "is a directory"),
        ((listed(1, "to,messages", "other.csv"),), "has no column message; found: to, messages"),
        ((listed(1), "--message", "Hi {name}"), "has no column name"),
        ((listed(1), "--message", "Hi {"), "the message template is broken"),
        ((listed(1), "--encoding", "utf-9"), "there is no text encoding 'utf-9'"),
        ((listed(1), "--encoding", "utf-16"), "is not in utf-16"),
        ((listed([], name="empty.csv"),), "has no rows"),
        ((listed(1), "--region", "XX"), "there is no region 'XX'"),
    ):
        before = set(tmp_path.iterdir())
        result = invoke(None, *command, *arguments)
        assert set(tmp_path.iterdir()) == before  # no journal either
        assert result.exit_code == 2
        assert result.stderr.startswith("smsid: ")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_cell_cannot_command_the_terminal(listed):
    result = invoke(None, "plan", listed(1, "a\x1b[31m,b\x9b"))
    assert result.exit_code == 2
    assert "found: none" in result.stderr


# -- output --------------------------------------------------------------------


class BrokenStream:
    """A stream that can be written to so many times."""

    def __init__(self, stream, writes, error=errno.EPIPE):
        self._stream, self._writes, self._error = stream, writes, error

    def write(self, text):
        self._writes -= text != "\n"
        if self._writes < 0:
            raise OSError(self._error, os.strerror(self._error))
        return self._stream.write(text)

    def flush(self):
        self._stream.flush()

    def isatty(self):
        return False

    def fileno(self):
        raise OSError


def test_a_reader_that_goes_away_ends_a_bulk_run_like_an_interrupt(
    sandbox, listed, monkeypatch, capsys
):
    monkeypatch.setenv("SMSID_API_KEY", "test")
    monkeypatch.setattr(sys, "stdout", BrokenStream(sys.stdout, 3))
    session = Session(_output.Output(as_json=True), sandbox.url, RateBudget(20, 1.0))
    order = Order(Path(listed(300)))
    code = session.run_async(lambda session: _bulk.run_file(session, order))
    assert code == 1
    assert 3 < len(sandbox.messages) < 200
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    unsent = 300 - len(sandbox.messages)
    assert said.err == (
        f"smsid: {unsent} of 300 messages were left unsent; run the same command again to send "
        "them\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [(errno.EPIPE, ""), (errno.ENOSPC, "stdout cannot be written to: No space left on device")],
)
def test_a_message_that_was_sent_stays_sent_if_that_cannot_be_written(
    sandbox, monkeypatch, capsys, error, said
):
    monkeypatch.setenv("SMSID_API_KEY", "test")
    monkeypatch.setattr(sys, "stdout", BrokenStream(sys.stdout, 0, error))
    session = Session(_output.Output(as_json=False), sandbox.url)
    assert session.run_async(lambda session: _calls.send(session, TO, "x", None, wait=False)) == 0
    assert capsys.readouterr().err == (f"smsid: {said}\n" if said else "")


def test_streams_that_are_not_there_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    out = _output.Output(as_json=False)
    out.line("x")
    out.sentence("x")
    assert out.closed
    assert out.console is None
    with pytest.raises(ConfigurationError, match="name a file with -o"), out.lent():
        pass


def test_a_reader_of_a_whole_file_that_goes_away_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", newline="\r\n"))
    out = _output.Output(as_json=False)
    with out.lent() as stream:
        stream.write("Zoë\n")
    assert sys.stdout.buffer.getvalue() == "Zoë\n".encode()
    assert not out.closed
    with out.lent():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert out.closed
    said = "smsid: stdout cannot be written to: No space left on device\n"
    assert capsys.readouterr().err == said


# -- sandbox, demo, main -------------------------------------------------------


def test_the_sandbox_tells_where_it_is(written):
    pressed = interrupt_when(lambda: written and "SMSID_API_SECRET" in written[-1])
    result = invoke(
        None, "sandbox", "--port", "0", "--api-key", "a key", "--api-secret", "s", "--limit", "5"
    )
    pressed.join()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    url = lines[0].split()[4].rstrip(";")
    assert url.startswith("http://127.0.0.1:")
    assert lines[2:] == [
        f"  export SMSID_BASE_URL={url}",
        "  export SMSID_API_KEY='a key'",
        "  export SMSID_API_SECRET=s",
    ]


def test_a_taken_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke(None, "sandbox", "--port", str(port))
    assert result.exit_code == 2
    assert result.stderr == (
        f"smsid: port {port} cannot be used (Address already in use); choose another with --port\n"
    )


def test_a_sandbox_that_cannot_be_is_told():
    result = invoke(None, "sandbox", "--period", "0")
    assert result.exit_code == 2
    assert result.stderr.startswith("smsid: the sandbox cannot work like that: ")


def test_an_extra_that_is_missing_is_a_matter_of_configuration():
    with pytest.raises(ConfigurationError, match="the sandbox's words"), _app._sandbox_needed():
        raise ImportError("the sandbox's words")


def test_another_missing_module_is_a_defect_and_not_hidden():
    with pytest.raises(ModuleNotFoundError), _app._sandbox_needed():
        raise ModuleNotFoundError


def test_the_demo_at_ten_times_its_speed(monkeypatch):
    monkeypatch.setattr(_demo.run_demo, "__kwdefaults__", {"limit": 1200, "period": 6.0})
    result = invoke(None, "--json", "demo", key=None)
    assert result.exit_code == 0
    *_, seen, last = records(result)
    assert last["summary"]["sent"] == 300
    assert seen["demo"]["refused"] == 0
    assert 1 <= seen["demo"]["largest_count"] <= 1200


def test_a_refusal_by_the_demos_sandbox_is_a_failure(monkeypatch):
    monkeypatch.setattr(_demo.run_demo, "__kwdefaults__", {"limit": 1200, "period": 6.0})
    monkeypatch.setattr(Sandbox, "refused", 1)
    assert invoke(None, "demo", key=None).exit_code == 1


def test_an_interrupted_check_is_no_traceback(listed, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("smsid_async.cli._check.make_plan", interrupted)
    result = invoke(None, "plan", listed(1))
    assert (result.exit_code, result.output) == (130, "")


def test_the_sandbox_tells_programs_where_it_is(written):
    pressed = interrupt_when(lambda: written)
    result = invoke(None, "--json", "sandbox", "--port", "0")
    pressed.join()
    assert result.exit_code == 0
    assert list(records(result)[0]) == ["base_url"]


def test_it_can_be_run_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smsid", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("smsid_async.cli", run_name="__main__")
    assert capsys.readouterr().out == f"smsid-async {__version__}\n"
    assert runpy.run_module("smsid_async.cli.__main__")["main"] is smsid_async.cli.main


def test_main_is_what_the_script_calls(monkeypatch, capsys):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="smsid")
    assert script.load() is smsid_async.cli.main
    monkeypatch.setattr(sys, "argv", ["smsid", "--version"])
    with pytest.raises(SystemExit) as ended:
        smsid_async.cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("smsid-async ")


def test_without_its_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "smsid_async.cli._app")
    monkeypatch.delattr(smsid_async.cli, "_app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as ended:
        smsid_async.cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "smsid needs its extra: pip install 'smsid-async[cli]'\n"
    monkeypatch.setitem(sys.modules, "smsid_async.cli._app", None)
    with pytest.raises(ModuleNotFoundError):
        smsid_async.cli.main()


def test_interrupts_reach_an_event_loop_that_has_no_signal_handlers(monkeypatch):
    async def run():
        loop, pressed = asyncio.get_running_loop(), asyncio.Event()

        def refuse(*_):
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_signal_handler", refuse)
        before = signal.getsignal(signal.SIGTERM)
        with _signals.on_interrupt(pressed.set):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(pressed.wait(), 5)
        assert signal.getsignal(signal.SIGTERM) == before

    asyncio.run(run())
