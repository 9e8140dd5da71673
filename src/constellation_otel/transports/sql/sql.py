"""The guide's audit table, in PostgreSQL or SQLite: events into it, and events out of it.

:class:`SqlSink` writes, :class:`SqlSource` reads, and :func:`schema_ddl` is what the
sink makes where there is no table. What a database does is in ``_sql_database``, what
is in the table in ``_sql_table``.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Unpack

from constellation_otel._support.deadline import bounded, deadline_of
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery import ListenerOptions, TransportListener
from constellation_otel.errors import ConfigurationError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.transports.sql.database import DIALECTS, Address, Database, table_of
from constellation_otel.transports.sql.table import (
    HIGHEST_ID,
    LOWEST_ID,
    TABLE,
    Layout,
    has_table,
    layout_of,
    statements,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, RowMapping

    from constellation_otel.delivery import Position, Record, Rejection, Unreadable
    from constellation_otel.events import Event

__all__ = ["SqlAuditListener", "SqlSink", "SqlSource", "schema_ddl"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_BATCH: Final = 512
_READ_TIMEOUT: Final = 30.0
_CLOSE_TIMEOUT: Final = 5.0
_MAX_GAPS: Final = 4096
_GAPS_A_QUERY: Final = 100


def schema_ddl(dialect: Literal["postgresql", "sqlite"], table: str = TABLE) -> str:
    """The statements that make the table which :class:`SqlSink` makes where there is none.

    The guide's columns and indexes, and then ours. Running them again changes nothing.

    Args:
        dialect: The database's kind, as its URL begins.
        table: The table's name, or ``schema.name``.

    Raises:
        ConfigurationError: There is no such dialect, or the name is none for a table.
    """
    if dialect not in DIALECTS:
        message = f"{dialect!r} is none of {', '.join(DIALECTS)}"
        raise ConfigurationError(message)
    kind = DIALECTS[dialect]
    return "".join(f"{statement};\n" for statement in statements(kind, table_of(table, kind)))


def places_of_table(url: str) -> set[tuple[object, ...]]:
    """The table in its file, or at each host that a URL names: two URLs of one table have one in common.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    return Address(url, TABLE, None).places


class SqlSink:
    """Writes events into an audit table.

    A table that exists with the guide's columns is written as it is, never altered;
    those of our own columns that it has are used. Where there is no table, one with all
    of them is made, see :func:`schema_ddl`. Names that are too long for their column
    are cut; a trace context is left out.

    In PostgreSQL a text may be any character type, or an enum; an id likewise with room for
    32 digits, or a UUID; ``duration_ms`` any number, of which REAL keeps six digits; ``created_at``
    a timestamp; ``occurred_ns`` and ``duration_ns`` BIGINT, or NUMERIC with 19 digits before
    the point. A domain is what it is made of. SQLite takes any value in any column.

    A batch is one transaction. Where the table has ``event_id`` with a unique index, an
    event that is sent again is dropped by the database; where it has not, as in a table
    that was made with the guide's own DDL, it is there twice after a lost answer.

    ``created_at`` is the time of the event where the table has ``occurred_ns``, too;
    otherwise it is left to the column's default, the time of the insertion.

    Making one does no I/O. In a forked child it connects anew.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:///file``. The
            parameters ``table`` and ``timezone`` are those below, and win over them;
            the others are the driver's.
        table: The table's name, or ``schema.name``; without a schema, PostgreSQL's
            ``search_path`` says which. A name with a dot is in double quotes.
        timezone: The zone that ``created_at`` is in, as ``Europe/Berlin``; the server's
            own by default, and UTC with SQLite.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    name: Final = "sql"
    takes: Final = "events"
    max_batch: Final = _MAX_BATCH

    def __init__(self, url: str, *, table: str = TABLE, timezone: str | None = None) -> None:
        self._audit = Database(Address(url, table, timezone))
        self._layout: Layout | None = None

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Inserts events, in one transaction; they are committed when this returns.

        Args:
            items: The events.
            timeout: Seconds. To connect takes two at most where less is left: PostgreSQL's
                client knows no shorter time.

        Returns:
            Nothing: the database refuses a batch, and does not say which of its rows.

        Raises:
            UnavailableError: The database is away, busy, locked or full; none was written,
                or the answer was lost.
            MisconfiguredError: It refuses the user, has no such database, or the table is
                no audit table.
            RefusedError: It refuses one of the rows.
        """
        timeout = bounded(timeout)
        end = deadline_of(timeout)
        try:
            layout = self._layout = self._layout or self._look(timeout)
            rows = [layout.row_of(item) for item in items]
            with self._audit.transaction(end - time.monotonic(), refusable=True) as connection:
                connection.execute(layout.insert, rows)
        except UnavailableError:
            # it may be another table the next time
            self._layout = None
            raise
        return []

    def close(self) -> None:
        """Closes the connection."""
        self._audit.close()

    def _look(self, timeout: float) -> Layout:
        """Makes the table where there is none, and says what there is."""
        address = self._audit.address
        with self._audit.transaction(timeout) as connection:
            if not has_table(connection, address):
                for statement in statements(address.dialect, address.table):
                    connection.exec_driver_sql(statement)
            layout = layout_of(connection, address, MisconfiguredError)
        if layout.demands:
            message = (
                f"{address.name}: the table {address.table} has columns that must not be null and have no default: "
                f"{', '.join(layout.demands)}; give them defaults, or name another table with ?table="
            )
            raise MisconfiguredError(message)
        return layout


class SqlAuditListener(TransportListener):
    """Writes every event into an audit table, in the background: the guide's second example.

    Its rows are what :class:`SqlSink` writes. While there is no database, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:///file``.
        table: The table's name, or ``schema.name``; it is made where it is not there.
        timezone: The zone that ``created_at`` is in; the server's own by default.
        **options: See :class:`~constellation_otel.delivery.ready_listener.ListenerOptions`.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        JournalError: The journal cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self, url: str, *, table: str = TABLE, timezone: str | None = None, **options: Unpack[ListenerOptions]
    ) -> None:
        super().__init__(SqlSink(url, table=table, timezone=timezone), **options)


class SqlSource:
    """Reads the events of an audit table, ours or one that the guide's own listener fills.

    Rows come in the order of their ids, in pages, however many there are. What is read
    is acknowledged nowhere: the next run begins at the beginning again. A row that is no
    event is an :class:`~constellation_otel.delivery.contract.Unreadable` with the row as JSON. A value
    that cannot be read, and that the event can do without, is left out of it.

    Without ``follow`` it ends at the highest id that there was at the first read. Rows
    whose transaction was still open when their place was read count as newer than that.

    With ``follow`` it goes on for ever. Ids commit out of order: a row may turn up below
    one that was read before. So an id that is missing is looked for again, until
    ``gap_timeout`` seconds after it was missed; a transaction that stays open for longer
    hides its rows. No row comes twice. Such late rows come after rows with higher ids.

    The event's time is ``occurred_ns``, to the nanosecond, or else ``created_at``, to the
    microsecond, in the zone below. A local time that there is twice, when summer time
    ends, is taken for the first of the two; one that there is not, when it begins, as if
    it had not begun.

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

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    is_ordered: Final = False
    is_durable: Final = True

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
    ) -> None:
        self._audit = Database(Address(url, table, timezone))
        self._layout: Layout | None = None
        self._execution_id = execution_id
        self._follow = follow
        self._poll_interval = poll_interval
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

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._audit.address.name

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

    def read(self, timeout: float) -> Sequence[Record | Unreadable]:
        """Reads the next rows.

        Args:
            timeout: Seconds to wait for the first one. A statement that the database does
                not answer is given up after 30.

        Raises:
            UnavailableError: The database is away or busy.
            MisconfiguredError: It refuses the user, or has no such database.
            SourceError: There is no such table or file, or the table is no audit table.
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

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Nothing is kept between two runs."""

    def close(self) -> None:
        """Ends a :meth:`read` that waits, and closes the connection."""
        self._closing.set()
        end = time.monotonic() + _CLOSE_TIMEOUT
        while not self._idle.wait(0.1) and time.monotonic() < end:
            self._audit.interrupt()
        self._audit.close()

    def _read_now(self) -> list[Record | Unreadable]:
        """Reads a page of what follows and, where that is all, of the ids that were missing."""
        now = time.monotonic()
        try:
            layout = self._layout = self._layout or self._look()
            with self._audit.transaction(_READ_TIMEOUT) as connection:
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
            message = "%s: more than %d gaps in the ids; the oldest are not waited for"
            self._log.write(_LOGGER, logging.INFO, "gaps", message, self.name, _MAX_GAPS)
        if rows:
            self._next_id = rows[-1]["id"] + 1
        return [layout.item_of(row) for row in (*late, *rows)]

    def _look(self) -> Layout:
        """Says what the table is like, which has to be there."""
        address = self._audit.address
        # SQLite would make an empty one
        if address.file is not None and not address.file.is_file():
            message = f"{self.name}: there is no file {address.file}"
            raise SourceError(message)
        with self._audit.transaction(_READ_TIMEOUT) as connection:
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
