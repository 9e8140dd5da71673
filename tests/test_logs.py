"""Ids in the log records of modules' bodies, wherever these run."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from constellation_otel import (
    Constellation,
    Dag,
    ExecutionListener,
    OpenTelemetryListener,
    module_context,
    span_id_of,
    trace_id_of,
)
from constellation_otel.adapters.telling import Teller
from constellation_otel.logs import ModuleIds, add_module_ids
from constellation_otel.testing import RecordingListener
from constellation_otel.traces import module_id_of
from stories import E1, M1
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

Ids = dict[str, str]
NONE: Ids = {"trace_id": "", "span_id": "", "execution_id": "", "module_name": ""}


def logged() -> Ids:
    """The ids of a record that is made here, as the standard library and structlog have them."""
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "hello", (), None)
    assert ModuleIds().filter(record)
    ids = {name: record.__dict__[name] for name in NONE}
    assert add_module_ids(None, "info", {}) == {name: value for name, value in ids.items() if value}
    return ids


async def logged_async() -> Ids:
    await asyncio.sleep(0)
    return await asyncio.to_thread(logged)


def ids_of(execution_id: UUID, name: str) -> Ids:
    return {
        "trace_id": f"{trace_id_of(execution_id):032x}",
        "span_id": f"{span_id_of(execution_id, module_id_of(execution_id, name)):016x}",
        "execution_id": str(execution_id),
        "module_name": name,
    }


@pytest.fixture
def make_listener() -> Iterator[Callable[..., OpenTelemetryListener]]:
    """Makes listeners for traces, of an application with a sampler."""
    made: list[OpenTelemetryListener] = []

    def make(sampler: Any = ALWAYS_ON) -> OpenTelemetryListener:
        made.append(OpenTelemetryListener(TracerProvider(sampler, shutdown_on_exit=False)))
        return made[-1]

    yield make
    for listener in made:
        assert listener.close(DEADLINE)


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])
@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_body_logs_the_ids_of_its_module(
    pool: Callable[[int], Executor] | None, sampler: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    """In threads, tasks and other processes, whether the execution is sampled or not."""
    executor = None if pool is None else pool(2)
    with Constellation(make_listener(sampler), executor) as engine:
        execution = engine.start(Dag("letters", [logged, logged_async]), {})
        outputs = execution.result(DEADLINE)
    if executor is not None:
        executor.shutdown()
    assert outputs == {name: ids_of(execution.execution_id, name) for name in ("logged", "logged_async")}


def test_the_spans_that_a_body_makes_have_the_modules_execution(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("app")

    def body() -> tuple[Ids, int]:
        with tracer.start_as_current_span("step") as span:
            return logged(), span.get_span_context().span_id

    with Constellation(make_listener()) as engine:
        execution = engine.start(Dag("letters", [body]), {})
        ids, span_id = execution.result(DEADLINE)["body"]
    assert ids == ids_of(execution.execution_id, "body") | {"span_id": f"{span_id:016x}"}


@pytest.mark.parametrize("inner_is_traced", [True, False])
def test_a_body_that_runs_a_pipeline_goes_on_with_its_own_ids(
    inner_is_traced: bool, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    """Where nothing is known of the inner execution, its bodies are a part of the outer one's."""
    listener = make_listener()
    inner = Constellation(listener if inner_is_traced else RecordingListener())

    def outer() -> tuple[Ids, UUID, Ids]:
        execution = inner.start(Dag("inner", [logged]), {})
        return execution.result(DEADLINE)["logged"], execution.execution_id, logged()

    with inner, Constellation(listener) as engine:
        execution = engine.start(Dag("outer", [outer]), {})
        within, inner_id, behind = execution.result(DEADLINE)["outer"]
    own = ids_of(execution.execution_id, "outer")
    assert behind == own
    assert within == (ids_of(inner_id, "logged") | {"trace_id": own["trace_id"]} if inner_is_traced else own)


def test_without_a_listener_for_traces_there_is_nothing_to_say() -> None:
    with Constellation(RecordingListener()) as engine:
        assert engine.run(Dag("letters", [logged]), {}) == {"logged": NONE}


def test_outside_of_bodies_the_current_span_is_all_there_is() -> None:
    assert logged() == NONE
    span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        assert logged() == NONE | {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}
    finally:
        otel_context.detach(token)


def test_a_body_that_an_adapter_tells_of_logs_its_name_too(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    teller = Teller(make_listener(), "loom")
    execution_id = teller.execution_id("the first")
    teller.execution_started(execution_id, "letters")
    with teller.module(execution_id, "weave/1", "weave"):
        ids = logged()
    teller.execution_ended(execution_id)
    assert ids == ids_of(execution_id, "weave/1") | {"module_name": "weave"}


def test_a_body_without_a_listener_logs_what_its_context_says() -> None:
    """It knows no name."""
    token = otel_context.attach(module_context(E1, M1, sampler=ALWAYS_ON))
    try:
        ids = logged()
    finally:
        otel_context.detach(token)
    assert (ids["execution_id"], ids["module_name"]) == (str(E1), "")
    assert ids["span_id"] == f"{span_id_of(E1, M1):016x}"


def test_what_a_record_has_already_stays(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    def body() -> tuple[str, Any]:
        record = logging.makeLogRecord({"execution_id": "mine"})
        ModuleIds().filter(record)
        event = add_module_ids(None, "info", {"execution_id": "mine"})
        return record.__dict__["execution_id"], event["execution_id"]

    with Constellation(ExecutionListener.composite(make_listener())) as engine:
        assert engine.run(Dag("letters", [body]), {}) == {"body": ("mine", "mine")}


def test_structlog_takes_the_processor(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[add_module_ids, capture])

    def body() -> None:
        logger.info("hello", rows=7)

    with Constellation(make_listener()) as engine:
        execution = engine.start(Dag("letters", [body]), {})
        execution.result(DEADLINE)
    (entry,) = capture.entries
    assert entry == {"event": "hello", "log_level": "info", "rows": 7, **ids_of(execution.execution_id, "body")}


def test_importing_it_brings_neither_the_sdk_nor_structlog() -> None:
    program = "import sys, constellation_otel.logs\nprint({'opentelemetry.sdk', 'structlog'} & sys.modules.keys())"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout == "set()\n"
