"""A journal's file as SQLite has it: who may use it, for how long a call waits, and what a fork does to it.

What is in the file is in ``rows``.
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
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import Struct

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel.errors import JournalError, MisconfiguredError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RESERVE_BYTES", "TIMEOUT", "Database", "Mode", "claim", "has_log", "opening", "use_log"]

TIMEOUT: Final = 5.0
"""Seconds that a call waits for the file, and then for its lock, at most, unless told otherwise."""
_POLL: Final = 0.05
"""Seconds in which a call that waits notices that the time for it has become shorter."""
_FORK_TIMEOUT: Final = 1.0
"""Seconds that a fork waits for the calls that are being made, at most."""
RESERVE_BYTES: Final = 8 * 2**20
"""Left free on the disk by appends, since acknowledging needs room, too: the log, and what it spills into the file."""
_LOG_BYTES: Final = 4 * 2**20
_LOG_PAGES: Final = 1000
_USE_WAL: Final = "PRAGMA journal_mode = WAL"
_SETTINGS: Final = (
    "PRAGMA synchronous = FULL",
    f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}",
    f"PRAGMA journal_size_limit = {_LOG_BYTES}",
    # some builds overwrite what is deleted, which costs a write of every page
    "PRAGMA secure_delete = OFF",
)

_NOT_WRITABLE: Final = "check that the file and its folder exist and that this process may write to them"
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
_LOOK_AT_THE_DISK: Final = (UnavailableError, "check its disk, and this process's limits")

T = TypeVar("T")
Mode: TypeAlias = Literal["rwc", "rw", "ro"]
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


class Database:
    """A connection to the file, and the lock of who uses it.

    Args:
        path: The file, resolved.
        mode: ``rwc`` makes it where there is none.
        prepare: Sees that the file is what it should be, or makes it that.
        timeout: Seconds that a call waits for the file, and then for its lock.
        reserve_bytes: Left free on the disk by what makes the file grow.

    Raises:
        JournalError: It is no journal of this version.
        MisconfiguredError: It cannot be used, or is damaged.
        UnavailableError: It is busy, or the disk is full.
    """

    def __init__(
        self,
        path: Path,
        mode: Mode,
        prepare: Callable[[sqlite3.Connection, Path, Mode], None],
        *,
        timeout: float = TIMEOUT,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.path = path
        self._timeout = timeout
        self._reserve_bytes = reserve_bytes
        if not path.parent.is_dir():
            message = f"the folder of {path} does not exist; create {path.parent}, or fix the path"
            raise JournalError(message)
        if path.is_dir():
            message = f"{path} is a folder; add the journal's file to the path"
            raise JournalError(message)
        if mode != "rwc" and not path.exists():
            message = f"there is no journal at {path}; fix the path"
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
            self._connect(mode, prepare)
        except sqlite3.Error as error:
            self.close()
            raise _explained(path, error) from error
        except JournalError:
            self.close()
            raise

    def _connect(self, mode: Mode, prepare: Callable[[sqlite3.Connection, Path, Mode], None]) -> None:
        with self._lock:
            # its use by several threads is the lock's business
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                uri=True,
                timeout=self._timeout,
                isolation_level=None,
                check_same_thread=False,
            )
            prepare(self._connection, self.path, mode)
            if mode != "ro":
                use_log(self._connection, self.path, self._timeout)
                for setting in _SETTINGS:
                    self._connection.execute(setting)
            # in small steps, between which _patiently looks at the time
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * _POLL)}")
            self._file_id = _file_id(self.path)

    def finish_by(self, deadline: float) -> None:
        """Has no call wait for the file any longer than until then, those that are being made included.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        self._finish_by = deadline

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows that a statement gives."""
        deadline = deadline_of(self._timeout)
        with self._using(deadline) as connection:
            return self._patiently(lambda: connection.execute(sql, values).fetchall(), deadline)

    def row(self, sql: str, *values: object) -> tuple[Any, ...]:
        """The one row that a statement gives."""
        (row,) = self.rows(sql, *values)
        return row

    @contextmanager
    def transaction(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        """All that is done in it, or nothing; on the disk when it has ended.

        Args:
            timeout: Seconds; the usual ones where none is given.
        """
        deadline = deadline_of(self._timeout if timeout is None else timeout)
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
        if grows and disk.f_blocks and free_bytes < self._reserve_bytes:
            message = (
                f"the disk of {self.path} is full: {free_bytes} bytes are free, and {self._reserve_bytes} are reserved"
                " for acknowledging; free some space"
            )
            raise UnavailableError(message)

    def close(self) -> None:
        """Lets go of the connection; once more does nothing.

        Where a thread is in a call that does not return, such as one that waits for a disk
        that hangs, that thread lets go of it when the call has returned.
        """
        self._is_closed = True
        self._let_go(min(self._timeout, seconds_left(self._finish_by)))

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


def use_log(connection: sqlite3.Connection, path: Path, timeout: float) -> None:
    """Switches to the write-ahead log, for which SQLite does not wait by itself while another reads."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            (mode,) = connection.execute(_USE_WAL).fetchone()
            break
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL)
    if mode != "wal":
        message = f"SQLite cannot use a write-ahead log for {path} (its mode is {mode!r}); put it on a local disk"
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
            holder = os.pread(self._file, 20, 0).decode()
            owner = f"process {holder}" if holder else "a process that has only just started"
            self.release()
            message = (
                f"{owner} has {path} open to {role}, which only one process at a time may do;"
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
