"""The doctor's findings, on this machine and on poorer ones."""

from __future__ import annotations

import builtins
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeprec import assets
from deeprec.cli import doctor
from deeprec.cli.doctor import Finding


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def finding(name: str) -> Finding:
    (found,) = [finding for finding in doctor.examine() if finding.name == name]
    return found


def test_every_line_is_there_once_and_every_fault_has_a_remedy() -> None:
    findings = doctor.examine()
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"python", "deeprec", "torch", "polars", "cores", "memory", "gpu", "cache"} <= set(names)
    assert set(assets.ASSETS) <= set(names)
    assert all(finding.value for finding in findings)
    assert all(finding.hint for finding in findings if finding.level != "ok")
    assert all(not finding.hint for finding in findings if finding.level == "ok")


def test_a_missing_asset_names_the_command() -> None:
    found = finding("ml-100k")
    assert (found.level, found.hint) == ("missing", "run `deeprec assets get ml-100k`")


def test_an_altered_asset_is_told(cache: Path) -> None:
    (cache / "ml-100k").mkdir(parents=True)
    found = finding("ml-100k")
    assert found.level == "warn"
    assert "lacks a readable asset.json" in found.value


def test_an_asset_that_cannot_be_read_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(assets, "verify", refuse)
    found = finding("minilm-l6")
    assert found.level == "warn"
    assert "Permission denied" in found.value


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "gguf":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = finding("gguf")
    assert (found.level, found.hint) == ("missing", "run `pip install --editable '.[local]'`")
    assert finding("polars") == Finding("polars", real("polars"))


@pytest.mark.parametrize(
    ("error", "level"), [(ModuleNotFoundError("No torch"), "missing"), (OSError("libcuda"), "warn")]
)
def test_torch_absent_or_broken_is_a_finding(error: Exception, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **more: Any) -> Any:
        if name == "torch":
            raise error
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert finding("gpu").level == level


def test_little_memory_and_room_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n",
        "/proc/cpuinfo": "processor : 0\nflags : fpu sse2\n",
        "/sys/fs/cgroup/cpu.max": "50000 100000\n",
    }
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    assert finding("memory").value == "1.0 of 2.0 GB available"
    assert finding("cores") == Finding("cores", "0.5")
    assert [finding(name).level for name in ("memory", "cpu features", "cache")] == ["warn"] * 3


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n",
        "/sys/fs/cgroup/memory.max": "8000000000\n",
        "/sys/fs/cgroup/memory.current": "1500000000\n",
    }
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    assert finding("memory") == Finding("memory", "6.5 of 8.0 GB available")


def test_a_cache_that_is_a_file_is_warned_of(cache: Path) -> None:
    cache.write_text("")
    assert finding("cache").level == "warn"
    assert "DEEPREC_CACHE" in finding("cache").hint
