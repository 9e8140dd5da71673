"""What each answer of an endpoint means."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from constellation_otel.delivery import Rejection
from constellation_otel.errors import (
    DeliveryError,
    MisconfiguredError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.receiver import PartialSuccess, Receiver, Refuse
from constellation_otel.transports.otlp import OtlpSink
from support import DEADLINE
from transports.otlp.helpers import (
    BOTH,
    RESOURCE,
    SECRET,
    SPANS,
    Wire,
    answering_server,
    grpc_server,
    raised_by,
    web_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *[
            (code, UnavailableError)
            for code in ("CANCELLED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "UNKNOWN", "INTERNAL")
        ],
        *[
            (code, RefusedError)
            for code in ("INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")
        ],
        *[
            (code, MisconfiguredError)
            for code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND")
        ],
    ],
)
def test_a_grpc_code_decides_what_becomes_of_the_spans(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], code: str, expected: type[DeliveryError]
) -> None:
    receiver.order(Refuse(grpc_code=grpc.StatusCode[code], message="so it is"))
    error = raised_by(sink_of("grpc"))
    assert type(error) is expected
    says = "is unavailable" if code == "UNAVAILABLE" else f"answered {code}"
    assert str(error).startswith(f"{receiver.grpc_endpoint} {says}: so it is")
    assert (str(error) == f"{receiver.grpc_endpoint} {says}: so it is") == (expected is not MisconfiguredError)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *[(status, UnavailableError) for status in (408, 425, 429, 500, 502, 503, 504, 507, 520, 530, 599)],
        *[(status, RefusedError) for status in (400, 413, 422)],
        *[
            (status, MisconfiguredError)
            for status in (202, 301, 302, 307, 401, 402, 403, 404, 405, 407, 410, 415, 431, 501, 505, 511)
        ],
    ],
)
def test_an_http_status_decides_what_becomes_of_the_spans(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], status: int, expected: type[DeliveryError]
) -> None:
    receiver.order(Refuse(http_status=status, message="so it is"))
    error = raised_by(sink_of("http/protobuf"))
    assert type(error) is expected
    says = f"{receiver.http_endpoint}/v1/traces answered {status}: so it is"
    assert str(error).startswith(says)
    assert (str(error) == says) == (expected is not MisconfiguredError)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (Refuse(http_status=401, grpc_code=grpc.StatusCode.UNAUTHENTICATED), "the headers, OTEL_EXPORTER_OTLP_HEADERS"),
        (Refuse(http_status=404, grpc_code=grpc.StatusCode.UNIMPLEMENTED), "the endpoint, OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
@BOTH
def test_what_an_operator_has_to_fix_names_the_setting(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire, fault: Refuse, hint: str
) -> None:
    receiver.order(fault)
    assert f": refused by order; check {hint}" in str(raised_by(sink_of(protocol)))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_retry_info_says_how_long_to_wait_over_grpc(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], code: str
) -> None:
    receiver.order(Refuse(grpc_code=grpc.StatusCode[code], retry_after=1.25))
    error = raised_by(sink_of("grpc"))
    assert isinstance(error, UnavailableError)
    assert (type(error), error.retry_after, error.delivered) == (UnavailableError, 1.25, frozenset())


@pytest.mark.parametrize(
    "details", [b"\xff", Status(code=8).SerializeToString(), pytest.param("other", id="another detail")]
)
def test_a_status_without_a_retry_info_says_nothing_of_waiting(details: bytes | str) -> None:
    if isinstance(details, str):
        status = Status(code=8)
        status.details.add().Pack(Status(code=1))
        details = status.SerializeToString()

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        raise AssertionError

    with grpc_server(refuse) as endpoint:
        sink = OtlpSink(endpoint, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert (type(error), str(error)) == (
        RefusedError,
        f"{endpoint} answered RESOURCE_EXHAUSTED: no reason was given",
    )


def test_a_retry_after_header_says_how_long_to_wait_over_http(
    receiver: Receiver, sink_of: Callable[..., OtlpSink]
) -> None:
    receiver.order(Refuse(http_status=429, retry_after=7))
    error = raised_by(sink_of("http/protobuf"))
    assert isinstance(error, UnavailableError)
    assert error.retry_after == 7


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (" 3 ", 3, 3),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 3_000, 3_600),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0, 0),
    ],
    ids=["seconds", "a date to come", "a date that has passed"],
)
def test_a_retry_after_header_is_a_number_of_seconds_or_a_date(header: str, least: float, most: float) -> None:
    error = error_of_answer(503, {"Retry-After": header})
    assert isinstance(error, UnavailableError)
    assert error.retry_after is not None
    assert least <= error.retry_after <= most


@pytest.mark.parametrize("header", ["soon", "-1", "9" * 30, "", "Mon, 99 Foo 2020 99:99:99 GMT"])
def test_a_retry_after_header_that_is_neither_is_as_good_as_none(header: str) -> None:
    error = error_of_answer(503, {"Retry-After": header})
    assert isinstance(error, UnavailableError)
    assert error.retry_after is None


@BOTH
@pytest.mark.parametrize(("rejected", "message", "reason"), [(2, "bad ids", "bad ids"), (3, "", "no reason was given")])
def test_a_partial_success_is_one_rejection(
    receiver: Receiver,
    sink_of: Callable[..., OtlpSink],
    protocol: Wire,
    rejected: int,
    message: str,
    reason: str,
) -> None:
    receiver.order(PartialSuccess(rejected, message))
    assert sink_of(protocol).send(SPANS, DEADLINE) == [Rejection(None, rejected, reason)]


@BOTH
def test_no_more_can_be_rejected_than_were_sent(protocol: Wire) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1_000
    with answering_server(protocol, lambda _: None, response=response) as endpoint:
        sink = OtlpSink(endpoint, protocol=protocol, resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 3, "no reason was given")]
        sink.close()


@BOTH
def test_a_warning_of_the_endpoint_is_logged_once_in_a_while(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], caplog: pytest.LogCaptureFixture, protocol: Wire
) -> None:
    """An empty partial success is a success."""
    receiver.order(PartialSuccess(0, ""))
    receiver.order(PartialSuccess(0, "your clock is late", times=2))
    sink = sink_of(protocol)
    for _ in range(3):
        assert sink.send(SPANS, DEADLINE) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{sink.endpoint} took the spans and warned: your clock is late"
    ]


@BOTH
def test_a_batch_that_is_too_large_for_the_endpoint_is_refused(protocol: Wire) -> None:
    with Receiver(max_request_bytes=200) as receiver:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        sink = OtlpSink(endpoint, protocol=protocol, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert type(error) is RefusedError


@BOTH
def test_what_repeats_our_headers_is_not_in_the_message(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    said = f"no tenant has the key {SECRET},\n or Bearer {SECRET}"
    receiver.order(Refuse(http_status=401, grpc_code=grpc.StatusCode.UNAUTHENTICATED, message=said))
    sink = sink_of(protocol, headers={"authorization": f"Bearer {SECRET}", "tenant": "a", "empty": ""})
    assert ": no tenant has the key ***, or ***; check" in str(raised_by(sink))


@pytest.mark.parametrize(
    ("status", "headers", "body", "says"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>Log in</html>", "answered 200; check the endpoint"),
        (200, {"Content-Type": "Text/Plain"}, b"", "answered 200; check the endpoint"),
        (200, {"Content-Type": "text/plain"}, b"fine\xff", "answered 200: fine\ufffd; check the endpoint"),
        (200, {}, b"<html>", "did not answer with an ExportTraceServiceResponse; check the endpoint"),
        (200, {}, b"\0" * 2_000_000, "answered 200; check the endpoint"),
        (302, {"Location": "https://login.example"}, b"", "answered 302; check the endpoint"),
        (404, {"Content-Type": "application/x-protobuf"}, b"\xff", "answered 404; check the endpoint"),
    ],
)
def test_an_answer_that_no_otlp_server_gives_is_no_success(
    status: int, headers: dict[str, str], body: bytes, says: str
) -> None:
    error = error_of_answer(status, headers, body)
    assert type(error) is MisconfiguredError
    assert f"/v1/traces {says}" in str(error)


def test_an_answer_that_is_no_response_is_no_success_over_grpc() -> None:
    with grpc_server(lambda _, __: b"\xff") as endpoint:
        sink = OtlpSink(endpoint, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert type(error) is MisconfiguredError
    assert str(error).startswith(f"{endpoint} did not answer with an ExportTraceServiceResponse; check the endpoint")


def test_a_zipped_answer_is_read() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1
    body = gzip.compress(response.SerializeToString())
    with web_server(200, {"Content-Encoding": "gzip"}, body) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "no reason was given")]
        sink.close()


def test_an_answer_that_cannot_be_unpacked_is_as_good_as_none() -> None:
    error = error_of_answer(200, {"Content-Encoding": "gzip"}, b"not gzip")
    assert type(error) is UnavailableError
    assert "cannot be reached: " in str(error)


def test_grpc_to_a_server_of_http_1_says_to_look_at_the_protocol(
    receiver: Receiver, make_sink: Callable[..., OtlpSink]
) -> None:
    error = raised_by(make_sink(receiver.http_endpoint, protocol="grpc"))
    assert type(error) is MisconfiguredError
    assert str(error).endswith("; check the protocol, OTEL_EXPORTER_OTLP_PROTOCOL")


def error_of_answer(status: int, headers: dict[str, str], body: bytes = b"") -> DeliveryError:
    """What is raised where this is what an HTTP server answers."""
    with web_server(status, headers, body) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    return error
