"""A journal, and processes that are forked while it is open."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from constellation_otel.transports.journal import Journal
from journals import execute, run
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from pathlib import Path

FORKED = """
import os, sys
from contextlib import closing
from constellation_otel.delivery import Position
from constellation_otel.errors import ConfigurationError, JournalError
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource, events_of
from uuid import UUID

path = sys.argv[1]
execution = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
journal = Journal(path, sinks=["otlp"])
journal.append([ExecutionCancelled(execution, "dag", 1)])
closed = Journal(path + ".closed", sinks=["otlp"])
closed.close()
child = os.fork()
if child == 0:
    refused = 0
    for use in (
        lambda: journal.append([]),
        lambda: journal.read("otlp", 0, 1),
        lambda: journal.acknowledge("otlp", []),
        lambda: journal.held("otlp"),
        lambda: Journal(path, sinks=["otlp"]),
        lambda: JournalSink(path),
        lambda: events_of(path, execution),
    ):
        try:
            use()
        except JournalError as error:
            refused += "was open in the process that forked this one" in str(error)
    journal.close()
    with closing(Journal(path + ".closed", sinks=["otlp"])) as own:
        print(refused, own.append([ExecutionCancelled(execution, "dag", 2)]))
    sys.exit()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
try:
    JournalSink(path)
except JournalError as error:
    print("still held")
print(journal.append([ExecutionCancelled(execution, "dag", 2)]), journal.held("otlp"))
journal.close()
"""
FORKED_WHILE_WRITING = """
import os, sys, threading
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from uuid import UUID

execution, ended, taken = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410"), threading.Event(), 0
journal = Journal(sys.argv[1], sinks=["otlp"])

def write():
    global taken
    while not ended.is_set():
        taken += journal.append([ExecutionCancelled(execution, "x" * 500, n) for n in range(200)])

writer = threading.Thread(target=write)
writer.start()
for _ in range(6):
    child = os.fork()
    if child == 0:
        sys.exit()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
ended.set()
writer.join()
print(taken == journal.held("otlp") == sum(len(item.events) for item in journal.read("otlp", 0, 10_000_000)))
journal.close()
"""
ORPHANED = """
import os, sys
from constellation_otel.transports.journal import Journal

journal = Journal(sys.argv[1], sinks=["otlp"])
if os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def fork_takes() -> float:
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    seconds = time.monotonic() - start
    os.waitpid(child, 0)
    return seconds


def test_a_forked_child_cannot_use_its_parents_journal(path: Path) -> None:
    """And does it no harm."""
    assert run(FORKED, path) == ["7 1", "0", "still held", "1 2"]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_children_forked_inside_a_transaction_do_no_harm(path: Path) -> None:
    """To the file that their parent writes to."""
    assert run(FORKED_WHILE_WRITING, path) == ["True"]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_fork_waits_for_all_journals_together_only_once(tmp_path: Path) -> None:
    """No longer than it would for one, and not again for what hangs."""
    with contextlib.ExitStack() as stack:
        for number in range(10):
            journal = stack.enter_context(closing(Journal(tmp_path / f"{number}.db", sinks=["otlp"])))
            stack.enter_context(journal._database.transaction())
        begun = time.monotonic()
        assert fork_takes() < 5.0
        eventually(lambda: time.monotonic() > begun + 1.0, "they have taken too long")
        assert fork_takes() < 0.9


def test_locks_go_with_the_process_even_if_its_child_stays(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        try:
            assert int(process.stdout.readline()) != process.pid
            process.wait(DEADLINE)
            Journal(path, sinks=["otlp"]).close()
        finally:
            # ends the child, which has the same standard input
            process.stdin.close()
            assert process.stdout.read() == ""
