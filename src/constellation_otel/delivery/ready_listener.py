"""What the ready listeners have in common: a sink of theirs, and files instead of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

from constellation_otel.delivery.buffered_listener import BufferedListener
from constellation_otel.delivery.dead_letters import DeadLetters
from constellation_otel.delivery.journal import Journal

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from constellation_otel.delivery.contract import Sink
    from constellation_otel.events import Event

__all__ = ["ListenerOptions", "TransportListener"]


class ListenerOptions(TypedDict, total=False):
    """What every ready listener takes beside what its sink does.

    Attributes:
        journal: A file that keeps events until the sink has them.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events that wait at most, and events that are on their way at most.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: A file for what is refused for good.
    """

    journal: str | os.PathLike[str]
    redact: Callable[[str], str]
    max_queue: int
    send_timeout: float
    dead_letters: str | os.PathLike[str]


class TransportListener(BufferedListener):
    """A BufferedListener over a transport's sink.

    Args:
        sink: Where events go.
        **options: See :class:`ListenerOptions`.

    Raises:
        JournalError: The journal cannot be used: another process has it, or it is none.
        ValueError: A number is out of its range.
    """

    def __init__(self, sink: Sink[Event], **options: Unpack[ListenerOptions]) -> None:
        journal, letters = options.get("journal"), options.get("dead_letters")
        super().__init__(
            sink,
            journal=None if journal is None else Journal(journal, sinks=[sink.name]),
            redact=options.get("redact"),
            max_queue=options.get("max_queue", 65_536),
            send_timeout=options.get("send_timeout", 10.0),
            dead_letters=None if letters is None else DeadLetters(letters),
        )
