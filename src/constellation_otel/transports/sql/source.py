"""Events from an audit table, ours or one that the guide's own listener fills."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from constellation_otel._support.deadline import deadline_of
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery import BatchBuilder, Source
from constellation_otel.errors import SourceError, UnavailableError
from constellation_otel.transports.sql.database import Address, Database
from constellation_otel.transports.sql.table import HIGHEST_ID, LOWEST_ID, TABLE, Layout, has_table, layout_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, RowMapping

    from constellation_otel.delivery import SourceItem
    from constellation_otel.transports.url import SourceOptions

__all__ = ["SqlSource"]

_LOGGER: Final = logging.getLogger(__package__)
_MAX_BATCH: Final = 512
_CLOSE_TIMEOUT: Final = 5.0
_MAX_GAPS: Final = 4096
_GAPS_A_QUERY: Final = 100


class SqlSource(Source):
    """Reads the events of an audit table, ours or one that the guide's own listener fills.

    Rows come in the order of their ids, in pages, however many there are. What is read
    is acknowledged nowhere: the next run begins at the beginning again. A row that is no
    event is an :class:`~constellation_otel.delivery.Unreadable` with the row as JSON. A value
    that cannot be read, and that the event can do without, is left out of it.

    Without ``follow`` it ends at the highest id that there was at the first read. Rows
    whose transaction was still open when their place was read count as newer than that.

    With ``follow`` it goes on for ever. Ids commit out of order: a row may turn up below
    one that was read before. So an id that is missing is looked for again, until
    ``gap_timeout`` seconds after it was missed; a transaction that stays open for longer
    hides its rows. No row comes twice. Such late rows come after rows with higher ids.

    The event's time is ``occurred_ns``, to the nanosecond, or else ``created_at``, to the
    microsecond, in the zone below. A local time that occurs twice, when summer time
    ends, is taken for the first of the two; one that does not occur, when it begins, is read
    as if it had not begun.

    Making one does no I/O. In a forked child it connects anew.

    Args:
        url: As for :class:`SqlSink`.
        table: As for :class:`SqlSink`.
        timezone: As for :class:`SqlSink`.
        follow: Whether to go on at the end.
        poll_interval: Seconds between two looks at a table of which everything has been read.
        gap_timeout: Seconds that an id may be missing and still come.
        execution_id: Only the events of this execution, however its id is spelled. Where
            its column is PostgreSQL's UUID an index finds them; otherwise every row is looked at.
        read_timeout: Seconds after which a statement that the database does not answer is given up.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        table: str = TABLE,
        timezone: str | None = None,
        follow: bool = False,
        poll_interval: float = 1.0,
        gap_timeout: float = 10.0,
        execution_id: UUID | None = None,
        read_timeout: float = 30.0,
    ) -> None:
        self._audit = Database(Address(url, table, timezone))
        self._layout: Layout | None = None
        self._execution_id = execution_id
        self._follow = follow
        self._poll_interval = poll_interval
        self._read_timeout = read_timeout
        # the lowest id that has not been read, and the highest of the replay, once that is known
        self._next_id = LOWEST_ID
        self._end = HIGHEST_ID if follow else None
        self._gaps = _Gaps(gap_timeout)
        self._next_read = -float("inf")
        self._has_ended = False
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._log = RateLimitedLog()

    @classmethod
    def from_url(cls, url: str, options: SourceOptions) -> Self:
        """Makes one from a URL, as the class does."""
        return cls(url, follow=options.follow, execution_id=options.execution_id)

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._audit.address.name

    @property
    def is_durable(self) -> bool:
        return True

    @property
    def has_ended(self) -> bool:
        """Whether the replay is at its end; a table that is followed has none."""
        return self._has_ended

    @property
    def fraction_read(self) -> float | None:
        """How much of the table has been read, by its ids, from 0 to 1; ``None`` where it follows, or does not know."""
        if self._follow or self._end is None:
            return None
        return max(0.0, min(1.0, (self._next_id - 1) / self._end)) if self._end > 0 else 1.0

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads the next rows.

        Args:
            timeout: Seconds to wait for the first one.

        Raises:
            UnavailableError: The database is away or busy.
            MisconfiguredError: It refuses the user, or has no such database.
            SourceError: There is no such table or file, or the table is not an audit table.
        """
        end = deadline_of(timeout)
        self._idle.clear()
        try:
            while not (self.has_ended or self._closing.is_set()):
                items = self._read_now() if time.monotonic() >= self._next_read else []
                left = end - time.monotonic()
                if items or self._has_ended or left <= 0:
                    return items
                self._closing.wait(min(left, self._next_read - time.monotonic()))
            return []
        finally:
            self._idle.set()

    def close(self) -> None:
        """Ends a :meth:`read` that waits, and closes the connection."""
        self._closing.set()
        end = time.monotonic() + _CLOSE_TIMEOUT
        while not self._idle.wait(0.1) and time.monotonic() < end:
            self._audit.interrupt()
        self._audit.close()

    def _read_now(self) -> Sequence[SourceItem]:
        """Reads a page of what follows and, where that is all, of the ids that were missing."""
        now = time.monotonic()
        try:
            layout = self._layout = self._layout or self._look()
            with self._audit.transaction(self._read_timeout) as connection:
                if self._end is None:
                    self._end = int(connection.execute(layout.highest_id).scalar_one())
                rows = self._rows(connection, layout, [(self._next_id, self._end)])
                is_all = len(rows) < _MAX_BATCH
                late = self._late_rows(connection, layout) if is_all else []
        except UnavailableError:
            self._layout = None
            if self._closing.is_set():
                return []
            raise
        # not before the transaction has ended: what fails is read again
        self._has_ended = is_all and not self._follow
        if late:
            self._gaps.fill(row["id"] for row in late)
        elif is_all:
            self._gaps.expire(now)
            self._next_read = now + self._poll_interval
        if self._follow and not self._gaps.note(self._next_id, [row["id"] for row in rows], now):
            message = "%s: more than %d gaps in the ids; rows missing in the oldest gaps are not waited for"
            self._log.write(_LOGGER, logging.INFO, "gaps", message, self.name, _MAX_GAPS)
        if rows:
            self._next_id = rows[-1]["id"] + 1
        gathered = BatchBuilder()
        for row in (*late, *rows):
            layout.read(row, gathered)
        return gathered.items

    def _look(self) -> Layout:
        """Says what the table is like, which has to be there."""
        address = self._audit.address
        # SQLite would make an empty one
        if address.file is not None and not address.file.is_file():
            message = f"{self.name}: there is no file {address.file}; fix the URL"
            raise SourceError(message)
        with self._audit.transaction(self._read_timeout) as connection:
            if not has_table(connection, address):
                message = f"{self.name}: there is no table {address.table}; name the one to read with ?table="
                if address.dialect.has_schemas:
                    message += ", and with ?table=schema.name one in a schema that is not in the search_path"
                raise SourceError(message)
            return layout_of(connection, address, SourceError)

    def _late_rows(self, connection: Connection, layout: Layout) -> Sequence[RowMapping]:
        ranges = [(gap.first, gap.last) for gap in self._gaps.held]
        for start in range(0, len(ranges), _GAPS_A_QUERY):
            rows = self._rows(connection, layout, ranges[start : start + _GAPS_A_QUERY])
            if rows:
                return rows
        return []

    def _rows(self, connection: Connection, layout: Layout, ranges: Sequence[tuple[int, int]]) -> Sequence[RowMapping]:
        return connection.execute(layout.page(ranges, self._execution_id, _MAX_BATCH)).mappings().all()


class _Gap(NamedTuple):
    """Ids that are missing: the lowest, the highest, and when they are given up, in monotonic seconds."""

    first: int
    last: int
    until: float


class _Gaps:
    """The ids below the highest one read that have not come: ranges, in ascending order, which is by age.

    Args:
        timeout: Seconds that an id may be missing.

    Attributes:
        held: The ranges.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.held: list[_Gap] = []

    def note(self, begin: int, ids: Iterable[int], now: float) -> bool:
        """Notes what is missing from an id on, of ids that came one after the other.

        Returns:
            Whether there was room; the oldest ranges have been given up otherwise.
        """
        # serial ids begin at 1
        expected = max(begin, 1)
        for number in ids:
            if expected < number:
                self.held.append(_Gap(expected, number - 1, now + self._timeout))
            expected = max(expected, number + 1)
        has_room = len(self.held) <= _MAX_GAPS
        del self.held[:-_MAX_GAPS]
        return has_room

    def fill(self, ids: Iterable[int]) -> None:
        """Takes out ids that have come; each is in one of the ranges."""
        for found in ids:
            index = bisect_left(self.held, found, key=lambda gap: gap.last)
            gap = self.held[index]
            parts = (gap._replace(last=found - 1), gap._replace(first=found + 1))
            self.held[index : index + 1] = [part for part in parts if part.first <= part.last]

    def expire(self, now: float) -> None:
        """Gives up what has been missing for too long."""
        self.held = [gap for gap in self.held if gap.until > now]
