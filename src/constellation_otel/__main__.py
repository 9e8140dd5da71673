"""``constellation-otel`` and ``python -m constellation_otel``."""

from __future__ import annotations

import sys

from constellation_otel.errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Runs the command line; says what to install where the ``[cli]`` extra is missing."""
    try:
        from constellation_otel.cli import cli  # noqa: PLC0415 - it needs the extra
    except MissingExtraError as error:
        sys.exit(str(error))
    cli(prog_name="constellation-otel")


if __name__ == "__main__":
    main()
