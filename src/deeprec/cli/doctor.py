"""`deeprec doctor`: what this machine offers, and what is missing, each with the command that helps."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from deeprec.cli.options import Options

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


def doctor(options: Options) -> None:
    """Versions, processor, GPU, assets, and what is missing."""
    from rich.text import Text

    from deeprec.cli.console import show_table

    options.config()
    colours = {"ok": "green", "warn": "yellow", "missing": "red"}
    rows = ((each.name, each.value, Text(each.level, colours[each.level]), each.hint) for each in examine())
    show_table(options.console, ("what", "found", "", "hint"), rows)


def examine() -> list[Finding]:
    """Look at versions, processor, memory, GPU, cache and assets; what cannot be found out is a finding too."""
    return [*_versions(), *_processor(), _memory(), _gpu(), _cache(), *_assets()]


def _warn_unless(fine: bool, name: str, value: str, hint: str) -> Finding:
    return Finding(name, value) if fine else Finding(name, value, "warn", hint)


def _versions() -> list[Finding]:
    findings = [Finding("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")]
    sources = {"deeprec": "-e .", **dict.fromkeys(CORE, "deeprec"), **dict.fromkeys(LOCAL, "--editable '.[local]'")}
    for name, source in sources.items():
        try:
            findings.append(Finding(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", "missing", f"run `pip install {source}`"))
    return findings


def _processor() -> list[Finding]:
    from deeprec.runs import cores

    quota = re.match(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    usable = min(cores(), int(quota[1]) / int(quota[2])) if quota else cores()
    findings = [Finding("cores", f"{usable:g}")]
    if flags := re.search(r"^flags.*", _read("/proc/cpuinfo"), re.MULTILINE):
        present = ", ".join(feature for feature in CPU_FEATURES if feature in flags[0].split())
        hint = "language models will be slow on this processor"
        findings.append(_warn_unless(bool(present), "cpu features", present or "no AVX2", hint))
    return findings


def _memory() -> Finding:
    """Available memory of the machine or of the container, whichever is less."""
    kilobytes = dict(re.findall(r"^(\w+): *(\d+)", _read("/proc/meminfo"), re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= kilobytes.keys():
        return Finding("memory", "unknown", "warn", "have at least 3 GB free for SmolLM2")
    total, free = (int(kilobytes[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip()
        total, free = int(limit), min(free, int(limit) - int(used or 0))
    value = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB available"
    return _warn_unless(free >= MEMORY_NEEDED, "memory", value, "SmolLM2 needs about 3 GB; close what you do not need")


def _gpu() -> Finding:
    try:
        import torch
    except ModuleNotFoundError:
        return Finding("gpu", "unknown", "missing", "install torch first")
    except (ImportError, OSError) as error:  # OSError: a torch whose libraries do not load
        return Finding("gpu", "unknown", "warn", f"torch does not load ({error}); install it again")
    if torch.cuda.is_available():
        devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return Finding("gpu", ", ".join(f"{d.name} {d.total_memory / 1e9:.0f} GB" for d in devices))
    if torch.backends.mps.is_available():
        return Finding("gpu", "Apple MPS")
    if Path("/dev/nvidiactl").exists():
        hint = "install the CUDA build of torch for your driver"
        return Finding("gpu", "present, but torch cannot use it", "warn", hint)
    return Finding("gpu", "none (the small model and the TRM run on the processor)")


def _cache() -> Finding:
    from deeprec.assets import cache_folder

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("cache", f"{folder} (cannot be written)", "warn", "name another folder in DEEPREC_CACHE")
    free = shutil.disk_usage(existing).free
    hint = "make room, or name another folder in DEEPREC_CACHE"
    return _warn_unless(free >= ROOM_NEEDED, "cache", f"{folder} ({free / 1e9:.1f} GB free)", hint)


def _assets() -> list[Finding]:
    from deeprec import assets

    findings = []
    for name in assets.ASSETS:
        hint = f"run `deeprec assets get {name}`"
        try:
            status = assets.verify(name)
        except OSError as error:
            findings.append(Finding(name, f"cannot be read ({error})", "warn", "mend the cache's permissions"))
            continue
        size = f"{status.size / 1e6:,.0f} MB"
        if status.state == "missing":
            findings.append(Finding(name, f"not fetched ({size})", "missing", hint))
        else:
            value = status.problem or f"{size} from {status.source}"
            findings.append(_warn_unless(status.state == "ready", name, value, hint))
    return findings


def _read(path: str) -> str:
    """The text of a system file; '' where there is none, as on other systems."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
