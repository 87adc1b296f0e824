"""Stand-ins for what tests can't wait for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class HashedWords:
    """A text encoder of hashed bags of words: texts that share words are similar."""

    source, digest, width = "hashed words", "1", 24

    def encode(self, texts: Sequence[str], on_batch: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        vectors_ND = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.replace(".", " ").replace(";", " ").split() or [""]:
                vectors_ND[row] += np.random.default_rng(zlib.crc32(word.lower().encode())).normal(size=self.width)
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
