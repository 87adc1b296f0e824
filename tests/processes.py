"""How tests start other processes that find the tests' modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEEPREC = [sys.executable, "-c", "import test_cli; test_cli.slow_main()"]
"""`deeprec` with the stand-in for MiniLM."""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
