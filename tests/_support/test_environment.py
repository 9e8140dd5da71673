"""Every variable that a part of the SDK reads: it works, or one error names it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from commands import command
from constellation_otel import OtlpListener
from constellation_otel._support.environment import configured
from constellation_otel.errors import ConfigurationError
from support import DEADLINE, UNWATCHED, eventually

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver

OTLP = (
    "ENDPOINT",
    "PROTOCOL",
    "HEADERS",
    "COMPRESSION",
    "TIMEOUT",
    "CERTIFICATE",
    "CLIENT_KEY",
    "CLIENT_CERTIFICATE",
    "INSECURE",
)
VARIABLES = (
    *(f"OTEL_EXPORTER_OTLP_{signal}{name}" for signal in ("", "TRACES_", "METRICS_", "LOGS_") for name in OTLP),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_METRICS_EXEMPLAR_FILTER",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_METRICS_EXPORTER",
    "OTEL_LOGS_EXPORTER",
    "OTEL_SDK_DISABLED",
    "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_EXPORT_TIMEOUT",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_METRICS_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
)
VALUES = ("", "  ", "foo", "-1", "0", "10s", "1e400", "nan", "1" * 30, "\x1b[31m\n", "\udcff", "é", "a=\udcff")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@UNWATCHED
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_odd_value_works_or_is_one_error_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")
    for value in VALUES:
        if "PROTOCOL" not in variable:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv(variable, value)
        before = set(threading.enumerate())
        try:
            listener = OtlpListener()
        except ConfigurationError as error:
            said = str(error)
            assert variable in said
            assert said.isprintable()
        else:
            listener.close(0)
        eventually(lambda before=before: set(threading.enumerate()) <= before, f"no thread after {value!r}")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_METRICS_EXEMPLAR_FILTER", "foo"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "10s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "-1"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "10"),
    ],
)
def test_a_command_with_a_variable_that_cannot_be_used_ends_with_one_line_and_2(variable: str, value: str) -> None:
    variables = {variable: value, "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": "logs"}
    done = command("bridge", "jsonl:-", "--to", "otlp://127.0.0.1:1", **variables)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("constellation-otel bridge: ")
    assert variable in done.stderr


def test_the_metrics_take_an_endpoint_as_the_spans_do(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank at its end, which the SDK's own exporters would keep."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", " http/protobuf ")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{receiver.http_endpoint}/  ")
    listener = OtlpListener()
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    listener.on_execution_complete(execution_id, "d", True, 1.0)
    assert listener.close(DEADLINE)
    assert {request.signal for request in receiver.requests} == {"traces", "metrics"}


def test_a_timeout_that_looks_like_milliseconds_gives_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
    OtlpListener().close(0)
    warnings = [record.getMessage() for record in caplog.records if "OTEL_EXPORTER_OTLP_TIMEOUT" in record.getMessage()]
    assert warnings == [
        "OTEL_EXPORTER_OTLP_TIMEOUT is 10000: these are seconds, as OpenTelemetry Python has them, not milliseconds"
    ]


def test_an_error_of_a_part_without_a_variable_of_its_own_names_all_that_it_reads() -> None:
    said = r"^OTEL_A_ or OTEL_B_ cannot be used: KeyError: 'x'; correct or"
    with pytest.raises(ConfigurationError, match=said), configured("OTEL_A_", "OTEL_B_"):
        raise KeyError("x")
