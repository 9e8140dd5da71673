"""Writing records, against the cluster that librdkafka has for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import confluent_kafka
import pytest
from confluent_kafka import KafkaError

from constellation_otel.delivery import Rejection
from constellation_otel.errors import MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import ErrorInfo, Event, ExecutionCompleted, ExecutionStarted, ModuleFailed, encode_json
from constellation_otel.traces import span_id_of, trace_id_of
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from constellation_otel.transports.url import SourceOptions
from transports.kafka.helpers import (
    EXECUTION,
    MODULE,
    NS,
    PRODUCE,
    SENDING,
    SINK,
    STARTED,
    TOPIC,
    TRACEPARENT,
    Cluster,
    break_for_good,
    module_started,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeSink = Callable[..., KafkaSink]

LOGGER = "constellation_otel.transports.kafka"
OTHER = UUID("00000000-0000-4000-8000-000000000001")


# made for tests of TLS; it protects nothing
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBZTCCAQygAwIBAgIBATAKBggqhkjOPQQDAjARMQ8wDQYDVQQDDAZlbmdpbmUw
IBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBExDzANBgNVBAMMBmVu
Z2luZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABONdHFmQ4HU2jn6QKui/zOkL
U/IEvyFKbYjn7iVCeyum/V7RwOTfHr+/jmi2BET6ILAAPIjY1iGHpdnjCFGwTnCj
UzBRMA8GA1UdEQQIMAaHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8E
BAMCAoQwHQYDVR0OBBYEFPtygXpWBHBOV7/+JRjjGWITt6UJMAoGCCqGSM49BAMC
A0cAMEQCIAhZFBZ3o3IG9weMdq2dOe7jhzhczLvJ/DSvUWBfcxgIAiB2suWghO0Y
b0BqUgg7BuYMkX1Z2Rpcm4TlfvCnPXJAMw==
-----END CERTIFICATE-----
"""


def test_a_record_has_a_key_the_guides_json_and_trace_context(cluster: Cluster, make_sink: MakeSink) -> None:
    """The key is the execution's id."""
    sink = make_sink(**{"enable.idempotence": True})
    events: list[Event] = [
        module_started("Early"),
        STARTED,
        module_started("Trim"),
        ExecutionStarted(OTHER, "other", NS, "00-junk"),
        ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT.replace("-01", "-00")),
        ExecutionCompleted(EXECUTION, "my-pipeline", True, 1.5, NS),
    ]
    assert sink.send(events, SENDING) == []
    own, others = f"{span_id_of(EXECUTION):016x}", f"{span_id_of(OTHER):016x}"
    key = str(EXECUTION).encode()
    headers = [
        [("traceparent", f"00-{trace_id_of(EXECUTION):032x}-{own}-03".encode())],
        [("traceparent", TRACEPARENT.encode()), ("tracestate", b"vendor=value")],
        [
            ("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{own}-01".encode()),
            ("tracestate", b"vendor=value"),
        ],
        [("traceparent", f"00-{trace_id_of(OTHER):032x}-{others}-03".encode())],
        [("traceparent", TRACEPARENT.replace("-01", "-00").encode())],
        [("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{own}-00".encode())],
    ]
    keys = [key, key, key, str(OTHER).encode(), key, key]
    assert cluster.records() == [
        (key, encode_json(event), its_headers) for key, event, its_headers in zip(keys, events, headers, strict=True)
    ]


def test_callers_are_remembered_up_to_a_bound(cluster: Cluster, make_sink: MakeSink) -> None:
    sink = make_sink(max_callers=1)
    sink.send([STARTED, ExecutionStarted(OTHER, "other", NS, TRACEPARENT)], SENDING)
    sink.send([module_started("Trim"), module_started("Trim", OTHER)], SENDING)
    traces = [headers[0][1].split(b"-")[1] for _, _, headers in cluster.records()]
    assert traces[2:] == [f"{trace_id_of(EXECUTION):032x}".encode(), b"0af7651916cd43dd8448eb211c80319c"]


def test_an_execution_goes_to_the_partition_of_javas_producer(cluster: Cluster, make_sink: MakeSink) -> None:
    """All of its events, in order."""
    cluster.create("four", 4)
    names = [str(number) for number in range(50)]
    assert make_sink("four").send([module_started(name) for name in names], SENDING) == []
    # Java's DefaultPartitioner: toPositive(murmur2(key)) % 4
    assert confluent_kafka.murmur2(str(EXECUTION).encode(), 4) == 3
    assert [value for _, value, _ in cluster.records("four", 4)] == written(*names)
    assert [name for (name, _, _) in cluster.records("four", 3)] == []


def test_what_is_no_utf8_is_rejected_and_the_rest_is_delivered(cluster: Cluster, make_sink: MakeSink) -> None:
    bad = ExecutionStarted(EXECUTION, "my-pipeline", NS, None, "\ud800")
    reason = (
        "it cannot be written as UTF-8:"
        " 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"
    )
    sink = make_sink()
    assert sink.send([bad, module_started("Trim")], SENDING) == [Rejection(0, 1, reason)]
    assert sink.send([bad], SENDING) == [Rejection(0, 1, reason)]
    assert cluster.values() == written("Trim")


def test_what_is_too_large_for_the_client_is_rejected(cluster: Cluster, make_sink: MakeSink) -> None:
    """The rest is delivered."""
    large = ModuleFailed(EXECUTION, MODULE, "Large", ErrorInfo("E", "x" * 5_000), NS)
    sink = make_sink(**{"message.max.bytes": 2_000})
    reason = "Unable to produce message: Broker: Message size too large"
    assert sink.send([large, module_started("Trim"), large], SENDING) == [
        Rejection(0, 1, reason),
        Rejection(2, 1, reason),
    ]
    assert cluster.values() == written("Trim")


def test_what_is_safe_beside_a_refusal_is_not_sent_again(cluster: Cluster, make_sink: MakeSink) -> None:
    cluster.create("two", 2)
    sink = make_sink("two", **{"linger.ms": 500})
    events = [module_started("Trim", UUID(int=number)) for number in range(20)]
    assert sink.send(events, SENDING) == []
    cluster.answer_with(PRODUCE, KafkaError.INVALID_RECORD)
    with pytest.raises(UnavailableError, match="were not acknowledged: Broker: Broker failed to validate") as caught:
        sink.send(events, SENDING)
    assert 0 < len(caught.value.delivered) < len(events)
    left = [event for index, event in enumerate(events) if index not in caught.value.delivered]
    cluster.answer_with(PRODUCE, KafkaError.INVALID_RECORD)
    with pytest.raises(
        RefusedError, match=f"^kafka://{cluster.brokers}/two: Broker: Broker failed to validate record$"
    ):
        sink.send(left, SENDING)


def test_without_a_broker_a_send_is_unavailable_in_time(
    cluster: Cluster, make_sink: MakeSink, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written later."""
    sink = make_sink()
    cluster.down()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"1 of 1 records were not acknowledged.*Connection refused") as caught:
        sink.send([module_started("lost")], 1)
    assert time.monotonic() - began < 3
    assert not isinstance(caught.value, MisconfiguredError)
    assert cluster.brokers in str(caught.value)
    assert caught.value.delivered == frozenset()
    with pytest.raises(UnavailableError, match=r"brokers are down; .*Connection refused"):
        sink.send([module_started("lost")], 1)
    cluster.up()
    assert sink.send([module_started("found")], SENDING) == []
    assert cluster.values() == written("found")
    # the library's own words are in the log, once in a while
    assert [(entry.name, "Connection refused" in entry.getMessage()) for entry in caplog.records] == [(LOGGER, True)]
    assert capfd.readouterr() == ("", "")


def test_a_broker_that_does_not_answer_costs_the_timeout_only(cluster: Cluster, make_sink: MakeSink) -> None:
    """Its late report counts for no later send."""
    sink = make_sink(**{"enable.idempotence": True})
    assert sink.send([module_started("first")], SENDING) == []
    cluster.answer_after(1_500)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="2 of 2 records were not acknowledged: no broker has answered in time"):
        sink.send([module_started("a"), module_started("b")], 0.5)
    assert time.monotonic() - began < 1.4
    cluster.answer_after(0)
    assert sink.send([module_started("c")], SENDING) == []
    assert cluster.values()[-1:] == written("c")


def test_what_is_safe_is_told_where_the_rest_is_not(cluster: Cluster, make_sink: MakeSink) -> None:
    cluster.create("four", 4)
    sink = make_sink("four")
    events = [module_started("Trim", UUID(int=number)) for number in range(20)]
    told = [*events]
    assert sink.send(events, SENDING) == []
    safe: frozenset[int] = frozenset()
    # which of the four partitions' answers comes first is chance, and the refusal ends the call
    for _ in range(50):
        cluster.answer_with(PRODUCE, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        with pytest.raises(
            MisconfiguredError,
            match=r"Broker: Topic authorization failed: check the user, the password and what the user may do$",
        ) as caught:
            sink.send(events, SENDING)
        cluster.forget_answers(PRODUCE)
        safe = caught.value.delivered
        told += [events[index] for index in safe]
        if safe:
            break
    assert 0 < len(safe) < len(events)
    written_down = Counter(key for key, _, _ in cluster.records("four", 4))
    assert written_down == Counter(str(event.execution_id).encode() for event in told)


def test_a_topic_that_is_not_there_is_an_alarm_until_it_is(cluster: Cluster, make_sink: MakeSink) -> None:
    cluster.break_topic(KafkaError.UNKNOWN_TOPIC_OR_PART)
    sink = make_sink(**{"topic.metadata.propagation.max.ms": 100})
    with pytest.raises(MisconfiguredError, match=r"Unknown topic or partition: create the topic, or correct its name$"):
        sink.send([module_started("Trim")], SENDING)
    cluster.break_topic(0)
    assert sink.send([module_started("Trim")], SENDING) == []


def test_wrong_credentials_are_an_alarm_that_names_the_user(cluster: Cluster) -> None:
    """At once, and without the password."""
    # the stand-in refuses everybody who wants to log in
    sink = KafkaSink.from_url(f"kafka://alice:geheim@{cluster.brokers}/{TOPIC}", SINK)
    began = time.monotonic()
    with pytest.raises(MisconfiguredError) as caught:
        sink.send([module_started("Trim")], SENDING)
    assert time.monotonic() - began < SENDING / 2
    with pytest.raises(MisconfiguredError, match="user 'alice'"):
        sink.send([module_started("Trim")], SENDING)
    sink.close()
    assert str(caught.value).endswith(
        "(user 'alice', mechanism PLAIN): check the user, the password and what the user may do"
    )
    assert "geheim" not in str(caught.value)


def test_settings_that_break_later_are_an_alarm(tmp_path: Path, cluster: Cluster, make_sink: MakeSink) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text(CERTIFICATE)
    sink = make_sink(**{"security.protocol": "SSL", "ssl.ca.location": str(pem)})
    source = KafkaSource.from_url(f"kafka://one/t?group=g&security.protocol=SSL&ssl.ca.location={pem}", SourceOptions())
    pem.unlink()
    with pytest.raises(MisconfiguredError, match=r"ssl.ca.location failed.*check the settings and the files"):
        sink.send([module_started("Trim")], 1)
    with pytest.raises(MisconfiguredError, match=r"ssl.ca.location failed.*check the settings and the files"):
        source.read(1)
    source.close()


def test_a_producer_that_cannot_go_on_is_replaced(cluster: Cluster, make_sink: MakeSink) -> None:
    sink = make_sink(**{"enable.idempotence": True})
    assert sink.send([module_started("a")], SENDING) == []
    break_for_good(sink._producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    with pytest.raises(UnavailableError, match="Local: Fatal error"):
        sink.send([module_started("b")], SENDING)
    assert sink.send([module_started("b")], SENDING) == []
    assert cluster.values() == written("a", "b")


FORKING = """
import os, sys
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from support import DEADLINE
from transports.kafka.helpers import *
from constellation_otel.transports.kafka.cluster import abandon

cluster = Cluster()
sink = KafkaSink(cluster.brokers, config=QUICK)
unused = KafkaSink(cluster.brokers)
source = KafkaSource(cluster.brokers, TOPIC, group="bridge")
sink.send([module_started("parent")], DEADLINE)
assert len(read(source, 1)) == 1
child = os.fork()
if child == 0:
    abandon(cluster._owner)
    assert sink.send([module_started("child")], DEADLINE) == []
    replay = KafkaSource(cluster.brokers, TOPIC, group=None, follow=False)
    assert len(read(replay, 2)) == 2
    sink.close()
    source.close()
    sys.exit(7)  # an orderly exit, which frees what can be freed
_, status = os.waitpid(child, 0)
sink.send([module_started("parent")], DEADLINE)
print(os.waitstatus_to_exitcode(status), len(read(source, 2)), cluster.values() == written("parent", "child", "parent"))
source.close()
"""


def test_a_forked_child_has_clients_of_its_own_and_ends_in_order() -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join(filter(None, [str(here.parents[1]), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 2 True\n", "")
