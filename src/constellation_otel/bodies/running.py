"""Which module's body a context is of: what its log records say. It needs nothing of the SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.context import Context

__all__ = ["RUNNING", "RunningModule", "Unrecorded", "name_module", "running_module", "running_remotely"]

RUNNING: Final = "constellation-module"
"""What a context knows its module by. Spans that a body makes replace the current one; this stays."""


class RunningModule(Protocol):
    """A module whose body runs in a context.

    Attributes:
        module_id: The module's id, as a number.
        module_name: The module's name; empty where it is not known.
    """

    module_id: int
    module_name: str

    @property
    def execution_id(self) -> UUID | None:
        """The execution's id, where it is known."""


class Unrecorded:
    """A module whose body sets nothing here: its execution is not sampled, or it is told of elsewhere.

    Args:
        execution_id: The execution.
        module_id: The module's id, as a number.
        module_name: The module's name; empty where it is not known.
    """

    __slots__ = ("execution_id", "module_id", "module_name")

    def __init__(self, execution_id: UUID | None, module_id: int, module_name: str = "") -> None:
        self.execution_id = execution_id
        self.module_id = module_id
        self.module_name = module_name


def running_module(context: Context | None = None) -> RunningModule | None:
    """The module whose body runs in a context, the current one where none is given; ``None`` outside of all bodies."""
    found: RunningModule | None = otel_context.get_value(RUNNING, context)  # type: ignore[assignment] # nobody else's key
    return found


def name_module(context: Context, module_id: UUID, module_name: str) -> None:
    """Says the name of the module whose body is to run in a context, where the context is that module's.

    Where a listener does not know an execution, it is still that of the module in whose body the execution was started.
    """
    running = running_module(context)
    if running is not None and running.module_id == module_id.int:
        running.module_name = module_name


def running_remotely(execution_id: UUID, module_id: UUID, module_name: str, context: Context) -> Context:
    """A context as that of a module's body in another process than the one that has submitted it."""
    return otel_context.set_value(RUNNING, Unrecorded(execution_id, module_id.int, module_name), context)
