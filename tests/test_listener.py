"""The SPI's own listeners: the one that does nothing, the composite, the one that logs; and what the SPI imports."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context

import constellation_otel._support.log
from callbacks import ARGUMENTS, BOOM, EXECUTION, MODULE, every_callback, fire
from constellation_otel import listener as spi_module
from constellation_otel._support.spelling import CALLBACKS
from constellation_otel.listener import (
    CompositeListener,
    ExecutionJoiner,
    ExecutionListener,
    LoggingListener,
    ModuleContextProvider,
    ModuleDetailsTaker,
)

if TYPE_CHECKING:
    from uuid import UUID


class Recorder(ExecutionListener):
    """Appends every call to a list that it may share with others."""

    def __init__(self, calls: list[tuple[Any, ...]], name: str = "recorder") -> None:
        self.calls = calls
        self.name = name

    def _record(self, *call: Any) -> None:
        self.calls.append((self.name, *call))

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self._record("on_execution_start", execution_id, dag_name)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self._record("on_module_start", execution_id, module_id, module_name)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self._record("on_module_complete", execution_id, module_id, module_name, duration_ms)

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self._record("on_module_failed", execution_id, module_id, module_name, error)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self._record("on_execution_complete", execution_id, dag_name, succeeded, duration_ms)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self._record("on_execution_cancelled", execution_id, dag_name)


class Raiser(Recorder):
    """Raises whatever it is told."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([])
        self.error = error

    def _record(self, *call: Any) -> None:
        raise self.error


class Providing(ExecutionListener):
    """Adds itself to what the context's ``path`` holds."""

    def __init__(self, name: str) -> None:
        self.name = name

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        return Context({**context, "path": f"{context.get('path', '')}/{self.name}", "ids": (execution_id, module_id)})


class FailingProvider(ExecutionListener):
    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        raise ValueError("boom")


# --- the listener that does nothing ---------------------------------------------------


@every_callback
def test_noop_takes_every_callback_and_does_nothing(callback: str) -> None:
    fire(ExecutionListener.noop, callback)


# --- composite ------------------------------------------------------------------------


def test_a_composite_of_nothing_is_noop() -> None:
    assert ExecutionListener.composite() is ExecutionListener.noop
    assert ExecutionListener.composite(ExecutionListener.noop, ExecutionListener.composite()) is ExecutionListener.noop


def test_a_composite_flattens_composites_drops_noop_and_keeps_order() -> None:
    first, second, third, fourth = (Recorder([], name) for name in ("first", "second", "third", "fourth"))
    inner = ExecutionListener.composite(second, ExecutionListener.noop, ExecutionListener.composite(third))
    outer = ExecutionListener.composite(first, inner, ExecutionListener.noop, fourth)
    assert isinstance(outer, CompositeListener)
    assert outer.listeners == (first, second, third, fourth)


@pytest.mark.parametrize("wrong", [None, "listener", Recorder, object()], ids=["none", "text", "class", "object"])
def test_a_composite_refuses_what_is_no_listener(wrong: Any) -> None:
    with pytest.raises(TypeError) as refused:
        ExecutionListener.composite(Recorder([]), wrong)
    assert str(refused.value) == (
        f"{wrong!r} is not an ExecutionListener; subclass constellation_otel.ExecutionListener"
        " (or wrap a listener that has async callbacks in AsyncListenerAdapter)"
    )


@every_callback
def test_a_composite_tells_each_listener_in_order_exactly_what_it_was_told(callback: str) -> None:
    calls: list[tuple[Any, ...]] = []
    fire(ExecutionListener.composite(Recorder(calls, "first"), Recorder(calls, "second")), callback)
    assert calls == [("first", callback, *ARGUMENTS[callback]), ("second", callback, *ARGUMENTS[callback])]


@every_callback
def test_a_listener_that_raises_stops_nobody_and_is_logged_under_its_name(
    callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[Any, ...]] = []
    # one of its own: each raise adds to an error's traceback
    error = ValueError("boom")
    composite = ExecutionListener.composite(Recorder(calls, "first"), Raiser(error), Recorder(calls, "last"))
    fire(composite, callback)
    assert isinstance(composite, CompositeListener)
    assert calls == [("first", callback, *ARGUMENTS[callback]), ("last", callback, *ARGUMENTS[callback])]
    assert composite.errors == 1
    assert caplog.record_tuples == [
        (
            "constellation_otel.listener.Raiser",
            logging.ERROR,
            f"Raiser.{callback} raised for execution {EXECUTION}; the pipeline and the other listeners go on",
        )
    ]
    assert caplog.records[0].exc_info == (ValueError, error, error.__traceback__)
    assert "in _record\n    raise self.error\nValueError: boom" in caplog.text


@every_callback
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
def test_what_is_no_exception_passes_a_composite(
    callback: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[Any, ...]] = []
    composite = ExecutionListener.composite(Raiser(error), Recorder(calls))
    with pytest.raises(type(error)) as passed:
        fire(composite, callback)
    assert passed.value is error
    assert calls == []
    assert caplog.records == []


def test_a_composites_log_is_limited_for_each_listener_and_callback_and_all_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    limited = constellation_otel._support.log.RateLimitedLog
    monkeypatch.setattr(spi_module, "RateLimitedLog", lambda: limited(clock=lambda: now))
    composite = ExecutionListener.composite(Raiser(ValueError("boom")))
    for _ in range(3):
        fire(composite, "on_module_start")
    fire(composite, "on_module_failed")
    now = 109.9
    fire(composite, "on_module_start")
    now = 110.0
    fire(composite, "on_module_start")
    said = f"raised for execution {EXECUTION}; the pipeline and the other listeners go on"
    assert [record.message for record in caplog.records] == [
        f"Raiser.on_module_start {said}",
        f"Raiser.on_module_failed {said}",
        f"Raiser.on_module_start {said} (3 more like it since the last such record)",
    ]
    assert isinstance(composite, CompositeListener)
    assert composite.errors == 6


def test_a_composite_chains_the_contexts_of_its_providers_in_order() -> None:
    composite = ExecutionListener.composite(Providing("first"), Recorder([]), Providing("second"))
    assert isinstance(composite, ModuleContextProvider)
    context = composite.module_context(EXECUTION, MODULE, Context({"path": "caller"}))
    assert context == Context({"path": "caller/first/second", "ids": (EXECUTION, MODULE)})


def test_a_composite_without_providers_returns_the_very_context() -> None:
    composite = ExecutionListener.composite(Recorder([]))
    context = Context()
    assert isinstance(composite, CompositeListener)
    assert composite.module_context(EXECUTION, MODULE, context) is context


def test_a_provider_that_raises_is_passed_over_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    composite = ExecutionListener.composite(Providing("first"), FailingProvider(), Providing("last"))
    assert isinstance(composite, CompositeListener)
    assert composite.module_context(EXECUTION, MODULE, Context())["path"] == "/first/last"
    assert composite.errors == 1
    said = f"raised for execution {EXECUTION}; the pipeline and the other listeners go on"
    assert caplog.record_tuples == [
        (
            "constellation_otel.listener.FailingProvider",
            logging.ERROR,
            f"FailingProvider.module_context {said}",
        )
    ]


class Told(ExecutionListener):
    """Takes details and joins executions; keeps the calls, or raises."""

    def __init__(self, traceparent: str | None = None, raised: Exception | None = None) -> None:
        self.calls: list[object] = []
        self.traceparent = traceparent
        self.raised = raised

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if self.raised is not None:
            raise self.raised

    def module_details(self, execution_id: UUID, module_id: UUID, **details: object) -> None:
        self._call(execution_id, module_id, details)

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        self._call(execution_id, dag_name, traceparent)

    def traceparent_of(self, execution_id: UUID) -> str | None:
        self._call(execution_id)
        return self.traceparent


def test_a_composite_hands_details_and_joined_executions_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, last = Told(raised=ValueError("no")), Told()
    composite = ExecutionListener.composite(failing, Recorder([]), last)
    assert isinstance(composite, CompositeListener)
    assert isinstance(composite, ModuleDetailsTaker)
    assert isinstance(composite, ExecutionJoiner)
    composite.module_details(EXECUTION, MODULE, attempt=2)
    composite.join(EXECUTION, "pipeline", "00-1")
    assert last.calls == [(EXECUTION, MODULE, {"attempt": 2}), (EXECUTION, "pipeline", "00-1")]
    said = f"raised for execution {EXECUTION}; the pipeline and the other listeners go on"
    assert [record.message for record in caplog.records] == [f"Told.module_details {said}", f"Told.join {said}"]
    assert composite.errors == 2


def test_a_composite_answers_the_first_traceparent_that_there_is(caplog: pytest.LogCaptureFixture) -> None:
    failing, unknown, first, last = Told(raised=ValueError("no")), Told(), Told("00-1"), Told("00-2")
    composite = ExecutionListener.composite(failing, unknown, first, last)
    assert isinstance(composite, ExecutionJoiner)
    assert composite.traceparent_of(EXECUTION) == "00-1"
    assert (len(failing.calls), len(unknown.calls), last.calls) == (1, 1, [])
    assert [record.message.split()[0] for record in caplog.records] == ["Told.traceparent_of"]
    nobody = ExecutionListener.composite(Recorder([]), unknown)
    assert isinstance(nobody, ExecutionJoiner)
    assert nobody.traceparent_of(EXECUTION) is None


def test_only_what_has_the_method_is_a_provider() -> None:
    assert isinstance(Providing("it"), ModuleContextProvider)
    assert not isinstance(Recorder([]), ModuleContextProvider)
    assert not isinstance(ExecutionListener.noop, ModuleContextProvider)


# --- LoggingListener ------------------------------------------------------------------


def test_the_logging_listener_writes_a_record_for_every_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    listener = LoggingListener()
    for callback in CALLBACKS:
        fire(listener, callback)
    listener.on_execution_complete(EXECUTION, "pipeline", True, 15.25)
    name = "constellation_otel.executions"
    assert caplog.record_tuples == [
        (name, logging.INFO, f"execution {EXECUTION} of pipeline started"),
        (name, logging.INFO, f"execution {EXECUTION}: module Trim ({MODULE}) started"),
        (name, logging.INFO, f"execution {EXECUTION}: module Trim ({MODULE}) completed in 2.500 ms"),
        (name, logging.WARNING, f"execution {EXECUTION}: module Trim ({MODULE}) failed"),
        (name, logging.WARNING, f"execution {EXECUTION} of pipeline failed after 15.250 ms"),
        (name, logging.INFO, f"execution {EXECUTION} of pipeline was cancelled"),
        (name, logging.INFO, f"execution {EXECUTION} of pipeline completed in 15.250 ms"),
    ]
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info is not None]
    assert errors == [BOOM]


def test_the_logging_listener_writes_to_the_logger_that_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    LoggingListener(logging.getLogger("mine")).on_execution_cancelled(EXECUTION, "pipeline")
    assert caplog.record_tuples == [("mine", logging.INFO, f"execution {EXECUTION} of pipeline was cancelled")]


# --- what it knows --------------------------------------------------------------------


WITHOUT_THE_PACKAGES_INIT = """
import sys, types
package = types.ModuleType("constellation_otel")
package.__path__ = [sys.argv[1]]
sys.modules["constellation_otel"] = package
before = set(sys.modules)
import constellation_otel.listener
loaded = set(sys.modules) - before
print(*sorted(name for name in loaded if name.startswith("constellation_otel")))
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "msgspec")))
"""


SPI_NEEDS = ("_support", "_support.fork", "_support.log", "_support.spelling", "_support.text", "errors", "listener")


def test_the_spi_imports_neither_opentelemetry_nor_the_events() -> None:
    package = Path(spi_module.__file__).parent
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGES_INIT, str(package)]
    loaded, forbidden = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert loaded.split() == [f"constellation_otel.{name}" for name in SPI_NEEDS]
    assert forbidden == ""
