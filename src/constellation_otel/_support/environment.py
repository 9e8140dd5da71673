"""Parts of the SDK that read the environment themselves: what they raise, as one error that names the variable."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["configured"]


@contextmanager
def configured(*prefixes: str) -> Iterator[None]:
    """Names the variables of a part of the SDK's that cannot be made.

    Args:
        *prefixes: How those begin that it reads.

    Raises:
        ConfigurationError: Instead of whatever the part raises.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - parts of the SDK, and its plug-ins, raise all kinds
        reason = f"{type(error).__name__}: {error}"
        found = {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)}
        named = [name for name, value in found.items() if name in reason or value.strip() in reason]
        message = (
            f"{' or '.join(named or found) or ' or '.join(prefixes)} cannot be used: {reason}; correct or unset it"
        )
    else:
        return
    raise ConfigurationError(message)
