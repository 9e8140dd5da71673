"""Trace and span ids, computed from an execution's own ids.

The same execution is the same trace wherever it is seen: by a listener, by two
bridges, by a replay a year later. A log line can link to it before it exists.
Ids are hashes, not the UUIDs' own bytes: a version 4 UUID has fixed bits where
ratio samplers look, and they would keep all traces or none.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from uuid import UUID, uuid5

__all__ = [
    "RANDOM_TRACE_ID",
    "SpanIds",
    "anonymous_module_id",
    "attempt_id_of",
    "execution_id_of",
    "module_id_of",
    "span_id_of",
    "trace_id_of",
]

_TRACE: Final = b"constellation-otel/1/trace/"
_SPAN: Final = b"constellation-otel/1/span/"
_MODULE: Final = b"constellation-otel/1/module/"
_RUNS: Final = UUID("5b0c4f0e-6d0e-4f7c-9a37-0d1a54f2c6b8")
"""The namespace of execution ids that are made of an engine's run ids."""
RANDOM_TRACE_ID: Final = 0x02
"""The flag of W3C Trace Context level 2 for a trace id with 56 random bits; older OpenTelemetry has no name for it."""


def trace_id_of(execution_id: UUID) -> int:
    """The trace id of an execution whose caller had no span.

    Args:
        execution_id: The execution.

    Returns:
        128 bits, uniformly distributed, never zero: the W3C random flag may be set.
    """
    return int.from_bytes(blake2b(_TRACE + execution_id.bytes, digest_size=16).digest()) or 1


def span_id_of(execution_id: UUID, module_id: UUID | None = None) -> int:
    """The span id of an execution, or of a module in it.

    Args:
        execution_id: The execution.
        module_id: The module; the execution's own span where there is none.

    Returns:
        64 bits, never zero.
    """
    module = module_id.bytes if module_id is not None else b""
    return int.from_bytes(blake2b(_SPAN + execution_id.bytes + module, digest_size=8).digest()) or 1


class SpanIds:
    """The span ids of one execution, for the one who needs many of them.

    Args:
        execution_id: The execution.

    Attributes:
        execution_id: The same.
        execution: Its own span's id.
    """

    __slots__ = ("_modules", "execution", "execution_id")

    def __init__(self, execution_id: UUID) -> None:
        self.execution_id = execution_id
        self._modules = blake2b(_SPAN + execution_id.bytes, digest_size=8)
        self.execution = int.from_bytes(self._modules.digest()) or 1

    def of_module(self, key: int) -> int:
        """The same as :func:`span_id_of`, by the number of the module's id."""
        hashed = self._modules.copy()
        hashed.update(key.to_bytes(16))
        return int.from_bytes(hashed.digest()) or 1


def anonymous_module_id(execution_id: UUID, module_name: str, occurrence: int) -> UUID:
    """Stands in for a module's id where the records have none.

    Args:
        execution_id: The execution.
        module_name: The module's name.
        occurrence: 0 for the first of that name in the execution, and so on.
    """
    name = module_name.encode("utf-8", "surrogatepass")
    content = _MODULE + execution_id.bytes + occurrence.to_bytes(8) + name
    return UUID(bytes=blake2b(content, digest_size=16).digest())


def execution_id_of(engine: str, run_id: str) -> UUID:
    """The execution's id for a run of another engine.

    Args:
        engine: The engine's name, ``dagster`` for instance.
        run_id: What the engine calls the run. The text of a UUID is taken as it is; of anything
            else the id is a hash, with the engine's name.
    """
    try:
        return UUID(run_id)
    except ValueError:
        return uuid5(_RUNS, _encodable(f"{engine}:{run_id}"))


def module_id_of(execution_id: UUID, key: str, attempt: int = 1) -> UUID:
    """The id of a module, for one run of its body; of the embedded engine's, too, whose key is the module's name.

    Args:
        execution_id: The execution.
        key: What the engine calls the module, unique in its execution.
        attempt: Which run of its body, from 1.
    """
    return attempt_id_of(uuid5(execution_id, _encodable(key)), attempt)


def attempt_id_of(first_id: UUID, attempt: int) -> UUID:
    """The id of a module's body run.

    Args:
        first_id: The module's id, which is that of the first one.
        attempt: Which run of its body, from 1.
    """
    return first_id if attempt == 1 else uuid5(first_id, str(attempt))


def _encodable(text: str) -> str:
    """Text that a hash can be made of, lone surrogates included."""
    return text.encode("utf-8", "backslashreplace").decode()
