"""What the tests of AsyncListenerAdapter share."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING
from uuid import UUID

from opentelemetry import trace

from constellation_otel import RemoteError

if TYPE_CHECKING:
    from constellation_otel import ExecutionListener


E = UUID(int=1)
M = UUID(int=2)


def tell_everything(listener: ExecutionListener) -> None:
    listener.on_execution_start(E, "d")
    listener.on_module_start(E, M, "m")
    listener.on_module_complete(E, M, "m", 2.5)
    listener.on_module_failed(E, M, "m", ValueError("bad"))
    listener.on_execution_complete(E, "d", False, 3.5)
    listener.on_execution_cancelled(E, "d")


class Everything:
    """Every callback, async, and one thing that lives between callbacks."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.threads: set[str] = set()
        self.background: asyncio.Task[None] | None = None

    async def note(self, *call: object) -> None:
        await asyncio.sleep(0)
        self.threads.add(threading.current_thread().name)
        self.calls.append(call)

    async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        current = trace.get_current_span().get_span_context().span_id
        await self.note("execution_start", execution_id, dag_name, current)

    async def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        await self.note("module_start", execution_id, module_id, module_name)

    async def on_module_complete(
        self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float
    ) -> None:
        await self.note("module_complete", execution_id, module_id, module_name, duration_ms)

    async def on_module_failed(
        self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException
    ) -> None:
        assert isinstance(error, RemoteError)
        await self.note("module_failed", execution_id, module_id, module_name, error.type, error.message)

    async def on_execution_complete(
        self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
    ) -> None:
        await self.note("execution_complete", execution_id, dag_name, succeeded, duration_ms)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.calls.append(("execution_cancelled", execution_id, dag_name))


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "AsyncListenerAdapter"]
