"""What URLs mean, and what is said of those that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry.sdk.resources import Resource

from constellation_otel.delivery import Bridge
from constellation_otel.errors import ConfigurationError, JournalError, MissingExtraError
from constellation_otel.events import ExecutionStarted, ModuleDescribed, ModuleDetails, decode_json
from constellation_otel.transports import check_sink, sink_of, source_of
from constellation_otel.transports.journal import DEFAULT_SINK, Journal, JournalSink, JournalSource, forget
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from constellation_otel.transports.otlp import OtlpSink
from constellation_otel.transports.registry import places_of
from constellation_otel.transports.sql import SqlSink, SqlSource
from constellation_otel.transports.url import Secrets, without_details
from constellation_otel.transports.websocket import WebSocketSource
from deliveries import execution, flat
from support import UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

RESOURCE = Resource({"service.name": "shop"})
EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
SECRET = "s3cr3t"
SOURCES = (
    "ws://host:port or wss://host:port (a Constellation Engine), kafka://broker:9092/topic?group=name,"
    " postgresql://…, sqlite:///file, jsonl:file (jsonl:- is standard input), journal:file.db[?sink=name],"
    " dagster:folder[?job=name&since=time] (dagster: is $DAGSTER_HOME)"
)
SINKS = (
    "otlp://host:4317 (gRPC), otlp+http://host:4318, otlps://…, otlp+https://…, kafka://broker:9092/topic,"
    " postgresql://…, sqlite:///file, jsonl:file (jsonl:- is standard output), journal:file.db[?max_bytes=number]"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own environment counts, and nothing is left in the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONSTELLATION_API_KEY", raising=False)
    for name in ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_TRACES_{name}", raising=False)


def made_source(url: str, **options: Any) -> Any:
    source = source_of(url, **options)
    source.close()
    return source


def made_sink(url: str) -> Any:
    sink = sink_of(url, resource=RESOURCE)
    sink.close()
    return sink


def test_the_longest_wait_between_tries_is_passed_on() -> None:
    with pytest.raises(ConfigurationError, match=r"^max_reconnect_wait=-1 must be more than 0 and finite$"):
        made_source("ws://engine", follow=True, max_reconnect_wait=-1)


def refusal(url: str, *, follow: bool | None = None) -> str:
    """What is said of a source's URL, where it is said whether to follow, or of a sink's."""
    with pytest.raises(ConfigurationError) as raised:
        made_sink(url) if follow is None else made_source(url, follow=follow)
    assert SECRET not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ws://engine:9090", "ws://engine:9090/api/v1/executions/events"),
        ("ws://engine", "ws://engine:8080/api/v1/executions/events"),
        ("wss://engine/behind/a/proxy", "wss://engine:443/behind/a/proxy"),
    ],
)
def test_an_engines_websocket_is_followed(url: str, name: str) -> None:
    source = made_source(url, follow=True)
    assert (type(source), source.name) == (WebSocketSource, name)
    assert "Authorization" not in source._headers
    source = made_source(url, follow=True, execution_id=EXECUTION, api_key=SECRET * 4)
    assert source.name == f"{name}?executionId={EXECUTION}"
    assert source._headers["Authorization"] == f"Bearer {SECRET * 4}"


def test_a_kafka_topic_is_followed_by_a_group_or_replayed() -> None:
    url = f"kafka://user:{SECRET}@one:9092,two:9092/events?group=bridge"
    followed = made_source(url, follow=True)
    assert (type(followed), followed.name) == (KafkaSource, "kafka://one:9092,two:9092/events?group=bridge")
    assert followed._follow
    replayed = made_source("kafka://one:9092", follow=False)
    assert (type(replayed), replayed.name) == (KafkaSource, "kafka://one:9092/constellation-events")
    assert not replayed._follow


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"postgresql://user:{SECRET}@host:5433/shop?table=audit", "postgresql://user:***@host:5433/shop?table=audit"),
        ("sqlite:///audit.db", "sqlite:///audit.db"),
    ],
)
def test_an_audit_table_is_followed_or_replayed(url: str, name: str, follow: bool) -> None:
    """All of it, or one execution."""
    source = made_source(url, follow=follow)
    assert (type(source), source.name) == (SqlSource, name)
    assert (source._follow, source._execution_id) == (follow, None)
    assert made_source(url, follow=follow, execution_id=EXECUTION)._execution_id == EXECUTION


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("path", ["-", "events.jsonl", "/var/log/a b?c#d.jsonl", "user@host.jsonl"])
def test_json_lines_are_in_the_file_behind_the_colon(path: str, follow: bool) -> None:
    source = made_source(f"jsonl:{path}", follow=follow)
    assert (type(source), source.name, source._follow) == (JsonlSource, f"jsonl:{path}", follow)
    sink = made_sink(f"jsonl:{path}")
    assert (type(sink), sink.name) == (JsonlSink, "jsonl")


@pytest.mark.parametrize("follow", [True, False])
def test_a_journal_is_read_as_the_sink_that_the_url_names(tmp_path: Path, follow: bool) -> None:
    path = tmp_path / "events.db"
    with closing(Journal(path, sinks=["otlp", "my sink"])) as journal:
        journal.append(execution(1)[:2])
        journal.acknowledge("otlp", [item.position for item in flat(journal.read("otlp", 0, 1))])
    if not follow:
        with pytest.raises(JournalError, match=r"it has 2 events for \?sink=my sink, 1 events for \?sink=otlp"):
            source_of(f"journal:{path}", follow=False)
        # where somebody follows it, it is known
        source_of(f"journal:{path}", follow=True).close()
    for query, read in [("", 0), (f"?sink={DEFAULT_SINK}", 0), ("?sink=otlp", 1), ("?sink=my%20sink", 2)]:
        with closing(source_of(f"journal:{path}{query}", follow=follow)) as source:
            assert (type(source), source.name) == (JournalSource, f"journal:{path}")
            assert len(flat(source.read(0))) == read
            assert source.read(0) == []
            assert source.has_ended is not follow
    # the last one is known, and read by nobody
    assert forget(path, "my sink") == 2


def test_a_journal_that_is_written_holds_as_much_as_the_url_says(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    sink = made_sink(f"journal:{path}")
    assert (type(sink), sink.name, sink._max_bytes) == (JournalSink, "journal", 2**30)
    assert made_sink(f"journal:{path}?max_bytes=100000")._max_bytes == 100_000


@pytest.mark.parametrize(
    ("url", "protocol", "endpoint"),
    [
        ("otlp://collector", "grpc", "http://collector:4317"),
        ("otlp://[::1]:14317/", "grpc", "http://[::1]:14317"),
        ("otlps://collector", "grpc", "https://collector:4317"),
        ("otlp+http://collector", "http/protobuf", "http://collector:4318/v1/traces"),
        ("otlp+https://collector:443/tenant", "http/protobuf", "https://collector:443/tenant/v1/traces"),
    ],
)
def test_an_otlp_endpoint_is_spoken_to_as_the_scheme_says(url: str, protocol: str, endpoint: str) -> None:
    sink = made_sink(url)
    assert (type(sink), sink.protocol, sink.endpoint) == (OtlpSink, protocol, endpoint)
    assert sink._resource is RESOURCE


def test_events_go_to_kafka_and_into_audit_tables() -> None:
    sink = made_sink(f"kafka://user:{SECRET}@one:9092,two:9092/events?compression.type=gzip")
    assert (type(sink), sink.name, sink._cluster.url) == (KafkaSink, "kafka", "kafka://one:9092,two:9092/events")
    sink = made_sink(f"postgresql://user:{SECRET}@host/shop?table=audit")
    assert (type(sink), sink._audit.address.name) == (SqlSink, "postgresql://user:***@host/shop?table=audit")
    assert type(made_sink("sqlite:///audit.db")) is SqlSink


@pytest.mark.parametrize(
    ("url", "begins"),
    [
        ("", "a URL without a scheme"),
        ("events.jsonl", "a URL without a scheme"),
        (f"user:{SECRET}@host", "a URL without a scheme"),
        (f"{SECRET}:@host", "a URL without a scheme"),
        (f"{SECRET}@host:4317", "a URL without a scheme"),
        ("jsonl:", "a URL that ends after its scheme"),
        (f"postgres://user:{SECRET}@host/shop", "a URL that begins with 'postgres'"),
        (f"http://collector:4317?key={SECRET}", "a URL that begins with 'http'"),
        ("jsonlines:file", "a URL that begins with 'jsonlines'"),
    ],
)
def test_another_url_is_refused_with_those_that_there_are(url: str, begins: str) -> None:
    assert refusal(url, follow=True) == refusal(url, follow=False) == f"{begins} is not a source; use one of: {SOURCES}"
    assert refusal(url) == f"{begins} is not a sink; use one of: {SINKS}"


def test_a_url_of_a_source_only_is_not_one_of_a_sink() -> None:
    """Nor the other way round."""
    assert refusal("ws://engine:8080") == f"a URL that begins with 'ws' is not a sink; use one of: {SINKS}"
    for scheme in ("otlp", "otlps", "otlp+http", "otlp+https"):
        expected = f"a URL that begins with {scheme!r} is not a source; use one of: {SOURCES}"
        assert refusal(f"{scheme}://collector", follow=True) == expected
    for scheme in ("ws", "wss"):
        assert refusal(f"{scheme}://engine:8080", follow=False) == (
            "an engine's WebSocket has no past to be replayed; use constellation-otel bridge to follow it"
        )


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        (f"ws://user:{SECRET}@engine", "the key goes into api_key, or CONSTELLATION_API_KEY"),
        (f"ws://engine?apiKey={SECRET}", "the key goes into api_key, or CONSTELLATION_API_KEY"),
        (f"kafka:user:{SECRET}@one:9092", "a Kafka URL is kafka://[user:password@]broker:9092/topic"),
        (f"kafka://user:{SECRET}@one:9092/events", "add ?group=NAME to the URL"),
        (f"kafka://one/events?group=a&no.such={SECRET}", "correct or leave it out"),
        (f"postgresql://user:{SECRET}@host:port/shop", "it has to be postgresql://user:password@host/database"),
        ("sqlite://", "name a file: sqlite:///audit.db"),
        ("jsonl:events.jsonl.gz", "read it without follow"),
    ],
)
def test_a_sources_url_that_is_wrong_is_refused_with_the_remedy(url: str, remedy: str) -> None:
    assert remedy in refusal(url, follow=True)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        (f"otlp://user:{SECRET}@collector", "credentials go into the headers, OTEL_EXPORTER_OTLP_HEADERS"),
        (f"otlp+http://collector?key={SECRET}", "leave it out"),
        ("otlp://collector/tenant", "otlp+http:// is OTLP over HTTP"),
        (f"kafka://user:{SECRET}@one/events?no.such=1", "correct or leave it out"),
        (f"postgresql://user:{SECRET}@host/shop?timezone=Nowhere", "name one with ?timezone="),
        ("sqlite:audit.db", "or sqlite:///file"),
        ("journal:events.db?max_bytes=1", "must be at least 65536; give a number of bytes"),
        ("journal:events.db?max_bytes=1GB", "?max_bytes=1GB cannot be used"),
    ],
)
def test_a_sinks_url_that_is_wrong_is_refused_with_the_remedy(url: str, remedy: str) -> None:
    assert remedy in refusal(url)


@pytest.mark.parametrize(
    "query", ["size=1", "sink", "sink=", "max_bytes=", "sink=a&sink=b", "max_bytes=1&max_bytes=2", "sink=a&max_bytes=1"]
)
def test_a_journals_url_has_the_one_parameter_that_means_something(tmp_path: Path, query: str) -> None:
    path = tmp_path / "events.db"
    for parameter, follow in [("sink", True), ("sink", False), ("max_bytes", None)]:
        assert refusal(f"journal:{path}?{query}", follow=follow) == (
            f"journal:{path} has something unknown after the ?; it takes ?{parameter}=… alone here"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rest", ["?sink=otlp", "?max_bytes=1", "a\0b"])
def test_a_journal_has_to_be_in_a_file(rest: str) -> None:
    message = "a journal has to be in a file; give journal:file.db, or journal:file.db?{}=…"
    assert refusal(f"journal:{rest}", follow=True) == message.format("sink")
    assert refusal(f"journal:{rest}") == message.format("max_bytes")


def test_checking_a_sinks_url_refuses_and_makes_nothing(tmp_path: Path) -> None:
    """A replay's dry run checks where the real one would write."""
    for url in ("journal:events.db", "journal:events.db?max_bytes=100000", "sqlite:///a.db", "jsonl:a.jsonl"):
        check_sink(url, resource=RESOURCE)
    assert list(tmp_path.iterdir()) == []
    for url in ("journal:events.db?max_bytes=1", "jsonl:a.gz", "ws://engine", "sqlite://"):
        with pytest.raises(ConfigurationError) as refused:
            check_sink(url, resource=RESOURCE)
        assert refusal(url) == str(refused.value)


def test_a_secret_is_hidden_in_every_form_the_longest_first() -> None:
    secrets = Secrets(["p@ss", "p@ss/word", "", None, "abc"], shortest=4)
    assert secrets.hide("p@ss/word p%40ss%2Fword p@ss abc") == "*** *** *** abc"


def test_a_journal_that_cannot_be_opened_says_so_itself(tmp_path: Path) -> None:
    message = f"{tmp_path} is a folder; add the journal's file to the path"
    with pytest.raises(JournalError, match=message):
        made_source(f"journal:{tmp_path}", follow=True)
    with pytest.raises(JournalError, match=message):
        made_sink(f"journal:{tmp_path}")


PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from opentelemetry.sdk.resources import Resource
from constellation_otel.errors import MissingExtraError
from constellation_otel.transports import sink_of, source_of
for make in (lambda: source_of({url!r}, follow=True), lambda: sink_of({url!r}, resource=Resource({{}}))):
    try:
        made = make()
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
    else:
        made.close()
        print(type(made).__name__)
"""


def made_without(missing: list[str], url: str) -> list[str]:
    """What becomes of a URL as a source and as a sink where libraries are not installed."""
    line = [sys.executable, "-W", "error", "-c", PROGRAM.format(missing=missing, url=url)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@UNWATCHED
@pytest.mark.parametrize(
    ("missing", "url", "library", "extra"),
    [
        ("confluent_kafka", f"kafka://user:{SECRET}@one/events?group=a", "confluent-kafka", "kafka"),
        ("sqlalchemy", "sqlite:///audit.db", "sqlalchemy", "sql"),
        ("psycopg", f"postgresql://user:{SECRET}@host/shop", "psycopg", "sql"),
    ],
)
def test_a_missing_extra_says_what_to_install(missing: str, url: str, library: str, extra: str) -> None:
    expected = f"MissingExtraError: {library} is not installed; run: pip install 'constellation-otel[{extra}]'"
    assert made_without([missing], url) == [expected, expected]


@UNWATCHED
def test_without_websockets_an_engine_is_what_cannot_be_followed() -> None:
    source, sink = made_without(["websockets"], "ws://engine:8080")
    assert source == (
        "MissingExtraError: websockets is not installed; run: pip install 'constellation-otel[websocket]'"
    )
    assert sink.startswith("ConfigurationError: a URL that begins with 'ws' is not a sink;")


@pytest.mark.parametrize("url", ["dagster:", "dagster:/srv/dagster", "dagster:?job=nightly"])
def test_without_dagster_its_event_log_is_what_cannot_be_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme alone is a URL: it is the instance that the environment names."""
    monkeypatch.setitem(sys.modules, "dagster", None)
    expected = r"dagster is not installed; run: pip install 'constellation-otel\[dagster\]'"
    with pytest.raises(MissingExtraError, match=expected):
        source_of(url, follow=False)
    with pytest.raises(ConfigurationError, match="is not a sink"):
        sink_of(url, resource=Resource.get_empty())


@UNWATCHED
@pytest.mark.parametrize(
    ("url", "made"), [("jsonl:-", ["JsonlSource", "JsonlSink"]), ("journal:a.db", ["JournalSource", "JournalSink"])]
)
def test_what_needs_no_extra_does_without_any(url: str, made: list[str]) -> None:
    missing = ["confluent_kafka", "sqlalchemy", "psycopg", "websockets", "click", "rich"]
    assert made_without(missing, url) == made
    assert made_without(missing, "otlp://collector")[1:] == ["OtlpSink"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("sqlite:///a.db", "sqlite:////{folder}/a.db", True),
        ("sqlite:///a.db", "sqlite:///./a.db?table=execution_audit", True),
        ("sqlite:///a.db", "sqlite:///file:a.db?uri=true", True),
        ("sqlite:///link.db", "sqlite:///a.db", True),
        ("sqlite:///a.db", "sqlite:///a.db?table=copy", False),
        ("sqlite:///a.db", "sqlite:///b.db", False),
        ("jsonl:a.jsonl", "jsonl:{folder}/./a.jsonl", True),
        ("jsonl:a?b", "jsonl:a", False),
        ("journal:a.db?sink=otlp", "journal:{folder}/a.db", True),
        ("journal:a.db", "jsonl:a.db", False),
        ("kafka://a,b/t?group=g", "kafka://b,a/t", True),
        ("kafka://a:9092,b/t?group=g", "kafka://A,c/t", True),
        ("kafka://user:password@a/constellation-events?group=g", "kafka://a", True),
        ("kafka://a/t?group=g", "kafka://a/u", False),
        ("kafka://a/t?group=g", "kafka://a:9093/t", False),
        ("postgresql://me:secret@host/db", "postgresql://you@HOST:5432/db?application_name=x", True),
        ("postgresql://me@host", "postgresql://host/me", True),
        ("postgresql:///db?host=a&host=b:5433", "postgresql://b:5433/db?table=public.execution_audit", True),
        ("postgresql://host/db", "postgresql://host/db?table=other.execution_audit", False),
        ("postgresql://host/db", "postgresql://host:5433/db", False),
        ("postgresql://host/db", "otlp://host:4317", False),
    ],
)
def test_two_urls_of_one_place_have_something_in_common(
    one: str, other: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("a.db")
    other = other.replace("{folder}", str(tmp_path))
    assert bool(places_of(one) & places_of(other)) is same


@pytest.mark.parametrize(
    ("url", "without", "asks"),
    [
        ("jsonl:a.jsonl", "jsonl:a.jsonl", False),
        ("jsonl:a?b.jsonl", "jsonl:a?b.jsonl", False),
        ("jsonl:a.jsonl?details=records", "jsonl:a.jsonl", True),
        ("kafka://broker/topic?acks=1&details=records&linger.ms=5", "kafka://broker/topic?acks=1&linger.ms=5", True),
        ("sqlite:///a.db?details=fields", "sqlite:///a.db", False),
    ],
)
def test_a_sinks_url_may_ask_for_modules_that_did_not_run(url: str, without: str, asks: bool) -> None:
    assert without_details(url) == (without, asks)


def test_what_asks_for_unknown_details_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\?details=rows cannot be used; give details=fields or details=rec"):
        sink_of("jsonl:a.jsonl?details=rows", resource=Resource.get_empty())


@pytest.mark.parametrize("asks", [False, True])
def test_modules_that_did_not_run_are_written_where_asked_for(tmp_path: Path, asks: bool) -> None:
    """A reader that matches on the six kinds never meets a seventh unasked."""
    details = ModuleDetails(outcome="skipped", reason="up to date")
    start = ExecutionStarted(UUID(int=1), "d", 1_000_000)
    described = ModuleDescribed(UUID(int=1), UUID(int=2), "m", 2_000_000, details)
    with closing(JournalSink(tmp_path / "journal.db")) as journal:
        journal.send([start, described], 1.0)
    file = tmp_path / "events.jsonl"
    sink = sink_of(f"jsonl:{file}{'?details=records' if asks else ''}", resource=Resource.get_empty())
    report = Bridge(JournalSource(tmp_path / "journal.db", follow=False), [sink]).run()
    assert report.is_delivered
    assert [decode_json(line) for line in file.read_bytes().splitlines()] == [start, *([described] if asks else [])]
