"""Bad input: each gives a clear message and a counter, and loses nothing else. All of it as an operator meets it."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import uuid
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel.events import encode_frame, encode_json
from constellation_otel.traces import MISSING
from constellation_otel.transports.kafka import KafkaSink
from deliveries import MS, T0, execution
from engine_stand_in import EngineStandIn

from .bridges import RunningBridge, bridging, command
from .peers import Kafka, Postgres, eventually
from .peers.postgres import PASSWORD
from .peers.server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from constellation_otel.events import Event
    from constellation_otel.receiver import Receiver

    StartBridge = Callable[..., RunningBridge]

DEADLINE = 60.0
LOST = 4
NOT_DELIVERED = 3
HOUR_NS = 3_600_000 * MS
SECRET = "W0rd-that-nobody-may-read"
"""A password, or a key, that is wrong wherever it is given."""


@pytest.fixture
def start_bridge(tmp_path: Path) -> Iterator[StartBridge]:
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> RunningBridge:
            return stack.enter_context(bridging(tmp_path, *arguments, "--close-timeout", "2", **options))

        yield start


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("replay", *arguments)


def otlp(receiver: Receiver) -> str:
    return receiver.grpc_endpoint.replace("http://", "otlp://")


def written(path: Path, records: Iterable[bytes]) -> str:
    """A file of lines as a source."""
    path.write_bytes(b"".join(record + b"\n" for record in records))
    return f"jsonl:{path}"


def good(*numbers: int) -> list[bytes]:
    return [encode_json(event) for number in numbers for event in execution(number)]


Seen = list[tuple[str, str, int, int]]


def seen(receiver: Receiver, among: range = range(2**31)) -> Seen:
    """The spans of some executions that have arrived: execution and name, when they began, and how long they are."""
    spans = [it for it in receiver.spans if UUID(str(it.attributes["constellation.execution.id"])).int in among]
    assert {span.attributes["constellation.outcome"] for span in spans} <= {"success"}
    assert not any(MISSING in span.attributes for span in spans)
    return sorted(
        (str(it.attributes["constellation.execution.id"]), it.name, it.start_ns, it.end_ns - it.start_ns)
        for it in spans
    )


def whole(*numbers: int, start_ns: Callable[[int], int] = lambda number: T0) -> Seen:
    """The spans of executions of which nothing was lost."""
    return sorted(
        span
        for number in numbers
        for span in (
            (str(UUID(int=number)), f"dag-{number}", start_ns(number), 4 * MS),
            (str(UUID(int=number)), "trim", start_ns(number) + 1 * MS, 2 * MS),
        )
    )


def letters(path: Path) -> list[tuple[str, str]]:
    """What a dead-letter file has: each letter's reason, and the beginning of its data."""
    found = map(json.loads, path.read_text().splitlines())
    return [(it["reason"], it.get("data", it.get("data_base64"))[:20]) for it in found]


def new_topic(kafka: Kafka) -> str:
    name = f"e2e-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(DEADLINE)
    return name


def new_database(postgres: Postgres) -> str:
    name = f"bad_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    return name


# --- far sides that cannot be used ---------------------------------------------------------------------------------


def test_an_unreachable_broker_is_said_and_the_other_sink_gets_all(
    receiver: Receiver, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """An unreachable broker: a clear message, a counter, and nothing else is lost."""
    source = written(tmp_path / "events.jsonl", good(1, 2))
    broker = f"127.0.0.1:{free_port()}"
    bridge = start_bridge(source, "--to", f"kafka://{broker}/t", "--to", otlp(receiver))
    receiver.wait_for_spans(4, DEADLINE)
    bridge.wait_until_said("kafka: ", broker, "Connection refused", "; 8 events are held, the next try is in")
    status, body = bridge.asks("/readyz")
    assert (status, [*body["troubles"]]) == (503, ["kafka"])
    code, report = bridge.ended()
    assert (code, report["sinks"]["kafka"]["held"], report["sinks"]["kafka"]["sending"]["sent"]) == (
        NOT_DELIVERED,
        8,
        0,
    )
    assert seen(receiver) == whole(1, 2)


def test_an_unreachable_broker_as_a_source_is_said_and_tried_on(start_bridge: StartBridge, tmp_path: Path) -> None:
    """An unreachable broker: a clear message; the bridge goes on trying and says that it is not ready."""
    broker = f"127.0.0.1:{free_port()}"
    bridge = start_bridge(f"kafka://{broker}/t?group=g", "--to", f"jsonl:{tmp_path}/out.jsonl")
    bridge.wait_until_said(broker, "Connection refused", "trying again in")
    status, body = bridge.asks("/readyz")
    assert (status, [*body["troubles"]]) == (503, [f"kafka://{broker}/t?group=g"])
    assert bridge.ended()[0] == 0


# --- wrong passwords -----------------------------------------------------------------------------------------------


def assert_kept(secret: str, folder: Path) -> None:
    """The secret is in no file that is there: no output, no log, no journal, no dead letter."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_sinks_with_wrong_passwords_hold_everything_tell_nobody_the_password_and_go_on_when_it_is_mended(
    receiver: Receiver, kafka: Kafka, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A wrong password, never printed: a clear message, a counter, and nothing else is lost."""
    source = written(tmp_path / "events.jsonl", good(1, 2))
    user, database = f"user_{uuid.uuid4().hex}", new_database(postgres)
    postgres.psql(f"CREATE ROLE {user} LOGIN PASSWORD 'another'; ALTER DATABASE {database} OWNER TO {user}")
    topic = new_topic(kafka)
    bridge = start_bridge(
        source, "--journal", str(tmp_path / "journal.db"), "--dead-letters", str(tmp_path / "dead.jsonl"),
        "--to", postgres.url(database, user=user, password=SECRET),
        "--to", f"kafka://{kafka.user}:{SECRET}@{kafka.sasl_brokers}/{topic}",
        "--to", otlp(receiver),
    )  # fmt: skip
    receiver.wait_for_spans(4, DEADLINE)
    bridge.wait_until_said("sql: ", "password authentication failed", "; 8 events are held", level="ERROR")
    bridge.wait_until_said("kafka: ", "uthentication", "check the user, the password", level="ERROR")
    status, body = bridge.asks("/readyz")
    assert (status, sorted(body["troubles"])) == (503, ["kafka", "sql"])
    assert SECRET not in json.dumps(bridge.asks("/"))
    postgres.psql(f"ALTER ROLE {user} PASSWORD '{SECRET}'")

    def rows() -> bool:
        there = postgres.psql("SELECT to_regclass('execution_audit') IS NOT NULL", database=database) == "t"
        return there and postgres.psql("SELECT count(*) FROM execution_audit", database=database) == "8"

    eventually(rows, DEADLINE, "what was held is in the table")
    code, report = bridge.ended()
    sent = {name: (lane["sending"]["sent"], lane["held"]) for name, lane in report["sinks"].items()}
    assert (code, sent) == (NOT_DELIVERED, {"sql": (8, 0), "kafka": (0, 8), "otlp": (4, 0)})
    assert seen(receiver) == whole(1, 2)
    assert_kept(SECRET, tmp_path)


def test_sources_with_a_wrong_password_say_so_and_tell_nobody_the_password(
    kafka: Kafka, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A wrong password, never printed: a clear message from PostgreSQL, and from Kafka."""
    topic = new_topic(kafka)
    urls = {
        postgres.url(password=SECRET): ("password authentication failed", "fix the URL"),
        f"kafka://{kafka.user}:{SECRET}@{kafka.sasl_brokers}/{topic}?group=g": ("uthentication", "the password"),
    }
    bridges = {start_bridge(url, "--to", f"jsonl:{tmp_path}/out.jsonl"): said for url, said in urls.items()}
    for bridge, said in bridges.items():
        bridge.wait_until_said(*said)
        status, body = bridge.asks("/readyz")
        assert (status, len(body["troubles"])) == (503, 1)
        assert SECRET not in json.dumps([body, bridge.asks("/")])
        code, report = bridge.ended()
        assert (code, report["events"]) == (0, 0)
    assert_kept(SECRET, tmp_path)


@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_wrong_api_key_is_said_and_told_nobody(tmp_path: Path, start_bridge: StartBridge, given: str) -> None:
    """A wrong password, never printed: the engine's API key, from a file and from the environment."""
    options: dict[str, str] = {}
    arguments: list[str] = []
    if given == "variable":
        options = {"CONSTELLATION_API_KEY": SECRET}
    else:
        key = tmp_path / "key"
        key.write_text(f"{SECRET}\n")
        arguments = ["--api-key-file", str(key)]
    with EngineStandIn(api_key="k" * 24) as engine:
        bridge = start_bridge(
            engine.url,
            "--to",
            f"jsonl:{tmp_path}/out.jsonl",
            "--journal",
            str(tmp_path / "j.db"),
            *arguments,
            **options,
        )
        bridge.wait_until_said("HTTP 401: the engine rejects this API key", level="ERROR")
        assert SECRET not in json.dumps([bridge.asks("/"), bridge.asks("/readyz")])
        assert bridge.ended()[0] == 0
        assert engine.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    (tmp_path / "key").unlink(missing_ok=True)
    assert_kept(SECRET, tmp_path)


# --- tables with other columns -------------------------------------------------------------------------------------


def test_a_table_with_other_columns_as_a_source_is_refused_with_what_is_missing(
    postgres: Postgres, tmp_path: Path
) -> None:
    """A table with other columns: a clear message, at once."""
    database, file = new_database(postgres), tmp_path / "audit.db"
    ddl = "CREATE TABLE execution_audit (id INTEGER PRIMARY KEY, event_type VARCHAR(50), who TEXT)"
    postgres.psql(ddl, database=database)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(ddl)
    for url in (postgres.url(database), f"sqlite:///{file}"):
        done = replay(url, "--to", f"jsonl:{tmp_path}/out.jsonl")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "the table execution_audit is not an audit table: execution_id is missing; " in done.stderr
        assert PASSWORD not in done.stderr


def test_a_table_with_other_columns_as_a_sink_holds_everything_until_it_is_mended(
    receiver: Receiver, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A table with other columns: a clear message, a counter, and nothing else is lost."""
    database = new_database(postgres)
    postgres.psql("CREATE TABLE execution_audit (id SERIAL PRIMARY KEY, who TEXT)", database=database)
    source = written(tmp_path / "events.jsonl", good(1, 2))
    bridge = start_bridge(source, "--to", postgres.url(database), "--to", otlp(receiver))
    bridge.wait_until_said("the table execution_audit is not an audit table", "8 events are held", level="ERROR")
    receiver.wait_for_spans(4, DEADLINE)
    status, body = bridge.asks("/")
    assert (status, body["sinks"]["sql"]["held"], [*body["troubles"]]) == (200, 8, ["sql"])
    postgres.psql("ALTER TABLE execution_audit RENAME TO of_somebody_else", database=database)

    def sent() -> int:
        return int(bridge.asks("/")[1]["sinks"]["sql"]["sending"]["sent"])

    eventually(lambda: sent() == 8, DEADLINE, "the events are in a new table")
    code, report = bridge.ended()
    assert (code, report["is_delivered"], seen(receiver)) == (0, True, whole(1, 2))
    assert postgres.psql("SELECT count(*) FROM execution_audit", database=database) == "8"


# --- what is no event ----------------------------------------------------------------------------------------------

FOREIGN = [b"\x00\xff\xfejunk", b"", b'{"order": 7}', b"[1, 2", b'{"eventType": "module.exploded"}']


def test_a_topic_with_foreign_messages_gives_its_events_and_a_letter_for_each_of_the_others(
    receiver: Receiver, kafka: Kafka, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A topic with foreign messages: clear messages, a counter, dead letters, and nothing else is lost."""
    topic = new_topic(kafka)
    producer = Producer({"bootstrap.servers": kafka.brokers})
    values: list[bytes | None] = [None, *good(1)[:2], *FOREIGN, *good(1)[2:], *good(2), None]
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(DEADLINE) == 0
    url, dead = f"kafka://{kafka.brokers}/{topic}", tmp_path / "dead.jsonl"
    done = replay(url, "--to", otlp(receiver), "--dead-letters", str(dead))
    assert (done.returncode, " 5 unreadable, 0 dropped" in done.stdout) == (LOST, True)
    # the first and the last are tombstones, which are nothing
    assert f"{topic}/0, record 3 cannot be read: " in done.stderr
    assert (seen(receiver), len(letters(dead))) == (whole(1, 2), 5)
    receiver.clear()
    bridge = start_bridge(f"{url}?group=g", "--to", otlp(receiver), "--dead-letters", str(dead))
    receiver.wait_for_spans(4, DEADLINE)
    eventually(lambda: bridge.asks("/")[1]["unreadable"] == 5, DEADLINE, "all was read")
    code, report = bridge.ended()
    assert (code, report["events"], report["unreadable"], report["dropped"]) == (LOST, 8, 5, 0)
    assert (seen(receiver), len(letters(dead))) == (whole(1, 2), 10)
    # they are acknowledged, too, and do not come again
    again = start_bridge(f"{url}?group=g", "--to", otlp(receiver))
    producer.produce(topic, good(3)[0])
    assert producer.flush(DEADLINE) == 0
    eventually(lambda: again.asks("/")[1]["events"] == 1, DEADLINE, "what is new is read")
    assert again.ended()[1]["unreadable"] == 0


def test_binary_junk_in_a_file_is_skipped_line_by_line(receiver: Receiver, tmp_path: Path) -> None:
    """Binary junk: a clear message, a counter, dead letters, and nothing else is lost."""
    junk = [bytes(range(256)).replace(b"\n", b""), b"\xff" * 100, b"no event"]
    source = written(tmp_path / "events.jsonl", [junk[0], *good(1)[:2], junk[1], *good(1)[2:], junk[2], *good(2)])
    dead = tmp_path / "dead.jsonl"
    done = replay(source, "--to", otlp(receiver), "--dead-letters", str(dead))
    assert (done.returncode, " 3 unreadable, 0 dropped" in done.stdout) == (LOST, True)
    assert f"{source}, record 0 cannot be read: not an event: " in done.stderr
    assert (seen(receiver), len(letters(dead))) == (whole(1, 2), 3)


def test_junk_from_an_engine_is_skipped_frame_by_frame(
    receiver: Receiver, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """Binary junk: a clear message, a counter, dead letters, and nothing else is lost; from a live engine."""
    dead = tmp_path / "dead.jsonl"
    frames = [encode_frame(event).decode() for number in (1, 2) for event in execution(number)]
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", otlp(receiver), "--dead-letters", str(dead))
        sent: list[str | bytes] = [b"\x00\xff\xfe", *frames[:3], "no event", '{"type": "engine:rebooted"}', *frames[3:]]
        for frame in sent:
            engine.send(frame)
        receiver.wait_for_spans(4, DEADLINE)
        code, report = bridge.ended()
    assert (code, report["events"], report["unreadable"], report["dropped"]) == (LOST, 8, 3, 0)
    assert bridge.said("cannot be read: ")
    assert (seen(receiver), len(letters(dead))) == (whole(1, 2), 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bridge", "jsonl:{folder}/events.jsonl", "--journal", "{folder}/junk"], "is no journal, or damaged"),
        (["replay", "journal:{folder}/junk"], "is no journal, or damaged"),
    ],
)
def test_junk_where_a_journal_should_be_is_refused_and_left_alone(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Binary junk: where a whole file is none, that is said at once, and the file is left as it is."""
    junk = b"this is no database, whatever its name says" * 100
    (tmp_path / "junk").write_bytes(junk)
    written(tmp_path / "events.jsonl", good(1))
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    done = command(*filled, "--to", f"jsonl:{tmp_path}/out.jsonl")
    assert (done.returncode, done.stdout, done.stderr.count("\n"), said in done.stderr) == (1, "", 1, True)
    assert (tmp_path / "junk").read_bytes() == junk


def test_a_gzip_file_that_is_cut_gives_what_comes_before_the_cut(receiver: Receiver, tmp_path: Path) -> None:
    """Binary junk: a damaged archive gives what is good in it, and says where it ends."""
    # not compressed, so that the cut is known to be in the last line
    whole_file = gzip.compress(b"".join(record + b"\n" for record in good(1, 2)), 0)
    path, dead = tmp_path / "events.jsonl.gz", tmp_path / "dead.jsonl"
    path.write_bytes(whole_file[:-100])
    done = replay(f"jsonl:{path}", "--to", otlp(receiver), "--dead-letters", str(dead))
    assert "1 executions, 2 spans, 1 still open, 0 abandoned, 0 late, 0 duplicate, 2 unreadable" in done.stdout
    assert (done.returncode, f"jsonl:{path}, record 1861 cannot be read: " in done.stderr) == (LOST, True)
    torn, end = letters(dead)
    assert torn[1] == '{"eventType":"execut'
    assert end == (f"{path} is damaged, nothing can be read from here on: the file is cut off in the middle", "")
    assert seen(receiver) == whole(1)


# --- too long ------------------------------------------------------------------------------------------------------

TEN_MB = 10_000_000


def test_a_line_of_ten_megabytes_is_skipped_and_not_kept(
    receiver: Receiver, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A 10 MB line: a clear message, a counter, a dead letter, and nothing else is lost; in a file and in a pipe."""
    lines = [*good(1)[:2], b"x" * TEN_MB, *good(1)[2:], *good(2)]
    source, dead = written(tmp_path / "events.jsonl", lines), tmp_path / "dead.jsonl"
    reason = "the line is longer than 1048576 bytes"
    done = replay(source, "--to", otlp(receiver), "--dead-letters", str(dead))
    assert (done.returncode, " 1 unreadable, 0 dropped" in done.stdout) == (LOST, True)
    assert f"cannot be read: {reason}" in done.stderr
    assert (seen(receiver), letters(dead)) == (whole(1, 2), [(reason, "x" * 20)])
    assert dead.stat().st_size < 10_000
    receiver.clear()
    data = (tmp_path / "events.jsonl").read_bytes()
    bridge = start_bridge("jsonl:-", "--to", otlp(receiver), data=data)
    receiver.wait_for_spans(4, DEADLINE)
    bridge.wait_until_said("jsonl:-", reason)
    assert (bridge.ended()[1]["unreadable"], seen(receiver)) == (1, whole(1, 2))


def test_a_frame_of_ten_megabytes_costs_neither_the_connection_nor_what_comes_after_it(
    receiver: Receiver, start_bridge: StartBridge
) -> None:
    """A 10 MB line: as a frame of the engine's it is read, and here it is no event."""
    frames = [encode_frame(event).decode() for number in (1, 2) for event in execution(number)]
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", otlp(receiver))
        for frame in frames[:4]:
            engine.send(frame)
        receiver.wait_for_spans(2, DEADLINE)
        engine.send("x" * TEN_MB)
        for frame in frames[4:]:
            engine.send(frame)
        receiver.wait_for_spans(4, DEADLINE)
        code, report = bridge.ended()
        assert engine.connections == 1
    assert (code, report["events"], report["unreadable"], seen(receiver)) == (LOST, 8, 1, whole(1, 2))


# --- clocks --------------------------------------------------------------------------------------------------------


def start_ns_of(number: int) -> int:
    """Even executions are an engine's whose clock is an hour ahead; one begins each second."""
    return T0 + number * 1_000 * MS + (HOUR_NS if number % 2 == 0 else 0)


def mixed(numbers: range) -> list[Event]:
    """What two engines say, as it would come: by true time, four executions open at once."""
    executions = [execution(number, start_ns=start_ns_of(number)) for number in numbers]
    places = ((index + step, step, index) for index in range(len(executions)) for step in range(4))
    return [executions[index][step] for _, step, index in sorted(places)]


def test_executions_of_an_engine_whose_clock_is_an_hour_ahead_are_whole_in_a_file_and_in_a_topic(
    receiver: Receiver, kafka: Kafka, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A clock an hour off: every execution of both engines is whole, in a replay and in a bridge."""
    numbers = range(1, 301)
    events = mixed(numbers)
    expected = whole(*numbers, start_ns=start_ns_of)
    file = written(tmp_path / "events.jsonl", map(encode_json, events))
    topic = new_topic(kafka)
    sink = KafkaSink(kafka.brokers, topic)
    try:
        for first in range(0, len(events), sink.max_batch):
            assert sink.send(events[first : first + sink.max_batch], DEADLINE) == []
    finally:
        sink.close()
    url = f"kafka://{kafka.brokers}/{topic}"
    for source in (file, url):
        done = replay(source, "--to", otlp(receiver))
        assert done.returncode == 0
        assert ": 300 executions, 600 spans, 0 still open, 0 abandoned, 0 late, 0 duplicate," in done.stdout
        assert seen(receiver) == expected
        receiver.clear()
    for source in (file, f"{url}?group=g"):
        bridge = start_bridge(source, "--to", otlp(receiver))
        receiver.wait_for_spans(600, DEADLINE)
        code, report = bridge.ended()
        assert (
            code,
            report["assembly"]["executions"],
            report["assembly"]["abandoned"],
            report["assembly"]["late"],
        ) == (0, 300, 0, 0)
        assert seen(receiver) == expected
        receiver.clear()


# --- a full disk ---------------------------------------------------------------------------------------------------

DISK_MB = 32


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(
            f"no small disk can be had here ({done.stderr.strip()}): run this as root, in a container with"
            " --cap-add SYS_ADMIN"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=DEADLINE, check=True)


def fill(disk: Path) -> Path:
    """Fills a disk to its last byte; answers with what."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for _ in range(DISK_MB * 1024):
                file.write(bytes(1024))
    except OSError as error:
        assert "No space left" in str(error)  # noqa: PT017 - it is to happen
    return ballast


def frames_of(numbers: range) -> list[str]:
    return [encode_frame(event).decode() for number in numbers for event in execution(number)]


def send(engine: EngineStandIn, frames: Sequence[str]) -> None:
    for first in range(0, len(frames), 50):
        for frame in frames[first : first + 50]:
            engine.send(frame)
        engine.flush()


def test_a_full_disk_under_the_journal_is_said_and_nothing_is_lost_when_there_is_room_again(
    small_disk: Path, receiver: Receiver, start_bridge: StartBridge
) -> None:
    """A full disk under the journal: a clear message, a counter, and nothing is lost, with a live source."""
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", otlp(receiver), "--journal", str(small_disk / "journal.db"))
        send(engine, frames_of(range(1, 51)))
        receiver.wait_for_spans(100, DEADLINE)
        ballast = fill(small_disk)
        send(engine, frames_of(range(51, 301)))
        bridge.wait_until_said(
            "the journal cannot be written: ", "free some space", "events wait for it", level="ERROR"
        )
        status, body = bridge.asks("/readyz")
        assert (status, [*body["troubles"]]) == (503, ["journal"])
        ballast.unlink()
        receiver.wait_for_spans(600, DEADLINE)
        code, report = bridge.ended()
        assert engine.dropped == 0
    assert (code, report["events"], report["dropped"], report["is_delivered"]) == (0, 1_200, 0, True)
    assert seen(receiver) == whole(*range(1, 301))


def test_what_is_in_a_journal_survives_a_full_disk_and_a_kill(
    small_disk: Path, receiver: Receiver, start_bridge: StartBridge
) -> None:
    """A full disk under the journal: nothing that was written down is lost, though the bridge is killed meanwhile."""
    endpoint, journal = otlp(receiver), small_disk / "journal.db"
    receiver.stop()
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", endpoint, "--journal", str(journal), OTEL_METRICS_EXPORTER="none")
        send(engine, frames_of(range(1, 51)))
        bridge.wait_until_said("otlp: ", "are held")
        eventually(lambda: rows_of(journal) == 200, DEADLINE, "what was sent is in the journal")
        ballast = fill(small_disk)
        send(engine, frames_of(range(51, 301)))
        bridge.wait_until_said("the journal cannot be written: ", "free some space", level="ERROR")
        bridge.kill()
    ballast.unlink()
    receiver.start()
    with EngineStandIn() as engine:
        again = start_bridge(engine.url, "--to", otlp(receiver), "--journal", str(journal))
        receiver.wait_for_spans(100, DEADLINE)
        eventually(lambda: rows_of(journal) == 0, DEADLINE, "all is acknowledged")
        assert again.ended()[0] == 0
    # of the others some events found room in what the journal had already
    assert seen(receiver, range(1, 51)) == whole(*range(1, 51))


def rows_of(journal: Path) -> int:
    """How many events a journal holds."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT coalesce(max(held), 0) FROM sinks").fetchone()[0])
