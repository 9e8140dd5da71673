"""Cancelling an execution: from outside, in callbacks, in modules."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.errors import ExecutionCancelledError
from constellation_otel.listener import ExecutionListener
from engine_support import PIPELINE, Gate, Interfering, LateExecution, Recorder, throw, trim, wait_for, word_count
from support import DEADLINE, eventually


def test_cancelling_ends_the_execution_at_once() -> None:
    """A module that runs is not interrupted, and its end is not reported."""
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


def test_a_module_in_the_executors_queue_is_not_run() -> None:
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


def test_an_async_module_is_cancelled_and_may_tidy_up() -> None:
    """Before the engine is closed."""
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
def test_a_listener_may_cancel_when_a_module_starts(is_async: bool) -> None:
    """Its body is not run."""
    later = LateExecution()
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


@pytest.mark.parametrize(("ends", "output"), [("body completes", 1), ("body fails", None)])
def test_a_listener_may_cancel_when_the_last_module_ends(ends: str, output: int | None) -> None:
    later = LateExecution()
    listener = Interfering(ends, later.cancel)
    body = module(lambda: output or throw(ValueError()), name="body")
    with Constellation(listener) as constellation:
        execution = constellation.start(Dag("p", [body]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert later.answers == [True]
    assert listener.calls == ["p starts", "body starts", ends, "p is cancelled"]


def test_a_listener_cannot_cancel_when_the_execution_has_ended() -> None:
    later = LateExecution()
    listener = Interfering("pipeline succeeds", later.cancel)
    with Constellation(listener) as constellation:
        execution = constellation.start(PIPELINE, {"text": "a"})
        later.execution.put(execution)
        execution.result(DEADLINE)
    assert later.answers == [False]


def test_a_module_may_cancel_its_own_execution() -> None:
    later = LateExecution()
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        execution = constellation.start(Dag("p", [module(later.cancel, name="body")]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert recorder.calls == ["p starts", "body starts", "p is cancelled"]


def test_a_cancellation_during_a_callback_is_reported_after_it() -> None:
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


def test_of_many_threads_that_cancel_at_once_one_does() -> None:
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


def test_cancelling_the_awaiting_task_cancels_the_execution() -> None:
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
