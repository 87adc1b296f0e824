"""The vectors of all items and the best of them for a query: found exactly, or by FAISS in a large catalogue."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.assets.downloads import sha256_of
from deeprec.errors import DeepRecError, one_line
from deeprec.retrieval.retriever import Hit, pairs, rank, shortlist

Kind = Literal["exact", "hnsw", "ivfpq"]

_RECORD = "index.json"
_FORMAT_VERSION = 1
_SCORES = 1 << 25  # scores of an exact search that are in memory at once
_PAIRS = 4096  # pairs of a query and an item that are scored at once: what fits in a processor's cache
_LEAST_TRAINING = 256  # one vector for each value of a byte, the codes of `ivfpq`


class NoFaissError(DeepRecError):
    """FAISS is needed and not installed."""


class Index:
    """Item vectors (I, D) and the best of them by inner product.

    `exact` compares every item. `hnsw` (a graph) and `ivfpq` (lists of short codes) let FAISS name candidates, of
    which few or none of the best are missing, and score those from the vectors. So a score is the same in every kind:
    the inner product, summed in float64 and rounded to float32. It depends neither on the other queries of a batch nor
    on the place of the item, and equal vectors tie.

    Attributes:
        kind: "exact", "hnsw" or "ivfpq".
        vectors_ID: float32; a file mapped into memory after `load`.
        faiss: FAISS's own index, None where the kind is exact. `faiss.hnsw.efSearch` and `faiss.nprobe` (saved with
            it) trade time for recall.
        refine: candidates that `ivfpq` scores for each hit asked for, since its codes rank coarsely.
    """

    def __init__(self, kind: Kind, vectors_ID: NDArray[np.float32], longest: float, faiss: Any = None) -> None:
        self.kind = kind
        self.vectors_ID = vectors_ID
        self.faiss = faiss
        self.refine = 4
        self._longest = longest  # the greatest length of a vector, which bounds rounding errors
        self._mapped = False

    @classmethod
    def build(
        cls,
        vectors_ID: NDArray[np.floating] | Tensor,
        kind: Kind | Literal["auto"] = "auto",
        *,
        exact_limit: int = 200_000,
    ) -> Index:
        """An index of the vectors, which are not copied where they are float32 rows already.

        Args:
            kind: "auto" is exact for at most `exact_limit` items, and hnsw for more where FAISS is installed.

        Raises:
            DeepRecError: the vectors are no finite matrix or too few for `ivfpq`, or FAISS is not installed.
        """
        vectors_ID = _matrix(vectors_ID, "items")
        n_items, width = vectors_ID.shape
        if not vectors_ID.size:
            raise DeepRecError(f"An index needs vectors and was given {n_items} of width {width}: add items.")
        if kind == "auto":
            # Without FAISS a large catalogue is searched exactly: slower, and right.
            kind = "hnsw" if n_items > exact_limit and importlib.util.find_spec("faiss") else "exact"
        if kind == "exact":
            index = None
        elif kind == "hnsw":
            index = _graph(width)
        else:
            index = _coded_lists(n_items, width)
        if index is not None:
            index.train(vectors_ID)
            index.add(vectors_ID)
        return cls(kind, vectors_ID, _longest(vectors_ID), index)

    def __len__(self) -> int:
        return len(self.vectors_ID)

    @property
    def width(self) -> int:
        return self.vectors_ID.shape[1]

    def search(
        self, vectors_QD: NDArray[np.floating] | Tensor, k: int, exclude: Sequence[Collection[int]] = ()
    ) -> list[list[Hit]]:
        """For each query at most `k` hits, best first and equal scores by lower index, none excluded.

        Fewer than `k` come back only where there are no more. `exclude` has a collection for each query, or is empty.

        Raises:
            DeepRecError: the queries are no finite matrix of the items' width, or an excluded item is not in the index.
        """
        queries_QD = _matrix(vectors_QD, "queries", self.width)
        exclude = exclude or [()] * len(queries_QD)
        if len(exclude) != len(queries_QD):
            raise DeepRecError(
                f"{len(queries_QD)} queries came with {len(exclude)} collections to exclude: give each one."
            )
        return self._scan(queries_QD, k, exclude) if self.faiss is None else self._approximate(queries_QD, k, exclude)

    def add(self, vectors_ND: NDArray[np.floating] | Tensor) -> None:
        """Append items, whose indices follow those there are. Costs a copy of all vectors, so add many at once.

        The lists and codes of `ivfpq` are not fitted again: build anew where the catalogue changes its nature.

        Raises:
            DeepRecError: the vectors are no finite matrix of the items' width.
        """
        vectors_ND = _matrix(vectors_ND, "new items", self.width)
        if self.faiss is not None:
            if self._mapped:  # FAISS can't grow what it maps, and ends the process where it is asked to
                faiss = import_faiss(self.kind)
                self.faiss = faiss.deserialize_index(faiss.serialize_index(self.faiss))
            self.faiss.add(vectors_ND)
        self.vectors_ID = np.concatenate([self.vectors_ID, vectors_ND])
        self._longest = max(self._longest, _longest(vectors_ND))
        self._mapped = False

    def save(self, folder: Path) -> None:
        """Write the index into a folder of its own, over what index is there; a kill leaves the old one or the new.

        Raises:
            DeepRecError: the folder can't be written.
        """
        stamp = secrets.token_hex(4)
        names = [f"vectors-{stamp}.npy"] + ([] if self.faiss is None else [f"faiss-{stamp}.bin"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / names[0], self.vectors_ID)
            if self.faiss is not None:
                import_faiss(self.kind).write_index(self.faiss, str(folder / names[1]))
            record = {
                "format_version": _FORMAT_VERSION,
                "kind": self.kind,
                "items": len(self),
                "width": self.width,
                "longest": self._longest,
                "refine": self.refine,
                "files": {n: {"size": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in names},
            }
            part = folder / f"{_RECORD}.part"
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            os.replace(part, folder / _RECORD)  # from here on the folder holds this index and no other
            for path in [*folder.glob("vectors-*.npy"), *folder.glob("faiss-*.bin")]:
                if path.name not in names:
                    path.unlink()
        except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError
            raise DeepRecError(
                f"The index can't be written to {folder} ({one_line(error)}): make room there or mend its permissions."
            ) from None

    @classmethod
    def load(cls, folder: Path, *, read_all: bool = False) -> Index:
        """A saved index, mapped into memory: what is searched is read when it is needed.

        Files are judged by their sizes and shapes, with `read_all` by their sha256 too (about a second a GB).

        Raises:
            DeepRecError: the folder holds no index or a damaged one, or FAISS is needed and not installed.
        """
        path = folder / _RECORD
        if not path.is_file():
            raise DeepRecError(f"{folder} holds no index ({_RECORD} is missing): build and save one there.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"it is of edition {record['format_version']!r} instead of {_FORMAT_VERSION}")
            for name, file in record["files"].items():
                if (size := (folder / name).stat().st_size) != file["size"]:
                    raise ValueError(f"{name} has {size:,} bytes instead of {file['size']:,}")
                if read_all and sha256_of(folder / name) != file["sha256"]:
                    raise ValueError(f"{name} fails its sha256")
            return cls._map(record, [folder / name for name in record["files"]])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise DeepRecError(
                f"{folder} holds a damaged index ({one_line(error)}): remove it, build it again and save it."
            ) from None

    @classmethod
    def _map(cls, record: dict[str, Any], paths: list[Path]) -> Index:
        # Copy on write: torch wants memory that may be written, and the file stays as it is.
        vectors_ID = np.asarray(np.load(paths[0], mmap_mode="c"))
        shape, kind = (record["items"], record["width"]), record["kind"]
        if vectors_ID.shape != shape or vectors_ID.dtype != np.float32:
            raise ValueError(f"{vectors_ID.dtype} {vectors_ID.shape} in {paths[0].name} instead of float32 {shape}")
        if kind not in ("exact", "hnsw", "ivfpq") or len(paths) != 1 + (kind != "exact"):
            raise ValueError(f"kind {kind!r} with {len(paths)} files")
        index = cls(kind, vectors_ID, float(record["longest"]))
        if kind != "exact":
            faiss = import_faiss(kind)
            index.faiss = faiss.read_index(str(paths[1]), faiss.IO_FLAG_MMAP_IFC)
            if (index.faiss.ntotal, index.faiss.d) != shape:
                raise ValueError(f"{(index.faiss.ntotal, index.faiss.d)} in {paths[1].name} instead of {shape}")
        index.refine = int(record["refine"])
        index._mapped = True
        return index

    def _scan(self, queries_QD: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]]) -> list[list[Hit]]:
        """Compare every item, in float32; what could be among the best but for rounding is then scored."""
        # |error| <= D u |query| |item| for a float32 sum in any order, twice for two scores; as much again to be safe.
        margin_Q = 4 * self.width * 2.0**-24 * self._longest * np.linalg.norm(queries_QD, axis=1)
        items_ID = torch.from_numpy(self.vectors_ID)
        hits: list[list[Hit]] = []
        step = max(_SCORES // len(self), 1)
        for start in range(0, len(queries_QD), step):
            batch = slice(start, start + step)
            scores_QI: NDArray[np.float32] = (torch.from_numpy(queries_QD[batch]) @ items_ID.T).numpy()
            scores_QI[self._excluded(exclude[batch])] = -np.inf
            rows_N, items_N = shortlist(scores_QI, k, margin_Q[batch])
            hits += rank(len(scores_QI), rows_N, items_N, self.inner(queries_QD[batch], rows_N, items_N), k)
        return hits

    def _approximate(
        self, queries_QD: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]]
    ) -> list[list[Hit]]:
        """Ask FAISS for more than `k` candidates as long as they are too few, then compare every item."""
        results: list[list[Hit]] = [[]] * len(queries_QD)
        # How many candidates a query asks for depends on itself alone, or its answer would depend on the others. Few
        # different numbers let many queries ask together.
        asking: dict[int, list[int]] = {}
        for row, shut in enumerate(exclude):
            fetch = k * (self.refine if self.kind == "ivfpq" else 1) + len(shut)
            asking.setdefault((fetch // 32 + 1) * 32, []).append(row)
        while asking:
            fetch, rows = asking.popitem()
            everything = 4 * fetch > len(self)
            own = queries_QD[rows], k, [exclude[row] for row in rows]
            for row, hits in zip(rows, self._scan(*own) if everything else self._ask(*own, fetch), strict=True):
                results[row] = hits
                if len(hits) < k and not everything:
                    asking.setdefault(4 * fetch, []).append(row)
        return results

    def _ask(
        self, queries_QD: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]], fetch: int
    ) -> list[list[Hit]]:
        items_QF = np.sort(self.faiss.search(queries_QD, fetch)[1], axis=1)
        rows_N, items_N = np.repeat(np.arange(len(queries_QD)), fetch), items_QF.ravel()
        shut_rows, shut_items = self._excluded(exclude)
        shut_M = np.sort(shut_rows * len(self) + shut_items)
        keys_N = rows_N * len(self) + items_N
        free_N = np.append(shut_M, -1)[np.searchsorted(shut_M, keys_N)] != keys_N  # np.isin takes five times as long
        free_N &= items_N >= 0  # FAISS fills up with -1
        scores_N = np.full(len(items_N), -np.inf, dtype=np.float32)
        scores_N[free_N] = self.inner(queries_QD, rows_N[free_N], items_N[free_N])
        scores_QF = scores_N.reshape(items_QF.shape)
        rows_N, positions_N = shortlist(scores_QF, k)
        return rank(len(queries_QD), rows_N, items_QF[rows_N, positions_N], scores_QF[rows_N, positions_N], k)

    def inner(
        self, queries_QD: NDArray[np.float32], rows_N: NDArray[np.int64], items_N: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Scores (N,) of pairs of a query and an item."""
        scores_N = np.empty(len(items_N), dtype=np.float32)
        for start in range(0, len(items_N), _PAIRS):
            part = slice(start, start + _PAIRS)
            products_ND = np.take(self.vectors_ID, items_N[part], axis=0).astype(np.float64)
            products_ND *= np.take(queries_QD, rows_N[part], axis=0)
            scores_N[part] = products_ND.sum(axis=1)
        return scores_N

    def _excluded(self, exclude: Sequence[Collection[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows_N, items_N = pairs(exclude)
        if items_N.size and not (items_N.min() >= 0 and items_N.max() < len(self)):
            raise DeepRecError(
                f"Items {items_N.min()} to {items_N.max()} are to be excluded from an index of {len(self)} items: "
                "use the index that was built for this catalogue."
            )
        return rows_N, items_N


def _matrix(vectors: NDArray[np.floating] | Tensor, what: str, width: int | None = None) -> NDArray[np.float32]:
    array = vectors.detach().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    matrix = np.require(array, np.float32, ["C", "W"])
    if matrix.ndim != 2 or matrix.shape[1] != (width or matrix.shape[1]):
        wanted = f"(any number, {width})" if width else "(items, width)"
        raise DeepRecError(
            f"The vectors of the {what} have the shape {matrix.shape} instead of {wanted}: reshape them."
        )
    if not np.isfinite(matrix).all():
        raise DeepRecError(f"The vectors of the {what} hold nan or infinity: train the model again, or mend its input.")
    return matrix


def _longest(vectors_ND: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND).max(initial=0)))


def _graph(width: int) -> Any:
    """Half precision halves the memory and is faster; what is found is scored in full anyway."""
    faiss = import_faiss("hnsw")
    index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
    return index


def _coded_lists(n_items: int, width: int) -> Any:
    """Lists by spherical k-means, and a byte for four components or, where D is no multiple of four, for more."""
    faiss = import_faiss("ivfpq")
    if n_items < _LEAST_TRAINING:
        raise DeepRecError(
            f"An ivfpq index learns its codes from at least {_LEAST_TRAINING} vectors and was given {n_items}: "
            "choose the kind exact."
        )
    size = max(size for size in range(1, max(width // 4, 1) + 1) if width % size == 0)
    centres = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQ(centres, width, int(2 * n_items**0.5), size, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 32
    for clustering in (index.cp, index.pq.cp):
        # A sample and few rounds: the default takes several times as long and finds no more.
        clustering.niter, clustering.min_points_per_centroid, clustering.max_points_per_centroid = 10, 1, 64
    return index


def import_faiss(kind: Kind) -> Any:
    """The module.

    Raises:
        NoFaissError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise NoFaissError(
            f"An index of kind {kind} needs FAISS, which can't be imported ({one_line(error)}): "
            "run `pip install --editable '.[faiss]'`, or choose the kind exact."
        ) from None
