"""Chromium, for the page that `show --html` writes: the system's own, without a window and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from .package import Package


def _program() -> Path | None:
    # Debian's name, and those of other systems.
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((Path(path) for path in found if path is not None), None)


ARTIFACT: Final = Package(
    "chromium", "chromium", "install Chromium (Debian: apt-get install chromium) with its program in PATH", _program
)

OPTIONS: Final = (
    # It refuses to run as root otherwise; it opens files of ours only.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
"""So that it asks nothing of anybody by itself."""
