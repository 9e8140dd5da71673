"""The receiver's life, what it keeps, and how to wait for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from constellation_otel.errors import ReceiverError
from constellation_otel.receiver import Drop, Receiver, Refuse
from otlp_client import call, names, post, spans_named, two_of_each
from support import in_threads


def test_a_restarted_receiver_has_its_ports_and_its_spans(receiver: Receiver) -> None:
    endpoints = receiver.grpc_endpoint, receiver.http_endpoint
    post(receiver, spans_named("before"))
    receiver.stop()
    receiver.stop()
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("meanwhile"))
    with pytest.raises(grpc.RpcError) as away:
        call(receiver, spans_named("meanwhile"))
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE
    receiver.start()
    receiver.start()
    assert (receiver.grpc_endpoint, receiver.http_endpoint) == endpoints
    post(receiver, spans_named("after"))
    call(receiver, spans_named("after"))
    assert names(receiver) == ["before", "after", "after"]


def test_stopping_cuts_idle_connections_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with Receiver() as receiver, requests.Session() as session:
        session.post(receiver.http_endpoint, timeout=10)
        call(receiver, spans_named("x"))
        receiver.stop()
        left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("otlp-")}
    assert left == set()


CLIENT_THAT_STAYS_CONNECTED = """
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from constellation_otel.receiver import Receiver

for number in range(10):
    with Receiver() as receiver:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(receiver.grpc_endpoint)))
        provider.get_tracer("scope").start_span("x").end()
    provider.shutdown()
"""


def test_stopping_makes_a_connected_grpc_client_print_nothing() -> None:
    line = [sys.executable, "-c", CLIENT_THAT_STAYS_CONNECTED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
def test_a_port_that_was_taken_meanwhile_is_an_error(receiver: Receiver, protocol: str) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "gRPC" else receiver.http_endpoint
    host, _, port = endpoint.removeprefix("http://").partition(":")
    receiver.stop()
    with socket.create_server((host, int(port))):
        message = rf"^cannot listen for OTLP/{protocol} on {host}:{port}: .*; is another process using the port\?$"
        with pytest.raises(ReceiverError, match=message):
            receiver.start()
    receiver.start()
    assert post(receiver, spans_named("after")).status_code == 200


def test_a_receiver_that_never_started_has_no_endpoint() -> None:
    with pytest.raises(ReceiverError, match=r"no port yet; use it in a with statement or call start\(\)"):
        _ = Receiver().grpc_endpoint


def test_waiting_ends_when_the_spans_are_there(receiver: Receiver) -> None:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(receiver.wait_for_spans, 2)
        post(receiver, spans_named("a"))
        call(receiver, spans_named("b"))
        assert [span.name for span in waiting.result(timeout=10)] == ["a", "b"]


def test_a_missed_deadline_says_what_has_arrived(receiver: Receiver) -> None:
    with pytest.raises(ReceiverError) as nothing:
        receiver.wait_for_spans(1, timeout=0)
    assert str(nothing.value) == (
        "waited 0 s for 1 spans; there are 0 spans, 0 data points and 0 log records in 0 requests"
    )
    receiver.order(Refuse())
    with pytest.raises(grpc.RpcError):
        call(receiver, spans_named("refused"))
    requests.post(receiver.http_endpoint, timeout=10)
    post(receiver, spans_named(*"abcdefghijkl"))
    with pytest.raises(ReceiverError) as something:
        receiver.wait_for(lambda it: bool(it.logs), 0.01, "a log record")
    assert str(something.value) == (
        "waited 0.01 s for a log record; there are 12 spans (… c, d, e, f, g, h, i, j, k, l), 0 data points and"
        " 0 log records in 3 requests (traces grpc refused UNAVAILABLE, invalid 404, traces http/protobuf accepted 200)"
    )


def test_a_predicate_is_called_without_a_lock(receiver: Receiver) -> None:
    asked: list[int] = []

    def met(it: Receiver) -> bool:
        asked.append(len(it.requests))
        if len(asked) == 1:
            # would wait for this one's lock
            in_threads(1, lambda: post(it, ExportTraceServiceRequest(), timeout=5))
        return len(asked) == 2

    receiver.wait_for(met, 10.0, "the request")
    assert asked == [0, 1]


def test_what_is_kept_is_bounded_and_the_rest_is_counted() -> None:
    with Receiver(max_kept=3) as receiver:
        post(receiver, spans_named("a", "b"))
        post(receiver, spans_named("c", "d"))
        post(receiver, spans_named("e", "f", "g", "h", "i"))
        post(receiver, two_of_each("metrics"), "metrics")
    assert names(receiver) == ["g", "h", "i"]
    assert len(receiver.requests) == 3
    assert receiver.dropped == {"spans": 6, "metrics": 0, "logs": 0, "requests": 1}


def test_clearing_forgets_everything(receiver: Receiver) -> None:
    for signal in ("traces", "metrics", "logs"):
        call(receiver, two_of_each(signal), signal)
    receiver.order(Drop())
    receiver.clear()
    assert (receiver.spans, receiver.metrics, receiver.logs, receiver.requests, receiver.faults) == ([], [], [], [], [])
    assert set(receiver.dropped.values()) == {0}
