"""Jaeger v2 with spans in memory: where the tests look a trace up."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode

from .artifact import Artifact
from .golang import GO
from .server import HOST, Server, free_port, http_get
from .waiting import NotYet, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION_PACKAGE: Final = "github.com/jaegertracing/jaeger/internal/version"

ARTIFACT: Final = Artifact(
    name="jaeger",
    program="jaeger",
    lock=Path(__file__).parent / "lock" / "jaeger",
    steps=(
        # Module v1.76.0 is the commit of release v2.13.0, and the newest that is to be had as a Go module.
        (
            *("go", "build", "-o", "out/jaeger"),
            *("-ldflags", f"-s -w -X {_VERSION_PACKAGE}.latestVersion=v2.13.0"),
            "github.com/jaegertracing/jaeger/cmd/jaeger",
        ),
    ),
    toolchain=GO,
)

_HOUR_US: Final = 3_600_000_000
_SEARCH_LIMIT: Final = 1_000
_CONFIG: Final = Path(__file__).resolve().parent / "jaeger.yaml"


class Jaeger(Server):
    """A Jaeger on free ports. What it was sent is gone when it ends, `kill` or `stop`.

    Attributes:
        grpc_port: OTLP over gRPC.
        http_port: OTLP over HTTP.
        query_port: The query API over HTTP.
        query_grpc_port: The query API over gRPC.
        health_port: The health check.
    """

    name: ClassVar[str] = "jaeger"
    stop_deadline_s: ClassVar[float] = 15.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.query_port = free_port()
        self.query_grpc_port = free_port()
        self.health_port = free_port()

    @property
    def target(self) -> str:
        """`host:port` of OTLP over gRPC, as a Collector's exporter takes it."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def grpc_endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT would be, for gRPC."""
        return f"http://{HOST}:{self.grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT would be, for HTTP: without /v1/traces."""
        return f"http://{HOST}:{self.http_port}"

    def command(self) -> list[str]:
        return [str(ARTIFACT.require()), "--config", str(_CONFIG)]

    def environment(self) -> Mapping[str, str]:
        return {
            "JAEGER_OTLP_GRPC": str(self.grpc_port),
            "JAEGER_OTLP_HTTP": str(self.http_port),
            "JAEGER_QUERY_HTTP": str(self.query_port),
            "JAEGER_QUERY_GRPC": str(self.query_grpc_port),
            "JAEGER_HEALTH": str(self.health_port),
        }

    def check_ready(self) -> None:
        status, body = http_get(self.health_port, "/status")
        if status != HTTPStatus.OK:
            message = f"the health check answers {status}: {body}"
            raise NotYet(message)

    def trace(self, trace_id: str, *, spans: int, deadline: float = 20.0) -> dict[str, Any]:
        """A whole trace, as soon as Jaeger has that many of its spans.

        Args:
            trace_id: 32 hexadecimal digits.
            spans: How many spans to wait for. More than that are returned too, so that a test sees them.
            deadline: Seconds to wait.

        Returns:
            OTLP's TracesData as JSON: `{"resourceSpans": [{"resource": …, "scopeSpans": [{"scope": …, "spans": …}]}]}`.
            Ids are hexadecimal, 64-bit integers are strings, enumerations are numbers, what is empty or zero is left
            out, and attributes are sorted by key. One resource may come several times, in no certain order;
            `spans_of` makes one list of the spans.

        Raises:
            AssertionError: The deadline has passed; the message names the spans that were there.
        """

        def whole() -> dict[str, Any]:
            try:
                found = self.find(trace_id)
            except OSError as error:
                raise NotYet(str(error)) from error
            if found is None:
                message = "no such trace"
                raise NotYet(message)
            there = spans_of(found)
            if len(there) < spans:
                message = f"{len(there)} spans: {sorted(span['name'] for span in there)}"
                raise NotYet(message)
            return found

        return eventually(whole, deadline, f"trace {trace_id} with {spans} spans is in Jaeger")

    def search(self, service: str, tags: Mapping[str, str]) -> dict[str, int]:
        """What Jaeger's page finds in the last hour.

        Args:
            service: The name of the service.
            tags: What a span of each trace has to have.

        Returns:
            The ids of the traces, each with the number of its spans.

        Raises:
            AssertionError: It answered with something else than traces.
        """
        now_us = time.time_ns() // 1_000
        query: dict[str, Any] = {"service": service, "start": now_us - _HOUR_US, "end": now_us, "limit": _SEARCH_LIMIT}
        query["tags"] = json.dumps(dict(tags))
        status, body = http_get(self.query_port, f"/api/traces?{urlencode(query)}")
        if status != HTTPStatus.OK:
            message = f"Jaeger answers {status} for {query}: {body}"
            raise AssertionError(message)
        return {trace["traceID"]: len(trace["spans"]) for trace in json.loads(body)["data"]}

    def find(self, trace_id: str) -> dict[str, Any] | None:
        """What Jaeger has of a trace now, in the shape that `trace` returns, or None.

        Raises:
            OSError: Jaeger cannot be reached.
            AssertionError: It answered with something else than the trace or its absence.
        """
        status, body = http_get(self.query_port, f"/api/v3/traces/{trace_id}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            message = f"Jaeger answers {status} for trace {trace_id}: {body}"
            raise AssertionError(message)
        found: dict[str, Any] = json.loads(body)["result"]
        return found


def spans_of(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All spans of OTLP's TracesData, by start time (parents first where it is the same)."""
    spans = [
        span
        for resource in trace.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        # where what came twice was left out, a scope may be empty
        for span in scope.get("spans", [])
    ]
    return sorted(spans, key=lambda span: (int(span["startTimeUnixNano"]), -int(span["endTimeUnixNano"])))
