"""Events into a JSON lines file or to standard output; how their bytes get there is in ``files``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

from constellation_otel._support.deadline import deadline_of
from constellation_otel.delivery import BufferedListener, ListenerOptions, Sink
from constellation_otel.errors import ConfigurationError
from constellation_otel.events import Event, encode_json
from constellation_otel.transports.jsonl.files import STANDARD, Appended, StandardOutput, checked_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from constellation_otel.delivery import Rejection
    from constellation_otel.transports.url import SinkOptions

__all__ = ["JsonlListener", "JsonlSink"]


class JsonlSink(Sink[Event]):
    """Appends events to a JSON lines file, or to standard output.

    When :meth:`send` returns, the lines are on the disk: they outlive a crash of the
    process and of the machine. A batch that fails, as on a full disk, leaves no part of
    it in the file. A line that a crash has torn is ended when the file is next opened,
    so that it is the only one that cannot be read.

    A file is created where there is none, with the mode that the umask leaves of 0o666,
    and again where it is moved away; its folder is not created. One process at a time
    writes a file.

    Standard output gets the lines at once; how safe they are then is up to its reader. A slow
    reader is waited for; the rest of a line that was written in part comes first the next time.

    Nothing is opened before the first :meth:`send`.

    Args:
        path: The file. ``-`` is standard output.
        takes_details: Whether modules that did not run get a line, too.

    Raises:
        ConfigurationError: The path cannot be one, or ends in ``.gz``: gzip is read, and not written.
    """

    def __init__(self, path: str | Path, *, takes_details: bool = False) -> None:
        self.takes_details = takes_details
        checked = checked_path(path)
        if checked.endswith(".gz"):
            plain = checked.removesuffix(".gz")
            message = (
                f"{checked} would be gzip, which is read but not written; give {plain!r}, and compress it with gzip"
                " when nothing writes to it any more"
            )
            raise ConfigurationError(message)
        self._output = StandardOutput() if checked == STANDARD else Appended(checked)

    @classmethod
    def from_url(cls, url: str, options: SinkOptions) -> Self:
        """Makes one from ``jsonl:file``, or ``jsonl:-``; everything behind the colon is the path."""
        return cls(url.partition(":")[2], takes_details=options.takes_details)

    @property
    def name(self) -> str:
        return "jsonl"

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Appends a line for each event.

        Args:
            items: The events.
            timeout: Seconds; how long a disk takes is the system's business.

        Returns:
            Nothing: no event is refused.

        Raises:
            MisconfiguredError: The folder does not exist, the file must not be written, or is not a file.
            GoneError: The program that read standard output has ended, as ``head`` does.
            UnavailableError: The disk is full, or failed, and the file is as before; or
                standard output is read too slowly, and ``delivered`` says what it has.
        """
        self._output.write([encode_json(event) + b"\n" for event in items], deadline_of(timeout))
        return ()

    def close(self) -> None:
        """Closes the file; standard output stays open."""
        self._output.close()


class JsonlListener(BufferedListener[Event]):
    """Appends every event to a JSON lines file, in the background.

    Its lines are what :class:`JsonlSink` writes.

    Args:
        path: The file. ``-`` is standard output.
        takes_details: Whether modules that did not run get a line, too.
        **options: See :class:`~constellation_otel.delivery.ListenerOptions`.

    Raises:
        ConfigurationError: The path cannot be one, or ends in ``.gz``.
        JournalError: The journal cannot be used.
    """

    def __init__(self, path: str | Path, *, takes_details: bool = False, **options: Unpack[ListenerOptions]) -> None:
        super().__init__(JsonlSink(path, takes_details=takes_details), **options)
