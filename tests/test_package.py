"""The package as a whole: its names, which way its imports point, what importing it does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import constellation_otel

SOURCE = Path(constellation_otel.__file__).parent

MAY_IMPORT = {
    "_callbacks": {"errors"},
    "_deadline": set(),
    "_exit": {"_fork", "_log"},
    "_fork": set(),
    "_environment": {"errors"},
    "_log": {"_fork", "_text"},
    "_text": set(),
    "_version": set(),
    "errors": {"_text"},
    "ids": set(),
    "spans": set(),
    "listener": {"_callbacks", "_log"},
    "events": {"_text", "errors", "listener"},
    "validation": {"_text", "events"},
    "dialects": {"delivery", "errors", "events", "validation"},
    "assembler": {"events", "ids", "spans"},
    "losses": {"_log", "spans"},
    "worker": {"_deadline", "_exit", "_fork", "_log"},
    "delivery": {"events", "spans"},
    "dead_letters": {"_fork", "_log"},
    "otlp_encoding": {"_version", "spans"},
    "stages": {"_log", "assembler", "delivery", "events", "spans"},
    "lane": {"_log", "dead_letters", "delivery", "dialects", "errors", "events", "spans", "stages", "validation"},
    "buffer": {
        "_deadline",
        "_log",
        "dead_letters",
        "delivery",
        "errors",
        "events",
        "lane",
        "stages",
        "validation",
        "worker",
    },
    "transports": {
        "_deadline",
        "validation",
        "_fork",
        "_log",
        "_text",
        "_version",
        "buffer",
        "dead_letters",
        "delivery",
        "dialects",
        "errors",
        "events",
        "ids",
        "lane",
        "otlp_encoding",
        "spans",
    },
    "exception_logs": {"_log", "_version", "spans"},
    "signals": {
        "_deadline",
        "_environment",
        "_exit",
        "_fork",
        "_log",
        "errors",
        "exception_logs",
        "instruments",
        "spans",
        "transports",
    },
    "otlp_listener": {
        "_deadline",
        "_log",
        "assembler",
        "buffer",
        "dead_letters",
        "delivery",
        "events",
        "ids",
        "instruments",
        "lane",
        "losses",
        "signals",
        "spans",
        "stages",
        "tracing",
        "transports",
    },
    "bridge": {
        "_deadline",
        "validation",
        "_log",
        "assembler",
        "buffer",
        "dead_letters",
        "delivery",
        "errors",
        "events",
        "instruments",
        "lane",
        "losses",
        "signals",
        "spans",
        "stages",
        "tracing",
    },
    "selection": {"delivery", "events"},
    "urls": {"delivery", "errors", "transports"},
    "health": {"_log", "bridge", "errors"},
    "aio": {"_callbacks", "_log", "errors", "events", "listener", "worker"},
    "instruments": {"_fork", "_version", "spans"},
    "tracing": {"_environment", "_log", "_version", "events", "ids", "spans"},
    "otel": {
        "validation",
        "_log",
        "_version",
        "assembler",
        "worker",
        "events",
        "exception_logs",
        "ids",
        "instruments",
        "spans",
        "tracing",
        "losses",
    },
    "dag": {"_text", "errors"},
    "runtime": {"_deadline", "_log", "_text", "dag", "errors", "listener"},
    "otlp_decoding": {"errors", "spans"},
    "receiver": {"_deadline", "_log", "errors", "otlp_decoding", "spans"},
    "testing": {"_deadline", "_text", "errors", "events", "listener", "spans"},
    "waterfall": {"_text", "errors", "spans"},
    "demo_pipelines": {"dag", "dialects", "errors", "events", "listener"},
    "demo": {
        "_text",
        "demo_pipelines",
        "dialects",
        "errors",
        "events",
        "ids",
        "listener",
        "otel",
        "receiver",
        "runtime",
        "waterfall",
        "signals",
        "transports",
    },
    "operations": {
        "_log",
        "_text",
        "assembler",
        "bridge",
        "dead_letters",
        "delivery",
        "errors",
        "events",
        "health",
        "selection",
        "signals",
        "spans",
        "tracing",
        "transports",
        "urls",
        "waterfall",
    },
    "cli": {"_text", "demo", "errors", "ids", "operations"},
    "__main__": {"cli", "errors"},
}
"""Each module, and what of the package it may import: arrows point one way, and ``cli`` knows all."""

DOCUMENTED = {
    "AsyncListenerAdapter", "Constellation", "Dag", "ExecutionListener", "LoggingListener", "ModuleContextProvider",
    "Bridge", "BufferedListener", "OpenTelemetryListener", "OtlpListener", "module", "span_id_of", "trace_id_of",
    "ErrorInfo", "Event", "EventListener", "Execution", "ExecutionCancelled", "ExecutionCompleted",
    "ExecutionStarted", "ModuleCompleted", "ModuleFailed", "ModuleStarted",
    "ConfigurationError", "ConstellationOtelError", "DagError", "DeliveryError", "JournalError", "MisconfiguredError",
    "RefusedError", "SourceError", "UnavailableError", "DecodeError", "ExecutionCancelledError", "ExecutionFailedError",
    "ListenerDefinitionError", "MissingExtraError", "ReceiverError", "RemoteError",
}  # fmt: skip
"""What the README and the design call the everyday names."""


def imported_by(path: Path) -> set[str]:
    """The package's own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "constellation_otel":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("constellation_otel."):
            found.add(str(node.module).split(".")[1])
    return found


def test_imports_point_one_way() -> None:
    modules = {path.stem: imported_by(path) for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    # the transports are one: each is an edge, and some share what is theirs
    modules["transports"] = set().union(*map(imported_by, SOURCE.glob("transports/*.py"))) - {"transports"}
    assert modules.keys() == MAY_IMPORT.keys()
    assert {name: found - MAY_IMPORT[name] for name, found in modules.items() if found - MAY_IMPORT[name]} == {}


HOMES = {
    "click": "click",
    "confluent_kafka": "confluent-kafka",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "msgspec": "msgspec",
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp",
    "opentelemetry.instrumentation.sqlite3": "opentelemetry-instrumentation-sqlite3",
    "opentelemetry.instrumentation.urllib": "opentelemetry-instrumentation-urllib",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.semconv": "opentelemetry-semantic-conventions",
    "rich": "rich",
    "sqlalchemy": "sqlalchemy",
    "urllib3": "urllib3",
    "websockets": "websockets",
}
"""The distribution that brings a module, or a package with all of its modules."""


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
    assert missing == set()


def test_the_rule_of_imports_has_no_circle() -> None:
    placed: set[str] = set()
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
        constellation_otel.Nonsense  # noqa: B018 - the access is the test


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


def test_the_extra_all_has_every_extra_but_the_demos_whose_parts_pin_each_other() -> None:
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras["all"]
    assert everything == f"constellation-otel[{','.join(sorted(extras.keys() - {'all', 'demo'}))}]"
