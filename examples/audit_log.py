"""An audit table, written while pipelines run, and their traces made from it afterwards.

    python examples/audit_log.py

It prints the table's rows. An OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says) then gets the trace from the table, as
`constellation-otel replay sqlite:///audit.db --to otlp://localhost:4317` would send
it. With a postgresql:// URL all of this is the same.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from constellation_otel import (
    Bridge,
    Constellation,
    Dag,
    ExecutionFailedError,
    ExecutionListener,
    OpenTelemetryListener,
)
from constellation_otel.transports.otlp import OtlpSink, make_resource
from constellation_otel.transports.sql import SqlAuditListener, SqlSource


def words(text: str) -> list[str]:
    return text.split()


def total(words: list[str]) -> int:
    return sum(int(word) for word in words)


def main() -> None:
    with TemporaryDirectory() as folder:
        database = Path(folder) / "audit.db"
        audit = SqlAuditListener(f"sqlite:///{database}")
        with Constellation(listener=ExecutionListener.composite(audit, OpenTelemetryListener())) as constellation:
            try:
                constellation.run(Dag("sum", [words, total]), {"text": "1 2 three"})
            except ExecutionFailedError as failure:
                print(f"failed: {', '.join(failure.errors)}")
        audit.close(timeout=10)

        with closing(sqlite3.connect(database)) as connection:
            for row in connection.execute(
                "SELECT event_type, dag_name, module_name, succeeded, error_message FROM execution_audit ORDER BY id"
            ):
                print(*row, sep=" | ")

        report = Bridge(SqlSource(f"sqlite:///{database}"), [OtlpSink(resource=make_resource())], is_replay=True).run()
        print(f"{report.events} events replayed as {report.assembly.spans} spans; delivered: {report.is_delivered}")


if __name__ == "__main__":
    main()
