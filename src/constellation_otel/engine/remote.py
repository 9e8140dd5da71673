"""A module in another process: what is sent there, what runs there, and what comes back."""

from __future__ import annotations

import asyncio
import pickle
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context

from constellation_otel._support.text import message_of
from constellation_otel.engine.outputs import awaited, is_awaitable
from constellation_otel.errors import DagError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from constellation_otel.engine.dag import Module

__all__ = ["picklable", "run_remotely"]


def picklable(each: Module[..., Any]) -> Callable[..., Any]:
    """A module's function as a process pool can send it: itself, or the decorated one.

    Raises:
        DagError: Neither can be pickled.
    """
    for candidate in (each.function, each):
        try:
            pickle.dumps(candidate)
        except Exception as error:  # noqa: BLE001 - pickle raises all sorts
            reason = error
        else:
            return candidate
    message = (
        f"{each!r} cannot be sent to another process: {reason}; define its function at the top level of a Python"
        " module, or use a ThreadPoolExecutor"
    )
    raise DagError(message) from reason


def run_remotely(
    function: Callable[..., Any],
    is_async: bool,
    arguments: dict[str, Any],
    headers: dict[str, str],
    module_id: UUID,  # noqa: ARG001 - makes each call another one for executors that remember calls, as Dask's does
) -> tuple[Any, float]:
    """Runs a module in this process, under the trace context of the headers.

    Returns:
        Its output and how long it took, in milliseconds.
    """
    token = otel_context.attach(propagate.extract(headers, context=Context()))
    began = perf_counter()
    try:
        output = function(**arguments)
        if is_async or is_awaitable(output):
            output, error = asyncio.run(_outcome_of(output))
            if error is not None:
                raise error  # noqa: TRY301 - it ends like one that the function raises
        return output, (perf_counter() - began) * 1000.0
    except BaseException as raised:  # noqa: BLE001 - raised below, where nothing is its context
        failure = _returnable(raised)
    finally:
        otel_context.detach(token)
    raise failure


async def _outcome_of(returned: Any) -> tuple[Any, BaseException | None]:
    """The output or the error. A task hangs that raises an error whose attributes raise, so this returns it."""
    try:
        return await awaited(returned), None
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        return None, error


def _returnable(error: BaseException) -> BaseException:
    """The exception itself, or a RemoteError where it cannot be sent back.

    An exception that can be pickled and not unpickled, since its ``__init__`` does not take
    its ``args``, would break a process pool for good.
    """
    try:
        pickled = pickle.dumps(error)
    except (AttributeError, pickle.PicklingError):
        return error  # pickle does not find its class by its name; Dask sends such a class along
    except BaseException:  # noqa: BLE001 - what it holds cannot be pickled
        return _in_words(error)
    try:
        is_true = bool(pickle.loads(pickled))  # noqa: S301 - just made here
    except BaseException:  # noqa: BLE001 - whatever its class does
        is_true = False
    return error if is_true else _in_words(error)  # a process pool treats an exception that is false as none


def _in_words(error: BaseException) -> RemoteError:
    cls = type(error)
    return RemoteError(message_of(error), f"{cls.__module__}.{cls.__qualname__}")
