"""The SPI: what may be defined, what a composite promises, and that nothing drifts from it."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import msgspec
import pytest
from opentelemetry.context import Context

import constellation_otel._support.log
from constellation_otel import listener as spi_module
from constellation_otel._support.spelling import CALLBACKS, check_callbacks
from constellation_otel.errors import ListenerDefinitionError
from constellation_otel.events import ErrorInfo, Event, EventListener
from constellation_otel.listener import CompositeListener, ExecutionListener, LoggingListener, ModuleContextProvider

if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
BOOM = ValueError("boom")

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "on_execution_start": (EXECUTION, "pipeline"),
    "on_module_start": (EXECUTION, MODULE, "Trim"),
    "on_module_complete": (EXECUTION, MODULE, "Trim", 2.5),
    "on_module_failed": (EXECUTION, MODULE, "Trim", BOOM),
    "on_execution_complete": (EXECUTION, "pipeline", False, 15.25),
    "on_execution_cancelled": (EXECUTION, "pipeline"),
}

every_callback = pytest.mark.parametrize("callback", CALLBACKS)


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
        raise BOOM


def fire(listener: ExecutionListener, callback: str) -> None:
    getattr(listener, callback)(*ARGUMENTS[callback])


def listener_class(name: str, value: object = lambda self: None) -> type[ExecutionListener]:
    return types.new_class("Mine", (ExecutionListener,), exec_body=lambda body: body.update({name: value}))


async def coroutine_function(self: object) -> None: ...


async def async_generator_function(self: object) -> Any:
    yield


# --- which classes may be defined -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("onExecutionStart", "on_execution_start"),
        ("onModuleStart", "on_module_start"),
        ("onModuleComplete", "on_module_complete"),
        ("onModuleFailed", "on_module_failed"),
        ("onExecutionComplete", "on_execution_complete"),
        ("onExecutionCancelled", "on_execution_cancelled"),
        ("OnModuleStart", "on_module_start"),
        ("on_moduleStart", "on_module_start"),
        ("onmodulestart", "on_module_start"),
        ("on_modulestart", "on_module_start"),
        ("on_module_start_", "on_module_start"),
        ("on_module_started", "on_module_start"),
        ("on_module_starting", "on_module_start"),
        ("on_module_starts", "on_module_start"),
        ("on_modules_start", "on_module_start"),
        ("on_mod_start", "on_module_start"),
        ("on_mdoule_start", "on_module_start"),
        ("on_module_strat", "on_module_start"),
        ("on_module_completed", "on_module_complete"),
        ("on_module_compelted", "on_module_complete"),
        ("on_module_completion", "on_module_complete"),
        ("on_module_fail", "on_module_failed"),
        ("on_module_faild", "on_module_failed"),
        ("on_module_failure", "on_module_failed"),
        ("on_exec_start", "on_execution_start"),
        ("on_excution_start", "on_execution_start"),
        ("on_execution_started", "on_execution_start"),
        ("on_execution_completed", "on_execution_complete"),
        ("on_execution_cancel", "on_execution_cancelled"),
        ("on_execution_canceled", "on_execution_cancelled"),
        ("on_execution_cancellation", "on_execution_cancelled"),
        ("onExecutionCanceled", "on_execution_cancelled"),
    ],
)
def test_a_camel_case_or_misspelt_callback_is_refused_with_the_right_spelling(name: str, meant: str) -> None:
    with pytest.raises(ListenerDefinitionError) as refused:
        listener_class(name)
    assert str(refused.value) == f"Mine.{name} would never be called: the callback's name is {meant}"


@pytest.mark.parametrize(
    "name",
    [
        "on_start",
        "on_module",
        "on_module_retry",
        "on_module_restart",
        "on_module_state",
        "on_module_stats",
        "on_module_startup",
        "on_module_error",
        "on_executor_start",
        "on_execution_finished",
        "on_pipeline_start",
        "on_module_start_late",
        "before_module_start",
        "module_start",
        "_on_module_start",
        "_on_module_started",
        "_onModuleStart",
        "onClick",
    ],
)
def test_other_methods_are_the_users_own_business(name: str) -> None:
    assert callable(getattr(listener_class(name), name))


@every_callback
@pytest.mark.parametrize(
    "function",
    [
        coroutine_function,
        async_generator_function,
        staticmethod(coroutine_function),
        classmethod(coroutine_function),
    ],
    ids=["function", "generator", "static", "class"],
)
def test_an_async_callback_is_refused_with_the_way_to_have_one(callback: str, function: object) -> None:
    with pytest.raises(ListenerDefinitionError) as refused:
        listener_class(callback, function)
    assert str(refused.value) == (
        f"Mine.{callback} is async, and callbacks are called, not awaited: make it a plain"
        " function, or keep it in a class of its own and wrap that in AsyncListenerAdapter"
    )


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_a_misspelt_static_or_class_method_is_refused_as_a_plain_one_is(wrap: Callable[..., object]) -> None:
    with pytest.raises(ListenerDefinitionError, match=r"^Mine\.onModuleStart would never be called: "):
        listener_class("onModuleStart", wrap(coroutine_function))


@pytest.mark.parametrize("listener_first", [True, False])
def test_what_a_mixin_brings_is_refused_under_the_mixins_name(listener_first: bool) -> None:
    mixin = type("Mixin", (), {"on_module_start": coroutine_function})
    bases = (ExecutionListener, mixin) if listener_first else (mixin, ExecutionListener)
    with pytest.raises(ListenerDefinitionError, match=r"^Mixin\.on_module_start is async, "):
        types.new_class("Mine", bases)


def test_an_attribute_that_cannot_be_called_may_have_any_name() -> None:
    assert vars(listener_class("onModuleStart", "a note"))["onModuleStart"] == "a note"


def test_async_callbacks_pass_where_they_are_allowed_and_misspelt_ones_still_do_not() -> None:
    check_callbacks(type("Target", (), {"on_module_start": coroutine_function}), allow_async=True)
    with pytest.raises(ListenerDefinitionError, match=r"^Target\.onModuleStart would never be called"):
        check_callbacks(type("Target", (), {"onModuleStart": coroutine_function}), allow_async=True)


def test_a_definition_error_is_a_type_error() -> None:
    assert issubclass(ListenerDefinitionError, TypeError)


def test_a_subclass_passes_its_class_arguments_on() -> None:
    class Tagged:
        def __init_subclass__(cls, tag: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.tag = tag

        tag: str

    class Mine(ExecutionListener, Tagged, tag="mine"):
        pass

    assert Mine.tag == "mine"


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
    composite = ExecutionListener.composite(Recorder(calls, "first"), Raiser(BOOM), Recorder(calls, "last"))
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
    assert caplog.records[0].exc_info == (ValueError, BOOM, BOOM.__traceback__)
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
    composite = ExecutionListener.composite(Raiser(BOOM))
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


# --- drift ----------------------------------------------------------------------------


class Spy(ExecutionListener):
    """Has whatever callback is asked for, and keeps the names of those called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *_: self.called.append(name)
        return super().__getattribute__(name)


class Keeping(EventListener):
    """Keeps the events that callbacks became."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def accept(self, event: Event) -> None:
        self.events.append(event)


def signature_of(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def sample_of(event_type: type[Event]) -> Event:
    """An event of a type, made from its fields' names alone."""
    values: dict[str, Any] = {
        "execution_id": EXECUTION,
        "module_id": MODULE,
        "dag_name": "pipeline",
        "module_name": "Trim",
        "error": ErrorInfo("ValueError", "boom"),
        "succeeded": True,
        "duration_ms": 1.0,
        "timestamp_ns": 1,
    }
    required = [field.name for field in msgspec.structs.fields(event_type) if field.required]
    return event_type(**{name: values[name] for name in required})


def drift_from(spi: type[ExecutionListener], followers: tuple[type[ExecutionListener], ...]) -> list[str]:
    """Says what does not follow the SPI: its listeners, the list of names, the event model."""
    callbacks = {
        name: value
        for base in reversed(spi.__mro__)
        for name, value in vars(base).items()
        if name.startswith("on_") and callable(value)
    }
    drift = [f"CALLBACKS lacks {name}" for name in callbacks if name not in CALLBACKS]
    drift += [f"the SPI lacks {name}" for name in CALLBACKS if name not in callbacks]
    for follower in followers:
        for name, function in callbacks.items():
            own = getattr(follower, name, None)
            if own is None or own in (function, vars(ExecutionListener).get(name)):
                drift.append(f"{follower.__name__} lacks {name}")
            elif signature_of(own) != signature_of(function):
                drift.append(f"{follower.__name__}.{name} has other parameters")
    notified = {}
    for event_type in get_args(Event):
        spy = Spy()
        sample_of(event_type).notify(spy)
        notified[event_type] = spy.called
    for name in callbacks:
        types_of_it = [event_type for event_type, called in notified.items() if called == [name]]
        if len(types_of_it) != 1:
            drift.append(f"{len(types_of_it)} events notify {name}")
            continue
        keeping = Keeping()
        getattr(keeping, name)(*ARGUMENTS[name])
        if [type(event) for event in keeping.events] != types_of_it:
            drift.append(f"EventListener.{name} makes no {types_of_it[0].__name__}")
    drift += [f"{each.__name__} notifies {called}" for each, called in notified.items() if called[0] not in callbacks]
    return drift


FOLLOWERS = (CompositeListener, LoggingListener, EventListener)


def test_composite_logging_and_events_follow_the_spi() -> None:
    assert drift_from(ExecutionListener, FOLLOWERS) == []


def test_the_test_kits_recorder_follows_the_spi() -> None:
    recording = import_module("constellation_otel.testing").RecordingListener
    assert issubclass(recording, EventListener)
    assert drift_from(ExecutionListener, (recording,)) == []


GROWN_DRIFT = [
    "CALLBACKS lacks on_module_retried",
    "CompositeListener lacks on_module_retried",
    "LoggingListener lacks on_module_retried",
    "EventListener lacks on_module_retried",
    "0 events notify on_module_retried",
]


def test_the_adapter_of_async_listeners_and_the_opentelemetry_listener_follow_the_spi() -> None:
    for module_name, follower in (
        ("delivery.async_listener", "_Target"),
        ("delivery", "AsyncListenerAdapter"),
        ("otel", "OpenTelemetryListener"),
    ):
        cls = getattr(import_module(f"constellation_otel.{module_name}"), follower)
        assert [drift for drift in drift_from(ExecutionListener, (cls,)) if "makes no" not in drift] == []


def test_the_drift_is_seen_where_a_subclass_has_one_more_callback() -> None:
    class Grown(ExecutionListener):
        def on_module_retried(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
            """A module is tried once more."""

    assert drift_from(Grown, FOLLOWERS) == GROWN_DRIFT


def test_the_drift_is_seen_where_the_spi_itself_gets_one_more_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_module_retried(self: object, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        """A module is tried once more."""

    monkeypatch.setattr(ExecutionListener, "on_module_retried", on_module_retried, raising=False)
    assert drift_from(ExecutionListener, FOLLOWERS) == GROWN_DRIFT


def test_the_drift_is_seen_where_parameters_change_their_order() -> None:
    def on_module_start(self: object, module_id: UUID, execution_id: UUID, module_name: str) -> None:
        """The first two have changed places."""

    turned = listener_class("on_module_start", on_module_start)
    assert drift_from(turned, FOLLOWERS) == [
        "CompositeListener.on_module_start has other parameters",
        "LoggingListener.on_module_start has other parameters",
        "EventListener.on_module_start has other parameters",
    ]


def test_the_drift_is_seen_where_the_spi_loses_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ExecutionListener, "on_execution_cancelled")
    assert drift_from(ExecutionListener, FOLLOWERS) == [
        "the SPI lacks on_execution_cancelled",
        "ExecutionCancelled notifies ['on_execution_cancelled']",
    ]


def test_the_drift_is_seen_where_a_callback_makes_the_wrong_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_module_start(self: Keeping, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.on_execution_start(execution_id, module_name)

    monkeypatch.setattr(EventListener, "on_module_start", on_module_start)
    assert drift_from(ExecutionListener, FOLLOWERS) == ["EventListener.on_module_start makes no ModuleStarted"]
