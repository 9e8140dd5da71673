"""OtlpListener: executions to an OTLP endpoint, acknowledged, without an application's SDK.

The spans are assembled, encoded and sent by this package; with a journal, none
is lost while the endpoint is away.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import log
from constellation_otel.otel.own_providers import PrivateSignals
from constellation_otel.otel.span_listener import SpanListener
from constellation_otel.traces import Span, decide, exported, sampler_of_environment
from constellation_otel.transports.otlp import OtlpSink, make_resource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery import Retry
    from constellation_otel.otel.span_listener import ExecutionAttributes
    from constellation_otel.traces import Decider

__all__ = ["OtlpListener"]

_LOGGER: Final = logging.getLogger(__name__)


class OtlpListener(SpanListener[Span]):
    """Sends executions to an OTLP endpoint, as traces, with acknowledgement.

    ``OtlpListener("http://collector:4317", journal="telemetry.db")`` loses no event that
    its journal has, whatever becomes of the collector or of this process: it is delivered
    at least once, and a span that is sent twice is the same span. Without a journal,
    what is held when the process ends is lost, and so is what finds the queue full.

    A callback costs about one append and never raises. What the sampler says of an
    execution when it starts holds for all of its spans. Duration metrics, and log records
    of failures where ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` asks for them, go to the
    same endpoint through SDK providers of this listener's own; their delivery is as good as the SDK's.

    A forked child sends what it executes itself, from memory; the journal stays its
    parent's. At the interpreter's exit, up to five seconds are spent on what is held, and
    one more on metrics and logs.

    With ``OTEL_SDK_DISABLED=true`` callbacks return at once and the journal is not opened.

    Args:
        endpoint: ``http://host:4317``; ``https://`` for TLS. What the
            ``OTEL_EXPORTER_OTLP_*`` variables say where none is given; they also say all
            that is not given here: timeouts, compression, certificates.
        journal: A file that keeps events until the endpoint has their spans.
        protocol: ``grpc`` or ``http/protobuf``; ``OTEL_EXPORTER_OTLP_PROTOCOL``, or else ``grpc``.
        headers: Sent with every request.
        service_name: The resource's ``service.name``; ``OTEL_SERVICE_NAME``, or else ``constellation``.
        sampler: Of traces; what ``OTEL_TRACES_SAMPLER`` says where none is given.
        attributes: Gives further attributes of an execution's span (a tenant, a queue): a callable that is given the
            execution's start event and the caller's context. Called in :meth:`on_execution_start`; what it raises
            is logged, and 128 of them are kept.
        redact: Rewrites the message of each error before it is kept anywhere.
        settle: Seconds that spans wait for events still on their way: 0 for an engine
            that keeps the order, as the embedded one does.
        max_queue: Events that wait at most, and events that are on their way at most.
        max_open: Executions and modules held open at most.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_journal_bytes: The size at which the journal takes no more. New events then go to the
            endpoint from memory, while it is reachable; they are bounded, counted and logged.
        dead_letters: A file for what the endpoint refuses for good.
        retry: Between tries to send, and to write to the journal.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
        JournalError: The journal cannot be used: another process has it, or it is not one.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        journal: str | os.PathLike[str] | None = None,
        protocol: Any = None,
        headers: Mapping[str, str] | None = None,
        service_name: str | None = None,
        sampler: Sampler | None = None,
        attributes: ExecutionAttributes | None = None,
        redact: Callable[[str], str] | None = None,
        settle: float = 0.0,
        max_queue: int = 65_536,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_journal_bytes: int = 1024 * 1024 * 1024,
        dead_letters: str | os.PathLike[str] | None = None,
        retry: Retry | None = None,
    ) -> None:
        if max_queue < 1:
            # the worker would refuse it, too, when threads run and files are open
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        resource = make_resource(service_name)
        sink = OtlpSink(endpoint, protocol=protocol, resource=resource, headers=headers)
        is_enabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        self._decide_by = partial(decide, sampler or sampler_of_environment())
        self._signals = PrivateSignals(
            resource,
            endpoint=None if endpoint is None else sink.endpoint,
            protocol=protocol if endpoint is None else sink.protocol,
            headers=headers,
            made_again=lambda: self._pipeline.worker.close_first_at_exit(),  # noqa: PLW0108 - it is made later
        )
        self._exported = exported(with_events=self._signals.with_events)
        store = None
        try:
            if not is_enabled:
                log(_LOGGER, logging.INFO, "OTEL_SDK_DISABLED is set: nothing is sent, and a journal stays as it is")
            elif journal is not None:
                store = _journal(journal, sink.name, max_journal_bytes)
            super().__init__(
                sink,
                settle=settle,
                max_open=max_open,
                idle_timeout=idle_timeout,
                max_age=max_age,
                attributes=attributes,
                journal=store,
                redact=redact,
                max_queue=max_queue,
                dead_letters=dead_letters,
                retry=retry,
            )
        except BaseException:
            if store is not None:
                store.close()
            self._signals.close(0)
            raise
        self._is_active = is_enabled
        self._signals.watch(self)

    def _decider(self) -> Decider:
        return self._decide_by

    def _as_items(self, spans: Sequence[Span]) -> Sequence[Span]:
        return self._exported(spans)

    def _observer(self) -> PrivateSignals:
        return self._signals

    def _on_tick(self) -> None:
        super()._on_tick()
        self._publish()

    def close(self, timeout: float) -> bool:
        deadline = deadline_of(timeout)
        # metrics get a part of the time of their own: spans that cannot be delivered take all that they are given
        is_delivered = super().close(0.8 * seconds_left(deadline))
        self._publish()
        self._signals.close(seconds_left(deadline))
        return is_delivered

    def _publish(self) -> None:
        gained = self._gained()
        if gained:
            self._signals.count(gained)


def _journal(path: str | os.PathLike[str], sink: str, max_bytes: int) -> Any:
    from constellation_otel.delivery.journal import Journal  # noqa: PLC0415 - SQLite, only where it is used

    return Journal(Path(path), sinks=[sink], max_bytes=max_bytes)
