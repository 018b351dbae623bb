"""The commands about a whole file: sent, resumed, rehearsed, reported and followed up."""

import asyncio
import contextlib
import csv
import io
import json
import os
import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest
from command import (
    FAILING,
    FAST,
    TO,
    Latency,
    answering,
    interrupt_when,
    invoke,
    records,
    serving,
    write_list,
)
from full_disk import FakeDisk, states

from smsid_async import RateBudget, SMSIDClient
from smsid_async.bulk import summarise
from smsid_async.cli import _bulk, _output, _prepare, _track
from smsid_async.cli._prepare import Order
from smsid_async.cli._session import Session
from smsid_async.sandbox import Sandbox

AGAIN = "run the same command again to send them"


@pytest.fixture
def sandbox():
    with serving() as running:
        yield running


@pytest.fixture
def listed(tmp_path):
    """Write a CSV file."""
    return partial(write_list, tmp_path)


@pytest.fixture
def journal(tmp_path):
    """The journal that `list.csv` has if none is named."""
    return tmp_path / "list.csv.test.journal"


def run(sandbox, path, *options, as_json=False, **more):
    flags = ("--json",) if as_json else ()
    return invoke(sandbox, *flags, *FAST, "bulk", "run", path, *options, **more)


def summary_of(result):
    return records(result)[-1]["summary"]


def change(journal, statement, *values):
    """Change a journal that nobody uses."""
    with contextlib.closing(sqlite3.connect(journal)) as file:
        file.execute(statement, values)
        file.commit()


def reported(journal, *options):
    result = invoke(None, "bulk", "report", str(journal), *options, private=False)
    assert result.exit_code == 0
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))


# -- bulk run ------------------------------------------------------------------


def test_bulk_run(sandbox, listed, journal):
    result = run(sandbox, listed(3))
    assert result.exit_code == 0
    assert sorted(each.text for each in sandbox.messages) == [f"Message {n}" for n in range(3)]
    first, second, *rest = result.stdout.splitlines()
    assert first == "list.csv: 3 messages, 3 segments, about 0.0 s"
    assert second == f"journal: {journal}"
    assert rest[:4] == [
        "sent:           3 of 3",
        "rejected:       0",
        "not sent:       0",
        "unknown:        0",
    ]
    assert rest[5] == "cost:           0.1200"
    assert rest[6] in {f"balance:        99.{left}" for left in ("8800", "9200", "9600")}
    assert rest[7:] == ["429s seen:      0"]
    assert result.stderr == ""


def test_bulk_run_as_json(sandbox, listed, journal):
    rows = [f'{TO},"Hello\n1",a', f"{TO},Hello 2,", f"{FAILING},Hello 3,b"]
    path = listed(rows, "to,message,reference")
    result = run(sandbox, path, as_json=True)
    *told, last = records(result)
    told.sort(key=lambda record: record["index"])
    derived = told[1]["reference"]
    assert derived.startswith("row-")
    assert [(each["line"], each["index"], each["to"], each["reference"]) for each in told] == [
        (2, 0, "***456", "a"),
        (4, 1, "***456", derived),
        (5, 2, "***999", "b"),
    ]
    assert states(journal) == {"a": "sent", derived: "sent", "b": "sent"}
    assert {each["message_id"] for each in told} == {m.message_id for m in sandbox.messages}
    assert all(each["outcome"] == "sent" and each["cost"] == "0.0400" for each in told)
    assert all(each["error"] is each["error_text"] is None for each in told)
    summary = last["summary"]
    assert summary.pop("seconds") >= 0
    assert summary == {
        "rows": 3,
        "bad_rows": 0,
        "repeats": 0,
        "sent_earlier": 0,
        "sent": 3,
        "rejected": 0,
        "not_sent": 0,
        "unknown": 0,
        "waiting": 0,
        "cost": "0.1200",
        "remaining_balance": "99.8800",
        "rate_limited": 0,
        "interrupted": False,
        "error": None,
        "error_text": None,
        "journal": str(journal),
    }


def test_bulk_run_of_json_lines_with_a_template(sandbox, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text(f'{{"to": "{TO}", "name": "Zoë"}}\n', encoding="latin-1")
    result = run(sandbox, str(path), "--message", "Hi {name}", "--encoding", "latin-1")
    assert result.exit_code == 0
    assert sandbox.messages[0].text == "Hi Zoë"


def test_national_numbers(sandbox, listed):
    path = listed(["07700 900456,Hello", "+44 7700 900999,Hello", "12,Hello"])
    result = run(sandbox, path, "--region", "GB")
    assert result.exit_code == 2
    assert "line 4: *** is not a phone number of GB" in result.stderr
    result = run(sandbox, listed(["07700 900456,Hello", "+44 7700 900999,Hello"]), "--region", "GB")
    assert result.exit_code == 0
    assert sorted(each.to for each in sandbox.messages) == [TO, FAILING]


def test_bulk_run_sends_nothing_if_any_row_is_bad(sandbox, listed):
    path = listed([f"{TO},Hello", "456,Hello", f"{TO},"])
    result = run(sandbox, path)
    assert result.exit_code == 2
    told = result.stderr.splitlines()
    assert [line.split(": ")[1].rpartition(" ")[2] for line in told[:2]] == ["3", "4"]
    assert told[2] == (
        "smsid: 2 of 3 rows cannot be sent, so nothing was sent; correct them, then run this again"
    )
    *bad, last = records(run(sandbox, path, as_json=True))
    assert [record["line"] for record in bad] == [3, 4]
    assert last == {"summary": {"rows": 3, "bad_rows": 2, "sent": 0}}
    assert sandbox.requests == []


def test_bulk_run_without_a_key_says_so_before_it_checks(listed, journal):
    result = run(None, listed(["456,Hello"]), key=None)
    assert result.exit_code == 2
    assert result.stderr.startswith("smsid: no API key")
    assert not journal.exists()


def test_refused_rows_are_listed_exit_with_1_and_are_tried_again(sandbox, listed):
    path = listed([f"{TO},Hello,SMSID", f"{TO},Hello,Nobody"], "to,message,sender_id")
    result = run(sandbox, path)
    assert result.exit_code == 1
    assert (
        "line 3: ***456 rejected: HTTP 400, the API said: Sender ID not approved" in result.stdout
    )
    assert "sent:           1 of 2" in result.stdout
    assert "rejected:       1" in result.stdout
    summary = summary_of(run(sandbox, path, as_json=True))
    assert (summary["sent_earlier"], summary["sent"], summary["rejected"]) == (1, 0, 1)


def test_a_wrong_key_stops_a_bulk_run(sandbox, listed):
    result = run(sandbox, listed(300), as_json=True, key="wrong")
    assert result.exit_code == 1
    summary = summary_of(result)
    left = summary["not_sent"] + summary["waiting"]
    assert summary["rejected"] + left == 300
    assert summary["waiting"] >= 100
    assert summary["error"] == "AuthenticationError"
    stopped, unsent = result.stderr.splitlines()
    assert stopped.startswith("smsid: stopped early: HTTP 401")
    assert unsent == f"smsid: {left} of 300 messages were left unsent; {AGAIN}"
    assert sandbox.messages == []


def test_an_exhausted_balance_stops_a_bulk_run(listed):
    with serving(balance="0.40") as sandbox:
        result = invoke(sandbox, "--budget", "100/1", "bulk", "run", listed(200))
    assert result.exit_code == 1
    assert len(sandbox.messages) == 10
    assert "sent:           10 of 200" in result.stdout
    assert "top up the account" in result.stderr
    assert result.stderr.endswith(f" messages were left unsent; {AGAIN}\n")
    assert "stopped before this message left" not in result.output


def test_a_file_changed_after_its_check_is_told(sandbox, listed, monkeypatch):
    path, prepare = listed(2), _bulk.prepare

    async def prepare_then_change(*arguments):
        ready = await prepare(*arguments)
        listed([f"{TO},Message 0", "456,Hello"])
        return ready

    monkeypatch.setattr(_bulk, "prepare", prepare_then_change)
    result = run(sandbox, path)
    assert result.exit_code == 1
    assert "was changed after it was checked, as line 3 shows" in result.stderr


# -- again ---------------------------------------------------------------------


def test_the_same_file_again_sends_nothing(sandbox, listed):
    run(sandbox, listed(3))
    result = run(sandbox, listed(3))
    assert result.exit_code == 0
    assert "list.csv: 3 messages, 3 sent earlier, 0 to send\n" in result.stdout
    assert "sent:           0 of 0\nsent earlier:   3\n" in result.stdout
    assert result.stderr == ""
    assert len(sandbox.messages) == 3


def test_an_edited_file_sends_what_is_new_and_says_so(sandbox, listed):
    run(sandbox, listed(3))
    other = f"{FAILING},Inserted"
    path = listed([other, *(f"{TO},Message {n}" for n in (2, 0, 1))])
    result = run(sandbox, path)
    assert result.exit_code == 0
    assert "list.csv: 4 messages, 3 sent earlier, 1 to send, about 0.0 s\n" in result.stdout
    assert result.stderr == (
        "smsid: the file has changed since its last run: 1 of its rows are new; "
        "what was sent then is not sent again\n"
    )
    assert [each.text for each in sandbox.messages[3:]] == ["Inserted"]
    rows = sorted(int(each["line"]) for each in reported(f"{path}.test.journal"))
    assert rows == [2, 3, 4, 5]


def test_who_got_another_text_is_listed_and_left_alone(sandbox, listed, monkeypatch):
    run(sandbox, listed([f"{TO},Hello", f"{FAILING},Hello"]))
    path = listed([f"{TO},Helo", f"{FAILING},Hello", f"{TO},Hallo"])
    result = run(sandbox, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"smsid: {path}, line 2: ***456 already got a different text",
        f"smsid: {path}, line 4: ***456 already got a different text",
        (
            "smsid: 2 recipients already got a different text from this journal, so nothing was "
            "sent; --allow-changed sends to them too"
        ),
    ]
    *changed, last = records(run(sandbox, path, as_json=True))
    assert [(each["line"], each["to"]) for each in changed] == [(2, "***456"), (4, "***456")]
    assert last == {"summary": {"rows": 3, "changed_rows": 2, "sent": 0}}
    assert len(sandbox.messages) == 2
    monkeypatch.setattr("smsid_async._feeds._TOLD", 1)
    assert "smsid: and 1 more; 2 recipients already got" in run(sandbox, path).stderr
    result = run(sandbox, path, "--allow-changed")
    assert result.exit_code == 0
    assert "2 recipients already got a different text, and get this too" in result.stderr
    assert sorted(each.text for each in sandbox.messages[2:]) == ["Hallo", "Helo"]


def test_repeated_rows_are_told_and_sent(sandbox, listed):
    path = listed([f"{TO},Hello"] * 3)
    result = run(sandbox, path, as_json=True)
    assert result.stderr == (
        "smsid: 2 rows say the same as an earlier row (on the lines 3, 4); each is sent, "
        "unless they share a reference\n"
    )
    assert summary_of(result)["repeats"] == 2
    assert len(sandbox.messages) == 3
    assert run(sandbox, path).exit_code == 0
    assert len(sandbox.messages) == 3


def test_unknown_outcomes_exit_with_3_now_and_later(listed, journal):
    path = listed(2)
    with answering(b"HTTP/1.1 200 OK\r\n\r\noops") as server:
        result = run(server, path)
        assert result.exit_code == 3
        assert "line 2: ***456 unknown: " in result.stdout
        assert "unknown:        2" in result.stdout
        assert result.stderr == (
            f"smsid: 2 messages may have been sent or not: `smsid bulk report {journal}` names "
            "them, find out and tell `smsid bulk settle`. They are not sent again, unless you say "
            "--resend-unknown\n"
        )
        result = run(server, path, as_json=True)
        assert result.exit_code == 3
        assert summary_of(result)["unknown"] == 2
        first, last = result.stderr.splitlines()
        assert first.startswith(
            "smsid: 2 messages of earlier runs may have been sent or not, and are left alone"
        )
        assert last.startswith("smsid: 2 messages may have been sent or not")
        assert {each["outcome"] for each in reported(journal)} == {"unknown"}


def test_what_may_have_been_sent_is_sent_again_only_if_asked_for(sandbox, listed, journal):
    path = listed(3)
    run(sandbox, path)
    change(journal, "UPDATE entries SET state = 'unknown', message_id = NULL WHERE row = 1")
    result = run(sandbox, path)
    assert result.exit_code == 3
    assert "list.csv: 3 messages, 2 sent earlier, 0 to send\n" in result.stdout
    assert len(sandbox.messages) == 3
    result = run(sandbox, path, "--resend-unknown")
    assert result.exit_code == 0
    assert result.stderr == "smsid: 1 messages that may have been sent are sent again\n"
    assert [each.text for each in sandbox.messages[3:]] == ["Message 1"]


def test_a_journal_can_be_named(sandbox, listed, journal, tmp_path):
    path, other = listed(2), tmp_path / "other"
    assert f"journal: {other}\n" in run(sandbox, path, "--journal", str(other)).stdout
    assert summarise(other).sent == 2
    assert not journal.exists()


def test_a_journal_of_another_api_or_account_is_refused(sandbox, listed, journal, monkeypatch):
    path = listed(2)
    run(sandbox, path)
    with serving() as another:
        result = run(another, path)
    assert result.exit_code == 2
    assert f"the journal {journal} was made for base_url {sandbox.url}, not" in result.stderr
    change(journal, "UPDATE meta SET value = 'other' WHERE name = 'account'")
    for command in (("bulk", "run", path), ("bulk", "track", str(journal))):
        result = invoke(sandbox, *command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{journal} was made for account other, not test" in result.stderr
    assert len(sandbox.messages) == 2


def test_a_journal_that_is_none_is_refused(sandbox, listed, tmp_path):
    other = tmp_path / "other"
    other.write_text("x" * 5000)
    for arguments in (
        ("run", listed(1), "--journal", str(other)),
        ("run", listed(1), "--journal", str(other), "--dry-run"),
        ("status", str(other)),
        ("status", str(tmp_path / "none")),
        ("report", str(tmp_path / "none")),
        ("track", str(tmp_path / "none")),
    ):
        result = invoke(sandbox, "bulk", *arguments)
        assert result.exit_code in (1, 2)
        assert result.stderr.startswith("smsid: the journal ")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()
    assert sandbox.requests == []


def test_a_full_disk_sends_nothing_and_is_told(sandbox, listed, monkeypatch):
    path, disk = listed(2), FakeDisk().install(monkeypatch)
    with disk.broken("database or disk is full"):
        result = run(sandbox, path)
    assert result.exit_code == 1
    assert "(database or disk is full), so this was not sent" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sandbox.messages == []


def test_a_disk_that_fails_while_sending_stops_it_with_the_sums(sandbox, listed, monkeypatch):
    path, prepare = listed(30), _bulk.prepare
    disk = FakeDisk().install(monkeypatch)

    async def prepare_then_break(*arguments):
        ready = await prepare(*arguments)
        disk.fault, disk.fails_on = "disk I/O error", ("COMMIT", "SELECT", "PRAGMA")
        return ready

    monkeypatch.setattr(_bulk, "prepare", prepare_then_break)
    result = run(sandbox, path, as_json=True)
    disk.fault = None
    assert result.exit_code == 1
    assert sandbox.messages == []
    summary = summary_of(result)
    assert summary["error"] == "JournalUnavailableError"
    assert summary["sent"] == summary["unknown"] == 0
    assert summary["not_sent"] + summary["waiting"] == 30
    assert "(disk I/O error), so this was not sent" in result.stderr


# -- dry run -------------------------------------------------------------------


def test_a_dry_run_leaves_no_trace(sandbox, listed, tmp_path):
    path = listed(3)
    result = run(sandbox, path, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "list.csv: 3 messages, 3 segments, about 0.0 s",
        f"journal: {path}.test.journal",
        *(f"line {line}: ***456 would be sent" for line in (2, 3, 4)),
    ]
    assert result.stderr == "smsid: a dry run: 3 messages would be sent, nothing was\n"
    assert [each.name for each in tmp_path.iterdir()] == ["list.csv"]
    assert sandbox.requests == []


def test_a_dry_run_knows_what_was_sent_and_changes_nothing(sandbox, listed, journal, tmp_path):
    run(sandbox, listed(3))
    path = listed([f"{TO},Message 0", f"{FAILING},New", f"{TO},Message 1"])
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    assert set(before) == {Path(path), journal, Path(f"{journal}.lock")}
    result = run(sandbox, path, "--dry-run", as_json=True)
    assert result.exit_code == 0
    would, last = records(result)
    assert (would["line"], would["to"], would["outcome"]) == (3, "***999", None)
    assert last == {
        "summary": {
            "dry_run": True,
            "rows": 3,
            "repeats": 0,
            "sent_earlier": 2,
            "to_send": 1,
            "unknown": 0,
            "journal": str(journal),
        }
    }
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert len(sandbox.messages) == 3


def test_a_dry_run_refuses_what_a_run_refuses(sandbox, listed, tmp_path):
    assert run(sandbox, listed(["456,Hello"]), "--dry-run").exit_code == 2
    assert [each.name for each in tmp_path.iterdir()] == ["list.csv"]


def test_a_dry_run_beside_a_process_that_sends(sandbox, listed, journal):
    path = listed(2)
    run(sandbox, path)
    with contextlib.closing(sqlite3.connect(journal)) as other:  # so there is a log beside it
        other.execute("UPDATE entries SET state = 'claimed' WHERE row = 1")
        other.commit()
        assert Path(f"{journal}-wal").exists()
        assert summary_of(run(sandbox, path, "--dry-run", as_json=True))["to_send"] == 1


def test_a_dry_run_whose_reader_goes_away_ends(sandbox, listed, monkeypatch):
    monkeypatch.setattr(_output, "_write", lambda stream, _: BrokenPipeError() if stream else None)
    monkeypatch.setenv("SMSID_API_KEY", "test")
    session = Session(_output.Output(as_json=False), sandbox.url)
    order = Order(Path(listed(3)))
    assert session.run_async(lambda session: _bulk.dry_run(session, order)) == 0
    assert session.out.closed


# -- interrupts ----------------------------------------------------------------


def test_an_interrupted_bulk_run_finishes_what_is_in_flight_and_continues(listed):
    path = listed(200)
    with serving(latency=0.1) as sandbox:
        pressed = interrupt_when(lambda: len(sandbox.messages) >= 5)
        result = invoke(sandbox, "--json", "--budget", "20/1", "bulk", "run", path)
        pressed.join()
        assert result.exit_code == 130
        *told, last = records(result)
        sent = [record["message_id"] for record in told if record["outcome"] == "sent"]
        assert sorted(sent) == sorted(each.message_id for each in sandbox.messages)
        summary = last["summary"]
        left = summary["not_sent"] + summary["waiting"]
        assert summary["interrupted"] is True
        assert summary["sent"] == len(sent) >= 5
        assert len(sent) + left == 200
        assert summary["unknown"] == 0
        assert result.stderr == f"smsid: {left} of 200 messages were left unsent; {AGAIN}\n"
        result = run(sandbox, path, as_json=True)
        assert result.exit_code == 0
        summary = summary_of(result)
        assert (summary["sent_earlier"], summary["sent"]) == (len(sent), left)
    assert {each.text for each in sandbox.messages} == {f"Message {n}" for n in range(200)}
    assert len(sandbox.messages) == 200


@contextlib.asynccontextmanager
async def view_of(sandbox, path, **options):
    """Prepare a run for a terminal of ours."""
    leave = options.pop("leave", os._exit)
    async with SMSIDClient(
        "test", base_url=sandbox.url, budget=RateBudget(1000, 1.0), **options
    ) as client:
        session = Session(_output.Output(as_json=True), sandbox.url, client.budget)
        order = Order(Path(path))
        source, journal = order.source(), _prepare.journal_for(order, client)
        job = order.job(source, journal)
        try:
            ready = await _prepare.prepare(session, client, job, source, journal.path)
            yield _bulk.RunView(client, job, journal, ready, session.out, leave=leave)
        finally:
            await journal.aclose()


def test_a_reader_that_pauses_makes_no_answer_late(listed, monkeypatch):
    path, record = listed(20), _output.Output.record

    def slowly(self, values):
        time.sleep(0.2)
        record(self, values)

    async def check():
        async with Sandbox(latency=0.1) as sandbox:
            async with view_of(sandbox, path, attempt_timeout=0.3) as run:
                await run.run()
                assert run.state.counts == {"sent": 20}

    monkeypatch.setattr(_output.Output, "record", slowly)
    asyncio.run(check())


def test_a_second_interrupt_leaves_at_once(listed, capsys):
    path = listed(50)

    async def check():
        latency, left = Latency(60.0), []
        async with Sandbox(latency=latency) as sandbox:
            async with view_of(sandbox, path, leave=left.append, attempt_timeout=2) as run:
                task = asyncio.create_task(run.run())
                while latency.arrived < 3:
                    await asyncio.sleep(0.01)
                run._interrupt()
                await asyncio.sleep(0.1)  # what has not left is reported
                assert left == []
                run._interrupt()
                assert left == [130]
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    asyncio.run(check())
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["unknown"] >= 3
    assert summary["unknown"] + summary["not_sent"] + summary["waiting"] == 50
    assert AGAIN in err
    assert f"{summary['unknown']} messages may have been sent or not: `smsid bulk report" in err


# -- status and report ---------------------------------------------------------


def test_status(sandbox, listed, journal):
    run(sandbox, listed([f"{TO},Hello,SMSID", f"{TO},Hello,Nobody"], "to,message,sender_id"))
    assert invoke(None, "bulk", "status", str(journal), key=None).stdout.splitlines() == [
        f"journal:    {journal}",
        "sent:       1 of 2",
        "rejected:   1",
        "not sent:   0",
        "unknown:    0",
        "waiting:    0",
        "in flight:  0",
        "delivered:  0",
        "failed:     0",
        "cost:       0.0400",
    ]
    assert records(invoke(None, "--json", "bulk", "status", str(journal))) == [
        {
            "total": 2,
            "sent": 1,
            "rejected": 1,
            "not_sent": 0,
            "unknown": 0,
            "waiting": 0,
            "in_flight": 0,
            "delivered": 0,
            "failed": 0,
            "untraceable": 0,
            "cost": "0.0400",
            "journal": str(journal),
        }
    ]


def test_status_tells_what_the_api_will_not_tell_about(sandbox, listed, journal):
    run(sandbox, listed(1))
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute("UPDATE entries SET delivery = 'untraceable'")
    lines = invoke(None, "bulk", "status", str(journal), key=None).stdout.splitlines()
    assert "untraceable: 1 (the API tells nothing about them)" in lines


def test_what_is_in_doubt_is_settled_and_the_next_run_sends_the_rest(sandbox, listed, journal):
    path = listed([f"{TO},One,1", f"{TO},Two,2"], "to,message,reference")
    run(sandbox, path)
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute("UPDATE entries SET state = 'unknown', message_id = NULL")
    assert run(sandbox, path).exit_code == 3
    settle = ("bulk", "settle", str(journal))
    assert invoke(None, *settle, "--sent", "1").stdout == "settled as sent: 1\n"
    result = invoke(None, *settle, "--not-sent", "2", "3")
    assert result.exit_code == 1
    assert result.stdout == "settled as not sent: 1\n"
    assert "3: the journal has no unknown message of this name" in result.stderr
    run(sandbox, path)
    assert sorted(message.text for message in sandbox.messages) == ["One", "Two", "Two"]
    assert {each["outcome"] for each in reported(journal)} == {"sent"}
    result = invoke(sandbox, "bulk", "track", str(journal), "--timeout", "0.1")
    assert "of 2 sent" in result.stdout
    missing = invoke(None, "bulk", "settle", f"{journal}.no", "--sent", "1")
    assert missing.exit_code == 2


def test_the_report_neutralises_formulas_and_nothing_is_lost(sandbox, listed, journal, tmp_path):
    path = listed([f"{TO},Hello,=1+1", f"{TO},Hello,'x", f"{TO},Hello,Zoë"], "to,message,reference")
    run(sandbox, path)
    found = {each["reference"]: each for each in reported(journal)}
    assert set(found) == {"'=1+1", "''x", "Zoë"}
    assert {each["to"] for each in found.values()} == {f"'{TO}"}
    assert found["Zoë"]["message_id"] in {each.message_id for each in sandbox.messages}
    whole = invoke(None, "bulk", "report", str(journal), private=False).stdout_bytes
    assert whole.count(b"\r\n") == whole.count(b"\n") == 4
    assert "Zoë".encode() in whole

    target = tmp_path / "report.csv"
    result = invoke(None, "bulk", "report", str(journal), "-o", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"smsid: wrote 3 entries to {target}\n"
    assert target.read_bytes() == whole

    target = tmp_path / "report.jsonl"
    options = ("--format", "jsonl", "-o", str(target))
    result = invoke(None, "--json", "bulk", "report", str(journal), *options)
    assert records(result) == [{"entries": 3, "report": str(target)}]
    told = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert {(each["reference"], each["to"]) for each in told} == {
        ("=1+1", TO),
        ("'x", TO),
        ("Zoë", TO),
    }


def test_a_report_that_cannot_be_written_is_told(sandbox, listed, journal, tmp_path):
    run(sandbox, listed(1))
    result = invoke(None, "bulk", "report", str(journal), "-o", str(tmp_path / "no" / "r.csv"))
    assert result.exit_code == 2
    assert "cannot be written (No such file or directory)" in result.stderr


# -- track ---------------------------------------------------------------------


def test_track_follows_everything_up(listed, journal):
    path = listed([f"{TO},Hello", f"{FAILING},Hello"])
    with serving(delivery=(0, 0)) as sandbox:
        run(sandbox, path)
        result = invoke(sandbox, *FAST, "bulk", "track", str(journal))
        assert result.exit_code == 1
        failed = next(each.message_id for each in sandbox.messages if each.to == FAILING)
        assert result.stdout == (
            f"line 3: failed (message {failed})\n1 delivered, 1 failed, 0 waiting, of 2 sent\n"
        )
        assert {each["line"]: each["delivery"] for each in reported(journal)} == {
            "2": "delivered",
            "3": "failed",
        }
        again = invoke(sandbox, "--json", *FAST, "bulk", "track", str(journal))
        assert again.exit_code == 1
        assert records(again) == [
            {"summary": {"sent": 2, "delivered": 1, "failed": 1, "not_told": 0, "waiting": 0}}
        ]
        assert len(sandbox.requests) == 4  # what is final is not asked for again


def test_track_as_json(listed, journal):
    with serving(delivery=(0, 0)) as sandbox:
        run(sandbox, listed(1))
        result = invoke(sandbox, "--json", *FAST, "bulk", "track", str(journal))
    assert result.exit_code == 0
    (message,) = sandbox.messages
    told, last = records(result)
    assert told.pop("reference").startswith("row-")
    assert told == {"line": 2, "message_id": message.message_id, "status": "delivered"}
    assert last["summary"]["delivered"] == 1


def test_track_until_its_time_is_over(sandbox, listed, journal):
    run(sandbox, listed(2))
    result = invoke(sandbox, *FAST, "bulk", "track", str(journal), "--timeout", "0.5")
    assert result.exit_code == 3
    assert result.stdout == "0 delivered, 0 failed, 2 waiting, of 2 sent\n"
    result = invoke(sandbox, "bulk", "track", str(journal), "--timeout", "-1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "timeout is -1.0" in result.stderr


def test_track_says_what_the_api_does_not_tell(sandbox, listed, journal):
    run(sandbox, listed(1))
    change(journal, "UPDATE entries SET message_id = 'm-0'")
    result = invoke(sandbox, *FAST, "bulk", "track", str(journal))
    assert result.exit_code == 3
    assert result.stdout == (
        "line 2: the API tells nothing about it (message m-0)\n"
        "0 delivered, 0 failed, 0 waiting, 1 not told, of 1 sent\n"
    )


def test_track_names_what_has_no_line_by_its_reference(sandbox, listed, journal):
    run(sandbox, listed([f"{TO},Hello,a"], "to,message,reference"))
    change(journal, "UPDATE entries SET message_id = 'm-0', line = NULL")
    result = invoke(sandbox, *FAST, "bulk", "track", str(journal))
    assert result.stdout.startswith("a: the API tells nothing about it (message m-0)\n")


def test_track_with_a_wrong_key_says_so(sandbox, listed, journal):
    run(sandbox, listed(1))
    result = invoke(sandbox, "bulk", "track", str(journal), key="wrong")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("smsid: HTTP 401")


def test_an_interrupt_ends_track_cleanly(sandbox, listed, journal):
    run(sandbox, listed(2))
    pressed = interrupt_when(lambda: len(sandbox.requests) >= 4)
    result = invoke(sandbox, *FAST, "bulk", "track", str(journal))
    pressed.join()
    assert (result.exit_code, result.stderr) == (130, "")
    assert result.stdout == "0 delivered, 0 failed, 2 waiting, of 2 sent\n"


def test_a_reader_that_goes_away_ends_track(sandbox, listed, journal, monkeypatch):
    run(sandbox, listed(2))
    monkeypatch.setenv("SMSID_API_KEY", "test")
    monkeypatch.setenv("SMSID_ACCOUNT", "test")
    session = Session(_output.Output(as_json=True), sandbox.url)
    session.out.closed = True
    track = session.run_async(lambda session: _track.track_journal(session, journal, None))
    assert track == 3
    assert len(sandbox.requests) < 6
