"""The package as a whole: its names, which way its imports point, what importing it does."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import constellation_otel

SOURCE = Path(constellation_otel.__file__).parent

MAY_IMPORT = {
    "_callbacks": {"errors"},
    "_exit": {"_fork"},
    "_fork": set(),
    "_log": {"_fork"},
    "_version": set(),
    "errors": set(),
    "ids": set(),
    "spans": set(),
    "listener": {"_callbacks", "_log"},
    "events": {"errors", "listener"},
    "dialects": {"errors", "events"},
    "assembler": {"events", "ids", "spans"},
    "worker": {"_exit", "_fork", "_log"},
    "delivery": {"events", "spans"},
    "dead_letters": {"_fork", "_log"},
    "otlp_encoding": {"_version", "spans"},
    "stages": {"assembler", "delivery", "events", "spans"},
    "lane": {"_log", "dead_letters", "delivery", "dialects", "errors", "events", "spans", "stages"},
    "buffer": {"_log", "dead_letters", "delivery", "errors", "events", "lane", "stages", "worker"},
    "transports": {
        "_fork",
        "_log",
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
    "exception_logs": {"_version", "spans"},
    "signals": {"_exit", "_fork", "_log", "exception_logs", "instruments", "spans"},
    "otlp_listener": {
        "assembler",
        "buffer",
        "dead_letters",
        "delivery",
        "events",
        "ids",
        "instruments",
        "lane",
        "signals",
        "spans",
        "stages",
        "tracing",
        "transports",
    },
    "bridge": {
        "_log",
        "assembler",
        "buffer",
        "dead_letters",
        "delivery",
        "errors",
        "events",
        "instruments",
        "lane",
        "signals",
        "spans",
        "stages",
        "tracing",
    },
    "selection": {"delivery", "events"},
    "urls": {"delivery", "errors", "transports"},
    "health": {"_log", "bridge", "errors"},
    "aio": {"_callbacks", "worker", "errors", "events", "listener"},
    "instruments": {"_fork", "_version", "spans"},
    "tracing": {"_log", "_version", "events", "ids", "spans"},
    "otel": {
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
    },
    "dag": {"errors"},
    "runtime": {"dag", "errors", "listener"},
    "otlp_decoding": {"errors", "spans"},
    "receiver": {"errors", "otlp_decoding", "spans"},
    "testing": {"errors", "events", "listener", "spans"},
    "waterfall": {"errors", "spans"},
    "demo_pipelines": {"dag", "dialects", "errors", "events", "listener"},
    "demo": {
        "demo_pipelines",
        "dialects",
        "events",
        "errors",
        "ids",
        "listener",
        "otel",
        "receiver",
        "runtime",
        "waterfall",
    },
    "operations": {
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
        "transports",
        "urls",
        "waterfall",
    },
    "cli": {"demo", "errors", "ids", "operations"},
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


def test_the_base_install_needs_four_distributions() -> None:
    needed = requires("constellation-otel") or []
    assert sorted(requirement.split(">=")[0] for requirement in needed if "extra ==" not in requirement) == [
        "msgspec",
        "opentelemetry-api",
        "opentelemetry-exporter-otlp",
        "opentelemetry-sdk",
    ]
    assert metadata("constellation-otel")["Requires-Python"] == ">=3.11"
