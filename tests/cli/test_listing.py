"""Lists of executions, and how a console shows them."""

from __future__ import annotations

import io
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from rich.console import Console

from commands import HOSTILE, events_of
from constellation_otel.cli import listing
from constellation_otel.cli.listing import Listed, Wanted, list_executions, print_listing
from constellation_otel.events import ExecutionCancelled, ExecutionCompleted, ExecutionJoined, ExecutionStarted
from deliveries import MS, T0, execution

if TYPE_CHECKING:
    from constellation_otel.events import Event

SECOND = 1_000 * MS


def outcome_events() -> list[Event]:
    """Executions 1 to 5: one of each outcome, a second apart, and one without a module that took two seconds."""
    ids = [UUID(int=number) for number in range(6)]
    return [
        *execution(1),
        *execution(2, fails=True, start_ns=T0 + SECOND),
        ExecutionStarted(ids[3], "dag-3", T0 + 2 * SECOND),
        ExecutionCancelled(ids[3], "dag-3", T0 + 2 * SECOND + MS),
        ExecutionStarted(ids[4], "dag-4", T0 + 3 * SECOND),
        ExecutionStarted(ids[5], "dag-1", T0 + 4 * SECOND),
        ExecutionCompleted(ids[5], "dag-1", True, 2_000.0, T0 + 6 * SECOND),
    ]


def numbers(listed: list[Listed]) -> list[int]:
    return [it.execution_id.int for it in listed]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), [5, 4, 3, 2, 1]),
        (Wanted(dag_name="dag-1"), [5, 1]),
        (Wanted(dag_name="dag"), []),
        (Wanted(outcome="success"), [5, 1]),
        (Wanted(outcome="failure"), [2]),
        (Wanted(outcome="cancelled"), [3]),
        (Wanted(outcome="abandoned"), [4]),
        (Wanted(slower_than_ns=4 * MS), [5]),
        (Wanted(slower_than_ns=4 * MS - 1), [5, 2, 1]),
        (Wanted(since_ns=T0 + 2 * SECOND), [5, 4, 3]),
        (Wanted(dag_name="dag-1", since_ns=T0 + 1), [5]),
    ],
)
def test_the_wanted_executions_are_listed_newest_first(wanted: Wanted, expected: list[int]) -> None:
    events = outcome_events()
    Random(7).shuffle(events)
    listed, count = list_executions(events, wanted, 10)
    assert (numbers(listed), count) == (expected, len(expected))


def test_a_list_has_its_limit_and_says_how_many_there_were() -> None:
    listed, count = list_executions(outcome_events(), Wanted(), 2)
    assert (numbers(listed), count) == ([5, 4], 5)


def test_modules_are_counted_for_each_execution() -> None:
    listed, _ = list_executions(outcome_events(), Wanted(), 10)
    assert [it.modules for it in listed] == [0, 0, 0, 1, 1]


def test_an_execution_that_was_only_joined_is_not_listed() -> None:
    assert list_executions([ExecutionJoined(UUID(int=1), "dag-1", T0)], Wanted(), 10) == ([], 0)


def test_a_long_source_is_listed_whole_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MAX_OPEN", 4)
    listed, count = list_executions(events_of(*range(1, 100)), Wanted(), 3)
    assert (count, len(listed), {it.modules for it in listed}) == (99, 3, {1})


def printed(listed: list[Listed], *, encoding: str = "utf-8", width: int = 80, is_terminal: bool = False) -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        print_listing(listed, Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
        file.flush()
        return raw.getvalue().decode(encoding)


def test_a_list_has_headings_and_a_line_for_each_execution() -> None:
    listed, _ = list_executions(outcome_events(), Wanted(), 10)
    assert (
        printed(listed)
        == """\
  OUTCOME    STARTED (UTC)        DURATION  MODULES  EXECUTION                             DAG
✓ success    2026-11-23 20:22:47       2 s        0  00000000-0000-0000-0000-000000000005  dag-1
? abandoned  2026-11-23 20:22:46      1 ns        0  00000000-0000-0000-0000-000000000004  dag-4
⊘ cancelled  2026-11-23 20:22:45      1 ms        0  00000000-0000-0000-0000-000000000003  dag-3
✗ failure    2026-11-23 20:22:44      4 ms        1  00000000-0000-0000-0000-000000000002  dag-2
✓ success    2026-11-23 20:22:43      4 ms        1  00000000-0000-0000-0000-000000000001  dag-1
"""
    )


def test_a_terminal_cuts_lines_and_ascii_has_its_marks() -> None:
    events = [ExecutionStarted(UUID(int=1), f"ä{HOSTILE}", T0)]
    listed, _ = list_executions(events, Wanted(), 1)
    text = printed(listed, encoding="ascii")
    assert text.splitlines()[1].startswith("? abandoned  2026-11-23 20:22:43      1 ns        0  0000")
    assert text.splitlines()[1].endswith("  \\xe4a\\x1b[2J\\x9b5n\\u202e[red]b[/]")
    lines = printed(listed, is_terminal=True).splitlines()
    assert {len(line) for line in lines} == {80}
    assert all(line.endswith("…") for line in lines)
