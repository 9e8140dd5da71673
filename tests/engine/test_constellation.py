"""The embedded engine in this process: callbacks, threads, failures, interrupts, contexts."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from constellation_otel.engine import Constellation, Dag, call, module, run
from constellation_otel.errors import DagError, ExecutionFailedError
from constellation_otel.listener import ExecutionListener
from engine_support import (
    PIPELINE,
    Gate,
    Interfering,
    Recorder,
    SpanPerModule,
    check_order,
    logged,
    span_context,
    throw,
    trim,
    uppercase,
    wait_for,
    word_count,
)
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    assert [each.version for each in (execution_id, *recorder.modules)] == [4, *([5] * len(recorder.modules))]
    assert recorder.errors == {"WordCount": broken}
    assert (caught.value.execution_id, caught.value.dag_name) == (execution_id, "my-pipeline")
    assert caught.value.errors == {"WordCount": broken}
    assert caught.value.outputs == {"Trim": "hello", "Uppercase": " HELLO "}


def test_which_thread_makes_which_callback() -> None:
    """The execution starts in the caller's thread, and a module where its body runs."""
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


def test_independent_modules_run_at_the_same_time() -> None:
    """Plain and async ones; and an executor that was handed in is not shut down."""
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


def test_the_engines_own_threads_are_as_many_as_modules_run() -> None:
    meeting = threading.Barrier(40)
    dag = Dag("wide", [module(lambda: meeting.wait(DEADLINE), name=str(each)) for each in range(40)])
    with Constellation() as constellation:
        assert sorted(constellation.run(dag, {}).values()) == list(range(40))


def test_a_duration_is_wall_clock_without_the_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    for file in (call, run):
        monkeypatch.setattr(file, "perf_counter", lambda: seconds[0])
    recorder = Recorder()

    def takes(duration: float) -> None:
        seconds[0] += duration

    dag = Dag("p", [module(lambda: takes(2.0), name="a"), module(lambda: takes(3.0), name="b")])
    with ThreadPoolExecutor(1) as pool, Constellation(recorder, pool) as constellation:
        constellation.run(dag, {})
    assert recorder.durations == {"a": 2000.0, "b": 3000.0, "p": 5000.0}


def test_a_failed_module_stops_only_what_waits_for_it() -> None:
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


def test_what_a_listener_raises_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    listener = Interfering("trim starts", lambda: throw(ValueError("mine")))
    with Constellation(listener) as constellation:
        assert constellation.run(PIPELINE, {"text": " a "})["trim"] == "a"
    assert [record.name for record in logged(caplog)] == ["constellation_otel.listener.Interfering"]


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


def test_an_interrupt_in_the_last_callback_is_raised_by_run() -> None:
    listener = Interfering("pipeline succeeds", lambda: throw(KeyboardInterrupt()))
    with Constellation(listener) as constellation, pytest.raises(KeyboardInterrupt):
        constellation.run(PIPELINE, {"text": "a"})


def test_an_interrupt_in_the_first_callback_is_raised_by_start() -> None:
    """And no module runs."""
    listener = Interfering("pipeline starts", lambda: throw(KeyboardInterrupt()))
    with Constellation(listener) as constellation:
        with pytest.raises(KeyboardInterrupt):
            constellation.start(PIPELINE, {"text": "a"})
        assert constellation.close(timeout=DEADLINE)
    assert listener.calls == ["pipeline starts", "pipeline is cancelled"]


def test_an_interrupt_during_submission_cancels_the_execution() -> None:
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> Future[Any]:
            raise KeyboardInterrupt

    recorder = Recorder()
    with Interrupted() as pool, Constellation(recorder, pool) as constellation, pytest.raises(KeyboardInterrupt):
        constellation.start(PIPELINE, {"text": "a"})
    assert recorder.calls == ["pipeline starts", "pipeline is cancelled"]


def test_run_async_does_not_block_the_callers_loop() -> None:
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


VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("through", ["run", "run_async"])
def test_every_module_has_the_callers_context(through: str) -> None:
    """What a module sets, no other one sees."""
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


def test_a_body_is_called_in_the_modules_context() -> None:
    """And a callback the caller's."""
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
