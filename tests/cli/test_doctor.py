"""``constellation-otel doctor``, run as a user runs it, on real sockets and files."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest

from commands import HOSTILE, command, environment, events_of, line, otlp, written
from constellation_otel._support.http_server import HttpHandler, HttpServer
from constellation_otel.cli.doctor.certificate import check_certificate, context_of
from constellation_otel.cli.doctor.clock import Asked, check_clock, seconds_of
from constellation_otel.cli.doctor.finding import Finding, of_error
from constellation_otel.cli.doctor.found_again import SERVICE, check_span
from constellation_otel.cli.doctor.installation import check_environment, check_versions
from constellation_otel.cli.doctor.notes import Notes
from constellation_otel.errors import MisconfiguredError
from constellation_otel.receiver import PartialSuccess, Receiver, Refuse
from constellation_otel.transports.journal import Journal
from constellation_otel.transports.sql import SqlSink
from engine_stand_in import EngineStandIn
from support import DEADLINE, self_signed
from transports.kafka.helpers import Cluster
from transports.otlp.helpers import raw_server, tls_server
from transports.sql.helpers import GUIDE_TABLE
from transports.websocket.helpers import KEY, server_tls

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)
SECRET = "geheim"
NOBODY = "127.0.0.1:1"
"""Where nothing listens: only root could."""


class Examined(NamedTuple):
    """What a doctor has said.

    Attributes:
        code: The exit code.
        own: Of the installation: check, level, what was found, remedy.
        found: Of all URLs.
    """

    code: int
    own: Sequence[tuple[str, str, str, str | None]]
    found: Sequence[tuple[str, str, str, str | None]]


def examined(*arguments: str, **variables: str) -> Examined:
    """What a doctor says as JSON; it writes nothing else."""
    return read(command("doctor", "--json", *arguments, **variables))


def read(done: subprocess.CompletedProcess[str]) -> Examined:
    assert done.stderr == ""
    assert SECRET not in done.stdout
    answer = json.loads(done.stdout)
    findings = [Finding(**finding) for finding in answer["findings"]]
    assert answer["problems"] == sum(finding.level == "problem" for finding in findings)
    assert answer["warnings"] == sum(finding.level == "warning" for finding in findings)
    own, found = (
        [(it.check, it.level, it.found, it.remedy) for it in findings if (it.target is None) is is_own]
        for is_own in (True, False)
    )
    assert all((remedy is None) == (level == "ok") for _, level, _, remedy in (*own, *found))
    return Examined(done.returncode, own, found)


def levels(examined: Examined) -> list[tuple[str, str]]:
    return [(check, level) for check, level, *_ in examined.found]


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return self_signed(tmp_path_factory.mktemp("tls"), "server", "IP:127.0.0.1")


# --- this installation ---------------------------------------------------------------------------------------------


def test_an_installation_that_is_well_has_no_problem() -> None:
    said = examined()
    assert said.code == 0
    assert [(check, level) for check, level, *_ in said.own] == [
        ("versions", "ok"),
        ("extras", "ok"),
        ("environment", "ok"),
    ]
    assert said.own[0][2].startswith("constellation-otel 0.1.0, Python 3.")
    assert said.own[2][2] == "no variable of OpenTelemetry's is set"
    assert said.found == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTEL_EXPORTER_OLTP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("OTEL_EXPORTER_OTLP_ENPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("otel_service_name", "OTEL_SERVICE_NAME"),
        ("OTEL_SERVICENAME", "OTEL_SERVICE_NAME"),
        ("OTEL_TRACE_SAMPLER", "OTEL_TRACES_SAMPLER"),
        ("CONSTELLATION_APIKEY", "CONSTELLATION_API_KEY"),
        ("OTEL_PYTHON_URLLIB3_EXCLUDED_URLS", None),
        ("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", None),
        ("CONSTELLATION_ENGINE_URL", None),
        ("SERVICE_NAME", None),
    ],
)
def test_a_misspelt_variable_is_told_with_the_right_name(name: str, meant: str | None) -> None:
    warnings = [it for it in check_environment({name: SECRET}, Notes()) if it.level == "warning"]
    told = [(f"{name} is set, and nothing reads it", f"rename it to {meant}, or unset it")]
    assert [(it.found, it.remedy) for it in warnings] == (told if meant else [])


def test_variables_are_told_by_name_and_wrong_values_once() -> None:
    """What OpenTelemetry logs of one is a warning, and not on standard error."""
    said = examined(
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRET}",
        OTEL_EXPORTER_OTLP_PROTOCOL="carrier-pigeon",
        OTEL_TRACES_SAMPLER="nonsense",
    )
    assert said.code == 1
    assert said.own[2:] == [
        (
            "environment",
            "ok",
            "OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_TRACES_SAMPLER: set",
            None,
        ),
        (
            "environment",
            "problem",
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'carrier-pigeon'",
            "use grpc or http/protobuf",
        ),
        (
            "environment",
            "warning",
            "Couldn't recognize sampler nonsense.",
            "correct the value, or go on if it is meant so",
        ),
    ]


def test_parts_of_several_releases_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The metadata of an older one is found before the installed one's."""
    for name, version in (("opentelemetry_proto", "1.2.3"), ("dagster", "1.11.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    versions, mixed, extras = check_versions()
    assert (versions.level, mixed.level, extras.level) == ("ok", "warning", "ok")
    assert "opentelemetry-proto 1.2.3" in mixed.found
    assert (mixed.remedy or "").startswith("run: pip install --upgrade opentelemetry-api opentelemetry-sdk ")
    assert extras.found.endswith("dagster 1.11.0")


def test_without_instrumentations_their_variables_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.environment_variables", None)
    (finding,) = check_environment({"OTEL_PYTHON_DISTRO": "x", "OTEL_SERVICE_NAME": "shop"}, Notes())
    assert finding.found == "OTEL_SERVICE_NAME: set"


# --- OTLP ----------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_answers_is_ok_and_gets_no_span(receiver: Receiver) -> None:
    over_http = receiver.http_endpoint.replace("http:", "otlp+http:")
    said = examined(otlp(receiver), over_http, OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRET}")
    assert said == Examined(
        0,
        said.own,
        [
            ("connection", "ok", f"{receiver.grpc_endpoint} took a request without spans, over grpc", None),
            ("credentials", "ok", "it was sent the headers authorization", None),
            (
                "connection",
                "ok",
                f"{receiver.http_endpoint}/v1/traces took a request without spans, over http/protobuf",
                None,
            ),
            ("credentials", "ok", "it was sent the headers authorization", None),
            ("clock", "ok", "its clock and this machine's are the same within 2 s", None),
        ],
    )
    assert receiver.spans == []
    assert [request.outcome for request in receiver.requests] == ["accepted"] * 2


def test_without_a_url_the_endpoint_of_the_environment_is_looked_at(receiver: Receiver) -> None:
    done = command("doctor", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc_endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == [
        "ok       environment  OTEL_EXPORTER_OTLP_ENDPOINT: set",
        "",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        f"ok       connection   {receiver.grpc_endpoint} took a request without spans, over grpc",
        "",
        "no problem",
    ]


def test_credentials_and_refusals_are_told_apart(receiver: Receiver) -> None:
    for code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE):
        receiver.order(Refuse(grpc_code=code))
    said = examined(*[otlp(receiver)] * 3)
    endpoint = receiver.grpc_endpoint
    assert said.code == 1
    assert said.found == [
        (
            "credentials",
            "problem",
            f"{endpoint} answered UNAUTHENTICATED: refused by order",
            "check the headers, OTEL_EXPORTER_OTLP_HEADERS, which have the credentials",
        ),
        (
            "connection",
            "warning",
            f"it answers, and refuses a request without spans: {endpoint} answered INVALID_ARGUMENT: refused by order",
            "give --jaeger as well, to send one span and find it again",
        ),
        (
            "connection",
            "problem",
            f"{endpoint} is unavailable: refused by order",
            "start it, or correct the host and the port; look at firewalls and proxies between",
        ),
    ]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_tls_is_told_with_the_day_that_it_ends(tls_files: tuple[str, str], protocol: Any) -> None:
    """The certificate is valid for two days; who trusts somebody else is told which variable to set."""
    scheme = "otlps" if protocol == "grpc" else "otlp+https"
    with tls_server(protocol, *tls_files, tls_files[0]) as endpoint:
        url = endpoint.replace("https:", f"{scheme}:")
        known = {
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": tls_files[0],
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": tls_files[1],
        }
        trusting = examined(url, OTEL_EXPORTER_OTLP_CERTIFICATE=tls_files[0], **known)
        # not forked from one that has gRPC, which would write to standard error
        alone = subprocess.run(
            line("doctor", "--json", url),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=environment(**known),
            check=False,
        )
    other = read(alone)
    assert (trusting.code, other.code) == (0, 1)
    assert levels(trusting)[:2] == [("connection", "ok"), ("tls", "warning")]
    assert trusting.found[1][2].startswith("its certificate is accepted, and valid until 20")
    assert trusting.found[1][3] == "renew the certificate before that day"
    assert levels(other) == [("tls", "problem")]
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in (other.found[0][3] or "")


def test_a_certificate_of_years_is_ok_and_one_that_python_does_not_trust_a_warning(
    tmp_path: Path, tls_files: tuple[str, str]
) -> None:
    certificate, key = f"{tmp_path}/long.pem", f"{tmp_path}/long.key"
    making = ["openssl", "req", "-x509", "-nodes", "-days", "400", "-subj", "/CN=long", "-newkey", "ec"]
    making += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*making, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=DEADLINE)
    with tls_server("http/protobuf", certificate, key) as endpoint:
        port = int(endpoint.rpartition(":")[2])
        (trusted,) = check_certificate("127.0.0.1", port, context_of(certificate), DEADLINE)
        (other,) = check_certificate("127.0.0.1", port, context_of(tls_files[0]), DEADLINE)
    assert (trusted.check, trusted.level) == ("tls", "ok")
    assert (other.check, other.level) == ("tls", "warning")
    assert "CERTIFICATE_VERIFY_FAILED" in other.found


def test_a_clock_that_is_behind_is_a_warning() -> None:
    def serve(connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65_536)
        date = formatdate(time.time() - 100, usegmt=True)
        connection.sendall(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode())

    with raw_server(serve) as endpoint:
        said = examined(endpoint.replace("http:", "otlp+http:"))
    assert said.code == 0
    assert levels(said) == [("connection", "ok"), ("clock", "warning")]
    assert said.found[1][2].endswith(" s behind this machine's")


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        (None, []),
        (1_002.9, ["its clock and this machine's are the same within 2 s"]),
        (1_004.5, ["its clock is 3.5 s ahead of this machine's"]),
        (990.0, ["its clock is 11.0 s behind this machine's"]),
    ],
)
def test_clocks_are_compared_in_the_middle_of_the_question(theirs: float | None, found: list[str]) -> None:
    assert [it.found for it in check_clock(theirs, Asked(1_000.0, 1_002.0))] == found


def test_a_date_that_is_none_is_no_time() -> None:
    assert [seconds_of(date) for date in (None, "soon", "Thu, 01 Jan 1970 00:01:40 GMT")] == [None, None, 100.5]


# --- one span, found again -----------------------------------------------------------------------------------------


class Jaeger(HttpServer):
    """Answers as Jaeger's query API does, of what a receiver has."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.asked = 0
        self.hides = 0
        self.answers: list[tuple[int, bytes]] = []
        super().__init__("127.0.0.1", 0, _JaegerHandler, logger=_LOGGER, name="jaeger")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _JaegerHandler(HttpHandler):
    server: Jaeger

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        jaeger = self.server
        jaeger.asked += 1
        if jaeger.answers:
            status, body = jaeger.answers.pop()
            self.answer(status, "application/json", body)
            return
        wanted = self.path.removeprefix("/api/traces/")
        spans = [span for span in jaeger.receiver.spans if f"{span.trace_id:032x}" == wanted]
        if spans and jaeger.asked > jaeger.hides:
            trace = {"traceID": wanted.lstrip("0"), "spans": [{"operationName": span.name} for span in spans]}
            self.answer(200, "application/json", json.dumps({"data": [trace]}).encode())
        else:
            self.answer(404, "application/json", b'{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}')


@pytest.fixture
def jaeger(receiver: Receiver) -> Iterator[Jaeger]:
    server = Jaeger(receiver)
    server.start()
    yield server
    server.close()


def test_one_span_is_sent_and_found_again(receiver: Receiver, jaeger: Jaeger) -> None:
    """It has a service of its own, and is looked for until it is there."""
    jaeger.hides = 2
    said = examined(otlp(receiver), "--jaeger", f"{jaeger.url}/")
    (received,) = receiver.received
    assert said.code == 0
    assert levels(said) == [("connection", "ok"), ("span", "ok")]
    assert said.found[1][2].endswith(f" s: {jaeger.url}/trace/{received.span.trace_id:032x}")
    assert (received.span.name, received.resource.attributes["service.name"]) == ("test span", SERVICE)
    assert jaeger.asked == 3


def test_no_span_is_sent_where_the_connection_is_the_problem(receiver: Receiver, jaeger: Jaeger) -> None:
    receiver.order(Refuse())
    assert levels(examined(otlp(receiver), "--jaeger", jaeger.url)) == [("connection", "problem")]
    assert (receiver.spans, jaeger.asked) == ([], 0)


def test_a_span_that_is_refused_or_rejected_is_a_problem(receiver: Receiver, jaeger: Jaeger) -> None:
    receiver.order(Refuse(grpc_code=grpc.StatusCode.UNAVAILABLE))
    receiver.order(PartialSuccess(1, "no room"))
    (refused,), (rejected,) = (check_span(otlp(receiver), jaeger.url) for _ in range(2))
    assert (refused.level, refused.found) == ("problem", f"{receiver.grpc_endpoint} is unavailable: refused by order")
    assert (rejected.level, rejected.found) == ("problem", "the endpoint rejects the test span: no room")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, b"", "answered 503, and no trace"),
        (200, b"<html>", "does not answer as Jaeger does"),
        (200, b'{"data":[{}]}', "does not answer as Jaeger does"),
        (200, b'{"data":[{"traceID":"1","spans":[{}]}]}', "does not answer as Jaeger does"),
    ],
)
def test_what_is_no_jaeger_is_a_problem(
    receiver: Receiver, jaeger: Jaeger, status: int, body: bytes, said: str
) -> None:
    jaeger.answers = [(status, body)]
    (finding,) = check_span(otlp(receiver), jaeger.url)
    assert (finding.level, finding.found) == ("problem", f"{jaeger.url} {said}")


def test_a_jaeger_that_is_away_or_never_gets_the_span_is_a_problem(receiver: Receiver, jaeger: Jaeger) -> None:
    jaeger.hides = 1_000_000
    (hidden,) = check_span(otlp(receiver), jaeger.url, deadline_s=0.3)
    trace_id = f"{receiver.spans[0].trace_id:032x}"
    assert hidden.found == f"the endpoint took the test span, and {jaeger.url} has no trace {trace_id} after 0.3 s"
    (away,) = check_span(otlp(receiver), f"http://{NOBODY}")
    assert away.level == "problem"
    assert away.found.startswith(f"Jaeger cannot be asked: http://{NOBODY}: ")


@pytest.mark.parametrize(
    ("jaeger", "urls", "said"),
    [
        ("jaeger:16686", ["otlp://h"], "--jaeger is not the URL of a Jaeger; give http://host:16686"),
        ("http://h:port", ["otlp://h"], "--jaeger is not the URL of a Jaeger; give http://host:16686"),
        (f"http://me:{SECRET}@h", ["otlp://h"], "--jaeger may have no user, password, query or fragment"),
        ("http://h:16686", ["jsonl:-"], "--jaeger needs an OTLP endpoint to send a span to; give its URL too"),
    ],
)
def test_a_jaeger_that_cannot_be_used_is_wrong_usage(jaeger: str, urls: list[str], said: str) -> None:
    done = command("doctor", *urls, "--jaeger", jaeger)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert SECRET not in done.stderr


# --- the engine ----------------------------------------------------------------------------------------------------


def test_an_engine_that_answers_is_ok_and_is_left_at_once(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    with EngineStandIn(api_key=KEY) as engine:
        said = examined(engine.url, "--api-key-file", str(key))
        name = f"{engine.url}/api/v1/executions/events"
        assert said.found == [("engine", "ok", f"{name} took a WebSocket connection, which was closed again", None)]
        assert (said.code, engine.connections, engine.goodbyes) == (0, 1, [1000])


def test_an_engine_that_refuses_the_key_or_is_away_is_a_problem() -> None:
    with EngineStandIn(api_key=KEY) as engine:
        refused = examined(engine.url, CONSTELLATION_API_KEY=SECRET)
    away = examined(f"ws://{NOBODY}")
    assert (refused.code, away.code) == (1, 1)
    assert levels(refused) == [("credentials", "problem"), ("log", "warning")]
    assert refused.found[0][2:] == (
        "HTTP 401: the engine rejects this API key",
        "fix api_key, or CONSTELLATION_API_KEY",
    )
    assert "the API key has 6 characters" in refused.found[1][2]
    assert [it[:3] for it in away.found] == [("engine", "problem", "Connection refused")]


def test_an_engine_with_tls_has_its_certificate_looked_at(tls_files: tuple[str, str]) -> None:
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        trusting, other = examined(engine.url, SSL_CERT_FILE=tls_files[0]), examined(engine.url)
    assert levels(trusting) == [("engine", "ok"), ("tls", "warning")]
    assert levels(other) == [("tls", "problem")]
    assert other.found[0][2].startswith("TLS: the engine's certificate is not accepted: ")
    assert "SSL_CERT_FILE" in (other.found[0][3] or "")


# --- Kafka ---------------------------------------------------------------------------------------------------------


def test_a_topic_is_counted_and_nothing_is_read_of_it() -> None:
    cluster = Cluster()
    cluster.create("three", 3)
    cluster.write(b"1", b"2", topic="three", partition=1)
    name = f"kafka://{cluster.brokers}/three"
    said = examined(f"{name}?group=bridge&acks=all&details=records", f"kafka://{cluster.brokers}/")
    assert said.code == 0
    assert said.found == [
        ("topic", "ok", f"{name} has 3 partitions, with 2 records in them", None),
        (
            "topic",
            "ok",
            f"kafka://{cluster.brokers}/constellation-events has 1 partitions, with 0 records in them",
            None,
        ),
    ]


def test_a_missing_topic_wrong_credentials_and_no_broker_are_told_apart() -> None:
    cluster = Cluster()
    # the stand-in refuses everybody who wants to log in
    said = examined(
        f"kafka://{cluster.brokers}/missing",
        f"kafka://alice:{SECRET}@{cluster.brokers}/t",
        f"kafka://{NOBODY}/t",
        f"kafka://{cluster.brokers}/t?nonsense={SECRET}",
    )
    assert said.code == 1
    assert levels(said) == [
        ("topic", "problem"),
        ("credentials", "problem"),
        ("connection", "problem"),
        ("url", "problem"),
    ]
    assert [remedy for *_, remedy in said.found] == [
        "create the topic, or correct its name",
        "check the user, the password and what the user may do",
        "start it, or correct the host and the port; look at firewalls and proxies between",
        "correct or leave it out",
    ]


# --- tables --------------------------------------------------------------------------------------------------------


def test_the_columns_of_a_table_are_looked_at(tmp_path: Path) -> None:
    ours, guides = tmp_path / "ours.db", tmp_path / "guides.db"
    sink = SqlSink(f"sqlite:///{ours}")
    sink.send(events_of(1), DEADLINE)
    sink.close()
    with closing(sqlite3.connect(guides)) as connection:
        connection.execute(GUIDE_TABLE)
    said = examined(*(f"sqlite:///{file}" for file in (ours, guides)))
    assert said.code == 0
    assert said.found[0] == (
        "columns",
        "ok",
        "the table execution_audit has the guide's columns and all of this package's",
        None,
    )
    assert said.found[1][:2] == ("columns", "warning")
    assert "lacks event_id, module_id, error_type, occurred_ns, " in said.found[1][2]


def test_a_table_that_no_event_fills_or_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "audit.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(GUIDE_TABLE.replace("execution_audit (", "demanding (tenant TEXT NOT NULL,"))
        connection.execute("CREATE TABLE other (id INTEGER)")
    demanding, other, missing = (f"sqlite:///{file}?table={name}" for name in ("demanding", "other", "missing"))
    said = examined(demanding, other, missing)
    assert levels(said) == [
        ("columns", "warning"),
        ("columns", "warning"),
        ("columns", "problem"),
        ("table", "warning"),
    ]
    assert said.found[1][2] == "as a sink, the table has columns that no event fills: tenant"
    assert (said.found[2][3] or "").startswith("make one that has what `constellation-otel schema` prints")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    said = examined(f"sqlite:///{tmp_path}/new.db", f"sqlite:///{tmp_path}/no/new.db", f"sqlite:///{tmp_path}")
    assert levels(said) == [("table", "warning"), ("file", "problem"), ("file", "problem")]
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_away_is_a_problem_and_its_password_is_not_told() -> None:
    said = examined(f"postgresql://alice:{SECRET}@{NOBODY}/audit")
    assert (said.code, levels(said)) == (1, [("connection", "problem")])
    assert said.found[0][2].startswith(f"postgresql://alice:***@{NOBODY}/audit: ")


def test_a_user_who_is_not_let_in_is_told_so() -> None:
    said = "postgresql://alice:***@h/db: password authentication failed for user; fix the URL, the table or"
    finding = of_error(MisconfiguredError(f"{said} the user's rights"), "connection", "")
    assert (finding.check, finding.level, finding.found) == ("credentials", "problem", said.partition(";")[0])


# --- files ---------------------------------------------------------------------------------------------------------


def test_lines_are_read_at_their_beginning(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    number = len(events_of(1))
    url = written(good, events_of(1))
    bad.write_bytes(good.read_bytes() + b"nonsense\n")
    said = examined(url, f"jsonl:{bad}", f"jsonl:{tmp_path}", "jsonl:-", "jsonl:")
    assert levels(said) == [
        ("file", "ok"),
        ("file", "warning"),
        ("file", "problem"),
        ("file", "ok"),
        ("url", "problem"),
    ]
    assert said.found[0][2] == f"jsonl:{good} can be read: {number} events at its beginning"
    assert said.found[1][2].startswith(f"jsonl:{bad} can be read: {number} events at its beginning, and 1 records ")


def test_files_that_are_not_there_are_not_made(tmp_path: Path) -> None:
    said = examined(
        f"jsonl:{tmp_path}/new.jsonl",
        f"jsonl:{tmp_path}/new.jsonl.gz",
        f"jsonl:{tmp_path}/no/new.jsonl",
        f"journal:{tmp_path}/new.db?max_bytes=100000",
        f"journal:{tmp_path}/new.db?sink=otlp",
        f"journal:{tmp_path}/new.db?max_bytes=few",
    )
    assert levels(said) == [
        ("file", "warning"),
        ("url", "problem"),
        ("file", "problem"),
        ("file", "warning"),
        ("file", "warning"),
        ("url", "problem"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_looked_at_beside_the_process_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    journal = Journal(path, sinks=["otlp", "kafka"])
    journal.append(events_of(1))
    number = len(events_of(1))
    beside = examined(f"journal:{path}", f"journal:{path}?sink=otlp", f"journal:{path}?sink=sql")
    journal.close()
    before = sorted(tmp_path.iterdir())
    after = examined(f"journal:{path}")
    assert sorted(tmp_path.iterdir()) == before
    held = f"{path} can be read, and holds {number} events for kafka, {number} events for otlp"
    assert beside.found[:2] == [("journal", "ok", held, None)] * 2
    assert after.found == [("journal", "ok", held, None)]
    assert levels(beside)[2:] == [("journal", "problem")]
    (tmp_path / "junk").write_text("junk" * 1000)
    damaged = examined(f"journal:{tmp_path}/junk")
    assert levels(damaged) == [("journal", "problem")]


def test_what_needs_an_extra_says_how_to_get_it() -> None:
    said = examined("dagster:.")
    assert said.found == [
        ("extras", "problem", "dagster is not installed", "run: pip install 'constellation-otel[dagster]'")
    ]


# --- what is printed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["foo://bar", f"me:{SECRET}@host", "nonsense"])
def test_a_url_of_nothing_is_told_what_there_is(url: str) -> None:
    said = examined(url)
    assert (said.code, levels(said)) == (1, [("url", "problem")] * 2)
    remedies = " ".join(str(remedy) for *_, remedy in said.found)
    assert "ws://host:port" in remedies
    assert "otlp://host:4317" in remedies


def test_a_url_that_cannot_be_used_is_called_by_its_number() -> None:
    done = command("doctor", "jsonl:-", f"otlp://me:{SECRET}@host")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-5:] == [
        "URL 2",
        "problem  url          the URL has a user or a password",
        "                      → credentials go into the headers, OTEL_EXPORTER_OTLP_HEADERS",
        "",
        "1 problem",
    ]


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    done = command("doctor", f"jsonl:{tmp_path}/{HOSTILE}", f"jsonl:{tmp_path}/{HOSTILE}/x")
    assert done.stdout.replace("\n", "").isprintable()
    assert "[red]b[/]" in done.stdout
    assert done.stdout.endswith("\n2 problems\n")


def test_an_encoding_without_arrows_gets_question_marks() -> None:
    done = subprocess.run(
        line("doctor", "jsonl:/no-such-folder/x"),
        capture_output=True,
        timeout=DEADLINE,
        env=environment(PYTHONIOENCODING="ascii"),
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"                      ? make the folder, " in done.stdout


def test_arguments_and_variables_of_any_bytes_are_printed() -> None:
    odd = "odd\udcff"
    urls = [
        f"{scheme}{odd}" for scheme in ("jsonl:/", "journal:/", "sqlite:////", "kafka://h/", "ws://", "otlp://", "")
    ]
    said = examined(*urls, "postgresql://h/" + odd, "dagster:" + odd, **{f"OTEL_SERVICE_NAM{odd}": odd})
    assert said.code == 1
    assert {level for _, level, *_ in said.found} <= {"problem", "warning"}


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    try:
        given = environment(TERM="xterm-256color", **variables)
        with subprocess.Popen(line(*arguments), stdin=slave, stdout=slave, stderr=slave, env=given) as process:
            os.close(slave)
            text, end = "", time.monotonic() + DEADLINE
            while "no problem" not in text:
                assert time.monotonic() < end, text
                if select.select([master], [], [], 0.1)[0]:
                    text += os.read(master, 65_536).decode()
            assert process.wait(DEADLINE) == 0
        return text
    finally:
        os.close(master)


def test_colours_are_for_terminals_unless_no_color_is_set() -> None:
    assert "\x1b[32mok" in on_a_terminal("doctor")
    assert "\x1b[" not in on_a_terminal("doctor", NO_COLOR="1").replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b" not in command("doctor").stdout
