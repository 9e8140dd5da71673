"""An execution's events and the spans that they make, for tests of assembling and rendering; and arbitrary ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.events import (
    BodyRecord,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
    PlainValue,
    RecordedEvent,
    RecordedLink,
)
from constellation_otel.traces import Assembler, Span, SpanEvent
from constellation_otel.traces.ids import span_id_of, trace_id_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

MS = 1_000_000
SECOND = 1_000_000_000
T0 = 1_795_465_363_577 * MS
E1 = UUID("11111111-1111-4111-8111-111111111111")
E2 = UUID("22222222-2222-4222-8222-222222222222")
M1 = UUID("aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
M2 = UUID("bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb")
M3 = UUID("cccccccc-cccc-4ccc-8ccc-cccccccccccc")


BOOM = ErrorInfo("app.Boom", "too many words")


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


STORY: list[Event] = [
    ExecutionStarted(E1, "my-pipeline", T0),
    ModuleStarted(E1, M1, "Trim", T0 + 1 * MS),
    ModuleStarted(E1, M2, "Uppercase", T0 + 2 * MS),
    ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 3 * MS),
    ModuleCompleted(E1, M2, "Uppercase", 5.0, T0 + 8 * MS),
    ModuleStarted(E1, M3, "WordCount", T0 + 9 * MS),
    ModuleFailed(E1, M3, "WordCount", BOOM, T0 + 14 * MS),
    ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 15 * MS),
]


def module_span(name: str, module_id: UUID | None, start_ns: int, end_ns: int, outcome: str = "success") -> Span:
    """A module's span of execution E1 of my-pipeline, when all is known of it."""
    attributes = {"constellation.execution.id": str(E1), "constellation.dag.name": "my-pipeline"}
    if module_id is not None:
        attributes["constellation.module.id"] = str(module_id)
    attributes["constellation.module.name"] = name
    return Span(
        trace_id_of(E1),
        span_id_of(E1, module_id),
        span_id_of(E1),
        "",
        2,
        name,
        SpanKind.INTERNAL,
        start_ns,
        end_ns,
        {**attributes, "constellation.outcome": outcome},
        execution_id=E1,
        duration_ns=end_ns - start_ns,
    )


TRIM = module_span("Trim", M1, T0 + 1 * MS, T0 + 3 * MS)


UPPERCASE = module_span("Uppercase", M2, T0 + 2 * MS, T0 + 7 * MS)
"""Its end event came 1 ms late."""


WORD_COUNT = msgspec.structs.replace(
    module_span("WordCount", M3, T0 + 9 * MS, T0 + 14 * MS),
    attributes={
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.module.id": str(M3),
        "constellation.module.name": "WordCount",
        "error.type": "app.Boom",
        "constellation.outcome": "failure",
    },
    status=StatusCode.ERROR,
    status_description="too many words",
    events=(
        SpanEvent(
            "exception", T0 + 14 * MS, {"exception.type": "app.Boom", "exception.message": "too many words"}, True
        ),
    ),
)


EXECUTION = Span(
    trace_id_of(E1),
    span_id_of(E1),
    None,
    "",
    2,
    "my-pipeline",
    SpanKind.SERVER,
    T0,
    T0 + 15 * MS,
    {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "error.type": "app.Boom",
        "constellation.outcome": "failure",
    },
    StatusCode.ERROR,
    "WordCount failed: too many words",
    execution_id=E1,
    is_execution=True,
    duration_ns=15 * MS,
)


def assemble(events: list[Event], **options: float) -> list[Span]:
    """The spans that are emitted when all events arrive at once and then time passes."""
    assembler = Assembler(**options)  # type: ignore[arg-type]
    spans = [span for event in events for span in assembler.add(event, 0)]
    return spans + assembler.advance(SECOND) + assembler.finish()


def the_execution(events: list[Event], **options: float) -> Span:
    return assemble(events, **options)[-1]


def anonymous_story() -> list[Event]:
    """What the guide's own listener writes: one module name twice, overlapping."""
    return [
        ExecutionStarted(E1, "my-pipeline", T0),
        ModuleStarted(E1, None, "Trim", T0 + 1 * MS),
        ModuleStarted(E1, None, "Trim", T0 + 2 * MS),
        ModuleFailed(E1, None, "Trim", BOOM, T0 + 5 * MS),
        ModuleCompleted(E1, None, "Trim", 4.0, T0 + 6 * MS),
        ModuleCompleted(E1, None, "Lost", 1.0, T0 + 7 * MS),
        ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 15 * MS),
    ]


names = st.sampled_from(["Trim", "Uppercase", "WordCount", "unknown", "Ünïcode ☃"])


instants = st.integers(T0, T0 + 50)


durations = st.sampled_from([0.0, 0.5, 2.0, 1234.567891])


errors = st.sampled_from([BOOM, ErrorInfo(None, None), ErrorInfo("E", "not plain: ☃")])


parents = st.sampled_from([None, PARENT, "junk"])


engines = st.sampled_from([None, "kedro"])


plain_values: list[PlainValue] = ["a", "b", 1, 2.5, True, ("x", "y")]


attributes = st.dictionaries(
    st.sampled_from(["tenant", "queue", "constellation.outcome", "error.type"]), st.sampled_from(plain_values)
)


UNHEARD_OF = UUID("eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee")


def details_of(module_ids: list[UUID]) -> st.SearchStrategy[ModuleDetails | None]:
    """What an engine may tell of a module besides: of others in the execution, and of one that nobody tells of."""
    others = st.sampled_from([*module_ids, UNHEARD_OF])
    return st.none() | st.builds(
        ModuleDetails,
        st.none() | others,
        st.integers(1, 3),
        st.none() | others,
        st.none(),
        st.none() | names,
        st.lists(others, max_size=3).map(tuple),
        attributes,
    )


bodies = st.none() | st.builds(
    BodyRecord,
    attributes,
    st.lists(st.builds(RecordedEvent, names, instants, attributes), max_size=2).map(tuple),
    st.lists(st.builds(RecordedLink, st.just("ab" * 16), st.just("cd" * 8), attributes), max_size=2).map(tuple),
    st.sampled_from(["unset", "ok", "error"]),
    st.none() | names,
    st.none() | names,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """One execution's events as an engine might send them: lost, doubled, failed, cancelled, parallel, nested."""
    events: list[Event] = []
    dag = draw(names)
    twice = st.integers(0, 2)
    events.extend(
        ExecutionStarted(E1, dag, draw(instants), draw(parents), None, draw(st.none() | attributes), draw(engines))
        for _ in range(draw(twice))
    )
    module_ids = draw(st.lists(st.uuids(version=4), max_size=4, unique=True))
    details = details_of(module_ids)
    for module_id in module_ids:
        name = draw(names)
        events.extend(ModuleStarted(E1, module_id, name, draw(instants), draw(details)) for _ in range(draw(twice)))
        for _ in range(draw(twice)):
            told, body = draw(details), draw(bodies)
            if draw(st.booleans()):
                events.append(ModuleCompleted(E1, module_id, name, draw(durations), draw(instants), told, body))
            else:
                events.append(ModuleFailed(E1, module_id, name, draw(errors), draw(instants), told, body))
        if draw(st.integers(0, 3)) == 0:
            told = ModuleDetails(outcome=draw(st.sampled_from(["skipped", "cached"])))
            events.append(ModuleDescribed(E1, module_id, name, draw(instants), told))
    for _ in range(draw(twice)):
        if draw(st.booleans()):
            events.append(ExecutionCompleted(E1, dag, draw(st.booleans()), draw(durations), draw(instants)))
        else:
            events.append(ExecutionCancelled(E1, dag, draw(instants)))
    return events


def in_order(story: list[Event]) -> list[Event]:
    """As an ordered source gives it: nothing twice, each start before what it starts, the end last.

    A module is a part of one that has a smaller id, whose end is behind its own.
    """
    first: dict[tuple[object, object], Event] = {}
    for event in map(_with_parent_of_smaller_id, story):
        is_start = isinstance(event, ExecutionStarted | ModuleStarted)
        first.setdefault((getattr(event, "module_id", None), is_start), event)
    return sorted(
        first.values(),
        key=lambda event: (
            not isinstance(event, ExecutionStarted),
            isinstance(event, ExecutionCompleted | ExecutionCancelled),
            not isinstance(event, ModuleStarted),
            -getattr(getattr(event, "module_id", None), "int", 0),
        ),
    )


def _with_parent_of_smaller_id(event: Event) -> Event:
    if isinstance(event, ModuleStarted | ModuleCompleted | ModuleFailed):
        details, module_id = event.details, event.module_id
        if details is not None and details.parent_id is not None and module_id is not None:
            parent_id = details.parent_id if details.parent_id < module_id else None
            return msgspec.structs.replace(event, details=msgspec.structs.replace(details, parent_id=parent_id))
    return event


def bytes_of(spans: list[Span]) -> list[str]:
    return sorted(map(repr, spans))


def with_spans_inside(listener: Any, library: Tracer, executions: int) -> None:
    """Executions, the same each time, with a span that a library makes inside their module's body."""
    rng = random.Random(2026)
    for _ in range(executions):
        execution_id, module_id = UUID(int=rng.getrandbits(128)), UUID(int=rng.getrandbits(128))
        listener.on_execution_start(execution_id, "d")
        listener.on_module_start(execution_id, module_id, "m")
        library.start_span("inner", listener.module_context(execution_id, module_id, Context())).end()
        listener.on_module_complete(execution_id, module_id, "m", 1.0)
        listener.on_execution_complete(execution_id, "d", True, 2.0)
