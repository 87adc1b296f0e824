"""A run's folder: resolved configuration, manifest, metrics as JSON lines, checkpoints."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic_core import to_jsonable_python

from deeprec.config import Config, dump_config, load_config
from deeprec.errors import DeepRecError, one_line
from deeprec.runs.environment import commit, hardware, versions

Status = Literal["running", "finished", "interrupted", "failed"]


class JsonLines:
    """A file of one JSON object a line, which survives a writer that is killed.

    Every append reaches the operating system before it returns, so kill -9 tears at most the last line.
    Reading skips torn lines and counts them in `dropped`; the next append starts a new line after one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one object; numbers that JSON lacks (nan, inf) become null. DeepRecError if the disk is full."""
        line = json.dumps(to_jsonable_python(record, inf_nan_mode="null"), allow_nan=False).encode() + b"\n"
        with explaining_full_disk(self.path), open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every whole object in order; `dropped` counts the lines that this pass has skipped so far."""
        self.dropped = 0
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                record = _object(line)
                if record is not None:
                    yield record
                elif line.strip():
                    self.dropped += 1


class Run:
    """One run's folder. As a context manager it records how the run ended and lets the exception go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.toml"
        self.manifest_path = path / "manifest.json"
        self.checkpoints = path / "checkpoints"
        self.metrics = JsonLines(path / "metrics.jsonl")
        self._since = time.monotonic()
        self._held: AcquireReturnProxy[FileLock]

    @classmethod
    def create(
        cls,
        root: Path,
        name: str | None,
        config: Config,
        command: list[str],
        *,
        kind: str,
        fingerprint: str | None = None,
    ) -> Run:
        """A new folder `<root>/<UTC time>-<name>`; `name` defaults to `kind` ("trm", "eval", ...).

        DeepRecError if it can't be written.
        """
        now = datetime.now(UTC)
        label = re.sub(r"[^\w.-]+", "-", name or kind).strip("-.")
        run = cls(_new_folder(root, f"{now:%Y%m%dT%H%M%SZ}-{label}"))
        with explaining_full_disk(run.path):
            run.checkpoints.mkdir()
            run.config_path.write_text(dump_config(config), encoding="utf-8")
        # The manifest comes last: a folder that has one is complete.
        manifest: dict[str, Any] = {"kind": kind, "command": command, "created": now.isoformat(timespec="seconds")}
        manifest |= {"status": "running", "wall_seconds": 0.0, "dataset": fingerprint}
        run._write_manifest(manifest | {"versions": versions(), "commit": commit(), "hardware": hardware()})
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run; DeepRecError if the folder is not a run's."""
        run = cls(path)
        if _read_manifest(run.manifest_path) is None or not run.config_path.exists():
            raise DeepRecError(f"{path} is not a run's folder: give one that `deeprec runs` lists.")
        return run

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now; DeepRecError if it was removed or damaged since the run was opened."""
        if manifest := _read_manifest(self.manifest_path):
            return manifest
        raise DeepRecError(f"{self.manifest_path} is missing or damaged: the run can't be read.")

    def record(self, **fields: Any) -> None:
        """Set fields of the manifest that are known only later, as the fingerprint of the data."""
        self._write_manifest(self.manifest | fields)

    def append_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`: the step, seconds since the epoch as `time`, and the values."""
        numbers = {name: float(value) for name, value in values.items()}
        self.metrics.append({"step": step, "time": round(time.time(), 3)} | numbers)

    def finish(self, status: Status, error: str | None = None) -> None:
        """Record how the run ended, and add the seconds since this object was made to `wall_seconds`.

        A run killed outright never gets here and stays "running".
        """
        now = time.monotonic()
        seconds = round(self.manifest["wall_seconds"] + now - self._since, 3)
        self._since = now
        self.record(status=status, wall_seconds=seconds, error=error)

    def __enter__(self) -> Run:
        """Take the run for this process, as `lock` does; a killed one leaves no lock behind."""
        self._held = lock(self.path)
        if self.manifest["status"] != "running":
            self.record(status="running", error=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, KeyboardInterrupt)
        status: Status = "finished" if error is None else "interrupted" if stopped else "failed"
        try:
            self.finish(status, f"{type(error).__name__}: {error}" if status == "failed" else None)
        except DeepRecError as second:
            if error is None:
                raise
            error.add_note(str(second))  # a full disk must not hide why the run ended
        finally:
            self._held.lock.release()

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        scratch = self.manifest_path.with_suffix(".json.tmp")
        with explaining_full_disk(self.path):
            scratch.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            os.replace(scratch, self.manifest_path)


@dataclass(frozen=True)
class RunSummary:
    """A run as a listing shows it; `created` is an ISO time in UTC."""

    path: Path
    kind: str
    status: Status
    created: str
    wall_seconds: float


_SHOWN = ("kind", "status", "created", "wall_seconds")


def list_runs(root: Path) -> list[RunSummary]:
    """The runs under `root`, oldest first; other folders are skipped."""
    manifests = ((path.parent, _read_manifest(path)) for path in sorted(root.glob("*/manifest.json")))
    found = [RunSummary(path, *(manifest[key] for key in _SHOWN)) for path, manifest in manifests if manifest]
    return sorted(found, key=lambda run: run.created)


def matching_runs(
    root: Path, kind: str, config: Config, sections: Sequence[str], origin: Mapping[str, Any], *, ignore: str = ""
) -> Iterator[Run]:
    """Runs of a kind whose configuration has the same sections and whose manifest holds `origin`, latest first.

    `ignore` is a key, as "policy.adapter", that may differ.
    """
    wanted = tomllib.loads(dump_config(config))
    section, _, key = ignore.partition(".")
    for summary in reversed(list_runs(root)):
        if summary.kind != kind:
            continue
        try:
            run = Run.open(summary.path)
            # The file itself, not the parsed configuration, which would fill in keys that are newer than the run.
            written = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
        except (DeepRecError, OSError, ValueError):
            continue
        for tree in (written, wanted):
            tree.get(section, {}).pop(key, None)
        same = all(written.get(name) == wanted[name] for name in sections)
        if same and all(run.manifest.get(name) == value for name, value in origin.items()):
            yield run


def lock(folder: Path) -> AcquireReturnProxy[FileLock]:
    """Reserve a folder for this process until the block ends; a killed process leaves no lock behind.

    DeepRecError if another process is at work in it.
    """
    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise DeepRecError(f"Another process is at work in {folder}: wait for it, or stop it.") from None


def _new_folder(root: Path, name: str) -> Path:
    with explaining_full_disk(root):
        try:
            root.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                path = root / (name if number == 1 else f"{name}-{number}")
                with suppress(FileExistsError):
                    path.mkdir()
                    break
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise DeepRecError(f"The runs folder {root} can't be written ({error.strerror}).") from None
    return path


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, or None where the file is missing, damaged, or another program's."""
    with suppress(OSError):
        manifest = _object(path.read_bytes()) or {}
        return manifest if {*_SHOWN, "command"} <= manifest.keys() else None
    return None


def _object(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else, as for a text that was torn, be it inside a character."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_FULL = 1 << 20  # a disk with fewer free bytes counts as full


@contextmanager
def explaining_full_disk(path: Path) -> Iterator[None]:
    """Turn the errors of writing to a full disk into one DeepRecError; libraries raise kinds of their own."""
    try:
        yield
    except DeepRecError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DeepRecError(f"The disk is full, {path} could not be written: free some space.") from error
        numbered = isinstance(error, OSError) and error.errno is not None  # polars raises some without
        if numbered or not _full(path, error):
            raise
        raise DeepRecError(f"The disk of {path} is full: free some space. ({one_line(error)})") from error


def _full(path: Path, error: Exception) -> bool:
    with suppress(OSError):
        return "No space left" in str(error) or shutil.disk_usage(path).free < _FULL
    return False
