"""Apache Kafka: one node that is broker and controller, with a listener for anybody and one that wants a password."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from .artifact import Artifact, MissingPeerError
from .server import HOST, PeerError, Server, free_port
from .waiting import NotYet

if TYPE_CHECKING:
    from collections.abc import Mapping

_JAVA: Final = 17
_JAVA_DEADLINE_S: Final = 60.0
_FORMAT_DEADLINE_S: Final = 120.0
_REQUEST_TIMEOUT_S: Final = 5.0
_JAR: Final = "kafka_2.13-4.4.0.jar"


class MavenToolchain:
    """The `mvn` and `java` commands of the PATH."""

    settings: Final[Mapping[str, str]] = {}

    @functools.cache  # noqa: B019 - there is one instance
    def version(self) -> str:
        """Which Java there is, at least; Maven's own version changes nothing about the jars.

        Raises:
            MissingPeerError: There is no Java or no Maven, or Java is too old.
        """
        missing = [command for command in ("java", "mvn") if shutil.which(command) is None]
        if missing:
            message = (
                f"Java {_JAVA} or newer and Maven are needed, and there is no `{'` and no `'.join(missing)}` in the"
                f" PATH. Install them: `apt-get install default-jre-headless maven` (as root)."
            )
            raise MissingPeerError(message)
        asked = subprocess.run(
            ["java", "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_JAVA_DEADLINE_S,
            check=False,
        )
        match = re.search(r'version "(\d+)', asked.stderr)
        if match is None or int(match[1]) < _JAVA:
            message = (
                f"Java {_JAVA} or newer is needed; `java -version` says {asked.stderr.strip()!r}. Install a newer one,"
                f" for example `apt-get install openjdk-{_JAVA}-jre-headless` (as root)."
            )
            raise MissingPeerError(message)
        return f"Java {_JAVA}"

    def environment(self) -> Mapping[str, str]:
        """Nothing: Maven keeps what it fetches where it always does."""
        return {}


ARTIFACT: Final = Artifact(
    name="kafka",
    program=_JAR,
    lock=Path(__file__).parent / "lock" / "kafka",
    steps=(
        (
            "mvn",
            "--batch-mode",
            "--quiet",
            "--strict-checksums",
            "dependency:copy-dependencies",
            "-DoutputDirectory=out",
        ),
        # what tells a build that ended well
        ("chmod", "+x", f"out/{_JAR}"),
    ),
    toolchain=MavenToolchain(),
)


class Kafka(Server):
    """A broker on free ports. Topics are not made by asking for them; its data survives `kill` and `start`.

    Attributes:
        port: Plain, for anybody.
        sasl_port: SASL PLAIN without TLS, for `user` with `password`.
        controller_port: For itself.
        user: Who may use the second listener.
        password: The user's.
    """

    name: ClassVar[str] = "kafka"
    stop_deadline_s: ClassVar[float] = 20.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.sasl_port = free_port()
        self.controller_port = free_port()
        self.user = "alice"
        self.password = "open-sesame"
        self._properties = folder / "server.properties"
        self._data = folder / "data"

    @property
    def brokers(self) -> str:
        """What `bootstrap.servers` would be."""
        return f"{HOST}:{self.port}"

    @property
    def sasl_brokers(self) -> str:
        """The same, with a password."""
        return f"{HOST}:{self.sasl_port}"

    def start(self) -> None:
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        if not (self._data / "meta.properties").exists():
            self._format()
        super().start()

    def command(self) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self._properties)]

    def environment(self) -> Mapping[str, str]:
        return {}

    def check_ready(self) -> None:
        """Asks for metadata: a broker that is up and not let in yet is in none."""
        kind, version, correlation, no_client, no_topics = 3, 1, 7, -1, 0
        request = struct.pack(">hhihi", kind, version, correlation, no_client, no_topics)
        with contextlib.closing(socket.create_connection((HOST, self.port), _REQUEST_TIMEOUT_S)) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                head = answer.read(12)
        if len(head) < 12:
            message = "it hung up instead of answering"
            raise NotYet(message)
        _, _, brokers = struct.unpack(">iii", head)
        if brokers != 1:
            message = f"it knows {brokers} brokers"
            raise NotYet(message)

    def _java(self) -> list[str]:
        return [
            *(
                "java",
                "-Xms256m",
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:+ExitOnOutOfMemoryError",
            ),
            *("-Djava.awt.headless=true", "-Dlog4j2.level=WARN", "-cp", f"{ARTIFACT.require().parent}/*"),
        ]

    def _format(self) -> None:
        command = [*self._java(), "kafka.tools.StorageTool", "format", "--cluster-id", "MkU3OEVBNTcwNTJENDM2Qg"]
        formatted = subprocess.run(
            [*command, "--config", str(self._properties)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FORMAT_DEADLINE_S,
            check=False,
        )
        if formatted.returncode != 0:
            message = f"kafka's storage could not be formatted:\n{formatted.stdout}{formatted.stderr}"
            raise PeerError(message)

    def _settings(self) -> dict[str, object]:
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        only_node = (
            "offsets.topic.num.partitions",
            "offsets.topic.replication.factor",
            "transaction.state.log.num.partitions",
            "transaction.state.log.replication.factor",
            "transaction.state.log.min.isr",
            "share.coordinator.state.topic.num.partitions",
            "share.coordinator.state.topic.replication.factor",
            "share.coordinator.state.topic.min.isr",
        )
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "listeners": (
                f"PLAINTEXT://{HOST}:{self.port},SASL_PLAINTEXT://{HOST}:{self.sasl_port},"
                f"CONTROLLER://{HOST}:{self.controller_port}"
            ),
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port},SASL_PLAINTEXT://{HOST}:{self.sasl_port}",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{login} user_{self.user}="{self.password}";',
            "log.dirs": self._data,
            "auto.create.topics.enable": "false",
            **dict.fromkeys(only_node, 1),
            # a group's first member need not wait for others, and a member that was killed is missed soon
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # a broker that comes back is let in at once, instead of after its old session of 9 s
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
            "num.network.threads": 2,
            "num.io.threads": 2,
        }
