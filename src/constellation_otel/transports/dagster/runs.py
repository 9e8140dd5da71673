"""Which runs there are to read, and how far each has been read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from constellation_otel.delivery import Position, Unreadable
from constellation_otel.errors import DecodeError, UnavailableError
from constellation_otel.transports.dagster.records import RunRecords, UnreadableError

if TYPE_CHECKING:
    from constellation_otel.delivery import BatchBuilder
    from constellation_otel.transports.dagster.instance import Instance, ListedRun
    from constellation_otel.transports.dagster.records import Run

__all__ = ["MAX_SHOWN", "OpenRun", "RunList"]

MAX_SHOWN: Final = 4_096
"""Characters that are kept of a record that cannot be understood."""
_PAGE: Final = 32
_REMEMBERED: Final = 1_024
"""Runs of which one has not to be deleted, for the list to go on behind it."""
_LINGER: Final = 10.0
"""Seconds that a run is looked at after its end: steps of one that was cancelled may end later."""
_MAX_PAUSE: Final = 60.0
_PAUSE_BY_SILENCE: Final = 0.1


class RunList:
    """Lists runs in the order in which they were made, each once.

    Args:
        poll_interval: Seconds between two looks, where it goes on with new runs; ``None`` where it
            ends with the newest one that there is at the first look.

    Attributes:
        due: When to look again, in seconds of :func:`time.monotonic`.
    """

    def __init__(self, poll_interval: float | None) -> None:
        self._poll_interval = poll_interval
        self.due = -float("inf")
        # up to which run they are listed now, how far that is done, and whether it is
        self._until: int | None = None
        self._highest = 0
        self._is_all = False
        # the latest ones: where each is, by its id; and where those are that have certainly been listed
        self._latest: dict[str, int] = {}
        self._floor = 0

    @property
    def has_ended(self) -> bool:
        """Whether every run has been listed, up to the newest one of the last look."""
        return self._is_all

    def fraction_without(self, count: int) -> float | None:
        """How much of the list is done, where so many of the listed ones are not; ``None`` before the first look."""
        if self._until is None:
            return None
        return max(0.0, min(1.0, (self._highest - count) / self._until)) if self._until else 1.0

    def next(self, instance: Instance) -> list[ListedRun]:
        """The next runs, as far as it is time to look."""
        now = time.monotonic()
        if now < self.due:
            return []
        if self._until is None or (self._is_all and self._poll_interval is not None):
            newest = instance.newest_run()
            self._until = 0 if newest is None else newest.storage_id
            # not by its place: SQLite gives that of a run that was deleted to the next one
            self._is_all = newest is None or newest.run_id in self._latest
            if self._poll_interval is not None:
                # one with a lower id may be on its way
                self.due = now + self._poll_interval
                return []
        if self._is_all:
            return []
        # behind one that was deleted, there is nothing for Dagster
        after = next((run_id for run_id in reversed(self._latest) if instance.has_run(run_id)), None)
        if after is None:
            self._floor = min(self._latest.values(), default=0)
        page = instance.runs(after, _PAGE)
        found = [run for run in page if run.storage_id <= self._until]
        listed = [run for run in found if run.storage_id >= self._floor and run.run_id not in self._latest]
        for run in found:
            self._latest[run.run_id] = run.storage_id
            self._highest = run.storage_id
        for run_id in list(self._latest)[:-_REMEMBERED]:
            del self._latest[run_id]
        self._is_all = len(page) < _PAGE or page[-1].storage_id >= self._until
        return listed


class OpenRun:
    """A run that is being read.

    Args:
        run: What is known of it.
        poll_interval: Seconds between two looks at it, at least; ``None`` where it is read up to what there is.

    Attributes:
        run_id: Dagster's id.
        due: When to look again, in seconds of :func:`time.monotonic`.
        heard_at: When there was a record last.
        is_done: Whether nothing is left to be read.
    """

    def __init__(self, run: Run, poll_interval: float | None) -> None:
        self.run_id = run.run_id
        self._records = RunRecords(run)
        self._poll_interval = poll_interval
        # the last record that was read, and up to which one it may be read
        self._after = 0
        self._until: float = float("inf") if poll_interval is None else 0
        self.heard_at = time.monotonic()
        self.due = -float("inf")
        self.is_done = False

    def read(self, instance: Instance, limit: int, gathered: BatchBuilder) -> int:
        """Reads records.

        Args:
            instance: Where they are.
            limit: How many, at most.
            gathered: What the events are added to.

        Returns:
            How many were read.
        """
        if self._after >= self._until:
            self._look(instance)
            return 0
        try:
            page, asked_for = self._page(instance, limit)
        except UnreadableError as error:
            self._after = instance.end_of_unreadable(self.run_id, self._after)
            gathered.put(Unreadable(b"", str(error), Position(self.run_id, self._after)))
            self.heard_at = time.monotonic()
            return 1
        except UnavailableError:
            # with a run, its database is deleted
            if instance.has_run(self.run_id):
                raise
            self.is_done = True
            return 0
        known = [(storage_id, entry) for storage_id, entry in page if storage_id <= self._until]
        for storage_id, entry in known:
            self._add(storage_id, entry, gathered)
            self._after = storage_id
        if known:
            self.heard_at = time.monotonic()
        if len(known) < asked_for:
            if self._poll_interval is None:
                self.is_done = True
            else:
                self._after = int(self._until)
        return len(known)

    def _page(self, instance: Instance, limit: int) -> tuple[list[tuple[int, Any]], int]:
        """The next records, and how many were asked for: fewer where one behind them cannot be read.

        Raises:
            UnreadableError: The next one is that.
        """
        while True:
            try:
                return instance.records(self.run_id, self._after, limit), limit
            except UnreadableError:
                if limit == 1:
                    raise
                limit //= 2

    def _look(self, instance: Instance) -> None:
        """Looks for records that may be read at the next look: one with a lower id may be on its way."""
        if not instance.has_run(self.run_id):
            self.is_done = True
            return
        now = time.monotonic()
        silent_for = now - self.heard_at
        self._until = max(self._until, instance.newest_record(self.run_id))
        is_new = self._until > self._after
        pause = max(self._poll_interval or 0.0, 0.0 if is_new else silent_for * _PAUSE_BY_SILENCE)
        self.due = now + min(pause, max(_MAX_PAUSE, self._poll_interval or 0.0))
        self.is_done = self._records.has_ended and not is_new and silent_for > _LINGER

    def _add(self, storage_id: int, entry: Any, gathered: BatchBuilder) -> None:
        try:
            events = self._records.events_of(storage_id, entry)
        except DecodeError as error:
            data = repr(getattr(entry, "dagster_event", entry))[:MAX_SHOWN]
            gathered.put(Unreadable(data.encode(errors="replace"), str(error), Position(self.run_id, storage_id)))
            return
        for offset, event in events:
            gathered.add(event, offset, self.run_id)
