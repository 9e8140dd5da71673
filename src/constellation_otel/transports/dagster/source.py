"""Events from the event log of a Dagster instance."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qsl, unquote

from constellation_otel._support.deadline import deadline_of
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery import BatchBuilder, Source
from constellation_otel.errors import ConfigurationError, SourceError, UnavailableError
from constellation_otel.transports.dagster.runs import MAX_SHOWN, OpenRun, RunList

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from constellation_otel.delivery import SourceItem
    from constellation_otel.transports.dagster.instance import Instance, ListedRun
    from constellation_otel.transports.url import SourceOptions

__all__ = ["DagsterSource"]

_LOGGER: Final = logging.getLogger(__package__)
_HOME: Final = "DAGSTER_HOME"
_MAX_RECORDS: Final = 512
_MAX_FOLLOWED: Final = 10_000
_CLOSE_TIMEOUT: Final = 5.0


class DagsterSource(Source):
    """Reads runs from the event log of a Dagster instance, whatever database that is in.

    Runs come in the order in which they were made, the records of each in the order in which
    they were stored. Of these, the ones that say that a run or a step began or ended are read. A
    position is a run and the record's id in the event log, which is unique in its run. What is
    read is acknowledged nowhere: the next run of a bridge begins at the beginning, or at
    ``since``, again, and gives the same events.

    A record that cannot be read is an :class:`~constellation_otel.delivery.Unreadable`.

    Without ``follow`` it ends with the newest run that there was at the first read; of a run that
    is not over, it gives what there is.

    With ``follow`` it goes on for ever. Whatever is there is only read when it has been there for
    ``poll_interval`` seconds: processes of one run write at the same time, and what gets a lower id
    may appear later. A run that is silent is looked at less and less often, at least once a minute.

    Making one does no I/O.

    Args:
        home: The instance's folder; what ``$DAGSTER_HOME`` says where there is none.
        job: Only runs of this job.
        since: Only runs that were made after this time.
        follow: Whether to go on at the end.
        poll_interval: Seconds between two looks.
        execution_id: Only the run with this id.

    Raises:
        ConfigurationError: There is no home, or the interval is not above zero.
        MissingExtraError: Dagster is not installed.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        job: str | None = None,
        since: datetime | None = None,
        follow: bool = False,
        poll_interval: float = 1.0,
        execution_id: UUID | None = None,
    ) -> None:
        # here, since most who list the transports have no Dagster
        from constellation_otel.transports.dagster import instance  # noqa: PLC0415 - needs an extra

        self._home = Path(home or os.environ.get(_HOME) or "")
        if self._home == Path():
            message = f"there is no instance to read: {_HOME} is not set; set it, or give dagster:/path/to/its/folder"
            raise ConfigurationError(message)
        if not poll_interval > 0:
            message = f"poll_interval={poll_interval!r} must be above zero"
            raise ConfigurationError(message)
        self._open = partial(
            instance.Instance,
            self._home,
            self.name,
            job=job,
            since=since,
            run_id=None if execution_id is None else str(execution_id),
        )
        self._instance: Instance | None = None
        self._follow = follow
        self._poll_interval = poll_interval
        self._list = RunList(poll_interval if follow else None)
        # those that are read to their end, one after the other, and those that are looked at again and again
        self._waiting: deque[ListedRun] = deque()
        self._current: OpenRun | None = None
        self._followed: dict[str, OpenRun] = {}
        self._has_ended = False
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._log = RateLimitedLog()

    @classmethod
    def from_url(cls, url: str, options: SourceOptions) -> Self:
        """Makes one from ``dagster:[folder][?job=name&since=time]``.

        Raises:
            ConfigurationError: The URL is of another form.
            MissingExtraError: Dagster is not installed.
        """
        path, _, query = url.partition(":")[2].partition("?")
        found = dict(parse_qsl(query, keep_blank_values=True))
        job, since = found.pop("job", None), found.pop("since", None)
        if found or "" in {job, since} or "\0" in path:
            message = "a Dagster instance is dagster:/path/to/its/folder, with ?job=name&since=2026-01-31 where wanted"
            raise ConfigurationError(message)
        return cls(
            unquote(path) or None,
            job=job,
            since=None if since is None else _time_of(since),
            follow=options.follow,
            execution_id=options.execution_id,
        )

    @property
    def name(self) -> str:
        """The URL: ``dagster:`` and the folder."""
        return f"dagster:{self._home}"

    @property
    def is_durable(self) -> bool:
        return True

    @property
    def has_ended(self) -> bool:
        """Whether the replay is at its end; what is followed has none."""
        return self._has_ended

    @property
    def fraction_read(self) -> float | None:
        """How many of the runs have been read, from 0 to 1; ``None`` where it follows, or does not know."""
        if self._follow:
            return None
        return 1.0 if self._has_ended else self._list.fraction_without(len(self._waiting) + (self._current is not None))

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads the next records.

        Args:
            timeout: Seconds to wait for the first one.

        Raises:
            UnavailableError: The instance's database is away or busy.
            SourceError: There is no instance, or it is of another version of Dagster.
        """
        end = deadline_of(timeout)
        self._idle.clear()
        try:
            while not (self.has_ended or self._closing.is_set()):
                items = self._read_now()
                left = end - time.monotonic()
                if items or self._has_ended or left <= 0:
                    return items
                self._closing.wait(max(0.0, min(left, self._due() - time.monotonic())))
            return []
        finally:
            self._idle.set()

    def close(self) -> None:
        """Ends a :meth:`read` that waits, and releases the instance; a query of Dagster's cannot be interrupted."""
        self._closing.set()
        if not self._idle.wait(_CLOSE_TIMEOUT):
            message = "%s: a query of Dagster's has not ended within %.0f s; the instance is left open"
            self._log.write(_LOGGER, logging.WARNING, "query", message, self.name, _CLOSE_TIMEOUT)
        elif self._instance is not None:
            instance, self._instance = self._instance, None
            try:
                instance.close()
            except (UnavailableError, SourceError) as error:
                message = "%s could not be closed; what it held goes with the process"
                self._log.write(_LOGGER, logging.WARNING, "close", message, self.name, error=error)

    def _read_now(self) -> Sequence[SourceItem]:
        """Reads what is due: runs that are over or replayed, and what is new of those that are followed."""
        gathered = BatchBuilder(MAX_SHOWN)
        try:
            if self._instance is None:
                self._instance = self._open()
            instance = self._instance
            if not self._waiting and self._current is None:
                self._waiting += self._list.next(instance)
            left = _MAX_RECORDS
            while left > 0 and (run := self._next_run(instance)) is not None:
                left -= run.read(instance, left, gathered)
                if run.is_done:
                    self._current = None
            for run in [it for it in self._followed.values() if it.due <= time.monotonic()]:
                if left <= 0:
                    break
                left -= run.read(instance, left, gathered)
                if run.is_done:
                    del self._followed[run.run_id]
        except UnavailableError:
            # what was read before is given; the next call raises again
            if not gathered.items:
                raise
        self._has_ended = not self._follow and self._list.has_ended and self._current is None and not self._waiting
        return gathered.items

    def _next_run(self, instance: Instance) -> OpenRun | None:
        """The run that is read to its end now; takes up those that are followed on the way."""
        while self._current is None and self._waiting:
            listed = self._waiting[0]
            if self._follow and not listed.is_over:
                self._followed[listed.run_id] = OpenRun(instance.facts_of(listed), self._poll_interval)
                self._forget_silent()
            else:
                self._current = OpenRun(instance.facts_of(listed), None)
            # not before: what raises is asked again
            self._waiting.popleft()
        return self._current

    def _forget_silent(self) -> None:
        if len(self._followed) <= _MAX_FOLLOWED:
            return
        silent = min(self._followed.values(), key=lambda run: run.heard_at)
        del self._followed[silent.run_id]
        message = "%s: more than %d runs have no end; the most silent ones are not looked at any more"
        self._log.write(_LOGGER, logging.WARNING, "followed", message, self.name, _MAX_FOLLOWED)

    def _due(self) -> float:
        """When there is something to look at."""
        if self._waiting or self._current is not None:
            return time.monotonic()
        return min([self._list.due, *(run.due for run in self._followed.values())])


def _time_of(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"?since={text} is not an ISO 8601 time; give 2026-01-31, or 2026-01-31T12:00+01:00"
        raise ConfigurationError(message) from error
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
