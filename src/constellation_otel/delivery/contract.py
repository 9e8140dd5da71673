"""What a source gives and what a sink takes: the contract between the transports and whatever joins them.

A transport is one class on either side of it, without threads of its own unless
its protocol needs one: waiting, retrying, batching, counting and acknowledging
are done once, for all of them, in ``lane`` and ``bridge``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from constellation_otel.errors import DecodeError
from constellation_otel.events import Event, Reading

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from constellation_otel.traces import Span

__all__ = [
    "InMemory",
    "Position",
    "Published",
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


class InMemory(Position):
    """The position of a record that a journal could not take: it is nobody's to acknowledge there."""

    __slots__ = ()


class Record(Struct, frozen=True):
    """An event that a source has read.

    Attributes:
        event: The event.
        position: Where the source has it.
        corrected: What of the record could not be read and was left out, a text each that
            begins with the field's name; counted and logged by who reads the source.
    """

    event: Event
    position: Position
    corrected: tuple[str, ...] = ()


class Unreadable(Struct, frozen=True):
    """What a source has read and cannot understand.

    Whoever reads the source counts it, logs it with its position, and writes it to
    the dead-letter file where there is one. It is acknowledged as a record is.

    Attributes:
        data: What was read, as it came; a source may cut what is very long.
        reason: Why it is no event, as :class:`~constellation_otel.DecodeError` says it.
        position: Where the source has it.
    """

    data: bytes
    reason: str
    position: Position


class Revoked(Struct, frozen=True):
    """A part of a source has been taken away: somebody else reads it from now on.

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


SourceItem: TypeAlias = Record | Unreadable | Revoked | Restarted
"""What :meth:`Source.read` gives."""


class Source(Protocol):
    """Where events come from. All calls come from one thread, but for :meth:`close`.

    A source may have more, which is used where it is there: ``trouble``, why it gives
    nothing at the moment, or cannot write down what is acknowledged (``None`` where it works);
    ``failed_acknowledgements``, how often it could not, where it finds out later; ``dropped``,
    events that it had no room for; ``fraction_read``, from 0 to 1, for a progress bar;
    ``keep_alive()``, called every few seconds while it is not read since its sinks take no more.
    """

    @property
    def name(self) -> str:
        """Which source it is, for logs: its URL without secrets."""

    @property
    def is_ordered(self) -> bool:
        """Whether the events of one execution come in the order in which they happened."""

    @property
    def is_durable(self) -> bool:
        """Whether what was read and not acknowledged comes again after a restart.

        Such a source is read no faster than its sinks take; from one that is not, what
        finds no room is dropped and counted.
        """

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`read` has given everything that there will ever be."""

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads what is there, at most some hundred items.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The items in order; none where none came in time.

        Raises:
            UnavailableError: The source cannot be read now; reading it again later may
                succeed. The reader waits between tries, growing longer.
            SourceError: It can never be read as it is: a table that is none, a file that
                is not there.
        """

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
        """Lets go of connections and files, and ends a :meth:`read` that waits; within a few seconds."""


class Store(Protocol):
    """What keeps events on disk until sinks have them: the journal."""

    def append(self, events: Sequence[Event | None]) -> int:
        """Keeps events; when this returns they survive the process. From one thread only.

        ``None`` stands for a :class:`Restarted`, whose position it is given like an event.

        Returns:
            How many were taken, the first ones: fewer than all where it is full.

        Raises:
            UnavailableError: It cannot be written now; none was taken.
        """

    def read(self, sink: str, after: int, limit: int) -> Sequence[Record | Unreadable | Restarted]:
        """What a sink has not acknowledged, behind an offset, in order.

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
        """Lets go of the file; never raises, and does not wait for a call that is being made by another thread."""


class Rejection(Struct, frozen=True):
    """What a sink's far side refuses for good.

    Attributes:
        index: Which of the items that were sent; ``None`` where the far side tells only how many.
        count: How many it is about; 1 where ``index`` is given.
        reason: What the far side said.
    """

    index: int | None
    count: int
    reason: str


class Sink(Protocol[T_contra]):
    """Where events, or finished spans, go. All calls come from one thread."""

    @property
    def name(self) -> str:
        """What kind it is, in a word: ``kafka``, ``sql``, ``otlp``. A journal knows its sinks by it."""

    @property
    def takes(self) -> Literal["events", "spans"]:
        """What :meth:`send` is called with."""

    @property
    def max_batch(self) -> int:
        """Items in one call of :meth:`send`, at most."""

    def send(self, items: Sequence[T_contra], timeout: float) -> Sequence[Rejection]:
        """Delivers items; when this returns, all but the rejected ones are safe on the far side.

        Args:
            items: One or more. They may have been sent before: after a crash, or when an
                answer was lost. The sink sees to it that this does no harm, where its
                protocol can.
            timeout: Seconds; this returns or raises within them.

        Returns:
            What the far side refuses for good.

        Raises:
            UnavailableError: They are to be sent again, later; ``delivered`` says which are
                safe already. That includes what will get mended: wrong credentials, a topic
                that is not there (:class:`MisconfiguredError`).
            RefusedError: The far side refuses these items together and does not say which
                of them it is about. They are sent again in halves.
        """

    def close(self) -> None:
        """Lets go of connections and files; within a few seconds."""


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


class Published(Struct, frozen=True):
    """The counters that are metrics too."""

    dropped: int = 0
    rejected: int = 0
    late: int = 0
    duplicate: int = 0
    abandoned: int = 0
    incomplete_executions: int = 0
    incomplete_modules: int = 0
    failed: int = 0


class SpanObserver(Protocol):
    """What a bridge tells of spans and counters beside its sinks: metrics and logs."""

    @property
    def with_events(self) -> bool:
        """Whether a span's events stay on it."""

    def observe(self, span: Span, context: Context) -> None:
        """Takes a finished span, and a context in which it is current."""

    def count(self, before: Published, now: Published) -> None:
        """Takes how the counters have grown."""
