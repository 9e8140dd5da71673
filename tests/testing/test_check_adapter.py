"""The check of adapters: engines that pass it, and a broken adapter for each promise."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import pytest
import stamina
from opentelemetry import context as otel_context

import loom
from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.testing import EVERY_ENGINE, check_adapter
from constellation_otel.testing import pipelines as conformance
from support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constellation_otel.listener import ExecutionListener
    from constellation_otel.testing import Pipeline


def embedded(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    """Runs a pipeline on this package's own engine."""
    modules = [
        module(node.function, name=node.name, attempts=node.attempts)
        for node in pipeline.nodes
        if node.function is not None
    ]
    dag = Dag(pipeline.name, modules)
    with Constellation(listener=listener) as constellation:
        outputs = constellation.run(dag, {})
    return {name: outputs[name] for name in pipeline.outputs or ()}


def test_the_embedded_engine_passes() -> None:
    stamina.set_testing(True, attempts=9)
    try:
        check_adapter(embedded, [*EVERY_ENGINE, "retried", "recovered"])
    finally:
        stamina.set_testing(False)


@pytest.mark.parametrize("case", conformance.CASES)
def test_an_engine_that_does_everything_passes_each_case(case: str) -> None:
    check_adapter(loom.run, [case])


def test_there_is_an_engine_for_each_case() -> None:
    assert conformance.CASES.keys() == {
        *EVERY_ENGINE, "cancelled", "mapped", "retried", "recovered", "nested", "processes"
    }  # fmt: skip


def test_a_case_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no case 'nonsense'; there are ok, failure, caller"):
        check_adapter(loom.run, ["ok", "nonsense"])


def test_a_body_that_outlives_its_check_makes_no_span() -> None:
    assert conformance.load() == " to be or not to be "
    assert conformance.after("boom") == "boom"


def test_what_is_not_delivered_in_time_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.testing.conformance._ARRIVE_S", 0.0)
    with pytest.raises(AssertionError, match="the listener has not delivered everything in the case ok"):
        check_adapter(loom.run, ["ok"])


class Telling:
    """Notifies a listener by hand, in ways that an adapter should not."""

    def __init__(self, pipeline: Pipeline, listener: Any) -> None:
        self.pipeline, self.listener = pipeline, listener
        self.execution_id = uuid4()

    def run(self, body: Callable[[Telling, Any, dict[str, Any]], None]) -> Mapping[str, object]:
        self.listener.on_execution_start(self.execution_id, "conformance")
        outputs: dict[str, Any] = {}
        for node in self.pipeline.nodes:
            body(self, node, outputs)
        self.listener.on_execution_complete(self.execution_id, "conformance", True, 0.0)
        return {name: outputs[name] for name in self.pipeline.outputs or ()}

    def id_of(self, key: str) -> UUID:
        return uuid5(self.execution_id, key)

    def start(self, node: Any) -> None:
        self.listener.on_module_start(self.execution_id, self.id_of(node.name), node.name)

    def complete(self, node: Any, duration_ms: float) -> None:
        self.listener.on_module_complete(self.execution_id, self.id_of(node.name), node.name, duration_ms)

    def call(self, node: Any, outputs: dict[str, Any], *, nests: bool = True) -> None:
        context = otel_context.get_current()
        if nests:
            context = self.listener.module_context(self.execution_id, self.id_of(node.name), context)
        token = otel_context.attach(context)
        outputs[node.name] = node.function(**{name: outputs[name] for name in node.upstream})
        otel_context.detach(token)


def ends_at_once(telling: Telling, node: Any, outputs: dict[str, Any]) -> None:
    """As plain hooks of an engine that only makes tasks: it is over before the body runs."""
    telling.start(node)
    telling.complete(node, 0.1)
    telling.call(node, outputs)


def does_not_nest(telling: Telling, node: Any, outputs: dict[str, Any]) -> None:
    telling.start(node)
    telling.call(node, outputs, nests=False)
    telling.complete(node, 1e3)


def tries_anew(telling: Telling, node: Any, outputs: dict[str, Any]) -> None:
    """Each attempt is just another module."""
    for attempt in range(node.attempts):
        module_id = uuid5(telling.id_of(node.name), str(attempt))
        telling.listener.on_module_start(telling.execution_id, module_id, node.name)
        context = telling.listener.module_context(telling.execution_id, module_id, otel_context.get_current())
        token = otel_context.attach(context)
        start = time.perf_counter()
        try:
            outputs[node.name] = node.function(**{name: outputs[name] for name in node.upstream})
        except ValueError as error:
            telling.listener.on_module_failed(telling.execution_id, module_id, node.name, error)
        else:
            duration_ms = (time.perf_counter() - start) * 1e3
            telling.listener.on_module_complete(telling.execution_id, module_id, node.name, duration_ms)
        finally:
            otel_context.detach(token)


def by(body: Callable[[Telling, Any, dict[str, Any]], None]) -> Callable[..., Mapping[str, object]]:
    return lambda pipeline, listener: Telling(pipeline, listener).run(body)


def leaves_a_context(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    outputs = loom.run(pipeline, listener)
    otel_context.attach(otel_context.set_value("left", "behind"))
    return outputs


def raises(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    loom.run(pipeline, listener)
    raise LookupError("the adapter's")


def swallows(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    try:
        return loom.run(pipeline, listener)
    except ValueError:
        return {}


def changes(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    return {**loom.run(pipeline, listener), "count": 7}


def warns(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    logging.getLogger("opentelemetry.context").error("Failed to detach context")
    return loom.run(pipeline, listener)


def tells_nothing(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    return dict(pipeline.outputs or {})


@pytest.mark.parametrize(
    ("case", "run", "violation"),
    [
        ("lengths", by(ends_at_once), r"inside-slow sticks [\d.]+ ms out of slow"),
        ("lengths", by(ends_at_once), r"slow took 50 ms at least, and its span [\d.]+ ms"),
        ("ok", by(does_not_nest), r"the trace is\nconformance \(server\) success"),
        ("ok", leaves_a_context, "the adapter left another OpenTelemetry context current in the case ok"),
        ("ok", raises, 'run raised LookupError: "the adapter\'s"'),
        ("failure", swallows, "run raised nothing, though a node did"),
        ("ok", changes, r"run returned \{'count': 7, .*\}, not \{'count': 6, .*\}"),
        ("ok", warns, "opentelemetry.context logged 'Failed to detach context'"),
        ("no-sdk", warns, "opentelemetry.context logged 'Failed to detach context'"),
        ("ok", tells_nothing, r"the trace is\n\(empty\)\n  and not\nconformance \(server\) success"),
        ("processes", loom.run, "no body ran in another process"),
    ],
)
def test_a_broken_adapter_is_found_out(
    case: str, run: Callable[..., Mapping[str, object]], violation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("constellation_otel.testing.conformance._ARRIVE_S", 1.0)
    if case == "processes":
        run = partial(_as_ok, run)
    with pytest.raises(AssertionError, match=violation):
        check_adapter(run, [case])


def _as_ok(
    run: Callable[..., Mapping[str, object]], pipeline: Pipeline, listener: ExecutionListener
) -> Mapping[str, object]:
    return run(conformance.CASES["ok"], listener)


def test_attempts_that_are_not_told_as_such_are_found_out() -> None:
    with pytest.raises(AssertionError, match=r"constellation\.module\.attempt of the attempts is \[1, 1, 1\]"):
        check_adapter(by(tries_anew), ["retried"])


def test_a_run_that_never_returns_is_found_out() -> None:
    released = threading.Event()

    def hangs(_: Pipeline, __: ExecutionListener) -> Mapping[str, object]:
        released.wait()
        return {}

    try:
        with pytest.raises(AssertionError, match=r"run had not returned after 0\.5 s in the case ok"):
            check_adapter(hangs, ["ok"], timeout=0.5)
    finally:
        released.set()
        eventually(lambda: "check-adapter-ok" not in {thread.name for thread in threading.enumerate()}, "it has ended")
