"""The context in which a module's body runs. Its span is made when somebody first looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context

from constellation_otel.bodies.context import CURRENT_SPAN
from constellation_otel.bodies.running import RUNNING
from constellation_otel.bodies.span import BodySpan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from constellation_otel.traces import Decision

__all__ = ["Body"]


class Body(Context):
    """The caller's context with a module's span as the current one.

    One is made for every module, in the callback, and most bodies never look at their span. So it is a few slots:
    whoever makes one sets all of them, and as a dictionary it is empty, and makes one where it is asked for more
    than a single value.

    Attributes:
        around: The caller's context, which is none of these.
        decision: What was decided on its execution, which is recorded.
        module_id: The module's id, as a number.
        has_ended: Whether its module has ended.
        span: The span, once somebody has looked at it.
    """

    __slots__ = ("around", "decision", "has_ended", "module_id", "span")

    around: Context
    decision: Decision
    has_ended: bool
    module_id: int
    span: BodySpan | None
    _module_name = ""

    @property
    def module_name(self) -> str:
        """The module's name, where the engine has said it."""
        return self._module_name

    @module_name.setter
    def module_name(self, name: str) -> None:
        self._module_name = name
        if self.span is not None:
            self.span.module_name = name

    @property
    def execution_id(self) -> UUID | None:
        """The execution's id, where it is known."""
        return self.decision.execution_id

    def current(self) -> BodySpan:
        """The module's span, the same one for all who look."""
        span = self.span
        if span is None:
            made = BodySpan(self.decision, self.module_id, self._module_name)
            # of threads that come at once, all get the first one's
            span = self.span = self.__dict__.setdefault("made", made)
            # whoever ends it says so before looking for the span
            if self.has_ended:
                span.close()
        return span

    def close(self) -> None:
        """Ends it; what is set from now on does nothing, with the SDK's own warning."""
        self.has_ended = True
        if self.span is not None:
            self.span.close()

    def get(self, key: str, default: Any = None) -> Any:
        if key == CURRENT_SPAN:
            return self.current()
        # which is as good as the span, and makes none
        return self if key == RUNNING else self.around.get(key, default)

    def copy(self) -> dict[str, Any]:
        span = self.current()
        return {**self.around, CURRENT_SPAN: span, RUNNING: span}

    def __getitem__(self, key: str) -> Any:
        return self.copy()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self.copy())

    def __len__(self) -> int:
        return len(self.around) + (CURRENT_SPAN not in self.around) + (RUNNING not in self.around)

    def __eq__(self, other: object) -> bool:
        return self.copy() == other

    def __ne__(self, other: object) -> bool:
        return self.copy() != other

    __hash__ = None  # type: ignore[assignment] # as of every dictionary

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __repr__(self) -> str:
        return repr(self.copy())

    def keys(self) -> Any:
        return self.copy().keys()

    def values(self) -> Any:
        return self.copy().values()

    def items(self) -> Any:
        return self.copy().items()
