"""Whichever step of the engine's own code fails, the execution ends, its last callback is made, and run() returns."""

from __future__ import annotations

import ast
import asyncio
import gc
import sys
import threading
import types
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stamina

from constellation_otel.engine import Constellation, Dag, module
from engine_support import (
    AtOnce,
    Elsewhere,
    Recorder,
    last,
    one,
    open_descriptors,
    raises,
    raises_too,
    returns_a_coroutine,
    two,
)
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Steps(ast.NodeTransformer):
    """Puts a step before and after each call in the engine's code, but for callbacks and the modules' bodies."""

    NOT_THE_ENGINES = frozenset(
        {
            "callback",
            "self.module.function",
            "self.listener.on_execution_start",
            "self.listener.on_execution_complete",
            "self.listener.on_execution_cancelled",
        }
    )
    RETURN_ALWAYS = frozenset({"asyncio.new_event_loop", "LoopThread"})  # else nothing could close what they made

    def __init__(self, file: str) -> None:
        self._file = file

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name in self.NOT_THE_ENGINES:
            return node
        place = ast.Constant(f"{name} in line {node.lineno} of {self._file}")
        arguments = [place, ast.Constant(name not in self.RETURN_ALWAYS), node.func, *node.args]
        return ast.copy_location(ast.Call(ast.Name("_call", ast.Load()), arguments, node.keywords), node)


FILES = (
    "_support.loop_thread",
    "engine.attempts",
    "engine.outputs",
    "engine.remote",
    "engine.threads",
    "engine.call",
    "engine.run",
    "engine.constellation",
)
"""The files in whose code a step fails; one comes after those that it imports."""


class FaultyEngine:
    """A copy of the engine in which one step fails: a call that is not made, or that raises when it has been made.

    Attributes:
        Constellation: The copy's.
        failed: The step that failed; empty where none has yet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = 0
        names = [f"constellation_otel.{file}" for file in FILES]
        originals = {name: sys.modules[name] for name in names}
        try:
            for name, original in originals.items():
                sys.modules[name] = self._copy(original)
            self.Constellation: Any = vars(sys.modules["constellation_otel.engine.constellation"])["Constellation"]
        finally:
            sys.modules.update(originals)

    def _copy(self, original: types.ModuleType) -> types.ModuleType:
        copy = types.ModuleType(original.__name__)
        file = str(original.__file__)
        tree = Steps(Path(file).stem).visit(ast.parse(Path(file).read_text("utf-8")))
        vars(copy)["_call"] = self._call
        sys.modules[original.__name__] = copy
        exec(compile(ast.fix_missing_locations(tree), file, "exec"), vars(copy))
        return copy

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


ENDS = {f"{name} {end}" for name in ("p", "outer") for end in ("succeeds", "fails", "is cancelled")}

KINDS = (MemoryError, KeyboardInterrupt, SystemExit)


raises_often = module(raises, attempts=2)
raises_often_too = module(raises_too, attempts=2)


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Attempts follow each other at once."""
    stamina.set_testing(True, attempts=9)
    yield
    stamina.set_testing(False)


@pytest.mark.parametrize(
    ("modules", "run", "make_executor"),
    [
        pytest.param([one, two], runs, nullcontext, id="run"),
        pytest.param([one, two], runs_async, nullcontext, id="run_async"),
        pytest.param([one, raises, raises_too], runs, nullcontext, id="failing modules"),
        pytest.param([one, returns_a_coroutine], runs, nullcontext, id="a plain module's coroutine"),
        pytest.param([one, two], cancels, nullcontext, id="cancellation"),
        pytest.param([one], nests, one_thread, id="nested executions"),
        pytest.param([one, two], runs, Elsewhere, id="elsewhere"),
        pytest.param([one, two], cancels, Elsewhere, id="cancellation elsewhere"),
        pytest.param([one, last], runs, AtOnce, id="at once"),
        pytest.param([one, raises_often, raises_often_too], runs, nullcontext, id="further attempts"),
        pytest.param([one, raises_often], cancels, nullcontext, id="cancellation between attempts"),
        pytest.param([one, raises_often, raises_often_too], runs, Elsewhere, id="further attempts elsewhere"),
    ],
)
@pytest.mark.usefixtures("no_pauses")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_execution_ends_whatever_step_of_the_engine_fails(
    modules: list[Callable[..., Any]],
    run: Callable[[Constellation, Dag], None],
    make_executor: Callable[[], AbstractContextManager[Executor | None]],
) -> None:
    """No callback of a module follows the end, the error says why, and no thread or descriptor is left.

    Each step fails in a run of its own, with one of the kinds in turn.
    """
    dag = Dag("p", modules)
    engine = FaultyEngine()
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    number, engine.failed = 0, "not yet"
    while engine.failed:
        number += 1
        recorder = Recorder()
        with make_executor() as executor:
            constellation = engine.Constellation(recorder, executor)
            error = outcome(engine, number, lambda: run(constellation, dag))  # noqa: B023 - called at once
            assert constellation.close(DEADLINE), engine.failed
        for thread in set(threading.enumerate()) - threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), engine.failed
        check_calls(recorder.calls, engine.failed)
        assert error is None or why(error), engine.failed
    assert number > 100
    gc.collect()
    assert open_descriptors() <= descriptors


def outcome(engine: FaultyEngine, number: int, run: Callable[[], None]) -> BaseException | None:
    """What the run raised, if anything; it has to end in time."""
    raised: list[BaseException] = []

    def catch() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=catch, daemon=True)
    with engine.failing_at(number, KINDS[number % len(KINDS)]):
        thread.start()
        thread.join(DEADLINE)
    assert not thread.is_alive(), f"hangs where a failure comes {engine.failed}"
    return raised[0] if raised else None


def check_calls(calls: list[str], failed: str) -> None:
    """Asserts that each execution that has started ends once, and that the outermost one's end is the last call."""
    started = [call.partition(" ")[0] for call in calls if call in {"p starts", "outer starts"}]
    ended = [call.partition(" ")[0] for call in calls if call in ENDS]
    assert sorted(ended) == sorted(started), (failed, calls)
    assert not calls or calls[-1] in ENDS, (failed, calls)


def why(error: BaseException) -> bool:
    """Whether an error, or one of its causes, says what failed: the step, the event loop, a module."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = " ".join(map(str, chain)).replace("Event", "event")
    return any(words in said for words in ("no more memory", "event loop", "LookupError: 1", "was cancelled"))
