"""OtlpListener with a real OTLP endpoint: what an execution looks like there, and what is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import TraceFlags

from constellation_otel import Constellation, Dag, ExecutionFailedError, span_id_of, trace_id_of
from constellation_otel.delivery import AssemblyCounters, Counters, SendingCounters
from constellation_otel.delivery.journal import Journal
from constellation_otel.errors import ConfigurationError, JournalError
from constellation_otel.events import ExecutionStarted, ModuleStarted
from constellation_otel.otel import OtlpListener
from constellation_otel.testing import check_listener, span_tree
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from reports import BOOM, Boom, run
from support import DEADLINE, UNWATCHED, eventually
from telemetry import (
    BOTH,
    OPT_IN,
    TREE,
    Wire,
    assembly_of,
    assert_sum,
    endpoint_of,
    journal_in,
    our_threads,
    traces_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.receiver import Receiver


pytestmark = pytest.mark.usefixtures("clean_environment")


SCOPE = ("constellation_otel", "0.1.0", "https://opentelemetry.io/schemas/1.44.0")


def trim(text: str) -> str:
    return text.strip()


def word_count(trim: str) -> int:
    raise Boom(f"too many words in {trim!r}")


@BOTH
def test_two_lines_take_an_execution_to_the_endpoint(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make_otlp(endpoint_of(receiver, protocol), protocol=protocol)
    with Constellation(listener=listener) as engine:
        execution = engine.start(Dag("my-pipeline", [trim, word_count]), {"text": " to be "})
        with pytest.raises(ExecutionFailedError):
            execution.result(DEADLINE)
    assert listener.flush(DEADLINE)
    assert span_tree(receiver.spans) == (
        "my-pipeline (server) failure ERROR \"word_count failed: too many words in 'to be'\"\n"
        "  trim (internal) success\n"
        "  word_count (internal) failure ERROR \"too many words in 'to be'\""
    )
    spans = {span.name: span for span in receiver.spans}
    execution_id = execution.execution_id
    assert {span.trace_id for span in spans.values()} == {trace_id_of(execution_id)}
    assert {request.protocol for request in receiver.requests} == {protocol}
    common = {"constellation.execution.id": str(execution_id), "constellation.dag.name": "my-pipeline"}
    boom = BOOM
    root = spans["my-pipeline"]
    assert (root.span_id, root.parent_span_id) == (span_id_of(execution_id), None)
    assert root.attributes == {**common, "constellation.outcome": "failure", "error.type": boom}
    for name, outcome in (("trim", {"constellation.outcome": "success"}), ("word_count", root.attributes)):
        span = spans[name]
        module_id = UUID(str(span.attributes["constellation.module.id"]))
        ids = {"constellation.module.id": str(module_id), "constellation.module.name": name}
        assert span.attributes == {**common, **ids, **outcome}
        assert (span.span_id, span.parent_span_id) == (span_id_of(execution_id, module_id), root.span_id)
        assert span.start_ns <= span.end_ns <= root.end_ns
    (event,) = spans["word_count"].events
    assert (event.name, event.attributes["exception.type"]) == ("exception", boom)
    assert event.attributes["exception.message"] == "too many words in 'to be'"
    said, first, *_ = str(event.attributes["exception.stacktrace"]).splitlines()
    # the module's own frame, and none of the engine's that called it
    assert (said, first.rpartition(", in ")[2]) == ("Traceback (most recent call last):", "word_count")


@BOTH
def test_an_execution_arrives_as_long_as_reported_and_is_counted(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make_otlp(endpoint_of(receiver, protocol), protocol=protocol)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    assert span_tree(receiver.spans) == TREE
    assert traces_of(receiver.spans) == whole([execution_id])
    spans = {span.name: span for span in receiver.spans}
    # a busy machine may start a module so late that its execution is widened to hold it
    whole_span = spans["my-pipeline"]
    length_ms = (whole_span.end_ns - whole_span.start_ns) / 1e6
    assert whole_span.attributes.get("constellation.reported_duration_ms", length_ms) == 15.0
    assert spans["Trim"].end_ns - spans["Trim"].start_ns == 2_000_000
    assert {span.trace_flags & 0xFF for span in spans.values()} == {TraceFlags.SAMPLED | RANDOM_TRACE_ID}
    assert 'raise Boom("too many words")\n' in str(spans["WordCount"].events[0].attributes["exception.stacktrace"])
    assembly = AssemblyCounters(events=6, executions=1, spans=3)
    assert listener.counters == Counters(6, 6, 0, 0, 0, 0, SendingCounters(sent=3), None, assembly)
    assert listener.last_error is None


@pytest.mark.parametrize(
    ("service_name", "variables", "expected"),
    [
        (None, {}, "constellation"),
        (None, {"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ("till", {"OTEL_SERVICE_NAME": "shop"}, "till"),
        (None, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=store"}, "store"),
    ],
)
def test_all_signals_have_one_resource_and_our_scope(
    receiver: Receiver,
    make_otlp: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    service_name: str | None,
    variables: dict[str, str],
    expected: str,
) -> None:
    """There is nothing of the process in the resource."""
    monkeypatch.setenv(OPT_IN, "logs/dup")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        listener = make_otlp(receiver.grpc_endpoint, service_name=service_name)
        run(listener)
        assert listener.close(DEADLINE)
    everything: list[Any] = [*receiver.received, *receiver.metrics, *receiver.logs]
    assert {type(item).__name__ for item in everything} == {"Received", "MetricPoint", "LogRecord"}
    for item in everything:
        assert item.resource.attributes == {
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": sdk_version,
            "service.name": expected,
        }
        assert (item.scope.name, item.scope.version, item.scope.schema_url) == SCOPE


@BOTH
def test_headers_go_with_every_request_whatever_their_case(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make_otlp(endpoint_of(receiver, protocol), protocol=protocol, headers={"Authorization": "Bearer 5ecret"})
    run(listener)
    assert listener.close(DEADLINE)
    assert {(request.signal, request.headers["authorization"]) for request in receiver.requests} == {
        ("traces", "Bearer 5ecret"),
        ("metrics", "Bearer 5ecret"),
    }


def test_where_nothing_is_given_the_variables_say_where_and_how(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    listener = make_otlp(None)
    run(listener)
    assert listener.close(DEADLINE)
    assert {(request.signal, request.protocol) for request in receiver.requests} == {
        ("traces", "http/protobuf"),
        ("metrics", "http/protobuf"),
    }


def test_what_cannot_be_used_is_refused_at_once(receiver: Receiver, tmp_path: Path) -> None:
    before = our_threads()
    with pytest.raises(ConfigurationError, match="endpoint does not begin with http:// or https://"):
        OtlpListener("ftp://localhost")
    with pytest.raises(JournalError, match="does not exist; create"):
        OtlpListener(receiver.grpc_endpoint, journal=tmp_path / "nowhere" / "journal.db")
    for journal_path in (None, tmp_path / "journal.db"):
        with pytest.raises(ValueError, match="settle=-1"):
            OtlpListener(receiver.grpc_endpoint, settle=-1, journal=journal_path)
        with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
            OtlpListener(receiver.grpc_endpoint, max_queue=0, journal=journal_path)
    with pytest.raises(ValueError, match="max_bytes=1 must be at least"):
        OtlpListener(receiver.grpc_endpoint, journal=tmp_path / "journal.db", max_journal_bytes=1)
    # nobody has it
    with journal_in(tmp_path) as journal:
        assert journal.held("otlp") == 0
    # what was never started is not waited for when it is closed
    eventually(lambda: our_threads() <= before, "the last thread has ended")


def test_metrics_arrive_with_exemplars_and_what_is_open(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exemplars point at the spans."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    open_execution = uuid4()
    listener.on_execution_start(open_execution, "open")
    listener.on_module_start(open_execution, uuid4(), "open")
    assert listener.flush(DEADLINE)
    receiver.wait_for(
        lambda arrived: (
            {"constellation.module.active": 1, "constellation.execution.active": 1}.items()
            <= {point.name: point.value for point in arrived.metrics}.items()
        ),
        DEADLINE,
        "what is open",
    )
    points = {(point.name, point.attributes.get("constellation.module.name")): point for point in receiver.metrics}
    spans = {(span.trace_id, span.span_id): span.name for span in receiver.spans}
    durations = {key: point for key, point in points.items() if key[0].endswith(".duration")}
    boom = {"constellation.outcome": "failure", "error.type": BOOM}
    dag = {"constellation.dag.name": "my-pipeline"}
    module = "constellation.module.name"
    assert {key: point.attributes for key, point in durations.items()} == {
        ("constellation.execution.duration", None): {**dag, **boom},
        ("constellation.module.duration", "Trim"): {**dag, module: "Trim", "constellation.outcome": "success"},
        ("constellation.module.duration", "WordCount"): {**dag, module: "WordCount", **boom},
    }
    assert durations["constellation.execution.duration", None].sum == 0.015
    for (_, name), point in durations.items():
        (exemplar,) = point.exemplars
        assert exemplar.trace_id is not None
        assert exemplar.span_id is not None
        assert spans[exemplar.trace_id, exemplar.span_id] == (name or "my-pipeline")


def test_late_duplicate_abandoned_and_rejected_are_metrics(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint)
    execution_id = run(listener)
    listener.on_module_start(execution_id, uuid4(), "late")
    listener.on_execution_start(uuid4(), "abandoned")
    listener.on_execution_start(uuid4(), None)  # type: ignore[arg-type]
    listener.on_execution_start("no id", "rejected")  # type: ignore[arg-type]
    for _ in range(2):
        listener.accept(ModuleStarted(UUID(int=1), UUID(int=2), "duplicate", 1))
    assert listener.close(DEADLINE)
    counted = {point.name: point.value for point in receiver.metrics if point.kind == "sum"}
    assert counted == {
        "constellation.events.rejected": 2,
        "constellation.events.late": 1,
        "constellation.events.duplicate": 1,
        "constellation.executions.abandoned": 2,
        "constellation.executions.incomplete": 2,
        "constellation.modules.incomplete": 1,
        "constellation.execution.active": 0,
        "constellation.module.active": 0,
    }
    assembled = assembly_of(listener)
    assert (assembled.late, assembled.duplicate, assembled.abandoned) == (1, 1, 2)
    assert (assembled.incomplete_executions, assembled.incomplete_modules) == (2, 1)
    listener.on_execution_start(uuid4(), "dropped")
    assert (listener.counters.received, listener.counters.dropped, listener.counters.rejected) == (13, 1, 2)
    assert_sum(listener.counters)
    assert len(listener._sampling.decisions) == 0


@pytest.mark.parametrize(
    ("opt_in", "as_event", "as_log"), [(None, True, False), ("logs", False, True), ("logs/dup", True, True)]
)
def test_an_exception_goes_where_the_conventions_opt_in_says(
    receiver: Receiver,
    make_otlp: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    opt_in: str | None,
    as_event: bool,
    as_log: bool,
) -> None:
    if opt_in is not None:
        monkeypatch.setenv(OPT_IN, opt_in)
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    assert listener.close(DEADLINE)
    failed = next(span for span in receiver.spans if span.name == "WordCount")
    assert bool(failed.events) is as_event
    assert [(record.trace_id, record.span_id, record.body) for record in receiver.logs] == (
        [(failed.trace_id, failed.span_id, "too many words")] if as_log else []
    )


def test_without_metrics_and_logs_there_are_spans_alone(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv(OPT_IN, "logs")
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    assert listener.close(DEADLINE)
    assert {request.signal for request in receiver.requests} == {"traces"}


def test_a_disabled_sdk_sends_nothing_and_starts_no_thread(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And leaves the journal alone."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", " True ")
    before = our_threads()
    listener = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    execution_id = run(listener)
    listener.accept(ExecutionStarted(uuid4(), "d", 1))
    caller = Context()
    assert listener.module_context(execution_id, uuid4(), caller) is caller
    assert our_threads() <= before
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert listener.counters.received == 0
    assert receiver.requests == []
    assert not (tmp_path / "journal.db").exists()


def test_what_the_redact_hook_takes_out_is_nowhere(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(OPT_IN, "logs/dup")
    listener = make_otlp(
        receiver.grpc_endpoint, journal=tmp_path / "journal.db", redact=lambda text: text.replace("many", "***")
    )
    run(listener)
    assert listener.close(DEADLINE)
    # as the source of the line that raised it has the word
    messages = [span.status_description for span in receiver.spans] + [record.body for record in receiver.logs]
    assert messages == [None, "too *** words", "WordCount failed: too *** words", "too *** words"]


@UNWATCHED
def test_it_keeps_the_promises_of_an_execution_listener(receiver: Receiver, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    check_listener(lambda: OtlpListener(receiver.grpc_endpoint), close_timeout=DEADLINE)
    check_listener(
        lambda: OtlpListener(receiver.http_endpoint, protocol="http/protobuf", journal=journal), close_timeout=DEADLINE
    )


def test_a_bad_variable_leaves_the_journal_to_others(
    make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "foo")
    for options in ({}, {"journal": tmp_path / "journal.db"}):
        with pytest.raises(ConfigurationError, match="OTEL_METRICS_EXEMPLAR_FILTER"):
            make_otlp("http://127.0.0.1:1", **options)
    Journal(tmp_path / "journal.db", sinks=["otlp"]).close()


def test_open_executions_are_abandoned_by_close_and_not_by_flush(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    """Which does not wait for them either."""
    listener = make_otlp(receiver.grpc_endpoint)
    listener.on_execution_start(UUID(int=1), "open")
    listener.on_module_start(UUID(int=1), UUID(int=2), "m")
    assert listener.flush(DEADLINE)
    assert (receiver.spans, listener.open_executions, listener.open_modules) == ([], 1, 1)
    assert listener.close(DEADLINE)
    assert span_tree(receiver.spans) == (
        'open (server) abandoned ERROR "abandoned without an end: the source ended"\n  m (internal) unknown'
    )
