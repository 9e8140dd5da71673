"""Every exception that this package raises, in one tree.

A message says what was wrong, with the value, and what to do next. Errors that
a pipeline's own code raised are never wrapped here but for
:class:`ExecutionFailedError`, which carries them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

__all__ = [
    "ConstellationOtelError",
    "DagError",
    "DecodeError",
    "ExecutionCancelledError",
    "ExecutionFailedError",
    "ListenerDefinitionError",
    "MissingExtraError",
    "ReceiverError",
    "RemoteError",
]


class ConstellationOtelError(Exception):
    """The base of all of them."""


class ListenerDefinitionError(ConstellationOtelError, TypeError):
    """A listener class has a callback that no engine would ever call.

    Raised when the class is made: a camelCase or misspelt callback, or an
    ``async def`` one, would otherwise be silent for ever.
    """


class DagError(ConstellationOtelError, ValueError):
    """A DAG cannot be built, or cannot be run with the inputs given."""


class DecodeError(ConstellationOtelError, ValueError):
    """A record from a wire cannot be read as an event."""


class MissingExtraError(ConstellationOtelError, ImportError):
    """An optional library is not installed.

    Args:
        library: The distribution that is missing.
        extra: The extra of this package that brings it.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed; run: pip install 'constellation-otel[{extra}]'",
            name=library,
        )
        self.library = library
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.library, self.extra)


class ReceiverError(ConstellationOtelError, RuntimeError):
    """The in-process OTLP receiver did not start, or did not get what was awaited."""


class RemoteError(Exception):
    """A module's failure that came over a wire, or that was queued.

    Not a :class:`ConstellationOtelError`: it stands for an error of the pipeline.

    Args:
        message: What the failed module said; ``None`` where the record had nothing.
        type: The class name on the far side; ``None`` where it is unknown.
    """

    def __init__(self, message: str | None, type: str | None = None) -> None:  # noqa: A002 - the field's name on the wire
        super().__init__(message if message is not None else "")
        self.message = message
        self.type = type

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str | None, str | None]]:
        return type(self), (self.message, self.type)


class ExecutionFailedError(ConstellationOtelError):
    """An execution failed.

    Attributes:
        execution_id: The execution.
        dag_name: Its DAG.
        errors: The exception of each module that failed, by module name, in the
            order in which they failed.
        outputs: The outputs of the modules that did complete, by module name.
    """

    def __init__(
        self,
        execution_id: UUID,
        dag_name: str,
        errors: Mapping[str, BaseException],
        outputs: Mapping[str, Any],
    ) -> None:
        said = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in errors.items())
        super().__init__(f"execution {execution_id} of {dag_name!r} failed: {said}")
        self.execution_id = execution_id
        self.dag_name = dag_name
        self.errors = errors
        self.outputs = outputs

    def __reduce__(self) -> tuple[type[ExecutionFailedError], tuple[Any, ...]]:
        return type(self), (self.execution_id, self.dag_name, dict(self.errors), dict(self.outputs))


class ExecutionCancelledError(ConstellationOtelError):
    """An execution was cancelled before it had ended.

    Attributes:
        execution_id: The execution.
        dag_name: Its DAG.
        outputs: The outputs of the modules that had completed, by module name.
    """

    def __init__(self, execution_id: UUID, dag_name: str, outputs: Mapping[str, Any]) -> None:
        super().__init__(f"execution {execution_id} of {dag_name!r} was cancelled")
        self.execution_id = execution_id
        self.dag_name = dag_name
        self.outputs = outputs

    def __reduce__(self) -> tuple[type[ExecutionCancelledError], tuple[Any, ...]]:
        return type(self), (self.execution_id, self.dag_name, dict(self.outputs))
