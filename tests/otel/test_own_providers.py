"""PrivateSignals: metrics and failure logs beside spans that we export ourselves, over real OTLP."""

from __future__ import annotations

import logging
import math
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode

from constellation_otel.errors import ConfigurationError
from constellation_otel.otel import PrivateSignals
from constellation_otel.otel._sdk_internals import THEIR_LOGGERS
from constellation_otel.receiver import Delay, Refuse
from otel.signals import RESOURCE, observe
from programs import ROOT
from support import DEADLINE, UNWATCHED, eventually
from telemetry import BOTH, OPT_IN, Wire, endpoint_of, our_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.receiver import Receiver

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def make() -> Iterator[Callable[..., PrivateSignals]]:
    """Makes signals that are closed at the end."""
    made: list[PrivateSignals] = []

    def make(endpoint: str | None, protocol: str | None = None, **headers: str) -> PrivateSignals:
        signals = PrivateSignals(RESOURCE, endpoint=endpoint, protocol=protocol, headers=headers or None)
        made.append(signals)
        return signals

    yield make
    for signals in made:
        signals.close(DEADLINE)


def names(receiver: Receiver) -> set[str]:
    return {point.name.removeprefix("constellation.") for point in receiver.metrics}


class Open:
    """Has something open."""

    open_executions = 2
    open_modules = 3


@BOTH
def test_durations_counters_and_what_is_open_arrive(
    receiver: Receiver, make: Callable[..., PrivateSignals], protocol: Wire
) -> None:
    signals = make(endpoint_of(receiver, protocol), protocol)
    watched = Open()
    signals.watch(watched)
    module, whole = observe(signals)
    signals.count({"dropped": 2, "late": 1, "rejected": 0})
    assert signals.close(DEADLINE)
    points = {point.name.removeprefix("constellation."): point for point in receiver.metrics}
    values = {name: point.value for name, point in points.items() if not name.endswith("duration")}
    assert values == {"execution.active": 2, "module.active": 3, "events.dropped": 2, "events.late": 1}
    assert {(point.resource.attributes["service.name"], point.scope.name) for point in points.values()} == {
        ("shop", "constellation_otel")
    }
    for name, span in (("module.duration", module), ("execution.duration", whole)):
        (exemplar,) = points[name].exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (span.trace_id, span.span_id)
    assert receiver.logs == []
    assert {request.protocol for request in receiver.requests} == {protocol}


@BOTH
@pytest.mark.parametrize(("opt_in", "with_events"), [("logs", False), ("logs/dup", True)])
def test_failures_are_log_records_where_they_are_opted_for(
    receiver: Receiver,
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    protocol: Wire,
    opt_in: str,
    with_events: bool,
) -> None:
    monkeypatch.setenv(OPT_IN, opt_in)
    signals = make(endpoint_of(receiver, protocol), protocol)
    assert signals.with_events is with_events
    module, _ = observe(signals)
    assert signals.close(DEADLINE)
    (record,) = receiver.logs
    assert (record.trace_id, record.span_id, record.timestamp_ns) == (module.trace_id, module.span_id, module.end_ns)
    assert (record.severity_text, record.event_name, record.body) == ("ERROR", "exception", "bad")
    assert record.attributes == {**module.attributes, **module.events[0].attributes}
    assert record.resource.attributes["service.name"] == "shop"
    assert record.scope.name == "constellation_otel"


@BOTH
def test_headers_go_with_both_signals_whatever_their_case(
    receiver: Receiver, make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch, protocol: Wire
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    signals = make(endpoint_of(receiver, protocol), protocol, Tenant="blue")
    observe(signals)
    assert signals.close(DEADLINE)
    assert {request.signal: request.headers.get("tenant") for request in receiver.requests} == {
        "metrics": "blue",
        "logs": "blue",
    }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"metrics": "grpc", "logs": "grpc"}),
        ({"PROTOCOL": "http/protobuf"}, {"metrics": "http/protobuf", "logs": "http/protobuf"}),
        ({"METRICS_PROTOCOL": " HTTP/protobuf "}, {"metrics": "http/protobuf", "logs": "grpc"}),
        ({"TRACES_PROTOCOL": "http/protobuf"}, {"metrics": "grpc", "logs": "grpc"}),
    ],
)
def test_where_nothing_is_given_each_signals_variables_say_where(
    receiver: Receiver,
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: dict[str, str],
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    for signal, protocol in expected.items():
        path = "" if protocol == "grpc" else f"/v1/{signal}"
        url = f"{endpoint_of(receiver, protocol)}{path}"
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", url)
    signals = make(None)
    observe(signals)
    assert signals.close(DEADLINE)
    assert {request.signal: request.protocol for request in receiver.requests} == expected


@pytest.mark.parametrize("endpoint", ["{}", "{}/", "{}/v1/traces"])
def test_an_http_endpoint_may_have_the_traces_path(
    receiver: Receiver, make: Callable[..., PrivateSignals], endpoint: str
) -> None:
    signals = make(endpoint.format(receiver.http_endpoint), "http/protobuf")
    observe(signals)
    assert signals.close(DEADLINE)
    assert names(receiver) == {"execution.duration", "module.duration", "execution.active", "module.active"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OTEL_METRICS_EXPORTER": "none"}, {"logs"}),
        ({"OTEL_LOGS_EXPORTER": "none"}, {"metrics"}),
        ({"OTEL_METRICS_EXPORTER": "None ", "OTEL_LOGS_EXPORTER": "none"}, set()),
        ({"OTEL_SDK_DISABLED": "TRUE"}, set()),
    ],
)
def test_a_signal_that_is_not_wanted_is_not_made(
    receiver: Receiver,
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: set[str],
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = our_threads()
    signals = make(receiver.grpc_endpoint, "grpc")
    assert len(our_threads() - before) == len(expected)
    watched = Open()
    signals.watch(watched)
    observe(signals)
    signals.count({"dropped": 1})
    assert signals.close(DEADLINE)
    assert {request.signal for request in receiver.requests} == expected


def test_closing_leaves_no_thread_and_once_more_does_nothing(
    receiver: Receiver,
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    before = our_threads()
    signals = make(receiver.http_endpoint, "http/protobuf")
    observe(signals)
    assert signals.close(DEADLINE)
    assert our_threads() <= before
    requests = receiver.requests
    assert signals.close(DEADLINE)
    assert receiver.requests == requests
    assert caplog.messages == []


@pytest.fixture
def hanging() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_an_endpoint_that_hangs_keeps_nobody_past_the_timeout(
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hanging: str,
    timeout: float,
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    # what is on its way when it is given up on ends by itself
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")
    before = our_threads()
    signals = make(hanging, "grpc")
    observe(signals)
    start = time.monotonic()
    assert not signals.close(timeout)
    assert time.monotonic() - start < timeout + 1.0
    message = f"metrics and logs were not sent within {timeout:.1f} s of closing; what they held may be lost"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("constellation_otel")] == [
        message
    ]
    eventually(lambda: our_threads() <= before, "the threads to end")


def test_metrics_that_hang_leave_the_logs_their_part_of_the_time(
    receiver: Receiver, make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    receiver.order(Delay(60), signal="metrics")
    before = our_threads()
    signals = make(receiver.grpc_endpoint, "grpc")
    observe(signals)
    signals.close(1.0)
    receiver.wait_for(lambda arrived: len(arrived.logs) == 1, DEADLINE, "the log record")
    receiver.stop()
    eventually(lambda: our_threads() <= before, "the threads to end")


def test_what_the_sdk_raises_at_shut_down_is_logged_not_raised(
    receiver: Receiver,
    make: Callable[..., PrivateSignals],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    signals = make(receiver.grpc_endpoint, "grpc")
    observe(signals)
    assert signals._reader is not None
    exporter_shutdown = signals._reader._exporter.shutdown

    def fail(timeout: float) -> None:
        exporter_shutdown(timeout)
        message = "an exporter's own"
        raise ValueError(message)

    monkeypatch.setattr(signals._reader._exporter, "shutdown", fail)
    assert not signals.close(DEADLINE)
    assert "the OpenTelemetry SDK raised while metrics and logs were closed" in caplog.text
    assert "ValueError: an exporter's own" in caplog.text
    receiver.wait_for(lambda arrived: len(arrived.logs) == 1, DEADLINE, "the log record, all the same")


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_close_takes_a_timeout_without_an_end(
    receiver: Receiver, make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    signals = make(receiver.grpc_endpoint, "grpc")
    observe(signals)
    assert signals.close(timeout)
    assert receiver.metrics
    assert receiver.logs


@pytest.mark.parametrize("timeout", [-1.0, math.nan])
def test_a_timeout_that_is_none_ends_at_once(
    receiver: Receiver, make: Callable[..., PrivateSignals], timeout: float
) -> None:
    signals = make(receiver.grpc_endpoint, "grpc")
    assert not signals.close(timeout)


PRELUDE = """
import os, sys
sys.path[:0] = ["tests"]
from constellation_otel.otel import PrivateSignals
from otel.signals import RESOURCE, observe
signals = PrivateSignals(RESOURCE, endpoint=sys.argv[1], protocol=sys.argv[2])
"""
FORKING = """
observe(signals)
child = os.fork()
if child == 0:
    observe(signals)
    os._exit(0 if signals.close(20) else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), flush=True)
sys.stdin.readline()
assert signals.close(20)
"""


def started(text: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PRELUDE + text, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@UNWATCHED
def test_the_interpreters_exit_sends_what_is_held(receiver: Receiver) -> None:
    with started("observe(signals)", receiver.grpc_endpoint, "grpc") as program:
        assert program.wait(DEADLINE) == 0
    assert {"execution.duration", "module.duration"} <= names(receiver)


@BOTH
def test_a_forked_child_has_signals_of_its_own_and_no_other(receiver: Receiver, protocol: Wire) -> None:
    with started(FORKING, endpoint_of(receiver, protocol), protocol) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "0\n"
        durations = [point.count for point in receiver.metrics if point.name == "constellation.module.duration"]
        assert durations == [1]
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.wait(DEADLINE) == 0
    durations = [point.count for point in receiver.metrics if point.name == "constellation.module.duration"]
    assert durations == [1, 1]


UNUSED = """
import threading
child = os.fork()
if child == 0:
    signals.count({"dropped": 0})
    built = [signals._reader, signals._processor]
    for thread in threading.enumerate():
        # the SDK starts a thread of logs, which finds that it has nothing to do
        thread is threading.main_thread() or thread.join(20)
    os.write(1, f"{built} {threading.active_count()} {signals.close(0)}".encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
FAILING = """
PrivateSignals._make_providers = lambda *_: 1 / 0
child = os.fork()
if child == 0:
    observe(signals)
    observe(signals)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@BOTH
def test_a_forked_child_that_records_nothing_builds_nothing(
    receiver: Receiver, protocol: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPT_IN, "logs")
    with started(UNUSED, endpoint_of(receiver, protocol), protocol) as program:
        assert program.communicate(timeout=DEADLINE)[0] == "[None, None] 1 True"
    assert program.returncode == 0


def test_what_a_forked_child_cannot_build_is_logged_once(receiver: Receiver) -> None:
    with started(FAILING, receiver.grpc_endpoint, "grpc") as program:
        _, logged = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert logged.count("metrics and logs of this forked process are not sent") == 1
    assert "ZeroDivisionError" in logged


@UNWATCHED
def test_signals_that_are_forgotten_are_let_go_of(receiver: Receiver, make: Callable[..., PrivateSignals]) -> None:
    """The exit's hook does not keep them, and finds nothing to do."""
    text = "del signals"
    with started(text, receiver.grpc_endpoint, "grpc") as program:
        assert program.wait(DEADLINE) == 0
    assert receiver.metrics == []


def test_a_variable_that_metrics_cannot_use_leaves_no_thread(
    make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logs or without."""
    before = our_threads()
    for opt_in in ("logs", ""):
        monkeypatch.setenv(OPT_IN, opt_in)
        monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "foo")
        with pytest.raises(ConfigurationError, match=r"^OTEL_METRICS_EXEMPLAR_FILTER cannot be used: ValueError: "):
            make("http://127.0.0.1:1")
    eventually(lambda: our_threads() <= before, "the threads to end")


@pytest.mark.parametrize("interval", ["0", "-5", "nan", "1e12"])
def test_an_interval_that_would_end_the_sdks_thread_is_refused(
    make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch, interval: str
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", interval)
    with pytest.raises(ConfigurationError, match=f"OTEL_METRIC_EXPORT_INTERVAL is '{interval}'; a positive number"):
        make("http://127.0.0.1:1")


def test_an_interval_that_is_no_number_is_the_sdks_default(
    receiver: Receiver, make: Callable[..., PrivateSignals], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warns, and takes a minute; closing sends what there is."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "soon")
    signals = make(receiver.grpc_endpoint, "grpc")
    observe(signals)
    assert signals.close(DEADLINE)
    assert "module.duration" in names(receiver)


HOSTILE = "a\x1b[2J\x9b5n\nERROR forged \x7f"


class Rude(BaseHTTPRequestHandler):
    """Refuses for good, with what could do something to a terminal."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(400, HOSTILE.replace("\n", ""))
        self.end_headers()
        self.wfile.write(HOSTILE.encode())

    def log_message(self, *_: object) -> None:
        pass


def forget_what_the_sdk_has_logged() -> None:
    """Its own filters leave out what another test had it log within the same 20 s."""
    for name in THEIR_LOGGERS:
        for each in logging.getLogger(name).filters:
            vars(each).pop("last_log", None)


@BOTH
def test_what_an_endpoint_answers_keeps_the_sdks_log_lines_whole(
    receiver: Receiver, make: Callable[..., PrivateSignals], caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    forget_what_the_sdk_has_logged()
    with ThreadingHTTPServer(("127.0.0.1", 0), Rude) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        receiver.order(Refuse(grpc_code=StatusCode.INVALID_ARGUMENT, message=HOSTILE), signal="metrics")
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else f"http://127.0.0.1:{server.server_port}"
        signals = make(endpoint, protocol)
        observe(signals)
        signals.close(DEADLINE)
        server.shutdown()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry.")]
    assert said
    assert all(map(str.isprintable, said))
