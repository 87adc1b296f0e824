"""Sentences to unit vectors by MiniLM-L6 (mean of the token states), batched and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

_MAX_TOKENS = 128
_BATCH_TOKENS = 4096


class TextEncoder:
    """Texts in, unit vectors (len, width) in float32 out. Repeated texts cost a look-up.

    Vectors do not depend on the batch beyond float rounding: each text is padded only beside texts of its length.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.width: int = self.model.config.hidden_size
        self._known: dict[str, NDArray[np.float32]] = {}

    @classmethod
    def load(cls, *, offline: bool = False) -> TextEncoder:
        """The MiniLM asset, fetched where it is not in the cache.

        Raises:
            DeepRecError: it can't be had.
        """
        from deeprec import assets

        return cls(assets.fetch("minilm-l6", offline=offline))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._learn(new)
        if not texts:
            return np.empty((0, self.width), dtype=np.float32)
        return np.stack([self._known[text] for text in texts])

    @torch.inference_mode()
    def _learn(self, texts: Sequence[str]) -> None:
        ids = self.tokenizer(list(texts), truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        order = sorted(range(len(texts)), key=lambda place: len(ids[place]))
        start = 0
        while start < len(order):
            # Sorted by length, so the last text of a batch is the longest.
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= _BATCH_TOKENS:
                end += 1
            places = order[start:end]
            batch = self.tokenizer.pad({"input_ids": [ids[p] for p in places]}, return_tensors="pt")
            states_BTD = self.model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][:, :, None]
            vectors_BD = torch.nn.functional.normalize((states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1), dim=-1)
            for place, vector_D in zip(places, vectors_BD.numpy(), strict=True):
                self._known[texts[place]] = vector_D
            start = end
