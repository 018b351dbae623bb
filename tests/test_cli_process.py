"""The command as its users run it: a process, with real pipes, signals and terminals."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import TO, serving

AGAIN = "run the same command again to send them"
SMSID = (sys.executable, "-m", "smsid_async.cli")


def environment(sandbox=None, **changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SMSID_")}
    kept |= {"COLUMNS": "100", "SMSID_ACCOUNT": "test", **changes}
    if sandbox is not None:
        kept |= {"SMSID_BASE_URL": sandbox.url, "SMSID_API_KEY": "test"}
    return kept


started = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    while started:
        with started.pop() as process:  # closes its pipes
            process.kill()


def start(*arguments, sandbox=None, **variables):
    process = subprocess.Popen(
        [*SMSID, *arguments],
        env=environment(sandbox, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def finished(process):
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in out + err
    assert TO not in out + err
    return process.returncode, out, err


def shell(command, sandbox=None, **changes):
    """Run a pipeline in bash, and return its status and what it wrote."""
    smsid = " ".join(SMSID)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('smsid', smsid, 1)}"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(sandbox, **changes),
        timeout=30,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("to,message\n" + "".join(f"{TO},Message {n}\n" for n in range(500)))
    return path


def until(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_campaign_from_check_to_report(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(f'{{"to": "{TO}", "name": "{n}"}}\n' for n in range(40)))
    with serving(api_secret="signed") as sandbox:
        arguments = ("--json", "--budget", "200/1", "bulk", "run", str(path))
        template = ("--message", "Hi {name}")
        process = start(*arguments, *template, sandbox=sandbox, SMSID_API_SECRET="signed")
        code, out, err = finished(process)
    assert (code, err) == (0, "")
    *told, last = map(json.loads, out.splitlines())
    ledger = {message.message_id: message.text for message in sandbox.messages}
    assert {each["message_id"]: f"Hi {each['index']}" for each in told} == ledger
    assert last["summary"]["sent"] == len(ledger) == 40


def test_one_interrupt_finishes_what_is_in_flight_and_the_ledger_agrees(rows):
    with serving(latency=0.2) as sandbox:
        arguments = ("--json", "--budget", "60/1", "bulk", "run", str(rows))
        process = start(*arguments, sandbox=sandbox)
        until(lambda: len(sandbox.messages) >= 10)
        process.send_signal(signal.SIGINT)
        code, out, err = finished(process)
    assert code == 130
    *told, last = map(json.loads, out.splitlines())
    sent = {record["message_id"] for record in told if record["outcome"] == "sent"}
    assert sent == {message.message_id for message in sandbox.messages}
    summary = last["summary"]
    assert (summary["sent"], summary["unknown"]) == (len(sent), 0)
    assert summary["not_sent"] + summary["waiting"] == 500 - len(sent)
    assert {record["outcome"] for record in told} == {"sent", "not_sent"}
    lines = sorted(record["line"] for record in told if record["outcome"] == "sent")
    assert lines == list(range(2, len(sent) + 2))
    assert err == f"smsid: {500 - len(sent)} of 500 messages were left unsent; {AGAIN}\n"


def test_two_interrupts_leave_at_once(rows):
    arrived = []
    with serving(latency=lambda: arrived.append(1) or 20.0) as sandbox:
        process = start("--json", "--budget", "100/1", "bulk", "run", str(rows), sandbox=sandbox)
        first = process.stdout.readline  # nothing is answered, so nothing is told yet
        until(lambda: len(arrived) >= 3)
        process.send_signal(signal.SIGINT)
        line = json.loads(first())  # what had not left is reported at once
        assert line["outcome"] == "not_sent"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        code, out, err = finished(process)
        assert time.monotonic() - began < 5
    assert code == 130
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert 0 < len(arrived) <= summary["unknown"] < 50  # some have left and not arrived
    assert summary["unknown"] + summary["not_sent"] + summary["waiting"] == 500
    assert AGAIN in err
    assert f"{summary['unknown']} messages may have been sent or not: `smsid bulk report " in err
    assert err.endswith("unless you say --resend-unknown\n")


def test_a_polite_kill_is_an_interrupt(rows):
    with serving() as sandbox:
        process = start("--budget", "20/1", "bulk", "run", str(rows), sandbox=sandbox)
        until(lambda: len(sandbox.messages) >= 3)
        process.terminate()
        code, out, err = finished(process)
    assert code == 130
    assert f"sent:           {len(sandbox.messages)} of 500" in out
    assert f"messages were left unsent; {AGAIN}" in err


@pytest.fixture
def journal(rows):
    return Path(f"{rows}.test.journal")


def outcomes(journal):
    """What each line of the list became, as the report tells."""
    code, out, _ = shell(f"smsid bulk report {journal} --format jsonl")
    assert code == 0
    told = [json.loads(line) for line in out.splitlines()]
    return {each["line"]: each["outcome"] for each in told}


def test_the_same_command_continues_after_an_interrupt(rows, journal):
    with serving() as sandbox:
        process = start("--budget", "100/1", "bulk", "run", str(rows), sandbox=sandbox)
        until(lambda: len(sandbox.messages) >= 50)
        process.send_signal(signal.SIGINT)
        code, out, err = finished(process)
        first = len(sandbox.messages)
        assert code == 130
        assert f"sent:           {first} of 500" in out
        assert AGAIN in err
        code, out, err = finished(
            start("--budget", "500/1", "bulk", "run", str(rows), sandbox=sandbox)
        )
    assert (code, err) == (0, "")
    assert f"list.csv: 500 messages, {first} sent earlier, {500 - first} to send, about" in out
    assert f"sent:           {500 - first} of {500 - first}\nsent earlier:   {first}\n" in out
    assert sorted(each.text for each in sandbox.messages) == sorted(
        f"Message {n}" for n in range(500)
    )


def test_the_same_command_continues_after_a_kill(rows, journal):
    arrived = []
    with serving(latency=lambda: arrived.append(1) or 0.05) as sandbox:
        process = start("--budget", "100/1", "bulk", "run", str(rows), sandbox=sandbox)
        until(lambda: len(sandbox.messages) >= 50)
        process.kill()
        process.communicate()
        code, out, err = finished(
            start("--json", "--budget", "500/1", "bulk", "run", str(rows), sandbox=sandbox)
        )
    summary = json.loads(out.splitlines()[-1])["summary"]
    texts = [each.text for each in sandbox.messages]
    assert len(set(texts)) == len(texts)  # none twice
    told = outcomes(journal)
    assert list(told) == list(range(2, 502))
    unknown = {line for line, outcome in told.items() if outcome == "unknown"}
    assert summary["unknown"] == len(unknown)
    assert summary["sent_earlier"] + summary["sent"] + len(unknown) == 500
    assert {f"Message {line - 2}" for line in set(told) - unknown} <= set(texts)
    assert code == (3 if unknown else 0)
    assert ("are left alone; `smsid bulk report" in err) == bool(unknown)


def test_status_and_a_second_run_beside_one_that_sends(rows, journal):
    with serving() as sandbox:
        process = start("--budget", "50/1", "bulk", "run", str(rows), sandbox=sandbox)
        until(lambda: len(sandbox.messages) >= 20)
        code, out, err = finished(start("--json", "bulk", "status", str(journal)))
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert 10 <= found["sent"] < 500
        assert found["total"] == 500
        for command in (("run", str(rows)), ("track", str(journal))):
            code, out, err = finished(start("bulk", *command, sandbox=sandbox))
            assert (code, out) == (2, "")
            assert err == (
                f"smsid: the journal {journal} is in use by another process (its ID: "
                f"{process.pid}); one process at a time can send from a journal\n"
            )
        process.send_signal(signal.SIGINT)
        assert finished(process)[0] == 130


def test_a_report_keeps_its_line_ends_and_its_letters(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"to,message,reference\n{TO},Hello,Zoë\n", encoding="utf-8")
    with serving() as sandbox:
        assert finished(start("bulk", "run", str(path), sandbox=sandbox))[0] == 0
    target = tmp_path / "report.csv"
    narrow = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = f"smsid bulk report {path}.test.journal"
    assert shell(f"{command} > {target}", **narrow) == (0, "", "")
    assert target.read_bytes().count(b"\r\n") == 2
    assert b"\r\r" not in target.read_bytes()
    assert ",Zoë,".encode() in target.read_text("utf-8").encode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("| true", ""),
        ("> /dev/full", "smsid: stdout cannot be written to: No space left on device\n"),
    ],
)
def test_a_report_that_nobody_takes_is_no_traceback(rows, journal, where, said):
    with serving() as sandbox:
        start("--budget", "500/1", "bulk", "run", str(rows), sandbox=sandbox).communicate()
    assert shell(f"smsid bulk report {journal} {where}") == (1, "", said)


def test_an_interrupt_of_a_single_call_is_no_traceback():
    with serving(delivery=(60.0, 60.0)) as sandbox:
        process = start("send", TO, "Hello", "--wait", sandbox=sandbox)
        until(lambda: len(sandbox.requests) >= 2)
        process.send_signal(signal.SIGINT)
        code, out, err = finished(process)
    assert (code, err) == (130, "")
    assert out.startswith("Accepted as ")


def test_the_sandbox_and_the_client_as_two_processes():
    sandbox = start("sandbox", "--port", "0", "--limit", "5", "--window", "fixed")
    try:
        told = "".join(sandbox.stdout.readline() for _ in range(4))
        url = re.search(r"http://\S+/api/v1", told)[0]
        code, out, err = finished(start("--base-url", url, "balance"))
        assert (code, out) == (2, "")
        assert "no API key" in err
        done = shell(f"SMSID_API_KEY=any smsid --base-url {url} balance")
        assert done == (0, "Balance: 1000000.0000\n", "")
    finally:
        sandbox.send_signal(signal.SIGINT)
    assert finished(sandbox) == (0, "", "")
    assert f"  export SMSID_BASE_URL={url}\n  export SMSID_API_KEY=test\n" in told


@pytest.mark.parametrize("arguments", ["--help", "--version", "plan {rows}", "bulk run --help"])
def test_a_reader_that_is_gone_is_no_error(rows, arguments):
    _, out, err = shell(f"smsid {arguments.format(rows=rows)} | true")
    assert (out, err) == ("", "")


def test_a_reader_that_goes_away_ends_a_bulk_run(rows):
    with serving() as sandbox:
        command = f"smsid --json --budget 20/1 bulk run {rows} | head -n 3"
        code, out, err = shell(command, sandbox)
    assert code == 1
    assert out.count("\n") == 3
    assert 3 <= len(sandbox.messages) < 450
    assert f"messages were left unsent; {AGAIN}" in err


def test_a_send_whose_receipt_nobody_reads_was_still_sent():
    with serving() as sandbox:
        code, _, err = shell(f"smsid send {TO} Hello | true", sandbox)
    assert (code, err, len(sandbox.messages)) == (0, "", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_no_traceback():
    with serving() as sandbox:
        code, _, err = shell(f"smsid send {TO} Hello > /dev/full", sandbox)
    assert (code, err) == (0, "smsid: stdout cannot be written to: No space left on device\n")


def test_a_closed_stdout_is_no_traceback():
    with serving() as sandbox:
        assert shell(f"smsid send {TO} Hello >&-", sandbox)[0] == 0
    assert len(sandbox.messages) == 1


def test_a_narrow_character_set_is_no_traceback(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("Zoë,to\nx,y\n", encoding="utf-8")
    code, _, err = shell(f"smsid plan {path}", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert code == 2
    assert "found: Zo\\xeb, to" in err


@pytest.mark.parametrize("command", ["sandbox", "demo"])
def test_a_missing_extra_is_named(command):
    script = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['smsid', sys.argv[1]]; "
        "from smsid_async.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "smsid: The sandbox needs its extra: pip install 'smsid-async[sandbox]'\n"
    )


def on_a_terminal(script, *arguments, sandbox=None):
    """Run some Python on a pseudo-terminal; return its exit code and what was to be read."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'smsid'; {script}", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(sandbox, TERM="xterm-256color", LINES="40"),
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's other end was closed
        while select.select([ours], [], [], 20)[0] and (piece := os.read(ours, 65536)):
            seen += piece
    os.close(ours)
    code = process.wait(10)
    return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


terminals = pytest.mark.skipif(sys.platform == "win32", reason="the system has no pseudo-terminals")


@terminals
def test_on_a_terminal_the_demo_draws_itself():
    code, text = on_a_terminal(
        "from smsid_async.cli import _app, _demo; "
        "_demo.run_demo.__kwdefaults__.update(limit=1200, period=6.0); _app.run()",
        "demo",
    )
    assert code == 0
    assert "300/300" in text
    assert "Budget" in text
    assert re.search(r"│ sent +│ +300 of 300 │", text)
    assert re.search(r"│ 429s seen +│ +0 │", text)
    assert re.search(r"│ budget used +│ +\d+% │", text)


@terminals
def test_on_a_terminal_a_run_and_what_follows_draw_themselves(rows, journal):
    command = "from smsid_async.cli import main; main()"
    fast = ("--budget", "500/1")
    with serving(delivery=(0, 0)) as sandbox:
        code, text = on_a_terminal(command, *fast, "bulk", "run", str(rows), sandbox=sandbox)
        assert code == 0
        assert "Messages" in text
        assert "500/500" in text
        assert re.search(r"│ sent +│ +500 of 500 │", text)
        code, text = on_a_terminal(command, *fast, "bulk", "track", str(journal), sandbox=sandbox)
    assert code == 0
    assert "500/500" in text
    assert "500 delivered, 0 failed, 0 waiting, of 500 sent" in text
