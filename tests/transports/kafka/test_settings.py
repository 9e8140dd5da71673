"""URLs and settings, and what is refused of them."""

from __future__ import annotations

import runpy
import sys
from typing import TYPE_CHECKING

import pytest

import constellation_otel.transports.kafka
from constellation_otel.errors import (
    ConfigurationError,
    MissingExtraError,
)
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from constellation_otel.transports.url import SourceOptions
from transports.kafka.helpers import SINK, TOPIC, Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.delivery import (
        Sink,
        Source,
    )
    from constellation_otel.events import (
        Event,
    )

    MakeSink = Callable[..., KafkaSink]
    MakeSource = Callable[..., KafkaSource]


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^confluent-kafka is not installed; run: pip install 'constellation-otel\[kafka\]'$",
    ):
        runpy.run_path(constellation_otel.transports.kafka.__file__)


def test_they_are_what_the_contract_asks_for(make_sink: MakeSink, make_source: MakeSource, cluster: Cluster) -> None:
    sink: Sink[Event] = make_sink()
    source: Source = make_source()
    replay: Source = make_source(follow=False)
    assert (sink.name, sink.takes, sink.max_batch) == ("kafka", "events", 512)
    assert (source.name, replay.name) == (
        f"kafka://{cluster.brokers}/{TOPIC}?group=bridge",
        f"kafka://{cluster.brokers}/{TOPIC}",
    )
    assert [(each.is_ordered, each.is_durable, each.has_ended) for each in (source, replay)] == [
        (False, True, False),
        (False, True, False),
    ]


def test_a_url_says_brokers_topic_credentials_and_settings() -> None:
    sink = KafkaSink.from_url("kafka://us%40er:ge%2Fheim%3A@one:9092,two:9093/my.topic?linger.ms=7&acks=all", SINK)
    assert sink._cluster.url == "kafka://one:9092,two:9093/my.topic"
    expected = {
        "bootstrap.servers": "one:9092,two:9093",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "us@er",
        "sasl.password": "ge/heim:",
        "linger.ms": "7",
        "compression.type": "lz4",
        "enable.idempotence": True,
    }
    assert {name: sink._cluster.settings.get(name) for name in expected} == expected


def test_a_url_may_ask_for_another_mechanism_and_names_a_group() -> None:
    source = KafkaSource.from_url(
        "kafka://u:geheim@one?group=g&security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-256", SourceOptions()
    )
    assert source.name == "kafka://one/constellation-events?group=g"
    expected = {
        "group.id": "g",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "partition.assignment.strategy": "cooperative-sticky",
    }
    assert {name: source._cluster.settings.get(name) for name in expected} == expected


def test_with_the_newer_group_protocol_the_broker_assigns() -> None:
    source = KafkaSource.from_url("kafka://one?group=g&group.protocol=consumer", SourceOptions())
    assert "partition.assignment.strategy" not in source._cluster.settings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "kafka:u:geheim@one/topic",
            "a Kafka URL is kafka://[user:password@]broker:9092/topic; this one begins otherwise",
        ),
        ("kafka://u:geheim@/topic", "kafka:///topic names no broker; give one or more as host:port"),
        (
            "kafka://u:geheim@one/a%5Eb",
            "'a^b' is not a topic name: 1 to 249 of A-Z, a-z, 0-9, dot, dash, underscore",
        ),
        (
            "kafka://u:geheim@one/topic?liger.ms=5",
            'kafka://one/topic: No such configuration property: "liger.ms"; correct or leave it out',
        ),
        (
            "kafka://u:geheim@one/topic?sasl.mechanism=PLAIN&acks=oh",
            'kafka://one/topic: Invalid value for configuration property "request.required.acks"; correct or',
        ),
        (
            "kafka://one/topic?ssl.ca.location=%2Fnowhere&security.protocol=SSL",
            "kafka://one/topic: Failed to create producer: ssl.ca.location failed: ",
        ),
        (
            "kafka://one/topic?bootstrap.servers=two",
            "kafka://one/topic: bootstrap.servers is fixed here and cannot be set; leave it out",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(
    url: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KafkaSink.from_url(url, SINK)
    assert str(caught.value).startswith(message)
    assert "geheim" not in str(caught.value)
    assert "geheim" not in "".join(capfd.readouterr())


def test_the_librarys_words_go_out_without_the_settings_secrets() -> None:
    sink = KafkaSink.from_url("kafka://u:geheim@one/topic?ssl.key.password=privat", SINK)
    assert sink._cluster.hide("no geheim, no privat") == "no ***, no ***"


def test_following_needs_a_group_and_replaying_needs_none() -> None:
    for none in ("", "?group=", "?group=%20", "?group=%0A%09"):  # of blanks librdkafka makes an abort
        with pytest.raises(ConfigurationError, match=r"^following a topic needs a consumer group: add \?group=NAME"):
            KafkaSource.from_url(f"kafka://one/topic{none}", SourceOptions())
    assert KafkaSource.from_url("kafka://one/topic", SourceOptions(follow=False)).name == "kafka://one/topic"


def test_the_size_of_the_sinks_queue_cannot_be_changed() -> None:
    """It has room for what is sent at once."""
    with pytest.raises(ConfigurationError, match=r"queue\.buffering\.max\.messages is fixed here and cannot be set"):
        KafkaSink.from_url("kafka://one/topic?queue.buffering.max.messages=2", SINK)


@pytest.mark.parametrize("setting", ["enable.auto.commit", "enable.partition.eof", "group.id"])
def test_what_the_promises_rest_on_cannot_be_set(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} is fixed here and cannot be set; leave it out"):
        KafkaSource.from_url(f"kafka://one/topic?group=g&{setting}=true", SourceOptions())


@pytest.mark.parametrize(("name", "value"), [("client.id", "a\0b"), ("client.id", "\udcff")])
def test_a_setting_that_is_not_text_is_refused_by_its_name(name: str, value: str) -> None:
    """The library would end the process."""
    with pytest.raises(ConfigurationError) as refused:
        KafkaSink("one", config={name: value})
    assert (
        str(refused.value) == f"kafka://one/{TOPIC}: {name} has characters that are not text; correct or leave it out"
    )
