"""What the clients of a Kafka topic have in common: settings, the library's log, and errors without secrets."""

from __future__ import annotations

import ctypes
import logging
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.errors import ConfigurationError, MisconfiguredError, UnavailableError
from constellation_otel.transports.url import Secrets, decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TOPIC", "UNKNOWN_TOPIC", "Cluster", "Setting", "abandon", "parse_url", "places_of"]

TOPIC: Final = "constellation-events"

Setting: TypeAlias = str | int | float | bool
"""What librdkafka takes as a setting's value."""

T = TypeVar("T", Producer, Consumer)

_LOGGER: Final = logging.getLogger(__package__)
_HAS_PORT: Final = re.compile(r":\d+$")
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SECRET: Final = re.compile(r"password|secret|\.pem$|oauthbearer\.config|assertion")
_UNFIT: Final = re.compile(r"[\0\ud800-\udfff]")

UNKNOWN_TOPIC: Final = {
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - the library's own names for its local errors
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_CREDENTIALS: Final = "check the user, the password and what the user may do"
_NEEDS_FIXING: Final = {
    KafkaError._AUTHENTICATION: _CREDENTIALS,  # noqa: SLF001 - the library's own name for a local error
    KafkaError._INVALID_ARG: "check the settings and the files that they name",  # noqa: SLF001 - the library's own name for a local error
    KafkaError._SSL: "check the ssl.* settings and the certificates",  # noqa: SLF001 - the library's own name for a local error
    KafkaError.SASL_AUTHENTICATION_FAILED: _CREDENTIALS,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _CREDENTIALS,
    KafkaError.GROUP_AUTHORIZATION_FAILED: _CREDENTIALS,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _CREDENTIALS,
    **dict.fromkeys(UNKNOWN_TOPIC, "create the topic, or correct its name"),
}
"""What does not pass by itself, and how to fix it."""
_REPORTED: Final = {KafkaError._ALL_BROKERS_DOWN, *_NEEDS_FIXING}  # noqa: SLF001 - the library's own name for a local error


class Cluster:
    """Brokers and a topic, as their clients see them.

    Args:
        brokers: ``host:port``, with commas between them.
        topic: The topic's name.
        client: What the settings are for.
        defaults: Settings that ``config`` may change.
        config: The user's settings.
        fixed: Settings that it may not change, and callbacks.

    Attributes:
        topic: The topic's name.
        settings: All of them, for the client.
        url: Which topic of which brokers, for messages.
        hide: Takes the secrets of the settings out of a text.
        last_error: Why nothing works at the moment, as far as the library has said.

    Raises:
        ConfigurationError: There is no broker, the topic cannot have that name, or a setting cannot be used.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        client: type[Producer | Consumer],
        *,
        defaults: Mapping[str, Setting],
        config: Mapping[str, Setting],
        fixed: Mapping[str, Any],
    ) -> None:
        self.topic = topic
        self.url = f"kafka://{brokers}/{topic}"
        if not brokers.strip(", "):
            message = f"{self.url} names no broker; give one or more as host:port"
            raise ConfigurationError(message)
        if not _TOPIC_NAME.fullmatch(topic):
            message = f"{topic!r} is not a topic name: 1 to 249 of A-Z, a-z, 0-9, dot, dash, underscore"
            raise ConfigurationError(message)
        fixed = {**fixed, "bootstrap.servers": brokers, "error_cb": self.on_error}
        for setting in sorted(fixed.keys() & config.keys()):
            message = f"{self.url}: {setting} is fixed here and cannot be set; leave it out"
            raise ConfigurationError(message)
        self.settings: dict[str, Any] = {**defaults, **config, **fixed}
        for setting, value in self.settings.items():
            # librdkafka takes bytes that end with a NUL, and its binding aborts the process for what has no UTF-8
            if _UNFIT.search(setting) or (isinstance(value, str) and _UNFIT.search(value)):
                message = f"{self.url}: {setting} has characters that are not text; correct or leave it out"
                raise ConfigurationError(message)
        self.last_error: KafkaError | None = None
        self._complaint: KafkaError | None = None
        self._log = RateLimitedLog()
        self.hide = Secrets(str(value) for setting, value in config.items() if _SECRET.search(setting)).hide
        # without brokers it connects to nothing
        offline = {setting: value for setting, value in self.settings.items() if setting != "bootstrap.servers"}
        try:
            client(offline, logger=self)
        except KafkaException as error:
            message = f"{self.url}: {self.hide(error.args[0].str())}; correct or leave it out"
            raise ConfigurationError(message) from None

    def open(self, client: type[T]) -> T:
        """Makes a client.

        Raises:
            MisconfiguredError: A file that the settings name is no longer there.
        """
        try:
            return client(self.settings, logger=self)
        except KafkaException as error:
            raise self.unavailable(error.args[0], "no client can be made") from error

    def log(self, level: int, message: str, *args: object) -> None:
        """Takes what the library logs, in the place of a logger."""
        self._log.write(_LOGGER, level, ("library", *args[:1]), "%s: %s", self.url, self.hide(message % args))

    def on_error(self, error: KafkaError) -> None:
        """Takes what the library says of its connections, as its callback."""
        if error.code() not in _REPORTED:
            self._complaint = error
        elif not self.needs_fixing:
            self.last_error = error

    @property
    def needs_fixing(self) -> bool:
        """Whether nothing works until an operator fixes something."""
        return self.last_error is not None and self.last_error.code() in _NEEDS_FIXING

    def forget_error(self) -> None:
        """Everything works, or is tried afresh."""
        self.last_error = self._complaint = None

    def unavailable(
        self, error: KafkaError | None, what: str, delivered: frozenset[int] = frozenset()
    ) -> UnavailableError:
        """The error to raise.

        Args:
            error: Why, where that is known; what an operator has to fix goes before it.
            what: What did not work.
            delivered: As in :class:`UnavailableError`.
        """
        reason = self.last_error if error is None or self.needs_fixing else error
        said = [found.str() for found in (reason, self._complaint) if found is not None]
        message = f"{self.url}: {what}: {self.hide('; '.join(said)) or 'no broker has answered in time'}"
        if reason is None or reason.code() not in _NEEDS_FIXING:
            return UnavailableError(message, delivered=delivered)
        user = self.settings.get("sasl.username")
        if user is not None:
            mechanism = self.settings.get("sasl.mechanism", self.settings.get("sasl.mechanisms"))
            message += f" (user {user!r}, mechanism {mechanism})"
        return MisconfiguredError(f"{message}: {_NEEDS_FIXING[reason.code()]}", delivered=delivered)


def parse_url(url: str) -> tuple[str, str, dict[str, str]]:
    """Brokers, topic and settings of ``kafka://[user:password@]broker:9092[,broker2:9092]/topic?option=value``."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, topic = rest.partition("/")
    credentials, has_credentials, brokers = authority.rpartition("@")
    if scheme != "kafka":
        # not what it is: who knows where the secrets are in it
        message = "a Kafka URL is kafka://[user:password@]broker:9092/topic; this one begins otherwise"
        raise ConfigurationError(message)
    settings = {}
    if has_credentials:
        user, password = decoded(credentials)
        settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
        settings |= {"sasl.username": user, "sasl.password": password}
    settings |= parse_qsl(query, keep_blank_values=True)
    return brokers, unquote(topic) or TOPIC, settings


def places_of(url: str) -> set[tuple[object, ...]]:
    """The topic at each broker that a URL names: two URLs of one topic have a broker in common.

    Raises:
        ConfigurationError: It is not a Kafka URL.
    """
    brokers, topic, _ = parse_url(url)
    names = {broker.strip().lower() for broker in brokers.split(",")}
    return {(name if _HAS_PORT.search(name) else f"{name}:9092", topic) for name in names if name}


def abandon(client: Producer | Consumer | None) -> None:
    """Has a client that came with a fork never be freed: that would wait for its threads, which did not come."""
    if client is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
