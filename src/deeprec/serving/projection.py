"""The catalogue on a plane, for people to look at."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_FEW = 5
"""Items of which no plane can be computed; any will do."""
_NEIGHBOURS = 20_000
"""Items beyond which neighbourhoods cost minutes to compute, and the two main directions must do."""


def project(vectors_ID: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """Places (I, 2) in the unit square, near each other where vectors are; kept at `path` if that can be."""
    try:
        points_I2: NDArray[np.float32] = load_file(path)["points"]
        if points_I2.shape == (len(vectors_ID), 2):
            return points_I2
    except (OSError, KeyError, SafetensorError):
        pass  # never made, or cut off: made again
    points_I2 = _project(np.asarray(vectors_ID, dtype=np.float32))
    low_2, high_2 = points_I2.min(0), points_I2.max(0)
    points_I2 = ((points_I2 - low_2) / np.maximum(high_2 - low_2, 1e-9)).astype(np.float32)
    part = path.with_suffix(".part")
    with suppress(OSError, SafetensorError):  # a folder that may not be written to: made again next time
        save_file({"points": points_I2}, part)
        os.replace(part, path)
    return points_I2


def _project(vectors_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors_ID) <= _FEW:
        return vectors_ID[:, :2]
    if len(vectors_ID) <= _NEIGHBOURS:
        perplexity = min(30.0, len(vectors_ID) / 4)
        found = TSNE(init="pca", metric="cosine", perplexity=perplexity, random_state=0).fit_transform(vectors_ID)
    else:
        found = PCA(2, random_state=0).fit_transform(vectors_ID)
    return np.asarray(found, dtype=np.float32)
