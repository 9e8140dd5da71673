"""What tests of the sender, and of what it asks, are put together from: batches, an assembly, time on order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from constellation_otel.delivery import Batch, Retry, TraceAssembly
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import Outbox, PassThrough
from constellation_otel.traces import Assembler, Sampling, decide, exported

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from constellation_otel.delivery import SpanObserver, Watermark
    from constellation_otel.delivery.receipt import Receipt
    from constellation_otel.events import Event
    from constellation_otel.traces import Span
    from constellation_otel.traces.assembler import Taken
    from deliveries import ListSink


class Clock:
    """Seconds that pass on order."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def batch(events: Sequence[Event], origin: Hashable = None, first: int = 0) -> Batch:
    return Batch(list(events), range(first, first + len(events)), origin)


def assembly(
    assembler: Callable[..., Assembler] = Assembler,
    *,
    sampling: Sampling | None = None,
    as_item: Callable[[Span], Any] | None = None,
    observer: SpanObserver | None = None,
    watermark: Watermark | None = None,
    tracks: bool = True,
    **options: Any,
) -> TraceAssembly[Any]:
    """An assembly of which every span is sent, unless it is told otherwise; ``options`` are the assembler's."""
    sampling = sampling or Sampling(partial(decide, ALWAYS_ON))

    def of_each(spans: Sequence[Span]) -> list[Any]:
        return [item for item in map(as_item, spans) if item is not None]  # type: ignore[arg-type] # there is one

    return TraceAssembly(
        assembler(sampling=sampling, **options),
        sampling,
        exported(with_events=True) if as_item is None else of_each,
        observer=observer,
        watermark=watermark,
        tracks=tracks,
    )


def raising(bad: Callable[[Event, int | None], bool], *, after: bool = False) -> type[Assembler]:
    """An assembler that raises for some events: before it takes them in, or after."""

    class Raising(Assembler):
        def take(
            self, events: Sequence[Event], times_ns: Sequence[int], positions: Sequence[int | None]
        ) -> Iterator[Taken]:
            for index, (event, now_ns, position) in enumerate(zip(events, times_ns, positions, strict=True)):
                is_bad = bad(event, position)
                if is_bad and not after:
                    yield None, index + 1, LookupError("odd")
                    continue
                for execution, _, emitted in super().take((event,), (now_ns,), (position,)):
                    yield execution, index + 1, LookupError("odd") if is_bad else emitted

    return Raising


def added(transform: Any, *batches: Batch, out: Outbox[Any] | None = None) -> Outbox[Any]:
    """What a transform puts out for batches."""
    out = out or Outbox()
    for each in batches:
        transform.add(each, out)
    return out


def names(out: Outbox[Any]) -> list[str]:
    return [item.name for item in out.items]


def safe(receipts: Iterable[Receipt]) -> None:
    """All that is made of their records is safe."""
    for receipt in receipts:
        receipt.pending = 0
        receipt.is_settled = True


def event_sender(sink: ListSink, clock: Clock | None = None, **options: Any) -> Sender[Any]:
    return _sender(sink, PassThrough(), clock, options)


def span_sender(sink: ListSink, clock: Clock | None = None, **options: Any) -> Sender[Any]:
    return _sender(sink, assembly(), clock, options)


def _sender(sink: ListSink, transform: Any, clock: Clock | None, options: dict[str, Any]) -> Sender[Any]:
    return Sender(sink, transform, clock=clock or Clock(), retry=Retry(jitter=lambda: 1.0), **options)


def settled(sender: Sender[Any]) -> list[int]:
    """The offsets of what was settled, as the sender's owner takes them."""
    receipts, sender.settled = sender.settled, []
    assert all(receipt.is_settled for receipt in receipts)
    return [position.offset for receipt in receipts for position in receipt.positions()]


def counted(sender: Sender[Any]) -> dict[str, int]:
    """The counters that are not zero; of those of the sink's events, and of what was sent."""
    counters = sender.counters
    assert counters.received == counters.delivered + counters.rejected + counters.revoked + counters.held
    assert min(counters.delivered, counters.rejected, counters.revoked, counters.held) >= 0
    assert counters.held == sender.held
    found = {name: getattr(counters, name) for name in ("received", "delivered", "rejected", "revoked", "held")}
    found |= {name: getattr(counters.sending, name) for name in counters.sending.__struct_fields__}
    return {name: count for name, count in found.items() if count}
