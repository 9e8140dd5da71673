"""OtlpListener when the endpoint is away, hangs, or refuses, and when it is closed."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from grpc import StatusCode

from constellation_otel import trace_id_of
from constellation_otel.delivery import JournalCounters, SendingCounters
from constellation_otel.receiver import Delay, Drop, PartialSuccess, Receiver, Refuse
from constellation_otel.testing import span_tree
from reports import run
from support import DEADLINE, eventually
from telemetry import BOTH, TREE, Wire, assert_sum, caller_of, endpoint_of, journal_in, our_threads, traces_of, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.otel import OtlpListener


pytestmark = pytest.mark.usefixtures("clean_environment")


MIXED = pytest.mark.parametrize(("protocol", "with_journal"), [("grpc", True), ("http/protobuf", False)])


def test_without_a_journal_what_finds_no_room_is_counted(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.stop()
    listener = make_otlp(receiver.http_endpoint, protocol="http/protobuf", max_queue=60)
    for _ in range(50):
        run(listener)
    assert not listener.flush(0.1)
    counters = listener.counters
    # as many again may be held, and one batch more
    assert counters.dropped >= 300 - 3 * 60
    assert counters.received == 300
    assert_sum(counters)
    assert "OtlpListener: the queue is full (60 items); dropping the newest" in caplog.messages
    assert listener.last_error is not None
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    last = [run(listener) for _ in range(5)]
    assert listener.close(DEADLINE)
    traces = traces_of(receiver.spans)
    assert {trace_id: traces[trace_id] for trace_id in whole(last)} == whole(last)
    counters = listener.counters
    assert (counters.received, counters.held) == (330, 0)
    assert_sum(counters)
    assert len(listener._sampling.decisions) == 0


@BOTH
def test_with_a_journal_an_outage_loses_and_repeats_nothing(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, protocol: Wire
) -> None:
    """A request whose answer was lost is sent again, and is the same spans."""
    receiver.stop()
    listener = make_otlp(
        endpoint_of(receiver, protocol), protocol=protocol, journal=tmp_path / "journal.db", max_queue=1_000
    )
    ids = [run(listener) for _ in range(100)]
    assert not listener.flush(0.2)
    ids += [run(listener) for _ in range(20)]
    receiver.order(Drop(kept=True))
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    assert traces_of(receiver.spans) == whole(ids)
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.sending.sent, counters.held) == (720, 720, 360, 0)
    with journal_in(tmp_path) as journal:
        assert journal.held("otlp") == 0


def test_the_next_listener_delivers_what_its_journal_has(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    receiver.stop()
    before = our_threads()
    listener = make_otlp(receiver.http_endpoint, protocol="http/protobuf", journal=tmp_path / "journal.db")
    with caller_of(5, 1, [("vendor", "1")]):
        run(listener)
    ids = [run(listener) for _ in range(10)]
    assert not listener.close(0.3)
    assert receiver.spans == []
    eventually(lambda: our_threads() <= before, "the threads to end")
    receiver.start()
    after = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    assert after.flush(DEADLINE)
    assert traces_of(receiver.spans) == {5: ["Trim", "WordCount", "my-pipeline"], **whole(ids)}
    assert {span.trace_state for span in receiver.spans if span.trace_id == 5} == {"vendor=1"}
    counters = after.counters
    assert (counters.received, counters.delivered, counters.held) == (66, 66, 0)


def test_a_full_journal_and_a_full_queue_drop_the_newest(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And count them."""
    receiver.stop()
    listener = make_otlp(
        receiver.http_endpoint,
        protocol="http/protobuf",
        journal=tmp_path / "journal.db",
        max_journal_bytes=64 * 1024,
        max_open=50,
        max_queue=100,
    )
    ids = [run(listener) for _ in range(300)]
    assert not listener.flush(0.2)
    eventually(lambda: listener.counters.dropped, "the journal to be full")
    assert len(listener._sampling.decisions) <= 50
    receiver.start()
    eventually(lambda: listener.flush(0.2), "the endpoint's return")
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert counters.received == 1_800
    assert counters.held == 0
    assert_sum(counters)
    assert "OtlpListener-journal: the queue is full (100 items); dropping the newest" in caplog.messages
    assert set(traces_of(receiver.spans)) < set(whole(ids))


def test_an_execution_whose_end_no_journal_takes_is_whole(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    listener = make_otlp(receiver.grpc_endpoint, journal=path)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, module_id, "Trim")
    assert listener.flush(DEADLINE)
    elsewhere = path.rename(tmp_path / "elsewhere")
    listener.on_module_complete(execution_id, module_id, "Trim", 1.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 2.0)
    assert listener.flush(DEADLINE)
    assert {span.name: str(span.attributes["constellation.outcome"]) for span in receiver.spans} == {
        "Trim": "success",
        "my-pipeline": "success",
    }
    assert listener.counters.journal == JournalCounters(not_durable=2)
    elsewhere.rename(path)
    assert listener.close(DEADLINE)
    with journal_in(tmp_path) as left:
        assert left.held("otlp") == 0


def test_a_long_execution_past_the_journal_leaves_room_for_more(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    """What the endpoint's thread has of it is not in the way of what is still to come, its end among it."""
    path = tmp_path / "journal.db"
    listener = make_otlp(receiver.grpc_endpoint, journal=path, max_queue=4)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    assert listener.flush(DEADLINE)
    elsewhere = path.rename(tmp_path / "elsewhere")
    for _ in range(10):
        module_id = uuid4()
        listener.on_module_start(execution_id, module_id, "Trim")
        listener.on_module_complete(execution_id, module_id, "Trim", 1.0)
        assert listener.flush(DEADLINE)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 2.0)
    assert listener.flush(DEADLINE)
    assert traces_of(receiver.spans) == {trace_id_of(execution_id): ["Trim"] * 10 + ["my-pipeline"]}
    assert (listener.counters.dropped, listener.counters.held) == (0, 0)
    elsewhere.rename(path)


def test_a_refused_span_is_a_dead_letter_and_the_others_arrive(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged, too."""
    letters = tmp_path / "letters.jsonl"
    # the three together, then the first half, which is one span
    receiver.order(Refuse(grpc_code=StatusCode.INVALID_ARGUMENT, message="no such thing", times=2), signal="traces")
    listener = make_otlp(receiver.grpc_endpoint, dead_letters=letters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert sorted(span.name for span in receiver.spans) == ["WordCount", "my-pipeline"]
    (line,) = letters.read_text().splitlines()
    letter = json.loads(line)
    assert letter["where"] == "otlp"
    assert "no such thing" in letter["reason"]
    assert json.loads(letter["data"])["name"] == "Trim"
    counters = listener.counters
    assert (counters.delivered, counters.rejected) == (5, 1)
    assert counters.sending == SendingCounters(sent=2, refused=1, dead_lettered=1, retried=2)
    assert_sum(counters)
    assert any("refuses 1 items for good" in message for message in caplog.messages)


def test_a_partial_success_is_rejected_and_not_sent_again(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    letters = tmp_path / "letters.jsonl"
    receiver.order(PartialSuccess(2), signal="traces")
    listener = make_otlp(receiver.grpc_endpoint, dead_letters=letters)
    run(listener)
    assert listener.flush(DEADLINE)
    counters = listener.counters
    assert (counters.sending.sent, counters.sending.refused, counters.rejected, counters.delivered) == (1, 2, 2, 4)
    assert_sum(counters)
    # which ones is not known, so none is called the one
    assert not letters.exists()
    assert len(receiver.requests) == 1


def test_wrong_credentials_hold_the_data_until_they_are_fixed(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.order(Refuse(grpc_code=StatusCode.UNAUTHENTICATED, times=3), signal="traces")
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    eventually(lambda: listener.last_error is not None and listener.last_error.needs_fixing, "the alarm")
    assert listener.flush(DEADLINE)
    assert span_tree(receiver.spans) == TREE
    assert listener.last_error is None
    assert any(
        record.levelname == "ERROR" and "OTEL_EXPORTER_OTLP_HEADERS" in record.message for record in caplog.records
    )


@MIXED
def test_an_endpoint_that_is_away_keeps_nobody_past_the_timeout(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, protocol: Wire, with_journal: bool
) -> None:
    """And no thread is left."""
    receiver.stop()
    before = our_threads()
    journal = tmp_path / "journal.db" if with_journal else None
    listener = make_otlp(endpoint_of(receiver, protocol), protocol=protocol, journal=journal)
    run(listener)
    for wait, timeout in ((listener.flush, 0.1), (listener.close, 0.3)):
        start = time.monotonic()
        assert not wait(timeout)
        assert time.monotonic() - start < timeout + 1.0
    assert listener.counters.held == 6
    assert_sum(listener.counters)
    eventually(lambda: our_threads() <= before, "the threads to end")


@pytest.fixture
def hanging() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@MIXED
def test_an_endpoint_that_hangs_keeps_nobody_past_the_timeout(
    make_otlp: Callable[..., OtlpListener],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hanging: str,
    protocol: Wire,
    with_journal: bool,
) -> None:
    # what is on its way when the time is over ends by itself
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")
    before = our_threads()
    journal = tmp_path / "journal.db" if with_journal else None
    listener = make_otlp(hanging, protocol=protocol, journal=journal)
    run(listener)
    start = time.monotonic()
    assert not listener.flush(0.2)
    assert not listener.close(0.4)
    assert time.monotonic() - start < 0.6 + 0.8
    assert listener.counters.held == 6
    eventually(lambda: our_threads() <= before, "the threads to end")


def test_an_answer_that_comes_after_closing_is_no_error(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next listener sends the same again."""
    before = our_threads()
    receiver.order(Delay(0.6), signal="traces")
    listener = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    execution_id = run(listener)
    receiver.wait_for(lambda arriving: not arriving.faults, DEADLINE, "the request")
    assert not listener.close(0.2)
    eventually(lambda: our_threads() <= before, "the threads to end")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    after = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    assert after.flush(DEADLINE)
    assert traces_of(receiver.spans) == whole([execution_id])


def test_an_answer_that_comes_in_time_is_waited_for(receiver: Receiver, make_otlp: Callable[..., OtlpListener]) -> None:
    receiver.order(Delay(0.5), signal="traces")
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    assert not listener.flush(0.05)
    assert listener.close(DEADLINE)
    assert span_tree(receiver.spans) == TREE


@BOTH
def test_closing_leaves_no_thread_and_says_the_same_again(
    receiver: Receiver,
    make_otlp: Callable[..., OtlpListener],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    protocol: Wire,
) -> None:
    """What comes after is dropped and counted."""
    before = our_threads()
    listener = make_otlp(endpoint_of(receiver, protocol), protocol=protocol, journal=tmp_path / "journal.db")
    run(listener)
    assert listener.close(DEADLINE)
    eventually(lambda: our_threads() <= before, "the threads to end")
    run(listener)
    assert listener.counters.dropped == 6
    assert listener.close(DEADLINE)
    assert_sum(listener.counters)
    assert caplog.messages == ["OtlpListener-journal: the queue is closed; dropping the newest"]


def test_metrics_that_hang_do_not_change_what_close_says(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    receiver.order(Delay(60), signal="metrics")
    before = our_threads()
    listener = make_otlp(receiver.grpc_endpoint)
    run(listener)
    start = time.monotonic()
    assert listener.close(0.6)
    assert time.monotonic() - start < 0.6 + 2.0
    assert span_tree(receiver.spans) == TREE
    receiver.stop()
    eventually(lambda: our_threads() <= before, "the threads to end")
