"""The embedded engine in this process: wiring, order, cancellation, contexts, nesting and closing."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import queue
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from constellation_otel.engine import Constellation, Dag, Execution, module
from constellation_otel.engine import constellation as runtime
from constellation_otel.errors import (
    ConstellationOtelError,
    DagError,
    ExecutionCancelledError,
    ExecutionFailedError,
)
from constellation_otel.listener import ExecutionListener
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from uuid import UUID

    from opentelemetry.context import Context


class Recorder(ExecutionListener):
    """Keeps what it is told as sentences, and who told it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.by_execution: dict[UUID, list[str]] = {}
        self.modules: list[UUID] = []
        self.threads: dict[str, threading.Thread] = {}
        self.durations: dict[str, float] = {}
        self.errors: dict[str, BaseException] = {}
        self.ended = threading.Event()

    def told(self, execution_id: UUID, call: str) -> None:
        self.threads[call] = threading.current_thread()
        self.by_execution.setdefault(execution_id, []).append(call)
        self.calls.append(call)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.told(execution_id, f"{dag_name} starts")

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.modules.append(module_id)
        self.told(execution_id, f"{module_name} starts")

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self.modules.append(module_id)
        self.durations[module_name] = duration_ms
        self.told(execution_id, f"{module_name} completes")

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self.modules.append(module_id)
        self.errors[module_name] = error
        self.told(execution_id, f"{module_name} fails")

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self.durations[dag_name] = duration_ms
        self.told(execution_id, f"{dag_name} {'succeeds' if succeeded else 'fails'}")
        self.ended.set()

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.told(execution_id, f"{dag_name} is cancelled")
        self.ended.set()


class Interfering(Recorder):
    """Does something in one of the callbacks, after having kept that it was called."""

    def __init__(self, call: str, action: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self._action = action

    def told(self, execution_id: UUID, call: str) -> None:
        super().told(execution_id, call)
        if call == self._call:
            self._action()


class Later:
    """An execution for a callback to cancel, which gets to know it when it has been started."""

    def __init__(self) -> None:
        self.execution: queue.Queue[Execution] = queue.Queue()
        self.answers: list[bool] = []

    def cancel(self) -> None:
        self.answers.append(self.execution.get(timeout=DEADLINE).cancel())


class Gate:
    """A body that says when it runs, and runs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.left = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        wait_for(self.opened)
        self.left.set()
        return "through"


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


def check_order(calls: list[str], dag: Dag, outcomes: Mapping[str, str]) -> None:
    """Asserts what is promised of one execution's callbacks, for the modules that have an outcome."""
    assert calls[0] == f"{dag.name} starts"
    assert calls[-1] == f"{dag.name} {'fails' if 'fails' in outcomes.values() else 'succeeds'}"
    told = [call for name, outcome in outcomes.items() for call in (f"{name} starts", f"{name} {outcome}")]
    assert sorted(calls[1:-1]) == sorted(told)
    for name, outcome in outcomes.items():
        started = calls.index(f"{name} starts")
        assert started < calls.index(f"{name} {outcome}")
        for before in dag.waits_for[name]:
            assert calls.index(f"{before} completes") < started


# Wiring


def test_a_parameter_is_named_after_a_module_or_an_input_and_the_outputs_keep_the_order_of_the_modules() -> None:
    dag = Dag("pipeline", [uppercase, word_count, trim])
    with Constellation() as constellation:
        outputs = constellation.run(dag, {"text": " to be "})
    assert list(outputs.items()) == [("uppercase", "TO BE"), ("word_count", 2), ("trim", "to be")]
    assert (dag.inputs, dag.optional_inputs) == (frozenset({"text"}), frozenset())
    with pytest.raises(TypeError):
        outputs["trim"] = ""  # type: ignore[index]


def test_module_names_and_wires_what_by_name_wiring_cannot() -> None:
    @module
    def shout(text: str, *, mark: str = "!") -> str:
        return text + mark

    @module(name="Twice")
    def twice(shout: str) -> str:
        return shout * 2

    again = module(shout, name="Again", inputs={"text": "Twice", "mark": "end"})
    with Constellation() as constellation:
        outputs = constellation.run(Dag("pipeline", [shout, twice, again]), {"text": "a", "end": "."})
    assert outputs == {"shout": "a!", "Twice": "a!a!", "Again": "a!a!."}
    assert shout("b", mark="?") == "b?"
    assert repr(again) == "module('Again')"


def test_what_has_a_default_takes_it_where_neither_a_module_nor_an_input_supplies_another() -> None:
    def width(size: int = 1, scale: int = 10) -> int:
        return size * scale

    def size() -> int:
        return 2

    alone, fed = Dag("alone", [width]), Dag("fed", [width, size])
    assert (alone.inputs, alone.optional_inputs) == (frozenset(), frozenset({"size", "scale"}))
    with Constellation() as constellation:
        assert constellation.run(alone, {}) == {"width": 10}
        assert constellation.run(alone, {"size": 3}) == {"width": 30}
        assert constellation.run(fed, {"scale": 5}) == {"width": 10, "size": 2}


def test_whatever_can_be_called_with_named_arguments_is_a_module() -> None:
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    def add(a: int, b: int) -> int:
        return a + b

    five = functools.partial(add, b=5)
    dag = Dag("sums", [module(Adder(), name="object"), module(five, name="partial"), module(lambda: None, name="none")])
    with Constellation() as constellation:
        assert constellation.run(dag, {"a": 1, "b": 2}) == {"object": 3, "partial": 3, "none": None}


def positional(text: str, /) -> None: ...
def variadic(*texts: str) -> None: ...
def keywords(**texts: str) -> None: ...
def first(third: int) -> None: ...
def second(first: int) -> None: ...
def third(second: int) -> None: ...
def itself(itself: int) -> None: ...


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dag("", [trim]), "'' cannot be the name of a Dag; give it a text that is not empty"),
        (lambda: Dag("p", []), "Dag 'p' has no modules; give it one at least"),
        (
            lambda: Dag("p", [trim, trim]),
            "Dag 'p' has two modules named 'trim'; rename one: module(fn, name='...')",
        ),
        (
            lambda: Dag("p", [first, second, third]),
            (
                "Dag 'p' has a cycle: first -> second -> third -> first; rename a parameter or wire it to something"
                " else: module(fn, inputs={parameter: source})"
            ),
        ),
        (
            lambda: Dag("p", [itself]),
            (
                "Dag 'p' has a cycle: itself -> itself; rename a parameter or wire it to something else:"
                " module(fn, inputs={parameter: source})"
            ),
        ),
        (
            lambda: Dag("p", ["trim"]),  # type: ignore[list-item]
            "'trim' is not a function, so it cannot be a module",
        ),
        (
            lambda: module(functools.partial(print)),
            (
                "None cannot be the name of the module functools.partial(<built-in function print>); name it:"
                " module(fn, name='...')"
            ),
        ),
        (
            lambda: module(print, name=""),
            "'' cannot be the name of the module <built-in function print>; name it: module(fn, name='...')",
        ),
        (
            lambda: module(max),
            (
                "module 'max': no signature found for builtin <built-in function max>; wrap it in a function that has"
                " named parameters"
            ),
        ),
        (
            lambda: module(positional),
            (
                "module 'positional': its parameter 'text' is positional-only, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(variadic),
            (
                "module 'variadic': its parameter 'texts' is variadic positional, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(keywords),
            (
                "module 'keywords': its parameter 'texts' is variadic keyword, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(trim, name="Trim", inputs={"txt": "raw"}),
            "module 'Trim': its function has no parameter 'txt' to wire; it has 'text'; did you mean 'text'?",
        ),
        (
            lambda: module(lambda: None, name="Nothing", inputs={"txt": "raw"}),
            "module 'Nothing': its function has no parameter 'txt' to wire; it has none",
        ),
        (
            lambda: module(uppercase, inputs={"trim": module(trim)}),  # type: ignore[dict-item]
            "module 'uppercase': 'trim' is wired to module('trim'); give a module's or an input's name",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused_when_it_is_built(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DagError) as caught:
        build()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            (
                "Dag 'pipeline' needs the input 'text', for the parameter 'text' of module('trim'): supply it, or name"
                " the parameter after a module"
            ),
        ),
        (
            {"txt": " a "},
            (
                "Dag 'pipeline' needs the input 'text', for the parameter 'text' of module('trim'): supply it, or name"
                " the parameter after a module; did you mean 'txt'?"
            ),
        ),
        (
            {"text": " a ", "texts": " b "},
            (
                "Dag 'pipeline' takes no input 'texts': no module has such a parameter; it takes 'text'; did you mean"
                " 'text'?"
            ),
        ),
        (
            {"text": " a ", "trim": "a"},
            "Dag 'pipeline' takes no input 'trim': that is a module's name; it takes 'text'",
        ),
    ],
)
def test_inputs_that_are_not_the_dags_are_refused_before_anything_starts(inputs: dict[str, str], message: str) -> None:
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        for start in (constellation.run, constellation.start):
            with pytest.raises(DagError) as caught:
                start(PIPELINE, inputs)
            assert str(caught.value) == message
    assert recorder.calls == []


def test_a_parameter_that_is_wired_by_hand_has_to_be_supplied_though_it_has_a_default() -> None:
    def width(size: int = 1) -> int:
        return size

    dag = Dag("typo", [module(width, inputs={"size": "sice"})])
    with Constellation() as constellation, pytest.raises(DagError, match="needs the input 'sice'"):
        constellation.run(dag, {})


# Order, parallelism, durations


def test_the_timeline_is_the_guides() -> None:
    recorder = Recorder()
    broken = ValueError("too many words")
    dag = Dag(
        "my-pipeline",
        [
            module(trim, name="Trim"),
            module(uppercase, name="Uppercase", inputs={"trim": "text"}),
            module(lambda text: throw(broken), name="WordCount", inputs={"text": "Trim"}),
        ],
    )
    constellation = Constellation.builder().with_listener(recorder).build()
    with constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(dag, {"text": " hello "})
    check_order(recorder.calls, dag, {"Trim": "completes", "Uppercase": "completes", "WordCount": "fails"})
    (execution_id,) = recorder.by_execution
    assert len(set(recorder.modules)) == 3
    assert {each.version for each in (execution_id, *recorder.modules)} == {4}
    assert recorder.errors == {"WordCount": broken}
    assert (caught.value.execution_id, caught.value.dag_name) == (execution_id, "my-pipeline")
    assert caught.value.errors == {"WordCount": broken}
    assert caught.value.outputs == {"Trim": "hello", "Uppercase": " HELLO "}


def test_the_execution_starts_in_the_callers_thread_and_a_module_where_its_body_runs() -> None:
    recorder = Recorder()
    ran: dict[str, threading.Thread] = {}

    def plain() -> None:
        ran["plain"] = threading.current_thread()

    async def waiting() -> None:
        ran["waiting"] = threading.current_thread()

    with Constellation(recorder) as constellation:
        constellation.run(Dag("p", [plain, waiting]), {})
    assert recorder.threads["p starts"] is threading.current_thread()
    assert recorder.threads["plain starts"] is ran["plain"] is recorder.threads["plain completes"]
    assert recorder.threads["waiting starts"] is ran["waiting"] is recorder.threads["waiting completes"]
    assert len({threading.current_thread(), *ran.values()}) == 3


def test_independent_modules_plain_and_async_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def one() -> int:
        return meeting.wait(DEADLINE)

    def two() -> int:
        return meeting.wait(DEADLINE)

    async def three() -> int:
        return await asyncio.to_thread(meeting.wait, DEADLINE)

    with ThreadPoolExecutor(2) as pool:
        constellation = Constellation.builder().with_executor(pool).build()
        assert sorted(constellation.run(Dag("p", [one, two, three]), {}).values()) == [0, 1, 2]
        assert constellation.close()
        assert pool.submit(str, "what was handed in is not shut down").result(DEADLINE)


def test_without_an_executor_there_are_as_many_threads_as_modules_at_work() -> None:
    meeting = threading.Barrier(40)
    dag = Dag("wide", [module(lambda: meeting.wait(DEADLINE), name=str(each)) for each in range(40)])
    with Constellation() as constellation:
        assert sorted(constellation.run(dag, {}).values()) == list(range(40))


def test_a_duration_is_wall_clock_without_the_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    monkeypatch.setattr(runtime, "perf_counter", lambda: seconds[0])
    recorder = Recorder()

    def takes(duration: float) -> None:
        seconds[0] += duration

    dag = Dag("p", [module(lambda: takes(2.0), name="a"), module(lambda: takes(3.0), name="b")])
    with ThreadPoolExecutor(1) as pool, Constellation(recorder, pool) as constellation:
        constellation.run(dag, {})
    assert recorder.durations == {"a": 2000.0, "b": 3000.0, "p": 5000.0}


# Failures


def test_a_failed_module_stops_what_waits_for_it_and_nothing_else() -> None:
    recorder = Recorder()
    broken = ValueError("no")
    failed = threading.Event()

    def source() -> int:
        return 1

    def bad(source: int) -> int:
        raise broken

    def after_bad(bad: int) -> int:
        return bad

    def long_after_bad(after_bad: int, source: int) -> int:
        return after_bad + source

    def good(source: int) -> int:
        wait_for(failed)
        return source + 1

    async def after_good(good: int) -> int:
        return good + 1

    listener = ExecutionListener.composite(recorder, Interfering("bad fails", failed.set))
    dag = Dag("p", [source, bad, after_bad, long_after_bad, good, after_good])
    with Constellation(listener) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(dag, {})
    completes = dict.fromkeys(("source", "good", "after_good"), "completes")
    check_order(recorder.calls, dag, {"bad": "fails", **completes})
    assert caught.value.errors == {"bad": broken}
    assert caught.value.outputs == {"source": 1, "good": 2, "after_good": 3}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_module_fails_with_whatever_its_body_raises(error: BaseException, is_async: bool) -> None:
    recorder = Recorder()

    def plain() -> None:
        raise error

    async def waiting() -> None:
        await asyncio.sleep(0)
        raise error

    bad = module(waiting if is_async else plain, name="bad")
    with Constellation(recorder) as constellation:
        with pytest.raises(ExecutionFailedError) as caught:
            constellation.run(Dag("p", [bad]), {})
        assert constellation.run(PIPELINE, {"text": "a b"})["word_count"] == 2
    (raised,) = caught.value.errors.values()
    if is_async and isinstance(error, StopIteration):  # which no coroutine can raise
        raised = raised.__cause__ or raised
    assert raised is error
    assert recorder.calls[:4] == ["p starts", "bad starts", "bad fails", "p fails"]


def test_a_task_that_a_module_left_behind_stops_neither_the_event_loop_nor_its_closing() -> None:
    left: list[asyncio.Task[Any]] = []

    async def leaves() -> None:
        async def exits() -> None:
            raise SystemExit(3)

        left.append(asyncio.create_task(exits()))
        left.append(asyncio.create_task(asyncio.sleep(3600)))

    with Constellation() as constellation:
        constellation.run(Dag("p", [leaves]), {})
        assert constellation.run(PIPELINE, {"text": "a b"})["word_count"] == 2
    assert isinstance(left[0].exception(), SystemExit)
    assert left[1].cancelled()


def test_what_a_listener_raises_reaches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    listener = Interfering("trim starts", lambda: throw(ValueError("mine")))
    with Constellation(listener) as constellation:
        assert constellation.run(PIPELINE, {"text": " a "})["trim"] == "a"
    assert [record.name for record in caplog.records] == ["constellation_otel.listener.Interfering"]


@pytest.mark.parametrize(
    ("call", "calls"),
    [
        ("bad starts", ["p starts", "bad starts", "bad fails", "p fails"]),
        ("bad fails", ["p starts", "bad starts", "bad fails", "p fails"]),
        ("good starts", ["p starts", "good starts", "good fails", "p fails"]),
        ("good completes", ["p starts", "good starts", "good completes", "p fails"]),
    ],
)
def test_an_interrupt_in_a_modules_callback_fails_the_module(call: str, calls: list[str]) -> None:
    interrupt = KeyboardInterrupt()
    listener = Interfering(call, lambda: throw(interrupt))
    good, bad = module(lambda: 1, name="good"), module(lambda: throw(ValueError()), name="bad")
    with Constellation(listener) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [good if "good" in call else bad]), {})
    assert list(caught.value.errors.values()) == [interrupt]
    assert caught.value.outputs == {}
    assert listener.calls == calls


def test_an_interrupt_in_the_last_callback_reaches_who_waits() -> None:
    listener = Interfering("pipeline succeeds", lambda: throw(KeyboardInterrupt()))
    with Constellation(listener) as constellation, pytest.raises(KeyboardInterrupt):
        constellation.run(PIPELINE, {"text": "a"})


def test_an_interrupt_in_the_first_callback_reaches_the_caller_and_nothing_runs() -> None:
    listener = Interfering("pipeline starts", lambda: throw(KeyboardInterrupt()))
    with Constellation(listener) as constellation:
        with pytest.raises(KeyboardInterrupt):
            constellation.start(PIPELINE, {"text": "a"})
        assert constellation.close(timeout=DEADLINE)
    assert listener.calls == ["pipeline starts", "pipeline is cancelled"]


def test_an_interrupt_while_modules_are_submitted_cancels_the_execution() -> None:
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> Future[Any]:
            raise KeyboardInterrupt

    recorder = Recorder()
    with Interrupted() as pool, Constellation(recorder, pool) as constellation, pytest.raises(KeyboardInterrupt):
        constellation.start(PIPELINE, {"text": "a"})
    assert recorder.calls == ["pipeline starts", "pipeline is cancelled"]


# Executors that do not run what they were given


def test_a_module_that_a_shut_down_executor_refuses_fails() -> None:
    recorder = Recorder()
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with Constellation(recorder, pool) as constellation, pytest.raises(ExecutionFailedError, match="after shutdown"):
        constellation.run(PIPELINE, {"text": "a"})
    assert recorder.calls == ["pipeline starts", "trim starts", "trim fails", "pipeline fails"]


def test_a_module_that_a_shut_down_executor_drops_from_its_queue_fails() -> None:
    recorder = Recorder()
    gate = Gate()
    pool = ThreadPoolExecutor(1)
    with Constellation(recorder, pool) as constellation:
        running = constellation.start(Dag("running", [module(gate, name="gate")]), {})
        wait_for(gate.entered)
        queued = constellation.start(Dag("queued", [trim, uppercase]), {"text": "a"})
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(ExecutionFailedError) as caught:
            queued.result(DEADLINE)
        gate.opened.set()
        assert running.result(DEADLINE) == {"gate": "through"}
    assert isinstance(caught.value.errors["trim"], CancelledError)
    assert recorder.by_execution[queued.execution_id] == ["queued starts", "trim starts", "trim fails", "queued fails"]


def test_a_module_whose_thread_cannot_be_prepared_fails(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThreadPoolExecutor(1, initializer=throw, initargs=(ValueError("no licence"),))
    with Constellation(executor=pool) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(PIPELINE, {"text": "a"})
    pool.shutdown()
    assert isinstance(caught.value.errors["trim"], BrokenThreadPool)
    assert {record.name for record in caplog.records} == {"concurrent.futures"}


# Cancellation


def test_cancelling_ends_the_execution_at_once_and_what_runs_runs_out_unheard() -> None:
    recorder = Recorder()
    gate = Gate()
    dag = Dag("p", [module(gate, name="gate"), module(lambda gate: gate, name="after"), module(trim, name="Trim")])
    with Constellation(recorder) as constellation:
        execution = constellation.start(dag, {"text": " a "})
        wait_for(gate.entered)
        eventually(lambda: "Trim completes" in recorder.calls, "Trim completes")
        eventually(execution.cancel, "cancelled")
        assert execution.done()
        calls = list(recorder.calls)
        with pytest.raises(ExecutionCancelledError) as caught:
            execution.result(DEADLINE)
        assert not execution.cancel()
        gate.opened.set()
        wait_for(gate.left)
    assert calls[0] == "p starts"
    assert sorted(calls[1:-1]) == ["Trim completes", "Trim starts", "gate starts"]
    assert calls[-1] == "p is cancelled"
    assert recorder.calls == calls
    assert (caught.value.execution_id, caught.value.dag_name) == (execution.execution_id, execution.dag_name)
    assert "gate" not in caught.value.outputs


def test_an_execution_that_has_ended_cannot_be_cancelled() -> None:
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        execution = constellation.start(PIPELINE, {"text": "a"})
        assert execution.result(DEADLINE)["trim"] == "a"
        assert execution.done()
        assert not execution.cancel()
        assert execution.result()["trim"] == "a"
    assert recorder.calls[-1] == "pipeline succeeds"


def test_a_module_that_waits_for_a_thread_is_not_run_after_the_cancellation() -> None:
    recorder = Recorder()
    gate = Gate()
    with ThreadPoolExecutor(1) as pool, Constellation(recorder, pool) as constellation:
        running = constellation.start(Dag("running", [module(gate, name="gate")]), {})
        wait_for(gate.entered)
        queued = constellation.start(Dag("queued", [trim, word_count]), {"text": "a"})
        assert queued.cancel()
        gate.opened.set()
        running.result(DEADLINE)
    assert recorder.by_execution[queued.execution_id] == ["queued starts", "queued is cancelled"]


def test_an_async_module_is_cancelled_and_may_tidy_up_before_the_engine_closes() -> None:
    recorder = Recorder()
    entered = threading.Event()
    done: list[str] = []

    async def waiting() -> None:
        try:
            entered.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            done.append("tidied up")

    with Constellation(recorder) as constellation:
        execution = constellation.start(Dag("p", [waiting]), {})
        wait_for(entered)
        assert execution.cancel()
    assert done == ["tidied up"]
    assert recorder.calls == ["p starts", "waiting starts", "p is cancelled"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_listener_may_cancel_when_a_module_starts_and_the_body_is_not_run(is_async: bool) -> None:
    later = Later()
    listener = Interfering("body starts", later.cancel)
    ran: list[str] = []

    async def waiting() -> None:
        ran.append("ran")

    body = module(waiting if is_async else lambda: ran.append("ran"), name="body")
    with Constellation(listener) as constellation:
        execution = constellation.start(Dag("p", [body]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert later.answers == [True]
    assert ran == []
    assert listener.calls == ["p starts", "body starts", "p is cancelled"]


@pytest.mark.parametrize(("ends", "told"), [("body completes", 1), ("body fails", None)])
def test_a_listener_may_cancel_when_the_last_module_ends(ends: str, told: int | None) -> None:
    later = Later()
    listener = Interfering(ends, later.cancel)
    body = module(lambda: told or throw(ValueError()), name="body")
    with Constellation(listener) as constellation:
        execution = constellation.start(Dag("p", [body]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert later.answers == [True]
    assert listener.calls == ["p starts", "body starts", ends, "p is cancelled"]


def test_a_listener_that_cancels_when_the_execution_has_ended_is_told_that_it_is_too_late() -> None:
    later = Later()
    listener = Interfering("pipeline succeeds", later.cancel)
    with Constellation(listener) as constellation:
        execution = constellation.start(PIPELINE, {"text": "a"})
        later.execution.put(execution)
        execution.result(DEADLINE)
    assert later.answers == [False]


def test_a_module_may_cancel_its_own_execution() -> None:
    later = Later()
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        execution = constellation.start(Dag("p", [module(later.cancel, name="body")]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert recorder.calls == ["p starts", "body starts", "p is cancelled"]


def test_a_cancellation_during_a_callback_is_told_after_it() -> None:
    """Though cancel() does not wait for the callback."""
    gate = Gate()
    recorder = Recorder()
    listener = ExecutionListener.composite(Interfering("trim starts", gate), recorder)
    with Constellation(listener) as constellation:
        execution = constellation.start(PIPELINE, {"text": "a"})
        wait_for(gate.entered)
        assert execution.cancel()
        assert not execution.done()
        assert recorder.calls == ["pipeline starts"]
        gate.opened.set()
        wait_for(recorder.ended)
    assert recorder.calls == ["pipeline starts", "trim starts", "pipeline is cancelled"]


def test_of_many_that_cancel_at_once_one_does() -> None:
    recorder = Recorder()
    gate = Gate()
    meeting = threading.Barrier(8)
    answers: list[bool] = []
    with Constellation(recorder) as constellation:
        execution = constellation.start(Dag("p", [module(gate, name="gate")]), {})
        wait_for(gate.entered)

        def cancel() -> None:
            meeting.wait(DEADLINE)
            answers.append(execution.cancel())

        threads = [threading.Thread(target=cancel) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(DEADLINE)
        gate.opened.set()
    assert sorted(answers) == [False] * 7 + [True]
    assert recorder.calls == ["p starts", "gate starts", "p is cancelled"]


# run_async


def test_run_async_leaves_the_callers_loop_free() -> None:
    gate = Gate()

    async def opens() -> Mapping[str, Any]:
        running = asyncio.create_task(
            constellation.run_async(Dag("p", [module(gate, name="gate"), word_count]), {"trim": "a"})
        )
        await asyncio.to_thread(wait_for, gate.entered)
        gate.opened.set()
        return await running

    with Constellation() as constellation:
        assert asyncio.run(asyncio.wait_for(opens(), DEADLINE)) == {"gate": "through", "word_count": 1}


def test_run_async_raises_what_run_raises() -> None:
    broken = ValueError("no")
    with Constellation() as constellation:
        with pytest.raises(ExecutionFailedError) as caught:
            asyncio.run(constellation.run_async(Dag("p", [module(lambda: throw(broken), name="bad")]), {}))
        with pytest.raises(DagError):
            asyncio.run(constellation.run_async(PIPELINE, {}))
    assert caught.value.errors == {"bad": broken}


def test_cancelling_the_task_that_awaits_an_execution_cancels_the_execution() -> None:
    recorder = Recorder()
    gate = Gate()

    async def gives_up() -> None:
        running = asyncio.create_task(constellation.run_async(Dag("p", [module(gate, name="gate")]), {}))
        await asyncio.to_thread(wait_for, gate.entered)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with Constellation(recorder) as constellation:
        asyncio.run(asyncio.wait_for(gives_up(), DEADLINE))
        assert recorder.calls == ["p starts", "gate starts", "p is cancelled"]
        gate.opened.set()


# Contexts


VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("through", ["run", "run_async"])
def test_the_callers_context_reaches_every_module_and_what_a_module_sets_reaches_nobody(through: str) -> None:
    seen: list[tuple[str, str]] = []

    def visit(name: str) -> None:
        seen.append((name, VARIABLE.get()))
        VARIABLE.set(name)

    async def one() -> None:
        visit("one")

    def two(one: None) -> None:
        visit("two")

    async def three(two: None) -> None:
        visit("three")
        await asyncio.sleep(0)

    def four(one: None, three: None) -> None:
        visit("four")

    VARIABLE.set("the caller's")
    dag = Dag("p", [one, two, three, four])
    with Constellation() as constellation:
        if through == "run":
            constellation.run(dag, {})
        else:
            asyncio.run(constellation.run_async(dag, {}))
    assert seen == [(name, "the caller's") for name in ("one", "two", "three", "four")]
    assert VARIABLE.get() == "the caller's"


class SpanPerModule(Recorder):
    """Makes a span current that tells which module it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[SpanContext] = []

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        return trace.set_span_in_context(NonRecordingSpan(span_context(execution_id, module_id)), context)

    def told(self, execution_id: UUID, call: str) -> None:
        super().told(execution_id, call)
        self.contexts.append(trace.get_current_span().get_span_context())


def span_context(execution_id: UUID, module_id: UUID) -> SpanContext:
    span_id = module_id.int >> 64
    return SpanContext(execution_id.int, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def test_a_body_runs_in_the_modules_context_and_a_callback_in_the_callers() -> None:
    found: dict[str, SpanContext] = {}

    def plain() -> None:
        found["plain"] = trace.get_current_span().get_span_context()

    async def waiting(plain: None) -> None:
        await asyncio.sleep(0)
        found["waiting"] = trace.get_current_span().get_span_context()

    listener = SpanPerModule()
    callers = SpanContext(1, 2, is_remote=False)
    with Constellation(listener) as constellation, trace.use_span(NonRecordingSpan(callers)):
        execution = constellation.start(Dag("p", [plain, waiting]), {})
        execution.result(DEADLINE)
        assert trace.get_current_span().get_span_context() == callers
    plain_id, _, waiting_id, _ = listener.modules
    expected = {"plain": span_context(execution.execution_id, plain_id)}
    expected["waiting"] = span_context(execution.execution_id, waiting_id)
    assert found == expected
    assert listener.contexts == [callers] * 6


# Nesting


@pytest.mark.parametrize("threads", [None, 1])
def test_modules_may_run_dags_of_the_same_engine_to_any_depth(threads: int | None) -> None:
    def deeper(depth: int) -> int:
        if depth == 0:
            return 0
        return int(constellation.run(Dag("inner", [deeper, half]), {"depth": depth - 1})["deeper"]) + 1

    async def half(depth: int) -> float:
        return depth / 2

    pool = ThreadPoolExecutor(threads) if threads else None
    recorder = Recorder()
    with Constellation(recorder, pool) as constellation:
        assert constellation.run(Dag("outer", [deeper, half]), {"depth": 20}) == {"deeper": 20, "half": 10.0}
    assert len(recorder.by_execution) == 21
    if pool:
        pool.shutdown()


@pytest.mark.parametrize("threads", [None, 2])
def test_modules_that_run_dags_side_by_side_do_not_starve_each_other(threads: int | None) -> None:
    def leaf(number: int) -> int:
        return number

    def twice(leaf: int) -> int:
        return leaf * 2

    inner = Dag("inner", [leaf, twice])

    def branch(number: int) -> int:
        return int(constellation.run(inner, {"number": number})["twice"])

    def bound(number: int) -> Callable[[], int]:
        return lambda: branch(number)

    dag = Dag("outer", [module(bound(each), name=str(each)) for each in range(30)])
    pool = ThreadPoolExecutor(threads) if threads else None
    with Constellation(executor=pool) as constellation:
        assert constellation.run(dag, {}) == {str(each): each * 2 for each in range(30)}
    if pool:
        pool.shutdown()


def test_a_module_gets_the_outcome_of_the_execution_it_waits_for() -> None:
    """Also where its thread has nothing to do for it meanwhile."""
    gate = Gate()
    started: queue.Queue[Execution] = queue.Queue()

    def outer() -> str:
        inner = constellation.start(Dag("inner", [module(gate, name="gate")]), {})
        wait_for(gate.entered)
        started.put(inner)
        with pytest.raises(ExecutionCancelledError):
            inner.result()
        return "cancelled"

    with Constellation() as constellation:
        execution = constellation.start(Dag("outer", [outer]), {})
        assert started.get(timeout=DEADLINE).cancel()
        assert execution.result(DEADLINE) == {"outer": "cancelled"}
        gate.opened.set()


def test_a_module_that_waits_with_a_timeout_gets_it() -> None:
    gate = Gate()

    def outer() -> str:
        inner = constellation.start(Dag("inner", [module(gate, name="gate")]), {})
        with pytest.raises(TimeoutError):
            inner.result(timeout=0.001)
        gate.opened.set()
        return str(inner.result(DEADLINE)["gate"])

    with Constellation() as constellation:
        assert constellation.run(Dag("outer", [outer]), {}) == {"outer": "through"}


def test_an_async_module_awaits_dags_of_the_same_engine_and_is_refused_to_block_for_them() -> None:
    refused: list[str] = []

    async def outer() -> Mapping[str, Any]:
        outputs = await constellation.run_async(PIPELINE, {"text": " a b "})
        with pytest.raises(ConstellationOtelError) as caught:
            constellation.run(PIPELINE, {"text": ""})
        refused.append(str(caught.value))
        execution = constellation.start(PIPELINE, {"text": ""})
        with pytest.raises(ConstellationOtelError) as caught:
            execution.result()
        refused.append(str(caught.value))
        await asyncio.to_thread(execution.result)
        assert execution.result()["trim"] == ""
        return outputs

    with Constellation() as constellation:
        outputs = constellation.run(Dag("outer", [outer]), {})
    assert outputs["outer"] == {"trim": "a b", "uppercase": "A B", "word_count": 2}
    message = "waiting here would stop the event loop of this Constellation for good; await run_async() instead"
    assert refused == [message, message]


# Closing


def test_leaving_the_block_waits_for_what_was_started_in_it() -> None:
    gate = Gate()
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        constellation.start(Dag("p", [module(gate, name="gate"), module(lambda gate: gate, name="after")]), {})
        wait_for(gate.entered)
        gate.opened.set()
    assert recorder.calls[-1] == "p succeeds"


def test_closing_in_vain_says_so_cancels_nothing_and_may_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    dag = Dag("p", [module(gate, name="gate"), module(uppercase, inputs={"trim": "gate"})])
    constellation = Constellation()
    execution = constellation.start(dag, {})
    wait_for(gate.entered)
    assert not constellation.close(timeout=0.0)
    assert caplog.messages == ["2 executions or modules have not ended within 0 s; they run on"]
    gate.opened.set()
    assert execution.result(DEADLINE) == {"gate": "through", "uppercase": "THROUGH"}
    assert constellation.close(timeout=DEADLINE)
    assert constellation.close(timeout=0.0)


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_an_engine_that_is_closed_without_a_limit_waits_for_what_runs(timeout: float) -> None:
    constellation = Constellation()
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(DEADLINE)

    execution = constellation.start(Dag("waits", [module(work)]), {})
    assert begun.wait(DEADLINE)
    assert not constellation.close(math.nan)
    assert not constellation.close(-1.0)
    may_end.set()
    assert constellation.close(timeout)
    execution.result(0)


def test_a_closed_engine_starts_nothing() -> None:
    recorder = Recorder()
    constellation = Constellation(recorder)
    assert constellation.close()
    for start in (constellation.run, constellation.start):
        with pytest.raises(ConstellationOtelError, match="this Constellation is closed and starts nothing more"):
            start(PIPELINE, {"text": "a"})
    assert recorder.calls == []


def test_a_module_may_run_dags_while_the_engine_is_being_closed() -> None:
    gate = Gate()

    def outer() -> object:
        gate()
        return constellation.run(PIPELINE, {"text": "a"})["trim"]

    constellation = Constellation()
    execution = constellation.start(Dag("outer", [outer]), {})
    wait_for(gate.entered)
    assert not constellation.close(timeout=0.0)
    gate.opened.set()
    assert constellation.close(timeout=DEADLINE)
    assert execution.result() == {"outer": "a"}


def test_no_thread_of_the_engine_is_left_when_it_is_closed() -> None:
    before = set(threading.enumerate())
    with Constellation() as constellation:
        constellation.run(PIPELINE, {"text": "a"})
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


FORKED = """
import math
import os
from constellation_otel.engine import Dag
from constellation_otel.engine import Constellation

def plain(): return "plain"
async def waiting(plain): return plain + " and waiting"

dag = Dag("p", [plain, waiting])
constellation = Constellation()
constellation.run(dag, {})
child = os.fork()
if child == 0:
    os.write(1, f"{constellation.run(dag, {})['waiting']} {constellation.close()}\\n".encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), constellation.close())
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    options = ["-W", "ignore:.*multi-threaded, use of fork:DeprecationWarning"]
    program = [sys.executable, *options, "-c", FORKED]
    ran = subprocess.run(program, check=True, capture_output=True, text=True, timeout=DEADLINE)
    assert ran.stdout.splitlines() == ["plain and waiting True", "0 True"]


# Everything at once


@st.composite
def dags(draw: st.DrawFn) -> tuple[Dag, dict[str, str]]:
    """A DAG of plain and async modules, of which some fail, and what is to become of each that runs."""
    outcomes: dict[str, str] = {}
    modules = []
    for number in range(draw(st.integers(1, 8))):
        name = f"m{number}"
        sources = draw(st.sets(st.sampled_from([f"m{before}" for before in range(number)]))) if number else set()
        fails = draw(st.booleans()) and draw(st.booleans())
        modules.append(module(_body(sources, fails, draw(st.booleans())), name=name))
        if all(outcomes.get(source) == "completes" for source in sources):
            outcomes[name] = "fails" if fails else "completes"
    return Dag("p", draw(st.permutations(modules))), outcomes


def _body(sources: set[str], fails: bool, is_async: bool) -> Callable[..., Any]:
    arguments = ", ".join(sorted(sources))
    outcome = "1 // 0" if fails else f"1 + sum([{arguments}])"
    code = f"{'async ' if is_async else ''}def body({arguments}): return {outcome}"
    names: dict[str, Any] = {}
    exec(code, names)
    return names["body"]  # type: ignore[no-any-return]


@settings(max_examples=150, deadline=None)
@given(dags())
def test_whatever_the_dag_callbacks_come_in_the_promised_order(drawn: tuple[Dag, dict[str, str]]) -> None:
    dag, outcomes = drawn
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        execution = constellation.start(dag, {})
        if "fails" in outcomes.values():
            with pytest.raises(ExecutionFailedError) as caught:
                execution.result(DEADLINE)
            assert caught.value.errors.keys() == {name for name, outcome in outcomes.items() if outcome == "fails"}
            outputs = caught.value.outputs
        else:
            outputs = execution.result(DEADLINE)
        assert outputs.keys() == {name for name, outcome in outcomes.items() if outcome == "completes"}
    check_order(recorder.calls, dag, outcomes)


def drive(constellation: Constellation, dag: Dag, number: int) -> dict[UUID, str]:
    """Runs 40 executions, of which a third fail and a third are cancelled, and says what became of each."""
    became: dict[UUID, str] = {}
    for turn in range(40):
        kind = ("good", "bad", "cancelled")[(number + turn) % 3]
        execution = constellation.start(dag, {"text": f" {kind} "})
        cancelled = kind == "cancelled" and execution.cancel()
        try:
            execution.result(DEADLINE)
            became[execution.execution_id] = "good"
        except ExecutionFailedError:
            became[execution.execution_id] = "bad"
        except ExecutionCancelledError:
            became[execution.execution_id] = "cancelled"
        assert became[execution.execution_id] == ("good" if kind == "cancelled" and not cancelled else kind)
    return became


@pytest.mark.parametrize("threads", [None, 4])
def test_of_many_executions_from_many_threads_nothing_is_lost_or_out_of_order(threads: int | None) -> None:
    def checks(trim: str) -> str:
        return trim if trim != "bad" else throw(ValueError(trim))

    recorder = Recorder()
    dag = Dag("p", [trim, uppercase, word_count, checks, module(lambda uppercase, word_count: None, name="last")])
    outcomes = dict.fromkeys(dag.modules, "completes")
    pool = ThreadPoolExecutor(threads) if threads else None
    became: dict[UUID, str] = {}
    with ThreadPoolExecutor(8) as drivers, Constellation(recorder, pool) as constellation:
        for each in [drivers.submit(drive, constellation, dag, number) for number in range(8)]:
            became |= each.result(DEADLINE)
    if pool:
        pool.shutdown()
    assert len(became) == 320
    assert recorder.by_execution.keys() == became.keys()
    for execution_id, outcome in became.items():
        calls = recorder.by_execution[execution_id]
        if outcome == "cancelled":
            assert (calls[0], calls[-1], len(set(calls))) == ("p starts", "p is cancelled", len(calls))
            ended = [call.removesuffix(" completes") for call in calls if call.endswith(" completes")]
            assert all(calls.index(f"{name} starts") < calls.index(f"{name} completes") for name in ended)
        else:
            check_order(calls, dag, outcomes | ({"checks": "fails"} if outcome == "bad" else {}))
