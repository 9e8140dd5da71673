"""OtlpListener with a real OTLP endpoint: what arrives, what is lost, and what is not."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from constellation_otel import Constellation, Dag, ExecutionFailedError, span_id_of, trace_id_of
from constellation_otel.delivery.buffered_listener import BufferCounters
from constellation_otel.errors import ConfigurationError, JournalError
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted, ModuleStarted
from constellation_otel.otel import OtlpListener
from constellation_otel.receiver import Delay, Drop, PartialSuccess, Receiver, Refuse
from constellation_otel.testing import check_listener, span_tree
from constellation_otel.transports.journal import Journal
from programs import ROOT, run_command
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from constellation_otel.listener import ExecutionListener
    from constellation_otel.traces import Span

Wire = Literal["grpc", "http/protobuf"]
BOTH = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
MIXED = pytest.mark.parametrize(("protocol", "with_journal"), [("grpc", True), ("http/protobuf", False)])
OPT_IN = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"
TREE = """\
my-pipeline (server) failure ERROR "WordCount failed: too many words"
  Trim (internal) success
  WordCount (internal) failure ERROR "too many words"\
"""
SCOPE = ("constellation_otel", "0.1.0", "https://opentelemetry.io/schemas/1.44.0")


class Boom(Exception):
    """What a module raises in these tests."""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured but by the test, and a far side that comes back is tried again soon."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("constellation_otel.delivery.sender.Backoff.__init__.__defaults__", (0.02, 0.05, lambda: 1.0))


@pytest.fixture
def make() -> Iterator[Callable[..., OtlpListener]]:
    """Makes listeners that are closed at the end."""
    made: list[OtlpListener] = []

    def make(endpoint: str | None, **options: Any) -> OtlpListener:
        made.append(OtlpListener(endpoint, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.close(2.0)


def endpoint_of(receiver: Receiver, protocol: str) -> str:
    return receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint


@contextmanager
def journal_in(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder / "journal.db", sinks=["otlp"])
    try:
        yield journal
    finally:
        journal.close()


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith("otlp-receiver")}


def raised() -> Boom:
    try:
        raise Boom("too many words")
    except Boom as error:
        return error


def run(listener: ExecutionListener) -> UUID:
    """One execution of the guide's pipeline, as an engine would tell it."""
    execution_id, trim, word_count = uuid4(), uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, trim, "Trim")
    listener.on_module_complete(execution_id, trim, "Trim", 2.0)
    listener.on_module_start(execution_id, word_count, "WordCount")
    listener.on_module_failed(execution_id, word_count, "WordCount", raised())
    listener.on_execution_complete(execution_id, "my-pipeline", False, 15.0)
    return execution_id


def traces_of(spans: Sequence[Span]) -> dict[int, list[str]]:
    """The names of the spans of each trace, a span that came twice once; it has to be the same both times."""
    known: dict[tuple[int, int], Span] = {}
    for span in spans:
        assert known.setdefault((span.trace_id, span.span_id), span) == span
    traces: dict[int, list[str]] = {}
    for span in known.values():
        traces.setdefault(span.trace_id, []).append(span.name)
    return {trace_id: sorted(names) for trace_id, names in traces.items()}


def whole(ids: Sequence[UUID]) -> dict[int, list[str]]:
    return {trace_id_of(execution_id): ["Trim", "WordCount", "my-pipeline"] for execution_id in ids}


def assert_sum(counters: BufferCounters) -> None:
    assert counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held


# --- the telemetry -------------------------------------------------------------------------------------------------


def trim(text: str) -> str:
    return text.strip()


def word_count(trim: str) -> int:
    raise Boom(f"too many words in {trim!r}")


@BOTH
def test_two_lines_take_an_execution_of_the_engine_to_the_endpoint(
    receiver: Receiver, make: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make(endpoint_of(receiver, protocol), protocol=protocol)
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
    boom = f"{__name__}.Boom"
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
    assert "in word_count\n" in str(event.attributes["exception.stacktrace"])


@BOTH
def test_an_execution_that_is_told_arrives_as_long_as_it_was_told_and_everything_is_counted(
    receiver: Receiver, make: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make(endpoint_of(receiver, protocol), protocol=protocol)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    assert span_tree(receiver.spans) == TREE
    assert traces_of(receiver.spans) == whole([execution_id])
    spans = {span.name: span for span in receiver.spans}
    assert spans["my-pipeline"].end_ns - spans["my-pipeline"].start_ns == 15_000_000
    assert spans["Trim"].end_ns - spans["Trim"].start_ns == 2_000_000
    assert {span.trace_flags & 0xFF for span in spans.values()} == {TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID}
    assert 'raise Boom("too many words")\n' in str(spans["WordCount"].events[0].attributes["exception.stacktrace"])
    assert listener.counters == BufferCounters(
        received=6,
        delivered=6,
        dropped=0,
        rejected=0,
        held=0,
        retried=0,
        sent=3,
        refused=0,
        dead_lettered=0,
        corrected=0,
    )
    assert listener.trouble is None


@pytest.mark.parametrize(
    ("service_name", "variables", "expected"),
    [
        (None, {}, "constellation"),
        (None, {"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ("till", {"OTEL_SERVICE_NAME": "shop"}, "till"),
        (None, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=store"}, "store"),
    ],
)
def test_all_signals_have_one_resource_with_nothing_of_the_process_and_our_scope(
    receiver: Receiver,
    make: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    service_name: str | None,
    variables: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setenv(OPT_IN, "logs/dup")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        listener = make(receiver.grpc_endpoint, service_name=service_name)
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
def test_headers_go_with_every_request_whatever_the_case_of_their_names(
    receiver: Receiver, make: Callable[..., OtlpListener], protocol: Wire
) -> None:
    listener = make(endpoint_of(receiver, protocol), protocol=protocol, headers={"Authorization": "Bearer 5ecret"})
    run(listener)
    assert listener.close(DEADLINE)
    assert {(request.signal, request.headers["authorization"]) for request in receiver.requests} == {
        ("traces", "Bearer 5ecret"),
        ("metrics", "Bearer 5ecret"),
    }


def test_where_nothing_is_given_the_variables_say_where_and_how(
    receiver: Receiver, make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    listener = make(None)
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
    with pytest.raises(JournalError, match="has no folder to be in"):
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
    assert our_threads() <= before


def test_metrics_arrive_with_exemplars_that_point_at_the_spans_and_what_is_open(
    receiver: Receiver, make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    listener = make(receiver.grpc_endpoint)
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
    boom = {"constellation.outcome": "failure", "error.type": f"{__name__}.Boom"}
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


def test_what_is_counted_is_a_metric_too(receiver: Receiver, make: Callable[..., OtlpListener]) -> None:
    listener = make(receiver.grpc_endpoint)
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
    assembled = listener.assembled
    assert (assembled.late, assembled.duplicate, assembled.abandoned) == (1, 1, 2)
    assert (assembled.incomplete_executions, assembled.incomplete_modules) == (2, 1)
    listener.on_execution_start(uuid4(), "dropped")
    assert (listener.counters.received, listener.counters.dropped, listener.counters.rejected) == (13, 1, 2)
    assert_sum(listener.counters)
    assert len(listener._sampled._decisions) == 0


@pytest.mark.parametrize(
    ("opt_in", "as_event", "as_log"), [(None, True, False), ("logs", False, True), ("logs/dup", True, True)]
)
def test_an_exception_goes_where_the_conventions_opt_in_says(
    receiver: Receiver,
    make: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    opt_in: str | None,
    as_event: bool,
    as_log: bool,
) -> None:
    if opt_in is not None:
        monkeypatch.setenv(OPT_IN, opt_in)
    listener = make(receiver.grpc_endpoint)
    run(listener)
    assert listener.close(DEADLINE)
    failed = next(span for span in receiver.spans if span.name == "WordCount")
    assert bool(failed.events) is as_event
    assert [(record.trace_id, record.span_id, record.body) for record in receiver.logs] == (
        [(failed.trace_id, failed.span_id, "too many words")] if as_log else []
    )


def test_without_metrics_and_logs_there_are_spans_alone(
    receiver: Receiver, make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv(OPT_IN, "logs")
    listener = make(receiver.grpc_endpoint)
    run(listener)
    assert listener.close(DEADLINE)
    assert {request.signal for request in receiver.requests} == {"traces"}


def test_a_disabled_sdk_sends_nothing_starts_nothing_and_leaves_the_journal_alone(
    receiver: Receiver, make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", " True ")
    before = our_threads()
    listener = make(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
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
    receiver: Receiver, make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(OPT_IN, "logs/dup")
    listener = make(
        receiver.grpc_endpoint, journal=tmp_path / "journal.db", redact=lambda text: text.replace("many", "***")
    )
    run(listener)
    assert listener.close(DEADLINE)
    # as the source of the line that raised it has the word
    messages = [span.status_description for span in receiver.spans] + [record.body for record in receiver.logs]
    assert messages == [None, "too *** words", "WordCount failed: too *** words", "too *** words"]


def test_it_keeps_the_spis_promises(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.testing._CLOSE_TIMEOUT", DEADLINE)
    journal = tmp_path / "journal.db"
    check_listener(lambda: OtlpListener(receiver.grpc_endpoint))
    check_listener(lambda: OtlpListener(receiver.http_endpoint, protocol="http/protobuf", journal=journal))


# --- whose decision it is ------------------------------------------------------------------------------------------


@contextmanager
def caller_of(
    trace_id: int, flags: int, state: Sequence[tuple[str, str]] = (), *, remote: bool = True
) -> Iterator[None]:
    """A span that calls: trace_id, and 7."""
    span_context = SpanContext(
        trace_id, 7, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=TraceState(list(state))
    )
    with trace.use_span(NonRecordingSpan(span_context)):
        yield


def test_an_execution_called_inside_a_span_is_its_child_and_what_modules_do_is_theirs(
    receiver: Receiver, make: Callable[..., OtlpListener], application: Any
) -> None:
    listener = make(receiver.grpc_endpoint)
    tracer = application.traces.get_tracer("library")

    def fetch(text: str) -> str:
        with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT):
            return text

    with Constellation(listener=listener) as engine:
        dag = Dag("report", [fetch])
        with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
            engine.run(dag, {"text": "to be"})
        engine.run(dag, {"text": "to be"})
    assert listener.flush(DEADLINE)
    application.export()
    below = "report ({}) success\n{}  fetch (internal) success\n{}    GET (client)"
    assert span_tree(receiver.spans) == (
        f"GET / (server)\n  {below.format('internal', '  ', '  ')}\n\n{below.format('server', '', '')}"
    )


@pytest.mark.parametrize("how", ["local", "remote", "traceparent"])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_callers_decision_holds_for_all_of_the_execution_and_what_its_modules_do(
    receiver: Receiver, make: Callable[..., OtlpListener], how: str, sampled: bool
) -> None:
    listener = make(receiver.grpc_endpoint, sampler=ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON))
    if how == "traceparent":
        execution_id, module_id = uuid4(), uuid4()
        parent = f"00-{5:032x}-{7:016x}-{int(sampled):02x}"
        listener.accept(ExecutionStarted(execution_id, "my-pipeline", 1_000, parent))
        listener.accept(ModuleCompleted(execution_id, module_id, "Trim", 0.0, 2_000))
        listener.accept(ExecutionCompleted(execution_id, "my-pipeline", True, 0.0, 3_000))
        names = ["Trim", "my-pipeline"]
    else:
        with caller_of(5, int(sampled), remote=how == "remote"):
            execution_id = uuid4()
            listener.on_execution_start(execution_id, "open")
            inside = trace.get_current_span(listener.module_context(execution_id, uuid4(), Context()))
            assert (inside.get_span_context().trace_id, inside.get_span_context().trace_flags) == (5, int(sampled))
            run(listener)
        names = ["Trim", "WordCount", "my-pipeline"]
    assert listener.flush(DEADLINE)
    assert traces_of(receiver.spans) == ({5: names} if sampled else {})
    if sampled:
        root = next(span for span in receiver.spans if span.name == "my-pipeline")
        assert (root.parent_span_id, root.kind) == (7, SpanKind.INTERNAL)
    assert_sum(listener.counters)
    assert listener.counters.held == (0 if how == "traceparent" else 1)


def test_an_unsampled_execution_is_in_the_metrics_without_exemplars(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    listener = make(receiver.grpc_endpoint, sampler=ALWAYS_OFF)
    run(listener)
    assert listener.close(DEADLINE)
    assert receiver.spans == []
    (point,) = [point for point in receiver.metrics if point.name == "constellation.execution.duration"]
    assert (point.count, point.exemplars) == (1, ())
    assert (listener.counters.delivered, listener.counters.sent) == (6, 0)


@pytest.mark.parametrize("sampler", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1)), None])
def test_ratio_sampling_keeps_its_share_of_executions_each_of_them_whole(
    receiver: Receiver,
    make: Callable[..., OtlpListener],
    make_application: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    sampler: Sampler | None,
) -> None:
    """1,000 executions, with a span that a library makes inside each module's body."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    rng = random.Random(2026)
    application = make_application()
    library = application.traces.get_tracer("library")
    listener = make(receiver.grpc_endpoint, sampler=sampler)
    for _ in range(1_000):
        execution_id, module_id = UUID(int=rng.getrandbits(128)), UUID(int=rng.getrandbits(128))
        listener.on_execution_start(execution_id, "d")
        listener.on_module_start(execution_id, module_id, "m")
        library.start_span("inner", listener.module_context(execution_id, module_id, Context())).end()
        listener.on_module_complete(execution_id, module_id, "m", 1.0)
        listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    application.export()
    traces = traces_of(receiver.spans)
    assert 60 <= len(traces) <= 140
    assert {tuple(names) for names in traces.values()} == {("d", "inner", "m")}


class Opinionated(Sampler):
    """Says more than yes or no."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **kwargs: Any
    ) -> SamplingResult:
        self.asked.append((trace_id, name, threading.current_thread().name))
        return SamplingResult(
            ALWAYS_ON.should_sample(parent_context, trace_id, name).decision,
            {"sampler.rule": "all"},
            TraceState([("rule", "all")]),
        )

    def get_description(self) -> str:
        return "Opinionated"


def test_the_sampler_is_asked_once_in_the_callback_and_its_attributes_and_trace_state_are_used(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    sampler = Opinionated()
    listener = make(receiver.grpc_endpoint, sampler=sampler)
    with caller_of(5, 1, [("vendor", "1")]):
        run(listener)
    assert listener.flush(DEADLINE)
    assert sampler.asked == [(5, "my-pipeline", threading.current_thread().name)]
    spans = {span.name: span for span in receiver.spans}
    assert {span.trace_state for span in spans.values()} == {"rule=all"}
    assert spans["my-pipeline"].attributes["sampler.rule"] == "all"
    assert "sampler.rule" not in spans["Trim"].attributes


def test_a_callers_trace_state_and_randomness_are_kept(receiver: Receiver, make: Callable[..., OtlpListener]) -> None:
    listener = make(receiver.grpc_endpoint)
    for flags in (TraceFlags.SAMPLED, TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID):
        with caller_of(5, flags, [("vendor", "1")]):
            run(listener)
        assert listener.flush(DEADLINE)
    assert [span.trace_flags & 0xFF for span in receiver.spans] == [1] * 3 + [3] * 3
    assert {span.trace_state for span in receiver.spans} == {"vendor=1"}


def test_an_execution_for_which_the_sampler_raises_is_not_traced(
    receiver: Receiver, make: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(Opinionated):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            raise Boom("no opinion")

    listener = make(receiver.grpc_endpoint, sampler=Raises())
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    assert receiver.spans == []
    assert caplog.messages == [f"the sampler raised for execution {execution_id}; the execution is not traced"]


def test_module_context_of_an_unknown_execution_is_the_callers(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    caller = Context({"kept": 1})
    assert make(receiver.grpc_endpoint).module_context(uuid4(), uuid4(), caller) is caller


def test_a_second_start_of_an_execution_does_not_part_its_trace(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    listener = make(receiver.grpc_endpoint)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    with caller_of(5, 1):
        listener.on_execution_start(execution_id, "d")
    assert listener._sampled.decision_of(execution_id) is not None
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    assert traces_of(receiver.spans) == {trace_id_of(execution_id): ["d", "m"]}


def test_a_second_start_that_finds_the_queue_full_takes_no_decision_away(
    receiver: Receiver, make: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    listener = make(receiver.grpc_endpoint)
    first, second = uuid4(), uuid4()
    listener.on_execution_start(first, "d")
    assert listener.flush(DEADLINE)
    listener._delivery.worker._max_queue = 0
    listener.on_execution_start(first, "d")
    listener.on_execution_start(second, "d")
    assert listener._sampled.decision_of(first) is not None
    assert listener._sampled.decision_of(second) is None
    assert listener.counters.dropped == 2


def test_a_start_that_is_late_or_refused_leaves_no_decision_behind(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    listener = make(receiver.grpc_endpoint)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_execution_start(uuid4(), 7)  # type: ignore[arg-type]
    listener.on_execution_start(["no id"], "my-pipeline")  # type: ignore[arg-type]
    assert listener.flush(DEADLINE)
    assert len(listener._sampled._decisions) == 0
    assert (listener.counters.rejected, listener.counters.held) == (2, 0)


# --- the endpoint is away, hangs, or refuses ------------------------------------------------------------------------


def test_without_a_journal_what_finds_the_queue_full_is_dropped_counted_and_logged(
    receiver: Receiver, make: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.stop()
    listener = make(receiver.http_endpoint, protocol="http/protobuf", max_queue=60)
    for _ in range(50):
        run(listener)
    assert not listener.flush(0.1)
    counters = listener.counters
    # as many again may be held, and one batch more
    assert counters.dropped >= 300 - 3 * 60
    assert counters.received == 300
    assert_sum(counters)
    assert "OtlpListener: the queue is full (60 items); dropping the newest" in caplog.messages
    assert listener.trouble is not None
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    last = [run(listener) for _ in range(5)]
    assert listener.close(DEADLINE)
    traces = traces_of(receiver.spans)
    assert {trace_id: traces[trace_id] for trace_id in whole(last)} == whole(last)
    counters = listener.counters
    assert (counters.received, counters.held) == (330, 0)
    assert_sum(counters)
    assert len(listener._sampled._decisions) == 0


@BOTH
def test_with_a_journal_an_outage_loses_nothing_and_says_nothing_twice(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, protocol: Wire
) -> None:
    receiver.stop()
    listener = make(
        endpoint_of(receiver, protocol), protocol=protocol, journal=tmp_path / "journal.db", max_queue=1_000
    )
    ids = [run(listener) for _ in range(100)]
    assert not listener.flush(0.2)
    ids += [run(listener) for _ in range(20)]
    receiver.order(Drop(kept=True))
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    assert traces_of(receiver.spans) == whole(ids)
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.sent, counters.held) == (720, 720, 360, 0)
    with journal_in(tmp_path) as journal:
        assert journal.held("otlp") == 0


def test_what_was_not_delivered_is_delivered_by_the_next_one_with_the_same_journal(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    receiver.stop()
    before = our_threads()
    listener = make(receiver.http_endpoint, protocol="http/protobuf", journal=tmp_path / "journal.db")
    with caller_of(5, 1, [("vendor", "1")]):
        run(listener)
    ids = [run(listener) for _ in range(10)]
    assert not listener.close(0.3)
    assert receiver.spans == []
    eventually(lambda: our_threads() <= before, "the threads to end")
    receiver.start()
    after = make(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    assert after.flush(DEADLINE)
    assert traces_of(receiver.spans) == {5: ["Trim", "WordCount", "my-pipeline"], **whole(ids)}
    assert {span.trace_state for span in receiver.spans if span.trace_id == 5} == {"vendor=1"}
    counters = after.counters
    assert (counters.received, counters.delivered, counters.held) == (66, 66, 0)


def test_a_full_journal_and_a_full_queue_drop_the_newest_and_count_them(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.stop()
    listener = make(
        receiver.http_endpoint,
        protocol="http/protobuf",
        journal=tmp_path / "journal.db",
        max_journal_bytes=64 * 1024,
        max_open=50,
        max_queue=100,
    )
    ids = [run(listener) for _ in range(300)]
    assert not listener.flush(0.2)
    eventually(lambda: listener.counters.dropped, "the journal to be full")
    assert len(listener._sampled._decisions) <= 50
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert counters.received == 1_800
    assert counters.held == 0
    assert_sum(counters)
    assert "OtlpListener-journal: the queue is full (100 items); dropping the newest" in caplog.messages
    assert set(traces_of(receiver.spans)) < set(whole(ids))


def test_an_execution_whose_end_the_journal_cannot_take_is_whole_all_the_same(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    listener = make(receiver.grpc_endpoint, journal=path)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, module_id, "Trim")
    assert listener.flush(DEADLINE)
    elsewhere = path.rename(tmp_path / "elsewhere")
    listener.on_module_complete(execution_id, module_id, "Trim", 1.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 2.0)
    assert listener.flush(DEADLINE)
    assert {span.name: str(span.attributes["constellation.outcome"]) for span in receiver.spans} == {
        "Trim": "success",
        "my-pipeline": "success",
    }
    assert listener.counters.not_durable == 2
    elsewhere.rename(path)
    assert listener.close(DEADLINE)
    with journal_in(tmp_path) as left:
        assert left.held("otlp") == 0


def test_a_refused_span_is_counted_logged_and_kept_in_the_dead_letter_file_and_the_others_arrive(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = tmp_path / "letters.jsonl"
    # the three together, then the first half, which is one span
    receiver.order(Refuse(grpc_code=StatusCode.INVALID_ARGUMENT, message="no such thing", times=2), signal="traces")
    listener = make(receiver.grpc_endpoint, dead_letters=letters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert sorted(span.name for span in receiver.spans) == ["WordCount", "my-pipeline"]
    (line,) = letters.read_text().splitlines()
    letter = json.loads(line)
    assert letter["where"] == "otlp"
    assert "no such thing" in letter["reason"]
    assert json.loads(letter["data"])["name"] == "Trim"
    counters = listener.counters
    assert (counters.delivered, counters.rejected, counters.sent, counters.refused, counters.dead_lettered) == (
        5, 1, 2, 1, 1,
    )  # fmt: skip
    assert_sum(counters)
    assert any("refuses 1 items for good" in message for message in caplog.messages)


def test_a_partial_success_is_counted_as_rejected_and_not_sent_again(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    letters = tmp_path / "letters.jsonl"
    receiver.order(PartialSuccess(2), signal="traces")
    listener = make(receiver.grpc_endpoint, dead_letters=letters)
    run(listener)
    assert listener.flush(DEADLINE)
    counters = listener.counters
    assert (counters.sent, counters.refused, counters.rejected, counters.delivered) == (1, 2, 2, 4)
    assert_sum(counters)
    # which ones is not known, so none is called the one
    assert not letters.exists()
    assert len(receiver.requests) == 1


def test_wrong_credentials_hold_the_data_until_somebody_has_mended_them(
    receiver: Receiver, make: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.order(Refuse(grpc_code=StatusCode.UNAUTHENTICATED, times=3), signal="traces")
    listener = make(receiver.grpc_endpoint)
    run(listener)
    eventually(lambda: listener.trouble is not None and listener.trouble.needs_mending, "the alarm")
    assert listener.flush(DEADLINE)
    assert span_tree(receiver.spans) == TREE
    assert listener.trouble is None
    assert any(
        record.levelname == "ERROR" and "OTEL_EXPORTER_OTLP_HEADERS" in record.message for record in caplog.records
    )


@MIXED
def test_an_endpoint_that_is_away_keeps_nobody_longer_than_the_timeout_and_no_thread_is_left(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, protocol: Wire, with_journal: bool
) -> None:
    receiver.stop()
    before = our_threads()
    journal = tmp_path / "journal.db" if with_journal else None
    listener = make(endpoint_of(receiver, protocol), protocol=protocol, journal=journal)
    run(listener)
    for wait, timeout in ((listener.flush, 0.1), (listener.close, 0.3)):
        start = time.monotonic()
        assert not wait(timeout)
        assert time.monotonic() - start < timeout + 1.0
    assert listener.counters.held == 6
    assert_sum(listener.counters)
    eventually(lambda: our_threads() <= before, "the threads to end")


@pytest.fixture
def hanging() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@MIXED
def test_an_endpoint_that_hangs_keeps_nobody_longer_than_the_timeout(
    make: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hanging: str,
    protocol: Wire,
    with_journal: bool,
) -> None:
    # what is on its way when the time is over ends by itself
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")
    before = our_threads()
    journal = tmp_path / "journal.db" if with_journal else None
    listener = make(hanging, protocol=protocol, journal=journal)
    run(listener)
    start = time.monotonic()
    assert not listener.flush(0.2)
    assert not listener.close(0.4)
    assert time.monotonic() - start < 0.6 + 0.8
    assert listener.counters.held == 6
    eventually(lambda: our_threads() <= before, "the threads to end")


def test_an_answer_that_comes_after_closing_is_no_error_and_the_next_one_sends_the_same_again(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = our_threads()
    receiver.order(Delay(0.6), signal="traces")
    listener = make(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    execution_id = run(listener)
    receiver.wait_for(lambda arriving: not arriving.faults, DEADLINE, "the request")
    assert not listener.close(0.2)
    eventually(lambda: our_threads() <= before, "the threads to end")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    after = make(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    assert after.flush(DEADLINE)
    assert traces_of(receiver.spans) == whole([execution_id])


def test_an_answer_that_comes_in_time_is_waited_for(receiver: Receiver, make: Callable[..., OtlpListener]) -> None:
    receiver.order(Delay(0.5), signal="traces")
    listener = make(receiver.grpc_endpoint)
    run(listener)
    assert not listener.flush(0.05)
    assert listener.close(DEADLINE)
    assert span_tree(receiver.spans) == TREE


@BOTH
def test_closing_leaves_no_thread_drops_what_comes_after_and_once_more_says_the_same(
    receiver: Receiver,
    make: Callable[..., OtlpListener],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    protocol: Wire,
) -> None:
    before = our_threads()
    listener = make(endpoint_of(receiver, protocol), protocol=protocol, journal=tmp_path / "journal.db")
    run(listener)
    assert listener.close(DEADLINE)
    eventually(lambda: our_threads() <= before, "the threads to end")
    run(listener)
    assert listener.counters.dropped == 6
    assert listener.close(DEADLINE)
    assert_sum(listener.counters)
    assert caplog.messages == ["OtlpListener-journal: the queue is closed; dropping the newest"]


def test_metrics_that_hang_do_not_change_what_is_said_of_the_spans(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    receiver.order(Delay(60), signal="metrics")
    before = our_threads()
    listener = make(receiver.grpc_endpoint)
    run(listener)
    start = time.monotonic()
    assert listener.close(0.6)
    assert time.monotonic() - start < 0.6 + 2.0
    assert span_tree(receiver.spans) == TREE
    receiver.stop()
    eventually(lambda: our_threads() <= before, "the threads to end")


def test_open_executions_are_no_matter_for_flush_and_are_abandoned_by_close(
    receiver: Receiver, make: Callable[..., OtlpListener]
) -> None:
    listener = make(receiver.grpc_endpoint)
    listener.on_execution_start(UUID(int=1), "open")
    listener.on_module_start(UUID(int=1), UUID(int=2), "m")
    assert listener.flush(DEADLINE)
    assert (receiver.spans, listener.open_executions, listener.open_modules) == ([], 1, 1)
    assert listener.close(DEADLINE)
    assert span_tree(receiver.spans) == (
        'open (server) abandoned ERROR "abandoned without an end: the source ended"\n  m (internal) unknown'
    )


# --- the process ends, or forks ------------------------------------------------------------------------------------

PRELUDE = """
import os, sys, uuid
sys.path[:0] = ["tests", "tests/otel"]
from test_otlp_listener import OtlpListener, run
"""
TO_BE_KILLED = """
listener = OtlpListener(sys.argv[1], journal=sys.argv[2])
listener.on_execution_start(uuid.UUID(int=1), "cut")
listener.on_module_start(uuid.UUID(int=1), uuid.UUID(int=2), "done")
listener.on_module_complete(uuid.UUID(int=1), uuid.UUID(int=2), "done", 1.0)
listener.on_module_start(uuid.UUID(int=1), uuid.UUID(int=3), "running")
while True:
    ids = [run(listener) for _ in range(5)]
    assert listener._writer.flush(20)
    print(*ids, flush=True)
"""
FORKING = """
listener = OtlpListener(sys.argv[1], protocol=sys.argv[2], journal=sys.argv[3] if sys.argv[3:] else None)
listener.on_execution_start(uuid.UUID(int=1), "left open by the parent")
run(listener)
assert listener.flush(20)
child = os.fork()
if child == 0:
    assert len(listener._sampled._decisions) == listener.counters.received == 0
    run(listener)
    os._exit(0 if listener.close(20) else 1)
_, status = os.waitpid(child, 0)
assert listener.close(20)
grandchild = os.fork()
if grandchild == 0:
    run(listener)
    os._exit(0 if listener.close(20) and listener.counters.dropped == 6 else 1)
print(os.waitstatus_to_exitcode(status), os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
"""


def started(text: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PRELUDE + text, *arguments]
    environment = os.environ | variables
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def output_of(text: str, *arguments: str, **variables: str) -> tuple[str, str]:
    with started(text, *arguments, **variables) as program:
        try:
            printed, logged = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
    assert program.returncode == 0, logged
    return printed, logged


@pytest.mark.parametrize("far_side", ["away", "refuses", "answers too late"])
def test_what_was_committed_before_kill_9_is_delivered_by_the_next_process(
    receiver: Receiver, make: Callable[..., OtlpListener], tmp_path: Path, far_side: str
) -> None:
    if far_side == "away":
        receiver.stop()
    elif far_side == "refuses":
        receiver.order(Refuse(times=1_000_000))
    else:
        # what arrives is not known to have arrived, so it is sent again
        receiver.order(Drop(kept=True, times=1_000_000))
    journal = tmp_path / "journal.db"
    committed: list[UUID] = []
    with started(TO_BE_KILLED, receiver.grpc_endpoint, str(journal), OTEL_METRICS_EXPORTER="none") as program:
        try:
            assert program.stdout is not None
            for _ in range(4):
                committed += map(UUID, program.stdout.readline().split())
            if far_side == "answers too late":
                receiver.wait_for_spans(1, DEADLINE)
        finally:
            program.send_signal(signal.SIGKILL)
            program.communicate(timeout=DEADLINE)
    assert program.returncode == -signal.SIGKILL
    assert len(committed) == 20
    if far_side == "answers too late":
        receiver._faults.clear()
    else:
        receiver.clear()
        receiver.start()
    listener = make(receiver.grpc_endpoint, journal=journal, idle_timeout=0.5)
    eventually(lambda: listener.flush(5.0) and not listener.open_executions, "the journal to be empty")
    assert listener.flush(DEADLINE)
    traces = traces_of(receiver.spans)
    assert {trace_id: traces[trace_id] for trace_id in whole(committed)} == whole(committed)
    cut = {span.name: span for span in receiver.spans if span.trace_id == trace_id_of(UUID(int=1))}
    assert span_tree(cut.values()) == (
        'cut (server) abandoned ERROR "abandoned without an end: no event for the idle time"\n'
        "  done (internal) success\n"
        "  running (internal) unknown"
    )
    assert cut["cut"].attributes["constellation.abandoned.reason"] == "idle"
    missing = {name: span.attributes.get("constellation.missing") for name, span in cut.items()}
    assert missing == {"cut": ("end",), "running": ("end",), "done": None}
    assert listener.counters.held == 0
    assert_sum(listener.counters)


@pytest.mark.parametrize(("protocol", "with_journal"), [("grpc", False), ("grpc", True), ("http/protobuf", True)])
def test_a_forked_child_sends_its_own_executions_and_none_of_its_parents(
    receiver: Receiver, tmp_path: Path, protocol: Wire, with_journal: bool
) -> None:
    journal = [str(tmp_path / "journal.db")] if with_journal else []
    printed, logged = output_of(FORKING, endpoint_of(receiver, protocol), protocol, *journal)
    assert printed == "0 0\n"
    assert ("this child delivers from memory" in logged) is with_journal
    abandoned = 'left open by the parent (server) abandoned ERROR "abandoned without an end: the source ended"'
    assert span_tree(receiver.spans) == f"{abandoned}\n\n{TREE}\n\n{TREE}"
    counts = [point.count for point in receiver.metrics if point.name == "constellation.execution.duration"]
    assert counts == [1, 1]


@pytest.mark.parametrize("with_journal", [False, True])
def test_the_interpreters_exit_delivers_what_is_held_and_the_metrics(
    receiver: Receiver, tmp_path: Path, with_journal: bool
) -> None:
    journal = f", journal={str(tmp_path / 'journal.db')!r}" if with_journal else ""
    text = f"run(OtlpListener({receiver.http_endpoint!r}, protocol='http/protobuf'{journal}))"
    assert output_of(text) == ("", "")
    assert span_tree(receiver.spans) == TREE
    assert "constellation.module.duration" in {point.name for point in receiver.metrics}


def test_the_interpreters_exit_waits_some_seconds_for_an_endpoint_that_is_away(receiver: Receiver) -> None:
    receiver.stop()
    start = time.monotonic()
    shorter = "import constellation_otel.delivery as d; d.sender._FINISH_TIMEOUT = d.worker._EXIT_TIMEOUT = 0.2\n"
    _, logged = output_of(f"{shorter}run(OtlpListener({receiver.grpc_endpoint!r}))")
    assert time.monotonic() - start < DEADLINE / 2
    assert "OtlpListener: not done within 0.2 s of closing" in logged or "were not delivered in time" in logged


INSTRUMENTED = """
import requests
from constellation_otel import Constellation, Dag
from constellation_otel.otel import OtlpListener

def fetch(url):
    with requests.get(url, timeout=20) as response:
        return response.status_code

listener = OtlpListener({endpoint!r}, protocol="http/protobuf", journal={journal!r}, service_name="shop")
with Constellation(listener=listener) as engine:
    engine.run(Dag("my-pipeline", [fetch]), {{"url": {endpoint!r}}})
assert listener.close(20)
"""


def test_under_opentelemetry_instrument_modules_calls_are_traced_and_our_own_are_not(
    receiver: Receiver, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    journal = str(tmp_path / "journal.db")
    program.write_text(INSTRUMENTED.format(endpoint=receiver.http_endpoint, journal=journal))
    run_command(receiver, f"opentelemetry-instrument python {program}", **{OPT_IN: "logs"})
    assert span_tree(receiver.spans) == (
        "my-pipeline (server) success\n  fetch (internal) success\n    GET (client) ERROR"
    )
    ours = [request for request in receiver.requests if request.protocol == "http/protobuf"]
    assert {request.signal for request in ours} == {"traces", "metrics"}
    assert not any("traceparent" in request.headers for request in ours)


def test_a_variable_that_cannot_be_used_leaves_the_journal_to_others(
    make: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "foo")
    for options in ({}, {"journal": tmp_path / "journal.db"}):
        with pytest.raises(ConfigurationError, match="OTEL_METRICS_EXEMPLAR_FILTER"):
            make("http://127.0.0.1:1", **options)
    Journal(tmp_path / "journal.db", sinks=["otlp"]).close()
