"""Which records become safe together, and how that is acknowledged to a source: the only way there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.contract import Position
from constellation_otel.delivery.retry import LastError
from constellation_otel.errors import JournalError, MisconfiguredError, UnavailableError
from constellation_otel.events import said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from constellation_otel.delivery.contract import Source
    from constellation_otel.delivery.retry import Backoff

__all__ = ["Acknowledgements", "Receipt", "place_of"]

_LOGGER: Final = logging.getLogger(__name__)
_NAMED: Final = 3
"""Records that a log line names, at most."""


class Receipt(Struct, eq=False):
    """Records that become safe together: a batch of events, or the events of an execution.

    It travels with everything that is made of them. When it is complete, and nothing is
    pending any more, they are safe.

    Attributes:
        origin: The part of the source that has the first of them.
        last: The offset of the one of that part that came last.
        count: How many they are; 0 for a restart of the engine, which is not an event.
        offsets: Where that part has them, where that has to be told to a source.
        others: Where other parts have more of them; few sources give one execution in two parts.
        pending: Items made of them that are on their way.
        is_complete: Whether no more will be made of them.
        rejected: Items made of them that were refused.
        is_settled: Whether it was settled.
        after: Settled when this one and its like are: what a restart of the engine waits for.
    """

    origin: Hashable
    last: int
    count: int
    offsets: list[int]
    others: list[Position] | None = None
    pending: int = 0
    is_complete: bool = False
    rejected: int = 0
    is_settled: bool = False
    after: Receipt | None = None

    def add(self, origin: Hashable, offsets: Sequence[int]) -> None:
        """More records, whose positions are kept."""
        self.count += len(offsets)
        if origin == self.origin:
            self.last = offsets[-1]
            self.offsets += offsets
        else:
            if self.others is None:
                self.others = []
            self.others += [Position(origin, offset) for offset in offsets]

    def positions(self) -> list[Position]:
        """Where the source has its records, as far as that was kept."""
        origin = self.origin
        mine = [Position(origin, offset) for offset in self.offsets]
        return mine if self.others is None else mine + self.others


class _Faulty(NamedTuple):
    """A position for which the source raised what it should not, and did not for others."""

    position: Position
    error: Exception


class Acknowledgements:
    """Tells a source which records are safe, again and again until it takes the acknowledgement.

    A position for which the source raises unexpectedly, and does not for others, is left out.
    All calls come from the thread that reads the source.

    Args:
        source: The source.
        backoff: Between tries.
        max_owed: Positions that wait at most; beyond it the oldest are given up, and their
            records are read again after a restart. ``None``: no limit, since what waits is
            bounded already.

    Attributes:
        failed: How often the source did not take an acknowledgement.
        last_error: Why it does not at the moment.
    """

    def __init__(self, source: Source, backoff: Backoff, max_owed: int | None = None) -> None:
        self._source = source
        self._backoff = backoff
        self._max_owed = max_owed
        self._log = RateLimitedLog()
        self._owed: list[Position] = []
        self._not_before = 0.0
        self.failed = 0
        self.last_error: LastError | None = None

    @property
    def owed(self) -> int:
        """Positions that the source has yet to take."""
        return len(self._owed)

    def add(self, positions: Iterable[Position]) -> None:
        """These are safe."""
        self._owed += positions

    def forget(self, origin: Hashable) -> None:
        """Another reader has that part of the source from now on."""
        self._owed = [position for position in self._owed if position.origin != origin]

    def hurry(self) -> None:
        """Has the next :meth:`tell` try, however long the pause was meant to be."""
        self._not_before = 0.0

    def tell(self) -> float | None:
        """Tells the source what it has yet to take, unless it is to be given a pause.

        Returns:
            In how many seconds to call this again; ``None`` where nothing is owed.
        """
        if not self._owed:
            return None
        wait = self._not_before - time.monotonic()
        if wait > 0:
            self._bound()
            return wait
        error = self._told()
        if error is not None:
            return self._put_off(error)
        self._backoff.reset()
        self.last_error = None
        # some may be left that the source could not take in parts
        return 0.0 if self._owed else None

    def _told(self) -> Exception | None:
        """Tells all that it can; what was raised, where that is nothing."""
        try:
            # a copy: what it is given is the source's own
            self._source.acknowledge(self._owed[:])
        except (UnavailableError, JournalError) as error:
            self.failed += 1
            return error
        except Exception as error:  # noqa: BLE001 - a defect; positions behind the one at fault go on
            self.failed += 1
            return self._told_in_parts(error)
        self._owed = []
        return None

    def _told_in_parts(self, error: Exception) -> Exception | None:
        try:
            faulty, self._owed = _isolated(self._source.acknowledge, self._owed, error)
        except Exception as raised:  # noqa: BLE001 - it is raised for every position
            return raised
        places = ", ".join(place_of(position) for position, _ in faulty[:_NAMED]) or "none"
        self._log.write(
            _LOGGER,
            logging.WARNING,
            "acknowledge",
            "%s: the acknowledgement of some records raised %s; not acknowledged: %s (%d records)",
            self._source.name,
            said(error),
            places,
            len(faulty),
            error=error,
        )
        return None

    def _put_off(self, error: Exception) -> float:
        why = said(error) or type(error).__name__
        is_unavailable = isinstance(error, UnavailableError)
        since = time.monotonic() if self.last_error is None else self.last_error.since
        needs_fixing = isinstance(error, MisconfiguredError) or not is_unavailable
        self.last_error = LastError(f"delivered records cannot be acknowledged: {why}", since, needs_fixing)
        wait = self._backoff.next()
        self._not_before = time.monotonic() + wait
        self._log.write(
            _LOGGER,
            logging.WARNING,
            "acknowledge",
            "%s: %d delivered records could not be acknowledged: %s; trying again in %.1f s; a restart before"
            " that succeeds reads them again",
            self._source.name,
            len(self._owed),
            why,
            wait,
            error=None if is_unavailable else error,
        )
        self._bound()
        return wait

    def _bound(self) -> None:
        """Gives up the oldest positions beyond what may wait."""
        if self._max_owed is not None:
            del self._owed[: -self._max_owed]


def _isolated(
    tell: Callable[[Sequence[Position]], None], owed: list[Position], error: Exception
) -> tuple[list[_Faulty], list[Position]]:
    """Tells the rest where telling all together has raised something unexpected.

    Returns:
        The positions at fault, and those that are to be told later.

    Raises:
        Exception: ``error``, where none was taken: then it is not known to be about one of them.
    """
    parts, left = [owed], list[Position]()
    took_any, suspects = False, list[Position]()
    while parts and not left:
        part = parts.pop()
        try:
            tell(part)
        except (UnavailableError, JournalError):
            left = part
        except Exception:  # noqa: BLE001 - a defect, which must cost one position and no more
            middle = len(part) // 2
            if middle:
                parts += (part[middle:], part[:middle])
            else:
                suspects += part
        else:
            took_any = True
    if not took_any:
        raise error
    faulty: list[_Faulty] = []
    for position in suspects:
        # once more, each alone: it may have been the source's own doing
        try:
            tell([position])
        except (UnavailableError, JournalError):
            left.append(position)
        except Exception as raised:  # noqa: BLE001 - it is raised for this position
            faulty.append(_Faulty(position, raised))
    return faulty, [*left, *chain.from_iterable(reversed(parts))]


def place_of(position: Position) -> str:
    """A position for a person to read."""
    origin = position.origin
    if origin is None:
        return f"record {position.offset}"
    part = "/".join(map(str, origin)) if isinstance(origin, tuple) else origin
    return f"{part}, record {position.offset}"
