"""The OpenTelemetry Collector, with the configuration that the repository offers to users."""

from __future__ import annotations

import json
import subprocess
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from .artifact import Artifact
from .golang import GO
from .server import HOST, Server, free_port, http_get
from .waiting import NotYet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ARTIFACT: Final = Artifact(
    name="collector",
    program="otelcol",
    lock=Path(__file__).parent / "lock" / "collector",
    steps=(
        # Sources only: the builder's own fetch asks for every dependency's test-only modules, and not all can be had.
        (
            *("go", "run", "go.opentelemetry.io/collector/cmd/builder@v0.155.0"),
            *("--config", "manifest.yaml", "--skip-get-modules", "--skip-compilation"),
        ),
        ("cp", "go.mod", "go.sum", "generated/"),
        ("go", "-C", "generated", "build", "-ldflags", "-s -w", "-o", "../out/otelcol", "."),
    ),
    toolchain=GO,
)

CONFIG: Final = Path(__file__).resolve().parents[3] / "collector-config.yaml"

_VALIDATE_DEADLINE_S = 30.0


class Collector(Server):
    """A Collector on free ports that runs the top-level collector-config.yaml.

    Its queue and its log file are in `folder/data`, and survive `kill` and `start`.

    Args:
        folder: Where it lives.
        jaeger: `host:port` of the OTLP gRPC endpoint that it sends traces to.

    Attributes:
        grpc_port: OTLP over gRPC.
        http_port: OTLP over HTTP.
        health_port: The health check.
        prometheus_port: What Prometheus would scrape.
        metrics_port: The Collector's own metrics.
        logs_file: The log records that it received, as lines of OTLP JSON.
    """

    name: ClassVar[str] = "collector"
    # It drains what it can before it exits.
    stop_deadline_s: ClassVar[float] = 30.0

    def __init__(self, folder: Path, *, jaeger: str) -> None:
        super().__init__(folder)
        self.jaeger = jaeger
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.health_port = free_port()
        self.prometheus_port = free_port()
        self.metrics_port = free_port()
        self.data = folder / "data"
        self.logs_file = self.data / "logs" / "logs.jsonl"

    @property
    def grpc_endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT would be, for gRPC."""
        return f"http://{HOST}:{self.grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT would be, for HTTP: without /v1/traces."""
        return f"http://{HOST}:{self.http_port}"

    def command(self) -> list[str]:
        return [str(ARTIFACT.require()), "--config", str(CONFIG)]

    def environment(self) -> Mapping[str, str]:
        return {
            "OTELCOL_DATA": str(self.data),
            "OTELCOL_OTLP_GRPC": f"{HOST}:{self.grpc_port}",
            "OTELCOL_OTLP_HTTP": f"{HOST}:{self.http_port}",
            "OTELCOL_HEALTH": f"{HOST}:{self.health_port}",
            "OTELCOL_PROMETHEUS": f"{HOST}:{self.prometheus_port}",
            "OTELCOL_METRICS_PORT": str(self.metrics_port),
            "OTELCOL_JAEGER": self.jaeger,
        }

    def check_ready(self) -> None:
        status, body = http_get(self.health_port, "/")
        if status != HTTPStatus.OK:
            message = f"the health check answers {status}: {body}"
            raise NotYet(message)

    def health(self) -> tuple[int, str]:
        """The health check's status code and body."""
        return http_get(self.health_port, "/")

    def scrape(self) -> str:
        """The metrics endpoint's page as Prometheus asks for it: in OpenMetrics, which has exemplars."""
        status, page = http_get(self.prometheus_port, "/metrics", "application/openmetrics-text; version=1.0.0")
        if status != HTTPStatus.OK:
            message = f"the metrics endpoint answers {status}: {page}"
            raise NotYet(message)
        return page

    def own_metrics(self) -> str:
        """The Collector's metrics about itself, such as otelcol_exporter_queue_size."""
        status, page = http_get(self.metrics_port, "/metrics")
        if status != HTTPStatus.OK:
            message = f"the Collector's own metrics answer {status}: {page}"
            raise NotYet(message)
        return page

    def queued_bytes(self) -> int:
        """What waits for Jaeger, and what is on its way there."""
        page = self.own_metrics()
        (size,) = [line for line in page.splitlines() if line.startswith("otelcol_exporter_queue_size{")]
        # The unit is the configured one, bytes, although the metric's own description says batches.
        return int(float(size.split()[-1]))

    def log_records(self) -> list[dict[str, Any]]:
        """All log records received so far, as OTLP JSON, each with its resource's attributes under "resource"."""
        return list(self._log_records())

    def _log_records(self) -> Iterator[dict[str, Any]]:
        if not self.logs_file.is_file():
            return
        for line in self.logs_file.read_text().splitlines(keepends=True):
            # The last line may be half written.
            if not line.endswith("\n"):
                return
            for resource in json.loads(line)["resourceLogs"]:
                for scope in resource["scopeLogs"]:
                    for record in scope["logRecords"]:
                        yield {**record, "resource": resource["resource"]}


def validate(config: Path) -> subprocess.CompletedProcess[str]:
    """Has the Collector itself check a configuration, with no variable set: exit code 0 and no output when it is right.

    Raises:
        MissingPeerError: The Collector is not in the cache.
    """
    return subprocess.run(
        [str(ARTIFACT.require()), "validate", "--config", str(config)],
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_VALIDATE_DEADLINE_S,
        check=False,
    )
