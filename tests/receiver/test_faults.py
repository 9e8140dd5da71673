"""What a receiver does on order: refuse, delay, reject a part, give no answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import requests
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from constellation_otel.receiver import Delay, Drop, PartialSuccess, Refuse
from otlp_client import SERVICES, call, names, outcomes, post, spans_named, two_of_each

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver


def trailing_metadata(error: Any) -> dict[str, Any]:
    return dict(error.trailing_metadata())


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_refusal_over_http_has_status_and_retry_after(receiver: Receiver, signal: str) -> None:
    receiver.order(Refuse(http_status=429, retry_after=1.2, message="slow down", times=2))
    first = post(receiver, two_of_each(signal), signal)
    second = post(receiver, two_of_each("logs"), "logs")
    third = post(receiver, two_of_each(signal), signal)
    assert [answer.status_code for answer in (first, second, third)] == [429, 429, 200]
    assert first.headers["retry-after"] == "2"
    assert Status.FromString(first.content) == Status(code=14, message="slow down")
    assert "retry-after" not in third.headers
    assert len(receiver.spans) + len(receiver.metrics) + len(receiver.logs) == 2
    assert [it.outcome for it in receiver.requests] == ["refused", "refused", "accepted"]
    assert receiver.requests[0].message == "slow down"


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_refusal_over_grpc_has_the_code_and_retry_info(receiver: Receiver, signal: str) -> None:
    receiver.order(Refuse(retry_after=1.25))
    receiver.order(Refuse(grpc_code=grpc.StatusCode.PERMISSION_DENIED, message="who are you"))
    with pytest.raises(grpc.RpcError) as unavailable:
        call(receiver, two_of_each(signal), signal)
    with pytest.raises(grpc.RpcError) as denied:
        call(receiver, two_of_each(signal), signal)
    response = call(receiver, two_of_each(signal), signal)

    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
    assert unavailable.value.details() == "refused by order"
    status = Status.FromString(trailing_metadata(unavailable.value)["grpc-status-details-bin"])
    assert (status.code, status.message) == (14, "refused by order")
    retry_info = RetryInfo()
    assert status.details[0].Unpack(retry_info)
    assert retry_info.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "grpc-status-details-bin" not in trailing_metadata(denied.value)
    assert not response.HasField("partial_success")
    assert outcomes(receiver) == [
        (signal, "grpc", "refused", "UNAVAILABLE"),
        (signal, "grpc", "refused", "PERMISSION_DENIED"),
        (signal, "grpc", "accepted", "OK"),
    ]


@pytest.mark.parametrize(
    ("signal", "field"),
    [("traces", "rejected_spans"), ("metrics", "rejected_data_points"), ("logs", "rejected_log_records")],
)
def test_a_partial_success_keeps_what_is_not_rejected(receiver: Receiver, signal: str, field: str) -> None:
    receiver.order(PartialSuccess(1, "the last one", times=2))
    receiver.order(PartialSuccess(9))
    receiver.order(PartialSuccess(0, ""))
    _, _, response = SERVICES[signal]
    over_http = response.FromString(post(receiver, two_of_each(signal), signal).content)
    over_grpc = call(receiver, two_of_each(signal), signal)
    everything = call(receiver, two_of_each(signal), signal)
    nothing = call(receiver, two_of_each(signal), signal)
    assert over_http == over_grpc
    assert getattr(over_http.partial_success, field) == 1
    assert over_http.partial_success.error_message == "the last one"
    assert getattr(everything.partial_success, field) == 2
    assert nothing.HasField("partial_success")
    assert getattr(nothing.partial_success, field) == 0
    kept = [
        *names(receiver),
        *(point.value for point in receiver.metrics),
        *(record.severity_text for record in receiver.logs),
    ]
    assert kept == ([1, 1, 1, 2] if signal == "metrics" else ["one", "one", "one", "two"])
    assert [it.outcome for it in receiver.requests] == ["partial"] * 4


def test_a_dropped_request_has_no_answer(receiver: Receiver) -> None:
    """It is kept if only the answer is to get lost."""
    receiver.order(Drop(times=2))
    receiver.order(Drop(kept=True, times=2))
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("lost"))
    with pytest.raises(grpc.RpcError) as lost:
        call(receiver, spans_named("lost"))
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("kept over HTTP"))
    with pytest.raises(grpc.RpcError) as unanswered:
        call(receiver, spans_named("kept over gRPC"))
    assert {it.value.code() for it in (lost, unanswered)} == {grpc.StatusCode.CANCELLED}
    assert names(receiver) == ["kept over HTTP", "kept over gRPC"]
    assert outcomes(receiver) == [("traces", protocol, "dropped", "") for protocol in ("http/protobuf", "grpc") * 2]


def test_a_delayed_request_is_answered_late_over_both_protocols(receiver: Receiver) -> None:
    receiver.order(Delay(0.05, times=2))
    for send in (post, call):
        started = time.monotonic()
        send(receiver, spans_named("late"))
        assert time.monotonic() - started >= 0.05
    assert names(receiver) == ["late", "late"]


def test_stopping_ends_a_delay_and_keeps_nothing_of_it(receiver: Receiver) -> None:
    receiver.order(Delay(600, times=2))
    with ThreadPoolExecutor(2) as threads:
        over_http = threads.submit(post, receiver, spans_named("never"), timeout=30)
        over_grpc = threads.submit(call, receiver, spans_named("never"), timeout=30)
        receiver.wait_for(lambda it: it.faults == [], 10, "both requests to be delayed")
        receiver.stop()
        assert isinstance(over_http.exception(), requests.ConnectionError)
        assert isinstance(over_grpc.exception(), grpc.RpcError)
    assert receiver.spans == []
    assert sorted(outcomes(receiver)) == [
        ("traces", "grpc", "dropped", ""),
        ("traces", "http/protobuf", "dropped", ""),
    ]


def test_faults_happen_in_order_and_only_to_their_signal(receiver: Receiver) -> None:
    receiver.order(Refuse(http_status=500), signal="logs")
    receiver.order(Refuse(http_status=502, times=2))
    assert receiver.faults == [Refuse(http_status=500), Refuse(http_status=502, times=2)]
    statuses = [
        post(receiver, two_of_each(signal), signal).status_code
        for signal in ("traces", "logs", "metrics", "logs", "traces")
    ]
    assert statuses == [502, 500, 502, 200, 200]
    assert receiver.faults == []


def test_a_request_that_breaks_the_protocol_takes_no_fault(receiver: Receiver) -> None:
    receiver.order(Refuse())
    with pytest.raises(grpc.RpcError) as junk:
        call(receiver, b"\xff")
    assert junk.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert requests.post(receiver.http_endpoint, timeout=10).status_code == 404
    assert receiver.faults == [Refuse()]


def test_a_fault_that_never_happens_is_refused(receiver: Receiver) -> None:
    with pytest.raises(ValueError, match=r"Delay\(seconds=1, times=0\) would happen 0 times; times must be at least 1"):
        receiver.order(Delay(1, times=0))


def test_an_exporter_that_retries_gets_its_span_through(receiver: Receiver) -> None:
    receiver.order(Refuse())
    exporter = OTLPSpanExporter(receiver.grpc_endpoint, insecure=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("scope").start_span("persistent").end()
    provider.shutdown()
    assert names(receiver) == ["persistent"]
    assert [it.outcome for it in receiver.requests] == ["refused", "accepted"]
    arrivals = [it.received_ns for it in receiver.requests]
    assert arrivals == sorted(arrivals)
