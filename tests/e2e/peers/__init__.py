"""The real servers that the end-to-end tests talk to: getting, starting, awaiting and stopping them.

One module per peer, each with what it is built from (`ARTIFACT`, for the `get` script) and a class that runs it.
Only the standard library is imported here, since `get` runs before anything is installed.
"""

from __future__ import annotations

from .artifact import Artifact, MissingPeerError
from .collector import Collector
from .jaeger import Jaeger
from .kafka import Kafka
from .pgbouncer import PgBouncer
from .postgres import Postgres
from .server import PeerError, Server
from .waiting import NotYet, eventually

__all__ = [
    "Artifact",
    "Collector",
    "Jaeger",
    "Kafka",
    "MissingPeerError",
    "NotYet",
    "PeerError",
    "PgBouncer",
    "Postgres",
    "Server",
    "eventually",
]
