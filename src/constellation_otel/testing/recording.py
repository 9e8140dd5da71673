"""A listener that keeps what it gets, and waits for it."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel.events import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.events import Event

__all__ = ["RecordingListener"]


class RecordingListener(EventListener):
    """Keeps every event, in the order of the callbacks.

    Safe to use from several threads. The number of events is not bounded.

    Args:
        redact: Rewrites the message of each error before it is kept.
    """

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        super().__init__(redact)
        self._arrived = threading.Condition()
        self._accepted = 0  # cleared events included
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        """The events so far; a copy."""
        with self._arrived:
            return list(self._events)

    def accept(self, event: Event) -> None:
        with self._arrived:
            self._events.append(event)
            self._accepted += 1
            self._arrived.notify_all()

    def wait_for(self, condition: int | Callable[[Sequence[Event]], bool], timeout: float = 10.0) -> list[Event]:
        """Waits for events.

        Args:
            condition: How many events at least, or a predicate on the events so far.
            timeout: Seconds.

        Returns:
            The events that met the condition.

        Raises:
            AssertionError: None did in time; the message has the events that arrived.
        """
        deadline = deadline_of(timeout)
        while True:
            with self._arrived:
                events, seen = list(self._events), self._accepted
            if len(events) >= condition if isinstance(condition, int) else condition(events):
                return events
            with self._arrived:
                if self._arrived.wait_for(partial(self._has_changed, seen), seconds_left(deadline)):
                    continue
                what = f"{condition} events" if isinstance(condition, int) else "the events to meet the condition"
                arrived = "".join(f"\n  {event!r}" for event in self._events)
                message = f"waited {timeout:g} s for {what}; {len(self._events)} arrived{arrived and ':'}{arrived}"
                raise AssertionError(message)

    def _has_changed(self, seen: int) -> bool:
        return self._accepted != seen

    def clear(self) -> None:
        """Forgets the events."""
        with self._arrived:
            self._events.clear()
