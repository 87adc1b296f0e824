"""What this machine offers DeepRec, and what is missing, each with the command that helps."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from deeprec import assets
from deeprec.runs import cores

CORE = ("numpy", "polars", "pydantic", "requests")
LOCAL = ("torch", "transformers", "safetensors", "gguf", "peft")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
MEMORY_NEEDED = 3e9  # bytes: SmolLM2 in float32, its conversion, and the TRM
ROOM_NEEDED = 1e9  # bytes: all assets while they download

Level = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `hint` says what to do where `level` is not "ok"."""

    name: str
    value: str
    level: Level = "ok"
    hint: str = ""


def examine() -> list[Finding]:
    """Look at versions, processor, memory, GPU, cache and assets.

    Compares the sha256 of every cached asset (about a second) and imports torch, if it is installed, to look for a
    GPU. Raises nothing: what cannot be found out is a finding too.
    """
    return [*_versions(), *_processor(), _memory(), _gpu(), _cache(), *_assets()]


def _versions() -> list[Finding]:
    findings = [Finding("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")]
    for name, remedy in (
        ("deeprec", "pip install -e ."),
        *((name, "pip install deeprec") for name in CORE),
        *((name, "pip install --editable '.[local]'") for name in LOCAL),
    ):
        try:
            findings.append(Finding(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", "missing", f"run `{remedy}`"))
    return findings


def _processor() -> list[Finding]:
    usable = float(cores())
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        usable = min(usable, int(quota[0]) / int(quota[1]))
    findings = [Finding("cores", f"{usable:g}")]
    flags = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), "").split()
    if flags:
        present = [feature for feature in CPU_FEATURES if feature in flags]
        findings.append(
            Finding("cpu features", ", ".join(present))
            if present
            else Finding("cpu features", "no AVX2", "warn", "language models will be slow on this processor")
        )
    return findings


def _memory() -> Finding:
    """Available memory of the machine or of the container, whichever is less."""
    table = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    try:
        total, free = (int(table[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return Finding("memory", "unknown", "warn", "have at least 3 GB free for SmolLM2")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip()
        total, free = int(limit), min(free, int(limit) - int(used or 0))
    value = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if free < MEMORY_NEEDED:
        return Finding("memory", value, "warn", "SmolLM2 needs about 3 GB; close what you do not need")
    return Finding("memory", value)


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a torch whose libraries do not load
        absent = isinstance(error, ModuleNotFoundError)
        hint = "install torch first" if absent else f"torch does not load ({error}); install it again"
        return Finding("gpu", "unknown", "missing" if absent else "warn", hint)
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Finding("gpu", ", ".join(f"{d.name} {d.total_memory / 1e9:.0f} GB" for d in devices))
    if torch.backends.mps.is_available():
        return Finding("gpu", "Apple MPS")
    if Path("/dev/nvidiactl").exists():
        hint = "install the CUDA build of torch for your driver"
        return Finding("gpu", "present, but torch cannot use it", "warn", hint)
    return Finding("gpu", "none (the small model and the TRM run on the processor)")


def _cache() -> Finding:
    folder = assets.cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("cache", f"{folder} (cannot be written)", "warn", "name another folder in DEEPREC_CACHE")
    free = shutil.disk_usage(existing).free
    value = f"{folder} ({free / 1e9:.1f} GB free)"
    if free < ROOM_NEEDED:
        return Finding("cache", value, "warn", "make room, or name another folder in DEEPREC_CACHE")
    return Finding("cache", value)


def _assets() -> list[Finding]:
    findings = []
    for name in assets.ASSETS:
        hint = f"run `deeprec assets get {name}`"
        try:
            status = assets.verify(name)
        except OSError as error:
            findings.append(Finding(name, f"cannot be read ({error})", "warn", "mend the cache's permissions"))
            continue
        if status.state == "ready":
            findings.append(Finding(name, f"{status.size / 1e6:,.0f} MB from {status.source}"))
        elif status.state == "missing":
            findings.append(Finding(name, f"not fetched ({status.size / 1e6:,.0f} MB)", "missing", hint))
        else:
            findings.append(Finding(name, status.problem, "warn", hint))
    return findings


def _read(path: str) -> str:
    """The text of a system file; '' where there is none, as on other systems."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
