"""The instruments of a meter provider, shared by the listeners that use it."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from constellation_otel.otel.metrics import Instruments
from constellation_otel.traces import NOT_TRACED, decide
from stories import EXECUTION
from support import DEADLINE
from telemetry import points_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Listener:
    """Has one execution and two modules open, and does something whenever it is read."""

    def __init__(self, when_read: Callable[[], object] = lambda: None) -> None:
        self.when_read = when_read

    @property
    def open_executions(self) -> int:
        self.when_read()
        return 1

    @property
    def open_modules(self) -> int:
        self.when_read()
        return 2


@pytest.fixture
def metrics() -> Iterator[tuple[InMemoryMetricReader, Instruments]]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments.of(provider)
    assert instruments is not None
    yield reader, instruments
    provider.shutdown()


def active(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.endswith(".active")
        for point in metric.data.data_points
    }


def test_a_listener_that_is_made_during_a_reading_counts_later(
    metrics: tuple[InMemoryMetricReader, Instruments], caplog: pytest.LogCaptureFixture
) -> None:
    reader, instruments = metrics
    kept: list[Listener] = []

    def make_another() -> None:
        kept.append(Listener())
        instruments.observe(kept[-1])

    for _ in range(2):
        kept.append(Listener(make_another))
        instruments.observe(kept[-1])
    # the modules are read after the executions, which made two
    assert active(reader) == {"constellation.execution.active": 2, "constellation.module.active": 8}
    assert caplog.messages == []


def test_a_listener_that_is_gone_during_a_reading_is_not_missed(
    metrics: tuple[InMemoryMetricReader, Instruments], caplog: pytest.LogCaptureFixture
) -> None:
    reader, instruments = metrics
    kept = [Listener() for _ in range(10)]

    def forget() -> None:
        kept.clear()
        gc.collect()

    reading = Listener(forget)
    for listener in (*kept, reading):
        instruments.observe(listener)
    del listener
    active(reader)
    assert active(reader) == {"constellation.execution.active": 1, "constellation.module.active": 2}
    assert caplog.messages == []


def test_a_listener_that_is_observed_twice_counts_once(metrics: tuple[InMemoryMetricReader, Instruments]) -> None:
    reader, instruments = metrics
    listener = Listener()
    for _ in range(2):
        instruments.observe(listener)
    assert active(reader) == {"constellation.execution.active": 1, "constellation.module.active": 2}
    del listener
    gc.collect()
    assert active(reader) == {"constellation.execution.active": 0, "constellation.module.active": 0}


def test_threads_may_make_listeners_while_another_one_reads(
    metrics: tuple[InMemoryMetricReader, Instruments], caplog: pytest.LogCaptureFixture
) -> None:
    reader, instruments = metrics
    kept: list[Listener] = []
    together = threading.Barrier(3)

    def make() -> None:
        together.wait(DEADLINE)
        for _ in range(1_000):
            # not kept[-1], which may be the other thread's
            listener = Listener()
            kept.append(listener)
            instruments.observe(listener)

    threads = [threading.Thread(target=make) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        together.wait(DEADLINE)
        while any(thread.is_alive() for thread in threads):
            active(reader)
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(DEADLINE)
    assert active(reader) == {"constellation.execution.active": 2_000, "constellation.module.active": 4_000}
    assert caplog.messages == []


def durations(reader: InMemoryMetricReader) -> list[Any]:
    return points_of(reader, "constellation.execution.duration")


def test_one_exemplar_a_second_points_at_the_first_of_a_kind(
    metrics: tuple[InMemoryMetricReader, Instruments],
) -> None:
    """One for each bucket; a span that is not recorded has none."""
    reader, instruments = metrics
    for number, (length_ns, sampler) in enumerate(
        ((2_000_000, ALWAYS_OFF), (2_000_000, ALWAYS_ON), (3_000_000, ALWAYS_ON), (2_000_000_000, ALWAYS_ON))
    ):
        execution_id = UUID(int=number)
        span = replace(EXECUTION, span_id=number + 1, duration_ns=length_ns)
        instruments.record(span, decide(sampler, execution_id, "d", Context()))
    (point,) = durations(reader)
    assert point.count == 4
    # the buckets up to 5 ms, and up to 2.5 s
    assert sorted(exemplar.span_id for exemplar in point.exemplars) == [2, 4]


def test_a_later_attempt_is_counted_as_such_up_to_ten(metrics: tuple[InMemoryMetricReader, Instruments]) -> None:
    """Each number is a series; what was skipped has no duration."""
    reader, instruments = metrics
    for attempt in (None, 2, 10, 11):
        more = {} if attempt is None else {"constellation.module.attempt": attempt}
        instruments.record(replace(EXECUTION, attributes=EXECUTION.attributes | more), NOT_TRACED)
    instruments.record(replace(EXECUTION, duration_ns=None), NOT_TRACED)
    counts = {(point.attributes or {}).get("constellation.module.attempt"): point.count for point in durations(reader)}
    assert counts == {None: 1, "2": 1, "10": 2}


def test_durations_of_any_number_of_kinds_take_bounded_memory(
    metrics: tuple[InMemoryMetricReader, Instruments], caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond 2,000 the SDK counts them together."""
    reader, instruments = metrics
    for number in range(5_000):
        attributes = EXECUTION.attributes | {"constellation.dag.name": f"dag-{number}"}
        instruments.record(replace(EXECUTION, attributes=attributes), NOT_TRACED)
    assert len(instruments._kinds) < 4_097
    assert sum(point.count for point in durations(reader)) == 5_000


class ReadMeanwhile(MeterProvider):
    """Is read while a second observable instrument is being made, as its reader's thread may at any moment."""

    reader = InMemoryMetricReader()

    def __init__(self) -> None:
        super().__init__([self.reader], shutdown_on_exit=False)

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        meter = super().get_meter(*args, **kwargs)
        make = meter.create_observable_up_down_counter

        def make_while_it_is_read(*args: Any, **kwargs: Any) -> Any:
            reading = threading.Thread(target=self.reader.get_metrics_data, daemon=True)
            reading.start()
            reading.join(DEADLINE)
            assert not reading.is_alive(), "the reader waits for who makes instruments, who waits for the reader"
            return make(*args, **kwargs)

        meter.create_observable_up_down_counter = make_while_it_is_read  # type: ignore[method-assign]
        return meter


def test_metrics_may_be_read_while_instruments_are_made() -> None:
    provider = ReadMeanwhile()
    assert Instruments.of(provider) is not None
    provider.shutdown()
