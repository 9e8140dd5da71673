"""Whether two names are of one file."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["names_of_file"]


def names_of_file(path: str | os.PathLike[str]) -> set[object]:
    """What two paths of one file have in common, links of both kinds included; nothing is opened."""
    names: set[object] = {os.path.realpath(path)}
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return names  # there is none yet, or can be none: who opens it says so
    return names | {(status.st_dev, status.st_ino)}
