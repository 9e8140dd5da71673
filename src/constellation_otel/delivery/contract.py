"""What a source gives and what a sink takes: the contract between the transports and whatever joins them.

A transport is one class on either side of it, without threads of its own unless
its protocol needs one: waiting, retrying, batching, counting and acknowledging
are done once, for all of them, in ``sender`` and ``bridge``. A class that has only
the methods without a default works as well as one that inherits from these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from msgspec import Struct, field

from constellation_otel.errors import DecodeError
from constellation_otel.events import CALLBACK_EVENTS, Event, ModuleDescribed, Reading, is_valid, shown, validated

if TYPE_CHECKING:
    from constellation_otel.traces import Decision, Span

__all__ = [
    "AnySource",
    "Batch",
    "BatchBuilder",
    "Forwarding",
    "Position",
    "Record",
    "Rejection",
    "Restarted",
    "Revoked",
    "Sink",
    "Source",
    "SourceItem",
    "SpanObserver",
    "Store",
    "Unreadable",
    "as_source",
    "batches_of",
    "item_of",
]

T_contra = TypeVar("T_contra", contravariant=True)
"""Event or Span."""


class Position(NamedTuple):
    """Where a source has a record.

    Attributes:
        origin: The part of the source that is read and acknowledged by itself: a partition
            of a Kafka topic, say; ``None`` where the source has one part only.
        offset: Where in that part: a Kafka offset, a table's id, a line's number. Unique in
            its part, and ascending in the order in which records come.
    """

    origin: Hashable
    offset: int


class Record(Struct, frozen=True):
    """An event that a source has read.

    Attributes:
        event: The event.
        position: Where the source has it.
        corrected: What of the record could not be read and was left out, a text each that
            begins with the field's name; counted and logged by the reader of the source.
    """

    event: Event
    position: Position
    corrected: tuple[str, ...] = ()


class Batch(Struct):
    """Events from one part of a source, in order: the unit in which events travel to the sinks.

    Attributes:
        events: They were :func:`~constellation_otel.events.validated`.
        offsets: Where that part has them, one for each.
        origin: The part, as in :class:`Position`.
        corrected: What of them could not be read and was left out, with the offset.
    """

    events: list[Event]
    offsets: Sequence[int]
    origin: Hashable = None
    corrected: list[tuple[int, str]] = field(default_factory=list)


class Unreadable(Struct, frozen=True):
    """What a source has read and cannot understand.

    The reader of the source counts it, logs it with its position, and writes it to
    the dead-letter file where there is one. It is acknowledged as a record is.

    Attributes:
        data: What was read, as it came; a source may cut what is very long.
        reason: Why it is not an event, as :class:`~constellation_otel.DecodeError` says it.
        position: Where the source has it.
    """

    data: bytes
    reason: str
    position: Position


class Revoked(Struct, frozen=True):
    """A part of a source has been taken away: another reader has it from now on.

    What is open of it is dropped without export, since the next owner reads it again.

    Attributes:
        origin: As in :class:`Position`.
    """

    origin: Hashable


class Restarted(Struct, frozen=True):
    """What produced the records was restarted: executions that are open will never end.

    Those of which every record has an earlier position in the same part are abandoned. A
    journal keeps it among its events, in order, until every sink has the spans.

    Attributes:
        position: A position of its own, as if it were a record; it is acknowledged likewise.
    """

    position: Position


SourceItem: TypeAlias = Record | Batch | Unreadable | Revoked | Restarted
"""What :meth:`Source.read` gives; the sources of this package gather their records in batches."""


class AnySource(Protocol):
    """What a source needs to have. One of a user's own may have no more than this; see :class:`Source` for each."""

    @property
    def name(self) -> str: ...

    @property
    def is_ordered(self) -> bool: ...

    @property
    def is_durable(self) -> bool: ...

    @property
    def has_ended(self) -> bool: ...

    def read(self, timeout: float) -> Sequence[SourceItem]: ...

    def acknowledge(self, positions: Sequence[Position]) -> None: ...

    def close(self) -> None: ...


class Source:
    """Where events come from. All calls come from one thread, but for :meth:`close`.

    A subclass has :attr:`name`, :meth:`read` and :meth:`close`, and overrides the defaults that do not fit it.
    One whose events do not say which engine they are of, and are all of one, has its name as ``engine``.
    """

    @property
    def name(self) -> str:
        """Which source it is, for logs: its URL without secrets."""
        raise NotImplementedError

    @property
    def is_ordered(self) -> bool:
        """Whether the events of one execution come in the order in which they happened."""
        return False

    @property
    def is_durable(self) -> bool:
        """Whether what was read and not acknowledged comes again after a restart.

        Such a source is read no faster than its sinks take; from one that is not, what
        finds no room is dropped and counted.
        """
        return False

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`read` has given everything that there will ever be."""
        return False

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads what is there, at most some hundred items.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The items in order; empty where nothing came in time.

        Raises:
            UnavailableError: The source cannot be read now; reading it again later may
                succeed. The reader waits between tries, growing longer.
            SourceError: It can never be read as it is: a table that is not an audit table, a
                file that is not there.
        """
        raise NotImplementedError

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says that these records are safe in every sink.

        They come in any order. A source that commits a position commits no further than
        the first that is missing here.

        Raises:
            UnavailableError: It could not be written down now. It is called again with the
                same positions, and newer ones, until it succeeds or the reader ends; then
                the same records are read again after a restart.
        """

    def close(self) -> None:
        """Releases connections and files, and ends a :meth:`read` that waits; within a few seconds."""
        raise NotImplementedError

    @property
    def wants_acknowledgements(self) -> bool:
        """Whether it does anything in :meth:`acknowledge`."""
        return type(self).acknowledge is not Source.acknowledge

    @property
    def last_error(self) -> str | None:
        """Why it gives nothing at the moment, or cannot write acknowledgements; ``None`` where it works."""
        return None

    @property
    def failed_acknowledgements(self) -> int:
        """How often acknowledgements could not be written, where that is found out later."""
        return 0

    @property
    def dropped(self) -> int:
        """Events that it had no room for."""
        return 0

    @property
    def gaps(self) -> int:
        """How often it was away, so that what was sent meanwhile is lost; 0 of one that gives that later."""
        return 0

    @property
    def fraction_read(self) -> float | None:
        """How much was read, from 0 to 1, for a progress bar; ``None`` where that is unknown."""
        return None

    def keep_alive(self) -> None:
        """Called every few seconds while it is not read since its sinks take no more."""


class Forwarding(Source):
    """Gives what another source gives; one of a user's own has only what is needed, and of the rest what it likes."""

    def __init__(self, source: AnySource) -> None:
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def is_ordered(self) -> bool:
        return self._source.is_ordered

    @property
    def is_durable(self) -> bool:
        return self._source.is_durable

    @property
    def has_ended(self) -> bool:
        return self._source.has_ended

    def read(self, timeout: float) -> Sequence[SourceItem]:
        return self._source.read(timeout)

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self._source.acknowledge(positions)

    def close(self) -> None:
        self._source.close()

    @property
    def wants_acknowledgements(self) -> bool:
        return bool(getattr(self._source, "wants_acknowledgements", True))

    @property
    def last_error(self) -> str | None:
        error: str | None = getattr(self._source, "last_error", None)
        return error

    @property
    def failed_acknowledgements(self) -> int:
        return int(getattr(self._source, "failed_acknowledgements", 0))

    @property
    def dropped(self) -> int:
        return int(getattr(self._source, "dropped", 0))

    @property
    def gaps(self) -> int:
        return int(getattr(self._source, "gaps", 0))

    @property
    def fraction_read(self) -> float | None:
        fraction: float | None = getattr(self._source, "fraction_read", None)
        return fraction

    def keep_alive(self) -> None:
        keep_alive: Callable[[], None] | None = getattr(self._source, "keep_alive", None)
        if keep_alive is not None:
            keep_alive()


def as_source(source: AnySource) -> Source:
    """A source with all that a :class:`Source` has; one of a user's own may have the needed methods only."""
    return source if isinstance(source, Source) else Forwarding(source)


class Rejection(Struct, frozen=True):
    """What a sink's endpoint refuses for good.

    Attributes:
        index: Which of the items that were sent; ``None`` where the endpoint says only how many.
        count: How many it is about; 1 where ``index`` is given.
        reason: What the endpoint said.
    """

    index: int | None
    count: int
    reason: str


class Sink(Protocol[T_contra]):
    """Where events, or finished spans, go. All calls come from one thread.

    A subclass has :attr:`name` and :meth:`send`, and overrides the defaults that do not fit it. A
    class that has all of these need not inherit from this. One that takes events gets the six that
    callbacks become; with an attribute ``takes_details`` that is true, it also gets ``ModuleDescribed``.
    """

    @property
    def name(self) -> str:
        """What kind it is, in a word: ``kafka``, ``sql``, ``otlp``. A journal knows its sinks by it."""
        raise NotImplementedError

    @property
    def takes(self) -> Literal["events", "spans"]:
        """What :meth:`send` is called with."""
        return "events"

    @property
    def max_batch(self) -> int:
        """Items in one call of :meth:`send`, at most."""
        return 512

    def send(self, items: Sequence[T_contra], timeout: float) -> Sequence[Rejection]:
        """Delivers items; when this returns, all but the rejected ones are safe there.

        Args:
            items: One or more. They may have been sent before: after a crash, or when an
                answer was lost. The sink sees to it that this does no harm, where its
                protocol can.
            timeout: Seconds; this returns or raises within them.

        Returns:
            What the endpoint refuses for good.

        Raises:
            UnavailableError: They are to be sent again, later; ``delivered`` says which are
                safe already. That includes what will get fixed: wrong credentials, a topic
                that is not there (:class:`~constellation_otel.errors.MisconfiguredError`).
            RefusedError: The endpoint refuses these items together and does not say which
                of them it is about. They are sent again in halves.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Releases connections and files; within a few seconds."""
        return


def kinds_for(sink: object) -> tuple[type[Event], ...]:
    """The kinds of events that a sink takes which takes events."""
    return (*CALLBACK_EVENTS, ModuleDescribed) if getattr(sink, "takes_details", False) else CALLBACK_EVENTS


class Store(Protocol):
    """What keeps events on disk until sinks have them: the journal."""

    def append(self, events: Sequence[Event | None]) -> int:
        """Keeps events; when this returns they survive the process. From one thread only.

        ``None`` stands for a :class:`Restarted`, which gets a position as an event does.

        Returns:
            How many were taken, the first ones: fewer than all where it is full.

        Raises:
            UnavailableError: It cannot be written now; none was taken.
        """

    def read(self, sink: str, after: int, limit: int) -> Sequence[SourceItem]:
        """What a sink has not acknowledged, behind an offset, in order; at most so many records.

        Raises:
            UnavailableError: It cannot be read now.
        """

    def acknowledge(self, sink: str, positions: Sequence[Position]) -> None:
        """Says that a sink has these; what every sink has is deleted.

        Raises:
            UnavailableError: It cannot be written now.
        """

    def held(self, sink: str) -> int:
        """How many events a sink has not acknowledged."""

    def finish_by(self, deadline: float) -> None:
        """Has no call wait any longer than until then, in seconds of :func:`time.monotonic`; from any thread."""

    def close(self) -> None:
        """Releases the file; never raises, and does not wait for a call that is being made by another thread."""


class SpanObserver(Protocol):
    """What looks at spans and counters beside the sinks: metrics and logs."""

    @property
    def with_events(self) -> bool:
        """Whether a span's events stay on it."""

    def observe(self, span: Span, decision: Decision) -> None:
        """Takes a finished span, and what was decided on its execution."""

    def count(self, gained: Mapping[str, int]) -> None:
        """Takes how the counters have grown, by their names."""


def item_of(read: Callable[[bytes | str], Reading], data: bytes | str, position: Position) -> Record | Unreadable:
    """What a source gives for a record of one of the dialects.

    Args:
        read: The dialect: ``read_json`` or ``read_frame`` of :mod:`constellation_otel.events`.
        data: The record.
        position: Where the source has it.
    """
    try:
        event, corrected = read(data)
    except DecodeError as error:
        kept = data if isinstance(data, bytes) else data.encode(errors="surrogatepass")
        return Unreadable(kept, str(error), position)
    return Record(event, position, corrected)


class BatchBuilder:
    """Gathers what a source reads in batches, in order, and validates every event: nothing behind it does so again.

    Args:
        max_data: Bytes that are kept of a record that cannot be read; all of it where it is ``None``.

    Attributes:
        items: What has been gathered. A batch ends where a record is of another part, or is no event.
    """

    def __init__(self, max_data: int | None = None) -> None:
        self.items: list[Batch | Unreadable | Revoked | Restarted] = []
        self._max_data = max_data
        self._batch: Batch | None = None
        self._offsets: list[int] = []

    def decode(self, read: Callable[[bytes], Reading], data: bytes, offset: int, origin: Hashable = None) -> None:
        """Adds a record in one of the dialects; one that is no event is :class:`Unreadable`.

        Args:
            read: The dialect: ``read_json`` or ``read_frame`` of :mod:`constellation_otel.events`.
            data: The record.
            offset: Where in the part the source has it.
            origin: The part, as in :class:`Position`.
        """
        try:
            event, corrected = read(data)
        except DecodeError as error:
            self.put(Unreadable(data[: self._max_data], str(error), Position(origin, offset)))
        else:
            self.add(event, offset, origin, corrected)

    def add(self, event: Event, offset: int, origin: Hashable = None, corrected: Sequence[str] = ()) -> None:
        """Adds an event; one that no sink could take is :class:`Unreadable`."""
        if not is_valid(event):
            try:
                valid, more = validated(event)
            except (TypeError, ValueError) as error:
                self.put(Unreadable(shown(event).encode(), str(error), Position(origin, offset)))
                return
            event, corrected = valid, (*corrected, *more)
        batch = self._batch
        if batch is None or batch.origin != origin:
            self._offsets = []
            batch = self._batch = Batch([], self._offsets, origin)
            self.items.append(batch)
        batch.events.append(event)
        self._offsets.append(offset)
        if corrected:
            batch.corrected += [(offset, reason) for reason in corrected]

    def put(self, item: Batch | Unreadable | Revoked | Restarted) -> None:
        """Adds what is no event, or a batch of events that are validated."""
        self._batch = None
        self.items.append(item)


def batches_of(items: Sequence[SourceItem]) -> list[Batch | Unreadable | Revoked | Restarted]:
    """Gathers records in batches, and validates their events, of a source that has not done so itself.

    Args:
        items: What a source has read. A :class:`Batch` stays as it is.

    Returns:
        The same in the same order. A record whose event no sink could take is unreadable.

    Raises:
        TypeError: Something is not what a source may give; it names that.
    """
    gathered = BatchBuilder()
    for item in items:
        if type(item) is Record:
            gathered.add(item.event, item.position.offset, item.position.origin, item.corrected)
        elif isinstance(item, Batch | Unreadable | Revoked | Restarted):
            gathered.put(item)
        else:
            message = f"{item!r} is not a Record, Batch, Unreadable, Restarted or Revoked; fix the source"
            raise TypeError(message)
    return gathered.items
