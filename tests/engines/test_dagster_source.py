"""Dagster's event log as a source, on Dagster itself: `make adapters`."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import pytest

from constellation_otel.delivery import Bridge, Unreadable
from constellation_otel.errors import ConfigurationError, SourceError, UnavailableError
from constellation_otel.testing import check_source
from constellation_otel.transports import source_of
from constellation_otel.transports.dagster import DagsterSource
from engines import dagster_jobs as jobs
from engines.dagster_homes import (
    CONSOLIDATED,
    OK,
    TREES,
    Home,
    by_name,
    cancel,
    check_lengths,
    events_of,
    read_all,
)
from programs import run_command
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.delivery import SourceItem

# the engine's own, in the releases that are tested
pytestmark = pytest.mark.filterwarnings("default")

# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [False, True])
def test_the_source_keeps_its_contract(follow: bool, home: Home, tmp_path: Path) -> None:
    for name in ("ok", "failure", "retried"):
        home.run(getattr(jobs, name))
    events = events_of(read_all(home.source()))

    def make() -> DagsterSource:
        return home.source(follow=follow, poll_interval=0.1)

    check_source(make, events=events, outages={"no instance": lambda: DagsterSource(tmp_path / "nowhere")})


def test_a_bridge_follows_runs_that_come(home: Home) -> None:
    home.run(jobs.ok)
    with following(home) as has_spans:
        eventually(lambda: has_spans("conformance", 1), "the run from before has arrived")
        for count in (2, 3):
            home.run(jobs.retried)
            eventually(lambda count=count: has_spans("conformance", count), "the new run has arrived")  # type: ignore[misc]
    assert sorted(home.tree().split("\n\n")) == sorted([OK, TREES["retried"], TREES["retried"]])


def test_a_bridge_gives_a_step_before_its_run_has_ended(home: Home) -> None:
    child = home.start("cancelled")
    try:
        with following(home, settle=0.1):
            cancel(home, child)
            eventually(lambda: by_name(home.receiver.spans, "conformance"), "the run has ended")
    finally:
        child.kill()
        child.wait(DEADLINE)
    check_lengths(home.receiver.spans)


@contextmanager
def following(home: Home, **options: Any) -> Iterator[Callable[[str, int], bool]]:
    """Has a bridge follow the instance meanwhile."""
    bridge = Bridge(home.source(follow=True, poll_interval=0.1), [home.sink()], **options)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    try:
        yield lambda name, count: len(by_name(home.receiver.spans, name)) >= count
    finally:
        bridge.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_runs_whose_records_are_in_one_table_are_read_one_by_one(make_home: Callable[..., Home]) -> None:
    one_table = make_home(CONSOLIDATED)
    first = one_table.start("retried")
    second = one_table.start("ok")
    assert [first.wait(2 * DEADLINE), second.wait(2 * DEADLINE)] == [0, 0]
    events = events_of(read_all(one_table.source()))
    check_source(one_table.source, events=events)
    assert one_table.replay().is_delivered
    assert sorted(one_table.tree().split("\n\n")) == sorted([OK, TREES["retried"]])
    check_lengths(one_table.receiver.spans)


def test_only_the_runs_of_a_job_or_since_a_time_are_read(home: Home) -> None:
    first = home.run(jobs.ok)
    home.run(jobs.shop())
    runs = {str(event.execution_id) for event in events_of(read_all(home.source(job="conformance")))}
    assert runs == {first}
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert read_all(home.source(since=tomorrow)) == []
    assert len({event.execution_id for event in events_of(read_all(home.source(since=tomorrow - timedelta(2))))}) == 2


def test_only_one_run_is_read_for_its_execution_id(home: Home) -> None:
    wanted, _ = UUID(home.run(jobs.ok)), home.run(jobs.ok)
    assert {event.execution_id for event in events_of(read_all(home.source(execution_id=wanted)))} == {wanted}


def test_more_runs_than_a_page_has_are_read_once_each(home: Home) -> None:
    runs = [home.instance.create_run_for_job(jobs.ok) for _ in range(70)]
    for run in runs:
        home.instance.report_run_canceled(run)
    events = events_of(read_all(home.source()))
    assert [str(event.execution_id) for event in events[::2]] == [run.run_id for run in runs]
    assert len(events) == 140


def test_a_run_that_is_deleted_while_it_is_followed_stops_nothing(home: Home) -> None:
    """Dagster lists no runs behind one that is not there, and SQLite gives its place to the next one."""
    first = home.run(jobs.ok)
    source = home.source(follow=True, poll_interval=0.1)
    try:
        assert runs_in(source, 1) == {first}
        home.instance.delete_run(first)
        second = home.run(jobs.ok)
        third = home.run(jobs.ok)
        assert runs_in(source, 2) == {second, third}
    finally:
        source.close()


def runs_in(source: DagsterSource, count: int) -> set[str]:
    """The runs that a source gives the end of, as many as that."""
    ended: set[str] = set()

    def read() -> bool:
        for event in events_of(source.read(0.2)):
            if event.kind == "execution.completed":
                ended.add(str(event.execution_id))
        return len(ended) >= count

    eventually(read, f"{count} runs have ended")
    return ended


def test_a_record_that_dagster_cannot_read_costs_that_record_only(home: Home) -> None:
    run_id = home.run(jobs.ok)
    whole = events_of(read_all(home.source()))
    damaged = damage(home, run_id, "STEP_START", "clean")
    items = read_all(home.source())
    (unreadable,) = [item for item in items if isinstance(item, Unreadable)]
    assert unreadable.position == (run_id, damaged)
    clean = uuid5(UUID(run_id), "clean")
    assert events_of(items) == [
        event for event in whole if (event.kind, getattr(event, "module_id", None)) != ("module.started", clean)
    ]


def test_the_newest_record_may_be_one_that_dagster_cannot_read(home: Home) -> None:
    run_id = home.run(jobs.ok)
    damaged = damage(home, run_id, "PIPELINE_SUCCESS", None)
    source = home.source(follow=True, poll_interval=0.1)
    found: list[SourceItem] = []

    def read() -> bool:
        found.extend(source.read(0.2))
        return any(isinstance(item, Unreadable) for item in found)

    try:
        eventually(read, "the damage was given")
    finally:
        source.close()
    assert [item.position for item in found if isinstance(item, Unreadable)] == [(run_id, damaged)]
    assert len(events_of(found)) == 9


def damage(home: Home, run_id: str, kind: str, key: str | None) -> int:
    """Makes a record unreadable; its id."""
    with sqlite3.connect(home.folder / "history/runs" / f"{run_id}.db") as database:
        rows = database.execute("SELECT id, event FROM event_logs WHERE dagster_event_type = ?", (kind,)).fetchall()
        (found,) = [number for number, event in rows if json.loads(event)["dagster_event"]["step_key"] == key]
        database.execute("UPDATE event_logs SET event = '{' WHERE id = ?", (found,))
    return int(found)


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_a_url_names_the_folder_or_what_dagster_home_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home.folder))
    for url in ("dagster:", f"dagster:{home.folder}", "dagster:?job=conformance&since=2026-01-31"):
        source = source_of(url, follow=False)
        assert source.name == f"dagster:{home.folder}"
        source.close()
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME is not set"):
        source_of("dagster:", follow=False)


@pytest.mark.parametrize("query", ["?pipeline=x", "?job=", "?since=yesterday"])
def test_a_query_with_something_unknown_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError):
        source_of(f"dagster:/srv/dagster{query}", follow=False)


def test_a_folder_without_an_instance_is_left_as_it_is(tmp_path: Path) -> None:
    source = DagsterSource(tmp_path)
    with pytest.raises(SourceError, match="not the folder of a Dagster instance"):
        source.read(0)
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_opened_is_asked_again(home: Home) -> None:
    home.run(jobs.ok)
    home.instance.dispose()
    database = home.folder / "history/runs.db"
    away = database.rename(database.with_suffix(".away"))
    database.mkdir()
    source = home.source()
    with pytest.raises(UnavailableError):
        source.read(0)
    database.rmdir()
    away.rename(database)
    assert len(events_of(read_all(source))) == 10


def test_the_command_line_replays_and_shows_a_run(home: Home) -> None:
    run_id = home.run(jobs.ok)
    home.receiver.clear()
    endpoint = home.receiver.grpc_endpoint.replace("http:", "otlp:")
    command = f"{sys.executable} -m constellation_otel"
    options: dict[str, str] = {"PYTHONWARNINGS": "ignore", "DAGSTER_HOME": str(home.folder)}
    stdout, _ = run_command(home.receiver, f"{command} replay dagster: --to {endpoint}", **options)
    assert stdout.startswith(f"10 events replayed from dagster:{home.folder}: 1 executions, 5 spans")
    assert len(home.receiver.spans) == 5
    stdout, _ = run_command(home.receiver, f"{command} show {run_id} --from dagster:", **options)
    assert "conformance" in stdout


def test_a_run_whose_plan_was_deleted_has_steps_without_links(home: Home) -> None:
    run_id = home.run(jobs.ok)
    with sqlite3.connect(home.folder / "history/runs.db") as database:
        database.execute("DELETE FROM snapshots")
    home.replay()
    spans = [span for span in home.receiver.spans if span.attributes.get("constellation.execution.id") == run_id]
    assert len(spans) == 5
    assert not any(span.links for span in spans)
