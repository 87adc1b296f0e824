"""Where a number comes from: machine, versions, commit and command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """The machine: `cpu` model, `cores` this process may use, `memory_gib`, `gpu` name or None, `os`.

    The GPU is named only where torch has been imported already, since importing it takes seconds.
    """
    torch = sys.modules.get("torch")
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "gpu": str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None,
        "os": f"{platform.system()} {platform.machine()}",
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that move numbers, where they are installed."""
    found = {"python": platform.python_version()}
    for package in ("deeprec", "torch", "transformers", "openvino-genai", "polars"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def commit() -> str | None:
    """Git commit of this code, with "-dirty" after local changes; None outside a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # An installed copy may lie in a folder that another project's repository ignores.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(command: Sequence[str]) -> dict[str, str]:
    """Command, date (UTC), hardware, versions and commit, each as one line of text for a report."""
    machine = hardware()
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_gib']} GiB", machine["gpu"]]
    lines = {
        "command": " ".join(command),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "hardware": ", ".join(part for part in (*parts, machine["os"]) if part),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    revision = commit()
    return lines | ({"commit": revision} if revision else {})


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None
