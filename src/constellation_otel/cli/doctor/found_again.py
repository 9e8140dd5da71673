"""One span through an OTLP endpoint, and whether it is found again in Jaeger."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import urllib3
from opentelemetry.trace import SpanKind

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel.cli.doctor.endpoints import TIMEOUT_S, otlp_sink
from constellation_otel.cli.doctor.finding import Finding, of_error, ok, problem
from constellation_otel.errors import ConfigurationError, ConstellationOtelError
from constellation_otel.traces import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SERVICE", "check_jaeger_url", "check_span"]

SERVICE: Final = "constellation-otel-doctor"
_NAME: Final = "test span"
_SAMPLED_AND_RANDOM: Final = 0x03
_DEADLINE_S: Final = 20.0
"""Seconds in which the span has to be found: a Collector collects for some, and Jaeger writes in batches."""
_PAUSE_S: Final = 0.2
_NOT_FOUND: Final = (
    "look at the log of the Collector and at its pipeline: its exporters, and whether it samples; check that this is"
    " the Jaeger that it sends to"
)
_NO_JAEGER: Final = "start Jaeger, or give --jaeger the URL of its UI, as http://jaeger:16686"


def check_jaeger_url(url: str) -> str:
    """The URL of Jaeger's UI, without a slash at its end.

    Raises:
        ConfigurationError: It cannot be used; the message has no part of it that may be secret.
    """
    unusable = "--jaeger is not the URL of a Jaeger; give http://host:16686, or https://"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(unusable) from None
    if parts.scheme not in {"http", "https"} or not re.fullmatch(r"[\w.:%-]+", parts.hostname or "", re.ASCII):
        raise ConfigurationError(unusable)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        message = "--jaeger may have no user, password, query or fragment; give http://host:16686"
        raise ConfigurationError(message)
    return url.rstrip("/")


def check_span(url: str | None, jaeger: str, *, deadline_s: float = _DEADLINE_S) -> Iterator[Finding]:
    """Sends one span, and looks for it.

    Args:
        url: As for :func:`~constellation_otel.cli.doctor.endpoints.otlp_sink`.
        jaeger: As :func:`check_jaeger_url` gives it.
        deadline_s: Seconds in which it has to be found.
    """
    trace_id, now = secrets.randbits(128) | 1, time.time_ns()
    span = Span(
        trace_id=trace_id,
        span_id=secrets.randbits(64) | 1,
        parent_span_id=None,
        trace_state="",
        trace_flags=_SAMPLED_AND_RANDOM,
        name=_NAME,
        kind=SpanKind.INTERNAL,
        start_ns=now - 1_000_000,
        end_ns=now,
        attributes={},
    )
    try:
        sink = otlp_sink(url, SERVICE)
        try:
            rejections = sink.send([span], TIMEOUT_S)
        finally:
            sink.close()
    except ConstellationOtelError as error:
        yield of_error(error, "span", "see the problem with its connection")
        return
    if rejections:
        yield problem("span", f"the endpoint rejects the test span: {rejections[0].reason}", _NOT_FOUND)
        return
    yield _found_again(f"{trace_id:032x}", jaeger, deadline_s)


def _found_again(trace_id: str, jaeger: str, deadline_s: float) -> Finding:
    asked = f"{jaeger}/api/traces/{trace_id}"
    began, deadline = time.monotonic(), deadline_of(deadline_s)
    pause = threading.Event()
    with urllib3.PoolManager(1) as pool:
        while True:
            timeout = max(_PAUSE_S, min(TIMEOUT_S, seconds_left(deadline)))
            try:
                response = pool.request("GET", asked, timeout=timeout, retries=False, redirect=False)
            except urllib3.exceptions.HTTPError as error:
                return problem("span", f"Jaeger cannot be asked: {jaeger}: {type(error).__name__}: {error}", _NO_JAEGER)
            if response.status == HTTPStatus.OK:
                if _has_span(response.data, trace_id):
                    waited = time.monotonic() - began
                    return ok(
                        "span", f"the test span was found in Jaeger after {waited:.1f} s: {jaeger}/trace/{trace_id}"
                    )
                return problem("span", f"{jaeger} does not answer as Jaeger does", _NO_JAEGER)
            if response.status != HTTPStatus.NOT_FOUND:
                return problem("span", f"{jaeger} answered {response.status}, and no trace", _NO_JAEGER)
            if not seconds_left(deadline):
                found = f"the endpoint took the test span, and {jaeger} has no trace {trace_id} after {deadline_s:g} s"
                return problem("span", found, _NOT_FOUND)
            pause.wait(_PAUSE_S)


def _has_span(data: bytes, trace_id: str) -> bool:
    try:
        answer: Any = json.loads(data)
        # Jaeger leaves zeros at the beginning out
        return any(int(trace["traceID"], 16) == int(trace_id, 16) and trace["spans"] for trace in answer["data"])
    except (ValueError, TypeError, LookupError):
        return False
