"""An execution as an engine reports it, in a module that imports little: the tests' programs have it as well."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from constellation_otel.listener import ExecutionListener


class Boom(Exception):
    """What a module raises in these tests."""


BOOM = f"{Boom.__module__}.{Boom.__qualname__}"


def raised() -> Boom:
    try:
        raise Boom("too many words")
    except Boom as error:
        return error


def run(listener: ExecutionListener, error: BaseException | None = None) -> UUID:
    """One execution of the guide's pipeline, as an engine reports it."""
    execution_id, trim, word_count = uuid4(), uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, trim, "Trim")
    listener.on_module_complete(execution_id, trim, "Trim", 2.0)
    listener.on_module_start(execution_id, word_count, "WordCount")
    listener.on_module_failed(execution_id, word_count, "WordCount", error or raised())
    listener.on_execution_complete(execution_id, "my-pipeline", False, 15.0)
    return execution_id
