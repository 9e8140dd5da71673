"""What has become of the events: one struct for each subject, nested."""

from __future__ import annotations

from msgspec import Struct

from constellation_otel.traces import Counters as AssemblyCounters

__all__ = ["AssemblyCounters", "Counters", "JournalCounters", "SendingCounters", "SinkCounters"]


class SendingCounters(Struct, frozen=True):
    """What has become of the items that a sink was sent: events, or spans.

    Attributes:
        sent: Items that are safe.
        refused: Items that the endpoint refused for good.
        retried: Batches that were sent again.
        dead_lettered: What was written to the dead-letter file.
        evicted: Executions that were given up since too many events were open.
    """

    sent: int = 0
    refused: int = 0
    retried: int = 0
    dead_lettered: int = 0
    evicted: int = 0


class SinkCounters(Struct, frozen=True):
    """What has become of the events of one sink: ``received = delivered + rejected + revoked + held``.

    Attributes:
        received: Events that were added.
        delivered: Events that are safe with everything made of them.
        rejected: Events that cannot be sent, or whose item the endpoint refused for good.
        revoked: Events that another reader has from now on.
        held: Events that are open, wait, or are on their way.
        sending: What has become of what was made of them.
        failed_acknowledgements: Acknowledgements that a journal could not write down, and that are repeated.
    """

    received: int
    delivered: int
    rejected: int
    revoked: int
    held: int
    sending: SendingCounters = SendingCounters()
    failed_acknowledgements: int = 0


class JournalCounters(Struct, frozen=True):
    """What has become of the events on their way through a journal.

    Attributes:
        recovered: Events that it held when it was opened.
        not_durable: Events that it could not take, and that the sinks were given from memory.
        unreadable: Records of it that could not be read.
        failed_acknowledgements: Acknowledgements that it could not write down, and that are repeated.
    """

    recovered: int = 0
    not_durable: int = 0
    unreadable: int = 0
    failed_acknowledgements: int = 0


class Counters(Struct, frozen=True):
    """What has become of a listener's events: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Callbacks that were called, and what a journal held when it was opened.
        delivered: Events that are safe, with everything made of them.
        dropped: Events that found the queue full, or the listener closed.
        rejected: Events that cannot be sent, or that the endpoint refused for good.
        held: Events that are not there yet: they wait, are on their way, or their execution
            is still open.
        corrected: Values that no backend could hold and that were replaced or left out.
        sending: What has become of the items that the sink was sent.
        journal: What has become of them in the journal; ``None`` where there is none.
        assembly: What has become of those that make spans; ``None`` where the sink takes events.
    """

    received: int
    delivered: int
    dropped: int
    rejected: int
    held: int
    corrected: int = 0
    sending: SendingCounters = SendingCounters()
    journal: JournalCounters | None = None
    assembly: AssemblyCounters | None = None
