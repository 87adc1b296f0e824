"""Text vectors by a model of the sentence-transformers layout, batched and cached in memory and on disk."""

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
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from deeprec import assets
from deeprec.assets import ASSETS
from deeprec.assets.cache import MANIFEST
from deeprec.assets.downloads import sha256_of
from deeprec.config import DEFAULT_TEXT_ENCODER
from deeprec.errors import DeepRecError, one_line
from deeprec.trm.encoder_layout import BARE_TOKENS, read_layout

_BATCH_TOKENS = 4096
_CACHED = 100_000  # texts in memory: 150 MB
_BULK = 512  # new texts of one call from which on they are cached on disk: those of a catalogue, not of a user
_BLOCK = 4096  # texts in a file: what a kill loses at most
_FORMAT_VERSION = 1  # raise it when the same texts get other vectors
_DECIDING = (".json", ".txt", ".model", ".safetensors")  # files that decide the vectors, and are fetched from a hub
_SAME = 32, 3  # vectors whose first coordinates are equal to so many decimals are equal but for rounding
_MANY = 0.1  # share of the items from which on equal vectors are worth a note


class TextEncoder:
    """Texts in, unit vectors (len, width) in float32 out. Vectors do not depend on the batch beyond float rounding.

    The last 100,000 texts are cached in memory, but for those of calls with 512 new texts or more. These are encoded in
    blocks of 4,096, each of which becomes a file of `cache`, named by the sha256 of its texts and of the encoder's
    files: an interrupted call resumes, and texts added at the end cost themselves only. Files can be removed any time.
    """

    def __init__(self, folder: Path, cache: Path | None = None, *, source: str | None = None) -> None:
        """The encoder in `folder`: pooling, longest text and prompt are those that its files name, else the mean of 128
        tokens without a prompt. Without `cache` nothing is written to disk.

        `source` is how a saved TRM finds it again; default: the folder. DeepRecError if it can't be loaded.
        """
        self.folder, self.cache = folder, cache
        self.source = source or str(folder.resolve())
        try:
            self.layout = read_layout(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(self.layout.model, local_files_only=True)
            self.tokenizer.padding_side = "right"
            self.model = AutoModel.from_pretrained(
                self.layout.model, local_files_only=True, dtype=torch.float32, use_safetensors=True
            ).eval()
            self.max_tokens = self._longest()
            self.width: int = self._pooled(self._tokens(["a"])).shape[1]
        except DeepRecError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever damaged and foreign files make the loaders raise)
            raise _unfit(self.source, error) from None
        self._known: dict[str, NDArray[np.float32]] = {}  # the most recently used comes last
        self._lock = threading.Lock()

    @classmethod
    def load(cls, *, source: str = DEFAULT_TEXT_ENCODER, offline: bool = False) -> TextEncoder:
        """An encoder by an asset's name, a folder, or the id of a model on the hub, fetched if the cache lacks it.

        Vectors are cached in `text-vectors`. DeepRecError if there is none, or `offline` and the cache lacks it.
        """
        folder, cache = Path(source).expanduser(), assets.cache_folder() / "text-vectors"
        if source in ASSETS:
            if (kind := ASSETS[source].kind) != "text encoder":
                raise DeepRecError(f"trm.text_encoder={source!r} is a {kind}: name a text encoder, as minilm-l6.")
            return cls(assets.fetch(source, offline=offline), cache, source=source)
        if folder.is_dir():
            return cls(folder, cache)
        if folder.is_absolute():
            raise DeepRecError(f"There is no folder {source} with a text encoder: bring it back, or name another one.")
        try:
            patterns = [f"*{ending}" for ending in _DECIDING]
            fetched = snapshot_download(source, allow_patterns=patterns, local_files_only=offline)
        except Exception as error:  # noqa: BLE001 (the hub's, the network's, and the file system's)
            raise _unfit(source, error) from None
        return cls(Path(fetched), cache, source=source)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of what decides the vectors besides the texts."""
        return hashlib.sha256(json.dumps(self._origin).encode()).hexdigest()

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

    def _run(self, texts: Sequence[str], on_batch: Callable[[int], None] = lambda done: None) -> NDArray[np.float32]:
        vectors_ND = np.empty((len(texts), self.width), dtype=np.float32)
        ids = self._tokens(texts)
        order = sorted(range(len(texts)), key=lambda position: len(ids[position]))
        start = 0
        while start < len(order):
            # Sorted by length: the last text of a batch is the longest, and padding is short.
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= _BATCH_TOKENS:
                end += 1
            positions = order[start:end]
            vectors_ND[positions] = self._pooled([ids[p] for p in positions]).numpy()
            start = end
            if end < len(order):
                on_batch(end)
        return vectors_ND

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        read = [f"{self.layout.prompt}{text.lower() if self.layout.lower else text}" for text in texts]
        return self.tokenizer(read, truncation=True, max_length=self.max_tokens)["input_ids"]

    @torch.inference_mode()
    def _pooled(self, ids: list[list[int]]) -> Tensor:
        """Unit vectors (B, D) of token sequences."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        states_BTD = self.model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][:, :, None]
        lengths_B1 = mask_BT1.sum(1).clamp(min=1)
        match self.layout.pooling:
            case "mean":
                pooled_BD = (states_BTD * mask_BT1).sum(1) / lengths_B1
            case "cls":
                pooled_BD = states_BTD[:, 0]
            case "lasttoken":
                pooled_BD = states_BTD[torch.arange(len(ids)), lengths_B1[:, 0] - 1]
        return torch.nn.functional.normalize(pooled_BD, dim=-1)

    def _longest(self) -> int:
        """Tokens that are read: what the files say, else what the model can read, and of a bare model 128 at most."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        limit = min(positions, self.tokenizer.model_max_length)
        return min(limit, (self.layout.max_tokens or limit) if self.layout.published else BARE_TOKENS)

    @cached_property
    def _origin(self) -> list[str]:
        """What decides the vectors besides the texts: the files, but none that say where the model came from."""
        files = (file for folder in self.layout.folders for file in sorted(folder.iterdir()))
        deciding = [file for file in files if file.suffix in _DECIDING and file.name != MANIFEST]
        return [f"format {_FORMAT_VERSION}, {self.max_tokens} tokens", *map(sha256_of, deciding)]


def coincidence_notes(texts: Sequence[str], vectors_ND: NDArray[np.float32]) -> tuple[str, ...]:
    """A sentence for the reader if many texts have the vector of another text, so that the encoder can't read them."""
    rows = {text: row for row, text in enumerate(texts)}
    coordinates, decimals = _SAME
    rounded_MD = np.round(vectors_ND[list(rows.values()), :coordinates], decimals) + 0.0  # no -0
    _, group_M, sizes_G = np.unique(rounded_MD, axis=0, return_inverse=True, return_counts=True)
    alone = {text for text, size in zip(rows, sizes_G[group_M.ravel()], strict=True) if size == 1}
    equal = sum(text not in alone for text in texts)
    if equal <= _MANY * len(texts):
        return ()
    return (
        f"{equal:,} of {len(texts):,} items have the text vector of an item with another text: the text encoder can't "
        "read them. Name one that knows their language in trm.text_encoder, as "
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2.",
    )


def _unfit(source: str, error: Exception) -> DeepRecError:
    known = ", ".join(name for name, asset in ASSETS.items() if asset.kind == "text encoder")
    fault = f"trm.text_encoder={source!r} can't be loaded ({type(error).__name__}: {one_line(error)[:300]})"
    return DeepRecError(f"{fault}: name an asset ({known}), a folder of the sentence-transformers layout, or a hub id.")


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
