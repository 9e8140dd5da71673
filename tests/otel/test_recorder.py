"""Recorder: what the SDK's histogram records, without going the same way each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, SumAggregation, View

from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.otel._sdk_internals import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

DELTA = {Histogram: AggregationTemporality.DELTA}
AMOUNTS = (0.0, 0.25, 3.0, 40.0)
ATTRIBUTES = {"name": "trim", "outcome": "success"}


def points_of(reader: InMemoryMetricReader) -> list[Any]:
    """What a reader collects, without its times."""
    data = reader.get_metrics_data()
    if data is None:
        return []
    metrics = [it for of in data.resource_metrics for scope in of.scope_metrics for it in scope.metrics]
    return [
        {name: value for name, value in vars(point).items() if "time" not in name}
        for metric in metrics
        for point in metric.data.data_points
    ]


def by_recorder(histogram: Any) -> Callable[[float], None]:
    return Recorder(histogram, ATTRIBUTES).record


def by_histogram(histogram: Any) -> Callable[[float], None]:
    return lambda amount: histogram.record(amount, ATTRIBUTES)


@pytest.mark.parametrize(
    "views",
    [
        [],
        [View(instrument_name="h", attribute_keys={"name"})],
        [View(instrument_name="h", aggregation=SumAggregation())],
        [View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation())],
        [View(instrument_name="h", aggregation=DropAggregation())],
        [View(instrument_name="h", name="a"), View(instrument_name="h", name="b", attribute_keys=set())],
    ],
    ids=["none", "fewer attributes", "a sum", "exponential", "dropped", "two"],
)
def test_every_reader_and_view_gets_what_is_recorded(views: list[View]) -> None:
    """Also in each collection after the first, whether what they show is reset or not."""

    def collected(recording: Callable[[Any], Callable[[float], None]]) -> list[Any]:
        readers = [InMemoryMetricReader(), InMemoryMetricReader(DELTA)]  # type: ignore[arg-type] # the SDK's own keys
        provider = MeterProvider(readers, views=views, shutdown_on_exit=False)
        record = recording(provider.get_meter("m").create_histogram("h"))
        seen = []
        for _ in range(3):
            for amount in AMOUNTS:
                record(amount)
            seen += [points_of(reader) for reader in readers]
        provider.shutdown()
        return seen

    assert collected(by_recorder) == collected(by_histogram)


def test_a_provider_without_readers_or_without_all_is_left_in_peace() -> None:
    for provider in (MeterProvider(shutdown_on_exit=False), NoOpMeterProvider()):
        recorder = Recorder(provider.get_meter("m").create_histogram("h"), ATTRIBUTES)
        for amount in AMOUNTS:
            recorder.record(amount)


class Counting:
    """A histogram of somebody else's."""

    def __init__(self) -> None:
        self.recorded: list[float] = []

    def record(self, amount: float, attributes: object, context: object) -> None:
        self.recorded.append(amount)


def test_another_histogram_records_by_itself_every_time() -> None:
    histogram: Any = Counting()
    recorder = Recorder(histogram, ATTRIBUTES)
    for amount in AMOUNTS:
        recorder.record(amount)
    assert histogram.recorded == [*AMOUNTS]


def test_where_the_way_is_not_found_the_histogram_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a later SDK keys its sums in another way."""
    monkeypatch.setattr(internals, "_KEY_OF", lambda attributes: "another")
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    recorder = Recorder(provider.get_meter("m").create_histogram("h"), ATTRIBUTES)
    for amount in AMOUNTS:
        recorder.record(amount)
    assert [point["count"] for point in points_of(reader)] == [len(AMOUNTS)]
    provider.shutdown()


def test_an_instrument_that_is_switched_off_records_nothing() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    histogram: Any = provider.get_meter("m").create_histogram("h")
    is_on = True
    histogram._is_enabled = lambda: is_on
    recorder = Recorder(histogram, ATTRIBUTES)
    for amount in AMOUNTS:
        recorder.record(amount)
    is_on = False
    recorder.record(1.0)
    assert [point["count"] for point in points_of(reader)] == [len(AMOUNTS)]
    provider.shutdown()


@pytest.mark.skipif(not hasattr(MeterProvider, "add_metric_reader"), reason="this SDK adds no readers later")
def test_a_reader_that_is_added_later_gets_what_follows() -> None:
    provider: Any = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    recorder = Recorder(provider.get_meter("m").create_histogram("h"), ATTRIBUTES)
    recorder.record(1.0)
    later: MetricReader = InMemoryMetricReader()
    provider.add_metric_reader(later)
    recorder.record(2.0)
    recorder.record(3.0)
    assert [point["sum"] for point in points_of(later)] == [5.0]  # type: ignore[arg-type] # it is one
    provider.shutdown()
