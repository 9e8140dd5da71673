"""What a module's telemetry costs altogether: all threads, to acknowledged requests.

A round makes the telemetry of the same number of executions on both sides, in turns,
each with a listener or an SDK of its own that has connected before, and closes it:
spans and metrics are acknowledged inside of what is measured.
"""

from __future__ import annotations

import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.children import NO_METRICS, isolated
from bench.report import Figure, Row
from bench.telemetry import ByHand, Otlp, Sdk, SdkParts, executions, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.endpoint import Endpoint
    from bench.telemetry import Side

__all__ = ["ROWS"]

_EXECUTIONS: Final = 100
_MODULES: Final = 100
"""Of an execution."""
_ROUNDS: Final = 7


def _cpu_us(make: Callable[[], Side], endpoint: Endpoint, *, has_metrics: bool) -> float:
    """Microseconds of CPU time a module."""
    side = make()
    run(side, executions(1, _MODULES))
    side.flush()
    told = executions(_EXECUTIONS, _MODULES)
    gc.collect()
    start = time.process_time()
    run(side, told)
    side.close()
    took = time.process_time() - start
    spans = (_EXECUTIONS + 1) * (_MODULES + 1)
    endpoint.check(spans=spans, recorded=spans if has_metrics else 0)
    return took / (_EXECUTIONS * _MODULES) * 1e6


def _sdk_rounds(endpoint: Endpoint, has_on_start: bool) -> Iterator[tuple[float, float]]:
    parts = partial(SdkParts, endpoint, has_on_start=has_on_start)
    for _ in range(_ROUNDS):
        by_hand = _cpu_us(lambda: ByHand(parts()), endpoint, has_metrics=True)
        yield by_hand, _cpu_us(lambda: Sdk(parts()), endpoint, has_metrics=True)


def _otlp_rounds(endpoint: Endpoint, has_metrics: bool) -> Iterator[tuple[float, float]]:
    for _ in range(_ROUNDS):
        by_hand = _cpu_us(
            lambda: ByHand(SdkParts(endpoint, has_metrics=has_metrics)), endpoint, has_metrics=has_metrics
        )
        yield by_hand, _cpu_us(lambda: Otlp(endpoint), endpoint, has_metrics=has_metrics)


def _journal_rounds(endpoint: Endpoint) -> Iterator[tuple[float, float]]:
    for _ in range(_ROUNDS):
        by_hand = _cpu_us(lambda: ByHand(SdkParts(endpoint)), endpoint, has_metrics=True)
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "telemetry.db"
            yield by_hand, _cpu_us(partial(Otlp, endpoint, journal), endpoint, has_metrics=True)


def _figure(
    name: str,
    rounds: Callable[..., Iterator[tuple[float, float]]],
    *args: object,
    required: float | None = None,
    aim: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Figure:
    with isolated(rounds, *args, environment=environment) as values:
        by_hand, ours = (median(column) for column in zip(*values, strict=True))
    return Figure(
        name=name,
        ours=f"{ours:.1f} us",
        beside=f"{by_hand:.1f} us",
        value=ours / by_hand,
        unit="ratio",
        required=required,
        aim=aim,
    )


def _sdk(endpoint: Endpoint) -> Sequence[Figure]:
    return [_figure("OpenTelemetryListener, a module", _sdk_rounds, endpoint, False, required=0.7, aim=0.5)]


def _sdk_on_start(endpoint: Endpoint) -> Sequence[Figure]:
    name = "the same, a processor needs a real span"
    return [_figure(name, _sdk_rounds, endpoint, True, required=0.95, aim=0.85)]


def _otlp(endpoint: Endpoint) -> Sequence[Figure]:
    spans_only = "OtlpListener, a module, spans only"
    return [
        _figure("OtlpListener, a module", _otlp_rounds, endpoint, True, required=0.2),
        _figure(spans_only, _otlp_rounds, endpoint, False, aim=0.125, environment=NO_METRICS),
    ]


def _journal(endpoint: Endpoint) -> Sequence[Figure]:
    return [_figure("OtlpListener with a journal, a module", _journal_rounds, endpoint, required=0.4, aim=0.25)]


ROWS: Final = (
    Row(
        "sdk",
        "CPU time a module of `OpenTelemetryListener` over the application's SDK, beside by hand with an SDK that is"
        f" set up the same; {_EXECUTIONS} executions of {_MODULES} modules a round. The batch processor's queue holds"
        " 65,536 spans on both sides, since its usual 2,048 would drop some.",
        _sdk,
    ),
    Row(
        "sdk-on-start",
        "The same, where both SDKs have one more span processor, whose `on_start` sets an attribute.",
        _sdk_on_start,
    ),
    Row(
        "otlp",
        "CPU time a module of `OtlpListener(endpoint)`, beside by hand; then without metrics, both: with"
        " `OTEL_METRICS_EXPORTER=none`, and by hand without instruments.",
        _otlp,
    ),
    Row(
        "journal",
        "The same as the first of these, with `journal=` a new file in a temporary folder each time.",
        _journal,
    ),
)
