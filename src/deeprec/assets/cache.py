"""The cache: whole assets or nothing.

Every asset has its own folder in the cache. It appears there complete or not at all: its files gather in a hidden
folder beside it, are checked, and the folder is renamed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import platformdirs
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from deeprec.assets import downloads
from deeprec.assets.downloads import Source, SourceError, sha256_of
from deeprec.assets.table import ASSETS, Asset
from deeprec.errors import DeepRecError

MANIFEST = "asset.json"


@dataclass(frozen=True)
class AssetStatus:
    """What the cache holds of an asset. `size` is in bytes: on disk if it is ready, else to download."""

    name: str
    kind: str
    licence: str
    purpose: str
    state: Literal["ready", "missing", "altered"]
    folder: Path
    size: int
    source: str = ""
    problem: str = ""


class _Entry(BaseModel):
    size: int
    sha256: str


class _Manifest(BaseModel):
    """The file that marks a folder of the cache as whole. A cache of an earlier DeepRec has no `format_version`."""

    asset: str
    format_version: int = 1
    source: str
    licence: str
    files: dict[str, _Entry]


def cache_folder() -> Path:
    """The folder of all assets: `DEEPREC_CACHE`, or else the platform's folder for caches."""
    folder = os.environ.get("DEEPREC_CACHE") or platformdirs.user_cache_dir("deeprec")
    return Path(folder).expanduser().absolute()


def fetch(name: str, *, offline: bool = False, read_all: bool = False) -> Path:
    """The ready folder of an asset, fetched first if the cache lacks it or its copy was altered.

    A copy counts as whole by the sizes of its files, with `read_all` by their sha256 too. Nothing half done stays
    behind. DeepRecError for an unknown name, if no source (or, `offline`, the cache) has it, or on a full disk.
    """
    asset = _asset(name)
    try:
        return _fetch(asset, offline, read_all)
    except OSError as error:  # sources word their own errors, so this one is the file system's
        raise DeepRecError(
            f"{name} cannot be kept in {cache_folder()} ({error.strerror or error}); make room there, mend its "
            "permissions, or name another folder in DEEPREC_CACHE."
        ) from error


def locate(name: str) -> Path | None:
    """The ready folder of an asset, or None where the cache lacks it; DeepRecError for an unknown name."""
    status = _inspect(_asset(name))
    return status.folder if status.state == "ready" else None


def statuses() -> list[AssetStatus]:
    """What the cache holds of each asset, by the sizes of its files."""
    return [_inspect(asset) for asset in ASSETS.values()]


def verify(name: str) -> AssetStatus:
    """Like an entry of `statuses`, but by the sha256 of every file (a second or two a GB)."""
    return _inspect(_asset(name), read_all=True)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise DeepRecError(f"There is no asset {name!r}; the known ones are {', '.join(ASSETS)}.")
    return ASSETS[name]


def _fetch(asset: Asset, offline: bool, read_all: bool) -> Path:
    status = _inspect(asset, read_all=read_all)
    if status.state == "ready":
        return status.folder
    if offline:
        lack = status.problem or f"{asset.name} is not in the cache {cache_folder()}"
        raise DeepRecError(f"{lack}; run `deeprec assets get {asset.name}` once with a network.")
    if status.state == "altered":
        _say(f"{status.problem}; fetching it again")
    _check_requirements(asset)
    with _staging(asset) as staging:
        if _inspect(asset, read_all=read_all).state == "ready":  # another process fetched it while we waited
            return status.folder
        _check_disk_space(asset)
        ready, source = _gather(asset, staging)
        if asset.build is not None:
            _say(f"preparing {asset.name} (once, about a minute)")
            asset.build(ready)
        _write_manifest(asset, source, ready)
        if status.folder.exists():
            status.folder.rename(staging / "old")
        ready.rename(status.folder)
    return status.folder


def _inspect(asset: Asset, *, read_all: bool = False) -> AssetStatus:
    folder, size = cache_folder() / asset.name, asset.sources[0].size
    status = AssetStatus(asset.name, asset.kind, asset.licence, asset.purpose, "missing", folder, size)
    if not folder.exists():
        return status
    try:
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        problem = f"lacks a readable {MANIFEST}"
    else:
        problem = _problem(asset, manifest, folder, read_all)
    if problem:
        return replace(status, state="altered", problem=f"the cached {asset.name} {problem}")
    size = sum(entry.size for entry in manifest.files.values())
    return replace(status, state="ready", size=size, source=manifest.source)


def _problem(asset: Asset, manifest: _Manifest, folder: Path, read_all: bool) -> str:
    """What is wrong with a folder, '' where it is whole."""
    sums = {(name, entry.sha256) for name, entry in manifest.files.items()}
    published = any({(file.name, file.sha256) for file in source.files} <= sums for source in asset.sources)
    if manifest.format_version != asset.format_version or not published:
        return "is of another version of DeepRec"
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"lacks its file {name}"
        if (found := path.stat().st_size) != entry.size:
            return f"was altered ({name} has {found:,} bytes instead of {entry.size:,})"
        if read_all and sha256_of(path) != entry.sha256:
            return f"was altered ({name} fails its sha256)"
    return ""


def _check_requirements(asset: Asset) -> None:
    lacking = [module for module in asset.requires if importlib.util.find_spec(module) is None]
    if lacking:
        needs = f"{asset.name} needs the modules {', '.join(lacking)}, which are not installed"
        raise DeepRecError(f"{needs}; run `pip install --editable '.[local]'`.")


def _check_disk_space(asset: Asset) -> None:
    free = shutil.disk_usage(cache_folder()).free
    if free < asset.disk_space:
        raise DeepRecError(
            f"{asset.name} needs {asset.disk_space / 1e6:,.0f} MB while it is fetched and {cache_folder()} has "
            f"{free / 1e6:,.0f} MB free; make room there or name another folder in DEEPREC_CACHE."
        )


def _gather(asset: Asset, staging: Path) -> tuple[Path, Source]:
    failures = []
    for number, source in enumerate(asset.sources):
        ready, work = staging / f"ready-{number}", staging / f"work-{number}"
        ready.mkdir()
        work.mkdir()
        try:
            _say(f"{asset.name} from {source.label}, {source.size / 1e6:,.0f} MB")
            with downloads.progress(source.size) as report:
                source.gather(ready, work, report)
            return ready, source
        except SourceError as error:
            failures.append(f"{source.label} {error}")
            if number + 1 < len(asset.sources):
                _say(f"{failures[-1]}; trying the next source")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(ready, ignore_errors=True)
    raise DeepRecError(
        f"{asset.name} could not be fetched: {'; '.join(failures)}. Nothing was kept; check the network (or "
        f"HF_ENDPOINT and pip's index) and run `deeprec assets get {asset.name}` again."
    )


def _write_manifest(asset: Asset, source: Source, ready: Path) -> None:
    paths = [path for path in sorted(ready.rglob("*")) if path.is_file()]
    files = {p.relative_to(ready).as_posix(): _Entry(size=p.stat().st_size, sha256=sha256_of(p)) for p in paths}
    manifest = _Manifest(
        asset=asset.name, format_version=asset.format_version, source=source.label, licence=asset.licence, files=files
    )
    (ready / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


@contextmanager
def _staging(asset: Asset) -> Iterator[Path]:
    """A folder in the cache for the one process that may fetch the asset now; leftovers of killed ones are removed."""
    cache, prefix = cache_folder(), f".{asset.name}.part-"
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / f".{asset.name}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        _say(f"waiting for another process that is fetching {asset.name}")
        held = lock.acquire()
    with held:
        for leftover in cache.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as staging:
            yield Path(staging)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
