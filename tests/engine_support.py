"""What the tests of the embedded engine share: listeners, executors, modules."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, format_span_id, format_trace_id

from constellation_otel.engine import Constellation, Dag, Execution, module
from constellation_otel.errors import ExecutionFailedError
from constellation_otel.listener import ExecutionListener
from support import DEADLINE

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from opentelemetry.context import Context


class Recorder(ExecutionListener):
    """Keeps the callbacks as sentences, and the thread of each."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.by_execution: dict[UUID, list[str]] = {}
        self.modules: list[UUID] = []
        self.threads: dict[str, threading.Thread] = {}
        self.durations: dict[str, float] = {}
        self.errors: dict[str, BaseException] = {}
        self.ended = threading.Event()

    def note(self, execution_id: UUID, call: str) -> None:
        self.threads[call] = threading.current_thread()
        self.by_execution.setdefault(execution_id, []).append(call)
        self.calls.append(call)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.note(execution_id, f"{dag_name} starts")

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.modules.append(module_id)
        self.note(execution_id, f"{module_name} starts")

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self.modules.append(module_id)
        self.durations[module_name] = duration_ms
        self.note(execution_id, f"{module_name} completes")

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self.modules.append(module_id)
        self.errors[module_name] = error
        self.note(execution_id, f"{module_name} fails")

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self.durations[dag_name] = duration_ms
        self.note(execution_id, f"{dag_name} {'succeeds' if succeeded else 'fails'}")
        self.ended.set()

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.note(execution_id, f"{dag_name} is cancelled")
        self.ended.set()


class Interfering(Recorder):
    """Does something in one of the callbacks, once it is kept."""

    def __init__(self, call: str, action: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self._action = action

    def note(self, execution_id: UUID, call: str) -> None:
        super().note(execution_id, call)
        if call == self._call:
            self._action()


class SpanPerModule(Recorder):
    """Makes a span current whose ids are the execution's and the module's.

    Attributes:
        spans: The ids of each module's span, as text.
        contexts: What was current in each callback.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[str, str] = {}
        self.contexts: list[SpanContext] = []

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        return trace.set_span_in_context(NonRecordingSpan(span_context(execution_id, module_id)), context)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.spans[module_name] = f"{format_trace_id(execution_id.int)} {format_span_id(module_id.int >> 64)}"
        super().on_module_start(execution_id, module_id, module_name)

    def note(self, execution_id: UUID, call: str) -> None:
        super().note(execution_id, call)
        self.contexts.append(trace.get_current_span().get_span_context())


def span_context(execution_id: UUID, module_id: UUID) -> SpanContext:
    span_id = module_id.int >> 64
    return SpanContext(execution_id.int, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class LateExecution:
    """An execution for a callback or a module to cancel, which gets it when it has been started."""

    def __init__(self) -> None:
        self.execution: queue.Queue[Execution] = queue.Queue()
        self.answers: list[bool] = []

    def cancel(self) -> None:
        self.answers.append(self.execution.get(timeout=DEADLINE).cancel())


class Gate:
    """A body that says when it runs, and runs until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.left = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        wait_for(self.opened)
        self.left.set()
        return "through"


class Elsewhere(Executor):
    """An executor that the engine takes for one of other processes; its threads are in this one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - as the base class
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class AtOnce(ThreadPoolExecutor):
    """An executor that runs a module inside submit()."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def wait_for(event: threading.Event) -> None:
    assert event.wait(DEADLINE), f"not within {DEADLINE} s"


def throw(error: BaseException) -> NoReturn:
    raise error


def trim(text: str) -> str:
    return text.strip()


def uppercase(trim: str) -> str:
    return trim.upper()


async def word_count(trim: str) -> int:
    await asyncio.sleep(0)
    return len(trim.split())


PIPELINE = Dag("pipeline", [trim, uppercase, word_count])


def one() -> int:
    return 1


async def two(one: int) -> int:
    await asyncio.sleep(0)
    return one + 1


def three(two: int) -> int:
    return two + 1


last = module(three, name="last", inputs={"two": "one"})


def raises(one: int) -> NoReturn:
    raise LookupError(one)


async def raises_too(one: int) -> NoReturn:
    await asyncio.sleep(0)
    raise LookupError(one)


def returns_a_coroutine(one: int) -> Any:
    return two(one)


def check_order(calls: list[str], dag: Dag, outcomes: Mapping[str, str]) -> None:
    """Asserts what is promised of one execution's callbacks, for the modules that have an outcome."""
    assert calls[0] == f"{dag.name} starts"
    assert calls[-1] == f"{dag.name} {'fails' if 'fails' in outcomes.values() else 'succeeds'}"
    expected = [call for name, outcome in outcomes.items() for call in (f"{name} starts", f"{name} {outcome}")]
    assert sorted(calls[1:-1]) == sorted(expected)
    for name, outcome in outcomes.items():
        started = calls.index(f"{name} starts")
        assert started < calls.index(f"{name} {outcome}")
        for before in dag.waits_for[name]:
            assert calls.index(f"{before} completes") < started


def failed(constellation: Constellation, modules: list[Callable[..., Any]]) -> dict[str, str]:
    """The errors of the modules that failed, in time."""
    with pytest.raises(ExecutionFailedError) as caught:
        constellation.start(Dag("p", modules), {}).result(DEADLINE)
    return {name: f"{type(error).__name__}: {error}" for name, error in caught.value.errors.items()}


def succeeded(constellation: Constellation, modules: list[Callable[..., Any]]) -> dict[str, Any]:
    """The outputs, in time; of modules that need no input."""
    return dict(constellation.start(Dag("p", modules), {}).result(DEADLINE))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """This package's records; asyncio's may be about the tasks of a loop that an earlier test has closed."""
    return [record for record in caplog.records if record.name.startswith("constellation_otel.")]
