"""Runs commands as a user does: in a process of their own, with a real OTLP endpoint, warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver

ROOT = Path(__file__).parent.parent
SERVICE = "shop"


def run_command(receiver: Receiver, command: str, **variables: str) -> tuple[str, str]:
    """Runs a shell command in the checkout, with the environment's programs first on the path.

    Args:
        receiver: Where the command's telemetry goes, over gRPC, unless ``variables`` say otherwise.
        command: For bash.
        **variables: Of the environment, in addition.

    Returns:
        What it wrote: to standard output, and to standard error.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
        "OTEL_SERVICE_NAME": SERVICE,
        "PYTHONWARNINGS": "error",
        **variables,
    }
    arguments = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr
