"""A durable journal of events in one SQLite file: what was committed outlives outages, kill -9 and restarts.

:class:`Journal` stands between a source and its sinks in one process.
:class:`JournalSink` and :class:`JournalSource` share a file between two processes:
one appends, the other reads. Waking readers, retrying and counting are not done here.

How they meet: the file knows its sinks by name, and keeps each event until all that
it was appended for have acknowledged it. A :class:`JournalSink` appends for all that
the file knows, and for :data:`DEFAULT_SINK` where it knows none; that is the sink as
which a :class:`JournalSource` reads unless told otherwise. It matters not which of the
two is there first.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from constellation_otel._support.deadline import deadline_of
from constellation_otel._support.log import log
from constellation_otel.delivery import Batch, Position, Rejection, Restarted, Sink, Source, Unreadable
from constellation_otel.delivery.journal.database import RESERVE_BYTES, TIMEOUT, Database, claim, has_log, opening
from constellation_otel.delivery.journal.rows import (
    DEFAULT_SINK,
    Appender,
    Reader,
    drop_sink,
    held_for,
    items_after,
    items_of,
    known_bits,
    open_database,
    register,
    register_any,
)
from constellation_otel.errors import JournalError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.events import Event, is_valid, validated

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from constellation_otel.delivery.journal.database import Mode

__all__ = ["DEFAULT_SINK", "Journal", "JournalSink", "JournalSource", "all_events_of", "events_of", "forget", "held_of"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_BYTES: Final = 2**30
_MIN_BYTES: Final = 2**16
_MAX_BATCH: Final = 512
_POLL: Final = 0.05
"""Seconds between two looks at a file that has nothing new."""


class Journal:
    """What a source has given and not all sinks have acknowledged, in one file.

    An event that :meth:`append` has taken is on the disk (fsync), and stays there until
    every sink has acknowledged it, across kill -9, restarts and power cuts. It is
    deleted then, whatever is still open around it.

    One thread appends; each sink has a thread of its own, which alone reads and
    acknowledges for it; readers are never blocked by writers. Every call ends within
    some ten seconds, as far as the disk answers.

    One process at a time has a journal. Its locks go with it, however it ends. In a
    forked child every method but :meth:`close` raises :class:`JournalError`, and the
    same file cannot be opened there: open a journal after the fork. A fork waits for the
    calls that are being made, for a second at most.

    A sink that is new to the file gets what is appended from then on. For one that the
    file knows and that is not among ``sinks``, its events stay: a warning says how many,
    and :func:`forget` drops them.

    Args:
        path: The file; made where it is absent or empty. Beside it lie SQLite's ``-wal``
            and ``-shm`` and two lock files. It has to be on a local disk.
        sinks: The sinks' names, 62 at most.
        max_bytes: Bytes in use in the file, at most, as near as one batch; at least 64 KiB.
            The write-ahead log beside it takes about 4 MiB more.
        timeout: Seconds that a call waits for the file, and then for its lock.
        reserve_bytes: Left free on the disk by :meth:`append`, since acknowledging needs room, too.

    Raises:
        ValueError: ``sinks`` is empty or has a name twice, or ``max_bytes`` is too small.
        JournalError: Another process has the journal; or the file is no journal, another
            version's, damaged, or cannot be written.
        UnavailableError: The disk is full or the file busy.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sinks: Sequence[str],
        max_bytes: int = _MAX_BYTES,
        timeout: float = TIMEOUT,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        if not sinks or len(set(sinks)) < len(sinks):
            message = f"sinks={list(sinks)!r} must be one or more different names"
            raise ValueError(message)
        check_max_bytes(max_bytes)
        with opening() as stack:
            self._database = open_database(stack, path, "rwc", timeout=timeout, reserve_bytes=reserve_bytes)
            claim(stack, self._database, "append", "consume")
            bits = _registered(self._database, sinks)
            self._appender = Appender(self._database, max_bytes, sum(bits.values()))
            self._databases = [self._database]
            self._readers = {}
            for name, bit in bits.items():
                database = open_database(stack, path, "ro", timeout=timeout)
                self._databases.append(database)
                self._readers[name] = Reader(database, self._database, name, bit)
            self._stack = stack.pop_all()

    @property
    def size_bytes(self) -> int:
        """Bytes in use in the file: what ``max_bytes`` bounds."""
        return self._appender.size_bytes()

    def append(self, events: Sequence[Event | None]) -> int:
        """Writes events down, in one transaction.

        Args:
            events: In the order in which they are to be read; ``None`` is read as a
                :class:`~constellation_otel.delivery.contract.Restarted`. What no encoder could write
                of one is replaced or left out.

        Returns:
            How many were taken, from the first: fewer than all where ``max_bytes`` is reached.

        Raises:
            TypeError: As :func:`~constellation_otel.events.validated` says it; no event
                of this call is in the file.
            ValueError: Likewise.
            UnavailableError: The disk is full, or fails, or the file was busy for five
                seconds; no event of this call is in the file.
            MisconfiguredError: Likewise, and somebody has to fix it: the file is damaged,
                was moved, or may not be written any more.
            JournalError: The journal is closed, or this is a forked child.
        """
        return self._appender.append(
            [event if event is None or is_valid(event) else validated(event).event for event in events]
        )

    def read(self, sink: str, after: int, limit: int) -> list[Batch | Unreadable | Restarted]:
        """Reads what a sink has not acknowledged.

        Args:
            sink: The sink's name.
            after: An offset of a position; what comes after it is read. 0 for all.
            limit: Items at most.

        Returns:
            In the order in which they were appended.

        Raises:
            UnavailableError: The disk fails, or the file is damaged (:class:`MisconfiguredError`).
            JournalError: As in :meth:`append`.
            ValueError: The journal was not opened for this sink.
        """
        return self._reader(sink).read(after, limit)

    def acknowledge(self, sink: str, positions: Sequence[Position]) -> None:
        """Says that a sink has these safe; what all sinks have is deleted.

        Args:
            sink: The sink's name.
            positions: In any order; one that was acknowledged before does no harm.

        Raises:
            UnavailableError: As in :meth:`append`; nothing of this call is written down,
                and it is to be called again.
            JournalError: As in :meth:`append`.
            ValueError: The journal was not opened for this sink.
        """
        self._reader(sink).acknowledge([position.offset for position in positions])

    def held(self, sink: str) -> int:
        """How many events a sink has yet to acknowledge; cheap.

        Raises:
            UnavailableError: The disk fails.
            JournalError: As in :meth:`append`.
            ValueError: The journal was not opened for this sink.
        """
        return self._reader(sink).held()

    def finish_by(self, deadline: float) -> None:
        """Has no call wait for the file any longer than until then, those that are being made included.

        A call that waits for a disk that hangs returns when the disk answers.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        for database in self._databases:
            database.finish_by(deadline)

    def close(self) -> None:
        """Lets go of the file and its locks; once more does nothing.

        What a thread uses at that moment it lets go of itself, as soon as its call returns.
        """
        self._stack.close()

    def _reader(self, sink: str) -> Reader:
        if sink not in self._readers:
            message = f"{sink!r} is none of the sinks that this journal was opened for: {sorted(self._readers)}"
            raise ValueError(message)
        return self._readers[sink]


class JournalSink(Sink[Event]):
    """Appends to a journal that another process reads. A :class:`~constellation_otel.delivery.contract.Sink`.

    It appends for every sink that the file knows at that moment, and for
    :data:`DEFAULT_SINK` where it knows none. One process at a time appends to a file. An
    event that is sent twice is there twice: ids and content being equal, no harm is done.

    Args:
        path: As for :class:`Journal`.
        max_bytes: As for :class:`Journal`.

    Raises:
        ValueError: ``max_bytes`` is too small.
        JournalError: As for :class:`Journal`.
        UnavailableError: As for :class:`Journal`.
    """

    takes_details = True

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = _MAX_BYTES) -> None:
        check_max_bytes(max_bytes)
        with opening() as stack:
            self._database = open_database(stack, path, "rwc")
            claim(stack, self._database, "append")
            self._max_bytes = max_bytes
            self._appender = Appender(self._database, max_bytes, None)
            register_any(self._database)
            self._stack = stack.pop_all()

    @property
    def name(self) -> str:
        """``journal``."""
        return "journal"

    def send(self, items: Sequence[Event], timeout: float) -> list[Rejection]:
        """Writes events down; they are on the disk when this returns.

        Args:
            items: The events.
            timeout: Seconds to wait for the file, as far as the disk answers.

        Returns:
            Those with a value of the wrong type.

        Raises:
            UnavailableError: The disk is full, or fails, the file is busy, or has reached
                ``max_bytes``, and then ``delivered`` says which did find room.
            MisconfiguredError: The file cannot be written, is damaged or closed, or this is
                a forked child.
        """
        good: dict[int, Event] = {}
        rejections = []
        for index, event in enumerate(items):
            try:
                good[index] = validated(event).event
            except (TypeError, ValueError) as error:
                rejections.append(Rejection(index, 1, str(error)))
        try:
            taken = self._appender.append([*good.values()], timeout)
        except JournalError as error:
            raise MisconfiguredError(str(error)) from error
        if taken < len(good):
            message = (
                f"{self._database.path} has reached max_bytes={self._max_bytes}; check that its reader runs,"
                " or raise max_bytes"
            )
            raise UnavailableError(message, delivered=frozenset([*good][:taken]))
        return rejections

    def close(self) -> None:
        """Lets go of the file and its lock; once more does nothing."""
        self._stack.close()


class JournalSource(Source):
    """Reads a journal that another process appends to. A :class:`~constellation_otel.delivery.contract.Source`.

    What is not acknowledged comes again when the file is opened again. One process at a
    time reads a file; neither it nor the appender waits for the other to be there.

    Args:
        path: As for :class:`Journal`.
        sink: The sink that it stands for: it reads what was appended for that sink, and
            acknowledges for it. With the name of a bridge's sink it reads what that sink has
            not acknowledged. A name that is new to the file gets what is appended from then on.
        follow: Whether to wait for more when all is read. If not, it ends there, and the
            file has to be there.
        only_looks: Whether nothing is written or locked: what is read cannot be acknowledged,
            and another process may be reading, too.
        timeout: Seconds that a call waits for the file's lock.

    Raises:
        JournalError: As for :class:`Journal`.
        UnavailableError: As for :class:`Journal`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sink: str = DEFAULT_SINK,
        follow: bool = True,
        only_looks: bool = False,
        timeout: float = TIMEOUT,
    ) -> None:
        with opening() as stack:
            # what is only read to its end has to be there
            mode: Mode = "rwc" if follow else "ro" if only_looks and has_log(path) else "rw"
            database = open_database(stack, path, mode, timeout=timeout)
            if not only_looks:
                claim(stack, database, "consume")
            if not follow:
                _check_known(database, sink)
            # nothing is pending for a sink that the file does not know
            bit = known_bits(database).get(sink, 0) if only_looks else _registered(database, [sink])[sink]
            self._reader = Reader(database, database, sink, bit)
            self._stack = stack.pop_all()
        self._name = f"journal:{path}"
        self._follow = follow
        self._after = 0
        # no longer than the file: each row is read, and so acknowledged, once
        self._has_ended = False
        self._closing = threading.Event()

    @property
    def name(self) -> str:
        """``journal:`` and the path."""
        return self._name

    @property
    def is_durable(self) -> bool:
        """Yes."""
        return True

    @property
    def has_ended(self) -> bool:
        """Whether all was read, where it does not follow."""
        return self._has_ended

    def read(self, timeout: float) -> list[Batch | Unreadable | Restarted]:
        """Reads what was appended; looks again about every 50 ms while there is nothing.

        Args:
            timeout: Seconds to wait for the first item.

        Returns:
            At most 512 items; an empty list where nothing came in time, or when it is closed.

        Raises:
            UnavailableError: The disk fails.
            SourceError: The file is damaged or cannot be read any more, or this is a forked child.
        """
        deadline = deadline_of(timeout)
        while True:
            try:
                items = self._reader.read(self._after, _MAX_BATCH)
            except (JournalError, MisconfiguredError) as error:
                if self._closing.is_set():
                    return []
                raise SourceError(str(error)) from error
            if items:
                last = items[-1]
                self._after = last.offsets[-1] if isinstance(last, Batch) else last.position.offset
                return items
            self._has_ended = not self._follow
            left = deadline - time.monotonic()
            if self._has_ended or left <= 0:
                return []
            self._closing.wait(min(left, _POLL))

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says that these are safe: they are deleted, unless other sinks have yet to have them.

        Args:
            positions: In any order.

        Raises:
            UnavailableError: It could not be written down now; it is to be called again.
        """
        try:
            self._reader.acknowledge([position.offset for position in positions])
        except JournalError as error:
            raise MisconfiguredError(str(error)) from error

    def close(self) -> None:
        """Lets go of the file and its lock, and ends a read that waits; once more does nothing."""
        self._closing.set()
        self._stack.close()


def events_of(path: str | os.PathLike[str], execution_id: UUID) -> list[Event]:
    """The events of an execution that some sink has yet to acknowledge; nobody else's use is disturbed.

    Args:
        path: The journal's file.
        execution_id: The execution.

    Returns:
        In the order in which they were appended. Those that cannot be read are logged and left out.

    Raises:
        JournalError: There is no journal, or it cannot be read.
        UnavailableError: The file is busy, or the disk fails.
    """
    with opening() as stack:
        database = open_database(stack, path, "ro")
        items = items_of(database, execution_id)
    return list(_readable(path, items))


def all_events_of(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of all executions, as :func:`events_of` gives those of one, some rows at a time.

    Args:
        path: The journal's file.

    Raises:
        JournalError: There is no journal, or it cannot be read.
        UnavailableError: The file is busy, or the disk fails.
    """
    with opening() as stack:
        database = open_database(stack, path, "ro")
        items, last = items_after(database, 0, _MAX_BATCH)
        while items:
            yield from _readable(path, items)
            items, last = items_after(database, last, _MAX_BATCH)


def _readable(path: str | os.PathLike[str], items: Iterable[Batch | Unreadable | Restarted]) -> Iterator[Event]:
    for item in items:
        if isinstance(item, Unreadable):
            log(_LOGGER, logging.WARNING, "%s: event %d is left out: %s", path, item.position.offset, item.reason)
        elif isinstance(item, Batch):
            yield from item.events


def held_of(path: str | os.PathLike[str]) -> dict[str, int]:
    """How many events a journal holds for each sink that it knows; nobody else's use is disturbed.

    Args:
        path: The journal's file.

    Raises:
        JournalError: There is no journal, or it cannot be read.
        UnavailableError: The file is busy, or the disk fails.
    """
    with opening() as stack:
        # so that SQLite's own two files are beside it afterwards as they were before
        return held_for(open_database(stack, path, "ro" if has_log(path) else "rw"))


def forget(path: str | os.PathLike[str], sink: str, *, rows: int = 10_000) -> int:
    """Drops a sink from a journal: what was kept for it alone is deleted, and nothing is kept for it any more.

    It takes many small transactions; one that is interrupted is to be called again.

    Args:
        path: The journal's file. No other process may be reading it.
        sink: The sink's name.
        rows: Events of one transaction, at most.

    Returns:
        How many events the sink had yet to acknowledge.

    Raises:
        ValueError: The file does not know the sink.
        JournalError: There is no journal, it cannot be used, or another process reads it.
        UnavailableError: The disk is full or fails, or the file is busy.
    """
    with opening() as stack:
        database = open_database(stack, path, "rw")
        claim(stack, database, "consume")
        return drop_sink(database, sink, rows)


def _check_known(database: Database, sink: str) -> None:
    """Refuses to read to its end what can only be nothing."""
    held = held_for(database)
    if held and sink not in held:
        there = ", ".join(f"{count} events for ?sink={name}" for name, count in sorted(held.items()))
        message = f"{database.path} has nothing for {sink!r}; it has {there}"
        raise JournalError(message)


def _registered(database: Database, names: Sequence[str]) -> dict[str, int]:
    """The sinks' bits; says what the file keeps for others."""
    bits, held_for_others = register(database, names)
    for name, held in held_for_others.items():
        log(
            _LOGGER,
            logging.WARNING,
            "%s keeps %d events for %s, which is not one of its sinks now: read it for that sink,"
            " or drop them with constellation_otel.transports.journal.forget(path, %s)",
            database.path,
            held,
            repr(name),
            repr(name),
        )
    return bits


def check_max_bytes(max_bytes: int) -> None:
    """Raises :class:`ValueError` where a journal cannot be so small."""
    if max_bytes < _MIN_BYTES:
        message = f"max_bytes={max_bytes!r} must be at least {_MIN_BYTES}"
        raise ValueError(message)
