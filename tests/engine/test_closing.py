"""Engines that are closed, dropped or forked."""

from __future__ import annotations

import asyncio
import gc
import math
import queue
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.engine.threads import Threads
from constellation_otel.errors import ConstellationOtelError, ExecutionCancelledError
from engine_support import PIPELINE, Gate, Recorder, logged, one, open_descriptors, two, uppercase, wait_for
from support import DEADLINE, eventually


def test_leaving_the_block_waits_for_what_was_started_in_it() -> None:
    gate = Gate()
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        constellation.start(Dag("p", [module(gate, name="gate"), module(lambda gate: gate, name="after")]), {})
        wait_for(gate.entered)
        gate.opened.set()
    assert recorder.calls[-1] == "p succeeds"


def test_closing_in_vain_is_logged_and_may_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """It cancels nothing."""
    gate = Gate()
    dag = Dag("p", [module(gate, name="gate"), module(uppercase, inputs={"trim": "gate"})])
    constellation = Constellation()
    execution = constellation.start(dag, {})
    wait_for(gate.entered)
    assert not constellation.close(timeout=0.0)
    assert caplog.messages == ["2 executions or modules have not ended within 0 s; they go on"]
    gate.opened.set()
    assert execution.result(DEADLINE) == {"gate": "through", "uppercase": "THROUGH"}
    assert constellation.close(timeout=DEADLINE)
    assert constellation.close(timeout=0.0)


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_closing_takes_any_float_as_a_timeout(timeout: float) -> None:
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


def test_an_output_that_arrives_after_closing_starts_no_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An output that comes in the very instant in which its execution is cancelled and its engine closed."""
    threads = set(threading.enumerate())
    sent: queue.Queue[Future[Any]] = queue.Queue()

    class Slow(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            sent.put(future := Future[Any]())
            return future

    constellation = Constellation(executor=Slow())
    execution = constellation.start(Dag("p", [one]), {})
    future = sent.get(timeout=DEADLINE)
    submit = Threads.submit_async

    def late(self: Any, *args: Any) -> Future[None]:
        execution.cancel()
        assert constellation.close(DEADLINE)
        return submit(self, *args)

    eventually(lambda: len(vars(future)["_done_callbacks"]) > 1, "it is followed")
    monkeypatch.setattr(Threads, "submit_async", late)
    future.set_running_or_notify_cancel()
    future.set_result((1, 0.5))
    with pytest.raises(ExecutionCancelledError):
        execution.result(DEADLINE)
    assert set(threading.enumerate()) <= threads
    assert logged(caplog) == []


def test_a_dropped_engine_keeps_no_threads_and_no_descriptors() -> None:
    """Though its executions are not."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    executions = [Constellation().start(Dag("p", [one, two]), {}) for _ in range(3)]
    assert [execution.result(DEADLINE)["two"] for execution in executions] == [2, 2, 2]
    gc.collect()
    eventually(lambda: set(threading.enumerate()) <= threads, "the engines' threads end")
    assert open_descriptors() <= descriptors
    assert not executions[0].cancel()
    assert executions[0].result() == {"one": 1, "two": 2}


def test_a_dropped_engine_finishes_what_it_has_begun() -> None:
    gate = threading.Event()

    async def waits() -> int:
        await asyncio.to_thread(gate.wait, DEADLINE)
        return 1

    execution = Constellation().start(Dag("p", [module(waits, name="one"), two]), {})
    gc.collect()
    gate.set()
    assert execution.result(DEADLINE) == {"one": 1, "two": 2}


UNCLOSED = """
import asyncio
from constellation_otel import Constellation, Dag

async def one():
    asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    return 1

constellation = Constellation()
print(dict(constellation.run(Dag("p", [one]), {})))
"""


def test_a_program_that_closes_no_engine_ends_at_once() -> None:
    """And prints nothing."""
    program = [sys.executable, "-X", "dev", "-W", "error", "-c", UNCLOSED]
    ran = subprocess.run(program, check=True, capture_output=True, text=True, timeout=DEADLINE)
    assert (ran.stdout, ran.stderr) == ("{'one': 1}\n", "")
