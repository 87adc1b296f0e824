"""Text vectors by MiniLM-L6 (mean of the token states), batched and cached in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from deeprec.assets.downloads import sha256_of

_MAX_TOKENS = 128
_BATCH_TOKENS = 4096
_CACHED = 100_000  # texts in memory: 150 MB
_BULK = 512  # new texts of one call from which on they are cached on disk: those of a catalogue, not of a user
_BLOCK = 4096  # texts in a file: what a kill loses at most
_FORMAT_VERSION = 1  # raise it when the same texts get other vectors


class TextEncoder:
    """Texts in, unit vectors (len, width) in float32 out. Vectors do not depend on the batch beyond float rounding.

    The last 100,000 texts are cached in memory, but for those of calls with 512 new texts or more. These are encoded in
    blocks of 4,096, each of which becomes a file of `cache`, named by the sha256 of its texts and of the encoder's
    files: an interrupted call resumes, and texts added at the end cost themselves only. Files can be removed any time.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        """The encoder in `folder`; without `cache` nothing is written to disk."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.width: int = self.model.config.hidden_size
        self.folder, self.cache = folder, cache
        self._known: dict[str, NDArray[np.float32]] = {}  # the most recently used comes last
        self._lock = threading.Lock()

    @classmethod
    def load(cls, *, offline: bool = False) -> TextEncoder:
        """The MiniLM asset, fetched if the cache lacks it (or DeepRecError); vectors are cached in `text-vectors`."""
        from deeprec import assets

        return cls(assets.fetch("minilm-l6", offline=offline), assets.cache_folder() / "text-vectors")

    def encode(
        self, texts: Sequence[str], on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> NDArray[np.float32]:
        """Unit vectors (len, width), a copy.

        While many new ones are encoded, `on_batch` is called with the number of distinct texts done, and of all.
        """
        with self._lock:  # threads of a server share the encoder
            distinct = dict.fromkeys(texts)
            new = [text for text in distinct if text not in self._known]
            if len(new) >= _BULK:
                vectors_ND = self._encode_many(list(distinct), on_batch)
                rows = {text: row for row, text in enumerate(distinct)}
                return vectors_ND if len(rows) == len(texts) else vectors_ND[[rows[text] for text in texts]]
            if new:
                self._known.update(zip(new, self._run(new), strict=True))
            for text in distinct:
                self._known[text] = self._known.pop(text)
            vectors_ND = np.array([self._known[text] for text in texts], np.float32).reshape(-1, self.width)
            while len(self._known) > _CACHED:
                del self._known[next(iter(self._known))]
            return vectors_ND

    def _encode_many(self, texts: Sequence[str], on_batch: Callable[[int, int], None]) -> NDArray[np.float32]:
        vectors_ND = np.empty((len(texts), self.width), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]

            def advance(done: int, start: int = start) -> None:
                on_batch(start + done, len(texts))

            vectors_ND[start : start + len(block)] = self._block(block, advance)
            advance(len(block))
        return vectors_ND

    def _block(self, texts: Sequence[str], advance: Callable[[int], None]) -> NDArray[np.float32]:
        if self.cache is None:
            return self._run(texts, advance)
        name = hashlib.sha256(json.dumps([self._origin, texts]).encode()).hexdigest()
        file = self.cache / f"{name}.npy"
        with suppress(OSError, ValueError, EOFError):  # missing or damaged
            kept_MD: NDArray[np.float32] = np.load(file, mmap_mode="r")
            whole = kept_MD.shape == (len(texts), self.width) and kept_MD.dtype == np.float32
            if whole and (abs(np.linalg.norm(kept_MD, axis=1) - 1) < 1e-3).all():
                return kept_MD
        vectors_MD = self._run(texts, advance)
        _write(file, vectors_MD)
        return vectors_MD

    @torch.inference_mode()
    def _run(self, texts: Sequence[str], on_batch: Callable[[int], None] = lambda done: None) -> NDArray[np.float32]:
        vectors_ND = np.empty((len(texts), self.width), dtype=np.float32)
        ids = self.tokenizer(list(texts), truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        order = sorted(range(len(texts)), key=lambda position: len(ids[position]))
        start = 0
        while start < len(order):
            # Sorted by length: the last text of a batch is the longest, and padding is short.
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= _BATCH_TOKENS:
                end += 1
            positions = order[start:end]
            batch = self.tokenizer.pad({"input_ids": [ids[p] for p in positions]}, return_tensors="pt")
            states_BTD = self.model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][:, :, None]
            vectors_BD = torch.nn.functional.normalize((states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1), dim=-1)
            vectors_ND[positions] = vectors_BD.numpy()
            start = end
            if end < len(order):
                on_batch(end)
        return vectors_ND

    @cached_property
    def _origin(self) -> list[str]:
        """What decides the vectors besides the texts."""
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        return [f"format {_FORMAT_VERSION}, {_MAX_TOKENS} tokens", *map(sha256_of, files)]


def _write(file: Path, vectors_ND: NDArray[np.float32]) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # without the file the next start encodes again, so a full disk is no error
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as opened:
                np.save(opened, vectors_ND)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
