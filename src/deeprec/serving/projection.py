"""The catalogue in two dimensions, for the page's map."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_TSNE_MIN, _TSNE_MAX = 6, 20_000
"""Numbers of items that t-SNE can project, and can project within minutes."""


def project(vectors_ID: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """Points (I, 2) in the unit square; similar ones lie near each other. The file keeps them, if it can be."""
    with suppress(OSError, KeyError, SafetensorError):  # absent or damaged
        points_I2: NDArray[np.float32] = load_file(path)["points"]
        if points_I2.shape == (len(vectors_ID), 2):
            return points_I2
    points_I2 = _project(np.asarray(vectors_ID, dtype=np.float32))
    low_2, high_2 = points_I2.min(0), points_I2.max(0)
    points_I2 = ((points_I2 - low_2) / np.maximum(high_2 - low_2, 1e-9)).astype(np.float32)
    part = path.with_suffix(".part")
    with suppress(OSError, SafetensorError):
        save_file({"points": points_I2}, part)
        os.replace(part, path)
    return points_I2


def _project(vectors_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors_ID) < _TSNE_MIN:
        return vectors_ID[:, :2]
    if len(vectors_ID) <= _TSNE_MAX:
        model = TSNE(init="pca", metric="cosine", perplexity=min(30.0, len(vectors_ID) / 4), random_state=0)
    else:
        model = PCA(2, random_state=0)
    return np.asarray(model.fit_transform(vectors_ID), dtype=np.float32)
