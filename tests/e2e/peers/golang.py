"""The Go toolchain: which version is needed, how it is told, and where its caches go."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from .artifact import MissingPeerError, cache_root

if TYPE_CHECKING:
    from collections.abc import Mapping

_MINIMUM: Final = (1, 26, 7)
_MINIMUM_TEXT: Final = ".".join(map(str, _MINIMUM))
# The first release that can fetch a newer toolchain for itself.
_FETCHES_TOOLCHAINS: Final = (1, 21, 0)
# The first `go version` after GOTOOLCHAIN was set downloads that toolchain.
_FETCH_DEADLINE_S: Final = 600.0


class GoToolchain:
    """The `go` command of the PATH."""

    settings: Final[Mapping[str, str]] = {
        # Static binaries: no C compiler is needed and no library can differ.
        "CGO_ENABLED": "0",
        "GOWORK": "off",
        # The locks are law; nothing of this machine's paths or of a repository around the cache goes into a binary.
        # Flags that a developer has set for everyday work are replaced.
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
    }

    @functools.cache  # noqa: B019 - there is one instance
    def version(self) -> str:
        """What `go version` prints, checked.

        Raises:
            MissingPeerError: There is no Go, or it is too old.
        """
        if shutil.which("go") is None:
            message = (
                f"Go {_MINIMUM_TEXT} or newer is needed, and there is no `go` in the PATH. Install it: "
                f"`apt-get install golang-go` where that is new enough, otherwise the Go project's own archive, "
                f"unpacked to /usr/local/go (then `export PATH=$PATH:/usr/local/go/bin`)."
            )
            raise MissingPeerError(message)
        asked = subprocess.run(
            ["go", "version"],
            env={**os.environ, **self.environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_DEADLINE_S,
            check=False,
        )
        printed = asked.stdout.strip()
        match = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", printed)
        if asked.returncode != 0 or match is None:
            message = f"`go version` failed with exit code {asked.returncode}: {printed} {asked.stderr.strip()}"
            raise MissingPeerError(message)
        found = tuple(int(part or 0) for part in match.groups())
        if found < _MINIMUM:
            message = f"Go {_MINIMUM_TEXT} or newer is needed; `go version` says {printed}. "
            if found >= _FETCHES_TOOLCHAINS:
                message += f"It can fetch the newer one itself: `export GOTOOLCHAIN=go{_MINIMUM_TEXT}`."
            else:
                message += "Install a newer one, for example from the Go project's own archive to /usr/local/go."
            raise MissingPeerError(message)
        return printed

    def environment(self) -> Mapping[str, str]:
        """The settings; which toolchain; and where there is no home folder, caches beside ours."""
        # Unless the user says otherwise: the version in use must not depend on which go.mod is asked.
        found = {**self.settings, "GOTOOLCHAIN": os.environ.get("GOTOOLCHAIN") or "local"}
        home = os.environ.get("HOME")
        if not (home and os.access(home, os.W_OK)):
            found["GOPATH"] = os.environ.get("GOPATH") or str(cache_root() / "go")
            found["GOCACHE"] = os.environ.get("GOCACHE") or str(cache_root() / "go-build")
            # Go makes its module cache read-only; this one can be removed with a plain rm -r.
            found["GOFLAGS"] += " -modcacherw"
        return found


GO: Final = GoToolchain()
