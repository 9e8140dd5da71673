"""The sinks of a journal: what each has yet to acknowledge, and who is one."""

from __future__ import annotations

import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.errors import ConfigurationError, JournalError
from constellation_otel.transports.journal import Journal, JournalSource, forget
from journals import execute, numbered, numbers_of, offsets_in, positions, positions_of
from support import DEADLINE, eventually


def test_what_all_sinks_have_acknowledged_is_deleted(path: Path) -> None:
    """Whatever is open around it."""
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(1, 2, 3, 4, 5, 6))
        journal.acknowledge("otlp", positions(5, 2, 3))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 4, 6]
        assert numbers_of(journal.read("sql", 0, 10)) == [1, 2, 3, 4, 5, 6]
        journal.acknowledge("sql", positions(3, 6, 2))
        assert offsets_in(path) == [1, 4, 5, 6]
        assert (journal.held("otlp"), journal.held("sql")) == (3, 3)
        journal.acknowledge("otlp", positions(2, 3, 6, 6, 99))
        journal.acknowledge("sql", [])
        assert offsets_in(path) == [1, 4, 5]
        assert (journal.held("otlp"), journal.held("sql")) == (2, 3)
        assert numbers_of(journal.read("otlp", 1, 10)) == [4]
        assert numbers_of(journal.read("sql", 1, 1)) == [4]


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.sampled_from(["otlp", "sql"]), st.sets(st.integers(1, 20), max_size=8)),
            st.tuples(st.sampled_from(["read otlp", "read sql"]), st.integers(0, 20)),
        ),
        max_size=25,
    )
)
def test_each_sink_reads_just_what_it_did_not_acknowledge(steps: list[tuple[str, Any]]) -> None:
    """In any sequence of calls."""
    pending: dict[str, list[int]] = {"otlp": [], "sql": []}
    appended = 0
    with tempfile.TemporaryDirectory() as folder, closing(Journal(f"{folder}/e.db", sinks=sorted(pending))) as journal:
        for step, value in steps:
            if step == "append":
                new = range(appended + 1, appended + value + 1)
                assert journal.append(numbered(*new)) == value
                appended += value
                for sink in pending:
                    pending[sink] += new
            elif step in pending:
                journal.acknowledge(step, positions(*value))
                pending[step] = [number for number in pending[step] if number not in value]
            else:
                sink = step.removeprefix("read ")
                expected = [number for number in pending[sink] if number > value]
                assert numbers_of(journal.read(sink, value, 3)) == expected[:3]
        assert {sink: journal.held(sink) for sink in pending} == {sink: len(left) for sink, left in pending.items()}
        assert offsets_in(Path(folder, "e.db")) == sorted({*pending["otlp"], *pending["sql"]})


def test_what_is_read_after_an_offset_that_is_yet_to_come(path: Path) -> None:
    """Also where the row that has it begins before."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2))
        assert journal.read("otlp", 3, 10) == []
        journal.append(numbered(3, 4, 5))
        assert numbers_of(journal.read("otlp", 3, 10)) == [4, 5]


def test_rows_that_another_sink_pins_are_looked_at_once(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(*range(1, 1001)))
        journal.acknowledge("otlp", positions(*range(1, 1001)))
        assert journal.read("otlp", 0, 10) == []
        # were it looked at again, it would be found now
        execute(path, "UPDATE events SET pending = pending | 1 WHERE id = 641")
        journal.append(numbered(1001, 1002))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1001, 1002]
        assert numbers_of(journal.read("otlp", 500, 1)) == [1001]


def test_what_was_not_acknowledged_outlives_the_journal(path: Path) -> None:
    """It is there when the file is opened again."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2, 3))
        journal.acknowledge("otlp", positions(2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal.held("otlp") == 2
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 3]


def test_a_new_sink_gets_what_is_appended_from_then_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(2))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]
        assert numbers_of(journal.read("sql", 0, 10)) == [2]
    assert caplog.messages == []


def test_a_sink_that_is_gone_keeps_its_events_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(1, 2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(3))
        journal.acknowledge("otlp", positions(1, 2, 3))
    assert offsets_in(path) == [1, 2]
    assert caplog.record_tuples == [
        (
            "constellation_otel.delivery.journal.journal",
            logging.WARNING,
            (
                f"{path} keeps 2 events for 'sql', which is not one of its sinks now: read it for that sink,"
                " or drop them with constellation_otel.transports.journal.forget(path, 'sql')"
            ),
        )
    ]


def test_a_sink_that_is_forgotten_keeps_no_events_any_more(path: Path) -> None:
    """And its bit, which the next sink gets, hands nothing down."""
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(*range(1, 11)))
        journal.acknowledge("otlp", positions(1, 2, 3, 4))
        journal.acknowledge("sql", positions(4, 5))
    assert forget(path, "sql", rows=3) == 8
    assert offsets_in(path) == [5, 6, 7, 8, 9, 10]
    with pytest.raises(ValueError, match=r"knows no sink 'sql', only \['otlp'\]"):
        forget(path, "sql")
    # its bit goes to another one, which must not inherit anything
    with closing(Journal(path, sinks=["otlp", "kafka"])) as journal:
        assert journal.read("kafka", 0, 10) == []
        assert numbers_of(journal.read("otlp", 0, 10)) == [5, 6, 7, 8, 9, 10]
        with pytest.raises(JournalError, match=f"process {os.getpid()} has {path} open to consume"):
            forget(path, "otlp")


def test_a_sink_that_the_journal_was_not_opened_for_is_refused(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        with pytest.raises(ValueError, match=r"'kafka' is none of the sinks .*: \['otlp', 'sql'\]"):
            journal.read("kafka", 0, 1)
        with pytest.raises(ValueError, match="'kafka' is none"):
            journal.acknowledge("kafka", [])
        with pytest.raises(ValueError, match="'kafka' is none"):
            journal.held("kafka")


@pytest.mark.parametrize("sinks", [[], ["otlp", "otlp"]])
def test_sinks_must_be_one_or_more_different_ones(path: Path, sinks: list[str]) -> None:
    with pytest.raises(ValueError, match="must be one or more different names"):
        Journal(path, sinks=sinks)


def test_a_file_knows_62_sinks_at_most_and_says_what_to_do(path: Path) -> None:
    with closing(Journal(path, sinks=[f"sink-{number}" for number in range(62)])) as journal:
        journal.append(numbered(1))
        assert numbers_of(journal.read("sink-61", 0, 10)) == [1]
        for number in range(62):
            journal.acknowledge(f"sink-{number}", positions(1))
        assert offsets_in(path) == []
    with pytest.raises(JournalError, match="knows 62 sinks, and no more are possible: forget one of"):
        Journal(path, sinks=["one-more"])


def test_an_appender_and_readers_at_once_lose_nothing(path: Path) -> None:
    sinks = ["kafka", "otlp", "sql"]
    got: dict[str, list[int]] = {sink: [] for sink in sinks}
    with closing(Journal(path, sinks=sinks)) as journal:

        def drain(sink: str) -> None:
            def drained() -> bool:
                items = journal.read(sink, 0, 50)
                got[sink] += numbers_of(items)
                journal.acknowledge(sink, positions_of(items))
                return len(got[sink]) >= 1000

            eventually(drained, f"all events at {sink}")

        with ThreadPoolExecutor(3) as pool:
            draining = [pool.submit(drain, sink) for sink in sinks]
            for start in range(1, 1001, 20):
                assert journal.append(numbered(*range(start, start + 20))) == 20
            for future in draining:
                future.result(DEADLINE)
        assert {sink: journal.held(sink) for sink in sinks} == dict.fromkeys(sinks, 0)
    assert got == {sink: list(range(1, 1001)) for sink in sinks}
    assert offsets_in(path) == []


def test_a_sinks_name_that_is_no_text_is_refused(path: Path) -> None:
    for make in (lambda: Journal(path, sinks=["\udcff"]), lambda: JournalSource(path, sink="\udcff")):
        with pytest.raises(ConfigurationError, match=r"'\\udcff' cannot be a sink's name"):
            make()
    Journal(path, sinks=["otlp"]).close()
