"""The door of the callbacks: what they have made becomes batches of validated events."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.contract import Batch
from constellation_otel.events import Event, is_valid, shown, validated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery.dead_letters import DeadLetters

__all__ = ["Door"]

_LOGGER: Final = logging.getLogger(__name__)


class Door:
    """Validates events that callbacks, or users' own code, have made; for one thread.

    Args:
        name: The listener's, for the log.
        dead_letters: Where what no sink could take goes.

    Attributes:
        rejected: Events that no sink could take.
        corrected: Values that no backend could hold and that were replaced or left out.
        dead_lettered: What was written to the dead-letter file.
    """

    def __init__(self, name: str, dead_letters: DeadLetters | None = None) -> None:
        self._name = name
        self._dead_letters = dead_letters
        self._log = RateLimitedLog()
        self._count = 0
        self.rejected = self.corrected = self.dead_lettered = 0

    def admit(self, events: Sequence[object]) -> Batch:
        """The valid ones, as a batch; the others are counted, logged and dead-lettered.

        Numbered here, and not in the callback, which this would cost most of its time.
        """
        first = self._count + 1
        self._count += len(events)
        good: list[Event] = [event for event in events if is_valid(event)]  # type: ignore[misc] # they are, if valid
        if len(good) == len(events):
            return Batch(good, range(first, self._count + 1))
        batch = Batch([], [])
        offsets = []
        for offset, event in enumerate(events, first):
            admitted = self._admitted(event)
            if admitted is not None:
                batch.events.append(admitted)
                offsets.append(offset)
        batch.offsets = offsets
        return batch

    def _admitted(self, event: object) -> Event | None:
        try:
            valid, corrected = validated(event)
        except (TypeError, ValueError) as error:
            self.rejected += 1
            message = "%s: an event cannot be sent: %s"
            self._log.write(_LOGGER, logging.ERROR, "event", message, self._name, error)
            if self._dead_letters is not None:
                self.dead_lettered += self._dead_letters.write(self._name, str(error), shown(event).encode())
            return None
        self.corrected += len(corrected)
        for reason in corrected:
            message = "%s: a value of an event was left out or replaced: %s"
            self._log.write(_LOGGER, logging.WARNING, "corrected", message, self._name, reason)
        return valid
