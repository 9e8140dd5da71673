"""A Dagster instance that is only read: its runs, and their records in the event log.

All that is asked of Dagster is here. Whatever it raises becomes an error of this package.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.errors import MissingExtraError, SourceError, UnavailableError
from constellation_otel.transports.dagster.records import READ_TYPES, Run, UnreadableError

try:
    from dagster import DagsterEventType, DagsterInstance, RunsFilter
    from dagster._check import CheckError
    from dagster._core.errors import DagsterError, DagsterEventLogInvalidForRun
    from dagster._core.event_api import EventLogCursor
except ModuleNotFoundError as error:
    if error.name != "dagster":
        raise
    raise MissingExtraError("dagster", "dagster") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Instance", "ListedRun"]

_TYPES: Final = {DagsterEventType(value) for value in READ_TYPES}
_LEFT_ALONE: Final = timedelta(minutes=1)
"""How long ago a run must have ended for nothing more to be written of it."""
_NOT_UNDERSTOOD: Final = (
    DagsterEventLogInvalidForRun,
    CheckError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
)
"""What Dagster raises of a stored thing that it cannot make its own object of."""
_LOGGER: Final = logging.getLogger(__package__)
_MAX_SAID: Final = 500
_TRACEPARENT: Final = "traceparent"
_TRACESTATE: Final = "tracestate"


class ListedRun(NamedTuple):
    """A run of the instance.

    Attributes:
        storage_id: Where the instance has it, ascending in the order in which runs were made.
        run_id: Dagster's id.
        is_over: Whether it ended so long ago that its records are all there.
        own: Dagster's object.
    """

    storage_id: int
    run_id: str
    is_over: bool
    own: Any


class Instance:
    """The instance in a folder. Not thread-safe.

    Args:
        home: The folder.
        name: What errors call it.
        job: Only runs of this job.
        since: Only runs that were made after this time, which has a zone.
        run_id: Only this run.

    Raises:
        SourceError: There is no instance in the folder, or it cannot be read by this Dagster.
        UnavailableError: Its database cannot be read now.
    """

    def __init__(
        self, home: Path, name: str, *, job: str | None = None, since: datetime | None = None, run_id: str | None = None
    ) -> None:
        self._name = name
        self._log = RateLimitedLog()
        made_after = None if since is None else since.astimezone(UTC)
        self._filter = RunsFilter(run_ids=None if run_id is None else [run_id], job_name=job, created_after=made_after)
        # Dagster would make an empty one
        if not any((home / part).exists() for part in ("dagster.yaml", "history")):
            message = f"{name}: {home} is not the folder of a Dagster instance; name the one that is DAGSTER_HOME"
            raise SourceError(message)
        with self._asking():
            self._own = DagsterInstance.from_config(str(home))

    def close(self) -> None:
        """Releases what the instance holds."""
        with self._asking():
            self._own.dispose()

    def newest_run(self) -> ListedRun | None:
        """The run that was made last."""
        with self._asking():
            return next(iter(self._listed(self._own.get_run_records(self._filter, limit=1))), None)

    def has_run(self, run_id: str) -> bool:
        """Whether a run has not been deleted."""
        with self._asking():
            return bool(self._own.has_run(run_id))

    def runs(self, after: str | None, limit: int) -> list[ListedRun]:
        """The next runs in the order in which they were made.

        Args:
            after: The run before the first of them, which must not have been deleted; ``None`` for the beginning.
            limit: How many, at most.
        """
        with self._asking():
            return self._listed(self._own.get_run_records(self._filter, limit=limit, cursor=after, ascending=True))

    def _listed(self, records: Sequence[Any]) -> list[ListedRun]:
        now = datetime.now(UTC)
        return [
            ListedRun(
                record.storage_id,
                record.dagster_run.run_id,
                record.dagster_run.is_finished and now - _with_zone(record.update_timestamp) > _LEFT_ALONE,
                record.dagster_run,
            )
            for record in records
        ]

    def facts_of(self, listed: ListedRun) -> Run:
        """What is known of a run beside its records."""
        own = listed.own
        tags = own.tags
        return Run(
            own.run_id,
            own.job_name,
            own.parent_run_id,
            own.root_run_id,
            tags.get(_TRACEPARENT),
            tags.get(_TRACESTATE),
            self._upstream(own.execution_plan_snapshot_id),
        )

    def newest_record(self, run_id: str) -> int:
        """Where the newest record of a run is, or behind it; 0 where there is none."""
        try:
            page = self._page(run_id, None, 1, ascending=False)
        except UnreadableError:
            return _first_number(lambda after: not self._has_more(run_id, after), 0)
        return page[0][0] if page else 0

    def records(self, run_id: str, after: int, limit: int) -> list[tuple[int, Any]]:
        """The next records of a run, in the order in which they were stored: where each is, and the record.

        Args:
            run_id: The run.
            after: Where the record before the first of them is.
            limit: How many, at most.

        Raises:
            UnreadableError: One of them cannot be read.
        """
        return self._page(run_id, after, limit, ascending=True)

    def end_of_unreadable(self, run_id: str, after: int) -> int:
        """Where the last of the records is that cannot be read, of which the first follows."""
        # Dagster's tables are its own: all there is are cursors, behind which is a record to be read, or none at all
        return _first_number(lambda behind: not self._is_unreadable(run_id, behind), after)

    def _is_unreadable(self, run_id: str, after: int) -> bool:
        try:
            self._page(run_id, after, 1, ascending=True)
        except UnreadableError:
            return True
        return False

    def _has_more(self, run_id: str, after: int) -> bool:
        try:
            return bool(self._page(run_id, after, 1, ascending=True))
        except UnreadableError:
            return True

    def _page(self, run_id: str, after: int | None, limit: int, *, ascending: bool) -> list[tuple[int, Any]]:
        cursor = None if after is None else EventLogCursor.from_storage_id(after).to_string()
        with self._asking():
            try:
                found = self._own.get_records_for_run(run_id, cursor, _TYPES, limit, ascending)
            except _NOT_UNDERSTOOD as error:
                raise UnreadableError(_said(error.__cause__ or error)) from error
        return [(record.storage_id, record.event_log_entry) for record in found.records]

    def _upstream(self, plan_id: str | None) -> Mapping[str, Sequence[str]]:
        """The steps whose outputs each step takes; of a run whose plan cannot be had, nothing is known."""
        if plan_id is None:
            return {}
        with self._asking():
            try:
                plan = self._own.get_execution_plan_snapshot(plan_id)
                return {
                    step.key: tuple(dict.fromkeys(key for each in step.inputs for key in each.upstream_step_keys))
                    for step in plan.steps
                }
            except _NOT_UNDERSTOOD as error:
                message = "%s: the plan %s of a run cannot be read; its steps do not link to the ones before them: %s"
                self._log.write(_LOGGER, logging.WARNING, "plan", message, self._name, plan_id, _said(error))
                return {}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Within this Dagster is asked."""
        try:
            yield
        except UnreadableError:
            raise
        except DagsterError as error:
            message = f"{self._name} cannot be read by this version of Dagster: {_said(error)}"
            raise SourceError(message) from error
        except Exception as error:  # a storage may be anybody's, over any driver
            message = f"{self._name} cannot be read now: {_said(error)}"
            raise UnavailableError(message) from error


def _first_number(is_it: Callable[[int], bool], above: int) -> int:
    """The first number above one for which something holds that holds for all behind it, too."""
    step = 1
    while not is_it(above + step):
        step *= 2
    low, high = above + step // 2, above + step
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_it(middle) else (middle, high)
    return high


def _with_zone(when: datetime) -> datetime:
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _said(error: BaseException) -> str:
    # a driver's own error, without the statement and its values
    error = getattr(error, "orig", None) or error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_SAID]}"
