"""The package as a whole: its names, which way its imports point, what importing it does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import constellation_otel
from support import UNWATCHED

pytestmark = UNWATCHED

SOURCE = Path(constellation_otel.__file__).parent

MAY_IMPORT = {
    "errors": {"_support"},
    "_support": {"errors"},
    "listener": {"errors", "_support"},
    "automatic": {"listener"},
    "events": {"listener", "errors", "_support"},
    "traces": {"events", "errors", "_support"},
    "bodies": {"traces", "events", "errors", "_support"},
    "delivery": {"bodies", "traces", "events", "listener", "errors", "_support"},
    "transports": {"delivery", "traces", "events", "errors", "_support"},
    "otel": {"transports", "delivery", "bodies", "traces", "events", "errors", "_support"},
    "engine": {"automatic", "bodies", "traces", "listener", "errors", "_support"},
    "adapters": {"automatic", "bodies", "traces", "listener", "errors", "_support"},
    "logs": {"bodies"},
    "instrumentation": {"automatic", "otel", "listener", "_support"},
    "receiver": {"traces", "errors", "_support"},
    "testing": {"automatic", "otel", "receiver", "delivery", "traces", "events", "listener", "errors", "_support"},
    "cli": {
        "transports",
        "delivery",
        "otel",
        "engine",
        "receiver",
        "traces",
        "events",
        "listener",
        "errors",
        "_support",
    },
}
"""Each room, and which others it may enter: arrows point one way; ``cli`` knows all but what others load."""

DOCUMENTED = {
    "AsyncListenerAdapter", "Constellation", "Dag", "ExecutionJoined", "ExecutionJoiner", "ExecutionListener",
    "LoggingListener", "ModuleContextProvider", "ModuleDescribed", "ModuleDetails", "ModuleDetailsTaker",
    "Bridge", "BufferedListener", "OpenTelemetryListener", "OtlpListener", "module", "module_context", "span_id_of",
    "trace_id_of",
    "ErrorInfo", "Event", "EventListener", "Execution", "ExecutionCancelled", "ExecutionCompleted",
    "ExecutionStarted", "ModuleCompleted", "ModuleFailed", "ModuleStarted",
    "ConfigurationError", "ConstellationOtelError", "DagError", "DeliveryError", "JournalError", "MisconfiguredError",
    "RefusedError", "SourceError", "UnavailableError", "DecodeError", "ExecutionCancelledError", "ExecutionFailedError",
    "ListenerDefinitionError", "MissingExtraError", "ReceiverError", "RemoteError",
}  # fmt: skip
"""What the README and the design call the everyday names."""


def room_of(name: str) -> str:
    """The room of a module or package, by its dotted name without the package's."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "transports" and len(parts) > 1 else parts[0]


def imported_by(path: Path) -> set[str]:
    """What of the package a file imports, wherever in it: modules, by their dotted names without the package's."""
    return {
        str(node.module).removeprefix("constellation_otel").removeprefix(".")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "constellation_otel"
    } - {""}


@cache
def imports() -> list[tuple[str, str]]:
    """Each module of a room, and one that it imports."""
    return [
        (".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"), imported)
        for path in sorted(SOURCE.rglob("*.py"))
        if path.parent != SOURCE or path.stem in MAY_IMPORT
        for imported in sorted(imported_by(path))
    ]


def test_imports_point_one_way() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == MAY_IMPORT.keys()
    entered = [
        (room_of(module).partition(".")[0], room_of(imported).partition(".")[0]) for module, imported in imports()
    ]
    assert [(room, other) for room, other in entered if other not in {room, *MAY_IMPORT[room]}] == []


def test_a_room_is_entered_by_its_door_only() -> None:
    """By its package; the files of ``_support`` stand for themselves, and the journal is a room in a room."""
    past_the_door = [
        (module, imported)
        for module, imported in imports()
        if room_of(module) != room_of(imported)
        and not imported.startswith("_support.")
        and imported not in {room_of(imported), "delivery.journal"}
    ]
    assert past_the_door == []


def test_a_transport_does_not_know_another_one() -> None:
    pairs = [(room_of(module), room_of(imported)) for module, imported in imports()]
    shared = {"transports.registry", "transports.url"}
    transports = {room for room, _ in pairs if room.startswith("transports.")} - shared
    assert [(room, other) for room, other in pairs if room in transports and other in transports - {room}] == []


HOMES = {
    "click": "click",
    "confluent_kafka": "confluent-kafka",
    "dagster": "dagster",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "hamilton": "apache-hamilton",
    "kedro": "kedro",
    "msgspec": "msgspec",
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp",
    "opentelemetry.instrumentation.instrumentor": "opentelemetry-instrumentation",
    "opentelemetry.instrumentation.sqlite3": "opentelemetry-instrumentation-sqlite3",
    "opentelemetry.instrumentation.urllib": "opentelemetry-instrumentation-urllib",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.semconv": "opentelemetry-semantic-conventions",
    "rich": "rich",
    "sqlalchemy": "sqlalchemy",
    "stamina": "stamina",
    "urllib3": "urllib3",
    "websockets": "websockets",
}
"""The distribution that brings a module, or a package with all of its modules."""


BROUGHT_BY_WHO_LOADS_IT = {
    ("instrumentation.py", "opentelemetry.instrumentation.instrumentor"),
    ("plugin.py", "pytest"),
}
"""What is imported by modules that only a program which has it loads, by their entry points."""


def test_everything_that_is_imported_is_declared() -> None:
    declared = {re.split(r"[ \[<>=;]", requirement)[0].lower() for requirement in requires("constellation-otel") or ()}
    missing = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names:
                if name.partition(".")[0] in {*sys.stdlib_module_names, "constellation_otel"}:
                    continue
                home = max((known for known in HOMES if f"{name}.".startswith(f"{known}.")), key=len, default=None)
                if home is None or HOMES[home] not in declared:
                    missing.add((path.name, name))
    assert missing == BROUGHT_BY_WHO_LOADS_IT


def test_the_rule_of_imports_has_no_circle() -> None:
    """But for ``errors`` and ``_support``, whose files are a layer each."""
    placed = {"errors", "_support"}
    while placed != MAY_IMPORT.keys():
        ready = {name for name, allowed in MAY_IMPORT.items() if name not in placed and allowed <= placed}
        assert ready
        placed |= ready


def test_the_everyday_names_are_the_documented_ones_sorted_and_all_there() -> None:
    assert sorted(constellation_otel.__all__) == constellation_otel.__all__
    assert set(constellation_otel.__all__) == DOCUMENTED
    assert dir(constellation_otel) == sorted({*vars(constellation_otel), *DOCUMENTED})
    for name in DOCUMENTED:
        assert getattr(getattr(constellation_otel, name), "__name__", "Event") == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'constellation_otel' has no attribute 'Nonsense'"):
        constellation_otel.Nonsense  # type: ignore[attr-defined] # noqa: B018 - the access is the test


@pytest.mark.parametrize("room", ["", ".delivery", ".events", ".otel", ".testing", ".traces"])
def test_every_name_on_a_door_is_behind_it(room: str) -> None:
    door = import_module(f"constellation_otel{room}")
    assert [name for name in door.__all__ if not hasattr(door, name)] == []


def test_importing_is_quiet() -> None:
    """No thread, no socket, nothing printed, and not even OpenTelemetry before it is needed."""
    program = """
import sys, threading, gc, socket
import constellation_otel
assert "opentelemetry" not in sys.modules
from constellation_otel import *
assert threading.active_count() == 1
assert not [found for found in gc.get_objects() if isinstance(found, socket.socket)]
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_base_install_needs_opentelemetry_and_what_it_brings() -> None:
    needed = requires("constellation-otel") or []
    assert sorted(requirement.split(">=")[0] for requirement in needed if "extra ==" not in requirement) == [
        "googleapis-common-protos",
        "grpcio",
        "msgspec",
        "opentelemetry-api",
        "opentelemetry-exporter-otlp",
        "opentelemetry-proto",
        "opentelemetry-sdk",
        "opentelemetry-semantic-conventions",
        "protobuf",
        "urllib3",
    ]
    assert metadata("constellation-otel")["Requires-Python"] == ">=3.11"


def test_the_extra_all_has_every_extra_whose_parts_pin_nothing() -> None:
    """The demo's instrumentations pin each other, and engines pin what collides with one another's."""
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras["all"]
    alone = {"all", "demo", "dagster", "hamilton", "kedro", "retry"}
    assert everything == f"constellation-otel[{','.join(sorted(extras.keys() - alone))}]"
