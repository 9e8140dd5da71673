"""The context of a module's body where there is no listener, and the header that brings it there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from constellation_otel import BufferedListener, OtlpListener, module_context, span_id_of, trace_id_of
from constellation_otel.bodies import span_context_of, traceparent_of
from constellation_otel.traces import NOT_TRACED, decide
from samplers import NoOpinionError, Opinionated, RaisingSampler
from stories import E1, E2, M1
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery import Rejection

THEIRS = 0x0AF7651916CD43DD8448EB211C80319C
SAMPLED = f"00-{THEIRS:032x}-{span_id_of(E1):016x}-01"
NOT_SAMPLED = f"00-{THEIRS:032x}-{span_id_of(E1):016x}-00"
NONE = [
    None,
    "",
    "00-1",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    "\ud800",
    7,
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
]
"""What may be given for a traceparent, and is none."""
BY_ENVIRONMENT = """
from uuid import UUID
from opentelemetry import trace
from constellation_otel import module_context, trace_id_of
context = module_context(UUID(int=1), UUID(int=2))
found = trace.get_current_span(context).get_span_context()
assert found.trace_id == trace_id_of(UUID(int=1))
print(found.trace_flags.sampled)
"""


def current_in(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


class Discards:
    """A sink that takes events, and has no use for them."""

    name, takes = "discards", "events"

    def send(self, items: Sequence[object], timeout: float) -> Sequence[Rejection]:
        return ()

    def close(self) -> None:
        """Has nothing to close."""


@pytest.fixture
def make_buffered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], BufferedListener[Any]]]:
    """Makes listeners that make no spans; each is asked by the environment's sampler, and closed at the end."""
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    made: list[BufferedListener[Any]] = []

    def make() -> BufferedListener[Any]:
        made.append(BufferedListener(Discards()))  # type: ignore[arg-type] # it has what a sink needs
        return made[-1]

    yield make
    for listener in made:
        listener.close(DEADLINE)


@pytest.mark.parametrize(("traceparent", "flags"), [(SAMPLED, 1), (NOT_SAMPLED, 0)])
def test_a_traceparent_says_the_trace_and_the_samplers_answer(traceparent: str, flags: int) -> None:
    """And nobody else is asked."""
    sampler = Opinionated()
    context = module_context(E1, M1, traceparent, sampler=sampler)
    assert current_in(context) == SpanContext(THEIRS, span_id_of(E1, M1), False, TraceFlags(flags))
    assert sampler.asked == []


@pytest.mark.parametrize(("sampler", "flags"), [(ALWAYS_ON, 3), (ALWAYS_OFF, 2), (TraceIdRatioBased(0), 2)])
@pytest.mark.parametrize("traceparent", NONE)
def test_without_a_traceparent_the_sampler_is_asked_here(traceparent: Any, sampler: Sampler, flags: int) -> None:
    """What is none counts as not given."""
    context = module_context(E1, M1, traceparent, sampler=sampler)
    assert current_in(context) == SpanContext(trace_id_of(E1), span_id_of(E1, M1), False, TraceFlags(flags))


def test_the_sampler_is_asked_about_the_computed_trace() -> None:
    sampler = Opinionated()
    context = module_context(E1, M1, sampler=sampler)
    assert [asked[0] for asked in sampler.asked] == [trace_id_of(E1)]
    assert current_in(context).trace_state.to_header() == "rule=all"
    with pytest.raises(NoOpinionError):
        module_context(E1, M1, sampler=RaisingSampler())


@pytest.mark.parametrize(("name", "is_sampled"), [("always_on", "True"), ("always_off", "False")])
def test_without_a_sampler_the_environments_is_asked(
    name: str, is_sampled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    command = [sys.executable, "-W", "error", "-c", BY_ENVIRONMENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{is_sampled}\n", "")


def test_what_is_made_current_does_not_record_and_keeps_the_rest() -> None:
    """A span that is made in it is the module's child; the caller's baggage stays."""
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        context = module_context(E1, M1, SAMPLED)
    finally:
        otel_context.detach(token)
    assert type(trace.get_current_span(context)) is NonRecordingSpan
    assert baggage.get_all(context) == {"tenant": "acme"}
    provider = TracerProvider(shutdown_on_exit=False)
    child: Any = provider.get_tracer("app").start_span("GET", context)
    assert (child.context.trace_id, child.parent) == (THEIRS, current_in(context))


@pytest.mark.parametrize("traceparent", [SAMPLED, NOT_SAMPLED, *NONE])
def test_an_executions_own_span_has_the_computed_id(traceparent: Any) -> None:
    found = span_context_of(E1, traceparent, sampler=ALWAYS_ON)
    is_known = traceparent in {SAMPLED, NOT_SAMPLED} if isinstance(traceparent, str) else False
    assert (found.trace_id, found.span_id) == (THEIRS if is_known else trace_id_of(E1), span_id_of(E1))


@pytest.mark.parametrize(("sampler", "flags"), [(ALWAYS_ON, "03"), (ALWAYS_OFF, "02")])
def test_a_decision_as_a_header_says_what_was_answered(sampler: Sampler, flags: str) -> None:
    traceparent = traceparent_of(decide(sampler, E1, "d", Context()))
    assert traceparent == f"00-{trace_id_of(E1):032x}-{span_id_of(E1):016x}-{flags}"
    known = span_context_of(E1, traceparent, sampler=RaisingSampler())
    assert known == SpanContext(trace_id_of(E1), span_id_of(E1), False, TraceFlags(int(flags)))


def test_an_execution_that_is_not_traced_has_no_header() -> None:
    assert [traceparent_of(NOT_TRACED), traceparent_of(None)] == [None, None]


@pytest.mark.parametrize("kind", ["otlp", "buffered"])
def test_a_listeners_header_makes_the_body_nest_elsewhere(
    kind: str, make_buffered: Callable[[], BufferedListener[Any]]
) -> None:
    """Below the span that the listener has for it, with its answer, whatever is sampled over there."""
    listener = OtlpListener("http://127.0.0.1:1", sampler=ALWAYS_ON) if kind == "otlp" else make_buffered()
    caller = trace.set_span_in_context(NonRecordingSpan(SpanContext(THEIRS, 7, True, TraceFlags(1))))
    token = otel_context.attach(caller)
    try:
        assert listener.traceparent_of(E1) is None
        listener.on_execution_start(E1, "d")
        here = current_in(listener.module_context(E1, M1, Context()))
        there = current_in(module_context(E1, M1, listener.traceparent_of(E1), sampler=ALWAYS_OFF))
        assert listener.traceparent_of(E1) == SAMPLED
        assert here == there == SpanContext(THEIRS, span_id_of(E1, M1), False, TraceFlags(1))
    finally:
        otel_context.detach(token)
        listener.close(0.0)


def test_a_listener_that_makes_no_spans_joins_an_execution_too(
    make_buffered: Callable[[], BufferedListener[Any]],
) -> None:
    """Its modules' bodies nest; its sink, which may know no more than the six events, does not hear of it."""
    listener = make_buffered()
    listener.join(E1, "d", SAMPLED)
    listener.join(E2, "d", NOT_SAMPLED.replace(f"{span_id_of(E1):016x}", f"{span_id_of(E2):016x}"))
    assert current_in(listener.module_context(E1, M1, Context())) == current_in(module_context(E1, M1, SAMPLED))
    assert current_in(listener.module_context(E2, M1, Context())).trace_flags == 0
    assert [listener.traceparent_of(E1), listener.traceparent_of(E2)] == [
        SAMPLED,
        f"00-{THEIRS:032x}-{span_id_of(E2):016x}-00",
    ]
    assert listener.flush(DEADLINE)
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.sending.sent) == (2, 2, 0)


@pytest.mark.parametrize("odd", [None, "7", 7, [], object()])
def test_an_id_that_is_none_is_an_execution_that_is_not_known(
    odd: Any, make_buffered: Callable[[], BufferedListener[Any]]
) -> None:
    assert make_buffered().traceparent_of(odd) is None
