"""What is known of a module from its details, however often and in whichever order they were told.

Merging is commutative, associative and idempotent, as it is for events: key by key, the least by (timestamp,
content) wins; where there are too many attributes or links, those with the least keys stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec import Struct, field

from constellation_otel.events import MAX_ATTRIBUTES, MAX_UPSTREAM, ModuleDetails

if TYPE_CHECKING:
    from constellation_otel.events import Attributes

__all__ = ["Known", "known_of", "merged"]

_SCALARS: Final = ("parent_id", "attempt", "attempt_of", "outcome", "reason")
_DEFAULTS: Final = ModuleDetails()


class Known(Struct):
    """What was told of a module besides its events.

    Attributes:
        first: The only details that were told so far, and when; ``None`` once there were others.
        scalars: By field, the one that wins: when it was told, its content, and itself.
        attributes: By name, likewise.
        upstream: The numbers of the ids of the modules whose outputs it takes.
    """

    first: tuple[int, ModuleDetails] | None
    scalars: dict[str, tuple[int, str, Any]] = field(default_factory=dict)
    attributes: dict[str, tuple[int, str, Any]] = field(default_factory=dict)
    upstream: set[int] = field(default_factory=set)

    @property
    def details(self) -> ModuleDetails:
        """What wins of everything."""
        if self.first is not None:
            return self.first[1]
        attributes: Attributes = {name: self.attributes[name][2] for name in sorted(self.attributes)}
        values = {name: self.scalars[name][2] for name in self.scalars}
        upstream = tuple(UUID(int=number) for number in sorted(self.upstream))
        return ModuleDetails(**values, upstream=upstream, attributes=attributes)


def merged(known: Known | None, timestamp_ns: int, details: ModuleDetails) -> Known:
    """What is known of a module from now on.

    Args:
        known: What was known of it.
        timestamp_ns: When the details were told.
        details: The details.
    """
    if known is None:
        return Known((timestamp_ns, details))
    if known.first is not None:
        if known.first == (timestamp_ns, details):
            return known
        first, known.first = known.first, None
        _add(known, *first)
    _add(known, timestamp_ns, details)
    return known


def known_of(known: Known | None) -> ModuleDetails:
    """What wins of what is known; details that say nothing where nothing is."""
    return _DEFAULTS if known is None else known.details


def _add(known: Known, timestamp_ns: int, details: ModuleDetails) -> None:
    for name in _SCALARS:
        value = getattr(details, name)
        if value != getattr(_DEFAULTS, name):
            _put(known.scalars, name, (timestamp_ns, repr(value), value))
    for name, value in details.attributes.items():
        _put(known.attributes, name, (timestamp_ns, repr(value), value))
    known.upstream.update(each.int for each in details.upstream)
    if len(known.attributes) > MAX_ATTRIBUTES:
        for name in sorted(known.attributes)[MAX_ATTRIBUTES:]:
            del known.attributes[name]
    if len(known.upstream) > MAX_UPSTREAM:
        known.upstream = set(sorted(known.upstream)[:MAX_UPSTREAM])


def _put(known: dict[str, tuple[int, str, Any]], name: str, told: tuple[int, str, Any]) -> None:
    before = known.get(name)
    # the third is as equal as the second, and need not be comparable
    if before is None or told[:2] < before[:2]:
        known[name] = told
