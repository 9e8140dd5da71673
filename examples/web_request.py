"""A pipeline inside a web request: one trace from the request to the modules' own SQL.

Needs flask, opentelemetry-instrumentation-flask and opentelemetry-instrumentation-sqlite3.

    python examples/web_request.py

It serves itself one request on a free loopback port, prints the answer and the trace's
id, and exits. An OTLP endpoint (localhost:4317, or what OTEL_EXPORTER_OTLP_ENDPOINT
says) gets the trace: the request, the execution below it, its modules below that, and
the SQL below the module that runs it. Nothing here passes a context on.
"""

import sqlite3
import threading
from contextlib import closing
from urllib.request import urlopen

from flask import Flask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from werkzeug.serving import make_server

from constellation_otel import Constellation, Dag, OpenTelemetryListener


def words(text: str) -> list[str]:
    return text.lower().split()


def distinct(words: list[str]) -> int:
    with closing(sqlite3.connect(":memory:")) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE word (word TEXT)")
        cursor.executemany("INSERT INTO word VALUES (?)", [(word,) for word in words])
        cursor.execute("SELECT COUNT(DISTINCT word) FROM word")
        (count,) = cursor.fetchone()
    return int(count)


def main() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    SQLite3Instrumentor().instrument()

    app = Flask(__name__)
    FlaskInstrumentor().instrument_app(app)  # type: ignore[no-untyped-call] # has no types
    constellation = Constellation(listener=OpenTelemetryListener())
    report = Dag("report", [words, distinct])

    @app.get("/report/<text>")
    def show(text: str) -> dict[str, object]:
        outputs = constellation.run(report, {"text": text})
        trace_id = trace.get_current_span().get_span_context().trace_id
        return {"distinct": outputs["distinct"], "trace": format(trace_id, "032x")}

    with constellation, make_server("127.0.0.1", 0, app, threaded=True) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/report/To%20be%20or%20not%20to%20be"
        with urlopen(url) as answer:
            print(answer.read().decode().strip())
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
