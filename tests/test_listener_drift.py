"""Nothing drifts from the SPI: what implements it has every callback, with the same parameters."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from callbacks import ARGUMENTS, EXECUTION, MODULE, listener_class
from constellation_otel._support.spelling import CALLBACKS
from constellation_otel.events import ErrorInfo, Event, EventListener
from constellation_otel.events.model import CallbackEvent
from constellation_otel.listener import CompositeListener, ExecutionListener, LoggingListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import pytest


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
    for event_type in get_args(CallbackEvent):
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
