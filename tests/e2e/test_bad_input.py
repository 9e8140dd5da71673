"""Bad input: each gives a clear message and a counter, and loses nothing else. All of it as an operator meets it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer

from constellation_otel.events import encode_json
from constellation_otel.transports.kafka import KafkaSink
from deliveries import MS, T0, execution
from engine_stand_in import EngineStandIn

from .bridges import RunningBridge, command
from .executions import DEADLINE, LOST, frames_of, good, new_topic, otlp, replay, seen, whole, written
from .peers import Kafka, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.events import Event
    from constellation_otel.receiver import Receiver

    StartBridge = Callable[..., RunningBridge]

HOUR_NS = 3_600_000 * MS


def letters(path: Path) -> list[tuple[str, str]]:
    """What a dead-letter file has: each letter's reason, and the beginning of its data."""
    found = map(json.loads, path.read_text().splitlines())
    return [(it["reason"], it.get("data", it.get("data_base64"))[:20]) for it in found]


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
    frames = frames_of(range(1, 3))
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
    frames = frames_of(range(1, 3))
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
