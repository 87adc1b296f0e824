"""How tests start other processes, which find the tests' modules."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

DEEPREC = [sys.executable, "-c", "import command_line; command_line.slow_main()"]
"""The command `deeprec`, with the stand-in for MiniLM."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
