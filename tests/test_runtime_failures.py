"""Whatever fails in the embedded engine's own code, an execution ends, its end is told, and run() returns."""

from __future__ import annotations

import ast
import asyncio
import gc
import sys
import threading
import types
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from constellation_otel import runtime
from constellation_otel.dag import Dag, module
from constellation_otel.listener import ExecutionListener
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID

    from constellation_otel.runtime import Constellation


class Recorder(ExecutionListener):
    """Keeps what it is told as words."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.calls.append(f"{dag_name} starts")

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.calls.append(f"{module_name} starts")

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self.calls.append(f"{module_name} completes")

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self.calls.append(f"{module_name} fails")

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self.calls.append(f"{dag_name} ends")

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.calls.append(f"{dag_name} ends")


class Elsewhere(Executor):
    """An executor that the engine takes for one of other processes; its threads are of this one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - as the base class
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class AtOnce(ThreadPoolExecutor):
    """An executor that runs what it is given in the thread that gives it."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


class Steps(ast.NodeTransformer):
    """Puts a step before and after each call in the engine's code, but for callbacks and the modules' bodies."""

    NOT_THE_ENGINES = frozenset(
        {
            "callback",
            "each.function",
            "self._listener.on_execution_start",
            "self._listener.on_execution_complete",
            "self._listener.on_execution_cancelled",
        }
    )
    RETURN_ALWAYS = frozenset({"asyncio.new_event_loop", "_EventLoop"})  # else nobody could close what they made

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name in self.NOT_THE_ENGINES:
            return node
        place = [ast.Constant(f"{name} in line {node.lineno}"), ast.Constant(name not in self.RETURN_ALWAYS)]
        return ast.Call(ast.Name("_call", ast.Load()), [*place, node.func, *node.args], node.keywords)


class FaultyEngine:
    """A copy of the engine of which one step fails: a call that is not made, or that raises when it has been made.

    Attributes:
        module: The copy of ``runtime``.
        failed: The step that failed; empty where none has yet.
    """

    def __init__(self) -> None:
        tree = Steps().visit(ast.parse(Path(runtime.__file__).read_text("utf-8")))
        self.module: Any = types.ModuleType("faulty_runtime")
        vars(self.module)["_call"] = self._call
        sys.modules["faulty_runtime"] = self.module
        self._lock = threading.Lock()
        self._steps = 0
        exec(compile(ast.fix_missing_locations(tree), "faulty_runtime", "exec"), vars(self.module))
        vars(self.module)["_HELP_INTERVAL"] = 0.01

    @contextmanager
    def failing_at(self, number: int, kind: type[BaseException]) -> Iterator[None]:
        """Within this the step of that number, from 1 on, raises an exception of that kind."""
        gc.disable()  # an engine of an earlier turn that were collected now would make steps, too
        self.failed, self._kind, self._steps = "", kind, number
        try:
            yield
        finally:
            self._steps = 0
            gc.enable()

    def _call(self, place: str, may_be_lost: bool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._step(f"before {place}")
        returned = function(*args, **kwargs)
        if may_be_lost:
            self._step(f"after {place}")
        return returned

    def _step(self, place: str) -> None:
        with self._lock:
            self._steps -= 1
            if self._steps:
                return
            self.failed = place
        raise self._kind("no more memory")


def one() -> int:
    return 1


async def two(one: int) -> int:
    await asyncio.sleep(0)
    return one + 1


def three(two: int) -> int:
    return two + 1


def raises(one: int) -> NoReturn:
    raise LookupError(one)


async def raises_too(one: int) -> NoReturn:
    await asyncio.sleep(0)
    raise LookupError(one)


def returns_a_coroutine(one: int) -> Any:
    return two(one)


last = module(three, name="last", inputs={"two": "one"})


def runs(constellation: Constellation, dag: Dag) -> None:
    constellation.run(dag, {})


def runs_async(constellation: Constellation, dag: Dag) -> None:
    asyncio.run(constellation.run_async(dag, {}))


def cancels(constellation: Constellation, dag: Dag) -> None:
    execution = constellation.start(dag, {})
    execution.cancel()
    execution.result(DEADLINE)


def nests(constellation: Constellation, dag: Dag) -> None:
    constellation.run(Dag("outer", [module(lambda: runs(constellation, dag), name="inside")]), {})


def one_thread() -> Executor:
    return ThreadPoolExecutor(1)


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("modules", "run", "make_executor"),
    [
        pytest.param([one, two, last], runs, nullcontext, id="run"),
        pytest.param([one, two], runs_async, nullcontext, id="run_async"),
        pytest.param([one, raises, raises_too, two], runs, nullcontext, id="failing modules"),
        pytest.param([one, returns_a_coroutine], runs, nullcontext, id="a plain module's coroutine"),
        pytest.param([one, two], cancels, nullcontext, id="cancellation"),
        pytest.param([one, last], nests, one_thread, id="nested executions"),
        pytest.param([one, two, last], runs, Elsewhere, id="elsewhere"),
        pytest.param([one, two], cancels, Elsewhere, id="cancellation elsewhere"),
        pytest.param([one, last], runs, AtOnce, id="at once"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_execution_ends_whatever_step_of_the_engine_fails(
    modules: list[Callable[..., Any]],
    run: Callable[[Constellation, Dag], None],
    make_executor: Callable[[], AbstractContextManager[Executor | None]],
    kind: type[BaseException],
) -> None:
    """Also that nothing of a module is told after the end, that the error says why, and that nothing is left."""
    dag = Dag("p", modules)
    engine = FaultyEngine()
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    number, engine.failed = 0, "not yet"
    while engine.failed:
        number += 1
        recorder = Recorder()
        with make_executor() as executor:
            constellation = engine.module.Constellation(recorder, executor)
            error = outcome(engine, number, kind, lambda: run(constellation, dag))  # noqa: B023 - called at once
            assert constellation.close(DEADLINE), engine.failed
        for thread in set(threading.enumerate()) - threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), engine.failed
        check_calls(recorder.calls, engine.failed)
        assert error is None or why(error), engine.failed
    assert number > 100
    gc.collect()
    assert open_descriptors() <= descriptors


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def outcome(
    engine: FaultyEngine, number: int, kind: type[BaseException], run: Callable[[], None]
) -> BaseException | None:
    """What was raised, if anything, by what returned in time."""
    raised: list[BaseException] = []

    def catch() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=catch, daemon=True)
    with engine.failing_at(number, kind):
        thread.start()
        thread.join(DEADLINE)
    assert not thread.is_alive(), f"hangs where a failure comes {engine.failed}"
    return raised[0] if raised else None


def check_calls(calls: list[str], failed: str) -> None:
    """Asserts that each execution that has started ends once, and that the outermost one's end is the last call."""
    started = {call.removesuffix(" starts") for call in calls if call in {"p starts", "outer starts"}}
    assert {name: calls.count(f"{name} ends") for name in started} == dict.fromkeys(started, 1), (failed, calls)
    assert not calls or calls[-1] in {"p ends", "outer ends"}, (failed, calls)


def why(error: BaseException) -> bool:
    """Whether an error, or one of its causes, says what failed: the step, the event loop, a module."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = " ".join(map(str, chain))
    return any(words in said for words in ("no more memory", "event loop", "LookupError: 1", "was cancelled"))
