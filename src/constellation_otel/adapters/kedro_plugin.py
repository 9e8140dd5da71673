"""What Kedro's entry point for plugins loads: hooks where this process is instrumented, and otherwise none.

It has a module of its own since Kedro loads it in every project, and this one imports next to nothing.
"""

from __future__ import annotations

from typing import Any, Final

from constellation_otel.automatic import further_listener

__all__ = ["hooks"]  # noqa: F822 - __getattr__ has it


class _NoHooks:
    """A plugin that takes part in nothing."""


_NO_HOOKS: Final = _NoHooks()


def __getattr__(name: str) -> Any:
    if name != "hooks":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    # asked anew for each session, whose project has its settings by then
    further = further_listener()
    if further is None:
        return _NO_HOOKS
    from constellation_otel.adapters.kedro import further_hooks  # noqa: PLC0415 - only where it is needed

    return further_hooks(further) or _NO_HOOKS
