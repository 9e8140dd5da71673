"""Modules that are tried again: each attempt is told, the pauses between them end when they have to."""

from __future__ import annotations

import asyncio
import builtins
import multiprocessing
import threading
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import pytest
import stamina
from opentelemetry import trace
from stamina.instrumentation import set_on_retry_hooks

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.engine.threads import Threads
from constellation_otel.errors import (
    DagError,
    ExecutionCancelledError,
    ExecutionFailedError,
    MissingExtraError,
)
from constellation_otel.otel import OpenTelemetryListener
from constellation_otel.testing import span_tree
from constellation_otel.traces import module_id_of, span_id_of
from engine_support import (
    AtOnce,
    Elsewhere,
    Interfering,
    LateExecution,
    Recorder,
    SpanPerModule,
    throw,
)
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID

    from opentelemetry.context import Context
    from stamina.instrumentation import RetryDetails


@pytest.fixture(autouse=True)
def own_hooks() -> Iterator[None]:
    """The hooks of stamina as they were."""
    set_on_retry_hooks(())
    yield
    set_on_retry_hooks(None)


@pytest.fixture
def at_once() -> Iterator[None]:
    """No pause takes any time."""
    stamina.set_testing(True, attempts=1_000)
    yield
    stamina.set_testing(False)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Every pause takes an hour; each one that has begun can be acquired once."""
    monkeypatch.setattr(stamina, "retry_context", partial(stamina.retry_context, wait_initial=3600.0, wait_max=3600.0))
    begun = threading.Semaphore(0)

    def hook(details: RetryDetails) -> None:
        begun.release()

    set_on_retry_hooks([hook])
    return begun


class Flaky:
    """A body that fails until the call of a number."""

    def __init__(self, succeeds_at: int) -> None:
        self.calls = 0
        self.succeeds_at = succeeds_at

    def __call__(self) -> int:
        self.calls += 1
        if self.calls < self.succeeds_at:
            raise LookupError(self.calls)
        return self.calls


class Detailed(SpanPerModule):
    """Keeps what a module's callbacks do not say, too."""

    def __init__(self) -> None:
        super().__init__()
        self.details: list[tuple[UUID, dict[str, Any]]] = []
        self.asked: list[UUID] = []

    def module_details(self, execution_id: UUID, module_id: UUID, **details: Any) -> None:
        self.note(execution_id, f"{details['module_name']} is attempt {details['attempt']}")
        self.details.append((module_id, details))

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        self.asked.append(module_id)
        return super().module_context(execution_id, module_id, context)


def plain(flaky: Flaky) -> Callable[[], Any]:
    return flaky


def asynchronous(flaky: Flaky) -> Callable[[], Any]:
    async def body() -> int:
        await asyncio.sleep(0)
        return flaky()

    return body


def returning_a_coroutine(flaky: Flaky) -> Callable[[], Any]:
    body = asynchronous(flaky)

    def plain_body() -> Any:
        return body()

    return plain_body


def one_thread() -> Executor:
    return ThreadPoolExecutor(1)


EVERYWHERE = pytest.mark.parametrize(
    ("make_body", "make_executor"),
    [
        pytest.param(plain, nullcontext, id="plain"),
        pytest.param(plain, one_thread, id="plain, one thread"),
        pytest.param(plain, AtOnce, id="plain, inside submit()"),
        pytest.param(plain, Elsewhere, id="plain, elsewhere"),
        pytest.param(asynchronous, nullcontext, id="async"),
        pytest.param(asynchronous, Elsewhere, id="async, elsewhere"),
        pytest.param(returning_a_coroutine, nullcontext, id="a plain module's coroutine"),
    ],
)
Make: TypeAlias = "Callable[[Flaky], Callable[[], Any]]"
MakeExecutor: TypeAlias = "Callable[[], AbstractContextManager[Executor | None]]"


@EVERYWHERE
@pytest.mark.usefixtures("at_once")
def test_each_attempt_is_told_until_one_succeeds(make_body: Make, make_executor: MakeExecutor) -> None:
    listener = Detailed()
    dag = Dag("p", [module(make_body(Flaky(3)), name="flaky", attempts=5), after])
    with make_executor() as executor, Constellation(listener, executor) as constellation:
        execution = constellation.start(dag, {})
        assert execution.result(DEADLINE) == {"flaky": 3, "after": 4}
    assert listener.calls == [
        "p starts",
        *("flaky starts", "flaky fails"),
        *("flaky is attempt 2", "flaky starts", "flaky fails"),
        *("flaky is attempt 3", "flaky starts", "flaky completes"),
        *("after is attempt 1", "after starts", "after completes"),
        "p succeeds",
    ]
    first, second, third = (module_id_of(execution.execution_id, "flaky", attempt) for attempt in (1, 2, 3))
    last = module_id_of(execution.execution_id, "after")
    assert listener.modules == [each for module_id in (first, second, third, last) for each in (module_id,) * 2]
    assert listener.asked == [first, second, third, last]
    again: dict[str, Any] = {"module_name": "flaky", "attempt_of": first, "upstream": []}
    assert listener.details == [
        (second, again | {"attempt": 2}),
        (third, again | {"attempt": 3}),
        (last, {"module_name": "after", "attempt": 1, "attempt_of": None, "upstream": [third]}),
    ]


def after(flaky: int) -> int:
    return flaky + 1


@EVERYWHERE
@pytest.mark.usefixtures("at_once")
def test_the_last_attempts_error_is_the_modules(make_body: Make, make_executor: MakeExecutor) -> None:
    recorder = Recorder()  # which takes no details
    flaky = Flaky(9)
    dag = Dag("p", [module(make_body(flaky), name="flaky", attempts=3), after])
    with make_executor() as executor, Constellation(recorder, executor) as constellation:
        execution = constellation.start(dag, {})
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert {name: repr(error) for name, error in caught.value.errors.items()} == {"flaky": "LookupError(3)"}
    assert caught.value.failure is None
    assert flaky.calls == 3
    assert recorder.calls == ["p starts", *["flaky starts", "flaky fails"] * 3, "p fails"]


def counted(folder: str) -> int:
    """A body that succeeds in its third attempt, in whatever process that is."""
    tries = Path(folder)
    number = len(list(tries.iterdir())) + 1
    (tries / str(number)).touch()
    if number < 3:
        raise LookupError(number)
    return number


async def counted_too(counted: int, folder: str) -> NoReturn:
    raise LookupError(trace.format_span_id(trace.get_current_span().get_span_context().span_id))


@pytest.mark.usefixtures("at_once")
def test_modules_in_a_process_pool_are_tried_again(tmp_path: Path) -> None:
    """Each attempt's body has the context of its own id."""
    listener = SpanPerModule()
    dag = Dag("p", [module(counted, attempts=3), module(counted_too, attempts=2)])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool, Constellation(listener, pool) as constellation:
        execution = constellation.start(dag, {"folder": str(tmp_path)})
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert caught.value.outputs == {"counted": 3}
    last = module_id_of(caught.value.execution_id, "counted_too", 2)
    assert repr(caught.value.errors["counted_too"]) == f"LookupError('{trace.format_span_id(last.int >> 64)}')"
    assert listener.calls == [
        "p starts",
        *["counted starts", "counted fails"] * 2,
        *("counted starts", "counted completes"),
        *["counted_too starts", "counted_too fails"] * 2,
        "p fails",
    ]


def test_a_listener_in_opentelemetry_has_attempts_as_siblings(
    application: Any, at_once: None, request: pytest.FixtureRequest
) -> None:
    """The execution's description names the module whose last attempt failed, not the one that has recovered."""
    listener = OpenTelemetryListener(application.traces, application.metrics, application.logs)
    request.addfinalizer(partial(listener.close, DEADLINE))
    modules: list[Callable[..., Any]] = [
        module(Flaky(3), name="flaky", attempts=3),
        module(after, attempts=2),
        module(lambda after: throw(ValueError("for good")), name="broken", attempts=2),
    ]
    with Constellation(listener) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", modules), {})
    assert listener.flush(DEADLINE)
    application.export()
    spans = application.receiver.spans
    assert span_tree(spans) == (
        'p (server) failure ERROR "broken failed: for good"\n'
        "  after (internal) success\n"
        '  broken (internal) failure ERROR "for good"\n'
        '  broken (internal) failure ERROR "for good"\n'
        '  flaky (internal) failure ERROR "1"\n'
        '  flaky (internal) failure ERROR "2"\n'
        "  flaky (internal) success"
    )
    ids = partial(module_id_of, caught.value.execution_id)
    by_id = {span.span_id: span for span in spans}
    attempts = [by_id[span_id_of(caught.value.execution_id, ids("flaky", attempt))].attributes for attempt in (1, 2, 3)]
    assert [each.get("constellation.module.attempt", 1) for each in attempts] == [1, 2, 3]
    (link,) = by_id[span_id_of(caught.value.execution_id, ids("after"))].links
    assert link.span_id == span_id_of(caught.value.execution_id, ids("flaky", 3))


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), CancelledError()],
    ids=["an interrupt", "an exit", "asyncio's cancellation", "a future's cancellation"],
)
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.usefixtures("at_once")
def test_what_is_no_error_is_not_tried_again(error: BaseException, is_async: bool) -> None:
    def fails() -> NoReturn:
        raise error

    async def fails_too() -> NoReturn:
        raise error

    recorder = Recorder()
    dag = Dag("p", [module(fails_too if is_async else fails, name="body", attempts=3)])
    with Constellation(recorder) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.start(dag, {}).result(DEADLINE)
    assert type(caught.value.errors["body"]) is type(error)
    assert recorder.calls == ["p starts", "body starts", "body fails", "p fails"]


@pytest.mark.usefixtures("at_once")
def test_a_refusal_of_the_executor_is_not_tried_again() -> None:
    """The body has not run."""
    recorder = Recorder()
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with Constellation(recorder, pool) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [module(Flaky(1), name="flaky", attempts=3)]), {})
    assert "after shutdown" in str(caught.value.errors["flaky"])
    assert recorder.calls == ["p starts", "flaky starts", "flaky fails", "p fails"]


@pytest.mark.usefixtures("at_once")
def test_a_function_that_cannot_be_sent_is_not_tried_again() -> None:
    recorder = Recorder()
    dag = Dag("p", [module(lambda: 1, name="nameless", attempts=3)])
    with ProcessPoolExecutor(1) as pool, Constellation(recorder, pool) as constellation:
        execution = constellation.start(dag, {})
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert isinstance(caught.value.errors["nameless"], DagError)
    assert recorder.calls == ["p starts", "nameless starts", "nameless fails", "p fails"]


@EVERYWHERE
def test_cancelling_ends_a_pause(make_body: Make, make_executor: MakeExecutor, paused: threading.Semaphore) -> None:
    """At once, and no callback of the module follows."""
    recorder = Recorder()
    flaky = Flaky(2)
    dag = Dag("p", [module(make_body(flaky), name="flaky", attempts=3), after])
    with make_executor() as executor, Constellation(recorder, executor) as constellation:
        execution = constellation.start(dag, {})
        assert paused.acquire(timeout=DEADLINE)
        assert execution.cancel()
        assert execution.done()
        with pytest.raises(ExecutionCancelledError):
            execution.result(0)
        assert constellation.close(DEADLINE)
    assert flaky.calls == 1
    assert recorder.calls == ["p starts", "flaky starts", "flaky fails", "p is cancelled"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_listener_may_cancel_when_an_attempt_fails(is_async: bool, paused: threading.Semaphore) -> None:
    """There is no pause then."""
    later = LateExecution()
    listener = Interfering("flaky fails", later.cancel)
    body = module((asynchronous if is_async else plain)(Flaky(2)), name="flaky", attempts=2)
    with Constellation(listener) as constellation:
        execution = constellation.start(Dag("p", [body]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert not paused.acquire(blocking=False)
    assert later.answers == [True]
    assert listener.calls == ["p starts", "flaky starts", "flaky fails", "p is cancelled"]


def test_a_cancellation_as_a_pause_begins_ends_it(paused: threading.Semaphore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between the attempt's last callback and the pause's first step."""
    recorder = Recorder()
    later = LateExecution()
    submit = Threads.submit_async

    def late(self: Threads, *args: Any) -> Any:
        later.cancel()
        return submit(self, *args)

    monkeypatch.setattr(Threads, "submit_async", late)
    with Constellation(recorder) as constellation:
        execution = constellation.start(Dag("p", [module(Flaky(2), name="flaky", attempts=2)]), {})
        later.execution.put(execution)
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert later.answers == [True]
    assert not paused.acquire(blocking=False)
    assert recorder.calls == ["p starts", "flaky starts", "flaky fails", "p is cancelled"]


@EVERYWHERE
def test_closing_ends_every_pause(make_body: Make, make_executor: MakeExecutor, paused: threading.Semaphore) -> None:
    """The next attempt follows at once: closing cancels nothing, and waits for what was started."""
    recorder = Recorder()
    dag = Dag("p", [module(make_body(Flaky(4)), name="flaky", attempts=4), after])
    with make_executor() as executor:
        constellation = Constellation(recorder, executor)
        execution = constellation.start(dag, {})
        assert paused.acquire(timeout=DEADLINE)
        assert constellation.close(DEADLINE)
        assert execution.result(0) == {"flaky": 4, "after": 5}
    assert recorder.calls == [
        "p starts",
        *["flaky starts", "flaky fails"] * 3,
        *("flaky starts", "flaky completes"),
        *("after starts", "after completes"),
        "p succeeds",
    ]


def test_closing_may_be_repeated_while_pauses_end(paused: threading.Semaphore) -> None:
    constellation = Constellation()
    execution = constellation.start(Dag("p", [module(Flaky(2), name="flaky", attempts=2)]), {})
    assert paused.acquire(timeout=DEADLINE)
    while not constellation.close(0.0):
        pass
    assert execution.result(0) == {"flaky": 2}


def test_a_pause_occupies_no_thread_of_the_executor(paused: threading.Semaphore) -> None:
    with ThreadPoolExecutor(1) as pool, Constellation(executor=pool) as constellation:
        waiting = constellation.start(Dag("waiting", [module(Flaky(2), name="flaky", attempts=2)]), {})
        assert paused.acquire(timeout=DEADLINE)
        assert constellation.run(Dag("p", [module(Flaky(1), name="other")]), {}) == {"other": 1}
        assert not waiting.done()


@pytest.mark.parametrize("make_executor", [nullcontext, one_thread, Elsewhere])
@pytest.mark.usefixtures("at_once")
def test_a_hundred_modules_are_tried_again_side_by_side(make_executor: MakeExecutor) -> None:
    """Each one's callbacks come in order."""
    listener = Recorder()
    modules = [
        module((asynchronous if number % 2 else plain)(Flaky(2)), name=f"m{number}", attempts=2)
        for number in range(100)
    ]
    with make_executor() as executor, Constellation(listener, executor) as constellation:
        execution = constellation.start(Dag("p", modules), {})
        assert set(execution.result(DEADLINE).values()) == {2}
    calls = listener.by_execution[execution.execution_id]
    for each in modules:
        of_module = [call.removeprefix(f"{each.name} ") for call in calls if call.startswith(f"{each.name} ")]
        assert of_module == ["starts", "fails", "starts", "completes"]
    assert (len(calls), calls[0], calls[-1]) == (402, "p starts", "p succeeds")


@pytest.mark.usefixtures("at_once")
def test_a_module_that_runs_a_dag_runs_its_further_attempts_too() -> None:
    """In its own thread, which is the executor's only one."""

    def outer() -> int:
        return int(constellation.run(Dag("inner", [module(Flaky(3), name="flaky", attempts=3)]), {})["flaky"])

    with ThreadPoolExecutor(1) as pool, Constellation(executor=pool) as constellation:
        assert constellation.start(Dag("outer", [outer]), {}).result(DEADLINE) == {"outer": 3}


@pytest.mark.parametrize("error", [LookupError("no"), TimeoutError("late")])
def test_where_stamina_is_switched_off_nothing_is_tried_again(error: Exception) -> None:
    recorder = Recorder()
    stamina.set_active(False)
    try:
        with Constellation(recorder) as constellation, pytest.raises(ExecutionFailedError) as caught:
            constellation.run(Dag("p", [module(lambda: throw(error), name="body", attempts=3)]), {})
    finally:
        stamina.set_active(True)
    assert caught.value.errors == {"body": error}
    assert recorder.calls == ["p starts", "body starts", "body fails", "p fails"]


@pytest.mark.usefixtures("at_once")
def test_an_errors_traceback_has_no_line_of_the_pauses() -> None:
    with Constellation() as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [module(Flaky(9), name="body", attempts=2)]), {})
    (error,) = caught.value.errors.values()
    traceback, functions = error.__traceback__, []
    while traceback is not None:
        functions.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert functions == ["_begin", "__call__"]
    assert error.__context__ is None


@pytest.mark.parametrize("error", [OSError("no metrics"), TimeoutError("no metrics")])
def test_a_hook_that_raises_fails_the_module(error: Exception) -> None:
    set_on_retry_hooks([lambda _: throw(error)])
    recorder = Recorder()
    with Constellation(recorder) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.start(Dag("p", [module(Flaky(2), name="body", attempts=2)]), {}).result(DEADLINE)
    assert repr(caught.value.errors["body"]) == repr(error)
    assert recorder.calls == ["p starts", "body starts", "body fails", "p fails"]


def test_a_pause_that_a_module_cancels_is_the_last(paused: threading.Semaphore) -> None:
    """The module fails with what its attempt had raised."""

    async def cancels_all() -> None:
        assert await asyncio.to_thread(paused.acquire, timeout=DEADLINE)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    recorder = Recorder()
    dag = Dag("p", [cancels_all, module(Flaky(2), name="flaky", attempts=2)])
    with Constellation(recorder) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.start(dag, {}).result(DEADLINE)
    assert {name: repr(error) for name, error in caught.value.errors.items()} == {"flaky": "LookupError(1)"}
    assert recorder.calls[-1] == "p fails"
    assert recorder.calls.count("flaky fails") == 1


def test_an_engine_without_an_event_loop_says_why_there_is_no_other_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("no descriptor")

    monkeypatch.setattr(Threads, "submit_async", refuse)
    recorder = Recorder()
    with Constellation(recorder) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.start(Dag("p", [module(Flaky(2), name="flaky", attempts=2)]), {}).result(DEADLINE)
    (error,) = caught.value.errors.values()
    assert (repr(error), repr(error.__cause__)) == ("OSError('no descriptor')", "LookupError(1)")
    assert recorder.calls == ["p starts", "flaky starts", "flaky fails", "p fails"]


@pytest.mark.parametrize("attempts", [0, -1, True, False, 1.0, "3", None])
def test_a_number_of_attempts_that_is_none_is_refused(attempts: Any) -> None:
    with pytest.raises(DagError) as caught:
        module(after, attempts=attempts)
    assert str(caught.value) == (
        f"module 'after': attempts={attempts!r} is not a number of attempts; give an int from 1 up"
    )


def test_only_more_than_one_attempt_needs_stamina(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "stamina":
            raise ModuleNotFoundError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert module(after, attempts=1).attempts == 1
    with pytest.raises(MissingExtraError) as caught:
        module(attempts=2)(after)
    assert str(caught.value) == "stamina is not installed; run: pip install 'constellation-otel[retry]'"
