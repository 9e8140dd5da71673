"""Standard input and standard output: pipes, terminals and files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import GoneError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ModuleFailed,
)
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from deliveries import flat
from support import DEADLINE, eventually
from transports.jsonl.helpers import NS, SOON, append, awaited, drained, event, events, events_of, line, lines, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def descriptor(number: int, file: int) -> Iterator[None]:
    """Another file as standard input or output of this process, for a while; it is closed in the end."""
    saved = os.dup(number)
    os.dup2(file, number)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def run_python(program: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -W error -c "$1" {redirections}'
    arguments = ["bash", "-c", command, sys.executable, program]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def test_standard_input_may_be_a_pipe() -> None:
    far, near = os.pipe()
    with descriptor(0, far), closing(JsonlSource("-")) as source:
        began = time.monotonic()
        assert source.read(SOON) == []
        assert time.monotonic() - began >= SOON
        os.write(near, line(0) + line(1)[:9])
        assert awaited(source, 1) == [Record(event(0), Position(None, 0))]
        assert source.read(0) == []
        os.write(near, line(1)[9:-1])
        os.close(near)
        assert awaited(source, 1) == [Record(event(1), Position(None, len(line(0))))]
        eventually(lambda: source.read(0.1) == [] and source.has_ended, "the end")


def test_closing_ends_a_read_of_standard_input_that_waits() -> None:
    far, near = os.pipe()
    source = JsonlSource("-")
    thread = threading.Thread(target=source.read, args=(DEADLINE,))
    with descriptor(0, far):
        thread.start()
        try:
            eventually(lambda: source._is_reading, "the read to begin")
        finally:
            source.close()
            thread.join(DEADLINE / 2)
            os.close(near)
    assert not thread.is_alive()


def test_standard_input_may_be_a_terminal() -> None:
    near, far = os.openpty()
    with descriptor(0, far), closing(JsonlSource("-")) as source:
        os.write(near, line(0))
        assert events_of(awaited(source, 1)) == [event(0)]
        # a terminal's end of file
        os.write(near, b"\x04")
        eventually(lambda: source.read(0.1) == [] and source.has_ended, "the end")
    os.close(near)


def test_standard_input_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with descriptor(0, os.open(path, os.O_RDONLY)):
        assert events_of(drained(JsonlSource("-"))) == events(2)


def test_standard_input_that_is_a_file_may_be_followed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with descriptor(0, os.open(path, os.O_RDONLY)), closing(JsonlSource("-", follow=True)) as source:
        assert events_of(awaited(source, 2)) == events(2)
        assert source.read(0.01) == []
        append(path, line(2))
        assert events_of(awaited(source, 1)) == [event(2)]


def test_a_folder_is_no_standard_input(tmp_path: Path) -> None:
    with (
        descriptor(0, os.open(tmp_path, os.O_RDONLY)),
        closing(JsonlSource("-")) as source,
        pytest.raises(SourceError) as refused,
    ):
        source.read(1)
    assert str(refused.value) == refusal("standard input", "Is a directory")


def test_closed_standard_input_is_not_taken_for_another_file() -> None:
    program = "from constellation_otel.transports.jsonl import JsonlSource; JsonlSource('-').read(1)"
    done = run_python(program, "<&-")
    assert done.stderr.splitlines()[-1] == (
        f"constellation_otel.errors.SourceError: {refusal('standard input', 'it is closed')}"
    )


def test_standard_output_gets_lines_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(JsonlSink("-")) as sink:
        sink.send([event(0), event(1)], 10)
        assert capfd.readouterr().out.encode() == lines(2)
        sink.send([event(2)], 10)
        assert capfd.readouterr().out.encode() == line(2)


def long_events(count: int) -> list[Event]:
    """Events whose lines no pipe takes at once."""
    error = ErrorInfo("ValueError", "x" * 8_000)
    return [ModuleFailed(UUID(int=number), None, "Trim", error, NS + number) for number in range(count)]


@pytest.mark.parametrize("batch", [events(1500), long_events(50)], ids=["short lines", "long lines"])
def test_a_slow_reader_of_standard_output_gets_every_line_whole(batch: list[Event]) -> None:
    far, near = os.pipe()
    sink = JsonlSink("-")
    waiting, failures = list(batch), list[UnavailableError]()
    read: list[Record | Unreadable] = []
    with descriptor(0, far), descriptor(1, near), closing(JsonlSource("-")) as source:
        while waiting:
            try:
                sink.send(waiting, 0)
            except UnavailableError as unavailable:
                failures.append(unavailable)
                # a line that was written in part is sent again, and its rest comes first all the same
                waiting = waiting[len(unavailable.delivered) :]
                read += flat(source.read(0))
            else:
                waiting = []

        def is_read() -> bool:
            read.extend(flat(source.read(0.1)))
            return {record.event for record in read if isinstance(record, Record)} == set(batch)

        eventually(is_read, "every event to be read")
    assert {str(error) for error in failures} == {"standard output cannot be written now: nobody reads it"}
    assert all(error.delivered == frozenset(range(len(error.delivered))) for error in failures)
    assert [item for item in read if isinstance(item, Unreadable)] == []


def test_the_rest_of_a_line_is_kept_until_it_can_be_written() -> None:
    far, near = os.pipe()
    sink = JsonlSink("-")
    with descriptor(0, far), descriptor(1, near), closing(JsonlSource("-")) as source:
        for _ in range(3):
            with pytest.raises(UnavailableError):
                sink.send(long_events(10), 0)
        items = awaited(source, 1)
        sink.send([event(1000)], 0)
        items += awaited(source, 1)
        assert events_of(items) == [*long_events(len(items) - 1), event(1000)]


def test_standard_output_that_nobody_can_read_any_more_is_gone() -> None:
    far, near = os.pipe()
    os.close(far)
    with descriptor(1, near), pytest.raises(GoneError) as error:
        JsonlSink("-").send([event(0)], 1)
    assert str(error.value) == ("nothing reads standard output: Broken pipe; start again with a reader, or name a file")
    assert isinstance(error.value.__cause__, BrokenPipeError)


def test_standard_output_may_be_on_a_full_disk() -> None:
    with descriptor(1, os.open("/dev/full", os.O_WRONLY)), pytest.raises(UnavailableError) as error:
        JsonlSink("-").send([event(0)], 1)
    assert str(error.value) == "standard output cannot be written now: No space left on device"
    assert not isinstance(error.value, MisconfiguredError)


def test_closed_standard_output_is_not_taken_for_another_file() -> None:
    program = """
from uuid import UUID
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.jsonl import JsonlSink
JsonlSink("-").send([ExecutionCancelled(UUID(int=1), "pipeline", 1)], 1)
"""
    done = run_python(program, ">&-")
    assert done.stderr.splitlines()[-1] == (
        "constellation_otel.errors.GoneError: nothing reads standard output: it is closed;"
        " start again with a reader, or name a file"
    )
