"""What a command shows: log, status line and summary, on a terminal and elsewhere; and how signals stop it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import msgspec
import pytest
from rich.console import Console

from commands import HOSTILE, environment, events_of, line, otlp, running, until, written
from constellation_otel.cli.console import LOST, NOT_DELIVERED, _status, log_handler, make_console, say
from constellation_otel.cli.replay import run_replay
from constellation_otel.cli.show import show
from constellation_otel.delivery import Bridge
from constellation_otel.errors import UnavailableError
from constellation_otel.receiver import Receiver, Refuse
from constellation_otel.transports.journal import Journal
from deliveries import ListSink, ListSource, records
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.delivery import BridgeReport


def last_line(report: BridgeReport) -> str:
    """The last line of a run's summary."""
    console = Console(file=io.StringIO())
    say(report, "bridged", console)
    return console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined, no-any-return]


def test_an_error_in_the_log_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with log_handler(make_console(stderr=True)):
        try:
            raise ValueError("bad")
        except ValueError:
            logging.getLogger("theirs").exception("it failed")
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "theirs", "it failed")
    assert "ValueError: bad" in entry["exception"]


def read_terminal(descriptor: int, until: str) -> str:
    """Reads what a program writes to its terminal, until a text is there."""
    text, end = "", time.monotonic() + DEADLINE
    while until not in text:
        assert time.monotonic() < end, f"no {until!r} in {text!r}"
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                text += os.read(descriptor, 65_536).decode()
            except OSError:
                assert until in text, f"no {until!r} in {text!r}"
    return text


def test_a_terminal_has_a_status_line_with_the_troubles(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    receiver.order(
        Refuse(grpc_code=grpc.StatusCode.UNAUTHENTICATED, message="who are you", times=1_000), signal="traces"
    )
    ours, theirs = pty.openpty()
    arguments = line("bridge", source, "--to", otlp(receiver), "--close-timeout", "0.2")
    try:
        with subprocess.Popen(arguments, stderr=theirs, env=environment(TERM="xterm", COLUMNS="200")) as process:
            os.close(theirs)
            text = read_terminal(ours, "4 events, 0 open, sent: otlp 0, held: 4")
            text += read_terminal(ours, "otlp: http")
            process.send_signal(signal.SIGINT)
            text += read_terminal(ours, "run it again: what is missing can be read again")
            assert process.wait(DEADLINE) == NOT_DELIVERED
    finally:
        os.close(ours)
    assert "4 events bridged from jsonl:" in text


def test_on_a_terminal_a_replay_has_a_progress_bar(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(*range(500)))
    receiver.order(Refuse(times=1_000), signal="traces")
    ours, theirs = pty.openpty()
    arguments = line("replay", source, "--to", otlp(receiver))
    try:
        with subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=environment(TERM="xterm")) as process:
            os.close(theirs)
            read_terminal(ours, "━━━")
            receiver.clear()
            read_terminal(ours, "2000 events replayed from jsonl:")
            assert process.wait(DEADLINE) == 0
    finally:
        os.close(ours)
    assert len(receiver.spans) == 1_000


@UNWATCHED
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
    ],
)
def test_the_second_signal_ends_a_bridge_at_once(first: int, second: int, receiver: Receiver, tmp_path: Path) -> None:
    """In any combination of SIGTERM and SIGINT."""
    source = written(tmp_path / "events.jsonl", events_of(1))
    endpoint = otlp(receiver)
    receiver.stop()
    with running("bridge", source, "--to", endpoint, "--close-timeout", "600") as process:
        until(process, "are held, the next try is in")
        process.send_signal(first)
        until(process, "what is held is delivered now")
        process.send_signal(second)
        assert process.wait(DEADLINE) == -second


def test_a_summary_says_what_is_lost() -> None:
    away = ListSink(*[UnavailableError("away")] * 99)
    bridge = Bridge(ListSource(records(events_of(1)), is_durable=False), [away], close_timeout=0.1)
    assert last_line(bridge.run()) == ("4 events are lost: they were not delivered in time, and cannot be read again")


def test_a_summary_says_what_the_journal_could_not_take(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", sinks=["list"])
    (tmp_path / "j.db").rename(tmp_path / "elsewhere")
    report = Bridge(ListSource(records(events_of(1))), [ListSink()], journal=journal).run()
    assert last_line(report) == "4 events went to the sinks from memory, since the journal could not take them"


def test_foreign_text_does_nothing_to_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names and messages of events, words of an endpoint, the name of a file."""
    path = tmp_path / "[red]x[b]\x1b[31m.jsonl"
    execution_id = str(UUID(int=1))
    fields = {"executionId": execution_id, "dagName": HOSTILE, "durationMs": None, "error": None, "timestamp": 1}
    kinds = ("execution.started", "execution.completed")
    records = [{**fields, "eventType": kind, "moduleName": None, "succeeded": kind == kinds[1]} for kind in kinds]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"eventType": HOSTILE}]))
    console = Console(force_terminal=True, no_color=True, highlight=False, file=io.StringIO(), width=200)
    assert show(UUID(int=1), f"jsonl:{path}", console)
    with log_handler(console):
        logging.getLogger("theirs").warning("%s", HOSTILE)
        logging.getLogger(show.__module__).warning("%s", HOSTILE)
    report = Bridge(ListSource([]), [ListSink()]).report
    (sent,) = report.sinks.values()
    report = msgspec.structs.replace(report, source=HOSTILE, sinks={HOSTILE: sent}, failed_acknowledgements=3)
    say(report, HOSTILE, console)
    console.print(_status(report, {HOSTILE: HOSTILE}, None))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 acknowledgements failed" in shown
    for harmful in ("\x1b[2J", "\x9b", "\u202e", "\x1b[31m"):
        assert harmful not in shown
    assert shown.count("[red]b[/]") >= 6
    assert run_replay(f"jsonl:{path}", [f"jsonl:{tmp_path}/out.jsonl"]) == LOST
    captured = capfd.readouterr()
    assert all(text.replace("\n", "").isprintable() for text in captured)
