"""Dagster: the context of a step's body, in whatever process that runs.

The spans of runs and steps come from the event log, by ``replay dagster:`` or ``bridge dagster:``;
see ``transports.dagster``. Their ids are computed from Dagster's own, and so they are known here
before there are such spans.
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from constellation_otel.errors import MissingExtraError
from constellation_otel.events import remote_parent
from constellation_otel.traces import decide, execution_id_of, module_id_of, span_id_of

try:
    from dagster import DagsterError, OpExecutionContext
except ModuleNotFoundError as error:
    if error.name != "dagster":
        raise
    raise MissingExtraError("dagster", "dagster") from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from uuid import UUID

__all__ = ["traced"]

_ENGINE: Final = "dagster"
_TRACEPARENT: Final = "traceparent"
_TRACESTATE: Final = "tracestate"

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
    """The context of the body of the step that Dagster runs here; ``None`` where it runs none."""
    try:
        step = OpExecutionContext.get()
        key, attempt = step.get_step_execution_context().step.key, step.retry_number + 1
        run_id, job_name, tags = step.run_id, step.job_name, step.run_tags
    except DagsterError:
        # the function is called as what it is, in a test for instance
        return None
    execution_id = execution_id_of(_ENGINE, run_id)
    parent = remote_parent(tags.get(_TRACEPARENT), tags.get(_TRACESTATE)) or Context()
    return _module_context(execution_id, module_id_of(execution_id, key, attempt), job_name, parent)


def _module_context(execution_id: UUID, module_id: UUID, dag_name: str, parent: Context) -> Context | None:
    sampler = getattr(trace.get_tracer_provider(), "sampler", None)
    if sampler is None:
        return None
    decision = decide(sampler, execution_id, dag_name, parent)
    return decision.context_of(span_id_of(execution_id, module_id), otel_context.get_current())
