"""Modules that run DAGs themselves."""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.engine import Constellation, Dag, Execution, module
from constellation_otel.errors import ConstellationOtelError, ExecutionCancelledError
from engine_support import PIPELINE, Gate, Recorder, one, succeeded, wait_for
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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
def test_modules_that_run_dags_do_not_starve_each_other(threads: int | None) -> None:
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


def test_an_async_module_awaits_dags_and_may_not_block() -> None:
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
    message = "waiting here would block this Constellation's event loop for ever; await run_async() instead"
    assert refused == [message, message]


def test_engines_that_share_one_thread_do_not_starve_each_other() -> None:
    """Though a third one, with threads of its own, stands between."""

    def deepest() -> int:
        return int(inner.run(Dag("innermost", [one]), {})["one"])

    def between() -> int:
        return int(middle.run(Dag("middle", [deepest]), {})["deepest"])

    with (
        ThreadPoolExecutor(1) as pool,
        Constellation(executor=pool) as outer,
        Constellation() as middle,
        Constellation(executor=pool) as inner,
    ):
        assert succeeded(outer, [between]) == {"between": 1}
