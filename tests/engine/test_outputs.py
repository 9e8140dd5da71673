"""What modules return and raise: awaitables, generators, objects of which nothing works."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import types
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from constellation_otel.engine import Constellation, Dag, Execution, module
from constellation_otel.errors import ExecutionCancelledError, ExecutionFailedError
from engine_support import Elsewhere, Recorder, failed, one, raises_too, returns_a_coroutine, succeeded, three, two
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager


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
def test_after_the_cancellation_no_output_is_awaited(is_coroutine: bool) -> None:
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
def test_an_execution_ends_whatever_its_errors_and_outputs_do(
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
    assert recorder.calls[-1] == "p fails"
