"""Dagster: the context of a step's body, in whatever process that runs.

The spans of runs and steps come from the event log, by ``replay dagster:`` or ``bridge dagster:``;
see ``transports.dagster``. Their ids are computed from Dagster's own, and so they are known here
before there are such spans.
"""

from __future__ import annotations

import contextvars
import logging
from contextlib import contextmanager
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.bodies import module_context
from constellation_otel.errors import MissingExtraError
from constellation_otel.traces import execution_id_of, module_id_of

try:
    from dagster import DagsterError, OpExecutionContext
except ModuleNotFoundError as error:
    if error.name != "dagster":
        raise
    raise MissingExtraError("dagster", "dagster") from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from opentelemetry.context import Context

__all__ = ["traced"]

_ENGINE: Final = "dagster"
_TRACEPARENT: Final = "traceparent"
_LOGGER: Final = logging.getLogger(__name__)
_LOG: Final = RateLimitedLog()

P = ParamSpec("P")
R = TypeVar("R")


def traced(function: Callable[P, R]) -> Callable[P, R]:
    """Makes the step's span the current one in the body of an op or an asset.

    Spans that the body opens, and those of instrumented libraries, are then children of the
    step's span, which the event log gives later. It goes below Dagster's own decorator::

        @op
        @traced
        def load(context): ...

    Nothing is sent or stored for this. The process that runs the step needs the OpenTelemetry
    SDK: its sampler is asked whether the run's trace is sampled. Where it is not set up, or the
    body is called outside of a run, the body runs as it would without this.

    Args:
        function: The body: a function, a generator, a coroutine, or an asynchronous generator.
    """
    # Dagster goes by what kind of function it is
    if isasyncgenfunction(function):
        wrapped: Callable[..., Any] = _asynchronous_generator(function)
    elif iscoroutinefunction(function):
        wrapped = _coroutine(function)
    elif isgeneratorfunction(function):
        wrapped = _generator(function)
    else:
        wrapped = _plain(function)
    return cast("Callable[P, R]", wraps(function)(wrapped))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any, **kwargs: Any) -> Any:
        with _current(_context_of_step()):
            return function(*args, **kwargs)

    return body


def _coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    async def body(*args: Any, **kwargs: Any) -> Any:
        with _current(_context_of_step()):
            return await function(*args, **kwargs)

    return body


def _generator(function: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        # a context of its own: what the body makes current stays so when Dagster asks for its next output, and
        # does not get into what Dagster does between
        own = contextvars.copy_context()
        step = _context_of_step()
        if step is not None:
            own.run(otel_context.attach, step)
        generator = own.run(function, *args, **kwargs)
        try:
            while True:
                try:
                    output = own.run(next, generator)
                except StopIteration as end:
                    return end.value
                yield output
        finally:
            own.run(generator.close)

    return body


def _asynchronous_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    async def body(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        step = _context_of_step()
        generator = function(*args, **kwargs)
        try:
            while True:
                # Dagster asks for each output in a task of its own
                with _current(step):
                    try:
                        output = await anext(generator)
                    except StopAsyncIteration:
                        return
                yield output
        finally:
            await generator.aclose()

    return body


@contextmanager
def _current(context: Context | None) -> Iterator[None]:
    if context is None:
        yield
        return
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def _context_of_step() -> Context | None:
    """The context of the body of the step that Dagster runs here; ``None`` where there is nothing to nest."""
    sampler = getattr(trace.get_tracer_provider(), "sampler", None)
    if sampler is None:
        return None
    try:
        step = OpExecutionContext.get()
        key, attempt = step.get_step_execution_context().step.key, step.retry_number + 1
        run_id, traceparent = step.run_id, step.run_tags.get(_TRACEPARENT)
    except DagsterError:
        # the function is called as what it is, in a test for instance
        return None
    execution_id = execution_id_of(_ENGINE, run_id)
    try:
        return module_context(execution_id, module_id_of(execution_id, key, attempt), traceparent, sampler=sampler)
    except Exception as error:  # noqa: BLE001 - a sampler of the user's own, which must not fail the step
        message = "the sampler raised for run %s; spans of its bodies do not nest"
        _LOG.write(_LOGGER, logging.ERROR, "sampler", message, run_id, error=error)
        return None
