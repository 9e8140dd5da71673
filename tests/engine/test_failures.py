"""Whatever fails in the embedded engine's own code, an execution ends, its end is told, and run() returns."""

from __future__ import annotations

import ast
import asyncio
import contextvars
import functools
import gc
import os
import queue
import subprocess
import sys
import threading
import types
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from constellation_otel.engine import Constellation, Dag, Execution, module
from constellation_otel.engine import constellation as runtime
from constellation_otel.errors import ExecutionCancelledError, ExecutionFailedError
from constellation_otel.listener import ExecutionListener
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID


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
        return ast.copy_location(
            ast.Call(ast.Name("_call", ast.Load()), [*place, node.func, *node.args], node.keywords), node
        )


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
        exec(compile(ast.fix_missing_locations(tree), runtime.__file__, "exec"), vars(self.module))
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


KINDS = (MemoryError, KeyboardInterrupt, SystemExit)


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
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_execution_ends_whatever_step_of_the_engine_fails(
    modules: list[Callable[..., Any]],
    run: Callable[[Constellation, Dag], None],
    make_executor: Callable[[], AbstractContextManager[Executor | None]],
) -> None:
    """Also nothing of a module is told after the end, the error says why, and nothing is left.

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
            constellation = engine.module.Constellation(recorder, executor)
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


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def outcome(engine: FaultyEngine, number: int, run: Callable[[], None]) -> BaseException | None:
    """What was raised, if anything, by what returned in time."""
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
    started = {call.removesuffix(" starts") for call in calls if call in {"p starts", "outer starts"}}
    assert {name: calls.count(f"{name} ends") for name in started} == dict.fromkeys(started, 1), (failed, calls)
    assert not calls or calls[-1] in {"p ends", "outer ends"}, (failed, calls)


def why(error: BaseException) -> bool:
    """Whether an error, or one of its causes, says what failed: the step, the event loop, a module."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = " ".join(map(str, chain)).replace("Event", "event")
    return any(words in said for words in ("no more memory", "event loop", "LookupError: 1", "was cancelled"))


# What modules, executors and the system do to the engine


def failed(constellation: Constellation, modules: list[Callable[..., Any]]) -> dict[str, str]:
    """The errors of the modules that failed, in time."""
    with pytest.raises(ExecutionFailedError) as caught:
        constellation.start(Dag("p", modules), {}).result(DEADLINE)
    return {name: f"{type(error).__name__}: {error}" for name, error in caught.value.errors.items()}


def succeeded(constellation: Constellation, modules: list[Callable[..., Any]]) -> dict[str, Any]:
    """The outputs, in time; of modules that need no input."""
    return dict(constellation.start(Dag("p", modules), {}).result(DEADLINE))


LOST = "CancelledError: its task was cancelled, or its event loop closed, and not by Execution.cancel()"


def cancel_the_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_an_async_module_whose_task_is_cancelled_before_it_begins_fails() -> None:
    async def cancels() -> None:
        # the other's task begins in the turn after the one in which it was made
        while asyncio.all_tasks() == {asyncio.current_task()}:  # noqa: ASYNC110 - nothing tells that it was made
            await asyncio.sleep(0)
        cancel_the_others()

    async def other() -> None: ...

    recorder = Recorder()
    with Constellation(recorder) as constellation:
        assert failed(constellation, [cancels, other]) == {"other": LOST}
    assert recorder.calls == [
        "p starts",
        "cancels starts",
        "cancels completes",
        "other starts",
        "other fails",
        "p ends",
    ]


@pytest.mark.parametrize("own", [False, True])
def test_an_async_module_whose_task_is_cancelled_fails_and_says_so(own: bool) -> None:
    begun = asyncio.Event()

    async def waits() -> None:
        task = asyncio.current_task()
        if own and task is not None:
            task.cancel()
        begun.set()
        await asyncio.sleep(3600)

    async def cancels() -> None:
        await begun.wait()
        cancel_the_others()

    with Constellation() as constellation:
        assert failed(constellation, [waits] if own else [waits, cancels]) == {
            "waits": "CancelledError: its task was cancelled, and not by Execution.cancel()"
        }


def test_an_async_module_that_cancels_itself_and_returns_has_completed() -> None:
    async def cancels() -> int:
        cancelled = asyncio.current_task()
        assert cancelled is not None
        cancelled.cancel()
        return 1

    with Constellation() as constellation:
        assert succeeded(constellation, [module(cancels, name="one"), two]) == {"one": 1, "two": 2}


def test_a_module_that_stops_the_event_loop_stops_nothing() -> None:
    async def stops() -> int:
        asyncio.get_running_loop().stop()
        return 1

    with Constellation() as constellation:
        assert succeeded(constellation, [module(stops, name="one"), two]) == {"one": 1, "two": 2}


def close_it(loop: asyncio.AbstractEventLoop) -> None:
    """Closes a loop between two of its turns, as another thread might just manage to."""

    def close() -> None:
        del loop.run_forever
        loop.close()

    loop.run_forever = close  # type: ignore[method-assign]
    loop.call_soon_threadsafe(loop.stop)


def lose_its_descriptor(loop: asyncio.AbstractEventLoop) -> None:
    """Does what a module does that closes every descriptor it finds."""
    loop.call_soon_threadsafe(os.close, loop._selector.fileno())  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [close_it, lose_its_descriptor])
def test_where_the_event_loop_is_lost_what_ran_on_it_fails_and_the_next_has_a_new_one(
    end: Callable[[asyncio.AbstractEventLoop], None], caplog: pytest.LogCaptureFixture
) -> None:
    loops: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()

    async def waits() -> None:
        loops.put(asyncio.get_running_loop())
        await asyncio.sleep(3600)

    def ends() -> None:
        end(loops.get(timeout=DEADLINE))

    with Constellation() as constellation:
        assert failed(constellation, [waits, ends]) == {"waits": LOST}
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}


def test_a_task_that_stops_the_event_loop_while_it_winds_up_keeps_it_from_nothing() -> None:
    ended = threading.Event()
    left: set[asyncio.Task[None]] = set()

    async def leaves() -> None:
        async def stops() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                asyncio.get_running_loop().stop()
                await asyncio.sleep(0)
                ended.set()

        left.add(asyncio.create_task(stops()))
        await asyncio.sleep(0)

    with Constellation() as constellation:
        assert succeeded(constellation, [leaves]) == {"leaves": None}
    assert ended.is_set()


def test_an_event_loop_that_cannot_be_wound_up_is_closed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def breaks() -> None:
        loop = asyncio.get_running_loop()
        loop.shutdown_asyncgens = raises  # type: ignore[assignment, method-assign]
        loops.append(loop)

    with Constellation() as constellation:
        assert succeeded(constellation, [breaks]) == {"breaks": None}
    assert loops[0].is_closed()
    # at most one in ten seconds; asyncio may tell of tasks that earlier tests have left
    said = [record.getMessage() for record in caplog.records if record.name == runtime.__name__]
    assert said in ([], ["the event loop did not close"])


def test_where_the_event_loop_cannot_be_made_what_needs_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "constellation-loop":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Constellation(recorder) as constellation:
        error = "RuntimeError: can't start new thread"
        assert failed(constellation, [one, two, last]) == {"two": error}
        assert failed(constellation, [one, module(returns_a_coroutine, name="lambda")]) == {"lambda": error}
        monkeypatch.undo()
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}
    assert recorder.calls[:8] == [
        *("p starts", "one starts", "one completes"),
        *("two starts", "two fails", "last starts", "last completes", "p ends"),
    ]


def test_where_the_event_loop_cannot_be_made_no_module_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with Elsewhere() as executor, Constellation(executor=executor) as constellation:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert failed(constellation, [one, three, two])["one"] == "RuntimeError: can't start new thread"
        monkeypatch.undo()
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}


def test_what_the_engine_gives_its_event_loop_may_be_awaited_and_closed() -> None:
    async def main() -> int:
        runtime._Later(two, (1,)).close()
        return await runtime._Later(two, (1,))

    assert asyncio.run(main()) == 2


def test_an_event_loop_that_was_stopped_takes_nothing() -> None:
    loop = runtime._EventLoop()
    loop.stop()
    with pytest.raises(RuntimeError, match="the event loop has ended"):
        loop.submit(runtime._wind_up, loop._loop)


WITHOUT_DESCRIPTORS = """
import os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from constellation_otel import Constellation, Dag
from constellation_otel.errors import ExecutionFailedError
from constellation_otel.testing import RecordingListener

def one():
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    kept.extend(open("/dev/null") for _ in range(20 - len(os.listdir("/proc/self/fd"))))
    return 1

async def two(one): return 2
def three(one): return two(one)
def four(one): return 4

sys.unraisablehook = lambda _: None  # Python 3.11's own, of a loop that was made by half
kept = []
recording = RecordingListener()
with Constellation(recording) as constellation:
    try:
        constellation.run(Dag("p", [one, two, three, four]), {})
    except ExecutionFailedError as error:
        for name, each in sorted(error.errors.items()):
            print(name, repr(each))
        print(dict(error.outputs))
print(type(recording.events[-1]).__name__)
for each in kept:
    each.close()
"""


def test_a_process_without_a_descriptor_left_fails_the_modules_that_need_one() -> None:
    program = [sys.executable, "-W", "error", "-c", WITHOUT_DESCRIPTORS]
    ran = subprocess.run(program, check=True, capture_output=True, text=True, timeout=DEADLINE)
    error = "OSError(24, 'Too many open files')"
    assert ran.stdout.splitlines() == [
        f"three {error}",
        f"two {error}",
        "{'one': 1, 'four': 4}",
        "ExecutionCompleted",
    ]
    assert ran.stderr == ""


def test_an_interrupt_in_a_thread_of_the_executor_ends_the_execution_with_it(caplog: pytest.LogCaptureFixture) -> None:
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
    assert recorder.calls == ["p starts", "one starts", "one completes", "p ends"]
    assert [record.levelname for record in caplog.records] in ([], ["ERROR"])  # at most one in ten seconds


def test_an_executor_that_takes_a_module_and_then_raises_runs_it_once() -> None:
    class Raises(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            super().submit(function, *args, **kwargs).result(DEADLINE)
            raise RuntimeError("after all")

    recorder = Recorder()
    with Raises(2) as pool, Constellation(recorder, pool) as constellation:
        assert succeeded(constellation, [one]) == {"one": 1}
    assert recorder.calls == ["p starts", "one starts", "one completes", "p ends"]


def test_a_long_chain_does_not_pile_up_in_a_thread_pool_that_runs_things_at_once() -> None:
    links = [module(three, name=f"m{n}", inputs={"two": f"m{n - 1}"}) for n in range(1, 1000)]
    chain: list[Callable[..., Any]] = [module(one, name="m0"), *links]
    with AtOnce() as pool, Constellation(executor=pool) as constellation:
        assert succeeded(constellation, chain)["m999"] == 1000


def test_engines_that_share_an_executor_of_one_thread_do_not_starve_each_other() -> None:
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


# What modules return and raise


class Deferred:
    """What can be awaited and is no coroutine."""

    def __await__(self) -> Generator[Any, None, int]:
        yield from asyncio.sleep(0).__await__()
        return 2


class Callee:
    async def __call__(self, one: int) -> int:
        return await two(one)


@types.coroutine
def old_style(one: int) -> Generator[None, None, int]:
    yield
    return one + 1


def returned_by_a_plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    def plain(one: int) -> Any:
        return function(one)

    return plain


async def twice(one: int) -> Any:
    return two(one)


@pytest.mark.parametrize(
    "function",
    [
        returns_a_coroutine,
        functools.partial(Callee()),
        functools.partial(returns_a_coroutine),
        lambda one: Deferred(),
        old_style,
        twice,
        returned_by_a_plain_function(twice),
    ],
)
@pytest.mark.parametrize("make_executor", [nullcontext, Elsewhere])
def test_what_a_module_returns_and_can_be_awaited_is_awaited(
    function: Callable[..., Any], make_executor: Callable[[], AbstractContextManager[Executor | None]]
) -> None:
    recorder = Recorder()
    with make_executor() as executor, Constellation(recorder, executor) as constellation:
        assert succeeded(constellation, [one, module(function, name="two"), three]) == {"one": 1, "two": 2, "three": 3}
    assert recorder.calls[3:5] == ["two starts", "two completes"]


def test_what_a_module_returns_is_awaited_in_the_modules_context() -> None:
    variable = contextvars.ContextVar("variable", default="the default")

    async def later() -> str:
        await asyncio.sleep(0)
        return variable.get()

    def plain() -> Any:
        variable.set("the module's")
        return later()

    with Constellation() as constellation:
        assert succeeded(constellation, [plain, module(later, name="after")]) == {
            "plain": "the module's",
            "after": "the default",
        }


def test_a_module_fails_with_what_its_coroutine_raises() -> None:
    with Constellation() as constellation:
        assert failed(constellation, [one, module(returned_by_a_plain_function(raises_too), name="plain")]) == {
            "plain": "LookupError: 1"
        }


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_what_could_be_awaited_is_not_once_the_execution_is_cancelled(is_coroutine: bool) -> None:
    ran: list[int] = []
    execution: queue.Queue[Execution] = queue.Queue()

    async def later() -> None:
        ran.append(1)

    def cancels() -> Any:
        execution.get(timeout=DEADLINE).cancel()
        return later() if is_coroutine else Deferred()

    with Constellation() as constellation:
        started = constellation.start(Dag("p", [cancels]), {})
        execution.put(started)
        with pytest.raises(ExecutionCancelledError):
            started.result(DEADLINE)
    assert ran == []


def test_a_generator_is_an_output_like_any_other() -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2)

    async def later() -> AsyncIterator[int]:
        yield 3

    async def total(numbers: Iterator[int], later: AsyncIterator[int]) -> int:
        return sum(numbers) + sum([each async for each in later])

    with Constellation() as constellation:
        assert succeeded(constellation, [numbers, later, total])["total"] == 6


class Odd(Exception):
    """An error, and an output, of which nothing works."""

    def _fails(self, *_: object) -> NoReturn:
        raise KeyboardInterrupt

    __str__ = __repr__ = __bool__ = __eq__ = _fails
    __hash__ = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> NoReturn:
        raise ValueError(name)


@pytest.mark.parametrize("make_executor", [nullcontext, Elsewhere])
def test_whatever_the_errors_and_outputs_of_modules_do_an_execution_ends(
    make_executor: Callable[[], AbstractContextManager[Executor | None]],
) -> None:
    odd = Odd()

    def fails() -> NoReturn:
        raise odd

    async def fails_too() -> NoReturn:
        raise odd

    recorder = Recorder()
    with make_executor() as executor, Constellation(recorder, executor) as constellation:
        execution = constellation.start(Dag("p", [module(lambda: odd, name="returns"), fails, fails_too]), {})
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert str(caught.value).count(": <str() of this Odd raised KeyboardInterrupt>") >= bool(executor is None) * 2
    assert caught.value.outputs["returns"] is odd
    assert caught.value.errors.keys() == {"fails", "fails_too"}
    assert recorder.calls[-1] == "p ends"


# Engines that are forgotten, or closed


def test_what_arrives_when_an_engine_was_closed_starts_no_thread_again(
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
    submit = runtime._Threads.submit

    def late(self: Any, *args: Any) -> Future[None]:
        execution.cancel()
        assert constellation.close(DEADLINE)
        return submit(self, *args)

    eventually(lambda: len(vars(future)["_done_callbacks"]) > 1, "it is followed")
    monkeypatch.setattr(runtime._Threads, "submit", late)
    future.set_running_or_notify_cancel()
    future.set_result((1, 0.5))
    with pytest.raises(ExecutionCancelledError):
        execution.result(DEADLINE)
    assert set(threading.enumerate()) <= threads
    assert caplog.records == []


def test_an_engine_that_is_forgotten_keeps_neither_threads_nor_descriptors() -> None:
    """Though its executions are not."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    executions = [Constellation().start(Dag("p", [one, two]), {}) for _ in range(3)]
    assert [execution.result(DEADLINE)["two"] for execution in executions] == [2, 2, 2]
    gc.collect()
    eventually(lambda: set(threading.enumerate()) <= threads, "the engines' threads end")
    assert open_descriptors() <= descriptors
    assert not executions[0].cancel()
    assert executions[0].result() == {"one": 1, "two": 2}


def test_an_engine_that_is_forgotten_in_the_middle_does_what_it_has_begun() -> None:
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


def test_a_program_that_closes_no_engine_ends_at_once_and_without_a_word() -> None:
    program = [sys.executable, "-X", "dev", "-W", "error", "-c", UNCLOSED]
    ran = subprocess.run(program, check=True, capture_output=True, text=True, timeout=DEADLINE)
    assert (ran.stdout, ran.stderr) == ("{'one': 1}\n", "")
