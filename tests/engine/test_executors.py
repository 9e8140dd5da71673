"""Executors that refuse, drop or run at once the modules that they are given."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.errors import ExecutionFailedError
from engine_support import (
    PIPELINE,
    AtOnce,
    Gate,
    Recorder,
    last,
    logged,
    one,
    succeeded,
    three,
    throw,
    trim,
    uppercase,
    wait_for,
)
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_module_that_a_shut_down_executor_refuses_fails() -> None:
    recorder = Recorder()
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with Constellation(recorder, pool) as constellation, pytest.raises(ExecutionFailedError, match="after shutdown"):
        constellation.run(PIPELINE, {"text": "a"})
    assert recorder.calls == ["pipeline starts", "trim starts", "trim fails", "pipeline fails"]


def test_a_module_that_a_shut_down_executor_drops_fails() -> None:
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
    assert "concurrent.futures" in {record.name for record in caplog.records}


def test_an_interrupt_in_the_executors_thread_is_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    interrupt = KeyboardInterrupt("not here")

    class Interrupted(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if threading.current_thread() is not threading.main_thread():
                raise interrupt
            return super().submit(function, *args, **kwargs)

    recorder = Recorder()
    with Interrupted(2) as pool, Constellation(recorder, pool) as constellation:
        execution = constellation.start(Dag("p", [one, last]), {})
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert str(caught.value).endswith("of 'p' failed: the engine: KeyboardInterrupt: not here")
    assert (caught.value.failure, caught.value.__cause__) == (interrupt, interrupt)
    assert (caught.value.errors, caught.value.outputs) == ({}, {"one": 1})
    assert recorder.calls == ["p starts", "one starts", "one completes", "p fails"]
    assert [record.levelname for record in logged(caplog)] in ([], ["ERROR"])  # at most one in ten seconds


def test_an_executor_that_accepts_and_raises_runs_a_module_once() -> None:
    class Raises(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            super().submit(function, *args, **kwargs).result(DEADLINE)
            raise RuntimeError("after all")

    recorder = Recorder()
    with Raises(2) as pool, Constellation(recorder, pool) as constellation:
        assert succeeded(constellation, [one]) == {"one": 1}
    assert recorder.calls == ["p starts", "one starts", "one completes", "p succeeds"]


def test_a_long_chain_needs_no_deep_stack_in_this_process() -> None:
    """In a thread pool that runs a module inside submit()."""
    links = [module(three, name=f"m{n}", inputs={"two": f"m{n - 1}"}) for n in range(1, 1000)]
    chain: list[Callable[..., Any]] = [module(one, name="m0"), *links]
    with AtOnce() as pool, Constellation(executor=pool) as constellation:
        assert succeeded(constellation, chain)["m999"] == 1000
