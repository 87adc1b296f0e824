"""What is available now: a file of ids that another program keeps up to date while the server runs."""

from __future__ import annotations

import logging
from pathlib import Path

from deeprec.data.filters import read_ids
from deeprec.errors import DeepRecError

_LOG = logging.getLogger("deeprec.serving")


class AvailableFile:
    """One id a line; read again when it has changed. DeepRecError if it can't be read at first.

    Later a file that can't be read leaves the ids as they were, and the log says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = self._stat()
        self._ids = frozenset(read_ids(path))

    def ids(self) -> frozenset[str]:
        """The ids of now; the same object as long as the file does not change."""
        if (version := self._stat()) != self._version:
            self._version = version
            try:
                self._ids = frozenset(read_ids(self.path))
            except DeepRecError as error:
                _LOG.warning("%s What was available before stays so.", error)
        return self._ids

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
