"""Where an exception passed, from the module's own frame on: what called it says nothing of the error."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["own_frames", "own_part"]

_MAX_FRAMES: Final = 32
_OURS: Final = f"{__name__.partition('.')[0]}."
_REST: Final = r'", line \d+, in [^\n]*\n(?:    [^\n]*\n)*'
_FRAME: Final = rf'  File "[^"\n]*{_REST}'
_OUR_FRAME: Final = rf'  File "[^"\n]*[/\\]constellation_otel[/\\]engine[/\\][^"\n]*{_REST}'
_CALLERS: Final = re.compile(rf"(Traceback \(most recent call last\):\n)(?:{_FRAME})*?(?:{_OUR_FRAME})+(?=  File )")


def own_frames(traceback: TracebackType | None) -> list[tuple[str, int, str]]:
    """File name, line number and function of each frame behind our engine's, the innermost last; 32 at most.

    An executor's frames may stand before our engine's, which has called the module.
    """
    own = traceback
    while own is not None and not _is_ours(own):
        own = own.tb_next
    # the last one stays: of what our own code has raised
    while own is not None and own.tb_next is not None and _is_ours(own):
        own = own.tb_next
    frames: deque[tuple[str, int, str]] = deque(maxlen=_MAX_FRAMES)
    traceback = own or traceback
    while traceback is not None:
        code = traceback.tb_frame.f_code
        # of a frame that has travelled, as on Dask, the longer name is of another function
        name = code.co_qualname if code.co_qualname.endswith(code.co_name) else code.co_name
        frames.append((code.co_filename, traceback.tb_lineno, name))
        traceback = traceback.tb_next
    return list(frames)


def own_part(text: str) -> str:
    """The same of a traceback that another process has written."""
    return _CALLERS.sub(r"\1", text)


def _is_ours(traceback: TracebackType) -> bool:
    return str(traceback.tb_frame.f_globals.get("__name__")).startswith(_OURS)
