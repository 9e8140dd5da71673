"""How the cost of an event grows: with what is open, and with the size of its execution.

OtlpListener, spans only: metrics would add the same to both sides and hide what grows.
CPU time of all threads, to acknowledged requests.
"""

from __future__ import annotations

import gc
import time
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from bench.children import NO_METRICS, isolated
from bench.report import Figure, Row
from bench.telemetry import DAG, Listened, executions, run
from constellation_otel import OtlpListener

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.endpoint import Endpoint

__all__ = ["ROWS"]

_FEW: Final = 10
_MANY: Final = 100_000
_ROOM: Final = 500_000
"""Of queues, and of open executions."""
_EXECUTIONS: Final = 300
_MODULES: Final = 10
"""Of an execution; as many are open at once where one has more."""
_LARGE: Final = 10_000
"""Modules of a large execution, and of all small ones of a round."""
_ROUNDS: Final = 9


def _beside_open(endpoint: Endpoint, number: int) -> Iterator[float]:
    """Microseconds an event of executions that start and end while others are open."""
    side = Listened(OtlpListener(endpoint.grpc_url, max_open=_ROOM, max_queue=_ROOM))
    for _ in range(number):
        side.listener.on_execution_start(uuid4(), DAG)
    side.flush()
    for _ in range(_ROUNDS):
        told = executions(_EXECUTIONS, _MODULES)
        gc.collect()
        start = time.process_time()
        run(side, told)
        side.flush()
        took = time.process_time() - start
        endpoint.check(spans=_EXECUTIONS * (_MODULES + 1))
        yield took / (_EXECUTIONS * (2 * _MODULES + 2)) * 1e6


def _open(endpoint: Endpoint) -> Sequence[Figure]:
    with (
        isolated(_beside_open, endpoint, _FEW, environment=NO_METRICS) as few,
        isolated(_beside_open, endpoint, _MANY, environment=NO_METRICS) as many,
    ):
        at_few, at_many = (median(column) for column in zip(*zip(few, many, strict=True), strict=True))
    return [
        Figure(
            name=f"growth: an event at {_MANY:,} open executions beside {_FEW}",
            ours=f"{at_many:.1f} us",
            beside=f"{at_few:.1f} us",
            value=at_many - at_few,
            unit="us",
            required=2.0,
            aim=1.0,
        )
    ]


def _cpu_us(side: Listened, number: int, modules: int) -> float:
    """Microseconds of executions whose modules start and end ten by ten."""
    told = executions(number, modules)
    started, completed = side.listener.on_module_start, side.listener.on_module_complete
    gc.collect()
    start = time.process_time()
    for execution_id, each in told:
        side.listener.on_execution_start(execution_id, DAG)
        for first in range(0, modules, _MODULES):
            wave = each[first : first + _MODULES]
            for module_id, name in wave:
                started(execution_id, module_id, name)
            for module_id, name in wave:
                completed(execution_id, module_id, name, 2.0)
        side.listener.on_execution_complete(execution_id, DAG, True, 10.0)
    side.flush()
    return (time.process_time() - start) * 1e6


def _by_size(endpoint: Endpoint) -> Iterator[tuple[float, float]]:
    """Microseconds an event of a module, in small executions and in a large one."""
    side = Listened(OtlpListener(endpoint.grpc_url))
    number = _LARGE // _MODULES
    _cpu_us(side, number, _MODULES)
    for _ in range(_ROUNDS):
        # what executions themselves cost
        empty = _cpu_us(side, number, 0)
        small = _cpu_us(side, number, _MODULES) - empty
        large = _cpu_us(side, 1, _LARGE) - empty / number
        yield small / (2 * _LARGE), large / (2 * _LARGE)


def _sizes(endpoint: Endpoint) -> Sequence[Figure]:
    with isolated(_by_size, endpoint, environment=NO_METRICS) as rounds:
        small, large = (median(column) for column in zip(*rounds, strict=True))
    number = _LARGE // _MODULES
    endpoint.check(spans=number + _LARGE + _ROUNDS * (number + number + _LARGE + 1 + _LARGE))
    return [
        Figure(
            name=f"growth: an event in an execution of {_LARGE:,} modules beside {_MODULES}",
            ours=f"{large:.1f} us",
            beside=f"{small:.1f} us",
            value=large / small,
            unit="ratio",
            required=1.3,
            aim=1.1,
        )
    ]


ROWS: Final = (
    Row(
        "growth-open",
        f"CPU time an event of `OtlpListener`, spans only, for executions of {_MODULES} modules that start and end"
        f" while {_MANY:,} others are open, beside the same while {_FEW} are, in two processes; `max_open` and"
        " `max_queue` are raised in both.",
        _open,
    ),
    Row(
        "growth-size",
        f"CPU time an event of a module of `OtlpListener`, spans only, in an execution of {_LARGE:,} modules, beside"
        f" executions of {_MODULES}; {_MODULES} modules are open at a time in both, and what executions without modules"
        " cost is taken off.",
        _sizes,
    ),
)
