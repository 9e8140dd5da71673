"""What telemetry adds to pipelines that really run, in elapsed time.

The embedded engine runs pipelines of modules that sleep for a millisecond, on eight
threads: without telemetry, with each listener, and with bodies that are instrumented
by hand. Measured is the time from the first ``run()`` until spans and metrics are
acknowledged; what is compared is what each adds to the run without telemetry of the
same round.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from bench.children import isolated
from bench.report import Figure, Row
from bench.telemetry import DAG, ByHand, Otlp, Sdk, SdkParts
from constellation_otel import Constellation, Dag, ExecutionListener, module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from bench.endpoint import Endpoint

__all__ = ["ROW"]

_PIPELINES: Final = 20
_MODULES: Final = 1_000
_THREADS: Final = 8
_MODULE_S: Final = 0.001
_ROUNDS: Final = 7
_SIDES: Final = ("without telemetry", "by hand", "OtlpListener", "OpenTelemetryListener")


def _body() -> float:
    start = time.perf_counter()
    time.sleep(_MODULE_S)
    return time.perf_counter() - start


def _dag(wrapped: Callable[[UUID, str], Callable[[], float]]) -> Dag:
    names = [f"module-{number}" for number in range(_MODULES)]
    return Dag(DAG, [module(wrapped(uuid4(), name), name=name) for name in names])


def _plain(_: UUID, __: str) -> Callable[[], float]:
    def body() -> float:
        return _body()

    return body


def _elapsed_s(dag: Dag, listener: ExecutionListener, finish: Callable[[], None]) -> float:
    gc.collect()
    with ThreadPoolExecutor(_THREADS) as executor, Constellation(listener, executor) as engine:
        start = time.perf_counter()
        for _ in range(_PIPELINES):
            engine.run(dag, {})
        finish()
        return time.perf_counter() - start


def _by_hand_s(endpoint: Endpoint) -> float:
    hand = ByHand(SdkParts(endpoint))
    execution_id = uuid4()

    def instrumented(module_id: UUID, name: str) -> Callable[[], float]:
        def body() -> float:
            hand.module(execution_id, module_id, name, _body)
            return 0.0

        return body

    dag = _dag(instrumented)
    gc.collect()
    with ThreadPoolExecutor(_THREADS) as executor, Constellation(executor=executor) as engine:
        start = time.perf_counter()
        for _ in range(_PIPELINES):
            # its modules find the span in the caller's context, which the engine brings them
            with hand.execution(execution_id):
                engine.run(dag, {})
        hand.close()
        return time.perf_counter() - start


def _rounds(endpoint: Endpoint) -> Iterator[tuple[float, ...]]:
    dag = _dag(_plain)
    spans = _PIPELINES * (_MODULES + 1)
    for _ in range(_ROUNDS):
        took = [_elapsed_s(dag, ExecutionListener.noop, lambda: None), _by_hand_s(endpoint)]
        endpoint.check(spans=spans, recorded=spans)
        for make in (lambda: Otlp(endpoint), lambda: Sdk(SdkParts(endpoint))):
            side = make()
            took.append(_elapsed_s(dag, side.listener, side.close))
            endpoint.check(spans=spans, recorded=spans)
        yield tuple(took)


def _measure(endpoint: Endpoint) -> Sequence[Figure]:
    with isolated(_rounds, endpoint) as values:
        rounds = list(values)
    bare = [first for first, *_ in rounds]
    added = {side: [it[number] - it[0] for it in rounds] for number, side in enumerate(_SIDES) if number}
    # how far runs that are the same lie apart
    noise = median(abs(it - median(bare)) for it in bare)
    by_hand = median(added["by hand"])
    figures = []
    for side, required, aim in (("OtlpListener", 0.3, 0.15), ("OpenTelemetryListener", 0.8, 0.5)):
        ours = median(added[side])
        low, high = min(added[side]), max(added[side])
        note = (
            f"{_PIPELINES} pipelines take {median(bare):.2f} s without telemetry, give or take {noise:.2f} s;"
            f" added in single rounds: {low:.2f} to {high:.2f} s, by hand"
            f" {min(added['by hand']):.2f} to {max(added['by hand']):.2f} s"
        )
        if ours < 2 * noise or by_hand < 2 * noise:
            note += "; what was added is within the noise, so the ratio says little"
        figures.append(
            Figure(
                name=f"{_PIPELINES} pipelines of {_MODULES:,} modules, what {side} adds",
                ours=f"{ours:.2f} s",
                beside=f"{by_hand:.2f} s",
                value=ours / by_hand,
                unit="ratio",
                required=required,
                aim=aim,
                note=note,
            )
        )
    return figures


ROW: Final = Row(
    "pipelines",
    f"Elapsed time of {_PIPELINES} pipelines of {_MODULES:,} modules of 1 ms on {_THREADS} threads, from the first"
    " `run()` until everything is acknowledged: what each listener adds to the same without telemetry, beside what"
    " instrumenting the modules by hand adds.",
    _measure,
)
