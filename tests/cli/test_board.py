"""How a source's activity looks on a terminal, and in lines."""

from __future__ import annotations

import io
from collections import Counter
from uuid import UUID

import pytest
from msgspec.structs import replace
from rich.console import Console

from commands import HOSTILE
from constellation_otel.cli.activity import Finished, Losses, Running, RunningModule, Snapshot
from constellation_otel.cli.board import Board, line_of, losses_of, outcomes_of
from constellation_otel.cli.signs import ASCII, UNICODE
from deliveries import MS, T0

SECOND = 1_000 * MS
QUIET = Snapshot(0, (), 0, 0.0, 0, Counter(), (), (), Counter(), Losses())
DONE = Finished(UUID(int=1), "nightly", "success", T0, T0 + 1_500 * MS, 3)
FAILED = Finished(UUID(int=2), "hourly", "failure", T0, T0 + 4 * SECOND, 2, "trim failed: bad\nworse")
LOST = Losses(
    gaps=1,
    dropped=2,
    restarts=3,
    unreadable=4,
    unreadable_reason="not an event: junk",
    executions=5,
    modules=6,
    abandoned=7,
)


def runs(number: int, modules: int = 1, silent_ns: int = 0) -> Running:
    names = [RunningModule(f"m-{it}", (number + it) * SECOND) for it in range(modules)]
    return Running(UUID(int=number), f"dag-{number}", 60 * number * SECOND, silent_ns, 2, tuple(names))


def drawn(
    snapshot: Snapshot, trouble: str | None = None, *, width: int = 80, height: int = 50, encoding: str = "utf-8"
) -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
        console.print(Board("ws://engine:8080", snapshot, trouble))
        file.flush()
        return raw.getvalue().decode(encoding)


def test_a_quiet_source_has_few_lines() -> None:
    assert (
        drawn(QUIET)
        == """\
ws://engine:8080
0.0 events/s, 0 executions/min; in 5 min: nothing has ended
RUNNING: 0
LOST: nothing, as far as can be seen
"""
    )


def test_a_board_has_everything_that_goes_on() -> None:
    snapshot = Snapshot(
        events=400,
        running=(runs(2, 10, 6 * SECOND), runs(1)),
        running_count=2,
        events_per_second=12.34,
        finished_per_minute=7,
        outcomes=Counter(failure=1, success=3),
        slowest=(FAILED, DONE),
        failures=(FAILED,),
        finished=Counter(success=9),
        losses=Losses(gaps=1, unreadable=4, unreadable_reason="junk"),
    )
    assert (
        drawn(snapshot, "no connection")
        == """\
ws://engine:8080
no connection
12.3 events/s, 7 executions/min; in 5 min: 3 success, 1 failure
RUNNING: 2
       2 min 0 s  00000000-0000-0000-0000-000000000002  dag-2
                  silent for 6 s  2 done  m-0 2 s, m-1 3 s, m-2 4 s, m-3 5 s, m…
       1 min 0 s  00000000-0000-0000-0000-000000000001  dag-1
                  2 done  m-0 1 s
LAST FAILURES (UTC)
✗ 11-23 20:22:47  00000000-0000-0000-0000-000000000002  hourly
                  trim failed: bad\\nworse
SLOWEST IN 5 MIN
✗            4 s  00000000-0000-0000-0000-000000000002  hourly
✓          1.5 s  00000000-0000-0000-0000-000000000001  nightly
LOST
  connections lost, with what came meanwhile: 1
  unreadable records: 4 (the last one: junk)
"""
    )
    assert "m-7 9 s, … and 2 more" in drawn(snapshot, width=200)


@pytest.mark.parametrize(("height", "lines"), [(50, 50), (32, 32), (24, 24), (10, 24)])
def test_a_board_is_no_higher_than_its_terminal(height: int, lines: int) -> None:
    """On one with room for nothing, two executions are shown, and the terminal cuts what is too much."""
    snapshot = replace(
        QUIET,
        running=tuple(runs(number) for number in range(100, 0, -1)),
        running_count=1_000,
        slowest=(DONE,) * 5,
        failures=(FAILED,) * 5,
        losses=LOST,
    )
    text = drawn(snapshot, height=height)
    shown = text.count("2 done")
    assert f"  … and {1_000 - shown} more\n" in text
    assert shown >= 2
    assert len(text.splitlines()) <= lines
    assert text.count("trim failed") == (3 if height >= 32 else 2)


@pytest.mark.parametrize("width", [1, 20, 80])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    snapshot = replace(QUIET, running=(runs(1, 10),), running_count=1, failures=(FAILED,), slowest=(DONE,), losses=LOST)
    assert max(map(len, drawn(snapshot, "no connection" * 9, width=width).splitlines())) <= width


def test_foreign_text_does_nothing_to_a_terminal_and_ascii_is_enough() -> None:
    hostile = replace(FAILED, dag_name=HOSTILE, failure=f"µ{HOSTILE}")
    running = Running(UUID(int=1), HOSTILE, 0, 0, 0, (RunningModule(HOSTILE, 0),))
    losses = Losses(unreadable=1, unreadable_reason=HOSTILE)
    snapshot = replace(
        QUIET, running=(running,), running_count=1, failures=(hostile,), slowest=(hostile,), losses=losses
    )
    for encoding in ("utf-8", "ascii"):
        text = drawn(snapshot, HOSTILE, encoding=encoding, width=200)
        assert not set(text) & set("\x1b\x9b\u202e")
        assert "a\\x1b[2J\\x9b5n\\u202e[red]b[/]" in text


def test_an_execution_that_has_ended_is_one_line() -> None:
    assert line_of(DONE, UNICODE) == (
        "✓ success    2026-11-23 20:22:43         1.5 s     3 modules  00000000-0000-0000-0000-000000000001  nightly"
    )
    assert line_of(replace(FAILED, missing="start,end"), ASCII) == (
        "x failure    2026-11-23 20:22:43           4 s     2 modules  00000000-0000-0000-0000-000000000002  hourly"
        "  trim failed: bad\\nworse  (never came: start, end)"
    )


def test_each_loss_is_said_and_no_other() -> None:
    assert losses_of(Losses()) == []
    assert losses_of(LOST) == [
        "connections lost, with what came meanwhile: 1",
        "events that found no room: 2",
        "restarts of the engine: 3",
        "unreadable records: 4 (the last one: not an event: junk)",
        "executions whose start never came: 5",
        "modules whose start or end never came: 6",
        "executions given up without an end: 7",
    ]


def test_outcomes_are_in_one_order() -> None:
    assert outcomes_of(Counter()) == ""
    assert outcomes_of(Counter(abandoned=1, cancelled=2, failure=3, success=4)) == (
        "4 success, 3 failure, 2 cancelled, 1 abandoned"
    )
