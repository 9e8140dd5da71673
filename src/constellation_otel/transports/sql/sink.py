"""Events into the guide's audit table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, Unpack

from constellation_otel._support.deadline import bounded, deadline_of
from constellation_otel.delivery import BufferedListener, ListenerOptions, Sink
from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.events import Event
from constellation_otel.transports.sql.database import Address, Database
from constellation_otel.transports.sql.table import TABLE, Layout, has_table, layout_of, statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import Rejection
    from constellation_otel.transports.url import SinkOptions

__all__ = ["SqlAuditListener", "SqlSink"]


class SqlSink(Sink[Event]):
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
        takes_details: Whether modules that did not run get a row, too.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self, url: str, *, table: str = TABLE, timezone: str | None = None, takes_details: bool = False
    ) -> None:
        self.takes_details = takes_details
        self._audit = Database(Address(url, table, timezone))
        self._layout: Layout | None = None

    @classmethod
    def from_url(cls, url: str, options: SinkOptions) -> Self:
        """Makes one from a URL, as the class does."""
        return cls(url, takes_details=options.takes_details)

    @property
    def name(self) -> str:
        return "sql"

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


class SqlAuditListener(BufferedListener[Event]):
    """Writes every event into an audit table, in the background: the guide's second example.

    Its rows are what :class:`SqlSink` writes. While there is no database, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:///file``.
        table: The table's name, or ``schema.name``; it is made where it is not there.
        timezone: The zone that ``created_at`` is in; the server's own by default.
        takes_details: Whether modules that did not run get a row, too.
        **options: See :class:`~constellation_otel.delivery.ListenerOptions`.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        JournalError: The journal cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        table: str = TABLE,
        timezone: str | None = None,
        takes_details: bool = False,
        **options: Unpack[ListenerOptions],
    ) -> None:
        super().__init__(SqlSink(url, table=table, timezone=timezone, takes_details=takes_details), **options)
