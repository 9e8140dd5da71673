"""A journal's file: who has it, what is in it, and what SQLite makes of a disk.

The table ``events`` has a row for each event that some sink has yet to acknowledge. ``pending``
has one bit for each such sink; a row without any is deleted. The table ``sinks`` has
their names, their bits, and how many events each has yet to acknowledge. What users
import is in ``journal``.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel.delivery import Position, Record, Restarted, Unreadable
from constellation_otel.errors import (
    ConfigurationError,
    DecodeError,
    JournalError,
    MisconfiguredError,
    UnavailableError,
)
from constellation_otel.events import (
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    validated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

__all__ = [
    "DEFAULT_SINK",
    "Appender",
    "Database",
    "Reader",
    "claim",
    "drop_sink",
    "has_log",
    "held_for",
    "items_of",
    "known_bits",
    "open_database",
    "opening",
    "register",
    "register_any",
]

DEFAULT_SINK: Final = "journal-source"
"""The sink as which a ``JournalSource`` reads, unless told otherwise."""

_APPLICATION_ID: Final = 0x436F744A
_VERSION: Final = 1
_MAX_SINKS: Final = 62
_TIMEOUT: Final = 5.0
"""Seconds that a call waits for the file, and then for its lock, at most."""
_POLL: Final = 0.05
"""Seconds in which a call that waits notices that the time for it has become shorter."""
_FORK_TIMEOUT: Final = 1.0
"""Seconds that a fork waits for the calls that are being made, at most."""
_RESERVE_BYTES: Final = 8 * 2**20
"""Left free on the disk by appends, since acknowledging needs room, too: the log, and what it spills into the file."""
_LOG_BYTES: Final = 4 * 2**20
_LOG_PAGES: Final = 1000
_SPARE_PAGES: Final = 256
_VACUUM_PAGES: Final = 1024
_FORGET_ROWS: Final = 10_000
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
_USE_WAL: Final = "PRAGMA journal_mode = WAL"
_SETTINGS: Final = (
    "PRAGMA synchronous = FULL",
    f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}",
    f"PRAGMA journal_size_limit = {_LOG_BYTES}",
    # some builds overwrite what is deleted, which costs a write of every page
    "PRAGMA secure_delete = OFF",
)
_USED_AND_FREE_BYTES: Final = """SELECT (page_count - freelist_count) * page_size, freelist_count * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""

# one statement, since another process may be making the file
_WHAT_IS_IT: Final = """SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
    FROM pragma_application_id, pragma_user_version"""

_NOT_WRITABLE: Final = "see that the file and its folder are there and that this process may write to them"
_DAMAGED: Final = "it is no journal, or damaged: move it away, with its -wal file, and start with a new one"
_MEANINGS: Final[dict[int, tuple[type[UnavailableError], str]]] = {
    sqlite3.SQLITE_BUSY: (UnavailableError, "another process has been writing to it all the time; it is tried again"),
    sqlite3.SQLITE_FULL: (UnavailableError, "free some space on its disk"),
    sqlite3.SQLITE_READONLY: (MisconfiguredError, _NOT_WRITABLE),
    sqlite3.SQLITE_CANTOPEN: (MisconfiguredError, _NOT_WRITABLE),
    sqlite3.SQLITE_PERM: (MisconfiguredError, _NOT_WRITABLE),
    sqlite3.SQLITE_NOTADB: (MisconfiguredError, _DAMAGED),
    sqlite3.SQLITE_CORRUPT: (MisconfiguredError, _DAMAGED),
    sqlite3.SQLITE_ERROR: (MisconfiguredError, _DAMAGED),
}
_LOOK_AT_THE_DISK: Final = (UnavailableError, "look at its disk, and at this process's limits")

T = TypeVar("T")
_Mode: TypeAlias = Literal["rwc", "rw", "ro"]
"""How SQLite opens a file; ``rwc`` makes it where there is none."""
_Role: TypeAlias = Literal["append", "consume"]
"""What one process at a time may do."""


@contextmanager
def opening() -> Iterator[ExitStack]:
    """What is opened in it is closed again, unless the stack was emptied."""
    with ExitStack() as stack:
        try:
            yield stack
        except MisconfiguredError as error:
            raise JournalError(str(error)) from error


def open_database(stack: ExitStack, path: str | os.PathLike[str], mode: _Mode) -> Database:
    """Opens the file; the stack closes it."""
    database = Database(Path(path).resolve(), mode)
    stack.callback(database.close)
    return database


def has_log(path: str | os.PathLike[str]) -> bool:
    """Whether there is a write-ahead log beside the file, as when its writer is at work, or was killed.

    Who opens the file to write and is the last to close it folds the log into it. Who opens it to
    read makes SQLite's two files beside it and leaves them there. So what is to leave everything
    as it is opens to read where they are there, and to write where they are not.
    """
    try:
        return Path(f"{Path(path).resolve()}-wal").stat().st_size > 0
    except OSError:
        return False


def claim(stack: ExitStack, database: Database, *roles: _Role) -> None:
    """Takes the file for these roles; the stack gives them back, when it has closed the database."""
    for role in roles:
        stack.callback(_Lock(database.path, role).release)
    # closed before the locks go
    stack.callback(database.close)


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

    def append(self, events: Sequence[Event | None], timeout: float | None = None) -> int:
        """Appends events that were validated; answers how many, the first.

        ``None`` stands for a :class:`~constellation_otel.delivery.contract.Restarted`.

        ``timeout`` is in seconds; the usual ones where none is given.
        """
        rows = [_RESTARTED if event is None else _row(event) for event in events]
        with self._database.transaction(_TIMEOUT if timeout is None else timeout) as connection:
            used_bytes, free_bytes = connection.execute(_USED_AND_FREE_BYTES).fetchone()
            taken = rows[: _fitting(rows, self._max_bytes - used_bytes)]
            self._database.check_place(grows=_fitting(taken, free_bytes) < len(taken))
            if taken:
                mask = _mask_of_all(connection) if self._mask is None else self._mask
                connection.executemany(
                    f"INSERT INTO events (pending, execution_id, data) VALUES ({mask}, ?, ?)",  # noqa: S608 - a number of ours
                    taken,
                )
                connection.execute("UPDATE sinks SET held = held + ? WHERE bit & ?", (len(taken), mask))
        return len(taken)


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

    def read(self, after: int, limit: int) -> list[Record | Unreadable | Restarted]:
        start, end = self._gap
        if not start <= after <= end:
            start = end = after
        # asked first: what is appended between the two questions is not in the gap
        last = self._database.row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence", timeout=_TIMEOUT)[0]
        sql = "SELECT id, CAST(data AS BLOB) FROM events WHERE id > ? AND pending & ? ORDER BY id LIMIT ?"
        rows = self._database.rows(sql, end, self._bit, limit, timeout=_TIMEOUT)
        self._gap = (start, rows[0][0] - 1 if rows else max(end, last))
        return [_item(*row) for row in rows]

    def acknowledge(self, offsets: Iterable[int]) -> None:
        ranges = _ranges(offsets)
        try:
            self._settle(ranges)
        except UnavailableError:
            # on a full disk: what the log has moves into the file, and the log's space is written to anew
            self._writer.row("PRAGMA wal_checkpoint(PASSIVE)", timeout=_TIMEOUT)
            self._settle(ranges)

    def _settle(self, ranges: Sequence[tuple[int, int]]) -> None:
        with self._writer.transaction(_TIMEOUT) as connection:
            _settle(connection, self._bit, ranges)

    def held(self) -> int:
        (held,) = self._database.row("SELECT held FROM sinks WHERE name = ?", self._name, timeout=_TIMEOUT)
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
            message = f"{name!r} can be no sink's name; name it in characters that are text"
            raise ConfigurationError(message) from None
    with database.transaction(_TIMEOUT) as connection:
        sinks = connection.execute("SELECT name, bit, held FROM sinks").fetchall()
        bits = {name: bit for name, bit, _ in sinks}
        for name in names:
            if name not in bits:
                bits[name] = _free_bit(bits, database.path)
            # even where it is known: what cannot be written is to be known now
            connection.execute("INSERT OR IGNORE INTO sinks VALUES (?, ?, 0)", (name, bits[name]))
    held_for_others = {name: held for name, _, held in sinks if held and name not in names}
    return {name: bits[name] for name in names}, held_for_others


def held_for(database: Database) -> dict[str, int]:
    """How many events the file holds for each sink that it knows."""
    return dict(database.rows("SELECT name, held FROM sinks", timeout=_TIMEOUT))


def known_bits(database: Database) -> dict[str, int]:
    """The bits of the sinks that the file knows."""
    return dict(database.rows("SELECT name, bit FROM sinks", timeout=_TIMEOUT))


def register_any(database: Database) -> None:
    """Makes :data:`DEFAULT_SINK` known to the file where it knows no sink yet."""
    with database.transaction(_TIMEOUT) as connection:
        _mask_of_all(connection)


def drop_sink(database: Database, sink: str) -> int:
    """Drops a sink, in many small transactions; answers how many events it had yet to acknowledge.

    Raises:
        ValueError: The file does not know it.
    """
    known = known_bits(database)
    if sink not in known:
        message = f"{database.path} knows no sink {sink!r}, only {sorted(known)}"
        raise ValueError(message)
    after, dropped = 0, 0
    while True:
        with database.transaction(_TIMEOUT) as connection:
            last = _last_of_chunk(connection, after)
            if last is None:
                # in the same transaction that finds nothing left, or appends would slip in between
                connection.execute("DELETE FROM sinks WHERE name = ?", (sink,))
                return dropped
            dropped += _settle(connection, known[sink], [(after + 1, last)])
            after = last


def items_of(database: Database, execution_id: UUID) -> list[Record | Unreadable]:
    """The rows of one execution, in order."""
    sql = "SELECT id, CAST(data AS BLOB) FROM events WHERE execution_id = ? ORDER BY id"
    items = (_item(*row) for row in database.rows(sql, execution_id.bytes, timeout=_TIMEOUT))
    return [item for item in items if not isinstance(item, Restarted)]


def _settle(connection: sqlite3.Connection, bit: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Takes a sink's bit from the rows in the ranges, and answers from how many."""
    deleted = connection.executemany(
        f"DELETE FROM events WHERE id BETWEEN ? AND ? AND pending = {bit}",  # noqa: S608 - a number of ours
        ranges,
    ).rowcount
    marked = connection.executemany(
        f"UPDATE events SET pending = pending & ~{bit} WHERE id BETWEEN ? AND ? AND pending & {bit}",  # noqa: S608 - as above
        ranges,
    ).rowcount
    count = deleted + marked
    if count:
        connection.execute("UPDATE sinks SET held = held - ? WHERE bit = ?", (count, bit))
    (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free_pages - _SPARE_PAGES, _VACUUM_PAGES)):
        # one page a call, whatever the number: Python takes the statement's first step only
        connection.execute("PRAGMA incremental_vacuum(1)")
    return count


def _ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last of each unbroken run."""
    ranges: list[tuple[int, int]] = []
    for offset in sorted(set(offsets)):
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges


def _fitting(rows: Sequence[_Row], room_bytes: int) -> int:
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


def _last_of_chunk(connection: sqlite3.Connection, after: int) -> int | None:
    sql = "SELECT max(id) FROM (SELECT id FROM events WHERE id > ? ORDER BY id LIMIT ?)"
    last: int | None
    (last,) = connection.execute(sql, (after, _FORGET_ROWS)).fetchone()
    return last


def _free_bit(bits: dict[str, int], path: Path) -> int:
    for number in range(_MAX_SINKS):
        if 1 << number not in bits.values():
            return 1 << number
    message = f"{path} knows {_MAX_SINKS} sinks, and no more are possible: forget one of {sorted(bits)}"
    raise JournalError(message)


class _Row(NamedTuple):
    """An event as the file has it."""

    execution_id: bytes
    data: bytes


_TYPES: Final[dict[str, type[Event]]] = {
    "execution.started": ExecutionStarted,
    "module.started": ModuleStarted,
    "module.completed": ModuleCompleted,
    "module.failed": ModuleFailed,
    "execution.completed": ExecutionCompleted,
    "execution.cancelled": ExecutionCancelled,
}
_KINDS: Final = {cls: kind for kind, cls in _TYPES.items()}
_ENCODER: Final = msgspec.msgpack.Encoder(uuid_format="bytes")
_ENVELOPE: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in _TYPES.items()}


# an event of a kind that other versions do not know, and of no execution
_RESTARTED: Final = _Row(b"", _ENCODER.encode(("engine.restarted", {})))


def _row(event: Event) -> _Row:
    """A pair in MessagePack: the event's kind, and its fields by name, so that they may become more."""
    return _Row(event.execution_id.bytes, _ENCODER.encode((_KINDS[type(event)], event)))


def _item(offset: int, data: bytes) -> Record | Unreadable | Restarted:
    position = Position(None, offset)
    if data == _RESTARTED.data:
        return Restarted(position)
    try:
        return Record(_event(data), position)
    except DecodeError as error:
        return Unreadable(data, str(error), position)


def _event(data: bytes) -> Event:
    try:
        kind, fields = _ENVELOPE.decode(data)
        if kind not in _DECODERS:
            message = f"the journal's event is of an unknown kind, {kind!r}; a newer version may read it"
            raise DecodeError(message)
        return validated(_DECODERS[kind].decode(fields)).event
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
        if isinstance(error, DecodeError):
            raise
        message = f"the journal's event is damaged: {error}"
        raise DecodeError(message) from error


class Database:
    """A connection to the file, and the lock of who uses it.

    Args:
        path: The file, resolved.
        mode: ``rwc`` makes it where there is none.

    Raises:
        JournalError: It is no journal of this version.
        MisconfiguredError: It cannot be used, or is damaged.
        UnavailableError: It is busy, or the disk is full.
    """

    def __init__(self, path: Path, mode: _Mode) -> None:
        self.path = path
        if not path.parent.is_dir():
            message = f"{path} has no folder to be in; make {path.parent}, or mend the path"
            raise JournalError(message)
        if path.is_dir():
            message = f"{path} is a folder; add the journal's file to the path"
            raise JournalError(message)
        if mode != "rwc" and not path.exists():
            message = f"there is no journal {path}; mend the path"
            raise JournalError(message)
        if path.exists() and _file_id(path) in _INHERITED:
            raise JournalError(_not_across_fork(path))
        self._finish_by = inf
        self._is_closed = False
        self._used_since = 0.0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._why_not = f"{path} is closed; open it again"
        _mind_forks()
        _DATABASES.add(self)
        after_fork_in_child(self._forked)
        try:
            self._connect(mode)
        except sqlite3.Error as error:
            self.close()
            raise _explained(path, error) from error
        except JournalError:
            self.close()
            raise

    def _connect(self, mode: _Mode) -> None:
        with self._lock:
            # its use by several threads is the lock's business
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                uri=True,
                timeout=_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            _prepare(self._connection, self.path, mode)
            # in small steps, between which _patiently looks at the time
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * _POLL)}")
            self._file_id = _file_id(self.path)

    def finish_by(self, deadline: float) -> None:
        """Has no call wait for the file any longer than until then, those that are being made included.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        self._finish_by = deadline

    def rows(self, sql: str, *values: object, timeout: float) -> list[tuple[Any, ...]]:
        """All rows that a statement gives."""
        deadline = deadline_of(timeout)
        with self._using(deadline) as connection:
            return self._patiently(lambda: connection.execute(sql, values).fetchall(), deadline)

    def row(self, sql: str, *values: object, timeout: float) -> tuple[Any, ...]:
        """The one row that a statement gives."""
        (row,) = self.rows(sql, *values, timeout=timeout)
        return row

    @contextmanager
    def transaction(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """All that is done in it, or nothing; on the disk when it has ended."""
        deadline = deadline_of(timeout)
        with self._using(deadline) as connection:
            self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"), deadline)
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def check_place(self, *, grows: bool) -> None:
        """Sees that what is written can be found again, and does not fill up the disk.

        Where it did, nothing could be acknowledged either, and so nothing deleted.
        """
        try:
            file_id, disk = _file_id(self.path), os.statvfs(self.path)
        except OSError as error:
            raise MisconfiguredError(_gone(self.path)) from error
        if file_id != self._file_id:
            raise MisconfiguredError(_gone(self.path))
        free_bytes = disk.f_bavail * disk.f_frsize
        # a file system without any blocks does not tell
        if grows and disk.f_blocks and free_bytes < _RESERVE_BYTES:
            message = (
                f"the disk of {self.path} is full: {free_bytes} bytes are free, and {_RESERVE_BYTES} are left"
                " for acknowledging; free some space"
            )
            raise UnavailableError(message)

    def size_bytes(self) -> int:
        """Bytes in use in the file."""
        used_bytes, _ = self.row(_USED_AND_FREE_BYTES, timeout=_TIMEOUT)
        return int(used_bytes)

    def close(self) -> None:
        """Lets go of the connection; once more does nothing.

        Where a thread is in a call that does not return, such as one that waits for a disk
        that hangs, that thread lets go of it when the call has returned.
        """
        self._is_closed = True
        self._let_go(min(_TIMEOUT, seconds_left(self._finish_by)))

    def _let_go(self, timeout: float) -> None:
        """Closes the connection, unless somebody uses it, who does so then."""
        lock = self._lock
        if lock.acquire(timeout=timeout):
            try:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            finally:
                lock.release()

    @contextmanager
    def _using(self, deadline: float) -> Iterator[sqlite3.Connection]:
        lock = self._lock
        while not lock.acquire(timeout=min(_POLL, self._left(deadline))):
            if not self._left(deadline):
                message = f"{self.path} is busy: another thread has been using it all the time; it is tried again"
                raise UnavailableError(message)
        try:
            self._used_since = time.monotonic()
            if self._connection is None or self._is_closed:
                raise JournalError(self._why_not)
            yield self._connection
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error
        finally:
            lock.release()
            if self._is_closed:
                # whoever closed it may not have waited
                self._let_go(0.0)

    def _patiently(self, call: Callable[[], T], deadline: float) -> T:
        """Makes a call again for as long as the file is busy and there is time."""
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or not self._left(deadline):
                    raise

    def _left(self, deadline: float) -> float:
        return seconds_left(min(deadline, self._finish_by))

    def pause(self, deadline: float) -> bool:
        """Whether the connection's lock could be taken, so that nobody is inside SQLite.

        A call that has taken very long already is not waited for: the next fork would, too.
        """
        return self._lock.acquire(timeout=seconds_left(min(deadline, self._used_since + _FORK_TIMEOUT)))

    def _forked(self) -> None:
        """SQLite's locks on files are the parent's alone, so not even a close is allowed here."""
        self._lock = threading.Lock()
        if self._connection is not None:
            leaked = _Leaked(self._connection)
            leaked.itself = leaked
            self._connection = None
            self._why_not = _not_across_fork(self.path)
            # a file that is gone cannot be opened anyway
            with suppress(OSError):
                _INHERITED.add(_file_id(self.path))


class _Leaked(Struct, gc=False):
    """Keeps a connection from ever being closed: a cycle that the garbage collector does not see."""

    connection: sqlite3.Connection
    itself: Any = None


_INHERITED: Final[set[tuple[int, int]]] = set()
"""Device and inode of what the parent process had open when this one was forked."""
_DATABASES: Final[weakref.WeakSet[Database]] = weakref.WeakSet()
_PAUSED: Final[dict[int, list[threading.Lock]]] = {}
"""The locks that a thread which forks has taken, by its identifier."""


@cache
def _mind_forks() -> None:
    """A fork waits for those who are inside SQLite, or its mutexes would stay locked in the child for ever."""
    os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_resume)


def _pause() -> None:
    # one deadline for all: a fork that comes too soon is better than none
    deadline = deadline_of(_FORK_TIMEOUT)
    _PAUSED[threading.get_ident()] = [
        database._lock  # noqa: SLF001 - one thing with the class
        for database in list(_DATABASES)
        if database.pause(deadline)
    ]


def _resume() -> None:
    for lock in _PAUSED.pop(threading.get_ident()):
        lock.release()


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _gone(path: Path) -> str:
    return f"{path} was moved, deleted or replaced while it was open: put it back, or restart to begin a new one"


def _not_across_fork(path: Path) -> str:
    return (
        f"{path} was open in the process that forked this one, and SQLite files cannot be shared across a fork:"
        " open it after the fork, or spawn processes rather than fork them"
    )


def _explained(path: Path, error: sqlite3.Error) -> UnavailableError:
    kind, remedy = _MEANINGS.get(_code(error), _LOOK_AT_THE_DISK)
    return kind(f"{path}: {error}; {remedy}")


def _code(error: sqlite3.Error) -> int:
    """SQLite's result code without its details; an error of Python's module itself has none."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _prepare(connection: sqlite3.Connection, path: Path, mode: _Mode) -> None:
    """Sees that the file is a journal of this version, after having made it one if it was empty."""
    is_empty = _is_empty(connection, path)
    if is_empty and mode != "rwc":
        message = f"{path} is an empty file and no journal yet; mend the path, or append to it first"
        raise JournalError(message)
    if is_empty:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN EXCLUSIVE")
        # another process may have been quicker
        for statement in _CREATE if _is_empty(connection, path) else ():
            connection.execute(statement)
        connection.commit()
    if mode != "ro":
        _use_wal(connection, path)
        for setting in _SETTINGS:
            connection.execute(setting)


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
    if version != _VERSION:
        message = (
            f"{path} is a journal of version {version}, and this release has version {_VERSION}; empty it with the"
            " release that made it, or use another file"
        )
        raise JournalError(message)
    return False


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switches to the write-ahead log, for which SQLite does not wait by itself while another reads."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            (mode,) = connection.execute(_USE_WAL).fetchone()
            break
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL)
    if mode != "wal":
        message = f"{path} is where SQLite has no write-ahead log (it is {mode!r}); put it on a local disk"
        raise JournalError(message)


class _Lock:
    """Who appends, or consumes: a lock on a file beside the journal, which the kernel lets go of with the process.

    Raises:
        JournalError: Another one has it, or the lock's file cannot be made.
    """

    def __init__(self, path: Path, role: _Role) -> None:
        name = path.with_name(f"{path.name}.{role}-lock")
        try:
            self._file: int | None = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            message = f"{name} cannot be opened: {error.strerror}; {_NOT_WRITABLE}"
            raise JournalError(message) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 20, 0).decode() or "that has only just started"
            self.release()
            message = (
                f"process {holder} has {path} to {role}, as only one at a time may;"
                " stop that one first, or use another file"
            )
            raise JournalError(message) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)
        # the child's copy would hold the lock after this process has ended
        after_fork_in_child(self.release)

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
