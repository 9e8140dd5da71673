"""What there is at the URL of an audit table, without making or changing anything."""

from __future__ import annotations

from msgspec import Struct

from constellation_otel.errors import SourceError
from constellation_otel.transports.sql.database import Address, Database
from constellation_otel.transports.sql.table import OURS, TABLE, has_table, layout_of

__all__ = ["AuditTable", "look_at"]


class AuditTable(Struct, frozen=True):
    """An audit table, or where one would be made.

    Attributes:
        name: Its URL, without secrets.
        table: The table's name.
        exists: Whether it is there.
        lacking: Those of our own columns that it has not, or as something else.
        demands: Columns that no event has a value for, and that must have one.
        clock: The server's time, in seconds since 1970; ``None`` where the database is a file.
    """

    name: str
    table: str
    exists: bool = False
    lacking: tuple[str, ...] = ()
    demands: tuple[str, ...] = ()
    clock: float | None = None


def look_at(url: str, timeout: float) -> AuditTable:
    """Connects as :class:`~constellation_otel.transports.sql.SqlSource` does, and only looks.

    Args:
        url: As for the source.
        timeout: Seconds; to connect takes two at most where less is left.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: The driver is not installed.
        UnavailableError: The database is away or busy.
        MisconfiguredError: It refuses the user, or has no such database.
        SourceError: The table is not an audit table.
    """
    address = Address(url, TABLE, None)
    name, table = address.name, str(address.table)
    # SQLite would make an empty one
    if address.file is not None and not address.file.is_file():
        if address.file.parent.is_dir() and not address.file.exists():
            return AuditTable(name, table)
        message = f"{name}: there is no file {address.file}, and none can be made there; fix the URL"
        raise SourceError(message)
    database = Database(address)
    try:
        with database.transaction(timeout) as connection:
            query = address.dialect.clock
            clock = None if query is None else float(connection.exec_driver_sql(query).scalar_one())
            if not has_table(connection, address):
                return AuditTable(name, table, clock=clock)
            layout = layout_of(connection, address, SourceError)
    finally:
        database.close()
    lacking = tuple(column for column in OURS if column not in layout.written)
    return AuditTable(name, table, True, lacking, tuple(layout.demands), clock)
