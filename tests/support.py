"""What tests of several modules need."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
DEADLINE = 30.0
"""Seconds that anything in these tests may take before it counts as hanging."""
UNWATCHED = pytest.mark.unwatched
"""Marks a test whose code others cover as well, and that takes twice as long while its lines are noted."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Polls a condition that nothing announces, with a deadline.

    Raises:
        AssertionError: It did not come true; with ``what`` was awaited.
    """
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        pause.wait(0.005)


def in_threads(count: int, function: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Calls a function in so many threads at the same time, and waits for them.

    Raises:
        AssertionError: One has not ended in time.
    """
    threads = [threading.Thread(target=function, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), f"not within {timeout} s: a thread has ended"


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Makes calls that mostly wait, each in a thread of its own; what they returned, or the first that raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a size, ``64k`` or ``16m``, mounted on a new folder; the test fails where that cannot be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.fail("this test mounts a small disk, and there is no mount command: apt-get install mount")
    if done.returncode:
        pytest.fail(f"this test mounts a small disk: run it as root, where mounting is allowed ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=60, check=True)


def self_signed(folder: Path, name: str, alternative: str) -> tuple[str, str]:
    """Makes a certificate and its key, for two days: the files of both.

    Args:
        folder: Where they are put.
        name: Of the files, and in the certificate.
        alternative: Whom it is for, as ``IP:127.0.0.1`` or ``DNS:other.example``.
    """
    certificate, key = f"{folder}/{name}.pem", f"{folder}/{name}.key"
    line = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    line += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", f"subjectAltName={alternative}"]
    try:
        subprocess.run([*line, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.fail("this test makes certificates, and there is no openssl: apt-get install openssl")
    return certificate, key
