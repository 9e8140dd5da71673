"""What modules' bodies set is on the spans that arrive: with the engine, both listeners and a real endpoint."""

from __future__ import annotations

import logging
import multiprocessing
import re
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from distributed import Client, LocalCluster
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, StaticSampler
from opentelemetry.trace import StatusCode

import bodied
from bodied import NOW
from constellation_otel import (
    Constellation,
    Dag,
    ExecutionCancelledError,
    ExecutionFailedError,
    ExecutionListener,
    span_id_of,
)
from constellation_otel.events import ModuleCompleted
from constellation_otel.testing import RecordingListener, span_tree
from constellation_otel.traces import Dropped, SpanEvent, SpanLink
from constellation_otel.transports.jsonl import JsonlListener, JsonlSource
from deliveries import read_all
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

    from bodies.conftest import Listening
    from constellation_otel.traces import Span

LINK = SpanLink(0xABC, 0xDEF, {"why": "batch"}, "a=b", 1)
SDK_LINK = SpanLink(0xABC, 0xDEF, {"why": "batch"})
"""As the SDK's exporters send it."""
MISS = SpanEvent("cache miss", NOW, {"key": "k1"})
SET = {"rows": 7, "tenant": "acme", "many": ("a", "b")}


def theirs(span: Span) -> dict[str, Any]:
    """Attributes that are not the model's."""
    model = ("constellation.", "error.")
    return {name: value for name, value in span.attributes.items() if not name.startswith(model)}


def check_set(span: Span, *, name: str, failed: bool) -> None:
    """Asserts that a module's span has all that :func:`bodied.set_all` sets, and the model's where that wins."""
    assert (span.name, theirs(span)) == ("renamed", SET)
    assert span.links in ((LINK,), (SDK_LINK,))
    assert span.attributes["constellation.module.name"] == name
    assert span.attributes["constellation.outcome"] == ("failure" if failed else "success")
    assert (span.status, span.status_description) == (StatusCode.ERROR, "boom" if failed else "half of it")
    assert [event.name for event in span.events] == ["cache miss", *["exception"] * failed]
    assert span.events[0] == MISS


def run(listener: ExecutionListener, *modules: Callable[..., Any], executor: Executor | None = None) -> dict[str, Any]:
    """One execution of modules that need nothing; their outputs, and their errors."""
    with Constellation(listener, executor) as engine:
        try:
            return dict(engine.start(Dag("pipeline", list(modules)), {}).result(DEADLINE))
        except ExecutionFailedError as error:
            return {**error.outputs, **error.errors}


@pytest.fixture(scope="module")
def process_pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    cluster_type, client_type = cast("Any", LocalCluster), cast("Any", Client)  # which are not typed
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"}
    with cluster_type(host="127.0.0.1", **options) as cluster, client_type(cluster) as client:
        yield client.get_executor()


@pytest.mark.parametrize("module", [bodied.sets, bodied.sets_async], ids=lambda module: module.__name__)
def test_what_a_body_sets_is_on_its_modules_span(make: Callable[..., Listening], module: Callable[..., Any]) -> None:
    shop = make()
    run(shop.listener, module, bodied.quiet)
    spans = shop.modules()
    assert set(spans) == {module.__name__, "quiet"}
    check_set(spans[module.__name__], name=module.__name__, failed=False)
    quiet = spans["quiet"]
    assert (quiet.name, theirs(quiet), quiet.events, quiet.links) == ("quiet", {}, (), ())


@pytest.mark.parametrize("module", [bodied.fails, bodied.fails_async], ids=lambda module: module.__name__)
def test_a_failed_module_has_the_models_status_and_its_error_once(
    make: Callable[..., Listening], module: Callable[..., Any]
) -> None:
    shop = make()
    run(shop.listener, module)
    span = shop.modules()[module.__name__]
    check_set(span, name=module.__name__, failed=True)
    assert span.attributes["error.type"] == "ValueError"
    said = span.events[1].attributes
    assert (said["exception.type"], said["exception.message"]) == ("ValueError", "boom")
    assert "exception.escaped" not in said
    execution = shop.spans()["pipeline"]
    assert execution.status_description == f"{module.__name__} failed: boom"


@pytest.mark.parametrize("where", [None, "process_pool", "dask"], ids=str)
@pytest.mark.parametrize("module", [bodied.fails, bodied.fails_async], ids=lambda module: module.__name__)
def test_a_stack_trace_begins_with_the_modules_own_frame(
    make: Callable[..., Listening], where: str | None, module: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    shop = make()
    run(shop.listener, module, executor=None if where is None else request.getfixturevalue(where))
    said = str(shop.modules()[module.__name__].events[-1].attributes["exception.stacktrace"])
    first, *others = re.findall(r'File "(.+)", line \d+, in (\w+)', said)
    assert first == (bodied.__file__, module.__name__)
    assert not [file for file, _ in others if "constellation_otel" in Path(file).parts]


@pytest.mark.parametrize("where", ["process_pool", "dask"])
def test_what_a_body_sets_in_another_process_comes_back(
    make: Callable[..., Listening], where: str, request: pytest.FixtureRequest
) -> None:
    """With a failure, too, however that travels."""
    shop = make()
    failing = [bodied.fails, bodied.fails_async, bodied.fails_oddly, bodied.fails_in_words]
    modules = [bodied.sets, bodied.sets_async, bodied.quiet, *failing]
    got = run(shop.listener, *modules, executor=request.getfixturevalue(where))
    assert (got["sets"], got["sets_async"], got["quiet"]) == ("renamed", 1, 1)
    kinds = {name: f"{type(got[name]).__name__}: {got[name]}" for name in ("fails", "fails_oddly", "fails_in_words")}
    assert kinds == {
        "fails": "ValueError: boom",
        "fails_oddly": "WordsError: boom",
        "fails_in_words": "RemoteError: boom",
    }
    assert not any("_constellation_body" in vars(got[module.__name__]) for module in failing)
    spans = shop.modules()
    for module in modules:
        name = module.__name__
        if module is bodied.quiet:
            assert (spans[name].name, theirs(spans[name])) == (name, {})
        else:
            check_set(spans[name], name=name, failed=module in failing)


def test_what_is_recorded_only_records_in_another_process(
    through_sdk: Callable[..., Listening], process_pool: Executor
) -> None:
    seen: list[ReadableSpan] = []

    class Seeing(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span)

    shop = through_sdk(StaticSampler(Decision.RECORD_ONLY), [Seeing()])
    run(shop.listener, bodied.sets, executor=process_pool)
    run(shop.listener, bodied.sets)
    assert shop.spans() == {}
    renamed = [span for span in seen if span.name == "renamed"]
    assert [dict(span.attributes or {})["rows"] for span in renamed] == [7, 7]


@pytest.mark.parametrize("where", ["here", "process_pool"])
def test_of_an_execution_that_is_not_sampled_nothing_records(
    make: Callable[..., Listening], where: str, request: pytest.FixtureRequest
) -> None:
    shop = make(sampler=ALWAYS_OFF)
    executor = None if where == "here" else request.getfixturevalue(where)
    with Constellation(shop.listener, executor) as engine:
        outputs = engine.run(Dag("pipeline", [kind_of_span]), {})
    assert outputs["kind_of_span"] == "NonRecordingSpan False"
    assert shop.spans() == {}


def kind_of_span() -> str:
    span = trace.get_current_span()
    return f"{type(span).__name__} {span.is_recording()}"


def test_in_a_composite_what_is_set_is_on_every_listeners_span(
    through_sdk: Callable[..., Listening], through_otlp: Callable[..., Listening], tmp_path: Path
) -> None:
    sdk, otlp, records = through_sdk(), through_otlp(), JsonlListener(tmp_path / "events.jsonl")
    run(ExecutionListener.composite(sdk.listener, records, otlp.listener), bodied.sets, bodied.fails)
    assert records.close(DEADLINE)
    sdk.spans()
    otlp.spans()
    spans = [span for span in otlp.receiver.spans if span.name == "renamed"]
    assert len(spans) == 4
    for span in spans:
        name = str(span.attributes["constellation.module.name"])
        check_set(span, name=name, failed=name == "fails")
    (written,) = (
        record.event
        for record in read_all(JsonlSource(tmp_path / "events.jsonl"))
        if isinstance(record.event, ModuleCompleted)
    )
    assert written.body is not None
    assert written.body.attributes == {**SET, "constellation.outcome": "mine"}


def test_a_listener_without_spans_has_nothing_to_do_with_it() -> None:
    listener = RecordingListener()
    run(listener, bodied.sets_async)
    (completed,) = (event for event in listener.events if isinstance(event, ModuleCompleted))
    assert completed.body is None


def test_another_name_is_the_spans_only(make: Callable[..., Listening]) -> None:
    """Metrics and descriptions keep the module's."""
    shop = make()
    run(shop.listener, bodied.sets, bodied.fails)
    spans = shop.spans()
    assert shop.listener.close(DEADLINE)
    shop.spans()
    points = [point for point in shop.receiver.metrics if point.name == "constellation.module.duration"]
    assert {point.attributes["constellation.module.name"] for point in points} == {"sets", "fails"}
    assert spans["pipeline"].status_description == "fails failed: boom"


@pytest.mark.parametrize("looks", [False, True], ids=["at the end", "in on_start"])
def test_the_models_attributes_are_not_what_a_limit_costs(through_sdk: Callable[..., Listening], looks: bool) -> None:
    """However many a body has set; what was dropped is counted, in the body and behind it."""

    class Looking(SpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            """Does nothing, and nobody knows."""

    shop = through_sdk(processors=[Looking()] if looks else [])
    run(shop.listener, sets_too_much)
    span = shop.modules()["sets_too_much"]
    assert len(span.attributes) == 128
    assert {name for name in span.attributes if name.startswith("constellation.")} == {
        "constellation.execution.id",
        "constellation.dag.name",
        "constellation.module.id",
        "constellation.module.name",
        "constellation.outcome",
    }
    assert span.dropped == Dropped(10_000 - 123, 72, 72)
    assert (len(span.events), len(span.links)) == (128, 128)


def test_more_than_the_limits_is_dropped_and_counted(through_otlp: Callable[..., Listening]) -> None:
    shop = through_otlp()
    run(shop.listener, sets_too_much)
    span = shop.modules()["sets_too_much"]
    assert len(theirs(span)) == 128
    assert span.dropped == Dropped(10_000 - 128, 72, 72)
    assert (len(span.events), len(span.links)) == (128, 128)


def sets_too_much() -> None:
    span = trace.get_current_span()
    for number in range(10_000):
        span.set_attribute(f"key {number}", number)
    for _ in range(200):
        span.add_event("event")
        span.add_link(bodied.ELSEWHERE)


def test_bad_input_costs_nothing_else(make: Callable[..., Listening]) -> None:
    shop = make()

    def bad(number: int) -> Callable[[], None]:
        def body() -> None:
            span: Any = trace.get_current_span()
            odd = [float("nan"), 2**70, b"\xff", "\ud800", "x" * 10_000_000, [1] * 1_000_000, object(), None, {}]
            for position, value in enumerate(odd):
                span.set_attribute(f"odd {position}", value)
                span.add_event(value, {"odd": value}, value)
                span.add_link(value, value)
                span.set_status(value)
                span.update_name(value)
            span.set_attribute("number", number)

        body.__name__ = f"bad-{number}"
        return body

    run(shop.listener, *map(bad, range(5)), bodied.quiet)
    spans = shop.modules()
    assert {name: span.attributes.get("number") for name, span in spans.items()} == {
        **{f"bad-{number}": number for number in range(5)},
        "quiet": None,
    }
    odd = spans["bad-0"].attributes
    assert (odd["odd 0"], odd["odd 1"], odd["odd 3"]) == ("nan", str(2**70), "\ufffd")
    assert odd["odd 4"] == "x" * 8_192
    assert shop.listener.counters.held == shop.listener.counters.dropped == shop.listener.counters.rejected == 0


def test_a_body_that_runs_on_after_its_modules_end_sets_nothing(
    make: Callable[..., Listening], caplog: pytest.LogCaptureFixture
) -> None:
    """Its threads, or that of a module of an execution that was cancelled."""
    shop, threads = make(), ThreadPoolExecutor(1)
    entered, opened = threading.Event(), threading.Event()
    late: list[Any] = []

    def leaves() -> int:
        span = trace.get_current_span()
        span.set_attribute("before", 1)
        late.append(span)
        return 1

    def runs_on(leaves: int) -> None:
        late.append(trace.get_current_span())
        late[-1].set_attribute("before", leaves)
        entered.set()
        assert opened.wait(DEADLINE)
        late[-1].set_attribute("after", 1)

    with threads, Constellation(shop.listener, threads) as engine:
        execution = engine.start(Dag("pipeline", [leaves, runs_on]), {})
        assert entered.wait(DEADLINE)
        late[0].set_attribute("after", 1)
        execution.cancel()
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
        spans = shop.modules()
        opened.set()
    assert {name: theirs(span) for name, span in spans.items()} == {"leaves": {"before": 1}, "runs_on": {}}
    assert caplog.messages.count("Setting attribute on ended span.") == 2
    assert [span.is_recording() for span in late] == [False, False]


@UNWATCHED
def test_eight_threads_set_while_modules_end(make: Callable[..., Listening]) -> None:
    shop, pool = make(), ThreadPoolExecutor(8)

    def sets_for_long(span: trace.Span) -> None:
        for number in range(50):
            span.set_attribute(f"key {number}", number)

    def body() -> None:
        span = trace.get_current_span()
        for _ in range(8):
            pool.submit(sets_for_long, span)

    def named(number: int) -> Callable[[], None]:
        def one() -> None:
            body()

        one.__name__ = f"module-{number}"
        return one

    with pool:
        run(shop.listener, *map(named, range(40)))
    spans = shop.modules()
    assert len(spans) == 40
    for span in spans.values():
        assert all(value == int(name.removeprefix("key ")) for name, value in theirs(span).items())
    assert shop.listener.counters.rejected == 0


class FromBaggage(SpanProcessor):
    """What the processor of OpenTelemetry's contrib repository does: baggage becomes attributes."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        self.threads.add(threading.current_thread().name)
        for name, value in baggage.get_all(parent_context).items():
            span.set_attribute(name, str(value))


def test_a_processor_that_acts_in_on_start_still_works(through_sdk: Callable[..., Listening]) -> None:
    """When the span is made, in the worker, with the caller's context."""
    processor = FromBaggage()
    shop = through_sdk(processors=[processor])
    token = otel_context.attach(baggage.set_baggage("tenant.id", "acme"))
    run(shop.listener, bodied.sets)
    otel_context.detach(token)
    spans = shop.spans()
    assert {name: span.attributes["tenant.id"] for name, span in spans.items()} == {
        "pipeline": "acme",
        "renamed": "acme",
    }
    assert {name: theirs(span) for name, span in spans.items()} == {
        "pipeline": {"tenant.id": "acme"},
        "renamed": {**SET, "tenant.id": "acme"},
    }
    assert (spans["renamed"].links, spans["renamed"].events) == ((SDK_LINK,), (MISS,))
    assert threading.current_thread().name not in processor.threads


def test_what_looks_at_the_current_span_finds_one_of_the_sdks(make: Callable[..., Listening]) -> None:
    """Trace ids in logs, spans of a library's below it, exceptions that a decorator records."""
    shop = make()
    found: list[Any] = []

    def body() -> None:
        span = trace.get_current_span()
        found.append((span.get_span_context(), span.is_recording(), isinstance(span, trace.Span)))
        with trace.use_span(span, end_on_exit=True):
            found.append(trace.get_current_span() is span)

    run(shop.listener, body)
    span = shop.modules()["body"]
    context, is_recording, is_span = found[0]
    assert (context.trace_id, context.span_id, is_recording, is_span) == (span.trace_id, span.span_id, True, True)
    assert found[1] is True
    assert span_tree(shop.receiver.spans) == "pipeline (server) success\n  body (internal) success"


def test_log_records_of_a_body_have_the_ids_of_its_module(
    make: Callable[..., Listening], caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenTelemetry's instrumentation of logging writes them."""
    shop = make()
    factory = logging.getLogRecordFactory()

    def with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record, context = factory(*args, **kwargs), trace.get_current_span().get_span_context()
        vars(record)["ids"] = (context.trace_id, context.span_id, context.trace_flags.sampled)
        return record

    def body() -> None:
        logging.getLogger("body").warning("said")

    logging.setLogRecordFactory(with_ids)
    try:
        run(shop.listener, body)
    finally:
        logging.setLogRecordFactory(factory)
    span = shop.modules()["body"]
    (record,) = [vars(record) for record in caplog.records if record.name == "body"]
    assert record["ids"] == (span.trace_id, span.span_id, True)


def test_attributes_gives_an_executions_span_what_it_says(make: Callable[..., Listening]) -> None:
    """A tenant, a queue: of the start, and of the caller's context; its own attributes are the model's."""
    asked: list[Any] = []

    def attributes(event: Any, context: Context) -> dict[str, Any]:
        asked.append((event.dag_name, threading.current_thread()))
        return {"tenant": str(baggage.get_baggage("tenant", context)), "constellation.outcome": "mine", "rows": [1, 2]}

    shop = make(attributes=attributes)
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    run(shop.listener, bodied.quiet)
    otel_context.detach(token)
    spans = shop.spans()
    assert theirs(spans["pipeline"]) == {"tenant": "acme", "rows": (1, 2)}
    assert spans["pipeline"].attributes["constellation.outcome"] == "success"
    assert theirs(spans["quiet"]) == {}
    assert asked == [("pipeline", threading.current_thread())]


def raising(*_: object) -> Any:
    raise KeyError("tenant")


@pytest.mark.parametrize(
    ("attributes", "given", "said"),
    [
        (raising, {}, "raised for execution"),
        (lambda *_: 5, {}, "raised for execution"),
        (lambda *_: None, {}, None),
        (lambda *_: {}, {}, None),
        (lambda *_: {"a": 1, "b": object(), 5: 1}, {"a": 1}, "gave 2 that cannot be kept"),
        (
            lambda *_: {f"key {number}": number for number in range(10_000)},
            {f"key {number}": number for number in range(128)},
            "gave 9872 that cannot be kept",
        ),
        (lambda *_: {"text": "x" * 10_000_000, "odd": float("inf")}, {"text": "x" * 8_192, "odd": "inf"}, None),
    ],
)
def test_attributes_that_cannot_be_had_cost_no_execution(
    through_otlp: Callable[..., Listening],
    caplog: pytest.LogCaptureFixture,
    attributes: Any,
    given: dict[str, Any],
    said: str | None,
) -> None:
    shop = through_otlp(attributes=attributes)
    run(shop.listener, bodied.quiet)
    assert theirs(shop.spans()["pipeline"]) == given
    logged = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(logged) == (said is not None)
    assert said is None or said in logged[0]


def test_redact_rewrites_what_recorded_errors_say(make: Callable[..., Listening]) -> None:
    shop = make(redact=lambda text: text.replace("secret", "***"))

    def body() -> None:
        span = trace.get_current_span()
        try:
            raise ValueError("a secret")
        except ValueError as error:
            span.record_exception(error)
        with trace.use_span(span):
            raise KeyError("another secret")

    run(shop.listener, body)
    span = shop.modules()["body"]
    assert [event.attributes["exception.type"] for event in span.events] == ["ValueError", "KeyError"]
    assert [event.attributes["exception.message"] for event in span.events] == ["a ***", "'another ***'"]
    assert "a secret" not in str(span.events[0])


def test_what_is_set_links_and_nests_under_the_ids_computed(make: Callable[..., Listening]) -> None:
    """What another module's span is linked to can be looked up."""
    shop = make()

    def first() -> int:
        trace.get_current_span().set_attribute("rows", 7)
        return 1

    def second(first: int) -> int:
        trace.get_current_span().add_link(bodied.ELSEWHERE, {"why": "batch"})
        return first

    run(shop.listener, first, second)
    spans = shop.modules()
    upstream = SpanLink(spans["first"].trace_id, spans["first"].span_id, {"constellation.link": "upstream"})
    assert spans["second"].links in ((upstream, LINK), (upstream, SDK_LINK))
    execution = shop.spans()["pipeline"]
    assert spans["second"].parent_span_id == execution.span_id
    assert execution.execution_id is None or span_id_of(execution.execution_id) == execution.span_id
