"""What is in a journal's file: the tables, the events in them, and which sink has yet to acknowledge which.

The table ``events`` has rows of events that some sink has yet to acknowledge: a run of events of
one execution that were appended together, 64 at most, is one row. Its id is the first event's
offset, the others' follow. ``pending`` has one bit for each sink; a row without any is deleted.
The table ``sinks`` has their names, their bits, and how many events each has yet to
acknowledge. What users import is in ``journal``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from constellation_otel.delivery import Batch, Position, Restarted, Unreadable
from constellation_otel.delivery.journal.database import RESERVE_BYTES, TIMEOUT, Database, Mode
from constellation_otel.errors import ConfigurationError, DecodeError, JournalError, UnavailableError
from constellation_otel.events import EVENT_TYPES, Event, is_valid, validated

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Iterable, Sequence
    from contextlib import ExitStack
    from uuid import UUID

__all__ = [
    "DEFAULT_SINK",
    "Appender",
    "Gathered",
    "Reader",
    "drop_sink",
    "held_for",
    "items_after",
    "items_of",
    "known_bits",
    "open_database",
    "prepare",
    "register",
    "register_any",
    "row_of",
]

DEFAULT_SINK: Final = "journal-source"
"""The sink as which a ``JournalSource`` reads, unless told otherwise."""

_APPLICATION_ID: Final = 0x436F744A
_VERSION: Final = 2
_READABLE_VERSIONS: Final = {1, 2}
"""In version 1 every row is one event; it becomes version 2 when it is next appended to."""
_MAX_RUN: Final = 64
"""Events in a row."""
_MAX_SINKS: Final = 62
_SPARE_PAGES: Final = 256
_VACUUM_PAGES: Final = 1024
_ROW_BYTES: Final = 128
"""What a row takes beside its data, on the large side: the row's head, the index's entry, what pages leave empty."""

_CREATE: Final = (
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        pending INTEGER NOT NULL,
        execution_id BLOB NOT NULL,
        data BLOB NOT NULL
    )""",
    "CREATE INDEX events_of_execution ON events (execution_id)",
    "CREATE TABLE sinks (name TEXT PRIMARY KEY, bit INTEGER NOT NULL UNIQUE, held INTEGER NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_USED_AND_FREE_BYTES: Final = """SELECT (page_count - freelist_count) * page_size, freelist_count * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""

# one statement, since another process may be making the file
_WHAT_IS_IT: Final = """SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
    FROM pragma_application_id, pragma_user_version"""


def open_database(
    stack: ExitStack,
    path: str | os.PathLike[str],
    mode: Mode,
    *,
    timeout: float = TIMEOUT,
    reserve_bytes: int = RESERVE_BYTES,
) -> Database:
    """Opens the file; the stack closes it. See :class:`~.database.Database` for the arguments."""
    database = Database(Path(path).resolve(), mode, prepare, timeout=timeout, reserve_bytes=reserve_bytes)
    stack.callback(database.close)
    return database


def prepare(connection: sqlite3.Connection, path: Path, mode: Mode) -> None:
    """Sees that the file is a journal of this version, after having made it one if it was empty."""
    is_empty = _is_empty(connection, path)
    if is_empty and mode != "rwc":
        message = f"{path} is an empty file and no journal yet; fix the path, or append to it first"
        raise JournalError(message)
    if is_empty:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN EXCLUSIVE")
        # another process may have been quicker
        for statement in _CREATE if _is_empty(connection, path) else ():
            connection.execute(statement)
        connection.commit()


def _is_empty(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there is nothing in the file.

    Raises:
        JournalError: There is, and it is no journal of this version.
    """
    application_id, version, tables = connection.execute(_WHAT_IS_IT).fetchone()
    if (application_id, version, tables) == (0, 0, 0):
        return True
    if application_id != _APPLICATION_ID:
        message = (
            f"{path} is another application's SQLite file (application_id {application_id:#x}, a journal's is"
            f" {_APPLICATION_ID:#x}); use another file"
        )
        raise JournalError(message)
    if version not in _READABLE_VERSIONS:
        message = (
            f"{path} is a journal of version {version}, and this release has version {_VERSION}; empty it with the"
            " release that made it, or use another file"
        )
        raise JournalError(message)
    return False


class Appender:
    """Writes events, for as long as there is room.

    Args:
        database: Where to.
        max_bytes: Bytes in use, at most.
        mask: The bits of the sinks to append for; ``None``: of all that the file knows.
    """

    def __init__(self, database: Database, max_bytes: int, mask: int | None) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._mask = mask
        self._is_of_this_version = False

    def append(self, events: Sequence[Event | None], timeout: float | None = None) -> int:
        """Appends events that were validated; answers how many, the first.

        ``None`` stands for a :class:`~constellation_otel.delivery.contract.Restarted`.

        ``timeout`` is in seconds; the usual ones where none is given.
        """
        rows = _rows_of(events)
        with self._database.transaction(timeout) as connection:
            used_bytes, free_bytes = connection.execute(_USED_AND_FREE_BYTES).fetchone()
            taken = rows[: _fitting(rows, self._max_bytes - used_bytes)]
            self._database.check_place(grows=_fitting(taken, free_bytes) < len(taken))
            count = sum(row.size for row in taken)
            if taken:
                self._insert(connection, taken, count)
        return count

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[Row], count: int) -> None:
        mask = _mask_of_all(connection) if self._mask is None else self._mask
        (last,) = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        placed, next_id = [], last + 1
        for row in rows:
            placed.append((next_id, row.execution_id, row.data))
            next_id += row.size
        connection.executemany(
            f"INSERT INTO events (id, pending, execution_id, data) VALUES (?, {mask}, ?, ?)",  # noqa: S608 - a number of ours
            placed,
        )
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (next_id - 1,))
        connection.execute("UPDATE sinks SET held = held + ? WHERE bit & ?", (count, mask))
        if not self._is_of_this_version:
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._is_of_this_version = True

    def size_bytes(self) -> int:
        """Bytes in use in the file."""
        used_bytes, _ = self._database.row(_USED_AND_FREE_BYTES)
        return int(used_bytes)


class Reader:
    """What one sink has yet to acknowledge.

    Args:
        database: Where it is read.
        writer: Where it is acknowledged.
        name: The sink.
        bit: The sink's bit in ``pending``.
    """

    def __init__(self, database: Database, writer: Database, name: str, bit: int) -> None:
        self._database = database
        self._writer = writer
        self._name = name
        self._bit = bit
        # between these two offsets nothing is pending, nor will be: other sinks' rows, which need no second look
        self._gap = (0, 0)
        # the last offset of the last row that was read whole
        self._end_of_row = 0
        self._events_in_a_row = 1

    def read(self, after: int, limit: int) -> list[Batch | Unreadable | Restarted]:
        start, end = self._gap
        if not start <= after <= end:
            start = end = after
        is_in_a_row = end == after != self._end_of_row
        # asked first: what is appended between the two questions is not in the gap
        last = self._database.row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence")[0]
        sql = "SELECT id, CAST(data AS BLOB) FROM events WHERE id > ? AND pending & ? ORDER BY id LIMIT ?"
        count = -(-limit // self._events_in_a_row)
        rows = self._database.rows(
            sql, end - _MAX_RUN if is_in_a_row else end, self._bit, count + is_in_a_row * _MAX_RUN
        )
        gathered = Gathered(after, limit)
        for number, data in rows:
            gathered.add(number, data)
        if gathered.count:
            self._gap = (start, gathered.first - 1)
            self._events_in_a_row = max(gathered.count // len(rows), 1)
        else:
            self._gap = (start, max(end, last))
        # after what is not there yet anything may come, a row that begins before it as well
        self._end_of_row = gathered.end_of_row if after <= last else 0
        return gathered.items

    def acknowledge(self, offsets: Iterable[int]) -> None:
        ranges = _ranges(offsets)
        try:
            self._settle(ranges)
        except UnavailableError:
            # on a full disk: what the log has moves into the file, and the log's space is written to anew
            self._writer.row("PRAGMA wal_checkpoint(PASSIVE)")
            self._settle(ranges)

    def _settle(self, ranges: Sequence[tuple[int, int]]) -> None:
        with self._writer.transaction() as connection:
            _settle(connection, self._bit, ranges)

    def held(self) -> int:
        (held,) = self._database.row("SELECT held FROM sinks WHERE name = ?", self._name)
        return int(held)


def register(database: Database, names: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Makes sinks known to the file; answers their bits, and how many events it holds for others, if any.

    Raises:
        ConfigurationError: A name is no text.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeError:
            message = f"{name!r} cannot be a sink's name: it has characters that are not text; use another name"
            raise ConfigurationError(message) from None
    with database.transaction() as connection:
        sinks = connection.execute("SELECT name, bit, held FROM sinks").fetchall()
        bits = {name: bit for name, bit, _ in sinks}
        for name in names:
            if name not in bits:
                bits[name] = _free_bit(bits, database.path)
            # even where it is known: what cannot be written is to be known now
            connection.execute("INSERT OR IGNORE INTO sinks VALUES (?, ?, 0)", (name, bits[name]))
    held_for_others = {name: held for name, _, held in sinks if held and name not in names}
    return {name: bits[name] for name in names}, held_for_others


def register_any(database: Database) -> None:
    """Makes :data:`DEFAULT_SINK` known to the file where it knows no sink yet."""
    with database.transaction() as connection:
        _mask_of_all(connection)


def held_for(database: Database) -> dict[str, int]:
    """How many events the file holds for each sink that it knows."""
    return dict(database.rows("SELECT name, held FROM sinks"))


def known_bits(database: Database) -> dict[str, int]:
    """The bits of the sinks that the file knows."""
    return dict(database.rows("SELECT name, bit FROM sinks"))


def drop_sink(database: Database, sink: str, rows: int) -> int:
    """Drops a sink, in transactions of so many rows; answers how many events it had yet to acknowledge.

    Raises:
        ValueError: The file does not know it.
    """
    known = known_bits(database)
    if sink not in known:
        message = f"{database.path} knows no sink {sink!r}, only {sorted(known)}"
        raise ValueError(message)
    after, dropped = 0, 0
    while True:
        with database.transaction() as connection:
            last = _last_of_chunk(connection, after, rows)
            if last is None:
                # in the same transaction that finds nothing left, or appends would slip in between
                connection.execute("DELETE FROM sinks WHERE name = ?", (sink,))
                return dropped
            dropped += _settle(connection, known[sink], [(after + 1, last)])
            after = last


def items_of(database: Database, execution_id: UUID) -> list[Batch | Unreadable | Restarted]:
    """The rows of one execution, in order."""
    sql = "SELECT id, CAST(data AS BLOB) FROM events WHERE execution_id = ? ORDER BY id"
    gathered = Gathered()
    for number, data in database.rows(sql, execution_id.bytes):
        gathered.add(number, data)
    return gathered.items


def items_after(database: Database, row: int, limit: int) -> tuple[list[Batch | Unreadable | Restarted], int]:
    """The rows behind one, in order, at most so many, and the last of them; the same row where there are none."""
    sql = "SELECT id, CAST(data AS BLOB) FROM events WHERE id > ? ORDER BY id LIMIT ?"
    gathered = Gathered()
    for number, data in database.rows(sql, row, limit):
        gathered.add(number, data)
        row = number
    return gathered.items, row


def _settle(connection: sqlite3.Connection, bit: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Takes a sink's bit from the events in the ranges of offsets, and answers from how many."""
    sql = f"SELECT id, substr(CAST(data AS BLOB), 1, 3) FROM events WHERE id BETWEEN ? AND ? AND pending & {bit}"  # noqa: S608 - a number of ours
    count, whole = 0, list[int]()
    for first, last in ranges:
        # a row that begins before may have some of them
        for number, head in connection.execute(sql, (first - _MAX_RUN + 1, last)).fetchall():
            end = number + _count_in(head) - 1
            if end < first:
                continue
            if (number < first or end > last) and _split(connection, bit, number, first, last):
                count += min(end, last) - max(number, first) + 1
            else:
                count += end - number + 1
                whole.append(number)
    runs = _ranges(whole)
    connection.executemany(
        f"DELETE FROM events WHERE id BETWEEN ? AND ? AND pending = {bit}",  # noqa: S608 - a number of ours
        runs,
    )
    connection.executemany(
        f"UPDATE events SET pending = pending & ~{bit} WHERE id BETWEEN ? AND ? AND pending & {bit}",  # noqa: S608 - a number of ours
        runs,
    )
    if count:
        connection.execute("UPDATE sinks SET held = held - ? WHERE bit = ?", (count, bit))
    (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free_pages - _SPARE_PAGES, _VACUUM_PAGES)):
        # one page a call, whatever the number: Python takes the statement's first step only
        connection.execute("PRAGMA incremental_vacuum(1)")
    return count


def _split(connection: sqlite3.Connection, bit: int, number: int, first: int, last: int) -> bool:
    """Makes of a row as many as it takes for a sink's bit to go from some of its events only.

    Answers whether that was possible: what is damaged goes as a whole.
    """
    pending, execution_id, data = connection.execute(
        "SELECT pending, execution_id, CAST(data AS BLOB) FROM events WHERE id = ?", (number,)
    ).fetchone()
    try:
        pairs = _RUN.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    connection.execute("DELETE FROM events WHERE id = ?", (number,))
    start, stop = max(first - number, 0), min(last - number + 1, len(pairs))
    for begin, end, bits in ((0, start, pending), (start, stop, pending & ~bit), (stop, len(pairs), pending)):
        if begin < end and bits:
            row = (number + begin, bits, execution_id, _ENCODER.encode(pairs[begin:end]))
            connection.execute("INSERT INTO events (id, pending, execution_id, data) VALUES (?, ?, ?, ?)", row)
    return True


def _ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last of each unbroken run."""
    ranges: list[tuple[int, int]] = []
    for offset in sorted(set(offsets)):
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges


def _fitting(rows: Sequence[Row], room_bytes: int) -> int:
    """How many of the rows, from the first, find room."""
    for count, row in enumerate(rows):
        room_bytes -= len(row.data) + _ROW_BYTES
        if room_bytes < 0:
            return count
    return len(rows)


def _mask_of_all(connection: sqlite3.Connection) -> int:
    """The bits of all sinks that the file knows; it knows one from now on, at least."""
    connection.execute("INSERT INTO sinks SELECT ?, 1, 0 WHERE NOT EXISTS (SELECT 1 FROM sinks)", (DEFAULT_SINK,))
    (mask,) = connection.execute("SELECT sum(bit) FROM sinks").fetchone()
    return int(mask)


def _last_of_chunk(connection: sqlite3.Connection, after: int, rows: int) -> int | None:
    sql = "SELECT max(id) FROM (SELECT id FROM events WHERE id > ? ORDER BY id LIMIT ?)"
    last: int | None
    (last,) = connection.execute(sql, (after, rows)).fetchone()
    return last


def _free_bit(bits: dict[str, int], path: Path) -> int:
    for number in range(_MAX_SINKS):
        if 1 << number not in bits.values():
            return 1 << number
    message = f"{path} knows {_MAX_SINKS} sinks, and no more are possible: forget one of {sorted(bits)}"
    raise JournalError(message)


class Row(NamedTuple):
    """A run of events as the file has it."""

    execution_id: bytes
    size: int
    data: bytes


_ENCODER: Final = msgspec.msgpack.Encoder(uuid_format="bytes")
_ENVELOPE: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_RUN: Final = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw]])
_PAIR: Final = 0x92
_ARRAY_16: Final = 0xDC
_LONGEST_FIXARRAY: Final = 0x9F
"""MessagePack's first bytes of an array of two, of one with more than 15 elements, and of one with 15."""
_DECODERS: Final = {cls.kind: msgspec.msgpack.Decoder(cls) for cls in EVENT_TYPES}
# an event of a kind that other versions do not know, and of no execution
_RESTARTED: Final = Row(b"", 1, _ENCODER.encode(("engine.restarted", {})))


def _rows_of(events: Sequence[Event | None]) -> list[Row]:
    """Runs of events of one execution; ``None`` is a row of its own."""
    rows: list[Row] = []
    run: list[Event] = []
    for event in events:
        if run and (event is None or len(run) == _MAX_RUN or event.execution_id is not run[0].execution_id):
            if event is not None and len(run) < _MAX_RUN and event.execution_id == run[0].execution_id:
                run.append(event)
                continue
            rows.append(row_of(run))
            run = []
        if event is None:
            rows.append(_RESTARTED)
        else:
            run.append(event)
    if run:
        rows.append(row_of(run))
    return rows


def row_of(events: Sequence[Event]) -> Row:
    """In MessagePack a pair for each event: its kind, and its fields by name, so that they may become more."""
    pairs = [(event.kind, event) for event in events]
    return Row(events[0].execution_id.bytes, len(pairs), _ENCODER.encode(pairs))


def _is_run(data: bytes) -> bool:
    """Whether a row is a run; otherwise it is one pair, as version 1 wrote it."""
    return data[0] == _ARRAY_16 or data[1:2] == bytes([_PAIR])


def _count_in(data: bytes) -> int:
    """How many events a row has, by its beginning."""
    if not data or not _is_run(data):
        return 1
    if data[0] == _ARRAY_16:
        count = int.from_bytes(data[1:3])
        return count if 0 < count <= _MAX_RUN else 1
    return data[0] & 0x0F if _PAIR - 2 < data[0] <= _LONGEST_FIXARRAY else 1


class Gathered:
    """What a source gives for rows.

    Args:
        after: The offset that the first event comes after.
        limit: Events and the like, at most.

    Attributes:
        items: Their events in batches, and what cannot be read.
        count: How many events and the like that is.
        first: The first one's offset; 0 if there is none.
        end_of_row: The last offset of the last row of which nothing is left.
    """

    def __init__(self, after: int = 0, limit: int = sys.maxsize) -> None:
        self.items: list[Batch | Unreadable | Restarted] = []
        self.count = 0
        self.first = 0
        self.end_of_row = after
        self._after = after
        self._limit = limit
        self._batch: Batch | None = None
        self._offsets: list[int] = []

    def add(self, number: int, data: bytes) -> None:
        """Takes in a row, as far as there is room: its id, and its events as the file has them."""
        size = _count_in(data)
        start = max(self._after + 1 - number, 0)
        stop = min(start + self._limit - self.count, size)
        if start >= stop:
            return
        if stop == size:
            self.end_of_row = number + size - 1
        self.first = self.first or number + start
        self.count += stop - start
        if data == _RESTARTED.data:
            self._put(Restarted(Position(None, number)))
            return
        try:
            pairs = _RUN.decode(data) if data and _is_run(data) else [_ENVELOPE.decode(data)]
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            reason = f"the event in the journal is damaged: {error}"
            for at in range(start, stop):
                self._put(Unreadable(data, reason, Position(None, number + at)))
            return
        for at in range(start, stop):
            try:
                event = _event(pairs[at])
            except DecodeError as error:
                self._put(Unreadable(_ENCODER.encode(pairs[at]), str(error), Position(None, number + at)))
                continue
            if self._batch is None:
                self._offsets = []
                self._batch = Batch([], self._offsets)
                self.items.append(self._batch)
            self._batch.events.append(event)
            self._offsets.append(number + at)

    def _put(self, item: Unreadable | Restarted) -> None:
        self._batch = None
        self.items.append(item)


def _event(pair: tuple[str, msgspec.Raw]) -> Event:
    kind, fields = pair
    decoder = _DECODERS.get(kind)
    if decoder is None:
        message = f"the event in the journal is of an unknown kind, {kind!r}; a newer version may read it"
        raise DecodeError(message)
    try:
        event = decoder.decode(fields)
        return event if is_valid(event) else validated(event).event
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
        message = f"the event in the journal is damaged: {error}"
        raise DecodeError(message) from error
