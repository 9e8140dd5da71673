"""The same executions sent again and again, into a Jaeger that shows each span once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from constellation_otel import trace_id_of
from constellation_otel.events import decode_frame, encode_json
from engine_stand_in import recorded

from .executions import replay, written
from .peers import Jaeger
from .recorded_runs import RUNS, check_whole, recorded_executions, spans_in
from .traces import JAEGERS_OWN, read_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from constellation_otel.traces import Span


@pytest.fixture
def jaeger(tmp_path: Path) -> Iterator[Jaeger]:
    """One that knows nothing; killed in the end, since it takes long to stop in order."""
    server = Jaeger(tmp_path / "jaeger")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def replay_all(jaeger: Jaeger, folder: Path) -> None:
    """Replays each recording as its own file of lines; nothing is left to come when it returns."""
    endpoint = jaeger.grpc_endpoint.replace("http://", "otlp://")
    for run in RUNS:
        events = [encode_json(decode_frame(json.dumps(line.frame))) for line in recorded(run)]
        done = replay(written(folder / run, events), "--to", endpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{len(events)} events replayed from ")
        assert "0 still open, 0 abandoned, 0 late, 0 duplicate, 0 unreadable, 0 dropped" in done.stdout


def shown(jaeger: Jaeger) -> dict[UUID, list[Span]]:
    """What Jaeger shows of the recorded executions."""
    return {
        execution_id: [it.span for it in read_back(jaeger, trace_id_of(execution_id), spans=spans_in(frames))]
        for execution_id, frames in recorded_executions().items()
    }


def check_shown(found: dict[UUID, list[Span]]) -> None:
    """Every span is there once, as the engine told it, and Jaeger finds none odd."""
    for execution_id, frames in recorded_executions().items():
        check_whole(found[execution_id], execution_id, frames)
    spans = [span for trace in found.values() for span in trace]
    assert (len(found), len(spans)) == (67, 245)
    assert [span for span in spans if JAEGERS_OWN in span.attributes] == []


def test_a_replay_that_is_repeated_shows_no_span_twice(jaeger: Jaeger, tmp_path: Path) -> None:
    """Neither before anybody looked nor after: Jaeger changes spans that it finds odd when it is asked for them."""
    replay_all(jaeger, tmp_path)
    replay_all(jaeger, tmp_path)
    check_shown(shown(jaeger))
    replay_all(jaeger, tmp_path)
    check_shown(shown(jaeger))
