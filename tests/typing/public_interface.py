"""What type checkers see of the public interface; mypy reads this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, assert_type
from uuid import UUID

from opentelemetry.context import Context

from constellation_otel import (
    AsyncListenerAdapter,
    Constellation,
    Dag,
    Event,
    Execution,
    ExecutionJoiner,
    ExecutionListener,
    ExecutionStarted,
    LoggingListener,
    ModuleContextProvider,
    OpenTelemetryListener,
    module,
    module_context,
    span_id_of,
    trace_id_of,
)
from constellation_otel.delivery import Counters
from constellation_otel.events import decode_frame, decode_json, encode_json
from constellation_otel.receiver import Receiver
from constellation_otel.testing import RecordingListener, span_tree
from constellation_otel.traces import Span

if TYPE_CHECKING:
    from constellation_otel.engine import Module


class Mine(ExecutionListener):
    """A user's listener."""

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        """Overrides with the SPI's own types."""


def trim(text: str) -> str:
    return text.strip()


@module(name="WordCount", inputs={"text": "trim"})
async def word_count(text: str) -> int:
    return len(text.split())


def listeners() -> None:
    telemetry = OpenTelemetryListener()
    assert_type(ExecutionListener.composite(telemetry, Mine(), LoggingListener()), ExecutionListener)
    assert_type(ExecutionListener.noop, ExecutionListener)
    assert_type(telemetry.flush(1.0), bool)
    assert_type(telemetry.close(1.0), bool)
    assert_type(telemetry.counters, Counters)
    provider: ModuleContextProvider = telemetry
    assert_type(provider.module_context(UUID(int=1), UUID(int=2), Context()), Context)
    joiner: ExecutionJoiner = telemetry
    assert_type(joiner.traceparent_of(UUID(int=1)), str | None)
    assert_type(joiner.join(UUID(int=1), "d", None), None)
    assert_type(module_context(UUID(int=1), UUID(int=2), joiner.traceparent_of(UUID(int=1))), Context)
    adapter: ExecutionListener = AsyncListenerAdapter(object())
    assert_type(adapter.on_execution_start(UUID(int=1), "d"), None)


async def engine() -> None:
    dag = Dag("my-pipeline", [trim, word_count])
    with Constellation(listener=OpenTelemetryListener()) as constellation:
        assert_type(constellation.run(dag, {"text": "a"}), Mapping[str, Any])
        assert_type(await constellation.run_async(dag, {"text": "a"}), Mapping[str, Any])
        execution = constellation.start(dag, {"text": "a"})
        assert_type(execution, Execution)
        assert_type(execution.execution_id, UUID)
        assert_type(execution.cancel(), bool)
    assert_type(Constellation.builder().with_listener(Mine()).build(), Constellation)
    assert_type(await word_count("a b"), int)
    assert_type(module(trim)("a"), str)
    unnamed: Module[[str], str] = module(trim)
    assert_type(unnamed.name, str)
    assert_type(module(trim, attempts=3)("a"), str)
    assert_type(module(attempts=3)(trim)("a"), str)
    assert_type(unnamed.attempts, int)


def values() -> None:
    assert_type(trace_id_of(UUID(int=1)), int)
    assert_type(span_id_of(UUID(int=1), UUID(int=2)), int)
    event = decode_json(b"{}")
    assert_type(event, Event)
    assert_type(decode_frame("{}"), Event)
    assert_type(encode_json(event), bytes)
    if isinstance(event, ExecutionStarted):
        assert_type(event.traceparent, str | None)
    with Receiver() as receiver:
        assert_type(receiver.spans, list[Span])
        assert_type(span_tree(receiver.spans), str)
    assert_type(RecordingListener().events, list[Event])
