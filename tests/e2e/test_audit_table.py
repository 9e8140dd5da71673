"""Audit tables as users have them, in a real PostgreSQL: followed, and replayed into traces."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from constellation_otel import trace_id_of
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    encode_json,
)

from .bridges import bridging, command
from .databases import BERLIN, GUIDE_DDL
from .guide_listener import (
    CANCELLED,
    FETCHES,
    LOSSY,
    MS,
    PHOTOS,
    QUICK,
    WORDS,
    Listener,
    completed,
    module,
    module_completed,
    module_failed,
    module_started,
    started,
    whole,
    with_attributes,
)
from .peers import Jaeger, Postgres
from .traces import JAEGERS_OWN, read_back, traces_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.events import Event
    from constellation_otel.traces import Span

    from .bridges import RunningBridge

NS = 1_000_000_000


def told(spans: list[Span]) -> str:
    """Traces as text: a line for each span, by trace, and by id."""
    return "\n".join(line(span) for span in sorted(spans, key=lambda span: (span.trace_id, span.span_id)))


def line(span: Span) -> str:
    # while a trace is waited for, Jaeger finds modules whose execution is not there yet odd
    attributes = sorted(item for item in span.attributes.items() if item[0] != JAEGERS_OWN)
    events = [(event.name, event.timestamp_ns, sorted(event.attributes.items())) for event in span.events]
    parent = None if span.parent_span_id is None else f"{span.parent_span_id:016x}"
    return (
        f"{span.trace_id:032x} {span.span_id:016x} < {parent} {span.name!r} {span.kind.name}"
        f" {span.start_ns} {span.end_ns} {span.status.name} {span.status_description!r} {attributes} {events}"
    )


def found(jaeger: Jaeger, expected: list[Span]) -> str:
    """What Jaeger has of the traces of these spans, as text."""
    counts = {span.trace_id: 0 for span in expected}
    for span in expected:
        counts[span.trace_id] += 1
    return told([it.span for trace_id, count in counts.items() for it in read_back(jaeger, trace_id, spans=count)])


@pytest.fixture
def make_jaeger(tmp_path: Path) -> Iterator[Callable[[], Jaeger]]:
    """Makes some that know nothing; killed in the end, since they take long to stop in order."""
    made: list[Jaeger] = []

    def make() -> Jaeger:
        made.append(Jaeger(tmp_path / f"jaeger-{len(made)}"))
        made[-1].start()
        return made[-1]

    try:
        yield make
    finally:
        for server in made:
            server.kill()


@pytest.fixture
def make_listener() -> Iterator[Callable[..., Listener]]:
    with ExitStack() as stack:
        yield lambda url, **settings: Listener(url, stack, **settings)


def database(berlin: Postgres, name: str, ddl: str) -> str:
    """Makes a database with a table in it; its URL."""
    berlin.psql(f"CREATE DATABASE {name}")
    berlin.psql(ddl, database=name)
    return berlin.url(name)


def otlp(jaeger: Jaeger) -> str:
    return jaeger.grpc_endpoint.replace("http://", "otlp://")


def summary(stdout: str) -> str:
    """What a replay says that it did, without where from."""
    return re.sub(r" from postgresql://\S+:", ":", stdout.splitlines()[0])


def test_a_table_of_the_guides_own_listener_is_followed_and_replays_into_right_traces(
    tmp_path: Path,
    berlin: Postgres,
    jaeger: Jaeger,
    make_jaeger: Callable[[], Jaeger],
    make_listener: Callable[..., Listener],
) -> None:
    """A table made by hand with the guide's DDL, filled as the guide's listener writes, replays into right traces.

    No module ids, no cancelled rows, one module name used twice in an execution, ids that commit out of order while
    the table is read, and one that never commits.
    """
    url = database(berlin, "guide", GUIDE_DDL)
    listener = make_listener(url)
    with bridging(
        tmp_path, url, "--to", otlp(jaeger), "--settle", "5", "--health", "127.0.0.1:0", OTEL_METRICS_EXPORTER="none"
    ) as bridge:
        expected = filled(berlin, listener, bridge)
        assert found(jaeger, expected) == told(expected)
        # its end is in no row
        assert jaeger.find(f"{trace_id_of(CANCELLED):032x}") is None
        report = bridge.end()
    rows = int(berlin.psql("SELECT count(*) FROM execution_audit", database="guide"))
    counters = ("events", "executions", "spans", "open", "late", "duplicate", "abandoned", "unreadable", "dropped")
    assert [(report | report["assembly"] | {"events": report["events"]})[name] for name in counters] == [
        rows,
        5,
        len(expected),
        1,
        0,
        0,
        0,
        0,
        0,
    ]

    replayed = make_jaeger()
    done = command("replay", f"{url}?timezone={BERLIN}", "--to", otlp(replayed))
    assert done.returncode == 0, done.stderr
    assert summary(done.stdout) == (
        f"{rows} events replayed: 5 executions, {len(expected)} spans, 1 still open, 0 abandoned, 0 late, 0 duplicate,"
        " 0 unreadable, 0 dropped"
    )
    assert found(replayed, expected) == told(expected)
    assert replayed.find(f"{trace_id_of(CANCELLED):032x}") is None

    # the same one: a span that it has, and that was looked at, is not shown twice
    done = command("replay", url, "--to", otlp(replayed), "--abandon-open")
    assert done.returncode == 0, done.stderr
    assert summary(done.stdout) == (
        f"{rows} events replayed: 6 executions, {len(expected) + 2} spans, 0 still open, 1 abandoned, 0 late,"
        " 0 duplicate, 0 unreadable, 0 dropped"
    )
    with_abandoned = expected + abandoned(berlin)
    assert found(replayed, with_abandoned) == told(with_abandoned)


def filled(berlin: Postgres, listener: Listener, bridge: RunningBridge) -> list[Span]:
    """Writes while a bridge reads; the spans that there have to be in the end."""
    words = listener.write(
        started(WORDS),
        module_started(WORDS, "Trim"),
        module_started(WORDS, "Uppercase"),
        module_completed(WORDS, "Trim", 2),
    )
    fetches = listener.write(
        started(FETCHES),
        module_started(FETCHES, "Fetch"),
        module_started(FETCHES, "Fetch"),
        module_failed(FETCHES, "Fetch", "no answer"),
    )
    words += listener.write(
        module_completed(WORDS, "Uppercase", 5),
        module_started(WORDS, "WordCount"),
        module_failed(WORDS, "WordCount", "no words"),
        completed(WORDS, 15, succeeded=False),
    )
    fetches += listener.write(module_completed(FETCHES, "Fetch", 7), completed(FETCHES, 20, succeeded=False))
    listener.write(started(CANCELLED), module_started(CANCELLED, "Trim"))
    written = 16

    photos = listener.write(started(PHOTOS))
    # the first of two modules of a name turns up when the second has failed
    first = listener.begin(module_started(PHOTOS, "Crop"))
    never = listener.begin(module_started(LOSSY, "Trim"))
    photos += [first.id, *listener.write(module_started(PHOTOS, "Crop"), module_failed(PHOTOS, "Crop", "blurred"))]
    lossy = listener.write(started(LOSSY), module_completed(LOSSY, "Trim", 3), completed(LOSSY, 6))
    bridge.wait_until_read(written := written + 6)
    first.commit()
    never.roll_back()
    bridge.wait_until_read(written := written + 1)

    photos += listener.write(module_completed(PHOTOS, "Crop", 9), module_started(PHOTOS, "Resize"))
    # what a module did turns up when its execution has completed
    last = listener.begin(module_completed(PHOTOS, "Resize", 4))
    photos += [last.id, *listener.write(completed(PHOTOS, 30, succeeded=False))]
    quick = listener.write(
        started(QUICK), module_started(QUICK, "Trim"), module_completed(QUICK, "Trim", 0), completed(QUICK, 1)
    )
    bridge.wait_until_read(written := written + 7)
    last.commit()
    bridge.wait_until_read(written + 1)

    at = times(berlin)
    assert max(at) == written + 2, "the one that was rolled back has taken an id"
    # what a module reports of its length counts from its start, or else until its end; at least a nanosecond
    return [
        *whole(
            WORDS,
            15,
            at[words[0]],
            module(WORDS, "Trim", 0, at[words[1]], at[words[1]] + 2 * MS),
            module(WORDS, "Uppercase", 0, at[words[2]], at[words[2]] + 5 * MS),
            module(WORDS, "WordCount", 0, at[words[5]], at[words[6]], error="no words"),
            failed="WordCount failed: no words",
        ),
        *whole(
            FETCHES,
            20,
            at[fetches[0]],
            module(FETCHES, "Fetch", 0, at[fetches[1]], at[fetches[3]], error="no answer"),
            module(FETCHES, "Fetch", 1, at[fetches[2]], at[fetches[2]] + 7 * MS),
            failed="Fetch failed: no answer",
        ),
        *whole(
            PHOTOS,
            30,
            at[photos[0]],
            module(PHOTOS, "Crop", 0, at[photos[1]], at[photos[3]], error="blurred"),
            module(PHOTOS, "Crop", 1, at[photos[2]], at[photos[2]] + 9 * MS),
            module(PHOTOS, "Resize", 0, at[photos[5]], at[photos[5]] + 4 * MS),
            failed="Crop failed: blurred",
        ),
        *whole(
            LOSSY,
            6,
            at[lossy[0]],
            with_attributes(
                module(LOSSY, "Trim", 0, at[lossy[1]] - 3 * MS, at[lossy[1]]), {"constellation.missing": "start"}
            ),
        ),
        *whole(
            QUICK,
            1,
            at[quick[0]],
            with_attributes(
                module(QUICK, "Trim", 0, at[quick[1]], at[quick[1]] + 1), {"constellation.reported_duration_ms": 0.0}
            ),
        ),
    ]


def times(berlin: Postgres) -> dict[int, int]:
    """When each row was written, in epoch nanoseconds, as PostgreSQL itself makes them of its local times."""
    answer = berlin.psql(
        f"SELECT id, (extract(epoch FROM created_at AT TIME ZONE '{BERLIN}') * 1000000)::bigint FROM execution_audit",
        database="guide",
    )
    return {int(row): int(at_us) * 1000 for row, at_us in (line.split("|") for line in answer.splitlines())}


def abandoned(berlin: Postgres) -> list[Span]:
    """The spans of an execution that was cancelled, of which the guide's listener writes nothing."""
    ids = f"SELECT id FROM execution_audit WHERE execution_id = '{CANCELLED}' ORDER BY id"
    begun, module_begun = (times(berlin)[int(row)] for row in berlin.psql(ids, database="guide").splitlines())
    # the last that is known of the execution is that the module began: there both end
    trim = module(CANCELLED, "Trim", 0, module_begun - 1, module_begun)
    execution, _ = whole(CANCELLED, None, begun, trim, failed="abandoned without an end: the source ended")
    del execution.attributes["error.type"]
    return [
        with_attributes(
            execution,
            {
                "constellation.outcome": "abandoned",
                "constellation.abandoned.reason": "closed",
                "constellation.missing": "end",
            },
        ),
        with_attributes(trim, {"constellation.outcome": "unknown", "constellation.missing": "end"}),
    ]


def test_the_urls_zone_is_the_one_that_the_rows_were_written_in(
    tmp_path: Path, berlin: Postgres, make_listener: Callable[..., Listener]
) -> None:
    """The server's zone is Berlin's, and the listener's session has Tokyo's, as drivers set it to where they run."""
    url = database(berlin, "tokyo", GUIDE_DDL)
    before_ns = time.time_ns() // 1000 * 1000
    make_listener(url, timezone="Asia/Tokyo").write(
        started(QUICK), module_started(QUICK, "Trim"), module_completed(QUICK, "Trim", 1), completed(QUICK, 2)
    )
    after_ns = time.time_ns()

    def replayed(name: str, parameters: str) -> list[int]:
        done = command("replay", url + parameters, "--to", f"jsonl:{tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
        return [json.loads(event)["timestampNs"] for event in (tmp_path / name).read_text().splitlines()]

    right = replayed("right.jsonl", "?timezone=Asia/Tokyo")
    assert [before_ns, *right, after_ns] == sorted([before_ns, *right, after_ns])
    # a local time in Tokyo, taken for one in Berlin
    first = datetime.fromtimestamp(right[0] // NS, ZoneInfo("Asia/Tokyo"))
    shift_s = round(first.replace(tzinfo=ZoneInfo(BERLIN)).timestamp() - first.timestamp())
    wrong = [at_ns + shift_s * NS for at_ns in right]
    for parameters in ("", f"?timezone={BERLIN}"):
        assert replayed("wrong.jsonl", parameters) == wrong
        (tmp_path / "wrong.jsonl").unlink()


def test_a_table_of_ours_filled_from_a_file_replays_into_the_files_own_traces(
    tmp_path: Path, berlin: Postgres, jaeger: Jaeger, make_jaeger: Callable[[], Jaeger]
) -> None:
    """The table made by the DDL that `schema` prints, filled by `bridge`, even twice; compared as text."""
    made = command("schema", "postgresql:")
    assert (made.returncode, made.stderr) == (0, "")
    url = database(berlin, "ours", made.stdout)
    events = [event for number in range(20) for event in execution(number)]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(encode_json(event) + b"\n" for event in events))
    for _ in range(2):
        with bridging(tmp_path, f"jsonl:{file}", "--to", url, "--health", "127.0.0.1:0") as bridge:
            bridge.wait_until_read(len(events))
            report = bridge.end()
        assert report["sinks"]["sql"]["sending"]["sent"] == len(events)
        assert berlin.psql("SELECT count(*) FROM execution_audit", database="ours") == str(len(events))

    replayed = make_jaeger()
    for source, backend in ((f"jsonl:{file}", jaeger), (url, replayed)):
        done = command("replay", source, "--to", otlp(backend))
        assert done.returncode == 0, done.stderr
        assert ": 20 executions, 80 spans, 0 still open" in done.stdout
    traces = {trace_of(event): 4 for event in events if isinstance(event, ExecutionStarted)}
    assert traces_text(replayed, traces) == traces_text(jaeger, traces)


def execution(number: int) -> list[Event]:
    """Of each kind that there is: with a caller or without, succeeded, failed, cancelled, with module ids or not."""
    execution_id = uuid4()
    ids = [None if number % 2 else uuid4() for _ in range(3)]
    begun_ns = time.time_ns() + number * MS
    caller = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01" if number % 3 == 0 else None
    ends: list[Event] = [
        ExecutionCompleted(execution_id, f"dag-{number}", True, 9.75, begun_ns + 8_000_001),
        ExecutionCompleted(execution_id, f"dag-{number}", False, 8.5, begun_ns + 8_000_001),
        ExecutionCancelled(execution_id, f"dag-{number}", begun_ns + 8_000_001),
    ]
    middle: Event = ModuleCompleted(execution_id, ids[1], "Fetch", 2.25, begun_ns + 6_000_007)
    if number % 4 == 1:
        error = ErrorInfo("java.io.IOException", 'no "answer"\nfrom ü')
        middle = ModuleFailed(execution_id, ids[1], "Fetch", error, begun_ns + 6_000_007)
    return [
        ExecutionStarted(execution_id, f"dag-{number}", begun_ns, caller, None if caller is None else "vendor=value"),
        ModuleStarted(execution_id, ids[0], "Fetch", begun_ns + 1_000_003),
        ModuleStarted(execution_id, ids[1], "Fetch", begun_ns + 2_000_003),
        ModuleCompleted(execution_id, ids[0], "Fetch", 3.125, begun_ns + 5_000_007),
        ModuleStarted(execution_id, ids[2], "Count", begun_ns + 6_000_000),
        middle,
        ends[number % 3],
    ]


def trace_of(start: ExecutionStarted) -> int:
    """The caller's trace, or the execution's own."""
    return trace_id_of(start.execution_id) if start.traceparent is None else int(start.traceparent[3:35], 16)
