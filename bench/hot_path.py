"""What a module's telemetry costs the thread that runs the module.

On one side ``on_module_start``, ``module_context`` and ``on_module_complete`` of OpenTelemetryListener, on
the other the telemetry by hand; OtlpListener's callbacks stand beside them. Measured is
the calling thread's CPU time, so that the work of other threads (the listener's worker,
the processors' exporters) does not count; what the loop costs is taken off all sides.
"""

from __future__ import annotations

import gc
import time
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.children import isolated
from bench.report import Figure, Row
from bench.telemetry import ByHand, Otlp, Sdk, SdkParts, Side, executions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from bench.endpoint import Endpoint
    from bench.telemetry import Execution

__all__ = ["ROW"]

_MODULES: Final = 4_000
_ROUNDS: Final = 11


def _thread_us(module: Callable[[UUID, str], None], execution: Execution) -> float:
    """Microseconds a module."""
    start = time.thread_time()
    for module_id, name in execution.modules:
        module(module_id, name)
    return (time.thread_time() - start) / len(execution.modules) * 1e6


def _nothing(_: UUID, __: str) -> None:
    return


def _rounds(endpoint: Endpoint) -> Iterator[tuple[float, ...]]:
    sides: list[Side] = [
        ByHand(SdkParts(endpoint)),
        Sdk(SdkParts(endpoint), has_bodies=True),
        Otlp(endpoint, has_bodies=True),
    ]
    for _ in range(_ROUNDS):
        took = []
        for side in sides:
            (execution,) = executions(1, _MODULES)
            gc.collect()
            loop = _thread_us(_nothing, execution)
            with side.execution(execution.execution_id) as module:
                took.append(_thread_us(module, execution) - loop)
            side.flush()
        yield tuple(took)
    for side in sides:
        side.close()


def _measure(endpoint: Endpoint) -> Sequence[Figure]:
    with isolated(_rounds, endpoint) as rounds:
        by_hand, sdk, otlp = (median(column) for column in zip(*rounds, strict=True))
    endpoint.check(spans=3 * _ROUNDS * (_MODULES + 1), recorded=_ROUNDS * (_MODULES + 1))
    return [
        Figure(
            name="callback on the hot path, a module",
            ours=f"{sdk:.2f} us",
            beside=f"{by_hand:.1f} us",
            value=sdk / by_hand,
            unit="1/n",
            required=1 / 80,
            aim=1 / 100,
            note=f"the callbacks of `OtlpListener` take {otlp:.2f} us, 1/{by_hand / otlp:.3g} of by hand",
        )
    ]


ROW: Final = Row(
    "hot-path",
    "CPU time of the thread that calls `on_module_start`, `module_context` and `on_module_complete` of"
    " `OpenTelemetryListener`, for a body that sets nothing, beside that of the thread that makes the same telemetry by"
    " hand.",
    _measure,
)
