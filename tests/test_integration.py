"""Pipelines in real applications: with their own SDK, inside web requests, and in other processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
import uvicorn
from distributed import Client, LocalCluster
from fastapi import FastAPI
from flask import Flask
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from werkzeug.serving import make_server

import remote
from constellation_otel import Constellation, Dag, ExecutionFailedError, OpenTelemetryListener
from constellation_otel.testing import span_tree
from programs import run_command
from support import DEADLINE, UNWATCHED, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Application
    from constellation_otel.receiver import Receiver

pytestmark = UNWATCHED


# --- two lines -----------------------------------------------------------------------------------------------------

PLAIN = """\
from constellation_otel import Constellation, Dag

def trim(text):
    return text.strip()

def word_count(trim):
    return len(trim.split())

constellation = Constellation()
print(constellation.run(Dag("my-pipeline", [trim, word_count]), {"text": " to be or not to be "})["word_count"])
"""
TWO_LINES = {
    "from constellation_otel import Constellation, Dag\n": (
        "from constellation_otel import Constellation, Dag, OpenTelemetryListener\n"
    ),
    "constellation = Constellation()\n": "constellation = Constellation(listener=OpenTelemetryListener())\n",
}
OWN_SET_UP = """\
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
"""


@pytest.mark.parametrize(
    ("set_up", "command"),
    [(OWN_SET_UP, "python"), ("", "opentelemetry-instrument python")],
    ids=["beside the application's own set-up", "under opentelemetry-instrument"],
)
def test_two_lines_take_a_plain_pipeline_to_a_trace(
    set_up: str, command: str, receiver: Receiver, tmp_path: Path
) -> None:
    """Also where the instrumentation is disabled that needs none of them."""
    disabled = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "constellation"}
    program = tmp_path / "program.py"
    program.write_text(set_up + PLAIN)
    assert run_command(receiver, f"{command} {program}", **disabled) == ("6\n", "")
    assert receiver.spans == []
    traced = set_up + PLAIN
    for line, with_traces in TWO_LINES.items():
        assert traced.count(line) == 1
        traced = traced.replace(line, with_traces)
    program.write_text(traced)
    assert run_command(receiver, f"{command} {program}", **disabled) == ("6\n", "")
    assert span_tree(receiver.spans) == (
        "my-pipeline (server) success\n  trim (internal) success\n  word_count (internal) success"
    )


# --- inside a web request ------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return text.lower().split()


def store(words: list[str]) -> int:
    with closing(sqlite3.connect(":memory:")) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE word (word TEXT)")
        cursor.executemany("INSERT INTO word VALUES (?)", [(word,) for word in words])
        return cursor.rowcount


def fetch(url: str) -> str:
    with requests.get(url, timeout=DEADLINE) as response:
        return response.text


async def store_async(words: list[str]) -> int:
    return store(words)


async def fetch_async(url: str) -> str:
    return await asyncio.to_thread(fetch, url)


REPORT = Dag("report", [words, store, fetch, store_async, fetch_async])
OUTPUTS = {"words": ["to", "be"], "store": 2, "fetch": "hello", "store_async": 2, "fetch_async": "hello"}

EXECUTION = """\
  report (internal) success
    fetch (internal) success
      GET (client)
    fetch_async (internal) success
      GET (client)
    store (internal) success
      CREATE (client)
      INSERT (client)
    store_async (internal) success
      CREATE (client)
      INSERT (client)
    words (internal) success"""
FLASK_TREE = f"GET /report/<text> (server)\n{EXECUTION}"


def fastapi_tree(route: str) -> str:
    """Its instrumentation has spans for the answer's head and body."""
    name = f"GET /{route}/{{text}}"
    return f"{name} (server)\n  {name} http send (internal)\n  {name} http send (internal)\n{EXECUTION}"


Serve = Callable[["Application", Constellation, str], AbstractContextManager[str]]


@contextmanager
def flask_app(application: Application, constellation: Constellation, upstream: str) -> Iterator[str]:
    """A Flask application, served over real sockets; gives its URL."""
    app = Flask("shop")
    FlaskInstrumentor().instrument_app(app, tracer_provider=application.traces)  # type: ignore[no-untyped-call] # has no types

    @app.get("/report/<text>")
    def report(text: str) -> dict[str, Any]:
        return dict(constellation.run(REPORT, {"text": text, "url": upstream}))

    with make_server("127.0.0.1", 0, app, threaded=True) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(DEADLINE)


@contextmanager
def fastapi_app(application: Application, constellation: Constellation, upstream: str) -> Iterator[str]:
    """A FastAPI application, served by uvicorn; gives its URL."""
    app = FastAPI()

    @app.get("/report/{text}")
    def report(text: str) -> dict[str, Any]:
        return dict(constellation.run(REPORT, {"text": text, "url": upstream}))

    @app.get("/async-report/{text}")
    async def async_report(text: str) -> dict[str, Any]:
        return dict(await constellation.run_async(REPORT, {"text": text, "url": upstream}))

    FastAPIInstrumentor.instrument_app(app, tracer_provider=application.traces)
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "uvicorn to listen")
        (listening,) = (socket for each in server.servers for socket in each.sockets)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE)


WEB = pytest.mark.parametrize(
    ("serve", "route", "tree"),
    [
        (flask_app, "report", FLASK_TREE),
        (fastapi_app, "report", fastapi_tree("report")),
        (fastapi_app, "async-report", fastapi_tree("async-report")),
    ],
    ids=["flask", "fastapi, run", "fastapi, run_async"],
)


@pytest.fixture
def upstream() -> Iterator[tuple[str, list[str]]]:
    """Another service: its URL, and the traceparent headers of the calls that it got."""
    traceparents: list[str] = []

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            traceparents.append(self.headers["traceparent"])
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", traceparents
        server.shutdown()
        thread.join(DEADLINE)


@contextmanager
def instrumented(application: Application) -> Iterator[OpenTelemetryListener]:
    """What an application does at its start: SQLite and HTTP calls are traced; and our listener."""
    instrumentors = SQLite3Instrumentor(), RequestsInstrumentor()
    listener = OpenTelemetryListener(application.traces)
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=application.traces)
    try:
        yield listener
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        assert listener.close(DEADLINE)


@WEB
def test_in_a_request_the_execution_is_its_child_and_the_modules_calls_are_their_modules_children(
    serve: Serve, route: str, tree: str, application: Application, upstream: tuple[str, list[str]]
) -> None:
    url, traceparents = upstream
    with instrumented(application) as listener, Constellation(listener) as constellation:
        with serve(application, constellation, url) as base:
            answer = httpx.get(f"{base}/{route}/To%20be", timeout=DEADLINE)
        assert (answer.status_code, answer.json()) == (200, OUTPUTS)
        assert listener.flush(DEADLINE)
    application.export()
    spans = application.receiver.spans
    assert span_tree(spans) == tree
    # the trace goes on in the service that was called
    calls = {f"00-{span.trace_id:032x}-{span.span_id:016x}" for span in spans if span.name == "GET"}
    assert {traceparent.rpartition("-")[0] for traceparent in traceparents} == calls


class SeededIds(IdGenerator):
    """Ids that are the same in every run; keeps the trace ids that it gave out."""

    def __init__(self) -> None:
        self._random = random.Random(2026)
        self.trace_ids: list[int] = []

    def generate_trace_id(self) -> int:
        self.trace_ids.append(self._random.getrandbits(128))
        return self.trace_ids[-1]

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64)

    def kept_by(self, sampler: TraceIdRatioBased) -> set[int]:
        """Those of the trace ids that a sampler keeps."""
        sampled = Decision.RECORD_AND_SAMPLE
        return {each for each in self.trace_ids if sampler.should_sample(None, each, "").decision is sampled}


@WEB
def test_ratio_sampling_keeps_or_drops_whole_traces_of_requests(
    serve: Serve,
    route: str,
    tree: str,
    make_application: Callable[..., Application],
    upstream: tuple[str, list[str]],
) -> None:
    ids, ratio, count = SeededIds(), TraceIdRatioBased(0.4), 25
    application = make_application(sampler=ParentBased(ratio), id_generator=ids)
    url, traceparents = upstream
    with instrumented(application) as listener, Constellation(listener) as constellation:
        with serve(application, constellation, url) as base, httpx.Client(timeout=DEADLINE) as client:
            for _ in range(count):
                assert client.get(f"{base}/{route}/To%20be").json() == OUTPUTS
        assert listener.flush(DEADLINE)
    application.export()
    kept = ids.kept_by(ratio)
    assert len(ids.trace_ids) == count
    assert 0 < len(kept) < count
    spans = application.receiver.spans
    assert span_tree(spans) == "\n\n".join([tree] * len(kept))
    assert {span.trace_id for span in spans} == kept
    # what was called is told the same, in both of a request's calls
    told = sorted((traceparent[3:35], traceparent[-1:] in "13") for traceparent in traceparents)
    assert told == sorted([(format(each, "032x"), each in kept) for each in ids.trace_ids] * 2)


# --- in other processes --------------------------------------------------------------------------------------------


@contextmanager
def process_pool(endpoint: str) -> Iterator[Executor]:
    """A pool of spawned processes, each with an SDK of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, remote.set_up, (endpoint,)) as pool:
        yield pool


@contextmanager
def dask_cluster(endpoint: str) -> Iterator[Executor]:
    """A Dask cluster of one worker in a process of its own, with an SDK of its own."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,  # type: ignore[no-untyped-call] # has no types
        Client(cluster) as client,  # type: ignore[no-untyped-call] # as above
    ):
        client.run(remote.set_up, endpoint)
        yield client.get_executor()


@pytest.mark.parametrize("elsewhere", [process_pool, dask_cluster])
def test_what_a_module_does_in_another_process_nests_under_its_span(
    elsewhere: Callable[[str], AbstractContextManager[Executor]], make_application: Callable[..., Application]
) -> None:
    """Sync and async, well and not; and what is not sampled here is not sampled there."""
    ids, ratio, count = SeededIds(), TraceIdRatioBased(0.5), 8
    application = make_application(sampler=ParentBased(ratio), id_generator=ids)
    listener = OpenTelemetryListener(application.traces)
    tracer = application.traces.get_tracer("jobs")
    dag = Dag("counts", [remote.words, remote.count, remote.refuse])
    with (
        elsewhere(application.receiver.http_endpoint) as executor,
        Constellation(listener, executor) as constellation,
    ):
        for _ in range(count):
            with (
                tracer.start_as_current_span("job", kind=SpanKind.CONSUMER),
                pytest.raises(ExecutionFailedError, match="'to' is not welcome") as failed,
            ):
                constellation.run(dag, {"text": "to be"})
            assert failed.value.outputs == {"words": ["to", "be"], "count": 2}
    assert listener.close(DEADLINE)
    application.export()
    kept = ids.kept_by(ratio)
    assert len(ids.trace_ids) == count
    assert 0 < len(kept) < count
    tree = """\
job (consumer)
  counts (internal) failure ERROR "refuse failed: 'to' is not welcome"
    count (internal) success
      count (internal)
    refuse (internal) failure ERROR "'to' is not welcome"
      look (internal) ERROR "ValueError: 'to' is not welcome"
    words (internal) success
      split (internal)"""
    assert span_tree(application.receiver.spans) == "\n\n".join([tree] * len(kept))
    assert {span.trace_id for span in application.receiver.spans} == kept
    sources = {
        (received.scope.name, "process.pid" in received.resource.attributes)
        for received in application.receiver.received
    }
    assert sources == {("jobs", False), ("constellation_otel", False), ("remote", True)}
