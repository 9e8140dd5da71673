"""A module in another process: what is sent there, what runs there, and what comes back."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context

from constellation_otel._support.text import message_of
from constellation_otel.bodies import running_remotely
from constellation_otel.engine.outputs import awaited, is_awaitable
from constellation_otel.errors import DagError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from constellation_otel.bodies import BodyRecord
    from constellation_otel.engine.dag import Module

__all__ = ["FailedElsewhere", "failure_in", "picklable", "run_remotely"]

_RECORD: Final = "_constellation_body"


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
    ids: tuple[UUID, UUID],  # they make each call another one for executors that remember calls, as Dask's does
    name: str,
    records: bool,
) -> tuple[Any, float, BodyRecord | None]:
    """Runs a module in this process, under the trace context of the headers.

    Args:
        function: The module's function.
        is_async: Whether it is a coroutine function.
        arguments: By name.
        headers: The trace context.
        ids: The execution's, and the module's in it.
        name: The module's name.
        records: Whether its span records what its body sets.

    Returns:
        Its output, how long it took, in milliseconds, and what its body has set on its span.
    """
    execution_id, module_id = ids
    context = running_remotely(execution_id, module_id, name, propagate.extract(headers, context=Context()))
    body = None
    if records:
        from constellation_otel.bodies import recording  # noqa: PLC0415 - the SDK, only where it records

        body, context = recording(module_id, name, context)
    token = otel_context.attach(context)
    began = perf_counter()
    try:
        output = function(**arguments)
        if is_async or is_awaitable(output):
            output, error = asyncio.run(_outcome_of(output))
            if error is not None:
                raise error  # noqa: TRY301 - it ends like one that the function raises
        duration_ms = (perf_counter() - began) * 1000.0
        return output, duration_ms, None if body is None else body.finish()
    except BaseException as raised:  # noqa: BLE001 - raised below, where nothing is its context
        record = None if body is None else body.finish(raised)
        failure = _returnable(raised)
        if record is not None:
            failure = _with_record(failure, record)
    finally:
        otel_context.detach(token)
    raise failure


class FailedElsewhere(Exception):  # noqa: N818 - nobody meets it: it is unwrapped where it arrives
    """Brings back what the body of a module had set before it failed.

    Args:
        error: What it has failed with.
        record: What it had set.
    """

    def __init__(self, error: BaseException, record: BodyRecord) -> None:
        super().__init__(error, record)
        self.error = error
        self.record = record


def failure_in(error: BaseException) -> tuple[BaseException, BodyRecord | None]:
    """What a module has failed with elsewhere, and what its body had set there."""
    if isinstance(error, FailedElsewhere):
        # an executor may say there where it was raised
        error.error.__cause__ = error.error.__cause__ or error.__cause__
        return error.error, error.record
    record: BodyRecord | None = getattr(error, "__dict__", {}).pop(_RECORD, None)
    return error, record


def _with_record(error: BaseException, record: BodyRecord) -> BaseException:
    """An exception travels with its attributes, unless its class pickles it in another way."""
    with suppress(AttributeError, TypeError):
        error.__dict__[_RECORD] = record
    try:
        travelled = pickle.loads(pickle.dumps(error))  # noqa: S301 - just made here
    except (AttributeError, pickle.PicklingError):
        # Dask sends its class along
        return error
    return error if failure_in(travelled)[1] == record else FailedElsewhere(error, record)


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
