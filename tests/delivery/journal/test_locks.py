"""Who may use a journal's file, and how long a call waits for it."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery.journal.database import TIMEOUT
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource
from journals import execute, locked, numbered, numbers_of, positions
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import os, sys
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource
opened = eval(sys.argv[2])(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


def test_the_switch_to_the_log_waits_for_whoever_writes(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
    execute(path, "PRAGMA journal_mode = DELETE")
    with locked(path), pytest.raises(UnavailableError, match="database is locked"):
        Journal(path, sinks=["otlp"], timeout=0.2)
    JournalSink(path).close()


@pytest.mark.parametrize(
    ("holder", "taken"),
    [
        ("lambda path: Journal(path, sinks=['otlp'])", {"append", "consume"}),
        ("JournalSink", {"append"}),
        ("JournalSource", {"consume"}),
    ],
)
def test_a_second_process_is_refused_by_the_firsts_number(path: Path, holder: str, taken: set[str]) -> None:
    """Until that one is gone."""
    needs = {"append": JournalSink, "consume": JournalSource}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdin
            assert process.stdout.readline() == f"{process.pid}\n"
            for role, opener in needs.items():
                if role in taken:
                    with pytest.raises(
                        JournalError, match=f"process {process.pid} has {path} open to {role}, which only one"
                    ):
                        opener(path)
                else:
                    opener(path).close()
            with pytest.raises(JournalError, match=f"process {process.pid} has"):
                Journal(path, sinks=["otlp"])
        finally:
            process.communicate("die\n", timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL
    Journal(path, sinks=["otlp"]).close()


def test_a_holder_that_has_not_yet_written_its_id_is_called_new(path: Path) -> None:
    with path.with_name("events.db.append-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JournalError, match="process that has only just started has"):
            JournalSink(path)


def test_a_journal_that_could_not_be_opened_holds_nothing(path: Path) -> None:
    with closing(JournalSource(path)):
        for _ in range(2):
            with pytest.raises(JournalError, match="to consume"):
                Journal(path, sinks=["otlp"])
        JournalSink(path).close()


def test_reading_goes_on_while_another_process_writes(path: Path) -> None:
    """And writing gives up."""
    with closing(Journal(path, sinks=["otlp"], timeout=0.2)) as journal:
        journal.append(numbered(1, 2))
        with locked(path):
            assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]
            assert journal.held("otlp") == 2
            with pytest.raises(UnavailableError, match="database is locked; another process has been writing"):
                journal.append(numbered(3))
            with pytest.raises(UnavailableError, match="database is locked"):
                journal.acknowledge("otlp", positions(1))
        assert journal.append(numbered(3)) == 1
        journal.acknowledge("otlp", positions(1))
        assert numbers_of(journal.read("otlp", 0, 10)) == [2, 3]


def test_a_thread_waits_for_another_no_longer_than_its_deadline(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"], timeout=0.05)) as journal:
        with (
            journal._database.transaction(),
            pytest.raises(UnavailableError, match="another thread has been using it all the time"),
        ):
            journal.append(numbered(1))
        assert journal.append(numbered(1)) == 1


def test_a_thread_waits_for_another_and_then_goes_on(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal, ThreadPoolExecutor(1) as pool:
        with journal._database.transaction():
            waiting = pool.submit(journal.append, numbered(1))
            since = time.monotonic()
            eventually(lambda: time.monotonic() > since + 0.2, "it has looked at the time again and again")
            assert not waiting.done()
        assert waiting.result(DEADLINE) == 1


def test_a_call_that_waits_ends_when_its_time_is_shortened(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal, ThreadPoolExecutor(2) as pool:
        with locked(path):
            waiting = [pool.submit(journal.append, numbered(1)) for _ in range(2)]
            start = time.monotonic()
            journal.finish_by(start + 0.5)
            # whichever is first waits for the database, and the other one for it
            errors = [call.exception(DEADLINE) for call in waiting]
            assert all(isinstance(error, UnavailableError) for error in errors)
            said = " ".join(map(str, errors))
            assert "database is locked" in said
            assert "is busy: another thread" in said
            assert time.monotonic() - start < TIMEOUT / 2
        journal.finish_by(time.monotonic() + DEADLINE)
        assert journal.append(numbered(1)) == 1


def test_closing_does_not_wait_for_a_thread_that_hangs(path: Path) -> None:
    """That thread lets go of the file when it is done."""
    journal = Journal(path, sinks=["otlp"])
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        with journal._database.transaction():
            hangs.set()
            assert ends.wait(DEADLINE)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(hang)
        assert hangs.wait(DEADLINE)
        journal.finish_by(time.monotonic())
        start = time.monotonic()
        journal.close()
        assert time.monotonic() - start < TIMEOUT / 2
        with pytest.raises(UnavailableError, match="another thread"):
            journal.append(numbered(1))
        ends.set()
        hanging.result(DEADLINE)
    assert journal._database._connection is None
    with pytest.raises(JournalError, match="is closed"):
        journal.append(numbered(1))
    Journal(path, sinks=["otlp"]).close()


def test_a_closed_journal_says_so_and_may_be_closed_again(path: Path) -> None:
    journal = Journal(path, sinks=["otlp"])
    journal.close()
    journal.close()
    for use in (
        lambda: journal.append(numbered(1)),
        lambda: journal.read("otlp", 0, 1),
        lambda: journal.acknowledge("otlp", positions(1)),
        lambda: journal.held("otlp"),
        lambda: journal.size_bytes,
    ):
        with pytest.raises(JournalError, match=f"{path} is closed; open it again"):
            use()
