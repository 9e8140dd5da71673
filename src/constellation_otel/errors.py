"""Every exception that this package raises, in one tree.

A message says what was wrong, with the value, and what to do next. Errors of a
pipeline's own code are not wrapped; only :class:`ExecutionFailedError` carries them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constellation_otel._support.text import message_of, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

__all__ = [
    "ConfigurationError",
    "ConstellationOtelError",
    "DagError",
    "DecodeError",
    "DeliveryError",
    "ExecutionCancelledError",
    "ExecutionFailedError",
    "GoneError",
    "JournalError",
    "ListenerDefinitionError",
    "MisconfiguredError",
    "MissingExtraError",
    "ReceiverError",
    "RefusedError",
    "RemoteError",
    "SourceError",
    "UnavailableError",
]


class ConstellationOtelError(Exception):
    """The base of every exception here.

    As text, an exception has no control characters, whoever wrote what it quotes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


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


class ConfigurationError(ConstellationOtelError, ValueError):
    """A URL, an option or a variable cannot be used; the message has no secret in it."""


class SourceError(ConstellationOtelError):
    """A source can never be read as it is: a table without the columns, a file that is not there."""


class JournalError(ConstellationOtelError):
    """A journal cannot be used: it is no journal, another version's, or another process has it."""


class DeliveryError(ConstellationOtelError):
    """A sink did not take what it was sent, or a source could not be read.

    Users see it in logs only: the bridge or the listener deals with it.
    """


class UnavailableError(DeliveryError):
    """Something could not be done now, and is tried again.

    Args:
        message: What went wrong, with the value, and without secrets.
        retry_after: Seconds that the endpoint asked to wait; ``None`` where it did not.
        delivered: Indices of the items that are safe nevertheless.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, delivered: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.delivered = delivered


class MisconfiguredError(UnavailableError):
    """An operator has to fix something: wrong credentials, a wrong path, a missing topic or table.

    Everything is held and tried again, since it will get fixed. Until then it is an ERROR
    in the log, and the health check says that the sink is not ready.
    """


class GoneError(UnavailableError):
    """Nothing will ever be taken again: the reader of a pipe has ended. A bridge ends then."""


class RefusedError(DeliveryError):
    """The endpoint refuses items for good, and does not say which of them: too large, malformed."""


class ReceiverError(ConstellationOtelError, RuntimeError):
    """The in-process OTLP receiver did not start, or did not get what was awaited."""


class RemoteError(Exception):
    """A module's failure that came over a wire, or that was queued.

    Not a :class:`ConstellationOtelError`: it stands for an error of the pipeline.

    Args:
        message: What the failed module said; ``None`` where the record had nothing.
        type: The name of the error's class; ``None`` where it is unknown.
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
        failure: What ended the execution where the engine's own code failed; ``None``
            where only modules did.
    """

    def __init__(
        self,
        execution_id: UUID,
        dag_name: str,
        errors: Mapping[str, BaseException],
        outputs: Mapping[str, Any],
        failure: BaseException | None = None,
    ) -> None:
        failed = list(errors.items())
        if failure is not None:
            failed.append(("the engine", failure))
        said = "; ".join(f"{name}: {_described(error)}" for name, error in failed)
        super().__init__(f"execution {execution_id} of {dag_name!r} failed: {said}")
        self.execution_id = execution_id
        self.dag_name = dag_name
        self.errors = errors
        self.outputs = outputs
        self.failure = failure
        self.__cause__ = failure

    def __str__(self) -> str:
        # the modules' own errors may have several lines
        return printable(Exception.__str__(self), keep="\n\t")

    def __reduce__(self) -> tuple[type[ExecutionFailedError], tuple[Any, ...]]:
        args = (self.execution_id, self.dag_name, dict(self.errors), dict(self.outputs), self.failure)
        return type(self), args


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


def _described(error: BaseException) -> str:
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
