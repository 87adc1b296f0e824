"""The development data beside the repository, which is no part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def shared(name: str) -> Path:
    """The folder of a set; skips the test where it is absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"the development data is absent: no folder ../shared/data/{name} beside the repository")
    return SHARED / name
