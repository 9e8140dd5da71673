"""URLs taken apart, refused without what may be a secret in them, and secrets taken out of what others say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from opentelemetry.sdk.resources import Resource

__all__ = ["Secrets", "SinkOptions", "SourceOptions", "decoded", "split"]


class SourceOptions(NamedTuple):
    """What a source is asked for beside its URL; each source does what it can.

    Attributes:
        follow: Whether to go on with what comes, or to end with what there is.
        execution_id: The only execution to be read, where the source can choose; others give all.
        api_key: For the engine.
        max_reconnect_wait: Seconds between two tries to connect to the engine, at most.
        only_looks: Whether nobody else is to notice: a journal may be another process's, and a topic that is
            followed is so without its consumer group.
    """

    follow: bool = True
    execution_id: UUID | None = None
    api_key: str | None = None
    max_reconnect_wait: float | None = None
    only_looks: bool = False


class SinkOptions(NamedTuple):
    """What a sink is given beside its URL.

    Attributes:
        resource: What sends the spans, for an OTLP endpoint.
        takes_details: Whether events go there of modules that did not run, beside the six kinds of the guide.
    """

    resource: Resource
    takes_details: bool = False


def without_details(url: str) -> tuple[str, bool]:
    """Takes ``details=records`` off a sink's URL, by which it asks for events of modules that did not run.

    ``details=fields`` is what it is without: what is told of a module is in fields of its own events.

    Args:
        url: The URL.

    Returns:
        The URL without it, and whether it asks.

    Raises:
        ConfigurationError: It asks for something else.
    """
    rest, _, query = url.partition("?")
    parts = query.split("&")
    asked = [part.partition("=")[2] for part in parts if part.startswith("details=")]
    if not asked:
        return url, False
    if asked[-1] not in {"fields", "records"}:
        message = f"?details={asked[-1]} cannot be used; give details=fields or details=records"
        raise ConfigurationError(message)
    others = "&".join(part for part in parts if not part.startswith("details="))
    return (f"{rest}?{others}" if others else rest), asked[-1] == "records"


class Secrets:
    """What must not be repeated of a configuration, in logs, errors and names.

    Args:
        values: The secrets; empty ones are none.
        shortest: Characters of a secret, at least: a shorter one would be part of everything.
    """

    def __init__(self, values: Iterable[str | None], *, shortest: int = 1) -> None:
        found = {value for value in values if value and len(value) >= shortest}
        # as a URL has them, too
        found |= {quote(value, safe="", errors="surrogatepass") for value in found}
        # the longest first: one may be a part of another
        self._found = sorted(found, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text, with ``***`` in place of each secret."""
        for secret in self._found:
            text = text.replace(secret, "***")
        return text


def split(url: str, unusable: str) -> SplitResult:
    """Takes a URL with one host apart; its port can be read.

    Args:
        url: The URL.
        unusable: The error's message, which has no part of the URL: any may be a password.

    Raises:
        ConfigurationError: Its host or its port cannot be read.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # not chained: that message has the URL's parts
        raise ConfigurationError(unusable) from None
    return parts


def decoded(user_and_password: str) -> tuple[str, str]:
    """The user and the password before a URL's ``@``."""
    user, _, password = user_and_password.partition(":")
    return unquote(user), unquote(password)
