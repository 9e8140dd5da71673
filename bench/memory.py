"""What an open module takes of memory.

OtlpListener is told that modules start, and its worker takes them. Their ids are made
meanwhile, and nobody else keeps them, so that they count. One process asks Python's
allocator (tracemalloc), another the system, which sees what Python does not give back.
"""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from resource import getpagesize
from typing import TYPE_CHECKING, Final

from bench.children import isolated
from bench.report import Figure, Row
from bench.telemetry import DAG, Otlp, executions, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.endpoint import Endpoint

__all__ = ["ROW"]

_EXECUTIONS: Final = 20
_MODULES: Final = 1_000
"""Of an execution."""


def _traced() -> int:
    return tracemalloc.get_traced_memory()[0]


def _resident() -> int:
    """Bytes of this process in memory; none where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * getpagesize() if statm.exists() else 0


def _open_modules(endpoint: Endpoint, is_traced: bool) -> Iterator[float]:
    """Bytes an open module."""
    side = Otlp(endpoint)
    run(side, executions(1, 100))
    side.flush()
    if is_traced:
        tracemalloc.start()
    used: Callable[[], int] = _traced if is_traced else _resident
    gc.collect()
    before = used()
    for _ in range(_EXECUTIONS):
        ((execution_id, modules),) = executions(1, _MODULES)
        side.listener.on_execution_start(execution_id, DAG)
        for module_id, name in modules:
            side.listener.on_module_start(execution_id, module_id, name)
    del execution_id, modules, module_id, name
    side.flush()
    gc.collect()
    yield (used() - before) / (_EXECUTIONS * _MODULES)


def _measure(endpoint: Endpoint) -> Sequence[Figure]:
    with isolated(_open_modules, endpoint, True) as traced, isolated(_open_modules, endpoint, False) as resident:
        python, system = next(traced), next(resident)
    return [
        Figure(
            name="an open module",
            ours=f"{python:.0f} B",
            beside="",
            value=python,
            unit="bytes",
            required=1024,
            note=f"resident memory grows by {system:.0f} B an open module",
        )
    ]


ROW: Final = Row(
    "memory",
    f"Bytes that Python allocates (`tracemalloc`) an open module, ids included, with {_EXECUTIONS * _MODULES:,} open"
    f" in {_EXECUTIONS} executions of one `OtlpListener`, whose worker has taken them.",
    _measure,
)
