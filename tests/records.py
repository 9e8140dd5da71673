"""What a body may have set and an engine may have told, as hypothesis strategies: anything, and what is kept of it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from constellation_otel.events import (
    Attributes,
    BodyRecord,
    Budget,
    ErrorInfo,
    Event,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
    RecordedEvent,
    RecordedLink,
    clean_attributes,
    clean_name,
    cleaned_body,
    validated,
)

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
OTHER = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
NOW = 1_795_465_363_577_123_456

TEXTS = st.text(max_size=12)
SCALARS = TEXTS | st.booleans() | st.integers() | st.floats()
VALUES = SCALARS | st.binary(max_size=8) | st.lists(SCALARS | st.none(), max_size=4) | st.none()
RAW: st.SearchStrategy[dict[Any, Any]] = st.dictionaries(TEXTS | st.integers(), VALUES, max_size=4)
"""As a body or a user's callable may give them."""
ATTRIBUTES: st.SearchStrategy[Attributes] = RAW.map(lambda raw: clean_attributes(raw, Budget())[0])
TIMES = st.integers(-5, 2**63 + 5)
IDS = st.none() | st.uuids()
COUNTS = st.integers(-1, 2**40)


def _bodies(attributes: st.SearchStrategy[Any]) -> st.SearchStrategy[BodyRecord]:
    links = st.builds(
        RecordedLink,
        st.integers(0, 2**128 - 1).map(lambda number: format(number, "032x")),
        st.integers(0, 2**64 - 1).map(lambda number: format(number, "016x")),
        attributes,
        TEXTS,
        st.integers(0, 300),
    )
    return st.builds(
        BodyRecord,
        attributes,
        st.lists(st.builds(RecordedEvent, TEXTS, TIMES, attributes), max_size=3).map(tuple),
        st.lists(links, max_size=3).map(tuple),
        st.sampled_from(["unset", "ok", "error"]),
        st.none() | TEXTS,
        st.none() | TEXTS,
        COUNTS,
        COUNTS,
        COUNTS,
        st.booleans(),
    )


RAW_BODIES = _bodies(RAW)
BODIES = _bodies(ATTRIBUTES).map(cleaned_body)
RAW_DETAILS = st.builds(
    ModuleDetails,
    IDS,
    st.integers(-1, 2**32),
    IDS,
    st.sampled_from([None, "skipped", "cached", "else"]),
    st.none() | TEXTS,
    st.lists(st.uuids() | TEXTS, max_size=3).map(tuple),
    RAW,
)
NAMES = TEXTS.map(clean_name)
TOLD: st.SearchStrategy[Event] = st.one_of(
    st.builds(ModuleStarted, st.uuids(), st.uuids(), NAMES, st.integers(0, 2**63 - 1), RAW_DETAILS),
    st.builds(
        ModuleCompleted,
        st.uuids(),
        st.uuids(),
        NAMES,
        st.none() | st.integers(0, 2**40).map(float),
        st.integers(0, 2**63 - 1),
        st.none() | RAW_DETAILS,
        BODIES,
    ),
    st.builds(
        ModuleFailed,
        st.uuids(),
        st.uuids(),
        NAMES,
        st.builds(ErrorInfo, NAMES, NAMES),
        st.integers(0, 2**63 - 1),
        st.none() | RAW_DETAILS,
        BODIES,
    ),
).map(lambda event: validated(event).event)
"""Events of modules with what was told besides, as they are behind the door."""

BODY = BodyRecord(
    {"text": "é\n", "yes": True, "count": 7, "ratio": 0.5, "many": ("a", 1, 2.5, False)},
    (RecordedEvent("cache miss", NOW, {"key": "k1"}), RecordedEvent("exception", NOW + 1, {})),
    (RecordedLink("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", {"why": "parent"}, "vendor=value", 3),),
    "error",
    "half of it",
    "renamed",
    1,
    2,
    3,
    True,
)
"""One of everything."""
DETAILS = ModuleDetails(OTHER, 2, OTHER, None, "again", (OTHER,), {"node.kind": "sql"})
EXTREME = BodyRecord(
    {f"key {number}": '"' * 8_000 for number in range(200)},
    tuple(RecordedEvent('"' * 50, NOW, {"e" * 9: "\N{WINKING FACE}" * 99}) for _ in range(500)),
    tuple(RecordedLink("a" * 32, "b" * 16, {'"': '"'}) for _ in range(500)),
    description='"' * 20_000,
    name='"' * 5_000,
)
"""As much as anybody could have set, of what takes most room in JSON."""


def told_all() -> list[Event]:
    """One event of each kind that carries something, and one as large as any can be."""
    largest = validated(ModuleCompleted(EXECUTION, OTHER, "Trim", 2.5, NOW + 4, DETAILS, EXTREME)).event
    return [
        ExecutionStarted(EXECUTION, "pipeline", NOW, attributes={"tenant": "acme", "rows": (1, 2)}, engine="loom"),
        ModuleStarted(EXECUTION, MODULE, "Trim", NOW + 1, DETAILS),
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NOW + 2, DETAILS, BODY),
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom"), NOW + 3, None, BODY),
        largest,
    ]
