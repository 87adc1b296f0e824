"""How tests start other processes, which find the tests' modules."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEEPREC = [sys.executable, "-c", "import command_line; command_line.slow_main()"]
"""The command `deeprec`, with the stand-in for MiniLM."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def stopped(command: Sequence[Any], sign: signal.Signals, reached: Callable[[], bool]) -> tuple[int, str]:
    """The exit status and the errors of a command that gets `sign` once it has `reached` a point."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err
